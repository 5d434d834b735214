//! Verdicts on whole recordings: what the series and the ages say together.

use super::super::SiteKind;
use super::*;
use crate::model::{Lifetime, LiveAge, SampledAge};

const TENTH: u64 = LiveAge::RESOLUTION_NS;

/// One allocation: when, how large, and when it is freed, in tenths of a second.
struct Block {
    born: u64,
    bytes: u64,
    freed: Option<u64>,
}

/// A recording of one site, with everything the recorder would have written.
fn recorded(seconds: u64, blocks: &[Block]) -> Recording {
    let mut recording = Recording::new();
    let object = recording.object("/srv/app", Some("ee55"));
    let frame = recording.frame(object, 0x100, at("site", "site.c", 1));
    recording.stack(1, StackEnd::ThreadStart, &[frame]);
    let end = seconds * 10;
    for second in 0..=seconds {
        let now = second * 10;
        let mut counters = SiteCounters::default();
        for block in blocks.iter().filter(|block| block.born <= now) {
            counters.allocated_bytes += block.bytes;
            counters.allocated_count += 1;
            if block.freed.is_some_and(|freed| freed <= now) {
                counters.freed_bytes += block.bytes;
                counters.freed_count += 1;
            }
        }
        recording.tick(second, &[(1, counters)], 50 * MIB);
    }
    recording.finish = Some((crate::model::EndReason::Duration, seconds * 1_000_000_000));
    for block in blocks.iter().filter(|block| block.born <= end) {
        match block.freed.filter(|freed| *freed <= end) {
            Some(freed) => {
                let bucket = ((freed - block.born).max(1) * TENTH).ilog2() as u8;
                match recording.lifetimes.iter_mut().find(|known| known.bucket == bucket) {
                    Some(known) => known.count += 1,
                    None => recording.lifetimes.push(Lifetime { site: 1, bucket, count: 1 }),
                }
            }
            None => recording.live_ages.push(LiveAge {
                site: 1,
                born_ns: block.born * TENTH,
                count: 1,
                bytes: block.bytes,
            }),
        }
    }
    recording
}

/// The verdict, and whether the ages decided; `None` where nothing is outstanding at the end.
fn kind(seconds: u64, blocks: &[Block]) -> Option<(SiteKind, bool)> {
    let profile = profile(&recorded(seconds, blocks), Filter::default());
    profile.sites[0].verdict.as_ref().map(|verdict| (verdict.kind, verdict.by_survivors))
}

/// Deterministic noise.
fn noise(seed: u64) -> u64 {
    seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33
}

/// Blocks that live for up to two tenths, and some larger ones now and then.
fn churn(seconds: u64, each_tenth: u64) -> Vec<Block> {
    (0..seconds * 10 * each_tenth)
        .map(|n| {
            let born = n / each_tenth;
            Block { born, bytes: 64 + noise(n) % 4096, freed: Some(born + 1 + noise(n + 1) % 2) }
        })
        .collect()
}

fn kept(born: u64, bytes: u64) -> Block {
    Block { born, bytes, freed: None }
}

#[test]
fn a_steady_leak_is_a_leak() {
    for seconds in [15, 30, 60] {
        let blocks: Vec<_> = (0..seconds * 10).map(|tenth| kept(tenth, 100)).collect();
        assert_eq!(kind(seconds, &blocks), Some((SiteKind::Leak, false)), "{seconds} s");
    }
}

#[test]
fn a_slow_leak_under_heavy_churn_is_found_by_its_survivors() {
    for seconds in [15, 30, 60] {
        let mut blocks = churn(seconds, 200);
        blocks.extend((0..seconds * 10).step_by(5).map(|tenth| kept(tenth, 128)));
        let (kind, by_survivors) = kind(seconds, &blocks).unwrap();
        assert_eq!(kind, SiteKind::Leak, "{seconds} s");
        let profile = profile(&recorded(seconds, &blocks), Filter::default());
        let verdict = profile.sites[0].verdict.as_ref().unwrap();
        let rate = verdict.growth_bytes_per_s.unwrap();
        if by_survivors {
            assert!((rate - 256.0).abs() < 0.06 * 256.0, "{rate} bytes/s");
        }
    }
}

