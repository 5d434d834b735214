//! The executable mappings of a process as the kernel's PROCS and MAPS maps hold them.
//!
//! A set is replaced as a whole, copy on write: build the new one from free chunks, write the chunks, then
//! swap the `Process` value, and only when no program can be reading the old chunks any more
//! [release](ChunkAllocator::release) them.

use tracer_common::abi::{
    CHUNK_MAPPINGS, MAPPING_FRAME_POINTER, MAPPING_NO_TABLE, Mapping, MappingChunk, PROCESS_CHUNKS, Process,
};

use super::UnwindError;

/// Executable mappings that one process can have.
pub const MAX_MAPPINGS: usize = CHUNK_MAPPINGS * PROCESS_CHUNKS;

/// Code of CPython's perf trampoline: `sub $8,%rsp; call *%rcx; add $8,%rsp; ret`.
const TRAMPOLINE: [u8; 11] = [0x48, 0x83, 0xec, 0x08, 0xff, 0xd1, 0x48, 0x83, 0xc4, 0x08, 0xc3];
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
/// Bytes from the start of a mapping that [`is_trampoline`] needs.
pub const TRAMPOLINE_BYTES: usize = ENDBR64.len() + TRAMPOLINE.len();

/// Whether an anonymous executable mapping that begins with these bytes holds CPython's perf trampolines
/// (`-X perf`) for x86-64; they keep no frame pointer. (Those for aarch64 do.)
pub fn is_trampoline(bytes: &[u8]) -> bool {
    bytes.strip_prefix(&ENDBR64).unwrap_or(bytes).starts_with(&TRAMPOLINE)
}

/// Hands out the entries of the MAPS map.
#[derive(Debug)]
pub struct ChunkAllocator {
    free: Vec<u32>,
}

/// Chunks that one mapping set owns. Dropping it instead of releasing it loses the chunks.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use = "the chunks must be released when their set is replaced"]
pub struct OwnedChunks(Vec<u32>);

impl ChunkAllocator {
    /// All entries of a map of this size.
    pub fn new(capacity: u32) -> Self {
        Self { free: (0..capacity).rev().collect() }
    }

    /// Chunks that can still be handed out.
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Takes `count` chunks.
    ///
    /// # Errors
    /// [`UnwindError::MappingsFull`]; nothing was taken.
    pub fn allocate(&mut self, count: usize) -> Result<OwnedChunks, UnwindError> {
        let free = self.free.len();
        let rest = free.checked_sub(count).ok_or(UnwindError::MappingsFull { needed: count, free })?;
        Ok(OwnedChunks(self.free.split_off(rest)))
    }

    /// Takes chunks back whose set is no longer in use.
    pub fn release(&mut self, chunks: OwnedChunks) {
        self.free.extend(chunks.0);
    }
}

/// The mapping set of one process.
#[derive(Debug)]
pub struct MappingSet {
    process: Process,
    contents: Vec<MappingChunk>,
    chunks: OwnedChunks,
    left_out: usize,
}

impl MappingSet {
    /// Builds a set from executable mappings.
    ///
    /// `generation` is unique over all sets of all processes; `epoch` changes when an address came to
    /// mean other code. Mappings that touch and mean the same become one. An empty one, and one that
    /// overlaps a lower one, is left out. Of more than [`MAX_MAPPINGS`], those with a table or a rule of
    /// their own come first, then those with frame-pointer code or nothing, and lower addresses first.
    /// All that is left out is counted.
    ///
    /// # Errors
    /// [`UnwindError::MappingsFull`].
    pub fn build(
        mappings: &[Mapping],
        generation: u32,
        epoch: u32,
        allocator: &mut ChunkAllocator,
    ) -> Result<Self, UnwindError> {
        let (mut kept, overlapping) = merged(mappings);
        let left_out = overlapping + limit(&mut kept);
        let mut process = Process {
            generation,
            epoch,
            chunk_count: 0,
            refresh: 0,
            top: [u64::MAX; PROCESS_CHUNKS],
            chunk: [0; PROCESS_CHUNKS],
        };
        let chunks = allocator.allocate(kept.len().div_ceil(CHUNK_MAPPINGS))?;
        let mut contents = Vec::with_capacity(chunks.0.len());
        for (i, (part, index)) in kept.chunks(CHUNK_MAPPINGS).zip(&chunks.0).enumerate() {
            let mut content = [Mapping::NONE; CHUNK_MAPPINGS];
            content[..part.len()].copy_from_slice(part);
            process.top[i] = content[0].start;
            process.chunk[i] = *index;
            process.chunk_count += 1;
            contents.push(content);
        }
        Ok(Self { process, contents, chunks, left_out })
    }

    /// The value of PROCS, to be written after the chunks.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The entries of MAPS.
    pub fn chunks(&self) -> impl Iterator<Item = (u32, &MappingChunk)> {
        self.chunks.0.iter().copied().zip(&self.contents)
    }

    /// Mappings of the list that the set does not have.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// What must be released when this set was replaced.
    pub fn into_chunks(self) -> OwnedChunks {
        self.chunks
    }

    /// The mapping that contains `pc`, by the very search the kernel does.
    pub fn find(&self, pc: u64) -> Option<&Mapping> {
        let chunk = last_not_above(&self.process.top, pc, |top| *top)?;
        let content = self.contents.get(chunk)?;
        let mapping = content.get(last_not_above(content, pc, |mapping| mapping.start)?)?;
        (pc < mapping.end).then_some(mapping)
    }
}

fn last_not_above<T>(sorted: &[T], pc: u64, start: impl Fn(&T) -> u64) -> Option<usize> {
    sorted.partition_point(|item| start(item) <= pc).checked_sub(1)
}

