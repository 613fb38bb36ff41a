//! The description of a cluster, from TOML: what a device computes, how fast its links are, how much of the traffic hides. Every
//! constant can say where it is from and whether it is fitted.

use std::path::Path;

use serde::de::{Error as _, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

use crate::config;
use crate::error::{Error, Result};

/// Descriptions that come with the program.
const BUILT_IN: [(&str, &str); 2] =
    [("a100-80", include_str!("../../assets/clusters/a100-80.toml")), ("h100", include_str!("../../assets/clusters/h100.toml"))];

/// A number of a description: `312e12`, or `{ value = 312e12, source = "...", fitted = true }`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Constant {
    /// In units of 1: bytes, seconds, operations a second, watts.
    pub value: f64,
    /// Where it is from; empty where the description does not say.
    pub source: String,
    /// Set so that a result comes out, rather than known beforehand.
    pub fitted: bool,
}

impl<'de> Deserialize<'de> for Constant {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Numbers;
        impl<'de> Visitor<'de> for Numbers {
            type Value = Constant;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number, or { value = NUMBER, source = TEXT, fitted = BOOL }")
            }

            fn visit_f64<E: serde::de::Error>(self, value: f64) -> std::result::Result<Constant, E> {
                Ok(Constant { value, source: String::new(), fitted: false })
            }

            fn visit_i64<E: serde::de::Error>(self, value: i64) -> std::result::Result<Constant, E> {
                self.visit_f64(value as f64)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Constant, A::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Stated {
                    value: toml::Value,
                    #[serde(default)]
                    source: String,
                    #[serde(default)]
                    fitted: bool,
                }
                let Stated { value, source, fitted } = Stated::deserialize(MapAccessDeserializer::new(map))?;
                let value = value.as_float().or(value.as_integer().map(|i| i as f64));
                Ok(Constant { value: value.ok_or_else(|| A::Error::custom("expected a number as `value`"))?, source, fitted })
            }
        }
        from.deserialize_any(Numbers)
    }
}

/// What a run's time, memory and energy follow from, beside the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// In a line.
    pub name: String,
    /// Devices that [`NodeLinks`] join.
    pub devices_per_node: usize,
    /// One device.
    pub device: Device,
    /// Inside a node.
    pub node: NodeLinks,
    /// Between nodes.
    pub network: Network,
    /// How computation and communication share a step.
    pub schedule: Schedule,
    /// Where it stands.
    pub site: Site,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Its memory.
    pub memory_bytes: Constant,
    /// Of that, what a run cannot use.
    pub reserved_bytes: Constant,
    /// Dense peak in the type of the products, a second: what the MFU is a share of.
    pub peak_flops: Constant,
    /// The best product that was measured.
    pub matmul_flops: Constant,
    /// Share of the clock that is held in a long run.
    pub clock: Constant,
    /// Tiles of a product that are computed at once.
    pub multiprocessors: Constant,
    /// Inner size at which a product reaches half of its speed.
    pub half_speed_k: Constant,
    /// Of its memory, bytes a second.
    pub memory_bandwidth: Constant,
    /// Share of it that operations without products reach.
    pub memory_efficiency: Constant,
    /// Of attention, on the products that the mask leaves, a second.
    pub attention_forward_flops: Constant,
    /// The same, backward.
    pub attention_backward_flops: Constant,
    /// Drawn under load.
    pub watts: Constant,
}

/// Links inside a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeLinks {
    /// Of a ring, a device and direction, bytes a second.
    pub bandwidth: Constant,
    /// A step of a ring, seconds.
    pub latency: Constant,
    /// A measured all-reduce over the whole node, `[bytes, microseconds]`, rising; without it the ring's formula is used.
    #[serde(default)]
    pub all_reduce: Vec<[f64; 2]>,
}

/// Links between nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// A device and direction, bytes a second.
    pub bandwidth: Constant,
    /// Share of it that is left for data.
    pub efficiency: Constant,
    /// A step of a ring, seconds.
    pub latency: Constant,
    /// Of every collective, seconds.
    pub start: Constant,
}

/// How computation and communication share a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Least elements of a gradient bucket.
    pub bucket_elements: Constant,
    /// The same, for each data-parallel rank.
    pub bucket_elements_per_rank: Constant,
    /// Share of the hideable data-parallel traffic that hides.
    pub dp_hidden: Constant,
    /// Share of the hideable tensor-parallel traffic that hides.
    pub tp_hidden: Constant,
    /// What is left of the speed after everything that is not counted.
    pub efficiency: Constant,
}

