//! Keeps what is dear from being done too often.

use std::time::Duration;

/// Allows something only as often as it takes no more than a part of the time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Pause after it, in multiples of what it took.
    pauses: u32,
    next: Duration,
}

impl Pace {
    /// One part of `pauses` of the time.
    pub(super) const fn new(pauses: u32) -> Self {
        Self { pauses, next: Duration::ZERO }
    }

    /// Whether it may be done at this time.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        now >= self.next
    }

    /// Says that it was done, and what it took.
    pub(super) fn done(&mut self, now: Duration, took: Duration) {
        self.next = now.saturating_add(took.saturating_mul(self.pauses));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dear_becomes_rare() {
        let mut pace = Pace::new(100);
        let mut count = 0;
        for second in 0..60 {
            let now = Duration::from_secs(second);
            if pace.is_due(now) {
                count += 1;
                pace.done(now, Duration::from_millis(95));
            }
        }
        assert_eq!(count, 6, "9.5 s apart");
        pace.done(Duration::from_secs(1), Duration::MAX);
        assert!(!pace.is_due(Duration::from_secs(1 << 40)));
    }
}
