//! Which licences let a project in: MIT, BSD and Apache, as LLaMA has it (2.1), told by an expression or by the text.
//!
//! Texts are told by phrases that only the one licence has, in the text's words alone (no case, punctuation or line ends).
//! The detectors on crates.io want the SPDX texts beside them, some megabytes, to tell 600 licences apart; here there are
//! four to let in, and the phrases of those to keep out.

use crate::spdx;

/// SPDX identifiers, in upper case: the MIT, BSD and Apache families without those that add a condition (BSD-4-Clause:
/// advertising, BSD-3-Clause-Clear: no patents, JSON: good, not evil).
const ALLOWED: [&str; 8] =
    ["MIT", "MIT-0", "APACHE-2.0", "BSD-1-CLAUSE", "BSD-2-CLAUSE", "BSD-2-CLAUSE-FREEBSD", "BSD-3-CLAUSE", "0BSD"];

/// What people write into manifests instead, in upper case with single spaces.
const ALIASES: [(&str, &str); 19] = [
    ("THE MIT LICENSE", "MIT"),
    ("MIT LICENSE", "MIT"),
    ("MIT LICENCE", "MIT"),
    ("THE MIT LICENSE (MIT)", "MIT"),
    ("APACHE", "APACHE-2.0"),
    ("APACHE2", "APACHE-2.0"),
    ("APACHE 2", "APACHE-2.0"),
    ("APACHE 2.0", "APACHE-2.0"),
    ("APACHE-2", "APACHE-2.0"),
    ("APACHE LICENSE", "APACHE-2.0"),
    ("APACHE LICENSE 2.0", "APACHE-2.0"),
    ("APACHE LICENSE, VERSION 2.0", "APACHE-2.0"),
    ("BSD", "BSD-3-CLAUSE"),
    ("BSD LICENSE", "BSD-3-CLAUSE"),
    ("BSD-2", "BSD-2-CLAUSE"),
    ("BSD-3", "BSD-3-CLAUSE"),
    ("NEW BSD", "BSD-3-CLAUSE"),
    ("NEW BSD LICENSE", "BSD-3-CLAUSE"),
    ("SIMPLIFIED BSD", "BSD-2-CLAUSE"),
];

/// Whether an SPDX expression can be satisfied by licences of the three families alone: `MIT OR GPL-3.0` can, `MIT AND
/// GPL-3.0` cannot. Takes BigQuery's keys (`mit`, `apache-2.0`, `bsd-3-clause`), Cargo's old `MIT/Apache-2.0`, and usual
/// names (`Apache License 2.0`). What cannot be parsed is not allowed.
pub fn is_allowed(expression: &str) -> bool {
    /// Longer ones are no expressions.
    const MAX: usize = 1000;
    if expression.len() > MAX {
        return false;
    }
    let upper = expression.to_ascii_uppercase();
    let whole = upper.split_whitespace().collect::<Vec<_>>().join(" ");
    if ALIASES.iter().any(|(alias, _)| *alias == whole) || is_usual_name(&whole) {
        return true;
    }
    spdx::satisfied(&whole, &|id| {
        let id = id.strip_suffix('+').unwrap_or(id);
        ALLOWED.contains(&id) || ALIASES.iter().any(|(alias, _)| *alias == id)
    })
}

