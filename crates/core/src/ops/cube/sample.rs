//! Sampling of a token a row, in one launch: a cube a row, 256 units. Any device: 3 tensors, 6 KiB of shared memory.
//!
//! The vocabulary is not sorted. What is kept is what lies above a logit, and of those equal to it the first few: the k-th largest, or
//! the one at which probabilities reach `top_p`, is found in the numbers of the logits' bits (ordered as integers), three bounds a pass,
//! 16 passes. Then each unit sums its own stretch of the vocabulary, and the draw falls in one unit's.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::reduce::cube_sum;
use super::tile::Four;
use super::{EACH, address, empty, grid};

/// Numbers of a row: see [`crate::ops::SampleRows`].
pub(super) const SETTINGS: usize = 5;

/// A logit's bits as an integer in the logits' order. Of minus infinity 2^23 - 1, of NaN less or more than any number's.
#[cube]
fn ordered(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    select(bits >= 0x8000_0000u32, !bits, bits | 0x8000_0000u32)
}

/// The other way round.
#[cube]
fn number(key: u32) -> f32 {
    f32::reinterpret(select(key >= 0x8000_0000u32, key & 0x7fff_ffffu32, !key))
}

/// The weight of a logit. What lies below the smallest exponential counts for nothing.
#[cube]
fn weight(x: f32, top: f32, cold: f32) -> f32 {
    f32::exp(max((x - top) * cold, -80.0f32))
}

/// Largest of the units' values, for all.
#[cube]
fn largest(value: u32, memory: &mut SharedMemory<u32>) -> u32 {
    let unit = UNIT_POS as usize;
    memory[unit] = value;
    sync_cube();
    #[unroll]
    for step in 1..9usize {
        let half = comptime!(EACH >> step);
        if unit < half {
            let top = max(memory[unit], memory[unit + half]);
            memory[unit] = top;
        }
        sync_cube();
    }
    let top = memory[0];
    sync_cube();
    top
}

/// Sum over the row of what counts for a logit above `bound` (lanes 0 to 2, for three bounds) and of the ties with the last (lane 3):
/// ones, or weights.
#[cube]
fn above<F: Float>(
    logits: &Tensor<F>,
    base: usize,
    vocab: usize,
    bounds: &Array<u32>,
    least: u32,
    top: f32,
    cold: f32,
    memory: &mut SharedMemory<Vector<f32, Const<4>>>,
    #[comptime] weighted: bool,
) -> Four {
    let mut sums = Four::zeroed();
    let mut i = UNIT_POS as usize;
    while i < vocab {
        let x = f32::cast_from(logits[base + i]);
        let key = ordered(x);
        if key >= least {
            let mut w = f32::new(1.0);
            if weighted {
                w = weight(x, top, cold);
            }
            #[unroll]
            for j in 0..3usize {
                sums[j] += select(key > bounds[j], w, 0.0f32);
            }
            sums[3] += select(key == bounds[2], w, 0.0f32);
        }
        i += EACH;
    }
    cube_sum::<Const<4>>(sums, memory, EACH)
}

/// The smallest bound above which less than `target` lies, among logits of at least `least`: itself the last logit that is kept.
#[cube]
fn search<F: Float>(
    logits: &Tensor<F>,
    base: usize,
    vocab: usize,
    target: f32,
    least: u32,
    highest: u32,
    top: f32,
    cold: f32,
    memory: &mut SharedMemory<Vector<f32, Const<4>>>,
    #[comptime] weighted: bool,
) -> u32 {
    // Above `low` lies `target` or more, or nothing is known; above `high` less.
    let mut low = max(least, 1u32) - 1u32;
    let mut high = highest;
    let mut bounds = Array::<u32>::new(3usize);
    while high - low > 1u32 {
        let quarter = max((high - low) / 4u32, 1u32);
        bounds[0] = low + quarter;
        bounds[1] = min(low + 2u32 * quarter, high);
        bounds[2] = min(low + 3u32 * quarter, high);
        let sums = above::<F>(logits, base, vocab, &bounds, least, top, cold, memory, weighted);
        #[unroll]
        for j in 0..3usize {
            if sums[j] >= target {
                low = max(low, bounds[j]);
            } else {
                high = min(high, bounds[j]);
            }
        }
    }
    high
}

