//! Wikipedia's dumps: what is a record, every packing, files that are cut or damaged, and the samples.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recua_corpus::Error;
use recua_corpus::sources::wikipedia::{CleanOptions, Math, Options, PageCounts, clean_record, read};
use recua_corpus::{Record, Rejected};

use super::data_wikipedia::is_clean;

fn dump(pages: &str) -> String {
    format!(
        "<mediawiki xmlns=\"http://www.mediawiki.org/xml/export-0.10/\" version=\"0.10\" xml:lang=\"en\">\n  <siteinfo>\n    \
         <sitename>Wikipedia</sitename>\n    <dbname>enwiki</dbname>\n    <namespaces><namespace key=\"0\" case=\"first-letter\" /></namespaces>\n  \
         </siteinfo>\n{pages}</mediawiki>\n"
    )
}

fn page(id: u32, title: &str, text: &str) -> String {
    page_with(id, title, text, 0, "")
}

fn page_with(id: u32, title: &str, text: &str, namespace: i32, extra: &str) -> String {
    format!(
        "  <page>\n    <title>{title}</title>\n    <ns>{namespace}</ns>\n    <id>{id}</id>\n    {extra}<revision>\n      <id>9{id}</id>\n      \
         <timestamp>2022-06-01T00:00:00Z</timestamp>\n      <contributor><username>u</username><id>77</id></contributor>\n      \
         <model>wikitext</model>\n      <text bytes=\"3\" xml:space=\"preserve\">{text}</text>\n    </revision>\n  </page>\n"
    )
}

struct Read {
    records: Vec<Record>,
    rejected: Vec<Rejected>,
    counts: PageCounts,
}

fn read_named(name: &str, bytes: &[u8], options: &Options) -> Result<Read, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let (mut records, mut rejected) = (Vec::new(), Vec::new());
    let counts = read(&path, options, &mut |record| {
        match record {
            Ok(record) => records.push(record),
            Err(reason) => rejected.push(reason),
        }
        Ok(())
    })?;
    assert_eq!((counts.records, counts.rejected), (records.len() as u64, rejected.len() as u64));
    Ok(Read { records, rejected, counts })
}

fn read_bytes(bytes: &[u8]) -> Read {
    read_named("x.xml", bytes, &Options::default()).unwrap()
}

