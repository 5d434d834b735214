//! Robust growth: the Theil–Sen slope.

/// Fewest points a slope is given for.
pub const MIN_POINTS: usize = 3;

/// Median of the slopes between all pairs of points, in `y` per `x`; `None` for fewer than
/// [`MIN_POINTS`] points. Up to 29 % of outliers, such as a burst or a warm-up, do not move it.
///
/// Costs the square of the number of points; callers thin long series.
pub fn theil_sen(points: &[(f64, f64)]) -> Option<f64> {
    if points.len() < MIN_POINTS {
        return None;
    }
    if points.iter().all(|point| point.1.to_bits() == points[0].1.to_bits()) {
        return Some(0.0);
    }
    let mut slopes = Vec::with_capacity(points.len() * (points.len() - 1) / 2);
    for (index, (x, y)) in points.iter().enumerate() {
        for (later_x, later_y) in &points[index + 1..] {
            let run = later_x - x;
            if run > 0.0 {
                slopes.push((later_y - y) / run);
            }
        }
    }
    median(&mut slopes)
}

/// Median; `values` change their order.
pub(super) fn median(values: &mut [f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let middle = values.len() / 2;
    let is_even = values.len().is_multiple_of(2);
    let (below, upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    let upper = *upper;
    if !is_even {
        return Some(upper);
    }
    let lower = below.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Some(lower + (upper - lower) / 2.0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn brute_force(points: &[(f64, f64)]) -> f64 {
        let mut slopes = Vec::new();
        for a in points {
            for b in points {
                if b.0 > a.0 {
                    slopes.push((b.1 - a.1) / (b.0 - a.0));
                }
            }
        }
        slopes.sort_by(f64::total_cmp);
        let count = slopes.len();
        (slopes[(count - 1) / 2] + slopes[count / 2]) / 2.0
    }

    proptest! {
        #[test]
        fn it_is_the_median_of_all_pairwise_slopes(
            values in prop::collection::vec(0u64..1_000_000_000, 3..40),
            gaps_ms in prop::collection::vec(1u64..5_000, 40),
        ) {
            let mut x = 0.0;
            let points: Vec<_> = values.iter().zip(gaps_ms).map(|(value, gap_ms)| {
                x += gap_ms as f64 / 1e3;
                (x, *value as f64)
            }).collect();
            let expected = brute_force(&points);
            let found = theil_sen(&points).unwrap();
            prop_assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{found} {expected}");
        }

        #[test]
        fn a_line_has_its_own_slope(slope in -1_000_000i64..1_000_000, count in 3usize..300) {
            let points: Vec<_> = (0..count).map(|x| (x as f64, (slope * x as i64) as f64)).collect();
            prop_assert_eq!(theil_sen(&points), Some(slope as f64));
        }
    }

    #[test]
    fn two_points_are_not_enough() {
        assert_eq!(theil_sen(&[]), None);
        assert_eq!(theil_sen(&[(0.0, 0.0), (1.0, 9.0)]), None);
        assert_eq!(theil_sen(&[(1.0, 0.0), (1.0, 9.0), (1.0, 3.0)]), None, "no time between them");
    }

    #[test]
    fn a_burst_does_not_move_it() {
        let mut points: Vec<_> = (0..100).map(|x| (f64::from(x), f64::from(x) * 10.0)).collect();
        for point in &mut points[40..60] {
            point.1 += 1e9;
        }
        let slope = theil_sen(&points).unwrap();
        assert!((slope - 10.0).abs() < 1.0, "{slope}");
    }
}
