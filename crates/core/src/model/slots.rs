//! Every parameter by name. A [`Slot`] is a place of a model's storage; the tables of this file say which parameters lie in it
//! (`wq`, `wk`, `wv` and `w1`, `w3` are one matrix each, one below the other, since they are multiplied with the same input), what
//! it is called, whether it decays and in which type products read it. Configuration, model, backward, memory plan, optimizer and
//! checkpoints all go by them.

use std::ops::{Index, IndexMut};

use burn::tensor::DType;

/// A place of a model's storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// `tok_embeddings`.
    TokEmbeddings,
    /// Of a layer, counted from 0.
    Layer(usize, LayerSlot),
    /// `norm`, before the output projection.
    Norm,
    /// `output`.
    Output,
}

/// A place of a layer's storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerSlot {
    /// `attention_norm`.
    AttentionNorm,
    /// `wq`, `wk`, `wv`.
    Wqkv,
    /// `wo`.
    Wo,
    /// `ffn_norm`.
    FfnNorm,
    /// `w1`, `w3`.
    W13,
    /// `w2`.
    W2,
}

/// A layer's parameters by Meta's names, in the order of Meta's files.
const LAYER_PARAMETERS: [&str; 9] = [
    "attention_norm",
    "attention.wq",
    "attention.wk",
    "attention.wv",
    "attention.wo",
    "ffn_norm",
    "feed_forward.w1",
    "feed_forward.w2",
    "feed_forward.w3",
];

/// A layer's storage in the order of the forward pass: the slot, its name, and which of [`LAYER_PARAMETERS`] lie in it.
const LAYER_SLOTS: [(LayerSlot, &str, &[usize]); 6] = [
    (LayerSlot::AttentionNorm, "attention_norm", &[0]),
    (LayerSlot::Wqkv, "attention.wqkv", &[1, 2, 3]),
    (LayerSlot::Wo, "attention.wo", &[4]),
    (LayerSlot::FfnNorm, "ffn_norm", &[5]),
    (LayerSlot::W13, "feed_forward.w13", &[6, 8]),
    (LayerSlot::W2, "feed_forward.w2", &[7]),
];

impl LayerSlot {
    /// All of a layer, in the order of the forward pass.
    pub const ALL: [Self; 6] = [Self::AttentionNorm, Self::Wqkv, Self::Wo, Self::FfnNorm, Self::W13, Self::W2];
}

impl Slot {
    /// All slots of a model in the order of the forward pass.
    pub fn all(n_layers: usize) -> impl DoubleEndedIterator<Item = Self> {
        let layers = (0..n_layers).flat_map(|layer| LAYER_SLOTS.map(|(slot, ..)| Self::Layer(layer, slot)));
        std::iter::once(Self::TokEmbeddings).chain(layers).chain([Self::Norm, Self::Output])
    }

    /// Its place in [`Slot::all`].
    fn index(self, n_layers: usize) -> usize {
        match self {
            Self::TokEmbeddings => 0,
            Self::Layer(layer, slot) => 1 + LAYER_SLOTS.len() * layer + slot as usize,
            Self::Norm => 1 + LAYER_SLOTS.len() * n_layers,
            Self::Output => 2 + LAYER_SLOTS.len() * n_layers,
        }
    }

    /// Its name in messages; of a fused matrix a name of its own (`layers.0.attention.wqkv.weight`).
    pub fn name(self) -> String {
        match self {
            Self::TokEmbeddings => "tok_embeddings.weight".into(),
            Self::Layer(layer, slot) => format!("layers.{layer}.{}.weight", LAYER_SLOTS[slot as usize].1),
            Self::Norm => "norm.weight".into(),
            Self::Output => "output.weight".into(),
        }
    }

    /// The parameters in it, from the top row on: their places in [`ModelConfig::parameters`](super::ModelConfig::parameters).
    pub fn parts(self, n_layers: usize) -> Vec<usize> {
        let layers = LAYER_PARAMETERS.len();
        match self {
            Self::TokEmbeddings => vec![0],
            Self::Layer(layer, slot) => LAYER_SLOTS[slot as usize].2.iter().map(|i| 1 + layers * layer + i).collect(),
            Self::Norm => vec![1 + layers * n_layers],
            Self::Output => vec![2 + layers * n_layers],
        }
    }

    /// Whether it is a matrix; the others are the gains of norms.
    pub fn is_matrix(self) -> bool {
        !matches!(self, Self::Norm | Self::Layer(_, LayerSlot::AttentionNorm | LayerSlot::FfnNorm))
    }

    /// Whether weight decay is on it: matrices only.
    pub fn decays(self) -> bool {
        self.is_matrix()
    }

    /// The type in which a pass reads it: the operands of products in the compute type, the gains of norms and the embedding, of
    /// which few rows are read, in float32.
    pub fn read_as(self, compute: DType) -> DType {
        if self.is_matrix() && self != Self::TokEmbeddings { compute } else { DType::F32 }
    }
}

/// Widths by which parameters have their shapes: of the vocabulary, the residual stream, keys, and the feed-forward.
pub(super) struct Widths {
    pub(super) vocab: usize,
    pub(super) d: usize,
    pub(super) kv: usize,
    pub(super) f: usize,
}

/// Names (Meta's, as in `consolidated.00.pth`) and shapes (`[out, in]` for matrices), in the order of Meta's files.
pub(super) fn parameters(n_layers: usize, Widths { vocab, d, kv, f }: Widths) -> Vec<(String, Vec<usize>)> {
    let layer: [Vec<usize>; LAYER_PARAMETERS.len()] =
        [vec![d], vec![d, d], vec![kv, d], vec![kv, d], vec![d, d], vec![d], vec![f, d], vec![d, f], vec![f, d]];
    let mut list = vec![(Slot::TokEmbeddings.name(), vec![vocab, d])];
    for i in 0..n_layers {
        let named = LAYER_PARAMETERS.iter().zip(&layer);
        list.extend(named.map(|(name, shape)| (format!("layers.{i}.{name}.weight"), shape.clone())));
    }
    list.push((Slot::Norm.name(), vec![d]));
    list.push((Slot::Output.name(), vec![vocab, d]));
    list
}

/// One value for every slot of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PerSlot<T> {
    n_layers: usize,
    values: Vec<T>,
}

impl<T> PerSlot<T> {
    /// What `value` gives for each slot, in the order of [`Slot::all`].
    pub fn from_fn(n_layers: usize, value: impl FnMut(Slot) -> T) -> Self {
        Self { n_layers, values: Slot::all(n_layers).map(value).collect() }
    }

    /// The values in the order of [`Slot::all`].
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.values.iter()
    }

    /// The slots in their order.
    pub fn slots(&self) -> impl DoubleEndedIterator<Item = Slot> + use<T> {
        Slot::all(self.n_layers)
    }

    /// Each value turned into another.
    pub fn map<U>(self, mut to: impl FnMut(Slot, T) -> U) -> PerSlot<U> {
        let slots = self.slots();
        PerSlot { n_layers: self.n_layers, values: slots.zip(self.values).map(|(slot, value)| to(slot, value)).collect() }
    }
}

impl<T> IntoIterator for PerSlot<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.values.into_iter()
    }
}

impl<T> Index<Slot> for PerSlot<T> {
    type Output = T;

    fn index(&self, slot: Slot) -> &T {
        &self.values[slot.index(self.n_layers)]
    }
}

impl<T> IndexMut<Slot> for PerSlot<T> {
    fn index_mut(&mut self, slot: Slot) -> &mut T {
        &mut self.values[slot.index(self.n_layers)]
    }
}
