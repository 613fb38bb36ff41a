//! Stack Exchange: dumps to threads. Rules: LLaMA 2.1; RedPajama `rp_v1` `data_prep/stack_exchange`.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recua_corpus::Rejected;
use recua_corpus::sources::stackexchange::{
    Kind, Layout, MAX_ROW, Options, Post, PostSink, SortKey, Threads, clean, clean_html, group, largest_sites, posts, read_posts,
    redpajama_text, site_name, thread,
};

const DUMP: &str = "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<!DOCTYPE posts SYSTEM 'posts.dtd'>\n<posts>\n\
  <row Id=\"1\" PostTypeId=\"1\" CreationDate=\"2015-01-27T20:09:32.720\" Score=\"20\" Body=\"&lt;p&gt;Why &amp;amp; how?&lt;/p&gt;&#xA;\" Title=\"A &lt;T&gt; &amp; &quot;b&quot;\" Tags=\"&lt;storage&gt;&lt;whole-bean&gt;\" AnswerCount=\"2\" />\n\
  <row Id=\"2\" PostTypeId=\"2\" ParentId=\"1\" Score=\"9\" Body='&lt;p&gt;nine&lt;/p&gt;' />\n\
  <row Id=\"3\" PostTypeId=\"2\" ParentId=\"1\" Score=\"100\" Body=\"&lt;p&gt;hundred&lt;/p&gt;\" />\n\
  <row Id=\"4\" PostTypeId=\"5\" Score=\"0\" Body=\"a tag wiki\" />\n\
  <!-- <row Id=\"99\" PostTypeId=\"1\" Score=\"0\" Title=\"commented out\" /> -->\n\
  <row Id=\"5\" PostTypeId=\"1\" Score=\"-3\" Title=\"Alone\" Tags=\"|a|b-c|\"></row>\n</posts>\n";

type Read = (Vec<Post>, Vec<Rejected>);

fn collect(read: impl FnOnce(&mut PostSink<'_>) -> recua_corpus::Result<u64>) -> recua_corpus::Result<Read> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    read(&mut |post| {
        match post {
            Ok(post) => good.push(post),
            Err(rejected) => bad.push(rejected),
        }
        Ok(())
    })?;
    Ok((good, bad))
}

fn parse(dump: &[u8]) -> recua_corpus::Result<Read> {
    collect(|sink| read_posts(Path::new("Posts.xml"), &mut &*dump, sink))
}

fn read(path: &Path) -> Read {
    collect(|sink| posts(path, sink)).unwrap()
}

fn post(id: u64, parent: Option<u64>, score: i64, body: &str) -> Post {
    let kind = if parent.is_some() { Kind::Answer } else { Kind::Question };
    Post { id, kind, parent, score, body: body.into(), ..Post::default() }
}

#[test]
fn rows_become_posts() {
    let (good, bad) = parse(DUMP.as_bytes()).unwrap();
    assert_eq!(bad, []);
    assert_eq!(good.iter().map(|post| post.id).collect::<Vec<_>>(), [1, 2, 3, 5]);
    assert_eq!(good[0].title, "A <T> & \"b\"");
    assert_eq!(good[0].body, "<p>Why &amp; how?</p>\n");
    assert_eq!(good[0].tags, ["storage", "whole-bean"]);
    assert_eq!(good[0].date, "2015-01-27T20:09:32.720");
    assert_eq!((good[0].kind, good[0].score, good[0].parent), (Kind::Question, 20, None));
    assert_eq!((good[1].kind, good[1].score, good[1].parent), (Kind::Answer, 9, Some(1)));
    assert_eq!(good[1].body, "<p>nine</p>");
    // The dumps since 2024 have the other form of tags.
    assert_eq!((good[3].tags.as_slice(), good[3].score), (["a".to_string(), "b-c".into()].as_slice(), -3));
}

#[test]
fn rows_that_are_neither_are_counted() {
    assert_eq!(read_posts(Path::new("x"), &mut DUMP.as_bytes(), &mut |_| Ok(())).unwrap(), 1);
}

