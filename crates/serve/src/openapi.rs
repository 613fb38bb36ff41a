//! What there is, as OpenAPI 3.1.

mod answers;

use serde_json::{Map, Value, json};

use Answer::{Json, Streamed, Text};

use crate::fields::HARMLESS;

fn string(about: &str) -> Value {
    json!({ "type": "string", "description": about })
}

fn flag(about: &str) -> Value {
    json!({ "type": "boolean", "description": about })
}

fn count(about: &str) -> Value {
    json!({ "type": "integer", "minimum": 0, "description": about })
}

fn number(about: &str) -> Value {
    json!({ "type": "number", "description": about })
}

fn ids() -> Value {
    json!({ "type": "array", "items": { "type": "integer", "minimum": 0 }, "description": "Token ids" })
}

fn list(of: Value) -> Value {
    json!({ "type": "array", "items": of })
}

fn any(of: &[Value]) -> Value {
    json!({ "anyOf": of })
}

/// What all routes that write text take.
fn sampling() -> Vec<(&'static str, Value)> {
    vec![
        ("model", string("Of several models the one that answers; with one model any name is right")),
        ("temperature", json!({ "type": "number", "minimum": 0, "default": 1, "description": "0 takes the likeliest token" })),
        ("top_p", json!({ "type": "number", "exclusiveMinimum": 0, "maximum": 1 })),
        ("top_k", json!({ "type": "integer", "minimum": -1, "description": "0 and -1: all" })),
        ("min_p", json!({ "type": "number", "minimum": 0, "maximum": 1 })),
        ("repetition_penalty", json!({ "type": "number", "exclusiveMinimum": 0 })),
        ("presence_penalty", number("Taken off the logits of tokens that are in the text")),
        ("frequency_penalty", number("The same, for each time that the token is there")),
        (
            "logit_bias",
            json!({ "type": "object", "additionalProperties": { "type": "number", "minimum": -100, "maximum": 100 } }),
        ),
        (
            "seed",
            json!({ "type": "integer", "description": "The same seed gives the same text; absent: another text each time" }),
        ),
        ("min_tokens", count("No end before so many tokens")),
        ("ignore_eos", flag("Go on after tokens that end a text")),
        ("stop_token_ids", ids()),
        ("regex", string("The text matches this expression (feature `constrain`)")),
        ("grammar", string("The text is of this Lark grammar (feature `constrain`)")),
        ("cache_salt", string("Only requests of the same salt share what the cache holds of a prompt")),
        ("stream", flag("Events as the text is written")),
    ]
}

fn openai() -> Vec<(&'static str, Value)> {
    let mut all = sampling();
    all.extend([
        ("n", json!({ "type": "integer", "minimum": 1, "description": "So many texts of each prompt" })),
        ("stop", any(&[string("End where this comes; it is not shown"), list(json!({ "type": "string", "minLength": 1 }))])),
        ("stream_options", json!({ "type": "object", "properties": { "include_usage": flag("Usage in a last event") } })),
        (
            "response_format",
            json!({
                "type": "object",
                "properties": { "type": { "enum": ["text", "json_object", "json_schema"] }, "json_schema": { "type": "object" } },
                "description": "The form of the text (feature `constrain`)",
            }),
        ),
    ]);
    all
}

fn messages() -> Value {
    let part = json!({
        "type": "object",
        "required": ["type", "text"],
        "properties": { "type": { "const": "text" }, "text": string("") },
    });
    let content = any(&[string(""), list(part)]);
    let role = json!({ "enum": ["system", "user", "assistant"], "description": "OpenAI's also developer and tool" });
    json!({
        "type": "array",
        "minItems": 1,
        "items": { "type": "object", "required": ["role", "content"], "properties": { "role": role, "content": content } },
    })
}

fn tool_choice() -> Value {
    let about = "`required` or a function: the answer is a call (feature `constrain`)";
    any(&[json!({ "enum": ["auto", "none", "required"], "description": about }), json!({ "type": "object" })])
}

fn schema(fields: Vec<(&'static str, Value)>, required: &[&str]) -> Value {
    let properties: Map<String, Value> = fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
    let harmless = format!("^({})$", HARMLESS.join("|"));
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "patternProperties": { harmless: {} },
        "additionalProperties": false,
    })
}

/// What an answer is made of: of JSON, of a stream of events beside, of text.
enum Answer {
    Json(Value),
    Streamed(Value),
    Text,
}

fn operation(summary: &str, body: Option<Value>, answer: Answer) -> Value {
    let text = json!({ "schema": { "type": "string" } });
    // OpenAPI 3.1 cannot say what one event of a stream is: without a type, a client may take the stream for a text or for events.
    let events = json!({ "schema": { "description": "Server-sent events, each with one object as its `data`" } });
    let content = match answer {
        Answer::Json(schema) => json!({ "application/json": { "schema": schema } }),
        Answer::Streamed(schema) => json!({ "application/json": { "schema": schema }, "text/event-stream": events }),
        Answer::Text => json!({ "text/plain": text }),
    };
    let mut responses = Map::new();
    responses.insert("200".into(), json!({ "description": "What was asked for", "content": content }));
    let asks = body.is_some();
    for (status, about, always) in [
        ("400", "The request is wrong, or asks for what is not supported; `param` names the field", false),
        ("401", "No API key, or an unknown one", true),
        ("404", "No such model", false),
        ("408", "The body did not come in time", false),
        ("413", "The body is too large", false),
        ("429", "The queue is full", false),
        ("500", "The engine failed, or the server made a mistake", true),
        ("503", "Not ready yet, or shutting down", true),
    ] {
        if always || asks {
            let content = json!({ "application/json": { "schema": { "$ref": "#/components/schemas/Error" } } });
            responses.insert(status.into(), json!({ "description": about, "content": content }));
        }
    }
    let mut operation = json!({ "summary": summary, "responses": responses });
    if let Some(body) = body {
        operation["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": body } } });
    }
    operation
}

