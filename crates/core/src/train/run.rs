//! A training run on a backend: the part that is compiled for each. The loop itself is in `session.rs`.

use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use burn::tensor::DType;

use super::config::RunConfig;
use super::inputs::Inputs;
pub use super::inputs::Start;
use super::metrics::Validation;
use super::observe::{Observer, RunSummary};
use super::pieces;
use super::report::ReportInfo;
use super::session::{Learner, Opening, Session};
use super::state::OptimState;
use super::step::{MicroBatch, StepConfig, StepOutput, batch_loss, batch_loss_on, check_device, train_step};
use crate::backend::context::Scope;
use crate::backend::{BackendName, Choices};
use crate::checkpoint::native::{CheckpointWriter, MODEL, NativeCheckpoint, OPTIM};
use crate::checkpoint::weights::{infos, load, load_part, read, to_bytes};
use crate::checkpoint::{RankFiles, TensorSource};
use crate::error::{Error, Result};
use crate::generate::{Engine, EngineConfig, Request, SampleConfig, generate_in};
use crate::model::llama::fuse;
use crate::model::regions::Single;
use crate::model::{Llama, unfuse};
use crate::ops::{Job, LlamaOps};
use crate::optim::AdamW;
use crate::parallel::agree::{SLOW_TIMEOUT, agree};
use crate::parallel::{Communicator, Failure, Follower, LocalOptions, LocalWorld, Mesh, Ranks, Watch};
use crate::tokenizer::Tokenizer;

/// Opens and runs a training on a backend chosen at run time, and writes its `report.html`.
///
/// # Errors
/// Those of [`Trainer::open`] and [`Trainer::run`].
pub fn train(
    config: RunConfig,
    dir: &Path,
    start: &Start,
    backend: &BackendName,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<RunSummary> {
    train_then(config, dir, start, backend, stop, observer, &mut write_report(dir))
}

/// What [`train`] does at its end: `report.html` of the run in `dir`.
pub fn write_report(dir: &Path) -> impl FnMut(&dyn Trained, &RunSummary, &mut dyn Observer) -> Result<()> {
    move |trained, summary, _| super::report::write(dir, &trained.report_info(summary, &dir.display().to_string())).map(drop)
}

/// Everything that [`train`] checks before its first step, and nothing more: settings, data, tokenizer, checkpoint, and what the device
/// can do. Writes nothing.
///
/// # Errors
/// As [`train`].
pub fn check(config: &RunConfig, dir: &Path, start: &Start, backend: &BackendName, observer: &mut dyn Observer) -> Result<()> {
    struct Check<'a>(&'a RunConfig);
    impl Job for Check<'_> {
        type Output = ();
        fn run<B: LlamaOps>(self, device: B::Device) -> Result<()> {
            self.0.train.precision.check::<B>(&device)?;
            choose::<B>(self.0, &device).map(drop)
        }
    }
    Inputs::open(config, dir, start, observer)?;
    backend.run(Check(config))
}

/// What is done with a model that has just been trained.
pub type Then<'a> = dyn FnMut(&dyn Trained, &RunSummary, &mut dyn Observer) -> Result<()> + 'a;

/// [`train_then`] as one of several ranks, each of which calls this: the entry of a process with a communicator. The first rank writes,
/// tells `observer` and calls `then`, which must not compute: the others do not take part. They are silent.
///
/// # Errors
/// As [`train`], on every rank; [`Error::Communication`].
#[allow(clippy::too_many_arguments)]
pub fn train_on(
    config: RunConfig,
    dir: &Path,
    start: &Start,
    backend: &BackendName,
    world: Arc<dyn Communicator>,
    watch: Watch,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
    then: &mut Then<'_>,
) -> Result<RunSummary> {
    struct Train<'a, 'b>(RunConfig, &'a Path, &'a Start, Mesh, &'a AtomicBool, &'a mut dyn Observer, &'a mut Then<'b>);
    impl Job for Train<'_, '_> {
        type Output = RunSummary;
        fn run<B: LlamaOps>(self, device: B::Device) -> Result<RunSummary> {
            let Self(config, dir, start, mesh, stop, observer, then) = self;
            let first = mesh.world().rank() == 0;
            let mut silent = ();
            let observer = if first { observer } else { &mut silent };
            let trainer = Trainer::<B>::open_on(config, dir, start, &device, Some(mesh), observer)?;
            let (trainer, summary) = trainer.run(stop, observer)?;
            if first {
                then(&trainer, &summary, observer)?;
            }
            Ok(summary)
        }
    }
    let mesh = Mesh::new(world, &config.parallel, watch)?;
    backend.run(Train(config, dir, start, mesh, stop, observer, then))
}

