//! Memory and time of a training run on a cluster, before anybody has one.
//!
//! A step is the sum of what a device computes and of what it waits for: products at the speed that the hardware was measured to
//! reach, attention, operations that are bound by memory, tensor-parallel exchanges (in forward nothing hides them; in backward the
//! gather of a saved input runs under the product for dX, and the scatter of dX under the product for dW), data-parallel buckets
//! (the last to be reduced and the first to be gathered have nothing to hide under), the optimizer. The whole is divided by one
//! fitted factor, [`Schedule::efficiency`](super::cluster::Schedule). `docs/scaling.md` holds it against the paper.

use serde::Serialize;

use super::cluster::Cluster;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::model::backward::ActivationCheckpointing;

/// What is trained.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The model.
    pub model: ModelConfig,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Sequences of a step, over all devices.
    pub batch: usize,
    /// Tokens of the whole run.
    pub tokens: f64,
    /// What is kept for backward.
    pub keep: ActivationCheckpointing,
    /// Bytes of an element that products read: 2, or 4 in float32.
    pub compute_bytes: usize,
    /// Bytes of an element of the gradients, in memory and on the wire.
    pub gradient_bytes: usize,
}

/// How it is spread over devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// Replicas, between which the batch is split.
    pub dp: usize,
    /// Devices that share each matrix; neighbours.
    pub tp: usize,
    /// Norms and the residual stream split along the sequence as well.
    pub sequence: bool,
    /// What is sharded over `dp`: 0 nothing, 1 master weights and moments, 2 gradients too.
    pub zero: u8,
    /// Sequences of a forward and backward pass of a replica.
    pub micro_batch: usize,
    /// Passes of a step.
    pub micro_batches: usize,
}

/// Seconds of a step, by what they go to.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct StepTime {
    /// Forward, computing.
    pub forward: f64,
    /// Backward, computing.
    pub backward: f64,
    /// Tensor-parallel exchanges that nothing hides.
    pub tp_exposed: f64,
    /// Data-parallel exchanges that nothing hides.
    pub dp_exposed: f64,
    /// The update.
    pub optimizer: f64,
    /// Everything that is not counted: what the fitted factor takes.
    pub uncounted: f64,
    /// All tensor-parallel exchanges, hidden or not; no part of the sum.
    pub tp_total: f64,
    /// All data-parallel exchanges, hidden or not; no part of the sum.
    pub dp_total: f64,
}

impl StepTime {
    /// The step.
    pub fn total(&self) -> f64 {
        self.forward + self.backward + self.tp_exposed + self.dp_exposed + self.optimizer + self.uncounted
    }
}

/// Bytes on one device, by part.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Memory {
    /// Weights as products read them.
    pub weights: f64,
    /// Gradients that are there together with [`Memory::activations`].
    pub gradients: f64,
    /// AdamW's moments, and float32 weights where products read narrower ones.
    pub state: f64,
    /// What is kept from forward to backward, at the fullest moment.
    pub activations: f64,
    /// Logits of a pass, were they not computed in chunks.
    pub logits: f64,
    /// What one operation of backward needs beside: the residual stream's gradient, SwiGLU's output and its gradient.
    pub working: f64,
    /// Gathered rows and a gradient bucket on their way.
    pub buffers: f64,
}

impl Memory {
    /// The sum.
    pub fn total(&self) -> f64 {
        self.weights + self.gradients + self.state + self.activations + self.logits + self.working + self.buffers
    }
}

/// Energy and its carbon (the paper's section 6, equations of Wu et al. 2022).
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Energy {
    /// MWh.
    pub mwh: f64,
    /// Tonnes of CO2 equivalent.
    pub t_co2: f64,
}

impl Energy {
    /// Of so many device-hours.
    pub fn of(device_hours: f64, watts: f64, pue: f64, kg_co2_per_kwh: f64) -> Self {
        let mwh = device_hours * watts * pue / 1e6;
        Self { mwh, t_co2: mwh * kg_co2_per_kwh }
    }
}

