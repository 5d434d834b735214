//! Go: the memory in which its runtime keeps books about the heap, and the figures of `runtime.MemStats`.
//!
//! `runtime.mheap_` is found by its structure, also in stripped programs: its page allocator holds five slices, whose
//! capacities are fixed for 48 bits of addresses (`summary` of runtime/mpagealloc_64bit.go, Go 1.14 and later). What it points
//! to is the runtime's. The figures need the program's symbols and DWARF, which `-ldflags=-s -w` leaves out.

mod dwarf;

use std::collections::HashMap;

use super::Told;
use super::claim::{Claims, Use};
use super::context::Context;
use super::reach::{holding, unclaimed, words};
use crate::attach::maps::MapEntry;
use crate::attach::object::ObjectFile;
use crate::managed::memory::{Memory, is_anonymous, variables};
use crate::model::LedgerClass::{ManagedHeap, RuntimeInternal};

/// Elements of the five levels of summaries, 8 bytes each.
const SUMMARY_LENGTHS: [u64; 5] = [1 << 14, 1 << 17, 1 << 20, 1 << 23, 1 << 26];
/// Bytes of `mheap_`: 92,672 in Go 1.19; what is behind it is variables of the runtime, too.
const MHEAP_BYTES: usize = 96 << 10;
/// Data of the program that is searched.
const MAX_DATA_BYTES: u64 = 64 << 20;
/// An arena of the heap, and the table of all arenas: one pointer for each in 48 bits of addresses, counted from the lowest
/// negative one (`arenaBaseOffset` of linux/amd64).
const ARENA_BYTES: u64 = 64 << 20;
const ARENA_TABLE_BYTES: u64 = 8 << 22;
const ARENA_BASE: u64 = 0x8000_0000_0000;
/// Arenas whose metadata is looked up.
const MAX_ARENAS: u64 = 1 << 14;
/// What a pointer is believed to belong to: persistent memory comes in pieces of 256 KiB, with pointers anywhere into
/// them; tables of chunks and metadata of arenas have at most some more than 1 MiB, with pointers to their start.
const BEFORE_BYTES: u64 = 256 << 10;
const BEHIND_BYTES: u64 = 1280 << 10;

const LABEL: &str = "Go runtime";
const SOURCE: &str = "Go memstats";
/// Figures: name for people, structure, member.
const FIGURES: &[(&str, &str, &str)] = &[
    ("heap in use (HeapInuse)", "runtime.gcControllerState", "heapInUse"),
    ("heap idle, not given back", "runtime.gcControllerState", "heapFree"),
    ("heap given back to the kernel (HeapReleased)", "runtime.gcControllerState", "heapReleased"),
    ("all of the runtime's memory, what was given back aside", "runtime.gcControllerState", "mappedReady"),
    ("collector's books (GCSys)", "runtime.mstats", "gcMiscSys"),
    ("spans (MSpanSys)", "runtime.mstats", "mspan_sys"),
    ("other books (OtherSys)", "runtime.mstats", "other_sys"),
];

/// The variable of each structure.
const VARIABLES: &[(&str, &str)] =
    &[("runtime.gcControllerState", "runtime.gcController"), ("runtime.mstats", "runtime.memstats")];

/// What `runtime.MemStats` would say, read where the runtime counts; `null` for stripped programs.
pub(super) fn tell(tgid: u32, context: &Context<'_>, told: &mut Told) {
    let is_program = |entry: &&MapEntry| entry.is_executable() && entry.name.starts_with(b"/");
    let program = context.entries.iter().find(is_program);
    let name = program.and_then(|entry| entry.display_name().rsplit('/').next().map(str::to_owned));
    let addresses = name.map_or_else(HashMap::new, |name| {
        variables(tgid, context.entries, &[&name], |symbol| VARIABLES.iter().any(|(_, name)| *name == symbol))
    });
    let members = || {
        let bytes = ObjectFile::open(tgid, program?).ok()?.read_all().ok()?;
        let wanted: Vec<&str> = VARIABLES.iter().map(|(structure, _)| *structure).collect();
        dwarf::members(&bytes, &wanted)
    };
    let members = if addresses.is_empty() { None } else { members() };
    for (name, structure, member) in FIGURES {
        let value = || {
            let variable = VARIABLES.iter().find(|(of, _)| of == structure)?.1;
            let offset = members.as_ref()?.get(&((*structure).to_owned(), (*member).to_owned()))?;
            context.memory.word(addresses.get(variable)?.checked_add(*offset)?)
        };
        // More than there are addresses is no figure.
        told.add(SOURCE, name, value().filter(|bytes| *bytes < 1 << 47));
    }
}

