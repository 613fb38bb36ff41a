//! Programs that do harm, or try to: each is contained and named, and the next one runs.

#![cfg(target_os = "linux")]

use std::time::{Duration, Instant};

use recua_eval::sandbox::{self, Failure, Limits, Ran, Sandbox};

/// The child's side: [`sandbox()`] starts this test binary again with this test alone. Started by `cargo test` it has nothing to do.
#[test]
fn inside() {
    if std::env::var_os("RECUA_SANDBOX").is_some() {
        let _ = sandbox::enter();
        std::process::exit(1);
    }
}

fn helper() -> Vec<String> {
    let own = std::env::current_exe().expect("a test has a file");
    let mut helper = vec![own.to_string_lossy().into_owned()];
    helper.extend(["--exact", "sandbox::inside", "--nocapture", "--test-threads=1"].map(str::to_owned));
    helper
}

fn limits(seconds: f64) -> Limits {
    Limits { seconds, ..Limits::default() }
}

fn sandbox(seconds: f64) -> Sandbox {
    Sandbox::new(limits(seconds), false, Some(helper())).unwrap_or_else(|error| panic!("{error}"))
}

fn run(sandbox: &Sandbox, program: &str) -> Ran {
    sandbox.run(program).unwrap_or_else(|error| panic!("{error}"))
}

fn failure(sandbox: &Sandbox, program: &str) -> Failure {
    let ran = run(sandbox, program);
    ran.failure.unwrap_or_else(|| panic!("it passed: {program}; {}", ran.output))
}

const GOOD: &str = "def add(a, b):\n    return a + b\n\nassert add(2, 3) == 5\n";

#[test]
fn programs_pass_and_fail_by_name() {
    let sandbox = sandbox(10.0);
    println!("walls: {}", sandbox.walls());
    assert!(sandbox.walls().seccomp);
    let ran = run(
        &sandbox,
        "import math, re, json, collections, itertools, heapq, threading, random, datetime\nprint('said')\nassert math.sqrt(16) == 4\n",
    );
    assert_eq!((ran.failure, ran.output.contains("said\n")), (None, true));
    assert_eq!(run(&sandbox, GOOD).failure, None);
    assert_eq!(run(&sandbox, "import threading\nt = threading.Thread(target=print)\nt.start(); t.join()").failure, None);
    assert_eq!(run(&sandbox, "open('x', 'w').write('1')\nassert open('x').read() == '1'").failure, None, "its own folder");
    assert_eq!(run(&sandbox, "import sys\nassert sys.stdin.read() == ''").failure, None);
    assert_eq!(failure(&sandbox, "assert 1 == 2, 'no'"), Failure::WrongAnswer("no".into()));
    assert!(matches!(failure(&sandbox, "def f(:\n"), Failure::Syntax(_)));
    assert_eq!(failure(&sandbox, "1 / 0"), Failure::Exception("ZeroDivisionError: division by zero".into()));
    assert_eq!(
        failure(&sandbox, "def f(): f()\nf()"),
        Failure::Exception("RecursionError: maximum recursion depth exceeded".into())
    );
    assert_eq!(failure(&sandbox, "raise FileNotFoundError(2, 'x')"), Failure::Exception("FileNotFoundError: [Errno 2] x".into()));
    assert!(matches!(failure(&sandbox, "class E(Exception):\n  def __str__(self): 1/0\nraise E()"), Failure::Exception(_)));
    // A SyntaxError, before Python 3.11.4 a ValueError.
    assert!(failure(&sandbox, "\0").to_string().contains("source code string cannot contain null bytes"));
}

#[test]
fn who_leaves_early_has_not_passed() {
    let sandbox = sandbox(10.0);
    for (program, code) in [
        ("import sys\nsys.exit(0)\nassert False", 0),
        ("exit(0)", 0),
        ("import os\nos._exit(0)\nassert False", 0),
        ("import os\nos._exit(3)", 3),
        ("raise SystemExit(7)", 7),
        // Who closes all it has cannot say that it came to the end.
        ("import os\nos.closerange(0, 64)\nos._exit(0)", 0),
    ] {
        // `exit` is of the module `site`, which -S leaves out.
        let got = failure(&sandbox, program);
        assert!(
            got == Failure::ExitBeforeTheEnd(code) || program.starts_with("exit") && matches!(got, Failure::Exception(_)),
            "{program}: {got:?}"
        );
    }
    assert_eq!(run(&sandbox, "import sys\nsys.stdout.close()\nsys.stderr.close()").failure, None, "closed output is no failure");
    assert_eq!(run(&sandbox, "import os\nos.close(1)\nos.close(2)").failure, None);
    // What it prints does not make it pass.
    assert!(matches!(
        failure(
            &sandbox,
            "import os\nfor fd in range(3, 9):\n  try: os.write(fd, b'passed')\n  except OSError: pass\nos._exit(0)"
        ),
        Failure::ExitBeforeTheEnd(0)
    ));
}