/// What is to be expected.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterPlan {
    /// The split.
    pub mesh: Layout,
    /// Seconds of a step.
    pub step_s: f64,
    /// Tokens a second and device.
    pub tok_s_gpu: f64,
    /// Share of the device's peak: tokens a second times 6 N + 12 n_layers dim seq_len.
    pub mfu: f64,
    /// Steps of the run.
    pub steps: f64,
    /// Device-hours of the run.
    pub gpu_hours: f64,
    /// Days of the run.
    pub days: f64,
    /// Where the step goes.
    pub time: StepTime,
    /// What a device holds.
    pub memory: Memory,
    /// Whether it fits.
    pub fits: bool,
    /// What the run draws.
    pub energy: Energy,
}

/// The paper's mesh of a model of this size: model-parallel shards of its releases (`consolidated.NN.pth`).
pub fn paper_tp(model: &ModelConfig) -> usize {
    match model.num_params() {
        0..10_000_000_000 => 1,
        10_000_000_000..20_000_000_000 => 2,
        20_000_000_000..50_000_000_000 => 4,
        _ => 8,
    }
}

/// The paper's tokens of a model of this size: 1.0e12 of 7B and 13B, 1.4e12 of 33B and 65B.
pub fn paper_tokens(model: &ModelConfig) -> f64 {
    if model.num_params() < 20_000_000_000 { 1.0e12 } else { 1.4e12 }
}

/// Numbers that divide `n`, rising.
fn divisors(n: usize) -> impl DoubleEndedIterator<Item = usize> {
    (1..=n).filter(move |d| n.is_multiple_of(*d))
}

/// Whether a model can be split `tp`-fold on a cluster.
///
/// # Errors
/// [`Error::BadValue`] with the values that can.
pub fn check_tp(w: &Workload, cluster: &Cluster, tp: usize) -> Result<()> {
    let m = &w.model;
    let whole = [
        ("heads", m.n_heads),
        ("key/value heads", m.kv_heads()),
        ("tokens of the vocabulary", m.vocab_size),
        ("columns of the feed-forward", m.hidden_dim()),
        ("tokens of a sequence", w.seq_len),
    ];
    let node = cluster.devices_per_node;
    let on_nodes = |tp: usize| if tp <= node { node.is_multiple_of(tp) } else { tp.is_multiple_of(node) };
    let Some((what, n)) = whole.into_iter().find(|(_, n)| tp == 0 || !n.is_multiple_of(tp)) else {
        if on_nodes(tp) {
            return Ok(());
        }
        let problem = format!("{tp} devices a group would straddle nodes of {node}");
        return Err(Error::bad_value("--tp", problem, format!("take a divisor or a multiple of {node}")));
    };
    let can: Vec<_> =
        divisors(m.kv_heads()).filter(|tp| whole.iter().all(|(_, n)| n.is_multiple_of(*tp)) && on_nodes(*tp)).collect();
    let can: Vec<_> = can.iter().map(ToString::to_string).collect();
    Err(Error::bad_value("--tp", format!("{tp} does not divide {n} {what}"), format!("take one of: {}", can.join(", "))))
}

/// What is asked for; what is `None` is chosen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// Devices.
    pub devices: usize,
    /// [`Layout::tp`].
    pub tp: Option<usize>,
    /// [`Layout::micro_batch`]; otherwise the largest that fits.
    pub micro_batch: Option<usize>,
    /// [`Layout::sequence`]; otherwise wherever `tp` is above 1.
    pub sequence: Option<bool>,
    /// [`Layout::zero`]; otherwise 1.
    pub zero: Option<u8>,
}

