//! Copyright and licence headers, out of the comments that a file begins with.
//!
//! Only comments before the first line of code are looked at, and of those only the ones that state a copyright or a
//! licence. Out of such a comment go the notices, line by line and paragraph by paragraph; what it says of the code stays.
//! Shebangs, encoding and editor lines, `#include`, `#define` and `#pragma` are not comments here.

use std::borrow::Cow;

/// Comments and directives at a file's beginning that are looked at; a header comes early.
const MAX_BLOCKS: usize = 24;
/// Letters. A comment of which less is left was the header's and goes whole: a name, an e-mail address.
const MIN_LEFT: usize = 21;

/// A language's comments.
#[derive(Clone, Copy)]
struct Syntax {
    line: &'static [&'static str],
    block: &'static [(&'static str, &'static str)],
    /// A `#` before a letter is no comment.
    directives: bool,
    /// reStructuredText: `..`, and what is indented after it.
    indented: bool,
}

impl Syntax {
    const fn new(line: &'static [&'static str], block: &'static [(&'static str, &'static str)]) -> Self {
        Self { line, block, directives: false, indented: false }
    }

    const fn with_directives(self) -> Self {
        Self { directives: true, ..self }
    }
}

const C: Syntax = Syntax::new(&["///", "//!", "//"], &[("/*", "*/")]);
const HASH: Syntax = Syntax::new(&["#"], &[]);
const PYTHON: Syntax = Syntax::new(&["#"], &[("\"\"\"", "\"\"\""), ("'''", "'''")]);
const RUBY: Syntax = Syntax::new(&["#"], &[("=begin", "=end")]);
/// Documentation within the code (perlpod).
const PERL: Syntax = Syntax::new(
    &["#"],
    &[
        ("=pod", "=cut"),
        ("=head", "=cut"),
        ("=begin", "=cut"),
        ("=for", "=cut"),
        ("=over", "=cut"),
        ("=item", "=cut"),
        ("=encoding", "=cut"),
    ],
);
const ML: Syntax = Syntax::new(&[], &[("(*", "*)")]);
const LUA: Syntax =
    Syntax::new(&["--"], &[("--[[", "]]"), ("--[=[", "]=]"), ("--[==[", "]==]"), ("--[===[", "]===]"), ("--[====[", "]====]")]);
const LISP: Syntax = Syntax::new(&[";"], &[("#|", "|#")]);
const BASIC: Syntax = Syntax::new(&["'", "REM ", "rem ", "Rem "], &[]);
const MARKUP: Syntax = Syntax::new(&[], &[("<!--", "-->")]);
/// For text whose language is not known.
const ANY: Syntax = Syntax::new(
    &["///", "//!", "//", "--", "#", ";", "%"],
    &[
        ("/*", "*/"),
        ("<!--", "-->"),
        ("\"\"\"", "\"\"\""),
        ("--[[", "]]"),
        ("--[=[", "]=]"),
        ("--[==[", "]==]"),
        ("{-", "-}"),
        ("(*", "*)"),
        ("=begin", "=end"),
        ("=pod", "=cut"),
        ("#|", "|#"),
        ("%{", "%}"),
    ],
)
.with_directives();