/// Claims what `mheap_` points to.
pub(super) fn claim(context: &Context<'_>, claims: &mut Claims) {
    let memory = context.memory;
    let Some((mheap, summaries)) = find_mheap(&memory, context.entries) else { return };
    let what = Use::new(RuntimeInternal, LABEL);
    for (start, length) in summaries.iter().zip(SUMMARY_LENGTHS) {
        claims.add(*start, start.saturating_add(8 * length), &what);
    }
    let targets = unclaimed(context.entries, claims);
    let mut pointers: Vec<u64> = words(&memory, mheap, MHEAP_BYTES);
    pointers.retain(|word| holding(&targets, *word).is_some());
    pointers.sort_unstable();
    pointers.dedup();
    let arenas = arenas(context.entries, claims);
    let mut found: Vec<(u64, u64)> = Vec::new();
    for pointer in &pointers {
        let of_arena = |arena: &u64| {
            let index = arena.checked_add(ARENA_BASE)? / ARENA_BYTES;
            let metadata = memory.word(pointer.checked_add(8 * index)?)?;
            holding(&targets, metadata).map(|_| metadata)
        };
        let is_in_table =
            |at: u64| holding(&targets, at.saturating_add(ARENA_TABLE_BYTES - 8)) == holding(&targets, at);
        let metadata: Vec<u64> = match is_in_table(*pointer) {
            true => arenas.iter().filter_map(of_arena).collect(),
            false => Vec::new(),
        };
        // Only the table of arenas has pointers there.
        if metadata.is_empty() {
            found.push((pointer.saturating_sub(BEFORE_BYTES), pointer.saturating_add(BEHIND_BYTES)));
        } else {
            found.push((*pointer, pointer.saturating_add(ARENA_TABLE_BYTES)));
            found.extend(metadata.iter().map(|at| (*at, at.saturating_add(BEHIND_BYTES))));
        }
    }
    for (start, end) in found {
        let middle = start.saturating_add(BEFORE_BYTES.min(end - start - 1));
        let target = holding(&targets, middle).or_else(|| holding(&targets, start));
        if let Some((from, to)) = target.and_then(|index| targets.get(index)) {
            claims.add(start.max(*from), end.min(*to), &what);
        }
    }
}

/// Arenas of the heap that are claimed.
fn arenas(entries: &[MapEntry], claims: &Claims) -> Vec<u64> {
    let heap = entries.iter().filter(|entry| claims.is_class(entry.start, ManagedHeap));
    heap.flat_map(|entry| {
        let first = entry.start / ARENA_BYTES;
        (first..entry.end.div_ceil(ARENA_BYTES)).map(|index| index * ARENA_BYTES)
    })
    .take(MAX_ARENAS as usize)
    .collect()
}

/// Finds `mheap_` in the program's data: the address of its first slice, and where the slices of summaries begin.
fn find_mheap(memory: &impl Memory, entries: &[MapEntry]) -> Option<(u64, Vec<u64>)> {
    let program = entries.iter().find(|entry| entry.is_executable() && entry.name.starts_with(b"/"))?;
    entries.iter().enumerate().find_map(|(index, entry)| {
        if entry.name != program.name || !entry.permissions.starts_with(b"rw") {
            return None;
        }
        let next = entries.get(index + 1).filter(|next| next.start == entry.end && is_anonymous(next));
        let end = next.map_or(entry.end, |next| next.end).min(entry.start.saturating_add(MAX_DATA_BYTES));
        let data = words(memory, entry.start, usize::try_from(end.saturating_sub(entry.start)).ok()?);
        let at = data.windows(15).position(is_summary)?;
        let starts = (0..5).filter_map(|level| data.get(at + 3 * level).copied()).collect();
        Some((entry.start + 8 * at as u64, starts))
    })
}

/// Whether these are five slices with the capacities of summaries, and less in use than they have room for.
fn is_summary(slices: &[u64]) -> bool {
    slices.len() == 15
        && slices.chunks_exact(3).zip(SUMMARY_LENGTHS).all(|(slice, capacity)| {
            matches!(slice, [start, length, room] if *room == capacity && length <= room && start.is_multiple_of(4096) && *start != 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_known_by_their_capacities() {
        let mut slices: Vec<u64> =
            SUMMARY_LENGTHS.iter().flat_map(|length| [0x7f00_0000_0000, 1, *length]).collect();
        assert!(is_summary(&slices));
        slices[14] -= 1;
        assert!(!is_summary(&slices));
        assert!(!is_summary(&[0; 15]) && !is_summary(&[]));
    }
}
