//! The rooms of the house in bands: a room uses its own band and those above it, none below. Held by reading the paths in all
//! sources, of `use` lines and of expressions.

use std::fs;
use std::path::{Path, PathBuf};

/// From the ground up; `docs` of the crate say what each room is for.
const BANDS: [(&str, &[&str]); 8] = [
    ("ground", &["error", "config", "files", "protobuf", "gguf", "dtype", "backend", "fault"]),
    ("dumps to text", &["corpus"]),
    ("text to batches", &["tokenizer", "data"]),
    ("tokens to loss", &["ops", "model", "checkpoint"]),
    ("weights to text", &["generate", "eval", "serve"]),
    ("loss to weights", &["optim", "parallel", "train"]),
    ("all of it", &["bench", "selftest", "quickstart", "build", "tokenize", "evaluate"]),
    ("binary", &["cli", "main"]),
];

fn band(room: &str) -> Option<usize> {
    BANDS.iter().position(|(_, rooms)| rooms.contains(&room))
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Crate {
    Ground,
    Dataflow,
    Corpus,
    Core,
    Serve,
    Eval,
    Root,
}

/// Their names in paths, and where their sources stand.
const CRATES: [(Crate, &str, &str); 7] = [
    (Crate::Ground, "recua_ground", "crates/ground/src"),
    (Crate::Dataflow, "recua_dataflow", "crates/dataflow/src"),
    (Crate::Corpus, "recua_corpus", "crates/corpus/src"),
    (Crate::Core, "recua_core", "crates/core/src"),
    (Crate::Serve, "recua_serve", "crates/serve/src"),
    (Crate::Eval, "recua_eval", "crates/eval/src"),
    (Crate::Root, "recua", "src"),
];

/// The room that a path from a crate's root leads to.
fn room(of: Crate, path: &[String]) -> String {
    let first = path.first().map_or("", String::as_str);
    match (of, first) {
        (Crate::Serve, _) => "serve".into(),
        (Crate::Eval, _) => "eval".into(),
        (Crate::Ground, _) | (_, "Error" | "Result") => "error".into(),
        (Crate::Root, "tokenize_files" | "FilesProgress" | "FilesSummary") => "tokenize".into(),
        (Crate::Dataflow | Crate::Corpus, first) if !["error", "config", "files"].contains(&first) => "corpus".into(),
        (_, first) => first.into(),
    }
}

/// Identifiers and punctuation with their lines; comments, strings, characters and lifetimes are left out.
fn tokens(source: &str) -> Vec<(usize, String)> {
    let chars: Vec<char> = source.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut i, mut line, mut tokens) = (0, 1, Vec::new());
    while i < chars.len() {
        let start = i;
        match at(i) {
            '/' if at(i + 1) == '/' => i = (i..chars.len()).find(|&j| at(j) == '\n').unwrap_or(chars.len()),
            '/' if at(i + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 || i >= chars.len() {
                        break;
                    }
                }
            }
            '"' => {
                i += 1;
                while i < chars.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
            }
            '\'' if at(i + 1) == '\\' => i = (i + 3..chars.len()).find(|&j| at(j) == '\'').unwrap_or(chars.len()) + 1,
            '\'' if at(i + 2) == '\'' => i += 3,
            '\'' => i += 1 + chars[i + 1..].iter().take_while(|c| word(**c)).count(),
            c if word(c) => {
                i += chars[i..].iter().take_while(|c| word(**c)).count();
                let text: String = chars[start..i].iter().collect();
                let hashes = chars[i..].iter().take_while(|c| **c == '#').count();
                if ["r", "br", "cr"].contains(&text.as_str()) && at(i + hashes) == '"' {
                    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
                    let from = i + hashes + 1;
                    i = (from..chars.len()).find(|&j| chars[j..].starts_with(&end)).unwrap_or(chars.len()) + end.len();
                } else if !(text == "r" && hashes == 1) {
                    tokens.push((line, text));
                } else {
                    i += 1; // r#type
                }
            }
            ':' if at(i + 1) == ':' => {
                i += 2;
                tokens.push((line, "::".into()));
            }
            c => {
                i += 1;
                if !c.is_whitespace() {
                    tokens.push((line, c.into()));
                }
            }
        }
        line += chars[start..i.min(chars.len())].iter().filter(|c| **c == '\n').count();
    }
    tokens
}

