//! Masks personal data: e-mail addresses, IP addresses and telephone numbers become `<EMAIL>`, `<IP>` and `<PHONE>`.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::LazyLock;

use regex::Regex;

use crate::Removed;

/// One pattern for all, so that the text is read once; the engine is linear. What is matched is looked at once more.
static PATTERN: LazyLock<Option<Regex>> = LazyLock::new(|| {
    // Scripts that are written with blanks: others would run into the text before an address.
    let letter = r"\p{Latin}\p{Greek}\p{Cyrillic}\p{Arabic}\p{Hebrew}\p{Devanagari}\p{M}\p{Nd}";
    let local = format!(
        r"(?:[{letter}](?:[{letter}._%+'’\-]*[{letter}_%+\-])?|[\p{{Han}}\p{{Hiragana}}\p{{Katakana}}\p{{Hangul}}]{{1,16}})"
    );
    let domain = r"(?:[\p{L}\p{M}\p{Nd}\-]+\.)+";
    let top = r"(?:xn--[A-Za-z0-9\-]{2,}|[\p{Latin}\p{Greek}\p{Cyrillic}\p{Arabic}\p{Hebrew}\p{Devanagari}\p{M}]{2,}|中国|中國|公司|网络|網絡|网站|香港|台湾|台灣|广告|在线|世界|한국|みんな)";
    let email = format!("(?P<email>{local}@{domain}{top})");
    let edge = r"(?-u:\b)";
    let ip = format!(
        r"(?P<ip>{edge}[0-9]{{1,3}}\.[0-9]{{1,3}}\.[0-9]{{1,3}}\.[0-9]{{1,3}}{edge}|{edge}[0-9A-Fa-f]{{1,4}}(?::[0-9A-Fa-f]{{0,4}}){{2,8}})"
    );
    // International with a plus, or the North American form with separators: other runs of digits are too often something else.
    let gap = r"[ ./\x{a0}\x{2010}-\x{2013}\-]";
    let space = r"[ .\x{a0}\x{2010}-\x{2013}\-]";
    let phone = format!(
        r"(?P<phone>\+[0-9]{{1,3}}{space}?(?:\(?[0-9]{{1,4}}\)?{space}?){{2,5}}[0-9]{{2,4}}{edge}|(?:1{gap})?(?:\([0-9]{{3}}\){gap}?|{edge}[0-9]{{3}}{gap})[0-9]{{3}}{gap}[0-9]{{4}}{edge}|\([0-9]{{3}}\) ?[0-9]{{7}}{edge})"
    );
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
        let mut end = all.end();
        let (rule, mask) = match () {
            () if found.name("email").is_some() => ("email", "<EMAIL>"),
            () if found.name("ip").is_some() => {
                // A sentence goes on with a colon; so does no address.
                let address = all.as_str();
                if address.ends_with(':') && !address.ends_with("::") {
                    end -= 1;
                }
                let address = &text[all.start()..end];
                // A part of a longer number is a version or a section.
                let before = text[..all.start()].chars().next_back();
                let mut after = text[end..].chars();
                let longer = before.is_some_and(|c| c.is_alphanumeric() || c == '.')
                    || match after.next() {
                        Some('.') => after.next().is_some_and(|c| c.is_ascii_digit()),
                        next => next.is_some_and(char::is_alphanumeric),
                    };
                if longer || is_path(address) || !address.parse().is_ok_and(of_someone) {
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
        done = end;
        removed.push(Removed::new(rule, &text[all.start()..end]));
    }
    if removed.is_empty() {
        return (text.into(), removed);
    }
    out.push_str(&text[done..]);
    (out.into(), removed)
}

/// Whether what may be an IPv6 address is rather a path of names in code, `fade::ace`: one name on each side, and not of the part of the
/// addresses that is given out.
fn is_path(address: &str) -> bool {
    let groups = address.split(':').filter(|group| !group.is_empty()).count();
    address.contains("::") && groups < 3 && !(address.starts_with(['2', '3']) && address.find(':') == Some(4))
}

fn of_someone(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !(a.is_loopback() || a.is_private() || a.is_unspecified() || a.is_broadcast() || a.is_documentation()),
        IpAddr::V6(a) => !(a.is_loopback() || a.is_unspecified()),
    }
}
