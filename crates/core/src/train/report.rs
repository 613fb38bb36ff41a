//! `report.html`: the curves and samples of a run on one page that needs no network and no other file.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::train::metrics::{self, METRICS_FILE, StepRecord};

/// The file's name in a run directory.
pub const REPORT_FILE: &str = "report.html";

/// What the page says beside the curves.
#[derive(Debug, Clone, Default)]
pub struct ReportInfo {
    /// The heading.
    pub title: String,
    /// One line below it, e.g. the model's size and the text it was trained on.
    pub subtitle: String,
    /// The summary table: names and values, in order. A value of several lines is folded away below it.
    pub rows: Vec<(String, String)>,
    /// Bits per byte on the held-out text by name, drawn as bars: the model first, then what it is compared with.
    pub bits_per_byte: Vec<(String, f64)>,
}

/// Reads the `metrics.jsonl` of a run directory and writes its `report.html` (through a temporary name). Returns its path.
///
/// # Errors
/// The metrics cannot be read, have no record, or the page cannot be written.
pub fn write(dir: &Path, info: &ReportInfo) -> Result<PathBuf> {
    let metrics_path = dir.join(METRICS_FILE);
    let records = metrics::read(&metrics_path)?;
    if records.is_empty() {
        return Err(Error::Nothing { what: "steps".into(), path: metrics_path, hint: "train for at least one step".into() });
    }
    let path = dir.join(REPORT_FILE);
    write_atomic(&path, render(info, &records).as_bytes())?;
    Ok(path)
}

/// The page. Its size does not grow with the number of steps: at most 1000 points a curve and 12 samples.
pub fn render(info: &ReportInfo, records: &[StepRecord]) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<p class=\"sub\">{subtitle}</p>\n",
        title = escape(&info.title),
        subtitle = escape(&info.subtitle),
    );
    let skipped = records.last().map_or(0, |record| record.skipped);
    page.push_str("<section class=\"top\">\n<table>\n");
    let skipped_row = (skipped > 0).then(|| ("skipped steps".to_string(), skipped.to_string()));
    let (long, short): (Vec<_>, Vec<_>) =
        info.rows.iter().chain(&skipped_row).partition(|(_, value)| value.trim().contains('\n'));
    for (name, value) in short {
        let value = value.parse().map_or_else(|_| value.clone(), thousands);
        let _ = writeln!(page, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(&value));
    }
    page.push_str("</table>\n");
    page.push_str(&bars(&info.bits_per_byte));
    page.push_str("</section>\n");
    // Tables of text would push everything else off the first screen.
    for (name, value) in long {
        let (name, value) = (escape(name), escape(value.trim_end()));
        let _ = writeln!(page, "<details><summary>{name}</summary><pre>{value}</pre></details>");
    }
    page.push_str("<section class=\"charts\">\n");

    let of = |value: fn(&StepRecord) -> f64| series(records, value);
    let loss = of(|record| record.loss);
    let smoothed = smooth(&loss);
    let valid = of(|record| record.val_loss.unwrap_or(f64::NAN));
    let chart = |title, unit, curves: &[Curve<'_>]| Chart { title, unit, curves }.svg();
    page.push_str(&chart(
        "Loss",
        "nats per token",
        &[
            Curve { name: "train", class: "raw", points: loss },
            Curve { name: "smoothed", class: "line", points: smoothed },
            Curve { name: "validation", class: "valid", points: valid },
        ],
    ));
    let sets: BTreeSet<&String> = records.iter().flat_map(|record| record.val_losses.keys()).collect();
    if !sets.is_empty() {
        let of_set = |name: &str| series(records, |record| record.val_losses.get(name).copied().unwrap_or(f64::NAN));
        let curves = sets.iter().zip(SETS.iter().cycle()).map(|(name, class)| Curve { name, class, points: of_set(name) });
        page.push_str(&chart("Validation loss by set", "nats per token", &curves.collect::<Vec<_>>()));
    }
    let tasks: BTreeSet<&String> = records.iter().flat_map(|record| record.eval.keys()).collect();
    let (bits, shares): (Vec<&String>, Vec<&String>) = tasks.into_iter().partition(|name| name.contains("bits_per_byte"));
    for (title, unit, names) in [("Benchmarks", "share right", shares), ("Bits per byte", "by source", bits)] {
        if !names.is_empty() {
            let of_task = |name: &str| series(records, |record| record.eval.get(name).copied().unwrap_or(f64::NAN));
            let curves = names.iter().zip(SETS.iter().cycle()).map(|(name, class)| Curve { name, class, points: of_task(name) });
            page.push_str(&chart(title, unit, &curves.collect::<Vec<_>>()));
        }
    }
    page.push_str(&chart("Learning rate", "", &[Curve { name: "lr", class: "line", points: of(|record| record.lr) }]));
    for (title, unit, value) in
        [("Gradient norm", "before clipping", of(|record| record.grad_norm)), ("Speed", "tok/s", of(|record| record.tok_s))]
    {
        let smoothed = smooth(&value);
        page.push_str(&chart(
            title,
            unit,
            &[
                Curve { name: "each step", class: "raw", points: value },
                Curve { name: "smoothed", class: "line", points: smoothed },
            ],
        ));
    }
    page.push_str("</section>\n");

    let samples: Vec<_> = records.iter().filter_map(|record| Some((record.step, record.sample.as_deref()?))).collect();
    if !samples.is_empty() {
        page.push_str("<h2>What it wrote</h2>\n");
    }
    for (step, text) in spread(&samples, 12) {
        let short: String = text.chars().take(4000).collect();
        let _ = writeln!(page, "<h3>step {}</h3>\n<pre>{}</pre>", thousands(*step), escape(&short));
    }
    let _ = write!(page, "<script>{SCRIPT}</script>\n</body>\n</html>\n");
    page
}

