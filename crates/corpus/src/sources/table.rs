//! The table of sources: their names, and their settings in a configuration.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::error::{Error, Result};

/// A source's name: in configurations and folders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceName(pub(super) &'static str);

impl SourceName {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0)
    }
}

impl Serialize for SourceName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

impl FromStr for SourceName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        super::NAMES.iter().copied().find(|n| n.0 == name).ok_or_else(|| {
            let names = super::NAMES.map(|n| n.0).join(", ");
            Error::bad_value("source", format!("expected one of {names}, got `{name}`"), "give one of these names")
        })
    }
}

/// Makes the table: a line a source, its name and the type of its settings.
macro_rules! sources {
    ($($name:ident: $settings:ty,)*) => {
        /// The names of all sources, in the order of LLaMA's table 1.
        pub const NAMES: [SourceName; [$(stringify!($name)),*].len()] = [$(SourceName(stringify!($name))),*];

        /// The sources that are used: `[sources.wikipedia]` and so on.
        #[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[expect(missing_docs, reason = "the types say it")]
        pub struct Sources {
            $(#[serde(skip_serializing_if = "Option::is_none")] pub $name: Option<$settings>,)*
        }

        impl Sources {
            /// Those that are used, in the order of the table.
            pub fn used(&self) -> Vec<&dyn Source> {
                let all = [$(self.$name.as_ref().map(|source| source as &dyn Source)),*];
                all.into_iter().flatten().collect()
            }
        }

        /// All sources with their default settings.
        pub fn all() -> Vec<Box<dyn Source>> {
            vec![$(Box::new(<$settings>::default())),*]
        }
    };
}
pub(super) use sources;
