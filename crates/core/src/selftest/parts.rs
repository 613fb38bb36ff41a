//! Weights in types of files: products by parts and rows of them, each type by itself and mixed, and their bytes back.

use burn::tensor::{DType, Int, Tensor, TensorData};

use super::cases::Input;
use super::{Checks, Output, draw};
use crate::backend::Gemm;
use crate::ops::blocks::{narrowed, widened};
use crate::ops::{Dtype, LlamaOps, WeightPart};

/// Bytes of `rows` of `width` elements: any codes, with factors of either sign, some of them below float16's normal numbers.
pub(super) fn bytes_of(dtype: Dtype, seed: u64, [rows, width]: [usize; 2]) -> Vec<u8> {
    if dtype.float().is_some() {
        return narrowed(dtype, &draw(seed, rows * width), width).expect("a float type takes any values");
    }
    let (len, size) = dtype.block();
    let blocks = rows * width / len;
    let mut bytes: Vec<u8> = draw(seed, blocks * size).iter().map(|u| (u * 128.0) as i8 as u8).collect();
    // Whole numbers that codes are multiplied with, roughly: so that elements are about 1.
    let (places, most): (&[usize], f32) = match dtype {
        Dtype::Q8_0 => (&[0], 127.0),
        Dtype::Q4_0 => (&[0], 8.0),
        Dtype::Q5_0 => (&[0], 16.0),
        Dtype::Q4_K => (&[0, 2], 64.0 * 15.0),
        Dtype::Q5_K => (&[0, 2], 64.0 * 31.0),
        _ => (&[208], 128.0 * 32.0),
    };
    let factors = draw(seed + 1, blocks * places.len());
    for (i, block) in bytes.chunks_exact_mut(size).enumerate() {
        for (j, &at) in places.iter().enumerate() {
            let factor = factors[i * places.len() + j] / most;
            let factor = if i % 7 == 3 { factor / 1024.0 } else { factor };
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(factor).to_le_bytes());
        }
    }
    bytes
}

/// Whole weights of a type, and of several: rows and types, one part below the other.
fn weights(rows: usize, width: usize) -> Vec<(String, Vec<(Dtype, usize)>)> {
    let fits = |dtype: &Dtype| width.is_multiple_of(dtype.block().0);
    let mut all: Vec<_> =
        Dtype::ALL.into_iter().filter(fits).map(|dtype| (dtype.to_string(), vec![(dtype, rows), (dtype, 3)])).collect();
    // As of queries, keys and values.
    let mixed: [&[Dtype]; 3] = [
        &[Dtype::Q4_K, Dtype::Q4_K, Dtype::Q6_K],
        &[Dtype::Q8_0, Dtype::F16, Dtype::Q4_0],
        &[Dtype::BF16, Dtype::F32, Dtype::Q5_0, Dtype::Q5_0],
    ];
    for dtypes in mixed {
        if dtypes.iter().all(fits) {
            let names: Vec<String> = dtypes.iter().map(Dtype::to_string).collect();
            all.push((names.join("+"), dtypes.iter().enumerate().map(|(i, dtype)| (*dtype, rows + i)).collect()));
        }
    }
    all
}

/// What rounding there is beside float32's sums, relative to a sum's terms.
fn rounded<B: LlamaOps>(n: usize, parts: &[(Dtype, usize)], device: &B::Device, checks: &Checks<'_>) -> f64 {
    let on_cpu = checks.tolerance.device == 1.0;
    if parts.iter().all(|(dtype, _)| dtype.float().is_some()) {
        // On CPU rows are rounded to bfloat16 before products with such weights: half a unit of 8 significant bits.
        return if on_cpu && parts.iter().any(|(dtype, _)| *dtype == Dtype::BF16) { 1.0 / 512.0 } else { 0.0 };
    }
    let has = |gemm| B::gemms(device).into_iter().any(|(found, missing)| found == gemm && missing.is_none());
    match () {
        // The rows as whole numbers of 8 bits.
        () if on_cpu => 1.0 / 64.0,
        // Both operands in bfloat16.
        () if n > 8 && B::supports_dtype(device, DType::BF16) && (has(Gemm::CyclicCmma) || has(Gemm::CyclicMma)) => 1.0 / 128.0,
        () => 0.0,
    }
}

