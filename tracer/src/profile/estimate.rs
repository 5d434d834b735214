//! Numbers that are estimates: where only some allocations were seen, and each of them stands for others.
//!
//! The variance of a Horvitz–Thompson sum over independent draws is Σ s² (1 − p) / p over *all* blocks, with p = 1 − exp(−s/T)
//! for a block of s bytes at the interval T: Σ s² / (exp(s/T) − 1) for bytes, Σ 1 / (exp(s/T) − 1) for blocks. Both sums are
//! estimated from the sizes of what is outstanding, in powers of two, with the mean size of each.

use std::collections::HashMap;

use crate::capture::{Capture, MAX_OVERHEAD_SETTING, SAMPLE_SETTING};
use crate::model::LiveSize;

/// How the numbers of allocator calls were estimated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Mean bytes from one sampled allocation to the next; `None`: all were seen.
    pub sample_bytes: Option<f64>,
    /// The windows of time in which allocations were seen; `None`: all the time.
    pub windows: Option<Windows>,
}

/// Windows of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Windows {
    /// What tracing was allowed to cost, as a part of the target's CPU time.
    pub allowed_share: f64,
    /// The part of the time that was seen; `None`: not known of an earlier moment or a part of a recording.
    pub seen_part: Option<f64>,
    /// How many; `None`: as above.
    pub count: Option<u64>,
}

/// Square of a standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Variance {
    /// Of bytes.
    pub bytes: f64,
    /// Of blocks; `None` where the sizes are not known.
    pub count: Option<f64>,
}

impl Variance {
    /// Of a sum of independent numbers.
    pub(super) fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.count = self.count.zip(other.count).map(|(one, more)| one + more);
    }

    /// Standard error of bytes.
    pub fn error_bytes(&self) -> f64 {
        self.bytes.sqrt()
    }

    /// Standard error of blocks.
    pub fn error_count(&self) -> Option<f64> {
        self.count.map(f64::sqrt)
    }
}

impl Estimate {
    /// `None`: the numbers are exact.
    pub(super) fn of(capture: &Capture) -> Option<Self> {
        let setting = |name| {
            let said = capture.header.settings.iter().find(|(known, _)| known == name)?;
            said.1.parse::<u64>().ok().filter(|bytes| *bytes > 0)
        };
        let sample_bytes = setting(SAMPLE_SETTING).map(|bytes| bytes as f64);
        let elapsed_ns = capture.elapsed_ns().max(1) as f64;
        let windows = setting(MAX_OVERHEAD_SETTING).map(|millionths| Windows {
            allowed_share: millionths as f64 / 1e6,
            seen_part: capture.budget.map(|budget| (budget.seen_ns as f64 / elapsed_ns).min(1.0)),
            count: capture.budget.map(|budget| budget.window_count),
        });
        (sample_bytes.is_some() || windows.is_some()).then_some(Self { sample_bytes, windows })
    }

    /// What an estimated amount varies by; `sizes` are those of all of it, if they are known. Without them the largest variance
    /// that so many bytes can have, which they have if all blocks are small: T per byte.
    fn variance(&self, bytes: u64, sizes: Option<&[LiveSize]>) -> Option<Variance> {
        // What was missed between windows varies by more than can be told from inside of them.
        let interval = self.sample_bytes.filter(|_| self.windows.is_none())?;
        let Some(sizes) = sizes else {
            return Some(Variance { bytes: interval * bytes as f64, count: None });
        };
        let mut sum = Variance { bytes: 0.0, count: Some(0.0) };
        for size in sizes.iter().filter(|size| size.count > 0) {
            let mean = (size.bytes as f64 / size.count as f64).max(1.0);
            // Blocks of very many intervals vary by nothing.
            let each = (mean / interval).exp_m1().recip();
            let count = size.count as f64 * each;
            sum.add(Variance { bytes: count * mean * mean, count: Some(count) });
        }
        Some(sum)
    }
}

/// Sizes of what is outstanding, by site number.
pub(super) struct Errors {
    estimate: Option<Estimate>,
    sizes: HashMap<u32, Vec<LiveSize>>,
    has_sizes: bool,
}

impl Errors {
    /// `is_of_any_age`: of blocks of a minimum age alone the sizes are not known.
    pub(super) fn of(capture: &Capture, is_of_any_age: bool) -> Self {
        let estimate = Estimate::of(capture);
        let mut sizes: HashMap<u32, Vec<LiveSize>> = HashMap::new();
        let has_sizes = is_of_any_age && !capture.live_sizes.is_empty();
        if estimate.is_some() && has_sizes {
            for size in &capture.live_sizes {
                sizes.entry(size.site).or_default().push(*size);
            }
        }
        Self { estimate, sizes, has_sizes }
    }

    /// What the outstanding bytes of a site of blocks vary by; `None`: they are exact, or it is not known.
    pub(super) fn of_site(&self, number: u32, outstanding_bytes: u64) -> Option<Variance> {
        let known = || self.sizes.get(&number).map_or(&[][..], Vec::as_slice);
        self.estimate?.variance(outstanding_bytes, self.has_sizes.then(known))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const T: f64 = 65_536.0;

    #[test]
    fn small_blocks_vary_by_an_interval_a_byte_and_large_ones_by_nothing() {
        let estimate = Estimate { sample_bytes: Some(T), windows: None };
        let bound = estimate.variance(1 << 20, None).unwrap();
        assert_eq!((bound.error_bytes(), bound.error_count()), ((T * 1_048_576.0).sqrt(), None));
        let size = |bytes: u64, count: u64| LiveSize {
            site: 1,
            bucket: LiveSize::bucket_of(bytes / count),
            count,
            bytes,
        };
        let small = estimate.variance(1 << 20, Some(&[size(1 << 20, 65_536)])).unwrap();
        assert!((small.bytes / bound.bytes - 1.0).abs() < 1e-3, "{small:?}");
        // 65,536 blocks of 16 bytes, of which 16 are sampled: a quarter of them.
        assert!((small.error_count().unwrap() / (65_536.0 / 4.0) - 1.0).abs() < 1e-3);
        let large = estimate.variance(100 << 20, Some(&[size(100 << 20, 10)])).unwrap();
        assert!(large.error_bytes() < 1.0, "{large:?}");
        let both = estimate.variance(0, Some(&[size(1 << 20, 65_536), size(100 << 20, 10)])).unwrap();
        assert!((both.bytes - small.bytes - large.bytes).abs() < 1.0);
    }
}
