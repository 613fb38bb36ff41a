//! How much of each source a run sees: wanted shares, caps on repetition, and what results.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::config::BuildConfig;
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::sources::SourceName;
use crate::tokens::Tokens;

/// Targets of a sample in which the deviation is counted: LLaMA's.
const WINDOW: u64 = 2048;

/// A mixture, as `mixture.json` has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mixture {
    /// Tokens of the run.
    pub tokens: u64,
    /// Tokens that the caps on epochs allow.
    pub most: u64,
    /// The source whose cap that is.
    pub limited_by: SourceName,
    /// The sources.
    pub shares: Vec<Share>,
}

/// A source that has its tokens, to be mixed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// Which.
    pub source: SourceName,
    /// Share of the mixture, in any unit.
    pub weight: f64,
    /// A source is repeated at most so often.
    pub max_epochs: f64,
    /// Tokens that there are.
    pub tokens: u64,
    /// LLaMA's epochs, at its sizes.
    pub paper_epochs: f64,
}

/// A source's part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// Which.
    pub source: SourceName,
    /// Tokens that there are.
    pub tokens: u64,
    /// Share of the run that was asked for, of the sources that have tokens.
    pub wanted: f64,
    /// Share that a run of this length gets, in windows of 2048.
    pub got: f64,
    /// Tokens that a run takes.
    pub taken: u64,
    /// How often the source is seen.
    pub epochs: f64,
    /// LLaMA's epochs, at its sizes.
    pub paper_epochs: f64,
}

impl Mixture {
    /// A mixture for a run of `tokens`, or of as many as the caps allow.
    ///
    /// # Errors
    /// [`Error::BadValue`] if no source has tokens, or the caps do not allow `tokens`.
    pub fn new(parts: &[Part], tokens: Option<u64>, rooms: &dyn Tokens) -> Result<Self> {
        let some: Vec<_> = parts.iter().filter(|p| p.tokens > 0).collect();
        let total: f64 = some.iter().map(|p| p.weight).sum();
        let most = |p: &&Part| (p.max_epochs * p.tokens as f64 * total / p.weight, p.source);
        let Some((most, limited_by)) = some.iter().map(most).min_by(|a, b| a.0.total_cmp(&b.0)) else {
            return Err(Error::bad_value(
                "sources",
                "no source has any token left",
                "look at report.html: what dropped all of them?",
            ));
        };
        // Without any cap there is no length of its own: each source's own tokens at most once in all.
        let most = if most.is_finite() { most as u64 } else { some.iter().map(|p| p.tokens).sum() };
        let run = tokens.unwrap_or(most);
        if run > most {
            let problem =
                format!("{run} tokens would repeat {limited_by} more often than its max_epochs allows; the caps allow {most}");
            return Err(Error::bad_value("mix.tokens", problem, "ask for fewer, raise the cap, or lower the source's weight"));
        }
        let share_out = rooms.windows(&some.iter().map(|p| p.weight).collect::<Vec<_>>())?;
        let mut windows = (run / WINDOW).max(1);
        let mut counts = share_out(windows);
        // Windows are whole: in a short run a source may get one too many for its cap.
        let over = |counts: &[u64]| some.iter().zip(counts).any(|(p, n)| (n * WINDOW) as f64 > p.max_epochs * p.tokens as f64);
        while tokens.is_none() && windows > 1 && over(&counts) {
            windows -= 1;
            counts = share_out(windows);
        }
        let run = if tokens.is_none() { run.min(windows * WINDOW) } else { run };
        let share = |(p, count): (&&Part, u64)| {
            let (wanted, got) = (p.weight / total, count as f64 / windows as f64);
            let taken = run as f64 * got;
            let epochs = taken / p.tokens as f64;
            Share { source: p.source, tokens: p.tokens, wanted, got, taken: taken as u64, epochs, paper_epochs: p.paper_epochs }
        };
        Ok(Self { tokens: run, most, limited_by, shares: some.iter().zip(counts).map(share).collect() })
    }

    /// Writes `mixture.json`, and `train.toml` with what `recua train` needs of it.
    pub(super) fn save(&self, config: &BuildConfig) -> Result<()> {
        let bad = |e: String| Error::internal("mixture", e);
        let json = serde_json::to_string_pretty(self).map_err(|e| bad(e.to_string()))?;
        write_atomic(&config.out.join("mixture.json"), json.as_bytes())?;
        let out = std::path::absolute(&config.out).map_err(Error::io("find", &config.out))?;
        let folder = |source: SourceName, split: &str| out.join("tokenize").join(source.as_str()).join(split);
        let list = |paths: Vec<PathBuf>| {
            toml::Value::Array(paths.iter().map(|p| toml::Value::String(p.display().to_string())).collect()).to_string()
        };
        let train = list(self.shares.iter().map(|s| folder(s.source, "train")).collect());
        let weights: Vec<String> = self.shares.iter().map(|s| format!("{:.6}", s.wanted * 100.0)).collect();
        let mut text = format!(
            "# Made by `recua data build`: recua train --config {}\n[data]\ntrain = {train}\nweights = [{}]\n",
            out.join("train.toml").display(),
            weights.join(", ")
        );
        let valid: Vec<_> = self.shares.iter().map(|s| (s.source.as_str(), folder(s.source, "valid"))).collect();
        let valid: Vec<_> = valid.into_iter().filter(|(_, path)| path.exists()).collect();
        if !valid.is_empty() {
            text += "[data.valid]\n";
            for (name, path) in valid {
                text += &format!("{name} = {}\n", toml::Value::String(path.display().to_string()));
            }
        }
        write_atomic(&config.out.join("train.toml"), text.as_bytes())
    }
}

impl fmt::Display for Mixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<14} {:>14} {:>8} {:>8} {:>10} {:>7} {:>7}",
            "source", "tokens", "wanted", "got", "deviation", "epochs", "paper"
        )?;
        for s in &self.shares {
            writeln!(
                f,
                "{:<14} {:>14} {:>7.2}% {:>7.2}% {:>9.3}% {:>7.2} {:>7.2}",
                s.source.as_str(),
                s.tokens,
                100.0 * s.wanted,
                100.0 * s.got,
                100.0 * (s.got - s.wanted),
                s.epochs,
                s.paper_epochs
            )?;
        }
        write!(f, "{} tokens; {} are the most that the caps on epochs allow ({})", self.tokens, self.most, self.limited_by)
    }
}
