//! The whole pipeline on small dumps of all seven sources, made here.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flate2::{Compression, write::GzEncoder};
use recua::build::RecuaTokens;
use recua::corpus::engine::{Fate, Manifest, Table, config_hash};
use recua::corpus::pipeline::{Build, BuildConfig, Mixture, Part, Silent, Stage, explain};
use recua::corpus::sources::{SourceName, all};
use recua::train::{Layers, RunConfig};
use serde_json::{Value, json};

use crate::common::outside;

/// No two are the same, digits counting as equal (as to CCNet).
fn sentence(n: usize) -> String {
    let words =
        ["river", "stone", "garden", "winter", "letter", "market", "engine", "island", "shadow", "candle", "forest", "harbour"];
    let letters = |n: usize| [n / 676 % 26, n / 26 % 26, n % 26].map(|k| char::from(b'a' + k as u8)).iter().collect::<String>();
    let mut out = format!("The {}{} of number {n}", words[n % 12], letters(n));
    for i in 0..9 {
        out += &format!(" {}{}", words[(n * 7 + i * 5) % 12], letters(n * 31 + i * 17));
    }
    out + " was there."
}

fn paragraphs(from: usize, n: usize) -> String {
    (from..from + n).map(sentence).collect::<Vec<_>>().join("\n")
}

fn gz(path: &Path, bytes: &[u8]) {
    let mut file = GzEncoder::new(fs::File::create(path).unwrap(), Compression::fast());
    file.write_all(bytes).unwrap();
    file.finish().unwrap();
}

