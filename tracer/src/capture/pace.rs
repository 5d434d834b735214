//! How often something is written, so that a capture stays small however long it is recorded.
//!
//! The newest row is provisional. As long as the one before it is near, the next look overwrites it; so the end is
//! always exact, nothing is lost when the recorder is killed, and nothing is written twice. How near that is depends
//! on how much there is already: few rows are all kept, and beyond a budget the distance grows with the time that
//! has passed, so that the number of rows grows with the logarithm of time.

/// Bounds how many rows of one kind there are.
pub(super) struct Budget {
    /// Rows up to which everything is kept.
    full_rows: u64,
    rows: u64,
}

impl Budget {
    pub(super) const fn new(full_rows: u64) -> Self {
        Self { full_rows, rows: 0 }
    }

    /// Counts rows that were written.
    pub(super) fn spend(&mut self, rows: u64) {
        self.rows = self.rows.saturating_add(rows);
    }

    /// Least distance of two looks at a time: the shares of 1/128, 1/16 and 1/4 give 130, 16 and 4 looks for each
    /// time that the length of the recording grows by the factor e.
    fn distance_ns(&self, elapsed_ns: u64) -> u64 {
        match self.rows.checked_div(self.full_rows) {
            Some(0) => 0,
            Some(1) => elapsed_ns / 128,
            Some(2) => elapsed_ns / 16,
            _ => elapsed_ns / 4,
        }
    }
}

/// The looks at one thing.
#[derive(Clone, Copy, Default)]
pub(super) struct Pace {
    /// The last one that stays.
    kept_ns: Option<u64>,
    /// The provisional one after it.
    last_ns: Option<u64>,
}

impl Pace {
    /// Whether a look at this time overwrites the one before it.
    pub(super) fn overwrites(&mut self, elapsed_ns: u64, budget: &Budget) -> bool {
        let distance_ns = budget.distance_ns(elapsed_ns);
        let overwrites = self.kept_ns.is_some_and(|kept_ns| elapsed_ns.saturating_sub(kept_ns) < distance_ns);
        if !overwrites {
            self.kept_ns = self.last_ns;
        }
        self.last_ns = Some(elapsed_ns);
        overwrites
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times of the rows that are there in the end, each of `width` rows.
    fn kept(full_rows: u64, seconds: u64, width: u64) -> Vec<u64> {
        let (mut pace, mut budget) = (Pace::default(), Budget::new(full_rows));
        let mut rows = Vec::new();
        for second in 0..seconds {
            if pace.overwrites(second * 1_000_000_000, &budget) {
                rows.pop();
            } else {
                budget.spend(width);
            }
            rows.push(second);
        }
        rows
    }

    #[test]
    fn everything_is_kept_within_the_budget() {
        assert_eq!(kept(1000, 1000, 1), (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn beyond_it_distances_grow_with_time_and_the_ends_are_exact() {
        let rows = kept(300, 100_000, 1);
        assert!(rows.starts_with(&(0..299).collect::<Vec<_>>()));
        assert_eq!(rows.last(), Some(&99_999));
        assert!((600..1000).contains(&rows.len()), "{}", rows.len());
        let widest = rows.windows(2).map(|pair| (pair[1] - pair[0]) as f64 / pair[1] as f64);
        assert!(widest.skip(100).fold(0.0, f64::max) < 1.0 / 16.0 + 0.01);
    }

    #[test]
    fn a_flood_of_rows_is_bounded() {
        assert!(kept(500_000, 3600, 60_000).len() < 60);
    }
}
