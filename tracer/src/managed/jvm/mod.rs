//! HotSpot: functions of `libjvm.so` as JDK 17 has them.
//!
//! Many builds have no symbols for them; then the object alone says that the mapping is the JVM's. Ranges are
//! reserved once and committed by mapping over them, so both kinds of calls have to be known.

mod structs;

use std::collections::HashMap;

use self::structs::Structs;
use super::Region;
use super::memory::{Memory, is_anonymous, runs};
use super::rule::{Rule, Table, rule};
use crate::attach::maps::MapEntry;
use crate::model::MemoryClass::{FileMapping, JitCode, ManagedHeap, RuntimeInternal, ThreadStack};

/// The collectors commit the heap and their own tables by the same functions: the address decides.
const fn heap(function: &'static str) -> Rule {
    let outside = Some((RuntimeInternal, "JVM garbage collector"));
    Rule { function, class: ManagedHeap, label: "Java heap", outside }
}

const fn collector(function: &'static str) -> Rule {
    rule(function, RuntimeInternal, "JVM garbage collector")
}

pub(super) const TABLE: Table = Table {
    rules: &[
        rule("ReservedCodeSpace::", JitCode, "JVM code cache"),
        rule("CodeHeap::", JitCode, "JVM code cache"),
        rule("CodeCache::", JitCode, "JVM code cache"),
        rule("Metaspace::reserve_address_space_for_compressed_classes", RuntimeInternal, "JVM class space"),
        rule("MetaspaceShared::", RuntimeInternal, "JVM class archive"),
        rule("FileMapInfo::", RuntimeInternal, "JVM class archive"),
        rule("metaspace::", RuntimeInternal, "JVM metaspace"),
        rule("Metaspace::", RuntimeInternal, "JVM metaspace"),
        rule("StackOverflow::", ThreadStack, "guard pages of a JVM thread"),
        rule("ImageFileReader::", FileMapping, "JVM modules"),
        rule("PerfMemory::", RuntimeInternal, "JVM performance data"),
        rule("ReservedHeapSpace::", ManagedHeap, "Java heap"),
        collector("G1CollectedHeap::create_aux_memory_mapper"),
        collector("G1RegionsSmallerThanCommitSizeMapper::"),
        heap("G1RegionsLargerThanCommitSizeMapper::"),
        heap("PSVirtualSpace::"),
        heap("PSOldGen::"),
        heap("PSYoungGen::"),
        heap("TenuredGeneration::"),
        heap("DefNewGeneration::"),
        heap("CardGeneration::"),
        heap("ShenandoahHeap::"),
        heap("ZPhysicalMemory"),
        heap("ZHeap::"),
        collector("G1"),
        collector("CardTable::"),
        collector("ParMarkBitMap::"),
        collector("ParallelCompactData::"),
        collector("PSMarkSweep"),
        collector("MarkStack"),
        collector("Shenandoah"),
        collector("XMarkStack"),
        collector("ZMark"),
    ],
    borders: &["JavaCalls::call", "jni_Call"],
    own_functions: &[],
    own_objects: &["libjvm.so"],
    otherwise: Some((RuntimeInternal, "JVM")),
    code_label: None,
};

/// Types of `gHotSpotVMStructs` that are read.
const TYPES: &[&str] = &[
    "CodeCache",
    "CodeHeap",
    "CollectedHeap",
    "CompressedKlassPointers",
    "GrowableArray<int>",
    "GrowableArrayBase",
    "JVMFlag",
    "MemRegion",
    "MetaspaceObj",
    "Universe",
    "VirtualSpace",
];
/// Flags that are looked through; JDK 17 has some 1,500.
const MAX_FLAGS: u64 = 10_000;
/// Most code heaps; there are three, or one.
const MAX_CODE_HEAPS: u32 = 16;
/// The class space begins behind the class archive, at a multiple of this (JDK 17).
const CLASS_SPACE_ALIGNMENT: u64 = 16 << 20;

