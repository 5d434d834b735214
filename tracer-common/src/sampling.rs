//! Byte-weighted Poisson sampling of allocations, in integers: what the kernel decides and adds up.
//!
//! Sample points lie on the bytes that a thread asks for as a Poisson process does, one in `interval` bytes on average. A block
//! is sampled if a point falls into it: with the probability p(s) = 1 − exp(−s/T) for a block of s bytes at the interval T,
//! whatever was asked for before. So every sampled block stands for 1/p(s) blocks and s/p(s) bytes (the estimator of Horvitz and
//! Thompson, Journal of the American Statistical Association 47 (1952) 663), and sums of these are unbiased, whatever the mix
//! of sizes. The weight follows from the size, so an allocation and its release add the same.
//!
//! BPF has no floating point. Both functions that are needed come from tables that the compiler makes, and are tested against
//! the exact ones: −ln(u), relative error below 1e-6 beyond the rounding to bytes, and x / (1 − exp(−x)), relative error below
//! 1e-5.

/// Smallest interval, in bytes: below, rounding weights to bytes would show.
pub const MIN_INTERVAL_BYTES: u64 = 4 << 10;
/// Largest interval, in bytes: intermediate products fit 64 bits.
pub const MAX_INTERVAL_BYTES: u64 = 1 << 30;

/// Bits behind the point of counts that are estimates.
pub const COUNT_FRACTION_BITS: u32 = 16;

/// A block that stands for itself, in the unit of [`weight`]'s scale.
pub const SCALE_ONE: u16 = 16;

/// Steps of the table of logarithms.
const LN_STEPS: usize = 1024;
/// `ln(1 + i / 1024)` in units of 2^-40.
static LN: [u64; LN_STEPS] = ln_table();
/// `ln(2)` in units of 2^-40.
const LN_2: u64 = ln_1_plus(1024);

/// `ln(1 + i / 1024)` in units of 2^-40, as twice the inverse hyperbolic tangent of i / (2048 + i).
const fn ln_1_plus(step: u128) -> u64 {
    let z = (step << 60) / (2048 + step);
    let z_squared = (z * z) >> 60;
    let (mut power, mut sum, mut divisor) = (z, 0, 1);
    while power != 0 {
        sum += power / divisor;
        power = (power * z_squared) >> 60;
        divisor += 2;
    }
    ((2 * sum + (1 << 19)) >> 20) as u64
}

const fn ln_table() -> [u64; LN_STEPS] {
    let mut table = [0; LN_STEPS];
    let mut step = 0;
    while step < LN_STEPS {
        table[step] = ln_1_plus(step as u128);
        step += 1;
    }
    table
}

/// Steps of the table of shares to one interval.
const SHARE_STEPS_LOG2: u32 = 6;
/// Blocks of so many intervals are always sampled, as far as the weight goes: exp(−16) is 1e-7.
const SURE_INTERVALS: u64 = 16;
const SHARE_STEPS: usize = (SURE_INTERVALS as usize) << SHARE_STEPS_LOG2;
/// `x / (1 − exp(−x))` at x = i / 64, in units of 2^-20.
static SHARES: [u32; SHARE_STEPS + 1] = share_table();

const fn share_table() -> [u32; SHARE_STEPS + 1] {
    const ONE: u128 = 1 << 60;
    // exp(−1/64) by its series; terms alternate.
    let (mut decay, mut term, mut order) = (0i128, ONE as i128, 0i128);
    while term != 0 {
        decay += term;
        order += 1;
        term /= -(64 * order);
    }
    let decay = decay as u128;
    let mut table = [1 << 20; SHARE_STEPS + 1];
    let (mut power, mut step) = (ONE, 1);
    while step <= SHARE_STEPS {
        power = (power * decay) >> 60;
        let x = (step as u128) << (60 - SHARE_STEPS_LOG2);
        table[step] = (((x << 20) + (ONE - power) / 2) / (ONE - power)) as u32;
        step += 1;
    }
    table
}

