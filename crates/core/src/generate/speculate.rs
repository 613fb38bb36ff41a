//! Drafts from a text's own tokens.

/// Temporary.
#[derive(Clone, Debug, Default)]
pub struct Drafter {
    tokens: Vec<u32>,
}

impl Drafter {
    pub(super) fn push(&mut self, token: u32) {
        self.tokens.push(token);
    }

    pub(super) fn draft(&self, k: usize) -> Vec<u32> {
        let n = self.tokens.len();
        for len in (2..=8usize.min(n.saturating_sub(1))).rev() {
            let suffix = &self.tokens[n - len..];
            if let Some(at) = (0..n - len).rev().find(|&i| &self.tokens[i..i + len] == suffix) {
                return self.tokens[at + len..].iter().copied().take(k).collect();
            }
        }
        Vec::new()
    }
}
