//! Memory of other allocators: jemalloc, mimalloc, tcmalloc.
//!
//! They do not name their mappings, and alignment says nothing any more: since 6.7 the kernel aligns every large anonymous
//! mapping to 2 MiB. So an address is an allocator's where its own structures say so, which need no symbols:
//!
//! * jemalloc 5 keeps a radix tree of all its pages (`rtree`, two levels of 18 bits on x86-64): the word for a page leads to
//!   the description of its extent, whose second word is the address of the extent, and whose third is its size.
//! * mimalloc 2 marks each of its segments, which are aligned to 32 MiB, with a cookie: the address of the segment,
//!   exclusive-or with a number that is the same for the whole process.
//! * tcmalloc takes its memory from below the program break, as long as that can be moved. If the library is loaded, and
//!   glibc's own malloc is not used, what is there is tcmalloc's.
//!
//! How much of it is free is not known: their figures are in variables without public names.

use std::collections::HashMap;

use super::Told;
use super::claim::{Claims, Use};
use super::context::Context;
use super::reach::{holding, unclaimed, words};
use crate::attach::maps::MapEntry;
use crate::managed::memory::{Memory, is_anonymous};
use crate::model::LedgerClass::AllocatorArena;

/// Beginnings of the names of libraries.
const LIBRARIES: &[(&str, &str)] =
    &[("libjemalloc", "jemalloc"), ("libmimalloc", "mimalloc"), ("libtcmalloc", "tcmalloc")];
/// Zeroed data of a library or program in which a radix tree's root is looked for.
const MAX_DATA_BYTES: u64 = 64 << 20;
/// The root has 2^18 words, as has a leaf; a page has 12 bits.
const ROOT_BYTES: u64 = 8 << 18;
const LEAF_MASK: u64 = (1 << 18) - 1;
/// Bits of a leaf's word that are an address.
const ADDRESS_BITS: u64 = (1 << 48) - 1;
/// Extents and pages that are looked at.
const MAX_STEPS: u64 = 4_000_000;
/// Blocks of jemalloc's own structures: multiples of this, aligned to it.
const BASE_BYTES: u64 = 2 << 20;
const SEGMENT_BYTES: u64 = 32 << 20;
/// Words of a segment's header that are looked at.
const SEGMENT_WORDS: usize = 64;
/// Mappings by which the root is looked for.
const MAX_PROBES: usize = 64;

/// Claims what is another allocator's. Its name, if there is one.
pub(super) fn claim(
    context: &Context<'_>,
    glibc_is_unused: bool,
    claims: &mut Claims,
    told: &mut Told,
) -> Option<&'static str> {
    let library = LIBRARIES.iter().find(|(start, _)| {
        context.entries.iter().any(|entry| file_name(entry).starts_with(start.as_bytes()))
    });
    let name = library.map(|(_, name)| *name);
    let found = match name {
        Some("tcmalloc") => {
            let heap = context.entries.iter().find(|entry| entry.name == b"[heap]");
            for heap in heap.into_iter().filter(|_| glibc_is_unused) {
                claims.add(heap.start, heap.end, &Use::new(AllocatorArena, "tcmalloc"));
            }
            name
        }
        Some("mimalloc") => {
            claim_segments(context, claims);
            name
        }
        // Programs often have it linked in.
        _ => match claim_extents(context, claims) {
            true => Some("jemalloc"),
            false => name,
        },
    };
    if let Some(name) = found {
        told.add(name, "in use", None);
        told.add(name, "free", None);
    }
    found
}

fn file_name(entry: &MapEntry) -> &[u8] {
    entry.name.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// jemalloc's radix tree.
struct Tree<'m, M> {
    memory: &'m M,
    root: u64,
}

/// An extent: its range, and where its description is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    start: u64,
    end: u64,
    description: u64,
    leaf: u64,
}

impl<M: Memory> Tree<'_, M> {
    /// The extent that begins at a page.
    fn extent(&self, page: u64) -> Option<Extent> {
        let leaf = self.memory.word(self.root.checked_add(8 * (page >> 30 & LEAF_MASK))?)?;
        extent_of(self.memory, leaf, page)
    }
}

/// The extent that begins at a page, by its leaf. The low bits of the leaf's word are flags: descriptions are aligned to 128.
fn extent_of(memory: &impl Memory, leaf: u64, page: u64) -> Option<Extent> {
    if leaf < 1 << 16 || !leaf.is_multiple_of(8) {
        return None;
    }
    let word = memory.word(leaf.checked_add(8 * (page >> 12 & LEAF_MASK))?)?;
    let description = word & ADDRESS_BITS & !0x7f;
    if description == 0 {
        return None;
    }
    let start = memory.word(description.checked_add(8)?)? & !0xfff;
    let size_bytes = memory.word(description.checked_add(16)?)? & !0xfff;
    let end = start.checked_add(size_bytes)?;
    (start == page && size_bytes > 0 && end < 1 << 47).then_some(Extent { start, end, description, leaf })
}

