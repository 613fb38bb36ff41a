//! Wikipedia's text: each construct of wikitext from its definition (the pages of Help:Wikitext and of `MediaWiki`'s preprocessor),
//! the names of all 20 languages, and pages that are broken or hostile.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use recua_corpus::Record;
use recua_corpus::sources::wikipedia::{CleanOptions, LANGUAGES, Math, clean, clean_record};

use super::data_wikipedia_dump::{fuzz_inputs, mutate};

fn text(wikitext: &str) -> String {
    text_in(wikitext, "en")
}

fn text_in(wikitext: &str, language: &str) -> String {
    clean(wikitext, language, &CleanOptions::default()).text
}

fn recipe(wikitext: &str) -> String {
    clean(wikitext, "en", &CleanOptions::recipe()).text
}

#[track_caller]
fn check(cases: &[(&str, &str)]) {
    for (wikitext, expected) in cases {
        assert_eq!(text(wikitext), *expected, "{wikitext}");
    }
}

#[test]
fn links_leave_their_text() {
    check(&[
        ("the [[cat]] sat", "the cat sat"),
        ("the [[Felis catus|cat]] sat", "the cat sat"),
        ("two [[cat]]s", "two cats"),
        ("two [[Felis catus|cat]]s", "two cats"),
        ("a [[b|c|d]] e", "a c|d e"),
        ("see [[Paris (Texas)|]].", "see Paris."),
        ("see [[Help:Contents|]].", "see Contents."),
        ("see [[#History|below]]", "see below"),
        ("see [[:Category:Cats]]", "see Category:Cats"),
        ("see [[:File:Cat.jpg|the picture]]", "see the picture"),
        ("see [[:fr:Chat]]", "see fr:Chat"),
        ("see [[:fr:Chat|chat]]", "see chat"),
        ("''[[The ''Cat'' (film)|The Cat]]''", "The Cat"),
        ("[[a|[[b]] c]] d", "b c d"),
        ("an [[ampersand &amp; co]]", "an ampersand & co"),
        ("Star [[Star Wars: Episode IV]]", "Star Star Wars: Episode IV"),
        ("array[0] and [1]", "array[0] and [1]"),
        ("[[]] empty", "empty"),
    ]);
}

#[test]
fn files_go_with_their_captions() {
    check(&[
        ("a [[File:Cat.jpg|thumb|a [[cat]], ''sitting'']] b", "a b"),
        ("a[[Image:Cat.jpg]] b", "a b"),
        ("[[file:Cat.jpg|thumb|{{convert|5|km}} and [http://x y]]]b", "b"),
        ("[[File:A.jpg|thumb|one [[b|c [[d]]]] two]]\nText", "Text"),
        ("[[Media:Cat.ogg|listen]] b", "b"),
        ("[[Datne:Kaķis.jpg|thumb|250px]]b", "b"),
        ("[[ File : Cat.jpg | thumb ]]b", "b"),
        ("[[File:A.jpg|thumb|two\nlines]]b", "b"),
    ]);
}

/// Namespace names and a redirect's word, from each wiki's own.
const NAMES: [(&str, &[&str], &[&str], &str); 20] = [
    ("bg", &["Файл", "Картинка", "Медия"], &["Категория"], "#виж"),
    ("ca", &["Fitxer", "Imatge"], &["Categoria"], "#REDIRECT"),
    ("cs", &["Soubor", "Média", "Obrázek"], &["Kategorie"], "#PŘESMĚRUJ"),
    ("da", &["Fil", "Billede"], &["Kategori"], "#OMDIRIGERING"),
    ("de", &["Datei", "Bild", "Medium"], &["Kategorie"], "#WEITERLEITUNG"),
    ("en", &["File", "Image", "Media"], &["Category"], "#REDIRECT"),
    ("es", &["Archivo", "Imagen", "Medio"], &["Categoría"], "#REDIRECCIÓN"),
    ("fr", &["Fichier", "Média"], &["Catégorie"], "#REDIRECTION"),
    ("hr", &["Datoteka", "Slika", "Mediji"], &["Kategorija"], "#PREUSMJERI"),
    ("hu", &["Fájl", "Kép", "Média"], &["Kategória"], "#ÁTIRÁNYÍTÁS"),
    ("it", &["File", "Immagine"], &["Categoria"], "#RINVIA"),
    ("nl", &["Bestand", "Afbeelding"], &["Categorie"], "#DOORVERWIJZING"),
    ("pl", &["Plik", "Grafika"], &["Kategoria"], "#PATRZ"),
    ("pt", &["Ficheiro", "Arquivo", "Imagem", "Multimédia"], &["Categoria"], "#REDIRECIONAMENTO"),
    ("ro", &["Fișier", "Fişier", "Imagine"], &["Categorie"], "#REDIRECTEAZA"),
    ("ru", &["Файл", "Изображение", "Медиа"], &["Категория", "К"], "#перенаправление"),
    ("sl", &["Slika", "Datoteka"], &["Kategorija"], "#PREUSMERITEV"),
    ("sr", &["Датотека", "Слика", "Медиј", "Datoteka", "Slika"], &["Категорија", "Kategorija"], "#преусмери"),
    ("sv", &["Fil", "Bild"], &["Kategori"], "#OMDIRIGERING"),
    ("uk", &["Файл", "Зображення", "Медіа", "Изображение"], &["Категорія", "Категория"], "#перенаправлення"),
];

