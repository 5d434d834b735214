//! Mappings as the lens on page faults needs them: what their pages count as.

use super::pagemap::{PAGE_BYTES, PageState};
use crate::attach::maps::MapEntry;

/// What a mapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AreaKind {
    /// Anonymous memory of this process.
    Anonymous,
    /// The program break.
    Heap,
    /// The stack of the first thread.
    Stack,
    /// One of the arenas that glibc has besides the program break.
    GlibcArena,
    /// Anonymous memory in which code can run.
    Code,
    /// A file, private or shared.
    File,
    /// Shared memory without a file: shared anonymous, memfd, System V, `/dev/shm`.
    Shared,
    /// vDSO and its like.
    Kernel,
}

/// A mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// First page.
    pub start: u64,
    /// First page behind it.
    pub end: u64,
    /// What it is.
    pub kind: AreaKind,
    /// Whether writes are seen by others.
    pub is_shared: bool,
    /// Name in `/proc/PID/maps`; hostile input.
    pub name: Vec<u8>,
}

impl Area {
    /// Whether a page of it is in the resident set.
    pub fn counts(&self, state: PageState) -> bool {
        // What devices map is not the page of a file, and is in no resident set.
        state.is(PageState::PRESENT)
            && !state.is(PageState::ZERO)
            && (!self.is_shared || state.is(PageState::FILE))
    }
}

/// Size and alignment of glibc's arenas (`HEAP_MAX_SIZE` of malloc/arena.c, 64-bit).
const ARENA_PAGES: u64 = (64 << 20) / PAGE_BYTES;
/// The name of anonymous memory in huge pages that were set aside: it is in no resident set.
const HUGETLB: &[u8] = b"/anon_hugepage";

/// The mappings whose pages can be resident, by address.
pub fn areas(entries: &[MapEntry]) -> Vec<Area> {
    let mut areas = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let next = entries.get(index + 1);
        if entry.start >= 1 << 63 || entry.name.starts_with(HUGETLB) {
            continue;
        }
        areas.push(Area {
            start: entry.start / PAGE_BYTES,
            end: entry.end / PAGE_BYTES,
            kind: kind_of(entry, next),
            is_shared: entry.permissions[3] == b's',
            name: entry.name.clone(),
        });
    }
    areas
}

fn kind_of(entry: &MapEntry, next: Option<&MapEntry>) -> AreaKind {
    let name = entry.name.as_slice();
    let is_shared_memory = [&b"/memfd:"[..], b"/SYSV", b"/dev/shm/", b"/dev/zero", b"[anon_shmem"];
    if is_shared_memory.iter().any(|start| name.starts_with(start)) {
        AreaKind::Shared
    } else if entry.inode != 0 {
        AreaKind::File
    } else if name == b"[heap]" {
        AreaKind::Heap
    } else if name.starts_with(b"[stack") {
        AreaKind::Stack
    } else if name.starts_with(b"[v") {
        AreaKind::Kernel
    } else if entry.permissions[3] == b's' {
        AreaKind::Shared
    } else if entry.is_executable() {
        AreaKind::Code
    } else if is_arena(entry, next) {
        AreaKind::GlibcArena
    } else {
        AreaKind::Anonymous
    }
}

/// An arena begins at a multiple of its size, and what is not used of it yet is reserved behind it.
fn is_arena(entry: &MapEntry, next: Option<&MapEntry>) -> bool {
    let start = entry.start / PAGE_BYTES;
    let is_rest = |next: &MapEntry| {
        next.start == entry.end
            && next.permissions == *b"---p"
            && next.end / PAGE_BYTES >= start.saturating_add(ARENA_PAGES)
    };
    start.is_multiple_of(ARENA_PAGES) && entry.name.is_empty() && next.is_some_and(is_rest)
}

/// The mapping of a page.
pub fn area_of(areas: &[Area], page: u64) -> Option<&Area> {
    let behind = areas.partition_point(|area| area.start <= page);
    behind.checked_sub(1).and_then(|index| areas.get(index)).filter(|area| page < area.end)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::attach::maps;

    #[test]
    fn mappings_are_what_they_are() {
        let entries = maps::parse(
            b"555500000000-555500001000 r-xp 00000000 fe:01 7 /bin/x\n\
              555600000000-555600021000 rw-p 00000000 00:00 0 [heap]\n\
              7f0000000000-7f0000030000 rw-p 00000000 00:00 0\n\
              7f0000030000-7f0004000000 ---p 00000000 00:00 0\n\
              7f0010000000-7f0010030000 rw-p 00000000 00:00 0\n\
              7f0020000000-7f0020001000 rwxp 00000000 00:00 0\n\
              7f0020001000-7f0020002000 rw-s 00000000 00:01 9 /memfd:x (deleted)\n\
              7f0020002000-7f0020003000 rw-s 00000000 00:01 9 /dev/zero (deleted)\n\
              7f0040000000-7f0040200000 rw-p 00000000 00:0f 9 /anon_hugepage (deleted)\n\
              7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0 [stack]\n\
              7ffe00030000-7ffe00032000 r-xp 00000000 00:00 0 [vdso]\n\
              ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n",
        );
        use AreaKind::*;
        let found = areas(&entries);
        let kinds: Vec<_> = found.iter().map(|area| area.kind).collect();
        assert_eq!(
            kinds,
            [File, Heap, GlibcArena, Anonymous, Anonymous, Code, Shared, Shared, Stack, Kernel]
        );
        assert_eq!(area_of(&found, 0x5_5560_0000), Some(&found[1]));
        assert_eq!(area_of(&found, 0x5_5560_0021), None);
        assert_eq!(area_of(&found, 1), None);
    }
}