fn wet(pages: &[(&str, String)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (i, (url, text)) in pages.iter().enumerate() {
        let block = format!("Title {i}\n{text}\n");
        write!(
            out,
            "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2022-01-01T00:00:00Z\r\n\
             WARC-Record-ID: <urn:uuid:{i}>\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{block}\r\n\r\n",
            block.len()
        )
        .unwrap();
    }
    out
}

/// Dumps of all sources in `dir`, and the configuration.
fn dumps(dir: &Path) -> BuildConfig {
    let menu = "Home | About | Contact | a menu that all pages of the site have, word by word";
    let page = |n: usize| format!("{menu}\n{}", paragraphs(n * 10, 6));
    let crawl = dir.join("crawl");
    fs::create_dir(&crawl).unwrap();
    gz(
        &crawl.join("a.warc.wet.gz"),
        &wet(&[("http://a.org/1", page(1)), ("http://a.org/2", page(2)), ("http://a.org/short", "x".into())]),
    );
    gz(&crawl.join("b.warc.wet.gz"), &wet(&[("http://a.org/3", page(3))]));

    let lines = [
        json!({ "text": paragraphs(400, 5), "timestamp": "2019-01-01T00:00:00Z", "url": "http://c.org/1" }).to_string(),
        "{ not JSON".into(),
        json!({ "text": paragraphs(500, 5), "timestamp": "2019-01-01T00:00:00Z", "url": "http://c.org/2" }).to_string(),
    ];
    gz(&dir.join("c4.json.gz"), lines.join("\n").as_bytes());

    let code = dir.join("code");
    for (project, licence) in [("one", "MIT"), ("two", "MIT"), ("three", "GPL-3.0-only")] {
        fs::create_dir_all(code.join(project).join("src")).unwrap();
        fs::write(code.join(project).join("Cargo.toml"), format!("[package]\nname = \"{project}\"\nlicense = \"{licence}\"\n"))
            .unwrap();
        let body = "/// Adds two numbers that are given.\npub fn add(left: u64, right: u64) -> u64 {\n    left + right\n}\n";
        fs::write(
            code.join(project).join("src/lib.rs"),
            format!("// Copyright 2020 the authors. Licensed under the MIT license.\n\n{body}"),
        )
        .unwrap();
    }

    let article = |n: usize| {
        format!(
            "'''River {n}''' is a [[river|stream]] of the north.<ref>a note</ref> {}\n\n== Course ==\n{}",
            sentence(n),
            paragraphs(n, 3)
        )
    };
    let mut wiki = String::from("<mediawiki><siteinfo><dbname>enwiki</dbname></siteinfo>\n");
    for n in 600..603 {
        wiki += &format!(
            "<page><title>River {n}</title><ns>0</ns><id>{n}</id><revision><id>1</id><timestamp>2022-07-01T00:00:00Z</timestamp>\
             <model>wikitext</model><text>{}</text></revision></page>\n",
            article(n).replace('&', "&amp;").replace('<', "&lt;")
        );
    }
    fs::write(dir.join("enwiki-pages-articles.xml"), wiki + "</mediawiki>\n").unwrap();

    let books = dir.join("books");
    fs::create_dir(&books).unwrap();
    let book = |from| {
        format!(
            "The Project Gutenberg eBook of A Book\n\nTitle: A Book\n\n*** START OF THE PROJECT GUTENBERG EBOOK A BOOK ***\n\n{}\n\n\
             *** END OF THE PROJECT GUTENBERG EBOOK A BOOK ***\nlicence\n",
            paragraphs(from, 200)
        )
    };
    fs::write(books.join("one.txt"), book(1000)).unwrap();
    fs::write(books.join("two.txt"), book(2000)).unwrap();
    // The first book again, with a new foreword.
    fs::write(
        books.join("zz-copy.txt"),
        book(1000).replace("BOOK ***\n\n", "BOOK ***\n\nA new foreword, of a few words only.\n"),
    )
    .unwrap();

    let paper = "\\documentclass{article}\n\\newcommand{\\R}{\\mathbb{R}}\n\\begin{document}\nabstract\n\\section{Results}\n"
        .to_owned()
        + &paragraphs(700, 4)
        + " in $\\R^n$ % a comment\n\\bibliography{refs}\n\\end{document}\n";
    gz(&dir.join("2101.00001.gz"), paper.as_bytes());

    let site = dir.join("cooking.example.com");
    fs::create_dir(&site).unwrap();
    let rows = [
        (1, 1, None, 3, "How long?", "<p>How long must <b>rice</b> boil?</p>"),
        (2, 2, Some(1), 9, "", "<p>Twelve minutes.</p>"),
        (3, 2, Some(1), 10, "", "<p>Eleven, and then rest.</p>"),
    ];
    let mut posts = String::from("<?xml version=\"1.0\"?>\n<posts>\n");
    for (id, kind, parent, score, title, body) in rows {
        let parent = parent.map_or(String::new(), |p: u32| format!(" ParentId=\"{p}\""));
        posts += &format!(
            "  <row Id=\"{id}\" PostTypeId=\"{kind}\"{parent} Score=\"{score}\" Title=\"{title}\" CreationDate=\"2015-01-01T00:00:00.000\" Body=\"{}\" />\n",
            body.replace('<', "&lt;").replace('>', "&gt;")
        );
    }
    fs::write(site.join("Posts.xml"), posts + "</posts>\n").unwrap();

    let path = |name: &str| toml::Value::String(dir.join(name).display().to_string()).to_string();
    let text = format!(
        "out = {}\n[mix]\nvalid = 0.0\njsonl = true\n\
         [sources.commoncrawl]\ninputs = [{}]\n[sources.c4]\ninputs = [{}]\n[sources.github]\ninputs = [{}]\n\
         [sources.wikipedia]\ninputs = [{}]\n[sources.books]\ninputs = [{}]\n[sources.arxiv]\ninputs = [{}]\n[sources.stackexchange]\ninputs = [{}]\n",
        path("out"),
        path("crawl/*.wet.gz"),
        path("c4.json.gz"),
        path("code"),
        path("enwiki-pages-articles.xml"),
        path("books"),
        path("2101.00001.gz"),
        path("cooking.example.com"),
    );
    let file = dir.join("mixture.toml");
    fs::write(&file, text).unwrap();
    BuildConfig::resolve(Some(&file), &["memory_mb=256".into(), "threads=2".into()]).unwrap()
}

fn run(config: &BuildConfig, stages: &[Stage]) {
    Build::new(config, (0, 1), &Silent, &RecuaTokens).unwrap().run(stages).unwrap();
}

/// The final documents of a source.
fn documents(config: &BuildConfig, source: &str) -> Vec<(String, String)> {
    let dir = config.out.join("mix").join(source);
    let mut files: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files.retain(|p| p.extension().is_some_and(|e| e == "parquet") && !p.to_string_lossy().contains("dropped"));
    files
        .iter()
        .filter(|p| !p.to_string_lossy().contains("removed"))
        .flat_map(|p| Table::open(p).unwrap())
        .map(|r| r.unwrap())
        .map(|r| (r.id, r.text))
        .collect()
}

/// All outputs but timings, by path.
fn outputs(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.to_string_lossy().ends_with(".timing.json") && !path.to_string_lossy().ends_with(".lock") {
                all.insert(path.strip_prefix(dir).unwrap().into(), fs::read(&path).unwrap());
            }
        }
    }
    all
}