/// The layout that is asked for, with the paper's choices where nothing is.
///
/// # Errors
/// [`Error::BadValue`] naming what cannot be split and what can.
pub fn layout(w: &Workload, cluster: &Cluster, wanted: &Wanted) -> Result<Layout> {
    let bad = |key: &str, problem: String, hint: String| Err(Error::bad_value(key, problem, hint));
    let devices = wanted.devices;
    if devices == 0 {
        return bad("--devices", "expected at least 1, got 0".into(), "the paper had 2048".into());
    }
    let tp = wanted.tp.unwrap_or_else(|| paper_tp(&w.model));
    check_tp(w, cluster, tp)?;
    if !devices.is_multiple_of(tp) {
        return bad(
            "--devices",
            format!("{devices} devices do not split into groups of {tp}"),
            format!("take a multiple of {tp}, or another --tp"),
        );
    }
    let dp = devices / tp;
    if w.batch == 0 || !w.batch.is_multiple_of(dp) {
        let near: Vec<_> =
            [(w.batch / dp) * dp, (w.batch / dp + 1) * dp].into_iter().filter(|b| *b > 0).map(|b| b.to_string()).collect();
        let problem = format!("{} sequences do not split over {dp} replicas", w.batch);
        return bad("--batch", problem, format!("take {}, or a larger --tp", near.join(" or ")));
    }
    let each = w.batch / dp;
    let with = |micro_batch: usize| Layout {
        dp,
        tp,
        sequence: wanted.sequence.unwrap_or(tp > 1),
        zero: wanted.zero.unwrap_or(1),
        micro_batch,
        micro_batches: each / micro_batch,
    };
    match wanted.micro_batch {
        Some(n) if n == 0 || !each.is_multiple_of(n) => {
            let can: Vec<_> = divisors(each).map(|d| d.to_string()).collect();
            bad(
                "--micro-batch",
                format!("{n} does not divide the {each} sequences of a replica"),
                format!("take one of: {}", can.join(", ")),
            )
        }
        Some(n) => Ok(with(n)),
        None => Ok(divisors(each).rev().map(with).find(|l| fits(cluster, &memory(w, cluster, l))).unwrap_or_else(|| with(1))),
    }
}

fn fits(cluster: &Cluster, memory: &Memory) -> bool {
    memory.total() <= cluster.device.memory_bytes.value - cluster.device.reserved_bytes.value
}

/// Buckets of the gradients, and their elements.
fn buckets(cluster: &Cluster, l: &Layout, parameters: f64) -> (f64, f64) {
    let s = &cluster.schedule;
    let least = s.bucket_elements.value.max(s.bucket_elements_per_rank.value * l.dp as f64);
    let n = (parameters / least.min(parameters)).ceil();
    (n, parameters / n)
}

