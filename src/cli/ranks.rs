//! Several ranks: those that are started here (`--nproc`), and what a process does that is one of them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use recua::backend::{BackendName, Kind};
use recua::parallel::launch::{Engine, Launched, Mpirun};
use recua::{Error, Result};

use super::say;

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Several ranks")]
pub(crate) struct RankFlags {
    /// Start so many ranks on this machine: with mpirun, or by itself for NCCL (--backend cuda); `mpirun -n 8 recua ...`, `srun` and
    /// for NCCL `torchrun --no-python ... recua ...` work as they are
    #[arg(long, value_name = "N")]
    nproc: Option<usize>,
    /// Seconds that a rank waits for the others before it ends the job on all; saving a checkpoint has its own time
    #[arg(long, value_name = "S", default_value_t = 300.0)]
    comm_timeout: f64,
}

/// What this process is to do.
pub(crate) enum Role {
    /// Everything, alone.
    Alone,
    /// The part of a rank.
    Rank(Launched, Engine),
    /// Nothing but to start ranks and wait for them.
    Launcher(usize, Engine),
}

impl RankFlags {
    /// How long a rank waits for the others.
    pub(super) fn timeout(&self) -> Result<Duration> {
        let fits = self.comm_timeout > 0.0 && self.comm_timeout <= 1e6;
        Some(self.comm_timeout).filter(|_| fits).map(Duration::from_secs_f64).ok_or_else(|| {
            let problem = format!("expected seconds above 0, got {}", self.comm_timeout);
            Error::bad_value("--comm-timeout", problem, "leave it out for 300")
        })
    }

    /// By --nproc and the variables of launchers.
    pub(super) fn role(&self, backend: &BackendName) -> Result<Role> {
        self.timeout()?;
        let launched = Launched::detect()?.filter(|launched| launched.world > 1);
        match (self.nproc, launched) {
            (Some(0), _) => Err(Error::bad_value("--nproc", "expected at least 1, got 0", "leave it out for one rank")),
            (Some(_), Some(launched)) => {
                let problem = format!("this process is {launched}");
                Err(Error::bad_value("--nproc", problem, "leave it out: the launcher says how many ranks there are"))
            }
            (None, Some(launched)) => {
                let engine = engine(backend)?;
                launched.check(engine)?;
                Ok(Role::Rank(launched, engine))
            }
            (Some(n), None) if n > 1 => engine(backend).map(|engine| Role::Launcher(n, engine)),
            _ => Ok(Role::Alone),
        }
    }

    /// Starts ranks of this program with the same arguments and waits for them. Ends the process as they ended.
    pub(super) fn launch(&self, ranks: usize, engine: Engine, backend: &BackendName) -> Result<()> {
        let ranks = Ranks::new(ranks, engine, backend)?;
        let stop = super::stop_on_signal("stopping all ranks")?;
        std::process::exit(ranks.run(false, Input::None, stop, libc_signal::TERM)?);
    }

    /// [`RankFlags::launch`] of ranks the first of which leads: it alone reads `input` and is asked to stop, and then ends the others.
    pub(super) fn launch_led(&self, ranks: usize, engine: Engine, backend: &BackendName, input: Input) -> Result<()> {
        let ranks = Ranks::new(ranks, engine, backend)?;
        let stop = super::stop_on_signal("stopping after this step")?;
        std::process::exit(ranks.run(false, input, stop, libc_signal::USR1)?);
    }

    /// [`RankFlags::launch`] of a training in `run`: a signal stops the ranks after their step, and when one fails they are started
    /// again from their last checkpoint, `restarts` times at most.
    pub(super) fn launch_training(
        &self,
        ranks: usize,
        engine: Engine,
        backend: &BackendName,
        restarts: u32,
        run: &Path,
    ) -> Result<()> {
        let ranks = Ranks::new(ranks, engine, backend)?;
        let stop = super::stop_on_signal("stopping all ranks after this step")?;
        let mut resume = false;
        for attempt in 0..=restarts {
            let code = ranks.run(resume, Input::None, stop, libc_signal::USR1)?;
            if attempt == restarts || !may_restart(code) || stop.load(Ordering::Relaxed) {
                // The ranks have said why.
                std::process::exit(code);
            }
            resume = resume || has_checkpoint(run);
            let from = if resume { "the last checkpoint" } else { "the beginning: there is no checkpoint yet" };
            say(&format!("the ranks ended with code {code}; starting again from {from} ({} of {restarts})", attempt + 1));
        }
        Ok(())
    }
}

