//! Character sets, HTML, and whole web pages.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use recua_corpus::sources::{commoncrawl, html};

use super::{article, fuzz, gzip, mutate, read_all, record};

#[test]
fn character_sets_are_found() {
    let latin: Vec<u8> =
        "<p>d\u{e9}j\u{e0} vu, \u{e0} la carte, cr\u{e8}me br\u{fb}l\u{e9}e</p>".chars().map(|c| c as u8).collect();
    let text = "<p>déjà vu, à la carte, crème brûlée</p>";
    let with = |head: &str, bytes: &[u8]| [head.as_bytes(), bytes].concat();
    let meta = "<meta charset=iso-8859-1>";
    let old_meta = "<META http-equiv=\"Content-Type\" content=\"text/html; charset='windows-1252'\">";
    let cyrillic = encoding_rs::WINDOWS_1251.encode("<p>Привет, как дела? Это обычный русский текст.</p>").0.into_owned();
    let japanese = encoding_rs::SHIFT_JIS.encode("<p>これは日本語の文章です。文字コードを調べます。</p>").0.into_owned();
    let seven_bit = encoding_rs::ISO_2022_JP.encode("<p>日本語</p>").0.into_owned();
    let utf16: Vec<u8> = [0xfeff].into_iter().chain("<p>é</p>".encode_utf16()).flat_map(u16::to_le_bytes).collect();
    let cases: [(Vec<u8>, Option<&str>, String, &str); 12] = [
        (text.as_bytes().to_vec(), None, text.into(), "UTF-8"),
        (text.as_bytes().to_vec(), Some("text/html; charset=ISO-8859-1"), text.into(), "UTF-8"),
        (with("\u{feff}", text.as_bytes()), Some("text/html; charset=windows-1251"), text.into(), "UTF-8"),
        (utf16, None, "<p>é</p>".into(), "UTF-16LE"),
        (latin.clone(), Some("text/html;Charset = \"latin1\""), text.into(), "windows-1252"),
        (with(meta, &latin), Some("text/html"), format!("{meta}{text}"), "windows-1252"),
        (with(old_meta, &latin), None, format!("{old_meta}{text}"), "windows-1252"),
        (latin.clone(), Some("text/html; charset=utf-8"), text.into(), "windows-1252"),
        (cyrillic, None, "<p>Привет, как дела? Это обычный русский текст.</p>".into(), "windows-1251"),
        (
            japanese,
            Some("text/html; charset=euc-jp"),
            "<p>これは日本語の文章です。文字コードを調べます。</p>".into(),
            "Shift_JIS",
        ),
        (seven_bit, Some("text/html; charset=iso-2022-jp"), "<p>日本語</p>".into(), "ISO-2022-JP"),
        (text.as_bytes()[..text.find("û").unwrap() + 1].to_vec(), None, text[..text.find("û").unwrap()].into(), "UTF-8"),
    ];
    for (bytes, content_type, want, charset) in cases {
        let (got, name) = html::decode(&bytes, content_type);
        assert_eq!((&*got, name), (want.as_str(), charset), "{content_type:?}");
    }
}

#[test]
fn the_main_text_of_a_page_is_taken() {
    let first =
        "The first paragraph has some length, a comma, and more than one clause, so that it is taken for text. ".repeat(3);
    let second =
        "The second &eacute;paragraph follows it, with <b>bold</b> and <a href=x>linked</a> words, and is long enough as well. "
            .repeat(3);
    let page = html::extract(&article(&format!("<p>{first}</p><p>{second}</p>")), &html::Options::default()).unwrap();
    assert_eq!(page.title, "A page title");
    let paragraphs: Vec<_> = page.text.split("\n\n").collect();
    assert_eq!(paragraphs.len(), 2, "{}", page.text);
    assert_eq!(paragraphs[0], first.trim());
    assert!(paragraphs[1].starts_with("The second éparagraph follows it, with bold and linked words"), "{}", page.text);
    for no in ["Home", "Copyright", "var x"] {
        assert!(!page.text.contains(no), "{}", page.text);
    }
    assert_eq!(html::extract("", &html::Options::default()), Ok(html::Page::default()));
}

