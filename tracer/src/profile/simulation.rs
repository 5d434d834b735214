//! Made-up allocation sites whose truth is known, and how often the verdict on them is wrong: the table of sites in
//! `docs/verdicts.md`.
//!
//! A site is a list of blocks: when each is allocated, how large it is, and when it is freed. What a recording would know of them
//! is kept as it would be known: bytes and blocks once a second, lifetimes in powers of two, live blocks by tenths of a
//! second. The recording begins at zero; what was allocated before is not known to it, as after an attach. The judge
//! is the one of the reports, [`Observed::judge`].

mod cases;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use cases::cases;

use super::survival::{Births, BlockAges};
use super::verdict::{Observed, SiteKind};
use crate::model::LiveAge;
use crate::trend::Floors;
use crate::trend::simulation::{Random, Truth};

/// A family of sites.
pub struct Case {
    /// What it is.
    pub name: &'static str,
    /// Whether it leaks.
    pub truth: Truth,
    make: fn(&mut Random, &mut Blocks),
}

/// How often a case was judged in each way, as parts of 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// `leak`.
    pub leak: f64,
    /// `undetermined`.
    pub open: f64,
    /// Of the leaks found: the median of how far the rate is beside the truth, as a part of it.
    pub rate_error: Option<f64>,
}

impl Case {
    /// One of them, watched for so long.
    pub fn site(&self, seed: u64, seconds: u32) -> Blocks {
        let mut random = Random::new(seed);
        let mut blocks = Blocks::new(seconds);
        (self.make)(&mut random, &mut blocks);
        blocks
    }

    /// How often each verdict was given over `seeds` seeds from `first_seed` on.
    pub fn rates(&self, first_seed: u64, seeds: u64, seconds: u32) -> Rates {
        let mut rates = Rates::default();
        let mut errors = Vec::new();
        for seed in first_seed..first_seed.saturating_add(seeds) {
            let blocks = self.site(seed, seconds);
            let verdict = blocks.observed().judge(&Floors::EXACT);
            let one = 1.0 / seeds as f64;
            match verdict.kind {
                SiteKind::Leak => rates.leak += one,
                SiteKind::Undetermined => rates.open += one,
                SiteKind::WarmUp | SiteKind::Sawtooth | SiteKind::Plateau => {}
            }
            let known = verdict.growth_bytes_per_s.zip(blocks.leak_bytes_per_s);
            errors.extend(known.map(|(found, truth)| (found / truth - 1.0).abs()));
        }
        errors.sort_unstable_by(f64::total_cmp);
        rates.rate_error = errors.get(errors.len() / 2).copied();
        rates
    }
}

/// The blocks of one site, as far as a recording keeps them.
#[derive(Clone, Debug)]
pub struct Blocks {
    seconds: u32,
    /// Change of bytes and blocks at each second.
    changes: Vec<(f64, i64)>,
    live: BTreeMap<u64, (u64, f64)>,
    freed: BTreeMap<u8, u64>,
    last_freed_ns: Option<u64>,
    /// What is leaked, for the comparison with the rate found.
    leak_bytes_per_s: Option<f64>,
}

impl Blocks {
    fn new(seconds: u32) -> Self {
        Self {
            seconds,
            changes: vec![(0.0, 0); seconds as usize + 1],
            live: BTreeMap::new(),
            freed: BTreeMap::new(),
            last_freed_ns: None,
            leak_bytes_per_s: None,
        }
    }

    /// Length of the recording, in seconds.
    fn length(&self) -> f64 {
        f64::from(self.seconds)
    }

    /// One block, born at `born_s` with `bytes`, that lives for `lifetime_s`. What is born outside of the recording is not seen.
    fn push(&mut self, born_s: f64, lifetime_s: f64, bytes: f64) {
        if !(0.0..self.length()).contains(&born_s) {
            return;
        }
        let bytes = bytes.round().max(1.0);
        let freed_s = born_s + lifetime_s;
        self.change(born_s, bytes, 1);
        if freed_s < self.length() {
            self.change(freed_s, -bytes, -1);
            let lifetime_ns = (lifetime_s * 1e9).max(1024.0) as u64;
            *self.freed.entry(lifetime_ns.ilog2() as u8).or_default() += 1;
            self.last_freed_ns = self.last_freed_ns.max(Some((freed_s * 1e9) as u64));
        } else {
            let born_ns = (born_s * 1e9) as u64;
            let births = self.live.entry(born_ns - born_ns % LiveAge::RESOLUTION_NS).or_default();
            *births = (births.0 + 1, births.1 + bytes);
        }
    }

    /// It shows at the next sample.
    fn change(&mut self, at_s: f64, bytes: f64, count: i64) {
        if let Some(change) = self.changes.get_mut(at_s.ceil() as usize) {
            *change = (change.0 + bytes, change.1 + count);
        }
    }

    /// What a recording has of them.
    pub fn observed(&self) -> Observed {
        let (mut bytes, mut count) = (0.0, 0i64);
        let mut counts = Vec::with_capacity(self.changes.len());
        let mut points = Vec::with_capacity(self.changes.len());
        for (second, change) in self.changes.iter().enumerate() {
            bytes += change.0;
            count += change.1;
            points.push((second as f64, bytes));
            counts.push(u64::try_from(count).unwrap_or(0));
        }
        let births = |(born_ns, (count, bytes)): (&u64, &(u64, f64))| Births {
            born_ns: *born_ns,
            count: *count,
            bytes: *bytes as u64,
        };
        let ages = BlockAges {
            live: self.live.iter().map(births).collect(),
            freed: self.freed.iter().map(|(bucket, count)| (*bucket, *count)).collect(),
            elapsed_ns: u64::from(self.seconds) * 1_000_000_000,
        };
        // As in a recording: ages of nothing are not known.
        let ages = (!ages.live.is_empty()).then_some(ages);
        Observed { points, counts, ages, last_freed_ns: self.last_freed_ns }
    }
}
