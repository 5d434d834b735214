//! The normal distribution, as far as the tests need it.

/// Probability that a standard normal variable is above `z`.
///
/// Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.2.17: absolute error below 7.5e-8. Far out, where
/// that is more than the value, the first term of the asymptotic series (26.2.12) is taken.
pub(super) fn upper_tail(z: f64) -> f64 {
    if z.is_nan() {
        return 1.0;
    }
    if z < 0.0 {
        return 1.0 - upper_tail(-z);
    }
    let density = (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    if z > 5.0 {
        return density / z;
    }
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let polynomial = t
        * (0.319_381_530
            + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    density * polynomial
}

/// The normal deviate that is exceeded with the same probability as `t` is by Student's distribution with `degrees` of
/// freedom: Wallace, Annals of Mathematical Statistics 30 (1959) 1124. The relative error of the probability is below a
/// few percent for three degrees and more.
pub(super) fn of_student(t: f64, degrees: f64) -> f64 {
    if !t.is_finite() || degrees < 1.0 {
        return if t > 0.0 && degrees >= 1.0 { f64::INFINITY } else { 0.0 };
    }
    let scale = (8.0 * degrees + 1.0) / (8.0 * degrees + 3.0);
    t.signum() * scale * (degrees * (1.0 + t * t / degrees).ln()).sqrt()
}

/// What [`of_student`] makes `z` of, so that an interval of a mean with estimated spread has its width.
pub(super) fn student_quantile(z: f64, degrees: f64) -> f64 {
    let scale = (8.0 * degrees + 1.0) / (8.0 * degrees + 3.0);
    let inner = (z / scale).powi(2) / degrees;
    (degrees * (inner.exp() - 1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tabulated_values() {
        for (z, p) in
            [(0.0, 0.5), (1.0, 0.158_655_3), (1.959_964, 0.025), (3.0, 0.001_349_9), (-1.0, 0.841_344_7)]
        {
            assert!((upper_tail(z) - p).abs() < 1e-6, "{z}");
        }
        assert!((upper_tail(6.0) / 9.866e-10 - 1.0).abs() < 0.05);
        assert_eq!(upper_tail(f64::NAN), 1.0);
    }

    #[test]
    fn students_quantiles() {
        // t(0.975) with 3, 10 and 30 degrees of freedom.
        for (degrees, t) in [(3.0, 3.182), (10.0, 2.228), (30.0, 2.042)] {
            assert!((of_student(t, degrees) - 1.96).abs() < 0.03, "{degrees}");
            assert!((student_quantile(1.96, degrees) / t - 1.0).abs() < 0.04, "{degrees}");
        }
        assert_eq!(of_student(f64::INFINITY, 5.0), f64::INFINITY);
        assert_eq!(of_student(f64::NAN, 5.0), 0.0);
    }
}
