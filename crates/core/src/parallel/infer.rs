//! Inference by a model that is split over ranks.

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
    if mesh.replica().of > 1 {
        let problem = format!("inference is split by tp alone, and the mesh is {}", mesh.describe());
        return Err(Error::bad_value("parallel", problem, "set tp to the number of ranks"));
    }
    mesh.config().check_model(checkpoint.config())?;
    context.run(Load(checkpoint, context.clone(), config, mesh))
}
