//! Sums and largest values over a cube, in shared memory: planes are not everywhere, and how many units one has would change
//! the order of a sum. 256 values: 1 KiB a lane, 2 KiB at most.

use cubecl::prelude::*;

/// Sum of the units' values, lane by lane, for all of them. `memory` has a place for each unit.
#[cube]
pub(super) fn cube_sum<S: Size>(
    value: Vector<f32, S>,
    memory: &mut SharedMemory<Vector<f32, S>>,
    #[comptime] units: usize,
) -> Vector<f32, S> {
    let unit = UNIT_POS as usize;
    memory[unit] = value;
    sync_cube();
    #[unroll]
    for step in 1..comptime!(units.ilog2() as usize + 1) {
        let half = comptime!(units >> step);
        if unit < half {
            let sum = memory[unit] + memory[unit + half];
            memory[unit] = sum;
        }
        sync_cube();
    }
    let total = memory[0];
    sync_cube();
    total
}

/// Largest of the units' values, for all of them.
#[cube]
pub(super) fn cube_max(value: f32, memory: &mut SharedMemory<f32>, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    memory[unit] = value;
    sync_cube();
    #[unroll]
    for step in 1..comptime!(units.ilog2() as usize + 1) {
        let half = comptime!(units >> step);
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

/// Largest of the units' numbers without a sign, likewise: of floats of at least zero, by their bits, and of NaN, which is larger.
#[cube]
pub(super) fn cube_max_bits(value: u32, memory: &mut SharedMemory<u32>, #[comptime] units: usize) -> u32 {
    let unit = UNIT_POS as usize;
    memory[unit] = value;
    sync_cube();
    #[unroll]
    for step in 1..comptime!(units.ilog2() as usize + 1) {
        let half = comptime!(units >> step);
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

/// Sum of a vector's lanes.
#[cube]
pub(super) fn lane_sum<N: Size>(x: Vector<f32, N>) -> f32 {
    let mut sum = f32::new(0.0);
    #[unroll]
    for i in 0..N::value() {
        sum += x[i];
    }
    sum
}
