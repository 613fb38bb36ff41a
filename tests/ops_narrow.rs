//! Products of narrow weights on CPU: at every level that the CPU has, by packed weights and not, against float64 sums over the same
//! rounded rows and the widened blocks.

use std::sync::Arc;

use half::f16;
use recua::ops::narrow::{Level, product_at};
use recua::ops::{Dtype, Job, LlamaOps, WeightPart, blocks};

use crate::ops::random;

const TYPES: [Dtype; 6] = [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q5_0, Dtype::Q4_K, Dtype::Q5_K, Dtype::Q6_K];

/// Any bytes are blocks, but for their factors, which are made numbers of a weight's size.
fn weight(dtype: Dtype, seed: u64, [rows, width]: [usize; 2]) -> Vec<u8> {
    let (len, size) = dtype.block();
    let count = rows * width / len;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    let mut bytes: Vec<u8> = (0..count * size).map(|_| byte()).collect();
    let factors = random(seed ^ 1, 2 * count);
    for (block, factors) in bytes.chunks_exact_mut(size).zip(factors.chunks_exact(2)) {
        let [d, dmin] = [0, 1].map(|i| f16::from_f64(factors[i] * 0.02).to_le_bytes());
        let at = if dtype == Dtype::Q6_K { 208 } else { 0 };
        block[at..at + 2].copy_from_slice(&d);
        if matches!(dtype, Dtype::Q4_K | Dtype::Q5_K) {
            block[2..4].copy_from_slice(&dmin);
        }
    }
    bytes
}

fn floats(seed: u64, n: usize) -> Vec<f32> {
    random(seed, n).into_iter().map(|x| x as f32).collect()
}

/// A row as ggml rounds it on x86: codes times a factor of 16 bits, 32 at a time.
fn rounded(x: &[f32]) -> Vec<f64> {
    let block = |x: &[f32]| {
        let most = x.iter().fold(0f32, |most, x| most.max(x.abs()));
        let factor = if x.iter().all(|x| x.is_finite()) { f16::from_f32(most / 127.0).to_f64() } else { f64::NAN };
        let inverse = if most == 0.0 { 0.0 } else { 127.0 / most };
        x.iter().map(|x| f64::from((x * inverse).round_ties_even()) * factor).collect::<Vec<_>>()
    };
    x.chunks(32).flat_map(block).collect()
}

/// Differences relative to the sums of the terms' magnitudes: only the float32 sums of whole blocks are rounded.
const TOLERANCE: f64 = 1e-6;