pub(super) fn check<B: LlamaOps>([n, width, rows]: [usize; 3], device: &B::Device, checks: &mut Checks<'_>) {
    let x = Input::new(1, &[n, width], 1.0);
    for (name, of) in weights(rows, width) {
        let host: Vec<WeightPart> = of
            .iter()
            .enumerate()
            .map(|(i, &(dtype, rows))| {
                WeightPart::host(dtype, [rows, width], bytes_of(dtype, 10 * i as u64, [rows, width]).into())
            })
            .collect();
        let values: Vec<f64> = host.iter().flat_map(|part| widened(part.dtype, &part.bytes::<B>())).map(f64::from).collect();
        let columns = values.len() / width;
        // Each result and the sum of its terms' magnitudes, to which its error is relative.
        let y = Input::new(3, &[n, columns], 1.0);
        let (mut want, mut terms) = (Vec::new(), Vec::new());
        for x in x.values.chunks_exact(width) {
            for w in values.chunks_exact(width) {
                let products = || x.iter().zip(w).map(|(x, w)| f64::from(*x) * w);
                want.push(products().sum::<f64>());
                terms.push(products().map(f64::abs).sum::<f64>() + 1e-30);
            }
        }
        let relative = |output: Output, terms: &[f64]| Output {
            got: output.got.iter().zip(terms).map(|(x, t)| (f64::from(*x) / t) as f32).collect(),
            want: output.want.iter().zip(terms).map(|(x, t)| x / t).collect(),
            scale: 1.0,
        };
        let shape = format!("{n} x {width} -> {columns}");
        let tolerance = checks.tolerance.sum(width) + rounded::<B>(n, &of, device, checks);
        checks.row(&format!("project_parts {name}"), &shape, tolerance, || {
            let joined = B::take_weight(host.clone(), device);
            let apart: Vec<WeightPart> = host.iter().flat_map(|part| B::take_weight(vec![part.clone()], device)).collect();
            [joined, apart]
                .map(|parts| relative(Output::new::<B>(B::project_parts(x.at::<B>(device), &parts, DType::F32), &want), &terms))
                .into()
        });
        checks.row(&format!("project_parts_add {name}"), &shape, tolerance, || {
            let parts = B::take_weight(host.clone(), device);
            let sums: Vec<f64> = want.iter().zip(y.f64()).map(|(a, b)| a + b).collect();
            let terms: Vec<f64> = terms.iter().zip(y.f64()).map(|(a, b)| a + b.abs()).collect();
            let shared = y.at::<B>(device);
            let got = B::project_parts_add(shared.clone(), x.at::<B>(device), &parts);
            vec![relative(Output::new::<B>(got, &sums), &terms), Output::new::<B>(shared, &y.f64())]
        });
        let ids: Vec<usize> = (0..n + 2).map(|i| [0, columns - 1, i * 7919 % columns][i.min(2)]).collect();
        let picked: Vec<f64> = ids.iter().flat_map(|id| &values[id * width..(id + 1) * width]).copied().collect();
        checks.row(&format!("embed_parts {name}"), &shape, checks.tolerance.sum(1), || {
            let data = TensorData::new(ids.iter().map(|id| *id as i32).collect::<Vec<_>>(), [ids.len()]);
            let ids = Tensor::<B, 1, Int>::from_data(data, device).into_primitive();
            let parts = B::take_weight(host.clone(), device);
            vec![Output::new::<B>(B::embed_parts(ids, &parts, DType::F32), &picked)]
        });
        checks.row(&format!("weight_bytes {name}"), &shape, 0.0, || {
            let were: Vec<u8> = host.iter().flat_map(|part| part.bytes::<B>().into_owned()).collect();
            let parts = B::take_weight(host.clone(), device);
            let are: Vec<u8> = parts.iter().flat_map(|part| B::weight_bytes(part)).collect();
            let got = are.iter().map(|b| f32::from(*b)).collect();
            vec![Output { got, want: were.iter().map(|b| f64::from(*b)).collect(), scale: 0.0 }]
        });
    }
}
