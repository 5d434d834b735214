//! Folds the kernel's sites into one row per stack, ranked.

use std::cmp::Reverse;
use std::collections::HashMap;

use tracer_common::abi::{Loss, SITE_LOST, SiteCounters};

use super::frame::expand;
use super::{Filter, ProfileError, Sort, is_wrapper, theil_sen};
use crate::capture::Capture;
use crate::model::{FrameId, Lens, LiveAge, ProcessId, Stack, StackEnd};

/// Losses whose bytes are booked on the row of lost stacks.
const STACK_LOSSES: [Loss; 4] =
    [Loss::StackMapFull, Loss::SiteMapFull, Loss::StackRingFull, Loss::NoScratchSlot];

/// All that was allocated by one stack.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// From 1, in the order of the filter.
    pub rank: usize,
    /// How it was observed.
    pub lens: Lens,
    /// The kernel's site numbers that were folded into this row.
    pub numbers: Vec<u32>,
    /// Bytes that were not freed, of the age the filter asks for.
    pub outstanding_bytes: u64,
    /// Blocks that were not freed, of the age the filter asks for.
    pub outstanding_count: u64,
    /// Robust slope of the outstanding bytes of any age; `None` for fewer than three samples.
    pub growth_bytes_per_s: Option<f64>,
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

/// Sums over all sites.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Rows.
    pub sites: usize,
    /// Rows with something outstanding.
    pub sites_outstanding: usize,
    /// Bytes that were not freed, of the age the filter asks for.
    pub outstanding_bytes: u64,
    /// Blocks that were not freed, of the age the filter asks for.
    pub outstanding_count: u64,
    /// Robust slope of the sum; `None` for fewer than three samples.
    pub growth_bytes_per_s: Option<f64>,
    /// Totals since the start.
    pub counters: SiteCounters,
}

/// What makes two frames the same, whatever the address their object was mapped at.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Place<'a> {
    InObject { path: &'a str, build_id: Option<&'a str>, offset: u64 },
    AtAddress { address: u64, function: Option<&'a str> },
}

/// What makes two sites the same.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Identity {
    Stack { lens: Lens, process: ProcessId, places: Vec<u32>, end: StackEnd },
    Lost,
}

pub(super) fn fold(
    capture: &Capture,
    filter: &Filter,
    elapsed_ns: u64,
) -> Result<(Vec<Site>, Totals), ProfileError> {
    let mut sites = merge(capture);
    let aged = filter.min_age_ns.map(|age_ns| aged(capture, age_ns, elapsed_ns)).transpose()?;
    let points_s: Vec<f64> = capture.series.points_ns.iter().map(|ns| *ns as f64 / 1e9).collect();
    let mut totals = Totals { sites: sites.len(), ..Totals::default() };
    let mut total_bytes = vec![0u64; points_s.len()];
    for site in &mut sites {
        for number in &site.numbers {
            add(&mut site.counters, &capture.series.last(*number));
            capture.series.add_outstanding(*number, &mut total_bytes);
        }
        (site.outstanding_bytes, site.outstanding_count) = match &aged {
            Some(aged) => site.numbers.iter().filter_map(|number| aged.get(number)).fold(
                (0, 0),
                |sum: (u64, u64), (bytes, count)| {
                    (sum.0.saturating_add(*bytes), sum.1.saturating_add(*count))
                },
            ),
            None => (
                site.counters.allocated_bytes.saturating_sub(site.counters.freed_bytes),
                site.counters.allocated_count.saturating_sub(site.counters.freed_count),
            ),
        };
        totals.sites_outstanding += usize::from(site.outstanding_count > 0);
        totals.outstanding_bytes = totals.outstanding_bytes.saturating_add(site.outstanding_bytes);
        totals.outstanding_count = totals.outstanding_count.saturating_add(site.outstanding_count);
        add(&mut totals.counters, &site.counters);
    }
    totals.growth_bytes_per_s = slope(&points_s, &total_bytes);
    // The slope costs the square of the points: only for the sites that are kept, unless it ranks them.
    let kept = filter.top.filter(|_| filter.sort != Sort::Growth).unwrap_or(usize::MAX);
    if filter.sort != Sort::Growth {
        rank(&mut sites, filter.sort);
    }
    for site in sites.iter_mut().take(kept) {
        let mut outstanding_bytes = vec![0u64; points_s.len()];
        for number in &site.numbers {
            capture.series.add_outstanding(*number, &mut outstanding_bytes);
        }
        site.growth_bytes_per_s = slope(&points_s, &outstanding_bytes);
    }
    if filter.sort == Sort::Growth {
        rank(&mut sites, filter.sort);
    }
    Ok((sites, totals))
}

