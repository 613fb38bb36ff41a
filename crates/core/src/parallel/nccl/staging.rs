//! Memory of the host from which and to which copies run beside everything else.

use super::library::{Called, Library};
use super::meeting::lock;
use super::shared::Shared;
use crate::parallel::comm::Buffer;

/// A block; they are kept for the next operation, since to pin one takes long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) address: usize,
    size: usize,
}

impl Shared {
    /// A block of at least so many bytes.
    pub(super) fn block(&self, bytes: usize) -> Called<Block> {
        let size = bytes.max(4096).next_power_of_two();
        let mut blocks = lock(&self.blocks);
        if let Some(i) = blocks.iter().position(|block| block.size == size) {
            return Ok(blocks.swap_remove(i));
        }
        drop(blocks);
        let library: &dyn Library = self.library.as_ref();
        Ok(Block { address: library.allocate_host(size)?, size })
    }

    /// A block that no copy reads or writes any more.
    pub(super) fn keep(&self, block: Block) {
        lock(&self.blocks).push(block);
    }
}

/// What a buffer's elements are, as numbers.
macro_rules! elements {
    ($buffer:expr, $x:ident => $do:expr) => {
        match $buffer {
            Buffer::F32($x) => $do,
            Buffer::F64($x) => $do,
            Buffer::U16($x) => $do,
            Buffer::Bytes($x) => $do,
        }
    };
}

impl Block {
    /// Writes a buffer to the block's beginning.
    pub(super) fn fill(&self, buffer: &Buffer) {
        assert!(buffer.bytes() <= self.size, "a block is as large as what is put into it");
        let to = self.address as *mut u8;
        // SAFETY: a block of this size, which is this operation's alone; plain numbers.
        elements!(buffer, x => unsafe { std::ptr::copy_nonoverlapping(x.as_ptr().cast::<u8>(), to, buffer.bytes()) });
    }

    /// The first elements of the block, of the type of `like`.
    pub(super) fn read(&self, like: &Buffer, len: usize) -> Buffer {
        fn numbers<T: Copy + Default>(from: usize, len: usize) -> Vec<T> {
            let mut numbers = vec![T::default(); len];
            // SAFETY: the caller has made sure of the size, and no copy writes there any more; any bits are numbers.
            unsafe { std::ptr::copy_nonoverlapping(from as *const u8, numbers.as_mut_ptr().cast::<u8>(), len * size_of::<T>()) };
            numbers
        }
        let element = match like {
            Buffer::F32(_) => 4,
            Buffer::F64(_) => 8,
            Buffer::U16(_) => 2,
            Buffer::Bytes(_) => 1,
        };
        assert!(len * element <= self.size, "a block is as large as what comes into it");
        match like {
            Buffer::F32(_) => Buffer::F32(numbers(self.address, len)),
            Buffer::F64(_) => Buffer::F64(numbers(self.address, len)),
            Buffer::U16(_) => Buffer::U16(numbers(self.address, len)),
            Buffer::Bytes(_) => Buffer::Bytes(numbers(self.address, len)),
        }
    }
}
