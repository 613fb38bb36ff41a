//! WARC and WET files, HTTP bodies.

use std::{io::Write, path::Path};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recua_corpus::sources::{
    commoncrawl::{self, Response},
    warc::{Limits, WarcReader},
};

use super::{Drip, fuzz, gzip, mutate, read_all, record, response, three, walk};

#[test]
fn warc_records_come_whole_from_plain_and_gzip_files() {
    let parts = three();
    let plain = parts.concat();
    let members: Vec<u8> = parts.iter().flat_map(|p| gzip(p)).collect();
    for (what, bytes) in [("plain", plain.clone()), ("a member each", members), ("one member", gzip(&plain))] {
        for size in [1, 7, 1 << 20] {
            let mut reader = WarcReader::new(Drip(&bytes, size), Limits::default()).unwrap();
            let mut at = 0;
            for part in &parts {
                let r = reader.next().unwrap().unwrap().unwrap();
                assert_eq!(r.offset, at, "{what}");
                assert_eq!(r.kind(), "conversion");
                assert!(part.windows(r.block.len()).any(|w| w == r.block), "{what}: the block's bytes");
                assert_eq!(r.head.get("content-length"), Some(r.block.len().to_string().as_str()), "names in any case");
                at += part.len() as u64;
            }
            assert!(reader.next().unwrap().is_none(), "{what}");
        }
    }
}

#[test]
fn warc_headers_fold_and_uris_are_mended() {
    let bytes = b"WARC/1.1\nwarc-type: response\nWARC-TARGET-URI: <http://x/a b>\nX-Long: one\n  two\n\tthree\nno colon here\n lost\nX-Empty:\nWARC-Block-Digest: sha1:B\nContent-Length: 2\n\nok\n\n";
    let mut reader = WarcReader::new(&bytes[..], Limits::default()).unwrap();
    let r = reader.next().unwrap().unwrap().unwrap();
    assert_eq!((r.kind(), r.uri().as_deref(), r.block), ("response", Some("http://x/a%20b"), &b"ok"[..]));
    assert_eq!(r.head.first_line(), "WARC/1.1");
    assert_eq!(r.head.get("x-long"), Some("one two three"));
    assert_eq!((r.head.get("x-empty"), r.head.get("none"), r.digest()), (Some(""), None, Some("sha1:B")));
}

#[test]
fn a_bad_record_costs_only_itself() {
    let [a, b, c] = three();
    let text = String::from_utf8(b.clone()).unwrap();
    let length = text.split("Content-Length: ").nth(1).unwrap().split('\r').next().unwrap().to_owned();
    let with = |new: &str| text.replace(&format!("Content-Length: {length}"), new);
    let cases = [
        (with("X: y"), "the record has no Content-Length"),
        (with("Content-Length: many"), "Content-Length is not a number: `many`"),
        (with("Content-Length: -5"), "Content-Length is not a number: `-5`"),
        (with("Content-Length: 99"), "Content-Length is wrong: after 99 bytes comes neither a record nor the end"),
        (with("Content-Length: 600"), "Content-Length is wrong: after 600 bytes comes neither a record nor the end"),
        (with("Content-Length: 9000"), "the file ends before the 9000 bytes of the record do"),
        (with("Content-Length: 99999999999999"), "the record has 99999999999999 bytes, more than the 16777216 that are read"),
        (text.replace("WARC/1.0", "WARC/7.0"), "no record begins here (no `WARC/1.`)"),
        (
            text.replace("\r\n\r\nTitle", "\r\nTitle"),
            "Content-Length is wrong: after 360 bytes comes neither a record nor the end",
        ),
    ];
    for (bad, reason) in cases {
        let bytes = [a.clone(), bad.into_bytes(), c.clone()].concat();
        for (what, bytes) in [("plain", bytes.clone()), ("gzip", gzip(&bytes))] {
            let got = walk(&bytes, Limits::default());
            if reason.contains("360") {
                // Without a blank line the header goes on into the text; what is sure is that the others are read.
                assert_eq!(got.iter().filter_map(|r| r.as_ref().ok()).collect::<Vec<_>>(), ["a", "c"], "{what}");
                continue;
            }
            assert_eq!(got, [Ok("a".to_owned()), Err(reason.to_owned()), Ok("c".to_owned())], "{what}: {reason}");
        }
    }
}

