//! The kernel's sites one by one: whose they are, what their memory is, what they hold.

use std::collections::HashMap;

use tracer_common::abi::{SITE_LOST, SiteCounters};

use super::ProfileError;
use super::estimate::{Errors, Variance};
use crate::capture::Capture;
use crate::model::{Lens, LiveAge, MemoryClass, Stack};

/// Bytes and blocks that were not given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outstanding {
    /// Bytes.
    pub bytes: u64,
    /// Blocks, or mappings.
    pub count: u64,
}

impl Outstanding {
    pub(super) fn add(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.count = self.count.saturating_add(other.count);
    }
}

/// One site number of the kernel.
pub(super) struct Number<'a> {
    pub number: u32,
    /// `None` where it was lost.
    pub stack: Option<&'a Stack>,
    pub lens: Lens,
    pub class: MemoryClass,
    pub label: Option<&'a str>,
    /// Of the age the filter asks for.
    pub outstanding: Outstanding,
    /// How much of what is outstanding is resident; `None` where that was not measured.
    pub resident_bytes: Option<u64>,
    /// What the outstanding bytes and blocks vary by; `None`: they are exact, or it is not known.
    pub variance: Option<Variance>,
    /// Whatever the filter.
    pub counters: SiteCounters,
}

impl Number<'_> {
    /// Whether it belongs to an allocator or a runtime and is no leak.
    pub(super) fn is_set_aside(&self) -> bool {
        is_set_aside(self.lens, self.class)
    }
}

/// Whether such memory is shown apart and no leak. Each page is counted once, so pages of an arena are no second
/// count of anything; those of a runtime are still its own affair.
pub(super) const fn is_set_aside(lens: Lens, class: MemoryClass) -> bool {
    match lens {
        Lens::Malloc | Lens::Mmap => !class.can_leak(),
        Lens::Faults => {
            matches!(class, MemoryClass::ManagedHeap | MemoryClass::JitCode | MemoryClass::RuntimeInternal)
        }
    }
}

/// Every site of a capture, by its number. A minimum age is asked of blocks only: mappings have no age.
pub(super) fn numbers(
    capture: &Capture,
    min_age_ns: Option<u64>,
    elapsed_ns: u64,
) -> Result<Vec<Number<'_>>, ProfileError> {
    let stacks: HashMap<u32, &Stack> = capture.stacks.iter().map(|stack| (stack.site, stack)).collect();
    let without_samples = capture.stacks.iter().map(|stack| stack.site);
    let mut sites: Vec<u32> = capture.series.sites.keys().copied().chain(without_samples).collect();
    sites.sort_unstable();
    sites.dedup();
    let mut numbers: Vec<_> = sites
        .into_iter()
        .map(|number| {
            let stack = stacks.get(&number).copied().filter(|_| number != SITE_LOST);
            let counters = capture.series.last(number);
            let outstanding = Outstanding {
                bytes: counters.allocated_bytes.saturating_sub(counters.freed_bytes),
                count: counters.allocated_count.saturating_sub(counters.freed_count),
            };
            let (lens, class, label) = class(capture, number, stack);
            let measured = || capture.residents.get(&number)?.last().map(|entry| entry.1);
            let resident_bytes = match lens {
                Lens::Faults => Some(outstanding.bytes),
                // Nothing is there that could be resident, where anything was measured.
                _ if outstanding.count == 0 && !capture.residents.is_empty() => Some(0),
                _ => measured().map(|bytes| bytes.min(outstanding.bytes)),
            };
            let variance = None;
            Number { number, stack, lens, class, label, outstanding, resident_bytes, variance, counters }
        })
        .collect();
    if let Some(min_age_ns) = min_age_ns {
        let blocks = || numbers.iter().filter(|number| number.lens == Lens::Malloc);
        if capture.live_ages.is_empty() && blocks().any(|number| number.outstanding.count > 0) {
            return Err(ProfileError::NoAges);
        }
        let aged = aged(capture, min_age_ns, elapsed_ns);
        for number in numbers.iter_mut().filter(|number| number.lens == Lens::Malloc) {
            number.outstanding = aged.get(&number.number).copied().unwrap_or_default();
            // It was measured of all blocks together.
            number.resident_bytes = None;
        }
    }
    let errors = Errors::of(capture, min_age_ns.is_none());
    for number in numbers.iter_mut().filter(|number| number.lens == Lens::Malloc) {
        number.variance = errors.of_site(number.number, number.outstanding.bytes);
    }
    Ok(numbers)
}

/// Lens, class and label of a site. Of the lens `malloc`, everything is an allocation. A mapping is what the
/// recorder said, or unknown.
fn class<'a>(
    capture: &'a Capture,
    number: u32,
    stack: Option<&Stack>,
) -> (Lens, MemoryClass, Option<&'a str>) {
    let said = capture.classes.get(&number);
    let label = said.and_then(|said| said.label.as_deref());
    let said = said.map(|said| said.class).filter(|class| *class != MemoryClass::Allocation);
    // Without its stack, only a mapping has a class.
    let lens = stack.map_or(if said.is_some() { Lens::Mmap } else { Lens::Malloc }, |stack| stack.lens);
    match lens {
        Lens::Malloc => (lens, MemoryClass::Allocation, label),
        Lens::Mmap | Lens::Faults => (lens, said.unwrap_or(MemoryClass::Unknown), label),
    }
}

/// What sites hold that is surely at least `min_age_ns` old: births are known to the width of a bucket, and a
/// bucket that reaches into the forbidden time is left out.
fn aged(capture: &Capture, min_age_ns: u64, elapsed_ns: u64) -> HashMap<u32, Outstanding> {
    let mut aged: HashMap<u32, Outstanding> = HashMap::new();
    for age in &capture.live_ages {
        let youngest_ns = age.born_ns.saturating_add(LiveAge::RESOLUTION_NS);
        if youngest_ns.saturating_add(min_age_ns) <= elapsed_ns {
            let old = Outstanding { bytes: age.bytes, count: age.count };
            aged.entry(age.site).or_default().add(old);
        }
    }
    aged
}