#[test]
fn what_takes_too_much_is_stopped() {
    let sandbox = sandbox(3.0);
    let start = Instant::now();
    assert_eq!(failure(&sandbox, "while True: pass"), Failure::Timeout);
    assert_eq!(failure(&sandbox, "import time\ntime.sleep(100)"), Failure::Timeout);
    assert_eq!(
        failure(&sandbox, "import os, time\nos.close(1); os.close(2); os.closerange(3, 64)\ntime.sleep(100)"),
        Failure::Timeout
    );
    assert_eq!(
        failure(
            &sandbox,
            "import signal\nfor s in range(1, 65):\n  try: signal.signal(s, signal.SIG_IGN)\n  except (OSError, ValueError): pass\nwhile True: pass"
        ),
        Failure::Timeout
    );
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    // A gigabyte in pieces, a thousand threads: on a busy machine these take longer than a loop may.
    let sandbox = self::sandbox(30.0);
    assert_eq!(failure(&sandbox, "x = bytearray(10 << 30)"), Failure::Memory);
    assert_eq!(failure(&sandbox, "x = []\nwhile True: x.append(bytearray(1 << 20))"), Failure::Memory);
    let ran = run(&sandbox, "for _ in range(1 << 14): print('x' * (1 << 16))");
    assert_eq!(ran.failure, Some(Failure::Output));
    assert!(ran.output.len() <= 64 << 10);
    assert_eq!(failure(&sandbox, "f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 20))"), Failure::FileSize);
    assert_eq!(
        failure(
            &sandbox,
            "import threading, time\nfor _ in range(1000): threading.Thread(target=time.sleep, args=(100,)).start()"
        ),
        Failure::Threads
    );
    if sandbox.walls().namespaces {
        let files = "for i in range(1000):\n  with open(str(i), 'wb') as f: f.write(bytes(15 << 20))";
        assert_eq!(failure(&sandbox, files), Failure::FileSize, "many files");
    }
    assert_eq!(run(&sandbox, GOOD).failure, None);
}

#[test]
fn processes_are_not_started() {
    let sandbox = sandbox(10.0);
    for program in [
        "import os\nwhile True: os.fork()",
        "import subprocess\nsubprocess.run(['/bin/sh', '-c', ':(){ :|:& };:'])",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
        "import os\nos.setsid()",
        "import os\nos.kill(1, 9)",
        "import os\nos.kill(os.getppid(), 9)",
        "import os\nos.killpg(os.getpgid(0), 9)",
    ] {
        assert!(matches!(failure(&sandbox, program), Failure::Forbidden(_)), "{program}: {:?}", failure(&sandbox, program));
    }
    // `system` says no by its code.
    assert!(matches!(failure(&sandbox, "import os\nassert os.system('true') == 0"), Failure::WrongAnswer(_)));
    // Becoming another program is not coming to the end.
    assert!(run(&sandbox, "import os\nos.execv('/bin/true', ['true'])").failure.is_some());
    assert_eq!(run(&sandbox, GOOD).failure, None);
}

#[test]
fn nothing_outside_is_read_or_written() {
    let sandbox = sandbox(10.0);
    let outside = tempfile::tempdir().expect("a temporary folder");
    let secret = outside.path().join("id_rsa");
    std::fs::write(&secret, "the secret").expect("a file");
    let readable: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(outside.path(), readable.clone()).expect("rights");
    std::fs::set_permissions(&secret, readable).expect("rights");
    let (secret, outside) = (secret.display().to_string(), outside.path().display().to_string());
    for program in [
        format!("print(open({secret:?}).read())"),
        format!("open({outside:?} + '/new', 'w')"),
        format!("import os\nos.remove({secret:?})"),
        format!("import os\nprint(os.listdir({outside:?}))"),
        format!("import os\nos.chmod({secret:?}, 0)"),
        "open('/usr/lib/recua-was-here', 'w')".into(),
        "import os\nopen(os.__file__, 'a')".into(),
        "import os\nprint(os.listdir(os.path.expanduser('~root/.ssh')))".into(),
        "print(open('/etc/passwd').read())".into(),
        "print(open('/proc/1/environ').read())".into(),
        "import os\nprint(open(f'/proc/{os.getppid()}/environ').read())".into(),
        "print(open('/proc/self/environ').read())".into(),
        "open('/dev/shm/x', 'w')".into(),
        "import os\nos.symlink('/etc', 'e')\nprint(os.listdir('e'))".into(),
        "import os\nos.chroot('.')".into(),
    ] {
        let ran = run(&sandbox, &program);
        let by_name =
            |failure: &Failure| matches!(failure, Failure::Forbidden(_)) || failure.to_string().contains("No such file");
        assert!(ran.failure.as_ref().is_some_and(by_name), "{program}: {:?} {}", ran.failure, ran.output);
        assert!(!ran.output.contains("the secret") && !ran.output.contains("root:"), "{program}: {}", ran.output);
    }
    assert_eq!(std::fs::read_to_string(&secret).expect("it is still there"), "the secret");
    assert!(!std::path::Path::new(&outside).join("new").exists());
    // The parent's variables stay with it (cargo sets this one).
    assert_eq!(run(&sandbox, "import os\nassert 'CARGO_MANIFEST_DIR' not in os.environ and 'RECUA_SANDBOX' not in os.environ\nassert os.environ['HOME'] == '/nonexistent'").failure, None);
}

