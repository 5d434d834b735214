//! HotSpot: functions of `libjvm.so` as JDK 17 has them.
//!
//! Many builds have no symbols for them; then the object alone says that the mapping is the JVM's. Ranges are
//! reserved once and committed by mapping over them, so both kinds of calls have to be known.

use super::rule::{Rule, Table, rule};
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