#[test]
fn names_of_all_languages() {
    assert_eq!(NAMES.map(|n| n.0), LANGUAGES);
    for (language, media, categories, redirect) in NAMES {
        // The English names hold everywhere, in any case, with spaces or underscores around.
        for name in media.iter().chain(&["File", "Image"]) {
            for name in [(*name).to_owned(), name.to_lowercase(), name.to_uppercase(), format!("_{name} ")] {
                let page = format!("one [[{name}:X.jpg|thumb|caption [[a|b]]]]two");
                assert_eq!(text_in(&page, language), "one two", "{language}: {page}");
            }
        }
        for name in categories.iter().chain(&["Category"]) {
            let page = format!("Text.\n\n[[{name}:X|key]]\n[[{}:Y]]", name.to_lowercase());
            assert_eq!(text_in(&page, language), "Text.", "{language}: {page}");
            let shown = format!("see [[:{name}:X|it]]");
            assert_eq!(text_in(&shown, language), "see it", "{language}: {shown}");
        }
        let page = format!("{redirect} [[X]]");
        assert_eq!(clean(&page, language, &CleanOptions::default()).dropped.as_deref(), Some("redirect"), "{page}");
        // A link to another Wikipedia is not text; to the own one it is.
        let other = if language == "sv" { "da" } else { "sv" };
        assert_eq!(text_in(&format!("Text[[{other}:Katt]]"), language), "Text");
        assert_eq!(text_in(&format!("Text [[{language}:Katt|x]]"), language), "Text x");
    }
    // A name of another language is a title.
    assert_eq!(text_in("see [[Slika:X]]", "en"), "see Slika:X");
    for page in ["# [[one]]\n# [[two]]", "#REDIRECT", "#foo [[bar]]"] {
        assert_eq!(clean(page, "en", &CleanOptions::default()).dropped, None, "{page}");
    }
}

#[test]
fn language_links_and_categories() {
    check(&[
        ("Text\n[[fr:Chat]]\n[[zh-min-nan:Niau]]\n[[simple:Cat]]", "Text"),
        ("Text [[wikt:cat|cat]] [[s:Poem]]", "Text cat s:Poem"),
        ("Text\n[[Category:Cats| ]]", "Text"),
        ("Text [[Category talk:Cats]]", "Text Category talk:Cats"),
    ]);
    assert_eq!(recipe("Text\n[[Category:Cats]]\n[[Category:Pets|Cat]]\n[[fr:Chat]]"), "Text\nCats\nCat\nfr:Chat");
}

#[test]
fn external_links() {
    check(&[
        ("see [http://example.org the site].", "see the site."),
        ("see [https://example.org/a_b?c=d&e=f ''the'' [[site]]] now", "see the site now"),
        ("see [//example.org x]", "see x"),
        ("see [mailto:a@example.org me]", "see me"),
        ("a fact[http://example.org].", "a fact."),
        ("see http://example.org/a.", "see http://example.org/a."),
        ("see [[http://example.org x]]", "see [x]"),
        ("a [http://example.org b\nc", "a b\nc"),
        ("[not a link] and [ftp no]", "[not a link] and [ftp no]"),
        ("[http://example.org/{{x|y}} text]", "text"),
    ]);
}

