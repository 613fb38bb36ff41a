//! What overlap hides: two replicas as threads, over a link that is as slow as is asked for. `cargo bench --bench overlap`
//!
//! Of a split model this says nothing: threads share the cores, so that a rank computes while the other waits, with overlap or without.

use std::time::{Duration, Instant};

use recua::backend::Flex;
use recua::model::{InitConfig, Llama, ModelConfig};
use recua::optim::OptimConfig;
use recua::parallel::{Link, LocalOptions, Mesh, ParallelConfig, Ranks, Watch, run_ranks};
use recua::train::step::{MicroBatch, StepConfig, train_step};

type B = Flex;

const STEPS: usize = 7;
const SEQ: usize = 128;

struct Measured {
    step_s: f64,
    /// Of a step: communication under way, and waited for.
    busy_s: f64,
    waited_s: f64,
    bytes: f64,
}

fn measure(parallel: &ParallelConfig, link: Option<Link>) -> Measured {
    let model = ModelConfig { dim: 256, n_layers: 8, n_heads: 8, vocab_size: 2048, max_seq_len: SEQ, ..ModelConfig::default() };
    let ranks = parallel.dp.unwrap_or(1) * parallel.tp;
    let options = LocalOptions { link, ..LocalOptions::default() };
    let all = run_ranks(ranks, options, |world| {
        let mesh = Mesh::new(world, parallel, Watch::default()).unwrap();
        let llama = Llama::<B>::init_part(&model, &InitConfig::default(), mesh.part(), &Default::default()).unwrap();
        let mut of = Ranks::of(&mesh, &llama);
        let mut optim = of.fresh_moments(OptimConfig::default(), &llama);
        let mut llama = Some(of.adopt(llama));
        let mut times = Vec::new();
        let mut before = Default::default();
        for step in 0..STEPS {
            if step == 2 {
                before = mesh.watch().traffic.sum();
            }
            let tokens = (0..4 * (SEQ + 1)).map(|i| ((i * i + step) % 2048) as i32).collect();
            let micro = MicroBatch { tokens, batch: 4, seq_len: SEQ, bos: None };
            let began = Instant::now();
            let how = StepConfig::default();
            let taken = llama.take().unwrap();
            let (next, _) = train_step(taken, &mut optim, vec![Ok(micro)], 1e-4, how, &mut |_, _| false, &mut of).unwrap();
            llama = Some(next);
            times.push(began.elapsed().as_secs_f64());
        }
        let sum = mesh.watch().traffic.sum();
        let steps = (STEPS - 2) as f64;
        times.drain(..2);
        times.sort_by(f64::total_cmp);
        Measured {
            step_s: times[times.len() / 2],
            busy_s: (sum.busy_s - before.busy_s) / steps,
            waited_s: (sum.waited_s - before.waited_s) / steps,
            bytes: (sum.bytes - before.bytes) as f64 / steps,
        }
    });
    all.into_iter().next().unwrap()
}

fn main() {
    let parallel = ParallelConfig { dp: Some(2), bucket: 1 << 19, ..Default::default() };
    let memory = measure(&parallel, None);
    println!("dp 2, ZeRO-1: {:.3} s a step over memory, {:.1} MiB a step", memory.step_s, memory.bytes / f64::from(1 << 20));
    println!("| communication / computation | overlap | step, s | communication, s | waited for, s | exposed |\n|-|-|-|-|-|-|");
    for share in [0.5, 1.0] {
        // About half of what is given crosses the link between two.
        let link = Link { latency: Duration::ZERO, bytes_per_s: memory.bytes * 0.6 / (share * memory.step_s) };
        for overlap in [true, false] {
            let m = measure(&ParallelConfig { overlap, ..parallel.clone() }, Some(link));
            println!(
                "| {:.2} | {overlap} | {:.3} | {:.3} | {:.3} | {:.2} |",
                m.busy_s / memory.step_s,
                m.step_s,
                m.busy_s,
                m.waited_s,
                m.waited_s / m.busy_s
            );
        }
    }
}
