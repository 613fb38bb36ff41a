//! Loads the tensors of a checkpoint into a model on a device, as float32 or in a narrower type ([`load`], [`load_as`], [`load_part`]), and
//! reads a model's tensors back for saving ([`ModelTensors`]).

use std::borrow::Cow;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, TensorMetadata};

use super::{Checkpoint, Dtype, Format, TensorInfo, TensorSource};
use crate::error::{Error, Result};
use crate::model::init::from_f32;
use crate::model::{Llama, ModelConfig, Part};
use crate::ops::blocks::{narrowed, widened};
use crate::ops::{LlamaOps, Weight, WeightPart, cast, primitive, tensor};

impl Checkpoint {
    /// The model on a device, float32.
    ///
    /// # Errors
    /// Those of the files.
    pub fn load<B: LlamaOps>(&self, device: &B::Device) -> Result<Llama<B>> {
        load(self.config(), self.source(), device)
    }

    /// The model on a device for inference: matrices in `dtype`, the gains of norms in float32. `None`: as they are in a GGUF file,
    /// which on CPU is then read where it is mapped; float32 of other formats. Blocks are made of rows that are whole blocks; other
    /// matrices, and for `Q4_0` the output's, take the type of [`narrow_dtype`].
    ///
    /// # Errors
    /// [`Error::BadValue`] where the backend does not have the type, or it cannot be made; those of the files.
    pub fn load_as<B: LlamaOps>(&self, device: &B::Device, dtype: Option<Dtype>) -> Result<Llama<B>> {
        let dtype = dtype.or((self.format() != Format::Gguf).then_some(Dtype::F32));
        load_as(self.source(), self.config(), device, dtype)
    }
}

/// [`Checkpoint::load_as`] of any source; `None`: each matrix in its own type.
///
/// # Errors
/// As there.
pub fn load_as<B: LlamaOps>(
    source: &dyn TensorSource,
    config: &ModelConfig,
    device: &B::Device,
    dtype: Option<Dtype>,
) -> Result<Llama<B>> {
    let parameters = config.parameters();
    let as_stored = dtype.is_none();
    let dtype = dtype.unwrap_or(Dtype::F32);
    if let Some(float) = dtype.float()
        && !B::supports_dtype(device, float)
    {
        let problem = format!("the backend does not have {dtype}");
        return Err(Error::bad_value("dtype", problem, "`recua info` lists what each backend has"));
    }
    let largest = B::largest_page(device).unwrap_or(u64::MAX);
    Llama::from_weights(config, device, |slot| {
        let named: Vec<_> = slot.parts(config.n_layers).into_iter().map(|i| &parameters[i]).collect();
        let elements: usize = named.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        // A float tensor is float32 on its way, whatever it becomes.
        let in_parts = slot.is_matrix() && (as_stored || dtype.float().is_none() || (elements * 4) as u64 > largest);
        if !in_parts {
            let stored = if slot.is_matrix() { dtype.float().unwrap_or(DType::F32) } else { DType::F32 };
            let one = |(name, shape): &(String, Vec<usize>)| Ok(cast::<B>(read::<B>(source, name, shape, device)?, stored));
            let parts = named.into_iter().map(one).collect::<Result<Vec<_>>>()?;
            return Ok(Weight::Float(joined::<B>(parts)));
        }
        let part = |(name, shape): &(String, Vec<usize>)| {
            let (found, stored, bytes) = source.share(name)?;
            check_shape(name, &found, shape)?;
            let [rows, width] = [shape[0], shape[1]];
            let dtype = if as_stored { stored } else { narrow_dtype(name, width, dtype) };
            let bytes = if dtype == stored { bytes } else { narrowed(dtype, &widened(stored, &bytes), width)?.into() };
            Ok(WeightPart::host(dtype, [rows, width], bytes))
        };
        let parts = named.into_iter().map(part).collect::<Result<Vec<_>>>()?;
        let parts = B::take_weight(parts, device);
        B::flush_uploads(device);
        Ok(Weight::Parts(parts.into()))
    })
}