/// Whether a variable of `libjvm.so` is needed for [`regions`].
pub(crate) fn is_needed(variable: &str) -> bool {
    variable.starts_with("gHotSpotVMStruct")
}

/// The ranges that the JVM says are its heap, its code cache and its classes.
///
/// Heap: `Universe::_collectedHeap->_reserved`. Code: the bounds of the code cache, which hold all of its heaps, and
/// the tables of their segments. Archive: the bounds of shared metaspace. Class space: what follows it in the same
/// reservation, of the size that the flag `CompressedClassSpaceSize` has; its start is not published. The nodes of the
/// other metaspace are not published at all: mappings of metaspace are known by their stacks.
pub(super) fn regions(
    memory: &impl Memory,
    variables: &HashMap<String, u64>,
    entries: &[MapEntry],
) -> Vec<Region> {
    let Some(structs) = Structs::read(memory, variables, |name| TYPES.contains(&name)) else {
        return Vec::new();
    };
    let reader = Reader { memory, structs };
    let mut regions = Vec::new();
    let mut add = |range: Option<(u64, u64)>, class, label| {
        regions.extend(range.filter(|(start, end)| start < end).map(|(start, end)| Region {
            start,
            end,
            class,
            label,
        }));
    };
    add(reader.heap(), ManagedHeap, "Java heap");
    add(reader.code_cache(), JitCode, "JVM code cache");
    for range in reader.code_segments() {
        add(Some(range), JitCode, "JVM code cache");
    }
    let archive = reader.archive();
    add(archive, RuntimeInternal, "JVM class archive");
    add(reader.class_space(archive, entries), RuntimeInternal, "JVM class space");
    regions
}

/// Types that are read to find metaspace.
const CLASS_TYPES: &[&str] =
    &["ClassLoaderData", "ClassLoaderDataGraph", "InstanceKlass", "Klass", "Universe"];
/// Class loaders, and classes of all of them, that are looked at.
const MAX_LOADERS: usize = 10_000;
const MAX_CLASSES: usize = 200_000;

/// Address of the object that is the heap of the running collector.
pub(crate) fn heap_object(memory: &impl Memory, variables: &HashMap<String, u64>) -> Option<u64> {
    let structs = Structs::read(memory, variables, |name| name == "Universe")?;
    Reader { memory, structs }.global("Universe", "_collectedHeap").filter(|heap| *heap != 0)
}

/// Addresses within metaspace: the constant pools of loaded classes, which no other memory holds.
///
/// The way: `ClassLoaderDataGraph::_head`, its loaders by `_next`, the classes of each by `Klass::_next_link`, and
/// `InstanceKlass::_constants`. A class that is none, an array's, has something else there, which is an address all the
/// same or none: whoever asks looks whether it lies in unclaimed memory.
pub(crate) fn metaspace_samples(memory: &impl Memory, variables: &HashMap<String, u64>) -> Vec<u64> {
    let Some(structs) = Structs::read(memory, variables, |name| CLASS_TYPES.contains(&name)) else {
        return Vec::new();
    };
    let reader = Reader { memory, structs };
    let mut samples = Vec::new();
    let mut loader = reader.global("ClassLoaderDataGraph", "_head");
    let mut class_count = 0;
    for _ in 0..MAX_LOADERS {
        let Some(at) = loader.filter(|at| *at != 0) else { break };
        let mut class = reader.member(at, "ClassLoaderData", "_klasses");
        while let Some(at) = class.filter(|at| *at != 0 && class_count < MAX_CLASSES) {
            class_count += 1;
            samples.extend(reader.member(at, "InstanceKlass", "_constants"));
            class = reader.member(at, "Klass", "_next_link");
        }
        loader = reader.member(at, "ClassLoaderData", "_next");
    }
    samples
}

struct Reader<'m, M> {
    memory: &'m M,
    structs: Structs,
}

