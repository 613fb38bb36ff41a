//! N-gram language models: KenLM's formats read natively, and models trained with what CCNet needs of them.
//!
//! 1. [`Model::open`] reads an ARPA file (plain or gzip) or maps a KenLM binary file; [`Model::score`] and
//!    [`Model::full_scores`] give KenLM's scores, to the bit where both sum in the same order.
//! 2. [`train_lm`] makes an ARPA file from lines of words (modified Kneser-Ney smoothing, in bounded memory);
//!    [`Model::save_binary`] makes a KenLM binary file of it.
//! 3. [`train_unigram`] makes the SentencePiece unigram model whose pieces are the words.

mod arpa;
mod binary;
mod build;
mod em;
mod hash;
mod model;
mod probing;
mod smooth;
mod sp_write;
mod spill;
mod train;
mod trie;
mod unigram;

pub use arpa::LoadOptions;
pub use model::{LmScore, Model, WordScore};
pub use train::{LmTrainConfig, LmTrainStats, LmTrainer, train_lm};
pub use unigram::{UnigramConfig, UnigramTrainer, save_unigram, train_unigram};

/// The longest n-grams that are supported.
pub const MAX_ORDER: usize = 12;