/// Whether a text, in upper case, is a name of a licence of the three families as people write it: `BSD 3-Clause`, `The MIT License (MIT)`,
/// `Apache Software License, Version 2.0`.
fn is_usual_name(name: &str) -> bool {
    const NO_MATTER: [&str; 10] =
        ["THE", "LICENSE", "LICENCE", "LICENSED", "UNDER", "SOFTWARE", "VERSION", "V", "STYLE", "TERMS"];
    // An expression that is not one is no name either.
    let parentheses = name.matches('(').count();
    if parentheses > 1 || parentheses != name.matches(')').count() || name.contains([':', '+', '&', '|']) {
        return false;
    }
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty() && !NO_MATTER.contains(w));
    let mut words: Vec<&str> =
        words.map(|w| w.strip_prefix('V').filter(|v| v.starts_with(|c: char| c.is_ascii_digit())).unwrap_or(w)).collect();
    words.dedup();
    matches!(
        words.as_slice(),
        ["MIT" | "EXPAT" | "0BSD" | "FREEBSD" | "APACHE" | "APACHE2" | "BSD" | "BSD2" | "BSD3"]
            | ["MIT", "X11" | "EXPAT" | "0"]
            | ["X11", "MIT"]
            | ["EXPAT", "MIT"]
            | ["APACHE" | "ASL", "2"]
            | ["APACHE" | "ASL", "2", "0"]
            | ["BSD", "1" | "2" | "3"]
            | ["BSD", "1" | "2" | "3", "CLAUSE"]
            | ["1" | "2" | "3", "CLAUSE", "BSD"]
            | ["BSD", "TWO" | "THREE", "CLAUSE"]
            | ["TWO" | "THREE", "CLAUSE", "BSD"]
            | ["NEW" | "SIMPLIFIED" | "MODIFIED" | "REVISED", "BSD"]
            | ["BSD", "NEW" | "SIMPLIFIED" | "MODIFIED" | "REVISED"]
            | ["NEW" | "MODIFIED" | "REVISED", "BSD", "3", "CLAUSE"]
            | ["BSD", "3", "CLAUSE", "NEW" | "REVISED"]
            | ["BSD", "2", "CLAUSE", "SIMPLIFIED" | "FREEBSD"]
            | ["SIMPLIFIED", "BSD", "2", "CLAUSE"]
    )
}

/// Whether what a manifest says of the licence only points to a file (npm: `SEE LICENSE IN <file>`).
fn is_pointer(expression: &str) -> bool {
    let upper = expression.trim().to_ascii_uppercase();
    let words: Vec<&str> = upper.split_whitespace().collect();
    let file = |word: &str| is_licence_file(word.trim_matches(['<', '>', '"', '\'', '`', '.', '/']));
    match words.as_slice() {
        [] => true,
        [one] => file(one),
        ["SEE", rest @ ..] => rest.iter().any(|word| word.contains("LICEN") || word.contains("COPYING")),
        _ => false,
    }
}

/// A licence, as its text shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detected {
    /// MIT, the X11 variant too.
    Mit,
    /// BSD with two clauses.
    Bsd2,
    /// BSD with three clauses.
    Bsd3,
    /// Apache 2.0, the text or the notice that refers to it.
    Apache2,
    /// The name of one that keeps a project out: it is there beside whatever else.
    Denied(&'static str),
    /// None of these: a licence that is not known here, or no licence.
    Unknown,
}

impl Detected {
    /// Whether it is MIT, BSD or Apache.
    pub fn is_allowed(self) -> bool {
        !matches!(self, Self::Denied(_) | Self::Unknown)
    }

    /// The SPDX identifier, or the family's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mit => "MIT",
            Self::Bsd2 => "BSD-2-Clause",
            Self::Bsd3 => "BSD-3-Clause",
            Self::Apache2 => "Apache-2.0",
            Self::Denied(name) => name,
            Self::Unknown => "unknown",
        }
    }
}

/// Phrases that keep a project out, with the licence's name. A permissive text beside them does not help: whether one may
/// choose between the two is not for a program to say. Those first whose text names another of them.
const DENIED: [(&str, &str); 29] = [
    ("MPL", "mozilla public license"),
    ("EPL", "eclipse public license"),
    ("CDDL", "common development and distribution license"),
    ("GPL", "gnu general public license"),
    ("GPL", "gnu gpl"),
    ("LGPL", "gnu lesser general public license"),
    ("LGPL", "gnu library general public license"),
    ("AGPL", "gnu affero general public license"),
    ("GPL", "everyone is permitted to copy and distribute verbatim copies of this license document"),
    ("CPL", "common public license"),
    ("EUPL", "european union public licence"),
    ("OSL", "open software license"),
    ("SSPL", "server side public license"),
    ("BUSL", "business source license"),
    ("Elastic", "elastic license"),
    ("CeCILL", "cecill"),
    ("CC", "creative commons"),
    ("CC", "attribution noncommercial"),
    ("Commons-Clause", "commons clause"),
    ("JSON", "the software shall be used for good not evil"),
    ("non-commercial", "for non commercial"),
    ("non-commercial", "for noncommercial"),
    ("non-commercial", "non commercial use only"),
    ("BSD-4-Clause", "all advertising materials mentioning features or use of this software must display"),
    ("BSD-3-Clause-Clear", "no express or implied licenses to any party s patent rights are granted"),
    ("Artistic", "artistic license"),
    ("proprietary", "all rights reserved no part of this"),
    ("proprietary", "unauthorized copying of this file"),
    ("Hippocratic", "hippocratic license"),
];

