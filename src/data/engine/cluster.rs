//! Shuffles on several machines: Ballista's scheduler and executors inside our own binary.

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
};

use ballista::prelude::SessionContextExt;
use ballista_core::error::BallistaError;
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
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    prelude::{SessionConfig, SessionContext},
};
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use tokio::runtime::Runtime;

use crate::error::{Error, Result};

/// A session whose plans run on the cluster.
pub(super) async fn context(scheduler: &str, config: SessionConfig, runtime: Arc<RuntimeEnv>) -> PlanResult<SessionContext> {
    let state = SessionStateBuilder::new().with_default_features().with_config(config).with_runtime_env(runtime).build();
    SessionContext::remote_with_state(scheduler, state).await
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
    runtime(0)?.block_on(async {
        let listener = tokio::net::TcpListener::bind(options.listen).await.map_err(io)?;
        let address = listener.local_addr().map_err(io)?;
        let config = SchedulerConfig {
            external_host: options.host.clone(),
            bind_host: address.ip().to_string(),
            bind_port: address.port(),
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
    pub host: String,
    /// Ports for results and for orders; 0 takes any free ones.
    pub ports: (u16, u16),
    /// Pieces at a time.
    pub threads: usize,
    /// Bytes for sorting and grouping, of all pieces together; what does not fit is spilled.
    pub memory: u64,
    /// The folder for results and for what is spilled.
    pub work: PathBuf,
}

/// Runs a worker until it gets SIGTERM or SIGINT, or the scheduler says so. It waits half a minute for the scheduler.
///
/// # Errors
/// [`Error::BadValue`] for an address that is not one, [`Error::Backend`] if the scheduler is not there or the worker fails.
pub fn worker(options: &WorkerOptions) -> Result<()> {
    let address = options.scheduler.strip_prefix("df://").unwrap_or(&options.scheduler);
    let Some((host, Ok(port))) = address.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>())) else {
        let problem = format!("expected df://host:port, got `{}`", options.scheduler);
        return Err(Error::bad_value("scheduler", problem, "give the address that `recua data scheduler` printed"));
    };
    std::fs::create_dir_all(&options.work).map_err(Error::io("create", &options.work))?;
    let free = |port: u16| -> Result<u16> {
        if port != 0 {
            return Ok(port);
        }
        let bound = TcpListener::bind((options.host.as_str(), 0)).and_then(|l| l.local_addr());
        bound.map(|a| a.port()).map_err(|e| backend(&options.host, &e, "is this an address of this machine?"))
    };
    let spill = options.work.clone();
    let config = ExecutorProcessConfig {
        bind_host: options.host.clone(),
        external_host: Some(options.host.clone()),
        port: free(options.ports.0)?,
        grpc_port: free(options.ports.1)?,
        scheduler_host: host.into(),
        scheduler_port: port,
        scheduler_connect_timeout_seconds: 30,
        vcores: options.threads.max(1),
        work_dir: Some(options.work.to_string_lossy().into_owned()),
        memory_pool_size: Some(options.memory),
        override_runtime_producer: Some(Arc::new(move |_| {
            let disk = DiskManagerBuilder::default()
                .with_mode(DiskManagerMode::Directories(vec![spill.clone()]))
                .with_max_temp_directory_size(u64::MAX);
            RuntimeEnvBuilder::new().with_disk_manager_builder(disk).build_arc()
        })),
        ..Default::default()
    };
    let failed = |e: BallistaError| backend(&options.scheduler, &e, "is the scheduler there, and of the same version?");
    runtime(options.threads)?.block_on(start_executor_process(Arc::new(config))).map_err(failed)
}

fn runtime(threads: usize) -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if threads > 0 {
        // One more than there are pieces, so that long computations leave one for the heartbeat.
        builder.worker_threads(threads + 1);
    }
    builder.enable_all().build().map_err(|e| Error::bad_value("threads", format!("cannot start: {e}"), "ask for fewer"))
}

fn backend(name: &str, problem: &dyn std::fmt::Display, hint: &str) -> Error {
    Error::Backend { name: name.into(), problem: problem.to_string(), hint: hint.into() }
}
