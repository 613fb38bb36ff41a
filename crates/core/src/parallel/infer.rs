//! Inference by a model that is split over ranks: all have the same requests ([`split_engine`]), or the first has them and the others
//! follow its steps ([`Lead`], [`follow_engine`]).

use super::led::{Follower, Lead, follow};
use super::mesh::Mesh;
use crate::backend::DeviceContext;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::weights::load_part;
use crate::error::{Error, Result};
use crate::generate::{Engine, EngineConfig};
use crate::ops::{Job, LlamaOps};

/// The engine of one of several ranks, each of which calls this and is then given the same requests; all draw the same tokens. Weights are
/// float32.
///
/// # Errors
/// [`Error::BadValue`] for a model that cannot be split so; those of [`Engine::load`]; [`Error::Communication`].
pub fn split_engine(checkpoint: &Checkpoint, context: &DeviceContext, config: EngineConfig, mesh: &Mesh) -> Result<Engine> {
    struct Load<'a>(&'a Checkpoint, DeviceContext, EngineConfig, &'a Mesh);
    impl Job for Load<'_> {
        type Output = Engine;
        fn run<B: LlamaOps>(self, device: B::Device) -> Result<Engine> {
            let Self(checkpoint, context, config, mesh) = self;
            let model = load_part::<B>(checkpoint.config(), mesh.part(), checkpoint.source(), &device)?;
            Engine::of_part(model, mesh.inference_regions(checkpoint.config()), Some(context), config)
        }
    }
    check(checkpoint, mesh)?;
    context.run(Load(checkpoint, context.clone(), config, mesh))
}

/// Every replica would compute the same.
fn check(checkpoint: &Checkpoint, mesh: &Mesh) -> Result<()> {
    if mesh.replica().of > 1 {
        let problem = format!("inference is split by tp alone, and the mesh is {}", mesh.describe());
        return Err(Error::bad_value("parallel", problem, "set tp to the number of ranks"));
    }
    mesh.config().check_model(checkpoint.config())
}

/// This rank's part of a checkpoint's model, float32.
fn part(checkpoint: &Checkpoint, context: &DeviceContext, config: &EngineConfig, mesh: &Mesh) -> Result<Follower> {
    struct Load<'a>(&'a Checkpoint, &'a DeviceContext, &'a EngineConfig, &'a Mesh);
    impl Job for Load<'_> {
        type Output = Follower;
        fn run<B: LlamaOps>(self, device: B::Device) -> Result<Follower> {
            let Self(checkpoint, context, config, mesh) = self;
            let model = load_part::<B>(checkpoint.config(), mesh.part(), checkpoint.source(), &device)?;
            Follower::new(model, mesh.inference_regions(checkpoint.config()), Some(context), config)
        }
    }
    check(checkpoint, mesh)?;
    context.run(Load(checkpoint, context, config, mesh))
}

/// The engine of the first of several ranks; the others call [`follow_engine`]. Weights are float32.
///
/// # Errors
/// As [`split_engine`]; [`Error::Rank`] where another rank could not make its part.
pub fn lead_engine(
    lead: &Lead,
    checkpoint: &Checkpoint,
    context: &DeviceContext,
    config: EngineConfig,
    mesh: &Mesh,
) -> Result<Engine> {
    lead.engine(Some(context.clone()), config, |config| part(checkpoint, context, config, mesh))
}

/// Computes with the first rank what [`lead_engine`]'s engine computes there, until that rank ends. `open` opens the checkpoint.
///
/// # Errors
/// Those of `open` and of [`split_engine`]; [`Error::Rank`] with the first rank's.
pub fn follow_engine(open: &dyn Fn() -> Result<Checkpoint>, context: &DeviceContext, mesh: &Mesh) -> Result<()> {
    follow(mesh.world(), &mut |config| part(&open()?, context, config, mesh).map(Some))
}
