//! When survivors were born: steadily to the end, or ever more rarely.

use std::ops::Range;

use super::{Births, BlockAges, MIN_SURVIVORS, seconds};
use crate::model::LiveAge;

/// Parts that the time of the births is cut into.
const SLICES: usize = 8;
/// Slices in which survivors must have been born.
const MIN_SLICES: usize = 5;
/// Most of the survivors that may have been born in the second half.
const MAX_LATE_PART: f64 = 0.85;
/// Steady births are in the middle of their time on average. Earlier by this part of the time, or by so many standard
/// deviations (4 % to one side) if that is more, is a rate that falls: with a cache that fills with a time constant of half
/// of its time, of all of it, and of twice as much, it is earlier by 0.16, 0.08 and 0.04.
const FALLING: (f64, f64) = (0.05, 1.75);
/// The same after a beginning that is not counted.
const FALLING_SKIPPED: (f64, f64) = (0.03, 1.9);
/// Births in the last quarter are missing if they are half of what they should be, and less by so many standard deviations.
const Z_STOPPED: f64 = 2.0;
/// Births may be steady after a beginning of this part of their time, a warm-up,
const SKIPPED: f64 = 0.25;
/// if there were so many times as many in it, in proportion, and in its first half so many times as many as in its second
/// one. With a cache that fills with a time constant of half of its time it is 2.2 and 1.2.
const WARM_UP_RATIOS: (f64, f64) = (3.0, 2.0);
/// Largest part that one slice may have: more is an event, not a rate.
const MAX_SLICE_PART: f64 = 0.5;
/// Survivors before which the births have not begun.
const ONSET_PART: f64 = 0.05;

/// How survivors were born.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rate {
    /// With so many bytes per second, to the end.
    Steady(f64),
    /// More rarely, or no more.
    Falling,
    /// Too few, too late, or in too few places.
    Uneven,
}

/// What births within a time look like.
struct Shape {
    count: u64,
    /// Births at one moment are one event: how many events they are worth.
    events: f64,
    /// Mean time of birth, as a part of the time.
    mean: f64,
    slices: [f64; SLICES],
    /// From the first birth on: when births began is not known better.
    bytes_per_s: f64,
}

impl Shape {
    fn of(live: &[Births], window_ns: &Range<u64>) -> Self {
        let length_ns = window_ns.end.saturating_sub(window_ns.start).max(1) as f64;
        let mut slices = [0.0; SLICES];
        let (mut count, mut bytes, mut squares, mut sum) = (0u64, 0u64, 0.0, 0.0);
        let mut first = Births { born_ns: window_ns.end, count: 0, bytes: 0 };
        for births in live.iter().filter(|births| window_ns.contains(&births.born_ns)) {
            let weight = births.count as f64;
            count = count.saturating_add(births.count);
            bytes = bytes.saturating_add(births.bytes);
            squares += weight * weight;
            // They are rounded down.
            let at_ns = births.born_ns - window_ns.start + LiveAge::RESOLUTION_NS / 2;
            let at = (at_ns as f64 / length_ns).min(1.0);
            sum += weight * at;
            if let Some(slice) = slices.get_mut((at * SLICES as f64) as usize) {
                *slice += weight;
            }
            if births.born_ns < first.born_ns {
                first = *births;
            }
        }
        let all = (count as f64).max(1.0);
        let seconds = seconds(window_ns.end.saturating_sub(first.born_ns)).max(1e-9);
        Self {
            count,
            events: (all * all / squares.max(1.0)).max(1.0),
            mean: sum / all,
            slices: slices.map(|slice| slice / all),
            bytes_per_s: bytes.saturating_sub(first.bytes) as f64 / seconds,
        }
    }

