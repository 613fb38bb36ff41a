//! Files and folders appear whole or not at all, and what killed writers left goes.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use recua_core::Error;
use recua_core::files::{Aside, Atomic, Folder, check_free, parse_aside, remove_folder, write_atomic};

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let (file, folder) = (dir.path().join("a.json"), dir.path().join("sub/model"));
    write_atomic(&file, b"one").unwrap();

    // Nothing is seen before the end, and nothing is left of what does not come to it.
    let mut half = Atomic::create(&file).unwrap();
    half.write_all(b"two").unwrap();
    let sealed = half.seal().unwrap();
    assert_eq!((fs::read(&file).unwrap(), sealed.path()), (b"one".to_vec(), file.as_path()));
    drop(sealed);
    drop(Atomic::create(&file).unwrap());
    assert_eq!((names(dir.path()), fs::read(&file).unwrap()), (vec!["a.json".into()], b"one".to_vec()));

    let making = |text: &str| {
        let making = Folder::create(&folder).unwrap();
        fs::create_dir(making.path().join("below")).unwrap();
        fs::write(making.path().join("below/x"), text).unwrap();
        making
    };
    let making_one = making("1");
    assert!(!folder.exists());
    drop(making_one);
    assert!(names(folder.parent().unwrap()).is_empty());
    making("1").commit().unwrap();
    // What is there is replaced only where the caller says so; an empty folder makes way.
    let error = making("2").commit().unwrap_err();
    assert!(matches!(&error, Error::BadValue { problem, .. } if problem.contains("is not empty")), "{error}");
    assert_eq!(fs::read(folder.join("below/x")).unwrap(), b"1");
    making("2").replace().unwrap();
    assert_eq!(fs::read(folder.join("below/x")).unwrap(), b"2");
    assert_eq!(names(folder.parent().unwrap()), ["model"]);
    remove_folder(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    check_free(&folder).unwrap();
    making("3").commit().unwrap();
    assert_eq!(names(folder.parent().unwrap()), ["model"]);

    // A folder is no file, and neither is a device.
    for path in [&folder, Path::new("/dev/null")] {
        assert!(matches!(write_atomic(path, b"x"), Err(Error::BadValue { .. })), "{}", path.display());
    }
    for path in ["", "/", ".."] {
        assert!(write_atomic(Path::new(path), b"x").is_err() && Folder::create(Path::new(path)).is_err(), "{path:?}");
    }
}

#[test]
fn names_that_stand_beside() {
    for (entry, of) in [
        ("a.tmp-1-2", Some(("a", Aside::Temporary))),
        ("step-3.tmp-77", Some(("step-3", Aside::Temporary))),
        ("x.old-4-0", Some(("x", Aside::Old))),
        (".out.tmp-9", Some((".out", Aside::Temporary))),
        ("b.tmp-1-2.tmp-3-4", Some(("b.tmp-1-2", Aside::Temporary))),
        ("a.tmp", None),
        ("a.tmp-", None),
        ("a.tmp-x", None),
        ("a.tmp-1-", None),
        ("a.old-1-b", None),
        (".tmp-1-2", None),
        ("a.tmp-1.txt", None),
    ] {
        assert_eq!(parse_aside(entry), of, "{entry}");
    }
}

#[test]
fn leftovers_go_with_the_next_writer() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("a.tmp-1-0"), "half").unwrap();
    fs::write(at("other.tmp-1-0"), "half").unwrap();
    fs::write(at("a.tmp-notes"), "mine").unwrap();
    for folder in ["m.tmp-5-1", ".m.tmp-5"] {
        fs::create_dir_all(at(folder).join("below")).unwrap();
    }
    // Its writer lives.
    let held = File::create(at("a.tmp-2-0")).unwrap();
    held.lock().unwrap();

    write_atomic(&at("a"), b"whole").unwrap();
    Folder::create(&at("m")).unwrap().commit().unwrap();
    assert_eq!(names(dir.path()), ["a", "a.tmp-2-0", "a.tmp-notes", "m", "other.tmp-1-0"]);
    drop(held);
    write_atomic(&at("a"), b"whole").unwrap();
    assert_eq!(names(dir.path()), ["a", "a.tmp-notes", "m", "other.tmp-1-0"]);

    // Killed between the two renames of a replacement: the old one comes back. After them: it goes.
    fs::rename(at("m"), at("m.old-5-2")).unwrap();
    drop(Folder::create(&at("m")).unwrap());
    fs::create_dir(at("m.old-5-3")).unwrap();
    drop(Folder::create(&at("m")).unwrap());
    assert_eq!(names(dir.path()), ["a", "a.tmp-notes", "m", "other.tmp-1-0"]);
}

/// A writer in another process: what it writes stays while it lives, and goes once it was killed.
#[test]
fn a_killed_process() {
    const VARIABLE: &str = "RECUA_TEST_WRITES_INTO";
    if let Some(dir) = std::env::var_os(VARIABLE) {
        let (_file, _folder) = (Atomic::create(&Path::new(&dir).join("f")), Folder::create(&Path::new(&dir).join("d")));
        println!("\nready");
        std::thread::sleep(std::time::Duration::from_secs(600));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["files::a_killed_process", "--exact", "--nocapture"])
        .env(VARIABLE, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "ready"));
    let write = || {
        write_atomic(&dir.path().join("f"), b"x").unwrap();
        Folder::create(&dir.path().join("d")).unwrap().replace().unwrap();
        names(dir.path()).len()
    };
    assert_eq!(write(), 4);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(write(), 2);
}