#[test]
fn there_is_no_network() {
    let sandbox = sandbox(10.0);
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("an address").port();
    for program in [
        format!("import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"),
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))".into(),
        "import socket\nsocket.socket(socket.AF_UNIX)".into(),
    ] {
        assert!(matches!(failure(&sandbox, &program), Failure::Forbidden(_)), "{program}: {:?}", failure(&sandbox, &program));
    }
    server.set_nonblocking(true).expect("a socket");
    assert!(server.accept().is_err(), "nobody came");
}

/// Many at once, bad and good mixed: none disturbs another, and no process is left.
#[test]
fn the_run_goes_on() {
    let sandbox = sandbox(20.0);
    let programs: Vec<String> = (0..24)
        .map(|at| match at % 4 {
            0 => "import threading, time\nfor _ in range(20): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n".to_owned(),
            1 => "import os\nwhile True: os.fork()".into(),
            2 => format!("assert {at} == {at}"),
            _ => "x = bytearray(10 << 30)".into(),
        })
        .collect();
    let failures: Vec<Option<Failure>> = std::thread::scope(|scope| {
        let workers: Vec<_> = programs
            .chunks(6)
            .map(|some| scope.spawn(|| some.iter().map(|program| run(&sandbox, program).failure).collect::<Vec<_>>()))
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect()
    });
    for (at, got) in failures.into_iter().enumerate() {
        match at % 4 {
            0 | 2 => assert_eq!(got, None, "program {at}"),
            1 => assert!(matches!(got, Some(Failure::Forbidden(_))), "{got:?}"),
            _ => assert_eq!(got, Some(Failure::Memory)),
        }
    }
}

#[test]
fn without_walls_there_are_limits_still() {
    let sandbox = Sandbox::new(limits(3.0), true, Some(helper())).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(sandbox.walls().to_string(), "none");
    assert_eq!(run(&sandbox, GOOD).failure, None);
    assert_eq!(failure(&sandbox, "while True: pass"), Failure::Timeout);
    assert_eq!(failure(&sandbox, "x = bytearray(10 << 30)"), Failure::Memory);
    assert_eq!(failure(&sandbox, "import os\nos._exit(0)"), Failure::ExitBeforeTheEnd(0));
}

#[test]
fn a_helper_that_builds_no_walls_is_refused() {
    let error = Sandbox::new(limits(3.0), false, Some(vec!["/bin/cat".into()])).unwrap_err().to_string();
    assert!(error.starts_with("--execute-code: ") && error.contains("--unsandboxed"), "{error}");
}

