//! Gates over hand-written recordings.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use tracer_common::abi::{Loss, SiteCounters};

use super::*;
use crate::capture::fixture::{MIB, Recording, at};
use crate::model::{LiveAge, StackEnd};
use crate::profile::{Filter, Sort};

const SECOND_NS: u64 = 1_000_000_000;
const NONE: Run = Run { command_status: None, warm_up_ns: 0 };
const ENDED: Run = Run { command_status: Some(0), warm_up_ns: 0 };

/// A recording of `seconds` in which sites hold what the functions say, bytes at a second, and memory is what `rss`
/// says.
fn recording(seconds: u64, sites: &[&dyn Fn(u64) -> u64], rss: impl Fn(u64) -> u64) -> Recording {
    let mut recording = Recording::new();
    let object = recording.object("/srv/app", Some("ee55"));
    for (site, held) in (1..).zip(sites) {
        let name = format!("site_{site}");
        let frame = recording.frame(object, u64::from(site) * 0x100, at(&name, "/srv/src/app.c", site));
        recording.stack(site, StackEnd::ThreadStart, &[frame]);
        let end = held(seconds);
        if end > 0 {
            // Births as the series has them, where it rises.
            for second in 1..=seconds {
                let bytes = held(second).saturating_sub(held(second - 1));
                if bytes > 0 {
                    let born_ns = (second - 1) * SECOND_NS;
                    recording.live_ages.push(LiveAge { site, born_ns, count: bytes.div_ceil(64), bytes });
                }
            }
        }
    }
    for second in 0..=seconds {
        let counters = |held: u64| SiteCounters {
            allocated_bytes: held,
            allocated_count: held / 64,
            ..SiteCounters::default()
        };
        let samples: Vec<_> = (1..).zip(sites).map(|(site, held)| (site, counters(held(second)))).collect();
        recording.tick(second, &samples, rss(second));
    }
    recording.finish = Some((EndReason::Duration, seconds * SECOND_NS));
    recording
}

fn full(recording: &Recording, warm_up_s: u64) -> Profile {
    let capture = recording.capture().since(warm_up_s * SECOND_NS);
    Profile::new(capture, Filter { sort: Sort::Verdict, ..Filter::default() }).unwrap()
}

const fn per_minute(bytes: u64) -> Option<Rate> {
    Some(Rate { bytes, unit: RateUnit::Minute })
}

const LEAKS: Rules = Rules {
    max_leak_sites: Some(0),
    min_leak_rate: None,
    max_growth: None,
    max_rss_growth: None,
    max_unfreed_bytes: None,
    tolerance_percent: 25,
};
const GROWTH: Rules =
    Rules { max_leak_sites: None, max_growth: per_minute(MIB), max_rss_growth: per_minute(MIB), ..LEAKS };

fn outcomes(gate: &Gate<'_>) -> Vec<(Rule, Outcome)> {
    gate.findings.iter().map(|finding| (finding.rule, finding.outcome)).collect()
}

fn names(gate: &Gate<'_>) -> Vec<String> {
    let name = |offender: &Offender| {
        let site = gate.site(offender.site).unwrap();
        gate.profile.stack(site).nth(site.culprit).unwrap().label()
    };
    gate.offenders.iter().map(name).collect()
}

fn level(_: u64) -> u64 {
    50 * MIB
}

/// Deterministic noise below `most`.
fn noise(seed: u64, most: u64) -> u64 {
    (seed
        .wrapping_add(7)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(29)
        .wrapping_mul(0xbf58_476d_1ce4_e5b9)
        >> 33)
        % most
}

