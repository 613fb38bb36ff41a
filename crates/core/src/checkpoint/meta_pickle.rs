//! `torch.save` files of tensors: a zip of a pickle and one entry a storage. A restricted interpreter, which builds nothing
//! but dictionaries of tensors and runs nothing; and a writer of the same.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use memmap2::Mmap;
use zip::read::ZipFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::Dtype;
use super::tensors::{Tensor, TensorInfo, TensorSource, map_file};
use crate::error::{Error, Result};

const WHAT: &str = "PyTorch checkpoint";
const HINT: &str = "it is truncated or damaged, or was not made by torch.save of a dictionary of tensors";
/// A state dict of the largest LLaMA is described in some 200 kB; more is an attack on memory.
const MAX_PICKLE: u64 = 4 << 20;

/// Elements of a view that is larger than its storage.
const MAX_REPEATED: usize = 1 << 20;

/// The values that a state dict's pickle is built of.
#[derive(Clone, Debug)]
enum Item {
    None,
    Bool,
    Int(i64),
    Text(Rc<str>),
    Global(Global),
    /// The second is the depth of nesting, which bounds the recursion of a drop.
    Tuple(Rc<Vec<Item>>, usize),
    /// An index into the machine's dictionaries.
    Dict(usize),
    Storage(Storage),
    Tensor(Rc<View>),
    Mark,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    /// A storage class; `None` where it holds no type of weights.
    Storage(Option<Dtype>),
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "FloatStorage") => Self::Storage(Some(Dtype::F32)),
            ("torch", "HalfStorage") => Self::Storage(Some(Dtype::F16)),
            ("torch", "BFloat16Storage") => Self::Storage(Some(Dtype::BF16)),
            (
                "torch",
                "DoubleStorage"
                | "LongStorage"
                | "IntStorage"
                | "ShortStorage"
                | "CharStorage"
                | "ByteStorage"
                | "BoolStorage"
                | "ComplexFloatStorage"
                | "ComplexDoubleStorage",
            ) => Self::Storage(None),
            _ => return None,
        })
    }
}

#[derive(Clone, Debug)]
struct Storage {
    dtype: Option<Dtype>,
    key: Rc<str>,
    elements: usize,
}

/// A tensor as pickled: a view of a storage.
#[derive(Debug)]
struct View {
    storage: Storage,
    offset: usize,
    shape: Vec<usize>,
    stride: Vec<usize>,
}

/// The interpreter. Errors are texts; the caller names the file.
#[derive(Default)]
struct Machine {
    stack: Vec<Item>,
    memo: HashMap<u32, Item>,
    dicts: Vec<Vec<(Item, Item)>>,
}

type Step<T> = std::result::Result<T, String>;

/// Takes `n` bytes off the front.
fn take<'a>(code: &mut &'a [u8], n: usize) -> Step<&'a [u8]> {
    let (head, rest) = code.split_at_checked(n).ok_or("the pickle ends too early")?;
    *code = rest;
    Ok(head)
}

/// Takes a little-endian number of at most 8 bytes.
fn take_uint(code: &mut &[u8], n: usize) -> Step<u64> {
    Ok(take(code, n)?.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b)))
}

fn take_text<'a>(code: &mut &'a [u8], n: usize) -> Step<&'a str> {
    std::str::from_utf8(take(code, n)?).map_err(|_| "a name that is not UTF-8".into())
}

fn take_line<'a>(code: &mut &'a [u8]) -> Step<&'a str> {
    let end = code.iter().position(|&b| b == b'\n').ok_or("the pickle ends too early")?;
    let line = take_text(code, end)?;
    take(code, 1)?;
    Ok(line)
}

impl Machine {
    fn pop(&mut self) -> Step<Item> {
        match self.stack.pop() {
            None | Some(Item::Mark) => Err("the pickle's stack is empty".into()),
            Some(item) => Ok(item),
        }
    }

