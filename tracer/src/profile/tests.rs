//! Folds of hand-written recordings.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;
use tracer_common::abi::{Loss, SiteCounters};

use super::{Broken, Filter, Profile, ProfileError, Sort, StackShares, Suppressions};
use crate::capture::fixture::{MIB, Recording, at, blocks, clean, leaky};
use crate::model::StackEnd;

mod collector;
mod diff;
mod several;
mod verdict;

fn profile(recording: &Recording, filter: Filter) -> Profile {
    Profile::new(recording.capture(), filter).unwrap()
}

#[test]
fn sites_are_merged_over_epochs_and_ranked() {
    let profile = profile(&leaky(), Filter::default());
    let rows: Vec<_> = profile.sites.iter().map(|site| (site.rank, site.numbers.clone())).collect();
    assert_eq!(rows, [(1, vec![1, 3]), (2, vec![2]), (3, vec![0]), (4, vec![4])]);
    let first = &profile.sites[0];
    assert_eq!(first.outstanding_bytes, (2560 + 64) * 4096);
    assert_eq!(first.outstanding_count, 2624);
    assert_eq!(first.counters, blocks(4096, 2624, 0));
    assert_eq!(first.growth_bytes_per_s, Some(MIB as f64), "the jump of 64 blocks is an outlier");
    assert_eq!(profile.sites[1].growth_bytes_per_s, Some(0.0), "a cache that is full does not grow");
    assert_eq!(profile.sites[3].outstanding_bytes, 500);
    assert_eq!(profile.totals.sites, 4);
    let rss = profile.rss.unwrap();
    assert_eq!((rss.start_bytes, rss.end_bytes), (101 * MIB, 110 * MIB));
    assert_eq!(rss.growth_bytes_per_s, Some(MIB as f64));
    let cost = profile.cost.unwrap();
    assert_eq!((cost.probe_hits_per_s, cost.probe_cpu_percent), (1234.5, Some(0.4)));
}

#[test]
fn the_culprit_is_the_first_that_is_not_a_wrapper() {
    let profile = profile(&leaky(), Filter::default());
    let name = |index: usize| {
        let site = &profile.sites[index];
        profile.stack(site).nth(site.culprit).map(|frame| frame.label())
    };
    assert_eq!(name(0).unwrap(), "leak_scratch(unsigned long)");
    assert!(name(1).unwrap().starts_with("Cache::remember("));
    assert_eq!(profile.sites[1].culprit, 2, "operator new and the inlined allocator are passed over");
    assert_eq!(name(2), None);
}

#[test]
fn lost_stacks_are_a_row_with_a_reason() {
    let profile = profile(&leaky(), Filter::default());
    let lost = &profile.sites[2];
    assert!(lost.is_lost && lost.frames.is_empty());
    assert_eq!((lost.end, lost.lost_by.as_slice()), (StackEnd::NotKept, &["stack-ring-full"][..]));
    assert_eq!((lost.outstanding_bytes, lost.outstanding_count), (9 * 512, 9));
}

#[test]
fn completeness_tells_loss_from_observation() {
    let recording = leaky();
    let completeness = profile(&recording, Filter::default()).completeness;
    assert!(!completeness.is_complete && completeness.is_finished);
    assert_eq!(completeness.incomplete_losses().count(), 1);
    let allocated_count = 2560 + 64 + 3 + 500 + 9;
    let whole_allocated_count = allocated_count - 500 - 9;
    assert_eq!(
        completeness.stacks,
        StackShares { total: 3, whole: 2, allocated_count, whole_allocated_count }
    );
    let function = Some("\u{1b}[31mevil\u{202e}\n.so+0x10".to_string());
    let broken = Broken { function, end: StackEnd::NoTable, stacks: 1, allocated_count: 500 };
    assert_eq!(completeness.broken, [broken]);

    let mut observed = clean();
    observed.loss(Loss::UnknownRelease, 5, 0);
    assert!(profile(&observed, Filter::default()).is_complete());
    observed.loss(Loss::MissedRelease, 1, 0);
    assert!(!profile(&observed, Filter::default()).is_complete());
    let mut unfinished = clean();
    unfinished.finish = None;
    assert!(!profile(&unfinished, Filter::default()).is_complete());
}

