//! Books: Gutenberg's headers and footers, and overlap. Expectations follow from the definitions; SimHash's from the Python package
//! `simhash` (`python -c "from simhash import Simhash; print(Simhash([...]).value)"`).

use std::{collections::HashSet, io::Write, path::Path};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recua_corpus::{
    Record, Rejected,
    dedup::overlap::{
        SKETCH, THRESHOLD, WORDS, candidates, duplicates, estimate, overlap, redpajama_simhash, shingle_set, simhash,
        simhash_duplicates, sketch,
    },
    sources::books::{Options, clean, read},
};

const HEADER: &str = "The Project Gutenberg EBook of A Title, by An Author\n\nThis eBook is for the use of anyone anywhere\n\nTitle: A Title\n\nAuthor: An Author\n\nRelease Date: March, 1994 [EBook #11]\n\nLanguage: English\n\n";
const BOOK: &str = "CHAPTER I\n\nIt was a dark night.\n\n*** *** ***\n\nThe end of the chapter.";
const LICENCE: &str = "\n\nUpdated editions will replace the previous one\nsee www.gutenberg.org\n";

fn text(book: &str) -> String {
    clean(book, &Options::default()).text
}

fn read_all(path: &Path, options: &Options) -> Vec<Result<Record, Rejected>> {
    let mut all = Vec::new();
    let mut sink = |record| {
        all.push(record);
        Ok(())
    };
    read(path, options, &mut sink).unwrap();
    all
}

#[test]
fn headers_and_footers_in_all_their_forms() {
    for start in [
        "*** START OF THE PROJECT GUTENBERG EBOOK A TITLE ***",
        "*** START OF THIS PROJECT GUTENBERG EBOOK A TITLE ***",
        "***START OF THE PROJECT GUTENBERG EBOOK A TITLE***",
        "*** START OF THIS PROJECT GUTENBERG EBOOK A VERY\nLONG TITLE\nINDEED ***",
        "*** START OF THE PROJECT GUTENBERG ETEXT A TITLE ***",
        "Start of the Project Gutenberg EBook of A Title",
        "**The Small Print! For Public Domain Etexts**\nlaw\n\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
        "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN EBOOKS**START***\nlaw\n*END THE SMALL PRINT! FOR PUBLIC DOMAIN EBOOKS*Ver.02/11/02*END*",
        "",
    ] {
        for end in [
            "*** END OF THE PROJECT GUTENBERG EBOOK A TITLE ***",
            "*** END OF THIS PROJECT GUTENBERG EBOOK A TITLE ***",
            "***END OF THE PROJECT GUTENBERG EBOOK A TITLE***",
            "End of the Project Gutenberg EBook of A Title, by An Author\n\n*** END OF THIS PROJECT GUTENBERG EBOOK A TITLE ***",
            "End of The Project Gutenberg EBook of A Long\nTitle, by An Author\n\n\n*** END OF THIS PROJECT GUTENBERG EBOOK A TITLE ***",
            "End of Project Gutenberg's A Title, by An Author",
            "End of this Project Gutenberg Etext of A Title",
            "Ende dieses Projekt Gutenberg Etextes",
            "***** This file should be named 11-0.txt or 11-0.zip *****",
            "*** START: FULL LICENSE ***",
            "",
        ] {
            let book = format!("{HEADER}{start}\n\n\n{BOOK}\n\n{end}{LICENCE}");
            assert_eq!(text(&book), BOOK, "{start} .. {end}");
            assert_eq!(text(&book.replace('\n', "\r\n")), BOOK);
        }
    }
}

#[test]
fn a_missing_side_and_no_gutenberg_book() {
    assert_eq!(text(&format!("{BOOK}\n\n*** END OF THE PROJECT GUTENBERG EBOOK A ***{LICENCE}")), BOOK);
    assert_eq!(text(&format!("{HEADER}\n{BOOK}")), BOOK);
    assert_eq!(text(&format!("Project Gutenberg's A, by B\n\n{BOOK}")), BOOK);
    assert_eq!(text(BOOK), BOOK);
    let own = "Title: My Book\nAuthor: Me\n\nProduced by me, START OF nothing.\n\nEnd of the story.";
    assert_eq!(text(own), own);
    assert_eq!(clean(HEADER, &Options::default()).dropped.as_deref(), Some("empty"));
}

