//! `recua plan --cluster`

use clap::Args;
use recua::parallel::ParallelConfig;
use recua::parallel::cluster::Cluster;
use recua::parallel::plan::{self, ClusterPlan, Energy, Wanted, Workload};
use recua::train::RunConfig;
use recua::train::step::Precision;
use recua::{Error, Result};
use serde_json::json;

/// How many layouts a search shows.
const SHOWN: usize = 10;

#[derive(Args)]
#[command(next_help_heading = "Clusters")]
pub(super) struct ClusterFlags {
    /// Time, memory and energy of a run on a cluster: a100-80, h100, or a TOML file that describes one
    #[arg(long, value_name = "NAME|FILE")]
    pub(super) cluster: Option<String>,
    /// Devices that share each matrix [default: the paper's: 1, 2, 4, 8 by size]
    #[arg(long, value_name = "N", requires = "cluster")]
    tp: Option<usize>,
    /// What is sharded over the replicas: 0 nothing, 1 the optimizer's state, 2 gradients too [default: 1]
    #[arg(long, value_name = "N", requires = "cluster", value_parser = clap::value_parser!(u8).range(0..=2))]
    zero: Option<u8>,
    /// Norms and the residual stream split along the sequence [default: where --tp is above 1]
    #[arg(long, value_name = "BOOL", requires = "cluster")]
    sequence: Option<bool>,
    /// Tokens of the whole run, e.g. 1.4e12 [default: the paper's, by size]
    #[arg(long, value_name = "N", requires = "cluster")]
    tokens: Option<f64>,
    /// Type of the gradients, in memory and on the wire
    #[arg(long, value_name = "TYPE", requires = "cluster", value_parser = ["bf16", "f32"])]
    gradients: Option<String>,
    /// The best layouts of so many devices
    #[arg(long, requires = "cluster", conflicts_with_all = ["constants", "gpu_hours"])]
    search: bool,
    /// Nothing runs under anything else
    #[arg(long, requires = "cluster")]
    no_overlap: bool,
    /// The description of the cluster, each constant with its source
    #[arg(long, requires = "cluster")]
    constants: bool,
    /// Energy of this time instead of the planned one
    #[arg(long, value_name = "H", requires = "cluster")]
    gpu_hours: Option<f64>,
    /// Of a device, for the energy [default: the description's]
    #[arg(long, value_name = "W", requires = "cluster")]
    watts: Option<f64>,
    /// The building's energy over the devices' [default: the description's]
    #[arg(long, value_name = "X", requires = "cluster")]
    pue: Option<f64>,
    /// Of the grid, kg CO2 a kWh [default: the description's]
    #[arg(long, value_name = "KG", requires = "cluster", value_name = "KG")]
    co2: Option<f64>,
}

/// A share as `49.5 %`.
fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// `1022362` as `1,022,362`.
fn grouped(n: f64) -> String {
    let digits = format!("{n:.0}");
    let start = digits.len() % 3;
    let groups = digits.as_bytes()[start..].chunks(3).map(|group| String::from_utf8_lossy(group).into_owned());
    let first = (start > 0).then(|| digits[..start].to_string());
    first.into_iter().chain(groups).collect::<Vec<_>>().join(",")
}

fn gb(bytes: f64) -> String {
    format!("{:>8.2} GB", bytes / 1e9)
}

impl ClusterFlags {
    /// The description, with the flags over it.
    fn open(&self, name: &str) -> Result<Cluster> {
        let mut cluster = Cluster::open(name)?;
        for (flag, given, constant, least) in [
            ("--watts", self.watts, &mut cluster.device.watts, f64::MIN_POSITIVE),
            ("--pue", self.pue, &mut cluster.site.pue, 1.0),
            ("--co2", self.co2, &mut cluster.site.kg_co2_per_kwh, 0.0),
        ] {
            let Some(value) = given else { continue };
            number(flag, value, least)?;
            (constant.value, constant.source, constant.fitted) = (value, flag.into(), false);
        }
        if self.no_overlap {
            for hidden in [&mut cluster.schedule.dp_hidden, &mut cluster.schedule.tp_hidden] {
                (hidden.value, hidden.source) = (0.0, "--no-overlap".into());
            }
        }
        Ok(cluster)
    }