#[test]
fn pages_beyond_the_bounds_are_rejected_at_once() {
    let options = html::Options::default();
    let text = "<p>Some words, and a comma, and more of them.";
    let deep = |tag: &str, n: usize| tag.repeat(n);
    assert!(html::extract(&format!("{}{text}", deep("<div>", 200)), &options).is_ok());
    let fonts: String = (0..30_000).map(|i| format!("<font size={i}>x<p>")).collect();
    let attributes: String = (0..200_000).map(|i| format!(" a{i}")).collect();
    let cases = [
        (deep("<div>", 30_000), "nested deeper"),
        (deep("<div></x>", 30_000), "nested deeper"),
        (deep("<div><p>Some words, and a comma.</p>", 30_000), "nested deeper"),
        (deep("<table><tr><td>", 30_000), "nested deeper"),
        (deep("<ul><li>x", 30_000), "nested deeper"),
        (deep("<blockquote>x, y", 30_000), "nested deeper"),
        (deep("<template>", 30_000), "nested deeper"),
        (deep("<svg><foreignObject><div></svg><title>", 30_000), ""),
        (format!("<svg>{}", deep("<a>", 30_000)), "nested deeper"),
        (deep("<svg><math>", 30_000), "nested deeper"),
        (fonts, "nested deeper"),
        (format!("<p{attributes}>"), "a tag or comment of the page is too long"),
        (deep("<i></b>", 300_000), "nested deeper"),
        (deep("<br>", 250_000), "more than 145000 elements"),
        (" ".repeat(6 << 20), "more than the 5242880"),
        (deep("<b><p>", 30_000), "more than 42500 elements"),
        (format!("<p>{text}{}{text}", deep(" ", 1 << 20)), "ok"),
        (format!("<p>{}x</p>", deep("a, b. ", 1 << 18)), "ok"),
        (format!("<script>{}</script><p>{text}", deep("if (a < b) { c } ", 1 << 17)), "ok"),
        (deep("<p>some words here that read, and so on.", 30_000), "ok"),
        (deep("<a href=x>y", 60_000), ""),
        (deep("</b></i></p><b><i><p>", 30_000), ""),
        (deep("<a><table><a>", 30_000), ""),
        (deep("<p><a href=/x>one two three</a></p>", 30_000), ""),
        (deep("<div><p>some words, here, that read, and so on.</p></div>", 30_000), ""),
        (deep("word<br>", 60_000), ""),
        (deep("word<br><br>", 60_000), ""),
        (deep("<", 1 << 20), ""),
        (deep("&amp", 1 << 18), ""),
        (deep("&#x0;", 1 << 18), ""),
        (deep("<!--", 1 << 18), ""),
        (deep("<script>", 1 << 17), ""),
        (deep("<select><option>", 60_000), ""),
        (deep("<span>word </span>", 60_000), ""),
        (deep("<div style='display:none'>x</div>", 30_000), ""),
        (deep("<img src=x>", 90_000), ""),
        (deep("<noscript><img src=x></noscript>", 30_000), ""),
        (deep("<h2>x</h2>", 60_000), ""),
        (deep("<meta name=author content='a b'>", 30_000), ""),
        (format!("<div class='{}'>x</div>", deep("comment ", 1 << 17)), ""),
        (format!("<title>{}</title><h1>{}</h1><p>x", deep("a b - ", 1 << 16), deep("a b | ", 1 << 16)), ""),
        (deep(&format!("{}{text}{}", deep("<div>", 200), deep("</div>", 200)), 200), ""),
        (deep(&format!("{}{text}", deep("<table><tr><td>", 50)), 1) + &deep("<td>a, b", 50_000), ""),
    ];
    for (page, reason) in cases {
        let got = html::extract(&page, &options);
        let what = &page[..page.len().min(60)];
        match (reason, &got) {
            ("", _) => {}
            ("ok", got) => assert!(!got.as_ref().unwrap().text.is_empty(), "{what}"),
            (reason, Err(e)) => assert!(e.contains(reason), "{what}: {e}"),
            (_, Ok(_)) => panic!("{what}: not rejected"),
        }
    }
}

