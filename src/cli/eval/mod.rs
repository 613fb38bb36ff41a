//! `recua eval score|run|list|compare`

#[cfg(feature = "eval")]
mod list;
#[cfg(feature = "eval")]
mod run;
mod score;

use clap::Subcommand;
#[cfg(any(feature = "mpi", feature = "nccl"))]
use recua::backend::BackendName;
#[cfg(any(feature = "mpi", feature = "nccl"))]
use recua::checkpoint::Checkpoint;
#[cfg(any(feature = "mpi", feature = "nccl"))]
use recua::generate::{Engine, EngineConfig};
#[cfg(any(feature = "mpi", feature = "nccl"))]
use recua::parallel::launch::{self, Launched};
#[cfg(any(feature = "mpi", feature = "nccl"))]
use recua::parallel::{Lead, Mesh, ParallelConfig, follow_engine, lead_engine};
use recua::{Error, Result};

#[cfg(any(feature = "mpi", feature = "nccl"))]
use super::ranks::RankFlags;

#[derive(Subcommand)]
pub(crate) enum Eval {
    /// Log-probability of each token after the first, given those before it
    ///
    /// Reads one JSON array of token ids a line on stdin. Needs no tokenizer.
    Score(score::Score),
    #[cfg(feature = "eval")]
    Run(Box<run::Run>),
    #[cfg(feature = "eval")]
    List(list::List),
    #[cfg(feature = "eval")]
    Compare(list::Compare),
}

impl Eval {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Score(verb) => verb.run(),
            #[cfg(feature = "eval")]
            Self::Run(verb) => verb.run(),
            #[cfg(feature = "eval")]
            Self::List(verb) => verb.run(),
            #[cfg(feature = "eval")]
            Self::Compare(verb) => verb.run(),
        }
    }
}

/// Of a model that is split over ranks.
fn check_dtype(dtype: Option<String>) -> Result<()> {
    match dtype.filter(|dtype| dtype != "f32") {
        None => Ok(()),
        Some(dtype) => {
            let problem = format!("the weights of a model that is split over ranks are f32, not {dtype}");
            Err(Error::bad_value("--dtype", problem, "leave it out, or --nproc"))
        }
    }
}

/// One of several ranks that hold a model together. The first asks and tells, the others compute with it.
#[cfg(any(feature = "mpi", feature = "nccl"))]
struct Split<'a> {
    flags: &'a RankFlags,
    launched: &'a Launched,
    network: launch::Engine,
    backend: &'a BackendName,
}

#[cfg(any(feature = "mpi", feature = "nccl"))]
impl Split<'_> {
    /// Runs `job` on the first rank, which makes its engine by the function that it is given. `open` opens the model on the others.
    fn run<T: Default>(
        &self,
        open: &dyn Fn() -> Result<Checkpoint>,
        job: impl FnOnce(&dyn Fn(&Checkpoint, EngineConfig) -> Result<Engine>) -> Result<T>,
    ) -> Result<T> {
        let tp = self.launched.world;
        let rank = (self.launched, self.network);
        super::ranks::rank::run(self.flags, rank, self.backend, &format!("tp {tp}"), None, |world, watch| {
            let context = self.backend.open()?;
            let mesh = Mesh::new(world, &ParallelConfig { tp, ..ParallelConfig::default() }, watch)?;
            if self.launched.rank > 0 {
                return follow_engine(open, &context, &mesh).map(|()| T::default());
            }
            let lead = Lead::new(mesh.shared_world())?;
            let done = job(&|checkpoint, config| lead_engine(&lead, checkpoint, &context, config, &mesh));
            lead.end(&done).and(done)
        })
    }
}
