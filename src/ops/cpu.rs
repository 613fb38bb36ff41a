//! The CPU backends.

#[cfg(feature = "flex")]
impl super::LlamaOps for burn_flex::Flex {}

#[cfg(feature = "ndarray")]
mod ndarray {
    use burn_ndarray::{FloatNdArrayElement, IntNdArrayElement, NdArray, NdArrayTensor, QuantElement, SharedArray};

    impl<E: FloatNdArrayElement, I: IntNdArrayElement, Q: QuantElement> crate::ops::LlamaOps for NdArray<E, I, Q>
    where
        NdArrayTensor: From<SharedArray<E>>,
        NdArrayTensor: From<SharedArray<I>>,
    {
    }
}