#[test]
fn a_malformed_row_costs_only_itself() {
    let cases: [(&str, &str); 12] = [
        ("<row Id=\"7\" PostTypeId=\"1\" Title=\"a < b\" />", "not well-formed"),
        ("<row Id=\"7\" PostTypeId=\"1\" Title=\"never closed />", "not well-formed"),
        ("<row Id=\"7\" PostTypeId=\"1\" Title=unquoted />", "enclosed in"),
        ("<row Id=\"seven\" PostTypeId=\"1\" />", "Id is not a number in range: `seven`"),
        ("<row Id=\"7\" PostTypeId=\"1\" Score=\"1e9\" />", "Score is not a number"),
        ("<row Id=\"99999999999999999999\" PostTypeId=\"1\" />", "Id is not a number"),
        ("<row PostTypeId=\"1\" />", "no Id"),
        ("<row Id=\"7\" />", "no PostTypeId"),
        ("<row Id=\"7\" PostTypeId=\"2\" Score=\"1\" />", "without ParentId"),
        ("<row Id=\"7\" PostTypeId=\"1\" Body=\"&nosuch;\" />", "Body"),
        ("<row Id=\"7\" PostTypeId=\"1\" Body=\"&#x110000;\" />", "Body"),
        ("<row Id=\"7\" Id=\"8\" PostTypeId=\"1\" />", "Id is there twice"),
    ];
    for (row, reason) in cases {
        let dump = DUMP.replacen("<row Id=\"3\"", &format!("{row}\n<row Id=\"3\""), 1);
        let (good, bad) = parse(dump.as_bytes()).unwrap();
        assert_eq!(good.len(), 4, "{row}");
        assert_eq!(bad.len(), 1, "{row}");
        assert!(bad[0].reason.contains(reason), "{row}: {}", bad[0].reason);
        let at = dump.find(row).unwrap();
        assert_eq!(bad[0].place, format!("row 3 at byte {at}"), "{row}");
    }
    // Bytes that are not UTF-8.
    let mut dump = DUMP.as_bytes().to_vec();
    let at = DUMP.find("nine").unwrap();
    dump[at] = 0xff;
    let (good, bad) = parse(&dump).unwrap();
    assert_eq!((good.len(), bad.len()), (3, 1));
    assert!(bad[0].reason.starts_with("not UTF-8"), "{}", bad[0].reason);
}

#[test]
fn a_truncated_file_is_read_to_its_last_whole_row() {
    let cut = DUMP.find("hundred").unwrap();
    let (good, bad) = parse(&DUMP.as_bytes()[..cut]).unwrap();
    assert_eq!(good.iter().map(|post| post.id).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(bad.len(), 1);
    assert!(bad[0].reason.contains("truncated"), "{}", bad[0].reason);
}

#[test]
fn a_row_is_bounded() {
    let giant = format!("<row Id=\"7\" PostTypeId=\"1\" Title=\"{}\" />\n", "x".repeat(2 * MAX_ROW));
    let dump = DUMP.replacen("<row Id=\"3\"", &format!("{giant}<row Id=\"3\""), 1);
    let (good, bad) = parse(dump.as_bytes()).unwrap();
    assert_eq!(good.len(), 4);
    assert!(bad[0].reason.contains("4 MiB"), "{}", bad[0].reason);
    assert_eq!(bad.len(), 1);
    // And one just below is read.
    let large = format!("<row Id=\"7\" PostTypeId=\"1\" Title=\"{}\" />\n", "x".repeat(MAX_ROW - 100));
    let (good, bad) = parse(DUMP.replacen("<row Id=\"3\"", &format!("{large}<row Id=\"3\""), 1).as_bytes()).unwrap();
    assert_eq!((good.len(), bad.len()), (5, 0));
}

#[test]
fn another_file_of_the_dump_is_an_error() {
    let problem = parse(b"<?xml version=\"1.0\"?>\n<users>\n <row Id=\"1\" DisplayName=\"x\" />\n</users>").unwrap_err();
    assert!(problem.to_string().contains("expected <posts>, got <users>"), "{problem}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.7z");
    fs::write(&path, b"not an archive").unwrap();
    let problem = posts(&path, &mut |_| Ok(())).unwrap_err();
    assert!(problem.to_string().contains("Stack Exchange dump"), "{problem}");
    let problem = posts(&folder.path().join("none.xml"), &mut |_| Ok(())).unwrap_err();
    assert!(problem.to_string().contains("cannot read"), "{problem}");
}

#[test]
fn the_sinks_error_ends_the_reading() {
    let mut seen = 0;
    let stopped = read_posts(Path::new("x"), &mut DUMP.as_bytes(), &mut |_| {
        seen += 1;
        Err(recua_corpus::Error::bad_value("a", "b", "c"))
    });
    assert!(stopped.is_err());
    assert_eq!(seen, 1);
}

/// The dump in each compressed form, in the folder of a site.
fn compressed(folder: &Path, dump: &[u8]) -> Vec<PathBuf> {
    let site = folder.join("tea.stackexchange.com");
    fs::create_dir(&site).unwrap();
    let path = |name: &str| site.join(name);
    fs::write(path("Posts.xml"), dump).unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(dump).unwrap();
    fs::write(path("Posts.xml.gz"), gz.finish().unwrap()).unwrap();
    let mut bz2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bz2.write_all(dump).unwrap();
    fs::write(path("Posts.xml.bz2"), bz2.finish().unwrap()).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(dump).unwrap();
    fs::write(path("Posts.xml.xz"), xz.finish().unwrap()).unwrap();
    fs::write(path("Posts.xml.zst"), zstd::encode_all(dump, 1).unwrap()).unwrap();
    ["Posts.xml", "Posts.xml.gz", "Posts.xml.bz2", "Posts.xml.xz", "Posts.xml.zst"].map(path).to_vec()
}

#[test]
fn compressed_files_give_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let expected = parse(DUMP.as_bytes()).unwrap();
    for path in compressed(folder.path(), DUMP.as_bytes()) {
        assert_eq!(read(&path), expected, "{}", path.display());
        assert_eq!(site_name(&path), "tea.stackexchange.com", "{}", path.display());
    }
}

