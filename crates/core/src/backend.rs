//! Where the arithmetic runs: `flex` and `ndarray` (CPU), `wgpu`, `cuda`, chosen at run time by name.
//!
//! A [`BackendName`] is opened as a [`DeviceContext`], with the kernels chosen for a job and a place for the failures that concern
//! it. Generic code is a `Job`, which a context runs on the backend of its name.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::fault::DeviceThread;

mod choice;
pub(crate) mod context;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "wgpu")]
mod wgpu;

pub use choice::{AttentionKernel, Choices, Gemm};
pub use context::{DeviceContext, choices};

/// CPU backend on Burn's Flex.
#[cfg(feature = "flex")]
pub type Flex = burn_flex::Flex;
/// CPU backend on the ndarray crate.
#[cfg(feature = "ndarray")]
pub type NdArray = burn_ndarray::NdArray<f32>;
/// Any GPU, WGSL shaders. Named by its parts: the alias `burn::backend::Wgpu` changes its meaning with Burn's `fusion`.
#[cfg(feature = "wgpu")]
pub type Wgpu = burn_cubecl::CubeBackend<cubecl::wgpu::WgpuRuntime, f32, i32, u32>;
/// NVIDIA GPUs.
#[cfg(feature = "cuda")]
pub type Cuda = burn_cubecl::CubeBackend<cubecl::cuda::CudaRuntime, f32, i32, u8>;

/// The kinds of backend that exist, compiled in or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// CPU, multi-threaded.
    Flex,
    /// CPU, on the ndarray crate.
    NdArray,
    /// GPUs through Vulkan (Linux, Windows) or Metal (macOS).
    Wgpu,
    /// NVIDIA GPUs.
    Cuda,
}

impl Kind {
    /// All of them, the default first.
    pub const ALL: [Self; 4] = [Self::Flex, Self::NdArray, Self::Wgpu, Self::Cuda];

    /// Its name, which is also the Cargo feature.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::NdArray => "ndarray",
            Self::Wgpu => "wgpu",
            Self::Cuda => "cuda",
        }
    }

    /// Whether this build has it.
    pub fn compiled(self) -> bool {
        match self {
            Self::Flex => cfg!(feature = "flex"),
            Self::NdArray => cfg!(feature = "ndarray"),
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Cuda => cfg!(feature = "cuda"),
        }
    }

    /// Whether it computes on the CPU's own cores through this process.
    pub fn is_cpu(self) -> bool {
        matches!(self, Self::Flex | Self::NdArray)
    }
}

/// Which device of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Which {
    /// The best one.
    Best,
    /// By its number in `recua info`.
    Index(usize),
    /// wgpu's software adapter.
    Software,
}

/// A backend and device by name: `flex`, `ndarray`, `wgpu`, `wgpu:1`, `wgpu:cpu`, `cuda`, `cuda:0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackendName {
    kind: Kind,
    which: Which,
}

impl Default for BackendName {
    /// The fastest compiled CPU backend, else the first compiled one.
    fn default() -> Self {
        let kind = Kind::ALL.into_iter().find(|k| k.compiled()).unwrap_or(Kind::Flex);
        Self { kind, which: Which::Best }
    }
}

impl FromStr for BackendName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, device) = text.split_once(':').map_or((text, None), |(n, d)| (n, Some(d)));
        let bad = |problem: String| Error::Backend {
            name: text.into(),
            problem,
            hint: "take one of flex, ndarray, wgpu, wgpu:N, wgpu:cpu, cuda, cuda:N; `recua info` lists them".into(),
        };
        let kind =
            Kind::ALL.into_iter().find(|k| k.name() == name).ok_or_else(|| bad(format!("no backend is called `{name}`")))?;
        let which = match device {
            None => Which::Best,
            Some("cpu") if kind == Kind::Wgpu => Which::Software,
            Some(number) => match number.parse() {
                Ok(0) if kind.is_cpu() => Which::Best,
                Ok(_) if kind.is_cpu() => return Err(bad(format!("`{name}` has one device only"))),
                Ok(n) => Which::Index(n),
                Err(_) => return Err(bad(format!("`{number}` is not a device number"))),
            },
        };
        Ok(Self { kind, which })
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        match self.which {
            Which::Best => Ok(()),
            Which::Index(n) => write!(f, ":{n}"),
            Which::Software => f.write_str(":cpu"),
        }
    }
}

impl BackendName {
    /// The kind of backend.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The same of one of several ranks: of CUDA devices the one of its number on this machine.
    ///
    /// # Errors
    /// [`Error::Backend`] where all ranks of this machine would be on one device.
    pub fn of_rank(&self, local_rank: usize, local_ranks: usize) -> Result<Self> {
        match (self.kind, self.which) {
            (Kind::Cuda, Which::Index(_)) if local_ranks > 1 => {
                let problem = format!("all {local_ranks} ranks of this machine would be on this device");
                Err(self.error(&problem, "give `cuda`: each rank takes the device of its number"))
            }
            // Where a launcher shows each rank its own device alone (CUDA_VISIBLE_DEVICES), that is number 0.
            (Kind::Cuda, Which::Best) if self.count() != 1 => Ok(Self { which: Which::Index(local_rank), ..*self }),
            _ => Ok(*self),
        }
    }

    /// Devices of its kind on this machine.
    pub fn count(&self) -> usize {
        devices(self.kind).len()
    }

