//! Each shape has its verdict, whatever the numbers.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::simulation::{Truth, cases};
use super::*;

const MIB: f64 = 1_048_576.0;

/// 31 samples, a second apart, of `value` MiB above 100 MiB.
fn series(value: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
    (0..31).map(|second| (f64::from(second), (100.0 + value(f64::from(second))) * MIB)).collect()
}

fn kind(value: impl Fn(f64) -> f64) -> Kind {
    judge(&series(value), &Floors::RSS).kind
}

#[test]
fn a_line_grows_at_its_slope() {
    let verdict = judge(&series(|second| 2.0 * second), &Floors::RSS);
    assert_eq!((verdict.kind, verdict.reason, verdict.needed_s), (Kind::Growing, Reason::Trend, None));
    let evidence = verdict.evidence;
    assert_eq!(evidence.slope, Some(2.0 * MIB));
    assert_eq!((evidence.samples, evidence.span_s), (31, 30.0));
    assert!(evidence.trend_p.unwrap() < 1e-9 && evidence.noise == Some(0.0), "{evidence:?}");
    let (low, high) = evidence.interval.unwrap();
    assert!(low <= 2.0 * MIB && 2.0 * MIB <= high && high - low < 0.01 * MIB, "{low} {high}");
    // 159 MiB at the end.
    assert!((evidence.doubling_s.unwrap() - 79.5).abs() < 1.0, "{evidence:?}");
    assert_eq!((evidence.doublings_s.len(), evidence.doubled_in_equal_times), (0, None));
}

#[test]
fn shapes() {
    let ripple = |second: f64| (second * 2.4).sin() * 0.3;
    assert_eq!(kind(|_| 0.0), Kind::Level);
    assert_eq!(kind(ripple), Kind::Level);
    assert_eq!(kind(|second| 3.0 * second + ripple(second)), Kind::Growing);
    assert_eq!(kind(|second| ripple(second) - second), Kind::Shrinking);
    assert_eq!(kind(|second| 50.0 * (1.0 - (-second / 3.0).exp()) + ripple(second)), Kind::WarmUp);
    assert_eq!(kind(|second| if second < 12.0 { 0.0 } else { 40.0 } + ripple(second)), Kind::Plateau);
    assert_eq!(kind(|second| 4.0 * second.min(17.0) + ripple(second)), Kind::Plateau);
    assert_eq!(kind(|second| 20.0 * (second % 3.0)), Kind::SawtoothLevel);
    assert_eq!(kind(|second| 20.0 * (second % 3.0) + 5.0 * (second / 3.0).floor()), Kind::SawtoothRising);
}

#[test]
fn what_cannot_be_known_is_not_said() {
    let reason = |points: &[(f64, f64)]| {
        let verdict = judge(points, &Floors::RSS);
        assert_eq!(verdict.kind, Kind::Undetermined, "{verdict:?}");
        assert!(verdict.needed_s.unwrap() >= 1.0, "{verdict:?}");
        verdict.reason
    };
    assert_eq!(reason(&[]), Reason::TooShort);
    assert_eq!(reason(&series(|second| second)[..10]), Reason::TooShort);
    // Enough samples in too short a time.
    let hasty: Vec<_> = series(|second| second).into_iter().map(|(x, y)| (x / 10.0, y)).collect();
    assert_eq!(reason(&hasty), Reason::TooShort);
    assert_eq!(judge(&hasty, &Floors::RSS).needed_s, Some(7.0));
    // Slows down all the time, and is not level yet.
    assert_eq!(reason(&series(|second| 20.0 * (second + 1.0).ln())), Reason::Slowing);
    // Two steps may have been the only ones, and the last was a moment ago.
    assert_eq!(reason(&series(|second| 20.0 * (second / 12.5).floor())), Reason::Noisy);
    // One cycle and a half.
    assert_eq!(reason(&series(|second| 3.0 * (second % 11.0))), Reason::FewCycles);
}

