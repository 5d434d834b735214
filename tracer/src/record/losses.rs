//! The ledger of what was lost, and the count of probe hits.

use tracer_common::abi::{Loss, SiteCounters, Tally};

use super::{fault::FaultLosses, mapping::BookTallies};
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
    /// Hits at which the kernel did not run a program on allocator functions.
    pub skipped_runs: u64,
    /// Hits at which the kernel did not run a program on system calls.
    pub skipped_mapping_runs: u64,
    /// What the books of mappings could not do.
    pub mappings: BookTallies,
    /// 1 if mappings were asked for and cannot be recorded.
    pub without_mappings: u64,
    /// Processes without a probe, because no allocator was found in them.
    pub without_allocator: u64,
    /// What the lens on page faults could not do.
    pub faults: FaultLosses,
    /// 1 if the recording ended because its budget could not be held.
    pub over_budget: u64,
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

const NO_MAPPINGS: Row = (
    "no-mappings",
    true,
    "Mappings were to be recorded, and could not be: only allocator calls are in the result.",
);
const MAPPING_PROGRAM_SKIPPED: Row = (
    "mapping-program-skipped",
    false,
    "System calls of any process on this machine that map or unmap, at which the kernel did not run the program, \
     because another one was running on that CPU; what was missed of them is counted as mapping-unaccounted.",
);
const MAPPING_UNACCOUNTED: Row = (
    "mapping-unaccounted",
    true,
    "Ranges that were found mapped at a look at /proc though their mapping was not seen; they are in no site.",
);
const MAPPING_BOOK_FULL: Row =
    ("mapping-book-full", true, "Mappings that were not booked because the process has too many.");
const SEGMENT_UNSEEN: Row =
    ("segment-unseen", false, "Shared memory segments that were detached before their length was read.");
const UNKNOWN_UNMAP: Row =
    ("unknown-unmap", false, "Unmapped ranges that were mapped before the attach, or before a fork.");
const MAPPING_HEALED: Row = (
    "mapping-healed",
    false,
    "Ranges that were gone at a look at /proc though their unmapping was not seen; counted as freed.",
);

const NO_FAULTS: Row = (
    "no-faults",
    true,
    "Page faults were to be recorded, and could not be: nothing is known of what became resident.",
);
const FAULT_SKIPPED: Row = (
    "fault-skipped",
    true,
    "Page faults at which the kernel did not run the program, because it was running on that CPU already.",
);
const UNATTRIBUTED: Row = (
    "unattributed-growth",
    true,
    "Resident memory that no fault of the process brought in, and no populated range: another process wrote it, or its \
     fault was not seen.",
);
const UNSEEN_BEFORE: Row = (
    "unseen-before",
    false,
    "Address space in which is not known what was resident before the recording, because it is too large to be read.",
);

const OVER_BUDGET: Row = (
    "over-budget",
    true,
    "The recording ended early, because what tracing was allowed to cost could not be held.",
);

/// Every line of the ledger, also those at zero.
pub fn rows(tallies: &[(Loss, Tally)], own: &OwnLosses) -> Vec<LossTally> {
    let row = |(reason, is_incomplete, meaning): Row, count| LossTally {
        reason: reason.to_owned(),
        count,
        bytes: 0,
        is_incomplete,
        meaning: meaning.to_owned(),
    };
    let row_of = |kind, tally: Tally| LossTally { bytes: tally.bytes, ..row(kind, tally.count) };
    let kernel = tallies.iter().map(|(loss, tally)| LossTally {
        bytes: tally.bytes,
        ..row((loss.name(), loss.is_incomplete(), loss.meaning()), tally.count)
    });
    kernel
        .chain([
            row(PROGRAM_SKIPPED, own.skipped_runs),
            row(MAPPING_PROGRAM_SKIPPED, own.skipped_mapping_runs),
            row_of(MAPPING_UNACCOUNTED, own.mappings.unaccounted),
            row_of(MAPPING_BOOK_FULL, own.mappings.full),
            row_of(SEGMENT_UNSEEN, own.mappings.unseen_segment),
            row_of(UNKNOWN_UNMAP, own.mappings.unknown_unmap),
            row_of(MAPPING_HEALED, own.mappings.healed),
            row(MAPPING_EVENT_LOST, own.mapping_events),
            row(PROCESS_LIMIT, own.unfollowed),
            row(SHORT_LIVED_CHILD, own.short_lived),
            row(NO_ALLOCATOR, own.without_allocator),
            row(NO_MAPPINGS, own.without_mappings),
            row(NO_FAULTS, own.faults.without_faults),
            row(FAULT_SKIPPED, own.faults.skipped_runs),
            row_of(UNATTRIBUTED, of_bytes(own.faults.unattributed_bytes)),
            row_of(UNSEEN_BEFORE, of_bytes(own.faults.unseen_bytes)),
            row(OVER_BUDGET, own.over_budget),
        ])
        .collect()
}

/// As many events as pages.
const fn of_bytes(bytes: u64) -> Tally {
    Tally { count: bytes / 4096, bytes }
}

/// Probe hits: two per booked allocation, one per release, and those that booked nothing. `calls` are the sites of
/// allocator calls.
pub fn probe_hits<'a>(tallies: &[(Loss, Tally)], calls: impl Iterator<Item = &'a SiteCounters>) -> u64 {
    let booked: u64 = calls.map(|site| 2 * site.allocated_count + site.freed_count).sum();
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
