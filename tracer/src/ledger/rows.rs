//! From mappings and claims to the rows of the ledger. The sums are kept to the byte.

use std::collections::HashMap;

use super::claim::{Claims, Use, proportion, settle};
use super::context::Context;
use super::glibc::{self, Walk};
use super::pagemap::PAGE_BYTES;
use super::rest::{self, Leftover};
use super::smaps::Vma;
use crate::model::LedgerClass::{AllocatorArena, AllocatorLive, AllocatorSlack};
use crate::model::{LedgerClass, LedgerRow};

/// Rows of one class that are kept; what is smaller is summed in one.
const MAX_ROWS_PER_CLASS: usize = 200;
/// Parts of one mapping that are told apart; what lies behind counts as the largest of them.
const MAX_PARTS: usize = 1 << 16;

pub(super) const LIVE: &str = "glibc malloc";
pub(super) const WHOLE_PAGES: &str = "glibc malloc, whole free pages";
pub(super) const BETWEEN: &str = "glibc malloc, free between blocks";

/// A part of a mapping: what it is, and its sums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    what: Use,
    size_bytes: u64,
    rss_bytes: u64,
    pss_bytes: u64,
    swap_bytes: u64,
}

/// Divides every mapping.
pub(super) fn parts(
    context: &mut Context<'_>,
    vmas: &[Vma],
    claims: &Claims,
    leftover: Leftover,
    gaps: &mut Vec<String>,
) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut undivided_bytes = 0u64;
    for vma in vmas {
        let divided = claims.divide(vma.entry.start, vma.entry.end);
        let uses: Vec<(u64, u64, Use)> = divided
            .into_iter()
            .map(|(start, end, what)| {
                (start, end, what.cloned().unwrap_or_else(|| rest::what(&vma.entry, leftover)))
            })
            .collect();
        parts.extend(divide(context, vma, uses, &mut undivided_bytes));
    }
    if undivided_bytes > 0 && context.pagemap.is_some() {
        gaps.push(format!(
            "{undivided_bytes} bytes could not be divided by pages: they count as their mapping's largest use"
        ));
    }
    parts
}

/// Divides one mapping's sums among its uses.
fn divide(
    context: &mut Context<'_>,
    vma: &Vma,
    mut uses: Vec<(u64, u64, Use)>,
    undivided_bytes: &mut u64,
) -> Vec<Part> {
    if uses.len() > MAX_PARTS {
        *undivided_bytes += vma.rss_bytes;
        uses.truncate(1);
        if let Some(only) = uses.first_mut() {
            only.1 = vma.entry.end;
        }
    }
    let sizes: Vec<u64> = uses.iter().map(|(start, end, _)| end - start).collect();
    let is_resident = vma.rss_bytes > 0 || vma.swap_bytes > 0;
    let mut measured: Option<Vec<(u64, u64)>> = None;
    if uses.len() > 1 && is_resident {
        measured = uses.iter().map(|(start, end, _)| pages(context, *start, *end)).collect();
    }
    let (rss, swap) = match (measured, uses.len()) {
        (Some(measured), _) => {
            let (rss, swap): (Vec<u64>, Vec<u64>) = measured.into_iter().unzip();
            (settle(vma.rss_bytes, &rss, &sizes), settle(vma.swap_bytes, &swap, &sizes))
        }
        (None, count) => {
            if count > 1 && is_resident {
                *undivided_bytes += vma.rss_bytes;
            }
            let none = vec![0; count];
            (settle_largest(vma.rss_bytes, &none, &sizes), settle_largest(vma.swap_bytes, &none, &sizes))
        }
    };
    // Who shares which pages is not known: the shares follow what is resident.
    let pss = proportion(vma.pss_bytes, &rss);
    let sums = sizes.into_iter().zip(rss).zip(pss).zip(swap);
    uses.into_iter()
        .zip(sums)
        .map(|((_, _, what), (((size_bytes, rss_bytes), pss_bytes), swap_bytes))| Part {
            what,
            size_bytes,
            rss_bytes,
            pss_bytes,
            swap_bytes,
        })
        .collect()
}

/// Everything to the largest part, as far as it has room.
fn settle_largest(total: u64, measured: &[u64], sizes: &[u64]) -> Vec<u64> {
    let largest = sizes.iter().enumerate().max_by_key(|(_, size)| **size).map(|(index, _)| index);
    let mut shares = measured.to_vec();
    if let Some((share, size)) = largest.and_then(|index| Some((shares.get_mut(index)?, sizes.get(index)?))) {
        *share = total.min(*size);
    }
    settle(total, &shares, sizes)
}

