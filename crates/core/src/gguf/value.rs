//! Values of GGUF's metadata.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Reader;

/// Types of values, by their numbers in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Whole, 8 bits.
    U8 = 0,
    /// Whole with a sign, 8 bits.
    I8 = 1,
    /// Whole, 16 bits.
    U16 = 2,
    /// Whole with a sign, 16 bits.
    I16 = 3,
    /// Whole, 32 bits.
    U32 = 4,
    /// Whole with a sign, 32 bits.
    I32 = 5,
    /// Single precision.
    F32 = 6,
    /// A byte, 0 or 1.
    Bool = 7,
    /// UTF-8.
    String = 8,
    /// Values of one type.
    Array = 9,
    /// Whole, 64 bits.
    U64 = 10,
    /// Whole with a sign, 64 bits.
    I64 = 11,
    /// Double precision.
    F64 = 12,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    pub(super) fn of(number: u32) -> Result<Self, String> {
        Self::ALL.get(number as usize).copied().ok_or_else(|| format!("a value of type {number}, expected 0 to 12"))
    }

    /// Bytes of a value; `None` for strings and arrays.
    pub(super) fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }
}

/// Values of one type, as they lie in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub(super) kind: Kind,
    pub(super) len: usize,
    pub(super) data: Bytes,
}

impl Array {
    /// Strings.
    pub fn strings<'a>(list: impl IntoIterator<Item = &'a str>) -> Self {
        let (mut data, mut len) = (Vec::new(), 0);
        for text in list {
            put_string(&mut data, text);
            len += 1;
        }
        Self { kind: Kind::String, len, data: data.into() }
    }

    /// Single-precision numbers.
    pub fn floats(list: &[f32]) -> Self {
        Self { kind: Kind::F32, len: list.len(), data: list.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }

    /// Whole numbers of 32 bits.
    pub fn ints(list: &[i32]) -> Self {
        Self { kind: Kind::I32, len: list.len(), data: list.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }

    /// Bytes.
    pub fn bytes(list: &[u8]) -> Self {
        Self { kind: Kind::U8, len: list.len(), data: list.to_vec().into() }
    }

    /// The type of its values.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its values as strings; `None` where they are of another type.
    pub fn as_strings(&self) -> Option<Result<Vec<&str>, String>> {
        let mut reader = Reader { bytes: &self.data, at: 0 };
        let one = |i| {
            let bytes = reader.long_string()?;
            std::str::from_utf8(bytes).map_err(|e| format!("string {i} is not UTF-8 ({e})"))
        };
        (self.kind == Kind::String).then(|| (0..self.len).map(one).collect())
    }

    /// Its values as numbers; `None` where they are of another type.
    pub fn as_floats(&self) -> Option<Vec<f64>> {
        let size = self.kind.size().filter(|_| self.kind != Kind::Bool)?;
        self.data.chunks_exact(size).map(|bytes| scalar(self.kind, bytes).ok()?.as_f64()).collect()
    }

    /// Its values as whole numbers; `None` where they are of another type.
    pub fn as_ints(&self) -> Option<Vec<i128>> {
        let size = self.kind.size()?;
        self.data.chunks_exact(size).map(|bytes| scalar(self.kind, bytes).ok()?.as_int()).collect()
    }

    /// Its values as bytes; `None` where they are of another type.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        matches!(self.kind, Kind::U8 | Kind::I8).then_some(&self.data)
    }
}

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Whole, 8 bits.
    U8(u8),
    /// Whole with a sign, 8 bits.
    I8(i8),
    /// Whole, 16 bits.
    U16(u16),
    /// Whole with a sign, 16 bits.
    I16(i16),
    /// Whole, 32 bits.
    U32(u32),
    /// Whole with a sign, 32 bits.
    I32(i32),
    /// Single precision.
    F32(f32),
    /// True or false.
    Bool(bool),
    /// A text.
    String(String),
    /// Values of one type.
    Array(Array),
    /// Whole, 64 bits.
    U64(u64),
    /// Whole with a sign, 64 bits.
    I64(i64),
    /// Double precision.
    F64(f64),
}

impl Value {
    /// Its type.
    pub fn kind(&self) -> Kind {
        match self {
            Self::U8(_) => Kind::U8,
            Self::I8(_) => Kind::I8,
            Self::U16(_) => Kind::U16,
            Self::I16(_) => Kind::I16,
            Self::U32(_) => Kind::U32,
            Self::I32(_) => Kind::I32,
            Self::F32(_) => Kind::F32,
            Self::Bool(_) => Kind::Bool,
            Self::String(_) => Kind::String,
            Self::Array(_) => Kind::Array,
            Self::U64(_) => Kind::U64,
            Self::I64(_) => Kind::I64,
            Self::F64(_) => Kind::F64,
        }
    }

