//! An evaluation as one HTML page, `report.html`, that needs no network and no other file.

mod paper;

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::metrics::choice;
use crate::results::{Metric, Results, TaskResult};
use crate::{Outcome, Result, files};

/// Items of a task that the page shows: the first ones.
const ITEMS: usize = 100;

/// Characters of a text that the page shows: the last ones of a context, the first ones of others.
const CHARS: usize = 6000;

/// Writes the page of an evaluation into `dir`. `outcomes` are in the order of the tasks.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io).
pub fn write(results: &Results, outcomes: &[&[Outcome]], dir: &Path) -> Result<()> {
    files::write_atomic(&dir.join("report.html"), page(results, outcomes).as_bytes())
}

/// The page of an evaluation.
pub fn page(results: &Results, outcomes: &[&[Outcome]]) -> String {
    let run = &results.run;
    let mut body = format!("<h1>{}</h1>\n", escape(&run.model));
    body.push_str(&facts(results));
    body.push_str("<h2>Results</h2>\n");
    body.push_str(&table(results));
    body.push_str(&beside_the_paper(results));
    body.push_str("<h2>Tasks</h2>\n");
    for (at, task) in results.tasks.iter().enumerate() {
        body.push_str(&one_task(at, task, outcomes.get(at).copied().unwrap_or_default()));
    }
    let (css, js) = (include_str!("report/page.css"), include_str!("report/page.js"));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>Evaluation of {}</title>\n<style>\n{css}</style>\n</head>\n<body>\n{body}<script>\n{js}</script>\n</body>\n</html>\n",
        escape(&run.model)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn facts(results: &Results) -> String {
    let run = &results.run;
    let given = |value: Option<usize>| value.map_or_else(|| "as each task says".to_owned(), |value| value.to_string());
    let protocol = match run.protocol.as_str() {
        "paper" => "paper (LLaMA's sections 3 to 5)".to_owned(),
        _ => format!("{} {}", run.protocol, run.lm_eval),
    };
    let mut rows = vec![
        ("protocol", protocol),
        ("type", run.dtype.clone()),
        ("backend", run.backend.clone()),
        ("shots", given(run.shots)),
        ("seed of shots", run.seed.to_string()),
        ("limit", run.limit.map_or_else(|| "none".to_owned(), |limit| format!("{limit} questions a task"))),
        ("recua", run.recua.clone()),
        ("took", format!("{:.1} s", run.seconds)),
    ];
    rows.extend(run.parameters.map(|parameters| ("parameters", thousands(parameters))));
    rows.extend(run.max_length.map(|length| ("longest sequence", format!("{length} tokens"))));
    rows.extend(run.temperature.map(|temperature| ("temperature", temperature.to_string())));
    rows.extend(run.samples.map(|samples| ("texts a question", samples.to_string())));
    rows.extend(run.walls.clone().map(|walls| ("walls around programs", walls)));
    let rows: String = rows.iter().map(|(name, text)| format!("<dt>{name}</dt><dd>{}</dd>\n", escape(text))).collect();
    format!("<dl>\n{rows}</dl>\n")
}

/// 1234567 as 1,234,567.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let comma = |(at, digit): (usize, char)| [(at > 0 && (digits.len() - at).is_multiple_of(3)).then_some(','), Some(digit)];
    digits.chars().enumerate().flat_map(comma).flatten().collect()
}

fn number(value: Option<f64>) -> String {
    // Of a perplexity in the thousands nobody reads the fourth decimal.
    let digits = |value: f64| if value.abs() < 1000.0 { 4 } else { 1 };
    value.map_or_else(|| "&ndash;".into(), |value| format!("{value:.*}", digits(value)))
}

fn cells(metric: &Metric) -> String {
    format!("<td class=\"own\">{}</td><td>{}</td>", number(metric.value), number(metric.clustered.or(metric.stderr)))
}

