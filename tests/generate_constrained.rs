//! Constrained text: whatever a model that knows nothing writes has the form that was asked for.

use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recua::error::Error;
use recua::generate::{ConstraintFactory, Grammar, SampleConfig, Sampler};
use recua::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// What a uniform model writes; after `long` tokens it ends where it may.
fn write(tokenizer: &Tokenizer, factory: &ConstraintFactory, grammar: &Grammar, seed: u64) -> String {
    let eos = tokenizer.eos_id().unwrap();
    let mut mask = factory.mask(grammar, &[eos]).unwrap();
    let mut sampler = Sampler::new(SampleConfig { temperature: 1.0, top_p: None, seed, ..Default::default() }).unwrap();
    let mut tokens = Vec::new();
    let long = 60;
    for _ in 0..20_000 {
        let mut set = vec![0; tokenizer.vocab_size().div_ceil(32)];
        mask.allowed(&mut set).unwrap();
        if set.iter().all(|word| *word == 0) {
            break;
        }
        // A uniform model seldom ends a string or a list: after a while the closing tokens are likely.
        let likely =
            |id: u32| id == eos || tokenizer.token_of(id).is_some_and(|t| ["\"", "]", "}", "1", ":"].contains(&t.as_str()));
        let logit = |id: u32| if tokens.len() > long && likely(id) { 30.0 } else { 0.0 };
        let mut logits: Vec<f32> = (0..tokenizer.vocab_size() as u32).map(logit).collect();
        let token = sampler.sample(&mut logits, &[], &tokens, Some(&set), &[]).unwrap();
        mask.take(token).unwrap();
        if token == eos {
            let mut after = vec![0; set.len()];
            mask.allowed(&mut after).unwrap();
            assert!(after.iter().all(|word| *word == 0), "something after the end");
            break;
        }
        tokens.push(token);
    }
    assert!(tokens.len() < 20_000, "no end");
    tokenizer.decode_after(&[], &tokens).unwrap()
}

fn schema(rng: &mut ChaCha8Rng, depth: u32) -> Value {
    match rng.next_u32() % if depth == 0 { 5 } else { 8 } {
        0 => json!({"type": "string", "maxLength": 12}),
        1 => json!({"type": "integer", "minimum": -20, "maximum": 300}),
        2 => json!({"type": "boolean"}),
        3 => json!({"enum": ["red", "grün", 3, null]}),
        4 => json!({"const": "x\"y"}),
        5 => json!({"type": "array", "items": schema(rng, depth - 1), "minItems": 1, "maxItems": 4}),
        6 => json!({"anyOf": [schema(rng, depth - 1), {"type": "null"}]}),
        _ => {
            let names = ["a", "name", "größe", "z z"];
            let count = 1 + rng.next_u32() as usize % 4;
            let properties: serde_json::Map<String, Value> =
                names[..count].iter().map(|name| (name.to_string(), schema(rng, depth - 1))).collect();
            let required: Vec<&str> = names[..count].iter().copied().filter(|_| rng.next_u32() % 2 == 0).collect();
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
        }
    }
}

fn valid(schema: &Value, value: &Value) -> bool {
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().any(|one| valid(one, value));
    }
    if let Some(any) = schema["enum"].as_array() {
        return any.contains(value);
    }
    if let Some(one) = schema.get("const") {
        return one == value;
    }
    match schema["type"].as_str().unwrap() {
        "string" => value.as_str().is_some_and(|s| s.chars().count() <= 12),
        "integer" => value.as_i64().is_some_and(|n| (-20..=300).contains(&n)),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "array" => value.as_array().is_some_and(|a| (1..=4).contains(&a.len()) && a.iter().all(|v| valid(&schema["items"], v))),
        _ => value.as_object().is_some_and(|o| {
            let required = schema["required"].as_array().unwrap();
            o.iter().all(|(k, v)| schema["properties"].get(k).is_some_and(|s| valid(s, v)))
                && required.iter().all(|name| o.contains_key(name.as_str().unwrap()))
        }),
    }
}

/// One of each kind: our own, byte-level, SentencePiece as `.json` and as `.model`.
fn tokenizers() -> Vec<(String, Tokenizer)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults");
    let mut all = vec![("own".into(), own())];
    for name in FILES {
        all.push((name.into(), Tokenizer::open(folder.join(name)).unwrap()));
    }
    all
}

const FILES: [&str; 4] = ["llama.model", "llama2.json", "llama3.json", "smollm.json"];

fn own() -> Tokenizer {
    let docs =
        ["a llama and another llama {\"name\": \"x\"}", "the llama [1, 2, 3] stops \"true\" größe"].map(|s| format!("{s} {s}"));
    let config = recua::tokenizer::TrainConfig { vocab_size: 320, ..Default::default() };
    Tokenizer::train(docs.into_iter(), &config).unwrap()
}