#[test]
fn a_truncated_compressed_file_is_read_as_far_as_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    // Scores that do not compress, so that the cut is inside the rows.
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let rows: String =
        (0..40_000).map(|id| format!("<row Id=\"{id}\" PostTypeId=\"1\" Score=\"{}\" />\n", rng.random::<i64>())).collect();
    let all = parse(rows.as_bytes()).unwrap().0;
    assert_eq!(all.len(), 40_000);
    for path in compressed(folder.path(), format!("<posts>{rows}</posts>").as_bytes()) {
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() * 3 / 4]).unwrap();
        let (good, bad) = read(&path);
        assert!(good.len() > 10_000 && good.len() < 36_000, "{}: {}", path.display(), good.len());
        assert_eq!(good, all[..good.len()], "{}", path.display());
        assert_eq!(bad.len(), 1, "{}", path.display());
    }
}

/// Made by py7zr, which The Pile's reader uses: with its own default, and bzip2 and PPMd as in the dumps.
#[test]
fn a_7z_archive_is_read_without_unpacking() {
    let python = std::env::var("RECUA_PEERS_PYTHON").unwrap_or_else(|_| "python3".into());
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("Posts.xml"), DUMP).unwrap();
    fs::write(folder.path().join("Users.xml"), "<users>".to_owned() + &"<row Id=\"1\" />".repeat(1000) + "</users>").unwrap();
    for filter in ["FILTER_LZMA2", "FILTER_LZMA", "FILTER_BZIP2", "FILTER_PPMD", "FILTER_COPY"] {
        let name = format!("{filter}.stackexchange.com.7z");
        let script = format!(
            "import py7zr\nz = py7zr.SevenZipFile('{name}', 'w', filters=[{{'id': py7zr.{filter}{}}}])\n\
             z.write('Users.xml'); z.write('Posts.xml'); z.close()",
            if filter == "FILTER_PPMD" { ", 'order': 6, 'mem': 24" } else { "" },
        );
        let made = std::process::Command::new(&python).arg("-c").arg(script).current_dir(folder.path()).output();
        if !made.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: {python} has no py7zr (set RECUA_PEERS_PYTHON)");
            return;
        }
        let path = folder.path().join(&name);
        assert_eq!(read(&path), parse(DUMP.as_bytes()).unwrap(), "{filter}");
        assert_eq!(site_name(&path), format!("{filter}.stackexchange.com"));
        // Bytes are counted, not parsed: the row in the comment too.
        assert_eq!(largest_sites(&[path], 1).unwrap()[0].posts, 5);
    }
}

