//! The other side of the scripts `data_*.py`: what they compare, and timings of one thread. Built as an example, run by hand:
//! `cargo build --release --features data --example data_peers`.

use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use recua::corpus::Cleaned;
use recua::corpus::dedup::{minhash, overlap};
use recua::corpus::fasttext::{FastText, LabelledLines, TrainOptions, train};
use recua::corpus::filters::{c4, ccnet, perplexity, sentences};
use recua::corpus::lm::{LmTrainConfig, Model, train_lm};
use recua::corpus::sources::{arxiv, books, commoncrawl, github, stackexchange, warc};
use recua::tokenizer::Tokenizer;
use recua::tokenizer::{UnigramConfig, save_unigram, train_unigram};
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

const USAGE: &str = "data_peers VERB ...
  clean rp|arxiv|books|simhash|c4            JSON strings in, {text, dropped} out
  html                                       JSON strings in, {text, rp} out; seconds on stderr
  gh                                         [text, path] in, RedPajama's numbers out; seconds on stderr
  signatures                                 JSON strings in, MinHash signatures out
  warc FILE... | ccnet FILE... | sentences   records, documents, numbers of sentences (JSON strings in)
  score MODEL | binary ARPA OUT | train TEXT ARPA ORDER MIB [PRUNE...] | pieces TEXT OUT VOCAB | encode MODEL | normalize
  lid MODEL ROUNDS | classify LINES OUT KEY=VALUE...
  time WHAT [MODEL] FILE [ROUNDS]            seconds a round: lm, c4, minhash, simhash, sketch, rp, arxiv, books; warc, ccnet of a file";

type Answer<T = ()> = Result<T, Box<dyn Error>>;

fn lines(input: impl BufRead) -> impl Iterator<Item = Answer<String>> {
    input.lines().map(|line| Ok(line?))
}

