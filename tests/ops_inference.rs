//! The operations of inference together: sampling by its distribution, steps that follow each other on the device, launches of a step.

#[cfg(feature = "wgpu")]
use recua::backend::BackendName;
use recua::checkpoint::weights::{ModelTensors, load_as};
use recua::model::{InitConfig, Llama, ModelConfig};
#[cfg(feature = "wgpu")]
use recua::ops::launches;
use recua::ops::{
    BatchRows, CacheRows, Dtype, Job, KvDtype, KvPool, KvShape, LlamaOps, SampleRows, Weight, WeightPart, blocks, limit_pages,
};
use recua::selftest::Case;

use crate::ops::{backends, check, random};

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
        weights: Dtype,
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
            let model = load_as::<B>(&ModelTensors::new(&model), &config, &device, Some(self.weights))?;
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
    for (weights, dtype, batch, len, want) in [
        (Dtype::F32, KvDtype::F32, 1, 5, 9),
        (Dtype::F32, KvDtype::F32, 1, 200, 9),
        (Dtype::F32, KvDtype::F32, 8, 200, 9),
        (Dtype::F32, KvDtype::F32, 16, 40, 9),
        // Products by tiles, whose sums are added by one more kernel.
        (Dtype::F32, KvDtype::F32, 17, 40, 11),
        (Dtype::F32, KvDtype::F32, 4, 600, 10),
        (Dtype::F32, KvDtype::Int8, 4, 40, 10),
        (Dtype::Q8_0, KvDtype::F32, 1, 5, 9),
        (Dtype::Q4_0, KvDtype::F32, 16, 40, 9),
        // Each weight becomes floats before its product.
        (Dtype::Q4_0, KvDtype::F32, 17, 40, 15),
    ] {
        let of = |layers| context.run(Step { layers, weights, dtype, batch, len }).unwrap();
        let (two, four) = (of(2), of(4));
        assert_eq!(four - two, 2 * want, "launches of two layers, {batch} sequences of {len}, {dtype}, {weights}");
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

/// Every type of files, and mixed ones, at the sizes at which kernels go wrong.
#[test]
fn weights_in_parts_at_awkward_sizes() {
    let mut cases = Vec::new();
    for (n, rows) in [(1, 1), (1, 300), (2, 7), (3, 16), (7, 33), (16, 65), (17, 5), (100, 70)] {
        for width in [32, 160, 256, 768] {
            cases.push(Case::Parts { n, width, rows });
        }
    }
    check(&cases);
}

/// Values on `backend`.
fn upload<B: LlamaOps>(seed: u64, shape: [usize; 2], device: &B::Device) -> burn::tensor::Tensor<B, 2> {
    let values: Vec<f32> = random(seed, shape[0] * shape[1]).into_iter().map(|x| x as f32).collect();
    burn::tensor::Tensor::from_data(burn::tensor::TensorData::new(values, shape), device)
}

fn plain<B: LlamaOps>(x: burn::tensor::Tensor<B, 2>) -> burn::tensor::ops::FloatTensor<B> {
    x.into_primitive().tensor()
}

fn read<B: LlamaOps>(x: burn::tensor::ops::FloatTensor<B>) -> Vec<f32> {
    burn::tensor::Tensor::<B, 2>::from_primitive(burn::tensor::TensorPrimitive::Float(x)).into_data().iter::<f32>().collect()
}

/// A weight of a type: of random values where the type is written, else of random bytes with small factors.
fn part(dtype: Dtype, seed: u64, [rows, width]: [usize; 2]) -> WeightPart {
    let values: Vec<f32> = random(seed, rows * width).into_iter().map(|x| x as f32).collect();
    let bytes = blocks::narrowed(dtype, &values, width).unwrap_or_else(|_| {
        let (len, size) = dtype.block();
        let mut bytes: Vec<u8> = random(seed, rows * width / len * size).iter().map(|u| (u * 128.0) as i8 as u8).collect();
        for block in bytes.chunks_exact_mut(size) {
            for at in if dtype == Dtype::Q6_K { vec![209] } else { vec![1, 3] } {
                block[at] &= 0x03; // below 2^-14
            }
        }
        bytes
    });
    WeightPart::host(dtype, [rows, width], bytes.into())
}

/// A row's product is the same to the bit whatever other rows there are, up to 16 of them.
#[test]
fn products_by_parts_are_of_each_row_alone() {
    struct Rows(Dtype);
    impl Job for Rows {
        type Output = Vec<Vec<f32>>;
        fn run<B: LlamaOps>(self, device: B::Device) -> recua::Result<Self::Output> {
            use burn::tensor::DType;
            let parts = B::take_weight(vec![part(self.0, 3, [37, 512])], &device);
            let x = upload::<B>(1, [16, 512], &device);
            let of = |n: usize| read::<B>(B::project_parts(plain(x.clone().narrow(0, 16 - n, n)), &parts, DType::F32));
            Ok((1..=16).map(of).collect())
        }
    }
    for backend in backends().iter().filter(|backend| backend.to_string() != "ndarray") {
        for dtype in Dtype::ALL {
            let all = backend.run(Rows(dtype)).unwrap();
            for rows in &all {
                assert!(
                    rows.iter().zip(&all[15][all[15].len() - rows.len()..]).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{backend}, {dtype}"
                );
            }
        }
    }
}

/// Parts of one type that lie side by side are one on a device; what is too large for its pages is split.
#[test]
fn weights_may_be_stored_in_parts() {
    struct Parts;
    impl Job for Parts {
        type Output = ();
        fn run<B: LlamaOps>(self, device: B::Device) -> recua::Result<()> {
            use burn::tensor::{DType, Int, Tensor, TensorData};
            let [q, k, v] = [(Dtype::Q4_K, 40), (Dtype::Q4_K, 24), (Dtype::Q6_K, 24)]
                .map(|(dtype, rows)| part(dtype, rows as u64, [rows, 256]));
            let host = vec![q, k, v];
            let floats = vec![part(Dtype::F32, 5, [11, 8]), part(Dtype::BF16, 6, [5, 8]), part(Dtype::F16, 7, [3, 8])];
            let x = upload::<B>(1, [20, 256], &device);
            let on_device = B::largest_page(&device).is_some();
            let pages = |limit| {
                limit_pages(limit);
                let all = [host.clone(), floats.clone()].map(|parts| B::take_weight(parts, &device));
                limit_pages(None);
                all
            };
            let whole = pages(None);
            if on_device {
                assert_eq!([whole[0].len(), whole[1].len()], [2, 3], "{whole:?}");
            }
            // Of the narrow ones, 8 rows a part at most, of the others 4 or 8.
            let split = pages(Some(8 * 128));
            if on_device {
                assert!(split[0].iter().all(|part| part.rows <= 8) && split[0].len() >= 11, "{split:?}");
            }
            let few = pages(Some(4 * 32));
            if on_device {
                assert!(few[1].iter().all(|part| part.rows <= 8) && few[1].len() >= 5, "{few:?}");
            }
            let ids =
                || Tensor::<B, 1, Int>::from_data(TensorData::new(vec![87, 0, 40, 39, 63, 64, 0], [7]), &device).into_primitive();
            for n in [1, 3, 16, 20] {
                let of = |parts: &[WeightPart]| {
                    let y = upload::<B>(2, [n, 88], &device);
                    let x = || plain(x.clone().narrow(0, 0, n));
                    [read::<B>(B::project_parts(x(), parts, DType::F32)), read::<B>(B::project_parts_add(plain(y), x(), parts))]
                };
                assert_eq!(of(&whole[0]), of(&split[0]), "{n} rows");
            }
            let embedded = |parts: &[WeightPart]| read::<B>(B::embed_parts(ids(), parts, DType::F32));
            assert_eq!(embedded(&whole[0]), embedded(&split[0]));
            let ids =
                || Tensor::<B, 1, Int>::from_data(TensorData::new(vec![18, 0, 11, 10, 15, 16], [6]), &device).into_primitive();
            assert_eq!(
                read::<B>(B::embed_parts(ids(), &whole[1], DType::F32)),
                read::<B>(B::embed_parts(ids(), &few[1], DType::F32))
            );
            let bytes = |parts: &[WeightPart]| parts.iter().flat_map(|part| part.bytes::<B>().into_owned()).collect::<Vec<u8>>();
            for (host, parts) in [(&host, &whole[0]), (&host, &split[0]), (&floats, &whole[1]), (&floats, &few[1])] {
                assert_eq!(bytes(host), bytes(parts));
            }
            Ok(())
        }
    }
    for backend in backends() {
        backend.run(Parts).unwrap();
    }
}

/// A model whose tensors are larger than a device's pages computes what it computes otherwise.
#[test]
fn models_are_split_where_pages_are_small() {
    struct Logits(Option<u64>);
    impl Job for Logits {
        type Output = (Vec<f32>, usize);
        fn run<B: LlamaOps>(self, device: B::Device) -> recua::Result<Self::Output> {
            let config = ModelConfig { dim: 256, ..ModelConfig::preset("debug")? };
            let source = ModelTensors::new(&Llama::<B>::init(&config, &InitConfig::default(), &device)?);
            limit_pages(self.0);
            let model = load_as::<B>(&source, &config, &device, Some(Dtype::F32));
            limit_pages(None);
            let model = model?;
            let parts = model.weights().map(|w| if let Weight::Parts(parts) = w { parts.len() } else { 1 }).max();
            let logits = step(&model, 3, &device);
            Ok((logits, parts.unwrap_or_default()))
        }
    }
    for backend in backends() {
        let (whole, one) = backend.run(Logits(None)).unwrap();
        let (split, many) = backend.run(Logits(Some(100 << 10))).unwrap();
        let on_device = backend.to_string().starts_with("wgpu");
        assert_eq!((one, many > 4), (1, on_device), "{backend}: {many} parts");
        assert_eq!(whole, split, "{backend}");
    }
}

/// Logits of the first step of some sequences.
fn step<B: LlamaOps>(model: &Llama<B>, batch: usize, device: &B::Device) -> Vec<f32> {
    use burn::tensor::{Int, Tensor, TensorData};
    let config = model.config();
    let shape = KvShape { blocks: batch, kv_heads: config.kv_heads(), head_dim: config.head_dim(), dtype: KvDtype::F32 };
    let mut pools: Vec<Option<KvPool<B>>> = (0..config.n_layers).map(|_| Some(B::kv_pool(shape, device))).collect();
    let rows = BatchRows {
        positions: vec![0; batch],
        sequences: (0..batch as u32).collect(),
        tables: (0..batch as u32).map(|block| vec![block]).collect(),
    };
    let tokens = Tensor::<B, 1, Int>::from_data(TensorData::new((1..=batch as i32).collect::<Vec<_>>(), [batch]), device);
    let x = model.forward_rows(tokens.into_primitive(), &CacheRows::new(rows), &mut pools);
    read::<B>(model.logits_of_rows(x))
}