/// So that a machine without Python tests something, too.
#[test]
fn a_small_7z_archive_in_the_code_is_read() {
    // py7zr 1.1, `FILTER_COPY`: the smallest archive of a Posts.xml with one row.
    let bytes = from_hex(SMALL_7Z);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stackoverflow.com-Posts.7z");
    fs::write(&path, &bytes).unwrap();
    let (good, bad) = read(&path);
    assert_eq!(bad, []);
    assert_eq!(good.len(), 1);
    assert_eq!((good[0].id, good[0].title.as_str()), (1, "T"));
    assert_eq!(site_name(&path), "stackoverflow.com");
    // Any damage is an error or a rejected record, never a panic.
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for _ in 0..300 {
        let mut damaged = bytes.clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..damaged.len());
            damaged[at] = rng.random();
        }
        damaged.truncate(rng.random_range(0..=damaged.len()));
        fs::write(&path, &damaged).unwrap();
        let _ = posts(&path, &mut |_| Ok(()));
    }
}

const SMALL_7Z: &str = "377abcaf271c00048f602e2a8b000000000000001400000000000000220b5c1d3c706f7374733e0a3c726f772049643d22312220506f7374547970\
    6549643d223122205469746c653d225422202f3e0a3c2f706f7374733ee0004c004b5d0000813307ae0fd179e820a090a09d9c27f85513fd3b1050\
    af2283101ac68f339aeeecc24b132b6b3cdb2b95be461a7d8de02fd985fb302c18eabadd889e01016ed9f30a460ef0224000000000170638010953\
    00070b010001212101180c4d0000";

fn from_hex(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
}

#[test]
fn names_of_sites() {
    for (path, name) in [
        ("dumps/coffee.stackexchange.com/Posts.xml", "coffee.stackexchange.com"),
        ("dumps/coffee.stackexchange.com/posts.XML.bz2", "coffee.stackexchange.com"),
        ("dumps/coffee.stackexchange.com.7z", "coffee.stackexchange.com"),
        ("stackoverflow.com-Posts.7z", "stackoverflow.com"),
        ("dumps/coffee.stackexchange.com.xml", "coffee.stackexchange.com"),
        ("dumps/x.com/Posts.7z", "x.com"),
    ] {
        assert_eq!(site_name(Path::new(path)), name, "{path}");
    }
}

#[test]
fn the_largest_sites_come_first() {
    let folder = tempfile::tempdir().unwrap();
    let row = "<row Id=\"1\" PostTypeId=\"1\" Body=\"&lt;row PostTypeId=&quot;1&quot;\" />\n";
    let wiki = "<row Id=\"1\" PostTypeId=\"5\" />\n<row Id=\"1\" PostTypeId=\"12\" />\n";
    let sizes = [("b", 3), ("a", 3), ("small", 1), ("large", 5000)];
    let paths: Vec<PathBuf> = sizes
        .iter()
        .map(|(name, rows)| {
            let path = folder.path().join(format!("{name}.xml"));
            fs::write(&path, format!("<posts>{}{}</posts>", row.repeat(*rows), wiki.repeat(50))).unwrap();
            path
        })
        .collect();
    let sites = largest_sites(&paths, 3).unwrap();
    let found: Vec<_> = sites.iter().map(|site| (site.name.as_str(), site.posts)).collect();
    assert_eq!(found, [("large", 5000), ("a", 3), ("b", 3)]);
    assert_eq!(sites[0].paths, [paths[3].clone()]);
}