    /// Opens the device: makes sure that the backend is compiled in and has a device, and gives a context for one job (or a row of
    /// jobs, one after the other).
    ///
    /// # Errors
    /// [`Error::Backend`] if it is not compiled in, or has no device or driver.
    pub fn open(&self) -> Result<DeviceContext> {
        let device = match self.kind {
            #[cfg(feature = "wgpu")]
            Kind::Wgpu => OpenDevice::Wgpu(self.wgpu_device()?),
            #[cfg(feature = "cuda")]
            Kind::Cuda => OpenDevice::Cuda(self.cuda_device()?),
            kind if kind.is_cpu() && kind.compiled() => OpenDevice::Cpu,
            _ => return Err(self.not_compiled()),
        };
        Ok(DeviceContext::new(*self, device))
    }

    /// Memory of the device in bytes; the whole machine's for CPU backends. `None` where it cannot be asked.
    pub fn memory(&self) -> Option<u64> {
        match self.kind {
            Kind::Flex | Kind::NdArray => {
                let text = std::fs::read_to_string("/proc/meminfo").ok()?;
                let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
                Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
            }
            #[cfg(feature = "cuda")]
            Kind::Cuda => cuda::memory(match self.which {
                Which::Index(n) => n,
                _ => 0,
            }),
            _ => None,
        }
    }

    /// Bytes that products need beside their operands: on CPU the blocks of operands that `gemm` packs, some 6 MiB a thread.
    pub fn product_bytes(&self) -> u64 {
        match self.kind {
            Kind::Flex | Kind::NdArray => (rayon::current_num_threads() as u64) * (6 << 20),
            Kind::Wgpu | Kind::Cuda => 0,
        }
    }

    pub(crate) fn not_compiled(&self) -> Error {
        self.error("not compiled into this build", &format!("build with `--features {}`", self.kind.name()))
    }

    fn error(&self, problem: &str, hint: &str) -> Error {
        Error::Backend { name: self.to_string(), problem: problem.into(), hint: hint.into() }
    }

    #[cfg(feature = "wgpu")]
    fn wgpu_device(&self) -> Result<cubecl::wgpu::WgpuDevice> {
        let adapters = wgpu::adapters();
        let mut all = adapters.iter().enumerate();
        let found = match self.which {
            Which::Best => all.next(),
            Which::Index(n) => all.nth(n),
            Which::Software => all.find(|(_, a)| a.software),
        };
        match found {
            Some((index, adapter)) => {
                if adapter.software && self.which == Which::Best {
                    log::warn!("wgpu found no GPU and computes in software on {}; `--backend flex` is faster", adapter.name);
                }
                let refused = |e: String| self.error(&format!("{} gives no device: {e}", adapter.name), "update the driver");
                wgpu::device(index, adapter).map_err(refused)
            }
            None if adapters.is_empty() => Err(self.error(
                "no Vulkan or Metal adapter found",
                "install the GPU's driver, or a software one (Debian: mesa-vulkan-drivers)",
            )),
            None => Err(self.error(&format!("there are {} adapters", adapters.len()), "`recua info` lists them")),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_device(&self) -> Result<cubecl::cuda::CudaDevice> {
        let devices = cuda::devices().map_err(|(problem, hint)| self.error(&problem, &hint))?;
        let index = match self.which {
            Which::Index(n) => n,
            _ => 0,
        };
        if index >= devices.len() {
            return Err(self.error(&format!("there are {} CUDA devices", devices.len()), "`recua info` lists them"));
        }
        cuda::keep_kernels(index);
        Ok(cubecl::cuda::CudaDevice { index })
    }
}

/// Compute capability of a CUDA device, major and minor. Asked once.
#[cfg(feature = "cuda")]
pub(crate) fn compute_capability(index: usize) -> Option<[i32; 2]> {
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex, PoisonError};

    static KNOWN: LazyLock<Mutex<HashMap<usize, Option<[i32; 2]>>>> = LazyLock::new(Default::default);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    *known.entry(index).or_insert_with(|| cuda::compute_capability(index))
}

/// A device that was found.
#[derive(Clone, Debug)]
pub(crate) enum OpenDevice {
    /// This process's own cores.
    Cpu,
    #[cfg(feature = "wgpu")]
    Wgpu(cubecl::wgpu::WgpuDevice),
    #[cfg(feature = "cuda")]
    Cuda(cubecl::cuda::CudaDevice),
}

impl OpenDevice {
    /// The thread on which CubeCL drives it.
    fn thread(&self) -> Option<DeviceThread> {
        #[cfg(feature = "cube")]
        use cubecl::device::Device as _;
        #[cfg(feature = "cube")]
        let of = |id: cubecl::device::DeviceId| Some([id.type_id, id.index_id]);
        match self {
            Self::Cpu => None,
            #[cfg(feature = "wgpu")]
            Self::Wgpu(device) => of(device.to_id()),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => of(device.to_id()),
        }
    }
}

/// Every device of a kind with its words, usable or not; where there is none, the kind with `none`.
pub(crate) fn devices_of(kind: Kind) -> Vec<(BackendName, String)> {
    let names = devices(kind);
    let single = BackendName { kind, which: Which::Best };
    if names.is_empty() || kind.is_cpu() {
        return vec![(single, names.into_iter().next().unwrap_or_else(|| "none".into()))];
    }
    names.into_iter().enumerate().map(|(n, device)| (BackendName { kind, which: Which::Index(n) }, device)).collect()
}

fn devices(kind: Kind) -> Vec<String> {
    match kind {
        Kind::Flex | Kind::NdArray if kind.compiled() => vec![format!("CPU, {} threads", rayon::current_num_threads())],
        #[cfg(feature = "wgpu")]
        Kind::Wgpu => wgpu::adapters().into_iter().map(|a| a.name).collect(),
        #[cfg(feature = "cuda")]
        Kind::Cuda => cuda::devices().unwrap_or_default(),
        _ => Vec::new(),
    }
}
