//! Products of many rows: 32 rows of a weight are unpacked, some blocks at a time, into four bytes of each side by side, and multiplied with
//! all rows, a tile at a time.

use std::cell::RefCell;

use super::Stripe;
use super::rounded::{CHUNK, GROUP, MANY, Many, Tile};

/// Rows of a weight that are packed together.
pub(super) const COLUMNS: usize = 32;
/// Bytes of a packed block of 32 of all columns.
const PACKED: usize = 32 * COLUMNS;
/// Rows whose sums are kept for all columns while blocks are packed.
const ROWS: usize = 510;

/// Blocks of a stripe, in the order of [`place`].
#[repr(C, align(64))]
pub(super) struct Packed {
    /// `[block][step of 4 elements][column][4]`.
    pub(super) codes: [[u8; PACKED]; CHUNK],
    pub(super) scale: [[f32; COLUMNS]; CHUNK],
    /// Minima, float32, or whole factors of the first and the second halves.
    pub(super) extra: [[[i32; COLUMNS]; 2]; CHUNK],
}

/// What a thread computes in.
struct Room {
    packed: Box<Packed>,
    /// `[tile][sum of four][row of the tile][column]`.
    sums: Vec<f32>,
}

thread_local! {
    static ROOM: RefCell<Option<Room>> = const { RefCell::new(None) };
}

/// Packing and multiplying with the vectors of a level; both need its features.
pub(super) trait Kernel {
    /// Packs `n` blocks of a stripe from `first` on.
    ///
    /// # Safety
    /// The CPU's features.
    unsafe fn pack(packed: &mut Packed, s: &Stripe<'_>, first: usize, n: usize);
    /// `n` packed blocks with the rows of a tile, added to their sums; `first` are there none yet.
    ///
    /// # Safety
    /// The CPU's features; so many rows in `x`, and room for their sums.
    unsafe fn tile(x: Tile, rows: usize, w: &Packed, n: usize, first: bool, sums: *mut f32);
}

/// A stripe of at most [`COLUMNS`] for all rows.
///
/// # Safety
/// The kernel's features; the stripe's part of the output is nobody else's, and has been written if it is added to.
#[inline(always)]
pub(super) unsafe fn body<K: Kernel>(x: &Many, s: &Stripe<'_>) {
    let extra = x.extra(s.dtype);
    // Taken out, so that nothing is borrowed while others' code runs.
    let mut room = ROOM.take().unwrap_or_else(|| Room {
        // SAFETY: numbers may be zeros.
        packed: unsafe { Box::<Packed>::new_zeroed().assume_init() },
        sums: Vec::new(),
    });
    let most = x.rows.min(ROWS) * GROUP * COLUMNS;
    if room.sums.len() < most {
        room.sums = vec![0.0; most];
    }
    for from in (0..x.rows).step_by(ROWS) {
        let to = x.rows.min(from + ROWS);
        for first in (0..x.blocks).step_by(CHUNK) {
            let n = CHUNK.min(x.blocks - first);
            // SAFETY: the caller's promise.
            unsafe { K::pack(&mut room.packed, s, first, n) };
            for row in (from..to).step_by(MANY) {
                let at = room.sums[(row - from) * GROUP * COLUMNS..].as_mut_ptr();
                // SAFETY: as above; the sums of a tile are `GROUP` times its rows times the columns.
                unsafe { K::tile(x.tile(extra, row, first), x.tile_rows(row), &room.packed, n, first == 0, at) };
            }
        }
        for row in (from..to).step_by(MANY) {
            let rows = x.tile_rows(row);
            let sums = &room.sums[(row - from) * GROUP * COLUMNS..][..rows * GROUP * COLUMNS];
            for r in 0..rows {
                let of = |p: usize| sums[(p * rows + r) * COLUMNS..].first_chunk::<COLUMNS>().expect("sums of a row");
                let (a, b, c, d) = (of(0), of(1), of(2), of(3));
                let mut all = [0f32; COLUMNS];
                for i in 0..COLUMNS {
                    all[i] = ((a[i] + b[i]) + c[i]) + d[i];
                }
                // SAFETY: the stripe's own elements.
                unsafe {
                    let out = s.out.add((row + r) * s.width);
                    if s.add {
                        for (i, sum) in all.iter().enumerate().take(s.columns) {
                            *out.add(i) += sum;
                        }
                    } else {
                        std::ptr::copy_nonoverlapping(all.as_ptr(), out, s.columns.min(COLUMNS));
                    }
                }
            }
        }
    }
    ROOM.set(Some(room));
}
