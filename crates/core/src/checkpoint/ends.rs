//! Which tokens begin and end a text.

use serde_json::Value;

/// The tokens that begin and end a text, as far as files say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TextEnds {
    pub(crate) bos_id: Option<u32>,
    pub(crate) eos_ids: Vec<u32>,
}

impl TextEnds {
    /// From an object with `bos` (a number) and `eos` (a number or a list).
    pub(crate) fn of(map: &Value, bos: &str, eos: &str) -> Self {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let eos_ids = match &map[eos] {
            Value::Array(ids) => ids.iter().filter_map(id).collect(),
            one => id(one).into_iter().collect(),
        };
        Self { bos_id: id(&map[bos]), eos_ids }
    }
}