#[test]
fn answers_are_sorted_by_their_scores_as_numbers() {
    // RedPajama's order is that of strings, ["9", "2", "100", "10", "-1"]: a known defect.
    let question = Post { title: "T".into(), ..post(1, None, 5, "") };
    let scores = [2, 100, -1, 10, 9, 10];
    let mut answers: Vec<Post> =
        scores.iter().zip(10..).map(|(score, id)| post(id, Some(1), *score, &format!("<p>{score} from {id}</p>"))).collect();
    answers.reverse();
    let text = thread("s", &question, &mut answers, &Options::default()).unwrap().text;
    assert_eq!(text, "Q: T\n\nA: 100 from 11\n\nA: 10 from 13\n\nA: 10 from 15\n\nA: 9 from 14\n\nA: 2 from 10\n\nA: -1 from 12");
    let options = Options { layout: Layout::Redpajama, ..Options::default() };
    let text = thread("s", &question, &mut answers, &options).unwrap().text;
    let order: Vec<&str> = text.lines().skip(1).filter_map(|line| line.strip_prefix("A: ")?.split(' ').next()).collect();
    assert_eq!(order, ["9", "2", "100", "10", "10", "-1"]);
}

#[test]
fn options_choose_answers() {
    let question = Post { title: "T".into(), ..post(1, None, 5, "<p>b</p>") };
    let mut answers: Vec<Post> = (0..6).map(|n| post(n + 2, Some(1), n as i64, &format!("<p>a{n}</p>"))).collect();
    let options = Options { min_score: Some(3), max_answers: Some(2), ..Options::default() };
    let record = thread("s", &question, &mut answers, &options).unwrap();
    assert_eq!(record.text, "Q: T\n\nb\n\nA: a5\n\nA: a4");
    assert_eq!(record.meta["answers"], 2);
    let options = Options { layout: Layout::Pile, ..options };
    assert_eq!(thread("s", &question, &mut answers, &options).unwrap().text, "Q:\n\nT\n\nb\n\nA:\n\na5\n\nA:\n\na4");
}

#[test]
fn a_question_without_answers_needs_a_title() {
    let options = Options::default();
    let untitled = post(1, None, 0, "<p>b</p>");
    assert_eq!(thread("s", &untitled, &mut [], &options), None);
    assert_eq!(thread("s", &untitled, &mut [post(2, Some(1), 0, "<p>a</p>")], &options).unwrap().text, "Q: b\n\nA: a");
    let titled = Post { title: "  T\n t ".into(), ..untitled };
    assert_eq!(thread("s", &titled, &mut [], &options).unwrap().text, "Q: T t\n\nb");
    // An answer that is only a picture is none.
    assert_eq!(thread("s", &titled, &mut [post(2, Some(1), 0, "<p><img src=\"x\"></p>")], &options).unwrap().meta["answers"], 0);
}

#[test]
fn a_record_says_where_it_is_from() {
    let (good, _) = parse(DUMP.as_bytes()).unwrap();
    let threads: Vec<_> = group(good).0;
    assert_eq!(threads.len(), 2);
    let (question, mut answers) = threads[0].clone();
    let record = thread("coffee.stackexchange.com", &question, &mut answers, &Options::default()).unwrap();
    assert_eq!(record.id, "coffee.stackexchange.com/1");
    // The title is text, not HTML.
    assert_eq!(record.text, "Q: A <T> & \"b\"\n\nWhy & how?\n\nA: hundred\n\nA: nine");
    let meta = serde_json::json!({
        "site": "coffee.stackexchange.com", "question_score": 20, "answers": 2, "tags": ["storage", "whole-bean"],
        "date": "2015-01-27T20:09:32.720", "url": "https://coffee.stackexchange.com/questions/1",
    });
    assert_eq!(serde_json::Value::Object(record.meta), meta);
    let options = Options { layout: Layout::Redpajama, ..Options::default() };
    let text = thread("s", &question, &mut answers, &options).unwrap().text;
    assert_eq!(text, "Q: A  & \"b\" Why & how?\n\nA: nine\nA: hundred");
}