/// The type that a matrix with rows of `width` gets where blocks are asked for: the output's are not made narrower than `Q8_0`, which
/// costs most in quality (ggml keeps it wider too); float16 where rows are not whole blocks.
pub fn narrow_dtype(name: &str, width: usize, asked: Dtype) -> Dtype {
    let dtype = if asked == Dtype::Q4_0 && name == "output.weight" { Dtype::Q8_0 } else { asked };
    if width.is_multiple_of(dtype.block().0) { dtype } else { Dtype::F16 }
}

/// Rows one below the other; one tensor as it is.
fn joined<B: LlamaOps>(mut parts: Vec<FloatTensor<B>>) -> FloatTensor<B> {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    primitive(burn::tensor::Tensor::cat(parts.into_iter().map(tensor::<B, 2>).collect(), 0))
}

/// A model of shape `config` with the weights of `source` (Meta's names), a tensor at a time, float32.
///
/// # Errors
/// Those of `source` and of [`ModelConfig::validate`].
pub fn load<B: LlamaOps>(config: &ModelConfig, source: &dyn TensorSource, device: &B::Device) -> Result<Llama<B>> {
    Llama::build(config, device, &mut |name, shape| read::<B>(source, name, shape, device))
}

/// A part of such a model.
///
/// # Errors
/// As [`load`].
pub fn load_part<B: LlamaOps>(
    config: &ModelConfig,
    part: Part,
    source: &dyn TensorSource,
    device: &B::Device,
) -> Result<Llama<B>> {
    Llama::build_part(config, part, device, &mut |slice| Ok(from_f32::<B>(source.read_slice(slice)?, &slice.sizes, device)))
}

/// One tensor, float32, which must have `shape`.
pub(crate) fn read<B: LlamaOps>(
    source: &dyn TensorSource,
    name: &str,
    shape: &[usize],
    device: &B::Device,
) -> Result<FloatTensor<B>> {
    let (found, values) = source.read_f32(name)?;
    check_shape(name, &found, shape)?;
    Ok(from_f32::<B>(values, shape, device))
}

pub(super) fn check_shape(name: &str, found: &[usize], shape: &[usize]) -> Result<()> {
    if found == shape {
        return Ok(());
    }
    Err(Error::BadTensor {
        path: Default::default(),
        name: name.into(),
        expected: format!("{shape:?}"),
        got: format!("{found:?}"),
        hint: "the checkpoint is of another model".into(),
    })
}

/// Float32 entries for tensors of these names and shapes.
pub(crate) fn infos(parameters: &[(String, Vec<usize>)]) -> Vec<TensorInfo> {
    parameters.iter().map(|(name, shape)| TensorInfo { name: name.clone(), shape: shape.clone(), dtype: Dtype::F32 }).collect()
}

/// A tensor's elements as little-endian float32.
pub(crate) fn to_bytes<B: LlamaOps>(p: FloatTensor<B>) -> Vec<u8> {
    let n = p.shape().num_elements();
    let data = tensor::<B, 1>(B::float_reshape(p, [n].into())).into_data().convert::<f32>();
    data.iter::<f32>().flat_map(f32::to_le_bytes).collect()
}

/// A model on a device as a source of tensors, for saving it in any format.
pub struct ModelTensors<B: LlamaOps> {
    infos: Vec<TensorInfo>,
    parameters: Vec<FloatTensor<B>>,
}

impl<B: LlamaOps> ModelTensors<B> {
    /// The weights of `model`, shared.
    pub fn new(model: &Llama<B>) -> Self {
        Self { infos: infos(&model.config().parameters()), parameters: model.parameters() }
    }
}

impl<B: LlamaOps> TensorSource for ModelTensors<B> {
    fn list(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<super::Tensor<'_>> {
        let Some(i) = self.infos.iter().position(|info| info.name == name) else {
            return Err(Error::BadTensor {
                path: Default::default(),
                name: name.into(),
                expected: "a parameter of the model".into(),
                got: "nothing".into(),
                hint: "ModelConfig::parameters lists them".into(),
            });
        };
        let bytes = Cow::Owned(to_bytes::<B>(self.parameters[i].clone()));
        Ok(super::Tensor { shape: self.infos[i].shape.clone(), dtype: Dtype::F32, bytes })
    }
}
