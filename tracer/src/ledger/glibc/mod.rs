//! glibc's malloc, from outside: which memory is its, and how much of that is free.
//!
//! * [`layout`]: arenas and settings, found in the C library's data by their structure.
//! * [`walk`]: the chunks of a heap.
//! * [`mapped`]: blocks that have a mapping of their own.
//!
//! Memory of the main arena lies below the program break. Other arenas have heaps of 64 MiB, aligned to their size,
//! each of which begins with a `heap_info` whose `ar_ptr` is the arena's address: it is believed only if that arena is on
//! the circle of arenas which begins in the C library's data.

mod layout;
mod mapped;
mod walk;

use std::collections::HashMap;

use self::layout::{Arena, Layout};
use self::walk::{Heap, MAX_CHUNKS};
use super::claim::{Claims, Use};
use super::context::Context;
use super::smaps::Vma;
use crate::attach::maps::MapEntry;
use crate::managed::memory::{Memory, is_anonymous};
use crate::model::LedgerClass::{AllocatorArena, AllocatorLive};

pub(super) use self::layout::Settings;
pub(super) use self::walk::Walk;

/// Alignment and reservation of a heap: `HEAP_MAX_SIZE`, twice the largest threshold for mappings (malloc/arena.c).
const HEAP_BYTES: u64 = 64 << 20;
/// Aligned addresses that are looked at: 4 TiB of mappings.
const MAX_CANDIDATES: usize = 1 << 16;
/// Data of a C library, or of a static program, that is searched.
const MAX_DATA_BYTES: u64 = 16 << 20;

pub(super) const MAIN: &str = "glibc malloc, main arena";
pub(super) const THREADS: &str = "glibc malloc, arenas of threads";
pub(super) const CUT: &str = "glibc malloc, not walked to its end";
pub(super) const MAPPED: &str = "glibc malloc, blocks with a mapping of their own";

/// Where the main arena is; found once per process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    address: u64,
    layout: Layout,
}

/// What glibc's malloc says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Malloc {
    /// Arenas.
    pub(super) arena_count: u64,
    /// Heaps of arenas other than the main one.
    pub(super) heap_count: u64,
    /// What all arenas have from the kernel, in bytes.
    pub(super) system_bytes: u64,
    /// Of this, the main arena.
    pub(super) main_system_bytes: u64,
    /// The most that they ever had, each at its own time.
    pub(super) max_system_bytes: u64,
    /// `mp_`, if it was found.
    pub(super) settings: Option<Settings>,
    /// Chunks in the fast bins; `None` if nothing was walked.
    pub(super) fast_bytes: Option<u64>,
    /// What the walks of those heaps found that were walked to their end; `None`: nothing was walked.
    pub(super) walk: Option<Walk>,
    /// Heaps that were not walked to their end.
    pub(super) cut_count: u64,
}

/// The C library's data, with what follows it without a name; of a static program, the program's.
fn data(context: &Context<'_>) -> Vec<(u64, u64)> {
    let is_libc = |entry: &&MapEntry| {
        let name = entry.name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        name.starts_with(b"libc.so") || name.starts_with(b"libc-2.")
    };
    let entries = context.entries;
    let name = entries.iter().find(is_libc).or(entries.first()).map(|entry| entry.name.clone());
    let Some(name) = name.filter(|name| name.starts_with(b"/")) else { return Vec::new() };
    let mut ranges = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        if entry.name != name || !entry.permissions.starts_with(b"rw") {
            continue;
        }
        let next = entries.get(index + 1).filter(|next| next.start == entry.end && is_anonymous(next));
        let end = next.map_or(entry.end, |next| next.end).min(entry.start.saturating_add(MAX_DATA_BYTES));
        ranges.push((entry.start, end.max(entry.start)));
    }
    ranges
}

/// Reads pages up to the first that is not there.
fn bytes_of(memory: &impl Memory, (start, end): (u64, u64)) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(end - start).unwrap_or(0)];
    while !bytes.is_empty() && !memory.read(start, &mut bytes) {
        let half = bytes.len() / 2;
        bytes.truncate(half / 4096 * 4096);
    }
    bytes
}

/// Claims what is glibc's. `found` keeps the main arena's place. With a page map that may be used at length
/// (`is_deep`) heaps are walked, and blocks are looked for page by page.
pub(super) fn claim(
    context: &mut Context<'_>,
    vmas: &[Vma],
    found: &mut Option<Found>,
    claims: &mut Claims,
) -> Option<Malloc> {
    let memory = context.memory;
    let known = found.and_then(|found| layout::read(&memory, found.address, found.layout));
    let known = known.and_then(|main| layout::circle(&memory, main));
    let arenas = known.or_else(|| {
        let candidates =
            data(context).into_iter().flat_map(|range| layout::find(&bytes_of(&memory, range), range.0));
        candidates.into_iter().find_map(|main| layout::circle(&memory, main))
    })?;
    let main = arenas.first()?;
    *found = Some(Found { address: main.address, layout: main.layout });
    let break_heap = context.entries.iter().find(|entry| entry.name == b"[heap]");
    let settings = break_heap.and_then(|heap| {
        let start = heap.start;
        data(context).into_iter().find_map(|range| layout::find_settings(&bytes_of(&memory, range), start))
    });
    let mut heaps = heaps(&memory, context.entries, &arenas);
    let heap_count = heaps.len() as u64;
    if arenas.iter().all(|arena| arena.system_bytes == 0)
        && settings.as_ref().is_none_or(|of| of.mapped_bytes == 0)
    {
        // Another allocator has taken its place.
        return None;
    }
    let base = settings.as_ref().map(|settings| settings.break_base);
    if let Some(range) = main_range(context.entries, main, base) {
        heaps.push(range);
    }
    let mut malloc = Malloc {
        arena_count: arenas.len() as u64,
        heap_count,
        system_bytes: arenas.iter().map(|arena| arena.system_bytes).sum(),
        main_system_bytes: main.system_bytes,
        max_system_bytes: arenas.iter().map(|arena| arena.max_system_bytes).sum(),
        settings,
        fast_bytes: None,
        walk: None,
        cut_count: 0,
    };
    if context.is_deep {
        malloc.fast_bytes = Some(arenas.iter().map(|arena| walk::fast(&memory, &arena.fastbins)).sum());
        walk_all(context, &heaps, &mut malloc, claims);
    } else {
        for heap in &heaps {
            claims.add(heap.start, heap.reserved_end, &Use::new(AllocatorArena, heap.label));
        }
    }
    claim_mapped(context, vmas, claims);
    Some(malloc)
}

