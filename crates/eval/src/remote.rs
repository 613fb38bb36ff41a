//! A model behind a server that speaks OpenAI's completions: it must give the log-probabilities of a prompt (`echo` with `logprobs`), and
//! take and give token ids (`/tokenize`, as recua, vLLM and llama.cpp have it).

use std::ops::ControlFlow;
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::encode::{Encode, Pass, cut_at};
use crate::run::Model;
use crate::runner::Work;
use crate::{Answer, Ask, Error, Result};

/// Questions that are asked at once.
const AT_ONCE: usize = 8;
/// A server may think so many seconds about one request.
const PATIENCE: u64 = 600;

/// A server's model.
pub struct RemoteModel {
    server: Server,
    max_len: usize,
    /// Of sampled texts.
    pub seed: u64,
}

struct Server {
    url: String,
    model: String,
    key: Option<String>,
    prefix: Vec<u32>,
    empty: Option<u32>,
    bos_text: String,
}

impl RemoteModel {
    /// Asks a server what it is. `model`: its name there, by default the first; `key`: what it wants to be shown.
    ///
    /// # Errors
    /// [`Error::Engine`] for a server that cannot be reached, or cannot do what scoring needs.
    pub fn open(url: &str, model: Option<&str>, key: Option<String>) -> Result<Self> {
        let url = url.trim_end_matches('/').trim_end_matches("/v1").to_string();
        if url.starts_with("https://") {
            let problem = format!("{url}: https is not spoken here, http only");
            let hint = "let a proxy on this machine speak TLS to it (`caddy reverse-proxy --from :8081 --to https://HOST --change-host-header`), \
                        and give --url http://127.0.0.1:8081";
            return Err(Error::bad_value("--url", problem, hint));
        }
        if !url.starts_with("http://") {
            return Err(Error::bad_value(
                "--url",
                format!("expected http://..., got {url}"),
                "give the server's address with http:// before it",
            ));
        }
        let mut server = Server { url, model: String::new(), key, prefix: Vec::new(), empty: None, bos_text: String::new() };
        let models = server.get("/v1/models")?;
        let named = |about: &&Value| model.is_none_or(|model| about["id"] == model);
        let Some(about) = models["data"].as_array().into_iter().flatten().find(named) else {
            let problem = format!("it has no model {}", model.unwrap_or("at all"));
            return Err(server.bad(problem, "`/v1/models` of the server lists its models"));
        };
        server.model = about["id"].as_str().unwrap_or_default().into();
        let max_len = ["max_model_len", "context_length", "n_ctx"].iter().find_map(|key| about[*key].as_u64());
        // What is put before a text; an empty one may be BOS though others have none.
        let (whole, own) = (server.tokenize("a b", true)?, server.tokenize("a b", false)?);
        server.prefix = whole.strip_suffix(&own[..]).unwrap_or_default().to_vec();
        if let Ok(about) = server.get("/tokenizer_info") {
            let named = ["bos_token", "eos_token"].iter().find_map(|key| about[*key].as_str());
            server.bos_text = named.unwrap_or_default().into();
        }
        if !server.bos_text.is_empty() {
            server.empty = server.tokenize(&server.bos_text.clone(), false)?.first().copied();
        }
        server.empty = server.empty.or(server.prefix.first().copied());
        if server.bos_text.is_empty() && server.empty.is_some() {
            server.bos_text = "<s>".into();
        }
        let max_len = max_len.ok_or_else(|| {
            server.bad("it does not say how much the model reads", "a server whose /v1/models has `max_model_len`")
        })?;
        // A server that cannot score a prompt is known before anything is asked.
        if whole.len() > 1 {
            server.score(&whole, 1)?;
        }
        Ok(Self { server, max_len: max_len as usize, seed: 0 })
    }
}

impl Server {
    fn bad(&self, problem: impl Into<String>, hint: &str) -> Error {
        Error::Engine { what: "server", problem: format!("{}: {}", self.url, problem.into()), hint: hint.into() }
    }

    fn call(&self, request: minreq::Request) -> Result<Value> {
        let request = match &self.key {
            Some(key) => request.with_header("Authorization", format!("Bearer {key}")),
            None => request,
        };
        let answer = request.with_timeout(PATIENCE).send();
        let answer = answer.map_err(|e| self.bad(e.to_string(), "is it there? `recua serve --model DIR` starts one"))?;
        let text = answer.as_str().map_err(|e| self.bad(e.to_string(), "the server must speak OpenAI's completions"))?;
        if answer.status_code != 200 {
            return Err(
                self.bad(format!("status {}: {text:.300}", answer.status_code), "the server must speak OpenAI's completions")
            );
        }
        serde_json::from_str(text).map_err(|e| self.bad(format!("no JSON: {e}"), "the server must speak OpenAI's completions"))
    }

    fn get(&self, path: &str) -> Result<Value> {
        self.call(minreq::get(format!("{}{path}", self.url)))
    }

