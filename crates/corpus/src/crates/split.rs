//! What is trained on and what is held out: by hashes of names, so that a file's side does not depend on what else is there.

use std::collections::{BTreeMap, HashSet};

use xxhash_rust::xxh3::xxh3_64;

use super::files::line_end;
use super::{CorpusOptions, Doc, Summary};
use crate::error::Result;

/// A crate, or a file of a folder of the user's.
#[derive(Clone)]
pub(super) struct Member {
    /// Members of one family are on one side.
    pub(super) family: String,
    pub(super) files: Vec<Usable>,
}

/// A file that may be used.
#[derive(Clone)]
pub(super) struct Usable {
    /// A name that is the same on every machine.
    pub(super) name: String,
    /// Of its content.
    pub(super) hash: u128,
    /// The whole file, or its pieces.
    pub(super) docs: Vec<Doc>,
}

/// Training and held-out documents.
pub(super) type Split = (Vec<Doc>, Vec<Doc>);

pub(super) const OVER_LIMIT: &str = "over the limit of bytes";
pub(super) const OVER_CAP: &str = "more of one crate than wanted";

/// Holds out the families whose name's hash is below `valid_share` of all hashes, and the next ones until they are `min_held` members.
/// Of each member at most so many bytes are taken, of the training side at most `max_bytes` less what is held out; which files those
/// are, their hashes say. A file that is on both sides is held out. `None` if nothing is left to train on.
pub(super) fn split(
    mut members: Vec<Member>,
    options: &CorpusOptions,
    min_held: usize,
    summary: &mut Summary,
) -> Result<Option<Split>> {
    members.retain(|member| !member.files.is_empty());
    let mut sizes: BTreeMap<(u64, &str), usize> = BTreeMap::new();
    for member in &members {
        *sizes.entry((xxh3_64(member.family.as_bytes()), &member.family)).or_default() += 1;
    }
    let below = (options.valid_share * 2f64.powi(64)) as u64;
    let (mut held, mut count) = (HashSet::new(), 0);
    for ((hash, family), size) in &sizes {
        if *hash < below || count < min_held {
            held.insert((*family).to_string());
            count += size;
        }
    }
    if held.is_empty() || held.len() == sizes.len() || count < min_held {
        return Ok(None);
    }
    let (valid, train): (Vec<_>, Vec<_>) = members.into_iter().partition(|member| held.contains(&member.family));
    let mut seen = HashSet::new();
    let mut side = |members: Vec<Member>, cap: u64, summary: &mut Summary| -> Result<Vec<(u64, Doc)>> {
        let mut kept = Vec::new();
        for member in members {
            let mut docs = Vec::new();
            for file in member.files {
                if !seen.insert(file.hash) {
                    summary.dropped.entry("duplicate").or_default().add(file.docs.iter().map(Doc::bytes).sum());
                    continue;
                }
                let hash = xxh3_64(file.name.as_bytes());
                docs.extend(file.docs.into_iter().map(|doc| (hash, doc)));
            }
            kept.extend(take(docs, cap, OVER_CAP, summary)?);
        }
        Ok(kept)
    };
    let valid = side(valid, options.valid_cap, summary)?;
    let train = side(train, options.train_cap, summary)?;
    let held_out: u64 = valid.iter().map(|(_, doc)| doc.bytes()).sum();
    let train = take(train, options.max_bytes.saturating_sub(held_out), OVER_LIMIT, summary)?;
    let plain = |docs: Vec<(u64, Doc)>| docs.into_iter().map(|(_, doc)| doc).collect::<Vec<_>>();
    Ok(Some((plain(train), plain(valid))).filter(|(train, valid)| !train.is_empty() && !valid.is_empty()))
}

/// The first `limit` bytes of documents in the order of their hashes; the last one is cut after a line.
fn take(mut docs: Vec<(u64, Doc)>, limit: u64, reason: &'static str, summary: &mut Summary) -> Result<Vec<(u64, Doc)>> {
    docs.sort_by(|(a, x), (b, y)| (a, &x.source, &x.path, x.span.start).cmp(&(b, &y.source, &y.path, y.span.start)));
    let (mut kept, mut left) = (Vec::new(), limit);
    for (hash, doc) in docs {
        let (first, rest) = if doc.bytes() <= left { (Some(doc), None) } else { cut_at(doc, left)? };
        left = match (&first, &rest) {
            (Some(first), None) => left - first.bytes(),
            _ => 0,
        };
        kept.extend(first.map(|doc| (hash, doc)));
        if let Some(rest) = rest {
            summary.dropped.entry(reason).or_default().add(rest.bytes());
        }
    }
    Ok(kept)
}

/// A document before and after the last line that ends within its first `at` bytes.
fn cut_at(doc: Doc, at: u64) -> Result<(Option<Doc>, Option<Doc>)> {
    if at == 0 {
        return Ok((None, Some(doc)));
    }
    let end = doc.span.start + line_end(doc.text()?.as_bytes(), at as usize) as u64;
    let (first, rest) = (Doc { span: doc.span.start..end, ..doc.clone() }, Doc { span: end..doc.span.end, ..doc });
    Ok((Some(first).filter(|doc| doc.bytes() > 0), Some(rest).filter(|doc| doc.bytes() > 0)))
}

/// Holds out the last 5 % of each file, cut after a line where there is one; files up to `max_bytes`, in order of name.
pub(super) fn split_tails(members: Vec<Member>, options: &CorpusOptions, summary: &mut Summary) -> Result<Split> {
    let (mut train, mut valid, mut left) = (Vec::new(), Vec::new(), options.max_bytes);
    for file in members.into_iter().flat_map(|member| member.files) {
        let mut docs = Vec::new();
        for doc in file.docs {
            if doc.bytes() <= left {
                left -= doc.bytes();
                docs.push(doc);
            } else {
                summary.dropped.entry(OVER_LIMIT).or_default().add(doc.bytes());
            }
        }
        let bytes: u64 = docs.iter().map(Doc::bytes).sum();
        let mut head = bytes - bytes / 20;
        for doc in docs {
            if doc.bytes() <= head {
                head -= doc.bytes();
                train.push(doc);
            } else {
                let (first, rest) = cut_at(doc, head)?;
                train.extend(first);
                valid.extend(rest);
                head = 0;
            }
        }
    }
    Ok((train, valid))
}
