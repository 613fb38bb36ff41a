//! The conversation: messages, the model's prompt, its answers.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use recua::generate::{Bos, Engine, Event, Request, SampleConfig, Sampler, Stop, TextStream};
use recua::tokenizer::{ChatTemplate, Message};
use recua::{Error, Result};
use recua_core::files::write_atomic;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::commands::Command;
use super::{ANSWERING, STOP};
use crate::cli::{human, print, print_now, say};
use recua::generate::TextModel;

/// A file of /save.
#[derive(Serialize, Deserialize)]
struct Saved {
    messages: Vec<Message>,
}

pub(super) struct Talk {
    pub(super) model: TextModel,
    template: ChatTemplate,
    /// There once the weights are read.
    pub(super) engine: Option<Engine>,
    messages: Vec<Message>,
    sampling: SampleConfig,
    tokens: usize,
    stops: Vec<String>,
    /// Tokens guessed ahead.
    pub(super) speculate: usize,
}

impl Talk {
    pub(super) fn new(model: TextModel, sampling: SampleConfig, tokens: usize, stops: Vec<String>) -> Result<Self> {
        let template = ChatTemplate::of(model.tokenizer_for("a conversation")?)?;
        if tokens == 0 {
            return Err(Error::bad_value("--tokens", "expected at least 1, got 0", "leave it out to take the default"));
        }
        Ok(Self { model, template, engine: None, messages: Vec::new(), sampling, tokens, stops, speculate: 0 })
    }

    /// The model, in a line.
    pub(super) fn introduction(&self) -> String {
        let params = self.model.checkpoint.config().num_params();
        format!("{}: {} parameters, {}", self.model.path.display(), human(params as f64), self.form())
    }

    pub(super) fn describe(&self) -> String {
        self.engine.as_ref().map(Engine::describe).unwrap_or_default()
    }

    pub(super) fn set_system(&mut self, text: &str) {
        self.messages.clear();
        if !text.is_empty() {
            self.messages.push(Message { role: "system".into(), content: text.into() });
        }
    }

    pub(super) fn load(&mut self, path: &Path) -> Result<()> {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let bad = |problem: String| Error::bad_file("conversation", path, problem, "give a file that /save wrote");
        let saved: Saved = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        let turns = match saved.messages.split_first() {
            Some((first, turns)) if first.role == "system" => turns,
            _ => &saved.messages,
        };
        let expected = ["user", "assistant"].into_iter().cycle();
        if let Some((i, _)) = turns.iter().zip(expected).enumerate().find(|(_, (message, role))| message.role != *role) {
            return Err(bad(format!(
                "expected messages of user and assistant in turn, got `{}` as turn {}",
                turns[i].role,
                i + 1
            )));
        }
        self.messages = saved.messages;
        Ok(())
    }