type Points = Vec<(f64, f64)>;

/// `(step, value)` of the records where the value is finite.
fn series(records: &[StepRecord], value: impl Fn(&StepRecord) -> f64) -> Points {
    records.iter().map(|record| (record.step as f64, value(record))).filter(|(_, value)| value.is_finite()).collect()
}

/// Most points of a curve.
const MAX_POINTS: usize = 1000;

/// At most `count` items at equal distances, the first and the last among them.
fn spread<T>(items: &[T], count: usize) -> impl Iterator<Item = &T> {
    let taken = items.len().min(count);
    (0..taken).map(move |index| &items[index * (items.len() - 1) / (taken - 1).max(1)])
}

/// The lowest and the highest point of each bucket, so that thinning hides no spike.
fn envelope(points: &[(f64, f64)]) -> Points {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let bucket = points.len().div_ceil(MAX_POINTS / 2);
    let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
    let extremes = points.chunks(bucket).flat_map(|chunk| {
        let (low, high) = (chunk.iter().min_by(by_value), chunk.iter().max_by(by_value));
        let (first, second) = if low.map(|p| p.0) <= high.map(|p| p.0) { (low, high) } else { (high, low) };
        first.into_iter().chain(second)
    });
    extremes.copied().collect()
}

/// Mean over the 2 % of the run around each step, so that it does not lag.
fn smooth(points: &[(f64, f64)]) -> Points {
    let sums: Vec<f64> = std::iter::once(0.0)
        .chain(points.iter().scan(0.0, |sum, point| {
            *sum += point.1;
            Some(*sum)
        }))
        .collect();
    let reach = points.len() / 100;
    let mean = |(index, point): (usize, &(f64, f64))| {
        let (from, to) = (index.saturating_sub(reach), (index + reach + 1).min(points.len()));
        (point.0, (sums[to] - sums[from]) / (to - from) as f64)
    };
    points.iter().enumerate().map(mean).collect()
}

/// CSS classes of the curves of held-out sets.
const SETS: [&str; 8] = ["valid s0", "valid s1", "valid s2", "valid s3", "valid s4", "valid s5", "valid s6", "valid s7"];

struct Curve<'a> {
    name: &'a str,
    /// CSS class: `raw` (thin), `line`, or `valid` (with dots; one of [`SETS`] where there are several).
    class: &'a str,
    /// All of them: the axes are made for all, though not all are drawn.
    points: Points,
}

impl Curve<'_> {
    fn drawn(&self) -> Points {
        if self.class == "raw" { envelope(&self.points) } else { spread(&self.points, MAX_POINTS).copied().collect() }
    }
}

