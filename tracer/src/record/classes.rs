//! Gives every site of mappings its class and its name, once, at the end of a recording.

use std::collections::{BTreeMap, HashMap};

use tracer_common::abi::MappingKind;

use super::mapping::SiteFacts;
use crate::{
    managed::{self, FrameFacts, MappingFacts, Place, Region},
    model::{AllocatorId, FrameId, Location, MemoryClass, ObjectId, ProcessId, Runtime, SiteClass},
};

/// The label that the classifier gives to what the dynamic linker maps.
const LOADED_LIBRARY: &str = "loaded library";

/// Who asked for the mappings of a site.
#[derive(Clone, Debug)]
pub struct MappingStack {
    /// Whose memory.
    pub process: ProcessId,
    /// The allocator that asked.
    pub allocator: Option<AllocatorId>,
    /// Innermost first.
    pub frames: Vec<FrameId>,
}

/// What the classifier is told of the frames and the allocators of a recording.
pub struct Names<'a> {
    /// Locations by frame.
    pub locations: &'a HashMap<FrameId, &'a [Location]>,
    /// Object by frame.
    pub objects: &'a HashMap<FrameId, ObjectId>,
    /// Path by object.
    pub paths: &'a HashMap<ObjectId, String>,
    /// Name by allocator.
    pub allocators: &'a BTreeMap<u16, &'static str>,
}

impl Names<'_> {
    /// The frames as functions, those that were inlined too, innermost first.
    fn functions(&self, frames: &[FrameId]) -> Vec<FrameFacts<'_>> {
        let mut functions = Vec::with_capacity(frames.len());
        for frame in frames {
            let object =
                self.objects.get(frame).and_then(|object| self.paths.get(object)).map(String::as_str);
            let locations = self.locations.get(frame).copied().unwrap_or_default();
            functions
                .extend(locations.iter().map(|one| FrameFacts { function: one.function.as_deref(), object }));
            if locations.is_empty() {
                functions.push(FrameFacts { function: None, object });
            }
        }
        functions
    }

    fn allocator(&self, id: Option<AllocatorId>) -> Option<&'static str> {
        self.allocators.get(&u16::try_from(id?.0).ok()?).copied()
    }
}

/// The class of a site.
pub fn class_of(
    site: u32,
    facts: &SiteFacts,
    stack: Option<&MappingStack>,
    names: &Names<'_>,
    runtime: Option<&Runtime>,
    place: Place<'_>,
) -> SiteClass {
    let of = |class, label| SiteClass { site, class, label };
    let (Some(kind), Some(stack)) = (facts.kind, stack) else { return of(MemoryClass::Unknown, None) };
    let is_in_allocator = facts.in_allocator.is_some();
    if kind == MappingKind::ThreadStack && !is_in_allocator {
        let (class, label) = thread_stacks(facts);
        return of(class, label);
    }
    if kind == MappingKind::Break && !is_in_allocator {
        return of(MemoryClass::DirectMapping, Some("program break".to_owned()));
    }
    let name = facts.vma_names.iter().find(|name| !name.name.is_empty());
    let name = name.map(|name| String::from_utf8_lossy(&name.name).into_owned()).unwrap_or_default();
    let told = MappingFacts {
        kind: kind_of(kind, &name),
        is_stack: false,
        is_executable: kind == MappingKind::Code,
        is_reserved: false,
        size_bytes: only_length(facts),
        allocator: is_in_allocator.then(|| names.allocator(stack.allocator).unwrap_or("an allocator")),
        name: &name,
    };
    let found = managed::classify(&told, &names.functions(&stack.frames), runtime, place);
    // Code and data of libraries are no leak, whoever has loaded them.
    if found.label.as_deref() == Some(LOADED_LIBRARY) {
        return of(MemoryClass::RuntimeInternal, Some("loaded libraries".to_owned()));
    }
    let shows_name =
        matches!(found.class, MemoryClass::FileMapping | MemoryClass::SharedMemory) && !name.is_empty();
    of(found.class, found.label.or_else(|| shows_name.then_some(name)))
}

fn kind_of(kind: MappingKind, name: &str) -> managed::MappingKind {
    match kind {
        MappingKind::SharedAnonymous => managed::MappingKind::SharedAnonymous,
        MappingKind::SharedFile if name.starts_with("/memfd:") => managed::MappingKind::Memfd,
        MappingKind::SharedFile if name.starts_with("/dev/shm/") => managed::MappingKind::SharedAnonymous,
        MappingKind::PrivateFile | MappingKind::SharedFile => managed::MappingKind::File,
        MappingKind::Break => managed::MappingKind::Brk,
        MappingKind::SharedSegment => managed::MappingKind::SystemV,
        MappingKind::Anonymous | MappingKind::ThreadStack | MappingKind::Code | MappingKind::Remapped => {
            managed::MappingKind::Anonymous
        }
    }
}

