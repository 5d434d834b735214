//! Blocks that a garbage collector frees. What it has not freed is no leak before it has run.

use std::collections::{HashMap, HashSet};

use super::Site;
use crate::capture::Capture;
use crate::model::{FrameId, ProcessId};

/// Beginnings of the names of functions whose blocks live as long as an object of a collected heap, or belong to the heap
/// itself. V8: backing stores of buffers, pages and their lists. The JVM: direct buffers (`Unsafe.allocateMemory`, freed by a
/// `Cleaner`).
const COLLECTED: &[&str] =
    &["v8::internal::", "node::NodeArrayBufferAllocator::", "node::Buffer::", "Unsafe_AllocateMemory"];
/// Parts of the names of functions that collect.
const COLLECTORS: &[&str] = &[
    "v8::internal::Heap::CollectGarbage(",
    "v8::internal::ScavengerCollector::",
    "v8::internal::MarkCompactCollector::",
    "VM_GC_Operation",
    "VM_GenCollect",
    "VM_G1Collect",
    "VM_CollectForMetadataAllocation",
    "G1CollectedHeap::do_collection_pause",
    "GenCollectedHeap::do_collection",
    "ParallelScavengeHeap::failed_mem_allocate",
];
/// Blocks of which it is unknown since when no collector has looked at them are too few below this part of the recording.
const LATE: f64 = 0.4;

/// When collectors were seen at work.
pub(super) struct Collections {
    collected: HashSet<FrameId>,
    last_ns: HashMap<ProcessId, u64>,
    elapsed_ns: u64,
}

impl Collections {
    /// Looks for stacks through a collector: they allocate lists for their work. `sites` are all of the recording.
    pub(super) fn of(capture: &Capture, sites: &[Site]) -> Self {
        let (mut collected, mut collectors) = (HashSet::new(), HashSet::new());
        for (id, frame) in &capture.frames {
            for function in frame.locations.iter().filter_map(|location| location.function.as_deref()) {
                if COLLECTED.iter().any(|name| function.starts_with(name)) {
                    collected.insert(*id);
                }
                if COLLECTORS.iter().any(|name| function.contains(name)) {
                    collectors.insert(*id);
                }
            }
        }
        let mut last_ns: HashMap<ProcessId, u64> = HashMap::new();
        let is_collection = |site: &&Site| site.frames.iter().any(|frame| collectors.contains(frame));
        for site in sites.iter().filter(is_collection) {
            let last = site.numbers.iter().filter_map(|number| last_allocated_ns(capture, *number)).max();
            for process in &site.processes {
                let known = last_ns.entry(*process).or_default();
                *known = (*known).max(last.unwrap_or(0));
            }
        }
        Self { collected, last_ns, elapsed_ns: capture.elapsed_ns() }
    }

    /// Whether a collector frees the blocks of this site, and was not seen at work late enough for what it left to be in
    /// use.
    pub(super) fn is_awaited(&self, site: &Site) -> bool {
        let is_collected =
            site.frames.iter().take(site.culprit + 1).any(|frame| self.collected.contains(frame));
        let late_ns = (self.elapsed_ns as f64 * LATE) as u64;
        let has_run = |process: &ProcessId| self.last_ns.get(process).is_some_and(|last| *last >= late_ns);
        is_collected && site.counters.freed_count == 0 && !site.processes.iter().any(has_run)
    }
}

/// The last point at which more was allocated than at the one before.
fn last_allocated_ns(capture: &Capture, number: u32) -> Option<u64> {
    let (mut allocated_count, mut at) = (0, None);
    for (point, counters) in capture.series.sites.get(&number)? {
        if counters.allocated_count > allocated_count {
            allocated_count = counters.allocated_count;
            at = Some(*point);
        }
    }
    capture.series.points_ns.get(usize::from(at?)).copied()
}
