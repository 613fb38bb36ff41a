//! How many items of each task the training data contain: runs of words that both have (Brown et al. 2020, appendix C: 13 words).
//!
//! 1. [`Contamination::add`] takes the items' texts, 2. [`Contamination::see`] a document at a time, 3. [`Contamination::report`] counts.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Items of tasks, and which of them were seen.
#[derive(Clone, Debug)]
pub struct Contamination {
    n: usize,
    /// Run of words -> items that have it.
    runs: HashMap<u64, Vec<u32>>,
    items: Vec<Seen>,
}

#[derive(Clone, Debug)]
struct Seen {
    task: String,
    doc_id: usize,
    runs: usize,
    found: HashSet<u64>,
}

/// A task's items in the training data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// All items.
    pub items: usize,
    /// Items too short to have a run of `n` words: nothing can be said of them.
    pub too_short: usize,
    /// Items with at least one run in the training data.
    pub touched: usize,
    /// Items all of whose runs are there.
    pub whole: usize,
    /// `doc_id`s of those that are touched.
    pub doc_ids: Vec<usize>,
}

impl Contamination {
    /// For runs of `n` words.
    pub fn new(n: usize) -> Self {
        Self { n: n.max(1), runs: HashMap::new(), items: Vec::new() }
    }

    /// Takes an item: the text of question and answer.
    pub fn add(&mut self, task: &str, doc_id: usize, text: &str) {
        let at = u32::try_from(self.items.len()).unwrap_or(u32::MAX);
        let runs: HashSet<u64> = runs(text, self.n).into_iter().collect();
        for run in &runs {
            self.runs.entry(*run).or_default().push(at);
        }
        self.items.push(Seen { task: task.into(), doc_id, runs: runs.len(), found: HashSet::new() });
    }

    /// Takes a document of the training data.
    pub fn see(&mut self, document: &str) {
        for run in runs(document, self.n) {
            for item in self.runs.get(&run).into_iter().flatten() {
                if let Some(item) = self.items.get_mut(*item as usize) {
                    item.found.insert(run);
                }
            }
        }
    }

    /// The counts of each task.
    pub fn report(&self) -> BTreeMap<String, Count> {
        let mut counts: BTreeMap<String, Count> = BTreeMap::new();
        for item in &self.items {
            let count = counts.entry(item.task.clone()).or_default();
            count.items += 1;
            count.too_short += usize::from(item.runs == 0);
            if !item.found.is_empty() {
                count.touched += 1;
                count.whole += usize::from(item.found.len() == item.runs);
                count.doc_ids.push(item.doc_id);
            }
        }
        counts
    }
}

/// Hashes of all runs of `n` words: letters and digits in lower case.
fn runs(text: &str, n: usize) -> Vec<u64> {
    let lower = text.to_lowercase();
    let words: Vec<u64> = lower
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(|word| xxh3_64(word.as_bytes()))
        .collect();
    let run = |words: &[u64]| {
        words.iter().fold(0x9e37_79b9_7f4a_7c15_u64, |all, word| (all.rotate_left(23) ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd))
    };
    words.windows(n).map(run).collect()
}
