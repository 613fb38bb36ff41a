//! Templates whose output is running text: without them a sentence loses a word, a number or a quotation.
//!
//! Only such templates are here as stand for their parameters, or for a fixed text, in every wiki of the language; what they do
//! is said on their documentation pages. All others go, but a template of one parameter in the middle of a sentence ([`in_sentence`]).

use super::quantities::{as_of, convert, height, quantity};
use crate::sources::scripts;

/// What is left of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// The output between two places.
    Part(usize, usize),
    /// Another text.
    Text(String),
}

/// How a template makes text of its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A positional parameter, from 1, or a named one that stands for it.
    Arg(usize),
    /// The second positional parameter, or if it is empty the first: a link to a page that does not exist yet.
    Missing,
    /// The last positional parameter.
    Last,
    /// One of these named parameters, or else the first positional one.
    Named(&'static [&'static str]),
    /// A text before the first parameter, and one after it.
    Around(&'static str, &'static str),
    /// A text before the first parameter and one before the second, if it is there.
    Range(&'static str, &'static str),
    /// Always the same.
    Fixed(&'static str),
    /// The template's own name.
    Itself,
    /// All positional parameters, with a text between them.
    Join(&'static str),
    /// The first so many positional parameters, with a space between them.
    First(usize),
    /// A number with its errors, exponent and unit.
    Quantity,
    /// `{{convert}}`: what is converted, without the result.
    Convert,
    /// A height of its named parts.
    Height,
    /// A date up to which something holds.
    AsOf,
    /// Numerator and denominator, or a whole number before them.
    Fraction,
    /// Raised text, and lowered.
    Raised,
    Lowered,
    /// `{{formatnum:...}}`: what is after the colon.
    Name,
}

/// Longer names are not looked up, in bytes.
const LONGEST: usize = 48;
/// Parameters that stand for the text where there is no positional one, in the wikis of LLaMA's languages.
const TEXT: [&str; 24] = [
    "text",
    "quote",
    "content",
    "1",
    "texto",
    "texte",
    "testo",
    "tekst",
    "treść",
    "szöveg",
    "текст",
    "цитата",
    "цитат",
    "cita",
    "citat",
    "citation",
    "citação",
    "citazione",
    "zitat",
    "cytat",
    "citaat",
    "english",
    "code",
    "word",
];

/// How the template `name` makes text, in a wiki of `language`; `None` for the many that do not.
pub(super) fn shape(name: &str, language: &str) -> Option<Shape> {
    let lower = key(name)?;
    let name = lower.as_str();
    of_language(name, language).or_else(|| anywhere(name))
}

fn key(name: &str) -> Option<String> {
    if name.len() > LONGEST {
        return None;
    }
    let mut lower = String::with_capacity(LONGEST);
    for c in name.trim().chars() {
        lower.extend(if c == '_' { ' ' } else { c }.to_lowercase());
    }
    Some(lower)
}

fn anywhere(name: &str) -> Option<Shape> {
    Some(match name {
        "lang" | "langx" | "rtl-lang" | "script" | "language" | "wikt-lang" | "wt" | "langue" => Shape::Arg(2),
        "nowrap" | "nobr" | "nobreak" | "no wrap" | "nobold" | "noitalic" | "small" | "smaller" | "big" | "larger" | "abbr"
        | "tooltip" | "quote" | "blockquote" | "block quote" | "bquote" | "cquote" | "rquote" | "quotation" | "poemquote"
        | "poem quote" | "verse" | "poem" | "center" | "smallcaps" | "sc" | "allcaps" | "u" | "underline" | "em" | "strong"
        | "strikethrough" | "math" | "mvar" | "var" | "code" | "mono" | "tt" | "kbd" | "samp" | "not a typo" | "typo" | "sic"
        | "nihongo" | "nihongo2" | "nihongo3" | "nihongo krt" | "chem2" | "comment" | "nts" | "angbr" | "angle bracket"
        | "angbr ipa" | "unicode" | "iast" | "italic" | "bold" | "large" | "uc" | "color" | "font" | "linktext" | "grapheme"
        | "char" | "pslink" | "abbrlink" | "hover title" | "first word" | "notatypo" | "as written" | "proper name"
        | "no italics" | "noitalics" | "nobold2" | "stack" | "interp" | "pronunciation" | "ubl item" | "midsize" | "resize" => {
            match name {
                "color" | "font" | "resize" => Shape::Last,
                "linktext" => Shape::Join(" "),
                _ => Shape::Arg(1),
            }
        }
        "visible anchor" | "vanchor" | "anchor text" => Shape::Named(&["text"]),
        "ill" | "interlanguage link" | "link-interwiki" | "illm" => Shape::Named(&["lt"]),
        "zh" | "lang-zh" | "zh-full" => Shape::Named(&["c", "t", "s", "p"]),
        "transl" | "transliteration" | "lang-sh-latn-cyrl" => Shape::Last,
        "circa" | "c." | "ca." | "circa2" => Shape::Range("c. ", " – c. "),
        "floruit" | "fl." | "flourished" => Shape::Range("fl. ", "–"),
        "reign" | "r." => Shape::Range("r. ", "–"),
        "born" => Shape::Around("born ", ""),
        "died" | "d." => Shape::Around("died ", ""),
        "as of" | "asof" | "as of?" => Shape::AsOf,
        "us$" | "usd" | "us dollar" => Shape::Around("US$", ""),
        "a$" | "au$" | "aud" => Shape::Around("A$", ""),
        "ca$" | "c$" | "cad" => Shape::Around("C$", ""),
        "nz$" | "nzd" => Shape::Around("NZ$", ""),
        "hk$" | "hkd" => Shape::Around("HK$", ""),
        "s$" | "sgd" => Shape::Around("S$", ""),
        "r$" | "brl" => Shape::Around("R$", ""),
        "£" | "gbp" | "pound sterling" => Shape::Around("£", ""),
        "€" | "euro" | "eur" => Shape::Around("€", ""),
        "¥" | "jpy" | "jp¥" | "yen" => Shape::Around("¥", ""),
        "cny" | "cn¥" | "rmb" | "yuan" => Shape::Around("CN¥", ""),
        "inr" | "indian rupee" | "₹" | "rupee" => Shape::Around("₹", ""),
        "krw" | "₩" => Shape::Around("₩", ""),
        "php" | "₱" => Shape::Around("₱", ""),
        "rub" | "₽" => Shape::Around("₽", ""),
        "chf" => Shape::Around("CHF ", ""),
        "currency" | "inrconvert" | "cnyconvert" => Shape::Arg(1),
        "key press" | "keypress" | "key" | "keys" | "button" => Shape::Join("+"),
        "spaced ndash" | "spaced en dash" | "snd" | "spnd" | "–" | "ndash" | "en dash" | "sndash" => Shape::Fixed(" – "),
        "mdash" | "em dash" | "—" | "mdashb" => Shape::Fixed("—"),
        "ndashb" => Shape::Fixed("–"),
        "nbsp" | "space" | "thinsp" | "thin space" | "hsp" | "sp" => Shape::Fixed(" "),
        "'" => Shape::Fixed("'"),
        "'s" => Shape::Fixed("'s"),
        "=" => Shape::Fixed("="),
        "pipe" => Shape::Fixed("|"),
        "·" | "dot" | "middot" | "•" | "bull" | "bullet" => Shape::Fixed(" · "),
        "asterisk" => Shape::Fixed("*"),
        "\"" => Shape::Around("\"", "\""),
        "half" => Shape::Fixed("½"),
        "frac" | "fraction" | "sfrac" | "vulgar fraction" => Shape::Fraction,
        "val" | "physconst val" => Shape::Quantity,
        "e" | "esp" | "exp10" => Shape::Around("×10^", ""),
        "10^" | "10e" => Shape::Around("10^", ""),
        "convert" | "cvt" | "conv" => Shape::Convert,
        "height" => Shape::Height,
        "gaps" | "chem" => Shape::Join(""),
        "sup" | "superscript" | "^" => Shape::Raised,
        "sub" | "subscript" => Shape::Lowered,
        "formatnum" | "number" | "nombre" | "fmtn" | "digits" => Shape::Quantity,
        "p." | "page" => Shape::Around("p. ", ""),
        "pp." => Shape::Around("pp. ", ""),
        "vol." => Shape::Around("vol. ", ""),
        "us patent" | "us patent application" => Shape::Around("U.S. patent ", ""),
        "oclc" => Shape::Around("OCLC ", ""),
        "ship" | "sclass" => Shape::First(2),
        "bibleverse" | "bibleref" | "bibleverse-nb" => Shape::First(2),
        _ if name.starts_with("formatnum:") => Shape::Name,
        _ if name.strip_prefix("lang-").is_some_and(is_code) => Shape::Arg(1),
        _ if name.split_once('/').is_some_and(|(a, b)| is_count(a) && is_count(b)) => Shape::Itself,
        _ => return None,
    })
}

fn is_count(text: &str) -> bool {
    (1..=3).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
}

fn of_language(name: &str, language: &str) -> Option<Shape> {
    Some(match (language, name) {
        ("ca", "citació") | ("cs", "citát") | ("da" | "sv" | "ro", "citat") | ("de", "zitat" | "\"" | "zitat-en") => {
            Shape::Arg(1)
        }
        ("es", "cita") | ("hu", "idézet") | ("it", "citazione") | ("nl", "citaat") | ("pl", "cytat" | "j" | "nobr") => {
            Shape::Arg(1)
        }
        ("pt", "citação" | "citação2") | ("hr" | "sr", "citat" | "цитат") | ("bg", "цитат") => Shape::Arg(1),
        ("ru" | "uk", "цитата" | "s" | "число" | "коментар" | "комментарий" | "начало цитаты") => {
            Shape::Arg(1)
        }
        ("de", "si") | ("ru" | "uk", "num") | ("pl", "liczba") | ("pt", "fmtn") => Shape::Quantity,
        ("de", _) if name.len() == 3 && name.ends_with('s') && is_code(&name[..2]) => Shape::Arg(1),
        ("ru", "не переведено" | "не переведено 2" | "не переведено 3" | "не переведено 5" | "нп" | "нп3" | "нп5" | "iw") => {
            Shape::Missing
        }
        ("uk", "не перекладено" | "нп" | "нп3" | "нп5" | "iw") => Shape::Missing,
        ("cs", "cizojazyčně" | "cj" | "vjazyce2") | ("hr" | "sr", "jez" | "јез") | ("sl", "jezik") => Shape::Arg(2),
        ("sr", _) if name.strip_prefix("јез-").is_some_and(|code| (2..=4).contains(&code.chars().count())) => Shape::Arg(1),
        ("hr" | "sr", _) if name.strip_prefix("jez-").is_some_and(is_code) => Shape::Arg(1),
        ("en", "uss" | "hms" | "hmas" | "hmcs" | "ss" | "rms" | "mv") => {
            let before = match name {
                "uss" => "USS ",
                "hms" => "HMS ",
                "hmas" => "HMAS ",
                "hmcs" => "HMCS ",
                "ss" => "SS ",
                "rms" => "RMS ",
                _ => "MV ",
            };
            Shape::Around(before, "")
        }
        ("es", "unidad") | ("fr", "unité" | "nb" | "unite") | ("it", "m") | ("ca", "unitats") | ("pt", "unidade") => {
            Shape::Quantity
        }
        ("es", "siglo") => Shape::Around("siglo ", ""),
        ("es", "ac" | "a. c.") => Shape::Fixed("a. C."),
        ("es", "dc" | "d. c.") => Shape::Fixed("d. C."),
        ("fr", "s" | "s-" | "siècle") => Shape::Around("", "e siècle"),
        ("fr", "-s" | "-s-") => Shape::Around("", "e siècle av. J.-C."),
        ("fr", "sp" | "sp-") => return None,
        ("fr", "ier") => Shape::Fixed("Ier"),
        ("fr", "ire") => Shape::Fixed("Ire"),
        ("fr", "e" | "ème") => Shape::Fixed("e"),
        ("fr", "er") => Shape::Fixed("er"),
        ("fr", "re") => Shape::Fixed("re"),
        ("fr", _) if is_ordinal(name) => Shape::Itself,
        ("fr", "numéro" | "n°") => Shape::Around("no ", ""),
        ("fr", "date" | "date-" | "date de naissance" | "date de décès") => Shape::Join(" "),
        ("fr", "heure") => Shape::Join(" h "),
        ("fr", "citation" | "guil" | "guillemets") => Shape::Around("« ", " »"),
        ("fr", "citation étrangère" | "citation bloc") => Shape::Arg(1),
        ("fr", "lien") => Shape::Named(&["texte", "trad"]),
        _ => return None,
    })
}

/// `1er`, `2e`, `xixe`: French ordinals are templates.
fn is_ordinal(name: &str) -> bool {
    ["er", "re", "ème", "e"].iter().filter_map(|end| name.strip_suffix(end)).any(|number| {
        let of = |digits: &str| number.chars().all(|c| digits.contains(c));
        !number.is_empty() && (of("0123456789") || of("ivxlc"))
    })
}

/// A language's code, as in `{{lang-grc|...}}`.
fn is_code(code: &str) -> bool {
    (2..=8).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
}

/// Beginnings of the names of templates that are no words of the sentence in which they are: sources, notes, marks of editors, places on
/// a map, pronunciations, pictures.
const ASIDES: [&str; 45] = [
    "sfn",
    "harv",
    "cit",
    "cn",
    "ref",
    "efn",
    "note",
    "r|",
    "rp",
    "coord",
    "ipa",
    "audio",
    "respell",
    "flag",
    "icon",
    "image",
    "file",
    "age",
    "see",
    "main",
    "pronunc",
    "clarif",
    "who",
    "when",
    "where",
    "which",
    "by",
    "dubious",
    "fact",
    "verif",
    "full",
    "page needed",
    "better",
    "disambig",
    "infobox",
    "navbox",
    "taxobox",
    "short desc",
    "other uses",
    "about",
    "hatnote",
    "redirect",
    "distinguish",
    "use ",
    "defaultsort",
];

/// What to do with an unknown template in the middle of a sentence, between two of its words: where it has one parameter, that most likely
/// is the word.
pub(super) fn in_sentence(name: &str, out: &str, separators: &[usize], before: &str, after: &str) -> Option<Kept> {
    let [_] = separators else { return None };
    let name = key(name)?;
    let before = before.trim_end_matches(|c: char| c.is_control());
    let word_before = before.strip_suffix(' ').is_some_and(|text| text.ends_with(|c: char| c.is_alphanumeric() || c == ','));
    let word_after = after.strip_prefix(' ').is_some_and(|text| text.starts_with(|c: char| c.is_alphanumeric()));
    let named = |c: char| c.is_alphanumeric() || c == ' ' || c == '-';
    if !word_before || !word_after || name.is_empty() || !name.chars().all(named) || ASIDES.iter().any(|a| name.starts_with(a)) {
        return None;
    }
    let parameters = Parameters { out, separators };
    let (from, to, label) = parameters.all().next()?;
    let (from, to) = parameters.trim(from, to).filter(|_| label.is_none())?;
    let text = out.get(from..to)?;
    (text.len() <= 80 && !text.contains('\n')).then_some(Kept::Part(from, to))
}

/// The parameters of a template: the output between its separators.
pub(super) struct Parameters<'a> {
    out: &'a str,
    separators: &'a [usize],
}

