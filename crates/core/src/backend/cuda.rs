//! NVIDIA's driver, asked directly: what is there before CubeCL is started, which panics where something is missing; and where
//! CubeCL keeps its compiled kernels.

use std::ffi::{CStr, c_char, c_int};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, cache::CacheConfig};
use libloading::{Library, Symbol};
use xxhash_rust::xxh3::xxh3_64;

/// A problem, and what to do.
type Missing = (String, String);

type Ints = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;

fn open(names: &[&str]) -> Option<Library> {
    // SAFETY: loading the vendor's driver and compiler libraries runs their initialisers, which have no preconditions.
    names.iter().find_map(|name| unsafe { Library::new(name) }.ok())
}

fn driver() -> Result<Library, Missing> {
    open(&["libcuda.so.1", "libcuda.so", "nvcuda.dll"])
        .ok_or_else(|| ("no NVIDIA driver found (libcuda.so.1)".into(), "install the NVIDIA driver, 580 or later".into()))
}

/// Names of the CUDA devices, or what is missing and what to get. Loading the libraries here keeps a missing one from
/// panicking inside the runtime.
pub(super) fn devices() -> Result<Vec<String>, Missing> {
    let driver = driver()?;
    if open(&["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]).is_none() {
        return Err((
            "no NVRTC found (libnvrtc.so)".into(),
            "install CUDA's nvrtc (also as the package nvidia-cuda-nvrtc) and put its folder on LD_LIBRARY_PATH".into(),
        ));
    }
    let roots = [std::env::var("CUDA_PATH").unwrap_or_default(), "/usr/local/cuda".into(), "/opt/cuda".into()];
    if !roots.iter().any(|root| Path::new(root).join("include/cuda_runtime.h").exists()) {
        return Err((
            "no CUDA headers found (include/cuda_runtime.h)".into(),
            "set CUDA_PATH to a folder whose include/ has CUDA's runtime headers".into(),
        ));
    }
    // SAFETY: the signatures are those of the CUDA driver API; the buffer outlives the calls and is 256 bytes as stated.
    unsafe {
        let symbol_error =
            |e: libloading::Error| (format!("the NVIDIA driver lacks a function: {e}"), "update the driver".to_string());
        let init: Symbol<unsafe extern "C" fn(u32) -> c_int> = driver.get(b"cuInit").map_err(symbol_error)?;
        let count: Symbol<unsafe extern "C" fn(*mut c_int) -> c_int> = driver.get(b"cuDeviceGetCount").map_err(symbol_error)?;
        let name: Symbol<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int> =
            driver.get(b"cuDeviceGetName").map_err(symbol_error)?;
        let mut n = 0;
        let status = init(0);
        if status != 0 || count(&mut n) != 0 || n == 0 {
            return Err((format!("no CUDA device found (cuInit gave {status})"), "check that nvidia-smi lists a GPU".into()));
        }
        Ok((0..n)
            .map(|i| {
                let mut buffer: [c_char; 256] = [0; 256];
                if name(buffer.as_mut_ptr(), 256, i) != 0 {
                    return "unknown".into();
                }
                CStr::from_ptr(buffer.as_ptr()).to_string_lossy().into_owned()
            })
            .collect())
    }
}

/// Memory of a device in bytes.
pub(super) fn memory(index: usize) -> Option<u64> {
    devices().ok()?;
    let driver = driver().ok()?;
    // SAFETY: `devices` has initialised the driver; the signatures are those of the CUDA driver API.
    unsafe {
        let device: Symbol<Ints> = driver.get(b"cuDeviceGet").ok()?;
        let total: Symbol<unsafe extern "C" fn(*mut usize, c_int) -> c_int> = driver.get(b"cuDeviceTotalMem_v2").ok()?;
        let (mut handle, mut bytes) = (0, 0);
        (device(&mut handle, index as c_int) == 0 && total(&mut bytes, handle) == 0).then_some(bytes as u64)
    }
}

/// A device's compute capability, major and minor.
pub(super) fn compute_capability(index: usize) -> Option<[c_int; 2]> {
    versions(index).map(|[_, major, minor]| [major, minor])
}

/// The driver's version and a device's compute capability.
fn versions(index: usize) -> Option<[c_int; 3]> {
    let driver = driver().ok()?;
    // SAFETY: the driver has been initialised by `devices`; the signatures are those of the CUDA driver API.
    unsafe {
        let version: Symbol<unsafe extern "C" fn(*mut c_int) -> c_int> = driver.get(b"cuDriverGetVersion").ok()?;
        let device: Symbol<Ints> = driver.get(b"cuDeviceGet").ok()?;
        let attribute: Symbol<unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int> =
            driver.get(b"cuDeviceGetAttribute").ok()?;
        let (mut handle, [mut of_driver, mut major, mut minor]) = (0, [0; 3]);
        // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        let asked = version(&mut of_driver) == 0
            && device(&mut handle, index as c_int) == 0
            && attribute(&mut major, 75, handle) == 0
            && attribute(&mut minor, 76, handle) == 0;
        asked.then_some([of_driver, major, minor])
    }
}

/// Where kernels are kept, of all programs: `RECUA_KERNELS`, else in the user's cache. `None`: not to be kept.
fn kernels_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    match set("RECUA_KERNELS") {
        Some(value) if value == "off" => None,
        Some(folder) => Some(folder.into()),
        None => {
            let home = || set("HOME").map(|home| Path::new(&home).join(".cache"));
            let cache = set("XDG_CACHE_HOME").or_else(|| set("LOCALAPPDATA")).map(PathBuf::from).or_else(home)?;
            Some(cache.join("recua").join("kernels"))
        }
    }
}

