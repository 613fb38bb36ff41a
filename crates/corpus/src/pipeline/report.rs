//! The seventh stage: `report.html`, one page that needs no network and no other file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::read::PASSED;
use super::{Build, Stage, benchmarks};
use crate::engine::{Counts, Manifest, Shown, Table, shown};
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::sources::SourceName;

/// Documents of a source that the histograms are of: its first ones.
const COUNTED: usize = 20_000;
/// Documents shown a source and stage.
const SAMPLES: usize = 4;
/// Characters of a document that are shown.
const CHARS: usize = 900;

/// Names of files that are shown.
const SHOWN_NAMES: usize = 100;

/// What a stage did to a source.
struct Step {
    stage: &'static str,
    counts: Counts,
    dropped: Vec<Shown>,
    removed: Vec<Shown>,
}

/// What the final documents of a source are like.
#[derive(Default)]
struct Look {
    /// By the power of two of their bytes.
    lengths: BTreeMap<u32, u64>,
    languages: BTreeMap<String, u64>,
    /// By tenths of a power of ten.
    perplexities: BTreeMap<i32, u64>,
    samples: Vec<(String, String)>,
    documents: usize,
}

/// Writes the page; returns its path.
pub(super) fn write(build: &Build<'_>) -> Result<PathBuf> {
    let mut page = String::from(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>recua data</title>\n",
    );
    let _ = write!(page, "<style>{STYLE}</style>\n</head>\n<body>\n<h1>From dumps to tokens</h1>\n");
    let used: Vec<_> = build.config.sources.used().iter().map(|source| source.common().name).collect();
    let mut all = Vec::new();
    for &source in &used {
        let mut steps = Vec::new();
        for stage in Stage::TABLES {
            let dir = build.folder(stage.name(), source);
            if dir.is_dir() {
                steps.extend(step(stage.name(), &dir)?);
            }
        }
        let look = look(build, source)?;
        all.push((source, steps, look));
    }
    overview(&mut page, &all);
    if build.config.mix.tokenizer.is_some()
        && let Ok(Some(mixture)) = build.mixture()
    {
        page.push_str("<h2>Mixture</h2>\n<table><tr><th>source<th>tokens<th>wanted<th>got<th>deviation<th>epochs<th>epochs in the paper</tr>\n");
        for s in &mixture.shares {
            let _ = writeln!(
                page,
                "<tr><th>{}<td>{}<td>{:.2} %<td>{:.2} %<td>{:.3} %<td>{:.2}<td>{:.2}</tr>",
                s.source,
                grouped(s.tokens),
                100.0 * s.wanted,
                100.0 * s.got,
                100.0 * (s.got - s.wanted),
                s.epochs,
                s.paper_epochs
            );
        }
        let _ = writeln!(
            page,
            "</table>\n<p>A run of {} tokens; {} are the most that the caps on epochs allow ({}).</p>",
            grouped(mixture.tokens),
            grouped(mixture.most),
            mixture.limited_by
        );
    }
    match build.benchmarks()? {
        Some(tasks) => {
            let sets = &build.config.decontaminate;
            benchmarks::section(&mut page, &tasks, sets.ngram, sets.remove);
            let path = build.config.out.join("contamination.json");
            let text = serde_json::to_vec_pretty(&tasks).map_err(|e| Error::internal("report", e.to_string()))?;
            write_atomic(&path, &text)?;
        }
        None if build.config.decontaminate.tasks.is_empty() => {}
        None => build.observer.note("the benchmarks' questions are not counted yet: the stage `score` is not complete"),
    }
    for (source, steps, look) in &all {
        source_section(&mut page, *source, steps, look);
        passed_over(&mut page, &build.folder("read", *source).join(PASSED));
    }
    page.push_str("</body>\n</html>\n");
    let path = build.config.out.join("report.html");
    write_atomic(&path, page.as_bytes())?;
    Ok(path)
}

/// The shards of a folder, by name.
fn shards(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let name = entry.map_err(Error::io("read", dir))?.file_name();
        names.extend(name.to_str().and_then(|n| n.strip_suffix(".manifest.json")).map(str::to_owned));
    }
    names.sort_unstable();
    Ok(names)
}

fn step(stage: &'static str, dir: &Path) -> Result<Option<Step>> {
    let mut step = Step { stage, counts: Counts::default(), dropped: Vec::new(), removed: Vec::new() };
    let mut any = false;
    let (mut dropped, mut removed) = (BTreeMap::new(), BTreeMap::new());
    for shard in shards(dir)? {
        let Some(manifest) = Manifest::read(dir, &shard)? else { continue };
        any = true;
        step.counts.add(&manifest.counts);
        for (ending, samples, per_reason) in
            [("dropped", &mut step.dropped, &mut dropped), ("removed", &mut step.removed, &mut removed)]
        {
            let path = dir.join(format!("{shard}.{ending}.parquet"));
            // A few of each reason: the commonest would otherwise be all that is seen.
            if samples.len() < 8 * SAMPLES && path.exists() {
                samples.extend(shown(&path, 8 * SAMPLES - samples.len(), |why| {
                    let n: &mut usize = per_reason.entry(why.to_owned()).or_default();
                    *n += 1;
                    *n <= SAMPLES
                })?);
            }
        }
    }
    Ok(any.then_some(step))
}