/// One row per stack, without numbers. Sites without a stack go to the row of the lost ones.
fn merge(capture: &Capture) -> Vec<Site> {
    let stacks: HashMap<u32, &Stack> = capture.stacks.iter().map(|stack| (stack.site, stack)).collect();
    let mut places: HashMap<Place<'_>, u32> = HashMap::new();
    let mut rows: HashMap<Identity, usize> = HashMap::new();
    let mut sites: Vec<Site> = Vec::new();
    let without_samples = capture.stacks.iter().map(|stack| stack.site);
    let mut numbers: Vec<u32> = capture.series.sites.keys().copied().chain(without_samples).collect();
    numbers.sort_unstable();
    numbers.dedup();
    for number in numbers {
        let known = stacks.get(&number).filter(|_| number != SITE_LOST);
        let identity = match known {
            Some(stack) => {
                let places = stack.frames.iter().map(|frame| {
                    let next = places.len() as u32;
                    *places.entry(place(capture, *frame)).or_insert(next)
                });
                let places = places.collect();
                Identity::Stack { lens: stack.lens, process: stack.process, places, end: stack.end }
            }
            None => Identity::Lost,
        };
        let index = *rows.entry(identity).or_insert(sites.len());
        match sites.get_mut(index) {
            Some(site) => site.numbers.push(number),
            None => sites.push(row(capture, number, known.copied())),
        }
    }
    sites
}

fn place(capture: &Capture, frame: FrameId) -> Place<'_> {
    let Some(frame) = capture.frames.get(&frame) else {
        return Place::AtAddress { address: 0, function: None };
    };
    match (frame.object.and_then(|object| capture.objects.get(&object)), frame.file_offset) {
        (Some(object), Some(offset)) => {
            Place::InObject { path: &object.path, build_id: object.build_id.as_deref(), offset }
        }
        // Code made at run time may be replaced by other code at the same address.
        _ => Place::AtAddress {
            address: frame.address,
            function: frame.locations.first().and_then(|location| location.function.as_deref()),
        },
    }
}

fn row(capture: &Capture, number: u32, known: Option<&Stack>) -> Site {
    let frames = known.map(|stack| stack.frames.clone()).unwrap_or_default();
    let culprit = expand(&frames, &capture.frames, &capture.objects)
        .position(|frame| !frame.location.function.as_deref().is_some_and(is_wrapper))
        .unwrap_or(0);
    let is_stack_loss =
        |loss: &&Loss| capture.losses.iter().any(|tally| tally.count > 0 && tally.reason == loss.name());
    let lost_by = STACK_LOSSES.iter().filter(is_stack_loss).map(|loss| loss.name());
    Site {
        rank: 0,
        lens: known.map_or(Lens::Malloc, |stack| stack.lens),
        numbers: vec![number],
        outstanding_bytes: 0,
        outstanding_count: 0,
        growth_bytes_per_s: None,
        counters: SiteCounters::default(),
        end: known.map_or(StackEnd::NotKept, |stack| stack.end),
        frames,
        culprit,
        is_lost: known.is_none(),
        lost_by: if known.is_none() { lost_by.collect() } else { Vec::new() },
    }
}

/// Bytes and blocks by site that are surely at least `min_age_ns` old: births are known to the width of
/// a bucket, and a bucket that reaches into the forbidden time is left out.
fn aged(
    capture: &Capture,
    min_age_ns: u64,
    elapsed_ns: u64,
) -> Result<HashMap<u32, (u64, u64)>, ProfileError> {
    let has_outstanding = capture
        .series
        .sites
        .values()
        .filter_map(|entries| entries.last())
        .any(|(_, counters)| counters.allocated_count > counters.freed_count);
    if capture.live_ages.is_empty() && has_outstanding {
        return Err(ProfileError::NoAges);
    }
    let mut aged: HashMap<u32, (u64, u64)> = HashMap::new();
    for age in &capture.live_ages {
        let youngest_ns = age.born_ns.saturating_add(LiveAge::RESOLUTION_NS);
        if youngest_ns.saturating_add(min_age_ns) <= elapsed_ns {
            let (bytes, count) = aged.entry(age.site).or_default();
            *bytes = bytes.saturating_add(age.bytes);
            *count = count.saturating_add(age.count);
        }
    }
    Ok(aged)
}

fn add(sum: &mut SiteCounters, counters: &SiteCounters) {
    sum.allocated_bytes = sum.allocated_bytes.saturating_add(counters.allocated_bytes);
    sum.allocated_count = sum.allocated_count.saturating_add(counters.allocated_count);
    sum.freed_bytes = sum.freed_bytes.saturating_add(counters.freed_bytes);
    sum.freed_count = sum.freed_count.saturating_add(counters.freed_count);
}

fn slope(points_s: &[f64], bytes: &[u64]) -> Option<f64> {
    let points: Vec<_> = points_s.iter().copied().zip(bytes.iter().map(|bytes| *bytes as f64)).collect();
    theil_sen(&points)
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
            Sort::Outstanding => std::cmp::Ordering::Equal,
            Sort::Growth => growth(b).total_cmp(&growth(a)),
            Sort::Count => b.outstanding_count.cmp(&a.outstanding_count),
        };
        first.then_with(|| rest(a).cmp(&rest(b)))
    });
    for (rank, site) in (1..).zip(sites) {
        site.rank = rank;
    }
}
