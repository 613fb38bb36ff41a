//! The one error of the library: what went wrong, where, what was expected, what was found, what to do.
//!
//! Everything that a user, a file, a disk or a network can cause is an [`Error`]; a panic is a bug.

use std::path::{Path, PathBuf};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. Texts are lower-case, without a final period, and end with the next thing to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on a file or folder (missing, no permission, disk full).
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The verb: `read`, `write`, `create`, `rename`, `sync`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's own error.
        source: std::io::Error,
    },
    /// A file is truncated, damaged, of another program or of another version.
    #[error("{}: not a usable {what}: {problem}; {hint}", path.display())]
    BadFile {
        /// What it should have been: `token shard`, `checkpoint`, `SentencePiece model`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// A setting does not exist.
    #[error("{origin}: unknown key `{key}`; {hint}")]
    UnknownKey {
        /// The config file or flag that it came from.
        origin: String,
        /// The key, dotted.
        key: String,
        /// The nearest known keys.
        hint: String,
    },
    /// A setting has a value that cannot be, or that does not fit another setting.
    #[error("{key}: {problem}; {hint}")]
    BadValue {
        /// The setting or flag.
        key: String,
        /// What was expected and what was found.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// A tensor of a checkpoint is absent or of another shape than the model's.
    #[error("{}: tensor `{name}`: expected {expected}, got {got}; {hint}", path.display())]
    BadTensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor's name there.
        name: String,
        /// Shape and dtype that the model wants.
        expected: String,
        /// Shape and dtype that the file has, or `nothing`.
        got: String,
        /// What to do.
        hint: String,
    },
    /// There is nothing to work on: an empty corpus, a folder without shards.
    #[error("{}: no {what}; {hint}", path.display())]
    Nothing {
        /// What was looked for.
        what: String,
        /// Where.
        path: PathBuf,
        /// What to do.
        hint: String,
    },
    /// Model and tokenizer (or shards) speak of different vocabularies.
    #[error("vocabulary mismatch: {left} has {left_size} tokens, {right} has {right_size}; {hint}")]
    Vocabulary {
        /// One side, e.g. `model runs/a`.
        left: String,
        /// Its size.
        left_size: usize,
        /// The other side.
        right: String,
        /// Its size.
        right_size: usize,
        /// What to do.
        hint: String,
    },
    /// More tokens than the model's positions reach.
    #[error("{what}: {got} tokens are more than the {max} that the model takes; {hint}")]
    TooLong {
        /// What is too long.
        what: String,
        /// Its length in tokens.
        got: usize,
        /// The model's `max_seq_len`.
        max: usize,
        /// What to do.
        hint: String,
    },
    /// A backend that is not compiled in, has no device or no driver, or failed.
    #[error("backend `{name}`: {problem}; {hint}")]
    Backend {
        /// As asked for, e.g. `cuda:1`.
        name: String,
        /// What is missing.
        problem: String,
        /// The feature or driver to get.
        hint: String,
    },
    /// A model computed what is no number.
    #[error(
        "{what}: expected a finite number, got {got}; weights that are damaged or too large give this: get the checkpoint again, or take an earlier one"
    )]
    NotFinite {
        /// What was computed.
        what: String,
        /// NaN or an infinity.
        got: f64,
    },
    /// An engine that works for the program (DataFusion) failed on its own account.
    #[error("{what}: the engine failed: {problem}; {hint}")]
    Engine {
        /// What it was asked for.
        what: &'static str,
        /// What it says.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// The program's own mistake.
    #[error(
        "{what}: {problem}; this is a fault of recua, not of your files or settings: please report it with this line and the command"
    )]
    Internal {
        /// Where it showed.
        what: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// A collective operation of several ranks did not come to its end: a rank died, hangs, or called another operation.
    #[error("rank {rank}: {operation} number {sequence} of the group `{group}`: {problem}; {hint}")]
    Communication {
        /// The rank that tells of it, in the whole job.
        rank: usize,
        /// The operation: `all_reduce`, `barrier`.
        operation: &'static str,
        /// How many operations of the group came before it.
        sequence: u64,
        /// The group of ranks: `world`, `tp`, `dp`.
        group: String,
        /// What was expected and what was found.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// Another rank failed; it tells the details itself.
    #[error("rank {rank} failed: {problem}")]
    Rank {
        /// Which.
        rank: usize,
        /// Its error.
        problem: String,
    },
    /// Training stopped because too many steps in a row had a non-finite loss or gradient.
    #[error(
        "step {step}: loss or gradient not finite {in_a_row} steps in a row; the last good checkpoint is {checkpoint}; lower optim.lr or look at the data around sample {sample}"
    )]
    Diverged {
        /// The step that was the last straw.
        step: u64,
        /// How many steps in a row were skipped.
        in_a_row: u64,
        /// The checkpoint to go on from (`none` if there is none).
        checkpoint: String,
        /// The global index of the first sample of that step.
        sample: u64,
    },
    /// SIGINT or SIGTERM; everything was saved.
    #[error("interrupted at step {step}; saved to {}; go on with --resume (quickstart: with the same command)", path.display())]
    Interrupted {
        /// The step that was saved.
        step: u64,
        /// The checkpoint.
        path: PathBuf,
    },
}

impl Error {
    /// An [`Error::Io`] for `map_err`: `fs::read(p).map_err(Error::io("read", p))`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// An [`Error::BadFile`].
    pub fn bad_file(what: &'static str, path: impl AsRef<Path>, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::BadFile { what, path: path.as_ref().into(), problem: problem.into(), hint: hint.into() }
    }

    /// An [`Error::Internal`].
    pub fn internal(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Internal { what: what.into(), problem: problem.into() }
    }

    /// An [`Error::BadValue`].
    pub fn bad_value(key: impl Into<String>, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::BadValue { key: key.into(), problem: problem.into(), hint: hint.into() }
    }
}
