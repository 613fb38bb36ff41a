//! `recua bench cluster`

use std::path::PathBuf;

use clap::Args;
use recua::bench::{self, ClusterBench};
use recua::parallel::cluster::Cluster;
#[cfg(any(feature = "mpi", feature = "nccl"))]
use recua::parallel::launch::Launched;
#[cfg(any(feature = "mpi", feature = "nccl"))]
use recua::parallel::{Communicator, Mesh, ParallelConfig, agree};
use recua::{Error, Result};
use recua_core::files::write_atomic;

use super::super::ranks::{RankFlags, Role};

/// Describe the machines that this runs on, for `recua plan --cluster FILE`
///
/// Measures what each device computes while all do (products, attention, memory), what crosses between the ranks of a node and between
/// nodes (latency and bandwidth by size, by the engine that training uses), and how much of it hides under computation; writes a TOML.
/// Its [schedule] efficiency is fitted to a training step of one device. What cannot be measured (watts, the hardware's peak) is stated.
#[derive(Args)]
#[command(after_help = "Examples:
  recua bench cluster --nproc 4 --out here.toml
  mpirun -n 16 --map-by core recua bench cluster --backend cuda --precision bf16 --peak-tflops 989 --watts 700 --out h100.toml
  recua plan --preset 7b --cluster here.toml --devices 64 --tokens 1e12")]
pub(crate) struct ClusterVerb {
    /// Type of the products' operands and of what crosses
    #[arg(long, value_name = "f32|bf16|f16", default_value = "f32")]
    precision: String,
    /// The device's dense peak [default: its best product]
    #[arg(long, value_name = "TFLOPS")]
    peak_tflops: Option<f64>,
    /// Drawn by a device under load
    #[arg(long, value_name = "W")]
    watts: Option<f64>,
    /// Of each measurement; there are some forty
    #[arg(long, value_name = "S", default_value_t = ClusterBench::default().seconds)]
    seconds: f64,
    /// Bytes of the largest exchange
    #[arg(long, value_name = "BYTES", value_parser = super::super::flags::bytes, default_value = "64MiB")]
    largest: u64,
    /// Where the description goes [default: stdout]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// One JSON document on stdout, in place of TOML
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ranks: RankFlags,
    #[command(flatten)]
    device: super::super::Device,
}

impl ClusterVerb {
    fn config(&self) -> Result<ClusterBench> {
        for (flag, value) in [("--peak-tflops", self.peak_tflops), ("--watts", self.watts)] {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value > 0.0)) {
                return Err(Error::bad_value(flag, format!("expected a number above 0, got {value}"), "leave it out"));
            }
        }
        Ok(ClusterBench {
            precision: super::setting("--precision", &self.precision)?,
            seconds: self.seconds,
            peak_flops: self.peak_tflops.map(|peak| peak * 1e12),
            watts: self.watts,
            largest: self.largest as usize,
        })
    }

    fn name(&self, ranks: usize, machines: usize) -> String {
        let of = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let threads = self.device.threads.map_or(String::new(), |n| format!(", {} a rank", of(n, "thread")));
        format!("{} on {}, {}{threads}", of(ranks, "rank"), of(machines, "machine"), self.device.backend)
    }

    #[cfg_attr(not(any(feature = "mpi", feature = "nccl")), allow(unused_mut))] // a rank has a device of its own
    pub(super) fn run(mut self) -> Result<()> {
        let role = self.ranks.role(&self.device.backend)?;
        let config = self.config()?;
        match &role {
            Role::Launcher(ranks, network) => self.ranks.launch(*ranks, *network, &self.device.backend),
            #[cfg(any(feature = "mpi", feature = "nccl"))]
            Role::Rank(launched, network) => {
                self.device.become_rank(launched)?;
                let about = format!("{} of {} on a machine", launched.local_world, launched.world);
                let rank = (launched, *network);
                super::super::ranks::rank::run(&self.ranks, rank, &self.device.backend, &about, None, |world, watch| {
                    neighbours(world.as_ref(), launched)?;
                    let parallel = ParallelConfig { tp: launched.local_world, ..ParallelConfig::default() };
                    let mesh = Mesh::new(world, &parallel, watch)?;
                    let name = self.name(launched.world, mesh.replica().of);
                    let cluster = bench::cluster(&self.device.backend.open()?, Some(&mesh), &name, &config)?;
                    if launched.rank == 0 { self.write(&cluster) } else { Ok(()) }
                })
            }
            _ => {
                self.device.apply()?;
                self.write(&bench::cluster(&self.device.backend.open()?, None, &self.name(1, 1), &config)?)
            }
        }
    }

    fn write(&self, cluster: &Cluster) -> Result<()> {
        let text = cluster.to_toml()?;
        if let Some(out) = &self.out {
            write_atomic(out, text.as_bytes())?;
            super::super::say(&format!("{}: see it with `recua plan --cluster {} --constants`", cluster.name, out.display()));
        }
        match (self.json, &self.out) {
            (true, _) => super::super::print_json(cluster),
            (false, None) => {
                super::super::print(text.trim_end());
                Ok(())
            }
            (false, Some(_)) => Ok(()),
        }
    }
}

/// Ranks of a machine are neighbours, as many on each.
#[cfg(any(feature = "mpi", feature = "nccl"))]
fn neighbours(world: &dyn Communicator, launched: &Launched) -> Result<()> {
    let Launched { rank, local_rank, local_world, .. } = *launched;
    let all = agree::agree(world, Ok([local_rank, local_world]), None)?;
    let Some(other) = all.iter().enumerate().find(|(rank, own)| **own != [rank % local_world, local_world]) else {
        return Ok(());
    };
    let problem =
        format!("rank {} is the {}th of {} on its machine, and rank {rank} of {local_world}", other.0, other.1[0], other.1[1]);
    let hint = "start as many ranks on each machine, one after the other (mpirun --map-by core, srun --distribution=block)";
    Err(Error::bad_value("ranks", problem, hint))
}
