//! Conversations as the model's prompt: what chat, responses and messages have in common.

use std::sync::Arc;

use recua_core::generate::Bos;
use recua_core::tokenizer::TemplateValue;
use serde_json::Value;

use crate::error::{ApiError, Result};
use crate::fields::expected;
use crate::model::Model;
use crate::tools::Call;

/// One turn.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turn {
    pub(crate) role: String,
    pub(crate) content: String,
    /// Calls of an assistant.
    pub(crate) calls: Vec<Call>,
    /// Of a tool's result: the call that it answers.
    pub(crate) call_id: Option<String>,
    /// Of a tool's result: the tool.
    pub(crate) name: Option<String>,
}

impl Turn {
    pub(crate) fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }

    fn value(&self) -> TemplateValue {
        let text = |text: &str| TemplateValue::text(text);
        let mut members = vec![("role", text(&self.role)), ("content", text(&self.content))];
        if !self.calls.is_empty() {
            let call = |call: &Call| {
                // Templates write the arguments as JSON; what is none stays a text.
                let arguments = TemplateValue::from_json(&call.arguments).unwrap_or_else(|_| text(&call.arguments));
                let function = TemplateValue::object([("name", text(&call.name)), ("arguments", arguments)]);
                TemplateValue::object([("id", text(&call.id)), ("type", text("function")), ("function", function)])
            };
            members.push(("tool_calls", TemplateValue::list(self.calls.iter().map(call))));
        }
        members.extend(self.call_id.as_ref().map(|id| ("tool_call_id", text(id))));
        members.extend(self.name.as_ref().map(|name| ("name", text(name))));
        TemplateValue::object(members)
    }
}

/// The prompt of a conversation, up to where the next answer begins.
pub(crate) fn prompt(model: &Arc<Model>, turns: &[Turn], tools: Option<&TemplateValue>) -> Result<Vec<u32>> {
    if turns.is_empty() {
        return Err(ApiError::bad("messages", "expected at least one message, got none"));
    }
    let template = model.template()?;
    let turns = TemplateValue::list(turns.iter().map(Turn::value));
    let refused = |e: recua_core::Error| match e {
        recua_core::Error::BadValue { problem, .. } => ApiError::bad("messages", problem),
        e => ApiError::bad("messages", format!("the model's template cannot write them: {e}")),
    };
    let text = template.render_json(&turns, tools, true).map_err(refused)?;
    model.check_size(&text)?;
    match template.origin() {
        // Templates write special tokens, BOS among them; in the plain form nobody's text is one.
        Some(_) => Ok(model.tokenizer("messages")?.encode_with_special(&text)?),
        None => Ok(recua_core::generate::encode_prompt(model.tokenizer("messages")?, &text, Bos::Auto, false)?),
    }
}

/// Text, or a list of parts that are text; `null` is no text.
pub(crate) fn content(at: &str, value: Option<Value>) -> Result<String> {
    let list = match value {
        None | Some(Value::Null) => return Ok(String::new()),
        Some(Value::String(text)) => return Ok(text),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(expected(at, "a text or a list of parts", &other)),
    };
    let mut all = String::new();
    for part in &list {
        match (part["type"].as_str(), &part["text"], part.as_str()) {
            (_, _, Some(text)) => all.push_str(text),
            (Some("text" | "input_text" | "output_text"), Value::String(text), _) => all.push_str(text),
            (Some("refusal"), _, _) => all.push_str(part["refusal"].as_str().unwrap_or_default()),
            (Some(kind), _, _) if !["text", "input_text", "output_text"].contains(&kind) => {
                return Err(ApiError::unsupported(&format!("{at} of type {kind}"), "the model reads text"));
            }
            _ => return Err(expected(at, "a part of type text", part)),
        }
    }
    Ok(all)
}

/// The messages of `/v1/chat/completions`.
pub(crate) fn openai(messages: Vec<Value>) -> Result<Vec<Turn>> {
    messages.into_iter().enumerate().map(|(i, message)| turn(&format!("messages[{i}]"), message)).collect()
}

fn turn(at: &str, message: Value) -> Result<Turn> {
    let Value::Object(mut message) = message else { return Err(expected(at, "an object", &message)) };
    let role = match message.remove("role") {
        Some(Value::String(role)) => role,
        other => return Err(expected(&format!("{at}.role"), "a string", &other.unwrap_or_default())),
    };
    let role = match role.as_str() {
        "developer" => "system".into(),
        "function" => "tool".into(),
        _ => role,
    };
    if !["system", "user", "assistant", "tool", "ipython"].contains(&role.as_str()) {
        return Err(ApiError::bad(&format!("{at}.role"), format!("expected system, user, assistant or tool, got {role}")));
    }
    let given = message.remove("content");
    let calls = match message.remove("tool_calls") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => {
            let calls = list.iter().map(|call| {
                let function = &call["function"];
                let (Some(name), Some(arguments)) = (function["name"].as_str(), arguments(&function["arguments"])) else {
                    return Err(expected(&format!("{at}.tool_calls"), "calls of functions with name and arguments", call));
                };
                Ok(Call { id: call["id"].as_str().unwrap_or_default().into(), name: name.into(), arguments })
            });
            calls.collect::<Result<_>>()?
        }
        Some(other) => return Err(expected(&format!("{at}.tool_calls"), "a list", &other)),
    };
    let nothing = given.as_ref().is_none_or(Value::is_null);
    if nothing && !(role == "assistant" && (!calls.is_empty() || given.is_some())) {
        return Err(ApiError::bad(&format!("{at}.content"), "expected a text, got nothing"));
    }
    let text = |value: Option<Value>| value.and_then(|value| value.as_str().map(String::from));
    Ok(Turn {
        role,
        content: content(&format!("{at}.content"), given)?,
        calls,
        call_id: text(message.remove("tool_call_id")),
        name: text(message.remove("name")),
    })
}

/// Arguments as a text of JSON; some clients send the object itself.
pub(crate) fn arguments(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(_) => Some(value.to_string()),
        Value::Null => Some("{}".into()),
        _ => None,
    }
}
