//! `recua eval run --url` scores as the model in process does.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use recua::eval::{Asking, LocalModel, Model, Prepared, Protocol, RemoteModel, answer, find_tasks, prepare};
use recua::generate::{EngineConfig, TextModel};

use super::{Up, config, source};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/eval/tests/golden/lm_eval/made").join(name)
}

fn questions() -> Vec<Prepared> {
    let asking = Asking { shots: Some(1), limit: Some(3), ..Asking::default() };
    let tasks = ["boolq", "openbookqa", "crows_pairs", "winogrande", "nq_open"].map(String::from);
    let tasks = find_tasks(&tasks, Protocol::LmEval).unwrap();
    tasks.iter().map(|task| prepare(task, &[golden("published")], &asking).unwrap()).collect()
}

#[test]
fn a_server_gives_the_scores_of_its_model() {
    for name in ["mha", "gqa"] {
        let up = Up::new(vec![source(name, golden(name))], config());
        let mut remote = RemoteModel::open(&format!("http://{}", up.client.address), None, None).unwrap();
        let model = TextModel::open(&golden(name), None).unwrap();
        let mut local = LocalModel::load(
            model,
            &"flex".parse::<recua::backend::BackendName>().unwrap().open().unwrap(),
            EngineConfig::default(),
        )
        .unwrap();
        assert_eq!(remote.max_len(), local.max_len());
        let mut go_on = |_: &recua::eval::Progress| ControlFlow::Continue(());
        let theirs = answer(&questions(), &mut remote, None, &mut go_on).unwrap().unwrap();
        let ours = answer(&questions(), &mut local, None, &mut go_on).unwrap().unwrap();
        for (ours, theirs) in ours.iter().flatten().zip(theirs.iter().flatten()) {
            // Numbers of JSON are printed to the bit; their sums are taken in the same order.
            assert_eq!(ours.loglikelihoods, theirs.loglikelihoods, "{name}");
            assert_eq!(ours.is_greedy, theirs.is_greedy, "{name}");
            // A server decodes a text as what goes on from its prompt.
            let trimmed = |texts: &[String]| texts.iter().map(|text| text.trim().to_string()).collect::<Vec<_>>();
            assert_eq!(trimmed(&ours.texts), trimmed(&theirs.texts), "{name}");
        }
    }
}

#[test]
fn a_server_that_is_not_there_or_cannot_score_is_refused_by_name() {
    let said = |url: &str| RemoteModel::open(url, None, None).err().unwrap().to_string();
    assert!(said("http://127.0.0.1:9").contains("127.0.0.1:9"), "{}", said("http://127.0.0.1:9"));
    assert!(said("https://127.0.0.1").contains("https is not spoken here, http only"));
    // One that speaks, but gives no log-probabilities of a prompt.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = half_a_server(stream);
        }
    });
    let said = said(&format!("http://{address}"));
    assert!(said.contains(&address.to_string()) && said.contains("`echo` with `logprobs`"), "{said}");
}

fn half_a_server(mut stream: std::net::TcpStream) -> std::io::Result<()> {
    use std::io::{BufRead, BufReader, Read, Write};
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut line, mut first, mut length) = (String::new(), String::new(), 0);
    while reader.read_line(&mut line)? > 2 {
        if first.is_empty() {
            first.clone_from(&line);
        }
        if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
            length = n.trim().parse().unwrap_or(0);
        }
        line.clear();
    }
    reader.read_exact(&mut vec![0; length])?;
    let body = match first.split(' ').nth(1).unwrap_or("") {
        "/v1/models" => r#"{"data": [{"id": "half", "max_model_len": 64}]}"#,
        "/tokenize" => r#"{"tokens": [5, 6, 7]}"#,
        _ => r#"{"choices": [{"text": "x", "logprobs": null}]}"#,
    };
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}
