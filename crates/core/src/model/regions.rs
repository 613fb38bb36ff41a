//! Where tensor parallelism enters the model: what surrounds the products of a pass where a model is split over devices, and does nothing on
//! one. Megatron's f and g (Shoeybi et al. 2019); with rows of the residual stream split as well (sequence parallelism) g and g-bar
//! (Korthikanti et al. 2022).

use burn::tensor::DType;
use burn::tensor::ops::{FloatTensor, IntTensor};

use crate::error::Result;
use crate::ops::LlamaOps;

/// A tensor that is there, or that an operation between devices, which was started, will give.
pub enum Handle<B: LlamaOps> {
    /// It is there.
    Ready(FloatTensor<B>),
    /// Waits for it.
    Started(Box<dyn FnOnce() -> Result<FloatTensor<B>> + Send>),
}

impl<B: LlamaOps> Handle<B> {
    /// The tensor.
    ///
    /// # Errors
    /// [`Error::Communication`](crate::Error::Communication).
    pub fn wait(self) -> Result<FloatTensor<B>> {
        match self {
            Self::Ready(x) => Ok(x),
            Self::Started(wait) => wait(),
        }
    }

    /// What `then` makes of the tensor, once it is there.
    #[must_use]
    pub fn then(self, then: impl FnOnce(FloatTensor<B>) -> FloatTensor<B> + Send + 'static) -> Self {
        match self {
            Self::Ready(x) => Self::Ready(then(x)),
            Self::Started(wait) => Self::Started(Box::new(move || wait().map(then))),
        }
    }
}

/// What a pass does between devices, each with its conjugate for backward. Every method has the body for one device.
///
/// Of `n` rows (tokens) the products see all; embedding, norms and residual stream see the `n'` that the device has, all or a part.
/// What crosses between devices has the type in which products read it.
pub trait Regions<B: LlamaOps>: Send + Sync {
    /// Whether anything crosses: backward then orders its products so that they hide it.
    fn split(&self) -> bool {
        false
    }
    /// Rows `ids [n]` of the embedding, of which the device has a part: `[n', d]`, float32.
    fn embed(&self, ids: IntTensor<B>, table: FloatTensor<B>) -> Handle<B> {
        Handle::Ready(B::embed(ids, table, DType::F32))
    }
    /// The gradient `dx [n', d]` of [`Regions::embed`] as it goes to the device's part of the table; see [`LlamaOps::embed_backward`].
    fn embed_backward(&self, ids: IntTensor<B>, order: IntTensor<B>, dx: FloatTensor<B>, sum: FloatTensor<B>) -> Handle<B> {
        Handle::Ready(B::embed_backward(ids, order, dx, sum))
    }
    /// Before the first product of attention or feed-forward: `[n', d]` to `[n, d]`.
    fn enter(&self, x: FloatTensor<B>) -> Handle<B> {
        Handle::Ready(x)
    }
    /// The gradient that leaves where [`Regions::enter`] came in: `[n, d]`, a part of a sum, to `[n', d]`.
    fn enter_backward(&self, dx: FloatTensor<B>) -> Handle<B> {
        Handle::Ready(dx)
    }
    /// The last product of attention or feed-forward, `x w^T` of `x [n, f]`, brought together and added to the residual stream
    /// `h [n', d]`.
    fn exit(&self, h: FloatTensor<B>, x: FloatTensor<B>, w: FloatTensor<B>) -> Handle<B> {
        Handle::Ready(B::project_add(h, x, w))
    }
    /// The sum over the devices alone, of a product that inference adds by an operation of its own.
    fn sum(&self, x: FloatTensor<B>) -> Handle<B> {
        Handle::Ready(x)
    }
    /// The logits of the whole vocabulary, from those of its parts: `[n, v']` to `[n, v]`.
    fn join_logits(&self, logits: FloatTensor<B>) -> Handle<B> {
        Handle::Ready(logits)
    }
    /// The gradient that comes in where [`Regions::exit`] left: `[n', d]` to `[n, d]`.
    fn exit_backward(&self, dy: FloatTensor<B>) -> Handle<B> {
        Handle::Ready(dy)
    }
    /// The statistics of a split vocabulary brought together; see [`LlamaOps::logit_stats`].
    fn join_stats(&self, stats: FloatTensor<B>) -> Handle<B> {
        Handle::Ready(stats)
    }
    /// The first token of this device's part of the vocabulary.
    fn vocab_start(&self) -> usize {
        0
    }
    /// Whether the device sees a part of the rows alone: gradients of parameters that are whole on every device, the gains of norms,
    /// are then parts of a sum, which [`Regions::join_gains`] makes whole once a step.
    fn rows_split(&self) -> bool {
        false
    }
    /// Those gradients in one vector, summed where rows are split.
    fn join_gains(&self, gains: FloatTensor<B>) -> Handle<B> {
        Handle::Ready(gains)
    }
}

/// One device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Single;
impl<B: LlamaOps> Regions<B> for Single {}