#[test]
fn a_leak_is_a_breach_and_a_cache_is_not() {
    let leak = |second: u64| second * 6400;
    let cache = |second: u64| second.min(3) * MIB;
    let profile = full(&recording(30, &[&cache, &leak], level), 0);
    let gate = Gate::new(&profile, None, LEAKS, NONE);
    assert_eq!(outcomes(&gate), [(Rule::LeakSites, Outcome::Breached)]);
    assert_eq!((gate.verdict(), names(&gate)), (GateVerdict::Breached, vec!["site_2".to_owned()]));
    let profile = full(&recording(30, &[&cache], level), 0);
    let gate = Gate::new(&profile, None, LEAKS, NONE);
    assert_eq!((gate.verdict(), gate.offenders.len()), (GateVerdict::Passed, 0));
    // 6400 B/s are 375 KiB/min.
    for (kib, expected) in [(370, GateVerdict::Breached), (380, GateVerdict::Passed)] {
        let rules = Rules { min_leak_rate: per_minute(kib << 10), ..LEAKS };
        let profile = full(&recording(30, &[&leak], level), 0);
        let gate = Gate::new(&profile, None, rules, NONE);
        assert_eq!((gate.verdict(), gate.undetermined.len()), (expected, 0), "{kib} KiB/min");
    }
    let allowed = Rules { max_leak_sites: Some(1), ..LEAKS };
    let profile = full(&recording(30, &[&leak], level), 0);
    assert_eq!(Gate::new(&profile, None, allowed, NONE).verdict(), GateVerdict::Passed);
}

#[test]
fn growth_is_a_breach_only_where_the_whole_interval_is_above() {
    let judged = |held: &dyn Fn(u64) -> u64, rss: &dyn Fn(u64) -> u64| {
        let profile = full(&recording(60, &[held], rss), 0);
        let gate = Gate::new(&profile, None, GROWTH, NONE);
        (outcomes(&gate).iter().map(|row| row.1).collect::<Vec<_>>(), gate.verdict())
    };
    use Outcome::{Breached, NotSure, Passed};
    let fast = |second: u64| second * 100_000;
    assert_eq!(judged(&fast, &level), (vec![Breached, Passed], GateVerdict::Breached));
    assert_eq!(judged(&|second| second * 10_000, &level), (vec![Passed, Passed], GateVerdict::Passed));
    assert_eq!(
        judged(&|_| 0, &|second| 50 * MIB + fast(second)),
        (vec![Passed, Breached], GateVerdict::Breached)
    );
    // About 3.4 MiB/min, under noise of 16 MiB: the interval includes the limit.
    let noisy = |second: u64| 30 * MIB + second * 60_000 + noise(second, 16 * MIB);
    assert_eq!(judged(&noisy, &level), (vec![NotSure, Passed], GateVerdict::Passed));
    // It is above for sure over the whole time, and has stopped at half of it.
    let warm = |second: u64| 10 * MIB + second.min(36) * MIB;
    assert_eq!(judged(&warm, &level).0, [NotSure, Passed]);
}

#[test]
fn growers_are_named_the_fastest_first() {
    let (slow, fast, none) =
        (|second: u64| second * 60_000, |second: u64| second * 640_000, |_: u64| 5 * MIB);
    let profile = full(&recording(30, &[&slow, &none, &fast], level), 0);
    let gate = Gate::new(&profile, None, Rules { max_leak_sites: Some(0), ..GROWTH }, NONE);
    assert_eq!(names(&gate), ["site_3", "site_1"]);
    assert_eq!(gate.offenders[0].breaks, [Rule::LeakSites, Rule::Growth]);
}

#[test]
fn a_warm_up_is_not_judged() {
    let warm = |second: u64| second.min(20) * MIB;
    let recording = recording(60, &[&warm], |second| 50 * MIB + warm(second));
    let all = Rules { max_leak_sites: Some(0), ..GROWTH };
    let profile = full(&recording, 25);
    let run = Run { warm_up_ns: 25 * SECOND_NS, ..NONE };
    let gate = Gate::new(&profile, None, all, run);
    assert!(outcomes(&gate).iter().all(|row| row.1 == Outcome::Passed), "{:?}", gate.findings);
    assert_eq!(profile.window.elapsed_ns, 35 * SECOND_NS);
    let profile = full(&recording, 55);
    let gate = Gate::new(&profile, None, all, run);
    assert!(outcomes(&gate).iter().all(|row| row.1 == Outcome::NotJudged));
    assert_eq!(gate.verdict(), GateVerdict::Incomplete);
}

