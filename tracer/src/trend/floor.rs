//! The floor of a series that rises and falls: its troughs.

use super::dependence::Dependence;
use super::normal::of_student;

/// Troughs of a series, in the order of time, and the size of its swings.
#[derive(Clone, Debug, Default)]
pub(super) struct Floor {
    /// Time and value of each trough that lies between two peaks, and of one at the end that a whole swing leads down to.
    pub troughs: Vec<(f64, f64)>,
}

impl Floor {
    /// Turning points at which the series leaves the extreme before by at least `swing`.
    pub(super) fn of(points: &[(f64, f64)], swing: f64) -> Self {
        let mut floor = Self::default();
        let Some(&first) = points.first() else { return floor };
        let (mut high, mut low) = (first, first);
        // Unknown at first which way it goes.
        let mut falls: Option<bool> = None;
        for &point in points {
            if point.1 > high.1 {
                high = point;
            }
            if point.1 < low.1 {
                low = point;
            }
            match falls {
                Some(true) | None if point.1 - low.1 >= swing => {
                    // What it came from at the beginning may lie lower, before the window: no trough.
                    if falls.is_some() {
                        floor.troughs.push(low);
                    }
                    falls = Some(false);
                    high = point;
                }
                Some(false) | None if high.1 - point.1 >= swing => {
                    falls = Some(true);
                    low = point;
                }
                _ => {}
            }
        }
        if falls == Some(true) {
            floor.troughs.push(low);
        }
        floor
    }

    /// The line through the troughs (least squares), and how sure its rise is.
    pub(super) fn line(&self) -> Option<Line> {
        Line::through(&self.troughs)
    }
}

/// Troughs from which on their dependence can be told.
const MIN_DEPENDENCE: usize = 6;

/// A line through points.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub slope: f64,
    /// Standard deviation of the slope.
    pub error: f64,
    /// The slope in standard deviations of a normal variable.
    pub z: f64,
    /// Points minus two.
    pub degrees: f64,
}

impl Line {
    /// `None` for fewer than three points.
    fn through(points: &[(f64, f64)]) -> Option<Self> {
        let count = points.len() as f64;
        if points.len() < 3 {
            return None;
        }
        let mean_x = points.iter().map(|point| point.0).sum::<f64>() / count;
        let mean_y = points.iter().map(|point| point.1).sum::<f64>() / count;
        let xx: f64 = points.iter().map(|point| (point.0 - mean_x).powi(2)).sum();
        if xx <= 0.0 {
            return None;
        }
        let slope = points.iter().map(|point| (point.0 - mean_x) * (point.1 - mean_y)).sum::<f64>() / xx;
        let left: Vec<f64> =
            points.iter().map(|point| point.1 - mean_y - slope * (point.0 - mean_x)).collect();
        let square: f64 = left.iter().map(|value| value * value).sum();
        let degrees = count - 2.0;
        // Sampling at nearly the rhythm of the swings lets the troughs wander.
        let inflation = if points.len() >= MIN_DEPENDENCE { Dependence::of(&left).inflation } else { 1.0 };
        let error = (square * inflation / degrees / xx).sqrt();
        let t = if error > 0.0 { slope / error } else { slope.signum() * 1e9 };
        let z = if slope == 0.0 { 0.0 } else { of_student(t, degrees) };
        Some(Self { slope, error, z, degrees })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sawtooth(rise: f64) -> Vec<(f64, f64)> {
        (0..40).map(|x| (f64::from(x), f64::from(x % 8) * 10.0 + rise * f64::from(x))).collect()
    }

    #[test]
    fn troughs_of_a_sawtooth() {
        let floor = Floor::of(&sawtooth(0.0), 35.0);
        assert_eq!(floor.troughs, [(8.0, 0.0), (16.0, 0.0), (24.0, 0.0), (32.0, 0.0)]);
        assert_eq!(floor.line().unwrap().slope, 0.0);
        let line = Floor::of(&sawtooth(1.0), 35.0).line().unwrap();
        assert!((line.slope - 1.0).abs() < 1e-9 && line.z > 3.0, "{line:?}");
    }

    #[test]
    fn no_swing_no_trough() {
        let line: Vec<_> = (0..40).map(|x| (f64::from(x), f64::from(x))).collect();
        assert!(Floor::of(&line, 5.0).troughs.is_empty());
        assert!(Floor::of(&[], 5.0).line().is_none());
    }
}
