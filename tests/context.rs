//! What belongs to a job: its choices of kernels, and the failures of its device.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::thread;

use recua::backend::{AttentionKernel, BackendName, Choices, DeviceContext, Gemm, Job, Kind, choices};
use recua::ops::LlamaOps;
use recua::{Error, Result};

fn context() -> DeviceContext {
    BackendName::default().open().unwrap()
}

fn chosen(gemm: Gemm) -> Choices {
    Choices { gemm, attention: AttentionKernel::CubeCl }
}

/// What an operation would read, in a job on a backend.
struct Read;

impl Job for Read {
    type Output = Choices;
    fn run<B: LlamaOps>(self, _: B::Device) -> Result<Choices> {
        Ok(choices())
    }
}

#[test]
fn jobs_on_two_threads_have_choices_of_their_own() {
    let names = Kind::ALL.into_iter().filter(|kind| kind.compiled() && kind.is_cpu()).map(|kind| kind.name());
    for name in names {
        let context = name.parse::<BackendName>().unwrap().open().unwrap();
        let both = Barrier::new(2);
        thread::scope(|scope| {
            for gemm in [Gemm::Unit, Gemm::Wgmma] {
                let (context, both) = (context.with_choices(chosen(gemm)), &both);
                scope.spawn(move || {
                    for _ in 0..100 {
                        let seen = context.enter(|| {
                            both.wait(); // both threads are inside
                            let seen = (choices(), context.run(Read)?);
                            both.wait();
                            Ok(seen)
                        });
                        assert_eq!(seen.unwrap(), (chosen(gemm), chosen(gemm)));
                        assert_eq!(choices(), Choices::default(), "nothing stays behind");
                    }
                });
            }
        });
        assert_eq!(context.choices(), Choices::default(), "the first context is as it was");
    }
}

#[test]
fn contexts_nest_and_end_with_a_panic_too() {
    let (outer, inner) = (context().with_choices(chosen(Gemm::Unit)), context().with_choices(chosen(Gemm::Burn)));
    outer
        .enter(|| {
            inner.enter(|| {
                assert_eq!(choices(), chosen(Gemm::Burn));
                outer.clone().enter(|| {
                    assert_eq!(choices(), chosen(Gemm::Unit));
                    Ok(())
                })?;
                assert_eq!(choices(), chosen(Gemm::Burn));
                Ok(())
            })?;
            assert_eq!(choices(), chosen(Gemm::Unit));
            let panic = catch_unwind(AssertUnwindSafe(|| inner.enter::<()>(|| panic!("the job's own"))));
            assert!(panic.is_err(), "a panic that no device has caused is a bug, and goes on");
            assert_eq!(choices(), chosen(Gemm::Unit));
            let error: Result<()> = inner.enter(|| Err(Error::bad_value("a", "b", "c")));
            assert!(matches!(error, Err(Error::BadValue { .. })));
            Ok(())
        })
        .unwrap();
    assert_eq!(choices(), Choices::default());
    // To another thread it goes along.
    let moved = thread::spawn(move || inner.enter(|| Ok(choices()))).join().unwrap().unwrap();
    assert_eq!(moved, chosen(Gemm::Burn));
}

/// A thread as CubeCL names a device's, on which a task breaks down.
fn break_down(name: &str) {
    let thread = thread::Builder::new().name(name.into()).spawn(|| panic!("CUDA_ERROR_ILLEGAL_ADDRESS")).unwrap();
    assert!(thread.join().is_err());
}