#[test]
fn seven_sources_become_text() {
    let dir = tempfile::tempdir().unwrap();
    let config = dumps(dir.path());
    run(&config, &Stage::ALL);

    let crawl = documents(&config, "commoncrawl");
    assert_eq!(crawl.iter().map(|d| d.0.as_str()).collect::<Vec<_>>(), ["http://a.org/1", "http://a.org/2", "http://a.org/3"]);
    assert_eq!(crawl[0].1, paragraphs(10, 6), "the menu that three pages share must go, and nothing else");
    assert_eq!(documents(&config, "c4").len(), 2);
    let code = documents(&config, "github");
    let all: Vec<_> = code.iter().map(|d| d.0.as_str()).collect();
    assert!(all.iter().all(|id| !id.contains("three")), "a GPL project was read: {all:?}");
    let sources: Vec<_> = code.iter().filter(|d| d.0.ends_with("lib.rs")).collect();
    assert_eq!(sources.len(), 1, "the same file in two projects stays once: {all:?}");
    assert!(sources[0].1.starts_with("/// Adds"), "{}", sources[0].1);
    let wiki = documents(&config, "wikipedia");
    assert_eq!(wiki.len(), 3);
    assert!(wiki[0].1.starts_with("River 600 is a stream of the north. The"), "{}", wiki[0].1);
    let books = documents(&config, "books");
    assert_eq!(books.iter().map(|d| d.0.as_str()).collect::<Vec<_>>(), ["one", "two"], "the later copy goes");
    assert_eq!(books[0].1.trim(), paragraphs(1000, 200));
    let papers = documents(&config, "arxiv");
    assert_eq!(papers.len(), 1);
    assert!(papers[0].1.trim_start().starts_with("\\section{Results}"), "{}", papers[0].1);
    assert!(papers[0].1.trim_end().ends_with("in $\\mathbb{R}^n$"), "{}", papers[0].1);
    let threads = documents(&config, "stackexchange");
    assert_eq!(threads.len(), 1);
    assert_eq!(threads[0].1, "Q: How long?\n\nHow long must rice boil?\n\nA: Eleven, and then rest.\n\nA: Twelve minutes.");

    // What was dropped is told.
    let short = explain(&config, "http://a.org/short").unwrap();
    assert!(
        short
            .iter()
            .any(|(stage, fate)| stage == "clean/commoncrawl"
                && matches!(fate, Fate::Dropped { reason, .. } if reason == "too_short")),
        "{short:?}"
    );
    let first = explain(&config, "http://a.org/1").unwrap();
    assert!(
        first.iter().any(
            |(_, fate)| matches!(fate, Fate::Removed { rule, text, .. } if rule == "duplicate_line" && text.starts_with("Home"))
        ),
        "{first:?}"
    );
    assert!(explain(&config, "nothing").is_err());
    let rejected = Manifest::read(&config.out.join("read/c4"), "shard-00000").unwrap().unwrap();
    assert_eq!((rejected.counts.rejected, rejected.counts.docs_out), (1, 2), "one bad record is one record less");

    // The text as JSON lines is that of the tables.
    let lines = fs::read_to_string(config.out.join("mix/wikipedia/shard-00000.jsonl")).unwrap();
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((first["text"].as_str(), first["source"].as_str()), (Some(wiki[0].1.as_str()), Some("wikipedia")));
    let report = fs::read_to_string(config.out.join("report.html")).unwrap();
    for word in ["commoncrawl", "stackexchange", "too_short", "duplicate_line", "overlap", "http://a.org/short"] {
        assert!(report.contains(word), "the report has no `{word}`");
    }
}

