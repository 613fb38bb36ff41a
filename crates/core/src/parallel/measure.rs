//! Measures the collective operations between ranks: how fast tensors cross, and whether they come right.

use std::time::Instant;

use burn::tensor::{DType, Tensor, TensorData};
use serde::Serialize;

use super::collectives::Collectives;
use super::mesh::Mesh;
use crate::backend::DeviceContext;
use crate::error::{Error, Result};
use crate::ops::{Job, LlamaOps, primitive, tensor};

/// An operation of one size and type, measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Ranks.
    pub ranks: usize,
    /// `all_reduce`, `reduce_scatter`, `all_gather`.
    pub operation: &'static str,
    /// `f32` or `bf16`.
    pub dtype: &'static str,
    /// Of the larger side: what is summed, or what has been gathered.
    pub bytes: usize,
    /// Seconds of one operation, of a row that follow each other.
    pub seconds: f64,
    /// What crosses each rank's link a second, GB: of `S` bytes on `n` ranks `2 (n - 1) / n * S` for an all-reduce, half for its halves.
    pub bus_gb_s: f64,
    /// Elements that came wrong, of all ranks' results this one's.
    pub wrong: usize,
}

/// Elements of a row; a size is a number of rows.
const WIDTH: usize = 256;

/// Measures all operations at these sizes (bytes of float32, made a multiple of ranks and rows), `repeats` in a row. Every rank calls it; each
/// gives what it saw.
///
/// # Errors
/// [`Error::Communication`]; [`Error::Backend`].
pub fn measure(context: &DeviceContext, mesh: &Mesh, sizes: &[usize], repeats: usize) -> Result<Vec<Measured>> {
    struct Measure<'a>(&'a Mesh, &'a [usize], usize);
    impl Job for Measure<'_> {
        type Output = Vec<Measured>;
        fn run<B: LlamaOps>(self, device: B::Device) -> Result<Vec<Measured>> {
            let Self(mesh, sizes, repeats) = self;
            let group = mesh.data_collectives::<B>();
            let mut all = Vec::new();
            for bytes in sizes {
                for (dtype, name) in [(DType::F32, "f32"), (DType::BF16, "bf16")] {
                    if !B::supports_dtype(&device, dtype) {
                        continue;
                    }
                    let rows = (bytes / (4 * WIDTH * group.size())).max(1) * group.size();
                    for operation in ["all_reduce", "reduce_scatter", "all_gather"] {
                        // Whoever is late is not what is measured.
                        mesh.world().barrier().wait()?;
                        all.push(one::<B>(group.as_ref(), &device, (dtype, name), operation, rows, repeats)?);
                    }
                }
            }
            Ok(all)
        }
    }
    context.run(Measure(mesh, sizes, repeats))
}

/// What a rank gives: small whole numbers, whose sums are exact in every type.
fn given(rank: usize, i: usize) -> f32 {
    ((i + rank) % 5) as f32
}

fn one<B: LlamaOps>(
    group: &dyn Collectives<B>,
    device: &B::Device,
    (dtype, name): (DType, &'static str),
    operation: &'static str,
    rows: usize,
    repeats: usize,
) -> Result<Measured> {
    let (ranks, rank, n) = (group.size(), group.rank(), rows * WIDTH);
    let own = match operation {
        "all_gather" => n / ranks,
        _ => n,
    };
    let data = TensorData::new((0..own).map(|i| given(rank, i)).collect::<Vec<_>>(), [own / WIDTH, WIDTH]);
    let x = Tensor::<B, 2>::from_data(data, (device, dtype));
    let call = || {
        let x = primitive(x.clone());
        match operation {
            "all_reduce" => group.all_reduce(x),
            "reduce_scatter" => group.reduce_scatter(x),
            _ => group.all_gather(x),
        }
    };
    let synced = |what: &str| {
        B::sync(device).map_err(|e| Error::Backend {
            name: B::name(device),
            problem: format!("{what}: {e:?}"),
            hint: "`recua selftest` checks the device".into(),
        })
    };
    let result = tensor::<B, 2>(call().wait()?).into_data().convert::<f32>();
    let result = result.to_vec::<f32>().map_err(|e| Error::internal(operation, format!("{e:?}")))?;
    let sum = |i: usize| (0..ranks).map(|rank| given(rank, i)).sum::<f32>();
    let expected = |i: usize| match operation {
        "all_reduce" => sum(i),
        "reduce_scatter" => sum(rank * (n / ranks) + i),
        _ => given(i / own, i % own),
    };
    let wrong = result.iter().enumerate().filter(|(i, x)| **x != expected(*i)).count();
    synced("before measuring")?;
    let began = Instant::now();
    for _ in 0..repeats {
        drop(call().wait()?);
    }
    synced("after measuring")?;
    let seconds = began.elapsed().as_secs_f64() / repeats.max(1) as f64;
    let (bytes, n) = (n * dtype.size(), ranks as f64);
    let halves = if operation == "all_reduce" { 2.0 } else { 1.0 };
    let bus_gb_s = halves * (n - 1.0) / n * bytes as f64 / seconds * 1e-9;
    Ok(Measured { ranks, operation, dtype: name, bytes, seconds, bus_gb_s, wrong })
}
