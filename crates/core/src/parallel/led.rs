//! One engine for several ranks: the first rank has it, and the others do what its steps ask of them.
//!
//! The first rank alone knows requests, draws tokens and tells results. Before each pass it sends what the pass reads; those that hold
//! a part of its model compute with it, those that hold another copy only hear it. Between passes, while it reads tasks or judges
//! texts, a thread of it says from time to time that it is still there, so that nobody takes it for dead; and nobody waits longer than
//! usual for one that is.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use super::agree::{SLOW_TIMEOUT, agree};
use super::comm::{Buffer, Communicator, Pending};
use crate::backend::DeviceContext;
use crate::error::{Error, Result};
use crate::generate::runner::{CacheSize, ModelRunner, Runner, StepInput};
use crate::generate::{Engine, EngineConfig};
use crate::model::regions::Regions;
use crate::model::{Llama, ModelConfig};
use crate::ops::{BatchRows, KV_BLOCK, LlamaOps, SampleRows};

/// What the first rank sends.
#[derive(Debug, Serialize, Deserialize)]
enum Order<'a> {
    /// Nothing yet: it is there.
    Wait,
    /// An engine is to be made; in place of the one before.
    Open(EngineConfig),
    Run(Step<'a>),
    HiddenSum(Step<'a>),
    CopyBlocks(Vec<(u32, u32)>),
    /// The end, with what went wrong.
    End(Option<String>),
}

/// [`StepInput`], lent.
#[derive(Debug, Serialize, Deserialize)]
struct Step<'a>(Cow<'a, StepInput>);

impl<'a> Step<'a> {
    fn of(step: &'a StepInput) -> Self {
        Self(Cow::Borrowed(step))
    }
}

/// The first rank's end of the wire.
struct Wire {
    world: Arc<dyn Communicator>,
    /// The last order, until all have heard it.
    under_way: Option<Pending>,
    /// Something was sent since the thread has looked.
    fresh: bool,
}

impl Wire {
    fn send(&mut self, order: &Order<'_>) -> Result<()> {
        self.settle()?;
        let bytes = serde_json::to_vec(order).map_err(|e| Error::internal("an engine's order", e.to_string()))?;
        self.under_way = Some(self.world.broadcast(Buffer::Bytes(bytes), 0));
        self.fresh = true;
        Ok(())
    }

    /// Waits until all have heard.
    fn settle(&mut self) -> Result<()> {
        self.under_way.take().map_or(Ok(()), |pending| pending.wait().map(drop))
    }
}

struct Shared {
    wire: Mutex<Wire>,
    /// The others have gone, or are about to: nothing more is sent.
    broken: AtomicBool,
}

impl Shared {
    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, order: &Order<'_>) -> Result<()> {
        self.noted(self.wire().send(order))
    }

    fn noted<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.broken.store(true, Ordering::Relaxed);
        }
        result
    }
}

/// The first rank's hold of the others, which call [`follow`] meanwhile.
pub struct Lead {
    shared: Arc<Shared>,
    /// Dropped, it ends the thread that says that this rank is there.
    stop: Option<Sender<()>>,
    beat: Option<JoinHandle<()>>,
}

impl Lead {
    /// Takes the lead of all ranks of `world`, whose first this is.
    ///
    /// # Errors
    /// [`Error::Io`] if no thread can be started, [`Error::Communication`].
    pub fn new(world: Arc<dyn Communicator>) -> Result<Self> {
        let shared =
            Arc::new(Shared { wire: Mutex::new(Wire { world, under_way: None, fresh: false }), broken: AtomicBool::new(false) });
        shared.send(&Order::Wait)?;
        let patience = shared.wire().under_way.as_ref().map_or(SLOW_TIMEOUT, Pending::timeout);
        let (stop, stopped) = channel();
        let of = shared.clone();
        let beat = move || {
            // At most half of the others' patience goes by without a word: one that is late by as much is still in time.
            while stopped.recv_timeout(patience / 4) == Err(RecvTimeoutError::Timeout) {
                // Who holds the wire is about to send, or agrees on something with the others.
                let Ok(mut wire) = of.wire.try_lock() else { continue };
                if !std::mem::take(&mut wire.fresh) && of.noted(wire.send(&Order::Wait)).is_err() {
                    return; // the next who sends finds the wire broken
                }
                wire.fresh = false;
            }
        };
        let beat = std::thread::Builder::new().name("lead".into()).spawn(beat).map_err(Error::io("start", "a thread"))?;
        Ok(Self { shared, stop: Some(stop), beat: Some(beat) })
    }

    /// An engine whose passes the others compute with this rank. `make` makes this rank's part, as the closure of [`follow`] does on
    /// the others: `regions` connect the parts. The cache has the blocks of the rank that has the fewest.
    ///
    /// # Errors
    /// Those of `make`; [`Error::Rank`] where another rank could not make its part; [`Error::Communication`].
    pub fn engine(
        &self,
        context: Option<DeviceContext>,
        config: EngineConfig,
        make: impl FnOnce(&EngineConfig) -> Result<Follower>,
    ) -> Result<Engine> {
        config.validate()?;
        let mut wire = self.shared.wire();
        self.shared.noted(wire.send(&Order::Open(config.clone())).and_then(|()| wire.settle()))?;
        let (result, made) = split(make(&config));
        let blocks = result.map(|()| made.as_ref().map(|part| part.size.blocks));
        let all = self.shared.noted(agree(wire.world.as_ref(), blocks, Some(SLOW_TIMEOUT)))?;
        drop(wire);
        let Follower { runner, mut size } = made.ok_or_else(|| Error::internal("engine", "neither made nor refused"))?;
        size.blocks = all.into_iter().flatten().min().unwrap_or(size.blocks);
        size.max_len = size.max_len.min(size.blocks * KV_BLOCK);
        let runner = Led { runner, shared: self.shared.clone() };
        Ok(Engine::with_runner(context, Box::new(runner), config, size))
    }