impl<'a> Parameters<'a> {
    /// The places of each parameter, and its name if it has one.
    fn all(&self) -> impl Iterator<Item = (usize, usize, Option<&'a str>)> {
        let ends = self.separators.iter().skip(1).copied().chain(std::iter::once(self.out.len()));
        self.separators.iter().zip(ends).map(|(&bar, end)| {
            let text = self.out.get(bar + 1..end).unwrap_or("");
            match equals(text) {
                Some(at) => (bar + 1 + at + 1, end, Some(text[..at].trim())),
                None => (bar + 1, end, None),
            }
        })
    }

    fn positional(&self) -> impl Iterator<Item = (usize, usize)> {
        self.all().filter(|p| p.2.is_none_or(|name| name.bytes().all(|b| b.is_ascii_digit()))).map(|p| (p.0, p.1))
    }

    /// The `n`th positional parameter, if it is not blank.
    fn place(&self, n: usize) -> Option<(usize, usize)> {
        let mut count = 0;
        let found = self.all().filter_map(|(from, to, name)| match name {
            None => {
                count += 1;
                (count == n).then_some((from, to))
            }
            Some(name) => (name.parse() == Ok(n)).then_some((from, to)),
        });
        found.last().and_then(|(from, to)| self.trim(from, to))
    }

