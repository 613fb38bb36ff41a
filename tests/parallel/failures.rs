//! Ranks that fail.

use std::time::{Duration, Instant};

use recua::Error;
use recua::parallel::ranks::agree;
use recua::parallel::{Buffer, Failure, LocalOptions, LocalWorld, Reduce, run_ranks, run_ranks_of};

#[test]
fn a_rank_that_dies_or_hangs_is_told_by_name_on_every_rank() {
    for (failure, says) in [(Failure::Dead, "rank 2 died"), (Failure::Hung, "missing: rank 2")] {
        let world = LocalWorld::new(4, LocalOptions { timeout: Duration::from_millis(500), link: None });
        let began = Instant::now();
        let results = run_ranks_of(&world, |comm| {
            for step in 0.. {
                if step == 3 && comm.rank() == 2 {
                    world.fail(2, failure);
                }
                comm.all_reduce(Buffer::F32(vec![1.0; 8]), Reduce::Sum).wait()?;
            }
            Ok::<(), Error>(())
        });
        assert!(began.elapsed() < Duration::from_secs(5));
        for (rank, result) in results.into_iter().enumerate() {
            let e = result.unwrap_err().to_string();
            assert!(
                rank == 2 || (e.contains(says) && e.contains("all_reduce number 3 of the group `world`")),
                "rank {rank}: {e}"
            );
        }
    }
    // Ranks that call different operations.
    let results = run_ranks(2, LocalOptions::default(), |comm| match comm.rank() {
        0 => comm.all_reduce(Buffer::F32(vec![1.0; 8]), Reduce::Sum).wait(),
        _ => comm.all_gather(Buffer::F32(vec![1.0; 8])).wait(),
    });
    let e = results[0].as_ref().unwrap_err().to_string();
    assert!(e.contains("rank 1 called all_gather of 8 f32, this rank all_reduce of 8 f32"), "{e}");
}

#[test]
fn an_error_on_one_rank_is_an_error_on_all() {
    let results = run_ranks(3, LocalOptions::default(), |comm| {
        let own = match comm.rank() {
            1 => Err(Error::bad_value("train.steps", "no", "change it")),
            rank => Ok(rank),
        };
        let failed = agree(comm.as_ref(), own, None);
        (failed.map_err(|e| e.to_string()), agree(comm.as_ref(), Ok(comm.rank()), None).unwrap())
    });
    for (rank, (failed, all)) in results.into_iter().enumerate() {
        let e = failed.unwrap_err();
        assert_eq!(e, if rank == 1 { "train.steps: no; change it" } else { "rank 1 failed: train.steps: no; change it" });
        assert_eq!(all, [0, 1, 2]);
    }
}
