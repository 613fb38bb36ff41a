//! Text of a given form: which tokens may come next.

use std::fmt::Debug;

use crate::error::Result;

/// Tokens as bits: bit `i % 32` of word `i / 32` is token `i`.
pub type TokenSet = [u32];

/// Which tokens may come next in one continuation. The engine asks before each token and tells which was taken.
pub trait TokenMask: Debug + Send {
    /// Sets the bits of the tokens that may come next, of words that are zero. None set: the text is whole and ends. Where it may end
    /// or go on, the bits of the tokens that end it are set beside the others; the mask is made with these.
    ///
    /// # Errors
    /// Whatever keeps it from saying; the request then fails.
    fn allowed(&mut self, set: &mut TokenSet) -> Result<()>;

    /// A token was taken.
    ///
    /// # Errors
    /// As [`TokenMask::allowed`].
    fn take(&mut self, token: u32) -> Result<()>;
}