/// A heap and what it has reserved.
struct Range {
    start: u64,
    reserved_end: u64,
    label: &'static str,
    chunks: Heap,
}

/// The main arena: what is below the break, as far as it is one piece, or what its top lies in.
fn main_range(entries: &[MapEntry], main: &Arena, base: Option<u64>) -> Option<Range> {
    let holds_top = |entry: &&MapEntry| (entry.start..entry.end).contains(&main.top);
    let heap = entries.iter().find(|entry| entry.name == b"[heap]");
    let of_top = entries.iter().find(|entry| holds_top(entry) && is_anonymous(entry));
    let entry = heap.filter(|_| main.system_bytes > 0).or(of_top)?;
    let top = holds_top(&entry).then_some(main.top);
    // Where the arena begins is the first chunk; the mapping begins with it in most programs.
    let base = base.filter(|base| (entry.start..entry.end).contains(base)).unwrap_or(entry.start);
    let chunks = Heap { first: base.next_multiple_of(16), end: entry.end, top };
    Some(Range { start: entry.start, reserved_end: entry.end, label: MAIN, chunks })
}

/// The heaps of other arenas.
fn heaps(memory: &impl Memory, entries: &[MapEntry], arenas: &[Arena]) -> Vec<Range> {
    let by_address: HashMap<u64, &Arena> =
        arenas.iter().skip(1).map(|arena| (arena.address, arena)).collect();
    if by_address.is_empty() {
        return Vec::new();
    }
    let candidates = entries
        .iter()
        .filter(|entry| is_anonymous(entry) && entry.permissions.starts_with(b"rw"))
        .flat_map(|entry| {
            let first = entry.start.next_multiple_of(HEAP_BYTES);
            (first..entry.end).step_by(HEAP_BYTES as usize)
        });
    let heap = |start: u64| {
        let arena = by_address.get(&memory.word(start)?)?;
        let size_bytes = memory.word(start + 16)?;
        let writable_bytes = memory.word(start + 24)?;
        let is_sane = size_bytes.is_multiple_of(4096)
            && (4096..=HEAP_BYTES).contains(&size_bytes)
            && (size_bytes..=HEAP_BYTES).contains(&writable_bytes);
        // `heap_info` is as long as the first heap of the arena has it in front of the arena.
        let info_bytes = arena.address % HEAP_BYTES;
        let first = match arena.address - info_bytes == start {
            true => (arena.address + arena.layout.size_bytes()).next_multiple_of(16),
            false => start + info_bytes.next_multiple_of(16),
        };
        let end = start + size_bytes;
        let top = (first..end).contains(&arena.top).then_some(arena.top);
        (is_sane && info_bytes <= 256 && first < end).then_some(Range {
            start,
            reserved_end: start + HEAP_BYTES,
            label: THREADS,
            chunks: Heap { first, end, top },
        })
    };
    candidates.take(MAX_CANDIDATES).filter_map(heap).collect()
}

/// Walks the heaps. One that was not walked to its end has a row of its own, undivided.
fn walk_all(context: &mut Context<'_>, heaps: &[Range], malloc: &mut Malloc, claims: &mut Claims) {
    let memory = context.memory;
    let mut budget = MAX_CHUNKS;
    let mut sum = Walk::default();
    for heap in heaps {
        let mut found = Walk::default();
        // The process goes on meanwhile: a walk that stumbles is tried again.
        for _ in 0..3 {
            let Some(presence) = context.presence(heap.start, heap.chunks.end) else { break };
            found = walk::walk(&memory, &presence, heap.chunks, &mut budget);
            if found.is_whole {
                break;
            }
        }
        let label = if found.is_whole { heap.label } else { CUT };
        claims.add(heap.start, heap.reserved_end, &Use::new(AllocatorArena, label));
        match found.is_whole {
            true => sum.add(&found),
            false => malloc.cut_count += 1,
        }
    }
    malloc.walk = Some(sum);
}

/// Claims blocks that have a mapping of their own.
fn claim_mapped(context: &mut Context<'_>, vmas: &[Vma], claims: &mut Claims) {
    let memory = context.memory;
    let what = Use::new(AllocatorLive, MAPPED);
    for vma in vmas {
        let entry = &vma.entry;
        if !is_anonymous(entry) || !entry.permissions.starts_with(b"rw") {
            continue;
        }
        let free: Vec<(u64, u64)> = claims
            .divide(entry.start, entry.end)
            .into_iter()
            .filter(|(_, _, what)| what.is_none())
            .map(|(start, end, _)| (start, end))
            .collect();
        for (start, end) in free {
            let presence =
                if context.is_deep && vma.rss_bytes > 0 { context.presence(start, end) } else { None };
            for (start, end) in mapped::blocks(&memory, start, end, presence.as_ref()) {
                claims.add(start, end, &what);
            }
        }
    }
}