#[test]
fn what_is_too_short_has_not_passed() {
    let short = recording(4, &[&|second| second * 100], level);
    let profile = full(&short, 0);
    let gate = Gate::new(&profile, None, LEAKS, ENDED);
    assert_eq!(outcomes(&gate), [(Rule::LeakSites, Outcome::NotJudged)]);
    assert_eq!(
        (gate.verdict(), gate.shortfalls.as_slice()),
        (GateVerdict::Incomplete, &[Shortfall::NotJudged(Rule::LeakSites)][..])
    );
    // Where nothing is left, nothing can leak.
    let tidy = recording(4, &[&|_| 0], level);
    let profile = full(&tidy, 0);
    assert_eq!(Gate::new(&profile, None, LEAKS, ENDED).verdict(), GateVerdict::Passed);
    let gate = Gate::new(&profile, None, GROWTH, ENDED);
    assert!(outcomes(&gate).iter().all(|row| row.1 == Outcome::NotJudged));
}

#[test]
fn what_a_command_leaves_is_limited_by_a_rule_of_its_own() {
    let profile = full(&recording(2, &[&|second| second * 3200, &|_| 640], level), 0);
    let unfreed = |limit| {
        let rules = Rules { max_leak_sites: None, max_unfreed_bytes: Some(limit), ..LEAKS };
        let gate = Gate::new(&profile, None, rules, ENDED);
        (gate.verdict(), names(&gate))
    };
    assert_eq!(unfreed(7040), (GateVerdict::Passed, vec![]));
    assert_eq!(unfreed(7039), (GateVerdict::Breached, vec!["site_1".to_owned(), "site_2".to_owned()]));
}

#[test]
fn a_partial_result_has_not_passed_and_a_breach_stays_one() {
    let clean = || recording(30, &[&|_| MIB], level);
    let verdict = |recording: &Recording, run: Run| {
        let profile = full(recording, 0);
        let gate = Gate::new(&profile, None, LEAKS, run);
        (gate.verdict(), gate.shortfalls.clone())
    };
    assert_eq!(verdict(&clean(), NONE), (GateVerdict::Passed, vec![]));
    let mut lossy = clean();
    lossy.loss(Loss::StackRingFull, 1, 64);
    assert_eq!(verdict(&lossy, NONE), (GateVerdict::Incomplete, vec![Shortfall::DataMissing]));
    let mut stopped = clean();
    stopped.finish = Some((EndReason::Interrupted, 30 * SECOND_NS));
    assert_eq!(verdict(&stopped, ENDED), (GateVerdict::Incomplete, vec![Shortfall::Interrupted]));
    let mut gone = clean();
    gone.finish = Some((EndReason::TargetExited, 30 * SECOND_NS));
    assert_eq!(verdict(&gone, NONE), (GateVerdict::Incomplete, vec![Shortfall::EndedEarly]));
    assert_eq!(verdict(&gone, ENDED), (GateVerdict::Passed, vec![]), "a command ends when it ends");
    let failed = Run { command_status: Some(7), ..NONE };
    assert_eq!(verdict(&gone, failed).0, GateVerdict::CommandFailed);
    assert_eq!(verdict(&lossy, failed).0, GateVerdict::CommandFailed);
    let mut leaky = recording(30, &[&|second| second * 6400], level);
    leaky.loss(Loss::StackRingFull, 1, 64);
    assert_eq!(verdict(&leaky, failed), (GateVerdict::Breached, vec![Shortfall::DataMissing]));
}

