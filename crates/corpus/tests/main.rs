//! One binary for all tests of the pipeline's parts; what needs a tokenizer or the command line is in the root package's.

mod data_arxiv;
mod data_arxiv_read;
mod data_books;
mod data_crawl;
mod data_engine;
mod data_fasttext;
mod data_filters;
mod data_github;
mod data_lm;
mod data_lm_train;
mod data_stackexchange;
mod data_wikipedia;
mod data_wikipedia_dump;
mod faults;
