//! Personal data in text: e-mail addresses, IP addresses and telephone numbers are replaced by what they are.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::LazyLock;

use regex::Regex;

use crate::Removed;

/// One pattern for all, so that the text is read once. Every quantifier is bounded, and the engine is linear anyway.
static PATTERN: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let email = r"(?P<email>[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,8}\.[A-Za-z]{2,24})";
    let ip = r"(?P<ip>\b[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\b|\b(?:[0-9A-Fa-f]{1,4}:){3,7}[0-9A-Fa-f:]{1,39})";
    // International with a plus, or the North American form with separators: other runs of digits are too often something else.
    let phone =
        r"(?P<phone>\+[0-9]{1,3}[ .-]?(?:\(?[0-9]{1,4}\)?[ .-]?){2,5}[0-9]{2,4}\b|\(?\b[0-9]{3}\)?[ .-][0-9]{3}[ .-][0-9]{4}\b)";
    Regex::new(&format!("{email}|{ip}|{phone}")).ok()
});

/// The text with `<EMAIL>`, `<IP>` and `<PHONE>`, and the pieces that went (`email`, `ip`, `phone`). Addresses of no person stay:
/// loopback, private and unspecified ones, and what only looks like one (a version `1.2.3.4` that is part of a longer number).
pub fn mask(text: &str) -> (Cow<'_, str>, Vec<Removed>) {
    let Some(pattern) = PATTERN.as_ref() else { return (text.into(), Vec::new()) };
    let mut removed = Vec::new();
    let mut out = String::new();
    let mut done = 0;
    for found in pattern.captures_iter(text) {
        let Some(all) = found.get(0) else { continue };
        let (rule, mask) = match () {
            () if found.name("email").is_some() => ("email", "<EMAIL>"),
            () if found.name("ip").is_some() => {
                // A part of a longer number is a version or a section.
                let before = text[..all.start()].chars().next_back();
                let mut after = text[all.end()..].chars();
                let longer = before.is_some_and(|c| c.is_alphanumeric() || c == '.')
                    || match after.next() {
                        Some('.') => after.next().is_some_and(|c| c.is_ascii_digit()),
                        next => next.is_some_and(char::is_alphanumeric),
                    };
                if longer || !all.as_str().parse().is_ok_and(of_someone) {
                    continue;
                }
                ("ip", "<IP>")
            }
            () => {
                // Longer runs of digits are account numbers, measurements, code.
                let glued = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
                if glued(text[..all.start()].chars().next_back()) || glued(text[all.end()..].chars().next()) {
                    continue;
                }
                ("phone", "<PHONE>")
            }
        };
        out.push_str(&text[done..all.start()]);
        out.push_str(mask);
        done = all.end();
        removed.push(Removed::new(rule, all.as_str()));
    }
    if removed.is_empty() {
        return (text.into(), removed);
    }
    out.push_str(&text[done..]);
    (out.into(), removed)
}

fn of_someone(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !(a.is_loopback() || a.is_private() || a.is_unspecified() || a.is_broadcast() || a.is_documentation()),
        IpAddr::V6(a) => !(a.is_loopback() || a.is_unspecified()),
    }
}