#[test]
fn a_line_like_a_marker_in_the_middle_is_the_books() {
    let start = "*** START OF THE PROJECT GUTENBERG EBOOK A ***";
    let end = "*** END OF THE PROJECT GUTENBERG EBOOK A ***";
    // An essay about these files, longer than a footer after the lines that it quotes.
    let essay = format!(
        "I\n\nThey begin\n\n{start}\n\nand they end\n\n{end}\n\nor, of old,\n\n*END*THE SMALL PRINT!\n\n{}",
        "words of an essay\n".repeat(5000).trim_end()
    );
    assert_eq!(text(&format!("{HEADER}{start}\n\n{essay}\n\n{end}{LICENCE}")), essay);
    assert_eq!(text(&format!("{HEADER}{start}\n\n{essay}")), essay);
    // A short one, where the true end comes later.
    let short = format!("I\n\nthey end\n\n{end}\n\nand so on to\n\na last\n\nline\n\nand\n\nmore");
    assert_eq!(text(&format!("{HEADER}{start}\n\n{short}\n\n{end}{LICENCE}")), short);
}

#[test]
fn credits_and_notes() {
    let start = "*** START OF THE PROJECT GUTENBERG EBOOK A ***";
    let credits = "Produced by Some One and the Online\nProofreading Team\n\n\n[This etext was first made in 1999]\n\n***\n\nTranscribed from the 1915 edition\nemail x@y.z\n\n";
    let note = "[Transcriber's Note: Spelling\n\nas in the original.]\n\n";
    let book = format!("{HEADER}{start}\n\n{credits}{note}{BOOK}\n\nTranscriber’s Notes:\nnone\n");
    let kept = clean(&book, &Options { remove_credits: false, ..Options::default() }).text;
    assert!(kept.starts_with("Produced by Some One"));
    assert_eq!(text(&book), format!("{note}{BOOK}\n\nTranscriber’s Notes:\nnone"));
    let cleaned = clean(&book, &Options { remove_notes: true, ..Options::default() });
    assert_eq!(cleaned.text, BOOK);
    let rules: HashSet<_> = cleaned.removed.iter().map(|r| r.rule).collect();
    assert_eq!(rules, HashSet::from(["gutenberg_header", "credits", "transcribers_note"]));
    let inside = format!("{HEADER}{start}\n\n{BOOK}\n\nProduced by the wind.");
    assert!(text(&inside).ends_with("Produced by the wind."));
}

#[test]
fn white_space_of_books() {
    assert_eq!(text("a  \n\n\n\n\n  b\n"), "a\n\n\n  b");
}

#[test]
fn reading_files_folders_and_zips() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir(path("sub")).unwrap();
    std::fs::write(path("sub/b.txt"), format!("\u{feff}{HEADER}{BOOK}").replace('\n', "\r\n")).unwrap();
    std::fs::write(path("latin.TXT"), b"Caf\xe9 \x93old\x94\r\nbook").unwrap();
    std::fs::write(path("binary.txt"), b"a\0b").unwrap();
    std::fs::write(path("ignored.html"), b"x").unwrap();
    std::fs::write(path(".hidden.txt"), b"x").unwrap();
    std::fs::write(path("broken.zip"), b"PK no").unwrap();
    let zip = |name: &str, files: &[(&str, &str)]| {
        let mut writer = zip::ZipWriter::new(std::fs::File::create(path(name)).unwrap());
        for (name, text) in files {
            writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            writer.write_all(text.as_bytes()).unwrap();
        }
        writer.finish().unwrap();
    };
    zip("11.zip", &[("11.txt", "eleven"), ("11.html", "no")]);
    zip("two.zip", &[("a.txt", "A"), ("b.txt", "B")]);
    zip("none.zip", &[("a.html", "A")]);
    let all = read_all(dir.path(), &Options::default());
    let ids: Vec<_> =
        all.iter().map(|r| r.as_ref().map(|r| (r.id.as_str(), r.text.as_str())).map_err(|r| r.place.as_str())).collect();
    let book = format!("{HEADER}{BOOK}");
    assert_eq!(
        ids,
        [
            Ok(("11", "eleven")),
            Err("binary"),
            Err("broken"),
            Ok(("latin", "Café “old”\nbook")),
            Err("none"),
            Ok(("sub/b", &book)),
            Ok(("two/a", "A")),
            Ok(("two/b", "B"))
        ]
    );
    let meta = &all[5].as_ref().unwrap().meta;
    assert_eq!(
        serde_json::to_value(meta).unwrap(),
        serde_json::json!({"title": "A Title", "author": "An Author", "language": "English", "ebook": "11"})
    );
    assert_eq!(all[3].as_ref().unwrap().meta["latin1"], true);
    let small = Options { max_book: 5, ..Options::default() };
    assert_eq!(read_all(&path("11.zip"), &small)[0].as_ref().unwrap_err().reason, "more than 5 bytes");
    assert_eq!(read_all(&path("sub/b.txt"), &Options::default())[0].as_ref().unwrap().id, "b");
    assert!(read(&path("absent.txt"), &Options::default(), &mut |_| Ok(())).is_err());
}