fn syntax(path: Option<&str>) -> Syntax {
    let Some(path) = path else { return ANY };
    let name = path.rsplit('/').next().unwrap_or(path);
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension).to_ascii_lowercase();
    match extension.as_str() {
        "c" | "h" | "cs" | "cpp" | "hpp" | "c++" | "h++" | "cc" | "hh" | "cxx" | "hxx" | "cu" | "cuh" | "go" | "java" | "js"
        | "mjs" | "cjs" | "jsx" | "ts" | "tsx" | "rs" | "scala" | "kt" | "swift" | "dart" | "proto" | "wgsl" | "glsl" | "zig" => {
            C
        }
        "css" => Syntax::new(&[], &[("/*", "*/")]),
        "php" | "php3" | "php4" | "php5" | "phps" | "phpt" => Syntax::new(&["//", "#"], &[("/*", "*/")]),
        "py" | "pyi" => PYTHON,
        "sh" | "bash" | "zsh" | "command" | "cmake" | "dockerfile" | "smali" | "r" | "mk" | "ex" | "exs" | "tcl" => HASH,
        "rb" | "rake" | "gemspec" => RUBY,
        "pl" | "pm" | "perl" | "t" => PERL,
        "ml" | "mli" | "sml" | "sig" => ML,
        "fs" | "fsi" | "fsx" => Syntax::new(&["///", "//"], &[("(*", "*)")]),
        "pas" | "pp" | "dpr" => Syntax::new(&["//"], &[("(*", "*)"), ("{", "}")]),
        "lisp" | "el" | "clj" | "cljs" | "scm" | "rkt" => LISP,
        "erl" | "hrl" => Syntax::new(&["%"], &[]),
        "nim" => Syntax::new(&["#"], &[("#[", "]#")]),
        "adb" | "ads" | "vhd" | "vhdl" | "elm" => Syntax::new(&["--"], &[("{-", "-}")]),
        "jl" => Syntax::new(&["#"], &[("#=", "=#"), ("\"\"\"", "\"\"\"")]),
        "ps1" | "psd1" | "psm1" => Syntax::new(&["#"], &[("<#", "#>")]),
        "lua" => LUA,
        "sql" => Syntax::new(&["--"], &[("/*", "*/")]),
        "hs" => Syntax::new(&["--"], &[("{-", "-}")]),
        "html" | "xml" | "md" | "markdown" => MARKUP,
        "tex" => Syntax::new(&["%"], &[]),
        // Objective-C or MATLAB.
        "m" => Syntax::new(&["//", "%"], &[("/*", "*/"), ("%{", "%}")]),
        "asm" | "s" => Syntax::new(&[";", "//", "#", "@"], &[("/*", "*/")]).with_directives(),
        "bat" | "cmd" => Syntax::new(&["::", "rem ", "REM ", "Rem ", "@rem ", "@REM "], &[]),
        "vb" | "vbs" | "bas" | "cls" | "frm" => BASIC,
        "f" | "f77" | "for" | "fpp" | "f90" | "f95" | "f03" | "f08" => Syntax::new(&["!", "C ", "c ", "*"], &[]),
        "rst" => Syntax { indented: true, ..Syntax::new(&[], &[]) },
        "pod" => Syntax::new(&[], &[("=begin comment", "=end comment"), ("=for comment", "\n\n")]),
        _ if name == "Makefile" || name == "Dockerfile" || name == "CMakeLists.txt" => HASH,
        _ => ANY,
    }
}

/// The text without the notices, and what was taken out. `path` tells the language; without one, all usual comments count.
pub fn strip_header<'a>(text: &'a str, path: Option<&str>) -> (Cow<'a, str>, Vec<&'a str>) {
    let syntax = syntax(path);
    let (mut rest, mut out, mut removed) = (text, String::new(), Vec::new());
    for _ in 0..MAX_BLOCKS {
        let Some(length) = block(rest, syntax) else { break };
        let (block, after) = rest.split_at(length);
        rest = after;
        if !states_rights(block) {
            out.push_str(block);
            continue;
        }
        removed.push(block.trim());
        let before = out.len();
        keep_remarks(block, syntax, &mut out);
        if out.len() == before && (out.trim().is_empty() || out.ends_with("\n\n")) {
            // No empty lines in a header's place.
            rest = skip_blank_lines(rest);
        }
    }
    if removed.is_empty() {
        return (Cow::Borrowed(text), removed);
    }
    if out.is_empty() {
        return (Cow::Borrowed(rest), removed);
    }
    out.push_str(rest);
    (Cow::Owned(out), removed)
}

fn skip_blank_lines(text: &str) -> &str {
    let blank = text.split_inclusive('\n').take_while(|line| line.trim().is_empty()).map(str::len).sum();
    text.split_at_checked(blank).map_or(text, |(_, rest)| rest)
}

/// The length of the empty lines, the directive or the comment at the front; `None` where code begins.
fn block(text: &str, syntax: Syntax) -> Option<usize> {
    let first = text.split_inclusive('\n').next()?;
    let line = first.trim_start_matches('\u{feff}').trim();
    if line.is_empty() {
        return Some(text.len() - skip_blank_lines(text).len());
    }
    if is_preamble(line) {
        return Some(first.len());
    }
    if let Some((open, close)) = syntax.block.iter().find(|(open, _)| line.starts_with(open)) {
        let from = text.find(open)? + open.len();
        let end = from + text.get(from..)?.find(close)? + close.len();
        // Code on the comment's last line is the next block.
        let blank = text.get(end..)?.split_inclusive('\n').next().filter(|line| line.trim().is_empty()).map_or(0, str::len);
        return Some(end + blank);
    }
    if syntax.indented && is_indented_comment(line) {
        let inside = |line: &&str| line.trim().is_empty() || line.starts_with([' ', '\t']);
        let lines = text[first.len()..].split_inclusive('\n').take_while(inside);
        return Some(first.len() + lines.map(str::len).sum::<usize>());
    }
    let marker = marker(line, syntax)?;
    let same = |line: &&str| marker_of(line, syntax) == Some(marker);
    Some(first.len() + text.get(first.len()..)?.split_inclusive('\n').take_while(same).map(str::len).sum::<usize>())
}

