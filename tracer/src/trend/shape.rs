//! The shape of growth: in how many places it happened, where it paused, whether it slows down.

/// The rising series that is nearest to `values` (least squares): the pool-adjacent-violators algorithm of Ayer and
/// others, Annals of Mathematical Statistics 26 (1955) 641. Linear time.
pub(super) fn isotonic(values: &[f64]) -> Vec<f64> {
    // Blocks of equal fitted value: mean and length.
    let mut blocks: Vec<(f64, usize)> = Vec::with_capacity(values.len());
    for value in values {
        let mut block = (*value, 1);
        while let Some(last) = blocks.pop_if(|last| last.0 >= block.0) {
            let length = last.1 + block.1;
            block = ((last.0 * last.1 as f64 + block.0 * block.1 as f64) / length as f64, length);
        }
        blocks.push(block);
    }
    blocks.into_iter().flat_map(|(value, length)| std::iter::repeat_n(value, length)).collect()
}

/// How growth is spread over time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spread {
    /// How many equal steps would be as concentrated: the square of the sum of steps over the sum of their squares. One for
    /// a pool that grew once.
    pub rises: f64,
    /// Samples at the end without growth.
    pub tail: usize,
    /// Longest pause before that.
    pub longest_pause: usize,
    /// What the rising fit gains from begin to end.
    pub gain: f64,
    /// Part of that in the second half.
    pub late_share: f64,
}

impl Spread {
    pub(super) fn of(values: &[f64]) -> Self {
        let fit = isotonic(values);
        let steps: Vec<f64> = fit.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let gain: f64 = steps.iter().sum();
        if gain <= 0.0 {
            return Self { tail: values.len(), ..Self::default() };
        }
        let squares: f64 = steps.iter().map(|step| step * step).sum();
        // A pause is a stretch that adds next to nothing: a hundredth of the gain.
        let mut pauses = vec![1usize];
        let mut within = 0.0;
        for step in &steps {
            within += step;
            match pauses.last_mut() {
                Some(pause) if within < gain / 100.0 => *pause += 1,
                _ => {
                    pauses.push(1);
                    within = 0.0;
                }
            }
        }
        let tail = pauses.pop().unwrap_or(0);
        let late: f64 = steps.iter().skip(steps.len() / 2).sum();
        let late_share = late / gain;
        Self {
            rises: gain * gain / squares,
            late_share,
            tail,
            longest_pause: pauses.into_iter().max().unwrap_or(0),
            gain,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_fit_rises_keeps_the_sum_and_leaves_rising_series_alone(
            values in prop::collection::vec(-1e6f64..1e6, 0..80),
        ) {
            let fit = isotonic(&values);
            prop_assert_eq!(fit.len(), values.len());
            prop_assert!(fit.windows(2).all(|pair| pair[0] <= pair[1]));
            prop_assert!((fit.iter().sum::<f64>() - values.iter().sum::<f64>()).abs() < 1e-3);
            let mut sorted = values.clone();
            sorted.sort_unstable_by(f64::total_cmp);
            for (fitted, value) in isotonic(&sorted).iter().zip(&sorted) {
                prop_assert!((fitted - value).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn one_step_a_line_and_a_line_that_stopped() {
        let step: Vec<f64> = (0..30).map(|x| if x < 10 { 5.0 } else { 9.0 }).collect();
        let spread = Spread::of(&step);
        assert_eq!((spread.rises, spread.tail, spread.longest_pause, spread.gain), (1.0, 20, 10, 4.0));
        let line: Vec<f64> = (0..31).map(f64::from).collect();
        let spread = Spread::of(&line);
        assert!((spread.rises - 30.0).abs() < 1e-9 && spread.tail == 1, "{spread:?}");
        let stopped: Vec<f64> = (0..31).map(|x| f64::from(x.min(20))).collect();
        assert_eq!(Spread::of(&stopped).tail, 11);
        assert_eq!(Spread::of(&[3.0, 2.0, 1.0]).gain, 0.0);
    }
}
