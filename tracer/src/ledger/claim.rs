//! Ranges that somebody knows something about, and how they divide a mapping. No I/O.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::model::LedgerClass;

/// What a range is: its row in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Use {
    /// Class.
    pub(super) class: LedgerClass,
    /// Its name; empty where there is no more to say. Hostile input.
    pub(super) label: Cow<'static, str>,
}

impl Use {
    /// A use.
    pub(super) fn new(class: LedgerClass, label: impl Into<Cow<'static, str>>) -> Self {
        Self { class, label: label.into() }
    }
}

/// Ranges without overlap: what was claimed first stays. So the surest evidence claims first.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims(BTreeMap<u64, (u64, Use)>);

impl Claims {
    /// Claims what is still free of a range.
    pub(super) fn add(&mut self, start: u64, end: u64, what: &Use) {
        let mut at = start;
        while at < end {
            // What covers `at`, else what comes next.
            let before = self.0.range(..=at).next_back().map(|(_, (end, _))| *end);
            if let Some(covered_to) = before.filter(|covered_to| *covered_to > at) {
                at = covered_to;
                continue;
            }
            let next = self.0.range(at..end).next().map_or(end, |(start, _)| *start);
            self.0.insert(at, (next, what.clone()));
            at = next;
        }
    }

    /// Whether an address is claimed.
    pub(super) fn covers(&self, address: u64) -> bool {
        self.0.range(..=address).next_back().is_some_and(|(_, (end, _))| address < *end)
    }

    /// Whether an address is claimed for a class.
    pub(super) fn is_class(&self, address: u64, class: LedgerClass) -> bool {
        let before = self.0.range(..=address).next_back();
        before.is_some_and(|(_, (end, what))| address < *end && what.class == class)
    }

    /// The use at an address.
    #[cfg(test)]
    pub(super) fn at(&self, address: u64) -> Option<&Use> {
        self.0.range(..=address).next_back().filter(|(_, (end, _))| address < *end).map(|(_, (_, what))| what)
    }

    /// Divides a range into its claimed and unclaimed parts, in order: start, end, and what it is.
    pub(super) fn divide(&self, start: u64, end: u64) -> Vec<(u64, u64, Option<&Use>)> {
        let mut parts: Vec<(u64, u64, Option<&Use>)> = Vec::new();
        let mut at = start;
        let first = self.0.range(..=start).next_back().map_or(start, |(start, _)| *start);
        for (from, (to, what)) in self.0.range(first..end) {
            let (from, to) = ((*from).max(start), (*to).min(end));
            if from >= to {
                continue;
            }
            parts.push((at, from, None));
            parts.push((from, to, Some(what)));
            at = to;
        }
        parts.push((at, end, None));
        parts.retain(|(from, to, _)| from < to);
        // Neighbours of one use are one part.
        parts.dedup_by(|next, part| {
            let is_same = part.1 == next.0 && part.2 == next.2;
            if is_same {
                part.1 = next.1;
            }
            is_same
        });
        parts
    }
}

/// Divides a sum among parts: each gets what was measured for it, and what is missing or too much is settled with
/// the parts that can bear it, the largest first. The result adds up to `total` and exceeds no `limit`, as long as
/// the limits together allow it.
pub(super) fn settle(total: u64, measured: &[u64], limits: &[u64]) -> Vec<u64> {
    let mut shares: Vec<u64> =
        measured.iter().zip(limits).map(|(measured, limit)| *measured.min(limit)).collect();
    let sum: u64 = shares.iter().sum();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(shares.get(*index).copied()));
    let (mut missing, mut excess) = (total.saturating_sub(sum), sum.saturating_sub(total));
    for index in order {
        if let (Some(share), Some(limit)) = (shares.get_mut(index), limits.get(index)) {
            let given = missing.min(limit - *share);
            *share += given;
            missing -= given;
            let taken = excess.min(*share);
            *share -= taken;
            excess -= taken;
        }
    }
    // A mapping that shrank while it was looked at: the sum is kept all the same.
    if let Some(share) = shares.first_mut() {
        *share += missing;
    }
    shares
}