/// Resident and swapped bytes of a range, by pages.
fn pages(context: &mut Context<'_>, start: u64, end: u64) -> Option<(u64, u64)> {
    let presence = context.presence(start, end)?;
    let resident = presence.bytes_in(start, end);
    Some((resident, presence.swapped_count * PAGE_BYTES))
}

/// Sums parts of one use; divides glibc's arenas by what a walk has found; largest first within a class.
pub(super) fn rows(parts: Vec<Part>, walk: Option<&Walk>) -> Vec<LedgerRow> {
    let mut by_use: HashMap<Use, LedgerRow> = HashMap::new();
    for part in parts {
        let row = by_use.entry(part.what).or_insert_with_key(empty);
        row.mapping_count += 1;
        row.size_bytes += part.size_bytes;
        row.rss_bytes += part.rss_bytes;
        row.pss_bytes = row.pss_bytes.map(|sum| sum + part.pss_bytes);
        row.swap_bytes += part.swap_bytes;
    }
    let mut rows: Vec<LedgerRow> = by_use.into_values().collect();
    if let Some(walk) = walk {
        rows = split_arenas(rows, walk);
    }
    rows.sort_by(|a, b| {
        (a.class, std::cmp::Reverse(a.rss_bytes), &a.label).cmp(&(
            b.class,
            std::cmp::Reverse(b.rss_bytes),
            &b.label,
        ))
    });
    bounded(rows)
}

fn empty(what: &Use) -> LedgerRow {
    let label = (!what.label.is_empty()).then(|| what.label.to_string());
    LedgerRow {
        class: what.class,
        label,
        mapping_count: 0,
        size_bytes: 0,
        rss_bytes: 0,
        pss_bytes: Some(0),
        swap_bytes: 0,
    }
}

/// Adds the sums of a row to another.
fn add(to: &mut LedgerRow, row: &LedgerRow) {
    to.mapping_count += row.mapping_count;
    to.size_bytes += row.size_bytes;
    to.rss_bytes += row.rss_bytes;
    to.pss_bytes = to.pss_bytes.zip(row.pss_bytes).map(|(a, b)| a + b);
    to.swap_bytes += row.swap_bytes;
}

/// Divides the row of the arenas that were walked: what is free and resident, by whole pages and between blocks, and the
/// rest, which is in use.
fn split_arenas(rows: Vec<LedgerRow>, walk: &Walk) -> Vec<LedgerRow> {
    let is_walked = |row: &LedgerRow| {
        row.class == AllocatorArena
            && row.label.as_deref().is_some_and(|label| [glibc::MAIN, glibc::THREADS].contains(&label))
    };
    let (arenas, mut rows): (Vec<LedgerRow>, Vec<LedgerRow>) = rows.into_iter().partition(is_walked);
    let mut live = empty(&Use::new(AllocatorLive, LIVE));
    for arena in &arenas {
        add(&mut live, arena);
    }
    if arenas.is_empty() {
        return rows;
    }
    let cached = walk.cached_bytes;
    for (label, free_bytes) in [(WHOLE_PAGES, walk.trimmable_bytes), (BETWEEN, walk.between_bytes + cached)] {
        let taken = free_bytes.min(live.rss_bytes);
        let pss =
            live.pss_bytes.map(|pss| u128::from(pss) * u128::from(taken) / u128::from(live.rss_bytes.max(1)));
        let pss = pss.and_then(|pss| u64::try_from(pss).ok());
        live.rss_bytes -= taken;
        live.size_bytes = live.size_bytes.saturating_sub(taken);
        live.pss_bytes = live.pss_bytes.zip(pss).map(|(live, taken)| live - taken);
        rows.push(LedgerRow {
            mapping_count: live.mapping_count,
            size_bytes: taken,
            rss_bytes: taken,
            pss_bytes: pss,
            ..empty(&Use::new(AllocatorSlack, label))
        });
    }
    rows.push(live);
    rows
}

/// Sums the smallest rows of a class that has too many.
fn bounded(rows: Vec<LedgerRow>) -> Vec<LedgerRow> {
    let mut bounded: Vec<LedgerRow> = Vec::new();
    let mut count = 0;
    let mut class: Option<LedgerClass> = None;
    for row in rows {
        count = if class == Some(row.class) { count + 1 } else { 1 };
        class = Some(row.class);
        match bounded.last_mut() {
            Some(last) if count == MAX_ROWS_PER_CLASS + 1 => {
                let rest = Use::new(row.class, "all others of this class");
                let _ = last;
                bounded.push(LedgerRow { ..empty(&rest) });
                if let Some(rest) = bounded.last_mut() {
                    add(rest, &row);
                }
            }
            Some(last) if count > MAX_ROWS_PER_CLASS => add(last, &row),
            _ => bounded.push(row),
        }
    }
    bounded
}
