//! A capture as it stood at an earlier moment, and without its beginning.

use std::time::Duration;

use thiserror::Error;

use super::{Capture, Ended, Finish, Series};

/// Why there is no such moment.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("there is nothing to see at {asked:?}: the samples of this recording go from {first:?} to {last:?}")]
pub struct MomentError {
    /// What was asked for.
    pub asked: Duration,
    /// First sample.
    pub first: Duration,
    /// Last sample.
    pub last: Duration,
}

impl Capture {
    /// The capture as it stood at the last sample at or before `elapsed_ns`. A long recording is read with a
    /// few hundred samples: the moment may be that much earlier, and [`Capture::elapsed_ns`] of the result says
    /// which it is. Ages and sizes of blocks are known at the end of a recording only; losses are those of all of it.
    ///
    /// # Errors
    /// Before the first sample and after the last there is none.
    pub fn at(mut self, elapsed_ns: u64) -> Result<Self, MomentError> {
        let last_ns = self.elapsed_ns();
        if elapsed_ns == last_ns {
            return Ok(self);
        }
        let kept = self.series.points_ns.partition_point(|point_ns| *point_ns <= elapsed_ns);
        let moment_ns = kept.checked_sub(1).and_then(|index| self.series.points_ns.get(index)).copied();
        let Some(moment_ns) = moment_ns.filter(|_| elapsed_ns < last_ns) else {
            let first_ns = self.series.points_ns.first().copied().unwrap_or(0);
            return Err(MomentError {
                asked: Duration::from_nanos(elapsed_ns),
                first: Duration::from_nanos(first_ns),
                last: Duration::from_nanos(last_ns),
            });
        };
        cut(&mut self.series, kept);
        let series = &self.series;
        self.stacks.retain(|stack| series.sites.contains_key(&stack.site));
        self.rss.retain(|sample| sample.elapsed_ns <= moment_ns);
        self.live_ages.clear();
        self.sampled_ages.clear();
        self.live_sizes.clear();
        self.lifetimes.clear();
        for entries in self.residents.values_mut() {
            entries.retain(|(point, _)| usize::from(*point) < kept);
        }
        self.residents.retain(|_, entries| !entries.is_empty());
        self.ledgers.retain(|ledger| ledger.elapsed_ns <= moment_ns);
        self.figures.retain(|figure| figure.elapsed_ns <= moment_ns);
        self.limits.retain(|limit| limit.elapsed_ns <= moment_ns);
        self.overhead = None;
        self.budget = None;
        self.is_earlier_moment = true;
        self.finish = self.finish.map(|finish| Finish { elapsed_ns: moment_ns, ..finish });
        for row in &mut self.processes {
            row.ended = row.ended.filter(|ended| ended.elapsed_ns <= moment_ns);
        }
        Ok(self)
    }

    /// The capture without what was before the first sample at or after `from_ns`, which becomes its start; only
    /// the last sample where none is that late. What was allocated before stays in the counters; of the blocks
    /// that live, only those born since have an age. How long freed blocks lived is not known for parts of a
    /// recording, and stays that of all of it.
    #[must_use]
    pub fn since(mut self, from_ns: u64) -> Self {
        let points = &self.series.points_ns;
        let cut = points.partition_point(|point_ns| *point_ns < from_ns).min(points.len().saturating_sub(1));
        let Some(start_ns) = points.get(cut).copied().filter(|_| cut > 0) else { return self };
        let later = |elapsed_ns: u64| elapsed_ns.saturating_sub(start_ns);
        let length_ns = later(self.elapsed_ns());
        self.series.points_ns.drain(..cut);
        self.series.points_ns.iter_mut().for_each(|point_ns| *point_ns = later(*point_ns));
        self.series.tick_count = self.series.tick_count.saturating_sub(cut as u64);
        self.series.sites.values_mut().for_each(|entries| drop_before(entries, cut));
        self.residents.values_mut().for_each(|entries| drop_before(entries, cut));
        self.rss.retain(|sample| sample.elapsed_ns >= start_ns);
        self.ledgers.retain(|ledger| ledger.elapsed_ns >= start_ns);
        self.rss.iter_mut().for_each(|sample| sample.elapsed_ns = later(sample.elapsed_ns));
        self.ledgers.iter_mut().for_each(|ledger| ledger.elapsed_ns = later(ledger.elapsed_ns));
        // A value stands until the next one.
        self.figures.iter_mut().for_each(|figure| figure.elapsed_ns = later(figure.elapsed_ns));
        self.limits.iter_mut().for_each(|limit| limit.elapsed_ns = later(limit.elapsed_ns));
        self.live_ages.retain(|age| age.born_ns >= start_ns);
        self.live_ages.iter_mut().for_each(|age| age.born_ns = later(age.born_ns));
        self.sampled_ages.retain(|age| age.born_ns >= start_ns);
        self.sampled_ages.iter_mut().for_each(|age| age.born_ns = later(age.born_ns));
        self.overhead = None;
        self.budget = None;
        self.finish = self.finish.map(|finish| Finish { elapsed_ns: length_ns, ..finish });
        for row in &mut self.processes {
            row.process.start_ns = later(row.process.start_ns);
            row.ended = row.ended.map(|ended| Ended { elapsed_ns: later(ended.elapsed_ns), ..ended });
        }
        self.header.start_realtime_ns = self.header.start_realtime_ns.saturating_add(start_ns);
        self
    }
}