#[test]
fn posts_in_any_order_fold_to_threads() {
    let mut all = vec![post(1, None, 0, "q"), post(9, None, 0, "r"), post(12, Some(7), 0, "orphan"), post(3, Some(1), 5, "")];
    all.extend([post(2, Some(1), 5, ""), post(4, Some(9), -1, ""), post(5, Some(1), 70, ""), post(6, Some(100), 0, "orphan")]);
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for _ in 0..20 {
        for at in (1..all.len()).rev() {
            all.swap(at, rng.random_range(0..=at));
        }
        // A dump twice gives its posts once.
        for times in 1..3 {
            let (threads, left) = group(std::iter::repeat_n(all.clone(), times).flatten().collect());
            let ids = |answers: &[Post]| answers.iter().map(|a| a.id).collect::<Vec<_>>();
            let found: Vec<_> = threads.iter().map(|(q, answers)| (q.id, ids(answers))).collect();
            assert_eq!(found, [(1, vec![5, 2, 3]), (9, vec![4])]);
            let again = (times - 1) as u64 * 6;
            assert_eq!((left.orphans, left.cut, left.repeated), (2 * times as u64, 0, again));
        }
    }
    let key = SortKey::new(&post(3, Some(1), 5, ""));
    assert!(SortKey::new(&post(1, None, -9, "")) < key && key < SortKey::new(&post(2, Some(1), 4, "")));
    // The bound holds of all bodies, the question's too.
    let half = "x".repeat(Threads::MAX_BYTES / 2);
    let (threads, left) = group(vec![post(1, None, 0, &half), post(2, Some(1), 9, &half), post(3, Some(1), 1, "y")]);
    assert_eq!((threads[0].1.len(), left.cut), (1, 1));
}

#[test]
fn html_reads_well() {
    let cases = [
        ("<p>One\ntwo &amp; three.</p>\n\n<p>Four<br>\nfive.</p>\n", "One two & three.\n\nFour\nfive."),
        ("a<br><br>b<br/>c", "a\n\nb\nc"),
        ("<p>See <a href=\"http://x.y/?a=1&amp;b='>'\">this <em>page</em></a>.</p>", "See this page."),
        ("<p>a <img src=\"i.png\" alt=\"enter image description here\"> b</p><p><img src=x></p><p>c</p>", "a b\n\nc"),
        (
            "<p>Code:</p>\n\n<pre><code>def f(x):\n    return x  &lt; 3\n\n\n# end\n</code></pre>\n\n<p>Done.</p>",
            "Code:\n\ndef f(x):\n    return x  < 3\n\n\n# end\n\nDone.",
        ),
        ("<pre>\n  a\n</pre>b", "  a\n\nb"),
        ("<p>List:</p>\n<ul>\n<li>one</li>\n<li>two\nmore</li>\n</ul>\n<p>After.</p>", "List:\n\n* one\n* two more\n\nAfter."),
        ("<ol start=\"3\"><li><p>a</p><p>b</p></li><li><p>c</p></li></ol>", "3. a\n\n  b\n4. c"),
        ("<ul><li>a<ul><li>b</li><li>c</li></ul></li><li>d</li></ul>", "* a\n  * b\n  * c\n* d"),
        ("<blockquote>\n  <p>q1\nq2</p>\n<p>q3</p>\n</blockquote>\n<p>r</p>", "> q1 q2\n\n> q3\n\nr"),
        ("<blockquote><pre>a\n b</pre></blockquote>", "> a\n>  b"),
        ("<h2>Title</h2><p>x</p><hr><p>y</p>", "Title\n\nx\n\ny"),
        ("<table><tr><th>A</th><th>B</th></tr><tr><td><p>1</p></td><td>2<br>3</td></tr></table>z", "A | B\n1 | 2 3\n\nz"),
        ("<p>$a &lt; b$ and</p>\n$$\nx &amp;= 1 \\\\\ny\n$$\n<p>z</p>", "$a < b$ and\n\n$$\nx &= 1 \\\\\ny\n$$\n\nz"),
        ("<p>\\begin{align}\na\\\\\nb\n\\end{align} then\nmore</p>", "\\begin{align}\na\\\\\nb\n\\end{align} then more"),
        (
            "10<sup>6</sup> m<sup>-2</sup> 19<sup>th</sup> H<sub>2</sub>O x<sup>n</sup> y<sup><a href=\"z\">1</a></sup> <sup>small print</sup>",
            "10^6 m^-2 19th H2O x^n y^1 small print",
        ),
        ("<script>if (a < b) { x('</p>') }</script>a<style>p {}</style>b<!-- c -- > <p> -->d<!-->e", "abde"),
        (
            "a < b, c <= d <3 &lt;T&gt; & co; &copy; &#8212; &#x41; &nosuch; AT&T",
            "a < b, c <= d <3 <T> & co; \u{a9} \u{2014} A &nosuch; AT&T",
        ),
        ("x&nbsp;&nbsp;y\u{a0}z", "x y z"),
        ("<P CLASS='a'>up</P><DIV>d</DIV>", "up\n\nd"),
        ("a\u{0}b\u{1b}c\r\nd", "abc d"),
        ("<p></p><p> </p>", ""),
        ("one</p></li></ul></blockquote></td></table>two", "one\n\ntwo"),
        ("<ul><li></li><li>a</li></ul>", "* a"),
        ("text <unknown attr=\"<p>\">in</unknown> it", "text in it"),
        ("lost <a href=\"unclosed>b</a>", "lost"),
    ];
    for (html, text) in cases {
        assert_eq!(clean_html(html), text, "{html}");
    }
}

