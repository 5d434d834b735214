//! Which mappings are reached by pointers from a runtime's own variables: those are the runtime's.

use std::collections::{HashSet, VecDeque};

use super::claim::Claims;
use crate::attach::maps::MapEntry;
use crate::managed::memory::{Memory, is_anonymous};

/// Objects that are looked at.
const MAX_OBJECTS: usize = 200_000;

/// How far pointers are followed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// Steps from the roots.
    pub(super) depth: u32,
    /// Bytes of an object that are read; how long it is, is not known.
    pub(super) object_bytes: usize,
}

/// Unnamed private memory that nobody has claimed: start and end of each mapping.
pub(super) fn unclaimed(entries: &[MapEntry], claims: &Claims) -> Vec<(u64, u64)> {
    entries
        .iter()
        .filter(|entry| is_anonymous(entry) && entry.permissions.starts_with(b"rw"))
        .flat_map(|entry| claims.divide(entry.start, entry.end))
        .filter(|(_, _, what)| what.is_none())
        .map(|(start, end, _)| (start, end))
        .collect()
}

/// The target range that holds an address. Ranges are in order.
pub(super) fn holding(targets: &[(u64, u64)], address: u64) -> Option<usize> {
    let index = targets.partition_point(|(start, _)| *start <= address).checked_sub(1)?;
    targets.get(index).is_some_and(|(_, end)| address < *end).then_some(index)
}

/// The words of a range, as far as it can be read.
pub(super) fn words(memory: &impl Memory, start: u64, size_bytes: usize) -> Vec<u64> {
    let mut bytes = vec![0; size_bytes / 8 * 8];
    // What is behind the end of a mapping cannot be read: less is asked for.
    while !bytes.is_empty() && !memory.read(start, &mut bytes) {
        let half = bytes.len() / 16 * 8;
        bytes.truncate(half);
    }
    bytes.chunks_exact(8).filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?))).collect()
}

/// Ranges of `targets` (in order) into which pointers lead: from the roots, which are ranges, over objects for which
/// `is_passed` holds, and over reached targets themselves.
pub(super) fn reached(
    memory: &impl Memory,
    roots: &[(u64, usize)],
    targets: &[(u64, u64)],
    way: Way,
    is_passed: impl Fn(u64) -> bool,
) -> Vec<(u64, u64)> {
    let mut queue: VecDeque<(u64, usize, u32)> =
        roots.iter().map(|(start, size_bytes)| (*start, *size_bytes, 0)).collect();
    let mut seen: HashSet<u64> = HashSet::new();
    let mut found: HashSet<usize> = HashSet::new();
    while let Some((start, size_bytes, depth)) = queue.pop_front() {
        for word in words(memory, start, size_bytes) {
            let target = holding(targets, word);
            found.extend(target);
            let is_new = depth < way.depth
                && word.is_multiple_of(8)
                && seen.len() < MAX_OBJECTS
                && (target.is_some() || is_passed(word))
                && seen.insert(word);
            if is_new {
                queue.push_back((word, way.object_bytes, depth + 1));
            }
        }
    }
    let mut found: Vec<(u64, u64)> =
        found.into_iter().filter_map(|index| targets.get(index).copied()).collect();
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::fake::Fake;

    #[test]
    fn pointers_are_followed_as_far_as_said() {
        let mut memory =
            Fake::new(&[(0x1000, 0x1000), (0x8000, 0x1000), (0x20000, 0x1000), (0x30000, 0x1000)]);
        memory.put(0x1010, 0x8100);
        memory.put(0x8108, 0x20040);
        memory.put(0x20048, 0x30000);
        let targets = [(0x20000, 0x21000), (0x30000, 0x31000), (0x40000, 0x41000)];
        let find = |depth| {
            let way = Way { depth, object_bytes: 64 };
            reached(&memory, &[(0x1000, 64)], &targets, way, |at| (0x8000..0x9000).contains(&at))
        };
        assert_eq!(find(0), []);
        assert_eq!(find(1), [(0x20000, 0x21000)]);
        assert_eq!(find(2), [(0x20000, 0x21000), (0x30000, 0x31000)]);
        let way = Way { depth: 9, object_bytes: 64 };
        assert_eq!(reached(&memory, &[(0x1000, 64)], &targets, way, |_| false), []);
    }

    #[test]
    fn a_circle_ends() {
        let mut memory = Fake::new(&[(0x1000, 0x1000)]);
        memory.put(0x1000, 0x1000);
        let way = Way { depth: u32::MAX, object_bytes: 4096 };
        assert_eq!(reached(&memory, &[(0x1000, 8)], &[(0x1000, 0x2000)], way, |_| true), [(0x1000, 0x2000)]);
    }
}