#[test]
fn a_second_run_changes_nothing_and_a_changed_rule_redoes_what_depends_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = dumps(dir.path());
    run(&config, &Stage::ALL);
    let first = outputs(&config.out);
    run(&config, &Stage::ALL);
    assert!(first == outputs(&config.out), "a second run must leave every byte as it is");
    // What one thread and stages one by one make is the same.
    let again = tempfile::tempdir().unwrap();
    let folder = std::mem::replace(&mut config.out, again.path().into());
    config.threads = Some(1);
    for stage in Stage::ALL {
        run(&config, &[stage]);
    }
    let (mut one, mut other) = (first, outputs(again.path()));
    one.remove(Path::new("config.toml"));
    other.remove(Path::new("config.toml"));
    let differ: Vec<_> = one.keys().chain(other.keys()).filter(|k| one.get(*k) != other.get(*k)).collect();
    assert!(differ.is_empty(), "{differ:?}");
    // Another length: cleaning and what follows is done again, reading is not.
    (config.out, config.sources.commoncrawl.as_mut().unwrap().min_chars) = (folder, 0);
    let read = fs::metadata(config.out.join("read/commoncrawl/shard-00000.parquet")).unwrap().modified().unwrap();
    run(&config, &Stage::ALL);
    assert_eq!(fs::metadata(config.out.join("read/commoncrawl/shard-00000.parquet")).unwrap().modified().unwrap(), read);
    assert_eq!(documents(&config, "commoncrawl").len(), 4, "the short page stays now");
}

/// Builds of earlier versions go on: what a stage depends on is hashed as it was in November 2026 (commit 617cb6d), so that a shard that
/// is done is not done again.
#[test]
fn stages_depend_on_what_they_did() {
    let dir = tempfile::tempdir().unwrap();
    let config = dumps(dir.path());
    run(&config, &Stage::ALL[..5]);
    let languages =
        ["bg", "ca", "cs", "da", "de", "en", "es", "fr", "hr", "hu", "it", "nl", "pl", "pt", "ro", "ru", "sl", "sr", "sv", "uk"];
    let books = json!({ "remove_credits": true, "remove_notes": false, "max_book": 67_108_864 });
    let papers = json!({ "rp_compat": false, "strict_utf8": false, "require_section": false, "keep_appendix": false,
        "expand_environments": false, "max_inflated": 268_435_456, "max_tex": 16_777_216 });
    let crawl_rules = json!((["en"], 0.5_f32, ["head", "middle", "all"], "wiki", 0.25_f32));
    let none = Value::Null;
    // Source, what reading, cleaning and deduplication depend on, and the rules of scoring.
    let expected = [
        ("commoncrawl", json!({ "title_in_text": false }), json!(300), "Paragraphs(Everywhere)", crawl_rules),
        ("c4", json!({ "title_in_text": true }), json!([false, null]), "Nothing", none.clone()),
        (
            "github",
            json!({ "max_file": 1_048_576, "check_licence": true }),
            json!({ "redpajama": false, "strip_headers": true, "max_line": 1000, "max_mean_line": 100.0, "min_alphanumeric": 0.25,
                "min_letters_per_token": 1.5, "extensions": null }),
            "Exact",
            none.clone(),
        ),
        (
            "wikipedia",
            json!({ "namespaces": [0], "max_page_bytes": 8_388_608, "threads": 1, "language": null }),
            json!({ "languages": languages, "math": "latex", "templates": true, "categories": false, "language_links": false,
                "drop_empty_sections": true, "tidy": true }),
            "Nothing",
            none.clone(),
        ),
        ("books", books.clone(), books, "Overlap(0.9)", none.clone()),
        ("arxiv", papers.clone(), papers, "Nothing", none.clone()),
        (
            "stackexchange",
            json!([{ "layout": "plain", "min_score": null, "max_answers": null }, 28]),
            none.clone(),
            "Nothing",
            none,
        ),
    ];
    for (source, read, clean, rule, rules) in expected {
        let hash =
            |stage: &str| Manifest::read(&config.out.join(stage).join(source), "shard-00000").unwrap().unwrap().config_hash;
        let models = json!({ "lid": null, "lms": {}, "classifier": null });
        let score = json!({ "source": source, "rules": rules, "english": null, "models": models, "sets": [], "ngram": 13 });
        let of = |settings: Value| config_hash(&settings).unwrap();
        assert_eq!(hash("read"), of(json!([source, read])), "{source} read");
        assert_eq!(hash("clean"), of(json!([clean, false])), "{source} clean");
        assert_eq!(hash("dedup"), of(json!({ "rule": rule, "near": null })), "{source} dedup");
        assert_eq!(hash("score"), of(score), "{source} score");
        assert_eq!(hash("mix"), of(json!([source, 0.0, true])), "{source} mix");
    }
}