/// The authors' own solutions of HumanEval and MBPP pass their tests behind the walls; HumanEval's without their bodies do not.
#[test]
fn published_solutions_pass() {
    use recua_eval::data::{self, Value};
    let read = |variable: &str, name: &str| -> Vec<Value> {
        let Some(root) = std::env::var_os(variable) else {
            println!("skipped: {variable} is not set, {name} is not run");
            return Vec::new();
        };
        data::read(&std::path::Path::new(&root).join(name), &data::Options::default()).unwrap_or_else(|error| panic!("{error}"))
    };
    let sandbox = sandbox(30.0);
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    for row in read("RECUA_DATA", "eval/humaneval/HumanEval.jsonl.gz") {
        let program =
            |body: &str| format!("{}{body}\n{}\ncheck({})", text(&row, "prompt"), text(&row, "test"), text(&row, "entry_point"));
        assert_eq!(run(&sandbox, &program(&text(&row, "canonical_solution"))).failure, None, "{}", row["task_id"]);
        assert!(run(&sandbox, &program("    pass\n")).failure.is_some(), "{}", row["task_id"]);
    }
    for row in read("RECUA_EVAL_DATA", "mbpp/mbpp_sample.jsonl") {
        let tests: Vec<&str> = row["test_list"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let program = format!("{}\n{}\n{}", text(&row, "code"), text(&row, "test_setup_code"), tests.join("\n"));
        assert_eq!(run(&sandbox, &program).failure, None, "{}", row["task_id"]);
    }
}

/// The questions of `rows`, and what came of the texts that are given as each one's answer.
fn judged(rows: &str, answers: Vec<Vec<String>>, seconds: f64) -> Vec<recua_eval::Outcome> {
    use recua_eval::{Answer, Asking, Protocol, Verdicts, find_tasks, judge, prepare};
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("humaneval")).unwrap();
    std::fs::write(dir.path().join("humaneval/test.jsonl"), rows).unwrap();
    let task = &find_tasks(&["humaneval".into()], Protocol::LmEval).unwrap()[0];
    let prepared = prepare(task, &[dir.path().to_path_buf()], &Asking::default()).unwrap();
    assert_eq!(prepared.items.len(), answers.len());
    let answers: Vec<Answer> = answers.into_iter().map(|texts| Answer { texts, ..Answer::default() }).collect();
    let mut verdicts = Verdicts::default();
    verdicts.run_programs(&prepared, &answers, &sandbox(seconds)).unwrap();
    judge(&prepared, answers, &verdicts).unwrap()
}

/// The example of openai/human-eval (`data/example_problem.jsonl`, `data/example_samples.jsonl`, MIT), of which its README says
/// `{'pass@1': 0.4999999999999999}`.
#[test]
fn the_example_of_human_eval_has_its_score() {
    let problem = r#"{"task_id": "test/0", "prompt": "def return1():\n", "canonical_solution": "    return 1", "test": "def check(candidate):\n    assert candidate() == 1", "entry_point": "return1"}"#;
    let samples = [
        "    import subprocess\n    subprocess.check_output('rm -rf tmp')",
        "    import time\n    time.sleep(10)\n    return 1",
        "    return input('enter a number')",
        "    return 1",
        "  return 1",
        "\treturn 1",
    ];
    let outcome = &judged(problem, vec![samples.map(String::from).to_vec()], 4.0)[0];
    assert!((outcome.metrics["pass@1"] - 0.4999999999999999).abs() < 1e-15, "{:?}", outcome.metrics);
    assert_eq!(outcome.metrics.len(), 1, "six texts say nothing of pass@10: {:?}", outcome.metrics);
    let passed: Vec<bool> = outcome.failures.iter().map(String::is_empty).collect();
    assert_eq!(passed, [false, false, false, true, true, true], "{:?}", outcome.failures);
}

/// Of twelve texts of each of seven published problems 0 to 12 are the authors' solutions: pass@k is the share of sets of `k` texts of which
/// one passes, counted one by one.
#[test]
fn scores_of_published_problems_are_shares_of_sets() {
    let Some(root) = std::env::var_os("RECUA_DATA") else {
        println!("skipped: RECUA_DATA is not set");
        return;
    };
    let path = std::path::Path::new(&root).join("eval/humaneval/HumanEval.jsonl.gz");
    let rows = recua_eval::data::read(&path, &recua_eval::data::Options::default()).unwrap_or_else(|error| panic!("{error}"));
    let rows = &rows[..7];
    let (n, right) = (12usize, |at: usize| 2 * at);
    let texts = |(at, row): (usize, &recua_eval::data::Value)| -> Vec<String> {
        // The right ones are spread over the list.
        let solution = row["canonical_solution"].as_str().unwrap_or_default();
        (0..n).map(|i| if i * 5 % n < right(at) { solution.into() } else { "    pass\n".into() }).collect()
    };
    let lines: Vec<String> = rows.iter().map(ToString::to_string).collect();
    let outcomes = judged(&lines.join("\n"), rows.iter().enumerate().map(texts).collect(), 30.0);
    for (at, outcome) in outcomes.iter().enumerate() {
        let passed: Vec<bool> = outcome.failures.iter().map(String::is_empty).collect();
        assert_eq!(passed.iter().filter(|passed| **passed).count(), right(at), "{:?}", outcome.failures);
        for k in [1u32, 10] {
            let sets: Vec<u32> = (0..1u32 << n).filter(|set| set.count_ones() == k).collect();
            let good = sets.iter().filter(|set| (0..n).any(|i| **set >> i & 1 == 1 && passed[i])).count();
            let exact = good as f64 / sets.len() as f64;
            assert!((outcome.metrics[&format!("pass@{k}")] - exact).abs() < 1e-12, "{at}, {k}: {:?} {exact}", outcome.metrics);
        }
    }
}
