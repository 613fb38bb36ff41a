//! Does this backend compute right on this machine? Every operation of [`LlamaOps`] against float64 ([`mod@reference`]), and
//! a tiny LLaMA against Hugging Face's (`assets/selftest`). For a new card, driver or kernel: `recua selftest`.
//!
//! An error is the largest difference in a tensor, in parts of the tensor's largest magnitude.

mod attention;
mod cached;
mod cases;
mod composed;
mod golden;
mod narrow;
mod parts;
pub mod reference;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensor;

use crate::backend::{BackendName, DeviceContext, context};
use crate::error::Result;
use crate::fault;
use crate::ops::{self, Job, LlamaOps, tensor};

pub use cached::CacheShape;
pub use cases::{Case, cases};

/// Half a unit in the last place of float32, relative: the error of one rounding.
const ROUNDING: f64 = 1.0 / (1 << 24) as f64;

/// How far a result may be from float64's. One place for all tolerances.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Factor on all of them. CPU: 1. Devices behind a shader compiler: 4, since WGSL and CUDA promise division, roots and
    /// exponentials to 2 to 4 units in the last place (and more with the magnitude of an exponent), a CPU to half of one.
    pub device: f64,
}

impl Tolerance {
    /// For a kind of backend.
    pub fn of(backend: &BackendName) -> Self {
        Self { device: if backend.kind().is_cpu() { 1.0 } else { 4.0 } }
    }

    /// A result of sums of `terms` float32 products. Roundings are independent, so that an error grows as the root of their
    /// number; 16 stands for the element-wise steps around a sum and for the worst of many elements. A TF32 product (inputs
    /// rounded to 11 bits: 8192 roundings) or a 12-bit reciprocal is two orders of magnitude outside.
    pub fn sum(self, terms: usize) -> f64 {
        ROUNDING * (16.0 + (terms as f64).sqrt()) * self.device
    }

    /// A softmax of scores whose log-sum-exp is up to `magnitude`, around sums of `terms` products: an exponential turns the
    /// rounding of its argument, which is of the argument's size, into a relative error. Four such: score, scale, log-sum-exp,
    /// their difference.
    pub fn softmax(self, terms: usize, magnitude: f64) -> f64 {
        self.sum(terms) + ROUNDING * 4.0 * magnitude * self.device
    }

    /// The golden case's two layers: some 16 operations in a row with independent errors make the root of their number times
    /// one's; the longest sum is 88.
    pub fn model(self) -> f64 {
        4.0 * self.sum(88)
    }

    /// After some steps of training: AdamW divides a gradient by its own magnitude, so that a weight whose gradient is small
    /// against its rounding moves differently by up to the learning rate. Few do.
    pub fn trained(self) -> f64 {
        4.0 * self.model()
    }
}

/// Which checks are made, by their names and sizes as they are printed.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Those with one of these in their line. Empty: all.
    pub only: Vec<String>,
    /// But for those with one of these.
    pub skip: Vec<String>,
}

impl Filter {
    fn takes(&self, line: &str) -> bool {
        let has = |texts: &[String]| texts.iter().any(|text| line.contains(text.as_str()));
        (self.only.is_empty() || has(&self.only)) && !has(&self.skip)
    }
}

/// The outcome of one check.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Row {
    /// The method of [`LlamaOps`]; `autodiff NAME`: the same under `Autodiff`, with its gradients; `golden ...`.
    pub name: String,
    /// Sizes, in words.
    pub shape: String,
    /// Largest difference, in parts of the largest magnitude; not a number if there was no result.
    pub max_error: f64,
    /// What is allowed.
    pub tolerance: f64,
    /// Whether `max_error` is at most `tolerance`.
    pub passed: bool,
    /// Wall-clock time, with the compilation of kernels that run for the first time.
    pub seconds: f64,
    /// Why there was no result (an error, a panic of the driver, a result that is not finite or of another size), or where it differs.
    pub problem: Option<String>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed { "ok" } else { "FAILED" };
        let Self { name, shape, max_error, tolerance, seconds, .. } = self;
        write!(f, "{verdict:<6}  {name:<30}  {shape:<36}  {max_error:>9.2e}  {tolerance:>9.2e}  {seconds:>7.3} s")?;
        if let Some(problem) = &self.problem {
            write!(f, "  {problem}")?;
        }
        Ok(())
    }
}

/// Checks a backend: all operations, then the golden case. `seen` gets each row as it is done. A check that fails is a row
/// with `passed: false`, whether its result is off or the device breaks down; the other checks still run.
///
/// # Errors
/// [`crate::Error::Backend`] if the backend cannot be used at all.
pub fn run(context: &DeviceContext, filter: &Filter, seen: &mut dyn FnMut(&Row)) -> Result<Vec<Row>> {
    run_cases(context, &cases(), Tolerance::of(&context.name()), filter, seen)
}

