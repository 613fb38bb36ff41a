//! Inference and benchmarks by a model that several ranks hold.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use recua::backend::BackendName;
use recua::checkpoint::{self, Checkpoint, Format, SaveOptions};
use recua::eval::Scorer;
use recua::generate::{Engine, EngineConfig, Request, SampleConfig};
use recua::model::{InitConfig, Llama};
use recua::parallel::{
    Failure, Lead, LocalOptions, LocalWorld, Mesh, ParallelConfig, Watch, follow_engine, lead_engine, run_ranks, run_ranks_of,
    split_engine,
};
use recua::train::metrics::{self, StepRecord};
use recua::train::{Observer, RunConfig, Start, train, train_on};
use recua::{Error, Result};

use super::common::{B, config, dataset, of, run_config};

fn backend() -> BackendName {
    "flex".parse().unwrap()
}

/// A model whose logits are sharp enough that float32 sums in another order choose no other token.
fn saved(dir: &Path) -> Checkpoint {
    let model = Llama::<B>::init(&config(), &InitConfig { seed: 5, std: 0.3 }, &Default::default()).unwrap();
    let source = checkpoint::weights::ModelTensors::new(&model);
    checkpoint::save(dir.join("model"), Format::Native, &config(), &source, &SaveOptions::default()).unwrap();
    Checkpoint::open(dir.join("model")).unwrap()
}

/// What the likeliest tokens after some prompts are.
fn write(engine: &mut Engine) -> [Vec<u32>; 3] {
    let prompts = [vec![1, 2, 3], vec![7; 9], vec![60]];
    prompts.map(|prompt| {
        engine.generate(Request { prompt, max_new: 12, ..Request::default() }, &mut |_| ControlFlow::Continue(())).unwrap().0
    })
}

#[test]
fn ranks_that_hold_a_model_together_write_what_one_device_writes() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = saved(dir.path());
    let want = write(&mut Engine::load(&checkpoint, &backend().open().unwrap(), EngineConfig::default()).unwrap());
    assert!(want.iter().all(|tokens| tokens.len() == 12));
    for tp in [2, 4] {
        let parallel = ParallelConfig { tp, ..ParallelConfig::default() };
        let all = run_ranks(tp, LocalOptions::default(), |world| {
            let mesh = Mesh::new(world, &parallel, Watch::default()).unwrap();
            write(&mut split_engine(&checkpoint, &backend().open().unwrap(), EngineConfig::default(), &mesh).unwrap())
        });
        assert!(all.iter().all(|got| *got == want), "tp {tp}: {all:?}, one device {want:?}");
    }
}

/// How long ranks wait for each other, and how long the first has other things to do.
const PATIENCE: Duration = Duration::from_millis(1500);
const BUSY: Duration = Duration::from_secs(4);

fn options() -> LocalOptions {
    LocalOptions { timeout: PATIENCE, link: None }
}

/// The first rank's `job`, with a function that makes its engine; the others follow. What each rank comes to.
fn led<T: Send>(
    tp: usize,
    open: impl Fn(usize) -> Result<Checkpoint> + Sync,
    job: impl Fn(&dyn Fn() -> Result<Engine>) -> Result<T> + Sync,
) -> Vec<Result<Option<T>>> {
    let world = LocalWorld::new(tp, options());
    run_ranks_of(&world, |comm| {
        let rank = comm.rank();
        let mesh = Mesh::new(comm, &ParallelConfig { tp, ..ParallelConfig::default() }, Watch::default())?;
        let context = backend().open()?;
        if rank > 0 {
            return follow_engine(&|| open(rank), &context, &mesh).map(|()| None);
        }
        let lead = Lead::new(mesh.shared_world())?;
        let engine = || lead_engine(&lead, &open(0)?, &context, EngineConfig::default(), &mesh);
        let done = job(&engine);
        lead.end(&done)?;
        done.map(Some)
    })
}

#[test]
fn the_first_rank_alone_asks_and_the_others_follow_its_steps() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = saved(dir.path());
    let open = || Engine::load(&checkpoint, &backend().open().unwrap(), EngineConfig::default());
    let drawn = |engine: &mut Engine| {
        let sampling = SampleConfig { temperature: 1.0, seed: 9, ..SampleConfig::default() };
        let request = Request { prompt: vec![3, 4], max_new: 9, n: 3, sampling, ..Request::default() };
        engine.generate(request, &mut |_| ControlFlow::Continue(())).unwrap().0
    };
    let scored = (0..30).map(|i| (i * i * 5 + 1) % 64).collect::<Vec<u32>>();
    let ask = |open: &dyn Fn() -> Result<Engine>| {
        let mut engine = open()?;
        let (written, drawn) = (write(&mut engine), drawn(&mut engine));
        Ok((written, drawn, Scorer::of(engine).logprobs(&scored)?))
    };
    let want = ask(&open).unwrap();
    for tp in [2, 4] {
        let all = led(
            tp,
            |_| Checkpoint::open(dir.path().join("model")),
            |engine| {
                // It reads tasks, judges texts: the others wait longer than they would for a rank that says nothing.
                std::thread::sleep(BUSY);
                let got = ask(engine)?;
                // Another engine, in place of the first.
                std::thread::sleep(BUSY / 2);
                assert_eq!(got, ask(engine)?);
                Ok(got)
            },
        );
        let mut all = all.into_iter().map(Result::unwrap);
        let got = all.next().unwrap().unwrap();
        assert!(all.all(|other| other.is_none()));
        assert_eq!((&got.0, &got.1), (&want.0, &want.1), "tp {tp}");
        let worst = got.2.iter().zip(&want.2).map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f32::max);
        assert!(got.2.len() == 29 && worst < 1e-5, "tp {tp}: log-probabilities differ by {worst:e}");
    }
}