#[test]
fn templates_go() {
    check(&[
        ("a {{b}} c", "a c"),
        ("a{{foo|c=d|e}}.", "a."),
        ("{{Infobox\n| name = x\n| map = {{y|{{z}}}}\n}}\n'''X''' is", "X is"),
        ("a {{#if: x | y | z }} b", "a b"),
        ("a {{#invoke:x|y}} b", "a b"),
        ("a {{PAGENAME}} b", "a b"),
        ("a {{{1}}} b", "a b"),
        ("a {{{1|c}}} b", "a c b"),
        ("a {{{{{1}}}|x}} b", "a b"),
        ("a { b } c", "a { b } c"),
        ("{{a|[[b|c}}]] d", "d"),
        ("[[a{{!}}b]]", "b"),
        ("a {{b|<nowiki>}}</nowiki>}} c", "a c"),
        ("a {{b|<!-- }} -->}} c", "a c"),
    ]);
}

#[test]
fn templates_that_are_text_stay() {
    check(&[
        ("the {{lang|fr|mot ''juste''}} here", "the mot juste here"),
        ("({{lang-de|Wien}})", "(Wien)"),
        ("{{Nowrap|5 [[kilometre|km]]}}", "5 km"),
        ("{{nowrap|1=a = b}}", "a = b"),
        ("{{lang|fr|{{nowrap|deux mots}}}}", "deux mots"),
        ("{{convert|5|km|mi}} long", "5 km long"),
        ("{{convert|5|to|10|km2|sqmi}}", "5 to 10 km²"),
        ("{{convert|5|-|10|C|F}}", "5–10 °C"),
        ("{{convert|5|ft|7|in|cm}}", "5 ft 7 in"),
        ("{{convert|20|x|30|m}}", "20 × 30 m"),
        ("{{frac|1|2}} and {{frac|3|1|4}} and {{frac|8}}", "1/2 and 3 1/4 and 1/8"),
        ("{{val|1.5|u=km}}", "1.5 km"),
        ("{{circa|1500}}", "c. 1500"),
        ("a{{snd}}b{{'s}}", "a – b's"),
        ("{{quote|Be.|Somebody}}", "Be."),
        ("{{formatnum:12345}} people", "12345 people"),
        ("{{transl|ru|ISO|Moskva}}", "Moskva"),
        ("{{lang|fr}} {{nowrap|}} x", "x"),
        ("{{USS|Enterprise|CV-6}}", "USS Enterprise"),
    ]);
    assert_eq!(text_in("au {{s|XIX|e}} et {{unité|5|km}}", "fr"), "au XIXe siècle et 5 km");
    assert_eq!(text_in("{{не переведено 5|Кот||en|Cat}} и {{не переведено|Кот|кота|en|Cat}}", "ru"), "Кот и кота");
    assert_eq!(text_in("{{нп|треба=Кіт|є=Cat|мова=en|текст=кота}}", "uk"), "кота");
    assert_eq!(text_in("{{unidad|5|km}}", "es"), "5 km");
    assert_eq!(text_in("{{jez|en|cat}}", "hr"), "cat");
    assert_eq!(recipe("a {{nowrap|b}} c"), "a c");
}

#[test]
fn tables_go() {
    check(&[
        ("a\n{| class=\"x\"\n! h\n|-\n| b || c\n|}\nd", "a\n\nd"),
        ("{|\n| a\n{|\n| b\n|}\n| c\n|}\nd", "d"),
        (":{|\n| a\n|}\nd", "d"),
        ("{|\n| {{x|y}} || [[a|b]]\n|}d", "d"),
        ("{{x|\n{|\n| a\n|}\n}}d", "d"),
        ("{{x|\n{|\n| a\n|}}}d", "d"),
        ("{{x|a=\n|}}d", "d"),
        ("a {| b", "a {| b"),
        ("<table><tr><td>a<table><tr><td>b</td></tr></table></td></tr></table>d", "d"),
        ("a\n{|\n| <table>\n|}\nb", "a\n\nb"),
    ]);
}

