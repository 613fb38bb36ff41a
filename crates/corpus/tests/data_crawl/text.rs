//! CCNet's paragraphs, C4's rules, sentences; published C4.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use recua_corpus::{
    Cleaned, Record, Rejected,
    filters::{
        c4::{BadWords, C4Rules, Scope, clean_page, dedup_lines, is_validation, normalize_url, page_rank},
        ccnet::{self, CcnetRules, Seen, hash_line, hash_lines, normalize_for_dedup},
        sentences::count_sentences,
    },
    sources::{c4 as c4_source, commoncrawl},
};

use super::{fuzz, gzip, mutate};

#[test]
fn paragraphs_are_normalised_and_hashed_as_ccnet_does() {
    assert_eq!(normalize_for_dedup("  Héllo, “Wörld” 12\t x "), "héllo, wörld 00 x");
    // Python: normalize_for_dedup of the published code.
    let cases = [
        ("", ""),
        ("ASCII 3.14 (punct!) stays; DEL\u{7f} goes", "ascii 0.00 (punct!) stays; del goes"),
        ("«１２» ٣४๕ ½ ²", "00 000 ½ ²"),
        ("ΟΔΥΣΣΕΥΣ — İstanbul…", "οδυσσευς  i\u{307}stanbul"),
        ("\u{1c}a\u{85}b\u{9f}c\u{1d}", "abc"),
        ("、。～％１", "0"),
        ("ẞ Ǆ K", "ß ǆ k"),
    ];
    for (line, normal) in cases {
        assert_eq!(normalize_for_dedup(line), normal, "{line:?}");
    }
    // The first 8 bytes of SHA-1, little-endian.
    assert_eq!(hash_line("hello"), 11_738_849_977_924_252_842);
    assert_eq!(hash_line("_world"), 7_926_991_454_880_214_633);
    assert_eq!(hash_line("  "), 957_977_401_221_134_810);
    assert_eq!(hash_lines("Hello\n\n HELLO "), [11_738_849_977_924_252_842, 957_977_401_221_134_810, 11_738_849_977_924_252_842]);
}

#[test]
fn every_copy_of_a_paragraph_goes_in_two_passes() {
    let texts = ["One.\nshared\nTwo.\nTwo.", "SHARED \nThree.\n\nFour.", "shared", "\nFive."];
    let kept = Seen::dedup(texts.iter().copied(), false);
    let lines: Vec<_> = kept.iter().map(|k| (k.text.as_str(), k.line_ids.clone())).collect();
    // `Two.` is repeated in one document only: not a duplicate, but once is enough. The blank line is one of two.
    assert_eq!(lines, [("One.\nTwo.", vec![0, 2]), ("Three.\nFour.", vec![1, 3]), ("", vec![]), ("Five.", vec![1])]);
    let kept = Seen::dedup(texts.iter().copied(), true);
    let lines: Vec<_> = kept.iter().map(|k| k.text.as_str()).collect();
    assert_eq!(lines, ["One.\nshared\nTwo.", "Three.\n\nFour.", "", "Five."]);
    let cleaned = ccnet::clean_lines("a\na\nb", &[7, 7, 0], |_| false);
    assert_eq!((cleaned.text.as_str(), cleaned.removed.len()), ("a", 2), "a key of 0 goes");
    assert_eq!(ccnet::clean_lines("a", &[7], |_| true).dropped.as_deref(), Some("all_lines_duplicate"));
    let rules = CcnetRules { min_chars: 3 };
    assert_eq!(ccnet::clean_page("éé", &rules).dropped.as_deref(), Some("too_short"));
    assert_eq!(ccnet::clean_page("ééé", &rules), Cleaned::kept("ééé".into()));
}

const PAGE: &str = "The first sentence is here. And a second one is.\nA third sentence ends the page.";

fn verdict(text: &str, rules: &C4Rules) -> String {
    let cleaned = clean_page(text, rules);
    cleaned.dropped.map_or(cleaned.text, |reason| format!("dropped: {reason}"))
}