#[test]
fn what_goes_wrong_on_one_rank_ends_those_that_lead_and_follow() {
    let dir = tempfile::tempdir().unwrap();
    saved(dir.path());
    let text = |result: &Result<Option<()>>| result.as_ref().unwrap_err().to_string();
    // The first rank's own trouble.
    let all = led(
        3,
        |_| Checkpoint::open(dir.path().join("model")),
        |_| Err::<(), _>(Error::bad_value("--tasks", "no task is called `x`", "see the list")),
    );
    let all: Vec<String> = all.iter().map(text).collect();
    assert_eq!(all, {
        let own = "--tasks: no task is called `x`; see the list";
        [own.to_string(), format!("rank 0 failed: {own}"), format!("rank 0 failed: {own}")]
    });
    // A rank that cannot read the model.
    let all = led(
        2,
        |rank| Checkpoint::open(dir.path().join(if rank == 1 { "missing" } else { "model" })),
        |engine| engine().map(drop),
    );
    let all: Vec<String> = all.iter().map(text).collect();
    assert!(all[0].contains("rank 1 failed") && all.iter().all(|e| e.contains("missing")), "{all:?}");
    // A first rank that says nothing any more.
    let world = LocalWorld::new(2, options());
    let all = run_ranks_of(&world, |comm| {
        let rank = comm.rank();
        let mesh = Mesh::new(comm, &ParallelConfig { tp: 2, ..ParallelConfig::default() }, Watch::default())?;
        if rank > 0 {
            let open = || Checkpoint::open(dir.path().join("model"));
            return follow_engine(&open, &backend().open()?, &mesh);
        }
        let lead = Lead::new(mesh.shared_world())?;
        std::thread::sleep(PATIENCE / 4);
        world.fail(0, Failure::Hung);
        std::thread::sleep(2 * PATIENCE);
        drop(lead);
        Ok(())
    });
    let e = all[1].as_ref().unwrap_err().to_string();
    assert!(e.contains("broadcast") && e.contains("missing: rank 0"), "{e}");
}

/// Benchmarks that take longer than ranks wait for each other.
struct Asks;

impl Observer for Asks {
    fn evaluate(&mut self, engine: &dyn Fn(EngineConfig) -> Result<Engine>) -> Result<BTreeMap<String, f64>> {
        std::thread::sleep(BUSY);
        let mut engine = engine(EngineConfig::default())?;
        let tokens = engine.generate(Request { prompt: vec![5, 12, 20], max_new: 8, ..Request::default() }, &mut |_| {
            ControlFlow::Continue(())
        })?;
        let scores = Scorer::of(engine).logprobs(&(0..24).map(|i| (i * 7) % 64).collect::<Vec<u32>>())?;
        let written = tokens.0.iter().fold(0.0, |sum, token| sum * 64.0 + f64::from(*token));
        Ok([("written".into(), written), ("scored".into(), scores.iter().copied().map(f64::from).sum())].into())
    }
}

/// The records of a run, which evaluates at its end where it is asked to.
fn trained(dir: &Path, name: &str, ranks: usize, config: &RunConfig) -> Vec<StepRecord> {
    let (run, stop) = (dir.join(name), AtomicBool::new(false));
    if ranks == 1 {
        train(config.clone(), &run, &Start::Fresh, &backend(), &stop, &mut Asks).unwrap();
    } else {
        let all = run_ranks(ranks, options(), |world| {
            let (watch, mut asks) = (Watch::default(), Asks);
            train_on(config.clone(), &run, &Start::Fresh, &backend(), world, watch, &stop, &mut asks, &mut |_, _, _| Ok(()))
                .map(drop)
        });
        all.into_iter().for_each(|result| result.unwrap());
    }
    metrics::read(&run.join(metrics::METRICS_FILE)).unwrap()
}

#[test]
fn benchmarks_during_training_are_those_of_one_device() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let with = |parallel: ParallelConfig, every: u64| {
        let mut config = run_config(&data, parallel, 12);
        config.eval.every = every;
        config
    };
    let one = trained(dir.path(), "one", 1, &with(ParallelConfig::default(), 12));
    let want = &one[11].eval;
    assert!(want["scored"] < -1.0 && one[..11].iter().all(|record| record.eval.is_empty()));
    for (i, (dp, tp, sequence, zero)) in [(2, 1, false, 1), (1, 2, true, 1), (2, 2, true, 2)].into_iter().enumerate() {
        let (ranks, parallel) = of(dp, tp, sequence, zero);
        let what = format!("dp {dp}, tp {tp}, ZeRO-{zero}");
        let got = trained(dir.path(), &format!("with-{i}"), ranks, &with(parallel.clone(), 12));
        let scored = got[11].eval["scored"];
        assert_eq!(got[11].eval["written"], want["written"], "{what}");
        assert!((scored / want["scored"] - 1.0).abs() < 1e-5, "{what}: {scored}, one device {}", want["scored"]);
        if ranks < 4 {
            continue;
        }
        // In the middle of a run it changes nothing of what follows.
        let middle = trained(dir.path(), &format!("middle-{i}"), ranks, &with(parallel, 6));
        let losses = |records: &[StepRecord]| records.iter().map(|record| record.loss).collect::<Vec<_>>();
        assert_eq!(losses(&got), losses(&middle), "{what}");
        assert_eq!(got[11].eval, middle[11].eval, "{what}");
    }
}