#[test]
fn tags_and_extension_tags() {
    check(&[
        ("a<ref>b</ref>.", "a."),
        ("a<ref name=\"x\" />.", "a."),
        ("a<ref name=x>{{cite|b}} [[c]]</ref>, d", "a, d"),
        ("a<REF>b</Ref >c", "ac"),
        ("a<ref name=x>b<ref>c</ref>d", "abd"),
        ("a\n<references>\n<ref name=x>b</ref>\n</references>", "a"),
        ("a <!-- b --> c", "a c"),
        ("a\n<!-- b -->\nc", "a\nc"),
        ("a <!-- b", "a"),
        ("a<br />b<BR>c", "a\nb\nc"),
        ("<b>a</b> <span style=\"x\">b</span> <small>c</small>", "a b c"),
        ("<div class=x>a</div>b", "a\nb"),
        ("<blockquote>a</blockquote>", "a"),
        ("a < b > c <foo> <a@b.c>", "a < b > c <foo> <a@b.c>"),
        ("10<sup>6</sup> m<sup>−2</sup> 19<sup>th</sup> H<sub>2</sub>O", "10⁶ m⁻² 19th H2O"),
        ("a <gallery>\nFile:X.jpg|b\n</gallery> c", "a c"),
        ("a <timeline>x</timeline><score>y</score><graph>{}</graph> c", "a c"),
        ("<noinclude>a</noinclude><includeonly>b</includeonly>", "a"),
        ("<nowiki>[[a]] ''b'' {{c}} &amp;</nowiki>", "[[a]] ''b'' {{c}} &"),
        ("<nowiki>* a</nowiki>", "* a"),
        ("*<nowiki/>a", "a"),
        ("a\n<pre>\n  x [[y]]\n    ''z''\n</pre>\nb", "a\n  x [[y]]\n    ''z''\nb"),
        ("<syntaxhighlight lang=\"c\">\nint a[2];\n\n  if (a &lt; 1) {}\n</syntaxhighlight>", "int a[2];\n\n  if (a &lt; 1) {}"),
        ("use <code>a[[b]]</code> or <syntaxhighlight lang=c inline>x[1] || y</syntaxhighlight>", "use ab or x[1] || y"),
        ("<poem>\na\n: b\n</poem> <poem>: c</poem>", "a\nb\n\nc"),
        ("a <ce>H2O</ce> b", "a H2O b"),
        ("a <math>\\frac{1}{2}\n x</math> b", "a $\\frac{1}{2} x$ b"),
        ("a <math/> b <section begin=x />c", "a b c"),
        ("a</ref></div> b", "a\nb"),
    ]);
    let drop = CleanOptions { math: Math::Drop, ..CleanOptions::default() };
    assert_eq!(clean("a <math>x</math> b", "en", &drop).text, "a b");
}

#[test]
fn character_references() {
    check(&[
        ("a&nbsp;b &amp; &lt;c&gt; &eacute;&#233;&#xE9; &ndash;", "a b & <c> ééé –"),
        ("&lt;ref&gt; &#91;&#91;x&#93;&#93; &#39;&#39;", "<ref> [[x]] ''"),
        ("&bogus; &; & &#0; &#1; &#x110000; &#+65;", "&bogus; &; & &#0; &#1; &#x110000; &#+65;"),
        ("a&shy;b\u{200b}c", "abc"),
    ]);
}

/// `Parser::doQuotes`.
#[test]
fn apostrophes() {
    check(&[
        ("''a'' '''b''' '''''c'''''", "a b c"),
        ("it's ''a'''s", "it's a's"),
        ("''a''' b", "a' b"),
        ("l'''Iliade'' d'Homère", "l'Iliade d'Homère"),
        ("dans l'''amour'' et", "dans l'amour et"),
        ("''''a''''", "'a'"),
        ("'''unclosed\nnext", "unclosed\nnext"),
        ("''''''a", "'a"),
    ]);
}