#[test]
fn what_does_not_leak_is_not_called_a_leak() {
    for seconds in [15, 30, 60] {
        let lru = |room: u64| -> Vec<Block> {
            (0..seconds * 20).map(|n| Block { born: n / 2, bytes: 512, freed: Some(n / 2 + room) }).collect()
        };
        let pool: Vec<_> = (0..500).map(|_| kept(seconds * 4, 1000)).collect();
        let warm: Vec<_> = (0..seconds * 3).map(|tenth| kept(tenth, 700)).collect();
        let saw: Vec<_> = (0..seconds * 10)
            .map(|tenth| Block { born: tenth, bytes: 4096, freed: Some((tenth / 20 + 1) * 20) })
            .collect();
        let both = || churn(seconds, 50).into_iter();
        for (blocks, what) in [
            (churn(seconds, 100), "churn"),
            (lru(seconds * 2), "a cache that is full after a fifth of the time"),
            (both().chain(lru(seconds * 2)).collect(), "the same under churn"),
            (pool, "a pool that grew once"),
            (warm, "a warm-up"),
            (saw, "a sawtooth"),
        ] {
            let found = kind(seconds, &blocks);
            assert!(found.is_none_or(|(kind, _)| kind != SiteKind::Leak), "{what}, {seconds} s");
        }
    }
}

/// A buffer that grows by reallocation has no old blocks: its size is what grows.
#[test]
fn growth_by_reallocation_is_a_leak() {
    for seconds in [15, 30, 60] {
        let buffer: Vec<_> = (0..=seconds * 10)
            .step_by(3)
            .map(|tenth| Block { born: tenth, bytes: 4096 + 100 * tenth, freed: Some(tenth + 3) })
            .collect();
        assert_eq!(kind(seconds, &buffer), Some((SiteKind::Leak, false)), "{seconds} s");
    }
}

/// More and more blocks that all live for a moment: a load that rises.
#[test]
fn a_rate_that_rises_is_no_leak_and_says_how_long_to_look() {
    let blocks: Vec<_> = (0..300)
        .flat_map(|tenth| {
            (0..1 + tenth / 3).map(move |_| Block { born: tenth, bytes: 64, freed: Some(tenth + 4) })
        })
        .collect();
    assert_eq!(kind(30, &blocks), Some((SiteKind::Undetermined, true)));
    let profile = profile(&recorded(30, &blocks), Filter::default());
    assert!(profile.sites[0].verdict.as_ref().unwrap().needed_s().unwrap() >= 29.0);
}

#[test]
fn leaks_come_before_what_is_larger() {
    let mut recording = recorded(30, &(0..300).map(|tenth| kept(tenth, 100)).collect::<Vec<_>>());
    let object = recording.object("/srv/app", Some("ee55"));
    let cache = recording.frame(object, 0x200, at("cache", "site.c", 9));
    recording.stack(2, StackEnd::ThreadStart, &[cache]);
    recording.ticks[1].1.push((2, blocks(1 << 20, 64, 0)));
    recording.live_ages.push(LiveAge { site: 2, born_ns: 900_000_000, count: 64, bytes: 64 << 20 });
    let order = |sort| {
        let profile = profile(&recording, Filter { sort, ..Filter::default() });
        profile.sites.iter().map(|site| site.numbers[0]).collect::<Vec<_>>()
    };
    assert_eq!((order(Sort::Verdict), order(Sort::Outstanding)), (vec![1, 2], vec![2, 1]));
}

/// What a sampled block stands for is no evidence: four blocks are four, however many they stand for.
#[test]
fn only_blocks_that_were_seen_are_evidence() {
    let blocks: Vec<_> = (0..300).map(|tenth| kept(tenth, 100)).collect();
    let survivors = |seen: u64| {
        let mut recording = recorded(30, &blocks);
        recording.sampled_ages = recording
            .live_ages
            .iter()
            .enumerate()
            .map(|(index, age)| SampledAge {
                site: age.site,
                born_ns: age.born_ns,
                count: u64::from((index as u64).is_multiple_of(300 / seen)),
            })
            .collect();
        let profile = profile(&recording, Filter::default());
        profile.sites[0].verdict.as_ref().unwrap().survival.unwrap().survivors
    };
    assert!((2..=4).contains(&survivors(4)), "{}", survivors(4));
    assert!(survivors(100) > 60, "{}", survivors(100));
}
