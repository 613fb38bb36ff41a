//! What a device's memory and its products give at best, measured: what decoding and prefill are held against.

use std::time::Instant;

use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use super::sync;
use crate::error::Result;
use crate::ops::{LlamaOps, primitive};

/// Bytes of the buffer that is read on CPU, where the memory allows it: more than any cache holds.
const CPU_BYTES: u64 = 1 << 30;
/// Bytes of the tensor that is copied on a device.
const DEVICE_BYTES: usize = 256 << 20;
/// Seconds of a measurement.
const SECONDS: f64 = 0.5;

/// Bytes a second that all threads read from memory (CPU), or that a copy reads and writes (devices): the best of half a second.
///
/// # Errors
/// A device that fails.
pub(super) fn bandwidth<B: LlamaOps>(device: &B::Device, cpu: bool) -> Result<f64> {
    if cpu { Ok(read_bandwidth()) } else { copy_bandwidth::<B>(device) }
}

fn read_bandwidth() -> f64 {
    let memory = std::fs::read_to_string("/proc/meminfo").ok();
    let free = memory.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("MemAvailable:")));
    let free = free.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok()).map_or(CPU_BYTES, |kb| kb * 1024 / 4);
    let words = (free.min(CPU_BYTES) / 8) as usize;
    // Written, so that its pages exist.
    let buffer: Vec<u64> = (0..words as u64).collect();
    let part = words.div_ceil(4 * rayon::current_num_threads()).max(1);
    let read = || {
        buffer.par_chunks(part).map(|words| {
            let mut sums = [0u64; 16];
            let (rows, rest) = words.as_chunks::<16>();
            for row in rows {
                for (sum, word) in sums.iter_mut().zip(row) {
                    *sum = sum.wrapping_add(*word);
                }
            }
            sums.iter().chain(rest).fold(0u64, |sum, word| sum.wrapping_add(*word))
        })
    };
    best(SECONDS, &mut || {
        std::hint::black_box(read().reduce(|| 0, u64::wrapping_add));
        Ok(())
    })
    .map_or(0.0, |seconds| (8 * words) as f64 / seconds)
}

fn copy_bandwidth<B: LlamaOps>(device: &B::Device) -> Result<f64> {
    const COPIES: usize = 8;
    let x = Tensor::<B, 1>::ones([DEVICE_BYTES / 4], device);
    let mut copy = || {
        for _ in 0..COPIES {
            drop(x.clone().mul_scalar(1.5));
        }
        sync::<B>(device)
    };
    Ok((2 * COPIES * DEVICE_BYTES) as f64 / best(SECONDS, &mut copy)?)
}

/// Floating-point operations a second of the best large product in a type.
///
/// # Errors
/// A device that fails.
pub(super) fn product_ceiling<B: LlamaOps>(device: &B::Device, cpu: bool, dtype: DType) -> Result<f64> {
    if cpu && dtype == DType::F32 {
        return Ok(super::peak_tflops::<B>(device) * 1e12);
    }
    let n = if cpu { 1024 } else { 4096 };
    let x = primitive(Tensor::<B, 2>::ones([n, n], device).cast(dtype));
    let seconds = best(SECONDS, &mut || {
        drop(B::project(x.clone(), x.clone(), dtype));
        sync::<B>(device)
    })?;
    Ok(2.0 * (n as f64).powi(3) / seconds)
}

/// Seconds of the fastest call, of as many as fit into some seconds; the first is not counted.
pub(super) fn best(seconds: f64, call: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
    call()?;
    let (began, mut best) = (Instant::now(), f64::INFINITY);
    while best.is_infinite() || began.elapsed().as_secs_f64() < seconds {
        let start = Instant::now();
        call()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}