#[test]
fn a_baseline_excuses_what_it_has_and_nothing_else() {
    let (old, faster, new) =
        (|second: u64| second * 6400, |second: u64| second * 9600, |second: u64| second * 640);
    let before = full(&recording(30, &[&old], level), 0);
    let against = |recording: &Recording, rules: Rules| {
        let after = full(recording, 0);
        let gate = Gate::new(&after, Some(&before), rules, NONE);
        let standings = gate.offenders.iter().map(|row| row.comparison.unwrap().standing).collect::<Vec<_>>();
        let known = gate.findings.iter().find_map(|finding| match finding.measure {
            Measure::LeakSites { known, .. } => Some(known),
            _ => None,
        });
        (gate.verdict(), names(&gate), standings, known)
    };
    use GateVerdict::{Breached, Passed};
    assert_eq!(against(&recording(60, &[&old], level), LEAKS), (Passed, vec![], vec![], Some(1)));
    assert_eq!(
        against(&recording(30, &[&faster], level), LEAKS),
        (Breached, vec!["site_1".to_owned()], vec![Standing::Faster], Some(0))
    );
    let lenient = Rules { tolerance_percent: 60, ..LEAKS };
    assert_eq!(against(&recording(30, &[&faster], level), lenient).0, Passed);
    assert_eq!(
        against(&recording(30, &[&old, &new], level), LEAKS),
        (Breached, vec!["site_2".to_owned()], vec![Standing::New], Some(1))
    );
    // 384,000 B/min of the limit are the baseline's.
    let tight = Rules { max_growth: per_minute(10_000), max_rss_growth: None, ..GROWTH };
    assert_eq!(against(&recording(30, &[&old], level), tight).0, Passed);
    assert_eq!(against(&recording(30, &[&faster], level), tight).0, Breached);
}

#[test]
fn unfreed_blocks_of_the_baseline_are_known() {
    let before = full(&recording(2, &[&|_| 6400], level), 0);
    let rules = Rules { max_leak_sites: None, max_unfreed_bytes: Some(1000), ..LEAKS };
    let against = |held: u64, more: u64| {
        let after = full(&recording(2, &[&|_| held, &|_| more], level), 0);
        let gate = Gate::new(&after, Some(&before), rules, ENDED);
        let found = match gate.findings[0].measure {
            Measure::Unfreed { found_bytes, .. } => found_bytes,
            ref other => panic!("{other:?}"),
        };
        (gate.verdict(), found.unwrap(), names(&gate))
    };
    assert_eq!(against(6400, 0), (GateVerdict::Passed, 0, vec![]));
    assert_eq!(against(7680, 0), (GateVerdict::Passed, 0, vec![]), "a fifth more is the same");
    assert_eq!(against(9600, 0), (GateVerdict::Breached, 3200, vec!["site_1".to_owned()]));
    assert_eq!(against(6400, 1280), (GateVerdict::Breached, 1280, vec!["site_2".to_owned()]));
}

#[test]
fn what_nobody_can_tell_is_listed_and_no_breach() {
    let queue = |second: u64| 20 * MIB + second * 100_000 + noise(second, 8 * MIB);
    let mut noisy = recording(30, &[&queue], level);
    noisy.live_ages.clear();
    let profile = full(&noisy, 0);
    let gate = Gate::new(&profile, None, LEAKS, NONE);
    assert_eq!(gate.verdict(), GateVerdict::Passed);
    assert_eq!(gate.undetermined.len(), 1);
    assert!(gate.site(gate.undetermined[0]).unwrap().verdict.as_ref().unwrap().needed_s().unwrap() >= 1.0);
}

#[test]
fn mappings_alone_say_nothing_of_blocks() {
    let mut mapped = recording(12, &[], level);
    mapped.header.settings.push((crate::capture::LENS_SETTING.into(), "mmap".into()));
    let profile = full(&mapped, 0);
    let rules = Rules { max_leak_sites: None, max_unfreed_bytes: Some(1000), ..LEAKS };
    let gate = Gate::new(&profile, None, rules, NONE);
    assert_eq!(outcomes(&gate), [(Rule::Unfreed, Outcome::NotJudged)]);
}
