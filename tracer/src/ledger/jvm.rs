//! JVM: what it says of itself, and what it keeps besides the ranges that it publishes.

use super::Told;
use super::claim::{Claims, Use};
use super::context::Context;
use super::hsperf;
use super::reach::{Way, holding, reached, unclaimed};
use crate::managed::memory::variables;
use crate::managed::{jvm_heap_object, jvm_is_needed, jvm_metaspace_samples};
use crate::model::LedgerClass::RuntimeInternal;

const SOURCE: &str = "hsperfdata";
/// A node of metaspace is made of chunks of this size, aligned to it (JDK 16 and later, JEP 387).
const ROOT_CHUNK_BYTES: u64 = 4 << 20;
/// The collector's own structures are objects that malloc gave, some steps from the heap's object: G1's card table is
/// two away, the bitmaps of its marking three.
const WAY: Way = Way { depth: 3, object_bytes: 1024 };
/// Bytes of the heap's own object that are read.
const HEAP_OBJECT_BYTES: usize = 4096;

/// What the JVM counts: `null` where its file cannot be read.
pub(super) fn tell(tgid: u32, context: &Context<'_>, told: &mut Told) {
    let counters = hsperf::read(tgid, context);
    let counter = |name: &str| counters.as_ref()?.get(name).copied();
    let spaces = |what: &str| hsperf::spaces(counters.as_ref()?, what);
    told.add(SOURCE, "Java heap, used", spaces("used"));
    told.add(SOURCE, "Java heap, committed", spaces("capacity"));
    told.add(SOURCE, "metaspace, used", counter("sun.gc.metaspace.used"));
    told.add(SOURCE, "metaspace, committed", counter("sun.gc.metaspace.capacity"));
    told.add(SOURCE, "class space, committed", counter("sun.gc.compressedclassspace.capacity"));
    told.add(SOURCE, "code of compiled methods", counter("sun.ci.nmethodCodeSize"));
}

/// Claims what is reached from the JVM's own objects.
///
/// Metaspace: the nodes are in no table, but constant pools of loaded classes lie in them; a class leads to its pool.
/// Collector: its tables (cards, offsets, marks) are mapped, and the heap's own object leads to them.
pub(super) fn claim(tgid: u32, context: &Context<'_>, claims: &mut Claims) {
    let memory = context.memory;
    let variables = variables(tgid, context.entries, &["libjvm.so"], jvm_is_needed);
    let targets = unclaimed(context.entries, claims);
    let metaspace = Use::new(RuntimeInternal, "JVM metaspace");
    for at in jvm_metaspace_samples(&memory, &variables) {
        if let Some((start, end)) = holding(&targets, at).and_then(|index| targets.get(index)) {
            let chunk = at / ROOT_CHUNK_BYTES * ROOT_CHUNK_BYTES;
            claims.add(chunk.max(*start), (chunk + ROOT_CHUNK_BYTES).min(*end), &metaspace);
        }
    }
    let Some(heap) = jvm_heap_object(&memory, &variables) else { return };
    let targets = unclaimed(context.entries, claims);
    let collector = Use::new(RuntimeInternal, "JVM garbage collector");
    // Only what malloc gave is passed: neither the Java heap nor the JVM's static data lead anywhere.
    let is_block = |at: u64| claims.is_class(at, crate::model::LedgerClass::AllocatorArena);
    for (start, end) in reached(&memory, &[(heap, HEAP_OBJECT_BYTES)], &targets, WAY, is_block) {
        claims.add(start, end, &collector);
    }
}
