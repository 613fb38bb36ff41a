//! Ranks that are processes of this machine, started and watched by `recua --nproc` where no other launcher does it.

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::launch::rank_variables;
use crate::error::{Error, Result};

/// What is started, as how many ranks.
#[derive(Clone, Debug)]
pub struct Processes {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Ranks.
    pub ranks: usize,
    /// Whether the first one reads what this process is given on stdin; none of the others does.
    pub reads: bool,
    /// How long the others may take to end once one has failed: they know by then, and say so.
    pub grace: Duration,
}

/// As a shell says it.
pub fn exit_code(status: ExitStatus) -> i32 {
    status.signal().map_or(status.code().unwrap_or(1), |signal| 128 + signal)
}

/// What is started gets no signals of the terminal, which come to this process alone (it tells the ranks), and ends with this process,
/// however that ends (Linux).
pub fn belongs_to_this(command: &mut Command) {
    command.process_group(0);
    #[cfg(target_os = "linux")]
    // SAFETY: one system call between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            Ok(())
        });
    }
}

/// Processes that were started; dropped, those that still run are ended.
struct Running(Vec<(Child, Option<ExitStatus>)>);

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Running {
    fn kill(&mut self) {
        for (child, status) in &mut self.0 {
            if status.is_none() {
                let _ = child.kill();
                *status = child.wait().ok();
            }
        }
    }

    fn tell(&self, signal: i32) {
        for (child, _) in self.0.iter().filter(|(_, status)| status.is_none()) {
            // SAFETY: a child that was not waited for yet.
            unsafe { libc::kill(child.id() as libc::pid_t, signal) };
        }
    }
}

impl Processes {
    /// A port that is free now.
    fn port() -> Result<u16> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(Error::io("listen on", "127.0.0.1"))?;
        Ok(listener.local_addr().map_err(Error::io("listen on", "127.0.0.1"))?.port())
    }

    fn command(&self, rank: usize, port: u16) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).envs(rank_variables(rank, self.ranks, port)).stdin(if self.reads && rank == 0 {
            Stdio::inherit()
        } else {
            Stdio::null()
        });
        if rank > 0 {
            // The first one writes the results.
            command.stdout(Stdio::null());
        }
        belongs_to_this(&mut command);
        command
    }

    /// Runs them to their end, and gives the exit code of the first that failed, else 0. Once `stop` is set they are sent `signal`.
    ///
    /// # Errors
    /// [`Error::Io`] if one cannot be started or waited for; the others are ended then.
    pub fn run(&self, stop: &AtomicBool, signal: i32) -> Result<i32> {
        let port = Self::port()?;
        let mut running = Running(Vec::new());
        for rank in 0..self.ranks {
            let child = self.command(rank, port).spawn().map_err(Error::io("start", &self.program))?;
            running.0.push((child, None));
        }
        let (mut told, mut failed): (bool, Option<(i32, Instant)>) = (false, None);
        loop {
            for (child, status) in running.0.iter_mut().filter(|(_, status)| status.is_none()) {
                *status = child.try_wait().map_err(Error::io("wait for", &self.program))?;
                if let Some(code) = status.map(exit_code).filter(|code| *code != 0) {
                    failed.get_or_insert((code, Instant::now()));
                }
            }
            if running.0.iter().all(|(_, status)| status.is_some()) {
                return Ok(failed.map_or(0, |(code, _)| code));
            }
            if failed.is_some_and(|(_, since)| since.elapsed() > self.grace) {
                running.kill();
                continue;
            }
            if stop.load(Ordering::Relaxed) && !told {
                told = true;
                running.tell(signal);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
