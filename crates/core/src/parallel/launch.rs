//! Launchers (mpirun, srun, torchrun): which rank of how many this process is, read from the variables that they set; and how `recua`
//! starts ranks on its own machine.

use std::ffi::OsString;
use std::fmt;

use crate::error::{Error, Result};

/// What starts ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// `mpirun` of OpenMPI.
    OpenMpi,
    /// `mpirun` of MPICH and its kin, or another that speaks PMI.
    Mpich,
    /// `srun`.
    Slurm,
    /// `torchrun --no-python`.
    Torchrun,
    /// `recua --nproc`, with processes of its own.
    Recua,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenMpi => "OpenMPI's mpirun",
            Self::Mpich => "MPICH's mpirun",
            Self::Slurm => "srun",
            Self::Torchrun => "torchrun",
            Self::Recua => "recua --nproc",
        })
    }
}

/// What moves bytes between ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// MPI, on CPUs and whatever has its data copied there.
    Mpi,
    /// NCCL, on CUDA.
    Nccl,
}

/// This process among all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// Who started it.
    pub launcher: Launcher,
    /// From 0.
    pub rank: usize,
    /// Ranks in all.
    pub world: usize,
    /// The rank on this machine, from 0.
    pub local_rank: usize,
    /// Ranks on this machine.
    pub local_world: usize,
    /// Where ranks find each other, where the launcher says.
    pub rendezvous: Option<(String, u16)>,
    /// Where NCCL's ranks meet: there, beside it where the launcher itself listens there, else what can be made of the launcher's variables.
    pub meeting: Option<(String, u16)>,
}

impl fmt::Display for Launched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { launcher, rank, world, local_rank, local_world, .. } = self;
        write!(f, "rank {rank} of {world} ({local_rank} of {local_world} on this machine), started by {launcher}")
    }
}

/// Variables of a launcher: rank, world, local rank, local world (the first that is there counts).
struct Names {
    launcher: Launcher,
    rank: &'static str,
    world: &'static str,
    local_rank: &'static [&'static str],
    local_world: &'static [&'static str],
}

/// OpenMPI and PMI first: they may themselves stand under Slurm. A Slurm job's batch script has ranks of its own to start, and is no
/// rank: a step is, which has the last two.
const LAUNCHERS: [Names; 4] = [
    Names {
        launcher: Launcher::OpenMpi,
        rank: "OMPI_COMM_WORLD_RANK",
        world: "OMPI_COMM_WORLD_SIZE",
        local_rank: &["OMPI_COMM_WORLD_LOCAL_RANK"],
        local_world: &["OMPI_COMM_WORLD_LOCAL_SIZE"],
    },
    Names {
        launcher: Launcher::Mpich,
        rank: "PMI_RANK",
        world: "PMI_SIZE",
        local_rank: &["MPI_LOCALRANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID"],
        local_world: &["MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"],
    },
    Names {
        launcher: Launcher::Torchrun,
        rank: "RANK",
        world: "WORLD_SIZE",
        local_rank: &["LOCAL_RANK"],
        local_world: &["LOCAL_WORLD_SIZE"],
    },
    Names {
        launcher: Launcher::Slurm,
        rank: "SLURM_PROCID",
        world: "SLURM_STEP_NUM_TASKS",
        local_rank: &["SLURM_LOCALID"],
        local_world: &["SLURM_STEP_TASKS_PER_NODE"],
    },
];

/// Ranks of `recua --nproc`, which sets this beside torchrun's variables; first of all, since it may itself stand under any launcher.
const OWN: Names = Names {
    launcher: Launcher::Recua,
    rank: "RANK",
    world: "WORLD_SIZE",
    local_rank: &["LOCAL_RANK"],
    local_world: &["LOCAL_WORLD_SIZE"],
};
const OWN_MARK: &str = "RECUA_NPROC";

/// Where ranks of one machine meet if nobody says: torchrun's port.
const USUAL_PORT: u16 = 29500;

