//! The MPI engine between processes: each test starts this binary again under `mpirun`, as ranks that run [`a_rank`].

use std::process::{Command, Output};
use std::time::Duration;

use recua::parallel::mpi::{Mpi, MpiOptions};
use recua::parallel::{Buffer, LocalOptions, Reduce, run_ranks};

use crate::common::{everything, groups};

/// What the ranks do.
const PART: &str = "RECUA_TEST_MPI_PART";

fn ranks(n: usize, part: &str) -> Output {
    let own = std::env::current_exe().unwrap();
    let mut command = Command::new("mpirun");
    command.args(["-n", &n.to_string(), "--oversubscribe", "--bind-to", "none"]).arg(own);
    command.args(["--exact", "mpi::a_rank", "--ignored", "--nocapture", "--test-threads", "1"]).env(PART, part);
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.output().expect("mpirun")
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

#[test]
#[ignore = "is what the other tests start under mpirun"]
fn a_rank() {
    let part = std::env::var(PART).expect("started by another test");
    let usual = MpiOptions { timeout: Duration::from_secs(60), check_every: 1, ..MpiOptions::default() };
    let options = match part.as_str() {
        // As if 2^31 elements had been passed.
        "pieces" => MpiOptions { most_elements: 10, ..usual },
        "hang" => MpiOptions { timeout: Duration::from_secs(2), ..usual },
        _ => usual,
    };
    let mpi = Mpi::start(options).unwrap();
    let world = mpi.world();
    let (rank, size) = (world.rank(), world.size());
    match part.as_str() {
        "everything" | "pieces" => {
            // The engine of threads, which other tests hold to plain sums, is the reference, to the bit.
            let expected = run_ranks(size, LocalOptions::default(), |world| (everything(world.as_ref()), groups(world.as_ref())));
            assert!((everything(world.as_ref()), groups(world.as_ref())) == expected[rank], "rank {rank}");
            let refused = world.all_reduce(Buffer::U16(vec![1]), Reduce::Sum).wait().unwrap_err().to_string();
            assert!(refused.contains("cannot be reduced"), "{refused}");
            let refused = world.reduce_scatter(Buffer::F32(vec![1.0; size + 1]), Reduce::Sum).wait();
            assert_eq!(refused.is_err(), size > 1);
            println!("rank {rank} is right");
            mpi.finish().unwrap();
        }
        "disagree" => {
            world.barrier().wait().unwrap();
            let one = Buffer::F32(vec![0.0; 5 + rank]);
            let pending = if rank == 0 { world.all_reduce(one, Reduce::Sum) } else { world.all_gather(one) };
            println!("{}", pending.wait().unwrap_err());
            std::thread::sleep(Duration::from_millis(500)); // the others speak as well
            mpi.abort(3);
        }
        "hang" => {
            if rank == 1 {
                std::thread::sleep(Duration::from_secs(60));
            }
            println!("{}", world.barrier().wait().unwrap_err());
            mpi.abort(4);
        }
        "leave" => {
            // A rank that fails drops MPI without a word to the others.
            if rank == 1 {
                return;
            }
            let _ = world.barrier().wait();
            unreachable!("it ends with the other");
        }
        _ => unreachable!("{part}"),
    }
}

#[test]
fn every_operation_gives_what_threads_give() {
    for n in [1, 2, 3, 4] {
        for part in ["everything", "pieces"] {
            let out = ranks(n, part);
            let said = text(&out);
            assert!(
                out.status.success() && (0..n).all(|rank| said.contains(&format!("rank {rank} is right"))),
                "{n} {part}: {said}"
            );
        }
    }
}

#[test]
fn ranks_that_call_different_operations_are_told() {
    let out = ranks(3, "disagree");
    let said = text(&out);
    assert_eq!(out.status.code(), Some(3), "{said}");
    let expected = "rank 0: all_reduce number 1 of the group `world`: rank 1 of the group called all_gather of 6 f32, this rank all_reduce of 5 f32";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn a_rank_that_hangs_ends_the_job() {
    let began = std::time::Instant::now();
    let out = ranks(3, "hang");
    let said = text(&out);
    assert_eq!(out.status.code(), Some(4), "{said}");
    assert!(
        said.contains("barrier number 0 of the group `world`: no result within 2.0 s: rank 1 has not come to it, and answers"),
        "{said}"
    );
    // Far less than the minute that the rank sleeps.
    assert!(began.elapsed() < Duration::from_secs(45), "{:?}", began.elapsed());
}

#[test]
fn a_rank_that_leaves_ends_the_job() {
    let out = ranks(3, "leave");
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
}
