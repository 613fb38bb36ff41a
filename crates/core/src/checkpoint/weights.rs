//! Between tensors on disk and a model on a device.

use std::borrow::Cow;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, TensorMetadata};

use super::{Checkpoint, Dtype, TensorInfo, TensorSource};
use crate::error::Result;
use crate::model::init::from_f32;
use crate::model::{Llama, ModelConfig, Slot};
use crate::ops::{LlamaOps, cast, tensor};

impl Checkpoint {
    /// The model on a device, float32.
    ///
    /// # Errors
    /// Those of the files.
    pub fn load<B: LlamaOps>(&self, device: &B::Device) -> Result<Llama<B>> {
        load(self.config(), self.source(), device)
    }

    /// The model on a device for inference: matrices in `dtype`, the gains of norms in float32.
    ///
    /// # Errors
    /// [`Error::BadValue`](crate::Error::BadValue) where the backend does not have the type; those of the files.
    pub fn load_as<B: LlamaOps>(&self, device: &B::Device, dtype: Dtype) -> Result<Llama<B>> {
        let dtype = match dtype {
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            _ => DType::F32,
        };
        if !B::supports_dtype(device, dtype) {
            let problem = format!("the backend does not have {dtype:?}");
            return Err(crate::Error::bad_value("dtype", problem, "`recua info` lists what each backend has"));
        }
        check_sizes(self.config(), dtype, B::largest_page(device))?;
        Llama::build(self.config(), device, &mut |name, shape| {
            let x = read::<B>(self.source(), name, shape, device)?;
            Ok(if shape.len() == 2 { cast::<B>(x, dtype) } else { x })
        })
    }
}

/// Whether a device takes each weight as one buffer, whose bytes it binds to a kernel: `largest`.
///
/// # Errors
/// [`Error::BadTensor`](crate::Error::BadTensor) with the name of the first that is too large.
fn check_sizes(config: &ModelConfig, dtype: DType, largest: Option<u64>) -> Result<()> {
    let Some(largest) = largest else { return Ok(()) };
    let parameters = config.parameters();
    for slot in Slot::all(config.n_layers) {
        let elements: usize = slot.parts(config.n_layers).iter().map(|&i| parameters[i].1.iter().product::<usize>()).sum();
        let bytes = (elements * if slot.is_matrix() { dtype.size() } else { 4 }) as u64;
        if bytes > largest {
            return Err(crate::Error::BadTensor {
                path: Default::default(),
                name: slot.name(),
                expected: format!("at most {largest} bytes, the largest buffer that the device binds"),
                got: format!("{bytes} bytes as {dtype:?}"),
                hint: "take a narrower --dtype, another device (`recua info` lists them), or --backend flex".into(),
            });
        }
    }
    Ok(())
}

/// A model of shape `config` with the weights of `source` (Meta's names), a tensor at a time, float32.
///
/// # Errors
/// Those of `source` and of [`ModelConfig::validate`].
pub fn load<B: LlamaOps>(config: &ModelConfig, source: &dyn TensorSource, device: &B::Device) -> Result<Llama<B>> {
    Llama::build(config, device, &mut |name, shape| read::<B>(source, name, shape, device))
}

/// One tensor, float32, which must have `shape`.
pub(crate) fn read<B: LlamaOps>(
    source: &dyn TensorSource,
    name: &str,
    shape: &[usize],
    device: &B::Device,
) -> Result<FloatTensor<B>> {
    let (found, values) = source.read_f32(name)?;
    if found != shape {
        return Err(crate::Error::BadTensor {
            path: Default::default(),
            name: name.into(),
            expected: format!("{shape:?}"),
            got: format!("{found:?}"),
            hint: "the checkpoint is of another model".into(),
        });
    }
    Ok(from_f32::<B>(values, shape, device))
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
            return Err(crate::Error::BadTensor {
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