    /// `parallel` is there where a file or --set says how ranks are divided.
    pub(super) fn run(
        &self,
        name: &str,
        config: &RunConfig,
        parallel: Option<&ParallelConfig>,
        devices: usize,
        micro_batch: Option<usize>,
        json: bool,
    ) -> Result<()> {
        let cluster = self.open(name)?;
        if self.constants {
            if json {
                return super::super::print_json(&cluster);
            }
            constants(&cluster);
            return Ok(());
        }
        let model = config.model.clone();
        let tokens = self.tokens.unwrap_or_else(|| plan::paper_tokens(&model));
        number("--tokens", tokens, 1.0)?;
        let compute_bytes = if config.train.precision == Precision::F32 { 4 } else { 2 };
        let gradient_bytes = match self.gradients.as_deref() {
            Some("f32") => 4,
            Some(_) => 2,
            None => compute_bytes,
        };
        let (seq_len, batch, keep) = (config.seq_len(), config.train.batch, config.train.checkpointing);
        let w = Workload { model, seq_len, batch, tokens, keep, compute_bytes, gradient_bytes };
        let wanted = Wanted {
            devices,
            tp: self.tp.or(parallel.map(|p| p.tp)),
            micro_batch: micro_batch.or(config.train.micro_batch),
            sequence: self.sequence.or(parallel.map(|p| p.sequence)),
            zero: self.zero.or(parallel.map(|p| p.zero)),
        };
        if self.search {
            return search(&w, &cluster, &wanted, json);
        }
        let mut p = plan::plan(&w, &cluster, plan::layout(&w, &cluster, &wanted)?);
        if let Some(hours) = self.gpu_hours {
            number("--gpu-hours", hours, 0.0)?;
            let (device, site) = (&cluster.device, &cluster.site);
            p.energy = Energy::of(hours, device.watts.value, site.pue.value, site.kg_co2_per_kwh.value);
        }
        if json {
            let mut all = serde_json::to_value(&p).map_err(|e| Error::internal("--json", e.to_string()))?;
            all["cluster"] = json!(cluster.name);
            all["devices"] = json!(devices);
            all["parameters"] = json!(w.model.num_params());
            all["tokens_per_step"] = json!(w.batch * w.seq_len);
            all["memory"]["total"] = json!(p.memory.total());
            all["fitted"] = json!(fitted(&cluster));
            return super::super::print_json(&all);
        }
        table(&w, &cluster, &p, self.gpu_hours.unwrap_or(p.gpu_hours));
        Ok(())
    }
}

fn number(flag: &str, value: f64, least: f64) -> Result<()> {
    if value.is_finite() && value >= least {
        return Ok(());
    }
    Err(Error::bad_value(flag, format!("expected a number of at least {least}, got {value}"), "leave it out for the default"))
}

fn fitted(cluster: &Cluster) -> Vec<&'static str> {
    cluster.constants().into_iter().filter(|(_, c)| c.fitted).map(|(name, _)| name).collect()
}

fn constants(cluster: &Cluster) {
    super::super::print(&format!("{}; {} devices a node", cluster.name, cluster.devices_per_node));
    for (name, c) in cluster.constants() {
        let source = if c.source.is_empty() { "no source stated" } else { &c.source };
        super::super::print(&format!("{name:<34}{:>12}  {}{source}", exponent(c.value), if c.fitted { "FITTED: " } else { "" }));
    }
    let points = cluster.node.all_reduce.len();
    super::super::print(&format!("{:<34}{points:>12}  measured sizes; without any, a ring's formula", "node.all_reduce"));
}

/// `312e12`, `0.93`
fn exponent(value: f64) -> String {
    if value != 0.0 && !(1e-3..1e6).contains(&value) { format!("{value:e}") } else { format!("{value}") }
}

/// In words.
fn mesh(l: &plan::Layout) -> String {
    let sequence = if l.sequence { ", sequence parallel" } else { "" };
    let passes = if l.micro_batches == 1 { "1 pass".into() } else { format!("{} passes", l.micro_batches) };
    format!("dp {} x tp {}{sequence}, ZeRO-{}, {passes} of {} sequences a replica", l.dp, l.tp, l.zero, l.micro_batch)
}