#[test]
fn a_cut_file_gives_its_whole_records() {
    let [a, b, c] = three();
    let plain = [a.clone(), b.clone(), c.clone()].concat();
    for cut in [1, 5, 30, c.len() - 4, c.len() - 40] {
        let got = walk(&plain[..plain.len() - cut], Limits::default());
        let whole = if cut <= 4 { 3 } else { 2 };
        assert_eq!(got.iter().filter(|r| r.is_ok()).count(), whole, "{cut} bytes less");
        assert_eq!(got.iter().filter(|r| r.is_err()).count(), 3 - whole, "{cut} bytes less");
    }
    let members = [gzip(&a), gzip(&b), gzip(&c)];
    let bytes = members.concat();
    for cut in 1..members[2].len() {
        let got = walk(&bytes[..bytes.len() - cut], Limits::default());
        assert_eq!(got.iter().filter_map(|r| r.as_ref().ok()).collect::<Vec<_>>(), ["a", "b"], "{cut} bytes less");
        assert_eq!(got.len(), 3, "{cut} bytes less: the loss is told once: {got:?}");
    }
}

#[test]
fn a_damaged_gzip_member_costs_only_itself() {
    let [a, b, c] = three();
    let parts = [gzip(&a), gzip(&b), gzip(&c)];
    let at = parts[0].len();
    let mut lost = 0;
    for i in 0..parts[1].len() {
        for bit in [0x01, 0x40] {
            let mut bytes = parts.concat();
            bytes[at + i] ^= bit;
            let mut reader = WarcReader::new(Drip(&bytes, 777), Limits::default()).unwrap();
            let (mut whole, mut bad) = (Vec::new(), 0);
            while let Some(record) = reader.next().unwrap() {
                match record {
                    Ok(r) => whole.push((r.uri().unwrap().into_owned(), r.block.to_vec())),
                    Err(_) => bad += 1,
                }
            }
            let uris: Vec<_> = whole.iter().map(|(u, _)| u.as_str()).collect();
            // The header's time and system are checked by nothing; and the end of a record may be decoded before the damage comes.
            assert!(uris == ["a", "c"] && bad > 0 || uris == ["a", "b", "c"], "byte {i}: {uris:?}, {bad} rejected");
            for (_, block) in &whole {
                assert!(
                    [&a, &b, &c].iter().any(|r| r.windows(block.len()).any(|w| w == block)),
                    "byte {i}: a changed block is given out"
                );
            }
            lost += usize::from(uris.len() == 2);
        }
    }
    assert!(lost > parts[1].len(), "{lost} of {} flips found", 2 * parts[1].len());
}

#[test]
fn records_above_the_bound_are_not_loaded() {
    let [a, _, c] = three();
    let big = record("response", "big", "", &vec![b'x'; 3 << 20]);
    let bytes = [a, big, c].concat();
    let limits = Limits { max_header: 1 << 10, max_record: 1 << 20 };
    let got = walk(&bytes, limits);
    assert_eq!(got[0], Ok("a".into()));
    assert_eq!(got[1], Err("the record has 3145728 bytes, more than the 1048576 that are read".into()));
    assert_eq!(got[2], Ok("c".into()));
    let long = [record("response", &"u".repeat(2000), "", b"x"), three()[0].clone()].concat();
    assert_eq!(walk(&long, limits), [Err("the record's header is longer than 1024 bytes".into()), Ok("a".into())]);
}

