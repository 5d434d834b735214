//! A capture as it stood at an earlier moment.

use std::time::Duration;

use thiserror::Error;

use super::{Capture, Finish, Series};

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
        self.is_earlier_moment = true;
        self.finish = self.finish.map(|finish| Finish { elapsed_ns: moment_ns, ..finish });
        for row in &mut self.processes {
            row.ended = row.ended.filter(|ended| ended.elapsed_ns <= moment_ns);
        }
        Ok(self)
    }
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
}