    fn trim(&self, from: usize, to: usize) -> Option<(usize, usize)> {
        let text = self.out.get(from..to)?;
        let start = from + (text.len() - text.trim_start().len());
        let text = text.trim();
        (!text.is_empty()).then_some((start, start + text.len()))
    }

    pub(super) fn get(&self, n: usize) -> Option<&'a str> {
        self.place(n).and_then(|(from, to)| self.out.get(from..to))
    }

    /// The place of the first of these named parameters that is not blank. Case does not count.
    fn named_place(&self, names: &[&str]) -> Option<(usize, usize)> {
        names.iter().find_map(|name| {
            let same = |its: &str| its.len() == name.len() && its.to_lowercase() == **name;
            let (from, to, _) = self.all().filter(|p| p.2.is_some_and(same)).last()?;
            self.trim(from, to)
        })
    }

    /// [`Parameters::named_place`]'s text.
    pub(super) fn named(&self, names: &[&str]) -> Option<&'a str> {
        self.named_place(names).and_then(|(from, to)| self.out.get(from..to))
    }
}

/// Where a parameter's name ends: its first `=`, but for those of a heading, which begin a line in twos.
fn equals(text: &str) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + text.get(from..)?.find('=')?;
        let heading = text[..at].ends_with('\n') && text[at + 1..].starts_with('=');
        if !heading {
            return Some(at);
        }
        from = at + text[at..].find('\n')?;
    }
}