#[test]
fn titles_from_the_first_line_and_over_lines() {
    let dir = tempfile::tempdir().unwrap();
    let meta = |text: &str| {
        std::fs::write(dir.path().join("a.txt"), text).unwrap();
        serde_json::to_value(read_all(dir.path(), &Options::default()).remove(0).unwrap().meta).unwrap()
    };
    assert_eq!(
        meta("Project Gutenberg’s A Tale, by Some One\n\ntext"),
        serde_json::json!({"title": "A Tale", "author": "Some One"})
    );
    assert_eq!(
        meta(
            "The Project Gutenberg eBook, X\n\nTitle: One\n       Two\n\nAuthor: A\n\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\nTitle: no"
        ),
        serde_json::json!({"title": "One Two", "author": "A"})
    );
    assert_eq!(meta("Title: a book\n\nAuthor: who is not of that library"), serde_json::json!({}));
}

fn words(rng: &mut ChaCha8Rng, n: usize) -> Vec<String> {
    (0..n).map(|_| format!("w{}", rng.random_range(0..50_000))).collect()
}

#[test]
fn overlap_by_its_definition() {
    // 6 words: two shingles of 5, of which one is shared.
    assert_eq!(overlap("a b c d e f", "A, b; c -- d_e x"), 0.5);
    assert_eq!(overlap("a b c d e f g h i", "a b c d e"), 1.0, "the later one is contained");
    assert_eq!(overlap("a b c d e", "a b c d e f g h i"), 0.2);
    assert_eq!(
        (overlap("don’t STOP ÉTÉ", "don't stop été"), overlap("a", "b"), overlap("", ""), overlap("x", "")),
        (1.0, 0.0, 0.0, 0.0)
    );
    assert_eq!(shingle_set("a b c d e a b c d e a b c d e").len(), WORDS, "distinct shingles");
    // One word in 100 changed: about 5 shingles in 100.
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let first = words(&mut rng, 20_000);
    let mut second = first.clone();
    second.iter_mut().step_by(100).for_each(|w| *w = "changed".into());
    let (first, second) = (first.join(" "), second.join(" "));
    assert!((overlap(&first, &second) - 0.95).abs() < 0.002);
    let (share, of) = estimate(&sketch(&first), &sketch(&second));
    assert!(of > 200 && (share - 0.95).abs() < 0.06, "{share} {of}");
}

#[test]
fn sketches_are_the_smallest_hashes() {
    let text = words(&mut ChaCha8Rng::seed_from_u64(4), 5000).join(" ");
    assert_eq!(sketch(&text).hashes(), &shingle_set(&text)[..SKETCH]);
    assert_eq!(sketch("a b c d e f").hashes(), shingle_set("a b c d e f"));
    assert_eq!(sketch("").hashes(), [0_u64; 0]);
}