#[test]
fn json_of_random_schemas_is_valid() {
    for (name, tokenizer) in tokenizers() {
        let factory = ConstraintFactory::new(&tokenizer).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for seed in 0..60 {
            let schema = schema(&mut rng, 3);
            let text = write(&tokenizer, &factory, &Grammar::JsonSchema(schema.clone()), seed);
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {schema}: {text:?}: {e}"));
            assert!(valid(&schema, &value), "{name}: {schema}: {text}");
        }
    }
}

#[test]
fn expressions_and_grammars_hold() {
    for (name, tokenizer) in tokenizers() {
        let factory = ConstraintFactory::new(&tokenizer).unwrap();
        for seed in 0..20 {
            let text = write(&tokenizer, &factory, &Grammar::Regex("(ab|é){2,5}[0-9]{3}".into()), seed);
            let (head, digits) = text.split_at(text.len() - 3);
            let parts = head.replace("ab", "é");
            assert!(digits.bytes().all(|b| b.is_ascii_digit()), "{name}: {text}");
            assert!(parts.chars().all(|c| c == 'é') && (2..=5).contains(&parts.chars().count()), "{name}: {text}");
            let lark = "start: item (\",\" item)*\nitem: \"(\" start \")\" | /[a-c]/\n";
            let text = write(&tokenizer, &factory, &Grammar::Lark(lark.into()), seed);
            let depths = text.bytes().scan(0i32, |depth, b| {
                *depth += i32::from(b == b'(') - i32::from(b == b')');
                Some(*depth)
            });
            assert!(depths.clone().all(|d| d >= 0) && depths.last() == Some(0), "{name}: {text}");
        }
    }
}

#[test]
fn where_a_text_may_end_or_go_on_its_ends_are_allowed() {
    let tokenizer = own();
    let factory = ConstraintFactory::new(&tokenizer).unwrap();
    let (bos, eos, a) = (tokenizer.bos_id().unwrap(), tokenizer.eos_id().unwrap(), tokenizer.id_of("a").unwrap());
    let allowed = |mask: &mut Box<dyn recua::generate::TokenMask>| {
        let mut set = vec![0u32; tokenizer.vocab_size().div_ceil(32)];
        mask.allowed(&mut set).unwrap();
        let has = |id: usize| set.get(id / 32).is_some_and(|word| word >> (id % 32) & 1 == 1);
        (0..32 * set.len()).filter(|id| has(*id)).map(|id| id as u32).collect::<Vec<_>>()
    };
    let mut mask = factory.mask(&Grammar::Regex("a(a)?".into()), &[eos, bos, 1_000_000]).unwrap();
    let first = allowed(&mut mask);
    assert!(first.contains(&a) && !first.contains(&eos), "{first:?}");
    mask.take(a).unwrap();
    let second = allowed(&mut mask);
    assert!([a, eos, bos].iter().all(|id| second.contains(id)), "{second:?}");
    mask.take(a).unwrap();
    assert_eq!(allowed(&mut mask), [0u32; 0], "the text is whole");
    let mut mask = factory.mask(&Grammar::Regex("ab".into()), &[eos]).unwrap();
    assert!(mask.take(tokenizer.id_of("l").unwrap()).is_err());
}

#[test]
fn what_is_no_grammar_is_refused_at_once() {
    let tokenizer = own();
    let factory = ConstraintFactory::new(&tokenizer).unwrap();
    for (key, grammar) in [
        ("json_schema", Grammar::JsonSchema(json!({"type": "strin"}))),
        ("json_schema", Grammar::JsonSchema(json!({"type": "string", "not": {"const": "a"}}))),
        ("json_schema", Grammar::JsonSchema(json!({"type": "integer", "minimum": 3, "maximum": 2}))),
        ("json_schema", Grammar::JsonSchema(json!({"$ref": "#/$defs/none"}))),
        ("json_schema", Grammar::JsonSchema(json!("string"))),
        ("json_schema", Grammar::JsonSchema(json!([1]))),
        ("regex", Grammar::Regex("a(".into())),
        ("regex", Grammar::Regex("(?=a)b".into())),
        ("grammar", Grammar::Lark("start: nothing".into())),
        ("grammar", Grammar::Lark("begin: \"a\"".into())),
        ("grammar", Grammar::Lark(String::new())),
    ] {
        let error = factory.mask(&grammar, &[2]).unwrap_err();
        let Error::BadValue { key: got, problem, .. } = &error else { panic!("{grammar:?}: {error}") };
        assert_eq!(got, key, "{grammar:?}");
        assert!(!problem.is_empty() && !problem.contains("panic"), "{grammar:?}: {problem}");
    }
}
