//! Data parallelism: gradients are summed over the replicas of a model, and each keeps the optimizer's state of its rows of every matrix
//! alone (ZeRO, Rajbhandari et al. 2020). What crosses goes in buckets, whose sums start while earlier layers compute their backward, and
//! whose new weights arrive while the next forward computes the layers before.
//!
//! A matrix of `n` rows is cut into `dp` shares of `ceil(n / dp)` rows, the last ones filled up with zeros, which AdamW leaves zero. Gains
//! of norms are few: every replica keeps them whole.

use std::sync::Arc;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use super::collectives::Collectives;
use super::mesh::Mesh;
use crate::error::Result;
use crate::model::backward::{Handle, flat_gains, set_gains};
use crate::model::{Llama, Parameter, PerSlot, Slot};
use crate::ops::{AdamWScalars, LlamaOps, primitive, reshape, tensor};
use crate::optim::AdamW;

/// A bucket: matrices whose gradients come one after the other.
struct Bucket {
    slots: Vec<Slot>,
    /// Gradients of this pass that are there.
    ready: usize,
}

/// What replicas exchange, and the state that this one keeps for all.
pub struct DataParallel<B: LlamaOps> {
    group: Arc<dyn Collectives<B>>,
    zero: u8,
    shapes: PerSlot<Vec<usize>>,
    /// In the order of backward.
    buckets: Vec<Bucket>,
    /// This replica's rows, float32, of matrices whose weights are kept in another type.
    masters: PerSlot<Option<FloatTensor<B>>>,
    /// Sums of gradients that were started, by bucket.
    sums: Vec<Option<Handle<B>>>,
    /// Weights that were sent for, by bucket.
    weights: Vec<Option<Handle<B>>>,
}

/// Rows of a share.
fn share(rows: usize, of: usize) -> usize {
    rows.div_ceil(of)
}

/// This share's rows of a matrix of `rows`, those that are there.
pub(crate) fn own_rows(rows: usize, index: usize, of: usize) -> std::ops::Range<usize> {
    let size = share(rows, of);
    (index * size).min(rows)..((index + 1) * size).min(rows)
}

/// A matrix with zeros below, to `rows` rows.
fn padded<B: LlamaOps>(x: FloatTensor<B>, rows: usize) -> FloatTensor<B> {
    let [n, width] = x.shape().dims::<2>();
    if n == rows {
        return x;
    }
    let device = B::float_device(&x);
    let below = Tensor::<B, 2>::zeros([rows - n, width], (&device, x.dtype()));
    primitive(Tensor::cat(vec![tensor(x), below], 0))
}

impl<B: LlamaOps> DataParallel<B> {
    /// Over the replicas of a mesh, for a model whose stored tensors have these shapes.
    pub fn new(mesh: &Mesh, shapes: PerSlot<Vec<usize>>) -> Self {
        let bucket = mesh.config().bucket;
        let mut buckets: Vec<Bucket> = Vec::new();
        let mut elements = usize::MAX;
        for slot in backward_order(&shapes) {
            // The embedding is read in float32 and comes last; its weights are needed first.
            if elements >= bucket || slot == Slot::TokEmbeddings {
                buckets.push(Bucket { slots: Vec::new(), ready: 0 });
                elements = 0;
            }
            elements += shapes[slot].iter().product::<usize>();
            if let Some(last) = buckets.last_mut() {
                last.slots.push(slot);
            }
        }
        let none = |n: usize| (0..n).map(|_| None).collect::<Vec<_>>();
        let (sums, weights) = (none(buckets.len()), none(buckets.len()));
        let masters = shapes.clone().map(|_, _| None);
        Self { group: mesh.data_collectives(), zero: mesh.config().zero, shapes, buckets, masters, sums, weights }
    }

    /// Which share is this replica's, and of how many.
    fn place(&self) -> (usize, usize) {
        if self.zero == 0 { (0, 1) } else { (self.group.rank(), self.group.size()) }
    }

    /// The shape of the share of a slot's state that this replica keeps.
    pub fn state_shape(&self, slot: Slot) -> Vec<usize> {
        let mut shape = self.shapes[slot].clone();
        if slot.is_matrix() {
            shape[0] = share(shape[0], self.place().1);
        }
        shape
    }

    /// The rows of a slot whose state this replica keeps.
    pub fn kept_rows(&self, slot: Slot) -> std::ops::Range<usize> {
        let (index, of) = if slot.is_matrix() { self.place() } else { (0, 1) };
        own_rows(self.shapes[slot][0], index, of)
    }

