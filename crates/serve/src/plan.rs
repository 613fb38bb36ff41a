//! A conversation that is to be answered: what chat, responses and messages make of a request.

use std::sync::Arc;

use axum::body::Bytes;
use recua_core::tokenizer::TemplateValue;
use serde_json::{Value, json};

use crate::conversation::{self, Turn};
use crate::error::{ApiError, Result};
use crate::fields::expected;
use crate::model::Model;
use crate::params::{Form, Params};
use crate::server::{Caller, Server, aside};
use crate::tools::Answer;
use crate::work::{Prompts, Work};

/// The tools of a request.
#[derive(Default)]
pub(crate) struct Tools {
    /// As the template takes them.
    pub(crate) written: Option<TemplateValue>,
    /// Names, and the schemas of their arguments.
    pub(crate) known: Vec<(String, Value)>,
}

/// Which of them an answer calls.
pub(crate) enum ToolChoice {
    Auto,
    None,
    /// One of them, or the one of this name.
    Must(Option<String>),
}

impl ToolChoice {
    /// OpenAI's: a word, or an object that names a function, in itself or a level lower.
    pub(crate) fn openai(value: Option<Value>) -> Result<Self> {
        let Some(value) = value else { return Ok(Self::Auto) };
        match (value.as_str(), value["type"].as_str()) {
            (Some("auto"), _) => Ok(Self::Auto),
            (Some("none"), _) => Ok(Self::None),
            (Some("required"), _) => Ok(Self::Must(None)),
            (None, Some("function")) => {
                let name = value["function"]["name"].as_str().or_else(|| value["name"].as_str());
                Ok(Self::Must(Some(name.ok_or_else(|| expected("tool_choice", "a function with a name", &value))?.into())))
            }
            _ => Err(expected("tool_choice", "auto, none, required or a function", &value)),
        }
    }

    /// Anthropic's.
    pub(crate) fn anthropic(value: Option<&Value>) -> Result<Self> {
        let Some(value) = value else { return Ok(Self::Auto) };
        match (value["type"].as_str(), value["name"].as_str()) {
            (Some("auto"), _) => Ok(Self::Auto),
            (Some("none"), _) => Ok(Self::None),
            (Some("any"), _) => Ok(Self::Must(None)),
            (Some("tool"), Some(name)) => Ok(Self::Must(Some(name.into()))),
            _ => Err(expected("tool_choice", "a type of auto, none, any, or tool with a name", value)),
        }
    }
}

pub(crate) struct Plan {
    pub(crate) model: Arc<Model>,
    pub(crate) params: Params,
    pub(crate) ids: Vec<u32>,
    /// Names of the tools.
    tools: Vec<String>,
    /// One call at most.
    single: bool,
}

impl Plan {
    /// `single`: one call of a tool at most.
    pub(crate) fn new(
        model: Arc<Model>,
        mut params: Params,
        turns: &[Turn],
        mut tools: Tools,
        choice: ToolChoice,
        mut single: bool,
    ) -> Result<Self> {
        match choice {
            ToolChoice::Auto => {}
            ToolChoice::None => tools = Tools::default(),
            ToolChoice::Must(name) => {
                if let Some((other, _)) = &params.form {
                    return Err(ApiError::bad("tool_choice", format!("a text has one form, and `{other}` says one already")));
                }
                params.form = Some(("tool_choice", Form::Schema(must(&tools.known, name.as_deref())?)));
                single = true;
            }
        }
        let ids = conversation::prompt(&model, turns, tools.written.as_ref())?;
        if let Some(template) = &model.template {
            params.stops.extend(template.stops().iter().map(|stop| (*stop).to_string()));
        }
        let tools = tools.known.into_iter().map(|(name, _)| name).collect();
        Ok(Self { model, params, ids, tools, single })
    }

    /// What sorts the text of an answer.
    pub(crate) fn answer(&self) -> Answer {
        let plain = self.model.template.as_ref().is_none_or(|template| template.origin().is_none());
        Answer::new(self.tools.clone(), self.single, plain)
    }

    fn start(&self, server: &Server, active: crate::server::Active, caller: Caller) -> Result<Work> {
        let prompts = Prompts { ids: vec![self.ids.clone()], scored: false, tell_end: false, counts_prompt: false };
        self.model.check("messages", &self.ids, self.model.max_len()?)?;
        Work::start(server, active, &self.model, caller, &prompts, &self.params)
    }
}

/// The schema of a call of one of the tools, or of the named one.
fn must(known: &[(String, Value)], name: Option<&str>) -> Result<Value> {
    let call = |(name, schema): &(String, Value)| {
        let arguments = if schema.is_object() { schema.clone() } else { json!({ "type": "object" }) };
        json!({
            "type": "object",
            "properties": { "name": { "const": name }, "parameters": arguments },
            "required": ["name", "parameters"],
            "additionalProperties": false,
        })
    };
    let calls: Vec<Value> = known.iter().filter(|(of, _)| name.is_none_or(|name| name == of)).map(call).collect();
    match (name, calls.is_empty()) {
        (_, false) => Ok(json!({ "anyOf": calls })),
        (Some(name), true) => Err(ApiError::bad("tool_choice", format!("`{name}` is none of the tools"))),
        (None, true) => Err(ApiError::bad("tool_choice", "there is no tool to call")),
    }
}

/// Reads a request beside the network's threads, and hands what it plans to the engine.
pub(crate) async fn begin<T: Send + 'static>(
    server: &Server,
    caller: Caller,
    body: Bytes,
    read: impl FnOnce(&Server, &[u8]) -> Result<T> + Send + 'static,
    plan: impl FnOnce(&T) -> &Plan + Send + 'static,
) -> Result<(T, Work)> {
    let active = server.begin()?;
    let server = server.clone();
    aside(move || {
        let asked = read(&server, &body)?;
        let work = plan(&asked).start(&server, active, caller)?;
        Ok((asked, work))
    })
    .await
}