    fn post(&self, path: &str, body: Value) -> Result<Value> {
        let request = minreq::post(format!("{}{path}", self.url)).with_header("Content-Type", "application/json");
        self.call(request.with_body(body.to_string()))
    }

    fn tokenize(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let answer = self.post("/tokenize", json!({"model": self.model, "prompt": text, "add_special_tokens": special}))?;
        let tokens =
            answer["tokens"].as_array().into_iter().flatten().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
        let tokens: Option<Vec<u32>> = tokens.collect();
        tokens
            .filter(|_| answer["tokens"].is_array())
            .ok_or_else(|| self.bad("/tokenize gives no token ids", "take a server that has it, as recua, vLLM and llama.cpp"))
    }

    /// Sum of the log-probabilities from `from` on, and whether each token is the likeliest.
    fn score(&self, tokens: &[u32], from: usize) -> Result<(f64, bool)> {
        let body =
            json!({"model": self.model, "prompt": tokens, "max_tokens": 0, "echo": true, "logprobs": 1, "temperature": 0.0});
        let answer = self.post("/v1/completions", body)?;
        let of = &answer["choices"][0]["logprobs"];
        let (own, top) = (of["token_logprobs"].as_array(), of["top_logprobs"].as_array());
        let (Some(own), Some(top)) = (own.filter(|own| own.len() >= tokens.len()), top) else {
            let problem = "it does not give the log-probabilities of a prompt (`echo` with `logprobs` of /v1/completions)";
            return Err(
                self.bad(problem, "score with a server that does, as recua and vLLM, or give the model itself with --model")
            );
        };
        let (mut sum, mut greedy) = (0.0, true);
        for (at, own) in own.iter().enumerate().take(tokens.len()).skip(from) {
            let Some(ll) = own.as_f64() else {
                return Err(
                    self.bad(format!("token {at} of a prompt has no log-probability"), "the model gives no numbers there")
                );
            };
            let largest = top.get(at).and_then(Value::as_object).into_iter().flatten().filter_map(|(_, ll)| ll.as_f64());
            greedy &= ll >= largest.fold(f64::NEG_INFINITY, f64::max);
            // A float32 comes back from its decimal form.
            sum += f64::from(ll as f32);
        }
        Ok((sum, greedy))
    }

    fn answer(&self, work: &Work, seed: u64) -> Result<Answer> {
        let mut answer = Answer::default();
        for pass in &work.passes {
            match (pass, &work.ask) {
                (Pass::Score { tokens, from }, _) => {
                    let (ll, greedy) = self.score(tokens, *from)?;
                    answer.loglikelihoods.push(ll);
                    answer.is_greedy.push(greedy);
                }
                (Pass::Generate { tokens }, Ask::Generate { until, max_new, samples, temperature, top_p, .. }) => {
                    let body = json!({
                        "model": self.model, "prompt": tokens, "max_tokens": max_new, "n": samples, "temperature": temperature,
                        "top_p": top_p, "stop": until, "seed": seed,
                    });
                    let given = self.post("/v1/completions", body)?;
                    let texts = given["choices"].as_array().into_iter().flatten().filter_map(|choice| choice["text"].as_str());
                    answer.texts = texts.map(|text| cut_at(text, until)).collect();
                    if answer.texts.len() != *samples {
                        let problem = format!("{}: expected {samples} texts, got {}", work.name, answer.texts.len());
                        return Err(self.bad(problem, "ask for fewer --samples"));
                    }
                }
                (Pass::Generate { .. }, _) => return Err(Error::internal(&work.name, "a generation of something else")),
            }
        }
        Ok(answer)
    }
}

impl Encode for Server {
    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenize(text, false)
    }

    fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    fn empty(&self) -> Option<u32> {
        self.empty
    }

    fn bos_text(&self) -> &str {
        &self.bos_text
    }
}

impl Model for RemoteModel {
    fn max_len(&self) -> usize {
        self.max_len
    }

    fn identity(&self) -> String {
        format!("{} {} {}", self.server.url, self.server.model, self.seed)
    }

    fn encode(&self) -> &dyn Encode {
        &self.server
    }

    fn answer(&mut self, works: Vec<Work>, done: &mut dyn FnMut(usize, usize, Answer) -> Result<ControlFlow<()>>) -> Result<()> {
        let (server, seed) = (&self.server, self.seed);
        let waiting = Mutex::new(works.into_iter());
        let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
        let (send, answers) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                let (send, next) = (send.clone(), &next);
                scope.spawn(move || {
                    while let Some(work) = next() {
                        let answer = server.answer(&work, seed);
                        // Nobody listens any more: the run has ended.
                        if send.send((work.id, work.tokens(), answer)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(send);
            let mut result = Ok(());
            for (id, tokens, answer) in answers {
                match answer.and_then(|answer| done(id, tokens, answer)) {
                    Ok(ControlFlow::Continue(())) => {}
                    Ok(ControlFlow::Break(())) => break,
                    Err(e) => {
                        result = Err(e);
                        break;
                    }
                }
            }
            result
        })
    }
}