#[test]
fn c4_rules_in_their_order() {
    let rules = C4Rules::default();
    assert_eq!(verdict(PAGE, &rules), PAGE);
    // Each line alone, between the three sentences of the page: what becomes of it.
    let removed = [
        ("short line here now.", "too_few_words"),
        ("this line has no mark at its end", "no_end_mark"),
        ("this line ends with an ellipsis...", "no_end_mark"),
        ("please enable JavaScript to see this page.", "javascript"),
        ("javascript with a { in the line is a line's matter.", "javascript"),
        ("we have a Privacy Policy for you here.", "policy"),
        ("this site uses cookies as they all do.", "policy"),
        ("four words and [1] [edit].", "too_few_words"),
        ("“curly quotes are no mark at the end.”", "no_end_mark"),
    ];
    for (line, rule) in removed {
        let cleaned = clean_page(&format!("{PAGE}\n{line}"), &rules);
        assert_eq!(cleaned.text, PAGE, "{line}");
        assert_eq!(cleaned.removed.iter().map(|r| (r.rule, r.text.as_str())).collect::<Vec<_>>(), [(rule, line)]);
    }
    let long = format!("a line with a {} word in it.", "w".repeat(1001));
    assert_eq!(clean_page(&format!("{PAGE}\n{long}"), &rules).removed[0].rule, "long_word");
    let kept = [
        "it ends with a quotation \"mark of a line\"",
        "a word of 1000 letters is kept here.",
        "is this a question to you?",
        "what an exclamation this is here!",
    ];
    for line in kept {
        assert_eq!(verdict(&format!("{PAGE}\n  {line}\t"), &rules), format!("{PAGE}\n{line}"));
    }
    let citations = "It is known[12] that [] this[edit] holds[citation needed] and [a1] stays.";
    assert_eq!(verdict(&format!("{PAGE}\n{citations}"), &rules), format!("{PAGE}\nIt is known that  this holds and [a1] stays."));
    let dropped = [
        ("this is Lorem IPSUM for all of you.", "lorem_ipsum"),
        ("lorem ipsum comes before javascript in the order.", "lorem_ipsum"),
        ("a policy line with { and terms of use.", "curly_bracket"),
    ];
    for (line, reason) in dropped {
        assert_eq!(verdict(&format!("{PAGE}\n{line}"), &rules), format!("dropped: {reason}"));
    }
    assert_eq!(verdict(&format!("{PAGE}\n{{ in a line without a mark"), &rules), PAGE, "lines that go say nothing of the page");
    assert_eq!(verdict("One sentence is not enough here.\nAnd two are too few also.", &rules), "dropped: too_few_sentences");
    assert_eq!(verdict(&"é".repeat(190_001), &rules), "dropped: too_long");
    assert_ne!(verdict(&"é".repeat(190_000), &rules), "dropped: too_long");
    assert_eq!(verdict("", &rules), "dropped: too_few_sentences");
    // Python's line ends.
    assert_eq!(verdict(&PAGE.replace('\n', "\u{2028}"), &rules), PAGE);
}