/// A kilobyte a second is seen in a gigabyte that is still, and is no more than any process does.
#[test]
fn what_is_practically_nothing_is_level() {
    let points: Vec<_> = (0..31).map(|x| (f64::from(x), 1e9 + f64::from(x) * 1024.0)).collect();
    let verdict = judge(&points, &Floors::RSS);
    assert_eq!((verdict.kind, verdict.reason), (Kind::Level, Reason::Negligible));
    // Counted exactly, it is a leak.
    assert_eq!(judge(&points, &Floors { growth_per_hour: 0.0, ..Floors::EXACT }).kind, Kind::Growing);
}

#[test]
fn doublings_are_those_that_stayed() {
    let doubles: Vec<_> = (0..31).map(|x| (f64::from(x), MIB * (f64::from(x) / 10.0).exp2())).collect();
    let evidence = judge(&doubles, &Floors::RSS).evidence;
    assert_eq!((evidence.doublings_s, evidence.doubled_in_equal_times), (vec![10.0; 3], Some(true)));
    let line: Vec<_> = (0..31).map(|x| (f64::from(x), MIB * (1.0 + f64::from(x) / 4.0))).collect();
    let evidence = judge(&line, &Floors::RSS).evidence;
    assert_eq!((evidence.doublings_s, evidence.doubled_in_equal_times), (vec![4.0, 8.0, 16.0], Some(false)));
    let peak: Vec<_> = (0..31).map(|x| (f64::from(x), if x == 5 { 9.0 * MIB } else { MIB })).collect();
    assert!(judge(&peak, &Floors::RSS).evidence.doublings_s.is_empty());
}

/// A short form of the table in `docs/verdicts.md`.
#[test]
fn error_rates_are_what_the_documentation_says() {
    for case in cases() {
        let rates = case.rates(1, 100, 31);
        let growth: f64 =
            Kind::ALL.into_iter().zip(rates).filter(|(kind, _)| kind.is_growth()).map(|(_, r)| r).sum();
        match case.truth {
            // Of so few, two more than the promised 1 % would be chance.
            Truth::Bounded => assert!(growth <= 0.03, "{}: {growth}", case.name),
            Truth::Leaks => assert!(growth >= 0.91, "{}: {growth}", case.name),
            Truth::Unknowable => {}
        }
    }
}

/// The cost of a verdict does not follow the number of samples.
#[test]
fn long_series_are_thinned() {
    let points: Vec<_> = (0..200_000).map(|x| (f64::from(x), 1e8 + f64::from(x % 7) * 1e3)).collect();
    assert_eq!(judge(&points, &Floors::RSS).kind, Kind::Level);
    let rising: Vec<_> = points.iter().map(|(x, y)| (*x, y + x * 1e4)).collect();
    let verdict = judge(&rising, &Floors::RSS);
    assert_eq!((verdict.kind, verdict.evidence.samples), (Kind::Growing, 200_000));
    assert!((verdict.evidence.slope.unwrap() / 1e4 - 1.0).abs() < 0.001);
}

fn any_value() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(0.0),
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(f64::MAX),
        Just(-1.0),
        0.0..1e12,
        any::<f64>()
    ]
}

proptest! {
    /// Whatever comes from a damaged capture: no panic, and nothing that is not a number is taken for evidence.
    #[test]
    fn hostile_series_are_judged(points in prop::collection::vec((any_value(), any_value()), 0..60)) {
        let verdict = judge(&points, &Floors::RSS);
        prop_assert!(verdict.evidence.samples <= points.len());
        prop_assert!((verdict.kind == Kind::Undetermined) == verdict.needed_s.is_some());
    }

    /// Neither the clock's start nor the unit matters.
    #[test]
    fn the_verdict_does_not_depend_on_the_origin_of_time(seed in 0u64..500, shift in 0.0f64..1e6) {
        for case in cases().iter().step_by(5) {
            let points = case.series(seed, 31);
            let shifted: Vec<_> = points.iter().map(|(x, y)| (x + shift.round(), *y)).collect();
            prop_assert_eq!(judge(&points, &Floors::RSS).kind, judge(&shifted, &Floors::RSS).kind);
        }
    }
}