/// The documents as they leave the last stage that there is.
fn look(build: &Build<'_>, source: SourceName) -> Result<Look> {
    let mut look = Look::default();
    let dirs = Stage::TABLES.iter().rev().map(|s| build.folder(s.name(), source));
    let Some(dir) = dirs.into_iter().find(|d| d.is_dir()) else { return Ok(look) };
    'shards: for shard in shards(&dir)? {
        let path = dir.join(format!("{shard}.parquet"));
        if !path.exists() {
            continue;
        }
        for record in Table::open(&path)? {
            let record = record?;
            look.documents += 1;
            *look.lengths.entry(record.text.len().max(1).ilog2()).or_default() += 1;
            let text = |key: &str| record.meta.get(key).and_then(Value::as_str);
            if let Some(language) = text("lid").or(text("language")) {
                *look.languages.entry(language.to_owned()).or_default() += 1;
            }
            if let Some(perplexity) = record.meta.get("perplexity").and_then(Value::as_f64).filter(|p| *p > 0.0) {
                *look.perplexities.entry((10.0 * perplexity.log10()).floor() as i32).or_default() += 1;
            }
            // Spread over the first documents: neighbours are alike.
            if look.samples.len() < SAMPLES && look.documents % 7 == 1 {
                look.samples.push((record.id, record.text));
            }
            if look.documents == COUNTED {
                break 'shards;
            }
        }
    }
    Ok(look)
}

fn overview(page: &mut String, all: &[(SourceName, Vec<Step>, Look)]) {
    page.push_str(
        "<table><tr><th>source<th>stage<th>documents in<th>out<th>bytes in<th>out<th>kept<th>dropped<th>rejected<th>passed over</tr>\n",
    );
    for (source, steps, _) in all {
        for (i, step) in steps.iter().enumerate() {
            let c = &step.counts;
            let kept = if c.bytes_in > 0 { 100.0 * c.bytes_out as f64 / c.bytes_in as f64 } else { 100.0 };
            let first = if i == 0 {
                format!("<th rowspan=\"{}\"><a href=\"#{source}\">{source}</a>", steps.len())
            } else {
                String::new()
            };
            let _ = writeln!(
                page,
                "<tr>{first}<td class=\"l\">{}<td>{}<td>{}<td>{}<td>{}<td><div class=\"bar\" style=\"--w:{:.1}%\">{kept:.1} %</div><td>{}<td>{}<td>{}</tr>",
                step.stage,
                grouped(c.docs_in),
                grouped(c.docs_out),
                bytes(c.bytes_in),
                bytes(c.bytes_out),
                kept.min(100.0),
                grouped(c.dropped.values().sum()),
                grouped(c.rejected),
                grouped(c.skipped.values().sum()),
            );
        }
    }
    page.push_str("</table>\n");
}

fn source_section(page: &mut String, source: SourceName, steps: &[Step], look: &Look) {
    let _ = writeln!(page, "<h2 id=\"{source}\">{source}</h2>\n<section class=\"charts\">");
    let lengths: Vec<_> = range(&look.lengths).map(|(k, n)| (bytes(1 << k), n)).collect();
    columns(page, &format!("Bytes of a document (from), of {} documents", grouped(look.documents as u64)), &lengths);
    let mut languages: Vec<_> = look.languages.iter().map(|(l, n)| (l.clone(), *n)).collect();
    languages.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    languages.truncate(20);
    columns(page, "Languages", &languages);
    let perplexities: Vec<_> =
        range(&look.perplexities).map(|(k, n)| (format!("{:.0}", 10f64.powf(f64::from(k) / 10.0)), n)).collect();
    columns(page, "Perplexity (from)", &perplexities);
    for step in steps {
        for (what, map) in
            [("dropped", &step.counts.dropped), ("removed pieces", &step.counts.removed), ("passed over", &step.counts.skipped)]
        {
            let mut rows: Vec<_> = map.iter().map(|(k, n)| (k.clone(), *n)).collect();
            rows.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
            bars(page, &format!("{}: {what}", step.stage), &rows);
        }
    }
    page.push_str("</section>\n<section class=\"pair\"><div>\n<h3>Kept</h3>\n");
    for (id, text) in &look.samples {
        sample(page, id, "", text);
    }
    page.push_str("</div><div>\n<h3>Dropped</h3>\n");
    let mut none = true;
    for step in steps {
        for s in step.dropped.iter().take(2 * SAMPLES) {
            none = false;
            sample(page, &s.id, &format!("{}: {}", step.stage, s.why), &s.text);
        }
    }
    if none {
        page.push_str("<p>none</p>\n");
    }
    page.push_str("</div></section>\n");
    if steps.iter().any(|s| !s.removed.is_empty()) {
        page.push_str("<details><summary>Removed pieces</summary>\n");
        for step in steps {
            for s in &step.removed {
                sample(page, &s.id, &format!("{}: {}", step.stage, s.why), &s.text);
            }
        }
        page.push_str("</details>\n");
    }
}

