//! The part of a model that one of several devices holds: rows of a matrix, columns of it, or all (Shoeybi et al. 2019), and rectangles of
//! parameters in general, which checkpoints of several devices consist of.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::config::ModelConfig;
use super::slots::{LayerSlot, Slot};

/// Which of the equal parts of each matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Counted from 0.
    pub index: usize,
    /// How many parts there are.
    pub of: usize,
}

impl Part {
    /// All of it.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// The part of `n`, which `of` divides.
    pub fn range(self, n: usize) -> Range<usize> {
        let size = n / self.of;
        self.index * size..(self.index + 1) * size
    }
}

/// How a parameter is divided among the devices of a split model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// It is not: the gains of norms.
    Whole,
    /// By rows: what makes queries, keys, values, gate and up, and the two whose rows are tokens.
    Rows,
    /// By columns: what goes back to the residual stream.
    Columns,
}

impl Slot {
    /// How it is divided.
    pub fn split(self) -> Split {
        match self {
            Self::Layer(_, LayerSlot::Wo | LayerSlot::W2) => Split::Columns,
            slot if slot.is_matrix() => Split::Rows,
            _ => Split::Whole,
        }
    }
}

/// A rectangle of a parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// The parameter's name.
    pub name: String,
    /// The shape of the whole.
    pub shape: Vec<usize>,
    /// Where the rectangle begins.
    pub offsets: Vec<usize>,
    /// Its sizes.
    pub sizes: Vec<usize>,
}

impl Slice {
    /// All of a parameter.
    pub fn whole(name: &str, shape: &[usize]) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), offsets: vec![0; shape.len()], sizes: shape.to_vec() }
    }

    /// Of these rows of the rectangle, counted in it.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let mut slice = self.clone();
        slice.offsets[0] += rows.start;
        slice.sizes[0] = rows.len();
        slice
    }

    /// The part of this range along a dimension.
    fn along(mut self, dim: usize, range: &Range<usize>) -> Self {
        (self.offsets[dim], self.sizes[dim]) = (range.start, range.len());
        self
    }

    /// Elements of the rectangle.
    pub fn elements(&self) -> usize {
        self.sizes.iter().product()
    }

    /// Whether it is the parameter.
    pub fn is_whole(&self) -> bool {
        self.sizes == self.shape
    }

    /// Elements of a row of the whole, and of the rectangle.
    fn widths(&self) -> (usize, usize) {
        (self.shape[1..].iter().product(), self.sizes[1..].iter().product())
    }

    /// The elements of the whole that the rectangle is, where they lie side by side.
    pub fn range(&self) -> Option<Range<usize>> {
        let (all, own) = self.widths();
        (all == own).then(|| self.offsets[0] * all..(self.offsets[0] + self.sizes[0]) * all)
    }

    /// The rectangle of the whole's elements, each of `unit` items.
    pub fn cut<T: Copy>(&self, whole: &[T], unit: usize) -> Vec<T> {
        let (all, own) = self.widths();
        let column = self.offsets.get(1).copied().unwrap_or(0);
        let mut out = Vec::with_capacity(self.elements() * unit);
        for row in self.offsets[0]..self.offsets[0] + self.sizes[0] {
            let at = (row * all + column) * unit;
            out.extend_from_slice(&whole[at..at + own * unit]);
        }
        out
    }
}

impl ModelConfig {
    /// What a device with this part holds of each parameter, in the order of [`ModelConfig::parameters`].
    pub fn slices(&self, part: Part) -> Vec<Slice> {
        let mut slices: Vec<Slice> = self.parameters().iter().map(|(name, shape)| Slice::whole(name, shape)).collect();
        for slot in Slot::all(self.n_layers) {
            for i in slot.parts(self.n_layers) {
                let whole = slices[i].clone();
                slices[i] = match slot.split() {
                    Split::Whole => whole,
                    Split::Rows => {
                        let r = part.range(whole.shape[0]);
                        whole.along(0, &r)
                    }
                    Split::Columns => {
                        let r = part.range(whole.shape[1]);
                        whole.along(1, &r)
                    }
                };
            }
        }
        slices
    }
}
