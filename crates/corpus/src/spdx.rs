//! Licence expressions (SPDX specification, annex D), and the older `MIT/Apache-2.0` of Cargo.

use std::iter::Peekable;

/// Whether an expression can be satisfied by licences that are `allowed`, asked for in upper case; Apache 2.0 also with the LLVM
/// exception (the others belong to the GPL). What cannot be parsed is not.
pub(crate) fn satisfied(expression: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ").to_ascii_uppercase();
    let mut words = spaced.split_whitespace().peekable();
    let satisfied = any_of(&mut words, allowed, 0);
    words.next().is_none() && satisfied == Some(true)
}

/// `all OR all ...`; `None` is a syntax error.
fn any_of<'a, I: Iterator<Item = &'a str>>(
    words: &mut Peekable<I>,
    allowed: &dyn Fn(&str) -> bool,
    depth: usize,
) -> Option<bool> {
    let mut any = all_of(words, allowed, depth)?;
    while words.next_if_eq(&"OR").is_some() {
        any |= all_of(words, allowed, depth)?;
    }
    Some(any)
}

/// `licence AND licence ...`, which binds tighter than `OR`.
fn all_of<'a, I: Iterator<Item = &'a str>>(
    words: &mut Peekable<I>,
    allowed: &dyn Fn(&str) -> bool,
    depth: usize,
) -> Option<bool> {
    let mut all = licence(words, allowed, depth)?;
    while words.next_if_eq(&"AND").is_some() {
        all &= licence(words, allowed, depth)?;
    }
    Some(all)
}

fn licence<'a, I: Iterator<Item = &'a str>>(
    words: &mut Peekable<I>,
    allowed: &dyn Fn(&str) -> bool,
    depth: usize,
) -> Option<bool> {
    let id = match words.next()? {
        "(" if depth < 16 => {
            let inside = any_of(words, allowed, depth + 1)?;
            return (words.next() == Some(")")).then_some(inside);
        }
        "(" | ")" | "OR" | "AND" | "WITH" => return None,
        id => id,
    };
    if words.next_if_eq(&"WITH").is_some() {
        return Some(words.next()? == "LLVM-EXCEPTION" && id == "APACHE-2.0" && allowed(id));
    }
    Some(allowed(id))
}
