//! Shuffles on several machines: Ballista's scheduler and executors inside our own binary.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ballista_core::{
    config::{
        BALLISTA_CLIENT_GRPC_HTTP2_KEEPALIVE_INTERVAL_SECONDS, BALLISTA_SHUFFLE_SORT_BASED_BATCH_SIZE, TaskSchedulingPolicy,
    },
    error::BallistaError,
    extension::{SessionConfigExt, SessionStateExt},
};
use ballista_executor::executor_process::{ExecutorProcessConfig, start_executor_process};
use ballista_scheduler::{
    cluster::BallistaCluster,
    config::SchedulerConfig,
    scheduler_process::{create_scheduler, start_grpc_service_with_listener},
};
use datafusion::{
    common::Result as PlanResult,
    execution::{
        SessionStateBuilder,
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    prelude::{SessionConfig, SessionContext},
};
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use tokio::runtime::Runtime;

use super::shuffle::{enough_memory, spilling};
use crate::error::{Error, Result};
use crate::files::Folder;

/// Workers ask for work; the scheduler need not reach them, and one that was started again is asked as the one before was.
const POLICY: TaskSchedulingPolicy = TaskSchedulingPolicy::PullStaged;
/// How long to wait for a scheduler's answer, and for the scheduler (a worker) or a first worker (a shuffle) to be there.
const ANSWER: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(30);
/// Seconds after which a worker that does not ask for work is taken for dead, and its work is given to others; and after
/// which, none being left, what runs fails. A worker asks every five seconds at least.
const DEAD: u64 = 60;

/// What Ballista's plans need, to be overridden by what ours do.
pub(super) fn config(batch: usize) -> SessionConfig {
    SessionConfig::new_with_ballista()
        // The adaptive planner replaces joins by hash joins, which cannot spill; and so does the other for what is small.
        .with_ballista_adaptive_query_planner(false)
        .with_ballista_broadcast_join_threshold_bytes(0)
        .set_usize(BALLISTA_SHUFFLE_SORT_BASED_BATCH_SIZE, batch)
        // A scheduler whose machine is gone says nothing; one whose process is gone, does.
        .set_u64(BALLISTA_CLIENT_GRPC_HTTP2_KEEPALIVE_INTERVAL_SECONDS, 20)
}

/// A session whose plans run on the cluster.
pub(super) fn context(scheduler: &str, config: SessionConfig, runtime: Arc<RuntimeEnv>) -> PlanResult<SessionContext> {
    let state = SessionStateBuilder::new().with_default_features().with_config(config).with_runtime_env(runtime).build();
    let scheduler = scheduler.replacen("df://", "http://", 1);
    Ok(SessionContext::new_with_state(state.upgrade_for_ballista(scheduler)?))
}

/// Waits for a scheduler's first worker. Ballista would wait for ever.
pub(super) fn wait_for_workers(scheduler: &str) -> Result<()> {
    let (host, port) = address(scheduler)?;
    let start = Instant::now();
    loop {
        match has_workers(host, port) {
            Ok(true) => return Ok(()),
            Ok(false) if start.elapsed() > PATIENCE => {
                return Err(backend(scheduler, &"it has no worker", "start some: `recua data worker`"));
            }
            Ok(false) => thread::sleep(Duration::from_millis(200)),
            Err(e) => return Err(backend(scheduler, &e, "is `recua data scheduler` running there?")),
        }
    }
}

/// Asks a scheduler, in the HTTP that it speaks for this purpose, whether it has workers.
fn has_workers(host: &str, port: u16) -> std::io::Result<bool> {
    let mut last = std::io::Error::other("a name without an address");
    for address in (host, port).to_socket_addrs()? {
        let mut stream = match TcpStream::connect_timeout(&address, ANSWER) {
            Ok(stream) => stream,
            Err(e) => {
                last = e;
                continue;
            }
        };
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        stream.write_all(format!("GET /readyz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        return match &status {
            b"HTTP/1.1 200" => Ok(true),
            b"HTTP/1.1 503" => Ok(false),
            _ => Err(std::io::Error::other("its answer is not that of a scheduler")),
        };
    }
    Err(last)
}

/// `df://host:port`.
pub(super) fn address(scheduler: &str) -> Result<(&str, u16)> {
    let parts = scheduler.strip_prefix("df://").and_then(|a| a.rsplit_once(':'));
    match parts.map(|(host, port)| (host, port.parse())) {
        Some((host, Ok(port))) if !host.is_empty() => Ok((host, port)),
        _ => {
            let problem = format!("expected df://host:port, got `{scheduler}`");
            Err(Error::bad_value("scheduler", problem, "give the address that `recua data scheduler` printed"))
        }
    }
}

/// A scheduler: it hands out the pieces of plans. It keeps its state in memory, so that killed it forgets what runs; the
/// stage is then run again.
#[derive(Clone, Debug)]
pub struct SchedulerOptions {
    /// Where it listens; port 0 takes any free one. There is no authentication: a network of its own.
    pub listen: SocketAddr,
    /// The name under which workers and clients reach it.
    pub host: String,
}

/// Runs a scheduler until the process ends. `ready` is told where it listens.
///
/// # Errors
/// [`Error::Backend`] if the port is taken or the scheduler fails.
pub fn scheduler(options: &SchedulerOptions, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let name = format!("df://{}", options.listen);
    let failed = |e: BallistaError| backend(&name, &e, "is the port free?");
    let io = |e: std::io::Error| backend(&name, &e, "is the port free?");
    runtime()?.block_on(async {
        let listener = tokio::net::TcpListener::bind(options.listen).await.map_err(io)?;
        let address = listener.local_addr().map_err(io)?;
        let config = SchedulerConfig {
            external_host: options.host.clone(),
            bind_host: address.ip().to_string(),
            bind_port: address.port(),
            scheduling_policy: POLICY,
            executor_timeout_seconds: DEAD,
            no_executors_grace_period_seconds: DEAD,
            ..Default::default()
        };
        let cluster = BallistaCluster::new_from_config(&config).await.map_err(failed)?;
        let scheduler = create_scheduler::<LogicalPlanNode, PhysicalPlanNode>(cluster, Arc::new(config)).await.map_err(failed)?;
        ready(address);
        start_grpc_service_with_listener(listener, scheduler).await.map_err(failed)
    })
}

/// A worker: it runs pieces of plans, and keeps their results until they are fetched.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// `df://host:port` of the scheduler.
    pub scheduler: String,
    /// The address that it listens on, and under which others fetch its results.
    pub host: Ipv4Addr,
    /// The port for it; 0 takes any free one.
    pub port: u16,
    /// Pieces at a time.
    pub threads: usize,
    /// Bytes for sorting and grouping, of all pieces together; what does not fit is spilled. At least 64 MiB a thread, and
    /// 128 MiB.
    pub memory: usize,
    /// The folder for results and for what is spilled. It is made; what killed workers left there is removed.
    pub work: PathBuf,
}

/// Runs a worker until it gets SIGTERM or SIGINT. It waits half a minute for the scheduler to be there, and later for as long
/// as it takes it to come back.
///
/// # Errors
/// [`Error::BadValue`] for an address that is not one or too little memory, [`Error::Io`] if the folder cannot be made,
/// [`Error::Backend`] if the scheduler is not there or the worker fails.
pub fn worker(options: &WorkerOptions) -> Result<()> {
    let (host, port) = address(&options.scheduler)?;
    let threads = options.threads.max(1);
    enough_memory(options.memory, threads)?;
    // Ballista cleans up what it does not know in the folder that it is given.
    let work = Folder::create(&options.work.join("spill"))?;
    let Some(folder) = work.path().to_str() else {
        return Err(Error::bad_value(options.work.to_string_lossy(), "a path that is not UTF-8", "use another folder"));
    };
    let start = Instant::now();
    while let Err(e) = has_workers(host, port) {
        if start.elapsed() > PATIENCE {
            return Err(backend(&options.scheduler, &e, "is `recua data scheduler` running there?"));
        }
        thread::sleep(Duration::from_millis(500));
    }
    let listener = TcpListener::bind((options.host, options.port)).and_then(|l| l.local_addr());
    let bound =
        listener.map_err(|e| backend(&options.scheduler, &e, "is this an address of this machine, and the port free?"))?;
    let spill = work.path().to_path_buf();
    let config = ExecutorProcessConfig {
        bind_host: options.host.to_string(),
        external_host: Some(options.host.to_string()),
        port: bound.port(),
        scheduler_host: host.into(),
        scheduler_port: port,
        task_scheduling_policy: POLICY,
        vcores: threads,
        work_dir: Some(folder.into()),
        memory_pool_size: Some(options.memory as u64),
        override_runtime_producer: Some(Arc::new(move |_| {
            RuntimeEnvBuilder::new().with_disk_manager_builder(spilling(&spill)).build_arc()
        })),
        ..Default::default()
    };
    let failed = |e: BallistaError| backend(&options.scheduler, &e, "is the scheduler there, and of the same version?");
    runtime()?.block_on(start_executor_process(Arc::new(config))).map_err(failed)
}

fn runtime() -> Result<Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|e| Error::bad_value("threads", format!("cannot start: {e}"), "raise the limit of processes"))
}

fn backend(name: &str, problem: &dyn std::fmt::Display, hint: &str) -> Error {
    Error::Backend { name: name.into(), problem: problem.to_string(), hint: hint.into() }
}