    /// Whether the others have ended, or cannot be heard: then the job cannot go on.
    pub fn is_broken(&self) -> bool {
        self.shared.broken.load(Ordering::Relaxed)
    }

    /// Lets the others go on: [`follow`] returns there, with an error where this rank comes to one.
    ///
    /// # Errors
    /// [`Error::Communication`], but where there is an error already, which then is the one to tell.
    pub fn end<T>(mut self, came_to: &Result<T>) -> Result<()> {
        self.stop_beat();
        if self.is_broken() {
            return Ok(());
        }
        let problem = came_to.as_ref().err().map(ToString::to_string);
        let ended = self.shared.send(&Order::End(problem)).and_then(|()| self.shared.wire().settle());
        if came_to.is_err() { Ok(()) } else { ended }
    }

    fn stop_beat(&mut self) {
        self.stop = None;
        if let Some(beat) = self.beat.take() {
            let _ = beat.join();
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.stop_beat();
    }
}

/// A rank's part of an engine.
pub struct Follower {
    runner: Box<dyn Runner>,
    size: CacheSize,
}

impl Follower {
    /// The part of a model that this rank has, with its cache.
    ///
    /// # Errors
    /// [`Error::BadValue`] for a cache that is too small for one sequence, or of a type that the backend has not.
    pub fn new<B: LlamaOps>(
        model: Llama<B>,
        regions: Box<dyn Regions<B>>,
        context: Option<&DeviceContext>,
        config: &EngineConfig,
    ) -> Result<Self> {
        let memory = context.and_then(|context| context.name().memory());
        let (runner, size) = ModelRunner::new(model, regions, config, memory)?;
        Ok(Self { runner: Box::new(runner), size })
    }
}

/// A result as what is told to others, and what is kept.
fn split<T>(result: Result<T>) -> (Result<()>, Option<T>) {
    match result {
        Ok(value) => (Ok(()), Some(value)),
        Err(e) => (Err(e), None),
    }
}

/// Does what the first rank of `world` asks, until it ends. `make` makes this rank's part of an engine; `None`: it holds none, and
/// only waits.
///
/// # Errors
/// Those of `make`; [`Error::Rank`] with the first rank's; those of a pass; [`Error::Communication`] where nothing comes in time.
pub fn follow(world: &dyn Communicator, make: &mut dyn FnMut(&EngineConfig) -> Result<Option<Follower>>) -> Result<()> {
    let mut part: Option<Follower> = None;
    loop {
        let Buffer::Bytes(bytes) = world.broadcast(Buffer::empty(), 0).wait()? else {
            return Err(Error::internal("an engine's order", "it came as numbers"));
        };
        let order = serde_json::from_slice(&bytes).map_err(|e| Error::internal("an engine's order", e.to_string()))?;
        match (order, &mut part) {
            (Order::Open(config), part) => {
                *part = None; // its cache makes room
                let (result, made) = split(make(&config));
                let made = made.flatten();
                agree(world, result.map(|()| made.as_ref().map(|part| part.size.blocks)), Some(SLOW_TIMEOUT))?;
                *part = made;
            }
            // What is drawn from the logits is the first rank's to know.
            (Order::Run(step), Some(part)) => part.runner.run(&step.0, &mut |_, _, _| {})?,
            (Order::HiddenSum(step), Some(part)) => part.runner.hidden_sum(&step.0).map(drop)?,
            (Order::CopyBlocks(pairs), Some(part)) => part.runner.copy_blocks(&pairs),
            (Order::End(None), _) => return Ok(()),
            (Order::End(Some(problem)), _) => return Err(Error::Rank { rank: 0, problem }),
            (Order::Wait | Order::Run(_) | Order::HiddenSum(_) | Order::CopyBlocks(_), _) => {}
        }
    }
}

/// The first rank's part, whose passes the others are told of.
struct Led {
    runner: Box<dyn Runner>,
    shared: Arc<Shared>,
}

impl Runner for Led {
    fn model(&self) -> &ModelConfig {
        self.runner.model()
    }

    fn weight_bytes(&self) -> &BTreeMap<&'static str, u64> {
        self.runner.weight_bytes()
    }

    fn run(&mut self, step: &StepInput, see: &mut dyn FnMut(usize, &mut [f32], usize)) -> Result<()> {
        self.shared.send(&Order::Run(Step::of(step)))?;
        self.shared.noted(self.runner.run(step, see))
    }

    /// Tokens are drawn from logits on the host, of which the others need not know.
    fn samples(&self) -> bool {
        false
    }

    fn sample(&mut self, _: &StepInput, _: &SampleRows, _: &[(BatchRows, SampleRows)]) -> Result<Vec<Vec<u32>>> {
        Err(Error::internal("engine", "tokens of several ranks are drawn on the host"))
    }

    fn hidden_sum(&mut self, step: &StepInput) -> Result<Vec<f32>> {
        self.shared.send(&Order::HiddenSum(Step::of(step)))?;
        self.shared.noted(self.runner.hidden_sum(step))
    }

    fn copy_blocks(&mut self, pairs: &[(u32, u32)]) {
        // What cannot be sent leaves the wire broken, which the next pass says.
        if self.shared.send(&Order::CopyBlocks(pairs.to_vec())).is_ok() {
            self.runner.copy_blocks(pairs);
        }
    }
}
