//! Faults and what else happens to memory, in the order in which it happened.
//!
//! They come by two ways: faults wait in a hash map, the rest in the ring. A thread that touches a page and then moves it has
//! written the fault first; so whoever empties the ring first and then the map has, of everything before the instant at
//! which that began, the earlier of two events whenever it has the later one. What is newer waits for the next time: of
//! that, one way may have brought the second half only.

use tracer_common::abi::{MappingEvent, PageFault, PageKey};

/// What happens to memory besides faults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A range moved, was populated, or has gone.
    Range(MappingEvent),
    /// The process executed another program.
    Exec {
        /// Process.
        tgid: u32,
        /// `CLOCK_MONOTONIC`.
        time_ns: u64,
    },
}

impl Change {
    /// Process.
    pub fn tgid(&self) -> u32 {
        match self {
            Self::Range(event) => event.header.tgid,
            Self::Exec { tgid, .. } => *tgid,
        }
    }

    fn time_ns(&self) -> u64 {
        match self {
            Self::Range(event) => event.header.value,
            Self::Exec { time_ns, .. } => *time_ns,
        }
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    /// A page was touched.
    Fault(PageKey, PageFault),
    /// Something else.
    Change(Change),
}

/// What has come and is not booked yet.
#[derive(Debug, Default)]
pub struct Waiting {
    faults: Vec<(PageKey, PageFault)>,
    changes: Vec<Change>,
}

impl Waiting {
    /// Adds a fault.
    pub fn add_fault(&mut self, key: PageKey, fault: PageFault) {
        self.faults.push((key, fault));
    }

    /// Adds what else has happened.
    pub fn add_changes(&mut self, changes: Vec<Change>) {
        self.changes.extend(changes);
    }

    /// Takes out what happened before an instant (`CLOCK_MONOTONIC`), in order. Of two at the same instant the change is
    /// first, since its time is that of its end.
    pub fn take_before(&mut self, time_ns: u64) -> impl Iterator<Item = Happened> + use<> {
        self.faults.sort_unstable_by_key(|(_, fault)| fault.time_ns);
        self.changes.sort_by_key(Change::time_ns);
        let rest = self.faults.partition_point(|(_, fault)| fault.time_ns < time_ns);
        let rest = self.faults.split_off(rest);
        let faults = std::mem::replace(&mut self.faults, rest);
        let rest = self.changes.partition_point(|change| change.time_ns() < time_ns);
        let rest = self.changes.split_off(rest);
        let changes = std::mem::replace(&mut self.changes, rest);
        let (mut faults, mut changes) = (faults.into_iter().peekable(), changes.into_iter().peekable());
        std::iter::from_fn(move || {
            let next_fault = faults.peek().map(|(_, fault)| fault.time_ns);
            let is_first = |change: &Change| next_fault.is_none_or(|time_ns| change.time_ns() <= time_ns);
            changes
                .next_if(is_first)
                .map(Happened::Change)
                .or_else(|| faults.next().map(|(key, fault)| Happened::Fault(key, fault)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(page: u64, time_ns: u64) -> Happened {
        let key = PageKey { tgid: 7, moves: 0, page };
        Happened::Fault(key, PageFault { time_ns, site: 1, flags: 0 })
    }

    fn exec(time_ns: u64) -> Happened {
        Happened::Change(Change::Exec { tgid: 7, time_ns })
    }

    #[test]
    fn newer_ones_wait_and_all_come_in_order() {
        let mut waiting = Waiting::default();
        for happened in [fault(1, 30), fault(2, 10), fault(3, 41), fault(4, 40)] {
            let Happened::Fault(key, fault) = happened else { continue };
            waiting.add_fault(key, fault);
        }
        waiting.add_changes([30, 20].map(|time_ns| Change::Exec { tgid: 7, time_ns }).to_vec());
        let due: Vec<_> = waiting.take_before(40).collect();
        assert_eq!(due, [fault(2, 10), exec(20), exec(30), fault(1, 30)]);
        // A change that comes late, of a time between two faults that wait.
        waiting.add_changes(vec![Change::Exec { tgid: 7, time_ns: 40 }]);
        let due: Vec<_> = waiting.take_before(u64::MAX).collect();
        assert_eq!(due, [exec(40), fault(4, 40), fault(3, 41)]);
        assert_eq!(waiting.take_before(u64::MAX).next(), None);
    }
}
