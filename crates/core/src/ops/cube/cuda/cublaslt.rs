//! cuBLASLt, loaded when it is first asked for: NVIDIA's own matrix products.
//!
//! By hand and not through `cudarc`: its `cublaslt` is off in CubeCL's build, so that it would compile CubeCL's CUDA part anew,
//! and its functions panic where the library is missing. The functions and numbers are those of `cublasLt.h`, which have been the
//! same since CUDA 11; `cudarc-0.19.10/src/cublaslt/sys/mod.rs` lists them.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

use burn::tensor::DType;
use libloading::Library;

/// Declares a struct of functions and how they are found in a library, which then stays loaded.
macro_rules! functions {
    ($(#[$doc:meta])* $name:ident { $($field:ident = $symbol:literal ($($argument:ty),*);)* }) => {
        $(#[$doc])*
        pub(super) struct $name {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) -> std::ffi::c_int,)*
        }

        impl $name {
            /// # Errors
            /// The function that the library lacks.
            ///
            /// # Safety
            /// The library must be one whose functions of these names have these signatures.
            pub(super) unsafe fn load(library: libloading::Library) -> Result<Self, String> {
                let found = Self {
                    // SAFETY: as the caller says.
                    $($field: unsafe { *library.get($symbol).map_err(|e| e.to_string())? },)*
                };
                std::mem::forget(library); // the pointers stay valid
                Ok(found)
            }
        }
    };
}
pub(super) use functions;

type Handle = *mut c_void;

functions! {
    /// The part of the library that is used.
    Api {
        create = b"cublasLtCreate" (*mut Handle);
        describe = b"cublasLtMatmulDescCreate" (*mut Handle, c_int, c_int);
        set = b"cublasLtMatmulDescSetAttribute" (Handle, c_int, *const c_void, usize);
        forget = b"cublasLtMatmulDescDestroy" (Handle);
        layout = b"cublasLtMatrixLayoutCreate" (*mut Handle, c_int, u64, u64, i64);
        forget_layout = b"cublasLtMatrixLayoutDestroy" (Handle);
        prefer = b"cublasLtMatmulPreferenceCreate" (*mut Handle);
        set_preference = b"cublasLtMatmulPreferenceSetAttribute" (Handle, c_int, *const c_void, usize);
        forget_preference = b"cublasLtMatmulPreferenceDestroy" (Handle);
        choose = b"cublasLtMatmulAlgoGetHeuristic"
            (Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Choice, *mut c_int);
        multiply = b"cublasLtMatmul" (
            Handle, Handle, *const c_void, *const c_void, Handle, *const c_void, Handle, *const c_void, *const c_void, Handle,
            *mut c_void, Handle, *const c_void, *mut c_void, usize, *mut c_void
        );
    }
}

const NAMES: [&str; 5] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so", "cublasLt64_13.dll", "cublasLt64_12.dll"];

/// The library.
///
/// # Errors
/// What is missing, and where to get it.
pub(super) fn api() -> Result<&'static Api, String> {
    static API: OnceLock<Result<Api, String>> = OnceLock::new();
    let load = || {
        // SAFETY: loading NVIDIA's library runs its initialisers, which have no preconditions.
        let library = NAMES.iter().find_map(|name| unsafe { Library::new(name) }.ok()).ok_or(
            "libcublasLt is not found: put the folder of CUDA's libraries on LD_LIBRARY_PATH (pip: nvidia-cublas), or choose \
             another `gemm`",
        )?;
        // SAFETY: the signatures are those of cublasLt.h.
        unsafe { Api::load(library) }.map_err(|e| format!("libcublasLt lacks a function: {e}"))
    };
    API.get_or_init(load).as_ref().map_err(Clone::clone)
}

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Choice {
    algorithm: [u64; 8],
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

/// A matrix: transposed or not, as rows of this many elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Side {
    /// Whether its columns, and not its rows, lie side by side.
    pub(super) transposed: bool,
    /// From one row (column, if transposed) to the next, elements.
    pub(super) stride: usize,
    /// Its address is a multiple of this, bytes.
    pub(super) align: u32,
}

/// A kind of product: `[m, k] x [k, n]`, row-major, of one narrow type as another, plus what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) size: [usize; 3],
    pub(super) a: Side,
    pub(super) b: Side,
    pub(super) y: Side,
    pub(super) operands: DType,
    pub(super) out: DType,
    pub(super) accumulate: bool,
}

/// Bytes of workspace that a product may use: NVIDIA's advice for compute capability 9.
pub(super) const WORKSPACE: usize = 32 << 20;

/// `cudaDataType_t`
fn data_type(dtype: DType) -> Result<c_int, String> {
    match dtype {
        DType::F32 => Ok(0),
        DType::F16 => Ok(2),
        DType::BF16 => Ok(14),
        _ => Err(format!("no products of {dtype:?}")),
    }
}

fn check(what: &str, status: c_int) -> Result<(), String> {
    let meaning = match status {
        0 => return Ok(()),
        1 => "not initialized",
        3 => "out of memory",
        7 => "invalid value",
        8 => "architecture mismatch",
        11 => "mapping error",
        13 => "execution failed",
        14 => "internal error",
        15 => "not supported",
        _ => "unknown",
    };
    Err(format!("cuBLASLt: {what}: status {status} ({meaning})"))
}

/// One of the library's objects.
struct Object {
    pointer: Handle,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: made by the library, and destroyed once, by the function of its kind.
        unsafe { (self.destroy)(self.pointer) };
    }
}

/// How a kind of product is made.
struct ProductPlan {
    operation: Object,
    layouts: [Object; 3],
    choice: Choice,
}

/// The library on one device; belongs to the thread that uses it.
pub(super) struct CublasLt {
    api: &'static Api,
    handle: Handle,
    plans: HashMap<Key, ProductPlan>,
}