#[test]
fn candidates_have_all_pairs_that_overlap() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut books: Vec<Vec<String>> = (0..60).map(|_| words(&mut rng, 3000)).collect();
    for i in 0..20 {
        let mut copy = books[i].clone();
        copy.iter_mut().skip(i % 7).step_by(40 + 10 * i).for_each(|w| *w = "other".into());
        books.push(copy);
    }
    books.push(books[0][..1500].to_vec()); // an excerpt
    books.push([books[1].clone(), words(&mut rng, 3000)].concat()); // and a collection, which only half is old
    let texts: Vec<_> = books.iter().map(|b| b.join(" ")).collect();
    let sketches: Vec<_> = texts.iter().map(|t| sketch(t)).collect();
    let found: HashSet<_> = candidates(&sketches).into_iter().collect();
    for later in 0..texts.len() {
        for earlier in 0..later {
            let share = overlap(&texts[earlier], &texts[later]);
            assert!(share <= THRESHOLD || found.contains(&(earlier, later)), "{earlier} {later} {share}");
            assert!(share > 0.1 || !found.contains(&(earlier, later)), "{earlier} {later} {share}");
        }
    }
    let gone = duplicates(&candidates(&sketches), THRESHOLD, |a, b| Ok(overlap(&texts[a], &texts[b]))).unwrap();
    let wanted: Vec<usize> = (60..81).filter(|&i| (0..60).any(|e| overlap(&texts[e], &texts[i]) > THRESHOLD)).collect();
    assert_eq!(gone.iter().map(|g| g.0).collect::<Vec<_>>(), wanted);
    assert!(wanted.len() > 10 && wanted.contains(&80) && !wanted.contains(&81));
}

#[test]
fn the_earlier_stays_and_there_are_no_chains() {
    // 0 ~ 1, 1 ~ 2, but not 0 ~ 2: 1 goes, and 2 has nothing that stays and contains it.
    let mut asked = Vec::new();
    let gone = duplicates(&[(0, 1), (0, 2), (1, 2), (0, 3), (2, 3)], 0.9, |a, b| {
        asked.push((a, b));
        Ok(if (a, b) == (0, 2) { 0.5 } else { 0.95 })
    });
    assert_eq!(gone.unwrap(), [(1, 0, 0.95), (3, 0, 0.95)]);
    assert_eq!(asked, [(0, 1), (0, 2), (0, 3)], "one that goes is not asked about");
    assert_eq!(duplicates(&[(0, 1)], 0.9, |_, _| Ok(0.9)).unwrap(), [], "more than 90 %");
    // Many copies, and a shingle that all share: the first copy is found.
    let copies = vec![sketch("the same words of a book again and again and once more"); 3000];
    let gone = duplicates(&candidates(&copies), THRESHOLD, |_, _| Ok(1.0)).unwrap();
    assert!(gone.len() == 2999 && gone.iter().all(|g| g.1 == 0));
}

#[test]
fn simhash_as_the_python_package() {
    assert_eq!(simhash(["aaa", "bbb"]), 57087923692560392);
    assert_eq!(redpajama_simhash("Aaa, BBB!"), simhash(["aaabbb"]));
    assert_eq!(
        redpajama_simhash("The_cat's 9 LIVES"),
        simhash(["the_ca", "he_cat", "e_cats", "_cats9", "cats9l", "ats9li", "ts9liv", "s9live", "9lives"])
    );
    assert_eq!(redpajama_simhash(""), simhash([""]));
    assert_eq!(redpajama_simhash("ⓐ é\u{301}²"), simhash(["é²"]), "Python's letters and digits, no marks or symbols");
}

#[test]
fn simhash_duplicates_are_those_within_the_distance() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let mut hashes: Vec<u64> = (0..300).map(|_| rng.random()).collect();
    for i in 0..300 {
        let bits = (0..i % 9).fold(0, |bits, _| bits | 1_u64 << rng.random_range(0..64));
        hashes.push(hashes[i] ^ bits);
    }
    let wanted: Vec<usize> = (0..600).filter(|&i| hashes[..i].iter().any(|h| (h ^ hashes[i]).count_ones() <= 5)).collect();
    assert_eq!(simhash_duplicates(&hashes, 5), wanted);
    assert!(wanted.len() > 150 && wanted.len() < 299);
    assert_eq!(simhash_duplicates(&[0, 1, 3], 1), [1, 2], "one that goes still removes another");
}