#[test]
fn several_processes_make_what_one_makes() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = dumps(dir.path());
    run(&config, &Stage::ALL);
    let alone = outputs(&config.out);
    config.out = dir.path().join("shared");
    std::thread::scope(|scope| {
        for rank in 0..3 {
            let config = &config;
            scope.spawn(move || Build::new(config, (rank, 3), &Silent, &RecuaTokens).unwrap().run(&Stage::ALL[..5]).unwrap());
        }
    });
    let together = outputs(&config.out);
    for (path, bytes) in alone.iter().filter(|(p, _)| p.components().count() == 3) {
        assert!(together.get(path) == Some(bytes), "{} differs", path.display());
    }
}

#[test]
fn mistakes_in_a_configuration_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    for (text, expected) in [
        ("", "write a table [sources.NAME]"),
        ("[sources.wikipedai]\ninputs = [\"a\"]\n", "wikipedai"),
        ("[sources.books]\ninputs = []\n", "sources.books.inputs"),
        ("[sources.books]\ninputs = [\"a\"]\nweight = 0.0\n", "sources.books.weight"),
        ("[sources.books]\ninputs = [\"a\"]\n[mix]\nvalid = 1.5\n", "mix.valid"),
    ] {
        fs::write(&file, text).unwrap();
        let error = BuildConfig::resolve(Some(&file), &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "`{text}` gives `{error}`");
    }
    fs::write(&file, format!("out = '{}'\n[sources.books]\ninputs = [\"/nowhere/*.txt\"]\n", dir.path().join("o").display()))
        .unwrap();
    let config = BuildConfig::resolve(Some(&file), &[]).unwrap();
    let error = Build::new(&config, (0, 1), &Silent, &RecuaTokens).unwrap().run(&Stage::ALL).unwrap_err().to_string();
    assert!(error.contains("/nowhere/*.txt"), "{error}");
}

#[test]
fn a_mixture_has_the_wanted_shares_and_keeps_the_caps() {
    let name = |name: &str| name.parse::<SourceName>().unwrap();
    let part =
        |source: &str, weight, max_epochs, tokens| Part { source: name(source), weight, max_epochs, tokens, paper_epochs: 1.0 };
    let sources = [
        part("commoncrawl", 67.0, 4.0, 1_000_000_000),
        part("c4", 15.0, 4.0, 250_000_000),
        part("wikipedia", 4.5, 2.0, 20_000_000),
        part("books", 4.5, 4.0, 0),
    ];
    let mixture = Mixture::new(&sources, None, &RecuaTokens).unwrap();
    // Wikipedia's 20 M tokens, twice, are 4.5 of 86.5 parts.
    assert_eq!(mixture.limited_by, name("wikipedia"));
    let most = 2.0 * 20e6 * 86.5 / 4.5;
    assert!(mixture.tokens as f64 <= most && mixture.tokens as f64 > most - 20.0 * 2048.0, "{}", mixture.tokens);
    for share in &mixture.shares {
        assert!((share.got - share.wanted).abs() < 3.0 * 2048.0 / mixture.tokens as f64, "{share:?}");
        assert!(share.epochs <= if share.source == name("wikipedia") { 2.0 } else { 4.0 }, "{share:?}");
    }
    assert_eq!(mixture.shares.len(), 3, "a source without tokens has no share");
    assert!((mixture.shares.iter().map(|s| s.got).sum::<f64>() - 1.0).abs() < 1e-12);
    let asked = Mixture::new(&sources, Some(100_000_000), &RecuaTokens).unwrap();
    assert!((asked.shares[2].epochs - 100e6 * 4.5 / 86.5 / 20e6).abs() < 1e-2);
    let error = Mixture::new(&sources, Some(10_000_000_000), &RecuaTokens).unwrap_err().to_string();
    assert!(error.contains("wikipedia") && error.contains("max_epochs"), "{error}");
    // At the paper's sizes its epochs come out: bytes of table 1 stand for tokens, epochs for shares.
    let total: f64 = all().iter().map(|s| s.common().paper.0).sum();
    assert!((total - 100.0).abs() < 1e-9);
}