#[test]
fn mutated_pages_do_no_harm() {
    let mut seeds: Vec<Vec<u8>> = [
        article("<p>Some words, and a comma.</p><table><tr><td>a<td>b</table><ul><li>x<li>y</ul>"),
        article("<div class=comment><p><b><i>misnested</b></i><pre> x\n y</pre><svg><title>t</title><path/></svg>"),
        "<template><div></template><select><option>a<math><mi>x</math><frameset></frameset>&lt;&#x41;&nbsp;".into(),
        "<meta charset=shift_jis><meta http-equiv=content-type content='text/html; charset=x'><a><a><nobr><nobr><font size=1><button><button>".into(),
        "<img data-src='a.png' alt=x><noscript><img src=y></noscript><br><br><br>text<br><br>text, text, text<p></p><h1>A page title</h1>".into(),
    ]
    .iter()
    .map(|s: &String| s.as_bytes().to_vec())
    .collect();
    seeds.push("<div><p>".repeat(30).into_bytes());
    seeds.push(b"<table><tr><td><table>".repeat(20));
    seeds.push(b"\xff\xfe<\0p\0>\0".to_vec());
    let options = html::Options { max_depth: 60, max_nodes: 5000, ..Default::default() };
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (mut texts, mut rejected) = (0, 0);
    for _ in 0..fuzz() {
        let bytes = mutate(&mut rng, &seeds);
        let (page, _) = html::decode(&bytes, Some("text/html; charset=euc-kr"));
        match html::extract(&page, &options) {
            Ok(page) => texts += usize::from(!page.text.is_empty()),
            Err(reason) => {
                assert!(!reason.is_empty());
                rejected += 1;
            }
        }
    }
    println!("{texts} pages with text, {rejected} rejected");
    assert!(texts > 0);
}

#[test]
fn web_pages_become_documents() {
    let text = "A paragraph has some length, a comma, and more than one clause, so that it is taken for text. ".repeat(5);
    let page = article(&format!("<p>{text}</p>"));
    let latin: Vec<u8> = page.replace("clause", "cl\u{e4}use").chars().map(|c| c as u8).collect();
    let http = |status: &str, kind: &str, body: &[u8]| {
        [format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n\r\n").as_bytes(), body].concat()
    };
    let bytes = [
        record(
            "response",
            "http://x/1",
            "WARC-Payload-Digest: sha1:P\r\nWARC-Block-Digest: sha1:B\r\n",
            &http("200 OK", "text/html; charset=latin1", &latin),
        ),
        record("request", "http://x/1", "", b"GET / HTTP/1.1\r\n\r\n"),
        record("response", "http://x/2", "", &http("404 Not Found", "text/html", page.as_bytes())),
        record("response", "http://x/3", "", &http("200 OK", "image/png", b"\x89PNG")),
        record("response", "http://x/4", "", &http("200 OK", "text/plain", "Plain é text".as_bytes())),
        record("response", "http://x/5", "", b"no status line"),
        record("response", "http://x/6", "", &http("200 OK", "text/html", "<div>".repeat(3000).as_bytes())),
        record("resource", "http://x/7", "Content-Type: text/html\r\n", page.as_bytes()),
        record("response", "dns:x", "", b"20080430204825\n"),
        record("metadata", "http://x/1", "", b"a: b"),
        record("response", "http://x/robots.txt", "", &http("200 OK", "text/plain", b"User-agent: *")),
        record("response", "http://x/8", "", &http("200 OK", "text/html", b"<html><body></body></html>")),
    ]
    .concat();
    let (records, rejected, summary) = read_all(&gzip(&bytes), &commoncrawl::Options::default());
    let ids: Vec<_> = records.iter().map(|r| r.id.as_str()).collect();
    assert_eq!(ids, ["http://x/1", "http://x/4", "http://x/7"]);
    assert_eq!(records[0].text, text.trim().replace("clause", "cläuse"));
    let meta = serde_json::json!({"url": "http://x/1", "date": "2024-05-18T01:58:10Z", "digest": "sha1:P", "charset": "windows-1252", "title": "A page title"});
    assert_eq!(serde_json::Value::from(records[0].meta.clone()), meta);
    assert_eq!(records[1].text, "Plain é text");
    let reasons: Vec<_> = rejected.iter().map(|r| (r.place.split(' ').next().unwrap(), r.reason.as_str())).collect();
    assert_eq!(
        reasons,
        [("http://x/5", "the response has no HTTP status line"), ("http://x/6", "the page has elements nested deeper than 256")]
    );
    let skipped: Vec<_> = summary.skipped.iter().map(|(k, v)| (*k, *v)).collect();
    assert_eq!(
        skipped,
        [
            ("http_status", 1),
            ("metadata", 1),
            ("no_main_text", 1),
            ("not_html", 1),
            ("not_http", 1),
            ("request", 1),
            ("robots_txt", 1)
        ]
    );
    assert_eq!((summary.records, summary.documents, summary.rejected), (12, 3, 2));
}
