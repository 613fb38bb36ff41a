//! `recua chat`

mod commands;
mod input;
mod talk;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use recua::Result;
use recua::generate::Engine;

use super::flags::{EngineFlags, Sampling};
use super::say;
use commands::{Command, HELP};
use input::{Input, Line};
use recua::generate::TextModel;
use talk::Talk;

/// A conversation with a model in the terminal
///
/// Lines are edited and remembered as in a shell. Ctrl-C stops the answer; at the prompt it clears the line. Ctrl-D leaves. A line that
/// ends with a backslash goes on in the next. `/help` lists the commands: /reset /system /save /load /set.
///
/// The conversation becomes the model's prompt by the chat template in its files; without one, in a plain form
/// (`User: ...`, `Assistant: ...`). Each answer is followed by its cost; of the prompt only what the cache does not hold is computed.
///
/// Where stdin is no terminal, each of its lines is a question (or a command), and stdout has the answers alone.
#[derive(Args)]
pub(crate) struct Chat {
    /// A run, a checkpoint, a Hugging Face folder, a Meta folder or a GGUF file
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Tokenizer, if it is not beside the model
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    system: String,
    /// Go on with a conversation of /save
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,
    /// At most this many tokens an answer
    #[arg(long, value_name = "N", default_value_t = 1024)]
    tokens: usize,
    /// End an answer where this text comes, which is not shown; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// File of the lines that were typed [default: recua/chat_history in $XDG_STATE_HOME or ~/.local/state; `-`: none]
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Guess up to K tokens ahead from the conversation itself, and check them in one pass: faster where an answer quotes, the same text
    #[arg(long, value_name = "K", default_value_t = 0)]
    speculate: usize,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    engine: EngineFlags,
    #[command(flatten)]
    device: super::Device,
}

/// Set while an answer is written.
static ANSWERING: AtomicBool = AtomicBool::new(false);
/// Set by Ctrl-C in an answer.
static STOP: AtomicBool = AtomicBool::new(false);

impl Chat {
    pub(crate) fn run(self) -> Result<()> {
        self.device.apply()?;
        self.engine.check()?;
        let context = self.device.backend.open()?;
        let model = TextModel::open(&self.model, self.tokenizer.as_deref())?;
        let sampling = self.sampling.config(model.vocab_size())?;
        let mut talk = Talk::new(model, sampling, self.tokens, self.stop)?;
        talk.speculate = self.speculate;
        talk.set_system(&self.system);
        if let Some(path) = &self.load {
            talk.load(path)?;
        }
        talk.engine = Some(Engine::load(&talk.model.checkpoint, &context, self.engine.config(1))?);
        let mut input = Input::open(self.history.as_deref())?;
        ctrlc::set_handler(|| {
            // The second one, and one that comes while nothing is written, ends the program.
            if !ANSWERING.load(Ordering::Relaxed) || STOP.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        })
        .map_err(|e| recua::Error::bad_value("signals", e.to_string(), "run outside of another handler"))?;
        if input.is_terminal() {
            say(&format!("{}\n{}; /help lists the commands, Ctrl-D leaves", talk.introduction(), talk.describe()));
        }
        while let Line::Text(line) = input.read()? {
            let done = match Command::parse(&line) {
                Ok(None) => talk.answer(&line),
                Ok(Some(Command::Leave)) => break,
                Ok(Some(Command::Help)) => {
                    say(HELP);
                    Ok(())
                }
                Ok(Some(command)) => talk.command(command),
                Err(e) => Err(e),
            };
            // What is wrong with a line is said, and the conversation goes on; but a script ends there.
            match done {
                Err(e) if input.is_terminal() => say(&format!("error: {e}")),
                done => done?,
            }
        }
        Ok(())
    }
}