/// [`run`] with cases and tolerances of one's own.
///
/// # Errors
/// As [`run`].
pub fn run_cases(
    context: &DeviceContext,
    cases: &[Case],
    tolerance: Tolerance,
    filter: &Filter,
    seen: &mut dyn FnMut(&Row),
) -> Result<Vec<Row>> {
    struct All<'a>(&'a [Case], Tolerance, &'a Filter, &'a mut dyn FnMut(&Row));
    impl Job for All<'_> {
        type Output = Vec<Row>;
        fn run<B: LlamaOps>(self, device: B::Device) -> Result<Vec<Row>> {
            Ok(run_on::<B>(&device, self.0, self.1, self.2, self.3))
        }
    }
    context.run(All(cases, tolerance, filter, seen))
}

/// [`run_cases`] on a backend that has no [`BackendName`].
pub fn run_on<B: LlamaOps>(
    device: &B::Device,
    cases: &[Case],
    tolerance: Tolerance,
    filter: &Filter,
    seen: &mut dyn FnMut(&Row),
) -> Vec<Row> {
    let mut checks = Checks { rows: Vec::new(), tolerance, filter, seen };
    for case in cases {
        case.check::<B>(device, &mut checks);
    }
    checks.rows
}

/// A tensor of the backend's, read back, and what it should be.
struct Output {
    got: Vec<f32>,
    want: Vec<f64>,
    /// Magnitude that the error is relative to, where the tensor's own is less: a gradient that is zero by cancellation keeps
    /// the rounding of what cancelled.
    scale: f64,
}

impl Output {
    fn new<B: LlamaOps>(got: FloatTensor<B>, want: &[f64]) -> Self {
        let n = got.shape().num_elements();
        let data = tensor::<B, 1>(B::float_reshape(got, [n].into())).into_data().convert::<f32>();
        Self { got: data.iter::<f32>().collect(), want: want.to_vec(), scale: 0.0 }
    }

    fn scale(self, scale: f64) -> Self {
        Self { scale, ..self }
    }

    /// The largest error; and where it is more than `tolerance`, what differs.
    fn compare(&self, tolerance: f64) -> std::result::Result<(f64, Option<String>), String> {
        if self.got.len() != self.want.len() {
            return Err(format!("{} elements, expected {}", self.got.len(), self.want.len()));
        }
        if let Some(i) = self.got.iter().position(|x| !x.is_finite()) {
            return Err(format!("element {i} is {}, expected {}", self.got[i], self.want[i]));
        }
        let scale = match magnitude(&self.want).max(self.scale) {
            scale if scale > 0.0 => scale,
            _ => 1.0,
        };
        let error = |(g, w): (&f32, &f64)| (f64::from(*g) - w).abs() / scale;
        let errors = || self.got.iter().zip(&self.want).map(error);
        let first = errors().position(|error| error > tolerance).map(|i| {
            let (bad, all) = (errors().filter(|error| *error > tolerance).count(), self.got.len());
            format!("{bad} of {all} elements differ, first element {i}: got {}, expected {}", self.got[i], self.want[i])
        });
        Ok((errors().fold(0.0, f64::max), first))
    }
}

/// Largest magnitude.
fn magnitude(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |m, x| m.max(x.abs()))
}

struct Checks<'a> {
    rows: Vec<Row>,
    tolerance: Tolerance,
    filter: &'a Filter,
    seen: &'a mut dyn FnMut(&Row),
}

impl Checks<'_> {
    /// One row: runs `outputs`, which computes on the device.
    fn row(&mut self, name: &str, shape: &str, tolerance: f64, outputs: impl FnOnce() -> Vec<Output>) {
        self.row_unless_refused(name, shape, tolerance, false, outputs);
    }

    /// [`Checks::row`]; with `may`, no row where a product is refused by the routine chosen for it.
    fn row_unless_refused(&mut self, name: &str, shape: &str, tolerance: f64, may: bool, outputs: impl FnOnce() -> Vec<Output>) {
        if !self.filter.takes(&format!("{name}  {shape}")) {
            return;
        }
        let start = Instant::now();
        // CubeCL and the drivers under it report what they cannot do by panicking; the rest of the table is still wanted.
        let result = match catch_unwind(AssertUnwindSafe(outputs)) {
            Ok(outputs) => outputs.iter().try_fold((0.0, None), |(worst, first): (f64, Option<String>), output| {
                let (error, problem) = output.compare(tolerance)?;
                Ok((worst.max(error), first.or(problem)))
            }),
            Err(panic) => Err(format!("panicked: {}", fault::message(&*panic))),
        };
        // What a device's own thread saw counts, whatever came out.
        let result = context::faults().clear().map_or(result, Err);
        if may && result.as_ref().is_err_and(|problem| problem.contains(ops::REFUSED)) {
            return;
        }
        let (max_error, problem) = match result {
            Ok((error, problem)) => (error, problem),
            Err(problem) => (f64::NAN, Some(problem)),
        };
        let passed = max_error <= tolerance;
        let seconds = start.elapsed().as_secs_f64();
        let row = Row { name: name.into(), shape: shape.into(), max_error, tolerance, passed, seconds, problem };
        (self.seen)(&row);
        self.rows.push(row);
    }
}

/// Numbers in [-1, 1) from a seed, exact in float32: the upper 16 bits of SplitMix64 (Steele et al. 2014).
/// `assets/selftest/generate.py` has the same.
fn draw(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (((z ^ (z >> 31)) >> 48) as f32 - 32768.0) / 32768.0
    };
    (0..n).map(|_| next()).collect()
}