fn fails(context: &DeviceContext) -> bool {
    match context.enter(|| Ok(())) {
        Ok(()) => false,
        Err(Error::Backend { problem, hint, .. }) => {
            assert!(problem.contains("CUDA_ERROR_ILLEGAL_ADDRESS") && problem.contains("context.rs"), "{problem}");
            assert!(hint.contains("selftest"), "{hint}");
            true
        }
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn a_device_that_breaks_down_is_told_to_all_its_contexts_and_to_no_other() {
    let on = |thread: [u16; 2]| {
        let context = context();
        context.listen(thread);
        context
    };
    let [first, second, other_index, other_type] = [on([90, 1]), on([90, 1]), on([90, 11]), on([9, 1])];
    let cpu = context();
    // Inside of a job: the job gives what it has, and the failure is told all the same.
    let job = first.enter(|| {
        break_down("DSD-90-1");
        Ok(7)
    });
    assert!(matches!(job, Err(Error::Backend { .. })), "{job:?}");
    for _ in 0..2 {
        assert!(fails(&first) && fails(&second), "it stays broken");
        assert!(fails(&first.clone()), "a clone is the same context");
        assert!(!fails(&other_index) && !fails(&other_type) && !fails(&cpu));
    }
    let ran = std::cell::Cell::new(false);
    let _ = second.enter(|| {
        ran.set(true);
        Ok(())
    });
    assert!(!ran.get(), "nothing more is computed there");
    assert!(!fails(&on([90, 1])), "a new context may try anew");
    break_down("DSU-9-1");
    assert!(fails(&other_type) && !fails(&other_index) && !fails(&cpu));
    break_down("some-90-11");
    assert!(!fails(&other_index), "another library's thread");
}

#[test]
fn a_read_that_fails_is_an_error() {
    // What burn-tensor's `into_data` panics with.
    let read = context().enter::<()>(|| panic!("Error while reading data: ServerUnhealthy"));
    let error = read.unwrap_err().to_string();
    assert!(error.contains("ServerUnhealthy") && error.contains("the device failed"), "{error}");
}

/// Loaded models keep their context: generation and scoring give errors as every other job does.
#[test]
fn generators_and_scorers_give_errors() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("model");
    let config = recua::model::ModelConfig {
        dim: 16,
        n_layers: 1,
        n_heads: 2,
        vocab_size: 16,
        multiple_of: 8,
        max_seq_len: 16,
        ..Default::default()
    };
    struct Save<'a>(&'a std::path::Path, &'a recua::model::ModelConfig);
    impl Job for Save<'_> {
        type Output = ();
        fn run<B: LlamaOps>(self, device: B::Device) -> Result<()> {
            let model = recua::model::Llama::<B>::init(self.1, &Default::default(), &device)?;
            let source = recua::checkpoint::weights::ModelTensors::new(&model);
            recua::checkpoint::save(self.0, recua::checkpoint::Format::Hf, self.1, &source, &Default::default()).map(drop)
        }
    }
    context().run(Save(&dir, &config)).unwrap();
    let checkpoint = recua::checkpoint::Checkpoint::open(&dir).unwrap();
    let context = context();
    context.listen([90, 2]);
    let mut engine = recua::generate::Engine::load(&checkpoint, &context, Default::default()).unwrap();
    let mut scorer = recua::eval::Scorer::load(&checkpoint, &context).unwrap();
    let mut write = || {
        let request = recua::generate::Request { prompt: vec![1, 2], max_new: 3, ..Default::default() };
        engine.generate(request, &mut |token| {
            assert!(token < 16);
            std::ops::ControlFlow::Continue(())
        })
    };
    assert_eq!(write().unwrap().0.len(), 3);
    assert_eq!(scorer.logprobs(&[1, 2, 3]).unwrap().len(), 2);
    break_down("DSD-90-2");
    assert!(matches!(write(), Err(Error::Backend { .. })));
    assert!(matches!(scorer.logprobs(&[1, 2, 3]), Err(Error::Backend { .. })));
}

#[test]
fn the_programs_own_mistakes_say_so() {
    let text = Error::internal("mixture", "the counts differ").to_string();
    assert!(
        text.starts_with("mixture: the counts differ; ") && text.contains("fault of recua") && text.contains("report"),
        "{text}"
    );
}
