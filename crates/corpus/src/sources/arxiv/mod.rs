//! arXiv: papers from LaTeX, as arXiv's bulk tars hold them, to the text that LLaMA's section 2.1 asks for.
//!
//! [`read`] gives a record for each paper, its text one LaTeX document with every `\input` in its place; [`clean`] makes the
//! text of it. PDF-only papers, withdrawn ones and damaged archives are rejected with the reason.

mod archive;
mod define;
mod include;
mod latex;
mod lex;
mod macros;
mod notes;
mod redpajama;
mod strip;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use archive::read;
pub use latex::clean;

use super::{Cleaner, Common, Inputs, ReadTools, Skipped, Source, settings, source::each};
use crate::error::Result;
use crate::{Cleaned, Sink};

settings::settings! {
    /// LaTeX sources of arXiv (LLaMA section 2.1).
    Arxiv, arxiv, paper = (2.5, 1.06),
    {
        /// How they are read and cleaned.
        rules: Options = Options::default(),
    }
}

impl Source for Arxiv {
    fn common(&self) -> Common<'_> {
        self.shared()
    }

    fn inputs(&self) -> Inputs {
        Inputs::Whole
    }

    fn read_settings(&self) -> Value {
        json!(self.rules)
    }

    fn read(&self, dumps: &[PathBuf], _: &ReadTools<'_>, sink: &mut Sink<'_>) -> Result<Skipped> {
        each(dumps, sink, |dump, sink| read(dump, &self.rules, sink))
    }

    fn clean_settings(&self) -> Value {
        json!(self.rules)
    }

    fn cleaner(&self) -> Result<Cleaner<'_>> {
        Ok(Box::new(|record| clean(&record.text, &self.rules)))
    }

    fn clean_text(&self, text: &str, _: Option<&str>) -> Cleaned {
        clean(text, &self.rules)
    }
}

/// Between the files of a paper in a record's text with [`Options::rp_compat`]: ASCII's file separator.
pub const FILE_SEPARATOR: char = '\u{1c}';

/// How papers are read and cleaned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// What RedPajama does, to the byte, in reading (all `.tex` files in the archive's order, only UTF-8) and cleaning; no other
    /// option then matters but the sizes.
    pub rp_compat: bool,
    /// Rejects papers with a file that is not UTF-8, as RedPajama does. Otherwise such a file is read as Latin-1.
    pub strict_utf8: bool,
    /// Drops papers without a section, as RedPajama does. Otherwise they are kept from `\begin{document}` on.
    pub require_section: bool,
    /// Keeps the appendix: then only the bibliography itself goes, and not all that follows it.
    pub keep_appendix: bool,
    /// Also expands environments made with `\newenvironment`.
    pub expand_environments: bool,
    /// The most bytes that a paper's archive may inflate to, figures included; more, and it is rejected.
    pub max_inflated: u64,
    /// The most bytes of LaTeX in a paper, before and after its `\input`s are resolved; more, and it is rejected.
    pub max_tex: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rp_compat: false,
            strict_utf8: false,
            require_section: false,
            keep_appendix: false,
            expand_environments: false,
            max_inflated: 256 << 20,
            max_tex: 16 << 20,
        }
    }
}
