//! Kinds of fault that the users of other projects have met, from dumps to tokens. What is expected follows from the definition of each
//! format, or from what its reference program shows. `faults/` has the small builds; `RECUA_FAULTS` names the folder of all.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use recua_corpus::engine::{Manifest, Progress, StageSummary};
use recua_corpus::filters::pii;
use recua_corpus::pipeline::{Build, BuildConfig, Observer, Stage, clean_text};
use recua_corpus::tokens::{DatasetWriter, Pieces, Tokens, Windows};
use recua_corpus::{Error, Result};
use serde_json::Value;

/// Source, name, text, what the text must have, what it must not have.
type Cleaning = (&'static str, Option<&'static str>, &'static str, &'static [&'static str], &'static [&'static str]);

/// Text that stands in a template by position and by name, numbers, words of a sentence.
const WIKITEXT: [Cleaning; 40] = [
    (
        "wikipedia",
        None,
        "So:\n\n{{blockquote|text=The river froze.|author=A}}\n\nEnd.",
        &["The river froze."],
        &["author", "text="],
    ),
    ("wikipedia", None, "So:\n\n{{quote|The river froze.|A. Writer}}\n\nEnd.", &["The river froze."], &["Writer"]),
    ("wikipedia", None, "So:\n\n{{cquote|1=The river froze.}}\n\nEnd.", &["The river froze."], &["1="]),
    ("wikipedia", None, "So:\n\n{{Quote|quote=The river froze.}}\n\nEnd.", &["The river froze."], &["quote="]),
    ("wikipedia", None, "The word {{lang|code=fr|text=merci}} is French.", &["word merci is"], &[]),
    ("wikipedia", None, "The word {{lang|fr|merci}} is French.", &["word merci is"], &[]),
    ("wikipedia", None, "The word ({{lang-fr|text=merci}}) is French.", &["(merci)"], &[]),
    ("wikipedia", None, "The rule {{math|''a'' {{=}} ''b'' + 1}} holds.", &["rule a = b + 1 holds"], &[]),
    ("wikipedia", None, "They wrote {{quote|the law <math>E = mc^2</math> is new}} in a letter.", &["E = mc^2", "is new"], &[]),
    ("wikipedia", None, "It is {{nowrap|<nowiki>a = b</nowiki> now}} so.", &["is a = b now so"], &[]),
    ("wikipedia", None, "It is {{nowrap|{{lang|de|x=y}} now}} so.", &[], &["{{"]),
    ("wikipedia", None, "It is {{nowrap|[[Equality|x = y]] now}} so.", &["is x = y now so"], &[]),
    ("wikipedia", None, "It is {{nowrap|x &#61; y}} so.", &["is x = y so"], &[]),
    ("wikipedia", None, "{{quote|\n== Head ==\nThe text.}}", &["The text."], &[]),
    ("wikipedia", None, "Its mass is {{val|5.97|e=24|u=kg}} in all.", &["5.97×10^24 kg"], &[]),
    ("wikipedia", None, "about {{val|1.00794|(7)}} so", &["1.00794(7)"], &[]),
    ("wikipedia", None, "about {{val|5|2|u=m}} so", &["5 ± 2 m"], &[]),
    ("wikipedia", None, "about {{val|e=6}} so", &["10^6"], &[]),
    ("wikipedia", None, "about 10{{sup|6}} cells and 10<sup>6</sup> more", &["10⁶ cells and 10⁶ more"], &["106"]),
    (
        "wikipedia",
        None,
        "2<sup>10000000</sup> and 2<sup>n</sup> and 10<sup>6.5</sup>",
        &["2^n", "10^6.5"],
        &["210000000", "2n", "106.5"],
    ),
    ("wikipedia", None, "the 21<sup>st</sup> of 1<sup>er</sup> May", &["21st", "1er"], &["^"]),
    ("wikipedia", None, "101<sub>2</sub> is 5, and H<sub>2</sub>O is wet", &["101₂", "H2O"], &["1012"]),
    ("wikipedia", None, "about 3{{e|8}} m/s", &["3×10^8 m/s"], &[]),
    ("wikipedia", None, "a box of {{convert|2|x|3|x|4|m}} was found", &["box of 2 × 3 × 4 m was"], &[]),
    ("wikipedia", None, "some {{convert|5|e6acre|km2}} burnt", &["5 million acre"], &["e6"]),
    ("wikipedia", None, "He lived {{circa|1500|1570}} in Ulm.", &["c. 1500 – c. 1570"], &[]),
    ("wikipedia", None, "some 5{{frac|1|2}} miles", &["5 1/2 miles"], &["51/2"]),
    ("wikipedia", None, "'''Munich''' ({{langx|de|München}}) is a city.", &["(München)"], &[]),
    (
        "wikipedia",
        None,
        "{{As of|2015}}, the firm leads, and {{as of|2016|3|lc=y}} too.",
        &["As of 2015, the", "as of March 2016"],
        &[],
    ),
    ("wikipedia", None, "It costs {{USD|5}} or {{GBP|4}} now.", &["US$5 or £4"], &[]),
    ("wikipedia", Some("fr"), "Une population de {{nombre|1234|habitants}} en 2010.", &["1234 habitants"], &[]),
    ("wikipedia", Some("fr"), "au {{XIXe}} et le {{2e}} jour", &["XIXe", "2e"], &[]),
    ("wikipedia", None, "The letter {{angbr|x}} is rare.", &["x is rare"], &[]),
    ("wikipedia", None, "Press {{key press|Ctrl|C}} to copy.", &["Ctrl+C"], &[]),
    ("wikipedia", None, "The ship {{ship|HMS|Victory}} sank.", &["HMS Victory"], &[]),
    ("wikipedia", None, "A word {{some template|seen}} in a sentence.", &["word seen in"], &[]),
    ("wikipedia", None, "A word {{sfn|Bloch}} in a sentence{{cn|date=May 2010}}.", &["word in a sentence."], &["Bloch", "May"]),
    ("wikipedia", None, "A word {{clarify|reason}} in a sentence.", &["word in a"], &["reason"]),
    ("wikipedia", None, "A map {{coord|1|2}} and {{Infobox|x}} end.", &["A map"], &["1"]),
    ("wikipedia", None, "{{US$|5 million}} is much.", &["US$5 million is"], &[]),
];

const PAPERS: [Cleaning; 14] = [
    ("arxiv", None, "See \\url {http://a.org/x%20y} for more.\nNext.", &["x%20y", "for more."], &[]),
    ("arxiv", None, "See \\href\t{http://a.org/x%20y}{this} for more.\nNext.", &["x%20y", "for more."], &[]),
    ("arxiv", None, "See \\url|http://a.org/x%20y| for more.\nNext.", &["x%20y", "for more."], &[]),
    ("arxiv", None, "The flag \\Verb|100% off| is read.\nNext.", &["100% off", "is read."], &[]),
    ("arxiv", None, "The flag \\Verb[fontsize=\\small]+100% off+ is read.\nNext.", &["100% off", "is read."], &[]),
    ("arxiv", None, "Code:\n\\begin {verbatim}\nx = 5 % y\n\\end {verbatim}\nEnd.", &["% y", "End."], &[]),
    ("arxiv", None, "Code:\n\\begin{tcblisting}{}\nx = 5 % y\n\\end{tcblisting}\nEnd.", &["% y", "End."], &[]),
    ("arxiv", None, "Code:\n\\begin{luacode}\nx = 5 % y\n\\end{luacode}\nEnd.", &["% y", "End."], &[]),
    ("arxiv", None, "\\MakeShortVerb{\\|}The flag |100% off| is read.\nNext.", &["100% off", "is read."], &[]),
    ("arxiv", None, "Text. % a comment\nMore.", &["Text.", "More."], &["comment"]),
    (
        "arxiv",
        None,
        "Text of it.\n\\begin {thebibliography}{9}\n\\bibitem{w} Weaver.\n\\end {thebibliography}",
        &["Text of it."],
        &["Weaver"],
    ),
    (
        "arxiv",
        None,
        "Text of it.\n\\begin{bibdiv}\\begin{biblist}\\bib{w}{article}{author={Weaver}}\\end{biblist}\\end{bibdiv}",
        &["Text of it."],
        &["Weaver"],
    ),
    ("arxiv", None, "Text of it.\n\\bibliography*{weaver}", &["Text of it."], &["weaver"]),
    ("arxiv", None, "Text of it.\n\\end {document}\nWeaver", &["Text of it."], &["Weaver"]),
];

const CODE: [Cleaning; 8] = [
    (
        "github",
        Some("a.ml"),
        "(* Copyright 2010 A. Person\n   Licensed under the MIT license. *)\n\nlet add left right = left + right\nlet twice value = add value value\n",
        &["let add"],
        &["Copyright"],
    ),
    (
        "github",
        Some("lib/a.rb"),
        "=begin\nCopyright 2010 A. Person\nLicensed under the MIT license.\n=end\n\ndef add(left, right)\n  left + right\nend\n",
        &["def add"],
        &["Copyright"],
    ),
    (
        "github",
        Some("a.pl"),
        "=pod\n\nCopyright 2010 A. Person\n\n=cut\n\nmy $left = shift;\nprint $left, $right;\n",
        &["my $left"],
        &["Copyright"],
    ),
    (
        "github",
        Some("a.lua"),
        "--[==[ Copyright 2010 A. Person ]==]\nlocal function add(left, right)\n  return left + right\nend\n",
        &["local function"],
        &["Copyright"],
    ),
    (
        "github",
        Some("a.m"),
        "%{\nCopyright 2010 A. Person\n%}\nfunction total = add(left, right)\ntotal = left + right;\n",
        &["function total"],
        &["Copyright"],
    ),
    ("github", Some("a.vb"), "REM Copyright 2010 A. Person\nModule Adding\nEnd Module\n", &["Module Adding"], &["Copyright"]),
    (
        "github",
        Some("a.rst"),
        ".. Copyright 2010 A. Person\n   All rights reserved.\n\nThe title\n=========\n\nSome text of the page.\n",
        &["The title"],
        &["Copyright", "reserved"],
    ),
    (
        "github",
        Some("a.rst"),
        ".. note:: Copyright is a word.\n\nThe title of it\n===============\n\nSome text of the page.\n",
        &[".. note::"],
        &[],
    ),
];

#[track_caller]
fn cleans((source, name, text, has, has_not): &Cleaning) {
    let text = match *source {
        "arxiv" => {
            format!("\\documentclass{{article}}\n\\begin{{document}}\nabstract\n\\section{{One}}\n{text}\n\\end{{document}}\n")
        }
        _ => (*text).to_owned(),
    };
    let cleaned = clean_text(source.parse().unwrap(), &text, *name);
    for wanted in *has {
        assert!(cleaned.text.contains(wanted), "no `{wanted}` in `{}` of `{text}`", cleaned.text);
    }
    for unwanted in *has_not {
        assert!(!cleaned.text.contains(unwanted), "`{unwanted}` in `{}` of `{text}`", cleaned.text);
    }
}

#[test]
fn texts_are_cleaned_by_their_definitions() {
    WIKITEXT.iter().chain(&PAPERS).chain(&CODE).for_each(cleans);
}

#[test]
fn books_are_cut_at_their_markers() {
    let head = "The Project Gutenberg eBook of A Tale, by A. Writer\n\nTitle: A Tale\n\n";
    let story = "CHAPTER I\n\nIt was a dark night.\n\nThe end of the chapter.";
    let clean = |text: &str| clean_text("books".parse().unwrap(), text, None).text;
    for (start, end) in [
        ("*** START OF THE PROJECT GUTENBERG EBOOK A TALE ***", "*** END OF THE PROJECT GUTENBERG EBOOK A TALE ***"),
        (
            "*** START OF THE COPYRIGHTED PROJECT GUTENBERG EBOOK, A TALE ***",
            "*** END OF THE COPYRIGHTED PROJECT GUTENBERG EBOOK, A TALE ***",
        ),
        ("*** START OF THIS PROJECT GUTENBERG EBOOK A TALE ***", "Ende dieses Etextes"),
        ("***START OF THE PROJECT GUTENBERG EBOOK A TALE***", "Fin de Project Gutenberg's A Tale, by A. Writer"),
    ] {
        let book = format!("{head}{start}\n\n\n{story}\n\n{end}\n\nUpdated editions will replace the previous one.\n");
        assert_eq!(clean(&book), story, "{start}");
    }
    let notes = "E-text prepared by Some One\n\n\nNote: Project Gutenberg also has an HTML version of this\n      file.\n\n\nNote: Images of the original \
                 pages are available through\n      Internet Archive.\n\n\n(This file was produced from images generously made available)\n\n\n";
    let start = "*** START OF THE PROJECT GUTENBERG EBOOK A TALE ***\n\n\n";
    assert_eq!(clean(&format!("{head}{start}{notes}{story}")), story);
    let small = "**The Small Print! For Public Domain Etexts**\nlaw of the small print\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n";
    let two = clean(&format!("{head}{start}FIRST\n\nThe first tale.\n\n\n{small}\n\nSECOND\n\nThe second tale.\n"));
    for has in ["The first tale.", "SECOND", "The second tale."] {
        assert!(two.contains(has) && !two.contains("law of"), "{two}");
    }
    assert_eq!(clean("A story.\n\nIt ends here.\n\u{1a}"), "A story.\n\nIt ends here.");
}

#[test]
fn personal_data_goes_whole() {
    for (text, masked) in [
        ("host 2607:f8b0::200e answered", "host <IP> answered"),
        ("from 2607:f8b0:4005:805::200e: it", "from <IP>: it"),
        ("from 2001:db8:85a3:0:0:8a2e:370:7334.", "from <IP>."),
        ("call (415)555-2671 now", "call <PHONE> now"),
        ("call 415.555.2671 or 1-415-555-2671 now", "call <PHONE> or <PHONE> now"),
        ("write to jörg.müller@example.de soon", "write to <EMAIL> soon"),
        ("write to o'neil@example.org soon", "write to <EMAIL> soon"),
        ("write to info@müller-bäder.de soon", "write to <EMAIL> soon"),
        ("write to info@xn--e1afmkfd.xn--p1ai soon", "write to <EMAIL> soon"),
        ("請寫信到john@example.com謝謝", "請寫信到<EMAIL>謝謝"),
        ("use fade::ace and std::fmt at 12:30:45", "use fade::ace and std::fmt at 12:30:45"),
        ("it is ::1 or 127.0.0.1", "it is ::1 or 127.0.0.1"),
    ] {
        assert_eq!(pii::mask(text).0, masked, "{text}");
    }
}

/// Rooms that a build without a tokenizer does not enter.
struct NoTokens;

impl Tokens for NoTokens {
    fn pieces(&self, model: &Path) -> Result<Box<dyn Pieces>> {
        Err(Error::bad_value("pieces", model.display().to_string(), "none here"))
    }
    fn tokenizer(&self, path: &Path) -> Result<Box<dyn DatasetWriter>> {
        Err(Error::bad_value("tokenizer", path.display().to_string(), "none here"))
    }
    fn count(&self, _: &Path) -> Result<u64> {
        Ok(0)
    }
    fn windows(&self, _: &[f64]) -> Result<Box<Windows>> {
        Err(Error::bad_value("windows", "no", "none here"))
    }
}

/// What a build says.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Observer for Heard {
    fn begin(&self, _: &str, _: &str, _: &Progress, work: &mut dyn FnMut()) {
        work();
    }
    fn end(&self, stage: &str, source: &str, s: &StageSummary) {
        self.0.lock().unwrap().push(format!("{source} {stage}: {} rejected", s.counts.rejected));
    }
    fn note(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
    fn warn(&self, text: &str) {
        self.0.lock().unwrap().push(format!("warning: {text}"));
    }
}

/// What came of a build.
struct Outcome {
    result: Result<()>,
    /// Id and text of each document.
    documents: Vec<(String, String)>,
    heard: String,
    stages: bool,
    rejected: u64,
}

/// Builds a case: a folder with `mixture.toml`, whose paths are relative to it.
fn build(case: &Path, out: &Path) -> Outcome {
    let mut config: toml::Table =
        fs::read_to_string(case.join("mixture.toml")).unwrap().trim_start_matches('\u{feff}').parse().unwrap();
    absolute(&mut config, case);
    config.insert("out".into(), out.display().to_string().into());
    let file = out.parent().unwrap().join("mixture.toml");
    fs::write(&file, config.to_string()).unwrap();
    let heard = Heard::default();
    let run = || -> Result<()> {
        let config = BuildConfig::resolve(Some(&file), &[])?;
        Build::new(&config, (0, 1), &heard, &NoTokens)?.run(&Stage::ALL)
    };
    let result = run();
    let (mut documents, mut rejected) = (Vec::new(), 0);
    for (path, folder) in folders(&out.join("mix")) {
        for line in fs::read_to_string(&path).unwrap().lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            documents.push((row["id"].as_str().unwrap().to_owned(), row["text"].as_str().unwrap().to_owned()));
        }
        let _ = folder;
    }
    for source in fs::read_dir(out.join("read")).into_iter().flatten().flatten() {
        for shard in 0..8 {
            let manifest = Manifest::read(&source.path(), &format!("shard-{shard:05}")).unwrap();
            rejected += manifest.map_or(0, |m| m.counts.rejected);
        }
    }
    let heard = heard.0.into_inner().unwrap().join("\n");
    Outcome {
        result,
        documents,
        heard,
        stages: out.join("read").exists() && fs::read_dir(out.join("read")).unwrap().next().is_some(),
        rejected,
    }
}

/// The JSON lines of a stage.
fn folders(stage: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut all = Vec::new();
    for source in fs::read_dir(stage).into_iter().flatten().flatten() {
        for file in fs::read_dir(source.path()).unwrap().flatten() {
            if file.path().extension().is_some_and(|e| e == "jsonl") && !file.path().to_string_lossy().contains("rejected") {
                all.push((file.path(), source.path()));
            }
        }
    }
    all.sort();
    all
}

fn absolute(table: &mut toml::Table, base: &Path) {
    for (key, value) in table.iter_mut() {
        let paths =
            ["inputs", "files", "lid", "classifier", "tokenizer", "bad_words", "sentencepiece", "ngrams"].contains(&key.as_str());
        match value {
            toml::Value::Table(inner) => absolute(inner, base),
            toml::Value::String(path) if paths => *path = base.join(&*path).display().to_string(),
            toml::Value::Array(list) if paths => list.iter_mut().for_each(|path| {
                if let toml::Value::String(path) = path {
                    *path = base.join(&*path).display().to_string();
                }
            }),
            _ => {}
        }
    }
}

/// What a build must give.
#[derive(Clone, Copy)]
enum Must {
    /// A document with this.
    Have(&'static str),
    /// No document with this.
    Lack(&'static str),
    /// So many documents.
    Documents(usize),
    /// A document whose id ends so.
    Id(&'static str),
    /// An error.
    Fail,
    /// An error before anything is read.
    FailAtOnce,
    /// An error, or no document with this.
    FailOrLack(&'static str),
    /// This is said on the terminal.
    Say(&'static str),
    /// A document with this, or a rejected record, or an error.
    HaveOrTell(&'static str),
}

use Must::{Documents, Fail, FailAtOnce, FailOrLack, Have, HaveOrTell, Id, Lack, Say};

const BUILDS: [(&str, &[Must]); 48] = [
    ("a01-magic-ps", &[Have("Text of the paper")]),
    ("a02-no-extension", &[Have("Text of the paper")]),
    ("a03-readme-ignore", &[Have("Text of the paper"), Lack("Old text")]),
    ("a03c-readme-json", &[Have("Text of the paper"), Lack("Reply to")]),
    ("a04-auto-ignore", &[Have("Text of the paper"), Lack("Old text")]),
    ("a06-koi8", &[Have("Однажды весною")]),
    ("a07-gz-padding", &[Have("Text of the paper")]),
    ("a08-bulk-gz", &[Have("Text of the paper")]),
    ("a09-nested-folder", &[Have("Text of the paper")]),
    ("a09c-folders", &[Documents(2)]),
    ("a20-magic-tex-root", &[Have("Text of the paper")]),
    ("b01-latin2", &[Have("Zażółć gęślą jaźń")]),
    ("c01-bom", &[Documents(2)]),
    ("c03-nan", &[Documents(2)]),
    ("c04-bz2-folder", &[Documents(3)]),
    ("c05-symlinks", &[Documents(2)]),
    ("c06-glob-stars", &[Documents(3)]),
    ("c07-overlapping-inputs", &[Documents(2)]),
    ("c10-all-bad", &[Fail, Say("4 rejected")]),
    ("d01b-csv-multiline", &[Lack("known moons")]),
    ("d10-parquet", &[FailOrLack("known moons")]),
    ("d11-shy", &[Documents(1)]),
    ("g01-see-license", &[Id("src/a.js")]),
    ("g02-bsd-3", &[Id("src/a.js")]),
    ("h01-dl", &[Lack("FloodA"), Lack("snow.Mill"), Have("wheel that turns")]),
    ("h02-br-blockquote", &[Lack("snow.A house"), Have("wheel that turns")]),
    ("h03b-figcaption", &[Lack("snow.BBB"), Have("BBB")]),
    ("h04-katex", &[Lack("a=ba=b"), Have("a=b")]),
    ("h05-sup", &[Lack("106 fish"), Lack("1002="), Have("10⁶ fish")]),
    ("h06-pre", &[Have("    y = 1"), Have("        z = 2")]),
    ("h07-svg", &[Lack("SVGTITLE"), Documents(1)]),
    ("k01-ct-space", &[Documents(1)]),
    ("k02-empty-identified", &[Documents(1)]),
    ("k04-utf16-nobom", &[Lack("<article>"), Documents(1)]),
    ("k05-warc-zst", &[Documents(1)]),
    ("p01-v6-short", &[Lack("2607:f8b0"), Documents(1)]),
    ("p03-phone-noblank", &[Lack("555-2671"), Documents(1)]),
    ("p04-email-umlaut", &[Lack("jörg"), Documents(1)]),
    ("q01-second-inputs", &[FailAtOnce]),
    ("q02-tokenizer", &[FailAtOnce]),
    ("q03-lid", &[FailAtOnce]),
    ("q30-pieces-minlang", &[FailAtOnce]),
    ("q32-tokens-0-tok", &[FailAtOnce]),
    ("s05-utf16", &[HaveOrTell("Twelve")]),
    ("s20-7z-and-folder", &[Documents(1), Have("Twelve")]),
    ("w02-split-name", &[Documents(2)]),
    ("w06-crlf-cdata", &[Have("A is a town")]),
    ("x01-told-none", &[Say("3 rejected"), Fail]),
];

/// What is wrong with a build, if anything is.
fn wrong(case: &Path, musts: &[Must]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let got = build(case, &dir.path().join("out"));
    let has = |text: &str| got.documents.iter().any(|(_, its)| its.contains(text));
    let told = || format!("{:?}; {}; {:?}", got.result.as_ref().err().map(ToString::to_string), got.heard, got.documents);
    let mut all = Vec::new();
    for must in musts {
        let (good, what) = match *must {
            Have(text) => (has(text), format!("no text with `{text}`")),
            Lack(text) => (!has(text), format!("a text with `{text}`")),
            Documents(n) => (got.documents.len() == n, format!("{} documents, not {n}", got.documents.len())),
            Id(end) => (got.documents.iter().any(|(id, _)| id.ends_with(end)), format!("no id that ends with {end}")),
            Fail => (got.result.is_err(), "no error".into()),
            FailAtOnce => (got.result.is_err() && !got.stages, "no error before the first stage".into()),
            FailOrLack(text) => (got.result.is_err() || !has(text), format!("a text with `{text}`")),
            Say(text) => (got.heard.contains(text), format!("`{text}` is not said")),
            HaveOrTell(text) => (has(text) || got.rejected > 0 || got.result.is_err(), format!("no word of `{text}`")),
        };
        if !good {
            let name = case.file_name().unwrap_or_default().to_string_lossy();
            all.push(format!("{name}: {what}: {}", told()));
        }
    }
    all
}

#[test]
fn small_builds_have_what_they_must() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults");
    let found = BUILDS.iter().filter(|(name, _)| folder.join(name).exists());
    let cases: Vec<_> = found.collect();
    assert!(cases.len() > 20, "{}", cases.len());
    let wrong: Vec<String> = cases.iter().flat_map(|(name, musts)| wrong(&folder.join(name), musts)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// All cases of the folder that `RECUA_FAULTS` names.
#[test]
fn all_cases_have_what_they_must() {
    let Some(root) = std::env::var_os("RECUA_FAULTS").map(PathBuf::from) else {
        println!("skipped: RECUA_FAULTS is not set");
        return;
    };
    let root = if root.join("data").exists() { root.join("data/cases") } else { root.join("cases") };
    let mut wrongs = Vec::new();
    let known: BTreeMap<&str, &[Must]> = BUILDS.iter().copied().collect();
    for entry in fs::read_dir(root.join("build")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // Some ways to carry a folder make a small file of a link.
        let link = path.join("in/c4-train.00000-of-00001.json.gz");
        if name == "c05-symlinks" && !link.is_symlink() {
            println!("{name}: skipped, the link in it came as a file");
            continue;
        }
        match known.get(name.as_str()) {
            Some(musts) => wrongs.extend(wrong(&path, musts)),
            None => println!("{name}: what it must give is not known here"),
        }
    }
    for entry in fs::read_dir(root.join("clean")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text: String = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let (source, hint) = match &*name {
            "w14-fr-nombre" => ("wikipedia", Some("fr")),
            "g01-ocaml" => ("github", Some("src/a.ml")),
            "g02-ruby-begin" => ("github", Some("lib/a.rb")),
            name if name.starts_with('w') => ("wikipedia", None),
            name if name.starts_with('a') => ("arxiv", None),
            name if name.starts_with('b') => ("books", None),
            other => panic!("{other}"),
        };
        let got = clean_text(source.parse().unwrap(), &text, hint).text;
        let (has, lacks): (&[&str], &[&str]) = match &*name {
            "a01-Verb" => (&["100% off", "is read."], &[]),
            "a02-url-delim" | "a03-url-space" => (&["x%20y", "for more."], &[]),
            "a05-amsrefs" => (&["Text of the paper."], &["Weaver"]),
            "a06-bib-space" => (&[], &["Weaver"]),
            "a06e-verbatim-space" | "a17-tcblisting" => (&["% y"], &[]),
            "b01-copyrighted-start" | "b04-html-note" => {
                (&["CHAPTER I\n\nIt was a dark night by the sea.\n\nThe end of the chapter."], &["***", "Note"])
            }
            "b03-ctrl-z" => (&["A short story without a header.\n\nIt ends here."], &["\u{1a}"]),
            "b05-second-small-print" => (&["The first tale is short.", "SECOND TALE"], &[]),
            "g01-ocaml" => (&["let add"], &["Copyright"]),
            "g02-ruby-begin" => (&["def add"], &["Copyright"]),
            "w01-langx" => (&["München"], &[]),
            "w02-quote-text" => (&["The river was frozen for a month."], &[]),
            "w02c-lang-text" => (&["merci"], &[]),
            "w03-eq-template" => (&["a = b + 1"], &[]),
            "w04-math-in-quote" => (&["E = mc^2", "is new"], &[]),
            "w07-val-exp" => (&["24", "5.97"], &[]),
            "w08-convert-3d" => (&["2 × 3 × 4 m"], &[]),
            "w10-circa-range" => (&["1570"], &[]),
            "w12-as-of" => (&["2015"], &[]),
            "w14-fr-nombre" => (&["1234"], &[]),
            "w72-sup-template" => (&[], &["106"]),
            "w72b-e-template" => (&["8"], &["3 m/s"]),
            "w75-key" => (&["Ctrl"], &[]),
            "w91-angbr" => (&["x is rare"], &[]),
            _ => (&[], &[]),
        };
        wrongs.extend(has.iter().filter(|text| !got.contains(**text)).map(|text| format!("{name}: no `{text}` in `{got}`")));
        wrongs.extend(lacks.iter().filter(|text| got.contains(**text)).map(|text| format!("{name}: `{text}` in `{got}`")));
    }
    assert!(wrongs.is_empty(), "{}", wrongs.join("\n\n"));
}