impl<M: Memory> Reader<'_, M> {
    fn global(&self, of: &str, name: &str) -> Option<u64> {
        self.memory.word(self.structs.address(of, name)?)
    }

    fn member(&self, object: u64, of: &str, name: &str) -> Option<u64> {
        self.memory.word(object.checked_add(self.structs.offset(of, name)?)?)
    }

    fn heap(&self) -> Option<(u64, u64)> {
        let heap = self.global("Universe", "_collectedHeap")?;
        let reserved = heap.checked_add(self.structs.offset("CollectedHeap", "_reserved")?)?;
        let start = self.member(reserved, "MemRegion", "_start")?;
        let words = self.member(reserved, "MemRegion", "_word_size")?;
        Some((start, start.checked_add(words.checked_mul(8)?)?))
    }

    fn code_cache(&self) -> Option<(u64, u64)> {
        Some((self.global("CodeCache", "_low_bound")?, self.global("CodeCache", "_high_bound")?))
    }

    /// The tables that say where each piece of code begins.
    fn code_segments(&self) -> Vec<(u64, u64)> {
        let segments = || {
            let heaps = self.global("CodeCache", "_heaps")?;
            let count =
                self.memory.half(heaps.checked_add(self.structs.offset("GrowableArrayBase", "_len")?)?)?;
            let data = self.member(heaps, "GrowableArray<int>", "_data")?;
            let of_heap = |index: u64| {
                let heap = self.memory.word(data.checked_add(8 * index)?)?;
                let space = heap.checked_add(self.structs.offset("CodeHeap", "_segmap")?)?;
                let low = self.member(space, "VirtualSpace", "_low_boundary")?;
                Some((low, self.member(space, "VirtualSpace", "_high_boundary")?))
            };
            Some((0..count.min(MAX_CODE_HEAPS).into()).filter_map(of_heap).collect())
        };
        segments().unwrap_or_default()
    }

    fn archive(&self) -> Option<(u64, u64)> {
        let start = self.global("MetaspaceObj", "_shared_metaspace_base")?;
        Some((start, self.global("MetaspaceObj", "_shared_metaspace_top")?))
    }

    fn class_space(&self, archive: Option<(u64, u64)>, entries: &[MapEntry]) -> Option<(u64, u64)> {
        let base = self.global("CompressedKlassPointers", "_narrow_klass._base")?;
        let size_bytes = self.flag("CompressedClassSpaceSize")?;
        let start = match archive.filter(|(start, end)| start < end) {
            Some((start, end)) => {
                start.checked_add((end - start).checked_next_multiple_of(CLASS_SPACE_ALIGNMENT)?)?
            }
            None => base,
        };
        let end = start.checked_add(size_bytes)?;
        // What is not mapped there is not it.
        let is_mapped = |(from, to): &(u64, u64)| *from <= start && end <= *to;
        runs(entries, is_anonymous).iter().any(is_mapped).then_some((start, end))
    }

    /// A flag of eight bytes.
    fn flag(&self, wanted: &str) -> Option<u64> {
        let flags = self.global("JVMFlag", "flags")?;
        let count = self.global("JVMFlag", "numFlags")?.min(MAX_FLAGS);
        let (name, value) =
            (self.structs.offset("JVMFlag", "_name")?, self.structs.offset("JVMFlag", "_addr")?);
        // The size of an entry is not published: the distance of two names that can be read is.
        let is_name = |at: u64| {
            self.memory.word(at).filter(|at| *at != 0).is_some_and(|at| {
                self.memory.name(at).is_some_and(|name| {
                    name.len() > 2 && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
                })
            })
        };
        let stride = [16, 24, 32, 40, 48].into_iter().find(|stride| {
            (0..8).all(|index| flags.checked_add(name + index * stride).is_some_and(is_name))
        })?;
        (0..count).find_map(|index| {
            let flag = flags.checked_add(index * stride)?;
            let is_wanted = self.memory.name(self.memory.word(flag.checked_add(name)?)?)? == wanted;
            is_wanted.then(|| self.memory.word(self.memory.word(flag.checked_add(value)?)?)).flatten()
        })
    }
}
