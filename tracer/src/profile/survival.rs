//! Do the blocks of a site ever die? What the outstanding bytes hide under churn, the ages show.
//!
//! A site that churns and leaks a little has blocks that live for a moment, and blocks that live for ever. An age is
//! looked for beyond which practically no block was freed: of those that got older, nearly all are live. If these
//! were born all through the recording, not only in its beginning, their number grows without bound, whatever the
//! noise of the churn. A cache that is full fails the first test, since it frees old blocks; one that was filled
//! once, and a pool that has warmed up, fail the second. `docs/verdicts.md` has the method and its error rates.

mod births;

use births::Rate;

/// Part of the blocks beyond the age that may have been freed, where no more than a third of the recording is as old.
const MAX_FREED_PART: f64 = 0.02;
/// The same where the rate of frees has fallen at that age.
const MAX_FREED_PART_FALLEN: f64 = 0.15;
/// The rate of frees has fallen if it is at most this part of what it was. Memory whose lifetimes have a long tail (Pareto,
/// log-normal) falls to about a third from one window of ages to the next, what is freed at random does not fall at all.
const FALLEN_RATE: f64 = 0.1;
/// Frees that the rate before must be known from.
const MIN_FREED_BEFORE: u64 = 10;
/// Fewest blocks beyond the age that say anything.
const MIN_SURVIVORS: u64 = 8;
/// The age is at least 2^29 ns, half a second: below, births are not known well enough.
const FIRST_BUCKET: u8 = 29;

/// Live blocks of one time of birth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Births {
    /// Since the start of the recording.
    pub born_ns: u64,
    /// Blocks.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The blocks of one site at the end of a recording.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockAges {
    /// Those that are live.
    pub live: Vec<Births>,
    /// Those that were freed: `floor(log2(lifetime in ns))` and how many.
    pub freed: Vec<(u8, u64)>,
    /// Length of the recording.
    pub elapsed_ns: u64,
}

/// What ages say about a site.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Survival {
    /// The age from which on practically no block was freed, in ns; `None` where there is none.
    pub settled_age_ns: Option<u64>,
    /// Blocks that are live and at least that old; without such an age, a third of the recording old.
    pub survivors: u64,
    /// Their bytes.
    pub survivor_bytes: u64,
    /// Blocks that were freed when they were at least that old.
    pub freed_older: u64,
    /// Whether the survivors were born all through the recording, or since a moment in its first half.
    pub is_steady: bool,
    /// Whether they were born ever more rarely: it fills, or warms up.
    pub is_slowing: bool,
    /// Bytes of survivors per second of births; `None` where they are not steady.
    pub growth_bytes_per_s: Option<f64>,
}

impl Survival {
    /// Of the blocks that got that old, the part that is live; `None` where none did.
    pub fn surviving_part(&self) -> Option<f64> {
        let all = self.survivors.saturating_add(self.freed_older);
        (all > 0).then(|| self.survivors as f64 / all as f64)
    }

    /// Whether there are enough blocks of that age to say that they are freed, or are not.
    pub fn has_enough(&self) -> bool {
        self.survivors.saturating_add(self.freed_older) >= MIN_SURVIVORS
    }
}

/// Judges the blocks of a site.
pub fn survival(ages: &BlockAges) -> Survival {
    let mut last = None;
    for bucket in FIRST_BUCKET..63 {
        let age_ns = 1u64 << bucket;
        // Enough births must be left that are older.
        if age_ns > ages.elapsed_ns / 5 * 3 {
            break;
        }
        let is_early = age_ns <= ages.elapsed_ns / 3;
        let found = ages.at_age(bucket);
        let most = |part: f64| found.freed_older as f64 <= part * found.survivors as f64;
        let is_settled = found.survivors >= MIN_SURVIVORS
            && ((is_early && most(MAX_FREED_PART))
                || (most(MAX_FREED_PART_FALLEN) && ages.has_fallen(bucket, &found)));
        if is_settled {
            let (is_slowing, growth_bytes_per_s) = match ages.rate(age_ns) {
                Rate::Steady(growth_bytes_per_s) => (false, Some(growth_bytes_per_s)),
                Rate::Falling => (true, None),
                Rate::Uneven => (false, None),
            };
            let is_steady = growth_bytes_per_s.is_some();
            return Survival {
                settled_age_ns: Some(age_ns),
                is_steady,
                is_slowing,
                growth_bytes_per_s,
                ..found
            };
        }
        if is_early || last.is_none() {
            last = Some(found);
        }
    }
    last.unwrap_or_else(|| ages.at_age(63))
}