/// The document.
pub(crate) fn document() -> Value {
    let with = |mut fields: Vec<(&'static str, Value)>, more: Vec<(&'static str, Value)>| {
        fields.extend(more);
        fields
    };
    let prompt = any(&[string("A text"), ids(), list(any(&[string("A text"), ids()]))]);
    let completions = with(
        openai(),
        vec![
            ("prompt", prompt.clone()),
            ("max_tokens", json!({ "type": "integer", "minimum": 0, "default": 16 })),
            ("echo", flag("The prompt stands before the text; with `logprobs` its tokens are scored")),
            ("logprobs", count("Log-probabilities of the tokens, and of so many likeliest beside each")),
            ("add_special_tokens", flag("What the tokenizer's file puts before a text; true by default")),
        ],
    );
    let chat = with(
        openai(),
        vec![
            ("messages", messages()),
            ("max_tokens", count("At most so many tokens")),
            ("max_completion_tokens", count("The same")),
            ("logprobs", flag("Log-probabilities of the tokens")),
            ("top_logprobs", count("And of so many likeliest beside each")),
            ("tools", list(json!({ "type": "object" }))),
            ("tool_choice", tool_choice()),
            ("parallel_tool_calls", flag("false: one call at most")),
        ],
    );
    let responses = with(
        sampling(),
        vec![
            ("input", any(&[string("A text"), list(json!({ "type": "object" }))])),
            ("instructions", string("The system's text")),
            ("max_output_tokens", count("At most so many tokens")),
            ("tools", list(json!({ "type": "object" }))),
            ("tool_choice", tool_choice()),
            ("text", json!({ "type": "object" })),
            ("store", json!({ "const": false })),
        ],
    );
    let anthropic = with(
        sampling(),
        vec![
            ("messages", messages()),
            ("system", any(&[string("The system's text"), list(json!({ "type": "object" }))])),
            ("max_tokens", json!({ "type": "integer", "minimum": 1 })),
            ("stop_sequences", list(json!({ "type": "string", "minLength": 1 }))),
            ("tools", list(json!({ "type": "object" }))),
            ("tool_choice", json!({ "type": "object" })),
        ],
    );
    let embeddings = vec![("model", string("")), ("input", prompt), ("encoding_format", json!({ "enum": ["float", "base64"] }))];
    let tokenize = vec![
        ("model", string("")),
        ("content", string("llama.cpp's name of the text; no BOS unless `add_special`")),
        ("prompt", string("vLLM's name of the text; with BOS unless `add_special_tokens` is false")),
        ("messages", messages()),
        ("add_special", flag("")),
        ("add_special_tokens", flag("")),
        ("parse_special", flag("The text of special tokens is those tokens; true by default")),
        ("with_pieces", flag("`tokens` are objects of id and piece")),
        ("return_token_strs", flag("`token_strs` beside the ids")),
    ];
    let mut tokenize = schema(tokenize, &[]);
    tokenize["oneOf"] = ["content", "prompt", "messages"].map(|one| json!({ "required": [one] })).to_vec().into();
    let post = |summary: &str, body: Value, answer: Answer| json!({ "post": operation(summary, Some(body), answer) });
    let get = |summary: &str, answer: Answer| json!({ "get": operation(summary, None, answer) });
    let count_tokens = schema(anthropic.clone(), &["messages"]);
    let detokenize = schema(vec![("model", string("")), ("tokens", ids())], &["tokens"]);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "recua",
            "version": env!("CARGO_PKG_VERSION"),
            "description": format!(
                "Fields that are not listed are refused by name with 400, but for those that cannot change an answer: {}. \
                 `null` is as good as nothing.",
                HARMLESS.join(", "),
            ),
        },
        "paths": {
            "/v1/completions": post(
                "Texts that go on from prompts; scores of given tokens",
                schema(completions, &["prompt"]),
                Streamed(answers::completions()),
            ),
            "/v1/chat/completions": post(
                "The answer to a conversation",
                schema(chat, &["messages"]),
                Streamed(answers::chat()),
            ),
            "/v1/responses": post(
                "The answer to a conversation, stateless",
                schema(responses, &["input"]),
                Streamed(answers::responses()),
            ),
            "/v1/messages": post(
                "The answer to a conversation, in Anthropic's form",
                schema(anthropic, &["messages", "max_tokens"]),
                Streamed(answers::messages()),
            ),
            "/v1/messages/count_tokens": post("How many tokens a conversation has", count_tokens, Json(answers::count_tokens())),
            "/v1/embeddings": post(
                "Mean of the last hidden states, of length 1",
                schema(embeddings, &["input"]),
                Json(answers::embeddings()),
            ),
            "/v1/models": get("The models", Json(answers::models())),
            "/tokenize": post("A text as token ids", tokenize, Json(answers::tokenize())),
            "/detokenize": post("Token ids as text", detokenize, Json(answers::detokenize())),
            "/tokenizer_info": get("The tokenizer", Json(answers::tokenizer_info())),
            "/health": get("200 once all models answer; 503 before, and while the server shuts down", Json(answers::health())),
            "/metrics": get("Counters and times, for Prometheus", Text),
        },
        "components": {
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["error"],
                    "properties": { "error": {
                        "type": "object",
                        "required": ["message", "type"],
                        "properties": {
                            "message": { "type": "string" },
                            "type": { "type": "string" },
                            "param": { "type": ["string", "null"] },
                            "code": { "type": ["string", "null"] },
                        },
                    } },
                },
            },
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } },
        },
    })
}
