//! The rows of a report, ranked.

use std::cmp::Reverse;

use tracer_common::abi::SiteCounters;

use super::totals::growth;
use super::{Filter, SiteKind, SiteVerdict, Sort, Variance};
use crate::capture::Series;
use crate::model::{AllocatorId, FrameId, Lens, MemoryClass, ProcessId, StackEnd};

/// All that was allocated, or mapped, by one stack.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// From 1, in the order of the filter; resident pages have ranks of their own.
    pub rank: usize,
    /// How it was observed.
    pub lens: Lens,
    /// What the memory is.
    pub class: MemoryClass,
    /// More about it: hostile input.
    pub label: Option<String>,
    /// Whose it is: one process, several where equal stacks are merged, none where the stack was lost.
    pub processes: Vec<ProcessId>,
    /// The allocator that was called; `None` for mappings, and where it is not known.
    pub allocator: Option<AllocatorId>,
    /// The kernel's site numbers that were folded into this row.
    pub numbers: Vec<u32>,
    /// Bytes that were not freed, of the age the filter asks for.
    pub outstanding_bytes: u64,
    /// Blocks or mappings that were not freed, of the age the filter asks for.
    pub outstanding_count: u64,
    /// How much of what is outstanding is resident; `None` where that was not measured, and with a minimum age.
    pub resident_bytes: Option<u64>,
    /// What the outstanding bytes and blocks vary by, where they are estimates; `None`: exact, or it is not known.
    pub variance: Option<Variance>,
    /// Robust slope of the outstanding bytes of any age; `None` for fewer than three samples.
    pub growth_bytes_per_s: Option<f64>,
    /// Whether it is a leak; `None` for sites that are too small to be judged.
    pub verdict: Option<SiteVerdict>,
    /// Totals since the start, whatever the filter.
    pub counters: SiteCounters,
    /// Why the stack ends.
    pub end: StackEnd,
    /// Innermost first; empty where the stack was lost.
    pub frames: Vec<FrameId>,
    /// Index of the first function that is not a wrapper, counted over [`super::Profile::stack`].
    pub culprit: usize,
    /// Whether this is the row of the stacks that were lost: its bytes are exact, their origin is not known.
    pub is_lost: bool,
    /// Why stacks were lost, by the names of the losses; empty for other rows.
    pub lost_by: Vec<&'static str>,
}

/// Puts the rows in order, and gives those that are kept their growth.
pub(super) fn order(sites: &mut [Site], series: &Series, filter: &Filter) {
    // The slope costs the square of the points: only for the sites that are kept, unless it ranks them.
    let kept = filter.top.filter(|_| filter.sort != Sort::Growth).unwrap_or(usize::MAX);
    if filter.sort != Sort::Growth {
        rank(sites, filter.sort);
    }
    for site in sites.iter_mut().filter(|site| site.rank <= kept) {
        site.growth_bytes_per_s = growth(series, &site.numbers);
    }
    if filter.sort == Sort::Growth {
        rank(sites, filter.sort);
    }
}

fn rank(sites: &mut [Site], sort: Sort) {
    // Ties end with the kernel's number, so that the order is the same every time.
    let rest = |site: &Site| {
        let largest = (site.outstanding_bytes, site.outstanding_count, site.counters.allocated_bytes);
        (Reverse(largest), site.numbers.first().copied())
    };
    sites.sort_by(|a, b| {
        let growth = |site: &Site| site.growth_bytes_per_s.unwrap_or(f64::NEG_INFINITY);
        let first = match sort {
            Sort::Verdict => by_verdict(a, b),
            Sort::Outstanding => std::cmp::Ordering::Equal,
            Sort::Growth => growth(b).total_cmp(&growth(a)),
            Sort::Count => b.outstanding_count.cmp(&a.outstanding_count),
        };
        let is_page = |site: &Site| site.lens == Lens::Faults;
        is_page(a).cmp(&is_page(b)).then(first).then_with(|| rest(a).cmp(&rest(b)))
    });
    let pages = sites.partition_point(|site| site.lens != Lens::Faults);
    let (others, pages) = sites.split_at_mut(pages);
    for (rank, site) in (1..).zip(others).chain((1..).zip(pages)) {
        site.rank = rank;
    }
}

/// Leaks first, the surest and fastest of them before the others.
fn by_verdict(a: &Site, b: &Site) -> std::cmp::Ordering {
    let weight = |site: &Site| {
        let leak = site.verdict.as_ref().filter(|verdict| verdict.kind == SiteKind::Leak);
        leak.map_or(-1.0, |leak| leak.confidence() * leak.growth_bytes_per_s.unwrap_or(0.0).max(0.0))
    };
    weight(b).total_cmp(&weight(a))
}