#[test]
fn http_bodies_are_joined_and_decompressed() {
    let page = b"<html><p>A body that is long enough to be worth compressing, compressing, compressing.</p></html>".as_slice();
    let zlib = {
        let mut z = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        z.write_all(page).unwrap();
        z.finish().unwrap()
    };
    let raw = {
        let mut z = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        z.write_all(page).unwrap();
        z.finish().unwrap()
    };
    // A brotli stream of one uncompressed metablock: window bits 16, then MLEN - 1 in four nibbles, then ISUNCOMPRESSED.
    let brotli = {
        let header: u32 = (page.len() as u32 - 1) << 4 | 1 << 20;
        let mut b = header.to_le_bytes()[..3].to_vec();
        b.extend_from_slice(page);
        b.push(3); // the last, empty metablock
        b
    };
    let zst = zstd::bulk::compress(page, 3).unwrap();
    let chunk = |bytes: &[u8]| {
        let (x, y) = bytes.split_at(bytes.len() / 3);
        [format!("{:x};name=value\r\n", x.len()).as_bytes(), x, format!("\r\n{:X}\r\n", y.len()).as_bytes(), y, b"\r\n0\r\n\r\n"]
            .concat()
    };
    let cases: [(&str, Vec<u8>); 11] = [
        ("", page.to_vec()),
        ("Content-Encoding: gzip\r\n", gzip(page)),
        ("Content-Encoding: deflate\r\n", zlib),
        ("Content-Encoding: deflate\r\n", raw),
        ("content-encoding: BR\r\n", brotli),
        ("Content-Encoding: zstd\r\n", zst.clone()),
        ("Content-Encoding: gzip, zstd\r\n", zstd::bulk::compress(&gzip(page), 3).unwrap()),
        ("Transfer-Encoding: chunked\r\n", chunk(page)),
        ("Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n", chunk(&gzip(page))),
        // What crawlers decoded and did not say so.
        ("Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n", page.to_vec()),
        ("Content-Encoding: x-unknown\r\n", page.to_vec()),
    ];
    for (headers, body) in cases {
        let block = response(headers, &body);
        let got = Response::parse(&block, 1 << 20).unwrap();
        assert_eq!((got.status, &*got.body), (200, page), "{headers}");
    }
    let cut = response("Content-Encoding: gzip\r\n", &gzip(&page.repeat(1000))[..150]);
    let got = Response::parse(&cut, 1 << 20).unwrap();
    assert!(got.body.len() > 1000 && page.repeat(1000).starts_with(&got.body), "the beginning of a cut body");
    let bomb = response("Content-Encoding: gzip\r\n", &gzip(&vec![0; 5 << 20]));
    assert_eq!(Response::parse(&bomb, 1 << 20).unwrap_err(), "the body is larger than 1048576 bytes once decompressed");
    assert_eq!(Response::parse(b"hello", 10).unwrap_err(), "the response has no HTTP status line");
}

#[test]
fn wet_records_become_documents_as_in_ccnet() {
    let block = "  The title \r\nFirst line.\u{a0}\n\n\tSecond\rThird\u{1f}\n";
    let language = "WARC-Identified-Content-Language: eng,deu\r\nWARC-Block-Digest: sha1:ABC\r\n";
    let bytes = [
        record("warcinfo", "", "", b"x"),
        record("conversion", "http://x/", language, block.as_bytes()),
        record("conversion", "http://x/", "", b"Only a title"),
    ]
    .concat();
    let (records, rejected, summary) = read_all(&gzip(&bytes), &commoncrawl::Options::default());
    assert!(rejected.is_empty());
    assert_eq!((summary.records, summary.documents, summary.skipped["warcinfo"]), (3, 2, 1));
    assert_eq!(records[0].id, "http://x/");
    assert_eq!(records[0].text, "First line.\n\nSecond\nThird");
    let meta = serde_json::json!({"url": "http://x/", "date": "2024-05-18T01:58:10Z", "digest": "sha1:ABC", "language": "eng,deu", "title": "The title"});
    assert_eq!(serde_json::Value::Object(records[0].meta.clone()), meta);
    assert_eq!((records[1].id.as_str(), records[1].text.as_str()), ("http://x/ <urn:uuid:12>", ""));
    let options = commoncrawl::Options { title_in_text: true, ..Default::default() };
    assert_eq!(read_all(&bytes, &options).0[0].text, "The title\nFirst line.\n\nSecond\nThird");
}

