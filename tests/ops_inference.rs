//! The operations of inference together: sampling by its distribution, steps that follow each other on the device, launches of a step.

#[cfg(feature = "wgpu")]
use recua::backend::BackendName;
use recua::model::{InitConfig, Llama, ModelConfig};
#[cfg(feature = "wgpu")]
use recua::ops::launches;
use recua::ops::{
    BatchRows, CacheRows, Job, KvDtype, KvPool, KvShape, LlamaOps, SampleRows, embed_parts, project_parts, rows_of_part,
};

use crate::ops::{backends, random};

/// Tokens are drawn as often as their probabilities say: Pearson's statistic over 16,384 draws on every backend.
#[test]
fn samples_have_the_distribution_of_the_settings() {
    struct Draw(SampleRows, Vec<f32>);
    impl Job for Draw {
        type Output = Vec<i32>;
        fn run<B: LlamaOps>(self, device: B::Device) -> recua::Result<Vec<i32>> {
            use burn::tensor::{Int, Tensor, TensorData};
            let n = self.0.len();
            let logits = Tensor::<B, 2>::from_data(TensorData::new(self.1.clone(), [1, self.1.len()]), &device).repeat_dim(0, n);
            let ids = B::sample_rows(logits.into_primitive().tensor(), &self.0);
            Ok(Tensor::<B, 1, Int>::from_primitive(ids).into_data().iter::<i32>().collect())
        }
    }
    const DRAWS: usize = 16_384;
    let logits: Vec<f32> = random(7, 60).iter().map(|x| (x * 6.0).round() as f32 / 2.0).collect();
    let uniforms = random(8, DRAWS);
    for backend in backends() {
        for (temperature, top_k, top_p, min_p) in [
            (1.0, u32::MAX, 1.0, 0.0),
            (0.7, 20, 1.0, 0.0),
            (1.5, u32::MAX, 0.8, 0.0),
            (1.0, 30, 0.9, 0.05),
            (2.0, u32::MAX, 1.0, 0.2),
        ] {
            let mut rows = SampleRows::default();
            for u in &uniforms {
                // In [0, 1), 24 bits.
                let u = ((u + 1.0) / 2.0 * f64::from(1 << 24)).floor() / f64::from(1 << 24);
                rows.push(temperature, top_k, top_p, min_p, u as f32);
            }
            let ids = backend.run(Draw(rows, logits.clone())).unwrap();
            let wanted = distribution(&logits, f64::from(temperature), top_k as usize, f64::from(top_p), f64::from(min_p));
            let mut counts = vec![0.0; logits.len()];
            ids.iter().for_each(|id| counts[*id as usize] += 1.0);
            let (mut statistic, mut freedom) = (0.0, -1.0);
            for (count, p) in counts.iter().zip(&wanted) {
                if *p == 0.0 {
                    assert_eq!(*count, 0.0, "{backend}: a token that is not kept was drawn");
                } else {
                    statistic += (count - p * DRAWS as f64).powi(2) / (p * DRAWS as f64);
                    freedom += 1.0;
                }
            }
            // Its mean is the number of degrees of freedom, its variance twice that: five deviations.
            let most = freedom + 5.0 * f64::sqrt(2.0 * freedom) + 1.0;
            assert!(statistic < most, "{backend}, temperature {temperature}: {statistic:.1} of {freedom} degrees of freedom");
            println!(
                "{backend}: temperature {temperature} top_k {top_k} top_p {top_p} min_p {min_p}: {statistic:.1} of {freedom}"
            );
        }
    }
}

/// Probabilities of all tokens, by the definitions.
fn distribution(logits: &[f32], temperature: f64, top_k: usize, top_p: f64, min_p: f64) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|l| (f64::from(*l) / temperature).exp()).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    order.truncate(top_k);
    let sum = |kept: &[usize]| kept.iter().map(|t| weights[*t]).sum::<f64>();
    let all = sum(&order);
    // The fewest of the likeliest that reach the share.
    let most = (1..=order.len()).find(|n| sum(&order[..*n]) >= top_p * all * (1.0 - 1e-12)).unwrap_or(order.len());
    order.truncate(most);
    let top = weights[order[0]];
    order.retain(|t| weights[*t] >= min_p * top);
    let all = sum(&order);
    (0..logits.len()).map(|t| if order.contains(&t) { weights[t] / all } else { 0.0 }).collect()
}