/// The length that all its mappings were asked for with; 0 if they differ.
fn only_length(facts: &SiteFacts) -> u64 {
    match (facts.lengths.len(), facts.other_lengths) {
        (1, 0) => facts.lengths.keys().next().copied().unwrap_or(0),
        _ => 0,
    }
}

/// A C library keeps the stacks of threads that were joined for the next ones, glibc up to 40 MiB of them.
fn thread_stacks(facts: &SiteFacts) -> (MemoryClass, Option<String>) {
    let counted = |count: u64, what: &str| match count {
        1 => format!("stack of {what} thread"),
        _ => format!("stacks of {count} {what} threads"),
    };
    let (running, ended) = (facts.running_threads, facts.ended_threads);
    match (running, ended) {
        (0, 0) => (MemoryClass::ThreadStack, None),
        (_, 0) => (
            MemoryClass::ThreadStack,
            Some(counted(running, "running").replace("of running", "of a running")),
        ),
        _ => {
            let also = if running > 0 { format!("; {running} of running ones") } else { String::new() };
            let label = counted(ended, "ended").replace("of ended", "of an ended");
            let label = format!("{label}, not joined, or kept for reuse (glibc: up to 40 MiB){also}");
            (MemoryClass::EndedThreadStack, Some(label))
        }
    }
}

/// Where the ranges of a site lie among the regions of the runtime: in the one that holds most of them, if hardly
/// anything lies outside of all.
pub fn place_of<'a>(regions: Option<&'a [Region]>, ranges: &[(u64, u64)]) -> Place<'a> {
    let Some(regions) = regions else { return Place::NotKnown };
    let mut best: Option<(&Region, u64)> = None;
    let (mut total, mut inside) = (0u64, 0u64);
    for (start, end) in ranges {
        total = total.saturating_add(end.saturating_sub(*start));
    }
    for region in regions {
        let covers =
            |(start, end): &(u64, u64)| end.min(&region.end).saturating_sub(*start.max(&region.start));
        let bytes: u64 = ranges.iter().map(covers).sum();
        inside = inside.saturating_add(bytes);
        if bytes > best.map_or(0, |(_, most)| most) {
            best = Some((region, bytes));
        }
    }
    match best {
        Some((region, _)) if inside >= total / 2 => Place::Inside(region),
        _ => Place::Outside,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(kind: MappingKind) -> SiteFacts {
        SiteFacts { kind: Some(kind), ..SiteFacts::default() }
    }

    #[test]
    fn stacks_of_ended_threads_are_what_they_are() {
        let of = |running_threads, ended_threads| {
            thread_stacks(&SiteFacts { running_threads, ended_threads, ..facts(MappingKind::ThreadStack) })
        };
        assert_eq!(of(2, 0), (MemoryClass::ThreadStack, Some("stacks of 2 running threads".into())));
        assert_eq!(of(1, 0), (MemoryClass::ThreadStack, Some("stack of a running thread".into())));
        assert_eq!(of(0, 0), (MemoryClass::ThreadStack, None));
        let (class, label) = of(1, 3);
        assert_eq!(class, MemoryClass::EndedThreadStack);
        let label = label.unwrap_or_default();
        assert!(label.starts_with("stacks of 3 ended threads, not joined"), "{label}");
        assert!(label.ends_with("; 1 of running ones"), "{label}");
    }

    #[test]
    fn the_largest_region_names_the_ranges() {
        let region = |start, end, label| Region { start, end, class: MemoryClass::ManagedHeap, label };
        let regions = [region(100, 200, "heap"), region(300, 400, "code")];
        let label = |ranges: &[(u64, u64)]| match place_of(Some(&regions), ranges) {
            Place::Inside(region) => region.label,
            Place::Outside => "outside",
            Place::NotKnown => "not known",
        };
        assert_eq!(label(&[(110, 120), (300, 305)]), "heap");
        assert_eq!(label(&[(300, 400)]), "code");
        assert_eq!(label(&[(150, 160), (500, 600)]), "outside");
        assert_eq!(label(&[(200, 300)]), "outside");
        assert_eq!(place_of(None, &[(1, 2)]), Place::NotKnown);
    }

    #[test]
    fn lengths_count_only_if_they_are_one() {
        let mut one = facts(MappingKind::Anonymous);
        one.add_length(1 << 20);
        one.add_length(1 << 20);
        assert_eq!(only_length(&one), 1 << 20);
        one.add_length(5);
        assert_eq!(only_length(&one), 0);
    }
}
