//! A soak of the engine: random requests without a break, some given up, in a cache too small for all. Each minute it says how fast it
//! was, how much memory the process holds, and whether the cache is whole; it fails where the last minute is slower than the first, or
//! the memory has grown. See `benches/long.sh`.
//!
//!     cargo run --release --example soak -- MINUTES [BACKEND]

use std::time::{Duration, Instant};

use recua::backend::{BackendName, Job};
use recua::generate::{Engine, EngineConfig, Event, Request, RequestId, SampleConfig};
use recua::model::{InitConfig, Llama, ModelConfig};
use recua::ops::{KvDtype, LlamaOps};

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (((x ^ (x >> 31)) >> 33) % n as u64) as usize
    }

    /// Prompts of 1 to 300 tokens, one in three with one of eight beginnings.
    fn request(&mut self, vocab: usize) -> Request {
        let n = 1 + self.below(300);
        let mut prompt: Vec<u32> = (0..n).map(|_| self.below(vocab) as u32).collect();
        if self.below(3) == 0 {
            let mut stem = Self(self.below(8) as u64);
            prompt.iter_mut().take(160).for_each(|t| *t = stem.below(vocab) as u32);
        }
        Request {
            prompt,
            max_new: 1 + self.below(64),
            ignore_eos: true,
            sampling: SampleConfig {
                temperature: [0.0, 0.8][self.below(2)],
                seed: self.below(1 << 30) as u64,
                ..Default::default()
            },
            n: if self.below(8) == 0 { 3 } else { 1 },
            logprobs: (self.below(4) == 0).then_some(3),
            prompt_logprobs: (self.below(16) == 0).then_some(0),
            speculate: [0, 0, 4][self.below(3)],
            ..Default::default()
        }
    }
}

/// Resident memory of this process in MiB, and its processor time in seconds; both 0 without `/proc`.
fn process() -> (f64, f64) {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let words = |text: &str, at: usize| text.split_whitespace().nth(at).and_then(|w| w.parse::<f64>().ok()).unwrap_or(0.0);
    let resident = words(&read("statm"), 1) * 4096.0 / f64::from(1 << 20);
    // After the name in parentheses: user and system time are the 12th and 13th.
    let stat = read("stat");
    let times = stat.rsplit(')').next().unwrap_or_default();
    (resident, (words(times, 11) + words(times, 12)) / 100.0)
}

struct Minute {
    rows: u64,
    seconds: f64,
    processor_seconds: f64,
    resident: f64,
}

struct Soak {
    minutes: usize,
}

impl Job for Soak {
    type Output = ();

    fn run<B: LlamaOps>(self, device: B::Device) -> recua::Result<()> {
        let shape = ModelConfig {
            dim: 256,
            n_layers: 4,
            n_heads: 8,
            n_kv_heads: Some(4),
            vocab_size: 4096,
            max_seq_len: 512,
            ..ModelConfig::default()
        };
        let model = Llama::<B>::init(&shape, &InitConfig { seed: 1, std: 0.1 }, &device)?;
        // Room for some five of the longest.
        let bytes = 2 * 4 * 4 * 32 * 4 * 2048;
        let config = EngineConfig {
            kv_cache_bytes: Some(bytes),
            kv_cache_dtype: KvDtype::F32,
            max_batch: 12,
            max_step_tokens: 128,
            ..Default::default()
        };
        let mut engine = Engine::new(model, config)?;
        println!("{}", engine.describe());
        let mut rng = Rng(1);
        let mut live: Vec<(RequestId, usize)> = Vec::new();
        let (mut answered, mut given_up) = (0u64, 0u64);
        let mut minutes: Vec<Minute> = Vec::new();
        let (mut began, mut before, mut processor) = (Instant::now(), 0, process().1);
        while minutes.len() < self.minutes {
            while live.len() < 16 {
                let request = rng.request(shape.vocab_size);
                let n = request.n;
                live.push((engine.submit(request)?, n));
            }
            for event in engine.step()? {
                match event {
                    Event::Done { id, .. } => {
                        if let Some(at) = live.iter().position(|l| l.0 == id) {
                            live[at].1 -= 1;
                            if live[at].1 == 0 {
                                live.swap_remove(at);
                                answered += 1;
                            }
                        }
                    }
                    Event::Failed { error, .. } => return Err(error),
                    _ => {}
                }
            }
            if rng.below(200) == 0 && !live.is_empty() {
                let at = rng.below(live.len());
                engine.cancel(live.swap_remove(at).0);
                given_up += 1;
            }
            if began.elapsed() >= Duration::from_secs(60) {
                let stats = engine.stats();
                let rows = stats.prefill_tokens + stats.decode_tokens;
                let (resident, now) = process();
                let minute = Minute {
                    rows: rows - before,
                    seconds: began.elapsed().as_secs_f64(),
                    processor_seconds: now - processor,
                    resident,
                };
                println!(
                    "minute {}: {:.0} rows/s, {:.1} us of processor time a row, {resident:.1} MiB; in all {answered} answered, {given_up} \
                     given up, {} preemptions, {} positions from the cache",
                    minutes.len() + 1,
                    minute.rows as f64 / minute.seconds,
                    1e6 * minute.processor_seconds / minute.rows as f64,
                    stats.preemptions,
                    stats.cached_tokens
                );
                minutes.push(minute);
                (began, before, processor) = (Instant::now(), rows, now);
            }
        }
        for (id, _) in live {
            engine.cancel(id);
        }
        let stats = engine.stats();
        assert!(engine.is_idle() && stats.free_blocks == stats.blocks, "blocks are lost: {stats:?}");
        // By processor time, which neighbours disturb less. The first minute finds the pages that the process keeps.
        if let [first, .., last] = &minutes[..] {
            let cost = |m: &Minute| m.processor_seconds / m.rows as f64;
            let (slower, grown) = (cost(last) / cost(first), last.resident / first.resident);
            println!("last minute: {slower:.3} of the first one's processor time a row, {grown:.3} of its memory");
            assert!(slower < 1.1, "the last minute was slower");
            assert!(grown < 1.05, "the memory has grown");
        }
        Ok(())
    }
}

fn main() -> recua::Result<()> {
    let mut args = std::env::args().skip(1);
    let minutes = args.next().and_then(|m| m.parse().ok()).unwrap_or(60);
    let backend: BackendName = args.next().unwrap_or_else(|| "flex".into()).parse()?;
    backend.run(Soak { minutes })
}