fn table(results: &Results) -> String {
    // What a narrow screen shows without scrolling stands first.
    let mut text = String::from(
        "<div class=\"wide\"><table>\n<tr><th>task</th><th class=\"text\">metric</th><th class=\"own\">value</th><th>std. error</th>\
         <th>chance</th><th>items</th><th>shots</th><th>version</th></tr>\n",
    );
    let mut row = |head: &str, name: &str, metric: &Metric, chance: &str, tail: &str| {
        // A long name may break where its words do.
        let (head, name, cells) = (escape(head).replace('_', "_<wbr>"), escape(name), cells(metric));
        let _ = writeln!(
            text,
            "<tr><td>{head}</td><td class=\"text\">{name}</td>{cells}<td>{chance}</td><td>{}</td>{tail}</tr>",
            metric.n
        );
    };
    for task in &results.tasks {
        for (at, (name, metric)) in task.metrics.iter().enumerate() {
            let info = &task.info;
            if at == 0 {
                let tail = format!("<td>{}</td><td>{}</td>", info.shots, escape(&info.version));
                row(&info.name, name, metric, &number(task.chance), &tail);
            } else {
                row("", name, metric, "", "<td></td><td></td>");
            }
        }
    }
    for group in &results.groups {
        for (name, metric) in &group.metrics {
            row(&format!("{} ({} tasks)", group.name, group.tasks.len()), name, metric, "", "<td></td><td></td>");
        }
    }
    text + "</table></div>\n"
}

/// The run's number for a row of the paper.
fn ours(results: &Results, row: &paper::Row) -> Option<(String, f64, Option<f64>)> {
    let pick = |metrics: &indexmap::IndexMap<String, Metric>| -> Option<(String, f64, Option<f64>)> {
        row.metrics.iter().find_map(|wanted| {
            let exact = metrics.get_key_value(*wanted);
            // `exact_match` is also `exact_match,strict-match`, but no vote is meant by it.
            let with_filter = || {
                metrics.iter().find(|(name, _)| {
                    name.starts_with(wanted)
                        && (wanted.contains(',') || name[wanted.len()..].starts_with(',') && !name.contains(",maj"))
                })
            };
            let (name, metric) = exact.or_else(with_filter)?;
            Some((name.clone(), metric.value?, metric.clustered.or(metric.stderr)))
        })
    };
    let fits = |task: &&TaskResult| row.shots.is_none_or(|shots| shots == task.info.shots);
    row.tasks.iter().find_map(|name| {
        if let Some(task) = results.tasks.iter().filter(fits).find(|task| task.info.name == *name) {
            return pick(&task.metrics);
        }
        let group = results.groups.iter().find(|group| group.name == *name)?;
        let members = results.tasks.iter().filter(|task| group.tasks.contains(&task.info.name));
        if members.clone().all(|task| fits(&task)) { pick(&group.metrics) } else { None }
    })
}

fn beside_the_paper(results: &Results) -> String {
    let mut text = String::new();
    for table in paper::TABLES {
        let rows: Vec<_> = table.rows.iter().filter_map(|row| Some((row, ours(results, row)?))).collect();
        if rows.is_empty() {
            continue;
        }
        let models: String = paper::MODELS.iter().map(|model| format!("<th>{model}</th>")).collect();
        let _ = writeln!(
            text,
            "<h3>{}</h3>\n<div class=\"wide\"><table>\n<tr><th></th><th class=\"text\">metric</th><th class=\"own\">this model</th><th>std. error</th>{models}</tr>",
            table.title
        );
        for (row, (metric, value, stderr)) in rows {
            let values: String = row
                .values
                .iter()
                .map(|value| if value.is_nan() { "<td>&ndash;</td>".to_owned() } else { format!("<td>{value:.1}</td>") })
                .collect();
            let stderr = stderr.map_or_else(|| "&ndash;".to_owned(), |stderr| format!("{:.1}", 100.0 * stderr));
            let _ = writeln!(
                text,
                "<tr><td>{}</td><td class=\"text\">{}</td><td class=\"own\">{:.1}</td><td>{stderr}</td>{values}</tr>",
                row.label,
                escape(&metric),
                100.0 * value
            );
        }
        text.push_str("</table></div>\n");
    }
    if text.is_empty() {
        return text;
    }
    let care = if results.run.protocol == "paper" {
        "The paper prints no prompts of its 0-shot tasks; ours stand in docs/eval.md."
    } else {
        "This run asked and scored as lm-eval does; the paper's numbers come of other prompts and other normalisation (--protocol paper): \
         a difference of several points is no difference between models."
    };
    format!("<h2>Beside the paper</h2>\n<p class=\"soft\">In percent, as printed in the LLaMA paper. {care}</p>\n{text}")
}

