//! Which files stay: by name, and by the shape of their text.

/// Extensions that RedPajama takes, matched as the end of the path (`MyDockerfile` passes, `a.md.c` too).
pub(super) const REDPAJAMA: [&str; 66] = [
    ".asm",
    ".bat",
    ".cmd",
    ".c",
    ".h",
    ".cs",
    ".cpp",
    ".hpp",
    ".c++",
    ".h++",
    ".cc",
    ".hh",
    ".C",
    ".H",
    ".cmake",
    ".css",
    ".dockerfile",
    ".f90",
    ".f",
    ".f03",
    ".f08",
    ".f77",
    ".f95",
    ".for",
    ".fpp",
    ".go",
    ".hs",
    ".html",
    ".java",
    ".js",
    ".jl",
    ".lua",
    ".md",
    ".markdown",
    ".php",
    ".php3",
    ".php4",
    ".php5",
    ".phps",
    ".phpt",
    ".pl",
    ".pm",
    ".pod",
    ".perl",
    ".ps1",
    ".psd1",
    ".psm1",
    ".py",
    ".rb",
    ".rs",
    ".sql",
    ".scala",
    ".sh",
    ".bash",
    ".command",
    ".zsh",
    ".ts",
    ".tsx",
    ".tex",
    ".vb",
    "Dockerfile",
    "Makefile",
    ".xml",
    ".rst",
    ".m",
    ".smali",
];

/// Languages that the list above leaves out, and other extensions of those in it.
const MORE: [&str; 20] = [
    ".cxx", ".hxx", ".mjs", ".cjs", ".jsx", ".pyi", ".kt", ".kts", ".swift", ".r", ".ml", ".mli", ".ex", ".exs", ".erl", ".clj",
    ".dart", ".zig", ".cu", ".proto",
];

/// Whether the file's extension, in any case, or its whole name is in RedPajama's list or one of 20 more.
pub fn is_source(path: &str) -> bool {
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    if ["Dockerfile", "Makefile", "GNUmakefile", "CMakeLists.txt"].contains(&name) {
        return true;
    }
    let Some(dot) = name.rfind('.').filter(|dot| *dot > 0) else { return false };
    let extension = name[dot..].to_ascii_lowercase();
    REDPAJAMA.iter().chain(&MORE).any(|known| *known == extension)
}

/// Whether the path ends as one of RedPajama's list does.
pub fn is_source_redpajama(path: &str) -> bool {
    REDPAJAMA.iter().any(|end| path.ends_with(end))
}

/// What the filters look at. Lengths are in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shape {
    /// As Python's `str.splitlines` counts them: also at form feeds, U+0085, U+2028 ...
    pub lines: usize,
    /// Of the longest line.
    pub max_line: usize,
    /// Characters.
    pub chars: usize,
    /// Letters and digits.
    pub alphanumeric: usize,
    /// Letters.
    pub letters: usize,
}

impl Shape {
    /// Measures a text in one pass.
    pub fn of(text: &str) -> Self {
        // Most code is ASCII, which a table makes several times as fast.
        if text.is_ascii() { Self::measure(text.bytes().map(ascii_class)) } else { Self::measure(text.chars().map(class)) }
    }

    fn measure(classes: impl Iterator<Item = Class>) -> Self {
        let (mut shape, mut start, mut last) = (Self::default(), 0, Class::Other);
        let mut digits = 0;
        for class in classes {
            shape.letters += usize::from(class == Class::Letter);
            digits += usize::from(class == Class::Digit);
            if class <= Class::LineEnd {
                // `\r\n` is one end.
                if !(class == Class::Newline && last == Class::Return) {
                    shape.lines += 1;
                    shape.max_line = shape.max_line.max(shape.chars - start);
                }
                start = shape.chars + 1;
            }
            shape.chars += 1;
            last = class;
        }
        shape.alphanumeric = shape.letters + digits;
        if shape.chars > start {
            shape.lines += 1;
            shape.max_line = shape.max_line.max(shape.chars - start);
        }
        shape
    }

    /// Characters, line ends too, a line.
    pub fn mean_line(&self) -> f64 {
        self.chars as f64 / self.lines.max(1) as f64
    }

    /// Share of letters and digits.
    pub fn alphanumeric_share(&self) -> f64 {
        self.alphanumeric as f64 / self.chars.max(1) as f64
    }
}

/// What a character is to the measures; line ends first, then other white space.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Class {
    Newline,
    Return,
    LineEnd,
    Space,
    Blank,
    Letter,
    Digit,
    Other,
}

fn class(c: char) -> Class {
    match c {
        '\0'..='\u{7f}' => ascii_class(c as u8),
        '\u{85}' | '\u{2028}' | '\u{2029}' => Class::LineEnd,
        _ if c.is_alphabetic() => Class::Letter,
        _ if c.is_numeric() => Class::Digit,
        _ if c.is_whitespace() => Class::Blank,
        _ => Class::Other,
    }
}

/// [`class`] of the ASCII characters.
const ASCII: [Class; 256] = {
    let mut table = [Class::Other; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
            b'0'..=b'9' => Class::Digit,
            b' ' => Class::Space,
            b'\n' => Class::Newline,
            b'\r' => Class::Return,
            0xb | 0xc | 0x1c..=0x1e => Class::LineEnd,
            b'\t' | 0x1f => Class::Blank,
            _ => Class::Other,
        };
        byte += 1;
    }
    table
};

fn ascii_class(byte: u8) -> Class {
    ASCII[usize::from(byte)]
}

/// The pieces that GPT-2's pre-tokenizer makes of a text (letters, digits, other marks, white space; contractions apart):
/// the least number of tokens that a byte-level BPE of that family can have, whatever its vocabulary.
pub fn count_pieces(text: &str) -> usize {
    if text.is_ascii() { pieces(text.bytes().map(ascii_class)) } else { pieces(text.chars().map(class)) }
}

fn pieces(classes: impl Iterator<Item = Class>) -> usize {
    let (mut pieces, mut last, mut several) = (0, Class::Other, false);
    let mut first = true;
    for class in classes {
        if class <= Class::Blank {
            several = !first && last <= Class::Blank;
        } else {
            if !first && last <= Class::Blank {
                // The last blank goes to the word if it is a space, else it is a piece; those before it are one.
                pieces += usize::from(several) + usize::from(last != Class::Space);
            }
            pieces += usize::from(first || last != class);
        }
        (last, first) = (class, false);
    }
    pieces + usize::from(!first && last <= Class::Blank)
}