#[test]
fn orders_and_top() {
    let ranks = |sort, top| {
        let profile = profile(&leaky(), Filter { sort, top, ..Filter::default() });
        assert_eq!(profile.totals.sites, 4, "totals know of all");
        profile.sites.iter().map(|site| site.numbers[0]).collect::<Vec<_>>()
    };
    assert_eq!(ranks(Sort::Outstanding, None), [1, 2, 0, 4]);
    assert_eq!(ranks(Sort::Count, None), [1, 0, 4, 2]);
    assert_eq!(ranks(Sort::Growth, Some(1)), [1]);
}

#[test]
fn a_minimum_age_counts_blocks_that_are_surely_older() {
    let bytes = |age_ns: u64| {
        let profile = profile(&leaky(), Filter { min_age_ns: Some(age_ns), ..Filter::default() });
        assert_eq!(
            profile.sites.iter().map(|site| site.outstanding_bytes).sum::<u64>(),
            profile.totals.outstanding_bytes
        );
        let of = |number| {
            profile.sites.iter().find(|site| site.numbers.contains(&number)).unwrap().outstanding_bytes
        };
        (of(1), of(2), of(4))
    };
    assert_eq!(bytes(0), (2624 * 4096, 3 << 20, 500));
    assert_eq!(bytes(100_000_000), (2624 * 4096, 3 << 20, 0), "may be younger than 0.1 s");
    assert_eq!(bytes(5_000_000_000), (1280 * 4096, 3 << 20, 0));
    assert_eq!(bytes(7_400_000_000), (1280 * 4096, 3 << 20, 0));
    assert_eq!(bytes(7_400_000_001), (1280 * 4096, 0, 0));
    assert_eq!(bytes(u64::MAX), (0, 0, 0));
}

#[test]
fn a_minimum_age_without_ages_is_an_error() {
    let mut recording = leaky();
    recording.live_ages.clear();
    let filter = Filter { min_age_ns: Some(1), ..Filter::default() };
    assert_eq!(Profile::new(recording.capture(), filter.clone()).err(), Some(ProfileError::NoAges));
    assert!(Profile::new(clean().capture(), filter).is_ok(), "nothing is outstanding, so nothing has an age");
}

#[test]
fn what_was_not_measured_is_none() {
    let mut recording = Recording::new();
    recording.tick(1, &[(1, blocks(8, 1, 0))], 5);
    recording.tick(2, &[], 6);
    let two = profile(&recording, Filter::default());
    assert_eq!((two.sites[0].growth_bytes_per_s, two.rss.unwrap().growth_bytes_per_s), (None, None));
    assert!(two.sites[0].is_lost, "a site without a stack");
    recording.tick(3, &[], 7);
    let three = profile(&recording, Filter::default());
    assert_eq!(three.sites[0].growth_bytes_per_s, Some(0.0));
    let empty = profile(&Recording::new(), Filter::default());
    assert_eq!((empty.rss, empty.cost, empty.sites.len()), (None, None, 0));
}

