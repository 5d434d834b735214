//! Memory that belongs to allocators and runtimes: shown, but no leak, and not added to anything. An arena
//! contains the blocks that are counted already.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::number::{Number, Outstanding};
use super::totals::growth;
use crate::capture::Series;
use crate::model::{AllocatorId, Lens, MemoryClass};

/// All memory of one class and label.
#[derive(Clone, Debug, PartialEq)]
pub struct SetAside {
    /// How it was observed: mappings, or resident pages.
    pub lens: Lens,
    /// What it is.
    pub class: MemoryClass,
    /// More about it: hostile input.
    pub label: Option<String>,
    /// Whose arena it is; `None` where the memory is no allocator's, or it is not known whose.
    pub allocator: Option<AllocatorId>,
    /// Bytes and mappings, or pages, that are there now.
    pub outstanding: Outstanding,
    /// Robust slope of the bytes; `None` for fewer than three samples.
    pub growth_bytes_per_s: Option<f64>,
}

/// The rows, the largest first.
pub(super) fn fold<'a>(series: &Series, numbers: impl Iterator<Item = &'a Number<'a>>) -> Vec<SetAside> {
    type Key<'a> = (Lens, MemoryClass, Option<&'a str>, Option<AllocatorId>);
    let mut rows: HashMap<Key<'_>, (Outstanding, Vec<u32>)> = HashMap::new();
    for number in numbers {
        let allocator = number.stack.and_then(|stack| stack.allocator);
        let (sum, members) = rows.entry((number.lens, number.class, number.label, allocator)).or_default();
        sum.add(number.outstanding);
        members.push(number.number);
    }
    let mut rows: Vec<_> = rows
        .into_iter()
        .map(|((lens, class, label, allocator), (outstanding, members))| SetAside {
            lens,
            class,
            label: label.map(str::to_owned),
            allocator,
            outstanding,
            growth_bytes_per_s: growth(series, &members),
        })
        .collect();
    rows.sort_by(|a, b| {
        let size = |row: &SetAside| Reverse((row.outstanding.bytes, row.outstanding.count));
        let name = |row: &SetAside| (row.class, row.allocator);
        let is_page = |row: &SetAside| row.lens == Lens::Faults;
        let first = is_page(a).cmp(&is_page(b)).then_with(|| size(a).cmp(&size(b)));
        first.then_with(|| name(a).cmp(&name(b))).then_with(|| a.label.cmp(&b.label))
    });
    rows
}