impl BlockAges {
    fn older_than(&self, age_ns: u64) -> impl Iterator<Item = &Births> {
        let window_ns = self.elapsed_ns.saturating_sub(age_ns);
        self.live.iter().filter(move |births| births.born_ns < window_ns)
    }

    fn freed_from(&self, bucket: u8) -> u64 {
        let older = self.freed.iter().filter(|(at, _)| *at >= bucket);
        older.map(|(_, count)| *count).fold(0, u64::saturating_add)
    }

    fn at_age(&self, bucket: u8) -> Survival {
        let age_ns = 1u64 << bucket.min(63);
        let sum = |get: fn(&Births) -> u64| self.older_than(age_ns).map(get).fold(0, u64::saturating_add);
        Survival {
            settled_age_ns: None,
            survivors: sum(|births| births.count),
            survivor_bytes: sum(|births| births.bytes),
            freed_older: self.freed_from(bucket),
            is_steady: false,
            is_slowing: false,
            growth_bytes_per_s: None,
        }
    }

    /// Whether blocks of this age and more are freed at a tenth of the rate, at most, at which blocks between a quarter of
    /// the age and the age are: frees by block and second of exposure, as a life table has them (Berkson and Gage, Proceedings of
    /// the Staff Meetings of the Mayo Clinic 25 (1950) 270). One more than were seen is taken for what may have
    /// been missed by chance.
    fn has_fallen(&self, bucket: u8, found: &Survival) -> bool {
        let age_s = seconds(1u64 << bucket);
        let from = |first: u8| self.freed_from(first) as f64;
        let (old, half, quarter) = (from(bucket), from(bucket - 1), from(bucket - 2));
        let freed_before = quarter - old;
        if freed_before < MIN_FREED_BEFORE as f64 {
            return false;
        }
        let exposed = |begin_s: f64, end_s: f64| -> f64 {
            let end_ns = self.elapsed_ns;
            let lived_s =
                |births: &Births| seconds(end_ns.saturating_sub(births.born_ns)).min(end_s) - begin_s;
            self.live.iter().map(|births| lived_s(births).max(0.0) * births.count as f64).sum()
        };
        // Those that were freed lived for half of their bucket, as far as is known.
        let before_s = exposed(age_s / 4.0, age_s)
            + 0.75 * age_s * old
            + 0.5 * age_s * (half - old)
            + 0.125 * age_s * (quarter - half);
        let after_s = exposed(age_s, f64::INFINITY) + 0.5 * age_s * old;
        after_s > 0.0 && (found.freed_older as f64 + 1.0) / after_s <= FALLEN_RATE * freed_before / before_s
    }
}