impl CublasLt {
    /// On the device whose context is current.
    pub(super) fn new() -> Result<Self, String> {
        let api = api()?;
        let mut handle = null_mut();
        // SAFETY: fills in the handle.
        check("create", unsafe { (api.create)(&mut handle) })?;
        Ok(Self { api, handle, plans: HashMap::new() })
    }

    /// `y = a b`, or `y += a b`, on a stream. Returns the bytes of workspace that it takes.
    ///
    /// # Errors
    /// The kind of product is not supported, or cannot be launched.
    ///
    /// # Safety
    /// The addresses are of device memory of the current context, as large and as aligned as `key` says and of `workspace.1` bytes,
    /// and stay until the stream has come past this product. The stream is one of the context's.
    pub(super) unsafe fn product(
        &mut self,
        key: Key,
        [a, b, y]: [u64; 3],
        workspace: (u64, usize),
        stream: *mut c_void,
    ) -> Result<usize, String> {
        if !self.plans.contains_key(&key) {
            let plan = self.plan(key)?;
            self.plans.insert(key, plan);
        }
        let plan = &self.plans[&key];
        if plan.choice.workspace > workspace.1 {
            return Err(format!("cuBLASLt wants {} bytes of workspace, not {}", plan.choice.workspace, workspace.1));
        }
        let (alpha, beta) = (1.0f32, if key.accumulate { 1.0f32 } else { 0.0 });
        let [first, second, out] = plan.layouts.each_ref().map(|l| l.pointer);
        let number = |x: &f32| std::ptr::from_ref(x).cast::<c_void>();
        // The library's matrices are column-major: y^T = b^T a^T.
        // SAFETY: objects of this library; the rest as the caller says.
        let status = unsafe {
            (self.api.multiply)(
                self.handle,
                plan.operation.pointer,
                number(&alpha),
                b as *const c_void,
                first,
                a as *const c_void,
                second,
                number(&beta),
                y as *const c_void,
                out,
                y as *mut c_void,
                out,
                plan.choice.algorithm.as_ptr().cast(),
                workspace.0 as *mut c_void,
                plan.choice.workspace,
                stream,
            )
        };
        check("product", status)?;
        Ok(plan.choice.workspace)
    }

    fn plan(&self, key: Key) -> Result<ProductPlan, String> {
        let api = self.api;
        let [m, n, k] = key.size.map(|n| n as u64);
        let mut pointer = null_mut();
        // SAFETY: fills in the pointer. 68: CUBLAS_COMPUTE_32F, 0: factors in float32.
        check("describe", unsafe { (api.describe)(&mut pointer, 68, 0) })?;
        let operation = Object { pointer, destroy: api.forget };
        // CUBLASLT_MATMUL_DESC_TRANSA, _TRANSB; CUBLAS_OP_N is 0, CUBLAS_OP_T 1. A row-major matrix is a column-major one that is
        // transposed already.
        for (attribute, side) in [(3, key.b), (4, key.a)] {
            let transposed = c_int::from(side.transposed);
            // SAFETY: the attribute is an int.
            let status = unsafe { (api.set)(operation.pointer, attribute, (&raw const transposed).cast(), size_of::<c_int>()) };
            check("transpose", status)?;
        }
        let layout = |dtype, [rows, columns]: [u64; 2], side: Side| {
            let (rows, columns) = if side.transposed { (columns, rows) } else { (rows, columns) };
            let mut pointer = null_mut();
            // SAFETY: fills in the pointer.
            let status = unsafe { (api.layout)(&mut pointer, data_type(dtype)?, rows, columns, side.stride as i64) };
            check("layout", status)?;
            Ok::<_, String>(Object { pointer, destroy: api.forget_layout })
        };
        let layouts =
            [layout(key.operands, [n, k], key.b)?, layout(key.operands, [k, m], key.a)?, layout(key.out, [n, m], key.y)?];
        let mut pointer = null_mut();
        // SAFETY: fills in the pointer.
        check("preference", unsafe { (api.prefer)(&mut pointer) })?;
        let preference = Object { pointer, destroy: api.forget_preference };
        let prefer = |attribute, value: *const c_void, bytes| {
            // SAFETY: the value is of the attribute's type, of this many bytes.
            check("preference", unsafe { (api.set_preference)(preference.pointer, attribute, value, bytes) })
        };
        // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
        let workspace = WORKSPACE as u64;
        prefer(1, (&raw const workspace).cast(), size_of::<u64>())?;
        // CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: parts of a sum are added in float32 and in order, so that equal inputs give
        // equal bits (CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE).
        let scheme = 2u32;
        prefer(3, (&raw const scheme).cast(), size_of::<u32>())?;
        // CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_{A,B,C,D}_BYTES
        for (attribute, align) in [(5, key.b.align), (6, key.a.align), (7, key.y.align), (8, key.y.align)] {
            prefer(attribute, (&raw const align).cast(), size_of::<u32>())?;
        }
        let none = Choice { algorithm: [0; 8], workspace: 0, state: 0, waves: 0.0, reserved: [0; 4] };
        let (mut choice, mut found) = (none, 0);
        let [first, second, out] = layouts.each_ref().map(|l| l.pointer);
        // SAFETY: objects of this library; one result at most is written.
        let status = unsafe {
            (api.choose)(self.handle, operation.pointer, first, second, out, out, preference.pointer, 1, &mut choice, &mut found)
        };
        check("choice of a kernel", status)?;
        if found < 1 {
            return Err("cuBLASLt has no kernel for it".into());
        }
        check("choice of a kernel", choice.state)?;
        Ok(ProductPlan { operation, layouts, choice })
    }
}
