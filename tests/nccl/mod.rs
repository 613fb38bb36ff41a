//! The NCCL engine over a library of our own: in what order it calls, what it does when something goes wrong, and that it gives what the
//! engine of threads gives.

mod device;
mod fake;
mod meeting;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor};
use recua::backend::Flex;
use recua::model::regions::Handle;
use recua::parallel::nccl::{Nccl, NcclOptions, OnDevice, Place, nccl_failure};
use recua::parallel::{Buffer, Collectives, LocalOptions, Reduce, Watch, run_ranks};

use self::device::FakeDevice;
use self::fake::{Fake, FakeNetwork};
use crate::common::{everything, groups};
use crate::parallel::steps::Training;

const USUAL: NcclOptions = NcclOptions { timeout: Duration::from_secs(60), check_every: 4 };

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn start(fake: &Arc<Fake>, rank: usize, ranks: usize, port: u16, options: NcclOptions) -> recua::Result<Nccl> {
    let place = Place { rank, ranks, meeting: Some(("127.0.0.1".into(), port)) };
    Nccl::start_on(fake.clone(), Arc::new(FakeDevice(fake.clone())), place, options)
}

/// Runs `job` as each of so many ranks.
fn ranks<T: Send>(n: usize, options: NcclOptions, job: impl Fn(Nccl, &Fake) -> T + Sync) -> Vec<T> {
    let (network, port, job) = (Arc::new(FakeNetwork::default()), free_port(), &job);
    std::thread::scope(|scope| {
        let one = |rank: usize| {
            let fake = Fake::new(network.clone());
            scope.spawn(move || {
                let result = job(start(&fake, rank, n, port, options).unwrap(), &fake);
                assert!(fake.wrong.lock().unwrap().is_empty(), "{:?}", fake.wrong.lock().unwrap());
                result
            })
        };
        let threads: Vec<_> = (0..n).map(one).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

fn on_device(nccl: &Nccl, watch: &Watch, overlap: bool) -> OnDevice<Flex> {
    OnDevice::of(nccl.group(), watch.clone(), overlap).unwrap()
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], dtype: DType) -> FloatTensor<Flex> {
    let data = burn::tensor::TensorData::new(values, shape);
    Tensor::<Flex, D>::from_data(data, (&Default::default(), dtype)).into_primitive().tensor()
}

fn values(x: FloatTensor<Flex>) -> Vec<f32> {
    use burn::tensor::{TensorMetadata, TensorPrimitive};
    let n = x.shape().num_elements();
    let flat = <Flex as burn::tensor::ops::FloatTensorOps<Flex>>::float_reshape(x, [n].into());
    Tensor::<Flex, 1>::from_primitive(TensorPrimitive::Float(flat)).into_data().convert::<f32>().to_vec().unwrap()
}

/// The numbers in texts, in the order in which they first appear, as letters.
fn lettered(calls: &[String]) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    let letter = |word: &str, seen: &mut Vec<String>| {
        let i = seen.iter().position(|s| s == word).unwrap_or_else(|| {
            seen.push(word.into());
            seen.len() - 1
        });
        char::from(b'a' + i as u8).to_string()
    };
    calls
        .iter()
        .map(|call| match call.rsplit_once(' ') {
            Some((before, event)) if call.contains("records") || call.contains("waits") => {
                format!("{before} {}", letter(event, &mut seen))
            }
            _ => call.clone(),
        })
        .collect()
}

#[test]
fn an_operation_stands_between_two_events() {
    ranks(1, USUAL, |nccl, fake| {
        let group = on_device(&nccl, &Watch::default(), true);
        type Start<'a> = Box<dyn Fn() -> Handle<Flex> + 'a>;
        let cases: [(Start<'_>, &str); 3] = [
            (Box::new(|| group.all_reduce(tensor(vec![1.0; 6], [3, 2], DType::F32))), "ncclAllReduce 6 f32 on stream 0"),
            (Box::new(|| group.reduce_scatter(tensor(vec![1.0; 8], [4, 2], DType::F32))), "ncclReduceScatter 8 f32 on stream 0"),
            (Box::new(|| group.all_gather(tensor(vec![1.0; 4], [2, 2], DType::BF16))), "ncclAllGather 4 bf16 on stream 0"),
        ];
        for (start, call) in cases {
            fake.calls();
            let handle = start();
            // The operation waits for what was computed before it, and for nothing else.
            let started = fake.calls();
            handle.wait().unwrap();
            let all = [started.clone(), fake.calls()].concat();
            let expected = [
                "computation records a",
                "stream 0 waits for a",
                "stream 0 records b",
                call,
                "stream 0 records c",
                "computation records d",
                "computation waits for c",
            ];
            assert_eq!(lettered(&all), expected);
            assert_eq!(started.len(), 5, "computation waits where the result is asked for");
        }
        nccl.finish().unwrap();
    });
}

#[test]
fn without_overlap_computation_waits_at_once() {
    ranks(1, USUAL, |nccl, fake| {
        fake.calls();
        let handle = on_device(&nccl, &Watch::default(), false).all_reduce(tensor(vec![1.0; 2], [1, 2], DType::F32));
        assert!(lettered(&fake.calls()).last().unwrap().starts_with("computation waits for"));
        handle.wait().unwrap();
        assert!(fake.calls().is_empty(), "it is waited for once");
        nccl.finish().unwrap();
    });
}

#[test]
fn what_nobody_waits_for_keeps_its_memory_until_it_is_done() {
    ranks(2, USUAL, |nccl, fake| {
        *fake.takes.lock().unwrap() = Duration::from_millis(60);
        let group = on_device(&nccl, &Watch::default(), true);
        // In place and beside.
        for n in [4, 5] {
            fake.calls();
            drop(group.all_reduce(tensor(vec![1.0; n], [1, n], DType::F32)));
            let calls = lettered(&fake.calls());
            let waits = calls.iter().filter(|call| call.starts_with("computation waits")).count();
            assert_eq!(waits, 1, "{calls:?}");
        }
        nccl.finish().unwrap();
    });
}

#[test]
fn elements_are_counted_as_nccl_counts_them() {
    let counted = ranks(2, USUAL, |nccl, fake| {
        let group = on_device(&nccl, &Watch::default(), true);
        fake.calls();
        let sum = group.all_reduce(tensor(vec![0.5; 12], [4, 3], DType::F32)).wait().unwrap();
        assert_eq!(values(sum), vec![1.0; 12]);
        let rows: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let part = group.reduce_scatter(tensor(rows, [4, 3], DType::F32)).wait().unwrap();
        let first = 6.0 * nccl.world().rank() as f32;
        assert_eq!(values(part), (0..6).map(|i| 2.0 * (first + i as f32)).collect::<Vec<_>>());
        let own = nccl.world().rank() as f32 + 1.0;
        let all = group.all_gather(tensor(vec![own; 3], [1, 3], DType::BF16)).wait().unwrap();
        assert_eq!(values(all), [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
        let half = group.all_reduce(tensor(vec![0.25; 4], [2, 2], DType::BF16)).wait().unwrap();
        assert_eq!(values(half), vec![0.5; 4]);
        let world = nccl.world();
        world.all_reduce(Buffer::F64(vec![1.0; 5]), Reduce::Max).wait().unwrap();
        world.all_gather(Buffer::U16(vec![1; 5])).wait().unwrap();
        let calls: Vec<_> = fake.calls().into_iter().filter(|call| call.starts_with("nccl")).collect();
        nccl.finish().unwrap();
        calls
    });
    let expected = [
        "ncclAllReduce 12 f32 on stream 0",
        "ncclReduceScatter 6 f32 on stream 0",
        "ncclAllGather 3 bf16 on stream 0",
        "ncclAllReduce 4 bf16 on stream 0",
        "ncclAllReduce 5 f64 on stream 0",
        "ncclAllGather 10 bytes on stream 0",
    ];
    assert!(counted.iter().all(|calls| *calls == expected), "{counted:?}");
}

#[test]
fn every_operation_gives_what_threads_give() {
    for n in [1, 2, 3, 4] {
        let got = ranks(n, USUAL, |nccl, _| {
            let world = nccl.world();
            let all = (everything(world.as_ref()), groups(world.as_ref()));
            let refused = world.all_reduce(Buffer::U16(vec![1]), Reduce::Sum).wait().unwrap_err().to_string();
            assert!(refused.contains("cannot be reduced"), "{refused}");
            let refused = world.reduce_scatter(Buffer::F32(vec![1.0; n + 1]), Reduce::Sum).wait();
            assert_eq!(refused.is_err(), n > 1);
            nccl.finish().unwrap();
            all
        });
        let expected = run_ranks(n, LocalOptions::default(), |world| (everything(world.as_ref()), groups(world.as_ref())));
        assert!(got == expected, "{n} ranks");
    }
}

#[test]
fn a_training_over_device_memory_is_the_one_of_threads_to_the_bit() {
    for (dp, tp, sequence, zero) in [(2, 1, false, 1), (3, 1, false, 2), (1, 2, true, 0), (2, 2, true, 1)] {
        let training = Training::on(dp, tp, sequence, zero, 2);
        let results = ranks(dp * tp, USUAL, |nccl, fake| {
            fake.calls();
            let watch = Watch::default();
            let done = training.on_rank(nccl.world(), watch.clone());
            let calls = fake.calls();
            let moved = |call: &&String| call.starts_with("nccl") && !call.contains("stream 0");
            assert!(calls.iter().filter(moved).count() > 20, "tensors go over device memory");
            let waits = |what: &str| calls.iter().filter(|call| call.starts_with(what)).count();
            assert_eq!(waits("computation waits"), calls.iter().filter(|c| c.starts_with("computation records")).count() / 2);
            nccl.finish().unwrap();
            assert!(watch.traffic.sum().bytes > 100_000);
            done
        });
        let (weights, outs) = training.joined(results);
        let (want_weights, want_outs) = training.run();
        assert!(outs == want_outs, "dp {dp}, tp {tp}: {outs:?} {want_outs:?}");
        assert!(weights == want_weights, "dp {dp}, tp {tp}");
    }
}

#[test]
fn waiting_is_told_from_what_computation_hides() {
    ranks(2, USUAL, |nccl, fake| {
        *fake.takes.lock().unwrap() = Duration::from_millis(100);
        let watch = Watch::default();
        let group = on_device(&nccl, &watch, true);
        let begin = || group.all_reduce(tensor(vec![1.0; 4], [1, 4], DType::F32));
        begin().wait().unwrap();
        let hidden = begin();
        std::thread::sleep(Duration::from_millis(400));
        hidden.wait().unwrap();
        nccl.finish().unwrap();
        let sum = watch.traffic.sum();
        assert_eq!(sum.bytes, 32);
        assert!(sum.busy_s >= 0.2, "{sum:?}");
        assert!((0.05..0.2).contains(&sum.waited_s) || sum.waited_s < sum.busy_s - 0.09, "{sum:?}");
    });
}

#[test]
fn a_rank_that_does_not_come_ends_the_job_on_all() {
    let options = NcclOptions { timeout: Duration::from_secs(1), ..USUAL };
    let told = ranks(3, options, |nccl, fake| {
        let group = on_device(&nccl, &Watch::default(), true);
        let one = || tensor(vec![1.0; 4], [1, 4], DType::F32);
        group.all_reduce(one()).wait().unwrap();
        if nccl.world().rank() == 1 {
            std::thread::sleep(Duration::from_secs(6));
        } else {
            // On a device this returns at once, and what comes later gives the error; here the thread itself is the device.
            let _ = group.all_reduce(one()).wait();
        }
        let error = nccl.world().barrier().wait().unwrap_err().to_string();
        let until = Instant::now() + Duration::from_secs(10);
        while !fake.log.lock().unwrap().contains(&"abort".to_string()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(fake.calls().contains(&"abort".to_string()));
        nccl.abort("the test is over");
        error
    });
    for told in told {
        let expected = ["all_reduce number 1 of the group `world`", "no result within 1.0 s: rank 1 has not come to it"];
        assert!(expected.iter().all(|part| told.contains(part)), "{told}");
    }
}

#[test]
fn what_nccl_reports_ends_the_job_on_all() {
    let told = ranks(2, USUAL, |nccl, fake| {
        nccl.world().barrier().wait().unwrap();
        if nccl.world().rank() == 1 {
            fake.async_error.store(6, Ordering::SeqCst);
        }
        // Rank 0 waits for an operation to which rank 1 does not come.
        let error = loop {
            let result = if nccl.world().rank() == 0 {
                nccl.world().barrier().wait().map(drop)
            } else {
                std::thread::sleep(Duration::from_millis(700));
                nccl.world().barrier().wait().map(drop)
            };
            if let Err(e) = result {
                break e.to_string();
            }
        };
        nccl.abort("the test is over");
        error
    });
    assert!(told.iter().all(|told| told.contains("ncclRemoteError")), "{told:?}");
}

#[test]
fn a_call_that_fails_is_named_with_its_operation() {
    let told = ranks(1, USUAL, |nccl, fake| {
        nccl.world().barrier().wait().unwrap();
        *fake.fails.lock().unwrap() = Some(("ncclReduceScatter", 5));
        let group = on_device(&nccl, &Watch::default(), true);
        let first = group.reduce_scatter(tensor(vec![1.0; 4], [2, 2], DType::F32)).wait().unwrap_err().to_string();
        // Everything later gives the same reason.
        let later = group.all_gather(tensor(vec![1.0; 4], [2, 2], DType::F32)).wait().unwrap_err().to_string();
        assert!(later.contains("reduce_scatter number 1"), "{later}");
        assert!(nccl.world().barrier().wait().is_err());
        nccl.abort("the test is over");
        first
    });
    assert!(told[0].contains("reduce_scatter number 1 of the group `world`: ncclReduceScatter: ncclInvalidUsage"), "{told:?}");
    for (code, name) in
        [(1, "ncclUnhandledCudaError"), (2, "ncclSystemError"), (3, "ncclInternalError"), (4, "ncclInvalidArgument")]
    {
        let failure = nccl_failure("f", code).unwrap().to_string();
        assert!(failure.contains(name) && failure.ends_with(&format!("({code})")), "{failure}");
    }
    assert_eq!(nccl_failure("f", 0), None);
}

#[test]
fn a_rank_that_ends_without_a_word_ends_the_job_on_all() {
    let told = ranks(3, USUAL, |nccl, _| {
        nccl.world().barrier().wait().unwrap();
        if nccl.world().rank() == 2 {
            drop(nccl);
            return "gone".to_string();
        }
        let error = nccl.world().barrier().wait().unwrap_err().to_string();
        nccl.abort("the test is over");
        error
    });
    assert!(told[..2].iter().all(|told| told.contains("rank 2: it ended without a word")), "{told:?}");
}

#[test]
fn ranks_that_call_different_operations_are_told() {
    let told = ranks(3, NcclOptions { check_every: 1, ..USUAL }, |nccl, _| {
        let world = nccl.world();
        world.barrier().wait().unwrap();
        let one = Buffer::F32(vec![0.0; 5 + world.rank()]);
        let pending = if world.rank() == 0 { world.all_reduce(one, Reduce::Sum) } else { world.all_gather(one) };
        let error = pending.wait().unwrap_err().to_string();
        nccl.abort("the test is over");
        error
    });
    for told in told {
        assert!(told.contains("operation 1 of the group `world`: rank "), "{told}");
        assert!(told.contains("called all_reduce of 5 f32") || told.contains("all_gather of"), "{told}");
    }
}

#[test]
fn a_missing_library_is_an_error() {
    use recua::backend::BackendName;
    // On a CPU there is no device to start on, whatever is installed.
    let context = BackendName::default().open().unwrap();
    let error = Nccl::start(&context, Place::alone(), USUAL).err().unwrap().to_string();
    assert!(error.contains("--backend cuda"), "{error}");
    if let Some(missing) = recua::parallel::nccl::missing() {
        assert!(missing.contains("libnccl"), "{missing}");
    }
}

/// The program as a launcher would start it.
#[cfg(feature = "cli")]
fn recua(arguments: &str, variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_recua"));
    let out = command.args(arguments.split(' ')).envs(variables.iter().copied()).output().unwrap();
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[cfg(feature = "cli")]
#[test]
fn the_program_says_what_is_missing_before_it_starts_ranks() {
    let torchrun = [("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")];
    let (code, said) = recua("bench collectives --backend cuda", &torchrun);
    assert!(code == Some(2) && said.contains("NCCL's ranks have no place to meet: torchrun sets none"), "{code:?} {said}");
    let place = [("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")];
    let (code, said) = recua("bench collectives --backend cuda:1", &[&torchrun[..], &place].concat());
    assert!(code != Some(0) && said.contains("all 2 ranks of this machine would be on this device"), "{code:?} {said}");
    // What MPI moves, torchrun cannot start, whatever else is compiled in.
    let (_, said) = recua("bench collectives --backend flex", &torchrun);
    assert!(said.contains("mpirun") || said.contains("--features mpi"), "{said}");
    for verb in ["bench collectives", "generate --model nowhere x", "train --data nowhere --run nowhere --preset debug"] {
        let (code, said) = recua(&format!("{verb} --backend cuda --nproc 2"), &[]);
        assert!(code.is_some_and(|code| code != 0), "{verb}: {code:?} {said}");
        if recua::parallel::nccl::missing().is_some() && verb.starts_with("bench") {
            assert!(said.contains("libnccl") && said.contains("nvidia-nccl"), "{said}");
        }
    }
}