    /// A whole number of any width.
    pub fn as_int(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(v) => v.into(),
            Self::I8(v) => v.into(),
            Self::U16(v) => v.into(),
            Self::I16(v) => v.into(),
            Self::U32(v) => v.into(),
            Self::I32(v) => v.into(),
            Self::U64(v) => v.into(),
            Self::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// A number. Of single precision it is the shortest decimal number that rounds to it, so that 1e-5 is 1e-5.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::F32(v) => v.to_string().parse().ok(),
            Self::F64(v) => Some(*v),
            other => other.as_int().map(|v| v as f64),
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(v) => out.push(*v),
            Self::I8(v) => out.extend(v.to_le_bytes()),
            Self::U16(v) => out.extend(v.to_le_bytes()),
            Self::I16(v) => out.extend(v.to_le_bytes()),
            Self::U32(v) => out.extend(v.to_le_bytes()),
            Self::I32(v) => out.extend(v.to_le_bytes()),
            Self::F32(v) => out.extend(v.to_le_bytes()),
            Self::Bool(v) => out.push((*v).into()),
            Self::String(v) => put_string(out, v),
            Self::Array(array) => {
                out.extend((array.kind as u32).to_le_bytes());
                out.extend((array.len as u64).to_le_bytes());
                out.extend_from_slice(&array.data);
            }
            Self::U64(v) => out.extend(v.to_le_bytes()),
            Self::I64(v) => out.extend(v.to_le_bytes()),
            Self::F64(v) => out.extend(v.to_le_bytes()),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

pub(super) fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// A number or a flag; `bytes` are as many as its type has.
pub(super) fn scalar(kind: Kind, bytes: &[u8]) -> Result<Value, String> {
    fn of<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes.try_into().unwrap_or([0; N])
    }
    Ok(match kind {
        Kind::U8 => Value::U8(u8::from_le_bytes(of(bytes))),
        Kind::I8 => Value::I8(i8::from_le_bytes(of(bytes))),
        Kind::U16 => Value::U16(u16::from_le_bytes(of(bytes))),
        Kind::I16 => Value::I16(i16::from_le_bytes(of(bytes))),
        Kind::U32 => Value::U32(u32::from_le_bytes(of(bytes))),
        Kind::I32 => Value::I32(i32::from_le_bytes(of(bytes))),
        Kind::F32 => Value::F32(f32::from_le_bytes(of(bytes))),
        Kind::Bool => match bytes {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            _ => return Err(format!("a flag of {bytes:?}, expected 0 or 1")),
        },
        Kind::U64 => Value::U64(u64::from_le_bytes(of(bytes))),
        Kind::I64 => Value::I64(i64::from_le_bytes(of(bytes))),
        Kind::F64 => Value::F64(f64::from_le_bytes(of(bytes))),
        Kind::String | Kind::Array => return Err("no number".into()),
    })
}

/// The metadata: keys and values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(pub(super) BTreeMap<String, Value>);

impl FromIterator<(String, Value)> for Metadata {
    fn from_iter<T: IntoIterator<Item = (String, Value)>>(iter: T) -> Self {
        Self(iter.into_iter().collect())
    }
}

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// Keys and values, by the names of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    fn typed<'a, T>(&'a self, key: &str, what: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| format!("{key}: expected {what}, got {:?}", value.kind()))
    }

    /// A text, if the key is there.
    ///
    /// # Errors
    /// A value of another type.
    pub fn text(&self, key: &str) -> Result<Option<&str>, String> {
        self.typed(key, "a string", |v| if let Value::String(v) = v { Some(v.as_str()) } else { None })
    }

    /// A number, if the key is there.
    ///
    /// # Errors
    /// A value of another type.
    pub fn number(&self, key: &str) -> Result<Option<f64>, String> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A flag, if the key is there.
    ///
    /// # Errors
    /// A value of another type.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        self.typed(key, "a flag", |v| if let Value::Bool(v) = v { Some(*v) } else { None })
    }

    /// A list, if the key is there.
    ///
    /// # Errors
    /// A value of another type.
    pub fn array(&self, key: &str) -> Result<Option<&Array>, String> {
        self.typed(key, "an array", |v| if let Value::Array(v) = v { Some(v) } else { None })
    }

    /// A size, if the key is there; of a list of equal ones that one.
    ///
    /// # Errors
    /// A value of another type; a negative one; a list of different ones.
    pub fn size(&self, key: &str) -> Result<Option<usize>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let one = match value {
            Value::Array(array) => {
                let list = array.as_ints().unwrap_or_default();
                if list.windows(2).any(|pair| pair[0] != pair[1]) {
                    return Err(format!("{key}: differs from layer to layer, which a LLaMA's does not"));
                }
                list.first().copied()
            }
            value => value.as_int(),
        };
        let size = one.and_then(|v| usize::try_from(v).ok());
        size.map(Some).ok_or_else(|| format!("{key}: expected a whole number, got {value:?}"))
    }

    /// The id of a token, if the key is there. -1 is none.
    ///
    /// # Errors
    /// A value of another type.
    pub fn token(&self, key: &str) -> Result<Option<u32>, String> {
        let id = self.typed(key, "a whole number", Value::as_int)?;
        Ok(id.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX))
    }
}