/// Whether a line of reStructuredText begins a comment: `..` that is neither a directive, a target, a footnote nor a substitution.
fn is_indented_comment(line: &str) -> bool {
    let Some(rest) = line.strip_prefix("..").filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t'])) else {
        return false;
    };
    let rest = rest.trim_start();
    let name = rest.split("::").next().unwrap_or_default();
    let directive = name.len() < rest.len() && !name.contains(char::is_whitespace);
    !(directive || rest.starts_with(['_', '[', '|']))
}

fn marker_of(line: &str, syntax: Syntax) -> Option<&'static str> {
    let line = line.trim();
    if is_preamble(line) || syntax.block.iter().any(|(open, _)| line.starts_with(open)) { None } else { marker(line, syntax) }
}

fn marker(line: &str, syntax: Syntax) -> Option<&'static str> {
    let found = syntax.line.iter().find(|marker| line.starts_with(**marker) || line == marker.trim_end())?;
    let directive = || *found == "#" && line.get(1..).is_some_and(|rest| rest.starts_with(char::is_alphabetic));
    (!syntax.directives || !directive()).then_some(*found)
}

/// Lines that may stand before a header, and that stay.
fn is_preamble(line: &str) -> bool {
    const STARTS: [&str; 22] = [
        "#!",
        "#ifndef",
        "#define",
        "#pragma",
        "#if ",
        "#ifdef",
        "#endif",
        "<?php",
        "<?xml",
        "<?hh",
        "<!DOCTYPE",
        "<!doctype",
        "<html",
        "<head",
        "<project",
        "'use strict'",
        "\"use strict\"",
        "@charset",
        "@echo",
        "//go:build",
        "// +build",
        "/* eslint",
    ];
    // `<?xml ...?><!-- ... -->` and the like on one line are rare; a comment that ends there is no preamble.
    STARTS.iter().any(|start| line.starts_with(start)) && !line.contains("*/ ") || is_editor_line(line)
}

/// `# -*- coding: utf-8 -*-`, `# vim: set ...`, `# frozen_string_literal: true`.
fn is_editor_line(line: &str) -> bool {
    let short = line.len() < 200;
    let comment = line.starts_with(['#', '/', ';', '%', '-', '"', '!', '<']);
    let coding = || line.find("coding").is_some_and(|at| line[at + 6..].starts_with([':', '=']));
    short
        && comment
        && !line.contains("opyright")
        && (line.contains("-*-") || line.contains("vim:") || coding() || line.contains("_string_literal"))
}

/// What a line of a comment says.
#[derive(Clone, Copy, PartialEq)]
enum Says {
    /// Nothing of rights.
    Other,
    /// Who owns or wrote it: of this line only.
    Owner,
    /// Terms: to the end of the paragraph.
    Terms,
}

/// The line's words, without what draws the comment.
fn content(line: &str) -> &str {
    line.trim_matches(|c: char| c.is_whitespace() || "/*#-=;%!+~|_:.<>{}[]\"'\u{feff}".contains(c))
}

fn says(content: &str) -> Says {
    const OWNER: [&str; 9] =
        ["author", "@author", "written by", "@license", "@licence", "license:", "licence:", "contributors:", "@copyright"];
    const TERMS: [&str; 27] = [
        "licen",
        "redistribut",
        "warrant",
        "permission",
        "liability",
        "liable for",
        "\"as is\"",
        "free software",
        "public domain",
        "this software",
        "in no event",
        "required by applicable law",
        "neither the name",
        "in the hope that",
        "received a copy",
        "copyright notice",
        "governed by",
        "disclaimer",
        "all copies",
        "terms of",
        "notice file",
        "is part of",
        "is a part of",
        "contributor agreement",
        "see the copyright",
        "copyright file",
        "see copyright",
    ];
    let lower = content.to_ascii_lowercase();
    // A copyright line may lead into the terms.
    if TERMS.iter().any(|word| lower.contains(word)) {
        return if lower.contains("spdx-") || OWNER.iter().any(|start| lower.starts_with(start)) {
            Says::Owner
        } else {
            Says::Terms
        };
    }
    let owner =
        is_copyright(&lower) || lower.contains("all rights reserved") || OWNER.iter().any(|start| lower.starts_with(start));
    if owner { Says::Owner } else { Says::Other }
}

/// `Copyright 2010 Somebody`, `(c) Somebody, 2010`; not prose about copyright.
fn is_copyright(lower: &str) -> bool {
    let marked = ["copyright", "copyleft", "(c)", "\u{a9}"].iter().any(|word| lower.contains(word));
    let starts = || ["copyright", "(c)", "\u{a9}", "@copyright", "spdx-filecopyright"].iter().any(|word| lower.starts_with(word));
    marked && (starts() || has_year(lower))
}

fn has_year(text: &str) -> bool {
    text.as_bytes()
        .windows(4)
        .any(|four| (four.starts_with(b"19") || four.starts_with(b"20")) && four.iter().all(u8::is_ascii_digit))
}