fn strings() -> Answer<Vec<String>> {
    lines(std::io::stdin().lock()).map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

type Cleaner = Box<dyn Fn(&str) -> Cleaned>;

fn cleaner(what: &str) -> Answer<Cleaner> {
    Ok(match what {
        "rp" => Box::new(|t| arxiv::clean(t, &arxiv::Options { rp_compat: true, ..Default::default() })),
        "arxiv" => Box::new(|t| arxiv::clean(t, &arxiv::Options::default())),
        "books" => Box::new(|t| books::clean(t, &books::Options::default())),
        "c4" => Box::new(|t| c4::clean_page(t, &c4::C4Rules::default())),
        "simhash" => Box::new(|t| Cleaned::kept(overlap::redpajama_simhash(t).to_string())),
        "sketch" => Box::new(|t| Cleaned::kept(overlap::sketch(t).hashes().len().to_string())),
        "minhash" => Box::new(|t| Cleaned::kept(minhash::Config::default().signature(t).len().to_string())),
        _ => return Err(USAGE.into()),
    })
}

/// Prints the seconds and rates of some rounds.
fn time(rounds: usize, docs: usize, bytes: usize, mut work: impl FnMut() -> Answer) -> Answer {
    for _ in 0..rounds {
        let start = Instant::now();
        work()?;
        let s = start.elapsed().as_secs_f64();
        println!("{s:.5} s, {:.0} docs/s, {:.2} MB/s", docs as f64 / s, bytes as f64 / 1e6 / s);
    }
    Ok(())
}

fn main() -> Answer {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize| args.get(i).map(String::as_str).ok_or(USAGE);
    let mut out = BufWriter::new(std::io::stdout().lock());
    match arg(0)? {
        "clean" => {
            let clean = cleaner(arg(1)?)?;
            for text in strings()? {
                let cleaned = clean(&text);
                writeln!(out, "{}", json!({ "text": cleaned.text, "dropped": cleaned.dropped }))?;
            }
        }
        "html" => {
            let all = strings()?;
            for (name, f) in
                [("clean_html", stackexchange::clean_html as fn(&str) -> String), ("redpajama", stackexchange::redpajama_text)]
            {
                let start = Instant::now();
                all.iter().for_each(|html| drop(black_box(f(html))));
                eprintln!("{}", json!({ "what": name, "s": start.elapsed().as_secs_f64(), "docs": all.len() }));
            }
            for html in &all {
                writeln!(
                    out,
                    "{}",
                    json!({ "text": stackexchange::clean_html(html), "rp": stackexchange::redpajama_text(html) })
                )?;
            }
        }
        "gh" => {
            let files: Vec<(String, String)> =
                lines(std::io::stdin().lock()).map(|line| Ok(serde_json::from_str(&line?)?)).collect::<Answer<_>>()?;
            let options = github::Options { redpajama: true, ..Default::default() };
            for (name, options) in [("redpajama", &options), ("ours", &github::Options::default())] {
                let start = Instant::now();
                for (text, path) in &files {
                    black_box((github::content_key(text.as_bytes()), github::clean(text, Some(path), options)));
                }
                let s = start.elapsed().as_secs_f64();
                eprintln!("{}", json!({ "mode": name, "s": s, "files": files.len(), "files_per_s": files.len() as f64 / s }));
            }
            for (text, path) in &files {
                let header = github::strip_header_redpajama(text);
                let s = github::Shape::of(&header);
                let reason = github::clean(text, Some(path), &options).dropped;
                let pieces = github::count_pieces(&header);
                writeln!(out, "{}", json!([header, s.lines, s.max_line, s.chars, s.alphanumeric, s.letters, pieces, reason]))?;
            }
        }
        "warc" => {
            for file in &args[1..] {
                let mut reader = warc::WarcReader::new(File::open(file)?, warc::Limits::default())?;
                while let Some(record) = reader.next()? {
                    let Ok(r) = record else { continue };
                    let sha1: String = Sha1::digest(r.block).iter().map(|b| format!("{b:02x}")).collect();
                    let date = r.head.get("WARC-Date");
                    writeln!(
                        out,
                        "{}",
                        json!({ "file": file, "type": r.kind(), "uri": r.uri(), "date": date, "digest": r.digest(), "length": r.block.len(), "sha1": sha1 })
                    )?;
                }
            }
        }
        "ccnet" => {
            for file in &args[1..] {
                let mut all = Vec::new();
                commoncrawl::read(Path::new(file), &commoncrawl::Options::default(), &mut |record| {
                    all.extend(record);
                    Ok(())
                })?;
                for mut record in all {
                    record.meta.insert("hashes".into(), ccnet::hash_lines(&record.text).into());
                    record.meta.insert("text".into(), record.text.into());
                    writeln!(out, "{}", Value::from(record.meta))?;
                }
            }
        }
        "signatures" => {
            for text in strings()? {
                writeln!(out, "{}", json!(minhash::Config::default().signature(&text)))?;
            }
        }
        "sentences" => {
            for text in strings()? {
                writeln!(out, "{}", sentences::count_sentences(&text))?;
            }
        }
        "score" => {
            let model = Model::open(arg(1)?)?;
            for line in lines(std::io::stdin().lock()) {
                writeln!(out, "{}", serde_json::to_string(&model.full_scores(&line?, true, true))?)?;
            }
        }
        "binary" => Model::open(arg(1)?)?.save_binary(arg(2)?)?,
        "train" => {
            let (order, memory) = (arg(3)?.parse()?, arg(4)?.parse::<u64>()? << 20);
            let prune = args[5..].iter().map(|n| n.parse()).collect::<Result<_, _>>()?;
            let config = LmTrainConfig { order, memory, prune, skip_symbols: true, ..Default::default() };
            let text = BufReader::new(File::open(arg(1)?)?);
            let read = |line: std::io::Result<String>| line.map_err(recua::Error::io("read", &args[1]));
            println!("{:?}", train_lm(text.lines().map(read), &config, Path::new(arg(2)?))?);
        }
        "pieces" => {
            let config = UnigramConfig { vocab_size: arg(3)?.parse()?, ..Default::default() };
            let text = BufReader::new(File::open(arg(1)?)?);
            let read = |line: std::io::Result<String>| {
                line.map(|l| perplexity::normalize_for_lm(&l)).map_err(recua::Error::io("read", &args[1]))
            };
            save_unigram(&train_unigram(text.lines().map(read), &config)?, Path::new(arg(2)?))?;
        }
        "encode" => {
            let tokenizer = Tokenizer::open(arg(1)?)?;
            for line in lines(std::io::stdin().lock()) {
                writeln!(out, "{}", serde_json::to_string(&tokenizer.encode(&line?)?)?)?;
            }
        }
        "normalize" => {
            for text in strings()? {
                writeln!(out, "{}", json!(perplexity::normalize_for_lm(&text)))?;
            }
        }
        "lid" => {
            let model = FastText::open(arg(1)?)?;
            let all = strings()?;
            let mut predictor = model.predictor();
            time(arg(2)?.parse()?, all.len(), all.iter().map(String::len).sum(), || {
                for line in &all {
                    black_box(predictor.predict(line, 1, 0.0).len());
                }
                Ok(())
            })?;
        }
        "classify" => {
            let mut o = TrainOptions::default();
            for setting in &args[3..] {
                let (key, value) = setting.split_once('=').ok_or(USAGE)?;
                match key {
                    "lr" => o.lr = value.parse()?,
                    "dim" => o.dim = value.parse()?,
                    "epoch" => o.epoch = value.parse()?,
                    "minn" => o.minn = value.parse()?,
                    "maxn" => o.maxn = value.parse()?,
                    "word-ngrams" => o.word_ngrams = value.parse()?,
                    "bucket" => o.bucket = value.parse()?,
                    "loss" => o.loss = value.parse()?,
                    _ => return Err(USAGE.into()),
                }
            }
            train(&o, &LabelledLines(arg(1)?.into()), &mut |_, _| {})?.save(arg(2)?)?;
        }
        "time" => match arg(1)? {
            "lm" => {
                let model = Model::open(arg(2)?)?;
                let text = std::fs::read_to_string(arg(3)?)?;
                let words: usize = text.lines().map(|l| l.split(' ').count() + 1).sum();
                for _ in 0..args.get(4).map_or(Ok(5), |n| n.parse())? {
                    let start = Instant::now();
                    let total: f64 = text.lines().map(|line| f64::from(model.score(line, true, true))).sum();
                    let s = start.elapsed().as_secs_f64();
                    println!("{total:.4} {s:.3} s {:.3} M words/s", words as f64 / s / 1e6);
                }
            }
            "warc" => time(args.get(3).map_or(Ok(5), |n| n.parse())?, 0, std::fs::metadata(arg(2)?)?.len() as usize, || {
                let mut reader = warc::WarcReader::new(File::open(arg(2)?)?, warc::Limits::default())?;
                while let Some(record) = reader.next()? {
                    black_box(record.is_ok());
                }
                Ok(())
            })?,
            "ccnet" => time(args.get(3).map_or(Ok(5), |n| n.parse())?, 0, std::fs::metadata(arg(2)?)?.len() as usize, || {
                commoncrawl::read(Path::new(arg(2)?), &commoncrawl::Options::default(), &mut |record| {
                    black_box(record.map(|r| ccnet::hash_lines(&r.text)).ok());
                    Ok(())
                })?;
                Ok(())
            })?,
            what => {
                let clean = cleaner(what)?;
                let all: Vec<String> = lines(BufReader::new(File::open(arg(2)?)?))
                    .map(|line| Ok(serde_json::from_str(&line?)?))
                    .collect::<Answer<_>>()?;
                time(args.get(3).map_or(Ok(5), |n| n.parse())?, all.len(), all.iter().map(String::len).sum(), || {
                    all.iter().for_each(|text| drop(black_box(clean(text))));
                    Ok(())
                })?;
            }
        },
        _ => return Err(USAGE.into()),
    }
    Ok(())
}