/// This program's kernels for a device. CubeCL knows a kernel by its type's name and its numbers, neither by its code nor by the
/// device (cubecl-runtime: id.rs, `stable_hash`), so that a folder belongs to one program, driver and compute capability.
fn folder_for(index: usize) -> Option<PathBuf> {
    let [driver, major, minor] = versions(index)?;
    let program = std::fs::File::open(std::env::current_exe().ok()?).ok()?;
    // SAFETY: a program that runs is not written to.
    let program = xxh3_64(&unsafe { memmap2::Mmap::map(&program) }.ok()?);
    Some(kernels_folder()?.join(format!("{program:016x}-{driver}-sm{major}{minor}")))
}

/// Folders of programs that were built anew long ago.
fn forget_old(root: &Path) {
    const OLD: Duration = Duration::from_secs(30 * 24 * 3600);
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        // Nothing else that somebody may keep there.
        let ours = entry.file_name().to_str().is_some_and(|name| name.len() > 16 && name.contains("-sm"));
        let used = entry.path().join("used");
        let age = used.metadata().and_then(|m| m.modified()).ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        if ours && age.is_some_and(|age| age > OLD) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Lets CubeCL keep the compiled kernels of a device, before it starts there. A `cubecl.toml` that says where goes first.
pub(super) fn keep_kernels(index: usize) {
    let mut config = CubeClRuntimeConfig::storage().lock();
    // A place of ours is changed for another device, one of the user's is not.
    let ours = |cache: &CacheConfig| matches!(cache, CacheConfig::File(path) if path.join("used").exists());
    let mut new = match &*config {
        Some(config) => CubeClRuntimeConfig::clone(config),
        None => CubeClRuntimeConfig::from_current_dir().override_from_env(),
    };
    if new.compilation.cache.as_ref().is_some_and(|cache| !ours(cache)) {
        return;
    }
    new.compilation.cache = None;
    if let Some(folder) = folder_for(index) {
        // CubeCL panics where it cannot write.
        match std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(folder.join("used"), "")) {
            Ok(()) => {
                if let Some(root) = folder.parent() {
                    forget_old(root);
                }
                new.compilation.cache = Some(CacheConfig::File(folder));
            }
            Err(e) => log::warn!("compiled kernels are not kept: {}: {e}; RECUA_KERNELS names another folder", folder.display()),
        }
    }
    *config = Some(new.into());
}