/// Bytes to the next sample point: exponentially distributed with the mean `interval_bytes`, by inversion of a uniform
/// `random` number. At most 23 intervals.
#[inline(always)]
pub fn exponential_bytes(random: u32, interval_bytes: u64) -> u64 {
    // The middle of one of 2^32 equal parts of 0 to 1, in units of 2^-33: never 0 or 1.
    let uniform = (random as u64) << 1 | 1;
    let log2 = uniform.ilog2() as u64;
    // From 1 to 2, in units of 2^-63; its first ten bits behind the point give the entry, the rest the step from there.
    let mantissa = uniform << (63 - log2);
    let step = (mantissa >> 53) & (LN_STEPS as u64 - 1);
    let rest = mantissa & ((1 << 53) - 1);
    // ln(1 + d) = d − d²/2 + d³/3 for d below 2^-10, in units of 2^-40.
    let d = rest / ((LN_STEPS as u64 + step) << 13);
    let d_squared = (d * d) >> 40;
    let ln_rest = d - d_squared / 2 + ((d_squared * d) >> 40) / 3;
    let Some(ln_step) = LN.get(step as usize) else { return interval_bytes };
    let negative_ln = ((33 - log2) * LN_2).saturating_sub(*ln_step + ln_rest);
    let (high, low) = (negative_ln >> 20, negative_ln & 0xf_ffff);
    (interval_bytes * high + ((interval_bytes * low) >> 20)) >> 20
}

/// Whether a block of `size_bytes` is sampled, where the next sample point is `until_bytes` away. That is moved on; `draw` gives
/// the distance from one point to the next. A block of no bytes counts as one byte, or it could never be seen.
#[inline(always)]
pub fn is_sampled(until_bytes: &mut u64, size_bytes: u64, draw: impl FnOnce() -> u64) -> bool {
    let size_bytes = if size_bytes == 0 { 1 } else { size_bytes };
    if *until_bytes >= size_bytes {
        *until_bytes -= size_bytes;
        return false;
    }
    // What is left of the block behind the point takes part in no further draw: the process has no memory.
    *until_bytes = draw();
    true
}

/// What a block that is known stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Bytes.
    pub bytes: u64,
    /// Blocks, in units of 2^-[`COUNT_FRACTION_BITS`].
    pub count: u64,
}

