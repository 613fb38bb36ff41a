//! *recua* takes LLaMA (Touvron et al. 2023, arXiv:2302.13971) all the way in Rust: raw dumps -> tokens -> a trained model -> text
//! and scores. One code for CUDA, wgpu and CPU, written against Burn's `Backend` trait.
//!
//! A tour in the order of the data. A module uses those above it, never one below.
//!
//! | | |
//! |---|---|
//! | [`error`] | one error: what, where, what was expected, what was found, what to do |
//! | `config` | layered settings: defaults, files, flags, `--set` (feature `train`) |
//! | [`backend`] | `"cuda:0"`, `"wgpu"`, `"flex"`, `"ndarray"` -> a device; runs generic code on the backend chosen at run time |
//! | [`corpus`] | dumps and folders -> documents: sources, filters, deduplication, the pipeline (feature `data`) |
//! | [`tokenizer`] | BPE and unigram with split digits and byte fallback; `tokenizer.json` and SentencePiece `.model` |
//! | [`data`] | texts -> token shards -> windows -> batches, each step in a fixed order |
//! | [`ops`] | the operations of LLaMA as one trait, a default body and faster ones by backend |
//! | [`model`] | hyper-parameters, one layer, the whole, first weights, the backward pass |
//! | [`checkpoint`] | native checkpoints, Hugging Face's, Meta's and GGUF files, and the way between them |
//! | [`generate`] | KV-cached decoding and sampling |
//! | [`eval`] | log-probabilities; what a model has to beat: xz, an n-gram model; benchmarks (feature `eval`) |
//! | `serve` | the HTTP server: OpenAI's and Anthropic's APIs, a chat page (feature `serve`) |
//! | [`optim`] | AdamW, the global-norm clip, the schedule |
//! | [`parallel`] | several ranks: the collectives between them and their engines; time and memory of a run on a cluster |
//! | `train` | settings, one step, the loop, what it writes down (feature `train`) |
//! | `bench`, `selftest` | how fast a backend is, and whether it is right (feature `train`) |
//! | `build` | `recua data build` with recua's own tokenizers (feature `data`) |
//! | `quickstart` | all of it in one file (feature `quickstart`) |
//!
//! A model of any format on a backend chosen at run time:
//!
//! ```no_run
//! use std::ops::ControlFlow;
//!
//! use recua::backend::BackendName;
//! use recua::checkpoint::Checkpoint;
//! use recua::generate::{Bos, Engine, EngineConfig, Request, encode_prompt, end_ids};
//! use recua::tokenizer::Tokenizer;
//!
//! # fn main() -> recua::Result<()> {
//! let checkpoint = Checkpoint::open("runs/first")?; // or a Hugging Face or Meta folder, or a .gguf file
//! let tokenizer = Tokenizer::open("runs/first/tokenizer.json")?;
//! let device = "flex".parse::<BackendName>()?.open()?;
//! let mut engine = Engine::load(&checkpoint, &device, EngineConfig::default())?;
//! let prompt = encode_prompt(&tokenizer, "Once upon a time", Bos::Auto, false)?;
//! let stop_ids = end_ids(Some(&checkpoint), &tokenizer);
//! let request = Request { prompt: prompt.clone(), max_new: 64, stop_ids, ..Default::default() };
//! let (tokens, _) = engine.generate(request, &mut |_| ControlFlow::Continue(()))?; // or submit many, and step
//! println!("Once upon a time{}", tokenizer.decode_after(&prompt, &tokens)?);
//! # Ok(())
//! # }
//! ```
//!
//! A loss of one's own: [`model::Llama::autodiff`] gives the model under `Autodiff<B>`; see `examples/`.
//!
//! # Cargo features
//! - `flex` (default), `ndarray`, `wgpu`, `cuda`: the backends. `default-features = false` with one of them gives model, operations,
//!   tokenizer, checkpoints and generation.
//! - `train`: training. `quickstart`: the quickstart as a function. `cli` (default): the binary, with both.
//! - `data`: the pipeline from dumps. `ballista`: its shuffles on a cluster.
//! - `chat` (in `cli`): chat templates. `constrain`: text by a JSON schema, a regular expression or a grammar.
//! - `serve` (default): the HTTP server and `recua serve`.
//! - `eval` (default): benchmarks, `recua eval run`. `arrow` (default): their data in Parquet and Arrow files.
//! - `mpi`: several ranks over MPI. `nccl`: over NCCL, on CUDA devices.
//! - `fusion`: [`ops::LlamaOps`] for `burn_fusion::Fusion<B>`, which Burn's default features make of its aliases `Wgpu` and `Cuda`.
//! - `tui`: the dashboard.
//!
//! # Crates
//! The rooms stand in six crates under `crates/`, so that an edit of one does not compile the others anew (docs/build.md); this one
//! re-exports them all.

#![warn(missing_docs)]

#[cfg(feature = "train")]
pub use recua_core::config;
pub use recua_core::{Error, Result, error};

/// Where the arithmetic runs: names, devices, contexts of jobs, and generic code on the backend chosen at run time.
pub mod backend {
    pub use recua_core::backend::*;
    pub use recua_core::ops::{BackendInfo, Job, list};
}

/// Dumps and folders of text to documents.
pub use recua_corpus as corpus;

#[cfg(feature = "train")]
pub use recua_core::{bench, selftest, train};
pub use recua_core::{checkpoint, data, generate, model, ops, optim, parallel, tokenizer};

/// How well a model does: probabilities of given tokens, baselines, benchmarks.
pub mod eval {
    pub use recua_core::eval::*;
    #[cfg(feature = "eval")]
    pub use recua_eval::*;
}

/// The HTTP server.
#[cfg(feature = "serve")]
pub use recua_serve as serve;

#[cfg(feature = "data")]
pub mod build;
#[cfg(all(feature = "eval", feature = "train"))]
pub mod evaluate;
#[cfg(feature = "quickstart")]
pub mod quickstart;
mod tokenize;

pub use tokenize::{FilesProgress, FilesSummary, tokenize_files};

/// The README's program is compiled and run as a test.
#[cfg(all(doctest, feature = "flex"))]
#[doc = include_str!("../README.md")]
struct Readme;