fn bz2(bytes: &[u8]) -> Vec<u8> {
    let mut packer = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut packer = liblzma::write::XzEncoder::new(Vec::new(), 1);
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

#[test]
fn records_of_a_dump() {
    let pages = page(12, "A &amp; B?", "x &lt;ref&gt; &quot;y&quot; &amp;nbsp; é")
        + &page_with(13, "Talk:C", "talk", 1, "")
        + &page_with(14, "D", "#REDIRECT [[A]]", 0, "<redirect title=\"A &amp; B?\" />\n    ");
    let read = read_bytes(dump(&pages).as_bytes());
    assert_eq!(read.counts, PageCounts { pages: 3, records: 2, redirects: 1, other_namespaces: 1, rejected: 0 });
    let record = &read.records[0];
    assert_eq!(record.id, "en:12");
    assert_eq!(record.text, "x <ref> \"y\" &nbsp; é");
    let meta = serde_json::json!({
        "title": "A & B?", "url_title": "A_&_B?", "url": "https://en.wikipedia.org/wiki/A_%26_B%3F", "page_id": "12",
        "timestamp": "2022-06-01T00:00:00Z", "language": "en",
    });
    assert_eq!(serde_json::Value::Object(record.meta.clone()), meta);
    assert_eq!(read.records[1].meta["redirect"], "A & B?");
    let talk = Options { namespaces: vec![1], ..Options::default() };
    let read = read_named("x", dump(&pages).as_bytes(), &talk).unwrap();
    assert_eq!(read.records.iter().map(|r| r.text.as_str()).collect::<Vec<_>>(), ["talk"]);
}

#[test]
fn the_language_is_the_databases_then_the_roots_then_the_files() {
    let language = |name: &str, xml: &str| {
        read_named(name, xml.as_bytes(), &Options::default()).unwrap().records[0].meta["language"].clone()
    };
    let one = page(1, "A", "x");
    let xml = dump(&one);
    assert_eq!(language("frwiki-x", &xml), "en");
    assert_eq!(language("frwiki-x", &xml.replace("enwiki", "be_x_oldwiki")), "be-x-old");
    assert_eq!(language("frwiki-x", &xml.replace("enwiki", "tmp-wp")), "en");
    assert_eq!(language("frwiki-x", &one), "fr");
    assert_eq!(language("dump.xml", &one), "");
    let options = Options { language: Some("uk".into()), ..Options::default() };
    assert_eq!(read_named("frwiki-x", xml.as_bytes(), &options).unwrap().records[0].id, "uk:1");
}

#[test]
fn every_packing_gives_the_same_records() {
    let mut xml = String::new();
    for id in 1..300 {
        write!(xml, "{}", page(id, &format!("T {id}"), &"Text of [[a]] page, é. ".repeat(id as usize))).unwrap();
    }
    let xml = dump(&xml);
    let bytes = xml.as_bytes();
    let expected = read_bytes(bytes).records;
    assert_eq!(expected.len(), 299);
    let mut multistream = Vec::new();
    for part in bytes.chunks(50_000) {
        multistream.extend(bz2(part));
    }
    let little: Vec<u8> = std::iter::once(0xfeff).chain(xml.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = xml.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let with_mark = [b"\xef\xbb\xbf", bytes].concat();
    let packed = [bz2(bytes), multistream, gz(bytes), xz(bytes), bz2(&little), big, with_mark];
    for (which, packed) in packed.iter().enumerate() {
        for threads in [1, 2, 5] {
            let read = read_named("x", packed, &Options { threads, ..Options::default() }).unwrap();
            assert_eq!(read.records, expected, "packing {which}, {threads} threads");
            assert_eq!(read.rejected, []);
        }
    }
}

#[test]
fn a_cut_file_gives_its_whole_pages() {
    let xml = dump(&(page(1, "A", "one") + &page(2, "B", "two") + &page(3, "C", "three")));
    let cut = xml.find("three").unwrap();
    let read = read_bytes(&xml.as_bytes()[..cut]);
    assert_eq!(read.records.len(), 2);
    assert_eq!(read.rejected[0].reason, "the file ends inside of this page");
    assert!(read.rejected[0].place.starts_with("page 3 at byte "), "{}", read.rejected[0].place);
    // Without the last tag, as excerpts are.
    assert_eq!(read_bytes(&xml.as_bytes()[..xml.find("</mediawiki>").unwrap()]).rejected, []);
    // Multistream: the whole streams before the cut.
    let streams: Vec<_> = xml.as_bytes().chunks(300).map(bz2).collect();
    let packed = streams.concat();
    for threads in [1, 4] {
        let read = read_named("x", &packed[..packed.len() - 60], &Options { threads, ..Options::default() }).unwrap();
        assert!(!read.records.is_empty() && read.records.len() < 4);
        assert_eq!(read.rejected.len(), 1, "{threads}");
        assert!(read.rejected[0].reason.starts_with("the file is damaged or ends here"), "{}", read.rejected[0].reason);
    }
}

#[test]
fn bad_pages_are_told_and_passed_over() {
    let long = "y".repeat(2000);
    let pages = page(1, "A", "one")
        + &page(2, "B", &long)
        + &page(3, "C", "three").replace("  </page>\n", "")
        + &page(4, "D", "four").replace("<id>4</id>", "")
        + &page(5, "E", "f\u{1}ive")
        + "<page><title>F</title><ns>0</ns><id>6</id><revision><text xml:space=\"preserve\" /></revision></page>\n"
        + "<!-- <page> a > b --><page><title>G</title><ns>0</ns><id>7</id><revision><text>old</text></revision><revision><text>new</text></revision></page>";
    let mut bytes = dump(&pages).into_bytes();
    let at = bytes.iter().position(|&b| b == 1).unwrap();
    bytes[at] = 0xff;
    let read = read_named("x", &bytes, &Options { max_page_bytes: 1000, ..Options::default() }).unwrap();
    let texts: Vec<_> = read.records.iter().map(|r| (r.id.as_str(), r.text.as_str())).collect();
    assert_eq!(texts, [("en:1", "one"), ("en:6", ""), ("en:7", "new")]);
    let reasons: Vec<_> = read.rejected.iter().map(|r| r.reason.as_str()).collect();
    let expected =
        ["the text has more than 1000 bytes", "the page has no end", "the page has no id or no title", "the text is not UTF-8"];
    assert_eq!(reasons, expected);
    assert_eq!(read.counts.pages, 7);
}

#[test]
fn a_page_without_end_is_read_in_bounded_memory() {
    // 40 MB of text where 8 MiB are allowed.
    let text = "z".repeat(40 << 20);
    let read = read_bytes(dump(&(page(1, "A", &text) + &page(2, "B", "x"))).as_bytes());
    assert_eq!(read.records.len(), 1);
    assert_eq!(read.rejected[0].reason, "the text has more than 8388608 bytes");
}

#[test]
fn what_is_no_dump_is_an_error() {
    for bytes in [b"".as_slice(), b"hello", b"<html><body>", b"BZh9garbage", b"\x1f\x8b\x08garbage", b"\xfd7zXZ\0garbage"] {
        let error = read_named("x", bytes, &Options { threads: 2, ..Options::default() }).err().unwrap().to_string();
        assert!(error.contains("not a usable MediaWiki dump"), "{error}");
    }
    let missing = read(&PathBuf::from("no-such-file"), &Options::default(), &mut |_| Ok(()));
    assert!(matches!(missing, Err(Error::Io { .. })));
    let empty = read_bytes(dump("").as_bytes());
    assert_eq!(empty.counts, PageCounts::default());
}

#[test]
fn an_error_of_the_sink_ends_the_reading() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    std::fs::write(&path, dump(&(page(1, "A", "one") + &page(2, "B", "two")))).unwrap();
    let mut seen = 0;
    let result = read(&path, &Options::default(), &mut |_| {
        seen += 1;
        Err(Error::bad_value("x", "full", "stop"))
    });
    assert!(result.is_err());
    assert_eq!(seen, 1);
}

pub(super) fn mutate(rng: &mut ChaCha8Rng, seeds: &[&[u8]], pieces: &[&[u8]]) -> Vec<u8> {
    let mut page = seeds[rng.random_range(0..seeds.len())].to_vec();
    for _ in 0..rng.random_range(1..12) {
        let at = rng.random_range(0..=page.len());
        let end = rng.random_range(at..=page.len());
        match rng.random_range(0..7) {
            0 if at < page.len() => page[at] = rng.random(),
            1 if at < page.len() => page[at] ^= 1 << rng.random_range(0..8),
            2 => drop(page.drain(at..end)),
            3 if page.len() < 4000 => {
                let copy = page[at..end].to_vec();
                page.splice(at..at, copy);
            }
            4 => {
                let other = seeds[rng.random_range(0..seeds.len())];
                let from = rng.random_range(0..=other.len());
                page.splice(at..at, other[from..].iter().copied());
            }
            5 => {
                let piece = pieces[rng.random_range(0..pieces.len())];
                page.splice(at..end.min(at + 3), piece.iter().copied());
            }
            _ => {
                let piece = pieces[rng.random_range(0..pieces.len())];
                let times = rng.random_range(1..20);
                page.splice(at..at, piece.repeat(times));
            }
        }
    }
    page
}

/// `RECUA_FUZZ` inputs; 3,000 (under a second) without it.
pub(super) fn fuzz_inputs() -> usize {
    std::env::var("RECUA_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(3000)
}

#[test]
fn fuzz_dumps() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let two = dump(&(page(1, "A", "one &lt;b&gt;") + &page_with(2, "B", "two", 0, "<redirect title=\"A\" />")));
    let little: Vec<u8> = std::iter::once(0xfeff).chain(two.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    let streams: Vec<u8> = two.as_bytes().chunks(400).flat_map(bz2).collect();
    let (gz, xz) = (gz(two.as_bytes()), xz(two.as_bytes()));
    let seeds = [two.as_bytes(), two.as_bytes(), two.as_bytes(), &little];
    let pieces = [
        "<page>",
        "</page>",
        "<text>",
        "</text>",
        "<",
        ">",
        "&",
        "&#1;",
        "<!--",
        "-->",
        "<id>",
        "</revision>",
        "\"",
        "\0",
        "BZh9",
        "<![CDATA[",
    ];
    let pieces = pieces.map(str::as_bytes);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("enwiki-x");
    for n in 0..fuzz_inputs() {
        // Unpacking takes by far the longest.
        let bytes = match n % 50 {
            0 => mutate(&mut rng, &[&streams, &streams, &gz, &xz], &pieces),
            _ => mutate(&mut rng, &seeds, &pieces),
        };
        std::fs::write(&path, &bytes).unwrap();
        let mut seen = 0;
        let result = read(&path, &Options { threads: 1 + n / 50 % 2, ..Options::default() }, &mut |record| {
            seen += 1;
            if let Ok(record) = record {
                assert!(!record.id.is_empty() && record.text.len() <= bytes.len() * 3);
            }
            Ok(())
        });
        match result {
            Ok(counts) => assert_eq!(counts.records + counts.rejected, seen, "input {n}"),
            Err(error) => assert!(matches!(error, Error::BadFile { .. }), "input {n}: {error}"),
        }
        // A file that is written over is flushed to the disk by some file systems; a new one is not.
        std::fs::remove_file(&path).unwrap();
    }
}

/// The sample dumps: what is in them, and that their texts have no wikitext left outside of code and formulas.
#[test]
fn samples() {
    let Some(folder) = std::env::var_os("RECUA_DATA") else {
        println!("skipped: RECUA_DATA is not set");
        return;
    };
    let folder = PathBuf::from(folder).join("wikipedia");
    let expected = [
        ("bgwiki-latest-pages-articles-shortened.xml.bz2", "bg", 3, 1, 0, 0),
        ("enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2", "en", 206, 205, 99, 0),
        ("enwiki-pages-articles-sample.xml.bz2", "en", 3, 3, 1, 0),
        ("smallwiki-latest-pages-articles.xml.bz2", "ltg", 2004, 1050, 147, 0),
        ("tinywiki-latest-pages-articles.xml", "ltg", 8, 8, 0, 0),
        ("ukwiki-truncated-100k.xml.xz", "uk", 533, 525, 13, 1),
    ];
    for (name, language, pages, records, redirects, rejected) in expected {
        let mut found = Vec::new();
        let counts = read(&folder.join(name), &Options::default(), &mut |record| {
            found.extend(record.ok());
            Ok(())
        });
        let counts = counts.unwrap();
        assert_eq!(
            (counts.pages, counts.records, counts.redirects, counts.rejected),
            (pages, records, redirects, rejected),
            "{name}"
        );
        let options = CleanOptions { languages: vec![], math: Math::Drop, ..CleanOptions::default() };
        for record in &found {
            assert_eq!(record.meta["language"], language, "{name}");
            let text = clean_record(record, &options).text;
            assert!(is_clean(&text) || record.text.contains("<s") || record.text.contains("<pre"), "{}", record.id);
            let code = ["<source", "<syntaxhighlight", "<pre", "<nowiki", "&lt;"].iter().any(|tag| record.text.contains(tag));
            for wikitext in ["{{", "}}", "[[", "]]", "'''", "<ref", "{|", "|thumb", "&nbsp;", "__NOTOC__"] {
                assert!(code || !text.contains(wikitext), "{}: `{wikitext}` is left", record.id);
            }
        }
    }
}