/// The text of a template whose parameters begin after `separators` in the output and end with it; `before` is the output before it.
pub(super) fn text(shape: Shape, name: &str, out: &str, separators: &[usize], before: Option<char>) -> Option<Kept> {
    let parameters = Parameters { out, separators };
    let part = |(from, to)| Kept::Part(from, to);
    let first = || parameters.get(1).or_else(|| parameters.named(&TEXT));
    match shape {
        Shape::Arg(n) => parameters.place(n).or_else(|| parameters.named_place(&TEXT)).map(part),
        Shape::Named(names) => {
            let place = parameters.named_place(names).or_else(|| parameters.place(1));
            place.or_else(|| parameters.named_place(&TEXT)).map(part)
        }
        Shape::Missing => {
            let named = parameters.named(&["текст", "треба", "надо"]).map(|text| Kept::Text(text.to_owned()));
            named.or_else(|| parameters.place(2).or_else(|| parameters.place(1)).map(part))
        }
        Shape::Last => {
            let last = parameters.positional().filter_map(|(from, to)| parameters.trim(from, to)).last();
            parameters.named_place(&["text"]).or(last).map(part)
        }
        Shape::Around(before, after) => first().map(|text| Kept::Text(format!("{before}{text}{after}"))),
        Shape::Range(before, between) => {
            let end = parameters.get(2).map(|end| format!("{between}{end}")).unwrap_or_default();
            first().map(|text| Kept::Text(format!("{before}{text}{end}")))
        }
        Shape::Fixed(text) => Some(Kept::Text(text.to_owned())),
        Shape::Itself => {
            // `5{{1/2}}` is not 51/2.
            let space = if before.is_some_and(|c| c.is_ascii_digit()) { " " } else { "" };
            Some(Kept::Text(format!("{space}{}", name.trim())))
        }
        Shape::Join(between) => {
            let all: Vec<_> = parameters.positional().filter_map(|(from, to)| out.get(from..to)).map(str::trim).collect();
            Some(Kept::Text(all.join(between))).filter(|_| !all.is_empty())
        }
        Shape::First(n) => {
            let all: Vec<_> = (1..=n).filter_map(|i| parameters.get(i)).collect();
            Some(Kept::Text(all.join(" "))).filter(|_| !all.is_empty())
        }
        Shape::Quantity => quantity(&parameters),
        Shape::Convert => convert(&parameters),
        Shape::Height => height(&parameters),
        Shape::AsOf => as_of(&parameters),
        Shape::Raised => first().map(|text| Kept::Text(scripts::raised(before, text))),
        Shape::Lowered => first().map(|text| Kept::Text(scripts::lowered(before, text))),
        Shape::Fraction => {
            // `5{{frac|1|2}}` is not 51/2.
            let space = if before.is_some_and(|c| c.is_ascii_digit()) { " " } else { "" };
            let text = match (parameters.get(1)?, parameters.get(2), parameters.get(3)) {
                (denominator, None, _) => format!("{space}1/{denominator}"),
                (numerator, Some(denominator), None) => format!("{space}{numerator}/{denominator}"),
                (whole, Some(numerator), Some(denominator)) => format!("{whole} {numerator}/{denominator}"),
            };
            Some(Kept::Text(text))
        }
        Shape::Name => {
            let from = out.rfind("formatnum:").or_else(|| out.rfind("FORMATNUM:")).or_else(|| out.rfind("Formatnum:"))?;
            let from = from + "formatnum:".len();
            let to = separators.first().copied().unwrap_or(out.len());
            parameters.trim(from, to.max(from)).map(part)
        }
    }
}
