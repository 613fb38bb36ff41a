//! A small HTTP client: one request a connection, so that a connection can be dropped in the middle.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

#[derive(Clone)]
pub(super) struct Client {
    pub(super) address: SocketAddr,
    /// Sent along with each request.
    headers: Vec<String>,
}

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    #[track_caller]
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Of an answer that has to be one.
    #[track_caller]
    pub(super) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The error of one that has to be refused.
    #[track_caller]
    pub(super) fn refused(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()["error"].clone()
    }

    /// The data of the events, and their names.
    #[track_caller]
    pub(super) fn events(&self) -> Vec<(String, Value)> {
        assert_eq!(self.status, 200, "{}", self.text());
        assert!(self.header("content-type").unwrap().starts_with("text/event-stream"));
        let text = self.text();
        let mut all = Vec::new();
        let mut done = false;
        for block in text.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':')) {
            assert!(!done, "something after the end: {block}");
            let name = block.lines().find_map(|line| line.strip_prefix("event: ")).unwrap_or("").to_string();
            match block.lines().find_map(|line| line.strip_prefix("data: ")).unwrap() {
                "[DONE]" => done = true,
                data => all.push((name, serde_json::from_str(data).unwrap())),
            }
        }
        all
    }

    /// The data of OpenAI's events, which end with `[DONE]`.
    #[track_caller]
    pub(super) fn chunks(&self) -> Vec<Value> {
        assert!(self.text().ends_with("data: [DONE]\n\n"), "{}", self.text());
        self.events().into_iter().map(|(_, data)| data).collect()
    }
}

impl Client {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, headers: Vec::new() }
    }

    pub(super) fn with(&self, header: &str) -> Self {
        let mut new = self.clone();
        new.headers.push(header.into());
        new
    }

    /// Sends a request and gives its connection.
    pub(super) fn send(&self, method: &str, path: &str, body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        self.headers.iter().for_each(|header| head += &format!("{header}\r\n"));
        let _ = stream.write_all(&[head.as_bytes(), b"\r\n", body].concat()); // refused before all was sent
        stream
    }

    #[track_caller]
    pub(super) fn raw(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let mut reader = BufReader::new(self.send(method, path, body));
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("no status in {line:?}")).parse().unwrap();
        let mut headers = Vec::new();
        loop {
            line.clear();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.push((name.to_lowercase(), value.to_string()));
        }
        let mut answer = Answer { status, headers, body: Vec::new() };
        if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                line.clear();
                reader.read_line(&mut line).unwrap();
                let size = usize::from_str_radix(line.trim(), 16).unwrap();
                let mut chunk = vec![0; size + 2];
                reader.read_exact(&mut chunk).unwrap();
                if size == 0 {
                    break;
                }
                answer.body.extend(&chunk[..size]);
            }
        } else if let Some(size) = answer.header("content-length") {
            answer.body = vec![0; size.parse().unwrap()];
            if method != "HEAD" {
                reader.read_exact(&mut answer.body).unwrap();
            }
        }
        answer
    }

    #[track_caller]
    pub(super) fn get(&self, path: &str) -> Answer {
        self.raw("GET", path, b"")
    }

    #[track_caller]
    pub(super) fn post(&self, path: &str, body: &Value) -> Answer {
        self.raw("POST", path, body.to_string().as_bytes())
    }
}
