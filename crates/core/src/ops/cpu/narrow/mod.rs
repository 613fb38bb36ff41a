//! `y = x W^T` by weights of blocks, as they are in the file. Each row of `x` is rounded once to whole numbers of 8 bits, a factor for each
//! 32, and multiplied as whole numbers, exactly; the sums of 32 products are added as float32 in one order: sum `p` of four takes the blocks
//! `b % 4 == p` one after the other, and `((s0 + s1) + s2) + s3` is the result. So a row's result depends on the row and the weight
//! alone, to the bit, and is the same at every level of the CPU and for any number of rows.

/// An array of what an expression gives for each index. A closure would be compiled without the features of the function that it is in.
#[cfg(target_arch = "x86_64")]
macro_rules! array {
    ($n:expr, $zero:expr, $i:ident => $value:expr) => {{
        let mut all = [$zero; $n];
        let mut $i = 0;
        while $i < $n {
            all[$i] = $value;
            $i += 1;
        }
        all
    }};
}
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod few;
#[cfg(target_arch = "x86_64")]
mod many;
#[cfg(target_arch = "x86_64")]
mod many_avx2;
#[cfg(target_arch = "x86_64")]
mod many_wide;
mod plain;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
mod rounded;
#[cfg(target_arch = "x86_64")]
mod wide;

use std::mem::MaybeUninit;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::super::Dtype;
use super::attention::Rows;
use rounded::{BLOCK, Few, Many, Rounded};

/// What a type's blocks of 32 have beside a factor.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A constant that is taken off each code.
    Offset(i32),
    /// A number that is taken off each element.
    Mins,
    /// A constant, and a whole factor for each 16.
    Halves(i32),
}

impl Kind {
    const fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Q8_0 => Self::Offset(128),
            Dtype::Q4_0 => Self::Offset(8),
            Dtype::Q5_0 => Self::Offset(16),
            Dtype::Q6_K => Self::Halves(32),
            _ => Self::Mins,
        }
    }
}

/// Some columns of a product.
#[derive(Clone, Copy)]
struct Stripe<'a> {
    dtype: Dtype,
    /// The weight's rows of these columns.
    w: &'a [u8],
    columns: usize,
    /// Bytes of a row of the weight.
    row_bytes: usize,
    /// The first element of the output.
    out: *mut f32,
    /// How far the output's rows lie apart.
    width: usize,
    /// The product is added to what is there.
    add: bool,
}

impl Stripe<'_> {
    /// A row of the weight.
    fn row(&self, column: usize) -> &[u8] {
        &self.w[column * self.row_bytes..][..self.row_bytes]
    }

    /// # Safety
    /// The element is the stripe's, and nobody else's.
    #[inline(always)]
    unsafe fn put(&self, row: usize, column: usize, value: f32) {
        // SAFETY: the caller's promise.
        unsafe {
            let at = self.out.add(row * self.width + column);
            *at = if self.add { *at + value } else { value };
        }
    }
}

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust.
    Plain,
    /// AVX2.
    Avx2,
    /// AVX2 and AVX-VNNI.
    AvxVnni,
    /// AVX-512 with VNNI and VBMI.
    Avx512,
}

impl Level {
    /// Those that this CPU has.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Plain];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if super::lanes::level() >= 1 {
                all.push(Self::Avx2);
                if has!("avxvnni") {
                    all.push(Self::AvxVnni);
                }
            }
            if super::lanes::level() == 2 && has!("avx512vnni") && has!("avx512vbmi") {
                all.push(Self::Avx512);
            }
        }
        all
    }

    /// Rows from which on a weight is packed first.
    fn packed_from(self) -> usize {
        match self {
            Self::Avx512 => 33,
            _ => 8,
        }
    }

    fn best() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| *Self::all().last().unwrap_or(&Self::Plain))
    }
}

/// Rows of `x` in the form in which stripes read them.
pub(super) struct Activations {
    level: Level,
    rows: usize,
    blocks: usize,
    form: Form,
}

enum Form {
    /// As they are rounded, and for few rows and AVX-512 as each type reads them, by [`Dtype::ALL`].
    Rows(Rounded, [OnceLock<Few>; Dtype::ALL.len()]),
    /// For packed weights.
    Many(Many),
}

/// A weight of blocks and where its product goes.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) dtype: Dtype,
    pub(super) w: &'a [u8],
    pub(super) rows: usize,
    /// The first column of the output.
    pub(super) first: usize,
}

