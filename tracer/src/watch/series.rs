//! A series of samples that never takes more than a bounded memory.

use crate::model::RssSample;

/// Samples that are kept of one program, at most.
pub const MAX_SAMPLES: usize = 4096;

/// Samples in the order of time. When there are too many, every other one goes, and from then on half as many are
/// taken in: the series stays evenly spaced and always spans the whole watch.
#[derive(Clone, Debug)]
pub struct Series {
    samples: Vec<RssSample>,
    seen: u64,
    stride: u64,
    last: Option<RssSample>,
    last_pss: Option<RssSample>,
    capacity: usize,
}

impl Default for Series {
    fn default() -> Self {
        Self::with_capacity(MAX_SAMPLES)
    }
}

impl Series {
    /// Keeps at most `capacity` samples, at least four.
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            samples: Vec::new(),
            seen: 0,
            stride: 1,
            last: None,
            last_pss: None,
            capacity: capacity.max(4),
        }
    }

    /// Takes a sample in; its time is not before those of the others.
    pub fn push(&mut self, sample: RssSample) {
        if self.seen.is_multiple_of(self.stride) {
            if self.samples.len() >= self.capacity {
                let mut index = 0usize;
                self.samples.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
                self.stride *= 2;
            }
            if self.seen.is_multiple_of(self.stride) {
                self.samples.push(sample);
            }
        }
        self.seen += 1;
        self.last = Some(sample);
        self.last_pss = Some(sample).filter(|sample| sample.pss_bytes.is_some()).or(self.last_pss);
    }

    /// The first one.
    pub fn first(&self) -> Option<&RssSample> {
        self.samples.first()
    }

    /// The latest one, also if it was not kept.
    pub fn last(&self) -> Option<&RssSample> {
        self.last.as_ref()
    }

    /// The latest one with Pss.
    pub fn last_pss(&self) -> Option<&RssSample> {
        self.last_pss.as_ref()
    }

    /// Those that were kept, and the latest.
    pub fn iter(&self) -> impl Iterator<Item = &RssSample> {
        let is_kept = self.samples.last() == self.last.as_ref();
        self.samples.iter().chain(self.last.as_ref().filter(|_| !is_kept))
    }

    /// How many were taken.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Seconds and the value of each sample in which it is known.
    pub fn points(&self, value: impl Fn(&RssSample) -> Option<u64>) -> Vec<(f64, f64)> {
        self.iter()
            .filter_map(|sample| Some((sample.elapsed_ns as f64 / 1e9, value(sample)? as f64)))
            .collect()
    }
}

/// What is judged: resident and swapped memory, so that swapping out is no shrinking.
pub fn memory_bytes(sample: &RssSample) -> u64 {
    sample.rss_bytes.saturating_add(sample.swap_bytes.unwrap_or(0))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::ProcessId;

    /// A sample of this many bytes after this many seconds.
    pub(in crate::watch) fn sample(second: u64, rss_bytes: u64) -> RssSample {
        RssSample {
            process: ProcessId(0),
            elapsed_ns: second * 1_000_000_000,
            rss_bytes,
            anonymous_bytes: Some(rss_bytes / 2),
            file_bytes: Some(rss_bytes - rss_bytes / 2),
            shared_bytes: Some(0),
            swap_bytes: None,
            pss_bytes: None,
        }
    }

    #[test]
    fn any_length_stays_bounded_even_and_whole() {
        for length in [0, 1, 7, 8, 9, 100, 12_345] {
            let mut series = Series::with_capacity(8);
            for second in 0..length {
                series.push(sample(second, second));
            }
            let times: Vec<u64> = series.iter().map(|sample| sample.elapsed_ns / 1_000_000_000).collect();
            assert_eq!(series.seen(), length);
            assert!(times.len() <= 9, "{length}: {times:?}");
            assert_eq!(
                (times.first().copied(), times.last().copied()),
                ((length > 0).then_some(0), length.checked_sub(1))
            );
            let gaps: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let even = gaps.len().saturating_sub(1);
            assert!(gaps[..even].windows(2).all(|pair| pair[0] == pair[1]), "{length}: {times:?}");
            assert!(length < 8 || times.len() >= 4, "{length}: {times:?}");
        }
    }

    #[test]
    fn swapping_out_is_no_shrinking() {
        let mut out = sample(1, 100);
        out.swap_bytes = Some(900);
        assert_eq!((memory_bytes(&sample(0, 1000)), memory_bytes(&out)), (1000, 1000));
    }
}
