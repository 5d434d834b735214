//! Folds the kernel's sites into one row per stack: a process has a stack anew in each of its epochs.

use std::collections::HashMap;

use tracer_common::abi::{Loss, SiteCounters};

use super::frame::expand;
use super::number::{Number, Outstanding};
use super::totals::add;
use super::wrapper::is_toucher;
use super::{Site, is_wrapper};
use crate::capture::Capture;
use crate::model::{AllocatorId, FrameId, Lens, MemoryClass, ProcessId, StackEnd};

/// Losses whose bytes are booked on the row of lost stacks.
const STACK_LOSSES: [Loss; 4] =
    [Loss::StackMapFull, Loss::SiteMapFull, Loss::StackRingFull, Loss::NoScratchSlot];

/// What makes two frames the same, whatever the address their object was mapped at.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Place<'a> {
    InObject { path: &'a str, build_id: Option<&'a str>, offset: u64 },
    AtAddress { address: u64, function: Option<&'a str> },
}

/// What makes two sites the same.
#[derive(PartialEq, Eq, Hash)]
struct Identity<'a> {
    lens: Lens,
    class: MemoryClass,
    label: Option<&'a str>,
    /// `None` where it was lost.
    call: Option<Call>,
}

/// Who called whom.
#[derive(PartialEq, Eq, Hash)]
struct Call {
    /// Index of the first process of this identity.
    process: u32,
    allocator: Option<AllocatorId>,
    /// Numbers of the places, innermost first.
    places: Vec<u32>,
    end: StackEnd,
}

/// One row per stack, summed, without rank and growth. Sites without a stack go to the row of the lost ones
/// of their class. `merges_processes`: equal stacks of processes of one executable are one row.
pub(super) fn merge(capture: &Capture, numbers: &[Number<'_>], merges_processes: bool) -> Vec<Site> {
    let like = if merges_processes { by_executable(capture) } else { HashMap::new() };
    let mut places: HashMap<Place<'_>, u32> = HashMap::new();
    let mut rows: HashMap<Identity<'_>, usize> = HashMap::new();
    let mut sites: Vec<Site> = Vec::new();
    for number in numbers {
        let call = number.stack.map(|stack| Call {
            process: like.get(&stack.process).copied().unwrap_or(stack.process.0),
            allocator: stack.allocator,
            places: stack
                .frames
                .iter()
                .map(|frame| {
                    let next = places.len() as u32;
                    *places.entry(place(capture, *frame)).or_insert(next)
                })
                .collect(),
            end: stack.end,
        });
        let identity = Identity { lens: number.lens, class: number.class, label: number.label, call };
        let index = *rows.entry(identity).or_insert(sites.len());
        if sites.get(index).is_none() {
            sites.push(row(capture, number));
        }
        if let Some(site) = sites.get_mut(index) {
            fill(site, number);
        }
    }
    for site in &mut sites {
        site.processes.sort_unstable();
        site.processes.dedup();
    }
    sites
}

/// By process: the first process that runs the same executable.
fn by_executable(capture: &Capture) -> HashMap<ProcessId, u32> {
    let mut first: HashMap<&str, u32> = HashMap::new();
    let processes = capture.processes.iter().map(|row| &row.process);
    processes
        .filter_map(|process| {
            // Without a path nothing says that two are the same.
            let exe = process.target.exe.as_deref()?;
            Some((process.id, *first.entry(exe).or_insert(process.id.0)))
        })
        .collect()
}

fn place(capture: &Capture, frame: FrameId) -> Place<'_> {
    let Some(frame) = capture.frames.get(&frame) else {
        return Place::AtAddress { address: 0, function: None };
    };
    match (frame.object.and_then(|object| capture.objects.get(&object)), frame.file_offset) {
        (Some(object), Some(offset)) => {
            Place::InObject { path: &object.path, build_id: object.build_id.as_deref(), offset }
        }
        // Code made at run time may be replaced by other code at the same address.
        _ => Place::AtAddress {
            address: frame.address,
            function: frame.locations.first().and_then(|location| location.function.as_deref()),
        },
    }
}

/// Adds a number to its row.
fn fill(site: &mut Site, number: &Number<'_>) {
    site.numbers.push(number.number);
    site.processes.extend(number.stack.map(|stack| stack.process));
    let mut sum = Outstanding { bytes: site.outstanding_bytes, count: site.outstanding_count };
    sum.add(number.outstanding);
    (site.outstanding_bytes, site.outstanding_count) = (sum.bytes, sum.count);
    site.resident_bytes =
        site.resident_bytes.zip(number.resident_bytes).map(|(sum, bytes)| sum.saturating_add(bytes));
    site.variance = match site.variance {
        // The first one.
        None if site.numbers.len() == 1 => number.variance,
        known => known.zip(number.variance).map(|(mut sum, more)| {
            sum.add(more);
            sum
        }),
    };
    add(&mut site.counters, &number.counters);
}

/// The row of a number, empty.
fn row(capture: &Capture, number: &Number<'_>) -> Site {
    let stack = number.stack;
    let frames = stack.map(|stack| stack.frames.clone()).unwrap_or_default();
    let is_passed =
        |function: &str| is_wrapper(function) || (number.lens == Lens::Faults && is_toucher(function));
    let culprit = expand(&frames, &capture.frames, &capture.objects)
        .position(|frame| !frame.location.function.as_deref().is_some_and(is_passed))
        .unwrap_or(0);
    let is_stack_loss =
        |loss: &&Loss| capture.losses.iter().any(|tally| tally.count > 0 && tally.reason == loss.name());
    let lost_by = STACK_LOSSES.iter().filter(is_stack_loss).map(|loss| loss.name());
    Site {
        rank: 0,
        lens: number.lens,
        class: number.class,
        label: number.label.map(str::to_owned),
        processes: Vec::new(),
        allocator: stack.and_then(|stack| stack.allocator),
        numbers: Vec::new(),
        outstanding_bytes: 0,
        outstanding_count: 0,
        resident_bytes: Some(0),
        variance: None,
        growth_bytes_per_s: None,
        verdict: None,
        counters: SiteCounters::default(),
        end: stack.map_or(StackEnd::NotKept, |stack| stack.end),
        frames,
        culprit,
        is_lost: stack.is_none(),
        lost_by: if stack.is_none() { lost_by.collect() } else { Vec::new() },
    }
}
