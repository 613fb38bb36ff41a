//! Lines that begin with a slash.

use std::path::PathBuf;

use recua::{Error, Result};

pub(super) const HELP: &str = "\
/reset              forget the conversation; the system text stays
/system TEXT        forget the conversation, and tell the model this before the next; without TEXT nothing
/save FILE          write the conversation to a file
/load FILE          go on with one that was saved
/set KEY VALUE      another setting: tokens, temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
                    frequency_penalty, seed; VALUE none turns one off; without KEY all are shown
/help               this
/quit               leave, as Ctrl-D
A question that begins with a slash is written with two.";

/// What a line asks for.
#[derive(Debug, PartialEq)]
pub(super) enum Command {
    Reset,
    System(String),
    Save(PathBuf),
    Load(PathBuf),
    Show,
    Set(String, String),
    Help,
    Leave,
}

impl Command {
    /// `None`: the line is a question.
    pub(super) fn parse(line: &str) -> Result<Option<Self>> {
        let Some(rest) = line.strip_prefix('/').filter(|rest| !rest.starts_with('/')) else { return Ok(None) };
        let (name, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let rest = rest.trim();
        let file = || match rest {
            "" => Err(Error::bad_value(format!("/{name}"), "expected a file, got nothing", format!("write /{name} FILE"))),
            path => Ok(PathBuf::from(path)),
        };
        let nothing = |command| match rest {
            "" => Ok(command),
            more => Err(Error::bad_value(format!("/{name}"), format!("expected nothing after it, got `{more}`"), "see /help")),
        };
        Ok(Some(match name {
            "reset" => nothing(Self::Reset)?,
            "system" => Self::System(rest.into()),
            "save" => Self::Save(file()?),
            "load" => Self::Load(file()?),
            "set" if rest.is_empty() => Self::Show,
            "set" => match rest.split_once(char::is_whitespace) {
                Some((key, value)) => Self::Set(key.into(), value.trim().into()),
                None => return Err(Error::bad_value("/set", format!("expected a value for `{rest}`"), "write /set KEY VALUE")),
            },
            "help" | "?" => nothing(Self::Help)?,
            "quit" | "exit" => nothing(Self::Leave)?,
            _ => return Err(Error::bad_value(format!("/{name}"), "there is no such command", "/help lists them")),
        }))
    }
}