#[test]
fn c4_bad_words_by_line_and_by_page() {
    let words = ["darn", "bad phrase"];
    let with = |scope| C4Rules { bad_words: BadWords::new(&words, scope), ..Default::default() };
    let cases = [
        ("he said Darn and went away.", [true, true, true]),
        ("darn it all, he said then.", [false, true, true]), // no character before it in the line, but one in the page
        ("the darning of socks is hard.", [false, false, true]),
        ("the darn2 of socks is hard.", [true, false, true]),
        ("this is a bad phrase, it is.", [true, true, true]),
        ("nothing is wrong with this line.", [false, false, false]),
    ];
    for (line, want) in cases {
        let got = [Scope::Line, Scope::Page, Scope::Anywhere]
            .map(|s| verdict(&format!("{PAGE}\n{line}"), &with(s)) == "dropped: bad_word");
        assert_eq!(got, want, "{line}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(BadWords::open(file.path(), Scope::Page).unwrap_err().to_string().contains("no words"));
    std::fs::write(file.path(), "Darn\n\n").unwrap();
    assert!(BadWords::open(file.path(), Scope::Page).unwrap().found_in("darn"));
}

#[test]
fn c4_addresses() {
    let cases = [
        ("https://www.x.org/a/", "x.org/a"),
        ("http://x.org/a?b=1&utm_source=c", "x.org/a?b=1&utm_source=c"),
        ("http://x.org/a?utm_source=c#d", "x.org/a"),
        ("http://x.org/a?reference=1", "x.org/a"),
        ("http://x.org//?feed=rss", "x.org"),
        ("http://a.org/?u=https://www.b.org/", "a.org/?u=b.org"),
        ("ftp://x.org/http", "ftp://x.org/http"),
    ];
    for (url, normal) in cases {
        assert_eq!(normalize_url(url), normal);
    }
    // Python: int(md5(url).hexdigest(), 16) % 1000 == 0.
    let validation: Vec<_> = (0..3000).map(|i| format!("x.org/{i}")).filter(|u| is_validation(u)).collect();
    assert_eq!(validation, VALIDATION);
}

const VALIDATION: [&str; 2] = ["x.org/1407", "x.org/2997"];

#[test]
fn c4_lines_stay_on_one_page() {
    let a = "This line is on both pages. It is.\nOnly the first page has this one here.\nAnd it has this third line also.";
    let b = "THIS line is on both pages. It is. \nThe second page has a line too.\nThe second page has a line too.\nIt has. Three. Sentences.";
    let got = dedup_lines(&[("x.org/a", a), ("x.org/b", b)], &C4Rules::default());
    let a_wins = page_rank("x.org/a") < page_rank("x.org/b");
    let (winner, loser) = if a_wins { (&got[0], &got[1]) } else { (&got[1], &got[0]) };
    assert_eq!(winner.removed.iter().filter(|r| r.rule == "duplicate_line").count(), 0);
    assert_eq!(loser.removed.iter().filter(|r| r.rule == "duplicate_line").count(), 1);
    assert_eq!(got[1].removed.iter().filter(|r| r.rule == "repeated_line").count(), 1);
    let one = dedup_lines(
        &[("x.org/a", "Same. Same again. And again."), ("x.org/b", "Same. Same again. And again.")],
        &C4Rules::default(),
    );
    let dropped: Vec<_> = one.iter().map(|c| c.dropped.as_deref()).collect();
    assert_eq!(dropped, if a_wins { [None, Some("empty")] } else { [Some("empty"), None] });
    let few = dedup_lines(&[("x.org/a", "Two sentences. Not three.")], &C4Rules::default());
    assert_eq!(few[0].dropped.as_deref(), Some("too_few_sentences"));
}

#[test]
fn sentences_are_counted_as_punkt_counts() {
    let cases = [
        ("", 0),
        ("   ", 0),
        ("No mark at all", 1),
        ("One. Two! Three? Four", 4),
        ("Mr. Smith met Dr. Jones at 5 p.m. on Jan. 5.", 1),
        ("He works at Acme Inc. The firm is old.", 2),
        ("He came from the U.S. last year.", 1),
        ("J. S. Bach lived. P. Picasso did not.", 2),
        ("It cost 3.50 dollars. It was cheap.", 2),
        ("Chapter 3. introduces the matter.", 1),
        ("Wait... what? No way!", 2),
        ("\"Is it?\" he asked. (It was.) Yes.", 4),
        ("He said \"Stop.\" Then he left.", 2),
        ("See e.g. the first, i.e. this one.", 3), // Punkt's English model does not know these two
        ("what?! No.", 2),
        ("www.x.org is a site. So is y.com.", 2),
        ("It ends.And goes on without a space.", 1),
    ];
    for (text, n) in cases {
        assert_eq!(count_sentences(text), n, "{text}");
    }
}

#[test]
fn mutated_pages_of_text_do_no_harm() {
    let mut seeds: Vec<Vec<u8>> = [
        PAGE,
        "Mr. A. B. said \"x.\" (y) [1] [citation needed] lorem ipsum {",
        "[1[2][[[edit]]]…\u{2028}a.\u{85}b. . . c... d?!\" “e.”",
        "......,,,,----\u{a0}?\u{1c}!\u{1f}",
    ]
    .iter()
    .map(|s| s.as_bytes().to_vec())
    .collect();
    seeds.push(b". ".repeat(200));
    seeds.push("[".repeat(300).into_bytes());
    let rules = C4Rules { bad_words: BadWords::new(&["bad", "a"], Scope::Line), ..Default::default() };
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut kept = 0;
    for _ in 0..fuzz() {
        let bytes = mutate(&mut rng, &seeds);
        let text = String::from_utf8_lossy(&bytes);
        let cleaned = clean_page(&text, &rules);
        kept += u64::from(cleaned.dropped.is_none());
        assert!(cleaned.text.len() <= text.len());
        let hashes = hash_lines(&text);
        assert_eq!(hashes.len(), text.split('\n').count());
        let left = ccnet::remove_lines(&text, &hashes, |h| h % 2 == 0, |_, _| {});
        assert_eq!(left.line_ids.len(), if left.line_ids.is_empty() { 0 } else { left.text.split('\n').count() });
        let (_, all) = commoncrawl::wet_text(&text, true);
        assert!(all.len() <= text.len());
        let normal = normalize_for_dedup(&text);
        assert!(!normal.contains(|c: char| c.is_control()
            || c.is_ascii_uppercase()
            || c != '0' && ccnet::is_digit(c)
            || ccnet::UNICODE_PUNCT.contains(&c)));
    }
    assert!(kept > 0, "some pages must pass");
}

#[test]
fn long_lines_are_worked_through() {
    let n = 300_000;
    for text in ["a.", ". ", "? a ", "\"", "[1", "[", "a.\" ", "e. ", "\u{a0}.", "-", "x,", "["] {
        let text = text.repeat(n);
        let count = count_sentences(&text);
        let cleaned = clean_page(&text, &C4Rules { max_page_chars: usize::MAX, ..Default::default() });
        assert!(count <= text.len() && cleaned.text.len() <= text.len());
    }
}

fn c4_read(bytes: &[u8], max_line: usize) -> (Vec<Record>, Vec<Rejected>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let (mut records, mut rejected) = (Vec::new(), Vec::new());
    c4_source::read(file.path(), c4_source::Options { max_line }, &mut |r| {
        match r {
            Ok(r) => records.push(r),
            Err(r) => rejected.push(r),
        }
        Ok(())
    })
    .unwrap();
    (records, rejected)
}

#[test]
fn published_c4_is_read() {
    let lines = "{\"text\":\"one\\n\u{e9}\",\"timestamp\":\"2019-04-25T12:57:54Z\",\"url\":\"http://x/1\"}\n\nnot json\n{\"text\":3}\n{\"text\":\"again\",\"url\":\"http://x/1\"}\n{\"text\":\"no url\"}";
    let bytes = lines.as_bytes();
    let zst = zstd::encode_all(bytes, 1).unwrap();
    let two: Vec<u8> = [gzip(&bytes[..40]), gzip(&bytes[40..])].concat();
    for (what, bytes) in [("plain", bytes.to_vec()), ("gzip", gzip(bytes)), ("two members", two), ("zstd", zst)] {
        let (records, rejected) = c4_read(&bytes, 1000);
        let ids: Vec<_> = records.iter().map(|r| (r.id.as_str(), r.text.as_str())).collect();
        assert_eq!(ids, [("http://x/1", "one\né"), ("http://x/1 line 5", "again"), ("line 6", "no url")], "{what}");
        assert_eq!(
            serde_json::Value::from(records[0].meta.clone()),
            serde_json::json!({"timestamp": "2019-04-25T12:57:54Z", "url": "http://x/1"})
        );
        let places: Vec<_> = rejected.iter().map(|r| r.place.as_str()).collect();
        assert_eq!(places, ["line 3", "line 4"], "{what}");
        assert_eq!(rejected[1].reason, "the object has no string `text`");
    }
    let (records, rejected) = c4_read(format!("{{\"text\":\"{}\"}}\n{{\"text\":\"b\"}}\n", "x".repeat(500)).as_bytes(), 100);
    assert_eq!(
        (records.len(), records[0].text.as_str(), rejected[0].reason.as_str()),
        (1, "b", "the line is longer than 100 bytes")
    );
    let gz = gzip(bytes);
    let (_, rejected) = c4_read(&gz[..gz.len() - 9], 1000);
    assert!(rejected.last().unwrap().reason.starts_with("the compressed file is damaged or cut here"), "{rejected:?}");
}