/// Sorted, disjoint, neighbours that mean the same made one; and how many had no room between the others.
fn merged(mappings: &[Mapping]) -> (Vec<Mapping>, usize) {
    let mut sorted = mappings.to_vec();
    sorted.sort_by_key(|mapping| mapping.start);
    let mut kept: Vec<Mapping> = Vec::with_capacity(sorted.len());
    let mut left_out = 0;
    for mapping in sorted {
        let floor = kept.last().map_or(0, |last| last.end);
        if mapping.start < floor || mapping.end <= mapping.start {
            left_out += 1;
            continue;
        }
        let meaning = |mapping: &Mapping| (mapping.kind, mapping.bias, mapping.page_base);
        match kept.last_mut() {
            Some(last) if last.end == mapping.start && meaning(last) == meaning(&mapping) => {
                last.end = mapping.end;
            }
            _ => kept.push(mapping),
        }
    }
    (kept, left_out)
}

/// Drops what is over the limit, and says how many.
fn limit(mappings: &mut Vec<Mapping>) -> usize {
    let over = mappings.len().saturating_sub(MAX_MAPPINGS);
    if over > 0 {
        mappings.sort_by_key(|mapping| {
            (matches!(mapping.kind, MAPPING_FRAME_POINTER | MAPPING_NO_TABLE), mapping.start)
        });
        mappings.truncate(MAX_MAPPINGS);
        mappings.sort_by_key(|mapping| mapping.start);
    }
    over
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tracer_common::abi::MAPPING_FILE;

    fn mapping(start: u64, end: u64, kind: u32, bias: u64) -> Mapping {
        Mapping { start, end, bias, page_base: bias as u32, kind }
    }

    #[test]
    fn trampolines_are_recognised_with_and_without_endbr() {
        let with_endbr = [&ENDBR64[..], &TRAMPOLINE, &[0x90]].concat();
        assert!(is_trampoline(&TRAMPOLINE) && is_trampoline(&with_endbr));
        assert!(!is_trampoline(&TRAMPOLINE[..10]) && !is_trampoline(&ENDBR64) && !is_trampoline(&[]));
        assert!(!is_trampoline(&with_endbr[1..]));
    }

    #[test]
    fn chunks_go_round() {
        let mut allocator = ChunkAllocator::new(3);
        let many: Vec<_> =
            (0..130).map(|i| mapping(i * 0x2000, i * 0x2000 + 0x1000, MAPPING_FILE, i)).collect();
        let old = MappingSet::build(&many, 1, 1, &mut allocator).unwrap();
        assert_eq!(old.chunks().map(|(index, _)| index).collect::<Vec<_>>().len(), 3);
        assert!(matches!(
            MappingSet::build(&many[..1], 2, 1, &mut allocator),
            Err(UnwindError::MappingsFull { needed: 1, free: 0 })
        ));
        allocator.release(old.into_chunks());
        assert_eq!(allocator.free_count(), 3);
    }

    #[test]
    fn tables_are_kept_before_frame_pointer_code() {
        let mut allocator = ChunkAllocator::new(PROCESS_CHUNKS as u32);
        let count = MAX_MAPPINGS as u64 + 10;
        let kind = |i| if i < 100 { MAPPING_FRAME_POINTER } else { MAPPING_FILE };
        let many: Vec<_> = (0..count).map(|i| mapping(i * 0x2000, i * 0x2000 + 0x1000, kind(i), i)).collect();
        let set = MappingSet::build(&many, 1, 1, &mut allocator).unwrap();
        assert_eq!((set.left_out(), set.process().chunk_count), (10, PROCESS_CHUNKS as u32));
        assert!(set.find(89 * 0x2000).is_some() && set.find(90 * 0x2000).is_none());
        assert!(set.find(99 * 0x2000).is_none() && set.find(100 * 0x2000).is_some());
        assert!(set.find((count - 1) * 0x2000).is_some());
    }

    #[test]
    fn equal_neighbours_become_one_and_nonsense_is_counted() {
        let mut allocator = ChunkAllocator::new(1);
        let list = [
            mapping(0x1000, 0x2000, MAPPING_FILE, 7),
            mapping(0x2000, 0x3000, MAPPING_FILE, 7),
            mapping(0x2800, 0x3800, MAPPING_FILE, 8),
            mapping(0x4000, 0x4000, MAPPING_FILE, 9),
        ];
        let set = MappingSet::build(&list, 1, 1, &mut allocator).unwrap();
        assert_eq!(set.left_out(), 2);
        assert_eq!(set.find(0x2fff), Some(&mapping(0x1000, 0x3000, MAPPING_FILE, 7)));
        assert_eq!(set.find(0x3000), None);
    }

    proptest! {
        #[test]
        fn find_is_a_linear_search(gaps in prop::collection::vec((0u64..3, 1u64..4, 1u32..6), 0..300)) {
            let mut end = 0x1000;
            let list: Vec<_> = gaps
                .iter()
                .map(|&(gap, len, kind)| {
                    let start = end + gap;
                    end = start + len;
                    mapping(start, end, kind, u64::from(kind))
                })
                .collect();
            let mut allocator = ChunkAllocator::new(PROCESS_CHUNKS as u32);
            let set = MappingSet::build(&list, 1, 1, &mut allocator).unwrap();
            prop_assert_eq!(set.left_out(), 0);
            for pc in 0xfff..end + 2 {
                let expected = list.iter().find(|mapping| (mapping.start..mapping.end).contains(&pc));
                let found = set.find(pc);
                prop_assert_eq!(found.map(|mapping| mapping.kind), expected.map(|mapping| mapping.kind));
            }
        }
    }
}
