//! How byte-level tokenizers cut a text into words, by the names that `tokenizer.ggml.pre` has for it.

use serde_json::{Value, json};

/// GPT-2's words.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's, with up to three digits together.
const LLAMA3: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's, with each digit alone.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The beginning of both, as some spell it.
const CONTRACTIONS: [&str; 2] = ["(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"];

/// A way to cut.
pub(super) struct Pre {
    /// Its names; the first is written.
    names: &'static [&'static str],
    /// Each cuts what the one before it left whole, where it matches and between.
    regexes: &'static [&'static str],
    /// A word that is a token is that token, whatever its merges say.
    pub(super) ignore_merges: bool,
    /// Whether BOS goes before a text where the file does not say.
    pub(super) add_bos: bool,
}

/// The name where none is given.
pub(super) const DEFAULT: &str = "default";

const ALL: [Pre; 7] = [
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        regexes: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    Pre { names: &["smaug-bpe", "dbrx"], regexes: &[LLAMA3], ignore_merges: false, add_bos: false },
    Pre { names: &["gpt-2", "phi-2", "mpt", "olmo", "jais"], regexes: &[GPT2], ignore_merges: false, add_bos: false },
    Pre {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        regexes: &[r"\p{N}", GPT2],
        ignore_merges: false,
        add_bos: false,
    },
    Pre { names: &["qwen2", "stablelm2", "deepseek-r1-qwen"], regexes: &[QWEN2], ignore_merges: false, add_bos: false },
    Pre {
        names: &["falcon"],
        regexes: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        names: &[DEFAULT],
        regexes: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ignore_merges: false,
        add_bos: false,
    },
];

impl Pre {
    /// The way that a name means.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|pre| pre.names.contains(&name))
    }

    /// All names.
    pub(super) fn known() -> String {
        ALL.iter().flat_map(|pre| pre.names).copied().collect::<Vec<_>>().join(", ")
    }

    /// The name of the way in which a `tokenizer.json` cuts; `None` if it has none.
    pub(super) fn recognise(pre_tokenizer: &Value, ignore_merges: bool) -> Option<&'static str> {
        let mut found = Vec::new();
        regexes(pre_tokenizer, &mut found)?;
        let same = |pre: &&Pre| pre.regexes.iter().map(|r| plain(r)).eq(found.iter().map(|r| plain(r)));
        let mut all = ALL.iter().filter(same);
        let exact = all.clone().find(|pre| pre.ignore_merges == ignore_merges);
        exact.or(all.next()).map(|pre| pre.names[0])
    }

    /// The `pre_tokenizer` of a `tokenizer.json`.
    pub(super) fn json(&self) -> Value {
        let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        if self.regexes == [GPT2] {
            return bytes(true);
        }
        let split = |regex: &&str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        let all: Vec<Value> = self.regexes.iter().map(split).chain([bytes(false)]).collect();
        json!({"type": "Sequence", "pretokenizers": all})
    }
}

/// The same expression however it is spelled. What an expression does not match is a word too, so that the last `\s+` says nothing.
fn plain(regex: &str) -> String {
    regex.replace(CONTRACTIONS[1], CONTRACTIONS[0]).trim_end_matches(r"|\s+").to_string()
}

/// The expressions of a `pre_tokenizer` that ends in bytes; `None` for anything that is no such list.
fn regexes(part: &Value, out: &mut Vec<String>) -> Option<()> {
    match part["type"].as_str()? {
        "Sequence" => part["pretokenizers"].as_array()?.iter().try_for_each(|part| regexes(part, out)),
        "ByteLevel" if part["add_prefix_space"] != true => {
            if part["use_regex"] != false {
                out.push(GPT2.into());
            }
            Some(())
        }
        "Digits" if part["individual_digits"] == true => {
            out.push(r"\p{N}".into());
            Some(())
        }
        "Split" if part["behavior"] == "Isolated" && part["invert"] != true => {
            out.push(part["pattern"]["Regex"].as_str()?.into());
            Some(())
        }
        _ => None,
    }
}