/// The engine of this build for a backend: NCCL for CUDA devices where it is there, else MPI.
pub(super) fn engine(backend: &BackendName) -> Result<Engine> {
    let cuda = backend.kind() == Kind::Cuda;
    if cuda && cfg!(feature = "nccl") {
        return Ok(Engine::Nccl);
    }
    if cfg!(feature = "mpi") {
        return Ok(Engine::Mpi);
    }
    let (engine, feature) = if cuda { ("NCCL", "nccl") } else { ("MPI", "mpi") };
    let problem = format!("{engine} is not compiled into this build, and without it ranks cannot exchange anything");
    Err(Error::Engine { what: "several ranks", problem, hint: format!("build with `--features {feature}`") })
}

/// Whether so many ranks can be started here, a CUDA device each.
#[cfg(feature = "nccl")]
fn check_nccl(ranks: usize, backend: &BackendName) -> Result<()> {
    if let Some(problem) = recua::parallel::nccl::missing() {
        let hint = "install NVIDIA's NCCL (pip: nvidia-nccl-cu13) and put its folder on LD_LIBRARY_PATH".into();
        return Err(Error::Engine { what: "NCCL", problem, hint });
    }
    let devices = backend.count();
    if devices < ranks {
        let problem = format!("each rank has a CUDA device of its own, and there are {devices} for {ranks} ranks");
        return Err(Error::bad_value("--nproc", problem, "`recua info` lists the devices"));
    }
    backend.of_rank(0, ranks).map(drop)
}

fn find_mpirun() -> Result<Mpirun> {
    let fail = |problem: String| Error::Engine {
        what: "mpirun",
        problem,
        hint: "install OpenMPI (Debian: openmpi-bin) or MPICH, the one that recua was built with".into(),
    };
    let out = Command::new("mpirun").arg("--version").stdin(Stdio::null()).output();
    let out = out.map_err(|e| fail(format!("it cannot be started: {e}")))?;
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    Mpirun::of_version(&said).ok_or_else(|| fail(format!("of no known kind: `{}`", said.lines().next().unwrap_or_default())))
}

/// Signals to hand on; none but Unix has them.
mod libc_signal {
    #[cfg(unix)]
    pub(super) const TERM: i32 = libc::SIGTERM;
    #[cfg(unix)]
    pub(super) const USR1: i32 = libc::SIGUSR1;
    #[cfg(not(unix))]
    pub(super) const TERM: i32 = 0;
    #[cfg(not(unix))]
    pub(super) const USR1: i32 = 0;
}

/// What the first rank reads on stdin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// Nothing.
    None,
    /// What this process is given.
    Own,
}

/// Ranks that are started here.
#[cfg_attr(not(unix), allow(dead_code))]
struct Ranks {
    /// `None`: processes of our own.
    mpirun: Option<Mpirun>,
    ranks: usize,
    program: PathBuf,
}

impl Ranks {
    #[cfg_attr(not(feature = "nccl"), allow(unused_variables))]
    fn new(ranks: usize, engine: Engine, backend: &BackendName) -> Result<Self> {
        let program = std::env::current_exe().map_err(Error::io("find", "this program"))?;
        let mpirun = match engine {
            Engine::Mpi => Some(find_mpirun()?),
            Engine::Nccl => {
                #[cfg(feature = "nccl")]
                check_nccl(ranks, backend)?;
                None
            }
        };
        Ok(Self { mpirun, ranks, program })
    }

