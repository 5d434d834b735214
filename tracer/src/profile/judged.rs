//! The verdicts of a capture's sites: what was recorded of each is collected, and judged.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Site;
use super::collector::Collections;
use super::survival::{Births, BlockAges};
use super::verdict::{Observed, SiteVerdict};
use crate::capture::{Capture, Series};
use crate::model::Lens;
use crate::trend::Floors;

/// Sites that are judged: of those with most bytes, most blocks and most change so many each. A verdict costs
/// milliseconds.
const JUDGED: usize = 200;

/// Gives a verdict to the sites that matter and have none.
pub(super) fn judge_sites(capture: &Capture, sites: &mut [Site], collections: &Collections) {
    let chosen = chosen(capture, sites);
    let ages = Ages::of(capture);
    for index in chosen {
        let Some(site) = sites.get_mut(index).filter(|site| site.verdict.is_none()) else { continue };
        let verdict = verdict(capture, &ages, site);
        site.verdict =
            Some(if collections.is_awaited(site) { verdict.awaiting_collection() } else { verdict });
    }
}

/// Indices of the sites that are judged.
fn chosen(capture: &Capture, sites: &[Site]) -> BTreeSet<usize> {
    let middle = capture.series.points_ns.len() / 2;
    let change = |site: &Site| {
        let values = outstanding(&capture.series, &site.numbers);
        let early = values.get(middle / 2).copied().unwrap_or(0);
        values.last().copied().unwrap_or(0).saturating_sub(early)
    };
    let keys: [&dyn Fn(&Site) -> u64; 3] =
        [&|site| site.outstanding_bytes, &|site| site.outstanding_count, &change];
    let held: Vec<usize> =
        (0..).zip(sites).filter(|(_, site)| site.outstanding_count > 0).map(|(at, _)| at).collect();
    let mut chosen = BTreeSet::new();
    for key in keys {
        let mut order: Vec<(Reverse<u64>, usize)> =
            held.iter().filter_map(|at| Some((Reverse(key(sites.get(*at)?)), *at))).collect();
        order.sort_unstable();
        chosen.extend(order.into_iter().take(JUDGED).map(|(_, at)| at));
    }
    chosen
}

fn outstanding(series: &Series, numbers: &[u32]) -> Vec<u64> {
    let mut sums = vec![0; series.points_ns.len()];
    numbers.iter().for_each(|number| series.add_outstanding(*number, &mut sums));
    sums
}

fn outstanding_count(series: &Series, numbers: &[u32]) -> Vec<u64> {
    let mut sums = vec![0; series.points_ns.len()];
    numbers.iter().for_each(|number| series.add_outstanding_count(*number, &mut sums));
    sums
}

/// Births and lifetimes by site number.
struct Ages {
    is_known: bool,
    live: BTreeMap<u32, Vec<Births>>,
    freed: BTreeMap<u32, Vec<(u8, u64)>>,
}

impl Ages {
    fn of(capture: &Capture) -> Self {
        let mut live: BTreeMap<u32, Vec<Births>> = BTreeMap::new();
        // What was seen is evidence, what it stands for is not: lifetimes are of the seen blocks, too.
        let seen: HashMap<(u32, u64), u64> =
            capture.sampled_ages.iter().map(|age| ((age.site, age.born_ns), age.count)).collect();
        for age in &capture.live_ages {
            let count = seen.get(&(age.site, age.born_ns)).copied().unwrap_or(age.count);
            let births = Births { born_ns: age.born_ns, count, bytes: age.bytes };
            live.entry(age.site).or_default().push(births);
        }
        let mut freed: BTreeMap<u32, Vec<(u8, u64)>> = BTreeMap::new();
        for lifetime in &capture.lifetimes {
            freed.entry(lifetime.site).or_default().push((lifetime.bucket, lifetime.count));
        }
        Self { is_known: !live.is_empty() && !freed.is_empty(), live, freed }
    }

    fn of_site(&self, site: &Site, elapsed_ns: u64) -> Option<BlockAges> {
        // Lifetimes of mappings and pages are not kept; without any, captures from before them look like leaks.
        if site.lens != Lens::Malloc || !(self.is_known || site.counters.freed_count == 0) {
            return None;
        }
        let collect = |number: &u32| self.live.get(number).into_iter().flatten().copied();
        let live: Vec<Births> = site.numbers.iter().flat_map(collect).collect();
        let collect = |number: &u32| self.freed.get(number).into_iter().flatten().copied();
        let freed: Vec<(u8, u64)> = site.numbers.iter().flat_map(collect).collect();
        (!live.is_empty()).then_some(BlockAges { live, freed, elapsed_ns })
    }
}

fn verdict(capture: &Capture, ages: &Ages, site: &Site) -> SiteVerdict {
    let series = &capture.series;
    let observed = Observed {
        points: series
            .points_ns
            .iter()
            .zip(outstanding(series, &site.numbers))
            .map(|(at_ns, bytes)| (*at_ns as f64 / 1e9, bytes as f64))
            .collect(),
        counts: outstanding_count(series, &site.numbers),
        ages: ages.of_site(site, capture.elapsed_ns()),
        last_freed_ns: last_freed_ns(series, &site.numbers),
    };
    observed.judge(if site.lens == Lens::Faults { &Floors::RSS } else { &Floors::EXACT })
}

/// The last point at which more was freed than at the one before.
fn last_freed_ns(series: &Series, numbers: &[u32]) -> Option<u64> {
    let last = |number: &u32| {
        let entries = series.sites.get(number)?;
        let mut freed_count = 0;
        let mut at = None;
        for (point, counters) in entries {
            if counters.freed_count > freed_count {
                freed_count = counters.freed_count;
                at = Some(*point);
            }
        }
        series.points_ns.get(usize::from(at?)).copied()
    };
    numbers.iter().filter_map(last).max()
}
