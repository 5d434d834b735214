#![allow(clippy::unwrap_used)]

use super::*;

/// A short form of the table of sites in `docs/verdicts.md`, with seeds that the table does not use.
#[test]
fn error_rates_are_what_the_documentation_says() {
    const SEEDS: u64 = 10;
    let (mut bounded, mut false_leaks) = (0.0, 0.0);
    for case in cases() {
        let rates = case.rates(500_001, SEEDS, 30);
        match case.truth {
            Truth::Bounded => {
                bounded += 1.0;
                false_leaks += rates.leak;
                assert!(rates.leak <= 0.11, "{}: {rates:?}", case.name);
            }
            Truth::Leaks => assert!(rates.leak >= 0.69, "{}: {rates:?}", case.name),
            Truth::Unknowable => {}
        }
    }
    assert!(false_leaks / bounded <= 0.01, "{false_leaks} of {bounded}");
}

#[test]
fn a_recording_of_the_blocks_has_them_all() {
    let mut blocks = Blocks::new(10);
    blocks.push(-1.0, 5.0, 100.0);
    blocks.push(1.5, 2.0, 100.0);
    blocks.push(2.0, f64::INFINITY, 30.0);
    blocks.push(9.95, 3.0, 7.0);
    blocks.push(10.0, 3.0, 1000.0);
    let observed = blocks.observed();
    let bytes: Vec<f64> = observed.points.iter().map(|point| point.1).collect();
    assert_eq!(bytes, [0.0, 0.0, 130.0, 130.0, 30.0, 30.0, 30.0, 30.0, 30.0, 30.0, 37.0]);
    assert_eq!(observed.counts, [0, 0, 2, 2, 1, 1, 1, 1, 1, 1, 2]);
    let ages = observed.ages.unwrap();
    assert_eq!((ages.freed, ages.elapsed_ns), (vec![(30, 1)], 10_000_000_000));
    let births = |born_ns, bytes| Births { born_ns, count: 1, bytes };
    assert_eq!(ages.live, [births(2_000_000_000, 30), births(9_900_000_000, 7)]);
    assert_eq!(observed.last_freed_ns, Some(3_500_000_000));
}