/// [`train`] on ranks that are threads of this process.
///
/// # Errors
/// As [`train`].
pub fn train_threads(
    ranks: usize,
    config: &RunConfig,
    dir: &Path,
    start: &Start,
    backend: &BackendName,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<RunSummary> {
    let world = LocalWorld::new(ranks, LocalOptions::default());
    let run = |rank: usize, observer: &mut dyn Observer| {
        let result = world.rank(rank).and_then(|comm| {
            train_on(config.clone(), dir, start, backend, comm, Watch::default(), stop, observer, &mut write_report(dir))
        });
        if result.is_err() {
            world.fail(rank, Failure::Dead); // so that nobody waits for it
        }
        result
    };
    let run = &run;
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..ranks).map(|rank| scope.spawn(move || run(rank, &mut ()))).collect();
        let mut results = vec![run(0, observer)];
        results.extend(others.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))));
        // The rank that failed by itself says more than those that waited for it.
        let told = |result: &Result<RunSummary>| !matches!(result, Err(Error::Communication { .. } | Error::Rank { .. }));
        match results.iter().position(|result| result.is_err() && told(result)) {
            Some(rank) => results.swap_remove(rank),
            None => results
                .iter()
                .position(Result::is_err)
                .map(|rank| results.swap_remove(rank))
                .unwrap_or_else(|| results.swap_remove(0)),
        }
    })
}

/// [`train`], with something else at its end than a report.
///
/// # Errors
/// As [`train`], and those of `then`.
pub fn train_then(
    config: RunConfig,
    dir: &Path,
    start: &Start,
    backend: &BackendName,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
    then: &mut Then<'_>,
) -> Result<RunSummary> {
    struct Train<'a, 'b>(RunConfig, &'a Path, &'a Start, &'a AtomicBool, &'a mut dyn Observer, &'a mut Then<'b>);
    impl Job for Train<'_, '_> {
        type Output = RunSummary;
        fn run<B: LlamaOps>(self, device: B::Device) -> Result<RunSummary> {
            let Self(config, dir, start, stop, observer, then) = self;
            let trainer = Trainer::<B>::open(config, dir, start, &device, observer)?;
            let (trainer, summary) = trainer.run(stop, observer)?;
            then(&trainer, &summary, observer)?;
            Ok(summary)
        }
    }
    backend.run(Train(config, dir, start, stop, observer, then))
}

/// A model at the end of its training, whatever the backend.
pub trait Trained {
    /// The run's settings.
    fn config(&self) -> &RunConfig;
    /// The run's tokenizer.
    fn tokenizer(&self) -> Option<&Tokenizer>;
    /// Mean loss over at most `windows` windows of each held-out set (`None`: all); `None` without any.
    ///
    /// # Errors
    /// Those of the data.
    fn validate_on(&self, windows: Option<u64>) -> Result<Option<Validation>>;
    /// At most `max_new` tokens after `prompt`.
    ///
    /// # Errors
    /// As [`generate_in`].
    fn write(&self, prompt: &[u32], max_new: usize, sampling: &SampleConfig) -> Result<Vec<u32>>;
    /// What `report.html` says beside the curves.
    fn report_info(&self, summary: &RunSummary, title: &str) -> ReportInfo;
}

impl<B: LlamaOps> Trained for Trainer<B> {
    fn config(&self) -> &RunConfig {
        &self.session.config
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.session.tokenizer.as_ref()
    }

    fn validate_on(&self, windows: Option<u64>) -> Result<Option<Validation>> {
        self.scope.enter(|| self.session.validate(&self.learner, windows))
    }

    fn write(&self, prompt: &[u32], max_new: usize, sampling: &SampleConfig) -> Result<Vec<u32>> {
        self.scope.enter(|| self.session.write(&self.learner, prompt, max_new, sampling))
    }

    fn report_info(&self, summary: &RunSummary, title: &str) -> ReportInfo {
        self.session.report_info(summary, title)
    }
}

/// A training run on one device.
pub struct Trainer<B: LlamaOps> {
    /// Entered by whatever computes.
    scope: Scope,
    session: Session,
    learner: DeviceLearner<B>,
}

impl<B: LlamaOps> Trainer<B> {
    /// Opens data, weights and the run directory `dir`, which is made if need be.
    ///
    /// # Errors
    /// A setting that cannot be, data or tokenizer of another vocabulary, a run directory in use, and those of the files.
    pub fn open(config: RunConfig, dir: &Path, start: &Start, device: &B::Device, observer: &mut dyn Observer) -> Result<Self> {
        Self::open_on(config, dir, start, device, None, observer)
    }