fn assert_near(got: &[f32], x: &[f32], w: &[f32], width: usize, what: &str) {
    let columns = w.len() / width;
    for (got, x) in got.chunks_exact(columns).zip(x.chunks_exact(width)) {
        let x = rounded(x);
        for (got, w) in got.iter().zip(w.chunks_exact(width)) {
            let terms = || x.iter().zip(w).map(|(x, w)| x * f64::from(*w));
            let (sum, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
            if sum.is_nan() {
                assert!(got.is_nan(), "{what}: {got} where a row is not of numbers");
            } else {
                let error = (f64::from(*got) - sum).abs();
                assert!(error <= TOLERANCE * size, "{what}: {got}, not {sum}, of terms of {size}");
            }
        }
    }
}

/// Equal bits; any NaN is a NaN.
fn assert_same(a: &[f32], b: &[f32], what: &str) {
    let bits = |x: &f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
    assert_eq!(a.len(), b.len(), "{what}");
    let first = a.iter().zip(b).position(|(a, b)| bits(a) != bits(b));
    assert_eq!(first, None, "{what}: {:?} and {:?}", first.map(|i| a[i]), first.map(|i| b[i]));
}

/// `[rows, columns, blocks]`: around the tiles of every level, rows that are not whole fours of blocks or whole chunks.
fn shapes(dtype: Dtype) -> Vec<[usize; 3]> {
    let mut shapes = Vec::new();
    for rows in [1, 2, 3, 5, 8, 9, 12, 13, 40] {
        shapes.push([rows, 1 + (rows * 7) % 37, 1 + rows % 5]);
    }
    for columns in [1, 3, 4, 15, 16, 17, 31, 32, 33, 63, 70] {
        shapes.push([7, columns, 1 + columns % 6]);
        shapes.push([14, columns, 1 + columns % 6]);
    }
    let blocks = if dtype.block().0 == 32 { [31, 32, 33, 35, 36, 63, 65, 97] } else { [2, 3, 4, 5, 7, 8, 9, 12] };
    for blocks in blocks {
        shapes.push([1, 9, blocks]);
        shapes.push([4, 18, blocks]);
        shapes.push([19, 34, blocks]);
    }
    // More rows than sums are kept of at once.
    shapes.push([523, 5, 3]);
    shapes
}

#[test]
fn products_of_narrow_weights_agree_at_every_level() {
    let levels = Level::all();
    println!("{levels:?}");
    for (i, dtype) in TYPES.into_iter().enumerate() {
        for (j, [rows, columns, blocks]) in shapes(dtype).into_iter().enumerate() {
            let width = blocks * dtype.block().0;
            let seed = (1000 * i + j) as u64;
            let w = weight(dtype, seed, [columns, width]);
            let mut x = floats(seed, rows * width);
            if rows > 2 {
                // Zeros; numbers of very different sizes; a block of zeros beside others.
                x[width..2 * width].fill(0.0);
                x[2 * width..2 * width + 16].iter_mut().for_each(|x| *x *= 1e4);
                x[width - 32..width].fill(0.0);
            }
            let what = format!("{dtype} {rows} x {width} -> {columns}");
            let plain = product_at(Level::Plain, None, dtype, &x, &w, [rows, columns]);
            assert_near(&plain, &x, &blocks::widened(dtype, &w), width, &what);
            for &level in &levels {
                for packed in [false, true] {
                    let got = product_at(level, Some(packed), dtype, &x, &w, [rows, columns]);
                    assert_same(&got, &plain, &format!("{what}, {level:?}, packed: {packed}"));
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_other_rows_or_threads() {
    for dtype in TYPES {
        let width = if dtype.block().0 == 32 { 32 * 45 } else { 256 * 5 };
        let columns = 67;
        let w = weight(dtype, 5, [columns, width]);
        let x = floats(6, 40 * width);
        for level in Level::all() {
            let all = product_at(level, None, dtype, &x, &w, [40, columns]);
            for rows in [1, 2, 3, 4, 5, 8, 12, 13, 16, 25] {
                let some = product_at(level, None, dtype, &x[..rows * width], &w, [rows, columns]);
                assert_same(&some, &all[..rows * columns], &format!("{dtype} {level:?}, {rows} rows"));
            }
            for row in [1, 17, 39] {
                let one = product_at(level, None, dtype, &x[row * width..][..width], &w, [1, columns]);
                assert_same(&one, &all[row * columns..][..columns], &format!("{dtype} {level:?}, row {row}"));
            }
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let got = pool.install(|| product_at(level, None, dtype, &x, &w, [40, columns]));
                assert_same(&got, &all, &format!("{dtype} {level:?}, {threads} threads"));
            }
        }
    }
}

/// What is not a number shows in its own rows, and only there.
#[test]
fn rows_that_are_not_of_numbers_are_nan() {
    for dtype in TYPES {
        let width = 2 * dtype.block().0;
        let (rows, columns) = (14, 20);
        let w = weight(dtype, 8, [columns, width]);
        let clean = floats(9, rows * width);
        let mut x = clean.clone();
        for (row, bad) in [(1, f32::NAN), (4, f32::INFINITY), (7, f32::NEG_INFINITY), (13, -f32::NAN)] {
            x[row * width + 3 * row + 1] = bad;
        }
        for level in Level::all() {
            for packed in [false, true] {
                let (got, want) = (
                    product_at(level, Some(packed), dtype, &x, &w, [rows, columns]),
                    product_at(level, Some(packed), dtype, &clean, &w, [rows, columns]),
                );
                for row in 0..rows {
                    let (got, want) = (&got[row * columns..][..columns], &want[row * columns..][..columns]);
                    if [1, 4, 7, 13].contains(&row) {
                        assert!(got.iter().all(|x| x.is_nan()), "{dtype} {level:?} {packed} row {row}: {got:?}");
                    } else {
                        assert_same(got, want, &format!("{dtype} {level:?} {packed} row {row}"));
                    }
                }
            }
        }
    }
}

/// Numbers too small for a factor of 16 bits count as zeros, as in llama.cpp; the largest are not lost in silence.
#[test]
fn extremes_of_activations() {
    let width = 256;
    for dtype in TYPES {
        let w = weight(dtype, 3, [5, width]);
        for level in Level::all() {
            for (value, check) in [
                (1e-38f32, (|y| y == 0.0) as fn(f32) -> bool),
                (f32::MIN_POSITIVE / 8.0, |y| y == 0.0),
                (3e38, |y: f32| !y.is_finite()),
                (-1e30, |y: f32| !y.is_finite()),
            ] {
                let y = product_at(level, None, dtype, &vec![value; width], &w, [1, 5]);
                assert!(y.iter().all(|&y| check(y)), "{dtype} {level:?} {value}: {y:?}");
            }
        }
    }
}

/// Bytes in memory that is aligned to nothing.
fn shifted(bytes: &[u8]) -> bytes::Bytes {
    let mut room = vec![0; bytes.len() + 1];
    room[1..].copy_from_slice(bytes);
    bytes::Bytes::from(room).slice(1..)
}

struct Parts {
    parts: Arc<Vec<WeightPart>>,
    x: Vec<f32>,
    y: Vec<f32>,
    rows: usize,
    ids: Vec<i32>,
}

impl Job for Parts {
    type Output = [Vec<f32>; 3];
    fn run<B: LlamaOps>(self, device: B::Device) -> recua::Result<Self::Output> {
        use burn::tensor::{DType, Int, Tensor, TensorData, TensorPrimitive};
        let parts = B::take_weight(self.parts.to_vec(), &device);
        let of = |x: &[f32]| {
            let data = TensorData::new(x.to_vec(), [self.rows, x.len() / self.rows]);
            Tensor::<B, 2>::from_data(data, (&device, DType::F32)).into_primitive().tensor()
        };
        let read = |x| Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(x)).into_data().iter::<f32>().collect::<Vec<f32>>();
        let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(self.ids.clone(), [self.ids.len()]), &device).into_primitive();
        Ok([
            read(B::project_parts(of(&self.x), &parts, DType::F32)),
            read(B::project_parts_add(of(&self.y), of(&self.x), &parts)),
            read(B::embed_parts(ids, &parts, DType::F32)),
        ])
    }
}

/// A weight of parts of all types: its products stand side by side, are added to what is there, and its rows are embedded.
#[test]
fn parts_of_all_types_side_by_side() {
    let width = 512;
    for rows in [1, 3, 29] {
        let x = floats(1, rows * width);
        let mut parts = Vec::new();
        let (mut wide, mut product) = (Vec::new(), vec![Vec::new(); rows]);
        for (i, dtype) in Dtype::ALL.into_iter().enumerate() {
            let columns = [5, 36, 1, 40, 7, 33, 16, 9, 64][i];
            let bytes = if dtype.float().is_some() {
                blocks::narrowed(dtype, &floats(20 + i as u64, columns * width), width).unwrap()
            } else {
                weight(dtype, 20 + i as u64, [columns, width])
            };
            let widened = blocks::widened(dtype, &bytes);
            for (row, x) in x.chunks_exact(width).enumerate() {
                if dtype.float().is_some() {
                    // Rows too are bfloat16 where the weight is.
                    let read = |x: f32| if dtype == Dtype::BF16 { half::bf16::from_f32(x).to_f32() } else { x };
                    let dot = |w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(read(*x)) * f64::from(*w)).sum::<f64>() as f32;
                    product[row].extend(widened.chunks_exact(width).map(dot));
                } else {
                    product[row].extend(product_at(Level::Plain, None, dtype, x, &bytes, [1, columns]));
                }
            }
            wide.extend(widened);
            parts.push(WeightPart::host(dtype, [columns, width], shifted(&bytes)));
        }
        let product = product.concat();
        let y = floats(2, product.len());
        let ids = vec![0, (wide.len() / width) as i32 - 1, 100, 41, 100];
        for backend in ["flex", "ndarray"] {
            if !(cfg!(feature = "flex") && backend == "flex" || cfg!(feature = "ndarray") && backend == "ndarray") {
                continue;
            }
            let backend: recua::backend::BackendName = backend.parse().unwrap();
            let job = Parts { parts: Arc::new(parts.clone()), x: x.clone(), y: y.clone(), rows, ids: ids.clone() };
            let [got, added, embedded] = backend.run(job).unwrap();
            let columns = product.len() / rows;
            let exact: Vec<bool> =
                Dtype::ALL.iter().zip([5, 36, 1, 40, 7, 33, 16, 9, 64]).flat_map(|(d, n)| vec![d.float().is_none(); n]).collect();
            for (i, (got, want)) in got.iter().zip(&product).enumerate() {
                if exact[i % columns] {
                    assert_eq!(got.to_bits(), want.to_bits(), "{backend}: {rows} rows, {i}: {got}, not {want}");
                } else {
                    assert!((got - want).abs() < 1e-4, "{backend}: {rows} rows, {i}: {got}, not {want}");
                }
            }
            let sums: Vec<f32> = got.iter().zip(&y).map(|(a, b)| b + a).collect();
            let near = added.iter().zip(&sums).all(|(a, b)| (a - b).abs() <= 1e-5);
            assert!(near, "{backend}: products added to rows");
            let want: Vec<f32> = ids.iter().flat_map(|&id| wide[id as usize * width..][..width].to_vec()).collect();
            assert_same(&embedded, &want, &format!("{backend}: embedding"));
        }
    }
}
