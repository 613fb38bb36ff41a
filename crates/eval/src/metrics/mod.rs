//! Metrics: what an item's log-probabilities or texts are worth, and what a task's items are worth together.
//!
//! 1. Of an item: [`choice`] (log-probabilities), [`text`] (exact match, F1, voting), [`math`] and [`minerva`] (LaTeX).
//! 2. Of a task: [`stats`] (means, their errors, perplexities, pass@k), [`calibration`] (reliability).
//! 3. From outside: [`scorer`] (a command that judges texts).

pub mod calibration;
pub mod choice;
pub mod math;
pub mod minerva;
pub mod scorer;
pub mod stats;
pub mod text;