/// Reads the path at `i` and, in braces, all that branch off it; returns where it ends.
fn path(tokens: &[(usize, String)], mut i: usize, mut so_far: Vec<String>, found: &mut Vec<(usize, Vec<String>)>) -> usize {
    let text = |i: usize| tokens.get(i).map_or("", |(_, text)| text);
    let is_word = |i: usize| text(i).chars().next().is_some_and(|c| c.is_alphanumeric() || c == '_');
    let line = tokens[i].0;
    loop {
        if text(i) == "{" {
            i += 1;
            while !["}", ""].contains(&text(i)) {
                i = path(tokens, i, so_far.clone(), found).max(i + 1);
                while ![",", "}", ""].contains(&text(i)) {
                    i += 1; // `as x`
                }
                i += usize::from(text(i) == ",");
            }
            return i + 1;
        }
        if is_word(i) && (text(i) != "self" || so_far.is_empty()) {
            so_far.push(text(i).into());
        }
        i += 1;
        if text(i) != "::" || !(is_word(i + 1) || ["{", "*"].contains(&text(i + 1))) {
            found.push((line, so_far));
            return i;
        }
        i += 1;
    }
}

/// All rooms that a source file names, with the lines. `module` is its path in its crate.
fn rooms_named(of: Crate, module: &[&str], source: &str) -> Vec<(usize, String)> {
    let tokens = tokens(source);
    let text = |i: usize| tokens.get(i).map_or("", |(_, text)| text);
    let mut module: Vec<String> = module.iter().map(|m| m.to_string()).collect();
    let (mut depth, mut inline, mut rooms, mut i) = (0, Vec::new(), Vec::new(), 0);
    while i < tokens.len() {
        match text(i) {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if inline.last() == Some(&depth) {
                    inline.pop();
                    module.pop();
                }
            }
            "mod" if text(i + 2) == "{" => {
                inline.push(depth);
                module.push(text(i + 1).into());
            }
            "crate" | "super" | "self" | "recua" | "recua_core" | "recua_corpus" | "recua_dataflow" | "recua_ground"
            | "recua_serve"
                if text(i + 1) == "::" || (text(i.wrapping_sub(1)) == "use") =>
            {
                let mut found = Vec::new();
                i = path(&tokens, i, Vec::new(), &mut found);
                for (line, path) in found {
                    let supers = path.iter().take_while(|p| *p == "super" || *p == "self").count();
                    let ups = path[..supers].iter().filter(|p| *p == "super").count();
                    let (of, path) = match path[0].as_str() {
                        "super" | "self" => (of, [&module[..module.len().saturating_sub(ups)], &path[supers..]].concat()),
                        "crate" => (of, path[1..].to_vec()),
                        name => (CRATES.iter().find(|c| c.1 == name).unwrap().0, path[1..].to_vec()),
                    };
                    rooms.push((line, room(of, &path)));
                }
                continue;
            }
            _ => {}
        }
        i += 1;
    }
    rooms
}

