//! What there is, as OpenAPI 3.1.

use serde_json::{Map, Value, json};

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
    let content = any(&[string(""), list(json!({ "type": "object" }))]);
    let role = json!({ "enum": ["system", "developer", "user", "assistant", "tool"] });
    list(json!({ "type": "object", "required": ["role"], "properties": { "role": role, "content": content } }))
}

fn schema(fields: Vec<(&'static str, Value)>, required: &[&str]) -> Value {
    let properties: Map<String, Value> = fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
    json!({ "type": "object", "properties": properties, "required": required })
}

fn operation(summary: &str, body: Option<Value>) -> Value {
    let error = |about: &str| {
        let content = json!({ "application/json": { "schema": { "$ref": "#/components/schemas/Error" } } });
        json!({ "description": about, "content": content })
    };
    let mut operation = json!({
        "summary": summary,
        "responses": {
            "200": { "description": "What was asked for" },
            "400": error("The request is wrong, or asks for what is not supported; `param` names the field"),
            "401": error("No API key, or an unknown one"),
            "404": error("No such model"),
            "413": error("The body is too large"),
            "429": error("The queue is full"),
            "503": error("Not ready yet, or shutting down"),
        },
    });
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
            ("tool_choice", json!({ "enum": ["auto", "none"] })),
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
            ("tool_choice", json!({ "enum": ["auto", "none"] })),
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
    let post = |summary: &str, body: Value| json!({ "post": operation(summary, Some(body)) });
    let get = |summary: &str| json!({ "get": operation(summary, None) });
    let count_tokens = schema(anthropic.clone(), &["messages"]);
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
            "/v1/completions": post("Texts that go on from prompts; scores of given tokens", schema(completions, &["prompt"])),
            "/v1/chat/completions": post("The answer to a conversation", schema(chat, &["messages"])),
            "/v1/responses": post("The answer to a conversation, stateless", schema(responses, &["input"])),
            "/v1/messages": post("The answer to a conversation, in Anthropic's form", schema(anthropic, &["messages", "max_tokens"])),
            "/v1/messages/count_tokens": post("How many tokens a conversation has", count_tokens),
            "/v1/embeddings": post("Mean of the last hidden states, of length 1", schema(embeddings, &["input"])),
            "/v1/models": get("The models"),
            "/tokenize": post("A text as token ids", schema(tokenize, &[])),
            "/detokenize": post("Token ids as text", schema(vec![("model", string("")), ("tokens", ids())], &["tokens"])),
            "/tokenizer_info": get("The tokenizer"),
            "/health": get("200 once all models answer; 503 before, and while the server shuts down"),
            "/metrics": get("Counters and times, for Prometheus"),
        },
        "components": {
            "schemas": {
                "Error": {
                    "type": "object",
                    "properties": { "error": {
                        "type": "object",
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
