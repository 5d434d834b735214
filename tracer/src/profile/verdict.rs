//! Is a site a leak? Its series and the ages of its blocks together.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::Site;
use super::collector::Collections;
use super::survival::{Births, Survival, survival};
use crate::capture::{Capture, Series};
use crate::model::Lens;
use crate::trend::{Floors, Kind, Reason, Verdict, judge};

/// Sites that are judged: of those with most bytes, most blocks and most change so many each. A verdict costs
/// milliseconds.
const JUDGED: usize = 200;
/// How far the survivors' rate may lie beyond the interval of the slope, as a part of it, to be believed.
const RATE_ROOM: f64 = 1.25;

/// What a site does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SiteKind {
    /// It grows without bound, and what is old survives.
    Leak,
    /// Not enough was seen to tell.
    Undetermined,
    /// It grew in the beginning only.
    WarmUp,
    /// It rises and falls back to a floor that is level.
    Sawtooth,
    /// It is level, or becomes less.
    Plateau,
}

impl SiteKind {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leak => "leak",
            Self::Undetermined => "undetermined",
            Self::WarmUp => "warm-up",
            Self::Sawtooth => "sawtooth",
            Self::Plateau => "plateau",
        }
    }
}

/// A verdict and what it rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteVerdict {
    /// What.
    pub kind: SiteKind,
    /// For a leak: bytes per second, by the survivors where churn hides the slope.
    pub growth_bytes_per_s: Option<f64>,
    /// Whether the ages of the blocks decided, not the series.
    pub by_survivors: bool,
    /// Whether it would be a leak, if the garbage collector that frees its blocks had been seen at work.
    pub awaits_collection: bool,
    /// What the series says.
    pub trend: Verdict,
    /// What the ages say; `None` where they are not known: unfinished recordings, earlier moments, pages.
    pub survival: Option<Survival>,
    /// When a block was freed last, in ns since the start, rounded up to the next point of the series; `None`: never.
    pub last_freed_ns: Option<u64>,
}

impl SiteVerdict {
    /// How sure: 0 to 1, of the trend's probability or the surviving part. For the order of leaks, not a probability.
    pub fn confidence(&self) -> f64 {
        if self.by_survivors {
            return self.survival.and_then(|survival| survival.surviving_part()).unwrap_or(0.0);
        }
        1.0 - self.trend.evidence.trend_p.unwrap_or(1.0).clamp(0.0, 1.0)
    }

    /// Whether the recording is too short for any verdict.
    pub fn is_too_short(&self) -> bool {
        self.kind == SiteKind::Undetermined && self.trend.reason == Reason::TooShort
    }

    /// About how much longer to watch, in seconds, where it is undetermined.
    pub fn needed_s(&self) -> Option<f64> {
        self.trend.needed_s.filter(|_| self.kind == SiteKind::Undetermined)
    }
}

/// Gives a verdict to the sites that matter and have none.
pub(super) fn judge_sites(capture: &Capture, sites: &mut [Site], collections: &Collections) {
    let chosen = chosen(capture, sites);
    let ages = Ages::of(capture);
    for index in chosen {
        let Some(site) = sites.get_mut(index).filter(|site| site.verdict.is_none()) else { continue };
        site.verdict = Some(verdict(capture, &ages, site, collections));
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

/// Births and lifetimes by site number.
struct Ages {
    is_known: bool,
    live: BTreeMap<u32, Vec<Births>>,
    freed: BTreeMap<u32, Vec<(u8, u64)>>,
}

impl Ages {
    fn of(capture: &Capture) -> Self {
        let mut live: BTreeMap<u32, Vec<Births>> = BTreeMap::new();
        for age in &capture.live_ages {
            let births = Births { born_ns: age.born_ns, count: age.count, bytes: age.bytes };
            live.entry(age.site).or_default().push(births);
        }
        let mut freed: BTreeMap<u32, Vec<(u8, u64)>> = BTreeMap::new();
        for lifetime in &capture.lifetimes {
            freed.entry(lifetime.site).or_default().push((lifetime.bucket, lifetime.count));
        }
        Self { is_known: !live.is_empty() && !freed.is_empty(), live, freed }
    }

    fn survival(&self, site: &Site, elapsed_ns: u64) -> Option<Survival> {
        // Lifetimes of mappings and pages are not kept; without any, captures from before them look like leaks.
        if site.lens != Lens::Malloc || !(self.is_known || site.counters.freed_count == 0) {
            return None;
        }
        let collect = |number: &u32| self.live.get(number).into_iter().flatten().copied();
        let live: Vec<Births> = site.numbers.iter().flat_map(collect).collect();
        let collect = |number: &u32| self.freed.get(number).into_iter().flatten().copied();
        let freed: Vec<(u8, u64)> = site.numbers.iter().flat_map(collect).collect();
        (!live.is_empty()).then(|| survival(&live, &freed, elapsed_ns))
    }
}

fn verdict(capture: &Capture, ages: &Ages, site: &Site, collections: &Collections) -> SiteVerdict {
    let series = &capture.series;
    let points: Vec<(f64, f64)> = series
        .points_ns
        .iter()
        .zip(outstanding(series, &site.numbers))
        .map(|(at_ns, bytes)| (*at_ns as f64 / 1e9, bytes as f64))
        .collect();
    let floors = if site.lens == Lens::Faults { Floors::RSS } else { Floors::EXACT };
    let trend = judge(&points, &floors);
    let survival = ages.survival(site, capture.elapsed_ns());
    let (kind, by_survivors) = decide(&trend, survival.as_ref());
    let awaits_collection = kind == SiteKind::Leak && collections.is_awaited(site);
    let kind = if awaits_collection { SiteKind::Undetermined } else { kind };
    let growth_bytes_per_s = match (kind, by_survivors) {
        (SiteKind::Leak, true) => survival.and_then(|survival| survival.growth_bytes_per_s),
        (SiteKind::Leak, false) => trend.evidence.slope,
        _ => None,
    };
    let last_freed_ns = last_freed_ns(series, &site.numbers);
    SiteVerdict { kind, growth_bytes_per_s, by_survivors, awaits_collection, trend, survival, last_freed_ns }
}

/// The verdict, and whether the ages decided.
fn decide(trend: &Verdict, survival: Option<&Survival>) -> (SiteKind, bool) {
    let by_series = match trend.kind {
        Kind::Growing | Kind::SawtoothRising => SiteKind::Leak,
        Kind::WarmUp => SiteKind::WarmUp,
        Kind::Plateau | Kind::Level | Kind::Shrinking => SiteKind::Plateau,
        Kind::SawtoothLevel => SiteKind::Sawtooth,
        Kind::Undetermined => SiteKind::Undetermined,
    };
    let Some(survival) = survival else { return (by_series, false) };
    if by_series == SiteKind::Leak {
        // What grows and frees what is old is a queue that lags behind, or a rate that rises.
        let frees_old =
            survival.settled_age_ns.is_none() && survival.surviving_part().is_some_and(|part| part < 0.5);
        return if frees_old { (SiteKind::Undetermined, true) } else { (SiteKind::Leak, false) };
    }
    let Some(rate) = survival.growth_bytes_per_s else { return (by_series, false) };
    // Growth that the series excludes is none; and one has to have looked for long enough.
    let is_possible = trend.evidence.interval.is_none_or(|(_, high)| rate <= high * RATE_ROOM);
    if is_possible && trend.reason != Reason::TooShort { (SiteKind::Leak, true) } else { (by_series, false) }
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
