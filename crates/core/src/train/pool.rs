//! What CubeCL's memory pool holds for a step whose tensors come and go in a known order (cubecl-runtime 0.10,
//! memory_management): it never gives memory back by itself, so that each part of it stands at its own peak.

use std::collections::BTreeMap;

/// Slices of at most `largest` bytes, out of pages of `page`.
struct Pages {
    largest: u64,
    page: u64,
    now: u64,
    peak: u64,
}

impl Pages {
    /// As CubeCL decides it: pages that a tensor fills by four fifths hold it too.
    fn takes(&self, bytes: u64) -> bool {
        bytes <= self.largest || (bytes <= self.page && 5 * (self.page - bytes) < self.page)
    }

    fn held(&self) -> u64 {
        self.peak.next_multiple_of(self.page)
    }
}

/// How many of one size there are, and were at most.
#[derive(Default)]
struct Count {
    now: u64,
    peak: u64,
}

/// A pool that is followed.
pub(super) struct Pool {
    /// Tensors of the very sizes that [`LlamaOps::resident`](crate::ops::LlamaOps::resident) has made, by their size: an
    /// allocation each, also of what comes later.
    resident: BTreeMap<u64, Count>,
    pages: Vec<Pages>,
}

/// A tensor begins at a multiple of this.
const ALIGNMENT: u64 = 256;

impl Pool {
    /// A pool whose largest page is `largest` bytes.
    pub(super) fn new(largest: u64) -> Self {
        const MIB: u64 = 1 << 20;
        let mut pages = vec![Pages { largest, page: largest, now: 0, peak: 0 }];
        let (mut page, mut shift) = (largest, 1);
        while page >= 32 * MIB {
            page = (page / 4).next_multiple_of(ALIGNMENT);
            pages.push(Pages { largest: page >> shift, page, now: 0, peak: 0 });
            shift += 1;
        }
        pages.reverse(); // smallest first
        pages[0].peak = 1; // there are always small things
        Self { resident: BTreeMap::new(), pages }
    }

    /// A tensor that stays for the whole run.
    pub(super) fn reside(&mut self, bytes: u64) {
        let count = self.resident.entry(bytes.next_multiple_of(ALIGNMENT)).or_default();
        count.now += 1;
        count.peak = count.peak.max(count.now);
    }

    pub(super) fn take(&mut self, bytes: u64) {
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        if self.resident.contains_key(&bytes) {
            self.reside(bytes);
        } else if let Some(pages) = self.pages.iter_mut().find(|p| p.takes(bytes)) {
            pages.now += bytes;
            pages.peak = pages.peak.max(pages.now);
        }
    }

    pub(super) fn free(&mut self, bytes: u64) {
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        if let Some(count) = self.resident.get_mut(&bytes) {
            count.now = count.now.saturating_sub(1);
        } else if let Some(pages) = self.pages.iter_mut().find(|p| p.takes(bytes)) {
            pages.now = pages.now.saturating_sub(bytes);
        }
    }

    /// Bytes that it holds at the end.
    pub(super) fn held(&self) -> u64 {
        let resident: u64 = self.resident.iter().map(|(bytes, count)| bytes * count.peak).sum();
        resident + self.pages.iter().map(Pages::held).sum::<u64>()
    }
}
