//! What is counted, in Prometheus' form under vLLM's names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use recua_core::generate::EngineStats;

/// Bounds in seconds: the first token, a whole request.
const LONG: [f64; 20] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0];
/// Bounds in seconds: from one token to the next.
const SHORT: [f64; 17] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0];
/// Bounds in tokens.
const TOKENS: [f64; 13] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0];

/// Numbers by size.
#[derive(Debug)]
struct Histogram {
    bounds: &'static [f64],
    counts: Vec<AtomicU64>,
    /// Bits of a float.
    sum: Mutex<f64>,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: Mutex::new(0.0) }
    }

    fn add(&self, x: f64) {
        let at = self.bounds.iter().position(|bound| x <= *bound).unwrap_or(self.bounds.len());
        self.counts[at].fetch_add(1, Ordering::Relaxed);
        *self.sum.lock().unwrap_or_else(PoisonError::into_inner) += x;
    }

    fn write(&self, out: &mut String, name: &str, label: &str) {
        let mut total = 0;
        for (count, bound) in self.counts.iter().zip(self.bounds.iter().map(f64::to_string).chain(["+Inf".into()])) {
            total += count.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{label},le=\"{bound}\"}} {total}");
        }
        let sum = *self.sum.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(out, "{name}_sum{{{label}}} {sum}\n{name}_count{{{label}}} {total}");
    }
}

/// Of one model.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) cached_tokens: AtomicU64,
    pub(crate) generation_tokens: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) restarts: AtomicU64,
    ended: Mutex<BTreeMap<&'static str, u64>>,
    engine: Mutex<EngineStats>,
    first_token: Histogram,
    inter_token: Histogram,
    whole: Histogram,
    queue: Histogram,
    prompts: Histogram,
    texts: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let counter = || AtomicU64::new(0);
        Self {
            prompt_tokens: counter(),
            cached_tokens: counter(),
            generation_tokens: counter(),
            refused: counter(),
            restarts: counter(),
            ended: Mutex::default(),
            engine: Mutex::default(),
            first_token: Histogram::new(&LONG),
            inter_token: Histogram::new(&SHORT),
            whole: Histogram::new(&LONG),
            queue: Histogram::new(&LONG),
            prompts: Histogram::new(&TOKENS),
            texts: Histogram::new(&TOKENS),
        }
    }
}

impl Metrics {
    pub(crate) fn set_engine(&self, stats: EngineStats) {
        *self.engine.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    pub(crate) fn engine(&self) -> EngineStats {
        *self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn first_token(&self, after: Duration) {
        self.first_token.add(after.as_secs_f64());
    }

    pub(crate) fn next_token(&self, after: Duration) {
        self.inter_token.add(after.as_secs_f64());
    }

    pub(crate) fn queued(&self, time: Duration) {
        self.queue.add(time.as_secs_f64());
    }

    /// A request has ended.
    pub(crate) fn ended(&self, why: &'static str, after: Duration, prompt: usize, text: usize) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner).entry(why).or_default() += 1;
        self.whole.add(after.as_secs_f64());
        self.prompts.add(prompt as f64);
        self.texts.add(text as f64);
    }
}

/// All models.
pub(crate) fn text(models: &[(&str, &Metrics)]) -> String {
    let mut out = String::new();
    let labels: Vec<(String, &Metrics)> = models
        .iter()
        .map(|(name, metrics)| {
            let name = name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            (format!("engine=\"0\",model_name=\"{name}\""), *metrics)
        })
        .collect();
    let head = |out: &mut String, name: &str, kind: &str, help: &str| {
        let _ = writeln!(out, "# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}");
    };
    type Number = fn(&Metrics) -> f64;
    let numbers: [(&str, &str, &str, Number); 14] = [
        ("num_requests_running", "gauge", "Sequences that are being computed.", |m| m.engine().running as f64),
        ("num_requests_waiting", "gauge", "Sequences that wait.", |m| m.engine().waiting as f64),
        ("kv_cache_usage_perc", "gauge", "Share of the cache's blocks that requests hold; 1 is all.", |m| {
            let stats = m.engine();
            if stats.blocks == 0 { 0.0 } else { 1.0 - stats.free_blocks as f64 / stats.blocks as f64 }
        }),
        ("num_preemptions_total", "counter", "Times that a sequence gave its blocks up.", |m| m.engine().preemptions as f64),
        ("prefix_cache_queries_total", "counter", "Tokens of prompts that were looked for in the cache.", |m| {
            m.prompt_tokens.load(Ordering::Relaxed) as f64
        }),
        ("prefix_cache_hits_total", "counter", "Those that were there.", |m| m.cached_tokens.load(Ordering::Relaxed) as f64),
        ("prompt_tokens_total", "counter", "Tokens of prompts.", |m| m.prompt_tokens.load(Ordering::Relaxed) as f64),
        ("generation_tokens_total", "counter", "Tokens of texts.", |m| m.generation_tokens.load(Ordering::Relaxed) as f64),
        ("iteration_total", "counter", "Forward passes.", |m| m.engine().steps as f64),
        ("prefill_tokens_total", "counter", "Rows of prompts that were computed.", |m| m.engine().prefill_tokens as f64),
        ("spec_decode_num_draft_tokens_total", "counter", "Tokens drafted.", |m| m.engine().drafted as f64),
        ("spec_decode_num_accepted_tokens_total", "counter", "Drafted tokens that were right.", |m| m.engine().accepted as f64),
        ("requests_refused_total", "counter", "Requests that found the queue full.", |m| {
            m.refused.load(Ordering::Relaxed) as f64
        }),
        ("engine_restarts_total", "counter", "Times that the engine was built again.", |m| {
            m.restarts.load(Ordering::Relaxed) as f64
        }),
    ];
    for (name, kind, help, number) in numbers {
        head(&mut out, name, kind, help);
        for (label, metrics) in &labels {
            let _ = writeln!(out, "vllm:{name}{{{label}}} {}", number(metrics));
        }
    }
    head(&mut out, "request_success_total", "counter", "Requests that have ended, by why.");
    for (label, metrics) in &labels {
        let ended = metrics.ended.lock().unwrap_or_else(PoisonError::into_inner);
        for why in ["stop", "length", "abort", "error"] {
            let count = ended.get(why).copied().unwrap_or(0);
            let _ = writeln!(out, "vllm:request_success_total{{{label},finished_reason=\"{why}\"}} {count}");
        }
    }
    type Sizes = fn(&Metrics) -> &Histogram;
    let histograms: [(&str, &str, Sizes); 6] = [
        ("time_to_first_token_seconds", "From the request's arrival to its first token.", |m| &m.first_token),
        ("inter_token_latency_seconds", "From one token to the next.", |m| &m.inter_token),
        ("e2e_request_latency_seconds", "From the request's arrival to its end.", |m| &m.whole),
        ("request_queue_time_seconds", "From the request's arrival until the engine has it.", |m| &m.queue),
        ("request_prompt_tokens", "Tokens of prompts.", |m| &m.prompts),
        ("request_generation_tokens", "Tokens of texts.", |m| &m.texts),
    ];
    for (name, help, histogram) in histograms {
        head(&mut out, name, "histogram", help);
        for (label, metrics) in &labels {
            histogram(metrics).write(&mut out, &format!("vllm:{name}"), label);
        }
    }
    out
}
