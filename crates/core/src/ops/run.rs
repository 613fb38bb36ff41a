//! Generic code on a backend that is chosen at run time.

// Without a backend there is nothing to run on.
#![cfg_attr(not(any(feature = "cpu", feature = "cube")), allow(unused))]

use super::LlamaOps;
use crate::backend::{AttentionKernel, BackendName, DeviceContext, Kind, OpenDevice, devices_of};
use crate::error::Result;

/// Code that runs on any backend: what [`DeviceContext::run`] takes (closures cannot be generic).
pub trait Job {
    /// What it gives back.
    type Output;
    /// Runs on a backend's device.
    ///
    /// # Errors
    /// The job's own.
    fn run<B: LlamaOps>(self, device: B::Device) -> Result<Self::Output>;
}

impl DeviceContext {
    /// Runs a job on the context's device, inside of [`DeviceContext::enter`].
    ///
    /// # Errors
    /// [`crate::Error::Backend`] if the device failed; else the job's.
    pub fn run<J: Job>(&self, job: J) -> Result<J::Output> {
        self.enter(|| match (&self.device, self.name().kind()) {
            #[cfg(feature = "flex")]
            (OpenDevice::Cpu, Kind::Flex) => job.run::<crate::backend::Flex>(Default::default()),
            #[cfg(feature = "ndarray")]
            (OpenDevice::Cpu, Kind::NdArray) => job.run::<crate::backend::NdArray>(Default::default()),
            #[cfg(feature = "wgpu")]
            (OpenDevice::Wgpu(device), _) => job.run::<crate::backend::Wgpu>(device.clone()),
            #[cfg(feature = "cuda")]
            (OpenDevice::Cuda(device), _) => job.run::<crate::backend::Cuda>(device.clone()),
            _ => Err(self.name().not_compiled()),
        })
    }
}

impl BackendName {
    /// Opens the device and runs one job there.
    ///
    /// # Errors
    /// Those of [`BackendName::open`] and [`DeviceContext::run`].
    pub fn run<J: Job>(&self, job: J) -> Result<J::Output> {
        self.open()?.run(job)
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
        self.run(Ask(vocab)).unwrap_or_else(|_| super::loss::rows_for(vocab))
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
        match self.kind() {
            Kind::Flex | Kind::NdArray => None,
            Kind::Wgpu => self.run(Ask).ok().flatten(),
            Kind::Cuda => memory.map(|memory| memory / 4),
        }
    }
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
                let kernels: Vec<_> = AttentionKernel::ALL.iter().map(|a| a.name()).collect();
                ops += &format!("\nchoices: gemm {}; attention {}", all.join(", "), kernels.join(", "));
            }
            Ok((dtypes.collect(), ops))
        }
    }
    let mut rows = Vec::new();
    for (name, device) in Kind::ALL.into_iter().flat_map(devices_of) {
        let (usable, dtypes, ops, missing) = match name.run(Describe) {
            Ok((dtypes, ops)) => (true, dtypes, ops, None),
            Err(e) => (false, Vec::new(), String::new(), Some(e.to_string())),
        };
        rows.push(BackendInfo { name: name.to_string(), device, usable, dtypes, ops, missing });
    }
    rows
}