/// Divides a sum in proportion to shares; the rounding goes to the largest.
pub(super) fn proportion(total: u64, shares: &[u64]) -> Vec<u64> {
    let sum: u128 = shares.iter().map(|share| u128::from(*share)).sum();
    let part = |share: &u64| {
        let part = (u128::from(total) * u128::from(*share)).checked_div(sum).unwrap_or(0);
        u64::try_from(part).unwrap_or(total)
    };
    let parts: Vec<u64> = shares.iter().map(part).collect();
    let limits = vec![total; parts.len()];
    settle(total, &parts, &limits)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(label: &'static str) -> Use {
        Use::new(LedgerClass::Mmap, label)
    }

    #[test]
    fn what_is_claimed_first_stays() {
        let mut claims = Claims::default();
        claims.add(20, 30, &named("a"));
        claims.add(10, 50, &named("b"));
        claims.add(0, 60, &named("c"));
        let parts: Vec<_> =
            claims.divide(5, 70).iter().map(|(s, e, u)| (*s, *e, u.map(|u| u.label.to_string()))).collect();
        let some = |label: &str| Some(label.to_owned());
        assert_eq!(
            parts,
            [
                (5, 10, some("c")),
                (10, 20, some("b")),
                (20, 30, some("a")),
                (30, 50, some("b")),
                (50, 60, some("c")),
                (60, 70, None)
            ]
        );
        assert!(claims.covers(59) && !claims.covers(60));
        assert_eq!(claims.at(25), Some(&named("a")));
    }

    #[test]
    fn a_difference_goes_to_the_largest() {
        assert_eq!(settle(10, &[1, 5], &[8, 8]), [1 + 1, 8]);
        assert_eq!(settle(3, &[1, 5], &[8, 8]), [1, 2]);
        assert_eq!(settle(7, &[], &[]), Vec::<u64>::new());
        assert_eq!(proportion(10, &[1, 1, 1]), [4, 3, 3]);
        assert_eq!(proportion(10, &[0, 0]), [10, 0]);
    }

    proptest! {
        #[test]
        fn ranges_are_partitioned(
            ranges in proptest::collection::vec((0u64..200, 0u64..60, 0usize..4), 0..40),
            start in 0u64..100, size in 0u64..150,
        ) {
            const LABELS: [&str; 4] = ["a", "b", "c", "d"];
            let mut claims = Claims::default();
            let mut truth: [Option<&str>; 300] = [None; 300];
            for (start, size, label) in ranges {
                claims.add(start, start + size, &named(LABELS[label]));
                for slot in &mut truth[start as usize..(start + size) as usize] {
                    *slot = slot.or(Some(LABELS[label]));
                }
            }
            let mut at = start;
            for (from, to, what) in claims.divide(start, start + size) {
                prop_assert_eq!(from, at);
                prop_assert!(from < to);
                for address in from..to {
                    prop_assert_eq!(truth[address as usize], what.map(|what| &*what.label));
                }
                at = to;
            }
            prop_assert_eq!(at, start + size);
        }

        #[test]
        fn shares_add_up(total in 0u64..1000, shares in proptest::collection::vec((0u64..300, 0u64..300), 1..20)) {
            let (measured, limits): (Vec<u64>, Vec<u64>) = shares.into_iter().unzip();
            let settled = settle(total, &measured, &limits);
            prop_assert_eq!(settled.iter().sum::<u64>(), total);
            if limits.iter().sum::<u64>() >= total {
                prop_assert!(settled.iter().zip(&limits).all(|(share, limit)| share <= limit));
            }
            prop_assert_eq!(proportion(total, &measured).iter().sum::<u64>(), total);
        }
    }
}
