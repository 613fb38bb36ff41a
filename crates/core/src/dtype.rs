//! Element types of weights, in files and in inference.

use std::fmt;

use burn::tensor::DType;

use crate::error::Error;

/// How a weight's elements are stored, by ggml's names. Bytes are little-endian everywhere. The types from `Q8_0` on are blocks of
/// elements of a row with factors of their own (see [`blocks`](crate::ops::blocks)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types)]
pub enum Dtype {
    /// IEEE single precision, 4 bytes.
    F32,
    /// IEEE half precision, 2 bytes.
    F16,
    /// The upper half of a single, 2 bytes.
    BF16,
    /// 32 whole numbers of 8 bits, one factor: 8.5 bits an element.
    Q8_0,
    /// 32 of 4 bits, one factor: 4.5 bits.
    Q4_0,
    /// 32 of 5 bits, one factor: 5.5 bits.
    Q5_0,
    /// 256 of 4 bits, factor and offset for each 32: 4.5 bits.
    Q4_K,
    /// 256 of 5 bits, factor and offset for each 32: 5.5 bits.
    Q5_K,
    /// 256 of 6 bits, a factor for each 16: 6.5625 bits.
    Q6_K,
}

impl Dtype {
    /// All of them.
    pub const ALL: [Self; 9] =
        [Self::F32, Self::F16, Self::BF16, Self::Q8_0, Self::Q4_0, Self::Q5_0, Self::Q4_K, Self::Q5_K, Self::Q6_K];

    /// Elements and bytes of a block; of a float type, of an element.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
            Self::Q5_0 => (32, 22),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        }
    }

    /// Bytes of `elements` of a row; `None` where they are not whole blocks, or more than can be.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        let (len, bytes) = self.block();
        elements.is_multiple_of(len).then(|| (elements / len).checked_mul(bytes)).flatten()
    }

    /// A float type as Burn names it.
    pub fn float(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::BF16 => Some(DType::BF16),
            _ => None,
        }
    }

    /// PyTorch's name of a float type: `float32`, `float16`, `bfloat16`.
    pub fn torch_name(self) -> Option<&'static str> {
        match self {
            Self::F32 => Some("float32"),
            Self::F16 => Some("float16"),
            Self::BF16 => Some("bfloat16"),
            _ => None,
        }
    }

    /// ggml's name, as `F32` or `Q4_K`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q5_0 => "Q5_0",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Dtype {
    type Err = Error;

    /// Takes ggml's names and PyTorch's `float32 float16 bfloat16`, in either case.
    fn from_str(s: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|dtype| {
            dtype.name().eq_ignore_ascii_case(s) || dtype.torch_name().is_some_and(|name| name.eq_ignore_ascii_case(s))
        });
        let names = || Self::ALL.map(|dtype| dtype.name().to_ascii_lowercase()).join(", ");
        found.ok_or_else(|| {
            Error::bad_value("dtype", format!("`{s}` is no element type of weights"), format!("choose one of {}", names()))
        })
    }
}