    fn pop_mark(&mut self) -> Step<Vec<Item>> {
        let mark = self.stack.iter().rposition(|i| matches!(i, Item::Mark)).ok_or("a mark is missing in the pickle")?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn push_tuple(&mut self, items: Vec<Item>) -> Step<()> {
        let depth = items.iter().map(|i| if let Item::Tuple(_, d) = i { d + 1 } else { 0 }).max().unwrap_or(0);
        if depth > 8 {
            return Err("tuples nested more than 8 deep".into());
        }
        self.stack.push(Item::Tuple(Rc::new(items), depth));
        Ok(())
    }

    fn push_int(&mut self, value: u64) -> Step<()> {
        self.stack.push(Item::Int(i64::try_from(value).map_err(|_| "a number beyond 63 bits")?));
        Ok(())
    }

    fn put(&mut self, key: u32) -> Step<()> {
        let top = self.stack.last().filter(|i| !matches!(i, Item::Mark)).ok_or("the pickle's stack is empty")?;
        self.memo.insert(key, top.clone());
        Ok(())
    }

    fn new_dict(&mut self) -> Item {
        self.dicts.push(Vec::new());
        Item::Dict(self.dicts.len() - 1)
    }

    fn set_items(&mut self, items: Vec<Item>) -> Step<()> {
        let Some(Item::Dict(dict)) = self.stack.last() else { return Err("items set on what is no dictionary".into()) };
        let dict = self.dicts.get_mut(*dict).ok_or("a dictionary that was never made")?;
        let mut items = items.into_iter();
        while let Some(key) = items.next() {
            dict.push((key, items.next().ok_or("a key without a value")?));
        }
        Ok(())
    }

    /// Runs the pickle; the dictionary at its end, by key.
    fn run(mut self, mut code: &[u8]) -> Step<Vec<(Rc<str>, Rc<View>)>> {
        loop {
            let op = take(&mut code, 1)?[0];
            match op {
                0x80 => drop(take(&mut code, 1)?), // PROTO
                0x95 => drop(take(&mut code, 8)?), // FRAME
                b'}' => {
                    let dict = self.new_dict();
                    self.stack.push(dict);
                }
                b'(' => self.stack.push(Item::Mark),
                b'N' => self.stack.push(Item::None),
                0x88 | 0x89 => self.stack.push(Item::Bool),
                b'K' => self.push_int(take_uint(&mut code, 1)?)?,
                b'M' => self.push_int(take_uint(&mut code, 2)?)?,
                b'J' => {
                    let value = take_uint(&mut code, 4)? as u32 as i32; // BININT is signed
                    self.stack.push(Item::Int(value.into()));
                }
                0x8a => {
                    let n = take_uint(&mut code, 1)? as usize; // LONG1: little-endian two's complement
                    let value = if n <= 8 { take_uint(&mut code, n)? } else { u64::MAX };
                    if n > 0 && (n > 8 || value >> (8 * n - 1) != 0) {
                        return Err("a negative or huge number".into());
                    }
                    self.push_int(value)?;
                }
                b'X' | 0x8c => {
                    let n = take_uint(&mut code, if op == b'X' { 4 } else { 1 })? as usize;
                    let text = take_text(&mut code, n)?;
                    self.stack.push(Item::Text(text.into()));
                }
                b'c' => {
                    let (module, name) = (take_line(&mut code)?, take_line(&mut code)?);
                    self.global(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Item::Text(module), Item::Text(name)) = (module, name) else {
                        return Err("a global without a name".into());
                    };
                    self.global(&module, &name)?;
                }
                b'q' => self.put(take_uint(&mut code, 1)? as u32)?,
                b'r' => self.put(take_uint(&mut code, 4)? as u32)?,
                0x94 => self.put(u32::try_from(self.memo.len()).map_err(|_| "too many memos")?)?,
                b'h' | b'j' => {
                    let key = take_uint(&mut code, if op == b'h' { 1 } else { 4 })? as u32;
                    let item = self.memo.get(&key).ok_or("a memo that was never made")?;
                    self.stack.push(item.clone());
                }
                b')' => self.push_tuple(Vec::new())?,
                0x85..=0x87 => {
                    let mut items = Vec::new();
                    for _ in 0x84..op {
                        items.insert(0, self.pop()?);
                    }
                    self.push_tuple(items)?;
                }
                b't' => {
                    let items = self.pop_mark()?;
                    self.push_tuple(items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set_items(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.set_items(items)?;
                }
                // BUILD: sets attributes, such as an OrderedDict's `_metadata`, that say nothing about tensors.
                b'b' => drop(self.pop()?),
                b'Q' => {
                    let id = self.pop()?;
                    let storage = persistent(&id).ok_or("a persistent id that is no storage")?;
                    self.stack.push(Item::Storage(storage));
                }
                b'R' => {
                    let (arguments, callee) = (self.pop()?, self.pop()?);
                    let item = self.call(&callee, &arguments)?;
                    self.stack.push(item);
                }
                b'.' => break,
                other => return Err(format!("opcode 0x{other:02x}, which no dictionary of tensors needs")),
            }
        }
        let Item::Dict(root) = self.pop()? else { return Err("expected a dictionary of tensors".into()) };
        let root = self.dicts.get(root).ok_or("a dictionary that was never made")?;
        root.iter()
            .map(|(key, value)| match (key, value) {
                (Item::Text(name), Item::Tensor(view)) => Ok((name.clone(), view.clone())),
                (Item::Text(name), _) => Err(format!("expected a dictionary of tensors, but `{name}` is none")),
                _ => Err("a key that is not text".into()),
            })
            .collect()
    }

    fn global(&mut self, module: &str, name: &str) -> Step<()> {
        let short = |s: &str| s.chars().take(60).collect::<String>();
        let found = Global::find(module, name);
        let found = found.ok_or_else(|| format!("it wants `{}.{}`, which is not allowed", short(module), short(name)))?;
        self.stack.push(Item::Global(found));
        Ok(())
    }

    fn call(&mut self, callee: &Item, arguments: &Item) -> Step<Item> {
        let (Item::Global(callee), Item::Tuple(arguments, _)) = (callee, arguments) else {
            return Err("a call of what is no function".into());
        };
        match (callee, arguments.as_slice()) {
            (Global::OrderedDict, []) => Ok(self.new_dict()),
            (Global::RebuildParameter, [tensor @ Item::Tensor(_), ..]) => Ok(tensor.clone()),
            (
                Global::RebuildTensor,
                [Item::Storage(storage), Item::Int(offset), Item::Tuple(shape, _), Item::Tuple(stride, _), ..],
            ) => {
                if shape.len() != stride.len() || shape.len() > 8 {
                    return Err("a tensor whose shape and strides do not go together".into());
                }
                let (shape, stride) = (numbers(shape)?, numbers(stride)?);
                let offset = usize::try_from(*offset).map_err(|_| "a negative offset")?;
                let end = span(&shape, &stride).and_then(|n| n.checked_add(offset));
                if end.is_none_or(|end| end > storage.elements) {
                    return Err(format!("a tensor of shape {shape:?} that reaches beyond its storage"));
                }
                // A view that repeats elements could ask for any memory.
                let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
                if elements.is_none_or(|n| n > storage.elements.max(MAX_REPEATED)) {
                    return Err(format!("a tensor of shape {shape:?} that repeats the elements of a small storage"));
                }
                Ok(Item::Tensor(Rc::new(View { storage: storage.clone(), offset, shape, stride })))
            }
            _ => Err("a call with arguments that no tensor has".into()),
        }
    }
}

/// Elements of a storage from the first to the last of a view; `None` beyond memory.
fn span(shape: &[usize], stride: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().zip(stride).try_fold(1usize, |end, (&n, &s)| end.checked_add((n - 1).checked_mul(s)?))
}

/// Whether a view is row-major without gaps; the stride of a dimension of one element means nothing.
fn is_contiguous(shape: &[usize], stride: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(stride).rev().all(|(&n, &s)| {
        let fits = n == 1 || s == expected;
        expected = n.saturating_mul(expected);
        fits
    })
}

/// The elements of a view, row-major, of the bytes that it spans.
fn gather(bytes: &[u8], size: usize, shape: &[usize], stride: &[usize], out: &mut Vec<u8>) {
    match (shape, stride) {
        ([], _) | (_, []) => out.extend_from_slice(&bytes[..size]),
        ([n], [1]) => out.extend_from_slice(&bytes[..n * size]),
        ([n, shape @ ..], [s, stride @ ..]) => (0..*n).for_each(|i| gather(&bytes[i * s * size..], size, shape, stride, out)),
    }
}

fn numbers(items: &[Item]) -> Step<Vec<usize>> {
    let number = |i: &Item| if let Item::Int(n) = i { usize::try_from(*n).ok() } else { None };
    items.iter().map(|i| number(i).ok_or_else(|| "a size that is no number".into())).collect()
}

/// `('storage', torch.FloatStorage, key, device, elements)`.
fn persistent(id: &Item) -> Option<Storage> {
    let Item::Tuple(id, _) = id else { return None };
    match id.as_slice() {
        [Item::Text(tag), Item::Global(Global::Storage(dtype)), Item::Text(key), Item::Text(_), Item::Int(n)]
            if &**tag == "storage" =>
        {
            Some(Storage { dtype: *dtype, key: key.clone(), elements: usize::try_from(*n).ok()? })
        }
        _ => None,
    }
}

/// A mapped file that many readers share.
#[derive(Clone)]
struct Shared(Arc<Mmap>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Where a tensor is: zip entry, first byte in it, shape and strides, element type (`None`: not one of ours).
#[derive(Debug)]
struct Place {
    entry: usize,
    start: u64,
    shape: Vec<usize>,
    stride: Vec<usize>,
    dtype: Option<Dtype>,
}

/// A file of `torch.save`, memory-mapped. Data is read, and its checksum (CRC-32) compared, when asked for. PyTorch itself compares
/// none and can be told to write none (`set_crc32_options`); such a file is read as it is, with a warning.
pub(crate) struct PthFile {
    path: PathBuf,
    archive: ZipArchive<Cursor<Shared>>,
    /// Whether the archive has checksums.
    checked: bool,
    places: BTreeMap<String, Place>,
}

/// An entry's data; unchecked, as the archive has it, which is how PyTorch writes: not compressed.
fn open_entry(archive: &mut ZipArchive<Cursor<Shared>>, entry: usize, checked: bool) -> Step<ZipFile<'_, Cursor<Shared>>> {
    if checked {
        return archive.by_index(entry).map_err(|e| e.to_string());
    }
    let raw = archive.by_index_raw(entry).map_err(|e| e.to_string())?;
    if raw.compression() == CompressionMethod::Stored { Ok(raw) } else { Err("compressed, with a wrong checksum".into()) }
}

/// A small entry by name.
fn read_small(archive: &mut ZipArchive<Cursor<Shared>>, name: &str, checked: bool) -> Step<Vec<u8>> {
    let entry = archive.index_for_name(name).ok_or_else(|| format!("{name}: there is none"))?;
    let entry = open_entry(archive, entry, checked).map_err(|e| format!("{name}: {e}"))?;
    if entry.size() > MAX_PICKLE {
        return Err(format!("{name} has {} bytes, expected at most {MAX_PICKLE}", entry.size()));
    }
    let mut bytes = Vec::new();
    entry.take(MAX_PICKLE).read_to_end(&mut bytes).map_err(|e| format!("{name}: {e}"))?;
    Ok(bytes)
}

impl PthFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let bad = |problem: String| Error::bad_file(WHAT, path, problem, HINT);
        let mut archive = ZipArchive::new(Cursor::new(Shared(Arc::new(map_file(path)?))))
            .map_err(|e| bad(format!("no zip archive ({e}); files of before PyTorch 1.6 must be loaded and saved again")))?;
        let pickle = archive.file_names().find(|n| *n == "data.pkl" || n.ends_with("/data.pkl")).map(ToString::to_string);
        let pickle = pickle.ok_or_else(|| bad("the archive has no data.pkl".into()))?;
        let prefix = pickle.trim_end_matches("data.pkl").to_string();
        let [order, version] = ["byteorder", "version"].map(|name| format!("{prefix}{name}"));
        // One wrong checksum is damage; where all small entries have a wrong one, none was written.
        let small = [&pickle, &order, &version].map(|name| (archive.index_for_name(name), read_small(&mut archive, name, true)));
        let there = small.iter().filter(|(at, _)| at.is_some()).count();
        let checked = there < 2 || small.iter().any(|(_, read)| read.is_ok());
        if !checked {
            log::warn!("{}: its entries have no checksums, so that damage would not be noticed", path.display());
        }
        let text = read_small(&mut archive, &pickle, checked).map_err(bad)?;
        let views = Machine::default().run(&text).map_err(|e| bad(format!("data.pkl: {e}")))?;
        if read_small(&mut archive, &order, checked).is_ok_and(|order| order == b"big") {
            return Err(bad("numbers are big-endian".into()));
        }
        let mut places = BTreeMap::new();
        for (name, view) in views {
            let key = format!("{prefix}data/{}", view.storage.key);
            let entry = archive.index_for_name(&key).ok_or_else(|| bad(format!("tensor `{name}`: the archive has no {key}")))?;
            let dtype = view.storage.dtype;
            let size = dtype.map_or(1, |dtype| dtype.block().1);
            let expected = view.storage.elements.checked_mul(size).ok_or_else(|| bad(format!("{key} is too large")))? as u64;
            let got = archive.by_index_raw(entry).map_err(|e| bad(format!("{key}: {e}")))?.size();
            if dtype.is_some() && got != expected {
                return Err(bad(format!("{key}: expected {expected} bytes, got {got}")));
            }
            // In bounds: `end <= elements` was checked, and `elements * size` fits.
            let (shape, stride) = (view.shape.clone(), view.stride.clone());
            let place = Place { entry, start: (view.offset * size) as u64, shape, stride, dtype };
            places.insert(name.to_string(), place);
        }
        Ok(Self { path: path.into(), archive, checked, places })
    }

    /// Names and shapes; a tensor that holds no type of weights has dtype `None`.
    pub(crate) fn list(&self) -> impl Iterator<Item = (&str, &[usize], Option<Dtype>)> {
        self.places.iter().map(|(name, place)| (name.as_str(), place.shape.as_slice(), place.dtype))
    }

    pub(crate) fn read(&self, name: &str) -> Result<Tensor<'static>> {
        let bad = |problem: String| Error::bad_file(WHAT, &self.path, format!("tensor `{name}`: {problem}"), HINT);
        let place = self.places.get(name).ok_or_else(|| bad("there is none".into()))?;
        let dtype = place.dtype.ok_or_else(|| bad("not float32, float16 or bfloat16".into()))?;
        let info = TensorInfo { name: name.into(), shape: place.shape.clone(), dtype };
        let len = info.byte_len().ok_or_else(|| bad("too large".into()))?;
        let whole = is_contiguous(&place.shape, &place.stride);
        let span = if whole { Some(len) } else { span(&place.shape, &place.stride).and_then(|n| n.checked_mul(dtype.block().1)) };
        let span = span.ok_or_else(|| bad("too large".into()))?;
        let mut archive = self.archive.clone();
        let mut entry = open_entry(&mut archive, place.entry, self.checked).map_err(bad)?;
        let mut bytes = Vec::new();
        let read = io::copy(&mut entry.by_ref().take(place.start), &mut io::sink())
            .and_then(|_| bytes.try_reserve_exact(span).map_err(io::Error::other))
            .and_then(|()| entry.by_ref().take(span as u64).read_to_end(&mut bytes))
            // The checksum is compared at the end of the entry.
            .and_then(|_| io::copy(&mut entry, &mut io::sink()));
        read.map_err(|e| bad(e.to_string()))?;
        if bytes.len() != span {
            return Err(bad(format!("expected {span} bytes, got {}", bytes.len())));
        }
        if !whole && len > 0 {
            let mut dense = Vec::new();
            dense.try_reserve_exact(len).map_err(|e| bad(e.to_string()))?;
            gather(&bytes, dtype.block().1, &place.shape, &place.stride, &mut dense);
            bytes = dense;
        }
        Ok(Tensor { shape: info.shape, dtype, bytes: bytes.into() })
    }
}