fn one_task(at: usize, task: &TaskResult, outcomes: &[Outcome]) -> String {
    let info = &task.info;
    let first = task.first().map(|(name, metric)| format!("{} {}", escape(name), number(metric.value))).unwrap_or_default();
    let mut text = format!(
        "<details><summary>{} <span class=\"soft\">{first}, {} of {} items</span></summary>\n",
        escape(&info.name),
        task.n,
        info.original
    );
    let files: Vec<String> = info.files.iter().map(|file| format!("{} ({} rows)", file.path.display(), file.rows)).collect();
    let _ = writeln!(
        text,
        "<dl><dt>protocol</dt><dd>{} {}</dd>\n<dt>data</dt><dd>{}</dd>\n<dt>sha256</dt><dd>{}</dd>",
        escape(&info.protocol),
        escape(&info.version),
        escape(&files.join(", ")),
        escape(&info.sha256)
    );
    if let Some(symbolic) = task.symbolic {
        let _ = writeln!(
            text,
            "<dt>undecided</dt><dd>{symbolic} answers are counted as wrong that a symbolic judge may find right</dd>"
        );
    }
    text.push_str("</dl>\n");
    if !task.categories.is_empty() {
        text.push_str("<div class=\"wide\"><table>\n<tr><th>category</th><th>items</th><th class=\"own\">value</th><th>std. error</th></tr>\n");
        for (name, metric) in &task.categories {
            let _ = writeln!(text, "<tr><td>{}</td><td>{}</td>{}</tr>", escape(name), metric.n, cells(metric));
        }
        text.push_str("</table></div>\n");
    }
    text.push_str(&reliability(task));
    if !outcomes.is_empty() {
        let shown = outcomes.len().min(ITEMS);
        let rest = if shown < outcomes.len() {
            format!(", the first {shown} of {}; all are in samples/{}.jsonl", outcomes.len(), escape(&info.name))
        } else {
            String::new()
        };
        let items: Vec<Value> = outcomes.iter().take(ITEMS).map(item).collect();
        // `</script>` must not stand in a script, nor `<!--`.
        let data = Value::from(items).to_string().replace('<', "\\u003c");
        let _ = writeln!(
            text,
            "<p class=\"soft\">Items{rest}</p>\n<div data-items=\"items-{at}\"></div>\n<script type=\"application/json\" id=\"items-{at}\">{data}</script>"
        );
    }
    text + "</details>\n"
}

