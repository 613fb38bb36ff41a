//! Links: `[[page|text]]` and `[http://url text]`.

use super::Rule;
use super::names::{LinkKind, link_kind};
use super::strip::{Frame, Kind, Link, Stripper};
use super::templates::Kept;

impl Stripper<'_> {
    pub(super) fn open_bracket(&mut self) {
        let run = self.run_of(b'[');
        if run == 1 {
            if !self.external() {
                self.copy(1);
            }
            return;
        }
        // `[[http://...]]` is an external link in brackets.
        let after = self.rest().get(run..).unwrap_or("");
        let pairs = if scheme(after).is_some() { 0 } else { run / 2 };
        if pairs == 0 {
            self.copy(run - 1);
            if !self.external() {
                self.copy(1);
            }
            return;
        }
        self.copy(run % 2);
        for pair in 1..=pairs {
            self.at += 2;
            let colon = pair == pairs && self.peek(0) == b':';
            self.at += usize::from(colon);
            if let Some(frame) = self.push(Kind::Link) {
                frame.colon = colon;
            }
        }
    }

    /// `[URL text]`: reads over the URL.
    fn external(&mut self) -> bool {
        let Some(skip) = self.rest().get(1..).and_then(scheme) else { return false };
        let rest = self.rest().get(1 + skip..).unwrap_or("");
        let template = |at: usize| rest.as_bytes().get(at..at + 2) == Some(b"{{");
        let end = rest
            .bytes()
            .enumerate()
            .position(|(at, b)| b <= b' ' || matches!(b, b'[' | b']' | b'<' | b'>' | b'"' | b'}') || (b == b'{' && template(at)))
            .unwrap_or(rest.len());
        if end == 0 {
            return false;
        }
        self.at += 1 + skip + end;
        self.push(Kind::External);
        self.at += self.rest().bytes().take_while(|&b| b == b' ').count();
        true
    }

    pub(super) fn close_bracket(&mut self) {
        match self.top() {
            Some(frame) if frame.kind == Kind::External => {
                self.pop();
                self.at += 1;
                if self.out.get(frame.at..).is_some_and(|text| text.trim().is_empty()) {
                    self.out.truncate(frame.at);
                    self.gap();
                    self.count(Rule::ExternalLink);
                }
            }
            Some(frame) if frame.kind == Kind::Link && self.peek(1) == b']' => {
                self.at += 2;
                self.close_link(frame);
            }
            // Pairs without a beginning are leftovers.
            _ if self.peek(1) == b']' => self.at += 2,
            _ => self.copy(1),
        }
    }

    fn close_link(&mut self, frame: Frame) {
        match frame.link {
            Link::Gone(rule) => {
                self.out.truncate(frame.at);
                self.gap();
                self.count(rule);
            }
            Link::Target => {
                if let Some(rule) = self.gone(frame) {
                    self.out.truncate(frame.at);
                    self.gap();
                    self.count(rule);
                } else if self.options.categories && !frame.colon && self.kind(frame) == LinkKind::Category {
                    let colon = self.out.get(frame.at..).and_then(|t| t.find(':')).map_or(frame.at, |c| frame.at + c + 1);
                    if self.may_move(frame) {
                        self.keep(frame, Some(Kept::Part(colon, self.out.len())));
                    }
                }
            }
            Link::Text if self.out.get(frame.at..).is_some_and(|text| text.trim().is_empty()) => {
                // The pipe trick: without the namespace and what is in parentheses.
                self.out.truncate(frame.at);
                let target = self.targets.get(frame.base..).unwrap_or("");
                let title = target.split_once(':').map_or(target, |(_, title)| title);
                let title = title.split_once(" (").map_or(title, |(title, _)| title);
                self.out.push_str(title.trim());
            }
            Link::Text => {}
        }
        if self.depth(Kind::Brace) > 0 {
            self.protect(frame.at);
        }
        self.pop();
    }

    fn kind(&self, frame: Frame) -> LinkKind {
        self.out.get(frame.at..).map_or(LinkKind::Page, |target| link_kind(target, self.language))
    }

    /// Why a link goes with all that is in it.
    pub(super) fn gone(&self, frame: Frame) -> Option<Rule> {
        if frame.colon {
            return None;
        }
        match self.kind(frame) {
            LinkKind::Media => Some(Rule::Media),
            LinkKind::Category if !self.options.categories => Some(Rule::Category),
            LinkKind::Language if !self.options.language_links => Some(Rule::LanguageLink),
            _ => None,
        }
    }
}

/// The length of the protocol at the start of an external link's URL.
fn scheme(text: &str) -> Option<usize> {
    const PROTOCOLS: [&str; 27] = [
        "http://",
        "https://",
        "//",
        "ftp://",
        "ftps://",
        "mailto:",
        "news:",
        "irc://",
        "ircs://",
        "git://",
        "gopher://",
        "nntp://",
        "sftp://",
        "ssh://",
        "svn://",
        "tel:",
        "telnet://",
        "mms://",
        "redis://",
        "worldwind://",
        "magnet:",
        "urn:",
        "geo:",
        "bitcoin:",
        "sip:",
        "sms:",
        "xmpp:",
    ];
    let bytes = text.as_bytes();
    if !bytes.first()?.is_ascii_alphabetic() && *bytes.first()? != b'/' {
        return None;
    }
    let starts = |p: &&&str| bytes.get(..p.len()).is_some_and(|head| head.eq_ignore_ascii_case(p.as_bytes()));
    PROTOCOLS.iter().find(starts).map(|p| p.len())
}
