//! The description of a cluster ([`Cluster`]), measured on the ranks that there are: what each device computes while all do, and what
//! crosses between them, by the engine that training uses.

use std::time::Instant;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Distribution, Tensor};

use super::bandwidth::{bandwidth, best};
use super::{BenchConfig, sync, train};
use crate::backend::DeviceContext;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::model::backward::ActivationCheckpointing;
use crate::ops::{Job, LlamaOps, SelfAttention, primitive};
use crate::parallel::cluster::{Cluster, Constant, Device, Network, NodeLinks, Schedule, Site};
use crate::parallel::comm::gather_numbers;
use crate::parallel::plan::{self, Layout, Workload};
use crate::parallel::{Collectives, Mesh, ParallelConfig};
use crate::train::step::{Precision, StepConfig};

/// What is measured, and what cannot be.
#[derive(Clone, Debug)]
pub struct ClusterBench {
    /// Type of the products' operands and of what crosses.
    pub precision: Precision,
    /// Seconds of each measurement.
    pub seconds: f64,
    /// The device's dense peak, operations a second; otherwise its best product.
    pub peak_flops: Option<f64>,
    /// Drawn by a device under load; otherwise 1, so that an energy is a time.
    pub watts: Option<f64>,
    /// Bytes of the largest exchange.
    pub largest: usize,
}

impl Default for ClusterBench {
    fn default() -> Self {
        Self { precision: Precision::F32, seconds: 0.5, peak_flops: None, watts: None, largest: 64 << 20 }
    }
}

/// Bytes of the smallest exchange: its time is a ring's latency.
const SMALLEST: usize = 4 << 10;

/// Measures; every rank calls it, and all get the same. `mesh`: as many ranks a group of `tp` as there are devices in a node, and the
/// nodes as replicas; `None`: there is one device.
///
/// # Errors
/// Those of the device, [`Error::Communication`], [`Error::BadValue`] for settings that cannot be.
pub fn cluster(context: &DeviceContext, mesh: Option<&Mesh>, name: &str, config: &ClusterBench) -> Result<Cluster> {
    struct Measure<'a>(Option<&'a Mesh>, &'a str, &'a ClusterBench, Option<u64>, bool);
    impl Job for Measure<'_> {
        type Output = Cluster;
        fn run<B: LlamaOps>(self, device: B::Device) -> Result<Cluster> {
            let Self(mesh, name, config, memory, cpu) = self;
            config.precision.check::<B>(&device)?;
            let ranks = Ranks { mesh, config, cpu };
            ranks.cluster::<B>(&device, name, memory)
        }
    }
    if !(config.seconds > 0.0 && config.seconds <= 60.0) {
        return Err(Error::bad_value("--seconds", format!("expected seconds above 0, got {}", config.seconds), "0.5 is usual"));
    }
    context.run(Measure(mesh, name, config, context.name().memory(), context.name().kind().is_cpu()))
}

struct Ranks<'a> {
    mesh: Option<&'a Mesh>,
    config: &'a ClusterBench,
    cpu: bool,
}

fn measured(value: f64, source: &str) -> Constant {
    Constant { value, source: format!("measured: {source}"), fitted: false }
}

fn stated(value: f64, source: &str) -> Constant {
    Constant { value, source: source.into(), fitted: false }
}

/// What exchanges over a group take.
struct Exchanges {
    /// `[bytes, microseconds]` of all-reduces, rising.
    all_reduce: Vec<[f64; 2]>,
    /// Bytes a second of a ring.
    bandwidth: f64,
    /// Seconds of a ring's step.
    latency: f64,
}