#[test]
fn headings_lists_and_rules() {
    check(&[
        ("a\n== H ==\nb", "a\n\nH\nb"),
        ("a\n==H==\n\nb", "a\n\nH\nb"),
        ("=== ''H'' {{x}} ===\nb", "H\nb"),
        ("a = b ==\nb", "a = b ==\nb"),
        ("== H == <!-- c -->\nb", "H\nb"),
        ("* a\n** b\n# c\n:d\n*: e", "a\nb\nc\nd\ne"),
        ("; term : text", "term: text"),
        (": a : b", "a : b"),
        ("; term\n: text", "term\ntext"),
        ("a\n----\nb", "a\n\nb"),
        (" a\n  b", "a\nb"),
        ("a\n\n\n\nb  c\t d", "a\n\nb c d"),
        ("* {{x}}\n* b", "b"),
        ("__NOTOC__ a __БЕЗ_ЗМІСТУ__ b __init__ ____", "a b __init__ ____"),
    ]);
}

#[test]
fn sections_without_content_go() {
    let page = "a\n== B ==\n=== C ===\n{{x}}\n=== D ===\nd\n== E ==\n=== F ===\n<references />\n== G ==\n* {{x}}\n[[Category:H]]";
    let cleaned = clean(page, "en", &CleanOptions::default());
    assert_eq!(cleaned.text, "a\n\nB\n\nD\nd");
    let headings: Vec<_> = cleaned.removed.iter().filter(|r| r.rule == "empty_section").map(|r| r.text.as_str()).collect();
    assert_eq!(headings, ["C", "F", "E", "G"]);
    let keep = CleanOptions { drop_empty_sections: false, ..CleanOptions::default() };
    assert_eq!(clean(page, "en", &keep).text, "a\n\nB\n\nC\n\nD\nd\n\nE\n\nF\n\nG");
}

#[test]
fn what_templates_leave_is_mended() {
    check(&[
        ("Paris ({{IPA|x}}) is", "Paris is"),
        ("Paris ({{IPA|x}}; {{IPA|y}}) is", "Paris is"),
        ("Paris ({{IPA|x}}; born 1900) is", "Paris (born 1900) is"),
        ("Paris (born 1900, {{IPA|x}}) is", "Paris (born 1900) is"),
        ("Paris (a; {{IPA|x}}, b) is", "Paris (a; b) is"),
        ("Leo ((Linnaeus, 1758), {{x}}) is", "Leo ((Linnaeus, 1758)) is"),
        ("({{x}} – {{y}}) a", "a"),
        ("a {{x}}, b {{y}}.", "a, b."),
        ("f() and ( ) and (;)", "f() and ( ) and (;)"),
        ("{{x}}, b", "b"),
        ("a\n.\nb", "a\n\nb"),
        ("{{x}}''{{y}}''\nb", "b"),
    ]);
    assert_eq!(recipe("Paris ({{IPA|x}}; {{IPA|y}}) is"), "Paris (; ) is");
}

/// Nothing of the page but the broken part is lost.
#[test]
fn broken_pages_keep_their_text() {
    check(&[
        ("a [[b\nc [[d]] e", "a b\nc d e"),
        ("a [[b|c\n\nd [[e]]", "a c\n\nd e"),
        ("[[File:X.jpg|thumb|a\n\nb [[c]]", "b c"),
        ("{{Infobox\n| a = b\n| c = d\n\n'''X''' is\n\nmore", "X is\n\nmore"),
        ("a {{lang|fr|b} c", "a c"),
        ("a {{b c", "a b c"),
        ("a\n{|\n! h\n|-\n| b\n\nText\n== H ==\n! c", "a\n\nText\n\nH\n! c"),
        ("a }} b ]] c |} d", "a b c |} d"),
        ("a\n|}\nb", "a\nb"),
        ("a <ref>b c", "a b c"),
        ("a <table>b", "a b"),
        ("a <span b", "a <span b"),
        ("<math>x", "x"),
        ("<nowiki>[[x]]", "x"),
        ("{{a}}}} b {{{c}} d", "b d"),
        ("[[[[a]]]] [[[b]]]", "a [b]"),
    ]);
}

#[test]
fn serbian_variants() {
    assert_eq!(text_in("у -{New York}- граду", "sr"), "у New York граду");
    assert_eq!(text_in("-{sr-ec:један; sr-el:jedan}- два", "sr"), "један два");
    assert_eq!(text_in("-{T|Наслов}-текст", "sr"), "текст");
    assert_eq!(text_in("a -{b}- c", "en"), "a -{b}- c");
}

