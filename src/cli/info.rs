//! `recua info`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use recua::Result;
use recua::backend;
use recua::ops::KvDtype;
use recua::tokenizer::{ChatTemplate, Tokenizer};
use serde_json::{Value, json};

use super::{human, print, print_json};
use recua::generate::TextModel;

/// List backends, devices and what they can do; or say what a model is
///
///     recua info                  # this build and this machine
///     recua info runs/first       # a model: format, shape, types, tokenizer, what begins and ends a text, chat template
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Info {
    /// A run, a checkpoint, a Hugging Face folder, a Meta folder or a GGUF file
    model: Option<PathBuf>,
    /// Say which body each operation runs on each backend
    #[arg(long, conflicts_with = "model")]
    ops: bool,
    /// Tokenizer, if it is not beside the model
    #[arg(long, value_name = "FILE", requires = "model")]
    tokenizer: Option<PathBuf>,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

impl Info {
    pub(crate) fn run(self) -> Result<()> {
        if let Some(path) = &self.model {
            let model = TextModel::open(path, self.tokenizer.as_deref())?;
            let tokenizer = self.tokenizer.as_deref().or(model.checkpoint.tokenizer_path());
            let about = about(&model, tokenizer)?;
            if self.json {
                return print_json(&about);
            }
            show(&about);
            return Ok(());
        }
        let rows = backend::list();
        if self.json {
            return print_json(&rows);
        }
        let default = backend::BackendName::default().to_string();
        for row in rows {
            let mark = if row.name == default { " (default)" } else { "" };
            print(&format!("{:<10} {}{mark}", row.name, if row.usable { &row.device } else { "not usable" }));
            if row.usable {
                print(&format!("           computes in {}", row.dtypes.join(", ")));
            }
            if let Some(missing) = &row.missing {
                print(&format!("           {missing}"));
            }
            if self.ops && row.usable {
                print(&format!("           operations: {}", row.ops));
            }
        }
        Ok(())
    }
}

/// What the model's files say.
fn about(model: &TextModel, tokenizer: Option<&Path>) -> Result<Value> {
    let checkpoint = &model.checkpoint;
    let config = checkpoint.config();
    let mut types: BTreeMap<String, u64> = BTreeMap::new();
    let mut bytes = 0;
    for info in checkpoint.source().list() {
        *types.entry(info.dtype.to_string()).or_default() += info.shape.iter().product::<usize>() as u64;
        bytes += info.byte_len().unwrap_or_default() as u64;
    }
    let token = |id: u32| json!({ "id": id, "token": model.tokenizer.as_ref().and_then(|t| t.token_of(id)) });
    let (bos, _) = checkpoint.bos_eos();
    let bos = bos.or(model.tokenizer.as_ref().and_then(Tokenizer::bos_id));
    let kv = |dtype: KvDtype| 2 * config.n_layers * config.kv_heads() * dtype.bytes(config.head_dim());
    let kv: BTreeMap<&str, usize> = KvDtype::ALL.into_iter().map(|dtype| (dtype.name(), kv(dtype))).collect();
    let tokenizer = model
        .tokenizer
        .as_ref()
        .map(|t| json!({ "file": tokenizer, "kind": t.kind(), "vocab_size": t.vocab_size(), "prefix": t.prefix().to_vec() }));
    let template = model.tokenizer.as_ref().map(ChatTemplate::of).transpose()?;
    let template = template.as_ref().and_then(ChatTemplate::origin);
    Ok(json!({
        "path": checkpoint.path(),
        "format": checkpoint.format().to_string(),
        "params": config.num_params(),
        "bytes": bytes,
        "types": types,
        "config": config,
        "head_dim": config.head_dim(),
        "kv_heads": config.kv_heads(),
        "hidden_dim": config.hidden_dim(),
        "kv_bytes_per_token": kv,
        "tokenizer": tokenizer,
        "bos": bos.map(token),
        "ends": model.ends.iter().map(|id| token(*id)).collect::<Vec<_>>(),
        "chat_template": template,
    }))
}

fn show(about: &Value) {
    let number = |key: &str| about[key].as_f64().unwrap_or_default();
    let config = |key: &str| about["config"][key].to_string();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let token = |token: &Value| match &token["token"] {
        Value::String(text) => format!("{} {text:?}", token["id"]),
        _ => token["id"].to_string(),
    };
    let none = || "none".to_string();
    let types = about["types"].as_object().into_iter().flatten();
    let types: Vec<String> = types.map(|(name, n)| format!("{} in {name}", human(n.as_f64().unwrap_or_default()))).collect();
    let scaling = match &about["config"]["rope_scaling"] {
        Value::Object(scaling) if scaling.get("type") != Some(&"none".into()) => {
            let parts: Vec<String> = scaling.iter().map(|(key, value)| format!("{key} {}", text(value))).collect();
            format!(", scaled ({})", parts.join(", "))
        }
        _ => String::new(),
    };
    let kv: Vec<String> =
        KvDtype::ALL.iter().map(|dtype| format!("{dtype} {}", about["kv_bytes_per_token"][dtype.name()])).collect();
    let tokenizer = match &about["tokenizer"] {
        Value::Null => "none: prompts are token ids, or pass --tokenizer FILE".into(),
        t => format!("{} tokens, {} ({})", t["vocab_size"], text(&t["kind"]), text(&t["file"])),
    };
    let ends: Vec<String> = about["ends"].as_array().into_iter().flatten().map(token).collect();
    let rows = [
        ("model", format!("{} ({})", text(&about["path"]), text(&about["format"]))),
        ("parameters", format!("{}; {} of weights, {}", human(number("params")), size(number("bytes")), types.join(", "))),
        (
            "shape",
            format!(
                "dim {}, {} layers, {} heads of {} ({} for keys and values), feed-forward {}, vocabulary {}",
                config("dim"),
                config("n_layers"),
                config("n_heads"),
                about["head_dim"],
                about["kv_heads"],
                about["hidden_dim"],
                config("vocab_size")
            ),
        ),
        ("positions", format!("{}, rotary base {}{scaling}", config("max_seq_len"), config("rope_theta"))),
        ("cache", format!("bytes a token: {}", kv.join(", "))),
        ("tokenizer", tokenizer),
        ("begins with", if about["bos"].is_null() { none() } else { token(&about["bos"]) }),
        ("ends with", if ends.is_empty() { none() } else { ends.join(", ") }),
        (
            "chat",
            about["chat_template"]
                .as_str()
                .map_or_else(|| "no template: `recua chat` takes a plain form".into(), |file| format!("template of {file}")),
        ),
    ];
    for (name, value) in rows {
        print(&format!("{name:<12} {value}"));
    }
}

/// Bytes as `1.2 GiB`.
fn size(bytes: f64) -> String {
    for (unit, size) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        let size = f64::from(1 << size);
        if bytes >= size {
            return format!("{:.1} {unit}", bytes / size);
        }
    }
    format!("{bytes} bytes")
}