/// The variables of a rank that `recua --nproc` starts.
pub fn rank_variables(rank: usize, ranks: usize, port: u16) -> Vec<(&'static str, String)> {
    let (rank, ranks) = (rank.to_string(), ranks.to_string());
    vec![
        ("RANK", rank.clone()),
        ("LOCAL_RANK", rank),
        ("WORLD_SIZE", ranks.clone()),
        ("LOCAL_WORLD_SIZE", ranks.clone()),
        ("MASTER_ADDR", "127.0.0.1".into()),
        ("MASTER_PORT", port.to_string()),
        (OWN_MARK, ranks),
    ]
}

/// The first of Slurm's list of nodes: `a[01-03,07]b,c` is `a01b` first.
fn first_node(list: &str) -> Option<String> {
    let (before, rest) = match list.split_once('[') {
        Some((before, rest)) if !before.contains(',') => (before, rest),
        _ => return list.split(',').next().map(str::trim).filter(|name| !name.is_empty()).map(String::from),
    };
    let (numbers, after) = rest.split_once(']')?;
    let number = numbers.split([',', '-']).next()?;
    Some(format!("{before}{number}{}", after.split(',').next().unwrap_or_default()))
}

impl Launched {
    /// From the variables of this process; `None` where nobody started it as one of several.
    ///
    /// # Errors
    /// As [`Launched::from_variables`].
    pub fn detect() -> Result<Option<Self>> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// From any variables.
    ///
    /// # Errors
    /// [`Error::BadValue`] naming a variable that is missing beside the others or is no such number.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let own = get(OWN_MARK).is_some().then_some(&OWN);
        let Some(names) = own.into_iter().chain(&LAUNCHERS).find(|names| get(names.rank).is_some() && get(names.world).is_some())
        else {
            return Self::half_set(get);
        };
        let launcher = names.launcher;
        let bad = |name: &str, problem: String| {
            Error::bad_value(name, problem, format!("{launcher} sets it; unset it for a run of one rank"))
        };
        let number = |name: &str| -> Result<Option<usize>> {
            let Some(text) = get(name) else { return Ok(None) };
            // Slurm says `4(x2)` for two nodes of four.
            let digits = text.trim().split(['(', ',']).next().unwrap_or_default();
            digits.parse().map(Some).map_err(|_| bad(name, format!("expected a number, got `{text}`")))
        };
        let first = |names: &[&str]| -> Result<Option<usize>> {
            for name in names {
                if let Some(n) = number(name)? {
                    return Ok(Some(n));
                }
            }
            Ok(None)
        };
        let needed = |name: &str| number(name)?.ok_or_else(|| bad(name, "it is not set".into()));
        let (rank, world) = (needed(names.rank)?, needed(names.world)?);
        if world == 0 || rank >= world {
            return Err(bad(names.rank, format!("expected a rank below {} = {world}, got {rank}", names.world)));
        }
        // Where a launcher does not say, all ranks are on this machine.
        let local_rank = first(names.local_rank)?.unwrap_or(rank);
        let local_world = first(names.local_world)?.unwrap_or(world).max(local_rank + 1);
        let rendezvous = match (get("MASTER_ADDR"), number("MASTER_PORT")?) {
            (Some(host), Some(port)) => {
                let port = u16::try_from(port).map_err(|_| bad("MASTER_PORT", format!("expected a port, got {port}")))?;
                Some((host, port))
            }
            _ => None,
        };
        let mut launched = Self { launcher, rank, world, local_rank, local_world, rendezvous, meeting: None };
        launched.meeting = launched.meeting_of(get);
        Ok(Some(launched))
    }

    fn meeting_of(&self, get: impl Fn(&str) -> Option<String>) -> Option<(String, u16)> {
        match (&self.rendezvous, self.launcher) {
            // torchrun's agent listens there, for stores of PyTorch's.
            (Some((host, port)), Launcher::Torchrun) if get("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True") => {
                Some((host.clone(), port.checked_add(1000).unwrap_or(port - 1000)))
            }
            (Some(place), _) => Some(place.clone()),
            (None, Launcher::Slurm) => {
                let node = first_node(&get("SLURM_STEP_NODELIST").or_else(|| get("SLURM_JOB_NODELIST"))?)?;
                // Jobs that share a node have ports of their own, but by chance.
                let number = |name: &str| get(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
                let port = 20_000 + (number("SLURM_JOB_ID") * 16 + number("SLURM_STEP_ID") % 16) % 10_000;
                Some((node, port as u16))
            }
            (None, Launcher::OpenMpi | Launcher::Mpich) if self.local_world == self.world => {
                Some(("127.0.0.1".into(), USUAL_PORT))
            }
            (None, _) => None,
        }
    }

    /// One of a launcher's two variables without the other is a mistake, but of Slurm and of names that anybody may use.
    fn half_set(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        for names in &LAUNCHERS[..2] {
            let (rank, world) = (get(names.rank), get(names.world));
            if rank.is_some() != world.is_some() {
                let missing = if rank.is_none() { names.rank } else { names.world };
                let problem = format!("it is not set, but {} is", if rank.is_none() { names.world } else { names.rank });
                return Err(Error::bad_value(missing, problem, "start with mpirun, or unset both"));
            }
        }
        Ok(None)
    }

    /// A rank that is alone.
    pub fn alone() -> Self {
        let launcher = Launcher::Recua;
        Self { launcher, rank: 0, world: 1, local_rank: 0, local_world: 1, rendezvous: None, meeting: None }
    }

    /// Whether the launcher's ranks can reach each other with an engine.
    ///
    /// # Errors
    /// [`Error::BadValue`] naming the launcher to take.
    pub fn check(&self, engine: Engine) -> Result<()> {
        if engine == Engine::Mpi && self.launcher == Launcher::Torchrun && self.world > 1 {
            let problem = "torchrun starts ranks that MPI does not know of";
            let hint = format!("start with `mpirun -n {} recua ...`, or with `--nproc {}`", self.world, self.local_world);
            return Err(Error::bad_value("torchrun", problem, hint));
        }
        if engine == Engine::Nccl && self.meeting.is_none() && self.world > 1 {
            let problem = format!("NCCL's ranks have no place to meet: {} sets none", self.launcher);
            return Err(Error::bad_value("MASTER_ADDR", problem, "set MASTER_ADDR and MASTER_PORT, the same on all ranks"));
        }
        Ok(())
    }

    /// Threads that a rank computes with, where nobody says: the machine's cores, shared among its ranks.
    pub fn threads(&self, cores: usize) -> usize {
        (cores / self.local_world).max(1)
    }
}

