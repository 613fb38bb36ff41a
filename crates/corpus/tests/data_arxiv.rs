//! arXiv: LaTeX to text. Expectations follow from TeX's rules and from LLaMA's section 2.1; those with `rp_compat` from
//! RedPajama's regular expressions.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recua_corpus::{
    Cleaned,
    sources::arxiv::{FILE_SEPARATOR, Options, clean},
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
    let text = with(&bomb, &format!("{} \\aaa {}", names[40], names[40]));
    assert_eq!(text, format!("{0} lollol {0}", names[40]));
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
                let cleaned = clean(&tex, &options);
                let start = &text[..40.min(text.len())];
                assert!(cleaned.text.len() <= 17 * tex.len() + (2 << 20), "{start:?}: {} bytes", cleaned.text.len());
            }
        }
    }
}

/// A mutated copy of some seed: flipped, cut, doubled, and spliced with others and with `pieces`.
pub(crate) fn mutate(rng: &mut ChaCha8Rng, seeds: &[Vec<u8>], pieces: &[&str]) -> Vec<u8> {
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

pub(crate) fn rounds() -> usize {
    std::env::var("RECUA_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(3000)
}

pub(crate) const PIECES: [&str; 34] = [
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
        let cleaned = clean(&tex, &options[round % options.len()]);
        assert!(cleaned.text.len() <= 17 * tex.len() + (2 << 20), "{tex}");
        assert_eq!(cleaned.dropped.is_some(), cleaned.text.is_empty(), "{tex}");
        kept += usize::from(!cleaned.text.is_empty());
    }
    assert!(kept > rounds() / 10, "{kept} texts came to something");
}
