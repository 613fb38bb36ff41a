//! arXiv: archives to documents, LaTeX to text. Expectations follow from TeX's rules and from LLaMA's section 2.1; those with
//! `rp_compat` from RedPajama's regular expressions.

use std::{
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recua::data::{
    Cleaned, Record, Rejected,
    sources::arxiv::{FILE_SEPARATOR, Options, clean, read},
};

/// The text of a document with `body` after a section's head.
fn body(body: &str) -> String {
    let cleaned = clean(&format!("\\begin{{document}}\\section{{S}}\n{body}"), &Options::default());
    cleaned.text.strip_prefix("\\section{S}\n").unwrap_or_default().to_owned()
}

/// The same, with `preamble` before it.
fn with(preamble: &str, text: &str) -> String {
    let tex = format!("\\documentclass{{article}}\n{preamble}\n\\begin{{document}}\n\\section{{S}}\n{text}\n\\end{{document}}\n");
    let cleaned = clean(&tex, &Options::default());
    cleaned.text.strip_prefix("\\section{S}\n").unwrap_or_default().to_owned()
}

fn redpajama(files: &[&str]) -> Cleaned {
    clean(&files.join(&FILE_SEPARATOR.to_string()), &Options { rp_compat: true, ..Options::default() })
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

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

/// What `read` gives for a file of this name and content.
fn read_bytes(name: &str, bytes: &[u8], options: &Options) -> Vec<Result<Record, Rejected>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    read_all(&path, options)
}

/// The one document of a paper of these files.
fn paper(files: &[(&str, &str)]) -> Result<Record, Rejected> {
    let files: Vec<(&str, &[u8])> = files.iter().map(|(n, t)| (*n, t.as_bytes())).collect();
    read_bytes("2101.00001.gz", &gz(&tar(&files)), &Options::default()).remove(0)
}

#[test]
fn comments_go_as_tex_reads_them() {
    assert_eq!(body("a 50\\% rise % why\nb"), "a 50\\% rise\nb");
    assert_eq!(body("line\\\\% after a break\nnext"), "line\\\\next");
    assert_eq!(body("affine-%\n   invariant"), "affine-invariant");
    assert_eq!(body("x%%%\ny"), "xy");
    assert_eq!(body("one\n% whole line\n   % indented\ntwo"), "one\ntwo");
    assert_eq!(body("one%a\n%b\n  two"), "onetwo");
    assert_eq!(body("one%a\n\ntwo"), "one\n\ntwo");
    assert_eq!(body("\\alpha% a\nbeta"), "\\alpha\nbeta", "the newline ends a command's name");
    assert_eq!(body("text%\n\\item x"), "text\n\\item x");
    assert_eq!(body("\\url{http://a.b/c%20d} and % gone\nx"), "\\url{http://a.b/c%20d} and\nx");
    assert_eq!(body("\\href{http://a/%7Eb}{t% gone\n}"), "\\href{http://a/%7Eb}{t}");
    assert_eq!(body("end % no newline"), "end");
    assert_eq!(body("a\n\\begin{comment}\nno \\end{verbatim}\n\\end{comment}\nb"), "a\nb");
}

#[test]
fn verbatim_is_left_alone() {
    for name in ["verbatim", "Verbatim", "lstlisting", "minted", "alltt"] {
        let inner = format!("\\begin{{{name}}}\nx = 5 % y  \n\n\n\n\\foo \\iffalse \\end{{document}}\n\\end{{{name}}}");
        assert_eq!(with("\\newcommand{\\foo}{FOO}", &format!("{inner}\n\\foo")), format!("{inner}\nFOO"));
    }
    assert_eq!(body("\\verb|100% \\x| \\verb*+a%b+ c % d"), "\\verb|100% \\x| \\verb*+a%b+ c");
    assert_eq!(
        body("\\lstinline[language=C]!a % b! \\lstinline{x%{}y} \\mintinline{c}|%|"),
        "\\lstinline[language=C]!a % b! \\lstinline{x%{}y} \\mintinline{c}|%|"
    );
    assert_eq!(body("\\verb|open % gone\nb|"), "\\verb|open\nb|", "it ends with its line or is none");
    let own = "\\lstnewenvironment{code}{}{}\n\\DefineVerbatimEnvironment{out}{Verbatim}{}\n\\excludecomment{hidden}";
    let text = "\\begin{code}\n% a\n\\end{code}\n\\begin{out}\n% b\n\\end{out}";
    assert_eq!(with(own, &format!("{text}\n\\begin{{hidden}}\nc\n\\end{{hidden}}\nd")), format!("{text}\nd"));
    assert_eq!(with("%\\excludecomment{hidden}", "\\begin{hidden}c\\end{hidden}"), "\\begin{hidden}c\\end{hidden}");
    assert_eq!(body("\\begin{verbatim} % gone\nb"), "\\begin{verbatim}\nb", "without an end it is none");
}

#[test]
fn dead_branches_go() {
    assert_eq!(body("a\n\\iffalse no \\fi\nb"), "a\nb");
    assert_eq!(body("\\iffalse no\\else yes\\fi"), "yes");
    assert_eq!(body("\\iftrue yes\\else no\\fi."), "yes.");
    assert_eq!(body("\\iffalse \\ifx\\a\\b c\\else d\\fi no\\else yes\\fi"), "yes");
    assert_eq!(body("\\if0 no\\fi x \\if 0 no\\fi y \\if false no \\fi z"), "x y z");
    assert_eq!(body("a \\iff b \\iffalse \\iff \\ifthenelse{a}{b}{c} \\fi d"), "a \\iff b d");
    assert_eq!(body("\\ifmmode a\\else b\\fi"), "\\ifmmode a\\else b\\fi");
    assert_eq!(body("a \\iffalse rest"), "a \\iffalse rest", "no \\fi: nothing is known");
    assert_eq!(body("{\\iffalse} a \\fi b"), "{\\iffalse} a \\fi b");
    assert_eq!(with("\\newif\\iflong\\longtrue\n\\newif\\ifnote", "\\iflong a\\else b\\fi\\ifnote c\\fi"), "a");
    assert_eq!(with("\\newif\\iflong", "{\\longtrue}\\iflong a\\else b\\fi"), "{\\longtrue}\\iflong a\\else b\\fi");
}

#[test]
fn what_is_kept_is_from_the_first_section_to_the_bibliography() {
    let text = |tex: &str| clean(tex, &Options::default()).text;
    for head in
        ["\\section{A}", "\\section*{A}", "\\chapter[a]{A}", "\\part {A}", "\\paragraph{A}", "\\subsection*[x]{A}", "\\newsec{A}"]
    {
        let tex =
            format!("\\titleformat{{\\section}}{{x}}\n\\section{{pre}}\\begin{{document}}abstract\n{head} b\\end{{document}} c");
        assert_eq!(text(&tex), format!("{head} b"));
    }
    assert_eq!(text("x\n\\section{A} b"), "\\section{A} b", "a piece without a document");
    for end in [
        "\\begin{thebibliography}{9}",
        "\\bibliography{refs}",
        "\\begin{references}",
        "\\begin{REFERENCES}",
        "\\printbibliography",
        "\\printbibliography[x]",
        "\\appendix",
        "\\begin{appendix}",
        "\\begin{appendices}",
        "\\end{document}",
        "\\bye",
    ] {
        assert_eq!(text(&format!("\\section{{A}} b\n{end} c\n\\section{{D}}")), "\\section{A} b", "{end}");
    }
    for stays in ["\\appendixname", "\\bibliographystyle{x}", "\\bibliographystylez"] {
        assert_eq!(text(&format!("\\section{{A}} b {stays} c")), format!("\\section{{A}} b {stays} c"));
    }
    assert_eq!(text("\\bibliography{pre}\\begin{document}\\section{A} b"), "\\section{A} b", "biblatex has it in the preamble");
    let removed = clean("p\\section{A} b\\appendix c", &Options::default()).removed;
    let rules: Vec<_> = removed.iter().map(|r| (r.rule, r.text.as_str())).collect();
    assert_eq!(rules, [("before_first_section", "p"), ("appendix", "\\appendix c")]);
}

#[test]
fn options_for_papers_without_section_and_with_appendix() {
    let tex = "\\documentclass{a}\\begin{document}letter\\end{document}";
    assert_eq!(clean(tex, &Options::default()).text, "letter");
    let strict = Options { require_section: true, ..Options::default() };
    assert_eq!(clean(tex, &strict).dropped.as_deref(), Some("no_section"));
    assert_eq!(clean("\\begin{document} \\end{document}", &Options::default()).dropped.as_deref(), Some("empty"));
    let keep = Options { keep_appendix: true, ..Options::default() };
    let tex = "\\section{A} b\n\\begin{thebibliography}{9}\nr\n\\end{thebibliography}\n\\bibliography{x}\n\\appendix\n\\section{B} c\\end{document}";
    assert_eq!(clean(tex, &keep).text, "\\section{A} b\n\\appendix\n\\section{B} c");
    assert_eq!(clean("\\section{A} b\n\\begin{thebibliography}{9} r", &keep).text, "\\section{A} b");
}

#[test]
fn macros_are_expanded_with_their_arguments() {
    assert_eq!(with("\\newcommand{\\R}{\\mathbb{R}}", "$x\\in\\R^n$, \\Rfoo, \\R"), "$x\\in\\mathbb{R}^n$, \\Rfoo, \\mathbb{R}");
    assert_eq!(
        with("\\newcommand*\\v[1]{\\vec{#1}}", "\\v x \\v{ab} \\v\\alpha \\v 1"),
        "\\vec{x} \\vec{ab} \\vec{\\alpha} \\vec{1}"
    );
    assert_eq!(with("\\newcommand{\\p}[3][2]{(#1,#2,#3)}", "\\p{a}{b} \\p[{]}]{c}d"), "(2,a,b) ({]},c,d)");
    assert_eq!(with("\\def\\a#1#2{#2#1}", "\\a xy \\a{1}{2}"), "yx 21");
    assert_eq!(with("\\def\\pair<#1,#2>{(#1|#2)}", "\\pair<a,{b>,}> \\pair x"), "(a|{b>,}) \\pair x".replace("{b>,}", "b>,"));
    assert_eq!(with("\\def\\beq#1\\eeq{\\begin{eq}#1\\end{eq}}", "\\beq x\\eeqn y\\eeq."), "\\begin{eq}x\\eeqn y\\end{eq}.");
    assert_eq!(
        with("\\DeclareMathOperator{\\tr}{Tr}\\DeclareMathOperator*\\am{arg\\,max}", "\\tr A \\am_x"),
        "\\operatorname{Tr} A \\operatorname*{arg\\,max}_x"
    );
    assert_eq!(
        with("\\newcommand{\\n}{note}\\newcommand{\\ns}{\\n s}", "the \\ns\\ and \\n.s"),
        "the notes and note.s",
        "blanks after a name are none"
    );
    assert_eq!(with("\\let\\eps=\\varepsilon\\let\\e\\eps\\let\\s =x", "\\eps\\e\\s"), "\\varepsilon\\varepsilon x");
    assert_eq!(with("\\NewDocumentCommand{\\f}{m m}{#2#1}\\NewDocumentCommand\\g{o}{x}", "\\f{a}{b} \\g"), "ba \\g");
    assert_eq!(with("\\long\\gdef\\a{A}\\global\\let\\b\\a\\edef\\c{\\a}", "\\a\\b\\c"), "AAA");
    assert_eq!(with("\\newcommand{\\a}{\\b{1}}\\newcommand{\\b}[1]{<#1\\c>}\\def\\c{C}", "\\a"), "<1C>", "nested, in any order");
    assert_eq!(with("\\newcommand{\\set}[1]{\\def\\y##1{##1#1}}", "\\set{a}\\y{b}"), "ba");
    assert_eq!(with("\\newcommand{\\bf}{\\mathbf}", "\\bf{x} \\bf y"), "\\mathbf{x} \\mathbf y");
}

#[test]
fn later_definitions_win_and_definitions_go() {
    assert_eq!(with("\\def\\a{1}\\renewcommand{\\a}{2}", "\\a\n\\def\\a{3}\n\\a"), "2\n3");
    assert_eq!(with("\\def\\a{1}\\providecommand{\\a}{2}\\providecommand\\b{3}", "\\a\\b"), "13");
    assert_eq!(body("a\n\\newcommand{\\x}{\ny\n\n}\nb \\newcommand\\z{}c"), "a\nb c");
    assert_eq!(body("\\newenvironment{e}[1][x]{a#1}{b}c\\begin{e}[1]d\\end{e}"), "c\\begin{e}[1]d\\end{e}");
    let expand = Options { expand_environments: true, ..Options::default() };
    assert_eq!(
        clean("\\section{A}\\newenvironment{e}[1][x]{a#1}{b}c\\begin{e}[1]d\\end{e}\\begin{e}\\end{e}", &expand).text,
        "\\section{A}ca1dbaxb"
    );
}

#[test]
fn what_expansion_leaves() {
    assert_eq!(with("\\renewcommand{\\section}{\\large}\\let\\old\\section", "\\section{T}\\old{U}"), "\\section{T}\\section{U}");
    assert_eq!(
        with("\\makeatletter\\def\\x{\\@foo}\\def\\@y{z}\\makeatother", "\\x"),
        "\\x",
        "LaTeX's inner commands say nothing"
    );
    assert_eq!(body("\\newcommand{\\a}[1]{<#1>}\\a"), "\\a", "no argument there");
    assert_eq!(body("\\newcommand{\\a}[1]{<#1>}\\a{x"), "\\a{x");
    assert_eq!(body("\\def\\a{\\a x}\\a"), "\\a", "recursion ends");
    assert_eq!(body("\\newcommand{\\emph}[1]{\\it \\emph{#1}}\\emph{x}"), "\\emph{x}");
    // 2^40 copies: the use stays, and so do the smaller ones that fit as they come.
    let mut bomb = String::from("\\def\\aa{lol}");
    let names: Vec<String> =
        (b'a'..=b'z').flat_map(|c| [format!("\\{0}{0}", char::from(c)), format!("\\{0}{0}{0}", char::from(c))]).collect();
    for pair in names.windows(2).take(40) {
        bomb += &format!("\\def{}{{{}{}}}", pair[1], pair[0], pair[0]);
    }
    let started = Instant::now();
    let text = with(&bomb, &format!("{} \\aaa {}", names[40], names[40]));
    assert_eq!(text, format!("{0} lollol {0}", names[40]));
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn expansions_do_not_run_together() {
    assert_eq!(
        with("\\newcommand{\\a}{\\alpha}\\newcommand{\\b}[1]{\\mathbf#1}", "\\a b \\b{x} \\b\\a"),
        "\\alpha b \\mathbf x \\mathbf\\alpha"
    );
    let names = "\\newcommand{\\eg}{e.g.\\xspace}\\newcommand{\\this}{emcee}\\newcommand{\\x}{\\eg}";
    assert_eq!(
        with(names, "\\eg this (\\x), \\x\\y \\this{} runs, \\this\\ runs"),
        "e.g. this (e.g.), e.g. \\y emcee runs, emcee runs"
    );
}

#[test]
fn white_space_is_tidied() {
    assert_eq!(body("a  \n\n \t\n\n\nb\\ \nc\r\nd\re\n\n"), "a\n\nb\\ \nc\nd\ne");
}

#[test]
fn inputs_are_put_in_place() {
    let main = "\\documentclass{a}\n\\begin{document}\n\\input{sec/one}% \\input{no}\n\\include{two.tex}\\input three \\input{gone}\\input{p.bbl}X\\end{document}";
    let record = paper(&[
        ("p.bbl", "\\bibitem{x}"),
        ("sec/one.tex", "\\section{1} % last line"),
        ("two.tex", "2\\input{./sec/../two}\\endinput no"),
        ("three.tex", "3"),
        ("main.tex", main),
        ("unused.tex", "no"),
    ])
    .unwrap();
    assert_eq!(record.id, "2101.00001");
    assert_eq!(
        record.text,
        "\\documentclass{a}\n\\begin{document}\n\\section{1} % last line\n% \\input{no}\n2\n3\n \\bibliography{}X\\end{document}"
    );
    assert_eq!(
        serde_json::to_value(&record.meta).unwrap(),
        serde_json::json!({"arxiv_id": "2101.00001", "yymm": "2101", "files": ["main.tex", "sec/one.tex", "two.tex", "three.tex"], "missing": ["./sec/../two", "gone"]})
    );
    assert_eq!(clean(&record.text, &Options::default()).text, "\\section{1}\n2\n3");
}

#[test]
fn subfiles_and_imports() {
    let main = "\\documentclass{a}\\begin{document}\\section{A}\n\\subfile{s/x}\\import{i/}{y}\\begin{verbatim}\\input{z}\\end{verbatim}\\end{document}";
    let record = paper(&[
        ("src/main.tex", main),
        ("src/s/x.tex", "\\documentclass[../main]{subfiles}\\begin{document}X\\end{document}"),
        ("src/i/y.tex", "Y\\subimport{j}{w}\\input{v}"),
        ("src/i/j/w.tex", "W"),
        ("src/i/v.tex", "V"),
        ("src/z.tex", "no"),
    ])
    .unwrap();
    assert_eq!(
        clean(&record.text, &Options::default()).text,
        "\\section{A}\nX\nYW\nV\n\\begin{verbatim}\\input{z}\\end{verbatim}"
    );
}

#[test]
fn the_main_file() {
    let document = |text: &str| format!("\\documentclass{{a}}\\begin{{document}}{text}\\end{{document}}");
    let long = document(&"long ".repeat(9));
    let record = paper(&[("supplement.tex", &document("s")), ("m.tex", &long), ("macros.tex", &"% x".repeat(500))]).unwrap();
    assert_eq!(record.meta["files"], serde_json::json!(["m.tex"]));
    let includes = document("\\input{long}");
    let record = paper(&[("a.tex", &includes), ("b.tex", &document("not so long")), ("long.tex", &"text ".repeat(9))]).unwrap();
    assert_eq!(record.meta["files"], serde_json::json!(["a.tex", "long.tex"]), "with what it includes");
    let figure = format!("\\documentclass{{standalone}}\\begin{{document}}{}\\end{{document}}", "x".repeat(99));
    let record =
        paper(&[("fig.tex", &figure), ("b.tex", &document("b")), ("c.tex", "%\\documentclass\n\\begin{document}")]).unwrap();
    assert_eq!(record.meta["files"], serde_json::json!(["b.tex"]));
    let record = paper(&[("defs.tex", "\\def\\a{b}"), ("paper.tex", "\\input defs plain TeX \\bye")]).unwrap();
    assert_eq!(record.meta["files"], serde_json::json!(["paper.tex", "defs.tex"]), "plain TeX");
    assert_eq!(paper(&[("fig.txt", "x")]).unwrap_err().reason, "no LaTeX source in the archive");
}

#[test]
fn bulk_tars() {
    let tex = b"\\documentclass{a}\\begin{document}\\section{A} x\\end{document}";
    let latin1 = b"\\documentclass{a}\\begin{document}\\section{Caf\xe9 \x93q\x94} x\\end{document}";
    let damaged = &gz(tex)[..30];
    let bulk = tar(&[
        ("1202/1202.3665.gz", &gz(tex)),
        ("1202/1202.00001v2.gz", &gz(&tar(&[("ms.tex", tex), ("f.eps", &[0; 3000])]))),
        ("9901/astro-ph9901001.gz", &gz(latin1)),
        ("1202/1202.0002.pdf", b"%PDF-1.4"),
        ("1202/1202.0003.gz", &gz(b"%PDF-1.4")),
        ("1202/1202.0004.gz", &gz(b"%!PS-Adobe")),
        ("1202/1202.0005.gz", &gz(b"%auto-ignore\nwithdrawn")),
        ("1202/1202.0006.gz", damaged),
        ("1202/1202.0007.gz", &gz(&tar(&[("x.tex", tex)])[..600])),
        ("1202/note.doc", b"x"),
    ]);
    let all = read_bytes("arXiv_src_1202_001.tar", &bulk, &Options::default());
    let ids: Vec<_> = all.iter().flatten().map(|r| r.id.as_str()).collect();
    assert_eq!(ids, ["1202.3665", "1202.00001", "astro-ph/9901001"]);
    let latin1 = all[2].as_ref().unwrap();
    assert!(latin1.text.contains("\\section{Café “q”}"));
    assert_eq!(latin1.meta["latin1"], serde_json::json!(["astro-ph9901001.tex"]));
    assert_eq!(latin1.meta["yymm"], "9901");
    let rejected: Vec<_> = all.iter().filter_map(|r| r.as_ref().err()).map(|r| (r.place.as_str(), r.reason.as_str())).collect();
    for (got, (place, reason)) in rejected.iter().zip([
        ("1202.0002", "only a PDF"),
        ("1202.0003", "only a PDF"),
        ("1202.0004", "only PostScript"),
        ("1202.0005", "withdrawn"),
        ("1202.0006", "damaged"),
        ("1202.0007", "damaged"),
        ("note.doc", "neither"),
    ]) {
        assert!(got.0 == place && got.1.starts_with(reason), "{got:?}");
    }
    assert_eq!(rejected.len(), 7);

    let strict = Options { strict_utf8: true, ..Options::default() };
    assert_eq!(read_bytes("b.tar", &bulk, &strict)[2].as_ref().unwrap_err().reason, "astro-ph9901001.tex is not UTF-8");
    // Truncated inside the third member: two papers, and word of the damage.
    let cut = bulk.windows(23).position(|w| w == b"9901/astro-ph9901001.gz").unwrap() + 512 + 40;
    let all = read_bytes("b.tar", &bulk[..cut], &Options::default());
    assert_eq!(all.iter().flatten().count(), 2);
    assert!(all.len() >= 3);
}

#[test]
fn sizes_are_bounded() {
    let zeros = vec![b' '; 3 << 20];
    let small = Options { max_inflated: 1 << 20, max_tex: 1 << 16, ..Options::default() };
    let reason = |files: &[(&str, &[u8])]| read_bytes("1.gz", &gz(&tar(files)), &small).remove(0).unwrap_err().reason;
    assert!(reason(&[("figure.eps", &zeros), ("a.tex", b"x")]).contains("inflates to more than 1048576 bytes"));
    assert!(reason(&[("a.tex", &zeros[..1 << 17])]).contains("more than 65536 bytes of LaTeX"));
    let single = read_bytes("1.gz", &gz(&zeros), &small).remove(0).unwrap_err().reason;
    assert!(single.contains("more than 65536 bytes"), "{single}");
    // Files that include files: 10^9 copies of the last.
    let mut files = vec![("a.tex".to_owned(), format!("\\documentclass{{a}}\\begin{{document}}{}", "\\input{b}".repeat(10)))];
    for (name, next) in ('b'..'k').zip('c'..) {
        files.push((format!("{name}.tex"), format!("\\input{{{next}}}").repeat(10)));
    }
    let files: Vec<_> = files.iter().map(|(n, t)| (n.as_str(), t.as_bytes())).collect();
    let started = Instant::now();
    let record = read_bytes("1.gz", &gz(&tar(&files)), &small).remove(0).unwrap();
    assert!(started.elapsed() < Duration::from_secs(5) && record.text.len() < 1 << 16);
}

#[test]
fn folders_and_single_files() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    write("p/main.tex", b"\\documentclass{a}\\begin{document}\\input{s/x}\\end{document}");
    write("p/s/x.tex", b"X");
    write("p/.hidden.tex", &[b'x'; 999]);
    let all = read_all(&dir.path().join("p"), &Options::default());
    assert_eq!(all[0].as_ref().unwrap().meta["files"], serde_json::json!(["main.tex", "s/x.tex"]));
    assert_eq!((all.len(), all[0].as_ref().unwrap().id.as_str()), (1, "p"));
    assert_eq!(read_all(&dir.path().join("p/s/x.tex"), &Options::default())[0].as_ref().unwrap().text, "X");
    write("q/2.tar", &tar(&[("a/2.gz", &gz(b"two"))]));
    write("q/1.tar.gz", &gz(&tar(&[("a.tex", b"one")])));
    let all = read_all(&dir.path().join("q"), &Options::default());
    let texts: Vec<_> = all.iter().map(|r| r.as_ref().unwrap().text.as_str()).collect();
    assert_eq!(texts, ["one", "two"]);
    assert!(read(&dir.path().join("absent.tar"), &Options::default(), &mut |_| Ok(())).is_err());
}

#[test]
fn redpajama_mode_has_its_bugs() {
    assert_eq!(redpajama(&["pre\\section{A}\n% x\nb c% d\n50\\% e %\n\\appendix f"]).text, "\\section{A}\nb \n50\\% e %\n");
    assert_eq!(
        redpajama(&["a \\section*[x]{A}\n\\bibliographystyle{p} c \\bibliography{r}"]).text,
        "\\section*[x]{A}\n\\bibliographystyle{p} c "
    );
    assert_eq!(redpajama(&["\\paragraph{A} b"]).dropped.as_deref(), Some("empty"), "no head");
    assert_eq!(redpajama(&["x\\paragraph{A}\\subparagraph{B} b"]).text, "\\paragraph{A}\\subparagraph{B} b");
    assert_eq!(redpajama(&["no head", "\\section{A}"]).text, "\n\\section{A}");
    assert_eq!(
        redpajama(&["\\section{A}\\begin{verbatim}\na % b\n\\end{verbatim}"]).text,
        "\\section{A}\\begin{verbatim}\na\n\\end{verbatim}"
    );
    let macros = "\\newcommand{\\a}{1}\n\\newcommand*{\\b}{\\a 2}\n\\newcommand{\\c}[1]{3}\n\\def\\d {4}\n\\def\\e#1{5}\n\\newcommand{\\f}{6\n}\n\\newcommand{\\g}{7} %\n";
    assert_eq!(
        redpajama(&[macros, "\\section{A} \\a, \\ab \\b. \\c \\d\\d! \\e \\f \\g \\a"]).text,
        // Expanded once each, in the order of their names; the character after one cannot begin the next.
        "\n\\section{A} 1, \\ab \\a 2. \\c 4\\d! \\e \\f \\g \\a"
    );
    assert_eq!(redpajama(&["\\def\\a{é}\n\\section{A}"]).dropped.as_deref(), Some("macro_not_ascii"));
    assert_eq!(redpajama(&["\\def\\a{1}\n\\def\\a{2}\n\\section{A} \\a "]).text.trim_start_matches("\\section{A} "), "2 ");
}

#[test]
fn redpajama_mode_reads_files_as_they_come() {
    let files: [(&str, &[u8]); 3] = [("b.tex", b"\\section{B}\r\n"), ("x.sty", b"no"), ("a.tex", b"A")];
    let options = Options { rp_compat: true, ..Options::default() };
    let record = read_bytes("1.gz", &gz(&tar(&files)), &options).remove(0).unwrap();
    assert_eq!(record.text, format!("\\section{{B}}\r\n{FILE_SEPARATOR}A"));
    assert_eq!(clean(&record.text, &options).text, "\\section{B}\r\n\n");
}

/// Texts that make a careless cleaner quadratic or worse.
fn hostile(bytes: usize) -> Vec<String> {
    let repeat = |piece: &str| piece.repeat(bytes / piece.len());
    let mut texts: Vec<String> = [
        "\\begin{verbatim}",
        "\\begin{comment}",
        "\\verb|",
        "\\verb\u{e9}",
        "\\lstinline{",
        "\\iffalse ",
        "\\if0",
        "{\\iffalse",
        "\\fi ",
        "\\newif\\ifa",
        "\\atrue",
        "\\newcommand{\\a}{",
        "\\def\\a{",
        "\\def\\a#1",
        "\\def\\a#1\\b{#1}\\a",
        "\\newcommand{\\a}[1]{#1}\\a{",
        "\\newcommand{\\a}[1][x]{#1}\\a[",
        "\\section{",
        "\\section[",
        "\\paragraph{",
        "}\\subparagraph{",
        "\\bibliography{",
        "\\let\\a\\begin{verbatim}",
        "\\long",
        "\\url{",
        "%\n",
        "a%\n",
        "a % \n",
        " ",
        "\n",
        "\\",
        "{",
        "}",
        "\\begin{document}",
        "\\end{document}",
        "\\input{a}",
        "\\input ",
        "\\lstnewenvironment{a}",
        "\\excludecomment{b}\\begin{b}",
        "#",
        "\\makeatletter\\a@",
        "[",
        "\\newenvironment{a}{b}{c}",
    ]
    .map(repeat)
    .into();
    texts.push(format!("\\newcommand{{\\a}}[1]{{#1}}{}", repeat("\\a{")));
    texts.push(format!("\\newcommand{{\\a}}[1]{{#1}}{}{}", "\\a{".repeat(bytes / 8), "}".repeat(bytes / 8)));
    texts.push(format!("\\def\\a#1\\z{{#1}}{}", repeat("\\a ")));
    texts.push(format!("\\def\\a{{\\a\\a}}{}", repeat("\\a ")));
    texts.push((0..bytes / 30).map(|i| format!("\\def\\a{0}{{\\a{1}\\a{1}}}\\a{0} ", letters(i), letters(i + 1))).collect());
    texts.push(
        (0..bytes / 30)
            .map(|i| format!("\\newcommand{{\\a{0}}}{{\\a{1}\\a{1}}}\n", letters(i), letters(i + 1)))
            .collect::<String>()
            + "\\section{x}\\aa ",
    );
    texts
}

fn letters(mut n: usize) -> String {
    let mut name = String::new();
    while n > 0 {
        name.push(char::from(b'a' + (n % 26) as u8));
        n /= 26;
    }
    name
}

#[test]
fn hostile_texts_take_linear_time() {
    for text in hostile(200_000) {
        for tex in [text.clone(), format!("\\section{{a}}{text}"), format!("\\newcommand{{\\q}}{{\n{text}")] {
            for options in [
                Options::default(),
                Options { rp_compat: true, ..Options::default() },
                Options { keep_appendix: true, expand_environments: true, ..Options::default() },
            ] {
                let started = Instant::now();
                let cleaned = clean(&tex, &options);
                let (seconds, start) = (started.elapsed().as_secs_f64(), &text[..40.min(text.len())]);
                assert!(seconds < 8.0, "{start:?}: {seconds} s, rp_compat {}", options.rp_compat);
                assert!(cleaned.text.len() <= 17 * tex.len() + (2 << 20), "{start:?}: {} bytes", cleaned.text.len());
            }
        }
    }
}

/// A mutated copy of some seed: flipped, cut, doubled, and spliced with others and with `pieces`.
fn mutate(rng: &mut ChaCha8Rng, seeds: &[Vec<u8>], pieces: &[&str]) -> Vec<u8> {
    let mut bytes = seeds[rng.random_range(0..seeds.len())].clone();
    for _ in 0..rng.random_range(1..8) {
        let at = rng.random_range(0..=bytes.len());
        let end = (at + rng.random_range(0..200)).min(bytes.len());
        match rng.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            3 => {
                let other = &seeds[rng.random_range(0..seeds.len())];
                let from = rng.random_range(0..=other.len());
                let piece = other[from..(from + rng.random_range(0..300)).min(other.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            4 => bytes.truncate(at.max(16)),
            _ => drop(bytes.splice(at..at, pieces[rng.random_range(0..pieces.len())].bytes())),
        }
    }
    bytes
}

fn rounds() -> usize {
    std::env::var("RECUA_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(3000)
}

const PIECES: [&str; 34] = [
    "%",
    "\\",
    "{",
    "}",
    "[",
    "]",
    "#1",
    "##",
    "\n\n",
    "\u{e9}",
    "\u{1f600}",
    "\\begin{verbatim}",
    "\\end{verbatim}",
    "\\verb|",
    "\\iffalse",
    "\\else",
    "\\fi",
    "\\newif\\ifa",
    "\\def\\a#1\\b{#1\\a}",
    "\\newcommand{\\b}[2][\\a]{#2\\b#1}",
    "\\let\\a\\b",
    "\\a",
    "\\b",
    "\\begin{document}",
    "\\end{document}",
    "\\section{",
    "\\appendix",
    "\\bibliography{",
    "\\begin{comment}",
    "\\end{comment}",
    "\\input{b}",
    "\\newenvironment{e}{\\a}{\\b}",
    "\\begin{e}",
    "\\end{e}",
];

#[test]
fn fuzz_cleaner() {
    let seeds: Vec<Vec<u8>> = [
        "\\documentclass{a}\n\\newcommand{\\a}[2][x]{#1-#2}\n\\def\\b#1.{<#1>}\n\\begin{document}\nAbstract \\a{b}.\n\\section*{One}% c\n$x^\\b y.$ \\verb|%| \\url{a%b}\n\n\\iffalse n\\else y\\fi\n\\begin{lstlisting}\n% k\n\\end{lstlisting}\n\\bibliography{r}\n\\appendix\n\\end{document}",
        "\\makeatletter\\let\\c@d\\alpha\\makeatother\\DeclareMathOperator*{\\am}{arg}\\NewDocumentCommand\\f{m}{#1}\\section[o]{T}\\am\\f{x}\\newif\\ifz\\ztrue\\ifz a\\else b\\fi\\begin{thebibliography}{9}\\bibitem{a}\\end{thebibliography}",
        "plain \\TeX\\ text: na\u{ef}ve caf\u{e9}, $\\alpha\\beta$ 50\\% of it % c\n\\paragraph{A}\\subparagraph{B} \\lstinline[x]{a{b}%} \\begin{comment}x\\end{comment} \\bye",
    ]
    .iter()
    .map(|s| s.as_bytes().to_vec())
    .collect();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let options = [
        Options::default(),
        Options { rp_compat: true, ..Options::default() },
        Options { keep_appendix: true, expand_environments: true, require_section: true, ..Options::default() },
    ];
    let mut kept = 0;
    for round in 0..rounds() {
        let bytes = mutate(&mut rng, &seeds, &PIECES);
        let tex = String::from_utf8_lossy(&bytes);
        let started = Instant::now();
        let cleaned = clean(&tex, &options[round % options.len()]);
        assert!(started.elapsed() < Duration::from_secs(4), "{tex}");
        assert!(cleaned.text.len() <= 17 * tex.len() + (2 << 20), "{tex}");
        assert_eq!(cleaned.dropped.is_some(), cleaned.text.is_empty(), "{tex}");
        kept += usize::from(!cleaned.text.is_empty());
    }
    assert!(kept > rounds() / 10, "{kept} texts came to something");
}

#[test]
fn fuzz_archives() {
    let tex = b"\\documentclass{a}\\begin{document}\\input{b}\\section{A} x\\end{document}";
    let inner = tar(&[("a.tex", tex), ("b.tex", b"\\input{a}\\input c \xe9"), ("c.tex", b"\\subimport{x}{b}")]);
    let stored = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let bulk = tar(&[("1202/1202.3665.gz", &stored(&inner)), ("1202/1202.1.pdf", b"%PDF"), ("1202/math0601001.gz", &gz(tex))]);
    let seeds = [(bulk, "f.tar"), (stored(&inner), "f.gz"), (gz(&inner), "f.gz"), (inner, "f.tar")];
    let dir = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let options = [Options { max_tex: 1 << 20, ..Options::default() }, Options { rp_compat: true, ..Options::default() }];
    let (mut read_papers, mut rejected) = (0, 0);
    for round in 0..rounds() {
        let (seed, name) = &seeds[round % seeds.len()];
        let bytes = mutate(&mut rng, std::slice::from_ref(seed), &PIECES);
        // Right checksums, else little is looked at past them.
        let bytes = if round % 3 == 0 { bytes } else { with_checksums(bytes) };
        let path = dir.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        let started = Instant::now();
        for paper in read_all(&path, &options[round % 2]) {
            match paper {
                Ok(record) => {
                    assert!(record.text.len() <= 1 << 24);
                    read_papers += 1;
                }
                Err(_) => rejected += 1,
            }
        }
        assert!(started.elapsed() < Duration::from_secs(4), "round {round}");
    }
    assert!(read_papers > 0 && rejected > 0, "{read_papers} read, {rejected} rejected");
}

/// Puts the right checksum into each block that says `ustar`.
fn with_checksums(mut bytes: Vec<u8>) -> Vec<u8> {
    for block in bytes.chunks_exact_mut(512).filter(|b| &b[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

#[test]
fn samples() {
    let Ok(data) = std::env::var("RECUA_DATA") else {
        println!("skipped: RECUA_DATA is not set");
        return;
    };
    let data = Path::new(&data).join("arxiv");
    let papers = read_all(&data.join("arXiv-src-form/arXiv_src_sample_001.tar"), &Options::default());
    let ids: Vec<_> = papers.iter().map(|p| p.as_ref().unwrap().id.as_str()).collect();
    assert_eq!(ids, ["1202.3665", "1707.08043", "1708.00137"]);
    for (paper, first, last, gone) in [
        (&papers[0], "\\section{Introduction}", "", ["\\paramvector", "\\Fig{", "\\begin{document}", "\\bibitem"]),
        (&papers[1], "\\section", "", ["\\newcommand", "\\shA", "\\ZZ", "\\bibitem"]),
        (&papers[2], "\\section", "", ["\\KetBra", "\\defeq", "\\newcommand", "\\bibitem"]),
    ] {
        let text = clean(&paper.as_ref().unwrap().text, &Options::default()).text;
        assert!(text.starts_with(first) && text.ends_with(last), "{}", &text[..60]);
        for gone in gone {
            assert!(!text.contains(gone), "{gone}");
        }
    }
    let hogg = read_all(&data.join("hogg-data-analysis-recipes/straightline"), &Options::default()).remove(0).unwrap();
    assert_eq!(hogg.meta["missing"], serde_json::json!(["../hogg_style"]));
    let hogg = read_all(&data.join("hogg-data-analysis-recipes"), &Options::default()).remove(0).unwrap();
    assert_eq!(hogg.meta["files"], serde_json::json!(["straightline/straightline.tex", "hogg_style.tex"]));
    let text = clean(&hogg.text, &Options::default()).text;
    assert!(!text.contains("\\documentname") && !text.contains("\\mmatrix"));
}
