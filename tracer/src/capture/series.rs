//! The one-second series of every site, thinned to a bounded number of points while it is read.

use std::collections::BTreeMap;

use tracer_common::abi::SiteCounters;

/// Points a series is thinned to, at most. A slope over all pairs of points costs their square.
pub const MAX_POINTS: usize = 300;

/// Counters over time. A site has an entry only where it changed; before its first entry it is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Series {
    /// Times of the points since the start, rising; the first and the last tick are among them.
    pub points_ns: Vec<u64>,
    /// Ticks that were recorded, before thinning.
    pub tick_count: u64,
    /// By site: index into `points_ns` and the totals at that time.
    pub sites: BTreeMap<u32, Vec<(u16, SiteCounters)>>,
}

impl Series {
    /// Totals of a site at the end.
    pub fn last(&self, site: u32) -> SiteCounters {
        self.sites.get(&site).and_then(|entries| entries.last()).map(|entry| entry.1).unwrap_or_default()
    }

    /// Adds a site's outstanding bytes at every point to `sums`, which has one element per point.
    pub fn add_outstanding(&self, site: u32, sums: &mut [u64]) {
        self.add(site, sums, |counters| counters.allocated_bytes.saturating_sub(counters.freed_bytes));
    }

    /// The same for its outstanding blocks.
    pub fn add_outstanding_count(&self, site: u32, sums: &mut [u64]) {
        self.add(site, sums, |counters| counters.allocated_count.saturating_sub(counters.freed_count));
    }

    fn add(&self, site: u32, sums: &mut [u64], value_of: impl Fn(&SiteCounters) -> u64) {
        let mut entries = self.sites.get(&site).into_iter().flatten().peekable();
        let mut value = 0u64;
        for (index, sum) in sums.iter_mut().enumerate() {
            while let Some((_, counters)) = entries.next_if(|entry| usize::from(entry.0) <= index) {
                value = value_of(counters);
            }
            *sum = sum.saturating_add(value);
        }
    }
}

/// Which of the elements at these rising times are kept: all, or at most [`MAX_POINTS`], evenly spaced in time, with
/// the first and the last.
pub fn thinned(times_ns: &[u64]) -> Vec<usize> {
    let (count, first_ns) = (times_ns.len(), times_ns.first().copied().unwrap_or(0));
    if count <= MAX_POINTS {
        return (0..count).collect();
    }
    let length_ns = u128::from(times_ns.last().copied().unwrap_or(0).saturating_sub(first_ns));
    let mut kept: Vec<usize> = (0..MAX_POINTS)
        .map(|point| {
            let offset_ns = length_ns * point as u128 / (MAX_POINTS as u128 - 1);
            let point_ns = first_ns.saturating_add(u64::try_from(offset_ns).unwrap_or(u64::MAX));
            times_ns.partition_point(|time_ns| *time_ns <= point_ns).saturating_sub(1)
        })
        .collect();
    kept.dedup();
    kept
}

/// Takes samples in the order of time and keeps what is visible at the points.
pub(super) struct Thinner {
    kept: Vec<usize>,
    series: Series,
    entry_count: usize,
}

impl Thinner {
    /// `ticks_ns` must be rising.
    pub(super) fn new(ticks_ns: &[u64]) -> Self {
        let kept = thinned(ticks_ns);
        let points_ns = kept.iter().filter_map(|index| ticks_ns.get(*index).copied()).collect();
        let series = Series { points_ns, tick_count: ticks_ns.len() as u64, sites: BTreeMap::new() };
        Self { kept, series, entry_count: 0 }
    }

    /// The point at which a value of the tick with index `tick` shows first: at or after the tick.
    pub(super) fn point(&self, tick: usize) -> u16 {
        u16::try_from(self.kept.partition_point(|kept| *kept < tick)).unwrap_or(u16::MAX)
    }

    /// Adds a sample of the tick with index `tick`. Returns the number of entries kept so far.
    pub(super) fn add(&mut self, tick: usize, site: u32, counters: SiteCounters) -> usize {
        let point = self.point(tick);
        let entries = self.series.sites.entry(site).or_default();
        match entries.last_mut() {
            Some(last) if last.0 == point => last.1 = counters,
            _ => {
                entries.push((point, counters));
                self.entry_count += 1;
            }
        }
        self.entry_count
    }

    pub(super) fn finish(self) -> Series {
        self.series
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(allocated_bytes: u64) -> SiteCounters {
        SiteCounters { allocated_bytes, ..SiteCounters::default() }
    }

    #[test]
    fn unchanged_values_are_carried_forward_and_absent_sites_are_zero() {
        let mut thinner = Thinner::new(&[10, 20, 30, 40]);
        thinner.add(1, 7, counters(100));
        thinner.add(3, 7, counters(150));
        let series = thinner.finish();
        let mut sums = vec![0; 4];
        series.add_outstanding(7, &mut sums);
        assert_eq!(sums, [0, 100, 100, 150]);
        series.add_outstanding(8, &mut sums);
        assert_eq!(sums, [0, 100, 100, 150]);
    }

    #[test]
    fn points_are_evenly_spaced_in_time_also_where_ticks_are_not() {
        let seconds = (0..1000).chain((1000..4000).step_by(30)).chain([3999]);
        let times_ns: Vec<u64> = seconds.map(|second| second * 1_000_000_000).collect();
        let kept = thinned(&times_ns);
        assert!(kept.is_sorted_by(|a, b| a < b));
        assert_eq!((kept.first(), kept.last()), (Some(&0), Some(&(times_ns.len() - 1))));
        let early = kept.iter().filter(|index| **index < 1000).count();
        assert!((70..80).contains(&early), "a quarter of the time has a quarter of 300 points: {early}");
    }

    #[test]
    fn thinning_is_exact_at_the_kept_points() {
        let ticks: Vec<u64> = (0..10_000).map(|tick| tick * 1_000).collect();
        let mut thinner = Thinner::new(&ticks);
        for tick in (0..ticks.len()).step_by(7) {
            thinner.add(tick, 1, counters(tick as u64));
        }
        let series = thinner.finish();
        assert_eq!(series.points_ns.len(), MAX_POINTS);
        assert_eq!((series.points_ns.first(), series.points_ns.last()), (Some(&0), Some(&9_999_000)));
        assert!(series.sites.values().all(|entries| entries.len() <= MAX_POINTS));
        let mut sums = vec![0; MAX_POINTS];
        series.add_outstanding(1, &mut sums);
        for (point_ns, sum) in series.points_ns.iter().zip(sums) {
            assert_eq!(sum, point_ns / 1_000 / 7 * 7, "the last sample at or before the point");
        }
    }
}