/// Row `CUBE_POS`. A row with a NaN or plus infinity, or with nothing else than minus infinities, gives -1.
#[cube(launch_unchecked, address_type = "dynamic")]
fn sample_kernel<F: Float, I: Int>(
    logits: &Tensor<F>,
    numbers: &Tensor<f32>,
    ids: &mut Tensor<I>,
    rows: usize,
    vocab: usize,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let mut memory = SharedMemory::<Vector<f32, Const<4>>>::new(EACH);
    let mut integers = SharedMemory::<u32>::new(EACH);
    let mut sums = SharedMemory::<f32>::new(EACH);
    let base = row * vocab;
    let temperature = numbers[row * SETTINGS];
    let top_k = numbers[row * SETTINGS + 1];
    let top_p = numbers[row * SETTINGS + 2];
    let min_p = numbers[row * SETTINGS + 3];
    let uniform = numbers[row * SETTINGS + 4];

    // The largest, and whether there is something that is no number: of those the bits without the sign are above 0x7f7fffff, but
    // minus infinity may be there.
    let mut high = 0u32;
    let mut damaged = 0u32;
    let mut i = unit;
    while i < vocab {
        let bits = u32::reinterpret(f32::cast_from(logits[base + i]));
        high = max(high, select(bits >= 0x8000_0000u32, !bits, bits | 0x8000_0000u32));
        if (bits & 0x7fff_ffffu32) >= 0x7f80_0000u32 {
            if bits != 0xff80_0000u32 {
                damaged = 1u32;
            }
        }
        i += EACH;
    }
    let high = largest(high, &mut integers);
    let damaged = largest(damaged, &mut integers);
    let top = number(high);
    if damaged == 1u32 || high <= 0x007f_ffffu32 {
        if unit == 0 {
            ids[row] = I::cast_from(-1i32);
        }
        terminate!();
    }
    // Cool enough to be greedy: the weight of every other logit is zero, or the draw is not wanted.
    let mut cold = f32::new(0.0);
    let mut least = high;
    if temperature > 0.0f32 {
        cold = min(1.0f32 / temperature, 1.0e30f32);
        // The least of what is finite.
        least = 0x0080_0000u32.runtime();
    }
    // How many of the ties with the least are kept; all, if not told.
    let mut ties = f32::new(4.0e9);
    if least < high {
        if top_k < f32::cast_from(vocab as u32) {
            let found = search::<F>(logits, base, vocab, top_k, least, high, top, cold, &mut memory, false);
            let mut bounds = Array::<u32>::new(3usize);
            #[unroll]
            for j in 0..3usize {
                bounds[j] = found;
            }
            let counts = above::<F>(logits, base, vocab, &bounds, least, top, cold, &mut memory, false);
            ties = top_k - counts[2];
            least = found;
        }
        if top_p < 1.0f32 {
            let mut bounds = Array::<u32>::new(3usize);
            #[unroll]
            for j in 0..3usize {
                bounds[j] = least;
            }
            let all = above::<F>(logits, base, vocab, &bounds, least, top, cold, &mut memory, true);
            let each = weight(number(least), top, cold);
            let total = all[2] + min(all[3], ties * each);
            let target = top_p * total;
            let found = search::<F>(logits, base, vocab, target, least, high, top, cold, &mut memory, true);
            #[unroll]
            for j in 0..3usize {
                bounds[j] = found;
            }
            let sums = above::<F>(logits, base, vocab, &bounds, least, top, cold, &mut memory, true);
            let each = weight(number(found), top, cold);
            // The one that reaches the target is kept.
            let more = max(f32::ceil((target - sums[2]) / each), 1.0f32);
            ties = select(found == least, min(ties, more), more);
            least = found;
        }
        if min_p > 0.0f32 {
            // Weights of at least `min_p`, that of the largest being 1.
            let bound = ordered(top + f32::ln(min_p) * temperature);
            if bound > least {
                least = bound;
                ties = f32::new(4.0e9);
            }
        }
    } else {
        ties = f32::new(1.0);
    }

    // Each unit's stretch of the vocabulary: how many ties before it, then the sum of what is kept in it.
    let stretch = (vocab + EACH - 1) / EACH;
    let from = min(unit * stretch, vocab);
    let to = min(from + stretch, vocab);
    let mut equal = f32::new(0.0);
    for i in from..to {
        equal += select(ordered(f32::cast_from(logits[base + i])) == least, 1.0f32, 0.0f32);
    }
    sums[unit] = equal;
    sync_cube();
    let mut before = f32::new(0.0);
    for i in 0..unit {
        before += sums[i];
    }
    sync_cube();
    let mut sum = f32::new(0.0);
    let mut seen = before;
    for i in from..to {
        let x = f32::cast_from(logits[base + i]);
        let key = ordered(x);
        if key >= least {
            let mut kept = true;
            if key == least {
                kept = seen < ties;
                seen += 1.0f32;
            }
            if kept {
                sum += weight(x, top, cold);
            }
        }
    }
    sums[unit] = sum;
    sync_cube();
    let mut total = f32::new(0.0);
    let mut start = f32::new(0.0);
    // The last stretch with anything in it takes what rounding leaves.
    let mut last = 0usize.runtime();
    for i in 0..EACH {
        if i == unit {
            start = total;
        }
        total += sums[i];
        if sums[i] > 0.0f32 {
            last = i;
        }
    }
    let draw = uniform * total;
    let mut mine = false;
    if sum > 0.0f32 {
        if draw >= start {
            mine = draw < start + sum;
            if unit == last {
                mine = true;
            }
        }
    }
    if mine {
        let mut at = start;
        let mut seen = before;
        let mut found = false;
        let mut id = from;
        for i in from..to {
            let x = f32::cast_from(logits[base + i]);
            let key = ordered(x);
            if key >= least {
                let mut kept = true;
                if key == least {
                    kept = seen < ties;
                    seen += 1.0f32;
                }
                if kept {
                    if !found {
                        at += weight(x, top, cold);
                        // The last one, if rounding leaves a rest.
                        id = i;
                        found = draw < at;
                    }
                }
            }
        }
        ids[row] = I::cast_from(id);
    }
}

/// See [`super::LlamaOps::sample_rows`]; `settings [n, SETTINGS]`.
pub(super) fn sample<R: CubeRuntime>(logits: CubeTensor<R>, settings: CubeTensor<R>, integer: DType) -> CubeTensor<R> {
    let (logits, settings) = (into_contiguous(logits), into_contiguous(settings));
    let [n, v]: [usize; 2] = logits.meta.shape().dims();
    let client = logits.client.clone();
    let ids = empty(&logits, &[n], integer);
    if n == 0 {
        return ids;
    }
    assert!(v > 0, "sampling from no logits");
    // SAFETY: `logits` has `n` rows of `v`, `settings` of `SETTINGS`, `ids` is `[n]`.
    unsafe {
        sample_kernel::launch_unchecked(
            &client,
            grid(&client, n),
            CubeDim::new_1d(EACH as u32),
            address([&logits]),
            logits.clone().into_tensor_arg(),
            settings.clone().into_tensor_arg(),
            ids.clone().into_tensor_arg(),
            n,
            v,
            [logits.dtype.into(), integer.into()],
        );
    }
    ids
}