/// Claims jemalloc's extents, and the blocks in which it describes them; whether there are any.
fn claim_extents(context: &Context<'_>, claims: &mut Claims) -> bool {
    let memory = context.memory;
    let targets = unclaimed(context.entries, claims);
    let Some(root) = find_root(&memory, context.entries, &targets) else { return false };
    let tree = Tree { memory: &memory, root };
    let what = Use::new(AllocatorArena, "jemalloc");
    let own = Use::new(AllocatorArena, "jemalloc, its own books");
    let mut left = MAX_STEPS;
    let mut blocks: Vec<u64> = Vec::new();
    for (start, end) in &targets {
        let mut page = *start;
        while page < *end && left > 0 {
            left -= 1;
            let extent = tree.extent(page).filter(|extent| extent.end <= *end);
            if let Some(extent) = extent {
                claims.add(extent.start, extent.end, &what);
                blocks.extend([extent.description, extent.leaf].map(|at| at / BASE_BYTES));
            }
            page = extent.map_or(page.saturating_add(4096), |extent| extent.end);
        }
    }
    blocks.sort_unstable();
    blocks.dedup();
    for block in blocks.into_iter().map(|block| block * BASE_BYTES) {
        if let Some((from, to)) = holding(&targets, block.max(1)).and_then(|index| targets.get(index)) {
            claims.add(block.max(*from), (block + BASE_BYTES).min(*to), &own);
        }
    }
    true
}

/// Finds the root: a word in some object's zeroed data that leads to a leaf which knows one of the mappings.
fn find_root(memory: &impl Memory, entries: &[MapEntry], targets: &[(u64, u64)]) -> Option<u64> {
    let probes: Vec<u64> = targets.iter().map(|(start, _)| *start).take(MAX_PROBES).collect();
    entries.windows(2).find_map(|pair| {
        let [object, zeroed] = pair else { return None };
        let is_data = object.inode != 0
            && object.permissions.starts_with(b"rw")
            && object.end == zeroed.start
            && is_anonymous(zeroed);
        let size_bytes = (zeroed.end - zeroed.start).min(MAX_DATA_BYTES);
        if !is_data || size_bytes < ROOT_BYTES {
            return None;
        }
        let data = words(memory, zeroed.start, usize::try_from(size_bytes).ok()?);
        data.iter().enumerate().find_map(|(index, leaf)| {
            holding(targets, *leaf)?;
            let at = zeroed.start + 8 * index as u64;
            let probe = probes.iter().find(|probe| extent_of(memory, *leaf, **probe).is_some())?;
            at.checked_sub(8 * (probe >> 30 & LEAF_MASK))
        })
    })
}

/// Claims mimalloc's segments. Two of them must agree on the cookie.
fn claim_segments(context: &Context<'_>, claims: &mut Claims) {
    let targets = unclaimed(context.entries, claims);
    let starts = targets.iter().flat_map(|(start, end)| {
        (start.next_multiple_of(SEGMENT_BYTES)..*end).step_by(SEGMENT_BYTES as usize)
    });
    let headers: Vec<(u64, Vec<u64>)> =
        starts.take(1 << 16).map(|start| (start, words(&context.memory, start, 8 * SEGMENT_WORDS))).collect();
    let mut votes: HashMap<(usize, u64), usize> = HashMap::new();
    for (start, header) in &headers {
        for (index, word) in header.iter().enumerate().filter(|(_, word)| is_cookie(**word)) {
            *votes.entry((index, word ^ start)).or_default() += 1;
        }
    }
    let is_segment = |(start, header): &&(u64, Vec<u64>)| {
        let is_agreed = |(index, word): (usize, &u64)| {
            is_cookie(*word) && votes.get(&(index, word ^ start)).is_some_and(|votes| *votes >= 2)
        };
        header.iter().enumerate().any(is_agreed)
    };
    let what = Use::new(AllocatorArena, "mimalloc");
    for (start, _) in headers.iter().filter(is_segment) {
        if let Some((_, end)) = holding(&targets, *start).and_then(|index| targets.get(index)) {
            claims.add(*start, (start + SEGMENT_BYTES).min(*end), &what);
        }
    }
}

/// A cookie is a random number: no small one, and no address.
const fn is_cookie(word: u64) -> bool {
    word >> 48 != 0 && word >> 48 != 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::fake::Fake;

    #[test]
    fn extents_are_what_the_tree_says() {
        let page = 0x7f12_3456_7000u64;
        let (leaf, description) = (0x10_0000, 0x90_0080);
        let mut memory = Fake::new(&[(0x1000, 8 << 18), (leaf, 2 << 20), (0x90_0000, 0x1000)]);
        memory.put(0x1000 + 8 * (page >> 30), leaf);
        memory.put(leaf + 8 * (page >> 12 & LEAF_MASK), description | 1 | 0xabcd << 48);
        memory.put(description + 8, page + 0x40);
        memory.put(description + 16, 0x5000 | 7);
        let tree = Tree { memory: &memory, root: 0x1000 };
        let extent = Extent { start: page, end: page + 0x5000, description, leaf };
        assert_eq!(tree.extent(page), Some(extent));
        assert_eq!(tree.extent(page + 0x1000), None);
        memory.put(description + 8, page + 0x1000);
        assert_eq!(Tree { memory: &memory, root: 0x1000 }.extent(page), None, "another extent's");
    }

    #[test]
    fn cookies_are_neither_numbers_nor_addresses() {
        assert!(is_cookie(0x1234_5678_9abc_def0));
        assert!(!is_cookie(0x7fff_0000_1000) && !is_cookie(7) && !is_cookie(u64::MAX));
    }
}