/// A step of decoding is so many launches a layer, whatever the batch: 2 norms, 4 products, rotation with the writes to the cache,
/// attention, SwiGLU. Int8 has one more, and so has a sequence that is longer than one cube's keys.
#[cfg(feature = "wgpu")]
#[test]
fn a_step_of_decoding_is_a_fixed_number_of_launches() {
    struct Step {
        layers: usize,
        dtype: KvDtype,
        batch: usize,
        len: usize,
    }
    impl Job for Step {
        type Output = u64;
        fn run<B: LlamaOps>(self, device: B::Device) -> recua::Result<u64> {
            use burn::tensor::{Int, Tensor};
            let mut config = ModelConfig::preset("debug")?;
            (config.n_layers, config.max_seq_len) = (self.layers, 1024);
            let model = Llama::<B>::init(&config, &InitConfig::default(), &device)?;
            let each = self.len.div_ceil(16);
            let shape = KvShape {
                blocks: self.batch * each,
                kv_heads: config.kv_heads(),
                head_dim: config.head_dim(),
                dtype: self.dtype,
            };
            let mut pools: Vec<Option<KvPool<B>>> = (0..self.layers).map(|_| Some(B::kv_pool(shape, &device))).collect();
            let rows = BatchRows {
                positions: (0..self.batch).map(|i| (self.len - 1 - i % 3) as u32).collect(),
                sequences: (0..self.batch as u32).collect(),
                tables: (0..self.batch).map(|i| (0..each).map(|j| (i * each + j) as u32).collect()).collect(),
            };
            let tokens = Tensor::<B, 1, Int>::ones([self.batch], &device).into_primitive();
            let before = launches();
            let x = model.forward_rows(tokens, &CacheRows::new(rows), &mut pools);
            let after = launches();
            assert!(
                Tensor::<B, 2>::from_primitive(burn::tensor::TensorPrimitive::Float(x))
                    .into_data()
                    .iter::<f32>()
                    .all(f32::is_finite)
            );
            Ok(after - before)
        }
    }
    let context = "wgpu:cpu".parse::<BackendName>().unwrap().open().unwrap();
    for (dtype, batch, len, want) in [
        (KvDtype::F32, 1, 5, 9),
        (KvDtype::F32, 1, 200, 9),
        (KvDtype::F32, 8, 200, 9),
        (KvDtype::F32, 16, 40, 9),
        // Products by tiles, whose sums are added by one more kernel.
        (KvDtype::F32, 17, 40, 11),
        (KvDtype::F32, 4, 600, 10),
        (KvDtype::Int8, 4, 40, 10),
    ] {
        let of = |layers| context.run(Step { layers, dtype, batch, len }).unwrap();
        let (two, four) = (of(2), of(4));
        assert_eq!(four - two, 2 * want, "launches of two layers, {batch} sequences of {len}, {dtype}");
        assert_eq!(two - 2 * want, 1, "launches beside the layers: the embedding");
    }
}

/// Eight steps of greedy decoding without a read on the way give the tokens that the logits of each step say.
#[test]
fn steps_follow_each_other_on_the_device() {
    /// Whether the logits are read at each step.
    struct Steps(bool);
    impl Job for Steps {
        type Output = Vec<i32>;
        fn run<B: LlamaOps>(self, device: B::Device) -> recua::Result<Vec<i32>> {
            use burn::tensor::{Int, Tensor, TensorData, TensorPrimitive};
            const BATCH: usize = 3;
            let config = ModelConfig::preset("debug")?;
            let model = Llama::<B>::init(&config, &InitConfig::default(), &device)?;
            let shape = KvShape { blocks: BATCH, kv_heads: config.kv_heads(), head_dim: config.head_dim(), dtype: KvDtype::F32 };
            let mut pools: Vec<Option<KvPool<B>>> = (0..config.n_layers).map(|_| Some(B::kv_pool(shape, &device))).collect();
            let send = |ids: Vec<i32>| Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [BATCH]), &device);
            let mut tokens = send(vec![1, 2, 3]);
            let mut all = Vec::new();
            for step in 0..8 {
                let rows = BatchRows {
                    positions: vec![step; BATCH],
                    sequences: (0..BATCH as u32).collect(),
                    tables: (0..BATCH as u32).map(|block| vec![block]).collect(),
                };
                let x = model.forward_rows(tokens.into_primitive(), &CacheRows::new(rows), &mut pools);
                let logits = model.logits_of_rows(x);
                tokens = if self.0 {
                    let logits = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(logits)).into_data();
                    let logits: Vec<f32> = logits.iter::<f32>().collect();
                    let best = |row: &[f32]| {
                        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                        row.iter().position(|l| *l == top).unwrap() as i32
                    };
                    send(logits.chunks_exact(config.vocab_size).map(best).collect())
                } else {
                    Tensor::from_primitive(B::sample_rows(logits, &SampleRows::greedy(BATCH)))
                };
                all.push(tokens.clone());
            }
            Ok(Tensor::cat(all, 0).into_data().iter::<i32>().collect())
        }
    }
    for backend in backends() {
        let context = backend.open().unwrap();
        let (read, recorded) = (context.run(Steps(true)).unwrap(), context.run(Steps(false)).unwrap());
        assert_eq!(read, recorded, "{backend}");
    }
}

/// A weight stored in parts gives what it gives whole.
#[test]
fn weights_may_be_stored_in_parts() {
    struct Parts;
    impl Job for Parts {
        type Output = [Vec<f32>; 4];
        fn run<B: LlamaOps>(self, device: B::Device) -> recua::Result<Self::Output> {
            use burn::tensor::{DType, Int, Tensor, TensorData, TensorPrimitive};
            let of = |seed: u64, shape: [usize; 2]| {
                let values: Vec<f32> = random(seed, shape[0] * shape[1]).into_iter().map(|x| x as f32).collect();
                Tensor::<B, 2>::from_data(TensorData::new(values, shape), &device)
            };
            let plain = |x: Tensor<B, 2>| x.into_primitive().tensor();
            let read =
                |x| Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(x)).into_data().iter::<f32>().collect::<Vec<f32>>();
            let (x, w) = (of(1, [3, 8]), of(2, [11, 8]));
            let rows = rows_of_part(8, 4, 4 * 32);
            assert_eq!(rows, 4);
            let parts = || (0..11).step_by(rows).map(|first| plain(w.clone().narrow(0, first, rows.min(11 - first)))).collect();
            let ids = || Tensor::<B, 1, Int>::from_data(TensorData::new(vec![10, 0, 4, 3, 7], [5]), &device).into_primitive();
            Ok([
                read(B::project_rows(plain(x.clone()), plain(w.clone()), DType::F32)),
                read(project_parts::<B>(plain(x), parts(), DType::F32)),
                read(B::embed(ids(), plain(w.clone()), DType::F32)),
                read(embed_parts::<B>(ids(), parts(), DType::F32)),
            ])
        }
    }
    for backend in backends() {
        let [whole, parts, rows, of_parts] = backend.run(Parts).unwrap();
        assert_eq!(whole, parts, "{backend}");
        assert_eq!(rows, of_parts, "{backend}");
    }
}
