//! Templates whose output is running text: without them a sentence loses a word, a number or a quotation.
//!
//! Only such templates are here as stand for their parameter, or for a fixed text, in every wiki of the language; what they do
//! is said on their documentation pages. All others go.

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
    /// A positional parameter, from 1.
    Arg(usize),
    /// The second positional parameter, or if it is empty the first: a link to a page that does not exist yet.
    Missing,
    /// The last positional parameter.
    Last,
    /// A text before the first parameter, and one after it.
    Around(&'static str, &'static str),
    /// Always the same.
    Fixed(&'static str),
    /// All positional parameters, with a text between them.
    Join(&'static str),
    /// A number and, after a space, its unit: the second parameter or the one named `u` or `ul`.
    Quantity,
    /// `{{convert}}`: what is converted, without the result.
    Convert,
    /// Numerator and denominator, or a whole number before them.
    Fraction,
    /// `{{formatnum:...}}`: what is after the colon.
    Name,
}

/// Longer names are not looked up, in bytes.
const LONGEST: usize = 48;

/// How the template `name` makes text, in a wiki of `language`; `None` for the many that do not.
pub(super) fn shape(name: &str, language: &str) -> Option<Shape> {
    if name.len() > LONGEST {
        return None;
    }
    let mut lower = String::with_capacity(LONGEST);
    for c in name.trim().chars() {
        lower.extend(if c == '_' { ' ' } else { c }.to_lowercase());
    }
    let name = lower.as_str();
    of_language(name, language).or_else(|| anywhere(name))
}

fn anywhere(name: &str) -> Option<Shape> {
    Some(match name {
        "lang" => Shape::Arg(2),
        "nowrap" | "nobr" | "nobreak" | "no wrap" | "nobold" | "noitalic" | "small" | "smaller" | "big" | "larger" | "abbr"
        | "tooltip" | "quote" | "blockquote" | "block quote" | "cquote" | "quotation" | "poemquote" | "poem quote" | "center"
        | "smallcaps" | "sc" | "allcaps" | "u" | "underline" | "em" | "strong" | "strikethrough" | "math" | "mvar" | "var"
        | "sub" | "sup" | "ill" | "interlanguage link" | "code" | "mono" | "not a typo" | "typo" | "sic" | "visible anchor"
        | "vanchor" | "nihongo" | "chem2" | "comment" | "nts" => Shape::Arg(1),
        "transl" | "transliteration" => Shape::Last,
        "circa" | "c." => Shape::Around("c. ", ""),
        "floruit" | "fl." => Shape::Around("fl. ", ""),
        "us$" => Shape::Around("US$", ""),
        "£" | "gbp" => Shape::Around("£", ""),
        "€" | "euro" => Shape::Around("€", ""),
        "spaced ndash" | "spaced en dash" | "snd" | "spnd" | "–" | "ndash" | "en dash" => Shape::Fixed(" – "),
        "mdash" | "em dash" | "—" => Shape::Fixed("—"),
        "nbsp" => Shape::Fixed(" "),
        "'" => Shape::Fixed("'"),
        "'s" => Shape::Fixed("'s"),
        "=" => Shape::Fixed("="),
        "frac" | "fraction" | "sfrac" => Shape::Fraction,
        "val" => Shape::Quantity,
        "convert" | "cvt" => Shape::Convert,
        "chem" => Shape::Join(""),
        _ if name.starts_with("formatnum:") => Shape::Name,
        _ if name.strip_prefix("lang-").is_some_and(is_code) => Shape::Arg(1),
        _ => return None,
    })
}

fn of_language(name: &str, language: &str) -> Option<Shape> {
    Some(match (language, name) {
        ("ca", "citació") | ("cs", "citát") | ("da" | "sv" | "ro", "citat") | ("de", "zitat") => Shape::Arg(1),
        ("es", "cita") | ("hu", "idézet") | ("it", "citazione") | ("nl", "citaat") | ("pl", "cytat" | "j") => Shape::Arg(1),
        ("pt", "citação" | "citação2") | ("hr" | "sr", "citat" | "цитат") | ("bg", "цитат") => Shape::Arg(1),
        ("ru" | "uk", "цитата" | "s" | "число" | "коментар" | "комментарий") => Shape::Arg(1),
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
        ("es", "unidad") | ("fr", "unité") | ("it", "m") | ("ca", "unitats") | ("pt", "unidade") => Shape::Quantity,
        ("es", "siglo") => Shape::Around("siglo ", ""),
        ("es", "ac" | "a. c.") => Shape::Fixed("a. C."),
        ("es", "dc" | "d. c.") => Shape::Fixed("d. C."),
        ("fr", "s" | "s-" | "siècle") => Shape::Around("", "e siècle"),
        ("fr", "-s" | "-s-") => Shape::Around("", "e siècle av. J.-C."),
        ("fr", "sp" | "sp-") => return None,
        ("fr", "ier") => Shape::Fixed("Ier"),
        ("fr", "ire") => Shape::Fixed("Ire"),
        ("fr", "1er") => Shape::Fixed("1er"),
        ("fr", "1re") => Shape::Fixed("1re"),
        ("fr", "e" | "ème") => Shape::Fixed("e"),
        ("fr", "er") => Shape::Fixed("er"),
        ("fr", "re") => Shape::Fixed("re"),
        ("fr", "numéro" | "n°") => Shape::Around("no ", ""),
        ("fr", "date" | "date-") => Shape::Join(" "),
        ("fr", "citation" | "guil" | "guillemets") => Shape::Around("« ", " »"),
        ("fr", "lien") => Shape::Arg(1),
        _ => return None,
    })
}

/// A language's code, as in `{{lang-grc|...}}`.
fn is_code(code: &str) -> bool {
    (2..=8).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
}

/// The parameters of a template: the output between its separators.
struct Parameters<'a> {
    out: &'a str,
    separators: &'a [usize],
}

