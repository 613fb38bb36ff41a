//! Sampling of tokens, default body: on the host, in float64.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor, TensorData, TensorMetadata};

use super::{LlamaOps, tensor};

/// How a token is drawn from each row of logits, in this order: the `top_k` largest (ties: the smaller id first), of these the likeliest
/// whose probabilities reach `top_p` (the one that reaches it is kept), of these those of at least `min_p` times the largest probability.
///
/// The draw is the token, **in the order of ids**, at which the sum of the probabilities kept exceeds `uniform`. (Where a sampler goes
/// through the tokens by their probability instead, the same draw gives another token; the distribution is the same.)
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampleRows {
    /// Divides the logits; 0 takes the likeliest token, of several the smallest id, whatever else is set.
    pub temperature: Vec<f32>,
    /// At least 1; as many as the vocabulary has, or more: all.
    pub top_k: Vec<u32>,
    /// Above 0; 1: all.
    pub top_p: Vec<f32>,
    /// 0: all.
    pub min_p: Vec<f32>,
    /// In [0, 1).
    pub uniform: Vec<f32>,
}

impl SampleRows {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.temperature.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.temperature.is_empty()
    }

    /// The likeliest tokens of `n` rows.
    pub fn greedy(n: usize) -> Self {
        let all = |x| vec![x; n];
        Self { temperature: all(0.0), top_k: vec![u32::MAX; n], top_p: all(1.0), min_p: all(0.0), uniform: all(0.0) }
    }

    /// Adds a row.
    pub fn push(&mut self, temperature: f32, top_k: u32, top_p: f32, min_p: f32, uniform: f32) {
        self.temperature.push(temperature);
        self.top_k.push(top_k);
        self.top_p.push(top_p);
        self.min_p.push(min_p);
        self.uniform.push(uniform);
    }

    /// All of it, a row after the other.
    #[cfg_attr(not(feature = "cube"), allow(dead_code))]
    pub(crate) fn settings(&self) -> Vec<f32> {
        (0..self.len())
            .flat_map(|i| [self.temperature[i], self.top_k[i] as f32, self.top_p[i], self.min_p[i], self.uniform[i]])
            .collect()
    }

    /// Row `i`'s token.
    fn draw(&self, i: usize, logits: &[f32]) -> Option<usize> {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if logits.iter().any(|l| l.is_nan()) || !top.is_finite() {
            return None;
        }
        if self.temperature[i] == 0.0 {
            return logits.iter().position(|l| *l == top);
        }
        let mut order: Vec<usize> = (0..logits.len()).filter(|t| logits[*t].is_finite()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        order.truncate(self.top_k[i] as usize);
        let weight = |t: &usize| (f64::from(logits[*t] - top) / f64::from(self.temperature[i])).exp();
        if self.top_p[i] < 1.0 {
            let target = f64::from(self.top_p[i]) * order.iter().map(weight).sum::<f64>();
            let mut before = 0.0;
            let kept = order.iter().take_while(|t| {
                let keep = before < target;
                before += weight(t);
                keep
            });
            order.truncate(kept.count().max(1));
        }
        order.retain(|t| weight(t) >= f64::from(self.min_p[i]));
        order.sort_unstable();
        let draw = f64::from(self.uniform[i]) * order.iter().map(weight).sum::<f64>();
        let mut sum = 0.0;
        let reached = order.iter().find(|t| {
            sum += weight(t);
            draw < sum
        });
        reached.or(order.last()).copied()
    }
}

/// See [`LlamaOps::sample_rows`].
pub(super) fn rows<B: LlamaOps>(logits: FloatTensor<B>, rows: &SampleRows) -> IntTensor<B> {
    let [n, v] = logits.shape().dims();
    let logits = tensor::<B, 2>(logits);
    let device = logits.device();
    let values: Vec<f32> = logits.into_data().convert::<f32>().iter::<f32>().collect();
    let ids: Vec<i32> =
        values.chunks_exact(v).enumerate().map(|(i, row)| rows.draw(i, row).map_or(-1, |token| token as i32)).collect();
    Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [n]), &device).into_primitive()
}
