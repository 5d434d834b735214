//! Do the blocks of a site ever die? What the outstanding bytes hide under churn, the ages show.
//!
//! A site that churns and leaks a little has blocks that live for a moment, and blocks that live for ever. An age is
//! looked for beyond which practically no block was freed: of those that got older, nearly all are live. If these
//! were born all through the recording, not only in its beginning, their number grows without bound, whatever the
//! noise of the churn. A cache that is full fails the first test, since it frees old blocks; one that was filled
//! once, and a pool that has warmed up, fail the second.

/// Part of the blocks beyond the age that may have been freed.
const MAX_FREED_PART: f64 = 0.02;
/// Fewest blocks beyond the age that say anything.
const MIN_SURVIVORS: u64 = 8;
/// Parts that the time of the births is cut into.
const SLICES: usize = 8;
/// Slices in which survivors must have been born.
const MIN_SLICES: usize = 5;
/// Least part of the survivors that must have been born in the second half, and most.
const LATE_PART: std::ops::RangeInclusive<f64> = 0.25..=0.85;
/// Largest part that one slice may have: more is an event, not a rate.
const MAX_SLICE_PART: f64 = 0.5;
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
    /// Whether the survivors were born all through the recording.
    pub is_steady: bool,
    /// Bytes of survivors per second of births; `None` where they are not steady.
    pub growth_bytes_per_s: Option<f64>,
}

impl Survival {
    /// Of the blocks that got that old, the part that is live; `None` where none did.
    pub fn surviving_part(&self) -> Option<f64> {
        let all = self.survivors.saturating_add(self.freed_older);
        (all > 0).then(|| self.survivors as f64 / all as f64)
    }
}

/// Judges the blocks of a site. `freed` are its freed blocks by `floor(log2(lifetime in ns))`.
pub fn survival(live: &[Births], freed: &[(u8, u64)], elapsed_ns: u64) -> Survival {
    let longest_ns = elapsed_ns / 3;
    let mut best = None;
    for bucket in FIRST_BUCKET..63 {
        let age_ns = 1u64 << bucket;
        if age_ns > longest_ns {
            break;
        }
        let found = at_age(live, freed, elapsed_ns, bucket);
        let is_settled = found.survivors >= MIN_SURVIVORS
            && found.freed_older as f64 <= MAX_FREED_PART * found.survivors as f64;
        if is_settled {
            let growth_bytes_per_s =
                found.is_steady.then(|| found.survivor_bytes as f64 / ((elapsed_ns - age_ns) as f64 / 1e9));
            return Survival { settled_age_ns: Some(age_ns), growth_bytes_per_s, ..found };
        }
        best = Some(found);
    }
    let nothing = Survival {
        settled_age_ns: None,
        survivors: 0,
        survivor_bytes: 0,
        freed_older: 0,
        is_steady: false,
        growth_bytes_per_s: None,
    };
    Survival { is_steady: false, ..best.unwrap_or(nothing) }
}

fn at_age(live: &[Births], freed: &[(u8, u64)], elapsed_ns: u64, bucket: u8) -> Survival {
    let window_ns = elapsed_ns.saturating_sub(1 << bucket);
    let mut slices = [0u64; SLICES];
    let (mut survivors, mut survivor_bytes) = (0u64, 0u64);
    for births in live.iter().filter(|births| births.born_ns < window_ns) {
        survivors = survivors.saturating_add(births.count);
        survivor_bytes = survivor_bytes.saturating_add(births.bytes);
        let slice = u128::from(births.born_ns) * SLICES as u128 / u128::from(window_ns.max(1));
        if let Some(count) = slices.get_mut(slice as usize) {
            *count = count.saturating_add(births.count);
        }
    }
    let older = freed.iter().filter(|(at, _)| *at >= bucket).map(|(_, count)| *count);
    Survival {
        settled_age_ns: None,
        survivors,
        survivor_bytes,
        freed_older: older.fold(0, u64::saturating_add),
        is_steady: is_steady(&slices, survivors),
        growth_bytes_per_s: None,
    }
}

fn is_steady(slices: &[u64; SLICES], survivors: u64) -> bool {
    let all = survivors.max(1) as f64;
    let late: u64 = slices.iter().skip(SLICES / 2).sum();
    let largest = slices.iter().copied().max().unwrap_or(0);
    let filled = slices.iter().filter(|count| **count > 0).count();
    filled >= MIN_SLICES
        && LATE_PART.contains(&(late as f64 / all))
        && largest as f64 / all <= MAX_SLICE_PART
        // Births that stop are a warm-up: one of the last two slices must have its part.
        && slices.iter().skip(SLICES - 2).sum::<u64>() as f64 / all >= 0.5 * 2.0 / SLICES as f64
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
        let sessions =
            [freed(600, 40), freed(1200, 80), freed(2500, 150), freed(5000, 280), freed(9000, 300)];
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

    #[test]
    fn a_few_large_blocks_are_enough() {
        let live: Vec<Births> =
            (0..15).map(|n| Births { born_ns: n * 2 * SECOND + SECOND, count: 1, bytes: 1 << 20 }).collect();
        let growth = survival(&live, &[], 30 * SECOND).growth_bytes_per_s.unwrap_or(0.0);
        assert!((0.95..1.05).contains(&(growth / (512.0 * 1024.0))), "{growth}");
    }
}
