//! What models are trained on.

use std::{
    cell::{Cell, OnceCell},
    fs::File,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    rc::Rc,
};

use crate::Documents;
use crate::error::{Error, Result};

/// A line longer than this is not an example but a damaged file.
const MAX_LINE: u64 = 1 << 30;

/// A text with its label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Example<'a> {
    /// The label, without `__label__`; `None`: the text's tokens that start with `__label__` are its labels. If it is given,
    /// such tokens are left out, as in predicting.
    pub label: Option<&'a str>,
    /// One line: what comes after a line feed is not read.
    pub text: &'a str,
}

/// Examples that can be gone through several times, always in the same order. The order should be mixed: after a thousand
/// texts with one label a model has forgotten the other ones.
pub trait Examples {
    /// Hands each example to `take`, and its errors on.
    ///
    /// # Errors
    /// Those of reading, and those of `take`.
    fn visit(&self, take: &mut dyn FnMut(Example<'_>) -> Result<()>) -> Result<()>;
}

/// A file in fastText's own format: `__label__a some text`, an example a line.
#[derive(Clone, Debug)]
pub struct LabelledLines(pub PathBuf);

impl Examples for LabelledLines {
    fn visit(&self, take: &mut dyn FnMut(Example<'_>) -> Result<()>) -> Result<()> {
        let file = File::open(&self.0).map_err(Error::io("open", &self.0))?;
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        while reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(Error::io("read", &self.0))? > 0 {
            if line.len() as u64 == MAX_LINE {
                let problem = format!("expected lines of less than {MAX_LINE} bytes, got a longer one");
                return Err(Error::bad_file("file of labelled lines", &self.0, problem, "put each example on its own line"));
            }
            take(Example { label: None, text: &String::from_utf8_lossy(&line) })?;
            line.clear();
        }
        Ok(())
    }
}

/// A stream of documents.
pub type Texts<'a> = Box<dyn Iterator<Item = Result<String>> + 'a>;

/// Documents by label, each a stream that can be opened again. They are mixed evenly: wherever one stops, of each label
/// about the same share has been seen. Lines of a document are joined by spaces.
pub struct ClassDocuments<'a> {
    classes: Vec<(String, OpenTexts<'a>)>,
    /// How many documents each has, once they have been counted.
    totals: OnceCell<Vec<u64>>,
}

/// What opens a stream of documents: the same ones each time.
pub type OpenTexts<'a> = Box<dyn Fn() -> Result<Texts<'a>> + 'a>;

impl ClassDocuments<'static> {
    /// Of labels, each with the files and folders of its documents. What is left out of them is told once, in the log.
    pub fn open(classes: Vec<(String, Vec<PathBuf>)>, text_key: &str) -> Self {
        let class = |(label, paths): (String, Vec<PathBuf>)| {
            let (key, told) = (text_key.to_owned(), Rc::new(Cell::new(false)));
            let open = move || -> Result<Texts<'static>> {
                Ok(Box::new(Told { documents: Documents::open(&paths, &key)?.silent(), told: told.clone() }))
            };
            (label, Box::new(open) as OpenTexts<'static>)
        };
        Self::new(classes.into_iter().map(class).collect())
    }
}

/// Texts that say at their end, the first time, what was left out.
struct Told {
    documents: Documents,
    told: Rc<Cell<bool>>,
}

impl Iterator for Told {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.documents.next();
        if next.is_none() && !self.told.replace(true) {
            self.documents.skipped().warn();
        }
        Some(next?.map(|document| document.text))
    }
}

impl<'a> ClassDocuments<'a> {
    /// Of labels, each with what opens its documents.
    pub fn new(classes: Vec<(String, OpenTexts<'a>)>) -> Self {
        Self { classes, totals: OnceCell::new() }
    }

    fn count(&self) -> Result<Vec<u64>> {
        self.classes.iter().map(|(_, open)| open()?.try_fold(0, |total, text| text.map(|_| total + 1))).collect()
    }
}

impl Examples for ClassDocuments<'_> {
    fn visit(&self, take: &mut dyn FnMut(Example<'_>) -> Result<()>) -> Result<()> {
        let totals = match self.totals.get() {
            Some(totals) => totals,
            None => {
                let counted = self.count()?;
                self.totals.get_or_init(|| counted)
            }
        };
        let mut streams = self.classes.iter().map(|(_, open)| open()).collect::<Result<Vec<_>>>()?;
        let mut seen = vec![0u64; streams.len()];
        // The class whose next document is the most overdue: the least (seen + 1/2) / total, as products of whole numbers.
        let share = |class: usize, seen: &[u64], other: usize| u128::from(2 * seen[class] + 1) * u128::from(totals[other]);
        while let Some(class) = (0..streams.len())
            .filter(|&class| seen[class] < totals[class])
            .min_by(|&a, &b| share(a, &seen, b).cmp(&share(b, &seen, a)))
        {
            seen[class] += 1;
            // A stream that is shorter this time ends before its total.
            let Some(text) = streams[class].next() else { continue };
            take(Example { label: Some(&self.classes[class].0), text: &text?.replace('\n', " ") })?;
        }
        Ok(())
    }
}
