//! N-gram language models: KenLM's formats read natively, and models trained with what CCNet needs of them.
//!
//! 1. [`Model::open`] reads an ARPA file (plain or gzip) or maps a KenLM binary file; [`Model::score`] and
//!    [`Model::full_scores`] give KenLM's scores, to the bit where both sum in the same order.
//! 2. [`train_lm`] makes an ARPA file from lines of words (modified Kneser-Ney smoothing, in bounded memory);
//!    [`Model::save_binary`] makes a KenLM binary file of it; [`PerplexityTraining`] makes all that CCNet needs of a language.

mod arpa;
mod binary;
mod build;
mod ccnet;
mod hash;
mod model;
mod probing;
mod smooth;
mod spill;
mod train;
mod trie;

pub use arpa::LoadOptions;
pub use ccnet::{LearnPieces, PerplexityTrained, PerplexityTraining};
pub use model::{LmScore, Model, WordScore};
pub use train::{LmTrainConfig, LmTrainStats, LmTrainer, train_lm};

/// The longest n-grams that are supported.
pub const MAX_ORDER: usize = 12;