/// The curve of a task: how often it is right by how sure it is, and how often it is so sure.
fn reliability(task: &TaskResult) -> String {
    let Some(curve) = &task.calibration else { return String::new() };
    let all: usize = curve.bins.iter().map(|bin| bin.count).sum();
    let (x, y) = (|share: f64| 34.0 + 200.0 * share, |share: f64| 210.0 - 200.0 * share);
    let mut svg = String::from("<svg width=\"250\" height=\"240\" role=\"img\" aria-label=\"reliability\">\n");
    let _ = writeln!(svg, "<path class=\"axis\" d=\"M{},{}V{}H{}\"/>", x(0.0), y(1.0), y(0.0), x(1.0));
    for tick in [0.0, 0.5, 1.0] {
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{tick}</text>", x(0.0) - 5.0, y(tick) + 3.0);
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>", x(tick), y(0.0) + 13.0);
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">probability of the choice taken</text>",
        x(0.5),
        y(0.0) + 26.0
    );
    let width = 200.0 / curve.bins.len().max(1) as f64;
    let mut points = Vec::new();
    for (at, bin) in curve.bins.iter().enumerate().filter(|(_, bin)| bin.count > 0) {
        let height = 200.0 * bin.count as f64 / all as f64;
        let left = x(0.0) + width * at as f64;
        let _ = writeln!(
            svg,
            "<rect class=\"bar\" opacity=\".45\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\"><title>{} items</title></rect>",
            y(0.0) - height,
            width - 1.0,
            bin.count
        );
        points.push((x(bin.confidence), y(bin.accuracy), bin));
    }
    let _ = writeln!(svg, "<line class=\"ideal\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\"/>", x(0.0), y(0.0), x(1.0), y(1.0));
    let path: Vec<String> = points.iter().map(|(x, y, _)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(svg, "<polyline class=\"curve\" points=\"{}\"/>", path.join(" "));
    for (x, y, bin) in points {
        let _ = writeln!(
            svg,
            "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"><title>{} items, sure {:.3}, right {:.3}</title></circle>",
            bin.count, bin.confidence, bin.accuracy
        );
    }
    svg.push_str("</svg>\n");
    format!(
        "<p>Reliability: share of right answers by probability among the choices; bars are the items' share. Expected calibration error {:.3}.</p>\n{svg}",
        curve.error
    )
}

fn first(text: &str) -> String {
    match text.char_indices().nth(CHARS) {
        Some((at, _)) => format!("{} [{} more characters]", &text[..at], text[at..].chars().count()),
        None => text.into(),
    }
}

fn last(text: &str) -> String {
    let count = text.chars().count();
    if count <= CHARS {
        return text.into();
    }
    let tail: String = text.chars().skip(count - CHARS).collect();
    format!("[{} characters before] {tail}", count - CHARS)
}

/// An item as the page's script wants it.
fn item(outcome: &Outcome) -> Value {
    let is_gold = |at: usize| match &outcome.target {
        Value::Array(right) => right.iter().any(|right| right.as_u64() == Some(at as u64)),
        right => right.as_u64() == Some(at as u64),
    };
    let of_choices = outcome.loglikelihoods.len() > 1 && outcome.loglikelihoods.len() == outcome.arguments.len();
    let contexts: Vec<&str> = outcome.arguments.iter().map(|(context, _)| context.as_str()).collect();
    // WinoGrande has a context a choice.
    let one_context = contexts.windows(2).all(|pair| pair[0] == pair[1]);
    let mut choices = Vec::new();
    if of_choices {
        let shares = choice::softmax(&outcome.loglikelihoods);
        for (at, (context, continuation)) in outcome.arguments.iter().enumerate() {
            let text = if one_context { continuation.clone() } else { format!("{context}{continuation}") };
            let ll = format!("{:.3}", outcome.loglikelihoods[at]);
            let share = format!("{:.3}", shares[at]);
            choices.push(json!({ "text": first(&text), "ll": ll, "share": share, "gold": is_gold(at), "pred": outcome.pred.as_u64() == Some(at as u64) }));
        }
    }
    let plain = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut texts = Vec::new();
    if !of_choices {
        for (name, value) in
            [("text", &outcome.text), ("read off it", &outcome.answer), ("counts", &outcome.pred), ("right", &outcome.target)]
        {
            if !value.is_null() {
                texts.push(json!([name, first(&plain(value))]));
            }
        }
        if let ([(_, continuation)], [ll]) = (outcome.arguments.as_slice(), outcome.loglikelihoods.as_slice()) {
            texts.push(json!(["continuation", format!("{} ({ll:.3})", first(continuation))]));
        }
    }
    let metrics: Vec<String> =
        outcome.metrics.iter().map(|(name, value)| format!("{name} {}", (value * 1e4).round() / 1e4)).collect();
    json!({
        "id": outcome.doc_id,
        "correct": outcome.correct,
        "metrics": metrics.join(", "),
        "context": if one_context || !of_choices { last(contexts.first().copied().unwrap_or_default()) } else { String::new() },
        "choices": choices,
        "texts": texts,
    })
}
