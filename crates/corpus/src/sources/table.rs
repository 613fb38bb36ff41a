//! Makes the table of sources: their names, and their settings in a configuration.

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

        impl std::str::FromStr for SourceName {
            type Err = Error;

            fn from_str(name: &str) -> Result<Self> {
                NAMES.into_iter().find(|n| n.as_str() == name).ok_or_else(|| {
                    let names = NAMES.map(SourceName::as_str).join(", ");
                    Error::bad_value("source", format!("expected one of {names}, got `{name}`"), "give one of these names")
                })
            }
        }

        /// All sources with their default settings.
        pub fn all() -> Vec<Box<dyn Source>> {
            vec![$(Box::new(<$settings>::default())),*]
        }
    };
}
pub(super) use sources;
