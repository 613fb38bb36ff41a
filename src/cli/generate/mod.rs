//! `recua generate`

mod prompts;
mod run;
mod show;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use clap::Args;
use recua::generate::{Bos, Engine, Request};
#[cfg(any(feature = "mpi", feature = "nccl"))]
use recua::parallel::{Mesh, ParallelConfig, split_engine};
use recua::{Error, Result};

use super::flags::{EngineFlags, Form, Sampling};
use super::ranks::{RankFlags, Role};
use prompts::{Encoding, Prompt};
use recua::generate::TextModel;
use run::Run;

/// Write text with a model
///
/// One prompt, shown as it is written:
///     recua generate --model runs/first "Once upon a time"
///
/// Many prompts at once, a line of JSON in, a line of JSON out, in the same order:
///     printf '"Once"\n[1, 300, 301]\n' | recua generate --model runs/first --prompts - --json
///
/// A text of a given form, and what the model thinks of given tokens (no new ones, the prompt's own log-probabilities):
///     recua generate --model DIR --json-schema '{"type": "integer"}' "The answer is "
///     recua generate --model DIR --tokens 0 --echo --logprobs 5 --json "A sentence to score"
///
/// With --json an object has `prompt`, `text`, `tokens` and `stop`: `eos` (a token that ends texts), `length` (--tokens), `full`
/// (no position left), `stop` (a --stop text), `mask` (the form is complete), `interrupted` (Ctrl-C); with --logprobs `logprobs`, with
/// --echo `prompt_tokens` and `prompt_logprobs` (natural logarithms, of the model's own distribution). One prompt's object has
/// `tok_s` and `ttft_s` (time to the first token); those of --prompts have `index`, and nothing in them depends on the clock.
/// With --n an object each, and `choice`.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Generate {
    /// A run, a checkpoint, a Hugging Face folder, a Meta folder or a GGUF file
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// What the text begins with (without a tokenizer: token ids, as `[1, 5, 9]`)
    #[arg(default_value = "", allow_hyphen_values = true, value_parser = prompt)]
    prompt: String,
    /// Prompts instead, a JSON string or an array of token ids a line; `-` reads stdin
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompts: Option<PathBuf>,
    /// Begin-of-sequence token before the prompt: auto (as the tokenizer's file does), always, never
    #[arg(long, value_name = "WHEN", default_value_t = Bos::Auto)]
    bos: Bos,
    /// Read the text of special tokens in the prompt as those tokens
    #[arg(long)]
    special: bool,
    /// Tokenizer, if it is not beside the model
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// At most this many tokens; 0 with --echo only scores the prompt
    #[arg(long, value_name = "N", default_value_t = 256)]
    tokens: usize,
    /// No end before this many tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    min_tokens: usize,
    /// Go on after tokens that end a text
    #[arg(long)]
    ignore_eos: bool,
    /// End where this text comes, which is not shown; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// So many texts of each prompt, independent of each other
    #[arg(long, value_name = "N", default_value_t = 1)]
    n: usize,
    /// With --json: the log-probability of each token, and the K likeliest in its place
    #[arg(long, value_name = "K", requires = "json")]
    logprobs: Option<usize>,
    /// With --json: the same of the prompt's tokens
    #[arg(long, requires = "json")]
    echo: bool,
    /// Guess up to K tokens ahead from the text itself, and check them in one pass: faster where a text repeats itself, the same text
    #[arg(long, value_name = "K", default_value_t = 0)]
    speculate: usize,
    /// JSON instead of text as it comes: an object, or one a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    engine: EngineFlags,
    #[command(flatten)]
    ranks: RankFlags,
    #[command(flatten)]
    device: super::Device,
}

/// What begins with a hyphen may be a prompt (`- item`), or a flag that is misspelt.
fn prompt(text: &str) -> std::result::Result<String, String> {
    let flag = text.strip_prefix('-').is_some_and(|rest| {
        let name = rest.trim_start_matches('-').split('=').next().unwrap_or_default();
        !name.is_empty() && name.starts_with(|c: char| c.is_ascii_alphabetic()) && !name.contains(char::is_whitespace)
    });
    // What stands after `--` is meant as it is.
    let flag = flag && !std::env::args_os().any(|arg| arg == "--");
    if flag { Err("there is no such flag; a prompt that looks like one goes after `--`".into()) } else { Ok(text.into()) }
}

