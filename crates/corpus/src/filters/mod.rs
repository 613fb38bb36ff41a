//! Filters: rules that judge or change a text, whatever source it is from. C4's and CCNet's cleaning, perplexity under a language model,
//! overlap with evaluation sets, personal data.

pub mod c4;
pub mod ccnet;
pub mod decontaminate;
mod evaluation;
pub mod perplexity;
pub mod pii;
pub mod sentences;