    /// This replica's rows of a whole matrix, filled up with zeros; gains as they are.
    pub fn own(&self, slot: Slot, whole: FloatTensor<B>) -> FloatTensor<B> {
        let (index, of) = self.place();
        if !slot.is_matrix() || of == 1 {
            return whole;
        }
        let rows = own_rows(self.shapes[slot][0], index, of);
        if rows.is_empty() {
            let (device, dtype) = (B::float_device(&whole), whole.dtype());
            let [rows, width] = [self.state_shape(slot)[0], self.state_shape(slot)[1]];
            return primitive(Tensor::<B, 2>::zeros([rows, width], (&device, dtype)));
        }
        let own = primitive(tensor::<B, 2>(whole).narrow(0, rows.start, rows.len()));
        padded::<B>(own, share(self.shapes[slot][0], of))
    }

    /// Keeps of a model what this replica needs: with shares and narrow weights, the float32 masters of its own rows alone.
    pub fn adopt(&mut self, model: Llama<B>) -> Llama<B> {
        if self.place().1 == 1 {
            return model;
        }
        let (config, rope) = (model.config().clone(), model.rope().clone());
        let stored = model.into_stored().map(|slot, parameter| match parameter.copy {
            Some(copy) => {
                self.masters[slot] = Some(self.own(slot, parameter.value));
                Parameter::new(copy)
            }
            None => parameter,
        });
        Llama::from_stored(&config, rope, stored)
    }

    /// This replica's rows of a parameter, float32.
    pub fn master(&self, slot: Slot, stored: &FloatTensor<B>) -> FloatTensor<B> {
        self.masters[slot].clone().unwrap_or_else(|| self.own(slot, stored.clone()))
    }

    /// A gradient is there. `last`: nothing will be added to it. Starts the sum of its bucket once that is whole.
    pub fn put(&mut self, slot: Slot, grads: &mut PerSlot<Option<FloatTensor<B>>>, last: bool) {
        if !(last || self.zero == 2) || !slot.is_matrix() {
            return;
        }
        let Some(i) = self.buckets.iter().position(|bucket| bucket.slots.contains(&slot)) else { return };
        self.buckets[i].ready += 1;
        if self.buckets[i].ready == self.buckets[i].slots.len() {
            self.buckets[i].ready = 0;
            let parts: Vec<_> = self.buckets[i].slots.iter().filter_map(|slot| grads[*slot].take()).collect();
            self.sums[i] = Some(self.sum(parts));
        }
    }

    /// Starts the sum of a bucket over the replicas.
    fn sum(&self, parts: Vec<FloatTensor<B>>) -> Handle<B> {
        let (_, of) = self.place();
        let row = |x: FloatTensor<B>| {
            let [rows, width] = x.shape().dims::<2>();
            let size = share(rows, of);
            reshape::<B>(padded::<B>(x, size * of), &[of, size * width])
        };
        let packed = side_by_side::<B>(parts.into_iter().map(row).collect());
        if of == 1 { self.group.all_reduce(packed) } else { self.group.reduce_scatter(packed) }
    }

    /// Waits for the sums that were started; adds them to `shares`, the gradients of this replica's rows.
    ///
    /// # Errors
    /// [`Error::Communication`](crate::Error::Communication).
    pub fn collect(&mut self, shares: &mut PerSlot<Option<FloatTensor<B>>>) -> Result<()> {
        for i in 0..self.buckets.len() {
            let Some(handle) = self.sums[i].take() else { continue };
            for (slot, part) in self.apart(i, handle.wait()?, 1) {
                shares[slot] = Some(match shares[slot].take() {
                    Some(sum) => B::float_add(sum, part),
                    None => part,
                });
            }
        }
        Ok(())
    }

    /// A bucket's tensors from its rows side by side: `[ranks, ..]` to `[ranks * share, width]` each.
    fn apart(&self, bucket: usize, packed: FloatTensor<B>, ranks: usize) -> Vec<(Slot, FloatTensor<B>)> {
        let packed = tensor::<B, 2>(packed);
        let mut at = 0;
        let one = |slot: &Slot| {
            let shape = self.state_shape(*slot);
            let n = shape[0] * shape[1];
            let part = primitive(packed.clone().narrow(1, at, n));
            at += n;
            (*slot, reshape::<B>(part, &[ranks * shape[0], shape[1]]))
        };
        self.buckets[bucket].slots.iter().map(one).collect()
    }

