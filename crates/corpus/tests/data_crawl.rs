//! CommonCrawl (WARC and WET), HTML, CCNet's text rules, C4: every rule from its definition, then mutated files.
//!
//! Samples are found by `RECUA_DATA`; `RECUA_FUZZ` is the number of mutated inputs that each reader gets (3,000 by default: some seconds).

#[path = "data_crawl/html.rs"]
mod html;
#[path = "data_crawl/text.rs"]
mod text;
#[path = "data_crawl/warc.rs"]
mod warc;

use std::{
    io::{Read, Write},
    path::PathBuf,
};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use recua_corpus::{
    Record, Rejected,
    filters::c4::{C4Rules, clean_page},
    sources::{
        c4, commoncrawl,
        warc::{Limits, WarcReader},
    },
};

fn samples(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("RECUA_DATA").map(|d| PathBuf::from(d).join(name));
    if path.is_none() {
        println!("skipped: RECUA_DATA is not set, {name} is not read");
    }
    path
}

fn record(kind: &str, uri: &str, extra: &str, block: &[u8]) -> Vec<u8> {
    let mut out = format!(
        "WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {uri}\r\nWARC-Date: 2024-05-18T01:58:10Z\r\nWARC-Record-ID: <urn:uuid:{}>\r\n{extra}Content-Length: {}\r\n\r\n",
        block.len(),
        block.len()
    )
    .into_bytes();
    out.extend_from_slice(block);
    out.extend_from_slice(b"\r\n\r\n");
    out
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

/// A reader that gives a few bytes at a time, so that every boundary is met.
struct Drip<'a>(&'a [u8], usize);

impl Read for Drip<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.1.min(buf.len()).min(self.0.len());
        buf[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}

/// URIs of the whole records, and the reasons of the others, in their order.
fn walk(bytes: &[u8], limits: Limits) -> Vec<Result<String, String>> {
    let mut reader = WarcReader::new(Drip(bytes, 777), limits).unwrap();
    let mut out = Vec::new();
    while let Some(record) = reader.next().unwrap() {
        out.push(match record {
            Ok(r) => Ok(r.uri().unwrap_or_default().into_owned()),
            Err(r) => Err(r.reason),
        });
    }
    out
}

fn three() -> [Vec<u8>; 3] {
    ["a", "b", "c"].map(|u| record("conversion", u, "", format!("Title {u}\nText of {u}\n").repeat(20).as_bytes()))
}

fn response(headers: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n{headers}\r\n").as_bytes(), body].concat()
}

fn read_all(bytes: &[u8], options: &commoncrawl::Options) -> (Vec<Record>, Vec<Rejected>, commoncrawl::CrawlCounts) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let (mut records, mut rejected) = (Vec::new(), Vec::new());
    let summary = commoncrawl::read(file.path(), options, &mut |r| {
        match r {
            Ok(r) => records.push(r),
            Err(r) => rejected.push(r),
        }
        Ok(())
    });
    (records, rejected, summary.unwrap())
}

/// How many mutated inputs each reader gets.
fn fuzz() -> u64 {
    std::env::var("RECUA_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(3000)
}

/// Flips, cuts, doubles and splices pieces of `seeds`.
fn mutate(rng: &mut ChaCha8Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut out = seeds[rng.random_range(0..seeds.len())].clone();
    for _ in 0..rng.random_range(1..=4) {
        if out.is_empty() {
            break;
        }
        let from = rng.random_range(0..out.len());
        let to = rng.random_range(from..=out.len().min(from + 200));
        match rng.random_range(0..7) {
            0 => out[from] ^= 1 << rng.random_range(0..8),
            1 => out[from] = rng.random_range(0..=255) as u8,
            2 => drop(out.drain(from..to)),
            3 => {
                let piece = out[from..to].repeat(rng.random_range(1..20));
                out.splice(from..from, piece);
            }
            4 => {
                let other = &seeds[rng.random_range(0..seeds.len())];
                let start = rng.random_range(0..=other.len());
                let end = rng.random_range(start..=other.len().min(start + 300));
                out.splice(from..to, other[start..end].iter().copied());
            }
            5 => out.truncate(from),
            _ => {
                let number = format!("{}", 1_u64 << rng.random_range(0..64));
                out.splice(from..to.min(from + 4), number.bytes());
            }
        }
    }
    out
}

/// A page with a paragraph worth reading, and everything around it that is not.
fn article(body: &str) -> String {
    format!(
        "<!doctype html><html><head><title>A  page\n title</title><script>var x = '<p>no</p>';</script></head><body><nav><a href=/>Home</a> <a href=/b>About</a></nav>\
         <article><h1>A page title</h1>{body}</article><footer><p>Copyright, all rights reserved</p></footer></body></html>"
    )
}

#[test]
fn every_sample_file_is_read() {
    let Some(dir) = samples("commoncrawl") else { return };
    // Whole records, as warcio counts them; where it stops (gzip members that are not records), as they are in the file.
    let cases = [
        ("daft-example.warc", 30, 0),
        ("daft-example.warc.gz", 30, 0),
        ("example.warc.gz", 822, 0),
        ("IAH-urls-wget.warc.gz", 36, 0),
        ("sample-0000.warc.gz", 48, 0),
        ("warcfile.warc.gz", 50, 0),
        ("whirlwind.warc.gz", 4, 0),
        ("whirlwind.warc.wet.gz", 2, 0),
        ("sample.warc.txt", 0, 4), // an excerpt, its lengths those of other texts
        ("edge-cases/example-bad-non-chunked.warc.gz", 6, 0),
        ("edge-cases/example-bad.warc.gz.bad", 6, 0),
        ("edge-cases/example-iana.org-chunked.warc", 3, 0),
        ("edge-cases/example-space-in-target-uri.warc.gz", 2, 0),
        ("edge-cases/example-trunc.warc", 3, 1),
        ("edge-cases/example-wrong-chunks.warc.gz", 2, 0),
        ("edge-cases/post-test.warc.gz", 6, 0),
    ];
    for (name, whole, bad) in cases {
        let bytes = std::fs::read(dir.join(name)).unwrap();
        let got = walk(&bytes, Limits::default());
        assert_eq!(
            (got.iter().filter(|r| r.is_ok()).count(), got.iter().filter(|r| r.is_err()).count()),
            (whole, bad),
            "{name}: {got:?}"
        );
    }
    let mut records = Vec::new();
    let wet = dir.join("whirlwind.warc.wet.gz");
    commoncrawl::read(&wet, &commoncrawl::Options::default(), &mut |r| {
        records.push(r.unwrap());
        Ok(())
    })
    .unwrap();
    assert_eq!(
        (records[0].id.as_str(), records[0].meta["language"].as_str()),
        ("https://an.wikipedia.org/wiki/Escopete", Some("spa"))
    );
    assert_eq!(records[0].meta["title"], "Escopete - Biquipedia, a enciclopedia libre");
    assert!(records[0].text.starts_with("Ir al contenido\nMenú principal\n"), "{}", records[0].text);
    for name in ["c4-sample.01.json.gz", "c4-sample.02.json.gz"] {
        let mut n = 0;
        let count = c4::read(&dir.join("../c4").join(name), Default::default(), &mut |r| {
            let cleaned = clean_page(&r.unwrap().text, &C4Rules::default());
            n += 1;
            assert_eq!(cleaned.dropped, None, "what C4 has must pass its rules");
            Ok(())
        });
        assert_eq!((count.unwrap(), n), (10, 10));
    }
}
