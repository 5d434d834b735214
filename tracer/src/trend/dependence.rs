//! How much one value says about the next: memory is a state, and its samples are not independent.

use super::normal::{of_student, student_quantile};

/// Residuals' dependence, and what it makes of tests for independent values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dependence {
    /// Autocorrelation of neighbours, corrected for its bias; 0 to 1.
    pub autocorrelation: f64,
    /// How many samples are worth one independent value; 1 to the number of samples.
    pub inflation: f64,
}

impl Dependence {
    /// Of residuals in the order of time, equally spaced as far as it matters here.
    ///
    /// The autocorrelation of `n` residuals from a line comes out too small, by about `(2 + 4ρ) / n` (Marriott and Pope,
    /// Biometrika 41 (1954) 390); what is added on top, one and a half of its standard deviation, was found by simulation: a
    /// random walk that is watched for 30 samples must not pass as independent values. The inflation of the
    /// variance of S is that of a first-order process: Yue and Wang, Water Resources Management 18 (2004) 201,
    /// equation 10; it never exceeds `n`.
    pub(super) fn of(residuals: &[f64]) -> Self {
        let count = residuals.len() as f64;
        let mean = residuals.iter().sum::<f64>() / count;
        let square: f64 = residuals.iter().map(|value| (value - mean).powi(2)).sum();
        if residuals.len() < 3 || square <= 0.0 {
            return Self { autocorrelation: 0.0, inflation: 1.0 };
        }
        let product: f64 = residuals.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean)).sum();
        let raw = product / square;
        let unbiased = (raw + 2.0 / count) / (1.0 - 4.0 / count.max(8.0));
        let doubt = SAFETY * ((1.0 - unbiased.clamp(-0.99, 0.99).powi(2)) / count).sqrt();
        // What is no more than chance for independent values is not held against them.
        let weight = ((unbiased - 0.25) / 0.30).clamp(0.0, 1.0);
        let careful = unbiased + weight * doubt;
        let autocorrelation = careful.clamp(0.0, 1.0);
        let mut inflation = 1.0;
        let mut power = 1.0;
        for lag in 1..residuals.len() {
            power *= autocorrelation;
            inflation += 2.0 * (1.0 - lag as f64 / count) * power;
        }
        Self { autocorrelation, inflation: inflation.min(count) }
    }
}

const SAFETY: f64 = 1.5;

/// The mean step of a series, tested as if all its steps were independent: the test that holds for a random walk. It
/// is too careful for anything that returns to a level, and it is the one that finds a leak whose steps differ.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drift {
    /// In standard deviations of a normal variable.
    pub z: f64,
    /// The 95 % interval of the slope.
    pub interval: (f64, f64),
}

impl Drift {
    /// `None` for fewer than five points.
    pub(super) fn of(points: &[(f64, f64)]) -> Option<Self> {
        let (first, last) = (points.first()?, points.last()?);
        let span = last.0 - first.0;
        let count = points.len().saturating_sub(1) as f64;
        if count < 4.0 || span <= 0.0 {
            return None;
        }
        let mean = (last.1 - first.1) / count;
        let square: f64 = points.windows(2).map(|pair| (pair[1].1 - pair[0].1 - mean).powi(2)).sum();
        let error = (square / (count - 1.0) / count).sqrt();
        let z = if error > 0.0 {
            of_student(mean / error, count - 1.0)
        } else if mean == 0.0 {
            0.0
        } else {
            mean.signum() * f64::INFINITY
        };
        let half = student_quantile(super::kendall::Z_95, count - 1.0) * error * count / span;
        let slope = (last.1 - first.1) / span;
        Some(Self { z, interval: (slope - half, slope + half) })
    }
}