/// What one device holds at the fullest moment of a step.
///
/// Backward frees a layer's activations as it makes the layer's gradients. On one replica with one pass a step these take the place of
/// those, and the fullest moment is the start of backward (all activations) or its end (all gradients). After earlier passes all
/// gradients are there at the start as well. With several replicas gradients leave, and weights come back, in buckets: blocks of
/// memory of another size than activations', which an allocator does not give the place of activations that were freed.
pub fn memory(w: &Workload, cluster: &Cluster, l: &Layout) -> Memory {
    let m = &w.model;
    let (tp, dp, c) = (l.tp as f64, l.dp as f64, w.compute_bytes as f64);
    let parameters = m.num_params() as f64 / tp;
    let (d, f, layers) = (m.dim as f64, m.hidden_dim() as f64, m.n_layers as f64);
    let (q, kv) = ((m.n_heads * m.head_dim()) as f64, (m.kv_heads() * m.head_dim()) as f64);
    let tokens = (l.micro_batch * w.seq_len) as f64;
    // Bytes a token. The residual stream is float32; without sequence parallelism every device holds all of it.
    let along = if l.sequence { tp } else { 1.0 };
    let residual = 4.0 * d / along;
    let linear = residual + (c * (2.0 * q + 2.0 * kv) + 4.0 * m.n_heads as f64 + c * 2.0 * f) / tp;
    let everything = linear + residual + 2.0 * c * d / along + c * f / tp;
    let (activations, of_one) = match w.keep {
        ActivationCheckpointing::None => (layers * everything, everything),
        ActivationCheckpointing::Selective => (layers * linear, linear),
        // One block is computed again at a time, whole.
        ActivationCheckpointing::Full => (layers * residual + everything - residual, everything),
    };
    let state = if w.compute_bytes == 4 { 8.0 } else { 12.0 };
    let (_, bucket) = buckets(cluster, l, parameters);
    let sharded = |least: u8| if l.zero >= least { dp } else { 1.0 };
    // In backward under the product for dX: the gathered gradient of the output, the gathered input, dX before it is scattered.
    let gathered = if l.tp > 1 { 3.0 * tokens * d * c } else { 0.0 };
    let all = w.gradient_bytes as f64 * parameters / sharded(2);
    // The first gradients that backward makes: the output projection's and the last w2's.
    let first = w.gradient_bytes as f64 * (m.vocab_size as f64 * d + d * f) / tp;
    let (gradients, activations) = if l.dp > 1 || l.micro_batches > 1 {
        (all, tokens * activations)
    } else if first + tokens * activations > all + tokens * of_one {
        (first, tokens * activations)
    } else {
        (all, tokens * of_one)
    };
    let cast = if w.compute_bytes == 4 { 0.0 } else { c * d };
    Memory {
        weights: c * parameters,
        gradients,
        state: state * parameters / sharded(1),
        activations,
        logits: tokens * m.vocab_size as f64 / tp * c,
        working: tokens * ((4.0 * d + cast) / along + 2.0 * c * f / tp),
        buffers: gathered + if l.dp > 1 { bucket * w.gradient_bytes as f64 } else { 0.0 },
    }
}

/// Bytes that the operations of a block without products move, a token and `d`, in 16 bits with a kernel an operation.
struct Elementwise {
    /// Split by `tp`.
    split: f64,
    /// Norms and the residual stream, which only sequence parallelism splits.
    whole: f64,
}

/// Forward, and backward without what is computed again.
fn elementwise(m: &ModelConfig) -> [Elementwise; 2] {
    let r = m.hidden_dim() as f64 / m.dim as f64;
    let kv = m.kv_heads() as f64 / m.n_heads as f64;
    let heads = 2.0 + 2.0 * kv; // q, k, v and the output, of d each
    let rope = (1.0 + kv) * 4.0;
    [
        // Rotary of q and k, layout of q, k, v and the output, SwiGLU in two kernels; two norms, two additions.
        Elementwise { split: rope + heads * 4.0 + r * 10.0, whole: 12.0 + 12.0 },
        // The same backward; two norms, two additions, and each token's share of adding float32 gradients of weights up.
        Elementwise { split: rope + heads * 6.0 + r * 16.0 + 20.0, whole: 20.0 + 12.0 },
    ]
}