struct Chart<'a> {
    title: &'a str,
    unit: &'a str,
    curves: &'a [Curve<'a>],
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
/// The plot's edges inside the drawing: room for the tick labels and the axis title.
const LEFT: f64 = 64.0;
const RIGHT: f64 = WIDTH - 28.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = HEIGHT - 44.0;

impl Chart<'_> {
    fn svg(&self) -> String {
        let shown: Vec<&Curve<'_>> = self.curves.iter().filter(|curve| !curve.points.is_empty()).collect();
        let heading = if self.unit.is_empty() { String::new() } else { format!(" <small>{}</small>", self.unit) };
        let mut out = format!("<figure>\n<figcaption><b>{}</b>{heading}<span class=\"legend\">", self.title);
        for curve in shown.iter().filter(|_| shown.len() > 1) {
            let _ = write!(out, "<span class=\"{}\">{}</span>", curve.class, escape(curve.name));
        }
        out.push_str("</span></figcaption>\n");
        let all = || shown.iter().flat_map(|curve| &curve.points);
        let (first, last) = bounds(all().map(|point| point.0));
        let (low, high) = value_range(all().map(|point| point.1).collect());
        // The steps fill their axis; the values' axis ends on ticks.
        let (x_ticks, y_ticks) = (ticks(first, last, 8, Ends::Inside), ticks(low, high, 5, Ends::Outside));
        let (x0, x1) = if last > first { (first, last) } else { (first - 1.0, first + 1.0) };
        let (y0, y1) = bounds(y_ticks.values.iter().copied());
        let (y0, y1) = if y1 > y0 { (y0, y1) } else { (y0 - y_ticks.step, y0 + y_ticks.step) };
        let x = |step: f64| LEFT + (step - x0) / (x1 - x0) * (RIGHT - LEFT);
        let y = |value: f64| BOTTOM - (value.min(y1) - y0) / (y1 - y0) * (BOTTOM - TOP);

        let _ = writeln!(
            out,
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\" data-x=\"{x0} {x1} {LEFT} {RIGHT}\" \
             data-series=\"{}\">",
            self.title,
            escape(&data(&shown))
        );
        for tick in &y_ticks.values {
            let _ = writeln!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {0:.1}H{RIGHT}\"/><text class=\"y\" x=\"{1}\" y=\"{0:.1}\">{2}</text>",
                y(*tick),
                LEFT - 8.0,
                y_ticks.label(*tick)
            );
        }
        for tick in x_ticks.values.iter().filter(|tick| tick.fract() == 0.0) {
            let _ = writeln!(
                out,
                "<path class=\"grid\" d=\"M{0:.1} {TOP}V{BOTTOM}\"/><text class=\"x\" x=\"{0:.1}\" y=\"{1}\">{2}</text>",
                x(*tick),
                BOTTOM + 16.0,
                thousands(*tick as u64)
            );
        }
        let _ = writeln!(out, "<text class=\"x\" x=\"{}\" y=\"{}\">step</text>", (LEFT + RIGHT) / 2.0, HEIGHT - 8.0);
        for curve in &shown {
            let points = curve.drawn();
            let place = |&(step, value): &(f64, f64)| (x(step), y(value));
            let path: Vec<String> = points.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let _ = writeln!(out, "<polyline class=\"{}\" points=\"{}\"/>", curve.class, path.join(" "));
            // Dots where they can be told apart, and where a line would be invisible.
            if curve.class.starts_with("valid") && points.len() <= 60 || points.len() == 1 {
                for (x, y) in points.iter().map(place) {
                    let _ = writeln!(out, "<circle class=\"{}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>", curve.class);
                }
            }
        }
        if shown.is_empty() {
            let _ = writeln!(out, "<text class=\"x\" x=\"{}\" y=\"{}\">no values</text>", (LEFT + RIGHT) / 2.0, HEIGHT / 2.0);
        }
        out.push_str("<path class=\"cursor\"/></svg>\n<output>&nbsp;</output>\n");
        let cut = all().filter(|point| point.1 > y1).count();
        if cut > 0 {
            let _ = writeln!(out, "<p class=\"note\">{cut} higher points are drawn at the top edge.</p>");
        }
        out.push_str("</figure>\n");
        out
    }
}

