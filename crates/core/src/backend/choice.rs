//! Which of several kernels compute an operation on CUDA and wgpu: settings of a [`DeviceContext`](super::DeviceContext). Other
//! backends have one body each.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A setting with named values, of which the first is the default.
macro_rules! choice {
    (
        $(#[$doc:meta])* $name:ident, $what:literal,
        $(#[$default_doc:meta])* $default:ident = $default_text:literal,
        $($(#[$value_doc:meta])* $value:ident = $text:literal,)*
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $(#[$default_doc])*
            #[default]
            #[serde(rename = $default_text)]
            $default,
            $(
                $(#[$value_doc])*
                #[serde(rename = $text)]
                $value,
            )*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[Self::$default, $(Self::$value),*];

            /// Its name in a configuration.
            pub fn name(self) -> &'static str {
                match self {
                    Self::$default => $default_text,
                    $(Self::$value => $text,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|x| x.name() == text).ok_or_else(|| {
                    let names: Vec<_> = Self::ALL.iter().map(|x| x.name()).collect();
                    format!(concat!("`{}` is no ", $what, "; take one of {}"), text, names.join(", "))
                })
            }
        }
    };
}

choice! {
    /// The routine for matrix products of narrower types than float32 (float32 is always computed on the units, in float32). One
    /// that the device or the operands do not allow is an error, but for `Auto`.
    Gemm, "way to multiply matrices",
    /// The first of `CublasLt`, `TmaMma`, `CyclicMma`, `CyclicCmma` and `Unit` that the device and the operands allow.
    Auto = "auto",
    /// NVIDIA's cuBLASLt (CUDA; libcublasLt).
    CublasLt = "cublaslt",
    /// CUDA C++ of our own, bfloat16: tensor cores by `wgmma` on compute capability 9.0, by `mma` on others.
    Wgmma = "wgmma",
    /// cubek's: tensor cores by `mma`, tiles read by TMA (compute capability 9 and later).
    TmaMma = "tma-mma",
    /// cubek's: tensor cores by `mma`.
    CyclicMma = "cyclic-mma",
    /// cubek's: tensor cores by `wmma`.
    CyclicCmma = "cyclic-cmma",
    /// cubek's: no tensor cores.
    Unit = "unit",
    /// Whatever Burn would choose.
    Burn = "burn",
}

choice! {
    /// The kernels for attention over a packed projection.
    AttentionKernel, "kernel for attention",
    /// Those in CUDA C++ where they can be, else those in CubeCL.
    Auto = "auto",
    /// Those in CUDA C++ (tensor cores; bfloat16, heads of a multiple of 16 up to 128); an error where they cannot be.
    Raw = "raw",
    /// Those in CubeCL (float32 on the units; any type and width).
    CubeCl = "cubecl",
}

/// What is chosen for the jobs of a context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// The routine for matrix products.
    pub gemm: Gemm,
    /// The kernels for attention.
    pub attention: AttentionKernel,
}
