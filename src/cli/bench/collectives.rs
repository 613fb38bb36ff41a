//! `recua bench collectives`

use clap::Args;
#[cfg(any(feature = "mpi", feature = "nccl"))]
use recua::parallel::{Mesh, ParallelConfig, measure::measure};
use recua::{Error, Result};

use crate::cli::ranks::{RankFlags, Role};

/// How fast tensors cross between ranks, and whether they come right
///
/// With NCCL one rank is enough for the second.
#[derive(Args)]
pub(crate) struct CollectivesBench {
    /// Sizes of the larger side in MiB of float32
    #[arg(long, value_name = "MIB", value_delimiter = ',', default_values_t = [1usize, 16, 256])]
    mib: Vec<usize>,
    /// Operations in a row
    #[arg(long, default_value_t = 20)]
    repeats: usize,
    /// One JSON document a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ranks: RankFlags,
    #[command(flatten)]
    device: crate::cli::Device,
}

impl CollectivesBench {
    pub(super) fn run(mut self) -> Result<()> {
        let role = self.ranks.role(&self.device.backend)?;
        if self.repeats == 0 || self.mib.iter().any(|mib| !(1..=1 << 14).contains(mib)) {
            return Err(Error::bad_value(
                "--mib, --repeats",
                "expected sizes from 1 to 16384 and at least 1 repeat",
                "see --help",
            ));
        }
        match role {
            Role::Alone => self.one(None),
            Role::Launcher(ranks, engine) => self.ranks.launch(ranks, engine, &self.device.backend),
            Role::Rank(launched, engine) => {
                self.device.become_rank(&launched)?;
                self.one(Some((launched, engine)))
            }
        }
    }

    #[cfg(not(any(feature = "mpi", feature = "nccl")))]
    fn one(&self, _: Option<(recua::parallel::launch::Launched, recua::parallel::launch::Engine)>) -> Result<()> {
        let problem = "neither MPI nor NCCL is compiled into this build";
        Err(Error::Engine {
            what: "several ranks",
            problem: problem.into(),
            hint: "build with `--features mpi` or `nccl`".into(),
        })
    }

    /// As one rank.
    #[cfg(any(feature = "mpi", feature = "nccl"))]
    fn one(&self, rank: Option<(recua::parallel::launch::Launched, recua::parallel::launch::Engine)>) -> Result<()> {
        let (launched, engine) = match rank {
            Some(rank) => rank,
            None => (recua::parallel::launch::Launched::alone(), crate::cli::ranks::engine(&self.device.backend)?),
        };
        let context = self.device.backend.open()?;
        let sizes: Vec<usize> = self.mib.iter().map(|mib| mib << 20).collect();
        let about = format!("tensors on {}", self.device.backend);
        let rank = (&launched, engine);
        crate::cli::ranks::rank::run(&self.ranks, rank, &self.device.backend, &about, None, |world, watch| {
            let first = world.rank() == 0;
            let mesh = Mesh::new(world, &ParallelConfig::default(), watch)?;
            let all = measure(&context, &mesh, &sizes, self.repeats)?;
            let wrong: usize = all.iter().map(|m| m.wrong).sum();
            for m in all.iter().filter(|_| first) {
                if self.json {
                    crate::cli::print_json(m)?;
                } else {
                    let verdict = if m.wrong == 0 { "right".into() } else { format!("{} elements WRONG", m.wrong) };
                    let (mib, us) = (m.bytes as f64 / (1 << 20) as f64, 1e6 * m.seconds);
                    crate::cli::print(&format!(
                        "{:<14}  {:<4}  {mib:>8.1} MiB  {us:>10.1} us  {:>7.2} GB/s  {verdict}",
                        m.operation, m.dtype, m.bus_gb_s
                    ));
                }
            }
            if wrong == 0 {
                return Ok(());
            }
            let problem = format!("{wrong} elements came wrong");
            Err(Error::Engine {
                what: "collectives",
                problem,
                hint: "update NCCL or MPI and the driver; do not train on this".into(),
            })
        })
    }
}
