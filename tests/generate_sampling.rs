//! Sampling against plain definitions in float64, which sort the whole vocabulary.

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recua::error::Error;
use recua::generate::speculate::Drafter;
use recua::generate::{SampleConfig, Sampler, token_logprob};

/// Everything open.
fn open() -> SampleConfig {
    SampleConfig { temperature: 1.0, top_p: None, ..Default::default() }
}

/// The probability of each token, as transformers defines it: penalties, bias, mask, temperature, top-k, top-p, min-p.
fn plain(c: &SampleConfig, logits: &[f32], prompt: &[u32], generated: &[u32], out: &dyn Fn(u32) -> bool) -> Vec<f64> {
    let count = |ids: &[u32], id: u32| ids.iter().filter(|t| **t == id).count() as f64;
    let changed = |(id, l): (usize, &f32)| {
        let (id, mut l) = (id as u32, f64::from(*l));
        if count(prompt, id) + count(generated, id) > 0.0 {
            l = if l > 0.0 { l / c.repetition_penalty } else { l * c.repetition_penalty };
        }
        let n = count(generated, id);
        l -= c.presence_penalty * n.min(1.0) + c.frequency_penalty * n;
        l += c.logit_bias.iter().filter(|(b, _)| *b == id).map(|(_, bias)| f64::from(*bias)).sum::<f64>();
        if out(id) { f64::NEG_INFINITY } else { l }
    };
    let logits: Vec<f64> = logits.iter().enumerate().map(changed).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    order.truncate(c.top_k.unwrap_or(usize::MAX));
    let max = logits[order[0]];
    let weight = |id: usize| ((logits[id] - max) / c.temperature).exp();
    let total: f64 = order.iter().map(|id| weight(*id)).sum();
    let (mut before, mut kept) = (0.0, Vec::new());
    for id in order {
        if c.top_p.is_some_and(|p| before >= p * total) {
            break;
        }
        before += weight(id);
        kept.push(id);
    }
    kept.retain(|id| weight(*id) >= c.min_p.unwrap_or(0.0));
    let total: f64 = kept.iter().map(|id| weight(*id)).sum();
    let mut shares = vec![0.0; logits.len()];
    kept.iter().for_each(|id| shares[*id] = weight(*id) / total);
    shares
}

/// Pearson's statistic within five standard deviations of its mean; rare tokens are counted together.
fn fits(counts: &[usize], shares: &[f64]) -> bool {
    let draws: usize = counts.iter().sum();
    assert!(
        counts.iter().zip(shares).all(|(n, p)| *n == 0 || *p > 0.0),
        "a token that cannot come came: {counts:?} of {shares:?}"
    );
    let (mut statistic, mut bins, mut rare) = (0.0, 0, (0.0, 0.0));
    for (n, p) in counts.iter().zip(shares) {
        let (n, expected) = (*n as f64, p * draws as f64);
        if expected >= 10.0 {
            statistic += (n - expected) * (n - expected) / expected;
            bins += 1;
        } else {
            rare = (rare.0 + n, rare.1 + expected);
        }
    }
    if rare.1 >= 1.0 {
        statistic += (rare.0 - rare.1).powi(2) / rare.1;
        bins += 1;
    }
    let freedom = f64::from(bins - 1);
    statistic <= freedom + 5.0 * (2.0 * freedom).sqrt() + 1e-9
}

