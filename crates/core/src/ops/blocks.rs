//! Converts weights between their bytes in files and float32: the float types, and ggml's quantised blocks. A block is a run of a row's
//! elements with factors of its own; see [`Dtype::block`].

use half::{bf16, f16};
use rayon::prelude::*;

use super::Dtype;
use crate::error::{Error, Result};

/// Blocks, or float elements, that a thread takes in turn.
const AT_ONCE: usize = 1 << 12;

/// The elements as float32, exact. What is not a whole block at the end is left out.
pub fn widened(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let (len, size) = dtype.block();
    let mut out = vec![0.0; bytes.len() / size * len];
    out.par_chunks_mut(AT_ONCE * len).zip(bytes.par_chunks(AT_ONCE * size)).for_each(|(out, bytes)| widen(dtype, bytes, out));
    out
}

/// [`widened`] into `out`, on this thread.
///
/// # Panics
/// If the bytes are not those of `out.len()` elements.
pub fn widen(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    let (len, size) = dtype.block();
    assert_eq!((bytes.len() / size * len, bytes.len() % size), (out.len(), 0), "elements of another number");
    let each = |block: fn(&[u8], &mut [f32]), out: &mut [f32]| {
        for (out, bytes) in out.chunks_exact_mut(len).zip(bytes.chunks_exact(size)) {
            block(bytes, out);
        }
    };
    match dtype {
        Dtype::F32 => each(|b, out| out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]), out),
        Dtype::F16 => each(|b, out| out[0] = half_at(b, 0), out),
        Dtype::BF16 => each(|b, out| out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(), out),
        Dtype::Q8_0 => each(q8_0, out),
        Dtype::Q4_0 => each(q4_0, out),
        Dtype::Q5_0 => each(q5_0, out),
        Dtype::Q4_K => each(q4_k, out),
        Dtype::Q5_K => each(q5_k, out),
        Dtype::Q6_K => each(q6_k, out),
    }
}

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

fn q8_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    for (out, &q) in out.iter_mut().zip(&b[2..]) {
        *out = d * f32::from(q as i8);
    }
}

fn q4_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    for (i, &q) in b[2..].iter().enumerate() {
        out[i] = d * (f32::from(q & 15) - 8.0);
        out[i + 16] = d * (f32::from(q >> 4) - 8.0);
    }
}

fn q5_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
    let bit = |i: usize| ((high >> i & 1) << 4) as u8;
    for (i, &q) in b[6..].iter().enumerate() {
        out[i] = d * (f32::from(q & 15 | bit(i)) - 16.0);
        out[i + 16] = d * (f32::from(q >> 4 | bit(i + 16)) - 16.0);
    }
}

/// The 6-bit factor and offset of the `i`-th 32 elements of a `Q4_K` or `Q5_K` block, from its 12 bytes of them.
pub(crate) fn scale_min(s: &[u8], i: usize) -> (u8, u8) {
    if i < 4 { (s[i] & 63, s[i + 4] & 63) } else { (s[i + 4] & 15 | s[i - 4] >> 6 << 4, s[i + 4] >> 4 | s[i] >> 6 << 4) }
}

fn q4_k(b: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    for (i, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&b[4..16], i);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for (out, &q) in out.iter_mut().zip(&b[16 + i / 2 * 32..]) {
            *out = scale * f32::from(q >> (i % 2 * 4) & 15) - min;
        }
    }
}

fn q5_k(b: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    for (i, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&b[4..16], i);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for (j, out) in out.iter_mut().enumerate() {
            let q = b[48 + i / 2 * 32 + j] >> (i % 2 * 4) & 15 | (b[16 + j] >> i & 1) << 4;
            *out = scale * f32::from(q) - min;
        }
    }
}

fn q6_k(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 208);
    for (i, out) in out.chunks_exact_mut(32).enumerate() {
        // 128 elements have 64 bytes of low halves, each two apart by 64 elements, and 32 of upper pairs of bits.
        let (half, quarter) = (i / 4, i % 4);
        for (j, out) in out.iter_mut().enumerate() {
            let low = b[64 * half + 32 * (quarter % 2) + j] >> (quarter / 2 * 4) & 15;
            let high = b[128 + 32 * half + j] >> (2 * quarter) & 3;
            let scale = b[192 + 2 * i + j / 16] as i8;
            *out = d * f32::from(scale) * (f32::from(low | high << 4) - 32.0);
        }
    }
}

/// Values of rows of `width` as bytes of a type, rounded as ggml rounds: float types to nearest even, blocks by their largest value.
///
/// # Errors
/// [`Error::BadValue`] for rows that are not whole blocks, and for types that are only read (`Q5_0`, `Q4_K`, `Q5_K`, `Q6_K`).
pub fn narrowed(dtype: Dtype, values: &[f32], width: usize) -> Result<Vec<u8>> {
    let (len, size) = dtype.block();
    if !width.is_multiple_of(len) {
        let problem = format!("rows of {width} elements are not whole blocks of {len}, which {dtype} has");
        return Err(Error::bad_value("dtype", problem, "keep such a tensor in a float type"));
    }
    let block: fn(&[f32], &mut [u8]) = match dtype {
        Dtype::F32 => |x, out| out.copy_from_slice(&x[0].to_le_bytes()),
        Dtype::F16 => |x, out| out.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes()),
        Dtype::BF16 => |x, out| out.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes()),
        Dtype::Q8_0 => to_q8_0,
        Dtype::Q4_0 => to_q4_0,
        Dtype::Q5_0 | Dtype::Q4_K | Dtype::Q5_K | Dtype::Q6_K => {
            let problem = format!("{dtype} is read only");
            return Err(Error::bad_value("dtype", problem, "choose one of f32, f16, bf16, q8_0, q4_0"));
        }
    };
    let mut bytes = vec![0; values.len() / len * size];
    bytes.par_chunks_mut(AT_ONCE * size).zip(values.par_chunks(AT_ONCE * len)).for_each(|(bytes, values)| {
        for (out, x) in bytes.chunks_exact_mut(size).zip(values.chunks_exact(len)) {
            block(x, out);
        }
    });
    Ok(bytes)
}

fn to_q8_0(x: &[f32], out: &mut [u8]) {
    // One that is no number makes the whole block none: it must not pass for a weight.
    let most = x.iter().fold(0f32, |most, v| if v.abs() > most || v.is_nan() { v.abs() } else { most });
    let d = most / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (out, v) in out[2..].iter_mut().zip(x) {
        *out = (v * inverse).round() as i8 as u8;
    }
}

fn to_q4_0(x: &[f32], out: &mut [u8]) {
    // The value farthest from zero, with its sign, becomes -8.
    let most = x.iter().fold(0f32, |most, &v| if v.abs() > most.abs() || v.is_nan() { v } else { most });
    let d = most / -8.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    let code = |v: f32| ((v * inverse + 8.5) as i8).clamp(0, 15) as u8;
    for (i, out) in out[2..].iter_mut().enumerate() {
        *out = code(x[i]) | code(x[i + 16]) << 4;
    }
}