#[test]
fn reasons_and_counts() {
    let cleaned = clean("a<ref>b</ref> {{c}}{{d}} [[File:x.png]]", "en", &CleanOptions::default());
    let removed: Vec<_> = cleaned.removed.iter().map(|r| (r.rule, r.text.as_str())).collect();
    assert_eq!(removed, [("media", "1"), ("reference", "1"), ("template", "2")]);
    for page in ["", " \n", "{{x}}\n[[Category:Y]]\n== H ==", "<!-- a"] {
        assert_eq!(clean(page, "en", &CleanOptions::default()).dropped.as_deref(), Some("empty"), "{page}");
    }
    let mut record = Record { text: "text".into(), ..Record::default() };
    record.meta.insert("language".into(), "xx".into());
    let options = CleanOptions::default();
    assert_eq!(clean_record(&record, &options).dropped.as_deref(), Some("language"));
    assert_eq!(clean_record(&record, &CleanOptions { languages: vec![], ..options.clone() }).text, "text");
    record.meta.insert("language".into(), "uk".into());
    assert_eq!(clean_record(&record, &options).text, "text");
    record.meta.insert("model".into(), "json".into());
    assert_eq!(clean_record(&record, &options).dropped.as_deref(), Some("not_wikitext"));
    record.meta.insert("redirect".into(), "X".into());
    assert_eq!(clean_record(&record, &options).dropped.as_deref(), Some("redirect"));
}

/// Constructs that make a parser with backtracking, or one that moves text, quadratic or worse.
fn hostile() -> Vec<String> {
    let mut pages: Vec<String> = [
        "{{",
        "}}",
        "{{a|",
        "{{nowrap|",
        "{{nowrap|a=",
        "{{{",
        "{{{a|",
        "[[",
        "]]",
        "[[a|",
        "[[:a",
        "[[Category:",
        "[[File:a|",
        "[http://a ",
        "[",
        "\n{|",
        "\n{|\n|",
        "\n|}",
        "''",
        "'''",
        "a'''",
        "<ref>",
        "<ref name=a>b",
        "<math>",
        "<nowiki>",
        "<pre>",
        "<!--",
        "<!---->",
        "<table>",
        "</table>",
        "<b",
        "<",
        "&",
        "&#",
        "__",
        "__A",
        "(",
        ")",
        "( ;",
        "({{a}}",
        "{{a}})",
        "=",
        "\n==",
        "\n== a ==",
        "\n*",
        ":",
        ";",
        "-{",
        " ",
        "\n",
        "\t",
        "|",
        "a\n\n",
        "{{a}}",
        "{{!}}",
        "{{nowrap|x}}",
        "[[a]]",
        "{{{{{",
        "<sup>1",
        "<br>",
        "\n<pre> </pre>",
        "\u{a0}",
        "{{a\n\n[[File:",
        "[[b|{{c|",
        "{| {{ [[ <ref> ",
        "{{lang|a|[[b|",
        "\u{1}\u{e}\u{7}",
    ]
    .iter()
    .map(|piece| piece.repeat(10_000))
    .collect();
    for (open, middle, close) in [
        ("{{nowrap|", "x", "}}"),
        ("[[a|", "x", "]]"),
        ("[[", "x", "]]"),
        ("{{{a|", "x", "}}}"),
        ("{{a", "|", "}}"),
        ("<table>", "x", "</table>"),
    ] {
        pages.push(open.repeat(10_000) + &middle.repeat(40_000) + &close.repeat(10_000));
    }
    pages.push(" ".repeat(40_000) + &"<!---->".repeat(10_000));
    pages.push(format!("[[{}", "x".repeat(40_000)) + &"[[".repeat(10_000) + &"]]".repeat(10_001));
    pages
}

/// Pages that make many parsers quadratic.
#[test]
fn hostile_pages_are_worked_through() {
    for options in [CleanOptions::default(), CleanOptions::recipe()] {
        for page in hostile() {
            let cleaned = clean(&page, "sr", &options);
            assert!(cleaned.text.len() <= page.len() * 2);
        }
    }
}

/// Half a million levels do not overflow the stack.
#[test]
fn very_deep_pages() {
    for (open, close) in [("{{nowrap|", "}}"), ("[[a|", "]]"), ("[[Category:", "]]"), ("\n{|\n|", "\n|}"), ("{{{a|", "}}}")] {
        let page = open.repeat(200_000) + &"x ".repeat(500_000) + &close.repeat(200_000);
        for options in [CleanOptions::default(), CleanOptions::recipe()] {
            assert!(clean(&page, "en", &options).text.len() <= page.len());
        }
    }
}

