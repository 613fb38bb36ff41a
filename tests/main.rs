//! One binary for all integration tests, so that dependencies are linked once.

mod backward;
mod checkpoint;
mod checkpoint_native;
#[cfg(feature = "cli")]
mod cli;
mod corpus;
mod data;
#[cfg(feature = "data")]
mod data_arxiv;
#[cfg(feature = "data")]
mod data_arxiv_read;
#[cfg(feature = "data")]
mod data_books;
#[cfg(feature = "data")]
mod data_build;
#[cfg(feature = "data")]
mod data_crawl;
#[cfg(feature = "data")]
mod data_engine;
#[cfg(feature = "data")]
mod data_fasttext;
#[cfg(feature = "data")]
mod data_filters;
#[cfg(feature = "data")]
mod data_github;
#[cfg(feature = "data")]
mod data_lm;
#[cfg(feature = "data")]
mod data_lm_train;
#[cfg(feature = "data")]
mod data_stackexchange;
#[cfg(feature = "data")]
mod data_wikipedia;
#[cfg(feature = "data")]
mod data_wikipedia_dump;
mod golden;
mod memory;
mod metrics;
mod model;
mod ops;
mod tokenizer;
#[cfg(feature = "train")]
mod train;