fn some_logits(rng: &mut ChaCha8Rng, n: usize, spread: f32) -> Vec<f32> {
    (0..n).map(|_| ((rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32 - 0.5) * spread).collect()
}

#[test]
fn draws_are_distributed_as_defined() {
    let settings = [
        open(),
        SampleConfig { temperature: 0.7, ..open() },
        SampleConfig { temperature: 2.5, ..open() },
        SampleConfig { top_k: Some(1), ..open() },
        SampleConfig { top_k: Some(7), ..open() },
        SampleConfig { top_k: Some(1000), ..open() },
        SampleConfig { top_p: Some(0.5), ..open() },
        SampleConfig { top_p: Some(0.01), ..open() },
        SampleConfig { top_p: Some(1.0), ..open() },
        SampleConfig { min_p: Some(0.2), ..open() },
        SampleConfig { min_p: Some(1.0), ..open() },
        SampleConfig { repetition_penalty: 1.7, ..open() },
        SampleConfig { repetition_penalty: 0.6, ..open() },
        SampleConfig { presence_penalty: 1.5, ..open() },
        SampleConfig { frequency_penalty: 0.8, ..open() },
        SampleConfig { frequency_penalty: -0.8, presence_penalty: -0.5, ..open() },
        SampleConfig { logit_bias: vec![(3, 2.5), (4, -100.0), (3, -0.5)], ..open() },
        SampleConfig { temperature: 0.8, top_k: Some(20), top_p: Some(0.9), min_p: Some(0.05), ..open() },
        SampleConfig {
            temperature: 1.3,
            top_k: Some(30),
            top_p: Some(0.95),
            min_p: Some(0.02),
            repetition_penalty: 1.2,
            presence_penalty: 0.3,
            frequency_penalty: 0.2,
            logit_bias: vec![(11, 3.0)],
            ..open()
        },
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (prompt, generated) = ([1, 2, 2, 3, 90], [3, 3, 3, 5, 6, 5, 90]);
    // Every third token is ruled out by a mask, two more by themselves.
    let mask = [0xb6db_6db6, 0x6db6_db6d];
    let out = |id: u32| mask[id as usize / 32] >> (id % 32) & 1 == 0 || id == 8 || id == 13;
    for (i, config) in settings.iter().enumerate() {
        for masked in [false, true] {
            let logits = some_logits(&mut rng, 50, 8.0);
            let ruled_out = |id: u32| masked && out(id);
            let shares = plain(config, &logits, &prompt, &generated, &ruled_out);
            let mut sampler = Sampler::new(SampleConfig { seed: i as u64, ..config.clone() }).unwrap();
            let mut counts = vec![0; 50];
            for _ in 0..20_000 {
                let (allowed, banned) = if masked { (Some(&mask[..]), &[8, 13, 77][..]) } else { (None, &[][..]) };
                let token = sampler.sample(&mut logits.clone(), &prompt, &generated, allowed, banned).unwrap();
                counts[token as usize] += 1;
            }
            assert!(fits(&counts, &shares), "{config:?}, masked {masked}: {counts:?}, expected shares {shares:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Logits on a grid, so that many are equal: what is selected, and thus each token, is what sorting gives.
    #[test]
    fn selection_is_that_of_sorting(
        seed in any::<u64>(), n in 1usize..3000, steps in 1u32..60, spread in 0.0f32..40.0, top_k in proptest::option::of(1usize..400),
        top_p in proptest::option::of(0.001f64..1.0), min_p in proptest::option::of(0.0f64..0.9), temperature in 0.05f64..3.0,
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut logits: Vec<f32> = (0..n).map(|_| (rng.next_u32() % steps) as f32 / steps as f32 * spread).collect();
        if n > 3 {
            logits[n / 2] = f32::NEG_INFINITY;
        }
        let config = SampleConfig { temperature, top_k, top_p, min_p, seed, ..open() };
        let shares = plain(&config, &logits, &[], &[], &|_| false);
        let mut sampler = Sampler::new(config.clone()).unwrap();
        for _ in 0..4 {
            let u = sampler.clone().uniform();
            let token = sampler.sample(&mut logits.clone(), &[], &[], None, &[]).unwrap();
            let (mut sum, mut expected, mut clear) = (0.0, None, true);
            for (id, p) in shares.iter().enumerate() {
                clear &= (sum - u).abs() > 1e-9;
                sum += p;
                if expected.is_none() && u < sum {
                    expected = Some(id as u32);
                }
            }
            prop_assert!(!clear || expected == Some(token), "{:?}: got {token}, expected {expected:?}", config);
        }
        // Greedy: the first of the largest.
        let mut greedy = Sampler::new(SampleConfig { temperature: 0.0, ..config }).unwrap();
        let best = (0..n).max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a))).unwrap();
        prop_assert_eq!(greedy.sample(&mut logits.clone(), &[], &[], None, &[]).unwrap(), best as u32);
    }

    #[test]
    fn logprobs_are_those_of_the_softmax(seed in any::<u64>(), n in 1usize..2000, spread in 0.0f32..60.0, k in 0usize..40) {
        let logits = some_logits(&mut ChaCha8Rng::seed_from_u64(seed), n, spread);
        let max = logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = logits.iter().map(|l| (f64::from(*l) - f64::from(max)).exp()).sum();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        let top = token_logprob(&logits, 0, k).unwrap().top;
        prop_assert_eq!(top.len(), k.min(n));
        prop_assert_eq!(token_logprob(&logits, 0, 1).unwrap().top[0].0, order[0] as u32);
        for (id, (got, logprob)) in order.into_iter().zip(top) {
            let expected = f64::from(logits[id]) - f64::from(max) - sum.ln();
            prop_assert_eq!(got, id as u32);
            prop_assert!((f64::from(logprob) - expected).abs() <= 1e-6 * (1.0 + expected.abs()));
            let alone = token_logprob(&logits, got, 0).unwrap();
            prop_assert_eq!(alone.logprob.to_bits(), logprob.to_bits());
        }
    }

    #[test]
    fn drafts_are_those_of_a_naive_search(tokens in proptest::collection::vec(0u32..4, 0..200), k in 0usize..12) {
        let mut drafter = Drafter::default();
        for n in 1..=tokens.len() {
            drafter.push(tokens[n - 1]);
            let tokens = &tokens[..n];
            let last = |length: &usize| (0..n - length).rev().find(|at| tokens[*at..at + length] == tokens[n - length..]);
            let found = (2..=8.min(n)).rev().find_map(|length| Some(last(&length)? + length));
            let mut text = tokens.to_vec();
            if let Some(from) = found {
                (0..k).for_each(|i| text.push(text[from + i]));
            }
            prop_assert_eq!(&drafter.draft(k), &text[n..]);
        }
    }
}

#[test]
fn penalties_are_those_computed_by_hand() {
    // With a temperature this high no token is impossible, so the bounds of u tell the weights.
    let probability = |config: SampleConfig, logits: [f32; 4], id: u32| {
        let shares = plain(&config, &logits, &[0, 1], &[1, 1, 2], &|_| false);
        let mut sampler = Sampler::new(config).unwrap();
        let hits =
            (0..40_000).filter(|_| sampler.sample(&mut logits.clone(), &[0, 1], &[1, 1, 2], None, &[]).unwrap() == id).count();
        (shares[id as usize], hits as f64 / 40_000.0)
    };
    let e = std::f64::consts::E;
    // Token 0 is in the prompt alone, token 1 in the prompt and twice in the text, token 2 once in the text, token 3 nowhere.
    let cases = [
        // 2/2, -1*2, 0, 1
        (SampleConfig { repetition_penalty: 2.0, ..open() }, [2.0, -1.0, 0.0, 1.0], 0, e / (e + e.powi(-2) + 1.0 + e)),
        // 0, 1 - 1, 1 - 1, 0
        (SampleConfig { presence_penalty: 1.0, ..open() }, [0.0, 1.0, 1.0, 0.0], 1, 0.25),
        // 0, 2 - 2 * 1, 1 - 1, 0
        (SampleConfig { frequency_penalty: 1.0, ..open() }, [0.0, 2.0, 1.0, 0.0], 1, 0.25),
        // 0, 0, 0, ln 3
        (SampleConfig { logit_bias: vec![(3, 3f32.ln())], ..open() }, [0.0; 4], 3, 0.5),
    ];
    for (config, logits, id, expected) in cases {
        let (defined, drawn) = probability(config.clone(), logits, id);
        assert!(
            (defined - expected).abs() < 1e-6 && (drawn - expected).abs() < 0.015,
            "{config:?}: {defined} {drawn} {expected}"
        );
    }
}

#[test]
fn seeds_and_choices_decide_the_draws() {
    let config = SampleConfig { seed: 7, ..Default::default() };
    let logits = some_logits(&mut ChaCha8Rng::seed_from_u64(2), 1000, 10.0);
    let tokens = |mut sampler: Sampler| -> Vec<u32> {
        (0..30).map(|_| sampler.sample(&mut logits.clone(), &[], &[], None, &[]).unwrap()).collect()
    };
    let first = tokens(Sampler::new(config.clone()).unwrap());
    assert_eq!(first, tokens(Sampler::for_choice(config.clone(), 0).unwrap()));
    assert_ne!(first, tokens(Sampler::for_choice(config.clone(), 1).unwrap()));
    assert_ne!(first, tokens(Sampler::new(SampleConfig { seed: 8, ..config }).unwrap()));
    // Whole numbers and IEEE 754's own operations alone: the same on every machine.
    assert_eq!(first[..10], EXPECTED);
}

const EXPECTED: [u32; 10] = [154, 168, 639, 672, 559, 318, 81, 836, 319, 992];

#[test]
fn settings_out_of_range_are_errors_that_name_them() {
    let bad = [
        ("temperature", SampleConfig { temperature: -1.0, ..open() }),
        ("temperature", SampleConfig { temperature: f64::NAN, ..open() }),
        ("top_k", SampleConfig { top_k: Some(0), ..open() }),
        ("top_p", SampleConfig { top_p: Some(0.0), ..open() }),
        ("top_p", SampleConfig { top_p: Some(1.1), ..open() }),
        ("min_p", SampleConfig { min_p: Some(-0.1), ..open() }),
        ("min_p", SampleConfig { min_p: Some(f64::NAN), ..open() }),
        ("repetition_penalty", SampleConfig { repetition_penalty: 0.0, ..open() }),
        ("presence_penalty", SampleConfig { presence_penalty: f64::INFINITY, ..open() }),
        ("frequency_penalty", SampleConfig { frequency_penalty: f64::NAN, ..open() }),
        ("logit_bias", SampleConfig { logit_bias: vec![(1, f32::INFINITY)], ..open() }),
    ];
    for (name, config) in bad {
        let error = Sampler::new(config).unwrap_err();
        assert!(matches!(&error, Error::BadValue { key, .. } if key == name), "{name}: {error}");
    }
    let bias = SampleConfig { logit_bias: vec![(10, 1.0)], ..open() };
    assert!(bias.check(Some(11)).is_ok() && bias.check(None).is_ok());
    assert!(bias.check(Some(10)).unwrap_err().to_string().contains("expected tokens below 10, got 10"));
    assert!(serde_json::from_str::<SampleConfig>(r#"{"top_q": 1}"#).is_err());
    let config: SampleConfig = serde_json::from_str(r#"{"min_p": 0.1, "logit_bias": [[3, -1.5]]}"#).unwrap();
    assert_eq!((config.min_p, config.logit_bias), (Some(0.1), vec![(3, -1.5)]));
}

#[test]
fn extremes_are_drawn_from_and_no_token_left_is_an_error() {
    let (max, min) = (f32::MAX, f32::MIN);
    for config in [
        SampleConfig { temperature: 1e-300, ..open() },
        SampleConfig { temperature: f64::MAX, ..Default::default() },
        SampleConfig { temperature: 5e-324, top_k: Some(2), ..Default::default() },
        SampleConfig { repetition_penalty: 1e-300, ..open() },
        SampleConfig { repetition_penalty: 1e300, min_p: Some(1.0), ..open() },
        SampleConfig { presence_penalty: -f64::MAX, top_p: Some(1e-300), ..open() },
        SampleConfig { logit_bias: vec![(0, f32::MAX), (1, f32::MIN)], temperature: 0.0, ..open() },
    ] {
        for logits in [vec![max, min, 0.0], vec![min; 3], vec![max; 3], vec![-0.0, 0.0, f32::NEG_INFINITY]] {
            let mut sampler = Sampler::new(config.clone()).unwrap();
            let token = sampler.sample(&mut logits.clone(), &[0], &[1, 9], None, &[]).unwrap();
            assert!(logits[token as usize] > f32::NEG_INFINITY, "{config:?}: {logits:?}: {token}");
        }
    }
    for temperature in [0.0, 1.0] {
        let mut sampler = Sampler::new(SampleConfig { temperature, ..open() }).unwrap();
        assert!(matches!(sampler.sample(&mut [0.0; 3], &[], &[], Some(&[0]), &[]), Err(Error::BadValue { .. })));
        assert!(matches!(sampler.sample(&mut [0.0; 3], &[], &[], Some(&[2]), &[1]), Err(Error::BadValue { .. })));
        assert_eq!(sampler.sample(&mut [0.0; 40], &[], &[], Some(&[0, 2]), &[3]).unwrap(), 33);
        // A mask shorter than the vocabulary ends it.
        assert_eq!(sampler.sample(&mut [0.0; 40], &[], &[], Some(&[1]), &[]).unwrap(), 0);
    }
    assert!(matches!(token_logprob(&[0.0, f32::NAN], 0, 0), Err(Error::NotFinite { .. })));
    assert_eq!(token_logprob(&[0.0, f32::NEG_INFINITY], 1, 0).unwrap().logprob, f32::NEG_INFINITY);
}

/// A model whose next token depends on the last two, run token by token and with drafts that it checks.
#[test]
fn drafts_change_neither_text_nor_distribution() {
    let logits = |text: &[u32]| {
        let last = text.iter().rev().take(2).fold(0u64, |seed, t| seed * 31 + u64::from(*t));
        some_logits(&mut ChaCha8Rng::seed_from_u64(last), 12, 14.0)
    };
    for temperature in [0.0, 0.5, 1.0] {
        for seed in 0..4 {
            let config = SampleConfig { temperature, seed, frequency_penalty: 0.001, ..Default::default() };
            let prompt = [1, 2, 3];
            let next = |sampler: &mut Sampler, text: &[u32]| {
                sampler.sample(&mut logits(text), &prompt, &text[prompt.len()..], None, &[]).unwrap()
            };
            let (mut lone, mut sampler) = (prompt.to_vec(), Sampler::new(config.clone()).unwrap());
            while lone.len() < 600 {
                let token = next(&mut sampler, &lone);
                lone.push(token);
            }
            let (mut text, mut sampler, mut drafter) = (prompt.to_vec(), Sampler::new(config).unwrap(), Drafter::default());
            prompt.iter().for_each(|token| drafter.push(*token));
            let (mut drafted, mut accepted) = (0, 0);
            while text.len() < 600 {
                let draft = drafter.draft(4);
                drafted += draft.len();
                // The model's token after each drafted one that was right, and one more.
                for guess in draft.into_iter().map(Some).chain([None]) {
                    let token = next(&mut sampler, &text);
                    text.push(token);
                    drafter.push(token);
                    if guess != Some(token) {
                        break;
                    }
                    accepted += 1;
                }
            }
            assert_eq!(text[..600], lone[..], "temperature {temperature}, seed {seed}");
            assert!(accepted > 30 && accepted < drafted + 1, "{accepted} of {drafted}");
        }
    }
    // What comes in the place of a drafted token, over many seeds: the model's distribution, whatever was drafted.
    let (place, mut counts, mut accepted) = (logits(&[4, 9]), [0; 12], 0);
    let shares = plain(&open(), &place, &[], &[], &|_| false);
    let guess = (0..12).max_by(|a, b| shares[*a].total_cmp(&shares[*b])).unwrap();
    for seed in 0..20_000 {
        let token =
            Sampler::new(SampleConfig { seed, ..open() }).unwrap().sample(&mut place.clone(), &[], &[], None, &[]).unwrap();
        counts[token as usize] += 1;
        accepted += usize::from(token as usize == guess);
    }
    assert!(fits(&counts, &shares), "{counts:?} {shares:?}");
    assert!((accepted as f64 / 20_000.0 - shares[guess]).abs() < 0.015);
}
