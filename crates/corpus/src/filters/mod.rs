//! Rules that judge or change a text, whatever source it is from.

pub mod c4;
pub mod ccnet;
pub mod decontaminate;
mod evaluation;
pub mod perplexity;
pub mod pii;
pub mod sentences;