const MIT: [&str; 3] = [
    "permission is hereby granted free of charge to any person obtaining a copy of",
    "without restriction including without limitation the rights to use copy modify merge publish distribute sublicense and or \
     sell copies of",
    "is provided as is without warranty of any kind express or implied",
];
const BSD: [&str; 3] = [
    "redistribution and use in source and binary forms with or without modification are permitted provided that the following \
     conditions are met",
    "redistributions of source code must retain the above copyright notice this list of conditions and the following disclaimer",
    "redistributions in binary form must reproduce the above copyright notice",
];
const BSD_THIRD: [&str; 2] = ["neither the name", "used to endorse or promote products derived from"];
const APACHE: [&str; 2] =
    ["apache license version 2 0 january 2004", "terms and conditions for use reproduction and distribution"];
const APACHE_NOTICE: [&str; 2] = ["licensed under the apache license version 2 0", "except in compliance with the license"];

/// The licence of a text: of a `LICENSE` file, or of a notice.
pub fn detect(text: &str) -> Detected {
    /// Bytes. The GPL has 35,000; what is longer has the texts of dependencies in it.
    const MAX: usize = 256 << 10;
    let text = &text[..text.floor_char_boundary(MAX.min(text.len()))];
    let words = words(text);
    let all = |phrases: &[&str]| phrases.iter().all(|phrase| contains(&words, phrase));
    if let Some((name, _)) = DENIED.iter().find(|(_, phrase)| contains(&words, phrase)) {
        return Detected::Denied(name);
    }
    if all(&APACHE) || all(&APACHE_NOTICE) {
        Detected::Apache2
    } else if all(&MIT) {
        Detected::Mit
    } else if all(&BSD) {
        if all(&BSD_THIRD) { Detected::Bsd3 } else { Detected::Bsd2 }
    } else {
        Detected::Unknown
    }
}

/// ` word word ... ` in lower case.
fn words(text: &str) -> String {
    let mut words = String::with_capacity(text.len() + 2);
    words.push(' ');
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        words.extend(word.chars().map(|c| c.to_ascii_lowercase()));
        words.push(' ');
    }
    words
}

fn contains(words: &str, phrase: &str) -> bool {
    let ends = |at: usize| {
        words.as_bytes().get(at + phrase.len()) == Some(&b' ') && words.as_bytes().get(at.wrapping_sub(1)) == Some(&b' ')
    };
    memchr::memmem::find_iter(words.as_bytes(), phrase).any(ends)
}

/// Whether a file is a licence's text by its name: `LICENSE`, `LICENSE-MIT`, `COPYING.txt`, but not `license.rs`.
pub fn is_licence_file(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let stem_ok = ["license", "licence", "copying", "unlicense", "unlicence", "mit-license", "copyright"]
        .iter()
        .any(|start| lower.strip_prefix(start).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric())));
    let extension = lower.rsplit_once('.').map(|(_, extension)| extension);
    let text = |extension: &str| ["txt", "md", "rst", "html", "markdown", "text"].contains(&extension);
    let licence =
        |extension: &str| ["mit", "apache", "bsd", "lesser", "lib", "gpl", "0"].iter().any(|end| extension.starts_with(end));
    // `LICENSES.d` and the like are folders; `LICENSE-APACHE-2.0` has no extension but a version.
    (stem_ok || lower == "licenses" || lower == "licenses.txt") && extension.is_none_or(|e| text(e) || licence(e))
}

