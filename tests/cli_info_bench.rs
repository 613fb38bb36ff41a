//! `recua info MODEL` and `recua bench decode|prefill|serve-sim|cluster`.

use serde_json::{Value, json};

use crate::cli_generate::{Walks, fails, golden, run};
use crate::faults_generate::{json_of, stderr, with_input};

fn recua(args: &[&str]) -> std::process::Output {
    with_input(args, "")
}

#[test]
fn info_says_what_a_model_is() {
    let about = json_of(&recua(&["info", &golden("tiny_llama"), "--json"]));
    assert_eq!((&about["format"], &about["params"]), (&json!("hf"), &json!(214_208)));
    assert_eq!((&about["types"], &about["bytes"]), (&json!({ "F32": 214_208 }), &json!(4 * 214_208)));
    assert_eq!(
        (&about["config"]["dim"], &about["config"]["n_layers"], &about["hidden_dim"]),
        (&json!(64), &json!(3), &json!(172))
    );
    assert_eq!((&about["tokenizer"], &about["chat_template"]), (&Value::Null, &Value::Null));
    assert_eq!((&about["bos"]["id"], &about["ends"]), (&json!(1), &json!([{ "id": 2, "token": null }])));
    // Keys and values of 3 layers, 64 wide.
    assert_eq!(about["kv_bytes_per_token"]["f32"], 2 * 3 * 64 * 4);
    let about = json_of(&recua(&["info", &run(), "--json"]));
    assert_eq!(about["format"], "native");
    assert_eq!(
        (&about["tokenizer"]["kind"], &about["bos"]),
        (&json!("BPE, digits split, byte fallback"), &json!({ "id": 1, "token": "<s>" }))
    );
    assert_eq!(about["ends"], json!([{ "id": 2, "token": "</s>" }]));
    let walks = Walks::new(&[2], 64);
    let about = json_of(&recua(&["info", &walks.model(), "--json"]));
    assert_eq!(about["tokenizer"]["kind"], "tokenizer.json, BPE");
    let shown = recua(&["info", &run()]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    for part in ["model", "native", "parameters", "shape", "tokenizer", "<s>", "</s>", "no template"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    fails(&recua(&["info", "nowhere"]), 1, &["nowhere", "no checkpoint"]);
    fails(&recua(&["info", &run(), "--ops"]), 2, &["cannot be used with"]);
    fails(&recua(&["info", "--tokenizer", "x"]), 2, &["MODEL"]);
}

const SMALL: [&str; 12] = ["--dim", "32", "--heads", "2", "--layers", "1", "--vocab", "64", "--repeat", "2", "--threads", "1"];

fn bench(args: &[&str]) -> Value {
    json_of(&recua(&[&["bench"], args, &SMALL[..], &["--json"]].concat()))
}

#[track_caller]
fn share(value: &Value) {
    let share = value.as_f64().unwrap();
    assert!(share > 0.0 && share < 4.0, "{share}"); // so small a model stays in the cache
}

#[test]
fn bench_measures_the_engine() {
    let m = bench(&["decode", "--batch", "1,3", "--new-tokens", "8", "--depth", "20", "--kv-cache-dtype", "int8"]);
    let rows = m["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["batch"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3]);
    for row in rows {
        share(&row["weights_share"]);
        share(&row["read_share"]);
        let (step, speed) = (row["step_s"].as_f64().unwrap(), row["tok_s"].as_f64().unwrap());
        assert!((step * speed / row["batch"].as_f64().unwrap() - 1.0).abs() < 1e-9);
        let range = [0, 1].map(|i| row["tok_s_range"][i].as_f64().unwrap());
        assert!(range[0] <= speed && speed <= range[1] && row["ttft_s"][0].as_f64().unwrap() > 0.0, "{row}");
    }
    // A step reads all matrices but the embedding.
    assert_eq!(m["weight_bytes"].as_u64().unwrap(), 4 * (m["params"].as_u64().unwrap() - 64 * 32 - 3 * 32));
    for key in ["bandwidth", "product_ceiling", "threads"] {
        assert!(m[key].as_f64().unwrap() >= 1.0, "{key}: {m}");
    }
    assert_eq!((&m["backend"], &m["dtype"], &m["kv_cache_dtype"]), (&json!("flex"), &json!("f32"), &json!("int8")));
    let m = bench(&["prefill", "--prompt-tokens", "40", "--batch", "2", "--dtype", "bf16"]);
    share(&m["rows"][0]["product_share"]);
    assert_eq!((&m["dtype"], &m["prompt_tokens"]), (&json!("bf16"), &json!(40)));
    let m = bench(&[
        "serve-sim",
        "--requests",
        "12",
        "--rate",
        "200",
        "--batch",
        "4",
        "--prompt-tokens",
        "10",
        "--new-tokens",
        "4",
        "--seed",
        "5",
    ]);
    let row = &m["rows"][0];
    assert_eq!((&row["batch"], &m["seed"]), (&json!(4), &json!(5)));
    for value in [&row["served"]["requests_s"], &row["served"]["between_s"][1], &row["ttft_s"][1], &row["tok_s"]] {
        assert!(value.as_f64().unwrap() > 0.0, "{row}");
    }
    assert!(row["ttft_s"][0].as_f64() <= row["ttft_s"][1].as_f64());
    bench(&["serve-sim", "--requests", "3", "--rate", "inf", "--prompt-tokens", "3", "--new-tokens", "2"]);
    let m = json_of(&recua(&["bench", "decode", "--model", &golden("gqa"), "--new-tokens", "2", "--repeat", "1", "--json"]));
    assert_eq!(m["params"], json_of(&recua(&["info", &golden("gqa"), "--json"]))["params"]);
    let shown = recua(&[&["bench", "decode", "--new-tokens", "2"], &SMALL[..]].concat());
    assert!(String::from_utf8_lossy(&shown.stdout).contains("of the bandwidth for the weights"), "{}", stderr(&shown));
    for (args, code, part) in [
        (["decode", "--batch", "0"], 2, "--batch: expected at least 1"),
        (["decode", "--batch", "1,x"], 2, "invalid value"),
        (["decode", "--new-tokens", "0"], 2, "--new-tokens: expected at least 1"),
        (["prefill", "--prompt-tokens", "0"], 2, "--prompt-tokens: expected at least 1"),
        (["serve-sim", "--rate", "0"], 2, "--rate: expected a number above 0"),
        (["serve-sim", "--requests", "0"], 2, "--requests: expected at least 1"),
        (["decode", "--dtype", "int8"], 2, "possible values"),
        (["decode", "--preset", "8b"], 2, "no preset `8b`"),
        (["decode", "--model", "nowhere"], 1, "nowhere"),
    ] {
        fails(&recua(&[&["bench"], &args[..]].concat()), code, &[part]);
    }
    let long = recua(&["bench", "prefill", "--model", &golden("gqa"), "--prompt-tokens", "5000"]);
    fails(&long, 1, &["5001 tokens are more than"]);
}

#[test]
fn bench_describes_the_machine_for_a_plan() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("here.toml").display().to_string();
    let quick = ["bench", "cluster", "--threads", "1", "--largest", "64KiB"];
    let m = json_of(&recua(&[&quick[..], &["--seconds", "0.02", "--json", "--watts", "30", "--out", &file]].concat()));
    assert_eq!((&m["devices_per_node"], &m["device"]["watts"]["value"]), (&json!(1), &json!(30.0)));
    assert_eq!(m["name"], "1 rank on 1 machine, flex, 1 thread a rank");
    let sizes = ["--preset", "debug", "--devices", "1", "--batch", "4", "--precision", "f32", "--tokens", "1e6", "--tp", "1"];
    let plan = json_of(&recua(&[&["plan", "--cluster", &file, "--json"], &sizes[..]].concat()));
    assert!(plan["step_s"].as_f64().unwrap() > 0.0 && plan["tok_s_gpu"].as_f64().unwrap() > 0.0, "{plan}");
    let shown = recua(&["plan", "--cluster", &file, "--constants"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("measured: products 1024 x 1024 x k"), "{}", stderr(&shown));
    for (flag, value, part) in [
        ("--watts", "0", "--watts: expected a number above 0"),
        ("--seconds", "0", "--seconds"),
        ("--precision", "f8", "--precision"),
    ] {
        fails(&recua(&[&quick[..], &[flag, value]].concat()), 2, &[part]);
    }
}
