//! Files of benchmarks as published, and what is wrong with damaged ones. `golden/columns` was written by pyarrow and Hugging Face's
//! `datasets` (golden/make_data.py).

use std::io::Write;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use recua_eval::data::{self, Folder, Options, Split, Text, Value, parse};

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

fn rows(name: &str, text: &str) -> Vec<Value> {
    rows_with(name, text, &Options::default())
}

fn rows_with(name: &str, text: &str, options: &Options) -> Vec<Value> {
    parse(Path::new(name), text.into(), options).unwrap_or_else(|error| panic!("{error}"))
}

fn error(name: &str, bytes: &[u8]) -> String {
    parse(Path::new(name), bytes.into(), &Options::default()).expect_err("the file is damaged").to_string()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory is written to")
}

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("files are in a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }
    dir
}

fn open(dir: &tempfile::TempDir, options: &Options) -> Folder {
    Folder::open(dir.path(), options).unwrap_or_else(|error| panic!("{error}"))
}

fn questions(folder: &Folder, splits: &[Split]) -> Vec<String> {
    let rows = folder.load(splits).unwrap_or_else(|error| panic!("{error}")).rows;
    rows.iter().map(|row| row["q"].as_str().unwrap_or("?").to_owned()).collect()
}

#[test]
fn json_in_all_its_forms() {
    let expected = [json(r#"{"b": 1, "a": [1.5, null, true]}"#), json(r#"{"b": 2, "a": []}"#)];
    for (name, text) in [
        ("x.jsonl", "{\"b\": 1, \"a\": [1.5, null, true]}\n\n{\"b\": 2, \"a\": []}"),
        ("x.jsonl", "\u{feff}{\"b\": 1, \"a\": [1.5, null, true]}\r\n{\"b\": 2, \"a\": []}\r\n"),
        ("x.json", r#"[{"b": 1, "a": [1.5, null, true]}, {"b": 2, "a": []}]"#),
        ("x.json", "{\"b\": 1, \"a\": [1.5, null, true]}\n{\"b\": 2, \"a\": []}"),
        ("x.json", r#"{"b": [1, 2], "a": [[1.5, null, true], []]}"#),
        ("x.json", r#"{"b": {"0": 1, "1": 2}, "a": {"0": [1.5, null, true], "1": []}}"#),
        ("x.json", r#"{"version": 1, "data": [{"b": 1, "a": [1.5, null, true]}, {"b": 2, "a": []}]}"#),
        (
            "x.JSON",
            r#"{"features": [], "rows": [{"row_idx": 0, "row": {"b": 1, "a": [1.5, null, true]}}, {"row_idx": 1, "row": {"b": 2, "a": []}}]}"#,
        ),
    ] {
        let got = rows(name, text);
        assert_eq!(got, expected, "{text}");
        assert_eq!(got[0].to_string(), r#"{"b":1,"a":[1.5,null,true]}"#, "keys keep their order");
        assert_eq!(parse(Path::new(&format!("{name}.gz")), gzip(text.as_bytes()), &Options::default()).expect("gzip"), expected);
    }
    // RACE's articles: one object a file, whose lists are of one length but not all of its values are lists.
    assert_eq!(rows("high/1.txt", r#"{"answers": ["A"], "article": "x", "options": [["a", "b"]]}"#).len(), 1);
    assert_eq!(rows("x.json", "{}"), [json("{}")]);
    // 64 bits, and floats to the bit.
    assert_eq!(
        rows("x.jsonl", r#"{"a": 18446744073709551615, "b": 0.1}"#)[0].to_string(),
        r#"{"a":18446744073709551615,"b":0.1}"#
    );
}

#[test]
fn tables() {
    let text = "id,\"a \"\"b\"\"\",\r\n1,\"x\ny, z\",\n2,,é\n";
    let expected = [json(r#"{"id": "1", "a \"b\"": "x\ny, z", "": ""}"#), json(r#"{"id": "2", "a \"b\"": "", "": "é"}"#)];
    assert_eq!(rows("x.csv", text), expected);
    assert_eq!(rows("x.tsv", "a\tb\n5'\ta, \"b\" c\n"), [json(r#"{"a": "5'", "b": "a, \"b\" c"}"#)]);
    // MMLU has no header; a file that has one all the same is read alike.
    let options = Options { columns: ["q", "A", "answer"].map(str::to_owned).to_vec(), ..Options::default() };
    let expected = [json(r#"{"q": "1 +\n1?", "A": "2", "answer": "A"}"#)];
    assert_eq!(rows_with("x.csv", "\"1 +\n1?\",2,A\n", &options), expected);
    assert_eq!(rows_with("x.csv", "q,A,answer\n\"1 +\n1?\",2,A\n", &options), expected);
}

#[test]
fn plain_text() {
    let text = " \n = One = \n \n a = b = c \n = = Part = = \n x \n \n = Two = \n \n y \n";
    assert_eq!(rows("x.txt", text), [Value::Object([("text".to_owned(), text.into())].into_iter().collect())]);
    let articles = rows_with("x.raw", text, &Options { text: Text::Articles, ..Options::default() });
    let pages: Vec<&str> = articles.iter().filter_map(|row| row["page"].as_str()).collect();
    assert_eq!(pages, [&text[2..text.find(" = Two").expect("there")], &text[text.find(" = Two").expect("there")..]]);
    assert_eq!(
        rows_with("x.txt", "a\n\n b\n", &Options { text: Text::Lines, ..Options::default() })[1]["text"].as_str(),
        Some(" b")
    );
}

#[test]
fn damage_is_named_with_its_line() {
    for (name, bytes, part) in [
        ("x.jsonl", &b"{\"a\": 1}\n{\"a\": \n"[..], "x.jsonl: not a usable JSON Lines file: line 2: EOF while parsing"),
        ("x.jsonl", b"{}\n\n[1]", "line 3: expected an object, got a list"),
        ("x.jsonl", b"{\"a\": NaN}", "line 1: expected value"),
        ("x.jsonl", b"{}\n{\"a\": \"\xff\"}", "line 2: expected UTF-8, got the byte 0xff"),
        ("x.json", b"[{\"a\": 1},\n 2]", "row 2: expected an object, got a number"),
        ("x.json", b"[{\"a\": 1},\n {]", "at line 2 column 3"),
        ("x.json", b"\"a\"", "expected a list or an object, got a string"),
        ("x.json", b"{\"a\": [1, 2], \"b\": [1]}", "column `b`: expected 2 values as the first column has, got 1"),
        ("x.csv", b"a,b\n1,2\n3\n", "line 3: expected 2 columns (a, b), got 1"),
        ("x.csv", b"a,b\n1,\"2\n3,4\n", "the quoted value that ends row 1 is not closed"),
        ("x.csv", b"a,a\n1,2\n", "the column `a` stands twice"),
        ("x.pdf", b"", "its name ends in no format that can be read"),
        ("x.jsonl.gz", b"{}", "not a usable gzip file"),
    ] {
        let text = error(name, bytes);
        assert!(text.contains(part), "{name}: {text}");
    }
    let mut cut = gzip(&b"{\"a\": 1}\n".repeat(1000));
    cut.truncate(cut.len() - 9);
    assert!(error("x.jsonl.gz", &cut).contains("gzip"));
    // Lists in lists, deeper than a stack goes.
    assert!(error("x.json", "[".repeat(100_000).as_bytes()).contains("recursion limit"));
}

#[test]
fn names_say_the_split() {
    let line = |q: &str| format!("{{\"q\": \"{q}\"}}\n");
    let (a, b, c) = (line("a"), line("b"), line("c"));
    for (train, validation, test) in [
        ("train.jsonl", "val.jsonl", "test.jsonl"),
        ("hella_train.jsonl", "hella_val.jsonl", "hella_test.jsonl"),
        ("data/train-00000-of-00001.jsonl", "data/validation-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"),
        ("train/x.jsonl", "valid/x.jsonl", "test/x.jsonl"),
        ("x.train.jsonl", "ARC-Easy-Dev.jsonl", "x-test.jsonl"),
    ] {
        let dir = folder(&[(train, &a), (validation, &b), (test, &c), ("README.md", ""), ("LICENSE.txt", "x")]);
        let folder = open(&dir, &Options::default());
        assert_eq!(questions(&folder, &[Split::Validation, Split::Test]), ["b"], "{validation}");
        assert_eq!(questions(&folder, &[Split::Test]), ["c"]);
        assert_eq!(questions(&folder, &[Split::Train]), ["a"]);
        assert_eq!(folder.left_out.len(), 2, "{:?}", folder.left_out);
        assert!(folder.has(&[Split::Train]) && folder.load(&[Split::Train]).expect("rows").split == Some(Split::Train));
    }
    // MMLU has both.
    let dir = folder(&[("dev/x_dev.jsonl", &a), ("val/x_val.jsonl", &b), ("test/x_test.jsonl", &c)]);
    let mmlu = open(&dir, &Options { stem_as: Some("subject".into()), ..Options::default() });
    assert_eq!((questions(&mmlu, &[Split::Dev]), questions(&mmlu, &[Split::Validation])), (vec!["a".into()], vec!["b".into()]));
    assert_eq!(mmlu.load(&[Split::Test]).expect("rows").rows[0]["subject"].as_str(), Some("x"));
    let dir = folder(&[("train.jsonl", &a), ("x.jsonl", &b), ("dev.jsonl", &c)]);
    let error = open(&dir, &Options::default()).load(&[Split::Test]).unwrap_err().to_string();
    assert!(error.contains("no split test") && error.contains("train, dev"), "{error}");
}

#[test]
fn an_only_file_is_all_there_is() {
    for name in ["whatever.jsonl", "train_sample.jsonl", "sub/test.jsonl"] {
        let dir = folder(&[(name, "{\"q\": \"a\"}\n{\"q\": \"b\"}\n")]);
        let folder = open(&dir, &Options::default());
        for split in [Split::Train, Split::Validation, Split::Dev, Split::Test] {
            assert_eq!(questions(&folder, &[split]), ["a", "b"], "{name} for {split}");
        }
    }
    let rows = open(&folder(&[("x.jsonl", "{\"q\": \"a\"}\n")]), &Options::default()).load(&[Split::Test]).expect("rows");
    // printf '{"q": "a"}\n' | sha256sum
    assert_eq!(rows.sha256(), "f0e42c53779b191ad136d706dc3cb00945c59ee9ac8fe33a771eec3339c0177a", "as sha256sum prints it");
}

#[test]
fn files_that_are_not_the_task_s_are_left_out() {
    let dir = folder(&[
        ("HumanEval.jsonl", "{\"q\": \"a\", \"test\": \"\"}\n"),
        ("example_samples.jsonl", "{\"completion\": \"\"}\n"),
        ("notes.docx", ""),
    ]);
    let folder_ = open(&dir, &Options { need: vec!["q".into(), "test".into()], ..Options::default() });
    assert_eq!(questions(&folder_, &[Split::Test]), ["a"]);
    let reasons: Vec<&str> = folder_.left_out.iter().map(|(_, reason)| reason.as_str()).collect();
    assert_eq!(reasons, ["no format of data", "its rows have no `q`"]);
    // Without that the two files contradict each other.
    let error = open(&dir, &Options::default()).load(&[Split::Test]).unwrap_err().to_string();
    assert!(error.contains("its columns (completion) are not those of"), "{error}");
    let dir = folder(&[("algebra.jsonl", "{\"q\": \"a\"}\n"), ("geometry.jsonl", "{\"q\": \"b\"}\n")]);
    assert_eq!(questions(&open(&dir, &Options::default()), &[Split::Test]), ["a", "b"]);
    assert_eq!(questions(&open(&dir, &Options { files: vec!["Geometry".into()], ..Options::default() }), &[Split::Test]), ["b"]);
    let only = [("q".to_owned(), "a".to_owned())].into_iter().collect();
    assert_eq!(questions(&open(&dir, &Options { only, ..Options::default() }), &[Split::Test]), ["a"]);
    // WinoGrande's sizes.
    let dir = folder(&[
        ("train_xs.jsonl", "{\"q\": \"a\"}\n"),
        ("train_xl.jsonl", "{\"q\": \"a\"}\n{\"q\": \"b\"}\n"),
        ("dev.jsonl", "{\"q\": \"c\"}\n"),
    ]);
    assert_eq!(questions(&open(&dir, &Options::default()), &[Split::Train]), ["a", "b"]);
    let dir = folder(&[("x.jsonl", "{\"q\": \"a\"}\n{\"r\": 1}\n")]);
    let need = Options { need: vec!["q".into()], ..Options::default() };
    let error = open(&dir, &need).load(&[Split::Test]).unwrap_err().to_string();
    assert!(error.contains("row 2: expected the key `q`, got r"), "{error}");
    let error = Folder::open(folder(&[("a.pdf", "")]).path(), &need).unwrap_err().to_string();
    assert!(error.contains("no files of data") && error.contains("a.pdf (no format of data)"), "{error}");
}

#[test]
fn labels_in_a_file_of_their_own() {
    let dir = folder(&[("dev.jsonl", "{\"q\": \"a\"}\n{\"q\": \"b\"}\n"), ("dev-labels.lst", "1\n0\n")]);
    let rows =
        open(&dir, &Options { need: vec!["label".into()], ..Options::default() }).load(&[Split::Validation]).expect("rows").rows;
    assert_eq!(rows.iter().map(|row| row["label"].as_i64()).collect::<Vec<_>>(), [Some(1), Some(0)]);
    let dir = folder(&[("dev.jsonl", "{\"q\": \"a\"}\n"), ("dev-labels.lst", "1\n0\n")]);
    let error = open(&dir, &Options::default()).load(&[Split::Validation]).unwrap_err().to_string();
    assert!(error.contains("dev-labels.lst") && error.contains("expected 1 labels, one a row, got 2"), "{error}");
}

#[test]
fn folders_are_found_under_their_names() {
    let dir = folder(&[("ARC-Easy/x.jsonl", "{}"), ("boolq/x.jsonl", "{}")]);
    let roots = [PathBuf::from("/no/such"), dir.path().to_path_buf()];
    assert_eq!(data::find(&roots, &["arc_easy"]), Some(dir.path().join("ARC-Easy")));
    assert_eq!(data::find(&roots, &["none", "boolq"]), Some(dir.path().join("boolq")));
    assert_eq!(data::find(&roots, &["piqa"]), None);
}

#[cfg(feature = "arrow")]
mod columns {
    use super::*;

    fn golden() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/columns")
    }

    #[test]
    fn parquet_and_arrow_are_read_as_pyarrow_does() {
        let expected = data::read(&golden().join("rows.json"), &Options::default()).expect("rows");
        assert_eq!(expected.len(), 3);
        for name in ["snappy.parquet", "zstd.parquet", "gzip.parquet", "none.parquet", "stream.arrow", "file.arrow"] {
            let path = golden().join(name);
            assert_eq!(data::read(&path, &Options::default()).unwrap_or_else(|error| panic!("{error}")), expected, "{name}");
            let packed = gzip(&std::fs::read(path).expect("golden"));
            assert_eq!(parse(Path::new(&format!("{name}.gz")), packed, &Options::default()).expect("rows"), expected);
        }
        let error = data::read(&golden().join("timestamp.parquet"), &Options::default()).unwrap_err().to_string();
        assert!(error.contains("column `when`: values of type Timestamp"), "{error}");
    }

    #[test]
    fn what_save_to_disk_leaves_is_a_folder_of_splits() {
        let folder = Folder::open(&golden().join("saved"), &Options::default()).expect("a folder");
        for (split, words) in [(Split::Train, &["a", "b"][..]), (Split::Validation, &["c", "d", "e"]), (Split::Test, &["f"])] {
            let rows = folder.load(&[split]).expect("rows").rows;
            assert_eq!(rows.iter().filter_map(|row| row["question"].as_str()).collect::<Vec<_>>(), words);
            assert_eq!(rows[0]["answer"][1].as_str(), Some(words[0].repeat(2).as_str()));
        }
        assert!(folder.left_out.iter().all(|(_, reason)| reason == "about the data"), "{:?}", folder.left_out);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 256 } else { 1500 }))]

        /// Bytes turned, cut and doubled: rows or an error, never a panic or a lasting grab for memory.
        #[test]
        fn damaged_columns(which in 0..6_usize, turned in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), cut in any::<prop::sample::Index>(), whole in any::<bool>()) {
            let name = ["snappy.parquet", "zstd.parquet", "gzip.parquet", "none.parquet", "stream.arrow", "file.arrow"][which];
            let mut bytes = std::fs::read(golden().join(name)).expect("golden");
            for (at, byte) in turned {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if !whole {
                bytes.truncate(cut.index(bytes.len()));
            }
            let _ = parse(Path::new(name), bytes, &Options::default());
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_rows_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "([\\[\\]{}:,\"\n\t =\u{e9}0-9a.]|null|row|data){0,60}") {
        for name in ["x.jsonl", "x.json", "x.csv", "x.tsv", "x.txt", "x.jsonl.gz", "x.parquet", "x.arrow"] {
            let articles = Options { text: Text::Articles, columns: vec!["a".into()], ..Options::default() };
            let _ = parse(Path::new(name), bytes.clone(), &Options::default());
            let _ = parse(Path::new(name), text.clone().into(), &Options::default());
            let _ = parse(Path::new(name), text.clone().into(), &articles);
        }
    }

    /// What is written comes back.
    #[test]
    fn json_lines_come_back(texts in prop::collection::vec(".{0,20}", 1..8)) {
        let lines: String = texts.iter().map(|text| format!("{}\n", serde_json::json!({ "b": text, "a": 1 }))).collect();
        let rows = parse(Path::new("x.jsonl"), lines.into(), &Options::default()).expect("rows");
        prop_assert_eq!(rows.iter().map(|row| row["b"].as_str().expect("a text").to_owned()).collect::<Vec<_>>(), texts);
    }
}

/// The samples of published sets, where they lie: counts as their sources say.
#[test]
fn published_sets() {
    let sets: [(&str, &str, Options, Split, usize, &str); 9] = [
        ("RECUA_EVAL_DATA", "hellaswag", Options::default(), Split::Validation, 200, "ctx_a"),
        ("RECUA_EVAL_DATA", "truthfulqa", Options::default(), Split::Validation, 100, "mc1_targets"),
        ("RECUA_EVAL_DATA", "mbpp", Options::default(), Split::Test, 110, "test_list"),
        ("RECUA_EVAL_DATA", "wikitext-2-raw", Options { text: Text::Articles, ..Options::default() }, Split::Test, 6, "page"),
        ("RECUA_DATA", "eval/boolq", Options::default(), Split::Validation, 3270, "passage"),
        ("RECUA_DATA", "eval/crows_pairs", Options::default(), Split::Test, 1508, "sent_more"),
        (
            "RECUA_DATA",
            "eval/piqa",
            Options { need: vec!["label".into()], ..Options::default() },
            Split::Validation,
            1838,
            "label",
        ),
        (
            "RECUA_DATA",
            "eval/humaneval",
            Options { need: vec!["entry_point".into()], files: vec!["HumanEval".into()], ..Options::default() },
            Split::Test,
            164,
            "prompt",
        ),
        (
            "RECUA_DATA",
            "eval/winogender",
            Options { need: vec!["sentid".into()], ..Options::default() },
            Split::Test,
            720,
            "sentence",
        ),
    ];
    for (variable, name, options, split, count, key) in sets {
        let Some(root) = std::env::var_os(variable) else {
            println!("skipped: {variable} is not set, {name} is not read");
            continue;
        };
        let folder = Folder::open(&Path::new(&root).join(name), &options).unwrap_or_else(|error| panic!("{error}"));
        let rows = folder.load(&[split]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(rows.rows.len(), count, "{name}");
        assert!(rows.rows.iter().all(|row| !row[key].is_null()), "{name}: `{key}`");
        println!("{name}: {} rows, sha256 {}", rows.rows.len(), rows.sha256());
    }
    if let Some(root) = std::env::var_os("RECUA_DATA") {
        let columns = ["question", "A", "B", "C", "D", "answer"].map(str::to_owned).to_vec();
        let options = Options { columns, stem_as: Some("subject".into()), ..Options::default() };
        let mmlu = Folder::open(&Path::new(&root).join("eval/mmlu"), &options).expect("MMLU");
        let (dev, validation) = (mmlu.load(&[Split::Dev]).expect("dev"), mmlu.load(&[Split::Validation]).expect("val"));
        // 5 shots of each of 57 subjects; 1,542 items of validation, as Python reads this (early) copy.
        assert_eq!((dev.rows.len(), validation.rows.len(), dev.sources.len()), (285, 1542, 57));
        assert!(dev.rows.iter().chain(&validation.rows).all(|row| matches!(row["answer"].as_str(), Some("A" | "B" | "C" | "D"))));
        #[cfg(feature = "arrow")]
        {
            let arc = Options { need: vec!["answerKey".into()], files: vec!["ARC-Easy".into()], ..Options::default() };
            let arc = Folder::open(&Path::new(&root).join("eval/arc"), &arc)
                .and_then(|folder| folder.load(&[Split::Validation]))
                .expect("ARC");
            assert_eq!((arc.rows.len(), arc.rows[0]["choices"]["text"].as_array().map(Vec::len)), (570, Some(4)));
        }
    }
}

#[cfg(not(feature = "arrow"))]
#[test]
fn a_build_without_arrow_names_the_feature() {
    for name in ["x.parquet", "x.arrow", "x.parquet.gz"] {
        let bytes = if name.ends_with(".gz") { gzip(b"PAR1") } else { b"PAR1".to_vec() };
        assert!(error(name, &bytes).contains("build with the feature `arrow` (or `data`, which has it)"), "{name}");
    }
}
