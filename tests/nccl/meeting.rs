//! The meeting of the ranks: who does not come, who should not, who goes.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use recua::parallel::nccl::NcclOptions;

use super::fake::{Fake, FakeNetwork};
use super::{USUAL, free_port, start};

fn within(seconds: u64) -> NcclOptions {
    NcclOptions { timeout: Duration::from_secs(seconds), ..USUAL }
}

fn fake() -> Arc<Fake> {
    Fake::new(Arc::new(FakeNetwork::default()))
}

/// Once somebody listens there.
fn connect(port: u16) -> TcpStream {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return stream,
            Err(e) if Instant::now() > until => panic!("{e}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

#[test]
fn ranks_that_do_not_come_are_named() {
    let port = free_port();
    let error = start(&fake(), 0, 4, port, within(1)).err().unwrap().to_string();
    assert!(error.contains(&format!("did not come to 127.0.0.1:{port} within 1 s: rank 1, 2, 3")), "{error}");
    assert!(error.contains("MASTER_ADDR and MASTER_PORT"), "{error}");
    let error = start(&fake(), 2, 4, port, within(1)).err().unwrap().to_string();
    assert!(error.contains(&format!("rank 2 was not let in at 127.0.0.1:{port} within 1 s")), "{error}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = start(&fake(), 0, 2, port, within(5)).err().unwrap().to_string();
    assert!(error.contains(&format!("rank 0 cannot listen on 127.0.0.1:{port}")), "{error}");
}

#[test]
fn strangers_are_let_go_and_ranks_of_another_job_refused() {
    let (port, network) = (free_port(), Arc::new(FakeNetwork::default()));
    std::thread::scope(|scope| {
        let one = |rank: usize| {
            let network = network.clone();
            move || start(&Fake::new(network), rank, 2, port, within(30)).unwrap().finish().unwrap()
        };
        let first = scope.spawn(one(0));
        // Something that looks for web servers, and something that says nothing.
        let mut stranger = connect(port);
        stranger.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let _silent = connect(port);
        let said = |hello: String| {
            let mut to = connect(port);
            to.write_all(format!("{hello}\n").as_bytes()).unwrap();
            let mut line = String::new();
            BufReader::new(to).read_line(&mut line).unwrap();
            line
        };
        let hello = |recua: &str, rank: usize, ranks: usize| {
            format!(r#"{{"is":"hello","recua":"{recua}","rank":{rank},"ranks":{ranks}}}"#)
        };
        let own = env!("CARGO_PKG_VERSION");
        for (hello, why) in [
            (hello("0.0.1", 1, 2), format!("rank 1 is recua 0.0.1, rank 0 is {own}")),
            (hello(own, 1, 3), "rank 1 is one of 3 ranks, rank 0 one of 2".into()),
            (hello(own, 0, 2), "there is a rank 0 already".into()),
            (hello(own, 7, 2), "there is no rank 7 among 2".into()),
        ] {
            let line = said(hello);
            assert!(line.contains("refused") && line.contains(&why), "{line}");
        }
        let other = scope.spawn(one(1));
        first.join().unwrap();
        other.join().unwrap();
    });
}

#[test]
fn a_rank_whose_process_is_gone_is_named_at_once() {
    let port = free_port();
    std::thread::scope(|scope| {
        let first = scope.spawn(move || start(&fake(), 0, 2, port, within(60)).err().unwrap().to_string());
        let mut rank = connect(port);
        let own = env!("CARGO_PKG_VERSION");
        rank.write_all(format!("{{\"is\":\"hello\",\"recua\":\"{own}\",\"rank\":1,\"ranks\":2}}\n").as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(rank.try_clone().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("welcome"), "{line}");
        // As the system does for a process that was killed.
        let began = Instant::now();
        drop(rank);
        let error = first.join().unwrap();
        assert!(error.contains("rank 1 is gone"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    });
}
