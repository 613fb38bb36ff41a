//! Ranks as processes of our own: each is a shell here.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use recua::parallel::processes::Processes;

const GRACE: Duration = Duration::from_secs(1);

fn shells(ranks: usize, script: &str, arguments: &[&Path]) -> Processes {
    let mut all: Vec<std::ffi::OsString> = vec!["-c".into(), script.into(), "shell".into()];
    all.extend(arguments.iter().map(|path| path.as_os_str().to_owned()));
    Processes { program: "/bin/sh".into(), arguments: all, ranks, reads: false, grace: GRACE }
}

fn run(ranks: usize, script: &str) -> i32 {
    shells(ranks, script, &[]).run(&AtomicBool::new(false), libc::SIGUSR1).unwrap()
}

#[test]
fn each_knows_who_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT" > "$1/$RANK""#;
    let code = shells(3, script, &[dir.path()]).run(&AtomicBool::new(false), libc::SIGUSR1).unwrap();
    assert_eq!(code, 0);
    let said: Vec<String> = (0..3).map(|rank| std::fs::read_to_string(dir.path().join(rank.to_string())).unwrap()).collect();
    let port: u16 = said[0].trim().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(port > 0);
    for (rank, said) in said.iter().enumerate() {
        assert_eq!(said.trim(), format!("{rank} {rank} 3 3 127.0.0.1 {port}"));
    }
}

#[test]
fn one_that_fails_ends_the_others() {
    let began = Instant::now();
    assert_eq!(run(3, "[ $RANK = 1 ] && exit 7; exec sleep 60"), 7);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    // By a signal, as a shell says it.
    assert_eq!(run(2, "[ $RANK = 1 ] && kill -9 $$; exec sleep 60"), 137);
    // The first to fail counts, not those that end because of it.
    assert_eq!(run(2, "[ $RANK = 0 ] && exit 5; sleep 0.5; exit 9"), 5);
    // One that is done is no failure.
    assert_eq!(run(2, "[ $RANK = 0 ] && exit 0; sleep 0.3; exit 0"), 0);
}

#[test]
fn a_signal_is_handed_on() {
    let stop = AtomicBool::new(false);
    let dir = tempfile::tempdir().unwrap();
    let script = r#"trap 'echo told > "$1/$RANK"; exit 0' USR1; : > "$1/ready$RANK"; while :; do sleep 0.05; done"#;
    let code = std::thread::scope(|scope| {
        let run = scope.spawn(|| shells(2, script, &[dir.path()]).run(&stop, libc::SIGUSR1).unwrap());
        let until = Instant::now() + Duration::from_secs(20);
        while !(0..2).all(|rank| dir.path().join(format!("ready{rank}")).exists()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
        run.join().unwrap()
    });
    assert_eq!(code, 0);
    assert!((0..2).all(|rank| dir.path().join(rank.to_string()).exists()));
}

#[test]
fn what_cannot_be_started_is_named() {
    let none = Processes { program: "/nowhere/recua".into(), arguments: Vec::new(), ranks: 2, reads: false, grace: GRACE };
    let text = none.run(&AtomicBool::new(false), libc::SIGUSR1).unwrap_err().to_string();
    assert!(text.contains("/nowhere/recua"), "{text}");
}