/// The curves as JSON for the values under the cursor: `[[name, [[step, value], ...]], ...]`.
fn data(curves: &[&Curve<'_>]) -> String {
    let curves = curves.iter().map(|curve| {
        let points: Vec<String> = curve.drawn().iter().map(|(step, value)| format!("[{step},{value:.4e}]")).collect();
        format!("[{},[{}]]", serde_json::Value::from(curve.name), points.join(","))
    });
    format!("[{}]", curves.collect::<Vec<_>>().join(","))
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

/// Lowest and highest value of the axis: a few spikes must not flatten the rest of the curve.
fn value_range(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let (low, high) = bounds(values.iter().copied());
    let Some(&most) = values.get(values.len() * 98 / 100) else { return (low, high) };
    (low, if most > low { high.min(low + 3.0 * (most - low)) } else { high })
}

/// Round values between two bounds.
struct Ticks {
    values: Vec<f64>,
    step: f64,
    largest: f64,
}

/// Whether the first and last tick stay between the bounds or enclose them.
enum Ends {
    Inside,
    Outside,
}

/// About `count` ticks at 1, 2 or 5 times a power of ten.
fn ticks(low: f64, high: f64, count: usize, ends: Ends) -> Ticks {
    let largest = low.abs().max(high.abs());
    let rough = (high - low) / count as f64;
    // Also where the difference is lost in the rounding of the numbers.
    if rough <= largest * 1e-9 {
        return Ticks { values: vec![low], step: (largest / 100.0).max(1e-12), largest };
    }
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(rough);
    let (low, high) = (low / step, high / step);
    let (first, last) = match ends {
        Ends::Inside => ((low - 1e-6).ceil(), (high + 1e-6).floor()),
        Ends::Outside => ((low + 1e-6).floor(), (high - 1e-6).ceil()),
    };
    let values = (first as i64..=last as i64).map(|index| index as f64 * step).collect();
    Ticks { values, step, largest }
}

impl Ticks {
    /// All labels of an axis in one form: plain with the decimals that the distance needs, or with an exponent.
    fn label(&self, value: f64) -> String {
        if value == 0.0 {
            return "0".into();
        }
        if self.largest < 1e-2 || self.largest >= 1e9 {
            let digits = (value.abs().log10().floor() - self.step.log10().floor()).clamp(0.0, 6.0) as usize;
            return format!("{value:.digits$e}");
        }
        let decimals = (-self.step.log10().floor()).clamp(0.0, 8.0) as usize;
        if decimals == 0 && value > 0.0 { thousands(value.round() as u64) } else { format!("{value:.decimals$}") }
    }
}

/// `1234567` -> `1,234,567`.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let grouped = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    grouped.collect::<Vec<_>>().join(",")
}

/// Horizontal bars, the first one in the accent colour.
fn bars(values: &[(String, f64)]) -> String {
    let longest = values.iter().map(|(_, value)| *value).filter(|value| value.is_finite()).fold(0.0, f64::max);
    if longest <= 0.0 {
        return String::new();
    }
    let mut out = String::from("<div class=\"bars\"><p><b>Held-out text</b> <small>bits per byte, less is better</small></p>\n");
    for (name, value) in values {
        let width = if value.is_finite() { 100.0 * value.max(0.0) / longest } else { 0.0 };
        let name = escape(name);
        let _ = writeln!(out, "<div><span>{name}</span><i style=\"width:{width:.1}%\"></i><b>{value:.3}</b></div>");
    }
    out.push_str("</div>\n");
    out
}

/// For text and for attributes in double quotes.
fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Control characters, which HTML forbids.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{FFFD}'),
            c => out.push(c),
        }
        out
    })
}

