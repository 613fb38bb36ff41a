//! Where the arithmetic runs: `flex` and `ndarray` (CPU), `wgpu`, `cuda`, chosen at run time by name.
//!
//! The only place that names a concrete backend. Generic code is a [`Job`]; [`BackendName::run`] runs it on the backend that
//! the name says, after making sure that it is compiled in and has a device.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
#[cfg(feature = "cube")]
use crate::fault;
use crate::ops::{Attention, LlamaOps};

#[cfg(feature = "cuda")]
mod cuda;

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
    /// GPUs through Vulkan, Metal or DirectX 12.
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

/// Code that runs on any backend: what [`BackendName::run`] takes (closures cannot be generic).
pub trait Job {
    /// What it gives back.
    type Output;
    /// Runs on a backend's device.
    ///
    /// # Errors
    /// The job's own.
    fn run<B: LlamaOps>(self, device: B::Device) -> Result<Self::Output>;
}

impl BackendName {
    /// The kind of backend.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Runs a job on this backend.
    ///
    /// # Errors
    /// [`Error::Backend`] if it is not compiled in, has no device or driver, or failed on the way; else the job's.
    pub fn run<J: Job>(&self, job: J) -> Result<J::Output> {
        match self.kind {
            #[cfg(feature = "flex")]
            Kind::Flex => job.run::<Flex>(Default::default()),
            #[cfg(feature = "ndarray")]
            Kind::NdArray => job.run::<NdArray>(Default::default()),
            #[cfg(feature = "wgpu")]
            Kind::Wgpu => {
                let device = self.wgpu_device()?;
                self.guarded(|| job.run::<Wgpu>(device))
            }
            #[cfg(feature = "cuda")]
            Kind::Cuda => {
                let device = self.cuda_device()?;
                self.guarded(|| job.run::<Cuda>(device))
            }
            #[allow(unreachable_patterns)]
            kind => Err(self.error("not compiled into this build", &format!("build with `--features {}`", kind.name()))),
        }
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

    /// Rows whose logits the loss holds at once on this backend; see [`LlamaOps::logit_rows`].
    pub fn logit_rows(&self, vocab: usize) -> usize {
        struct Ask(usize);
        impl Job for Ask {
            type Output = usize;
            fn run<B: LlamaOps>(self, _: B::Device) -> Result<usize> {
                Ok(B::logit_rows(self.0))
            }
        }
        // A backend that is not here is planned for all the same.
        self.run(Ask(vocab)).unwrap_or_else(|_| crate::ops::loss::rows_for(vocab))
    }

    /// Bytes of the largest page of the device's memory pool, where it has one: on CUDA a fourth of its memory (`memory`; it need not
    /// be here), on wgpu the largest buffer that the device binds.
    pub fn largest_page(&self, memory: Option<u64>) -> Option<u64> {
        struct Ask;
        impl Job for Ask {
            type Output = Option<u64>;
            fn run<B: LlamaOps>(self, device: B::Device) -> Result<Option<u64>> {
                Ok(B::largest_page(&device))
            }
        }
        match self.kind {
            Kind::Flex | Kind::NdArray => None,
            Kind::Wgpu => self.run(Ask).ok().flatten(),
            Kind::Cuda => memory.map(|memory| memory / 4),
        }
    }

    /// A failure of the device is an error, however it shows.
    #[cfg(feature = "cube")]
    fn guarded<T>(&self, job: impl FnOnce() -> Result<T>) -> Result<T> {
        let hint = "`recua selftest` checks the device; a training goes on from its last checkpoint with --resume";
        fault::guarded(job, |problem| self.error(&format!("the device failed: {problem}"), hint))
    }

    /// Bytes that products need beside their operands: on CPU the blocks of operands that `gemm` packs, some 6 MiB a thread.
    pub fn product_bytes(&self) -> u64 {
        match self.kind {
            Kind::Flex | Kind::NdArray => (rayon::current_num_threads() as u64) * (6 << 20),
            Kind::Wgpu | Kind::Cuda => 0,
        }
    }

    fn error(&self, problem: &str, hint: &str) -> Error {
        Error::Backend { name: self.to_string(), problem: problem.into(), hint: hint.into() }
    }

    #[cfg(feature = "wgpu")]
    fn wgpu_device(&self) -> Result<cubecl::wgpu::WgpuDevice> {
        let adapters = wgpu_adapters();
        let found = match self.which {
            Which::Best => adapters.first(),
            Which::Index(n) => adapters.get(n),
            Which::Software => adapters.iter().find(|a| a.software),
        };
        match found {
            Some(adapter) => {
                if adapter.software && self.which == Which::Best {
                    log::warn!("wgpu found no GPU and computes in software on {}; `--backend flex` is faster", adapter.name);
                }
                Ok(adapter.device.clone())
            }
            None if adapters.is_empty() => Err(self.error(
                "no Vulkan, Metal or DirectX 12 adapter found",
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

/// A wgpu adapter, best first.
#[cfg(feature = "wgpu")]
struct Adapter {
    name: String,
    software: bool,
    device: cubecl::wgpu::WgpuDevice,
}

#[cfg(feature = "wgpu")]
fn wgpu_adapters() -> Vec<Adapter> {
    use cubecl::wgpu::{AutoGraphicsApi, GraphicsApi, WgpuDevice};
    use wgpu::DeviceType;

    let backend = AutoGraphicsApi::backend();
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backend.into();
    let instance = wgpu::Instance::new(descriptor);
    let mut counts = [0usize; 3];
    let mut next = |slot: usize| {
        counts[slot] += 1;
        counts[slot] - 1
    };
    let mut all: Vec<(u8, Adapter)> = cubecl::future::block_on(instance.enumerate_adapters(backend.into()))
        .into_iter()
        .map(|adapter| {
            let info = adapter.get_info();
            let (rank, device) = match info.device_type {
                DeviceType::DiscreteGpu => (0, WgpuDevice::DiscreteGpu(next(0))),
                DeviceType::IntegratedGpu => (1, WgpuDevice::IntegratedGpu(next(1))),
                DeviceType::VirtualGpu => (2, WgpuDevice::VirtualGpu(next(2))),
                DeviceType::Other => (3, WgpuDevice::DefaultDevice),
                DeviceType::Cpu => (4, WgpuDevice::Cpu),
            };
            (rank, Adapter { name: format!("{} ({:?})", info.name, info.backend), software: rank == 4, device })
        })
        .collect();
    all.sort_by_key(|(rank, _)| *rank); // stable: the driver's order within a kind
    all.into_iter().map(|(_, adapter)| adapter).collect()
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

/// One line of `recua info`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct BackendInfo {
    /// The name to pass as `--backend`.
    pub name: String,
    /// The device, in words.
    pub device: String,
    /// Whether it can be used now.
    pub usable: bool,
    /// Data types that it computes in.
    pub dtypes: Vec<String>,
    /// Which body each operation of [`LlamaOps`] runs.
    pub ops: String,
    /// If not usable: what is missing.
    pub missing: Option<String>,
}

/// Every backend and device, usable or not.
pub fn list() -> Vec<BackendInfo> {
    struct Describe;
    impl Job for Describe {
        type Output = (Vec<String>, String);
        fn run<B: LlamaOps>(self, device: B::Device) -> Result<Self::Output> {
            use burn::tensor::DType::{BF16, F16, F32, F64};
            let dtypes = [(F32, "float32"), (BF16, "bfloat16"), (F16, "float16"), (F64, "float64")]
                .into_iter()
                .filter(|(dtype, _)| B::supports_dtype(&device, *dtype))
                .map(|(_, name)| name.to_string());
            let mut ops = B::bodies().to_string();
            let gemms = B::gemms(&device);
            if !gemms.is_empty() {
                let all: Vec<_> = gemms
                    .into_iter()
                    .map(|(gemm, missing)| missing.map_or(gemm.to_string(), |why| format!("{gemm} (not here: {why})")))
                    .collect();
                let kernels: Vec<_> = Attention::ALL.iter().map(|a| a.name()).collect();
                ops += &format!("\nchoices: gemm {}; attention {}", all.join(", "), kernels.join(", "));
            }
            Ok((dtypes.collect(), ops))
        }
    }
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        let names = devices(kind);
        let single = BackendName { kind, which: Which::Best };
        let entries: Vec<(BackendName, String)> = if names.is_empty() || kind.is_cpu() {
            vec![(single, names.into_iter().next().unwrap_or_else(|| "none".into()))]
        } else {
            names.into_iter().enumerate().map(|(n, device)| (BackendName { kind, which: Which::Index(n) }, device)).collect()
        };
        for (name, device) in entries {
            let (usable, dtypes, ops, missing) = match name.run(Describe) {
                Ok((dtypes, ops)) => (true, dtypes, ops, None),
                Err(e) => (false, Vec::new(), String::new(), Some(e.to_string())),
            };
            rows.push(BackendInfo { name: name.to_string(), device, usable, dtypes, ops, missing });
        }
    }
    rows
}

fn devices(kind: Kind) -> Vec<String> {
    match kind {
        Kind::Flex | Kind::NdArray if kind.compiled() => vec![format!("CPU, {} threads", rayon::current_num_threads())],
        #[cfg(feature = "wgpu")]
        Kind::Wgpu => wgpu_adapters().into_iter().map(|a| a.name).collect(),
        #[cfg(feature = "cuda")]
        Kind::Cuda => cuda::devices().unwrap_or_default(),
        _ => Vec::new(),
    }
}