    /// Laplace's test for a trend in the rate of events (Cox and Lewis, The Statistical Analysis of Series of Events (1966), 3.3):
    /// the mean of `n` uniform times deviates by 1 / √(12 n). Or there are next to none at the end.
    fn is_falling(&self, (early_room, z): (f64, f64)) -> bool {
        let early_room = early_room.max(z / (12.0 * self.events).sqrt());
        let last: f64 = self.slices.iter().skip(SLICES / 4 * 3).sum();
        let missing = (0.25 - Z_STOPPED * (0.25 * 0.75 / self.events).sqrt()).min(0.125);
        self.mean < 0.5 - early_room || last < missing
    }

    fn is_even(&self) -> bool {
        let late: f64 = self.slices.iter().skip(SLICES / 2).sum();
        let largest = self.slices.iter().copied().fold(0.0, f64::max);
        let filled = self.slices.iter().filter(|part| **part > 0.0).count();
        filled >= MIN_SLICES && late <= MAX_LATE_PART && largest <= MAX_SLICE_PART
    }
}

impl BlockAges {
    /// How the survivors of this age were born.
    pub(super) fn rate(&self, age_ns: u64) -> Rate {
        let window_ns = self.elapsed_ns.saturating_sub(age_ns);
        let onset_ns = self.onset_ns(age_ns, window_ns);
        let rate = self.rate_from(age_ns, onset_ns..window_ns, FALLING);
        let skipped_ns = (SKIPPED * window_ns as f64) as u64;
        if matches!(rate, Rate::Falling) && onset_ns == 0 && self.begins_with_more(skipped_ns, window_ns) {
            let after = self.rate_from(age_ns, skipped_ns..window_ns, FALLING_SKIPPED);
            return if matches!(after, Rate::Steady(_)) { after } else { rate };
        }
        rate
    }

    fn begins_with_more(&self, skipped_ns: u64, window_ns: u64) -> bool {
        let count = |window_ns| Shape::of(&self.live, &window_ns).count as f64;
        let (first, second) = (count(0..skipped_ns / 2), count(skipped_ns / 2..skipped_ns));
        let rest = count(skipped_ns..window_ns);
        let (to_rest, to_second) = WARM_UP_RATIOS;
        (first + second) * (1.0 - SKIPPED) >= to_rest * rest * SKIPPED && first >= to_second * second
    }

    /// How those were born that were born within `window_ns`.
    fn rate_from(&self, age_ns: u64, window_ns: Range<u64>, falling: (f64, f64)) -> Rate {
        // Births must be seen over a fifth of the recording, and may begin in its first half.
        let length_ns = window_ns.end.saturating_sub(window_ns.start);
        let is_late = window_ns.start > self.elapsed_ns / 2 || length_ns < self.elapsed_ns / 5;
        let births = Shape::of(&self.live, &window_ns);
        if births.count < MIN_SURVIVORS || is_late {
            return Rate::Uneven;
        }
        // Those that are a little younger include what will still be freed, so they can only hide that births have become rarer.
        let younger = Shape::of(&self.live, &(window_ns.start..window_ns.end.saturating_add(age_ns / 2)));
        if births.is_falling(falling) || younger.is_falling(falling) {
            return Rate::Falling;
        }
        match births.is_even() {
            true => Rate::Steady(births.bytes_per_s),
            false => Rate::Uneven,
        }
    }

    /// When the births of the survivors began: 0 unless next to none is from the first eighth of their time.
    fn onset_ns(&self, age_ns: u64, window_ns: u64) -> u64 {
        let mut born: Vec<(u64, u64)> =
            self.older_than(age_ns).map(|births| (births.born_ns, births.count)).collect();
        born.sort_unstable();
        let all: f64 = born.iter().map(|(_, count)| *count as f64).sum();
        let mut before = 0.0;
        let begin = born.iter().find(|(_, count)| {
            before += *count as f64;
            before > ONSET_PART * all
        });
        begin
            .map(|(begin_ns, _)| *begin_ns)
            .filter(|begin_ns| *begin_ns > window_ns / SLICES as u64)
            .unwrap_or(0)
    }
}