/// The pickle (protocol 2) of a dictionary of tensors; tensor `i` is all of storage `i`.
fn pickle(infos: &[TensorInfo]) -> Vec<u8> {
    fn text(out: &mut Vec<u8>, s: &str) {
        out.push(b'X');
        out.extend_from_slice(&(s.len() as u32).to_le_bytes());
        out.extend_from_slice(s.as_bytes());
    }
    fn number(out: &mut Vec<u8>, n: usize) {
        out.extend_from_slice(&[0x8a, 8]); // LONG1 of 8 bytes
        out.extend_from_slice(&(n as u64).to_le_bytes());
    }
    fn tuple(out: &mut Vec<u8>, items: &[usize]) {
        out.push(b'(');
        items.iter().for_each(|&n| number(out, n));
        out.push(b't');
    }
    let mut out = vec![0x80, 2, b'}', b'('];
    for (i, info) in infos.iter().enumerate() {
        let elements: usize = info.shape.iter().product();
        let mut stride = vec![1; info.shape.len()];
        for d in (1..stride.len()).rev() {
            stride[d - 1] = stride[d] * info.shape[d];
        }
        let storage = match info.dtype {
            Dtype::F32 => "FloatStorage",
            Dtype::F16 => "HalfStorage",
            Dtype::BF16 => "BFloat16Storage",
            other => unreachable!("{other} is widened before it is written"),
        };
        text(&mut out, &info.name);
        out.extend_from_slice(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend_from_slice(format!("ctorch\n{storage}\n").as_bytes());
        text(&mut out, &i.to_string());
        text(&mut out, "cpu");
        number(&mut out, elements);
        out.extend_from_slice(b"tQK\x00"); // the storage by persistent id, from element 0
        tuple(&mut out, &info.shape);
        tuple(&mut out, &stride);
        out.extend_from_slice(b"\x89ccollections\nOrderedDict\n)RtR"); // no gradient, no hooks
    }
    out.extend_from_slice(b"u.");
    out
}

/// Writes a file that `torch.load(weights_only=True)` reads as a dictionary of tensors, one at a time.
///
/// # Errors
/// [`Error::Io`]; those of `source`.
pub fn write_pth(path: &Path, source: &dyn TensorSource) -> Result<()> {
    let file = File::create(path).map_err(Error::io("create", path))?;
    let mut zip = ZipWriter::new(BufWriter::with_capacity(1 << 20, file));
    let mut put = |name: &str, bytes: &[u8]| -> io::Result<()> {
        let large = bytes.len() as u64 >= u64::from(u32::MAX);
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        zip.start_file(format!("consolidated/{name}"), options.large_file(large).with_alignment(64)).map_err(io::Error::from)?;
        zip.write_all(bytes)
    };
    put("data.pkl", &pickle(source.list())).map_err(Error::io("write", path))?;
    put("byteorder", b"little").map_err(Error::io("write", path))?;
    for (i, info) in source.list().iter().enumerate() {
        let tensor = source.read(&info.name)?;
        put(&format!("data/{i}"), &tensor.bytes).map_err(Error::io("write", path))?;
    }
    put("version", b"3\n").map_err(Error::io("write", path))?;
    let file = zip.finish().map_err(io::Error::from).and_then(|buffer| buffer.into_inner().map_err(io::Error::from));
    file.map(drop).map_err(Error::io("write", path))
}
