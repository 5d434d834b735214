//! All pairs of points: Theil–Sen slopes and Kendall's S.

use super::normal::upper_tail;
use super::slope::median;

/// Half of the width of a 95 % interval, in standard deviations.
pub(super) const Z_95: f64 = 1.959_964;

/// What the pairs of points of a series say.
#[derive(Clone, Debug)]
pub(super) struct Pairs {
    /// Slopes of all pairs at different times, sorted.
    slopes: Vec<f64>,
    /// Kendall's S: pairs that rise minus pairs that fall.
    pub s: f64,
    /// Variance of S for independent values: Kendall, Rank Correlation Methods (1975), with its correction for equal values.
    pub variance: f64,
}

impl Pairs {
    /// Costs the square of the number of points.
    pub(super) fn new(points: &[(f64, f64)]) -> Self {
        let mut slopes = Vec::with_capacity(points.len() * points.len().saturating_sub(1) / 2);
        let mut s = 0.0;
        for (index, (x, y)) in points.iter().enumerate() {
            for (later_x, later_y) in points.iter().skip(index + 1) {
                let run = later_x - x;
                if run > 0.0 {
                    slopes.push((later_y - y) / run);
                    s += match later_y.total_cmp(y) {
                        std::cmp::Ordering::Less => -1.0,
                        std::cmp::Ordering::Equal => 0.0,
                        std::cmp::Ordering::Greater => 1.0,
                    };
                }
            }
        }
        slopes.sort_unstable_by(f64::total_cmp);
        let mut values: Vec<f64> = points.iter().map(|point| point.1).collect();
        values.sort_unstable_by(f64::total_cmp);
        let term = |count: f64| count * (count - 1.0) * (2.0 * count + 5.0);
        let ties: f64 = values.chunk_by(|a, b| a == b).map(|equal| term(equal.len() as f64)).sum();
        Self { slopes, s, variance: (term(points.len() as f64) - ties) / 18.0 }
    }

    /// Median of the slopes: Sen, Journal of the American Statistical Association 63 (1968) 1379.
    pub(super) fn slope(&self) -> Option<f64> {
        median(&mut self.slopes.clone())
    }

    /// S in standard deviations, for values of which every `inflation` are worth one. With the correction for continuity.
    pub(super) fn z(&self, inflation: f64) -> f64 {
        if self.variance <= 0.0 {
            return 0.0;
        }
        (self.s.abs() - 1.0).max(0.0) * self.s.signum() / (self.variance * inflation).sqrt()
    }

    /// Two-sided probability of such an S without a trend: Mann, Econometrica 13 (1945) 245.
    pub(super) fn p(&self, inflation: f64) -> f64 {
        (2.0 * upper_tail(self.z(inflation).abs())).min(1.0)
    }

    /// The 95 % interval of the slope (Sen 1968, section 3): the slopes whose ranks are as far from the middle as S is
    /// from zero without a trend. `None` where there are too few pairs for it.
    pub(super) fn interval(&self, inflation: f64) -> Option<(f64, f64)> {
        let count = self.slopes.len() as f64;
        let half = Z_95 * (self.variance * inflation).sqrt();
        let (low, high) = ((count - half) / 2.0, (count + half) / 2.0);
        if low < 1.0 || high > count - 1.0 {
            return None;
        }
        // Ranks begin with 1; the upper one is the M2 + 1 of the paper.
        let at = |rank: f64| self.slopes.get(rank as usize).copied();
        Some((at(low.floor() - 1.0)?, at(high.ceil())?))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The worked example of Gilbert, Statistical Methods for Environmental Pollution Monitoring (1987), 16.4: S and variance
    /// by hand for a short series with equal values.
    #[test]
    fn ties_reduce_the_variance() {
        let values = [10.0, 15.0, 14.0, 20.0, 20.0];
        let points: Vec<_> = values.iter().enumerate().map(|(x, y)| (x as f64, *y)).collect();
        let pairs = Pairs::new(&points);
        // Rising: 4 + 2 + 2; falling: 15 > 14; equal: 20 = 20.
        assert_eq!(pairs.s, 8.0 - 1.0);
        assert!((pairs.variance - (5.0 * 4.0 * 15.0 - 2.0 * 1.0 * 9.0) / 18.0).abs() < 1e-12);
        assert!((pairs.z(1.0) - 6.0 / pairs.variance.sqrt()).abs() < 1e-12);
        assert!(pairs.p(4.0) > pairs.p(1.0));
    }

    #[test]
    fn a_line_has_a_narrow_interval_and_equal_values_no_trend() {
        let line: Vec<_> = (0..30).map(|x| (f64::from(x), f64::from(x) * 3.0)).collect();
        let pairs = Pairs::new(&line);
        assert_eq!((pairs.slope(), pairs.interval(1.0)), (Some(3.0), Some((3.0, 3.0))));
        assert!(pairs.p(1.0) < 1e-6);
        let level: Vec<_> = (0..30).map(|x| (f64::from(x), 7.0)).collect();
        let pairs = Pairs::new(&level);
        assert_eq!((pairs.s, pairs.z(1.0)), (0.0, 0.0));
        assert!((pairs.p(1.0) - 1.0).abs() < 1e-6);
        assert_eq!(Pairs::new(&[]).slope(), None);
        assert_eq!(Pairs::new(&line[..2]).interval(1.0), None);
    }

    /// The interval holds the true slope about as often as it says.
    #[test]
    fn intervals_cover() {
        let mut random = crate::trend::simulation::Random::new(7);
        let covered = (0..1000)
            .filter(|_| {
                let points: Vec<_> =
                    (0..30).map(|x| (f64::from(x), 0.1 * f64::from(x) + random.normal())).collect();
                let (low, high) = Pairs::new(&points).interval(1.0).unwrap();
                low <= 0.1 && 0.1 <= high
            })
            .count();
        assert!((925..=975).contains(&covered), "{covered} of 1000");
    }
}
