//! Posts of question-and-answer sites, on their way to threads.

use std::{path::Path, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanBuilder, Int64Builder, LargeStringBuilder, RecordBatch, StringBuilder, UInt64Builder,
    },
    datatypes::{DataType, Int64Type, Schema, SchemaRef, UInt64Type},
};

use super::{atomic::Pending, shuffle::field, table::ColumnWriter};
use crate::error::{Error, Result};

/// A question or an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Post {
    /// The number of the question.
    pub thread: u64,
    /// Whether it is an answer.
    pub answer: bool,
    /// Votes up minus votes down.
    pub score: i64,
    /// Its own number.
    pub post: u64,
    /// The text.
    pub text: String,
    /// What is known of it, as a JSON object.
    pub meta: String,
}

/// Rows on their way into a batch.
const ROWS: usize = 1024;
const BYTES: usize = 1 << 20;
/// The longest text or metadata of a post. Sites allow some 30,000 characters; a sort has to hold many.
const MAX_VALUE: usize = 16 << 20;

pub(super) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        field("thread", DataType::UInt64),
        field("answer", DataType::Boolean),
        field("score", DataType::Int64),
        field("post", DataType::UInt64),
        field("text", DataType::LargeUtf8),
        field("meta", DataType::Utf8),
    ]))
}

/// Writes the input of [`Shuffle::threads`](super::Shuffle::threads).
pub struct PostWriter {
    out: ColumnWriter,
    thread: UInt64Builder,
    answer: BooleanBuilder,
    score: Int64Builder,
    post: UInt64Builder,
    text: LargeStringBuilder,
    meta: StringBuilder,
    rows: usize,
    bytes: usize,
}

impl PostWriter {
    /// Starts a file.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder is not there or cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self {
            out: ColumnWriter::create(path.as_ref(), schema())?,
            thread: Default::default(),
            answer: Default::default(),
            score: Default::default(),
            post: Default::default(),
            text: Default::default(),
            meta: Default::default(),
            rows: 0,
            bytes: 0,
        })
    }

    /// Appends a post.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk is full, [`Error::BadValue`] for a text or metadata of more than 16 MiB.
    pub fn push(&mut self, post: &Post) -> Result<()> {
        let longest = post.text.len().max(post.meta.len());
        if longest > MAX_VALUE {
            let problem = format!("expected at most {MAX_VALUE} bytes of text, got {longest}");
            return Err(Error::bad_value(format!("post {}", post.post), problem, "reject the post"));
        }
        self.thread.append_value(post.thread);
        self.answer.append_value(post.answer);
        self.score.append_value(post.score);
        self.post.append_value(post.post);
        self.text.append_value(&post.text);
        self.meta.append_value(&post.meta);
        self.rows += 1;
        self.bytes += post.text.len() + post.meta.len() + 40;
        if self.rows == ROWS || self.bytes >= BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.thread.finish()),
            Arc::new(self.answer.finish()),
            Arc::new(self.score.finish()),
            Arc::new(self.post.finish()),
            Arc::new(self.text.finish()),
            Arc::new(self.meta.finish()),
        ];
        self.rows = 0;
        self.out.write(columns, std::mem::take(&mut self.bytes))
    }

    /// Brings the file to the disk; for [`Output::add`](super::Output::add) or [`Pending::publish`].
    ///
    /// # Errors
    /// [`Error::Io`] if the disk is full.
    pub fn finish(mut self) -> Result<Pending> {
        self.flush()?;
        let rows = self.out.rows();
        Ok(Pending { sealed: self.out.seal()?, rows })
    }
}

/// The posts of a batch that a plan gave.
pub(super) fn posts_of(batch: &RecordBatch) -> Result<impl Iterator<Item = Post>> {
    let types = batch.columns().iter().map(|c| c.data_type());
    if !types.eq(schema().fields().iter().map(|f| f.data_type())) || batch.columns().iter().any(|c| c.null_count() > 0) {
        let problem = format!("unexpected columns from a plan: {}", batch.schema());
        return Err(Error::internal("shuffle", problem));
    }
    let column = |i: usize| batch.column(i);
    let (thread, post) = (column(0).as_primitive::<UInt64Type>().clone(), column(3).as_primitive::<UInt64Type>().clone());
    let (answer, score) = (column(1).as_boolean().clone(), column(2).as_primitive::<Int64Type>().clone());
    let (text, meta) = (column(4).as_string::<i64>().clone(), column(5).as_string::<i32>().clone());
    Ok((0..batch.num_rows()).map(move |row| Post {
        thread: thread.value(row),
        answer: answer.value(row),
        score: score.value(row),
        post: post.value(row),
        text: text.value(row).to_owned(),
        meta: meta.value(row).to_owned(),
    }))
}