impl Activations {
    pub(super) fn new(x: &[f32], rows: usize) -> Self {
        Self::at(x, rows, Level::best(), None)
    }

    /// At a level, and by a packed weight or not.
    pub(super) fn at(x: &[f32], rows: usize, level: Level, packed: Option<bool>) -> Self {
        let blocks = x.len() / rows.max(1) / BLOCK;
        let packed = packed.unwrap_or(rows >= level.packed_from()) && level != Level::Plain && blocks > 0;
        let form = if packed { Form::Many(Many::new(x, rows)) } else { Form::Rows(Rounded::new(x, rows), Default::default()) };
        Self { level, rows, blocks, form }
    }

    /// `out [rows, width] (+)= x w^T` for the columns of all parts.
    ///
    /// # Panics
    /// If sizes do not fit.
    pub(super) fn product(&self, parts: &[Part<'_>], out: &mut [MaybeUninit<f32>], width: usize, add: bool) {
        if self.rows == 0 {
            return;
        }
        let mut stripes = Vec::new();
        let threads = rayon::current_num_threads();
        assert_eq!(out.len(), self.rows * width, "an output of another size");
        let out = Rows::new(out);
        for part in parts {
            let row_bytes = part.dtype.bytes(self.blocks * BLOCK).expect("rows of whole blocks");
            assert!(part.w.len() == part.rows * row_bytes && part.first + part.rows <= width, "a part of another size");
            let wide = match &self.form {
                Form::Many(x) => {
                    x.extra(part.dtype);
                    32
                }
                Form::Rows(x, few) => {
                    if self.level == Level::Avx512 {
                        few[part.dtype as usize].get_or_init(|| Few::new(x, Kind::of(part.dtype)));
                    }
                    part.rows.div_ceil(threads * 4).next_multiple_of(4)
                }
            };
            for from in (0..part.rows).step_by(wide.max(1)) {
                stripes.push((part, from, wide.min(part.rows - from), row_bytes));
            }
        }
        stripes.into_par_iter().for_each(|(part, from, columns, row_bytes)| {
            let w = &part.w[from * row_bytes..][..columns * row_bytes];
            // SAFETY: inside of the output, as was checked; a stripe writes its own columns only.
            let out = unsafe { out.pointer().add(part.first + from) }.cast::<f32>();
            // SAFETY: so the stripes' columns are theirs alone; what is added to has been written.
            unsafe { self.stripe(&Stripe { dtype: part.dtype, w, columns, row_bytes, out, width, add }) };
        });
    }

    /// # Safety
    /// The stripe's columns are nobody else's, and have been written if they are added to.
    unsafe fn stripe(&self, s: &Stripe<'_>) {
        match &self.form {
            Form::Many(x) => match self.level {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the caller's promise; the level is one that this CPU has, here and below.
                Level::Avx512 => unsafe { many_wide::stripe(x, s) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Level::AvxVnni => unsafe { many_avx2::stripe_vnni(x, s) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Level::Avx2 => unsafe { many_avx2::stripe(x, s) },
                _ => unreachable!("a level that packs nothing"),
            },
            Form::Rows(x, few) => match (self.level, few[s.dtype as usize].get()) {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                (Level::Avx512, Some(x)) => unsafe { few::stripe(x, s) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                (Level::AvxVnni, _) => unsafe { avx2::stripe_vnni(x, s) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                (Level::Avx2, _) => unsafe { avx2::stripe(x, s) },
                _ => plain::stripe(x, s),
            },
        }
    }
}

/// `x [rows, k] w [columns, k]^T` at a level, by a packed weight or not: for tests, which compare them.
#[doc(hidden)]
pub fn product_at(
    level: Level,
    packed: Option<bool>,
    dtype: Dtype,
    x: &[f32],
    w: &[u8],
    [rows, columns]: [usize; 2],
) -> Vec<f32> {
    assert!(Level::all().contains(&level), "a level that this CPU has not");
    let mut out = vec![0f32; rows * columns];
    // SAFETY: floats are also maybe initialised ones, and only floats are written.
    let room = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast::<MaybeUninit<f32>>(), out.len()) };
    Activations::at(x, rows, level, packed).product(&[Part { dtype, w, rows: columns, first: 0 }], room, columns, false);
    out
}
