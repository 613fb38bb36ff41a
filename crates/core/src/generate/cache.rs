//! Blocks of the KV cache: who holds them, which can be used again. The tensors are the runner's; here they are numbers.
//!
//! A full block is known by the hash of its tokens and of all before it: a later request that begins alike shares it. A block that
//! nobody holds any more keeps its content until it is needed, the least recently used first.

use std::collections::{BTreeMap, HashMap};

use xxhash_rust::xxh3::xxh3_128;

use crate::ops::KV_BLOCK;

/// Hash of a full block and all before it.
pub(super) type BlockHash = u128;

/// The hash of a block of `tokens` after `parent`.
pub(super) fn block_hash(parent: Option<BlockHash>, tokens: &[u32]) -> BlockHash {
    let mut bytes = Vec::with_capacity(16 + 4 * tokens.len());
    bytes.extend(parent.unwrap_or(0).to_le_bytes());
    bytes.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
    xxh3_128(&bytes)
}

/// What a full block holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Content {
    hash: BlockHash,
    parent: Option<BlockHash>,
    tokens: [u32; KV_BLOCK],
}

#[derive(Clone, Debug, Default)]
struct Block {
    holders: u32,
    content: Option<Content>,
    /// When it was given back; its key in `idle`.
    idle_since: u64,
}

/// All blocks of an engine.
#[derive(Debug)]
pub(super) struct BlockPool {
    blocks: Vec<Block>,
    /// Without content.
    empty: Vec<u32>,
    /// With content that nobody holds, by when they were given back.
    idle: BTreeMap<u64, u32>,
    known: HashMap<BlockHash, u32>,
    clock: u64,
    reuse: bool,
}

impl BlockPool {
    pub(super) fn new(blocks: usize, reuse: bool) -> Self {
        Self {
            blocks: vec![Block::default(); blocks],
            empty: (0..blocks as u32).rev().collect(),
            idle: BTreeMap::new(),
            known: HashMap::new(),
            clock: 0,
            reuse,
        }
    }

    /// All blocks.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody holds.
    pub(super) fn free(&self) -> usize {
        self.empty.len() + self.idle.len()
    }

    /// How many of these nobody holds.
    pub(super) fn idle_among(&self, blocks: &[u32]) -> usize {
        blocks.iter().filter(|&&b| self.blocks[b as usize].holders == 0).count()
    }

    /// A block to write to, held once.
    pub(super) fn allocate(&mut self) -> Option<u32> {
        let block = match self.empty.pop() {
            Some(block) => block,
            None => {
                let (_, block) = self.idle.pop_first()?;
                self.forget(block);
                block
            }
        };
        self.blocks[block as usize].holders = 1;
        Some(block)
    }

    /// One holder more.
    pub(super) fn share(&mut self, block: u32) {
        let b = &mut self.blocks[block as usize];
        if b.holders == 0 {
            self.idle.remove(&b.idle_since);
        }
        b.holders += 1;
    }

    /// Whether somebody else holds it too, or may find it: then it is not written to. (A fork can come to hold a block alone that the
    /// continuation beside it had filled up.)
    pub(super) fn is_shared(&self, block: u32) -> bool {
        let block = &self.blocks[block as usize];
        block.holders > 1 || block.content.is_some()
    }

    /// One holder less.
    pub(super) fn release(&mut self, block: u32) {
        let b = &mut self.blocks[block as usize];
        b.holders -= 1;
        if b.holders > 0 {
            return;
        }
        if b.content.is_some() {
            self.clock += 1;
            b.idle_since = self.clock;
            self.idle.insert(self.clock, block);
        } else {
            self.empty.push(block);
        }
    }

    /// The blocks of a sequence given back: of what is kept, the end goes before the beginning.
    pub(super) fn release_all(&mut self, blocks: &mut Vec<u32>) {
        while let Some(block) = blocks.pop() {
            self.release(block);
        }
    }

    /// The block with these tokens after `parent`, if there is one.
    pub(super) fn find(&self, hash: BlockHash, parent: Option<BlockHash>, tokens: &[u32]) -> Option<u32> {
        let block = *self.known.get(&hash)?;
        let content = self.blocks[block as usize].content.as_ref()?;
        (content.parent == parent && content.tokens == tokens).then_some(block)
    }

    /// A held block is full: from now on it can be found. (Where its like is known already, that one stays.)
    pub(super) fn fill(&mut self, block: u32, hash: BlockHash, parent: Option<BlockHash>, tokens: &[u32]) {
        if !self.reuse || self.known.contains_key(&hash) {
            return;
        }
        let Ok(tokens) = tokens.try_into() else { return };
        self.known.insert(hash, block);
        self.blocks[block as usize].content = Some(Content { hash, parent, tokens });
    }

    fn forget(&mut self, block: u32) {
        if let Some(content) = self.blocks[block as usize].content.take() {
            self.known.remove(&content.hash);
        }
    }
}
