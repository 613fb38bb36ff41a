//! What several tests need.

use std::io::Write;
use std::path::PathBuf;

#[cfg(any(feature = "mpi", feature = "nccl"))]
use recua::parallel::{Buffer, Communicator, Reduce};

/// The file or folder `name` under the folder that the environment variable names. Without it, says on standard error (past
/// the harness, which shows no output of tests that pass) that the test was skipped.
pub(crate) fn outside(variable: &str, name: &str) -> Option<PathBuf> {
    let skipped = |why: &str| {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
        None
    };
    let Some(folder) = std::env::var_os(variable) else { return skipped(&format!("{variable} is not set")) };
    let path = PathBuf::from(folder).join(name);
    if path.exists() { Some(path) } else { skipped(&format!("{} is not there", path.display())) }
}

/// Every operation on several lengths; what each gives, in order.
#[cfg(any(feature = "mpi", feature = "nccl"))]
pub(crate) fn everything(world: &dyn Communicator) -> Vec<Buffer> {
    let (rank, size) = (world.rank(), world.size());
    let mut all = Vec::new();
    for len in [0, 1, 3, 16, 100, 4999] {
        let f32s = |n: usize| Buffer::F32((0..n).map(|i| ((i * (rank + 1)) as f32 * 0.37).sin()).collect());
        let f64s = Buffer::F64((0..len).map(|i| ((i * 7 + rank * 13) as f64 * 0.61).cos()).collect());
        for how in [Reduce::Sum, Reduce::Max, Reduce::Min] {
            all.push(world.all_reduce(f32s(len), how));
            all.push(world.all_reduce(f64s.clone(), how));
            all.push(world.reduce_scatter(f32s(len * size), how));
        }
        all.push(world.all_gather(f32s(len)));
        all.push(world.all_gather(Buffer::U16(vec![rank as u16; len])));
        all.push(world.all_gather(Buffer::Bytes(vec![rank as u8; len])));
        let own = if rank == size - 1 { (0..len as u16).collect() } else { vec![9] };
        all.push(world.broadcast(Buffer::U16(own), size - 1));
        all.push(world.barrier());
    }
    // All were under way at once.
    all.into_iter().map(|pending| pending.wait().unwrap()).collect()
}

/// Two groups, each with an operation under way beside one of all ranks.
#[cfg(any(feature = "mpi", feature = "nccl"))]
pub(crate) fn groups(world: &dyn Communicator) -> Vec<Buffer> {
    let (rank, size) = (world.rank(), world.size());
    let half = world.split(rank % 2, size - rank, "half").unwrap();
    let of_all = world.all_reduce(Buffer::F32(vec![1.0; 1000]), Reduce::Sum);
    let of_half = half.all_gather(Buffer::F64(vec![rank as f64]));
    vec![of_half.wait().unwrap(), of_all.wait().unwrap(), Buffer::F64(vec![half.rank() as f64, half.size() as f64])]
}