    /// [`Trainer::open`] as one of several ranks, each of which calls this; `dir` is the same for all.
    ///
    /// # Errors
    /// As there, on every rank; [`Error::Communication`].
    pub fn open_on(
        config: RunConfig,
        dir: &Path,
        start: &Start,
        device: &B::Device,
        mesh: Option<Mesh>,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let opening = Opening::new(config, dir, start, mesh, observer)?;
        let (config, inputs) = (&opening.config, &opening.inputs);
        config.train.precision.check::<B>(device)?;
        let scope = choose::<B>(config, device)?;
        if let Some(mesh) = &opening.mesh {
            let learner = learner_on::<B>(config, inputs, mesh, device);
            let (result, learner) = match learner {
                Ok(learner) => (Ok(()), Some(learner)),
                Err(e) => (Err(e), None),
            };
            agree(mesh.world(), result, Some(SLOW_TIMEOUT))?;
            let learner = learner.ok_or_else(|| Error::internal("open", "neither a model nor an error"))?;
            return Ok(Self { scope, session: opening.begin()?, learner });
        }
        let (model, mut optim) = match (&inputs.resumed, &inputs.init) {
            (Some(checkpoint), _) => restore(config, checkpoint, inputs.state.optim(), device)?,
            (None, Some(checkpoint)) => with_fresh_moments(config, load::<B>(&config.model, checkpoint.source(), device)?),
            (None, None) => with_fresh_moments(config, Llama::init(&config.model, &config.init, device)?),
        };
        let model = Some(config.step().prepare(model, &mut optim));
        Ok(Self { scope, session: opening.begin()?, learner: DeviceLearner { model, optim, ranks: Ranks::single() } })
    }

    /// The model as it stands.
    pub fn model(&self) -> &Llama<B> {
        self.learner.model()
    }

    /// Trains to the last step, or until `stop` is set: then saves and returns [`Error::Interrupted`].
    ///
    /// # Errors
    /// [`Error::Interrupted`], [`Error::Diverged`], and those of data and files.
    pub fn run(mut self, stop: &AtomicBool, observer: &mut dyn Observer) -> Result<(Self, RunSummary)> {
        let summary = self.scope.enter(|| {
            let summary = self.session.train(&mut self.learner, stop, observer)?;
            self.learner.settle()?;
            Ok::<_, Error>(summary)
        })?;
        Ok((self, summary))
    }
}

/// Model and optimizer on a device.
struct DeviceLearner<B: LlamaOps> {
    /// Taken out during a step, so that the update may work in place.
    model: Option<Llama<B>>,
    optim: AdamW<B>,
    ranks: Ranks<B>,
}

impl<B: LlamaOps> DeviceLearner<B> {
    fn model(&self) -> &Llama<B> {
        self.model.as_ref().expect("the model is put back after every step")
    }
}

impl<B: LlamaOps> Learner for DeviceLearner<B> {
    fn step(
        &mut self,
        micro_batches: Vec<Result<MicroBatch>>,
        lr: f64,
        how: StepConfig,
        skip: &mut dyn FnMut(f64, f64) -> bool,
    ) -> Result<StepOutput> {
        let model = self.model.take().expect("the model is put back after every step");
        let (model, out) = train_step(model, &mut self.optim, micro_batches, lr, how, skip, &mut self.ranks)?;
        self.model = Some(model);
        Ok(out)
    }

    fn settle(&mut self) -> Result<()> {
        let model = self.model.take().expect("the model is put back after every step");
        self.model = Some(self.ranks.settle(model)?);
        Ok(())
    }

    fn loss(&self, batch: &MicroBatch) -> Result<(f64, u64)> {
        if self.ranks.mesh().is_none() {
            return Ok(batch_loss(self.model(), batch));
        }
        let (sum, valid) = batch_loss_on(self.model(), batch, DType::F32, &self.ranks)?;
        Ok((sum / valid.max(1) as f64, valid))
    }

    fn write(&self, request: Request) -> Result<Vec<u32>> {
        let regions = match self.ranks.mesh() {
            Some(mesh) => mesh.inference_regions(self.model().config()),
            None => Box::new(Single),
        };
        Ok(generate_in(self.model(), regions, request, &mut |_| ControlFlow::Continue(()))?.0)
    }

    fn engine(&self, config: EngineConfig) -> Result<Engine> {
        Engine::new(self.model().clone(), config)
    }

    fn part(&self, config: &EngineConfig) -> Result<Option<Follower>> {
        let Some(mesh) = self.ranks.mesh().filter(|mesh| mesh.replica().index == 0) else { return Ok(None) };
        let model = self.model();
        Follower::new(model.clone(), mesh.inference_regions(model.config()), None, config).map(Some)
    }