fn seconds(time_ns: u64) -> f64 {
    time_ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// `rate` live blocks of 100 bytes for each tenth of a second between two seconds.
    fn born(from_s: u64, to_s: u64, each: u64) -> Vec<Births> {
        let births = |tenth| Births { born_ns: tenth * SECOND / 10, count: each, bytes: each * 100 };
        (from_s * 10..to_s * 10).map(births).collect()
    }

    /// Of the bucket that a lifetime in milliseconds falls into.
    fn freed(lifetime_ms: u64, count: u64) -> (u8, u64) {
        ((lifetime_ms * 1_000_000).ilog2() as u8, count)
    }

    fn survival(live: &[Births], freed: &[(u8, u64)], elapsed_ns: u64) -> Survival {
        super::survival(&BlockAges { live: live.to_vec(), freed: freed.to_vec(), elapsed_ns })
    }

    #[test]
    fn a_leak_under_churn_is_seen() {
        let churn = [freed(1, 9_000_000), freed(40, 500_000), freed(250, 3)];
        let live =
            [born(0, 30, 2), vec![Births { born_ns: 29_900_000_000, count: 4000, bytes: 400_000 }]].concat();
        let seen = survival(&live, &churn, 30 * SECOND);
        assert_eq!((seen.settled_age_ns, seen.is_steady, seen.freed_older), (Some(1 << 29), true, 0));
        let growth = seen.growth_bytes_per_s.unwrap_or(0.0);
        assert!((1950.0..2050.0).contains(&growth), "{growth}");
        assert_eq!(seen.surviving_part(), Some(1.0));
    }

    #[test]
    fn what_frees_old_blocks_does_not_leak() {
        // An LRU cache with room for ten seconds.
        let seen = survival(&born(20, 30, 50), &[freed(10_000, 10_000)], 30 * SECOND);
        assert_eq!((seen.settled_age_ns, seen.growth_bytes_per_s), (None, None));
        // Sessions with a mean lifetime of a minute.
        let sessions = [
            freed(600, 40),
            freed(1200, 80),
            freed(2500, 150),
            freed(5000, 280),
            freed(9000, 300),
            freed(20_000, 60),
        ];
        let seen = survival(&born(0, 30, 30), &sessions, 30 * SECOND);
        assert_eq!((seen.settled_age_ns, seen.growth_bytes_per_s), (None, None));
    }

    #[test]
    fn what_is_born_once_does_not_leak() {
        for (live, what) in [
            (born(0, 10, 90), "a cache that has filled, and is not full"),
            (born(5, 6, 400), "a pool that grew once"),
            (born(0, 2, 50), "a warm-up"),
            (born(27, 30, 50), "too young to say"),
            (born(12, 13, 3), "few"),
        ] {
            let seen = survival(&live, &[freed(2, 10_000)], 30 * SECOND);
            assert_eq!(seen.growth_bytes_per_s, None, "{what}: {seen:?}");
        }
    }

    /// Blocks for each tenth of a second, whose number follows a time constant.
    fn filling(constant_s: f64, first: f64) -> Vec<Births> {
        (0..300)
            .map(|tenth| {
                let count = (first * (-f64::from(tenth) / 10.0 / constant_s).exp()).round() as u64;
                Births { born_ns: u64::from(tenth as u32) * SECOND / 10, count, bytes: count * 100 }
            })
            .collect()
    }

    #[test]
    fn what_is_born_ever_more_rarely_fills() {
        let seen = survival(&filling(15.0, 50.0), &[freed(2, 10_000)], 30 * SECOND);
        assert_eq!((seen.is_slowing, seen.growth_bytes_per_s), (true, None));
        // Practically no end in sight.
        let seen = survival(&filling(150.0, 50.0), &[freed(2, 10_000)], 30 * SECOND);
        assert!(!seen.is_slowing && seen.growth_bytes_per_s.is_some(), "{seen:?}");
    }

    #[test]
    fn a_leak_after_a_warm_up_has_the_rate_of_after() {
        let live = [born(0, 3, 200), born(3, 30, 2)].concat();
        let seen = survival(&live, &[], 30 * SECOND);
        let growth = seen.growth_bytes_per_s.unwrap_or(0.0);
        assert!((1900.0..2100.0).contains(&growth), "{seen:?}");
    }

    #[test]
    fn a_leak_that_begins_later_has_the_rate_of_since() {
        let growth = survival(&born(12, 30, 5), &[], 30 * SECOND).growth_bytes_per_s.unwrap_or(0.0);
        assert!((4900.0..5100.0).contains(&growth), "{growth}");
        assert_eq!(survival(&born(20, 30, 5), &[], 30 * SECOND).growth_bytes_per_s, None);
    }

    /// Of churn that lives for 3 s on average, next to none gets older than 17 s; what is leaked does.
    #[test]
    fn a_rate_of_frees_that_falls_shows_a_leak_under_long_churn() {
        let churn = [freed(1500, 8000), freed(3000, 5000), freed(6000, 2400), freed(12_000, 700)];
        let live = [born(0, 30, 5), born(28, 30, 90)].concat();
        let seen = survival(&live, &[&churn[..], &[freed(18_000, 40)]].concat(), 30 * SECOND);
        assert_eq!((seen.settled_age_ns, seen.freed_older), (Some(1 << 34), 40));
        assert!(seen.growth_bytes_per_s.is_some());
        // As many of the old ones are freed as of the middle-aged: all of them die at random.
        let seen = survival(&live, &[&churn[..], &[freed(18_000, 400)]].concat(), 30 * SECOND);
        assert_eq!(seen.settled_age_ns, None);
    }

    #[test]
    fn a_few_large_blocks_are_enough() {
        let live: Vec<Births> =
            (0..15).map(|n| Births { born_ns: n * 2 * SECOND + SECOND, count: 1, bytes: 1 << 20 }).collect();
        let growth = survival(&live, &[], 30 * SECOND).growth_bytes_per_s.unwrap_or(0.0);
        assert!((0.95..1.05).contains(&(growth / (512.0 * 1024.0))), "{growth}");
    }
}