/// Documents of C4 of random words, one in ten with another's text; about `bytes` of them.
fn random_documents(path: &Path, bytes: usize) {
    let mut state = 1_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let mut file = std::io::BufWriter::new(fs::File::create(path).unwrap());
    let (mut written, mut text) = (0, String::new());
    while written < bytes {
        if text.is_empty() || random() % 10 > 0 {
            text.clear();
            for _ in 0..40 {
                let words: Vec<String> =
                    (0..8).map(|_| (0..3 + random() % 5).map(|_| char::from(b'a' + (random() % 26) as u8)).collect()).collect();
                text += &format!("{}.\n", words.join(" "));
            }
        }
        writeln!(file, "{}", json!({ "text": text, "url": format!("https://example.org/{written}") })).unwrap();
        written += text.len();
    }
    file.flush().unwrap();
}

/// The bound that docs/data.md states, whatever the corpus: a build in a process of its own, whose peak the system counts.
#[cfg(target_os = "linux")]
#[test]
fn memory_is_bounded_and_does_not_grow_with_the_corpus() {
    let dir = tempfile::tempdir().unwrap();
    let peak = |megabytes: usize| {
        let path = |name: &str| toml::Value::String(dir.path().join(name).display().to_string()).to_string();
        random_documents(&dir.path().join("c4.json"), megabytes << 20);
        let text = format!(
            "out = {}\nthreads = 2\nmemory_mb = 128\n[sources.c4]\ninputs = [{}]\nrules = true\nnear_duplicates = true\n\
             mask_pii = true\n",
            path("out"),
            path("c4.json")
        );
        let _ = fs::remove_dir_all(dir.path().join("out"));
        fs::write(dir.path().join("c4.toml"), text).unwrap();
        let mut build = Command::new(env!("CARGO_BIN_EXE_recua"))
            .args(["data", "build", "--config"])
            .arg(dir.path().join("c4.toml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut peak = 0_u64;
        loop {
            let status = fs::read_to_string(format!("/proc/{}/status", build.id())).unwrap_or_default();
            let kib = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
            peak = peak.max(kib.unwrap_or(0) >> 10);
            match build.try_wait().unwrap() {
                Some(status) => break assert!(status.success(), "{status}"),
                None => std::thread::sleep(std::time::Duration::from_millis(2)),
            }
        }
        let kept =
            fs::read_dir(dir.path().join("out/mix/c4")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum::<u64>();
        assert!(kept > (megabytes as u64) << 18, "{kept} bytes stay of {megabytes} MiB");
        println!("{megabytes} MiB of text: {peak} MiB resident");
        peak
    };
    let (small, large) = (peak(16), peak(96));
    assert!(large < 2048 && large < 2 * small, "{small} and {large} MiB");
}

/// Answers of a verb to lines.
fn ask(args: &[&str], lines: &[Value]) -> Vec<Value> {
    let mut child =
        Command::new(env!("CARGO_BIN_EXE_recua")).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let out = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(out.status.success(), "{args:?}");
    String::from_utf8(out.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn texts_are_cleaned_line_by_line() {
    let answers =
        ask(&["data", "clean", "--source", "wikipedia"], &[json!("See [[Paris|the capital]].{{cn}}"), json!("#REDIRECT [[A]]")]);
    assert_eq!(answers[0], json!({ "text": "See the capital.", "dropped": null }));
    assert_eq!(answers[1], json!({ "text": "", "dropped": "redirect" }));
    let answers = ask(&["data", "clean", "--source", "c4"], &[json!("Too few words.\n".repeat(3)), json!(paragraphs(0, 4))]);
    assert_eq!(answers[0]["dropped"], "too_few_sentences");
    assert_eq!(answers[1], json!({ "text": paragraphs(0, 4), "dropped": null }));
    let answers = ask(&["data", "clean", "--source", "stackexchange"], &[json!("<p>a &lt; <code>b</code></p>")]);
    assert_eq!(answers[0]["text"], "a < b");
}

#[test]
fn models_are_trained_and_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let write = |name: &str, from: usize, n: usize, word: &str| {
        let lines: String =
            (from..from + n).map(|i| format!("{}\n", json!({ "text": format!("{} {word}", sentence(i)) }))).collect();
        fs::write(dir.path().join(name), lines).unwrap();
    };
    write("yes.jsonl", 0, 200, "encyclopaedia article reference");
    write("no.jsonl", 1000, 200, "cheap offer buy now");
    let run = |args: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_recua")).args(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    run(&[
        "data",
        "train-classifier",
        "--positives",
        &path("yes.jsonl"),
        "--negatives",
        &path("no.jsonl"),
        "--out",
        &path("wiki.bin"),
        "--dim",
        "16",
    ]);
    let answers = ask(
        &["data", "lid", "--model", &path("wiki.bin"), "--top", "2"],
        &[json!("an encyclopaedia article"), json!("buy now, cheap")],
    );
    assert_eq!((&answers[0]["labels"][0], &answers[1]["labels"][0]), (&json!("wiki"), &json!("other")));
    assert_eq!(answers[0]["probs"].as_array().unwrap().len(), 2);
    run(&[
        "data",
        "train-lm",
        "--input",
        &path("yes.jsonl"),
        "--out",
        &path("lm"),
        "--pieces",
        "300",
        "--order",
        "3",
        "--memory",
        "16",
    ]);
    let cutoffs: toml::Table = fs::read_to_string(dir.path().join("lm/cutoffs.toml")).unwrap().parse().unwrap();
    let cutoffs = &cutoffs["models"]["lm"]["en"]["cutoffs"];
    assert!(cutoffs["head"].as_float() <= cutoffs["tail"].as_float());
    let (arpa, binary) = (path("lm/lm.arpa"), path("lm/lm.bin"));
    let asked = [json!("▁the ▁river"), json!("▁never ▁seen")];
    let [a, b] = [&arpa, &binary].map(|model| ask(&["data", "lm-score", "--model", model], &asked));
    assert_eq!(a, b, "the two formats of a model give the same scores");
    assert_eq!(a[0]["words"].as_array().unwrap().len(), 3, "two words and </s>");
}

#[test]
fn what_is_left_out_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let run = |args: &[&str], input: &[u8]| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_recua"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(input);
        let out = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (out.status.code(), text(&out.stdout), text(&out.stderr))
    };
    // The answer to the line before comes first.
    let (code, out, err) = run(&["data", "clean", "--source", "wikipedia"], b"\"good one\"\n\"caf\xe9\"\n");
    assert_eq!((code, out.lines().count()), (Some(2), 1), "{out} {err}");
    assert!(out.contains("good one") && err.contains("line 2"), "{out} {err}");
    // Files that are no text.
    fs::create_dir(dir.path().join("in")).unwrap();
    fs::write(dir.path().join("in/a.txt"), b"caf\xe9 zebra\n").unwrap();
    fs::write(dir.path().join("in/b.txt"), (0..40).map(|i| sentence(i) + "\n").collect::<String>()).unwrap();
    let lm = |input: &str, words: bool| {
        let (input, out) = (path(input), path("lm"));
        let mut args = vec!["data", "train-lm", "--order", "3", "--memory", "16", "--out", &out, "--input", &input];
        args.extend(if words { &["--words"][..] } else { &["--pieces", "300"] });
        run(&args, b"")
    };
    let (code, _, err) = lm("in", true);
    assert!(code == Some(0) && err.contains("a.txt"), "{err}");
    // One document, and a word without an end.
    let (code, _, err) = lm("in/b.txt", false);
    assert!(code == Some(1) && err.contains("--cutoffs-from"), "{err}");
    fs::write(dir.path().join("long.txt"), "x".repeat(1_200_000)).unwrap();
    let (code, _, err) = lm("long.txt", true);
    assert!(code != Some(0) && err.contains("long.txt, line 1"), "{err}");
    // A dry run looks at all and writes nothing.
    let config = dumps(dir.path());
    let file = path("mixture.toml");
    let (code, out, err) = run(&["data", "build", "--config", &file, "--dry-run", "--set", "memory_mb=256"], b"");
    assert!(code == Some(0) && out.contains("wikipedia") && !config.out.exists(), "{out} {err}");
    let (code, _, err) = run(&["data", "build", "--config", &file, "--dry-run", "--set", "models.lid=nowhere.ftz"], b"");
    assert!(code == Some(1) && err.contains("nowhere.ftz"), "{err}");
}