#[test]
fn a_file_of_another_kind_is_an_error_that_says_so() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "filedesc://x 0.0.0.0 2008 text/plain 76\n1 0 Org\n").unwrap();
    let error = commoncrawl::read(file.path(), &commoncrawl::Options::default(), &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("not a usable WARC file: record 1 at byte 0") && error.contains("ARC files"), "{error}");
    assert!(commoncrawl::read(Path::new("/nowhere"), &commoncrawl::Options::default(), &mut |_| Ok(())).is_err());
    assert_eq!(read_all(b"", &commoncrawl::Options::default()).2.records, 0);
}

#[test]
fn mutated_warc_files_do_no_harm() {
    let page = response("Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", &gzip(b"<p>text</p>"));
    let mut parts = three().to_vec();
    parts.push(record("response", "http://x/", "WARC-Payload-Digest: sha1:A\r\n", &page));
    parts.push(record("resource", "file:x", "Content-Type: text/html\r\n", b"<html><p>resource</p>"));
    parts.push(b"WARC/1.0\nWARC-Type: conversion\nContent-Length: 3\n\nabc\n\nWARC/1.0\r\nfolded:\r\n x\r\nContent-Length: 18446744073709551615\r\n\r\n".to_vec());
    let plain: Vec<Vec<u8>> =
        (0..parts.len()).map(|i| [parts[i].clone(), parts[(i + 1) % parts.len()].clone()].concat()).collect();
    let mut seeds = plain.clone();
    seeds.extend(plain.iter().map(|p| gzip(p)));
    seeds.push(parts.iter().flat_map(|p| gzip(p)).collect());
    seeds.push(b"\x1f\x8b\x08".repeat(30));
    let limits = Limits { max_header: 2000, max_record: 20_000 };
    let options = commoncrawl::Options { limits, max_body: 100_000, ..Default::default() };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (mut whole, mut bad) = (0, 0);
    for i in 0..fuzz() {
        // Half of the gzip ones are mutated inside and then compressed, so that they are read at all.
        let mut bytes = mutate(&mut rng, &seeds);
        if i % 4 == 0 {
            bytes = gzip(&bytes);
        }
        let mut reader = WarcReader::new(Drip(&bytes, 1 + rng.random_range(0..4096)), limits).unwrap();
        while let Some(record) = reader.next().unwrap() {
            match record {
                Ok(record) => {
                    assert!(record.block.len() <= limits.max_record);
                    assert_eq!(record.head.get("Content-Length").unwrap().parse(), Ok(record.block.len()));
                    if record.kind() == "response" {
                        let _ =
                            Response::parse(record.block, options.max_body).map(|r| assert!(r.body.len() <= options.max_body));
                    }
                    whole += 1;
                }
                Err(rejected) => {
                    assert!(!rejected.reason.is_empty() && !rejected.place.is_empty());
                    bad += 1;
                }
            }
        }
    }
    println!("{whole} whole records, {bad} rejected");
    assert!(whole > fuzz() / 2 && bad > fuzz() / 4, "the mutations must leave some and spoil some");
}

#[test]
fn hostile_warc_files_are_read_through() {
    let n = 100_000;
    let lengths: Vec<u8> = "WARC/1.0\nContent-Length: 16777216\n\n".repeat(n).into_bytes();
    let cases = [
        ("headers that each claim 16 MiB", lengths),
        ("no line ends", b"WARC/1.0".repeat(n)),
        ("line ends only", b"\r\n".repeat(n * 4)),
        ("gzip magics", b"\x1f\x8b\x08\x00".repeat(n)),
        ("gzip names without end", b"\x1f\x8b\x08\x08".repeat(n)),
        ("empty gzip members", gzip(b"").repeat(n / 4)),
        ("a bomb", gzip(&vec![b'\n'; 200 << 20])),
    ];
    for (what, bytes) in cases {
        let mut reader = WarcReader::new(&bytes[..], Limits::default()).unwrap();
        while let Some(record) = reader.next().unwrap() {
            assert!(record.is_err(), "{what}");
        }
    }
}