    fn save(&self, writer: &mut CheckpointWriter) -> Result<()> {
        let config = self.model().config();
        let names = config.parameters();
        let parameters = self.model().parameters();
        writer.tensors(MODEL, &infos(&names), &mut |i| Ok(to_bytes::<B>(parameters[i].clone()).into()))?;
        let of_moments: Vec<(String, Vec<usize>)> =
            names.iter().flat_map(|(name, shape)| MOMENTS.map(|which| (format!("{which}.{name}"), shape.clone()))).collect();
        let moments = [0, 1].map(|which| unfuse::<B>(config, self.optim.moments(which)));
        writer.tensors(OPTIM, &infos(&of_moments), &mut |i| Ok(to_bytes::<B>(moments[i % 2][i / 2].clone()).into()))
    }

    fn save_pieces(&self, dir: &Path) -> Result<RankFiles> {
        pieces::save(self.model(), &self.optim, &self.ranks, dir)
    }

    fn check(&self) -> Result<()> {
        check_device::<B>(&self.model().device())
    }

    fn optim(&self) -> OptimState {
        let AdamW { steps, last_norm, loss_scale, .. } = self.optim;
        OptimState { steps, last_norm, loss_scale }
    }
}

/// Model and optimizer of one of several ranks.
fn learner_on<B: LlamaOps>(config: &RunConfig, inputs: &Inputs, mesh: &Mesh, device: &B::Device) -> Result<DeviceLearner<B>> {
    let weights = match (&inputs.resumed, &inputs.init) {
        (Some(checkpoint), _) => Some(checkpoint.source(MODEL)?),
        _ => None,
    };
    let source = weights.as_deref().map(|source| source as &dyn TensorSource);
    let source = source.or(inputs.init.as_ref().map(|checkpoint| checkpoint.source() as &dyn TensorSource));
    let model = match source {
        Some(source) => load_part::<B>(&config.model, mesh.part(), source, device)?,
        None => Llama::init_part(&config.model, &config.init, mesh.part(), device)?,
    };
    let mut ranks = Ranks::of(mesh, &model);
    let mut optim = match &inputs.resumed {
        None => ranks.fresh_moments(config.optim.clone(), &model),
        Some(checkpoint) => {
            let OptimState { steps, last_norm, loss_scale } = inputs.state.optim();
            let moments = pieces::load_moments(&model, &ranks, checkpoint.source(OPTIM)?.as_ref(), device)?;
            let mut optim = AdamW::with_moments(config.optim.clone(), steps, moments);
            (optim.last_norm, optim.loss_scale) = (last_norm, loss_scale);
            optim
        }
    };
    let model = ranks.adopt(config.step().prepare(model, &mut optim));
    Ok(DeviceLearner { model: Some(model), optim, ranks })
}

/// What the moments are called in a checkpoint, before a parameter's name.
pub(super) const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

fn with_fresh_moments<B: LlamaOps>(config: &RunConfig, model: Llama<B>) -> (Llama<B>, AdamW<B>) {
    let optim = AdamW::new(config.optim.clone(), &model);
    (model, optim)
}

/// Model and optimizer of a checkpoint.
fn restore<B: LlamaOps>(
    config: &RunConfig,
    checkpoint: &NativeCheckpoint,
    state: OptimState,
    device: &B::Device,
) -> Result<(Llama<B>, AdamW<B>)> {
    let model = load::<B>(&config.model, checkpoint.source(MODEL)?.as_ref(), device)?;
    let file = checkpoint.source(OPTIM)?;
    let moments = |which: &str| -> Result<_> {
        let one = |(name, shape): &(String, Vec<usize>)| read::<B>(file.as_ref(), &format!("{which}.{name}"), shape, device);
        B::resident(device, || {
            let named = config.model.parameters().iter().map(one).collect::<Result<Vec<_>>>()?;
            Ok(fuse::<B>(&config.model, named))
        })
    };
    let mut second = moments(MOMENTS[1])?.map(|_, v| Some(v));
    let both = moments(MOMENTS[0])?.map(|slot, m| [m, second[slot].take().expect("each slot is taken once")]);
    let mut optim = AdamW::with_moments(config.optim.clone(), state.steps, both);
    (optim.last_norm, optim.loss_scale) = (state.last_norm, state.loss_scale);
    Ok((model, optim))
}

/// The job with the run's kernels. A routine that the device has not is known before anything runs.
fn choose<B: LlamaOps>(config: &RunConfig, device: &B::Device) -> Result<Scope> {
    let (gemm, attention) = (config.train.gemm, config.train.attention);
    let all = B::gemms(device);
    if let Some((_, Some(missing))) = all.iter().find(|(g, _)| *g == gemm) {
        let usable: Vec<_> = all.iter().filter(|(_, missing)| missing.is_none()).map(|(g, _)| g.name()).collect();
        let hint = format!("take one of {}", usable.join(", "));
        return Err(Error::bad_value("train.gemm", format!("`{gemm}` is not to be had: {missing}"), hint));
    }
    Ok(Scope::of_thread().with_choices(Choices { gemm, attention }))
}