    /// The gains' gradients summed over the replicas.
    ///
    /// # Errors
    /// [`Error::Communication`](crate::Error::Communication).
    pub fn sum_gains(&self, grads: &mut PerSlot<Option<FloatTensor<B>>>) -> Result<()> {
        let sum = self.group.all_reduce(primitive(flat_gains::<B>(grads))).wait()?;
        set_gains::<B>(grads, &tensor(sum));
        Ok(())
    }

    /// AdamW on this replica's rows, of `grads`; sends for the others' rows of each bucket as soon as its own are there, those that the
    /// next forward reads first before the others.
    pub fn update(
        &mut self,
        stored: &mut PerSlot<Option<Parameter<B>>>,
        grads: &mut PerSlot<Option<FloatTensor<B>>>,
        optim: &mut AdamW<B>,
        s: AdamWScalars,
    ) {
        let mut step = |this: &mut Self, slot: Slot, grads: &mut PerSlot<Option<FloatTensor<B>>>| -> Option<FloatTensor<B>> {
            let (grad, parameter) = (grads[slot].take()?, stored[slot].take()?);
            if !slot.is_matrix() || this.place().1 == 1 {
                stored[slot] = Some(optim.update(slot, parameter, grad, s));
                return None;
            }
            // Weights in the type of products are made by the update itself, as on one device.
            let rows = this.own(slot, parameter.value.clone());
            let own = match this.masters[slot].take() {
                Some(master) => Parameter { value: master, copy: Some(rows) },
                None => Parameter::new(rows),
            };
            let own = optim.update(slot, own, grad, s);
            stored[slot] = Some(parameter);
            match own.copy {
                Some(copy) => {
                    this.masters[slot] = Some(own.value);
                    Some(copy)
                }
                None => Some(own.value),
            }
        };
        for i in (0..self.buckets.len()).rev() {
            let slots = self.buckets[i].slots.clone();
            let rows: Vec<_> = slots.into_iter().filter_map(|slot| step(self, slot, grads)).collect();
            if !rows.is_empty() {
                let row = |x: FloatTensor<B>| {
                    let n = x.shape().num_elements();
                    reshape::<B>(x, &[1, n])
                };
                let packed = side_by_side::<B>(rows.into_iter().map(row).collect());
                self.weights[i] = Some(self.group.all_gather(packed));
            }
        }
        for slot in grads.slots().filter(|slot| !slot.is_matrix()) {
            step(self, slot, grads);
        }
    }

    /// Waits for the weights of these slots, where they are on their way.
    ///
    /// # Errors
    /// [`Error::Communication`](crate::Error::Communication).
    pub fn ready(&mut self, slots: &[Slot], stored: &mut PerSlot<Option<Parameter<B>>>) -> Result<()> {
        for i in 0..self.buckets.len() {
            if self.weights[i].is_none() || !slots.iter().any(|slot| self.buckets[i].slots.contains(slot)) {
                continue;
            }
            let Some(handle) = self.weights[i].take() else { continue };
            for (slot, whole) in self.apart(i, handle.wait()?, self.group.size()) {
                let rows = self.shapes[slot][0];
                let whole = if whole.shape()[0] == rows { whole } else { primitive(tensor::<B, 2>(whole).narrow(0, 0, rows)) };
                stored[slot] = Some(Parameter::new(whole));
            }
        }
        Ok(())
    }

    /// [`DataParallel::ready`] of everything: a model to be read.
    ///
    /// # Errors
    /// As there.
    pub fn settle(&mut self, model: Llama<B>) -> Result<Llama<B>> {
        if self.weights.iter().all(Option::is_none) {
            return Ok(model);
        }
        let (config, rope) = (model.config().clone(), model.rope().clone());
        let mut stored = model.into_stored().map(|_, parameter| Some(parameter));
        let all: Vec<Slot> = stored.slots().collect();
        self.ready(&all, &mut stored)?;
        let stored = stored.map(|_, parameter| parameter.expect("what is on its way is not away"));
        Ok(Llama::from_stored(&config, rope, stored))
    }
}

/// Matrices in the order in which backward gives their gradients.
fn backward_order(shapes: &PerSlot<Vec<usize>>) -> impl Iterator<Item = Slot> + use<> {
    shapes.slots().rev().filter(|slot| slot.is_matrix())
}

/// `[n, a]` and `[n, b]` to `[n, a + b]`.
fn side_by_side<B: LlamaOps>(mut parts: Vec<FloatTensor<B>>) -> FloatTensor<B> {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    primitive(Tensor::cat(parts.into_iter().map(tensor::<B, 2>).collect(), 1))
}
