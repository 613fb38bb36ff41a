//! What a paper says of its files: arXiv's `00README`, and the character set.

use encoding_rs::Encoding;

/// What arXiv was told, or sees, of a paper's files.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Files to compile, from `00README`.
    pub(super) top_level: Vec<String>,
    /// Files to leave alone.
    pub(super) ignored: Vec<String>,
    /// Names without their endings of files that have a `.bbl`: somebody has compiled them.
    pub(super) compiled: Vec<String>,
}

/// Whether a file, by its name in lower case, is arXiv's `00README.XXX` or a newer form of it.
pub(super) fn is_readme(name: &str) -> bool {
    matches!(
        name,
        "00readme" | "00readme.xxx" | "00readme.json" | "00readme.yaml" | "00readme.yml" | "00readme.toml" | "00readme.txt"
    )
}

impl Notes {
    /// Reads `00README` (info.arxiv.org/help/00README): lines `FILE ACTION`, or a list of `filename` and `usage`.
    pub(super) fn read(&mut self, name: &str, text: &str) {
        if name.ends_with(".json") {
            let value: serde_json::Value = serde_json::from_str(text.trim_start_matches('\u{feff}')).unwrap_or_default();
            for source in value["sources"].as_array().into_iter().flatten() {
                let of = |key: &str| source[key].as_str().unwrap_or_default();
                self.note(of("filename"), of("usage"));
            }
        } else if [".yaml", ".yml", ".toml"].iter().any(|end| name.ends_with(end)) {
            let mut file = String::new();
            for line in text.lines() {
                let line = line.trim().trim_start_matches("- ").replace(['"', '\''], "");
                let Some((key, value)) = line.split_once([':', '=']) else { continue };
                match key.trim() {
                    "filename" => value.trim().clone_into(&mut file),
                    "usage" => self.note(&file, value.trim()),
                    _ => {}
                }
            }
        } else {
            for line in text.lines() {
                let mut words = line.split_whitespace();
                if let (Some(file), Some(action)) = (words.next(), words.next()) {
                    self.note(file, action);
                }
            }
        }
    }

    fn note(&mut self, file: &str, action: &str) {
        let file = file.trim_start_matches("./").to_owned();
        match action.to_ascii_lowercase().as_str() {
            "toplevel" | "toplevelfile" => self.top_level.push(file),
            "ignore" => self.ignored.push(file),
            _ => {}
        }
    }
}

/// The character set that a LaTeX file says it is in: the option of `inputenc`, of `CJK`, or an editor's comment.
pub(super) fn declared_charset(bytes: &[u8]) -> Option<&'static Encoding> {
    let after = |mark: &'static str| memchr::memmem::find_iter(bytes, mark).map(move |at| at + mark.len());
    let within = |from: usize, open: u8, close: u8| {
        let rest = bytes.get(from..)?.trim_ascii_start().strip_prefix(&[open])?;
        let end = rest.iter().take(80).position(|&b| b == close)?;
        std::str::from_utf8(&rest[..end]).ok()
    };
    let line_start = |at: usize| bytes[..at].iter().rposition(|&b| matches!(b, b'\n' | b'\r')).map_or(0, |i| i + 1);
    let commented = |at: usize| bytes[line_start(at)..at].contains(&b'%');
    for at in after("\\usepackage").chain(after("\\RequirePackage")) {
        let Some(options) = within(at, b'[', b']').filter(|_| !commented(at)) else { continue };
        let rest = at + bytes[at..].iter().position(|&b| b == b']').unwrap_or(0) + 1;
        if within(rest, b'{', b'}').is_some_and(|package| package.trim() == "inputenc") {
            // The last one that is given holds.
            return options.rsplit(',').find_map(|option| input_encoding(option.trim()));
        }
    }
    if let Some(option) = after("\\inputencoding").find_map(|at| within(at, b'{', b'}').filter(|_| !commented(at))) {
        return input_encoding(option.trim());
    }
    for mark in ["\\begin{CJK}", "\\begin{CJK*}"] {
        if let Some(set) = after(mark).find_map(|at| within(at, b'{', b'}')) {
            return input_encoding(set);
        }
    }
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(2048)]).into_owned();
    head.lines().take(10).filter(|line| line.trim_start().starts_with('%')).find_map(|line| {
        let lower = line.to_ascii_lowercase();
        let (_, value) = lower.split_once("coding").filter(|(_, rest)| rest.trim_start().starts_with([':', '=']))?;
        let value = value.trim_start().trim_start_matches([':', '=']).trim_start();
        let end = value.find(|c: char| c.is_whitespace() || c == ';').unwrap_or(value.len());
        input_encoding(&value[..end])
    })
}

/// The set of an option of LaTeX's `inputenc`; `None` for those that `encoding_rs` does not know.
fn input_encoding(option: &str) -> Option<&'static Encoding> {
    let lower = option.to_ascii_lowercase();
    let label = match lower.as_str() {
        "latin1" | "ansinew" | "cp1252" | "ascii" => "windows-1252",
        "latin5" => "iso-8859-9",
        "latin9" => "iso-8859-15",
        "latin10" => "iso-8859-16",
        "applemac" | "macce" => "macintosh",
        "maccyr" => "x-mac-cyrillic",
        "koi8-ru" => "koi8-u",
        "utf8" | "utf8x" | "utf-8" => "utf-8",
        "gb" | "gbk" => "gbk",
        "bg5" | "bg5+" => "big5",
        "jis" | "sjis" => "shift_jis",
        "jis2" | "euc" => "euc-jp",
        "ks" | "hl" => "euc-kr",
        other => other,
    };
    Encoding::for_label(label.as_bytes())
}
