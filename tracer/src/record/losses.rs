//! The ledger of what was lost, and the count of probe hits.

use tracer_common::abi::{Loss, SiteCounters, Tally};

use crate::model::LossTally;

/// What user space has lost, or seen beside the bookkeeping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnLosses {
    /// Mapping events that the kernel could not deliver.
    pub mapping_events: u64,
    /// Children beyond the limit of processes.
    pub unfollowed: u64,
    /// Children that had gone before they could be looked at.
    pub short_lived: u64,
    /// Processes without a probe, because no allocator was found in them.
    pub without_allocator: u64,
}

/// Name, whether it makes the result incomplete, meaning.
type Row = (&'static str, bool, &'static str);

const PROGRAM_SKIPPED: Row = (
    "program-skipped",
    true,
    "Probe hits at which the kernel did not run the program, because it was running on that CPU already, preempted in \
     the middle: calls that were not booked, or releases that were missed.",
);
const MAPPING_EVENT_LOST: Row = (
    "mapping-event-lost",
    false,
    "Mapping events that the kernel could not deliver; the mappings were read again each time.",
);
const PROCESS_LIMIT: Row = (
    "process-limit",
    true,
    "Child processes that were not recorded, because as many as `--max-processes` allows were recorded already.",
);
const SHORT_LIVED_CHILD: Row = (
    "short-lived-child",
    false,
    "Child processes that had ended before probes could be placed; nothing of theirs is in the result, and their \
     memory has gone with them.",
);
const NO_ALLOCATOR: Row = (
    "no-allocator",
    true,
    "Processes in which no allocator function was found: their allocations are not in the result, only their mappings.",
);

/// Every line of the ledger, also those at zero.
pub fn rows(tallies: &[(Loss, Tally)], skipped_runs: u64, own: &OwnLosses) -> Vec<LossTally> {
    let row = |(reason, is_incomplete, meaning): Row, count| LossTally {
        reason: reason.to_owned(),
        count,
        bytes: 0,
        is_incomplete,
        meaning: meaning.to_owned(),
    };
    let kernel = tallies.iter().map(|(loss, tally)| LossTally {
        bytes: tally.bytes,
        ..row((loss.name(), loss.is_incomplete(), loss.meaning()), tally.count)
    });
    kernel
        .chain([
            row(PROGRAM_SKIPPED, skipped_runs),
            row(MAPPING_EVENT_LOST, own.mapping_events),
            row(PROCESS_LIMIT, own.unfollowed),
            row(SHORT_LIVED_CHILD, own.short_lived),
            row(NO_ALLOCATOR, own.without_allocator),
        ])
        .collect()
}

/// Probe hits: two per booked allocation, one per release, and those that booked nothing.
pub fn probe_hits(tallies: &[(Loss, Tally)], sites: &[SiteCounters]) -> u64 {
    let booked: u64 = sites.iter().map(|site| 2 * site.allocated_count + site.freed_count).sum();
    let beside: u64 = tallies
        .iter()
        .map(|(loss, tally)| match loss {
            Loss::UnknownRelease | Loss::UnmatchedReturn | Loss::InFlightFull => tally.count,
            Loss::FailedAllocation | Loss::FilteredSize | Loss::NestedCall | Loss::LiveMapFull => {
                2 * tally.count
            }
            _ => 0,
        })
        .sum();
    booked + beside
}
