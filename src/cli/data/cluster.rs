//! `recua data scheduler`, `recua data worker`: a Ballista cluster of this very binary.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use recua::Result;
use recua::corpus::engine::{SchedulerOptions, WorkerOptions, scheduler, worker};

/// Run the scheduler of a Ballista cluster
///
/// Prints `df://host:port`, which workers and `recua data build --scheduler` are given. There is no authentication: run it in a network
/// of its own. It keeps nothing: killed, what ran is started again by `recua data build`.
#[derive(Args)]
pub(crate) struct Scheduler {
    /// Address to listen on; port 0: any free one
    #[arg(long, default_value = "127.0.0.1:50050", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Name under which workers and builds reach it
    #[arg(long, default_value = "localhost", value_name = "HOST")]
    host: String,
}

impl Scheduler {
    pub(super) fn run(self) -> Result<()> {
        let host = self.host.clone();
        let options = SchedulerOptions { listen: self.listen, host: self.host };
        scheduler(&options, move |address| super::super::print(&format!("df://{host}:{}", address.port())))
    }
}

/// Run a worker of a Ballista cluster
///
/// Workers must see the build's folder under the same path as `recua data build`.
#[derive(Args)]
pub(crate) struct Worker {
    /// The scheduler's address, df://host:port
    #[arg(long, value_name = "URL")]
    scheduler: String,
    /// IPv4 address of this machine under which other workers and builds fetch results
    #[arg(long, default_value_t = Ipv4Addr::LOCALHOST, value_name = "ADDRESS")]
    host: Ipv4Addr,
    /// Port for it; 0: any free one
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    port: u16,
    /// Pieces of work at a time [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// MiB for sorting and grouping, at least 64 a thread
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    memory: usize,
    /// Folder for what is spilled and for results on their way
    #[arg(long, value_name = "DIR")]
    work: PathBuf,
}

impl Worker {
    pub(super) fn run(self) -> Result<()> {
        let threads = self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let memory = self.memory;
        super::super::say(&format!(
            "worker of {}: {threads} pieces at a time, {memory} MiB; SIGTERM or Ctrl-C ends it",
            self.scheduler
        ));
        worker(&WorkerOptions {
            scheduler: self.scheduler,
            host: self.host,
            port: self.port,
            threads,
            memory: self.memory << 20,
            work: self.work,
        })
    }
}