/// The arguments of a rank: those of this process without what is for it alone; `--resume` in place of where it began from.
pub fn rank_arguments(given: impl Iterator<Item = OsString>, resume: bool) -> Vec<OsString> {
    let mut left_out = vec!["--nproc", "--restarts"];
    if resume {
        left_out.push("--init");
    }
    let (mut arguments, mut skip) = (Vec::new(), false);
    for argument in given {
        let text = argument.to_string_lossy();
        if std::mem::take(&mut skip) {
            continue;
        }
        if left_out.contains(&text.as_ref()) {
            skip = true; // its value
        } else if !left_out.iter().any(|flag| text.strip_prefix(flag).is_some_and(|rest| rest.starts_with('='))) {
            arguments.push(argument);
        }
    }
    if resume && !arguments.iter().any(|a| a == "--resume") {
        arguments.push("--resume".into());
    }
    arguments
}

/// Whose `mpirun` there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mpirun {
    /// OpenMPI's.
    OpenMpi,
    /// MPICH's, Intel's: Hydra.
    Hydra,
}

impl Mpirun {
    /// By what `mpirun --version` prints.
    pub fn of_version(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        if text.contains("open mpi") || text.contains("open-mpi") {
            Some(Self::OpenMpi)
        } else {
            (text.contains("hydra") || text.contains("intel(r) mpi")).then_some(Self::Hydra)
        }
    }

    /// Arguments and variables that start `ranks` ranks on this machine. More ranks than cores are allowed; no rank is bound to a
    /// core, since each has threads of its own.
    pub fn command(self, ranks: usize, root: bool) -> (Vec<String>, Vec<(&'static str, &'static str)>) {
        let n = ranks.to_string();
        match self {
            Self::OpenMpi => {
                let arguments = ["-n", &n, "--bind-to", "none", "--oversubscribe"];
                // OpenMPI wants root to say so twice.
                let allowed = [("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")];
                (arguments.map(String::from).to_vec(), if root { allowed.to_vec() } else { Vec::new() })
            }
            Self::Hydra => (["-n", &n, "-bind-to", "none"].map(String::from).to_vec(), Vec::new()),
        }
    }
}