/// Seconds of a step.
pub fn time(w: &Workload, cluster: &Cluster, l: &Layout) -> StepTime {
    let (m, device, schedule) = (&w.model, &cluster.device, &cluster.schedule);
    let (tp, n) = (l.tp as f64, l.micro_batches as f64);
    let (d, f, layers, vocab) = (m.dim as f64, m.hidden_dim() as f64, m.n_layers as f64, m.vocab_size as f64);
    let (q, kv) = ((m.n_heads * m.head_dim()) as f64, (m.kv_heads() * m.head_dim()) as f64);
    let tokens = (l.micro_batch * w.seq_len) as f64;
    let width = w.compute_bytes as f64 / 2.0;

    // A block: products, attention, the rest; (output, inner) of the matrices.
    let matrices = [((q + 2.0 * kv) / tp, d), (d, q / tp), (2.0 * f / tp, d), (d, f / tp)];
    let products: f64 = matrices.iter().map(|&(o, k)| cluster.matmul(tokens, o, k)).sum();
    let gradients: f64 = matrices.iter().map(|&(o, k)| cluster.matmul(tokens, k, o) + cluster.matmul(o, k, tokens)).sum();
    // Two products over the half of the square that the mask leaves; backward has five.
    let attention = 4.0 * (w.seq_len as f64) * tokens * q / 2.0 / tp;
    let along = if l.sequence { tp } else { 1.0 };
    let moved = |e: &Elementwise| cluster.memory_time(tokens * d * width * (e.split / tp + e.whole / along));
    let [forward_bytes, backward_bytes] = elementwise(m);
    let attention_forward = attention / device.attention_forward_flops.value;
    let forward = products + attention_forward + moved(&forward_bytes);
    let again = match w.keep {
        ActivationCheckpointing::None => 0.0,
        // All but the additions.
        ActivationCheckpointing::Selective => moved(&Elementwise { whole: forward_bytes.whole - 12.0, ..forward_bytes }),
        // All but the last product.
        ActivationCheckpointing::Full => forward - cluster.matmul(tokens, d, f / tp),
    };
    let backward = gradients + 2.5 * attention / device.attention_backward_flops.value + moved(&backward_bytes) + again;

    // The residual stream over a tensor-parallel group: half of an all-reduce.
    let half = cluster.half(l.tp, 1, tokens * d * w.compute_bytes as f64);
    let shown = 1.0 - schedule.tp_hidden.value;
    // Backward with sequence parallelism: two gathers of dY are exposed; two of the saved input and two scatters of dX hide.
    // Without it: two all-reduces of dX, which hide. A block that is computed again exchanges again.
    let exchanged = if w.keep == ActivationCheckpointing::Full { 3.0 } else { 0.0 };
    let (backward_all, backward_shown) = if l.sequence { (6.0, 2.0 + 4.0 * shown) } else { (4.0, 4.0 * shown) };
    let tp_backward = (backward_shown + exchanged) * half;

    // Embedding, output projection and loss: float32 statistics beside 16-bit logits; their exchanges are exposed.
    let head_products =
        cluster.matmul(tokens, vocab / tp, d) + cluster.matmul(tokens, d, vocab / tp) + cluster.matmul(vocab / tp, d, tokens);
    let head = head_products + cluster.memory_time(tokens * width * (vocab / tp * 14.0 + d * 40.0 / along));

    let (all_forward, all_backward) = (layers * forward + head / 3.0, layers * backward + head * 2.0 / 3.0);

    // Buckets of gradients under the last backward, of weights under the first forward.
    let parameters = m.num_params() as f64 / tp;
    let (count, elements) = buckets(cluster, l, parameters);
    let over_dp = |bytes: usize| cluster.half(l.dp, l.tp, elements * bytes as f64);
    // One bucket has nothing to hide under; of the others a share does, as far as there is computation.
    let exposed = |one: f64, under: f64| {
        let (rest, share) = ((count - 1.0) * one, schedule.dp_hidden.value);
        one + ((1.0 - share) * rest).max(rest - share * under)
    };
    let (scatter, gather) = (over_dp(w.gradient_bytes), over_dp(w.compute_bytes));
    let (under_backward, under_forward) = (all_backward + layers * tp_backward, all_forward + layers * 4.0 * half);
    let (dp_total, dp_exposed) = match l.zero {
        // An all-reduce is both halves of the gradients.
        0 => (count * 2.0 * scatter, exposed(2.0 * scatter, under_backward)),
        1 => (count * (scatter + gather), exposed(scatter, under_backward) + exposed(gather, under_forward)),
        // Sharded gradients leave the device after every pass.
        _ => (count * (n * scatter + gather), n * exposed(scatter, under_backward) + exposed(gather, under_forward)),
    };

    // AdamW on its shard, the norm over the local gradients, and the scalar that all ranks agree on.
    let shard = parameters / if l.zero == 0 { 1.0 } else { l.dp as f64 };
    let optimizer = cluster.memory_time(shard * 30.0 + parameters * 4.0) + if l.dp * l.tp > 1 { 0.003 } else { 0.0 };

    let mut time = StepTime {
        forward: n * all_forward,
        backward: n * all_backward,
        tp_exposed: n * (layers * (4.0 * half + tp_backward) + 4.0 * half),
        dp_exposed,
        optimizer,
        uncounted: 0.0,
        tp_total: n * (layers * (4.0 + backward_all + exchanged) * half + 4.0 * half),
        dp_total,
    };
    time.uncounted = time.total() * (1.0 / schedule.efficiency.value - 1.0);
    time
}

