//! What the settings of all sources have in common.

use super::name::SourceName;
use crate::error::{Error, Result};

/// What all sources have.
#[derive(Clone, Copy, Debug)]
pub struct Common<'a> {
    /// Which.
    pub name: SourceName,
    /// Files, folders, patterns.
    pub inputs: &'a [String],
    /// Share of the mixture.
    pub weight: f64,
    /// Cap.
    pub max_epochs: f64,
    /// Whether near-duplicates go.
    pub near_duplicates: bool,
    /// Whether personal data is masked.
    pub mask_pii: bool,
    /// Share in percent and epochs of LLaMA's table 1. The epochs hold at the paper's sizes only.
    pub paper: (f64, f64),
}

impl Common<'_> {
    /// The key of a setting.
    pub fn key(&self, setting: &str) -> String {
        format!("sources.{}.{setting}", self.name)
    }

    /// Looks at the settings.
    ///
    /// # Errors
    /// [`Error::BadValue`] that names the key.
    pub fn check(&self) -> Result<()> {
        let bad = |key: &str, problem: String, hint: &str| Err(Error::bad_value(self.key(key), problem, hint));
        if self.inputs.is_empty() {
            return bad("inputs", "no file or folder is given".into(), "e.g. inputs = [\"dumps/*.gz\"]");
        }
        if !(self.weight > 0.0 && self.weight.is_finite()) {
            let problem = format!("expected a number above 0, got {}", self.weight);
            return bad("weight", problem, "leave the source out to not use it");
        }
        if self.max_epochs.is_nan() || self.max_epochs <= 0.0 {
            return bad("max_epochs", format!("expected a number above 0, got {}", self.max_epochs), "inf: no cap");
        }
        Ok(())
    }
}

/// Looks at a share: a number from 0 to 1.
///
/// # Errors
/// [`Error::BadValue`] that names the key.
pub(super) fn share(common: Common<'_>, key: &str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    let hint = if value > 1.0 { "it is a share, not a percentage: 0.5 is one half" } else { "it is a share: 0.5 is one half" };
    Err(Error::bad_value(common.key(key), format!("expected a number from 0 to 1, got {value}"), hint))
}

/// Defines a source's settings: those that all have, and its own.
macro_rules! settings {
    (
        $(#[$doc:meta])* $name:ident, $source:ident, paper = $paper:expr,
        { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            /// Files and folders; `*` and `?` in a name stand for any characters, `**` for any number of folders.
            pub inputs: Vec<String>,
            /// Share of the mixture, in any unit; over the sources that are used (LLaMA, table 1).
            pub weight: f64,
            /// A source is repeated at most so often: four times are nearly as good as new text (Muennighoff et al. 2023).
            pub max_epochs: f64,
            /// Removes near-duplicate documents (MinHash).
            pub near_duplicates: bool,
            /// Masks e-mail addresses, IP addresses and phone numbers.
            pub mask_pii: bool,
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl $name {
            /// Share in percent and epochs of LLaMA's table 1.
            const PAPER: (f64, f64) = $paper;

            fn shared(&self) -> $crate::sources::Common<'_> {
                $crate::sources::Common {
                    name: $crate::sources::SourceName(stringify!($source)),
                    inputs: &self.inputs,
                    weight: self.weight,
                    max_epochs: self.max_epochs,
                    near_duplicates: self.near_duplicates,
                    mask_pii: self.mask_pii,
                    paper: Self::PAPER,
                }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    inputs: Vec::new(),
                    weight: Self::PAPER.0,
                    max_epochs: 4.0,
                    near_duplicates: false,
                    mask_pii: false,
                    $($field: $default,)*
                }
            }
        }
    };
}
pub(super) use settings;