prop_compose! {
    fn any_site()(
        offset in 0u64..6,
        end in prop::sample::select(StackEnd::ALL.to_vec()),
        has_stack in prop::bool::weighted(0.9),
        steps in prop::collection::vec((0u64..4, 0u64..1 << 40, 0u64..1000, 0u64..100), 0..6),
    ) -> (u64, StackEnd, bool, Vec<(u64, SiteCounters)>) {
        let (mut second, mut sum) = (1, SiteCounters::default());
        let steps = steps.into_iter().map(|(gap, bytes, count, freed_percent)| {
            second += gap + 1;
            sum.allocated_bytes += bytes;
            sum.allocated_count += count;
            sum.freed_bytes += bytes * freed_percent / 100;
            sum.freed_count += count * freed_percent / 100;
            (second, sum)
        }).collect();
        (offset, end, has_stack, steps)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn rows_sum_up_to_the_counters(sites in prop::collection::vec(any_site(), 0..20)) {
        let mut recording = Recording::new();
        let object = recording.object("/bin/x", None);
        let mut expected = SiteCounters::default();
        let mut ticks = vec![Vec::new(); 40];
        for (number, (offset, end, has_stack, steps)) in (0u32..).zip(sites) {
            let frame = recording.frame(object, offset, at("f", "f.c", 1));
            if has_stack {
                recording.stack(number, end, &[frame]);
            }
            if let Some((_, last)) = steps.last() {
                expected.allocated_bytes += last.allocated_bytes;
                expected.allocated_count += last.allocated_count;
                expected.freed_bytes += last.freed_bytes;
                expected.freed_count += last.freed_count;
            }
            for (second, counters) in steps {
                ticks[second as usize].push((number, counters));
            }
        }
        for (second, samples) in ticks.iter().enumerate() {
            recording.tick(second as u64, samples, 1);
        }
        let profile = profile(&recording, Filter::default());
        prop_assert_eq!(profile.totals.counters, expected);
        let sum = |get: fn(&super::Site) -> u64| profile.sites.iter().map(get).sum::<u64>();
        prop_assert_eq!(sum(|site| site.outstanding_bytes), expected.allocated_bytes - expected.freed_bytes);
        prop_assert_eq!(profile.totals.outstanding_bytes, expected.allocated_bytes - expected.freed_bytes);
        prop_assert_eq!(sum(|site| site.outstanding_count), expected.allocated_count - expected.freed_count);
        prop_assert_eq!(sum(|site| site.counters.allocated_count), profile.completeness.stacks.allocated_count);
        prop_assert!(profile.sites.is_sorted_by_key(|site| std::cmp::Reverse(site.outstanding_bytes)));
        let mut numbers: Vec<_> = profile.sites.iter().flat_map(|site| site.numbers.clone()).collect();
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        prop_assert_eq!(numbers.len(), count, "no site is in two rows");
    }
}

#[test]
fn suppressed_sites_are_in_no_sum_but_their_own() {
    let filtered = |text: &str| {
        let mut suppressions = Suppressions::built_in();
        suppressions.add_file(text).unwrap();
        profile(&leaky(), Filter { suppressions, ..Filter::default() })
    };
    let all = profile(&leaky(), Filter::default());
    assert!(all.suppressed.is_empty());
    assert_eq!(filtered("").sites, all.sites, "nothing in it is built in");
    let without = filtered("leak:^leak_scratch(*)$\nleak:scratch.h\nleak:nowhere");
    let [hidden] = without.suppressed.as_slice() else { panic!("{:?}", without.suppressed) };
    assert_eq!(
        (hidden.rule.pattern.as_str(), hidden.sites),
        ("^leak_scratch(*)$", 1),
        "the first that matches"
    );
    assert_eq!(hidden.outstanding_bytes, all.sites[0].outstanding_bytes);
    assert_eq!(without.sites.len(), all.sites.len() - 1);
    assert_eq!(without.totals.outstanding_bytes + hidden.outstanding_bytes, all.totals.outstanding_bytes);
    assert_eq!(without.sites[0].rank, 1);
}

#[test]
fn built_in_rules_hide_nothing_that_grows() {
    let recording = |grows: bool| {
        let mut recording = Recording::new();
        let libc = recording.object("/usr/lib/libc.so.6", Some("cc33"));
        let buffer = recording.frame(libc, 0x10, at("_IO_file_doallocate", "filedoalloc.c", 77));
        let puts = recording.frame(libc, 0x20, at("puts", "ioputs.c", 40));
        recording.stack(1, StackEnd::ThreadStart, &[buffer, puts]);
        for second in 1..=10 {
            let count = if grows { second } else { 1 };
            recording.tick(second, &[(1, blocks(4096, count, 0))], MIB);
        }
        let filter = Filter { suppressions: Suppressions::built_in(), ..Filter::default() };
        profile(&recording, filter)
    };
    let (once, leak) = (recording(false), recording(true));
    assert_eq!((once.sites.len(), once.suppressed.len()), (0, 1));
    assert_eq!(once.suppressed[0].rule.origin.name(), "built-in");
    assert_eq!((leak.sites.len(), leak.suppressed.len()), (1, 0), "streams that are not closed");
}