/// What a block of `size_bytes` stands for that was sampled at `interval_bytes` (0: every block was taken) in a part of the time
/// of which 16 / `scale` was seen ([`SCALE_ONE`]: all of it).
#[inline(always)]
pub fn weight(interval_bytes: u64, size_bytes: u64, scale: u16) -> Weight {
    let whole = Weight { bytes: size_bytes, count: 1 << COUNT_FRACTION_BITS };
    let sampled = if interval_bytes == 0 || size_bytes >= interval_bytes * SURE_INTERVALS {
        whole
    } else {
        let size = if size_bytes == 0 { 1 } else { size_bytes };
        // Sizes in intervals, in units of 2^-20: below 2^24.
        let x = (size << 20) / interval_bytes;
        let step = (x >> (20 - SHARE_STEPS_LOG2)) as usize;
        let rest = x & ((1 << (20 - SHARE_STEPS_LOG2)) - 1);
        match (SHARES.get(step), SHARES.get(step + 1)) {
            (Some(here), Some(next)) => {
                let (here, next) = (*here as u64, *next as u64);
                let share = here + (((next - here) * rest) >> (20 - SHARE_STEPS_LOG2));
                // T x / (1 − exp(−x)) = s / p(s), in units of 2^-20.
                let bytes = interval_bytes * share;
                let count = (bytes / size + (1 << 3)) >> (20 - COUNT_FRACTION_BITS);
                Weight { bytes: if size_bytes == 0 { 0 } else { (bytes + (1 << 19)) >> 20 }, count }
            }
            _ => whole,
        }
    };
    if scale == SCALE_ONE {
        return sampled;
    }
    let scaled = |value: u64| value.wrapping_mul(scale as u64) / SCALE_ONE as u64;
    Weight { bytes: scaled(sampled.bytes), count: scaled(sampled.count) }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::{vec, vec::Vec};

    const INTERVALS: [u64; 4] = [MIN_INTERVAL_BYTES, 64 << 10, 1 << 20, MAX_INTERVAL_BYTES];

    /// Bytes or blocks of a sum.
    type Part = fn(&(f64, f64)) -> f64;

    /// xorshift64* (Vigna, ACM Transactions on Mathematical Software 42 (2016) 30), upper half.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u32 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
        }
    }

    #[test]
    fn distances_are_the_exact_logarithm() {
        let mut random = Random(7);
        let edges = [0, 1, 2, 3, 1 << 31, (1 << 31) - 1, (1 << 31) + 1, u32::MAX, u32::MAX - 1];
        let draws = edges.into_iter().chain((0..200_000).map(|_| random.next()));
        for draw in draws {
            let uniform = (f64::from(draw) + 0.5) / 4_294_967_296.0;
            for interval in INTERVALS {
                let exact = -uniform.ln() * interval as f64;
                let found = exponential_bytes(draw, interval) as f64;
                assert!(
                    (found - exact.floor()).abs() <= 1.0 + exact * 1e-6,
                    "{draw} {interval}: {found} {exact}"
                );
            }
        }
    }

    #[test]
    fn weights_are_the_exact_inverse_probabilities() {
        for interval in INTERVALS {
            let mut size = 1u64;
            while size < 40 * interval {
                let probability = -(-(size as f64) / interval as f64).exp_m1();
                let found = weight(interval, size, SCALE_ONE);
                let (bytes, count) = (size as f64 / probability, 65_536.0 / probability);
                assert!(
                    (found.bytes as f64 - bytes).abs() <= 0.5 + 1e-5 * bytes,
                    "{interval} {size} {found:?}"
                );
                assert!(
                    (found.count as f64 - count).abs() <= 0.5 + 1e-5 * count,
                    "{interval} {size} {found:?}"
                );
                size = (size + 1).max(size * 9 / 8);
            }
        }
    }

    #[test]
    fn what_is_not_sampled_stands_for_itself_and_scales() {
        assert_eq!(weight(0, 100, SCALE_ONE), Weight { bytes: 100, count: 1 << 16 });
        assert_eq!(weight(0, 100, 40), Weight { bytes: 250, count: 5 << 15 });
        assert_eq!(weight(1 << 16, u64::MAX >> 8, SCALE_ONE).bytes, u64::MAX >> 8);
        assert_eq!(weight(1 << 16, 0, SCALE_ONE).bytes, 0);
        assert_eq!(weight(1 << 16, 0, SCALE_ONE).count, weight(1 << 16, 1, SCALE_ONE).count);
    }

    #[test]
    fn points_are_as_far_apart_as_drawn() {
        let mut until = 10;
        let draws = |bytes| move || bytes;
        assert!(!is_sampled(&mut until, 10, draws(5)), "the point is behind it");
        assert_eq!(until, 0);
        assert!(is_sampled(&mut until, 1, draws(5)), "the next byte holds it");
        assert_eq!(until, 5);
        assert!(!is_sampled(&mut until, 0, draws(9)) && until == 4, "no bytes count as one");
    }

    /// A program: blocks of many sizes, most of them freed. Estimates of what was allocated, and of what is outstanding, over
    /// many seeds, are compared with the truth in units of the stated standard error.
    #[test]
    fn sums_are_unbiased_within_the_stated_error() {
        const INTERVAL: u64 = 64 << 10;
        const RUNS: u64 = 400;
        let sizes: Vec<u64> = (0..6000)
            .map(|n| [16, 24, 100, 1000, 4096, 40_000, 300_000, 64][n % 8] + (n as u64 % 7))
            .collect();
        let is_freed = |index: usize| !index.is_multiple_of(5);
        let truth = |of: &dyn Fn(usize) -> bool| {
            let kept = sizes.iter().enumerate().filter(|(index, _)| of(*index));
            kept.fold((0u64, 0u64), |(bytes, count), (_, size)| (bytes + size, count + 1))
        };
        let (allocated, outstanding) = (truth(&|_| true), truth(&|index| !is_freed(index)));
        // The variance of a sum of weights: s² (1 − p) / p for each block, sampled or not.
        let variance = |of: &dyn Fn(usize) -> bool| {
            let kept = sizes.iter().enumerate().filter(|(index, _)| of(*index));
            kept.fold((0.0, 0.0), |(bytes, count), (_, size)| {
                let (size, x) = ((*size).max(1) as f64, (*size).max(1) as f64 / INTERVAL as f64);
                (bytes + size * size / x.exp_m1(), count + 1.0 / x.exp_m1())
            })
        };
        let cases = [(allocated, variance(&|_| true)), (outstanding, variance(&|index| !is_freed(index)))];
        let mut sums = vec![[(0.0f64, 0.0f64); 2]; RUNS as usize];
        for (seed, sums) in (1u64..).zip(&mut sums) {
            let mut random = Random(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed));
            let mut until = exponential_bytes(random.next(), INTERVAL);
            let (mut allocated, mut freed) = (Weight::default(), Weight::default());
            for (index, size) in sizes.iter().enumerate() {
                if !is_sampled(&mut until, *size, || exponential_bytes(random.next(), INTERVAL)) {
                    continue;
                }
                let weight = weight(INTERVAL, *size, SCALE_ONE);
                allocated.bytes += weight.bytes;
                allocated.count += weight.count;
                if is_freed(index) {
                    freed.bytes += weight.bytes;
                    freed.count += weight.count;
                }
            }
            let real = |bytes: u64, count: u64| (bytes as f64, count as f64 / 65_536.0);
            *sums = [
                real(allocated.bytes, allocated.count),
                real(allocated.bytes - freed.bytes, allocated.count - freed.count),
            ];
        }
        for (which, ((bytes, count), (bytes_variance, count_variance))) in cases.into_iter().enumerate() {
            let parts: [(Part, f64, f64); 2] =
                [(|sum| sum.0, bytes as f64, bytes_variance), (|sum| sum.1, count as f64, count_variance)];
            for (part, truth, variance) in parts {
                let values = || sums.iter().map(|sums| part(&sums[which]));
                let mean = values().sum::<f64>() / RUNS as f64;
                let seen = values().map(|value| (value - mean).powi(2)).sum::<f64>() / (RUNS - 1) as f64;
                // Four standard errors of the mean of all runs; the spread itself is known to 3.5 % (1 / sqrt(2 runs)).
                let error = (variance / RUNS as f64).sqrt();
                assert!((mean - truth).abs() < 4.0 * error, "case {which}: {mean} for {truth} ± {error}");
                let spread = (seen / variance).sqrt();
                assert!(
                    (0.85..1.15).contains(&spread),
                    "case {which}: the spread is {spread} times the stated one"
                );
            }
        }
    }

    /// Of blocks of one size, the part that is sampled.
    #[test]
    fn every_size_is_sampled_with_its_probability() {
        const INTERVAL: u64 = 4 << 10;
        let mut random = Random(99);
        for size in [1u64, 16, 500, 4096, 20_000] {
            let probability = -(-(size as f64) / INTERVAL as f64).exp_m1();
            let trials = (20_000.0 / probability).min(2e6) as u64;
            let mut until = exponential_bytes(random.next(), INTERVAL);
            let hits = (0..trials)
                .filter(|_| is_sampled(&mut until, size, || exponential_bytes(random.next(), INTERVAL)))
                .count();
            let (expected, deviation) = (
                trials as f64 * probability,
                (trials as f64 * probability * (1.0 - probability)).sqrt().max(1.0),
            );
            assert!((hits as f64 - expected).abs() < 4.5 * deviation, "{size}: {hits} for {expected}");
        }
    }
}
