//! Trained models as files of version 12, which fastText reads.

use std::{
    io::{self, Write},
    path::Path,
};

use super::{
    FastText, Trained,
    format::{MAGIC, SUPERVISED, VERSION},
};
use crate::{
    error::{Error, Result},
    files::Atomic,
};

/// fastText's threshold for subsampling, which supervised models have and do not use.
const SUBSAMPLING: f64 = 1e-4;
/// fastText's window for word vectors, likewise.
const WINDOW: i32 = 5;

impl Trained {
    /// Writes a `.bin` file: under a temporary name, synced, renamed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut file = Atomic::create(path)?;
        self.write(&mut file).map_err(Error::io("write", path))?;
        file.commit()
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Writing to memory does not fail.
        let _ = self.write(&mut bytes);
        bytes
    }

    /// The model, to predict with.
    ///
    /// # Errors
    /// As [`FastText::from_bytes`]; none that training does not rule out.
    pub fn into_model(self) -> Result<FastText> {
        FastText::from_bytes(self.to_bytes(), "trained model")
    }

    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let Self { options, sizes, dictionary, .. } = self;
        let int = |number: u64| number.min(i32::MAX as u64) as i32;
        let settings = [
            MAGIC,
            VERSION,
            int(options.dim as u64),
            WINDOW,
            int(options.epoch.into()),
            int(options.min_count),
            int(options.neg.into()),
            int(options.word_ngrams.into()),
            options.loss.code(),
            SUPERVISED,
            int(sizes.buckets.into()),
            int(options.minn.into()),
            int(options.maxn.into()),
            int(options.lr_update_rate.into()),
        ];
        for setting in settings {
            to.write_all(&setting.to_le_bytes())?;
        }
        to.write_all(&SUBSAMPLING.to_le_bytes())?;

        let (words, labels) = (dictionary.words(), dictionary.labels());
        for number in [words + labels, words, labels] {
            to.write_all(&number.to_le_bytes())?;
        }
        to.write_all(&self.tokens.to_le_bytes())?;
        // Not pruned.
        to.write_all(&(-1i64).to_le_bytes())?;
        for (id, count) in (0..words + labels).zip(&self.counts) {
            to.write_all(dictionary.entry(id))?;
            to.write_all(&[0])?;
            to.write_all(&count.to_le_bytes())?;
            to.write_all(&[u8::from(id >= words)])?;
        }
        for (rows, matrix) in [(words + sizes.buckets, &self.input), (labels, &self.output)] {
            // Not quantised.
            to.write_all(&[0])?;
            to.write_all(&u64::from(rows).to_le_bytes())?;
            to.write_all(&(options.dim as u64).to_le_bytes())?;
            for number in matrix {
                to.write_all(&number.to_le_bytes())?;
            }
        }
        Ok(())
    }
}