/// What is to be expected of a run on a cluster.
pub fn plan(w: &Workload, cluster: &Cluster, mesh: Layout) -> ClusterPlan {
    let (time, memory) = (time(w, cluster, &mesh), memory(w, cluster, &mesh));
    let (devices, step_s) = ((mesh.dp * mesh.tp) as f64, time.total());
    let per_step = (w.batch * w.seq_len) as f64;
    let tok_s_gpu = per_step / devices / step_s;
    let gpu_hours = w.tokens / tok_s_gpu / 3600.0;
    let (device, site) = (&cluster.device, &cluster.site);
    ClusterPlan {
        mesh,
        step_s,
        tok_s_gpu,
        mfu: tok_s_gpu * w.model.train_flop_per_token(w.seq_len) / device.peak_flops.value,
        steps: w.tokens / per_step,
        gpu_hours,
        days: gpu_hours / devices / 24.0,
        time,
        fits: fits(cluster, &memory),
        memory,
        energy: Energy::of(gpu_hours, device.watts.value, site.pue.value, site.kg_co2_per_kwh.value),
    }
}

/// What a search found.
#[derive(Clone, Debug, Serialize)]
pub struct Search {
    /// Those that fit, the fastest first, with what they keep for backward.
    pub found: Vec<(ActivationCheckpointing, ClusterPlan)>,
    /// Layouts that were reckoned.
    pub tried: usize,
    /// Of those, how many need more memory than there is.
    pub too_large: usize,
}

/// Every layout of so many devices: tensor-parallel sizes that the model and the node allow, micro-batches, what is kept, and
/// whether gradients are sharded. What `wanted` names stays as it is.
///
/// # Errors
/// As [`layout`], where no layout can be.
pub fn search(w: &Workload, cluster: &Cluster, wanted: &Wanted) -> Result<Search> {
    let mut out = Search { found: Vec::new(), tried: 0, too_large: 0 };
    let mut refused = None;
    let sizes = wanted.tp.map_or_else(|| divisors(w.model.kv_heads()).collect(), |tp| vec![tp]);
    for tp in sizes {
        if wanted.tp.is_none() && (tp > cluster.devices_per_node || check_tp(w, cluster, tp).is_err()) {
            continue;
        }
        // The first that is refused says why, should all be.
        let first = match layout(w, cluster, &Wanted { tp: Some(tp), ..*wanted }) {
            Ok(first) => first,
            Err(e) => {
                refused.get_or_insert(e);
                continue;
            }
        };
        let each = first.micro_batch * first.micro_batches;
        let micro = wanted.micro_batch.map_or_else(|| divisors(each).collect(), |n| vec![n]);
        for micro_batch in micro {
            for keep in ActivationCheckpointing::ALL {
                for zero in wanted.zero.map_or(vec![1, 2], |zero| vec![zero]) {
                    let w = Workload { keep, ..w.clone() };
                    let mesh = Layout { micro_batch, micro_batches: each / micro_batch, zero, ..first };
                    let plan = plan(&w, cluster, mesh);
                    out.tried += 1;
                    if plan.fits { out.found.push((keep, plan)) } else { out.too_large += 1 }
                }
            }
        }
    }
    if out.tried == 0
        && let Some(e) = refused
    {
        return Err(e);
    }
    // Of two that are as fast, the one that needs less.
    let key = |p: &ClusterPlan| (p.step_s, p.memory.total());
    out.found.sort_by(|(_, a), (_, b)| key(a).partial_cmp(&key(b)).unwrap_or(std::cmp::Ordering::Equal));
    Ok(out)
}
