//! The shuffles as plans. They say what, not where: the same plan runs in this process or on a Ballista cluster.
//!
//! No plan has a window function, which would hold a whole partition in memory, nor a hash join, which cannot spill: they
//! group, sort, and join sorted inputs. Every result is sorted by all its columns, so that it depends neither on threads nor
//! on who computed it.

use datafusion::{
    common::Result,
    dataframe::DataFrame,
    functions_aggregate::expr_fn::{count, first_value, max, min},
    logical_expr::{Expr, JoinType, SortExpr, ident, lit, not},
};

use super::{hashes::Hashes, shuffle::Duplicates};

fn ascending(columns: &[&str]) -> Vec<SortExpr> {
    columns.iter().map(|c| ident(*c).sort(true, false)).collect()
}

fn columns(names: &[&str]) -> Vec<Expr> {
    names.iter().map(|n| ident(*n)).collect()
}

/// Groups of equal keys over several documents, with the document that wins: `g_hash` (`g_hash_low`), `first`, `n`.
fn groups(once: DataFrame, hashes: Hashes, winner: Expr) -> Result<DataFrame> {
    let keys = columns(hashes.keys());
    let renamed = hashes.keys().iter().map(|k| ident(*k).alias(format!("g_{k}")));
    let selected = renamed.chain(columns(&["first", "n"])).collect::<Vec<_>>();
    once.aggregate(keys, vec![winner.alias("first"), count(lit(1_i64)).alias("n")])?
        .filter(ident("n").gt(lit(1_i64)))?
        .select(selected)
}

fn joined(once: DataFrame, groups: DataFrame, hashes: Hashes, kind: JoinType) -> Result<DataFrame> {
    let group_keys: Vec<_> = hashes.keys().iter().map(|k| format!("g_{k}")).collect();
    let group_keys: Vec<_> = group_keys.iter().map(String::as_str).collect();
    once.join(groups, kind, hashes.keys(), &group_keys, None)
}

/// Hashes to the (doc, line) that go.
pub(super) fn duplicates(table: DataFrame, hashes: Hashes, rule: Duplicates) -> Result<DataFrame> {
    // What was there before in the same document goes under every rule, and does not count as another document's.
    let repeats = table.clone().filter(ident("repeat"))?.select(columns(&["doc", "line"]))?;
    let once = table.filter(not(ident("repeat")))?;
    let winner = match rule {
        Duplicates::Everywhere | Duplicates::KeepFirst => min(ident("doc")),
        Duplicates::KeepLowestRank => first_value(ident("doc"), ascending(&["rank", "doc"])),
    };
    let groups = groups(once.clone(), hashes, winner)?;
    let across = match rule {
        Duplicates::Everywhere => joined(once, groups, hashes, JoinType::LeftSemi)?,
        Duplicates::KeepFirst | Duplicates::KeepLowestRank => {
            joined(once, groups, hashes, JoinType::Inner)?.filter(ident("doc").not_eq(ident("first")))?
        }
    };
    across.select(columns(&["doc", "line"]))?.union(repeats)?.sort(ascending(&["doc", "line"]))
}

/// Hashes to pairs (doc, other): in every group of equal keys, the first document with each of the others.
pub(super) fn pairs(table: DataFrame, hashes: Hashes) -> Result<DataFrame> {
    let once = table.filter(not(ident("repeat")))?;
    let groups = groups(once.clone(), hashes, min(ident("doc")))?;
    joined(once, groups, hashes, JoinType::Inner)?
        .filter(ident("doc").not_eq(ident("first")))?
        .select(vec![ident("first").alias("doc"), ident("doc").alias("other")])?
        .distinct()?
        .sort(ascending(&["doc", "other"]))
}

/// Hashes to (doc, other, shared): how many keys two documents share, keys of more than `max_docs` documents left out.
pub(super) fn overlaps(table: DataFrame, hashes: Hashes, max_docs: i64, min_shared: i64) -> Result<DataFrame> {
    let once = table.filter(not(ident("repeat")))?;
    let rare = groups(once.clone(), hashes, max(ident("doc")))?.filter(ident("n").lt_eq(lit(max_docs)))?;
    let shared = joined(once, rare, hashes, JoinType::LeftSemi)?;
    let renamed = hashes.keys().iter().map(|k| ident(*k).alias(format!("g_{k}")));
    let others = shared.clone().select(std::iter::once(ident("doc").alias("other")).chain(renamed).collect::<Vec<_>>())?;
    joined(shared, others, hashes, JoinType::Inner)?
        .filter(ident("doc").lt(ident("other")))?
        .aggregate(columns(&["doc", "other"]), vec![count(lit(1_i64)).alias("shared")])?
        .filter(ident("shared").gt_eq(lit(min_shared)))?
        .sort(ascending(&["doc", "other"]))
}

/// Rows in the order of their keys.
pub(super) fn sort(table: DataFrame, keys: &[String]) -> Result<DataFrame> {
    table.sort(ascending(&keys.iter().map(String::as_str).collect::<Vec<_>>()))
}
