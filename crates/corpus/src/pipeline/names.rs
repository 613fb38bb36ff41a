//! The seven sources by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A source of LLaMA's table 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Source {
    Commoncrawl,
    C4,
    Github,
    Wikipedia,
    Books,
    Arxiv,
    Stackexchange,
}

impl Source {
    /// In the order of the table.
    pub const ALL: [Self; 7] =
        [Self::Commoncrawl, Self::C4, Self::Github, Self::Wikipedia, Self::Books, Self::Arxiv, Self::Stackexchange];

    /// As in configs and folders.
    pub fn name(self) -> &'static str {
        match self {
            Self::Commoncrawl => "commoncrawl",
            Self::C4 => "c4",
            Self::Github => "github",
            Self::Wikipedia => "wikipedia",
            Self::Books => "books",
            Self::Arxiv => "arxiv",
            Self::Stackexchange => "stackexchange",
        }
    }

    /// Share in percent and epochs of LLaMA's table 1. The epochs hold at the paper's sizes only.
    pub fn paper(self) -> (f64, f64) {
        match self {
            Self::Commoncrawl => (67.0, 1.10),
            Self::C4 => (15.0, 1.06),
            Self::Github => (4.5, 0.64),
            Self::Wikipedia => (4.5, 2.45),
            Self::Books => (4.5, 2.23),
            Self::Arxiv => (2.5, 1.06),
            Self::Stackexchange => (2.0, 1.03),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::bad_value("source", format!("expected one of {names}, got `{name}`"), "give one of these names")
        })
    }
}