#[test]
fn redpajamas_text_is_that_of_beautifulsoup() {
    // Right sides: BeautifulSoup 4.15 on lxml 6.1 after the four replacements of post_processing.py.
    let cases = [
        ("<p>One\ntwo &amp; three.</p>\n\n<p>Four<br>\nfive.</p>\n", "One\ntwo & three.\nFour\nfive.\n"),
        ("<ul>\n<li>one</li>\n<li>two</li>\n</ul>", "\n\n*one\n\n*two\n"),
        ("<ol>\n<li>one</li>\n</ol>\n", "*\n\n*one\n\n"),
        ("<p>10<sup>6</sup></p><!-- c -->d", "106d"),
        ("<pre>\n x</pre>", "\n x"),
        ("<script>a</script>b<style>c</style>d<textarea>e</textarea><template>f</template>", "bde"),
        ("  a <T> b", "a  b"),
        ("&nosuch; &copy &hellip; &notit; AT&T", "&nosuch; \u{a9} \u{2026} \u{ac}it; AT&T"),
        ("a<!b>c<?d>e", "ace"),
        ("z <a href=\"un>b</a>", "z "),
    ];
    for (html, text) in cases {
        assert_eq!(redpajama_text(html), text, "{html}");
    }
}

#[test]
fn a_body_alone_is_cleaned() {
    let options = Options::default();
    assert_eq!(clean("<p>a</p>", &options).text, "a");
    assert_eq!(clean("<p><img></p>", &options).dropped.as_deref(), Some("empty"));
    let options: Options = serde_json::from_str(r#"{"layout": "redpajama"}"#).unwrap();
    assert_eq!(clean("<li>a</li>", &options).text, "*a");
}

/// Constructions that make many parsers quadratic or overflow their stack.
#[rustfmt::skip]
const NASTY: [&str; 46] = [
    "<div>", "<ul>", "<ul><li>x", "<blockquote>x<br>", "<a href=\"", "<!-- a", "<!-- a -->", "&", "&amp", "<", "</",
    "<script>", "$$ x ", "\\begin{x} ", "<td>", "<table><tr><td>a", "x<sup>1", "<pre>\n", "<b a='", "=\"'", "<ol start=",
    "<li>", "--!>", "<!--!>", "&#x1F;", "<p>\n\n\n", "</ul>", "<template>", "<posts>", "<row ", "<row/>",
    "<row Id=\"1\" PostTypeId=\"1\" Title=\"&#xA;&#0;&#x110000;&lt;&bogus;\"/>", "<!--", "-->", "\"'\"'", "<row <row <row ",
    "<p><ul><li><blockquote><table><tr><td><pre>", "</p></ul></li>", "<!--><!--->--!>", "<script></script",
    "&#x;&#99999999999;&ampamp;&notin;", "$$\\begin{a}$$\\end{a}", "<a b='c\" d=e/>",
    "\u{feff}\u{a0}\u{2028}\u{1f600}e\u{301}", "<ol start=99999999999><li>", "10<sup>\u{2212}6</sup>",
];

#[test]
fn nasty_html_is_worked_through() {
    for piece in NASTY {
        let html = piece.repeat(2_000_000 / piece.len());
        let length = clean_html(&html).len();
        assert!(length <= 40 * html.len() + 100, "{piece}: {length} of {}", html.len());
        redpajama_text(&html);
    }
}

fn samples() -> Option<PathBuf> {
    let folder = std::env::var("RECUA_DATA").ok().map(|folder| Path::new(&folder).join("stackexchange"));
    if folder.is_none() {
        println!("skipped: RECUA_DATA is not set");
    }
    folder
}

#[test]
fn the_samples_are_read_whole() {
    let Some(folder) = samples() else { return };
    // The numbers of rows of each kind are from grep.
    for (site, questions, answers) in [("coffee.stackexchange.com", 225, 327), ("history.meta.stackexchange.com", 0, 0)] {
        let path = folder.join(site).join("Posts.xml");
        let raw = fs::read_to_string(&path).unwrap();
        let (good, bad) = read(&path);
        assert_eq!(bad, [], "{site}");
        let count = |kind| good.iter().filter(|post| post.kind == kind).count();
        let rows = |kind: &str| raw.matches(&format!(" PostTypeId=\"{kind}\"")).count();
        assert_eq!((count(Kind::Question), count(Kind::Answer)), (rows("1"), rows("2")), "{site}");
        if questions > 0 {
            assert_eq!((count(Kind::Question), count(Kind::Answer)), (questions, answers), "{site}");
        }
        let total = good.len() as u64;
        assert_eq!(largest_sites(&[path], 28).unwrap()[0].posts, total);
        for (question, mut answers) in group(good).0 {
            let record = thread(site, &question, &mut answers, &Options::default()).unwrap();
            assert!(record.text.starts_with("Q: "), "{}", record.id);
            for mark in ["<p>", "</", "&amp;", "&lt;", "&#39;", "\n\n\n\n"] {
                let shown =
                    answers.iter().chain([&question]).any(|post| post.body.contains("&lt;") || post.body.contains("&amp;"));
                assert!(shown || !record.text.contains(mark), "{}: {mark} in {}", record.id, record.text);
            }
        }
    }
}

/// Changes a seed: flips, cuts, doubles and splices in pieces of others.
pub(crate) fn mutate(rng: &mut ChaCha8Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[rng.random_range(0..seeds.len())].clone();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bytes.len());
        let end = (at + rng.random_range(0..40)).min(bytes.len());
        match rng.random_range(0..5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let piece = bytes[at..end].to_vec();
                let times = rng.random_range(1..20);
                bytes.splice(at..at, piece.repeat(times));
            }
            3 => {
                let other = &seeds[rng.random_range(0..seeds.len())];
                let from = rng.random_range(0..=other.len());
                let to = (from + rng.random_range(0..80)).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

pub(crate) fn inputs() -> u64 {
    std::env::var("RECUA_FUZZ").ok().and_then(|count| count.parse().ok()).unwrap_or(3000)
}

#[test]
fn fuzz_posts_and_html() {
    let mut seeds: Vec<Vec<u8>> = NASTY.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    seeds.extend(vec![DUMP.as_bytes().to_vec(); 20]);
    seeds.push(parse(DUMP.as_bytes()).unwrap().0[0].body.clone().into_bytes());
    let mut rng = ChaCha8Rng::seed_from_u64(0x5E);
    let (mut good, mut bad) = (0u64, 0u64);
    for _ in 0..inputs() {
        let bytes = mutate(&mut rng, &seeds);
        let read = read_posts(Path::new("x"), &mut bytes.as_slice(), &mut |post| {
            match post {
                Ok(post) => {
                    good += 1;
                    thread("s", &post, &mut [post.clone()], &Options::default());
                }
                Err(_) => bad += 1,
            }
            Ok(())
        });
        assert!(matches!(read, Ok(_) | Err(recua_corpus::Error::BadFile { .. })), "{read:?}");
        let text = String::from_utf8_lossy(&bytes);
        let cleaned = clean_html(&text);
        assert!(cleaned.len() <= 40 * text.len() + 100);
        redpajama_text(&text);
    }
    // The mutations leave rows of both kinds.
    assert!(good > inputs() / 20 && bad > inputs() / 20, "{good} good, {bad} bad");
}