impl Ranks<'_> {
    fn dtype(&self) -> DType {
        self.config.precision.dtype()
    }

    /// Begins together.
    fn together(&self) -> Result<()> {
        self.mesh.map_or(Ok(()), |mesh| mesh.world().barrier().wait().map(drop))
    }

    /// The least of all ranks.
    fn least(&self, own: f64) -> Result<f64> {
        let Some(mesh) = self.mesh else { return Ok(own) };
        Ok(gather_numbers(mesh.world(), &[own])?.iter().map(|one| one[0]).fold(f64::INFINITY, f64::min))
    }

    fn most(&self, own: f64) -> Result<f64> {
        self.least(-own).map(|least| -least)
    }

    /// Seconds of the fastest call on the slowest rank, while all make it.
    fn best(&self, call: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        self.together()?;
        let own = best(self.config.seconds, call)?;
        self.most(own)
    }

    fn random<B: LlamaOps>(&self, shape: [usize; 2], device: &B::Device) -> FloatTensor<B> {
        primitive(Tensor::<B, 2>::random(shape, Distribution::Normal(0.0, 1.0), device).cast(self.dtype()))
    }

    fn cluster<B: LlamaOps>(&self, device: &B::Device, name: &str, memory: Option<u64>) -> Result<Cluster> {
        let per_node = self.mesh.map_or(1, |mesh| mesh.part().of);
        let (links, hidden) = self.links::<B>(device)?;
        let mut cluster = Cluster {
            name: name.into(),
            devices_per_node: per_node,
            device: self.device::<B>(device, memory, per_node)?,
            node: links.0,
            network: links.1,
            schedule: Schedule {
                bucket_elements: stated(ParallelConfig::default().bucket as f64, "parallel.bucket"),
                bucket_elements_per_rank: stated(0.0, "buckets do not grow with the ranks"),
                dp_hidden: hidden.clone(),
                tp_hidden: hidden,
                efficiency: stated(1.0, ""),
            },
            site: Site { pue: stated(1.0, "not measured"), kg_co2_per_kwh: stated(0.0, "not measured") },
        };
        cluster.schedule.efficiency = self.efficiency::<B>(device, &cluster)?;
        Ok(cluster)
    }

    fn device<B: LlamaOps>(&self, device: &B::Device, memory: Option<u64>, per_node: usize) -> Result<Device> {
        // Products of a width, by their inner size k: their time is in proportion to k + half_speed_k.
        let (n, ks): (usize, &[usize]) =
            if self.cpu { (1024, &[64, 128, 256, 512, 1024]) } else { (4096, &[64, 128, 256, 512, 1024, 4096]) };
        let mut points = Vec::new();
        for &k in ks {
            let (x, w) = (self.random::<B>([n, k], device), self.random::<B>([n, k], device));
            let seconds = self.best(&mut || {
                drop(B::project(x.clone(), w.clone(), self.dtype()));
                sync::<B>(device)
            })?;
            points.push((k as f64, seconds / (2.0 * (n * n) as f64)));
        }
        let (at_0, a_k) = line(&points);
        let longest = points[points.len() - 1];
        // Where small products are not slower the line passes below zero.
        let (speed, half_k) = if a_k > 0.0 && at_0 > 0.0 { (1.0 / a_k, at_0 / a_k) } else { (longest.0 / longest.1, 0.0) };
        let best_speed = longest.0 / longest.1;

        // The same for longer: what of it is held.
        let k = ks[ks.len() - 1];
        let (x, w) = (self.random::<B>([n, k], device), self.random::<B>([n, k], device));
        self.together()?;
        let (began, mut products) = (Instant::now(), 0u32);
        while products == 0 || began.elapsed().as_secs_f64() < 4.0 * self.config.seconds {
            drop(B::project(x.clone(), w.clone(), self.dtype()));
            sync::<B>(device)?;
            products += 1;
        }
        let held = 2.0 * (n * n * k) as f64 * f64::from(products) / began.elapsed().as_secs_f64();
        let held = self.least(held / best_speed)?.clamp(0.01, 1.0);

        self.together()?;
        let memory_bandwidth = self.least(bandwidth::<B>(device, self.cpu)?)?;
        // An addition reads two tensors and writes one.
        let elements = if self.cpu { 16 << 20 } else { 64 << 20 };
        let (a, b) = (self.random::<B>([elements / 1024, 1024], device), self.random::<B>([elements / 1024, 1024], device));
        let seconds = self.best(&mut || {
            drop(B::float_add(a.clone(), b.clone()));
            sync::<B>(device)
        })?;
        let moved = (3 * elements * self.dtype().size()) as f64 / seconds;
        let [forward, backward] = self.attention::<B>(device)?;

        let memory = memory.map_or(0.0, |bytes| bytes as f64 / if self.cpu { per_node as f64 } else { 1.0 });
        let of = if self.cpu { "the machine's, shared by its ranks" } else { "as the driver says" };
        Ok(Device {
            memory_bytes: stated(memory.max(1.0), if memory > 0.0 { of } else { "not known" }),
            reserved_bytes: stated(0.0, "not measured"),
            peak_flops: match self.config.peak_flops {
                Some(peak) => stated(peak, "stated"),
                None => measured(best_speed.max(speed), "the best product; state the hardware's own for an MFU"),
            },
            matmul_flops: measured(speed, &format!("products {n} x {n} x k, k to infinity")),
            clock: measured(held, "share of the best that is held for longer, while all ranks compute"),
            multiprocessors: stated(1.0, "not told apart from the size of a product"),
            half_speed_k: measured(half_k, &format!("products {n} x {n} x k")),
            memory_bandwidth: measured(memory_bandwidth, if self.cpu { "reads by all threads" } else { "a copy" }),
            memory_efficiency: measured((moved / memory_bandwidth).clamp(0.01, 1.0), "an addition of two tensors"),
            attention_forward_flops: measured(forward, "8 heads of 64, 1024 tokens, on the products that the mask leaves"),
            attention_backward_flops: measured(backward, "likewise"),
            watts: match self.config.watts {
                Some(watts) => stated(watts, "stated"),
                None => stated(1.0, "not measured: state it for an energy"),
            },
        })
    }

    /// Operations a second of causal attention, forward and backward, counted as [`plan::time`] counts them.
    fn attention<B: LlamaOps>(&self, device: &B::Device) -> Result<[f64; 2]> {
        const HEADS: usize = 8;
        const WIDTH: usize = 64;
        const SEQ: usize = 1024;
        let shape = [1, SEQ, 3 * HEADS, WIDTH];
        let qkv = primitive(Tensor::<B, 4>::random(shape, Distribution::Normal(0.0, 1.0), device).cast(self.dtype()));
        let s = SelfAttention { kv_heads: HEADS, doc_starts: None, scale: 0.125 };
        let forward = self.best(&mut || {
            drop(B::self_attention_forward(qkv.clone(), s.clone()));
            sync::<B>(device)
        })?;
        let (out, lse) = B::self_attention_forward(qkv.clone(), s.clone());
        let backward = self.best(&mut || {
            drop(B::self_attention_backward(qkv.clone(), s.clone(), out.clone(), lse.clone(), out.clone()));
            sync::<B>(device)
        })?;
        let flop = 4.0 * (SEQ * SEQ * HEADS * WIDTH) as f64 / 2.0;
        Ok([flop / forward, 2.5 * flop / backward])
    }

    /// Links inside a node and between nodes, and how much of an exchange hides under computation.
    fn links<B: LlamaOps>(&self, device: &B::Device) -> Result<((NodeLinks, Network), Constant)> {
        let group = |size: usize, of: fn(&Mesh) -> std::sync::Arc<dyn Collectives<B>>| {
            self.mesh.filter(|_| size > 1).map(of).map(|group| self.exchanges::<B>(group.as_ref(), device)).transpose()
        };
        let inside = group(self.mesh.map_or(1, |mesh| mesh.part().of), Mesh::tensor_collectives::<B>)?;
        let across = group(self.mesh.map_or(1, |mesh| mesh.replica().of), Mesh::data_collectives::<B>)?;
        let nobody = "not measured: there is no second device";
        // A plan for more devices than there are has nothing better to go by.
        let inside_too = "not measured: there is no second node; as inside of one";
        let node = match &inside {
            Some(e) => NodeLinks {
                bandwidth: measured(e.bandwidth, "a reduce-scatter of the largest size"),
                latency: measured(e.latency, "a reduce-scatter of the smallest size"),
                all_reduce: e.all_reduce.clone(),
            },
            None => NodeLinks { bandwidth: stated(1e9, nobody), latency: stated(1e-5, nobody), all_reduce: Vec::new() },
        };
        let network = match (&across, &inside) {
            (Some(e), _) => [
                measured(e.bandwidth, "a reduce-scatter of the largest size, of all devices of a node at once"),
                measured(e.latency, "a reduce-scatter of the smallest size"),
            ],
            (None, Some(_)) => [stated(node.bandwidth.value, inside_too), stated(node.latency.value, inside_too)],
            (None, None) => [stated(1e9, nobody), stated(1e-5, nobody)],
        };
        let [bandwidth, latency] = network;
        let efficiency = stated(1.0, "the bandwidth is what was left for data");
        let network = Network { bandwidth, efficiency, latency, start: stated(0.0, "part of the latency") };
        Ok(((node, network), self.hidden::<B>(device)?))
    }

    fn exchanges<B: LlamaOps>(&self, group: &dyn Collectives<B>, device: &B::Device) -> Result<Exchanges> {
        let (n, width) = (group.size(), self.dtype().size());
        let mut curve = Vec::new();
        let (mut first, mut last) = (None, (0.0, 0.0));
        let mut bytes = SMALLEST;
        while bytes <= self.config.largest.max(SMALLEST) {
            // Rows that the ranks share out.
            let rows = bytes / width / n * n;
            let x = self.random::<B>([rows, 1], device);
            let all = self.exchange(&mut || group.all_reduce(x.clone()).wait().map(drop))?;
            let half = self.exchange(&mut || group.reduce_scatter(x.clone()).wait().map(drop))?;
            curve.push([(rows * width) as f64, all * 1e6]);
            first.get_or_insert(half);
            last = ((rows * width) as f64, half);
            bytes *= 4;
        }
        let (n, first) = (n as f64, first.unwrap_or(0.0));
        let (size, time) = last;
        let latency = first / (n - 1.0);
        let bandwidth = (n - 1.0) / n * size / (time - first).max(time * 0.01);
        Ok(Exchanges { all_reduce: curve, bandwidth, latency })
    }

    /// Seconds of an exchange, the median of those that fit into the time; as many on every rank.
    fn exchange(&self, call: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        self.together()?;
        let began = Instant::now();
        call()?;
        let once = self.most(began.elapsed().as_secs_f64())?;
        let calls = (self.config.seconds / once.max(1e-9)).clamp(3.0, 1000.0) as usize;
        let mut times = Vec::new();
        for _ in 0..calls {
            let began = Instant::now();
            call()?;
            times.push(began.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        self.most(times[times.len() / 2])
    }

    /// The share of an exchange that goes on while the device computes for as long.
    fn hidden<B: LlamaOps>(&self, device: &B::Device) -> Result<Constant> {
        let Some(mesh) = self.mesh else { return Ok(stated(0.0, "not measured: there is no second device")) };
        let group = if mesh.part().of > 1 { mesh.tensor_collectives::<B>() } else { mesh.data_collectives::<B>() };
        let rows = self.config.largest / self.dtype().size() / group.size() * group.size();
        let x = self.random::<B>([rows, 1], device);
        let n = if self.cpu { 512 } else { 4096 };
        let w = self.random::<B>([n, n], device);
        let product = || {
            drop(B::project(w.clone(), w.clone(), self.dtype()));
            sync::<B>(device)
        };
        let exchange = self.exchange(&mut || group.all_reduce(x.clone()).wait().map(drop))?;
        let once = self.best(&mut || product())?;
        let products = (exchange / once).ceil().clamp(1.0, 1e6) as usize;
        let computed = self.exchange(&mut || (0..products).try_for_each(|_| product()))?;
        let both = self.exchange(&mut || {
            let under_way = group.all_reduce(x.clone());
            (0..products).try_for_each(|_| product())?;
            under_way.wait().map(drop)
        })?;
        let share = ((exchange + computed - both) / exchange.min(computed)).clamp(0.0, 1.0);
        Ok(measured(share, "an all-reduce under products that take as long"))
    }

    /// What is left of the speed that the constants before promise: a training step planned, over one that was made.
    fn efficiency<B: LlamaOps>(&self, device: &B::Device, cluster: &Cluster) -> Result<Constant> {
        let (batch, seq_len) = (4, 256);
        let model = ModelConfig {
            dim: 256,
            n_layers: 4,
            n_heads: 4,
            vocab_size: 2048,
            ffn_dim: Some(704),
            max_seq_len: seq_len,
            ..ModelConfig::default()
        };
        let keep = ActivationCheckpointing::default();
        let bytes = self.dtype().size();
        let w = Workload { model: model.clone(), seq_len, batch, tokens: 1.0, keep, compute_bytes: bytes, gradient_bytes: 4 };
        let layout = Layout { dp: 1, tp: 1, sequence: false, zero: 1, micro_batch: batch, micro_batches: 1 };
        let planned = plan::time(&w, cluster, &layout).total();
        let step = StepConfig { precision: self.config.precision, checkpointing: keep, ..StepConfig::default() };
        let steps = (self.config.seconds / 0.05).clamp(2.0, 20.0) as usize;
        let config = BenchConfig { model, batch, seq_len, steps, step, full_square: false };
        self.together()?;
        let made = self.most(train::<B>(&config, device)?.step_s)?;
        let source = "a step of 4M parameters, planned over made";
        let value = planned / made;
        // A plan that is too slow says so by a factor of 1: a step is not sped up by what is not counted.
        Ok(Constant { value: value.clamp(0.01, 1.0), source: source.into(), fitted: true })
    }
}

/// Least squares: `y` at 0, and its slope. Distances count relative to `y`, so that small ones are not lost.
fn line(points: &[(f64, f64)]) -> (f64, f64) {
    let (mut s, mut sx, mut sy, mut sxx, mut sxy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for &(x, y) in points {
        let weight = 1.0 / (y * y).max(f64::MIN_POSITIVE);
        s += weight;
        sx += weight * x;
        sy += weight * y;
        sxx += weight * x * x;
        sxy += weight * x * y;
    }
    let slope = (s * sxy - sx * sy) / (s * sxx - sx * sx);
    ((sy - slope * sx) / s, slope)
}