/// All of the samples in one build.
#[test]
fn samples_of_all_sources_go_through() {
    let Some(samples) = outside("RECUA_DATA", "") else { return };
    let samples = samples.to_str().unwrap().trim_end_matches('/');
    let dir = tempfile::tempdir().unwrap();
    let list = |patterns: &[&str]| {
        toml::Value::Array(patterns.iter().map(|p| toml::Value::String(format!("{samples}/{p}"))).collect()).to_string()
    };
    let one = |path: &str| toml::Value::String(format!("{samples}/{path}")).to_string();
    let text = format!(
        "out = {}\n[models]\nlid = {}\n[mix]\ntokenizer = {}\n[decontaminate]\nfiles = {}\n\
         [sources.commoncrawl]\ninputs = {}\nlanguages = []\n[sources.c4]\ninputs = {}\n[sources.github]\ninputs = [\"src\", \"tests\"]\n\
         read = {{ check_licence = false }}\n[sources.wikipedia]\ninputs = {}\nrules = {{ languages = [] }}\n[sources.books]\ninputs = {}\nnear_duplicates = true\n\
         [sources.arxiv]\ninputs = {}\n[sources.stackexchange]\ninputs = {}\nmask_pii = true\n",
        toml::Value::String(dir.path().join("out").display().to_string()),
        one("models/lid.176.ftz"),
        one("models/tokenizer.model"),
        list(&["eval/boolq", "eval/mmlu"]),
        list(&["commoncrawl"]),
        list(&["c4"]),
        list(&["wikipedia"]),
        list(&["books"]),
        list(&["arxiv/*"]),
        list(&["stackexchange"]),
    );
    let file = dir.path().join("samples.toml");
    fs::write(&file, text).unwrap();
    let config = BuildConfig::resolve(Some(&file), &["memory_mb=256".into()]).unwrap();
    run(&config, &Stage::ALL);
    let mixture = Build::new(&config, (0, 1), &Silent, &RecuaTokens).unwrap().mixture().unwrap().unwrap();
    println!("{mixture}");
    assert_eq!(mixture.shares.len(), 7, "every source has tokens");
    let (train, _) = RunConfig::resolve(&Layers { file: Some(&config.out.join("train.toml")), set: &[] }).unwrap();
    assert_eq!(train.data.train.len(), 7);
    let held_out = train.data.valid.unwrap();
    assert!(
        held_out.folders().len() > 2 && held_out.folders().iter().all(|(_, path)| path.join("dataset.json").exists()),
        "{held_out:?}"
    );
    let books = documents(&config, "books");
    let names: Vec<_> = books.iter().map(|b| b.0.as_str()).collect();
    // The samples have two books twice.
    assert!(names.contains(&"books__120-0") && names.contains(&"books__pg161"), "{names:?}");
    assert!(!names.contains(&"data__pg120") && !names.contains(&"data__pg161"), "{names:?}");
    assert!(books.iter().all(|b| !b.1.contains("START OF THE PROJECT GUTENBERG")), "a header stayed");
}