/// The counts of all keys between the first and the last.
fn range<K: Copy + Ord + Into<i64>>(map: &BTreeMap<K, u64>) -> impl Iterator<Item = (i32, u64)> {
    let counts: BTreeMap<i64, u64> = map.iter().map(|(k, n)| ((*k).into(), *n)).collect();
    let ends = counts.keys().next().copied().zip(counts.keys().next_back().copied());
    ends.into_iter().flat_map(|(a, b)| a..=b).map(move |k| (k as i32, counts.get(&k).copied().unwrap_or(0)))
}

/// Files of the inputs that were no dumps, as the first stage left them written down.
fn passed_over(page: &mut String, path: &Path) {
    let names: Vec<String> = std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    if names.is_empty() {
        return;
    }
    let _ = writeln!(page, "<details><summary>Files passed over: {}</summary>\n<ul>", grouped(names.len() as u64));
    for name in names.iter().take(SHOWN_NAMES) {
        let _ = writeln!(page, "<li><code>{}</code>", escape(name));
    }
    page.push_str("</ul>\n</details>\n");
}

/// A histogram.
fn columns(page: &mut String, title: &str, rows: &[(String, u64)]) {
    let most = rows.iter().map(|r| r.1).max().unwrap_or(0);
    if most == 0 {
        return;
    }
    let (width, height) = (360.0, 120.0);
    let step = width / rows.len() as f64;
    let _ = writeln!(page, "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {width} {}\">", escape(title), height + 36.0);
    for (i, (name, n)) in rows.iter().enumerate() {
        let (x, h) = (i as f64 * step, *n as f64 / most as f64 * (height - 14.0));
        let _ = writeln!(
            page,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}: {n}</title></rect>",
            x + 1.0,
            height - h,
            (step - 2.0).max(1.0),
            h,
            escape(name)
        );
        let _ = writeln!(
            page,
            "<text transform=\"translate({:.1} {:.1}) rotate(45)\">{}</text>",
            x + step / 2.0 - 3.0,
            height + 8.0,
            escape(name)
        );
    }
    let _ = writeln!(page, "<text x=\"0\" y=\"10\">{}</text></svg></figure>", grouped(most));
}

/// Names with bars.
fn bars(page: &mut String, title: &str, rows: &[(String, u64)]) {
    let most = rows.first().map_or(0, |r| r.1);
    if most == 0 {
        return;
    }
    let _ = writeln!(page, "<figure><figcaption>{}</figcaption><table class=\"bars\">", escape(title));
    for (name, n) in rows.iter().take(24) {
        let share = 100.0 * *n as f64 / most as f64;
        let _ =
            writeln!(page, "<tr><th>{}<td><div class=\"bar\" style=\"--w:{share:.1}%\">{}</div></tr>", escape(name), grouped(*n));
    }
    page.push_str("</table></figure>\n");
}

fn sample(page: &mut String, id: &str, why: &str, text: &str) {
    let mut start: String = text.chars().take(CHARS).collect();
    if start.len() < text.len() {
        start.push_str(" …");
    }
    let why = if why.is_empty() { String::new() } else { format!(" <b>{}</b>", escape(why)) };
    let _ = writeln!(page, "<div class=\"doc\"><p><code>{}</code>{why}</p><pre>{}</pre></div>", escape(id), escape(&start));
}

/// `1234567` as `1 234 567`.
pub(super) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// Bytes with a unit of two powers.
fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (n.max(1).ilog2() / 10).min(4);
    let value = n as f64 / 1024f64.powi(unit as i32);
    if unit == 0 || value.fract() == 0.0 {
        format!("{value:.0} {}", units[unit as usize])
    } else {
        format!("{value:.1} {}", units[unit as usize])
    }
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "
:root{--ink:#1d2430;--soft:#667;--line:#d9dde5;--fill:#3b6ea8;--wash:#e6eef8;--page:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7ee;--soft:#9aa3b2;--line:#3a404c;--fill:#6fa0dd;--wash:#26354a;--page:#15181e}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:72rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.2rem .6rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
td:not(.l){white-space:nowrap}th:first-child,td.l{text-align:left}a{color:var(--fill)}
.bar{background:linear-gradient(to right,var(--wash) var(--w),transparent var(--w));text-align:left;padding:0 .3rem;min-width:7rem}
.charts{display:flex;flex-wrap:wrap;gap:1.5rem;align-items:flex-start}figure{margin:0;min-width:18rem}figcaption{font-weight:600}
svg{width:24rem;max-width:100%}rect{fill:var(--fill)}text{font-size:9px;fill:var(--soft)}.bars th{font-weight:400;text-align:left}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:1.5rem}@media(max-width:60rem){.pair{grid-template-columns:1fr}}
.doc{border:1px solid var(--line);border-radius:.4rem;margin:.6rem 0;padding:.2rem .7rem}.doc p{margin:.3rem 0;overflow-wrap:anywhere}
pre{white-space:pre-wrap;overflow-wrap:anywhere;max-height:18rem;overflow:auto;font-size:12.5px;margin:.3rem 0}";