impl<'a> Parameters<'a> {
    /// The places of each parameter, and its name if it has one.
    fn all(&self) -> impl Iterator<Item = (usize, usize, Option<&'a str>)> {
        let ends = self.separators.iter().skip(1).copied().chain(std::iter::once(self.out.len()));
        self.separators.iter().zip(ends).map(|(&bar, end)| {
            let text = self.out.get(bar + 1..end).unwrap_or("");
            match text.split_once('=') {
                Some((name, value)) => (end - value.len(), end, Some(name.trim())),
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

    fn get(&self, n: usize) -> Option<&'a str> {
        self.place(n).and_then(|(from, to)| self.out.get(from..to))
    }

    /// The first of these named parameters that is not blank.
    fn named(&self, names: &[&str]) -> Option<&'a str> {
        names.iter().find_map(|name| {
            let (from, to, _) = self.all().find(|p| p.2 == Some(name))?;
            self.out.get(from..to).map(str::trim).filter(|text| !text.is_empty())
        })
    }
}

/// The text of a template whose parameters begin after `separators` in the output and end with it.
pub(super) fn text(shape: Shape, out: &str, separators: &[usize]) -> Option<Kept> {
    let parameters = Parameters { out, separators };
    let part = |(from, to)| Kept::Part(from, to);
    match shape {
        Shape::Arg(n) => parameters.place(n).map(part),
        Shape::Missing => {
            let named = parameters.named(&["текст", "треба", "надо"]).map(|text| Kept::Text(text.to_owned()));
            named.or_else(|| parameters.place(2).or_else(|| parameters.place(1)).map(part))
        }
        Shape::Last => parameters.positional().last().and_then(|(from, to)| parameters.trim(from, to)).map(part),
        Shape::Around(before, after) => parameters.get(1).map(|text| Kept::Text(format!("{before}{text}{after}"))),
        Shape::Fixed(text) => Some(Kept::Text(text.to_owned())),
        Shape::Join(between) => {
            let all: Vec<_> = parameters.positional().filter_map(|(from, to)| out.get(from..to)).map(str::trim).collect();
            Some(Kept::Text(all.join(between))).filter(|_| !all.is_empty())
        }
        Shape::Quantity => {
            let number = parameters.get(1)?;
            let unit = parameters.named(&["u", "ul"]).or_else(|| parameters.get(2).filter(|unit| !is_number(unit)));
            Some(Kept::Text(match unit {
                Some(unit) => format!("{number} {unit}"),
                None => number.to_owned(),
            }))
        }
        Shape::Convert => convert(&parameters),
        Shape::Fraction => {
            let text = match (parameters.get(1)?, parameters.get(2), parameters.get(3)) {
                (denominator, None, _) => format!("1/{denominator}"),
                (numerator, Some(denominator), None) => format!("{numerator}/{denominator}"),
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

fn is_number(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '−' | '+' | '.'))
}

/// `{{convert|5|to|10|km|mi}}` is 5 to 10 km; `{{convert|5|ft|7|in|cm}}` is 5 ft 7 in.
fn convert(parameters: &Parameters<'_>) -> Option<Kept> {
    let first = parameters.get(1).filter(|text| is_number(text))?;
    let second = parameters.get(2)?;
    let third = parameters.get(3).filter(|text| is_number(text));
    let text = match (second, third, parameters.get(4)) {
        ("to" | "to(-)" | "and" | "and(-)" | "or" | "by", Some(third), Some(unit)) => {
            let word = second.trim_end_matches("(-)");
            format!("{first} {word} {third} {}", unit_symbol(unit))
        }
        ("-" | "–", Some(third), Some(unit)) => format!("{first}–{third} {}", unit_symbol(unit)),
        ("x" | "×" | "xx" | "*", Some(third), Some(unit)) => format!("{first} × {third} {}", unit_symbol(unit)),
        ("+/-" | "±", Some(third), Some(unit)) => format!("{first} ± {third} {}", unit_symbol(unit)),
        ("ft" | "lb" | "st" | "mi" | "yd", Some(third), Some(unit @ ("in" | "oz" | "lb" | "ft" | "yd"))) => {
            format!("{first} {second} {third} {unit}")
        }
        (unit, ..) => format!("{first} {}", unit_symbol(unit)),
    };
    Some(Kept::Text(text))
}

fn unit_symbol(unit: &str) -> &str {
    match unit {
        "sqmi" => "sq mi",
        "sqft" => "sq ft",
        "sqkm" | "km2" => "km²",
        "sqm" | "m2" => "m²",
        "cm2" => "cm²",
        "m3" => "m³",
        "km3" => "km³",
        "cuft" => "cu ft",
        "C" => "°C",
        "F" => "°F",
        "kph" => "km/h",
        _ => unit,
    }
}
