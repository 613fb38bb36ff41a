//! Several ranks: those that are started here (`--nproc`), and what a process does that is one of them.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use recua::parallel::launch::{self, Launched, Mpirun};
use recua::{Error, Result};

use super::say;

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Several ranks")]
pub(crate) struct RankFlags {
    /// Start so many ranks on this machine, with mpirun; `mpirun -n 8 recua ...` and `srun` work as they are
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
    Rank(Launched),
    /// Nothing but to start ranks and wait for them.
    Launcher(usize),
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
    pub(super) fn role(&self) -> Result<Role> {
        self.timeout()?;
        let launched = Launched::detect()?.filter(|launched| launched.world > 1);
        match (self.nproc, launched) {
            (Some(0), _) => Err(Error::bad_value("--nproc", "expected at least 1, got 0", "leave it out for one rank")),
            (Some(_), Some(launched)) => {
                let problem = format!("this process is {launched}");
                Err(Error::bad_value("--nproc", problem, "leave it out: the launcher says how many ranks there are"))
            }
            (None, Some(launched)) => engine().map(|()| Role::Rank(launched)),
            (Some(n), None) if n > 1 => engine().map(|()| Role::Launcher(n)),
            _ => Ok(Role::Alone),
        }
    }

    /// Starts ranks of this program with the same arguments and waits for them. Ends the process as they ended.
    pub(super) fn launch(&self, ranks: usize) -> Result<()> {
        let stop = super::stop_on_signal("stopping all ranks")?;
        let status = Ranks::new(ranks)?.run(false, Input::None, stop, libc_signal::TERM)?;
        std::process::exit(exit_code(status));
    }

    /// [`RankFlags::launch`] of ranks the first of which leads: it alone reads `input` and is asked to stop, and then ends the others.
    pub(super) fn launch_led(&self, ranks: usize, input: Input) -> Result<()> {
        let stop = super::stop_on_signal("stopping after this step")?;
        let status = Ranks::new(ranks)?.run(false, input, stop, libc_signal::USR1)?;
        std::process::exit(exit_code(status));
    }

    /// [`RankFlags::launch`] of a training in `run`: a signal stops the ranks after their step, and when one fails they are started
    /// again from their last checkpoint, `restarts` times at most.
    pub(super) fn launch_training(&self, ranks: usize, restarts: u32, run: &Path) -> Result<()> {
        let ranks = Ranks::new(ranks)?;
        let stop = super::stop_on_signal("stopping all ranks after this step")?;
        let mut resume = false;
        for attempt in 0..=restarts {
            let code = exit_code(ranks.run(resume, Input::None, stop, libc_signal::USR1)?);
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

/// Whether this build has an engine.
fn engine() -> Result<()> {
    if cfg!(feature = "mpi") {
        return Ok(());
    }
    let problem = "MPI is not compiled into this build, and without it ranks cannot exchange anything";
    Err(Error::Engine { what: "several ranks", problem: problem.into(), hint: "build with `--features mpi`".into() })
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
struct Ranks {
    mpirun: Mpirun,
    ranks: usize,
    program: PathBuf,
}

impl Ranks {
    fn new(ranks: usize) -> Result<Self> {
        let program = std::env::current_exe().map_err(Error::io("find", "this program"))?;
        Ok(Self { mpirun: find_mpirun()?, ranks, program })
    }

    /// Runs them to their end. The first signal that this process gets is handed on as `signal`, the second ends all.
    #[cfg(unix)]
    fn run(&self, resume: bool, input: Input, stop: &AtomicBool, signal: i32) -> Result<ExitStatus> {
        use std::os::unix::process::CommandExt;
        // SAFETY: asks for a number.
        let root = unsafe { libc::geteuid() } == 0;
        let (own, variables) = self.mpirun.command(self.ranks, root);
        let mut command = Command::new("mpirun");
        command.args(own).arg(&self.program).args(launch::rank_arguments(std::env::args_os().skip(1), resume));
        command.envs(variables).stdin(if input == Input::Own { Stdio::piped() } else { Stdio::null() });
        // A terminal's signals come to this process alone, which tells the ranks: mpirun would give them a second to end.
        command.process_group(0);
        #[cfg(target_os = "linux")]
        // SAFETY: one system call between fork and exec. The ranks end with whoever started them, however that ended.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let mut child = command.spawn().map_err(Error::io("start", "mpirun"))?;
        // A process that is not in the terminal's foreground may not read it: this one reads for it. mpirun hands it to the first rank.
        if let Some(mut to) = child.stdin.take() {
            // Where the ranks read no further, nobody is to be told: they say why.
            std::thread::spawn(move || std::io::copy(&mut std::io::stdin().lock(), &mut to));
        }
        let mut told = false;
        loop {
            if let Some(status) = child.try_wait().map_err(Error::io("wait for", "mpirun"))? {
                return Ok(status);
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
    fn run(&self, _: bool, _: Input, _: &AtomicBool, _: i32) -> Result<ExitStatus> {
        Err(Error::bad_value("--nproc", "ranks are started on Unix only", "start them with your MPI's own mpiexec"))
    }
}

/// As a shell says it.
fn exit_code(status: ExitStatus) -> i32 {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return 128 + signal;
    }
    status.code().unwrap_or(1)
}

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
#[cfg(all(feature = "mpi", unix))]
fn stop_on_user_signal() {
    extern "C" fn stop(_: libc::c_int) {
        super::STOP.store(true, Ordering::Relaxed);
    }
    // SAFETY: the handler stores one atomic number.
    unsafe { libc::signal(libc::SIGUSR1, stop as *const () as libc::sighandler_t) };
}

/// As one of several ranks: MPI, what ends it, and what all of them say.
#[cfg(feature = "mpi")]
pub(super) mod rank {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use recua::parallel::launch::{Engine, Launched};
    use recua::parallel::mpi::{Mpi, MpiOptions};
    use recua::parallel::{Communicator, Trace, Watch};
    use recua::{Error, Result};

    use super::RankFlags;
    use crate::cli::say;

    /// Runs `job` as this rank, and ends MPI as it ended. An error ends the job on all ranks.
    pub(crate) fn run<T>(
        flags: &RankFlags,
        launched: &Launched,
        about: &str,
        trace: Option<&Path>,
        job: impl FnOnce(Arc<dyn Communicator>, Watch) -> Result<T>,
    ) -> Result<T> {
        launched.check(Engine::Mpi)?;
        let timeout = flags.timeout()?;
        let mpi = Mpi::start(MpiOptions { timeout, ..MpiOptions::default() })?;
        let world = mpi.world();
        #[cfg(unix)]
        super::stop_on_user_signal();
        if launched.rank == 0 {
            say(&format!("{launched}; {}; {about}", mpi.library()));
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
        let result = met().and_then(|()| job(world.clone(), watch));
        match result {
            Ok(done) => mpi.finish().map(|()| done),
            // All ranks have stopped together.
            Err(e @ Error::Interrupted { .. }) => mpi.finish().and(Err(e)),
            Err(e) => {
                say(&format!("error: rank {}: {e}", launched.rank));
                // Who ends the job ends all ranks: those that have heard of it say so first, the one that failed before them.
                std::thread::sleep(Duration::from_secs_f64(if matches!(e, Error::Rank { .. }) { 1.0 } else { 0.5 }));
                mpi.abort(crate::cli::exit_code(&e).into());
                Err(e)
            }
        }
    }
}