/// Makes the point `cut` the first: what stood before it stands there.
fn drop_before<T: Copy>(entries: &mut Vec<(u16, T)>, cut: usize) {
    let before = entries.partition_point(|entry| usize::from(entry.0) <= cut);
    entries.drain(..before.saturating_sub(1));
    let cut = u16::try_from(cut).unwrap_or(u16::MAX);
    entries.iter_mut().for_each(|entry| entry.0 = entry.0.saturating_sub(cut));
}

/// Keeps the first `kept` points.
fn cut(series: &mut Series, kept: usize) {
    series.points_ns.truncate(kept);
    series.tick_count = series.tick_count.min(kept as u64);
    for entries in series.sites.values_mut() {
        entries.retain(|(point, _)| usize::from(*point) < kept);
    }
    series.sites.retain(|_, entries| !entries.is_empty());
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::capture::fixture::leaky;

    #[test]
    fn an_earlier_moment_has_what_was_known_then() {
        let whole = leaky().capture();
        let (points, last_ns) = (whole.series.points_ns.clone(), whole.elapsed_ns());
        let middle = points.len() / 2;
        let early = leaky().capture().at(points[middle] + 1).unwrap();
        assert_eq!(early.elapsed_ns(), points[middle]);
        assert_eq!(early.series.points_ns, points[..=middle]);
        for (site, entries) in &early.series.sites {
            let at_middle = whole.series.sites[site].iter().rfind(|entry| usize::from(entry.0) <= middle);
            assert_eq!(entries.last(), at_middle);
        }
        assert!(early.rss.iter().all(|sample| sample.elapsed_ns <= points[middle]));
        assert!(early.live_ages.is_empty() && early.live_sizes.is_empty(), "not known at that time");
        assert_eq!(leaky().capture().at(last_ns).unwrap().live_ages, whole.live_ages);
        assert!(leaky().capture().at(last_ns + 1).is_err());
    }

    #[test]
    fn without_its_beginning_it_starts_later_and_holds_the_same() {
        let whole = leaky().capture();
        assert_eq!(leaky().capture().since(0).series, whole.series);
        let (points, last_ns) = (whole.series.points_ns.clone(), whole.elapsed_ns());
        let start_ns = points[4];
        let late = leaky().capture().since(points[3] + 1);
        let expected: Vec<u64> = points[4..].iter().map(|point_ns| point_ns - start_ns).collect();
        assert_eq!(
            (late.series.points_ns.as_slice(), late.elapsed_ns()),
            (&expected[..], last_ns - start_ns)
        );
        for site in whole.series.sites.keys() {
            let held = |series: &super::Series| {
                let mut sums = vec![0; series.points_ns.len()];
                series.add_outstanding(*site, &mut sums);
                sums
            };
            assert_eq!(held(&late.series), held(&whole.series)[4..], "site {site}");
        }
        assert_eq!(late.rss.len(), whole.rss.len() - 4);
        assert!(late.live_ages.iter().all(|age| age.born_ns <= late.elapsed_ns()));
        let born_later = whole.live_ages.iter().filter(|age| age.born_ns >= start_ns).count();
        assert_eq!(late.live_ages.len(), born_later);
        let nothing = leaky().capture().since(last_ns + 1);
        assert_eq!(nothing.series.points_ns, [0], "the last sample");
    }
}
