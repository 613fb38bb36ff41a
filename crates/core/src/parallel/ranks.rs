//! What a training step needs of the other ranks: what crosses inside of a pass of a split model, and what replicas exchange. With one
//! rank nothing.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{FloatDType, TensorMetadata};

pub use super::agree::{agree, any};
use super::comm::gather_numbers;
use super::data::DataParallel;
use super::mesh::Mesh;
use crate::error::Result;
use crate::model::regions::{Regions, Single};
use crate::model::{Llama, Slot};
use crate::ops::LlamaOps;
use crate::optim::{AdamW, OptimConfig};

/// The ranks of a step: what crosses inside of a pass, and what replicas exchange.
pub struct Ranks<B: LlamaOps> {
    pub(crate) regions: Box<dyn Regions<B>>,
    pub(crate) mesh: Option<Mesh>,
    pub(crate) data: Option<DataParallel<B>>,
}

impl<B: LlamaOps> Ranks<B> {
    /// One device.
    pub fn single() -> Self {
        Self { regions: Box::new(Single), mesh: None, data: None }
    }

    /// A mesh, for this rank's part of a model.
    pub fn of(mesh: &Mesh, model: &Llama<B>) -> Self {
        let data = (mesh.replica().of > 1).then(|| DataParallel::new(mesh, model.stored().map(|_, x| x.shape().to_vec())));
        Self { regions: mesh.regions(model.config()), mesh: Some(mesh.clone()), data }
    }

    /// The model as this rank keeps it for steps in a type, which [`StepConfig::prepare`](crate::train::step::StepConfig::prepare) made.
    pub fn adopt(&mut self, model: Llama<B>) -> Llama<B> {
        match &mut self.data {
            Some(data) => data.adopt(model),
            None => model,
        }
    }

    /// Zero moments for what this rank updates.
    pub fn fresh_moments(&self, config: OptimConfig, model: &Llama<B>) -> AdamW<B> {
        let device = model.device();
        let zeros = |slot: Slot, p: &FloatTensor<B>| {
            let shape = self.data.as_ref().map_or_else(|| p.shape(), |data| data.state_shape(slot).into());
            B::float_zeros(shape, &device, FloatDType::F32)
        };
        let moments = B::resident(&device, || model.stored().map(|slot, p| [zeros(slot, &p), zeros(slot, &p)]));
        AdamW::with_moments(config, 0, moments)
    }

    /// The mesh, where there is one.
    pub fn mesh(&self) -> Option<&Mesh> {
        self.mesh.as_ref()
    }

    /// Replicas.
    pub fn data(&self) -> Option<&DataParallel<B>> {
        self.data.as_ref()
    }

    /// Waits until all weights of a model are there.
    ///
    /// # Errors
    /// [`Error::Communication`](crate::Error::Communication).
    pub fn settle(&mut self, model: Llama<B>) -> Result<Llama<B>> {
        match &mut self.data {
            Some(data) => data.settle(model),
            None => Ok(model),
        }
    }

    /// The sum over the replicas of what each of their ranks has.
    pub(crate) fn sum_over_replicas(&self, own: f64) -> Result<f64> {
        let Some(mesh) = &self.mesh else { return Ok(own) };
        let counts = if mesh.part().index == 0 { own } else { 0.0 };
        Ok(gather_numbers(mesh.world(), &[counts])?.iter().map(|x| x[0]).sum())
    }
}

/// The step's sum of losses and its gradients' sum of squares, from those of all ranks. What several ranks have counts once: `whole` are
/// the squares of what every rank has, the gains of norms; `parts` of what is this rank's, or (without shares) its replica's too.
pub(crate) fn sum_of_step(mesh: &Mesh, loss: f64, whole: f64, parts: f64) -> Result<[f64; 2]> {
    let (replica, part) = (mesh.replica().index, mesh.part().index);
    let shared = mesh.config().zero == 0 && replica > 0;
    let own = [
        if part == 0 { loss } else { 0.0 },
        if replica == 0 && part == 0 { whole } else { 0.0 },
        if shared { 0.0 } else { parts },
    ];
    let all = gather_numbers(mesh.world(), &own)?;
    let sum = |i: usize| all.iter().map(|own| own[i]).sum::<f64>();
    Ok([sum(0), sum(1) + sum(2)])
}