fn table(w: &Workload, cluster: &Cluster, p: &ClusterPlan, hours: f64) {
    let say = super::super::print;
    let human = super::super::human;
    let keep = toml::Value::try_from(w.keep).map_or(String::new(), |v| v.as_str().unwrap_or_default().into());
    say(&format!(
        "{} parameters; {} tokens in {} steps of {} x {}",
        human(w.model.num_params() as f64),
        human(w.tokens),
        human(p.steps),
        w.batch,
        w.seq_len
    ));
    say(&format!("{} devices: {}", p.mesh.dp * p.mesh.tp, cluster.name));
    say(&format!("{}; keep {keep}\n", mesh(&p.mesh)));

    let (t, of) = (&p.time, |total: f64, exposed: f64| {
        let hidden = if total > 0.0 { 1.0 - exposed / total } else { 0.0 };
        format!("of {total:.3} s; {} hidden", percent(hidden))
    });
    say(&format!("{:<36}{:>9}{:>9}", "one step", "seconds", "share"));
    for (name, seconds, what) in [
        ("forward, computing", t.forward, String::new()),
        ("backward, computing", t.backward, String::new()),
        ("tensor-parallel exchanges, exposed", t.tp_exposed, of(t.tp_total, t.tp_exposed)),
        ("data-parallel exchanges, exposed", t.dp_exposed, of(t.dp_total, t.dp_exposed)),
        ("optimizer", t.optimizer, String::new()),
        ("what is not counted", t.uncounted, format!("schedule.efficiency = {}", cluster.schedule.efficiency.value)),
        ("step", p.step_s, String::new()),
    ] {
        say(format!("{name:<36}{seconds:>9.3}{:>9}  {what}", percent(seconds / p.step_s)).trim_end());
    }
    let m = &p.memory;
    say("\nmemory of a device");
    for (name, bytes) in [
        ("weights, as products read them", m.weights),
        ("gradients", m.gradients),
        ("optimizer's state", m.state),
        ("activations", m.activations),
        ("logits", m.logits),
        ("tensors of an operation", m.working),
        ("exchange buffers", m.buffers),
        ("sum", m.total()),
    ] {
        say(&format!("{name:<36}{}", gb(bytes)));
    }
    let room = cluster.device.memory_bytes.value - cluster.device.reserved_bytes.value;
    say(&format!(
        "{} into {} ({} less what a run cannot use)",
        fit_word(p),
        gb(room).trim(),
        gb(cluster.device.memory_bytes.value).trim()
    ));
    if !p.fits {
        say("less: a smaller --micro-batch, a larger --tp, --zero 2, --keep block; --search tries them");
    }
    say(&format!(
        "\n{:.1} tok/s/GPU; MFU {} (6 N + 12 n_layers dim seq_len, over {:.0} TFLOP/s)",
        p.tok_s_gpu,
        percent(p.mfu),
        cluster.device.peak_flops.value / 1e12
    ));
    let energy = format!("{:.0} MWh and {:.0} t of CO2", p.energy.mwh, p.energy.t_co2);
    say(&format!("{:.1} days, {} GPU-hours; {} GPU-hours draw {energy}", p.days, grouped(p.gpu_hours), grouped(hours)));
    let fitted = fitted(cluster);
    let said = if fitted.is_empty() { "nothing".into() } else { fitted.join(", ") };
    say(&format!("fitted: {said}; every constant with its source: --constants"));
}

fn fit_word(p: &ClusterPlan) -> &'static str {
    if p.fits { "fits" } else { "does not fit" }
}

fn search(w: &Workload, cluster: &Cluster, wanted: &Wanted, json: bool) -> Result<()> {
    let found = plan::search(w, cluster, wanted)?;
    if found.found.is_empty() {
        let problem = format!("none of {} layouts of {} devices fits into their memory", found.tried, wanted.devices);
        return Err(Error::bad_value("--search", problem, "take more devices, or a smaller model or batch"));
    }
    if json {
        let plans = found.found.iter().take(SHOWN).map(|(keep, p)| json!({ "keep": keep, "plan": p }));
        let plans: Vec<_> = plans.collect();
        return super::super::print_json(&json!({ "tried": found.tried, "too_large": found.too_large, "best": plans }));
    }
    let say = super::super::print;
    say(&format!("{} layouts, {} too large; the fastest:\n", found.tried, found.too_large));
    say(&format!("{:>10} {:>7} {:>10} {:>8}  layout", "tok/s/GPU", "MFU", "days", "memory"));
    for (keep, p) in found.found.iter().take(SHOWN) {
        let keep = toml::Value::try_from(*keep).map_or(String::new(), |v| v.as_str().unwrap_or_default().into());
        let memory = format!("{:.1} GB", p.memory.total() / 1e9);
        say(&format!("{:>10.1} {:>7} {:>10.2} {memory:>8}  {}, keep {keep}", p.tok_s_gpu, percent(p.mfu), p.days, mesh(&p.mesh)));
    }
    Ok(())
}