const STYLE: &str = "
:root{color-scheme:light dark;--bg:#fff;--fg:#1c1f24;--dim:#626a75;--rule:#e4e7eb;--panel:#f6f7f9;--line:#2864c8;--raw:#a9c2ea;--valid:#d2571b}
@media(prefers-color-scheme:dark){:root{--bg:#14161a;--fg:#e6e8eb;--dim:#98a1ad;--rule:#2a2f37;--panel:#1c1f25;--line:#7aa7f7;--raw:#3a527e;--valid:#f29a5c}}
body{margin:2rem auto;max-width:1180px;padding:0 1rem;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
h1{margin:0;font-size:1.6rem}h2{margin:2rem 0 .5rem;font-size:1.2rem}h3{margin:1.2rem 0 .3rem;font-size:.95rem;color:var(--dim)}
.sub,small,.note,output{color:var(--dim)}.sub{margin:.2rem 0 1.2rem}small{font-size:.85rem}.note,output{margin:0;font-size:.8rem}
.top{display:flex;flex-wrap:wrap;gap:1.5rem 3rem;margin-bottom:1.5rem}
table{border-collapse:collapse;align-self:start}th,td{padding:.15rem 0;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top}
th{padding-right:2rem;white-space:nowrap;font-weight:400;color:var(--dim)}td{font-variant-numeric:tabular-nums}
details{margin:0 0 1.2rem}summary{cursor:pointer;color:var(--dim);margin-bottom:.4rem}
.bars{flex:1;min-width:320px}.bars p{margin:0 0 .4rem}.bars div{display:grid;grid-template-columns:9.5rem 1fr 3.5rem;gap:.7rem;align-items:center;margin:.3rem 0}
.bars i{height:1rem;border-radius:2px;background:var(--raw)}.bars div:nth-of-type(1) i{background:var(--line)}.bars div b{font-weight:400;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:1.2rem}
figure{margin:0;padding:.8rem 1rem .5rem;background:var(--panel);border-radius:8px;min-width:0}
.legend{float:right;font-size:.8rem;color:var(--dim)}.legend span{margin-left:1rem}.legend span::before{content:'';display:inline-block;width:1rem;height:3px;margin-right:.35rem;vertical-align:middle;background:var(--line)}
.legend .raw::before{background:var(--raw)}.legend .valid::before{background:var(--valid)}
svg{display:block;width:100%;height:auto}svg text{font-size:11.5px;fill:var(--dim);font-variant-numeric:tabular-nums}
text.y{text-anchor:end;dominant-baseline:central}text.x{text-anchor:middle}
.grid{stroke:var(--rule);fill:none}.cursor{stroke:var(--dim);stroke-dasharray:2 3;fill:none}
polyline{fill:none;stroke-linejoin:round;stroke-width:1.8;stroke:var(--line)}polyline.raw{stroke:var(--raw);stroke-width:1}polyline.valid{stroke:var(--valid)}
circle{fill:var(--line)}circle.valid{fill:var(--valid)}circle.raw{fill:var(--raw)}
.s0{--valid:#d2571b}.s1{--valid:#2864c8}.s2{--valid:#2b9348}.s3{--valid:#b5179e}.s4{--valid:#c9a100}.s5{--valid:#00999e}.s6{--valid:#8a5a44}.s7{--valid:#7b61ff}
pre{margin:0;padding:.8rem 1rem;background:var(--panel);border-radius:8px;white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.45 ui-monospace,monospace}
";

/// Shows the values under the cursor. Text goes in as text, never as HTML.
const SCRIPT: &str = "
for (const svg of document.querySelectorAll('svg')) {
  const [x0, x1, left, right] = svg.dataset.x.split(' ').map(Number), series = JSON.parse(svg.dataset.series);
  const cursor = svg.querySelector('.cursor'), out = svg.nextElementSibling;
  const nearest = (points, step) => points.reduce((a, b) => Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a);
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect(), px = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    if (!series.length || px < left || px > right) return;
    const step = nearest(series[series.length > 1 ? 1 : 0][1], x0 + (px - left) / (right - left) * (x1 - x0))[0];
    cursor.setAttribute('d', `M${left + (step - x0) / (x1 - x0) * (right - left)} 12V256`);
    const show = ([name, points]) => { const [at, y] = nearest(points, step); return `${name} ${+y.toPrecision(5)}` + (at === step ? '' : ` (step ${at})`); };
    out.textContent = `step ${step.toLocaleString('en')}: ` + series.map(show).join(', ');
  });
  svg.addEventListener('pointerleave', () => { cursor.removeAttribute('d'); out.textContent = '\\u00a0'; });
}
";