    pub(super) fn command(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Reset => self.messages.retain(|message| message.role == "system"),
            Command::System(text) => self.set_system(&text),
            Command::Save(path) => {
                let saved = Saved { messages: self.messages.clone() };
                let json = serde_json::to_vec_pretty(&saved).map_err(|e| Error::internal("/save", e.to_string()))?;
                write_atomic(&path, &json)?;
                say(&format!("{}: {} messages", path.display(), self.messages.len()));
            }
            Command::Load(path) => {
                self.load(&path)?;
                say(&format!("{} messages", self.messages.len()));
            }
            Command::Show => say(&self.settings()?.iter().map(|(k, v)| format!("{k} {v}")).collect::<Vec<_>>().join("\n")),
            Command::Set(key, value) => self.set(&key, &value)?,
            Command::Help | Command::Leave => {}
        }
        Ok(())
    }

    fn settings(&self) -> Result<serde_json::Map<String, Value>> {
        let settings = serde_json::to_value(&self.sampling).map_err(|e| Error::internal("/set", e.to_string()))?;
        let Value::Object(mut settings) = settings else { return Err(Error::internal("/set", "no settings")) };
        settings.insert("tokens".into(), self.tokens.into());
        Ok(settings)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let mut settings = self.settings()?;
        let at = format!("/set {key}");
        if !settings.contains_key(key) {
            let known: Vec<_> = settings.keys().map(String::as_str).collect();
            return Err(Error::bad_value(at, "there is no such setting", format!("take one of {}", known.join(", "))));
        }
        let value = if value == "none" { Value::Null } else { serde_json::from_str(value).unwrap_or_else(|_| value.into()) };
        let bad = |problem: String| Error::bad_value(&at, problem, "/set shows all settings");
        if key == "tokens" {
            let tokens = value.as_u64().filter(|n| *n > 0).and_then(|n| usize::try_from(n).ok());
            self.tokens = tokens.ok_or_else(|| bad(format!("expected a number above 0, got {value}")))?;
            return Ok(());
        }
        settings.insert(key.into(), value);
        settings.remove("tokens");
        let sampling: SampleConfig = serde_json::from_value(settings.into()).map_err(|e| bad(e.to_string()))?;
        Sampler::new(sampling.clone())?;
        self.sampling = sampling;
        Ok(())
    }

    /// Which form the prompt has.
    fn form(&self) -> String {
        match self.template.origin() {
            Some(file) => format!("chat template of {file}"),
            None => "no chat template: plain form".into(),
        }
    }

    /// The conversation as the model's prompt.
    fn prompt(&self) -> Result<Vec<u32>> {
        let text = self.template.render(&self.messages, true)?;
        match self.template.origin() {
            // Templates write special tokens, BOS among them; in the plain form nobody's text is one.
            Some(_) => self.model.tokenizer_for("a conversation")?.encode_with_special(&text),
            None => self.model.encode(&text, Bos::Auto, false),
        }
    }

    /// Answers a question. Where that fails the conversation is as it was.
    pub(super) fn answer(&mut self, line: &str) -> Result<()> {
        let question = if line.starts_with("//") { &line[1..] } else { line };
        self.messages.push(Message { role: "user".into(), content: question.into() });
        ANSWERING.store(true, Ordering::Relaxed);
        let answer = self.write();
        ANSWERING.store(false, Ordering::Relaxed);
        STOP.store(false, Ordering::Relaxed);
        match answer {
            Ok(text) => self.messages.push(Message { role: "assistant".into(), content: text.trim().into() }),
            Err(e) => {
                self.messages.pop();
                return Err(match e {
                    Error::TooLong { got, max, .. } => {
                        let hint = "begin anew with /reset, or raise --max-len".into();
                        Error::TooLong { what: "the conversation".into(), got, max, hint }
                    }
                    e => e,
                });
            }
        }
        Ok(())
    }

    fn write(&mut self) -> Result<String> {
        let prompt = self.prompt()?;
        let stops: Vec<&str> = self.template.stops().iter().copied().chain(self.stops.iter().map(String::as_str)).collect();
        let tokenizer = self.model.tokenizer_for("a conversation")?;
        let mut stream = TextStream::new(tokenizer, &prompt, &stops)?;
        let request = Request {
            prompt,
            max_new: self.tokens,
            stop_ids: self.model.ends.clone(),
            sampling: self.sampling.clone(),
            speculate: self.speculate,
            ..Request::default()
        };
        let Some(engine) = &mut self.engine else { return Err(Error::internal("chat", "no engine")) };
        let began = Instant::now();
        let prompt_tokens = request.prompt.len();
        let id = engine.submit(request)?;
        let cached = engine.stats().cached_tokens;
        let (mut text, mut tokens, mut first, mut end) = (String::new(), 0, None, None);
        let show = |text: &mut String, new: &str| {
            // An answer begins with its first word.
            let new = if text.is_empty() { new.trim_start() } else { new };
            text.push_str(new);
            if !new.is_empty() {
                print_now(new);
            }
        };
        while end.is_none() {
            if STOP.load(Ordering::Relaxed) {
                end = Some("stopped");
                break;
            }
            for event in engine.step()? {
                match event {
                    Event::Token { token, .. } if end.is_none() => {
                        first.get_or_insert(began.elapsed().as_secs_f64());
                        tokens += 1;
                        let shown = stream.push(token);
                        show(&mut text, &shown.text);
                        if shown.stop.is_some() {
                            end = Some("");
                        }
                    }
                    Event::Done { stop, .. } => {
                        end = end.or(Some(match stop {
                            Stop::Length => "cut at /set tokens",
                            Stop::Full => "no position left: /reset begins anew",
                            _ => "",
                        }));
                    }
                    Event::Failed { error, .. } => return Err(error),
                    _ => {}
                }
            }
        }
        engine.cancel(id);
        show(&mut text, &stream.finish().text);
        print("");
        let seconds = began.elapsed().as_secs_f64();
        let mut line = format!("[{tokens} tokens, {} tok/s", human(f64::from(tokens) / seconds));
        if let Some(first) = first {
            line += &format!(", the first after {first:.2} s");
        }
        line += &format!("; {} of {prompt_tokens} prompt tokens were in the cache", engine.stats().cached_tokens - cached);
        if let Some(why) = end.filter(|why| !why.is_empty()) {
            line += &format!("; {why}");
        }
        say(&format!("{line}]"));
        Ok(text)
    }
}
