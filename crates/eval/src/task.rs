//! A task: one file of TOML.

/// Whose way of asking and scoring it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// EleutherAI's lm-evaluation-harness 0.4.13.
    #[default]
    LmEval,
    /// The LLaMA paper's.
    Paper,
}

/// A benchmark under one protocol.
#[derive(Clone, Debug)]
pub struct Task {
    /// What it is called: lm-eval's name.
    pub name: String,
    /// Whose way it is.
    pub protocol: Protocol,
    /// lm-eval's version of the task, or ours of the paper's.
    pub version: String,
    /// Names of its metrics, the first is the one that counts.
    pub metrics: Vec<String>,
}