    /// Runs them to their end. The first signal that this process gets is handed on as `signal`, the second ends all.
    #[cfg(unix)]
    fn run(&self, resume: bool, input: Input, stop: &AtomicBool, signal: i32) -> Result<i32> {
        use recua::parallel::launch::rank_arguments;
        use recua::parallel::processes::{Processes, belongs_to_this, exit_code};

        let arguments = rank_arguments(std::env::args_os().skip(1), resume);
        let Some(mpirun) = self.mpirun else {
            let (program, ranks) = (self.program.clone(), self.ranks);
            return Processes { program, arguments, ranks, reads: input == Input::Own, grace: GRACE }.run(stop, signal);
        };
        // SAFETY: asks for a number.
        let root = unsafe { libc::geteuid() } == 0;
        let (own, variables) = mpirun.command(self.ranks, root);
        let mut command = Command::new("mpirun");
        command.args(own).arg(&self.program).args(arguments);
        command.envs(variables).stdin(if input == Input::Own { Stdio::piped() } else { Stdio::null() });
        // Told by the terminal, mpirun would give the ranks a second to end.
        belongs_to_this(&mut command);
        let mut child = command.spawn().map_err(Error::io("start", "mpirun"))?;
        // A process that is not in the terminal's foreground may not read it: this one reads for it. mpirun hands it to the first rank.
        if let Some(mut to) = child.stdin.take() {
            // Where the ranks read no further, nobody is to be told: they say why.
            std::thread::spawn(move || std::io::copy(&mut std::io::stdin().lock(), &mut to));
        }
        let mut told = false;
        loop {
            if let Some(status) = child.try_wait().map_err(Error::io("wait for", "mpirun"))? {
                return Ok(exit_code(status));
            }
            if stop.load(Ordering::Relaxed) && !told {
                told = true;
                // SAFETY: a child that was not waited for yet. mpirun hands SIGUSR1 on to its ranks.
                unsafe { libc::kill(child.id() as libc::pid_t, signal) };
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    #[cfg(not(unix))]
    fn run(&self, _: bool, _: Input, _: &AtomicBool, _: i32) -> Result<i32> {
        Err(Error::bad_value("--nproc", "ranks are started on Unix only", "start them with your MPI's own mpiexec"))
    }
}

/// How long ranks may take to end once one has failed.
#[cfg(unix)]
const GRACE: Duration = Duration::from_secs(10);

/// Not after success, wrong settings, or an interruption.
fn may_restart(code: i32) -> bool {
    ![0, 2, 130].contains(&code)
}

fn has_checkpoint(run: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(run.join("checkpoints")) else { return false };
    let whole = |name: &str| name.strip_prefix("step-").is_some_and(|step| step.bytes().all(|b| b.is_ascii_digit()));
    entries.flatten().any(|entry| whole(&entry.file_name().to_string_lossy()))
}

/// SIGUSR1 asks a rank to stop after the step: launchers hand it on, and batch systems send it before the time is up.
#[cfg(all(any(feature = "mpi", feature = "nccl"), unix))]
fn stop_on_user_signal() {
    extern "C" fn stop(_: libc::c_int) {
        super::STOP.store(true, Ordering::Relaxed);
    }
    // SAFETY: the handler stores one atomic number.
    unsafe { libc::signal(libc::SIGUSR1, stop as *const () as libc::sighandler_t) };
}

/// As one of several ranks: the engine, what ends it, and what all of them say.
#[cfg(any(feature = "mpi", feature = "nccl"))]
pub(super) mod rank {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use recua::backend::BackendName;
    use recua::parallel::launch::{Engine, Launched};
    #[cfg(feature = "mpi")]
    use recua::parallel::mpi::{Mpi, MpiOptions};
    #[cfg(feature = "nccl")]
    use recua::parallel::nccl::{Nccl, NcclOptions, Place};
    use recua::parallel::{Communicator, Trace, Watch};
    use recua::{Error, Result};

    use super::RankFlags;
    use crate::cli::say;

    /// An engine that has started.
    enum Started {
        #[cfg(feature = "mpi")]
        Mpi(Mpi),
        #[cfg(feature = "nccl")]
        Nccl(Nccl),
    }

    impl Started {
        #[cfg_attr(not(feature = "nccl"), allow(unused_variables))]
        fn new(engine: Engine, launched: &Launched, backend: &BackendName, timeout: Duration) -> Result<Self> {
            match engine {
                #[cfg(feature = "mpi")]
                Engine::Mpi => Ok(Self::Mpi(Mpi::start(MpiOptions { timeout, ..MpiOptions::default() })?)),
                #[cfg(feature = "nccl")]
                Engine::Nccl => {
                    let options = NcclOptions { timeout, ..NcclOptions::default() };
                    Ok(Self::Nccl(Nccl::start(&backend.open()?, Place::of(launched), options)?))
                }
                #[allow(unreachable_patterns)]
                other => Err(Error::internal("ranks", format!("{other:?} is not compiled in"))),
            }
        }

        fn world(&self) -> Arc<dyn Communicator> {
            match self {
                #[cfg(feature = "mpi")]
                Self::Mpi(mpi) => mpi.world(),
                #[cfg(feature = "nccl")]
                Self::Nccl(nccl) => nccl.world(),
            }
        }

        fn library(&self) -> String {
            match self {
                #[cfg(feature = "mpi")]
                Self::Mpi(mpi) => mpi.library().into(),
                #[cfg(feature = "nccl")]
                Self::Nccl(nccl) => nccl.library(),
            }
        }

        fn finish(self) -> Result<()> {
            match self {
                #[cfg(feature = "mpi")]
                Self::Mpi(mpi) => mpi.finish(),
                #[cfg(feature = "nccl")]
                Self::Nccl(nccl) => nccl.finish(),
            }
        }

        /// Ends the job on all ranks, and this process.
        fn abort(self, code: i32, why: &str) -> ! {
            match self {
                #[cfg(feature = "mpi")]
                Self::Mpi(mpi) => mpi.abort(code),
                #[cfg(feature = "nccl")]
                Self::Nccl(nccl) => nccl.abort(why),
            }
            let _ = why;
            std::process::exit(code)
        }
    }

    /// Runs `job` as this rank, and ends the engine as it ended. An error ends the job on all ranks.
    pub(crate) fn run<T>(
        flags: &RankFlags,
        (launched, engine): (&Launched, Engine),
        backend: &BackendName,
        about: &str,
        trace: Option<&Path>,
        job: impl FnOnce(Arc<dyn Communicator>, Watch) -> Result<T>,
    ) -> Result<T> {
        let started = Started::new(engine, launched, backend, flags.timeout()?)?;
        let world = started.world();
        #[cfg(unix)]
        super::stop_on_user_signal();
        if launched.rank == 0 {
            say(&format!("{launched}; {}; {about}", started.library()));
        }
        let watch = Watch { trace: trace.map(|path| Arc::new(Trace::new(path))), ..Watch::default() };
        let met = || {
            if world.size() == launched.world {
                return Ok(());
            }
            let problem = format!("{} started {} ranks, of which MPI sees {}", launched.launcher, launched.world, world.size());
            let hint = "take the mpirun of the MPI that recua was built with, or `srun --mpi=pmix`".to_string();
            Err(Error::Engine { what: "MPI", problem, hint })
        };
        match met().and_then(|()| job(world.clone(), watch)) {
            Ok(done) => started.finish().map(|()| done),
            // All ranks have stopped together.
            Err(e @ Error::Interrupted { .. }) => started.finish().and(Err(e)),
            Err(e) => {
                say(&format!("error: rank {}: {e}", launched.rank));
                // Who ends the job ends all ranks: those that have heard of it say so first, the one that failed before them.
                std::thread::sleep(Duration::from_secs_f64(if matches!(e, Error::Rank { .. }) { 1.0 } else { 0.5 }));
                started.abort(crate::cli::exit_code(&e).into(), &e.to_string())
            }
        }
    }
}
