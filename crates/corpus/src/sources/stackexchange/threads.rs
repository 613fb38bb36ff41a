//! Posts to threads: a question and its answers.

use std::cmp::Reverse;
use std::collections::HashSet;

use super::{Kind, Post};

/// Orders the posts of a site so that [`Threads`] can fold them: thread by thread, the question first, then its answers
/// from the highest score to the lowest, equal ones from the oldest to the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SortKey {
    /// The question's id.
    pub thread: u64,
    /// False sorts first.
    pub is_answer: bool,
    /// As a number.
    pub score: Reverse<i64>,
    /// The post's id.
    pub id: u64,
}

impl SortKey {
    /// The key of a post.
    pub fn new(post: &Post) -> Self {
        let is_answer = post.kind == Kind::Answer;
        Self { thread: post.parent.unwrap_or(post.id), is_answer, score: Reverse(post.score), id: post.id }
    }
}

/// A question and its answers.
pub type Thread = (Post, Vec<Post>);

/// Folds posts that come in the order of [`SortKey`] to threads.
#[derive(Debug, Default)]
pub struct Threads {
    open: Option<Thread>,
    /// Bytes of the open thread, and the ids of its answers.
    bytes: usize,
    ids: HashSet<u64>,
    /// Answers without their question: it was deleted, or is in another file.
    pub orphans: u64,
    /// Answers beyond [`Threads::MAX_BYTES`].
    pub cut: u64,
    /// Posts that were there before: a dump and a part of it, or a file twice.
    pub repeated: u64,
}

impl Threads {
    /// Bytes of bodies, the question's and the answers', that a thread is held with; answers with lower scores are left out.
    pub const MAX_BYTES: usize = 64 << 20;

    /// Takes the next post; gives the thread before, if this post begins another.
    pub fn push(&mut self, post: Post) -> Option<Thread> {
        let open = self.open.as_mut();
        if post.kind == Kind::Question {
            if open.is_some_and(|(question, _)| question.id == post.id) {
                self.repeated += 1;
                return None;
            }
            self.bytes = post.body.len();
            self.ids.clear();
            return self.open.replace((post, Vec::new()));
        }
        match open.filter(|(question, _)| Some(question.id) == post.parent) {
            None => self.orphans += 1,
            Some(_) if !self.ids.insert(post.id) => self.repeated += 1,
            Some((_, answers)) => {
                self.bytes += post.body.len();
                if self.bytes <= Self::MAX_BYTES { answers.push(post) } else { self.cut += 1 }
            }
        }
        None
    }

    /// The last thread.
    pub fn finish(&mut self) -> Option<Thread> {
        self.open.take()
    }
}

/// The threads of a site that fits in memory, by the ids of the questions, and what was left out.
pub fn group(mut posts: Vec<Post>) -> (Vec<Thread>, Threads) {
    posts.sort_by_key(SortKey::new);
    let (mut fold, mut threads) = (Threads::default(), Vec::new());
    for post in posts {
        threads.extend(fold.push(post));
    }
    threads.extend(fold.finish());
    (threads, fold)
}
