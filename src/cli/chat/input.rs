//! Lines that are typed, or that come through a pipe.

use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};

use recua::{Error, Result};
use rustyline::DefaultEditor;
use rustyline::config::Configurer;
use rustyline::error::ReadlineError;

/// What comes next.
pub(super) enum Line {
    Text(String),
    End,
}

/// Where lines come from.
pub(super) enum Input {
    Terminal { editor: Box<DefaultEditor>, history: Option<PathBuf> },
    Lines(std::io::Stdin),
}

impl Input {
    /// `history`: a file, `-` for none, or the usual one.
    pub(super) fn open(history: Option<&Path>) -> Result<Self> {
        if !std::io::stdin().is_terminal() {
            return Ok(Self::Lines(std::io::stdin()));
        }
        let mut editor = DefaultEditor::new().map_err(failed)?;
        editor.set_auto_add_history(true);
        let history = match history {
            Some(path) if path == Path::new("-") => None,
            Some(path) => Some(path.to_path_buf()),
            None => usual_history(),
        };
        if let Some(path) = history.as_ref().filter(|path| path.exists())
            && let Err(e) = editor.load_history(path)
        {
            log::warn!("{}: no lines remembered: {e}", path.display());
        }
        Ok(Self::Terminal { editor: Box::new(editor), history })
    }

    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// The next line that is not empty. One that ends with a backslash goes on in the next.
    pub(super) fn read(&mut self) -> Result<Line> {
        let mut all = String::new();
        loop {
            let prompt = if all.is_empty() { "> " } else { ". " };
            let Some(line) = self.one(prompt)? else {
                self.remember();
                return Ok(if all.is_empty() { Line::End } else { Line::Text(all) });
            };
            let Some(line) = line else {
                all.clear(); // Ctrl-C
                continue;
            };
            if let Some(begun) = line.strip_suffix('\\') {
                all.push_str(begun);
                all.push('\n');
                continue;
            }
            all.push_str(&line);
            if !all.trim().is_empty() {
                self.remember();
                return Ok(Line::Text(all));
            }
            all.clear();
        }
    }

    /// A line; of one that was given up nothing; of the end nothing at all.
    fn one(&mut self, prompt: &str) -> Result<Option<Option<String>>> {
        match self {
            Self::Terminal { editor, .. } => match editor.readline(prompt) {
                Ok(line) => Ok(Some(Some(line))),
                Err(ReadlineError::Interrupted) => Ok(Some(None)),
                Err(ReadlineError::Eof) => Ok(None),
                Err(e) => Err(failed(e)),
            },
            Self::Lines(stdin) => {
                let mut line = String::new();
                if stdin.lock().read_line(&mut line).map_err(Error::io("read", "stdin"))? == 0 {
                    return Ok(None);
                }
                let line = line.strip_suffix('\n').unwrap_or(&line);
                Ok(Some(Some(line.strip_suffix('\r').unwrap_or(line).to_string())))
            }
        }
    }

    /// Writes the history after each line: a program that is killed has it still.
    fn remember(&mut self) {
        let Self::Terminal { editor, history: Some(path) } = self else { return };
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        if let Err(e) = made.map_err(ReadlineError::from).and_then(|()| editor.save_history(path)) {
            log::warn!("{}: lines are not remembered: {e}", path.display());
            let Self::Terminal { history, .. } = self else { return };
            *history = None;
        }
    }
}

fn usual_history() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || {
        std::env::var_os("HOME").or_else(|| std::env::var_os("USERPROFILE")).map(|home| PathBuf::from(home).join(".local/state"))
    };
    Some(state.or_else(home)?.join("recua/chat_history"))
}

fn failed(e: ReadlineError) -> Error {
    match e {
        ReadlineError::Io(e) => Error::io("read", "stdin")(e),
        e => Error::io("read", "stdin")(std::io::Error::other(e.to_string())),
    }
}