pub(super) fn is_clean(text: &str) -> bool {
    !text.contains("\n\n\n")
        && text.trim() == text.trim_matches('\n').trim()
        && text.chars().all(|c| !c.is_control() || c == '\n' || c == '\t')
}

const SEEDS: [&str; 12] = [
    "'''Anarchism''' is a [[political philosophy]]{{sfn|Ward|2004}}<ref name=\"a\">{{cite book|title=X|url=http://a.b/c}}</ref> that [[state|states]].",
    "{{Infobox person\n| name = X\n| image = [[File:A.jpg|thumb|b [[c]]]]\n| birth = {{birth date|1900|1|2}}\n}}\n== H ==\n* a\n** b\n; c : d",
    "{| class=\"wikitable\"\n! a !! b\n|-\n| [[c|d]] || {{e|f}}\n|}\n<gallery>\nFile:A.jpg|b\n</gallery>",
    "Paris ({{IPA-fr|paʁi}}; {{lang-la|Lutetia}}) l'''Iliade'' x<sup>2</sup> &nbsp;&#233;<br />y<math>\\frac{1}{2}</math>",
    "<syntaxhighlight lang=\"c\">\nint a[2];\n</syntaxhighlight> <nowiki>[[x]]</nowiki> <pre> y </pre> <!-- z -->",
    "[[Файл:Х.jpg|міні|підпис]] '''Київ''' — {{нп|Місто|міста|en|City}} [[Категорія:Міста]] [[en:Kyiv]] __БЕЗ_ЗМІСТУ__",
    "-{sr-ec:један; sr-el:jedan}- {{convert|5|to|10|km|mi}} [http://example.org a ''b''] [[:Category:X]] [[Y (z)|]]",
    "{{{{{1|a}}}|{{{2}}}}} {{#if:x|y}} {{!}} [[a{{!}}b]] <table><tr><td>a</td></tr></table>",
    "\u{1}\u{2}\u{7}\u{8}\u{e} a\r\nb\u{ad}c <ref>unclosed {{ [[ {| <table> \n|} ]] }}",
    "#REDIRECT [[X]]",
    "= a =\n== b ==\n=== c ===\n----\n: x\n:{|\n| y\n|}\n",
    "( ; ) ({{a}}, {{b}}) {{frac|1|2}} {{quote|a=b|c}} {{formatnum:1}} {{lang|fr|{{nowrap|x}}}}",
];

const PIECES: [&str; 40] = [
    "{{",
    "}}",
    "{{{",
    "}}}",
    "[[",
    "]]",
    "[",
    "]",
    "{|",
    "|}",
    "|",
    "\n|-\n",
    "<ref>",
    "</ref>",
    "<ref/>",
    "<!--",
    "-->",
    "<nowiki>",
    "</nowiki>",
    "<math>",
    "</math>",
    "<pre>",
    "</pre>",
    "<table>",
    "</table>",
    "''",
    "'''",
    "==",
    "\n",
    "\n\n",
    "&",
    "&amp;",
    "__",
    "(",
    ")",
    ";",
    "[http://",
    "{{nowrap|",
    "[[File:",
    "-{",
];

#[test]
fn fuzz_wikitext() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let seeds = SEEDS.map(str::as_bytes);
    let pieces = PIECES.map(str::as_bytes);
    let options = [CleanOptions::default(), CleanOptions::recipe()];
    for n in 0..fuzz_inputs() {
        let page = mutate(&mut rng, &seeds, &pieces);
        let page = String::from_utf8_lossy(&page);
        let cleaned = clean(&page, LANGUAGES[n % 20], &options[n % 2]);
        assert!(cleaned.text.is_empty() == cleaned.dropped.is_some(), "input {n}: {page:?}");
        assert!(
            is_clean(&cleaned.text) || page.contains("<pre") || page.contains("<s"),
            "input {n}: {page:?} gave {:?}",
            cleaned.text
        );
        assert!(cleaned.text.len() <= page.len() * 2 + 16, "input {n}: {page:?}");
    }
}