/// Energy and its carbon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Power usage effectiveness: the building's energy over the devices'.
    pub pue: Constant,
    /// Of the grid.
    pub kg_co2_per_kwh: Constant,
}

impl Cluster {
    /// A description that comes with the program, by name, or a TOML file.
    ///
    /// # Errors
    /// [`Error::BadValue`] and [`Error::UnknownKey`] naming file and key; [`Error::Io`].
    pub fn open(name: &str) -> Result<Self> {
        if let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
            return Self::parse(name, text);
        }
        let path = Path::new(name);
        if !path.exists() && path.extension().is_none_or(|e| e != "toml") {
            let known = BUILT_IN.map(|(name, _)| name).join(", ");
            return Err(Error::bad_value("--cluster", format!("no cluster `{name}`"), format!("take {known} or a TOML file")));
        }
        Self::parse(name, &std::fs::read_to_string(path).map_err(Error::io("read", path))?)
    }

    /// Reads a description; `origin` is what errors name.
    ///
    /// # Errors
    /// As [`Cluster::open`].
    pub fn parse(origin: &str, text: &str) -> Result<Self> {
        let hint = "`recua plan --cluster a100-80 --constants` shows a whole description";
        let cluster: Self = toml::from_str(text).map_err(|e| match config::parse_error(origin, &e) {
            Error::BadValue { key, problem, .. } => Error::bad_value(key, problem, hint),
            e => e,
        })?;
        cluster.validate(origin)?;
        Ok(cluster)
    }

    /// The description as TOML.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::internal("cluster", e.to_string()))
    }

    /// Every constant by its dotted name.
    pub fn constants(&self) -> Vec<(&'static str, &Constant)> {
        let Self { device: d, node, network, schedule, site, .. } = self;
        vec![
            ("device.memory_bytes", &d.memory_bytes),
            ("device.reserved_bytes", &d.reserved_bytes),
            ("device.peak_flops", &d.peak_flops),
            ("device.matmul_flops", &d.matmul_flops),
            ("device.clock", &d.clock),
            ("device.multiprocessors", &d.multiprocessors),
            ("device.half_speed_k", &d.half_speed_k),
            ("device.memory_bandwidth", &d.memory_bandwidth),
            ("device.memory_efficiency", &d.memory_efficiency),
            ("device.attention_forward_flops", &d.attention_forward_flops),
            ("device.attention_backward_flops", &d.attention_backward_flops),
            ("device.watts", &d.watts),
            ("node.bandwidth", &node.bandwidth),
            ("node.latency", &node.latency),
            ("network.bandwidth", &network.bandwidth),
            ("network.efficiency", &network.efficiency),
            ("network.latency", &network.latency),
            ("network.start", &network.start),
            ("schedule.bucket_elements", &schedule.bucket_elements),
            ("schedule.bucket_elements_per_rank", &schedule.bucket_elements_per_rank),
            ("schedule.dp_hidden", &schedule.dp_hidden),
            ("schedule.tp_hidden", &schedule.tp_hidden),
            ("schedule.efficiency", &schedule.efficiency),
            ("site.pue", &site.pue),
            ("site.kg_co2_per_kwh", &site.kg_co2_per_kwh),
        ]
    }

    fn validate(&self, origin: &str) -> Result<()> {
        let bad = |key: &str, expected: &str, got: f64| {
            let problem = format!("`{key}`: expected {expected}, got {got}");
            Err(Error::bad_value(origin, problem, "correct it; bytes, seconds, operations a second and watts are in units of 1"))
        };
        if self.devices_per_node == 0 {
            return bad("devices_per_node", "at least 1", 0.0);
        }
        for (key, constant) in self.constants() {
            let value = constant.value;
            let share = ["clock", "efficiency", "dp_hidden", "tp_hidden"].iter().any(|end| key.ends_with(end));
            let may_be_0 = share && key.ends_with("hidden")
                || ["latency", "start", "reserved_bytes", "half_speed_k", "per_kwh", "per_rank"]
                    .iter()
                    .any(|end| key.ends_with(end));
            if !(value.is_finite() && (value > 0.0 || may_be_0 && value == 0.0)) {
                return bad(key, if may_be_0 { "a number of at least 0" } else { "a number above 0" }, value);
            }
            if share && value > 1.0 {
                return bad(key, "a share, at most 1", value);
            }
        }
        if self.site.pue.value < 1.0 {
            return bad("site.pue", "at least 1", self.site.pue.value);
        }
        if self.device.reserved_bytes.value >= self.device.memory_bytes.value {
            return bad("device.reserved_bytes", "less than device.memory_bytes", self.device.reserved_bytes.value);
        }
        let curve = &self.node.all_reduce;
        if let Some(p) = curve.iter().flatten().find(|v| !(v.is_finite() && **v > 0.0)) {
            return bad("node.all_reduce", "numbers above 0", *p);
        }
        if let Some(pair) = curve.windows(2).find(|pair| pair[1][0] <= pair[0][0]) {
            return bad("node.all_reduce", &format!("rising sizes, after {}", pair[0][0]), pair[1][0]);
        }
        Ok(())
    }

    /// Devices of a group that share a node: groups of `inner` devices, which come first in the order of ranks, lie between.
    fn members_per_node(&self, ranks: usize, inner: usize) -> usize {
        ranks.min((self.devices_per_node / inner).max(1))
    }

    /// Seconds of a reduce-scatter or an all-gather of an array of so many bytes over a group of `ranks`, neighbours in which are
    /// `inner` devices apart. A ring, as NCCL reckons it: a step a rank, and (n - 1) / n of the bytes over the slowest link.
    pub fn half(&self, ranks: usize, inner: usize, bytes: f64) -> f64 {
        if ranks == 1 {
            return 0.0;
        }
        let (n, members) = (ranks as f64, self.members_per_node(ranks, inner));
        if members == ranks && inner == 1 && !self.node.all_reduce.is_empty() {
            // Half of a measured all-reduce, moved from the whole node to the group by the ring's (n - 1) / n.
            let all = self.devices_per_node as f64;
            return 0.5 * self.measured_all_reduce(bytes) * ((n - 1.0) / n) / ((all - 1.0) / all);
        }
        let nodes = ranks.div_ceil(members);
        let inside = if members > 1 { self.node.bandwidth.value } else { f64::INFINITY };
        let across = members as f64 * self.network.bandwidth.value * self.network.efficiency.value;
        let bandwidth = if nodes > 1 { inside.min(across) } else { inside };
        let steps = (ranks - nodes) as f64 * self.node.latency.value + (nodes - 1) as f64 * self.network.latency.value;
        self.network.start.value + steps + (n - 1.0) / n * bytes / bandwidth
    }

    /// Interpolated between the measured sizes, in logarithms; in proportion beyond the largest.
    fn measured_all_reduce(&self, bytes: f64) -> f64 {
        let curve = &self.node.all_reduce;
        let (first, last) = (curve[0], curve[curve.len() - 1]);
        let micros = if bytes <= first[0] {
            first[1]
        } else if let Some(pair) = curve.windows(2).find(|pair| bytes <= pair[1][0]) {
            let [[from, slow], [to, fast]] = [pair[0], pair[1]];
            let at = (bytes / from).ln() / (to / from).ln();
            (slow.ln() * (1.0 - at) + fast.ln() * at).exp()
        } else {
            last[1] * bytes / last[0]
        };
        micros * 1e-6
    }

    /// Seconds of a product `[m, k] x [k, n]`: the best that was measured, less what is lost where the last wave of tiles does not
    /// fill the device and where `k` is short.
    pub fn matmul(&self, m: f64, n: f64, k: f64) -> f64 {
        // What cuBLAS has for 16 bits: tiles, and what the smallest loses.
        const TILES: [(f64, f64, f64); 3] = [(256.0, 128.0, 1.0), (128.0, 256.0, 1.0), (128.0, 128.0, 0.93)];
        let d = &self.device;
        let filled = |(tile_m, tile_n, speed): (f64, f64, f64)| {
            let waves = ((m / tile_m).ceil() * (n / tile_n).ceil() / d.multiprocessors.value).ceil();
            speed * (m * n / (tile_m * tile_n)) / (waves * d.multiprocessors.value)
        };
        let best = TILES.into_iter().map(filled).fold(0.0, f64::max);
        let speed = d.matmul_flops.value * d.clock.value * best * k / (k + d.half_speed_k.value);
        2.0 * m * n * k / speed
    }

    /// Seconds to move bytes through a device's memory.
    pub fn memory_time(&self, bytes: f64) -> f64 {
        bytes / (self.device.memory_bandwidth.value * self.device.memory_efficiency.value)
    }
}
