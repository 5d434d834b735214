//! What each process and each allocator of a recording holds, whatever the filter leaves out.

use std::collections::HashMap;

use tracer_common::abi::SiteCounters;

use super::Rss;
use super::memory::{LedgerSummary, ledgers};
use super::number::{Number, Outstanding};
use super::theil_sen;
use super::totals::add;
use crate::capture::{Capture, Ended, thinned};
use crate::model::{Allocator, AllocatorId, Lens, Process, ProcessId, RssSample};

/// One process.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessSummary {
    /// What is known about it.
    pub process: Process,
    /// `None` where it ran on at the end of the recording.
    pub ended: Option<Ended>,
    /// `None` where it was never read.
    pub rss: Option<Rss>,
    /// Blocks that were not freed, of the age the filter asks for.
    pub unfreed: Outstanding,
    /// Mappings that can be leaks.
    pub mapped: Outstanding,
    /// Pages that were touched first while recording and are resident, without those of runtimes.
    pub resident: Outstanding,
    /// Where its memory lies; `None` where that was not looked at.
    pub ledger: Option<LedgerSummary>,
}

/// One allocator.
#[derive(Clone, Debug, PartialEq)]
pub struct AllocatorSummary {
    /// What is known about it.
    pub allocator: Allocator,
    /// Its blocks that were not freed, of the age the filter asks for.
    pub unfreed: Outstanding,
    /// Its totals since the start.
    pub counters: SiteCounters,
}

pub(super) fn processes(capture: &Capture, numbers: &[Number<'_>]) -> Vec<ProcessSummary> {
    let mut sums: HashMap<ProcessId, [Outstanding; 3]> = HashMap::new();
    for number in numbers.iter().filter(|number| !number.is_set_aside()) {
        let Some(stack) = number.stack else { continue };
        let [unfreed, mapped, resident] = sums.entry(stack.process).or_default();
        match number.lens {
            Lens::Malloc => unfreed.add(number.outstanding),
            Lens::Mmap => mapped.add(number.outstanding),
            Lens::Faults => resident.add(number.outstanding),
        }
    }
    let mut samples: HashMap<ProcessId, Vec<&RssSample>> = HashMap::new();
    for sample in &capture.rss {
        samples.entry(sample.process).or_default().push(sample);
    }
    let ledgers = ledgers(capture);
    let summary = |row: &crate::capture::ProcessRow| {
        let [unfreed, mapped, resident] = sums.get(&row.process.id).copied().unwrap_or_default();
        let ledger = ledgers.get(&row.process.id).cloned();
        let rss = samples.get(&row.process.id).and_then(|samples| rss(samples));
        ProcessSummary {
            process: row.process.clone(),
            ended: row.ended,
            rss,
            unfreed,
            mapped,
            resident,
            ledger,
        }
    };
    capture.processes.iter().map(summary).collect()
}

pub(super) fn allocators(capture: &Capture, numbers: &[Number<'_>]) -> Vec<AllocatorSummary> {
    let mut sums: HashMap<AllocatorId, (Outstanding, SiteCounters)> = HashMap::new();
    for number in numbers.iter().filter(|number| number.lens == Lens::Malloc) {
        let Some(allocator) = number.stack.and_then(|stack| stack.allocator) else { continue };
        let (unfreed, counters) = sums.entry(allocator).or_default();
        unfreed.add(number.outstanding);
        add(counters, &number.counters);
    }
    let summary = |allocator: &Allocator| {
        let (unfreed, counters) = sums.get(&allocator.id).copied().unwrap_or_default();
        AllocatorSummary { allocator: allocator.clone(), unfreed, counters }
    };
    capture.allocators.iter().map(summary).collect()
}

/// Memory of the target, also after it has executed other programs.
pub(super) fn target_rss(capture: &Capture) -> Option<Rss> {
    let of = |id: ProcessId| {
        let index = capture.processes.binary_search_by_key(&id, |row| row.process.id).ok()?;
        capture.processes.get(index).map(|row| row.process.target.tgid)
    };
    let mut samples: Vec<&RssSample> =
        capture.rss.iter().filter(|sample| of(sample.process) == Some(capture.header.target.tgid)).collect();
    samples.sort_by_key(|sample| sample.elapsed_ns);
    rss(&samples)
}

/// `samples` by time.
fn rss(samples: &[&RssSample]) -> Option<Rss> {
    let (first, last) = (samples.first()?, samples.last()?);
    let times_ns: Vec<u64> = samples.iter().map(|sample| sample.elapsed_ns).collect();
    let points: Vec<_> = thinned(&times_ns)
        .into_iter()
        .filter_map(|index| samples.get(index))
        .map(|sample| (sample.elapsed_ns as f64 / 1e9, sample.rss_bytes as f64))
        .collect();
    Some(Rss {
        start_bytes: first.rss_bytes,
        end_bytes: last.rss_bytes,
        growth_bytes_per_s: theil_sen(&points),
    })
}