/// What a file in this place may not say.
fn violations(of: Crate, module: &[&str], source: &str) -> Vec<String> {
    let own = room(of, &module.iter().map(|m| m.to_string()).collect::<Vec<_>>());
    let Some(own_band) = band(&own) else { return vec![format!("`{own}` is in no band: tests/bands.rs lists them")] };
    let wrong = rooms_named(of, module, source).into_iter().filter_map(|(line, room)| match band(&room) {
        Some(band) if band <= own_band => None,
        Some(band) => Some(format!("line {line}: `{own}` ({}) uses `{room}` ({})", BANDS[own_band].0, BANDS[band].0)),
        None => Some(format!("line {line}: `{room}` is in no band")),
    });
    wrong.collect()
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn nothing_imports_below_its_band() {
    let (mut wrong, mut read) = (Vec::new(), 0);
    for (of, _, dir) in CRATES {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
        let mut files = Vec::new();
        sources(&dir, &mut files);
        for file in files {
            let place = file.strip_prefix(&dir).unwrap().with_extension("");
            let mut module: Vec<&str> = place.iter().map(|part| part.to_str().unwrap()).collect();
            module.pop_if(|last| *last == "mod");
            if module == ["lib"] {
                continue; // lists and re-exports the rooms
            }
            read += 1;
            let source = fs::read_to_string(&file).unwrap();
            wrong.extend(violations(of, &module, &source).into_iter().map(|v| format!("{}: {v}", file.display())));
        }
    }
    assert!(read > 150, "{read} files");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_checker_sees_every_way_to_name_a_room() {
    use Crate::{Core, Corpus, Dataflow, Ground, Root, Serve};
    // (crate, module, source, how many violations)
    let cases: [(Crate, &[&str], &str, usize); 36] = [
        (Core, &["model", "llama"], "use crate::train::run;", 1),
        (Core, &["model", "llama"], "use crate::ops::LlamaOps; use crate::{Error, error::Result};", 0),
        (Core, &["train", "run"], "use crate::{model, data::{self, x}, ops};", 0),
        (Core, &["data"], "use crate::{error, model::{config::{A, B as C}}, train};", 3),
        (Core, &["data", "a"], "use crate::{\n  error,\n  // train\n  optim as o,\n};", 1),
        (Core, &["data", "a"], "use super::super::generate;", 1),
        (Core, &["data", "a"], "use super::generate;", 0),
        (Core, &["data", "a", "b"], "fn f() -> super::super::super::eval::X { g() }", 1),
        (Core, &["tokenizer"], "fn f() { let x = crate::generate::writer(1); }", 1),
        (
            Core,
            &["tokenizer"],
            "fn f<'a>(c: char) -> bool { c == '\"' || crate::eval::f::<u8>(c) == '\\'' || crate::data::y }",
            1,
        ),
        (
            Core,
            &["tokenizer"],
            "// crate::train::x\n/* crate::train /* crate::model::y */ */ /// [`crate::eval::X`]\nfn f() {}",
            0,
        ),
        (
            Core,
            &["tokenizer"],
            "const S: &str = \"crate::train::x \\\" crate::eval::x\"; const R: &str = r#\"\" crate::train::y\"#;",
            0,
        ),
        (Core, &["tokenizer"], "const S: &str = r\"\\\"; use crate::train::x;", 1),
        (Core, &["ops"], "macro_rules! m { () => { $crate::train::x() } }", 1),
        (Core, &["ops"], "pub(crate) fn f() {} pub(super) struct S; pub(in crate::ops) mod x;", 0),
        (Core, &["ops"], "mod inner { use super::super::train::x; }", 1),
        (Core, &["ops"], "mod inner { use super::x; } use super::train;", 1),
        (Core, &["ops"], "mod a { mod b { use super::super::super::bench; } use super::c; } use self::d; use super::model;", 1),
        (Core, &["ops"], "use crate as all;", 1),
        (Core, &["ops"], "use crate::*;", 1),
        (Core, &["ops"], "use crate::{*};", 1),
        (Core, &["ops"], "use crate::nowhere::x;", 1),
        (Core, &["ops"], "use crate::{r#train::x};", 1),
        (Core, &["attic"], "", 1),
        (Core, &["backend"], "use crate::ops::LlamaOps;", 1),
        (Ground, &["files"], "use crate::error::{Error, Result}; use crate::anything;", 0),
        (Corpus, &["pipeline", "x"], "use crate::sources::y; use crate::files; use recua_ground::Error; use super::z;", 0),
        (Dataflow, &["table"], "use super::atomic::x; use crate::{Record, error::Error, files};", 0),
        (Dataflow, &["table"], "use recua_core::data::x;", 1),
        (Corpus, &["pipeline", "x"], "use recua_core::tokenizer::Tokenizer;", 1),
        (
            Serve,
            &["routes", "chat"],
            "use crate::error::{ApiError, Result}; use recua_core::{generate::Engine, tokenizer}; use super::z;",
            0,
        ),
        (Serve, &["routes", "chat"], "use recua_core::train::run;", 1),
        (Root, &["quickstart"], "use recua_core::{train, error}; use recua_corpus::crates; use crate::tokenize_files;", 0),
        (Root, &["quickstart"], "use crate::cli::print; use ::recua::cli::y;", 2),
        (Root, &["cli", "data", "build"], "use super::super::print; use recua::{Error, build::x, train}; use crate::cli::x;", 0),
        (Root, &["build"], "impl x for recua_core::train::Y {} type T = Vec<crate::cli::Z>;", 1),
    ];
    for (of, module, source, count) in cases {
        let wrong = violations(of, module, source);
        assert_eq!(wrong.len(), count, "{of:?} {module:?} {source}: {wrong:?}");
    }
}
