//! What a report says about numbers that are estimates.

use super::human::{count, counted, percent, size};
use crate::profile::{Profile, Variance};

/// Sentences about how the numbers came about; empty where they are exact.
pub(crate) fn notes(profile: &Profile) -> Vec<String> {
    let Some(estimate) = &profile.estimate else { return Vec::new() };
    let mut notes = Vec::new();
    if let Some(interval) = estimate.sample_bytes {
        notes.push(format!(
            "one allocation in {} on average, each stands for others like it: bytes, blocks and growth of allocator calls are \
             estimates, ± is one standard error; verdicts rest on the sampled blocks",
            size(interval as u64)
        ));
        let rate = profile.cost.map(|cost| count(cost.probe_hits_per_s.round() as u64));
        let rate = rate.map_or_else(String::new, |rate| format!(", some {rate} times a second,"));
        notes.push(format!(
            "sampling saves stacks and bookkeeping, not the traps: every call of the allocator{rate} still stops at its probes \
             (`offheap doctor --calibrate` says what that costs on this machine)"
        ));
    }
    if let Some(windows) = estimate.windows {
        let seen = match (windows.seen_part, windows.count) {
            (Some(part), Some(count_)) => format!(
                "in {} of the time, in {}",
                percent((part * 1e6) as u64, 1_000_000),
                counted(count_, "window", "windows")
            ),
            _ => "in windows of time".to_owned(),
        };
        let cost = profile.cost.and_then(|cost| cost.target_percent);
        let cost = cost
            .map_or_else(String::new, |percent| format!("; it took {percent:.1} % of the target's CPU time"));
        notes.push(format!(
            "to cost at most {} of the target's CPU time, allocations were seen {seen}, and each stands for those between; \
             releases were seen all the time. Bytes, blocks and growth of allocator calls are estimates, whose error is not \
             known{cost}",
            percent((windows.allowed_share * 1e6) as u64, 1_000_000)
        ));
    }
    notes
}

/// ` ±1.0 MiB`; nothing for exact numbers.
pub(super) fn error_of_bytes(variance: Option<&Variance>) -> String {
    variance.map_or_else(String::new, |variance| format!(" ±{}", size(variance.error_bytes().round() as u64)))
}

/// ` ±1,000`; nothing for exact numbers.
pub(super) fn error_of_count(variance: Option<&Variance>) -> String {
    let error = variance.and_then(Variance::error_count);
    error.map_or_else(String::new, |error| format!(" ±{}", count(error.round() as u64)))
}
