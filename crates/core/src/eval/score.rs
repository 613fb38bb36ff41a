//! Log-probabilities of given tokens.

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor, TensorData};

use crate::backend::DeviceContext;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::generate::{check_tokens, token_tensor};
use crate::model::Llama;
use crate::ops::{Job, LlamaOps};

/// Positions whose logits exist at once.
const BLOCK: usize = 256;

/// The natural-log probability of each token after the first, given those before it: `tokens.len() - 1` numbers.
///
/// # Errors
/// [`Error::TooLong`] beyond `max_seq_len`; [`Error::BadValue`] for a token outside the vocabulary; [`Error::NotFinite`].
pub fn logprobs<B: LlamaOps>(model: &Llama<B>, tokens: &[u32]) -> Result<Vec<f32>> {
    let config = model.config();
    if tokens.len() < 2 {
        return Ok(Vec::new());
    }
    check_tokens(tokens, config.vocab_size)?;
    let (inputs, targets) = (&tokens[..tokens.len() - 1], &tokens[1..]);
    if inputs.len() > config.max_seq_len {
        return Err(Error::TooLong {
            what: "tokens to score".into(),
            got: inputs.len(),
            max: config.max_seq_len,
            hint: "split them into shorter pieces".into(),
        });
    }
    let device = model.device();
    let x = model.hidden(token_tensor(inputs, &device));
    let mut all = Vec::with_capacity(targets.len());
    for (i, chunk) in targets.chunks(BLOCK).enumerate() {
        let n = chunk.len();
        let logits = model.output.forward(x.clone().narrow(1, i * BLOCK, n)).cast(DType::F32).reshape([n, config.vocab_size]);
        let ids: Vec<i32> = chunk.iter().map(|&t| t as i32).collect();
        let ids = Tensor::<B, 2, Int>::from_data(TensorData::new(ids, [n, 1]), &device);
        let picked = log_softmax(logits, 1).gather(1, ids).into_data().convert::<f32>();
        all.extend(picked.iter::<f32>());
        if let Some(at) = all.iter().position(|x| !x.is_finite()) {
            return Err(Error::NotFinite { what: format!("log-probability of token {}", at + 1), got: all[at].into() });
        }
    }
    Ok(all)
}

type Logprobs = dyn Fn(&[u32]) -> Result<Vec<f32>> + Send;

/// A model on a backend chosen at run time, ready to score.
pub struct Scorer {
    context: DeviceContext,
    logprobs: Box<Logprobs>,
}

impl Scorer {
    /// Loads a checkpoint's model onto a device.
    ///
    /// # Errors
    /// Those of the device and of the checkpoint's files.
    pub fn load(checkpoint: &Checkpoint, context: &DeviceContext) -> Result<Self> {
        struct Load<'a>(&'a Checkpoint);
        impl Job for Load<'_> {
            type Output = Box<Logprobs>;
            fn run<B: LlamaOps>(self, device: B::Device) -> Result<Box<Logprobs>> {
                let model = self.0.load::<B>(&device)?;
                Ok(Box::new(move |tokens| logprobs(&model, tokens)))
            }
        }
        Ok(Self { logprobs: context.run(Load(checkpoint))?, context: context.clone() })
    }

    /// [`logprobs`] of this model.
    ///
    /// # Errors
    /// As [`logprobs`]; [`Error::Backend`] if the device fails.
    pub fn logprobs(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.context.enter(|| (self.logprobs)(tokens))
    }
}