/// The expression after `SPDX-License-Identifier:` in a comment of a file's first lines: it goes before the project's licence.
pub fn spdx_header(text: &str) -> Option<&str> {
    const MARK: &str = "SPDX-License-Identifier:";
    /// Bytes that are looked at.
    const HEAD: usize = 4 << 10;
    let head = &text[..text.floor_char_boundary(HEAD.min(text.len()))];
    let (before, rest) = head.split_once(MARK)?;
    // Elsewhere than right after a comment's mark, it is code that speaks of licences.
    let opening = before.rsplit('\n').next().unwrap_or_default();
    if opening.contains(|c: char| c.is_alphanumeric() || c == '"') && !opening.trim().eq_ignore_ascii_case("rem") {
        return None;
    }
    let line = rest.lines().next().unwrap_or_default().trim();
    let end = ["*/", "-->", "--}", "#}", "\"", "*)", "#>"].iter().filter_map(|end| line.find(end)).min();
    let expression = line.get(..end.unwrap_or(line.len()))?.trim();
    (!expression.is_empty()).then_some(expression)
}

/// The `license` field of `Cargo.toml`, `package.json` or `pyproject.toml`, by the file's name. Not a TOML reader: the field's
/// line is found, which is all that a manifest has to offer here.
pub fn manifest_licence(name: &str, text: &str) -> Option<String> {
    match name {
        "package.json" | "composer.json" => {
            let manifest: serde_json::Value = serde_json::from_str(text).ok()?;
            let licence = manifest.get("license")?;
            // Old manifests have `{"type": "MIT", "url": ...}`; PHP's may have a list to choose from.
            let licence = match licence {
                serde_json::Value::Array(list) => {
                    let list: Option<Vec<&str>> = list.iter().map(|entry| entry.as_str()).collect();
                    return Some(list?.join(" OR "));
                }
                other => other.get("type").unwrap_or(other),
            };
            licence.as_str().filter(|licence| !is_pointer(licence)).map(str::to_owned)
        }
        "Cargo.toml" | "pyproject.toml" => {
            let mut section = String::new();
            for line in text.lines().map(str::trim) {
                if let Some(name) = line.strip_prefix('[') {
                    section = name.trim_end_matches(']').trim().to_owned();
                } else if ["package", "project", "workspace.package", "tool.poetry"].contains(&section.as_str())
                    && let Some(value) = line.strip_prefix("license")
                    && let Some(value) = value.trim_start().strip_prefix('=')
                {
                    let value = value.trim();
                    let value = value.strip_prefix("{ text =").or_else(|| value.strip_prefix("{text =")).unwrap_or(value).trim();
                    let quote = value.chars().next().filter(|c| "\"'".contains(*c))?;
                    let value = value[1..].split_once(quote).map(|(value, _)| value);
                    return value.filter(|value| !is_pointer(value)).map(str::to_owned);
                }
            }
            None
        }
        _ => None,
    }
}

/// Whether a project is let in by what its folder says: the expression of its manifest, and the texts of its licence files
/// with their names. Returns the licence to write down, or `None`.
///
/// An expression decides, unless a file has the text of a denied licence that the expression does not name. Without one,
/// at least one text must be allowed and none denied.
pub fn judge(expression: Option<&str>, files: &[Detected]) -> Option<String> {
    let unnamed = |file: &&Detected| match file {
        Detected::Denied(name) => {
            let short = name.split('-').next().unwrap_or(name);
            !expression.is_some_and(|e| e.to_ascii_uppercase().contains(&short.to_ascii_uppercase()))
        }
        _ => false,
    };
    if files.iter().any(|file| unnamed(&file)) {
        return None;
    }
    if let Some(expression) = expression {
        return is_allowed(expression).then(|| expression.to_owned());
    }
    let mut names: Vec<&str> = files.iter().filter(|file| file.is_allowed()).map(|file| file.name()).collect();
    names.sort_unstable();
    names.dedup();
    (!names.is_empty()).then(|| names.join(" OR "))
}