impl Generate {
    pub(crate) fn run(mut self) -> Result<()> {
        let role = self.ranks.role(&self.device.backend)?;
        self.check()?;
        match &role {
            Role::Alone => self.device.apply()?,
            Role::Rank(launched, _) => self.device.become_rank(launched)?,
            Role::Launcher(ranks, engine) => {
                if self.prompts.as_deref().is_some_and(|path| path == "-") {
                    return Err(Error::bad_value("--prompts", "several ranks cannot share stdin", "give a file"));
                }
                return self.ranks.launch(*ranks, *engine, &self.device.backend);
            }
        }
        self.engine.check()?;
        let context = self.device.backend.open()?;
        let model = TextModel::open(&self.model, self.tokenizer.as_deref())?;
        let sampling = self.sampling.config(model.vocab_size())?;
        let how = Encoding { bos: self.bos, special: self.special, max_len: self.engine.max_len };
        let prompts = match &self.prompts {
            Some(path) => prompts::from_file(&model, path, how)?,
            None => vec![prompts::single(&model, &self.prompt, how)?],
        };
        if !self.stop.is_empty() {
            model.tokenizer_for("--stop")?;
        }
        let form = self.form.compile(&model, if self.ignore_eos { &[] } else { &model.ends })?;
        let requests = |prompt: &Prompt| -> Result<Request> {
            Ok(Request {
                prompt: prompt.ids.clone(),
                max_new: self.tokens,
                min_new: self.min_tokens,
                stop_ids: model.ends.clone(),
                ignore_eos: self.ignore_eos,
                sampling: sampling.clone(),
                n: self.n,
                logprobs: self.logprobs,
                prompt_logprobs: self.echo.then(|| self.logprobs.unwrap_or(0)),
                speculate: self.speculate,
                mask: form.mask()?,
                ..Request::default()
            })
        };
        let config = self.engine.config(prompts.len().saturating_mul(self.n));
        let write = |engine: &mut Engine, silent: bool, interrupted: &AtomicBool| {
            if !silent {
                super::say(&engine.describe());
            }
            let (many, tokenizer) = (self.prompts.is_some(), model.tokenizer.as_ref());
            let show = show::Show { json: self.json, many, n: self.n, tokenizer, silent };
            let mut run = Run::new(&prompts, &self.stop, show);
            for prompt in &prompts {
                run.submit(engine, requests(prompt)?)?;
            }
            run.finish(engine, interrupted)
        };
        #[cfg(any(feature = "mpi", feature = "nccl"))]
        if let Role::Rank(launched, engine) = &role {
            if let Some(dtype) = config.dtype.as_ref().filter(|dtype| *dtype != "f32") {
                let problem = format!("the weights of a model that is split over ranks are f32, not {dtype}");
                return Err(Error::bad_value("--dtype", problem, "leave it out, or --nproc"));
            }
            let (split, tp) = (format!("tp {}", launched.world), launched.world);
            let rank = (launched, *engine);
            return super::ranks::rank::run(&self.ranks, rank, &self.device.backend, &split, None, |world, watch| {
                let mesh = Mesh::new(world, &ParallelConfig { tp, ..ParallelConfig::default() }, watch)?;
                let mut engine = split_engine(&model.checkpoint, &context, config, &mesh)?;
                // Ranks that stopped at different tokens would wait for each other: a signal ends them all.
                write(&mut engine, launched.rank > 0, &AtomicBool::new(false))
            });
        }
        let mut engine = Engine::load(&model.checkpoint, &context, config)?;
        let interrupted = super::stop_on_signal("stopping after this step")?;
        write(&mut engine, false, interrupted)
    }

    /// What can be known of the flags alone.
    fn check(&self) -> Result<()> {
        let bad = |key: &str, problem: &str, hint: &str| Err(Error::bad_value(key, problem, hint));
        if self.n == 0 {
            return bad("--n", "expected at least 1, got 0", "leave it out for one text");
        }
        if self.stop.iter().any(String::is_empty) {
            return bad("--stop", "expected a text, got an empty one", "leave it out to stop nowhere");
        }
        if self.min_tokens > self.tokens {
            let problem = format!("{} are more than the {} of --tokens", self.min_tokens, self.tokens);
            return bad("--min-tokens", &problem, "raise --tokens");
        }
        if let Some(flag) = self.form.flag().filter(|_| self.n > 1) {
            return bad(
                "--n",
                &format!("expected 1 with {flag}, got {}", self.n),
                "repeat the prompt in --prompts with another --seed",
            );
        }
        Ok(())
    }
}