/// Whether a comment has a copyright line or licence terms in it.
fn states_rights(block: &str) -> bool {
    const STRONG: [&str; 26] = [
        "spdx-license-identifier",
        "licensed under",
        "licensed to the",
        "all rights reserved",
        "permission is hereby granted",
        "redistribution and use in",
        "general public license",
        "mit license",
        "mit-license",
        "apache license",
        "mozilla public license",
        "bsd license",
        "bsd-style license",
        "in the public domain",
        "@license",
        "@licence",
        "license agreement",
        "unlicense",
        "creative commons",
        "above copyright notice",
        "software is provided \"as is\"",
        "required by applicable law",
        "redistributions of source",
        "redistributions in binary",
        "neither the name of",
        "see the copyright file",
    ];
    let lower = block.to_ascii_lowercase();
    STRONG.iter().any(|phrase| lower.contains(phrase))
        || (lower.contains("copyright") || lower.contains("(c)") || lower.contains('\u{a9}'))
            && lower.lines().any(|line| is_copyright(content(line)))
        || ["distributed under", "released under", "license that can be", "governed by"]
            .iter()
            .any(|phrase| lower.contains(phrase))
            && lower.contains("licen")
}

/// Appends what a header comment says besides rights, still as a comment; nothing if that is next to nothing.
fn keep_remarks(block: &str, syntax: Syntax, out: &mut String) {
    // Without its first line the rest would be a quotation.
    if syntax.indented {
        return;
    }
    let mut kept: Vec<&str> = Vec::new();
    let (mut terms, mut wrapped, mut comma, mut letters) = (false, false, false, 0);
    for line in block.split_inclusive('\n') {
        let words = content(line);
        if !words.contains(char::is_alphanumeric) {
            (terms, wrapped) = (false, false);
            // Lines that only draw: one between remarks.
            if kept.last().is_some_and(|last| content(last).contains(char::is_alphanumeric)) {
                kept.push(line);
            }
            continue;
        }
        // A list of owners on several lines.
        let owners_go_on = std::mem::replace(&mut comma, line.trim_end().ends_with([',', '&']) || words.ends_with(" and"));
        match says(words) {
            Says::Owner => wrapped = true,
            Says::Terms => terms = true,
            Says::Other if terms || wrapped && (owners_go_on || words.starts_with("and ")) => {}
            Says::Other => {
                wrapped = false;
                letters += words.chars().filter(|c| c.is_alphabetic()).count();
                kept.push(line);
            }
        }
    }
    while kept.last().is_some_and(|last| !content(last).contains(char::is_alphanumeric)) {
        kept.pop();
    }
    if letters < MIN_LEFT {
        return;
    }
    let Some((open, close)) = syntax.block.iter().find(|(open, _)| block.trim_start().starts_with(open)) else {
        out.extend(kept);
        return;
    };
    let (first, last) = (block.lines().next().unwrap_or_default(), block.trim_end());
    let text = kept.concat();
    if !kept.first().is_some_and(|line| line.trim_start().starts_with(open)) {
        // `/**` opens documentation.
        let doc = *open == "/*" && first.trim_start().starts_with("/**") && !first.trim_start().starts_with("/***");
        out.push_str(if doc { "/**" } else { open });
        out.push('\n');
    }
    out.push_str(&text);
    if last.ends_with(close) && !text.trim_end().ends_with(close) {
        if !text.ends_with('\n') {
            out.push('\n');
        }
        let closing_line = last.lines().last().unwrap_or_default();
        out.push_str(&closing_line[..closing_line.len() - closing_line.trim_start().len()]);
        out.push_str(close);
        out.push('\n');
    }
}

/// RedPajama's rule (branch `rp_v1`, `clean_copyright_comments`), to the letter. The first `/* */` comment, wherever it is,
/// goes if it has the word copyright in it. Only if there is no such comment, all lines at the beginning go that are empty
/// or start with `//`, `#` or `--`: shebangs, `#include` and `#define` too.
pub fn strip_header_redpajama(text: &str) -> Cow<'_, str> {
    if let Some(start) = text.find("/*")
        && let Some(length) = text[start + 2..].find("*/")
    {
        let end = start + 2 + length + 2;
        if text[start..end].to_ascii_lowercase().contains("copyright") {
            return Cow::Owned([&text[..start], &text[end..]].concat());
        }
        return Cow::Borrowed(text);
    }
    let skipped = |line: &&str| ["//", "#", "--"].iter().any(|mark| line.starts_with(mark)) || *line == "\n" || line.is_empty();
    let length: usize = text.split_inclusive('\n').take_while(skipped).map(str::len).sum();
    Cow::Borrowed(&text[length..])
}