#[test]
fn fuzz_books() {
    let rounds: usize = std::env::var("RECUA_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    let end = "End of the Project Gutenberg EBook of A\n\n*** END OF THIS PROJECT GUTENBERG EBOOK A ***\n";
    let start = "*** START OF THIS PROJECT GUTENBERG EBOOK A\nLONG ***\n\nProduced by X\n\n[Transcriber's Note: y]\n\n";
    let print = "**The Small Print**\nlaw\n*END*THE SMALL PRINT!*END*\n";
    let seeds = [
        format!("{HEADER}{start}{BOOK}\n{end}{LICENCE}"),
        format!("{HEADER}{print}{BOOK}\n{end}"),
        BOOK.to_owned(),
        format!("{BOOK}{end}{LICENCE}"),
    ];
    let pieces = [
        start,
        end,
        print,
        "***",
        "*END",
        "[",
        "]",
        "\n",
        "\n\n\n",
        "\r\n",
        "\r",
        "\u{feff}",
        "é",
        "\u{85}",
        "Title:",
        "[EBook #",
        "Gutenberg",
        "  ",
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut kept = 0;
    for round in 0..rounds {
        let mut bytes = seeds[rng.random_range(0..seeds.len())].clone().into_bytes();
        for _ in 0..rng.random_range(1..8) {
            let at = rng.random_range(0..=bytes.len());
            let to = (at + rng.random_range(0..300)).min(bytes.len());
            match rng.random_range(0..5) {
                0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
                1 => drop(bytes.drain(at..to)),
                2 => {
                    let copy = bytes[at..to].to_vec();
                    bytes.splice(at..at, copy);
                }
                3 => bytes.truncate(at),
                _ => drop(bytes.splice(at..at, pieces[rng.random_range(0..pieces.len())].bytes())),
            }
        }
        let book = String::from_utf8_lossy(&bytes);
        let options = Options { remove_notes: round % 2 == 0, remove_credits: round % 3 > 0, ..Options::default() };
        let cleaned = clean(&book, &options);
        assert_eq!(cleaned.dropped.is_some(), cleaned.text.is_empty(), "{book:?}");
        assert!(cleaned.text.len() <= book.len(), "{book:?}");
        // Nothing is made up: its lines are the book's, in their order.
        let unix = book.replace("\r\n", "\n").replace(['\r', '\u{c}'], "\n");
        let unix = unix.replace(|c: char| c.is_ascii_control() && !matches!(c, '\n' | '\t'), "");
        let mut lines = unix.split('\n').map(str::trim_end);
        assert!(cleaned.text.split('\n').filter(|l| !l.is_empty()).all(|l| lines.any(|b| b == l)), "{book:?}");
        kept += usize::from(!cleaned.text.is_empty());
    }
    assert!(kept > rounds / 4, "{kept} books came to something");
}

#[test]
fn long_texts_take_linear_time() {
    for line in [
        "*** START OF THE PROJECT GUTENBERG EBOOK\n",
        "*** END OF THE PROJECT GUTENBERG EBOOK\n",
        "Produced by\n\n",
        "[Transcriber's note\n",
        "*END*THE SMALL PRINT\n",
        "\n",
        " ",
        "*",
        "Title: a\n",
    ] {
        let book = format!("Project Gutenberg\n{}", line.repeat(1_000_000 / line.len()));
        for remove_notes in [false, true] {
            clean(&book, &Options { remove_notes, ..Options::default() });
        }
        sketch(&book);
    }
}

#[test]
fn samples() {
    let Ok(data) = std::env::var("RECUA_DATA") else {
        println!("skipped: RECUA_DATA is not set");
        return;
    };
    let books: Vec<Record> = read_all(&Path::new(&data).join("books"), &Options::default())
        .into_iter()
        .flatten()
        .filter(|b| b.id != "PROVENANCE")
        .collect();
    assert_eq!(books.len(), 29);
    let texts: Vec<String> = books.iter().map(|b| text(&b.text)).collect();
    for (book, text) in books.iter().zip(&texts) {
        let gutenberg = !matches!(book.id.as_str(), "books__The-Call-of-Cthulhu" | "tinyshakespeare-input");
        assert_eq!(book.meta.contains_key("title") && book.meta.contains_key("author"), gutenberg, "{}", book.id);
        for gone in ["PROJECT GUTENBERG", "Project Gutenberg-tm", "Produced by", "gutenberg.org"] {
            assert!(!text.contains(gone), "{}: {gone}", book.id);
        }
        let share = text.len() as f64 / book.text.len() as f64;
        assert!(share > 0.36 && (gutenberg || share > 0.99), "{}: {share} kept", book.id);
    }
    let sketches: Vec<_> = texts.iter().map(|t| sketch(t)).collect();
    let gone = duplicates(&candidates(&sketches), THRESHOLD, |a, b| Ok(overlap(&texts[a], &texts[b]))).unwrap();
    let gone: Vec<_> = gone.iter().map(|g| (books[g.0].id.as_str(), books[g.1].id.as_str())).collect();
    assert_eq!(gone, [("data__pg120", "books__120-0"), ("data__pg161", "books__pg161")]);
}
