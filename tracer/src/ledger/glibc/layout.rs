//! glibc's `struct malloc_state` and `struct malloc_par`, known by their structure: no debug symbols are needed.
//!
//! An arena is believed if its bins, which are circular lists with their heads inside of it, lead back to it. Nothing
//! else in a process looks like that. Offsets are those of malloc/malloc.c on x86-64.

use crate::managed::memory::Memory;

/// Bins: heads of circular lists, two words each.
const BINS: u64 = 127;
/// Least number of empty bins, whose heads point to themselves. A heap in which blocks of so many different sizes are
/// free that fewer than this are empty has not been seen; the largest bins are empty almost always.
const MIN_EMPTY_BINS: u64 = 16;
const FASTBINS: u64 = 10;
/// `contiguous` is off: the break could not be moved, and parts of the main arena are mapped.
const NONCONTIGUOUS_BIT: u32 = 2;
/// Arenas that are followed.
const MAX_ARENAS: usize = 1 << 12;

/// Where things are in `struct malloc_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ledger) struct Layout {
    /// Versions that have it.
    pub(in crate::ledger) versions: &'static str,
    fastbins: u64,
    top: u64,
    bins: u64,
    next: u64,
    system_mem: u64,
}

/// 2.27 put `have_fastchunks` in front of the fast bins.
pub(in crate::ledger) const LAYOUTS: [Layout; 2] = [
    Layout { versions: "2.27 to 2.42", fastbins: 16, top: 96, bins: 112, next: 2160, system_mem: 2184 },
    Layout { versions: "2.26", fastbins: 8, top: 88, bins: 104, next: 2152, system_mem: 2176 },
];

impl Layout {
    /// Bytes of the structure: `max_system_mem` is its last member.
    pub(in crate::ledger) const fn size_bytes(&self) -> u64 {
        self.system_mem + 16
    }

    /// Where the head of a bin is, as a chunk: its `fd` is 16 bytes behind.
    const fn bin(&self, index: u64) -> u64 {
        self.bins + 16 * index - 16
    }
}

/// An arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::ledger) struct Arena {
    /// Address of its `malloc_state`.
    pub(in crate::ledger) address: u64,
    /// How it is laid out.
    pub(in crate::ledger) layout: Layout,
    /// The chunk at the end of its newest heap, from which new chunks are cut.
    pub(in crate::ledger) top: u64,
    /// The next arena.
    next: u64,
    /// What it has from the kernel, in bytes.
    pub(in crate::ledger) system_bytes: u64,
    /// The most it ever had.
    pub(in crate::ledger) max_system_bytes: u64,
    /// First chunks of the fast bins.
    pub(in crate::ledger) fastbins: [u64; FASTBINS as usize],
    /// Whether its memory is one piece below the break.
    pub(in crate::ledger) is_contiguous: bool,
}

fn word(bytes: &[u8], at: u64) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: u64) -> Option<u32> {
    word(bytes, at).map(|word| (word & 0xffff_ffff) as u32)
}

/// The arena that `bytes` are, which were read at `address`.
pub(in crate::ledger) fn parse(bytes: &[u8], address: u64, layout: Layout) -> Option<Arena> {
    // The last bins are empty almost always, and refuse what is no arena at once.
    let is_empty = |index: u64| {
        let head = address.checked_add(layout.bin(index))?;
        let at = layout.bins + 16 * index;
        Some(word(bytes, at)? == head && word(bytes, at + 8)? == head)
    };
    let is_bin = |index: u64| {
        let at = layout.bins + 16 * index;
        let is_link = |link: u64| link.is_multiple_of(16) && link >= 1 << 12;
        Some(is_empty(index)? || (is_link(word(bytes, at)?) && is_link(word(bytes, at + 8)?)))
    };
    let mut empty_count = 0;
    for index in (0..BINS).rev() {
        if !is_bin(index)? {
            return None;
        }
        empty_count += u64::from(is_empty(index)?);
    }
    // 0: free; 1: taken; 2: taken, and somebody waits.
    let is_mutex = half(bytes, 0)? <= 2;
    let mut fastbins = [0; FASTBINS as usize];
    for (slot, index) in fastbins.iter_mut().zip(0u64..) {
        *slot = word(bytes, layout.fastbins + 8 * index).filter(|chunk| chunk.is_multiple_of(16))?;
    }
    let arena = Arena {
        address,
        layout,
        top: word(bytes, layout.top).filter(|top| top.is_multiple_of(16) && *top != 0)?,
        next: word(bytes, layout.next).filter(|next| next.is_multiple_of(8) && *next != 0)?,
        system_bytes: word(bytes, layout.system_mem)?,
        max_system_bytes: word(bytes, layout.system_mem + 8)?,
        fastbins,
        is_contiguous: half(bytes, 4)? & NONCONTIGUOUS_BIT == 0,
    };
    let is_sane = arena.system_bytes <= arena.max_system_bytes && arena.max_system_bytes < 1 << 47;
    (is_mutex && is_sane && empty_count >= MIN_EMPTY_BINS).then_some(arena)
}

/// Reads the arena at an address.
pub(in crate::ledger) fn read(memory: &impl Memory, address: u64, layout: Layout) -> Option<Arena> {
    let mut bytes = vec![0; usize::try_from(layout.size_bytes()).ok()?];
    memory.read(address, &mut bytes).then(|| parse(&bytes, address, layout)).flatten()
}

/// Finds arenas in memory that begins at `start`: there is one in the data of every C library that has allocated.
///
/// One for each layout: since the two differ by one word in front of everything else, an arena of one looks like one of the
/// other a word beside it. Only in the right one `next` leads back.
pub(in crate::ledger) fn find(bytes: &[u8], start: u64) -> Vec<Arena> {
    let of_layout = |layout: &Layout| {
        let last = (bytes.len() as u64).checked_sub(layout.size_bytes())?;
        (0..=last / 8).find_map(|index| {
            let at = 8 * index;
            // Cheap before dear: the unsorted bin, or any of the largest, points to itself.
            let is_candidate = [BINS - 1, BINS - 2, 0].iter().any(|bin| {
                word(bytes, at + layout.bins + 16 * bin) == start.checked_add(at + layout.bin(*bin))
            });
            let part = || bytes.get(usize::try_from(at).ok()?..);
            is_candidate.then(|| parse(part()?, start.checked_add(at)?, *layout)).flatten()
        })
    };
    LAYOUTS.iter().filter_map(of_layout).collect()
}

/// All arenas, the main one first, along the circle of `next`; `None` if it does not lead back.
pub(in crate::ledger) fn circle(memory: &impl Memory, main: Arena) -> Option<Vec<Arena>> {
    let (first, layout) = (main.address, main.layout);
    let mut arenas = vec![main];
    while let Some(next) = arenas.last().map(|arena| arena.next).filter(|next| *next != first) {
        let is_new = arenas.len() < MAX_ARENAS && arenas.iter().all(|arena| arena.address != next);
        arenas.push(read(memory, next, layout).filter(|_| is_new)?);
    }
    Some(arenas)
}

/// What `mp_` (`struct malloc_par`) says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::ledger) struct Settings {
    /// Bytes of blocks that have a mapping of their own.
    pub(in crate::ledger) mapped_bytes: u64,
    /// Their number.
    pub(in crate::ledger) mapped_count: u32,
    /// The top of the main arena is given back when it is larger than this.
    pub(in crate::ledger) trim_threshold_bytes: u64,
    /// Larger blocks get a mapping of their own.
    pub(in crate::ledger) mmap_threshold_bytes: u64,
    /// Most arenas, if that was set: `M_ARENA_MAX`.
    pub(in crate::ledger) arena_max: u64,
    /// Where the main arena begins. Static programs have something of their own before.
    pub(in crate::ledger) break_base: u64,
}

/// How far behind the start of the break the main arena may begin, in bytes.
const MAX_BEFORE_ARENA_BYTES: u64 = 1 << 20;

/// Finds `mp_` in the data of the C library: its member `sbrk_base` is where the main arena begins, near the start of the
/// break, and the members before it are what they must be. Before 2.35 four counters stand before `mmapped_mem`; since, a
/// fifth, and padding; and two words more stand behind `arena_max`.
pub(in crate::ledger) fn find_settings(bytes: &[u8], break_start: u64) -> Option<Settings> {
    let bases = break_start..break_start.saturating_add(MAX_BEFORE_ARENA_BYTES);
    (0..bytes.len() as u64 / 8).map(|index| 8 * index).find_map(|at| {
        let base = word(bytes, at).filter(|base| bases.contains(base))?;
        // From `sbrk_base` back to `n_mmaps`, and to `trim_threshold`.
        settings(bytes, at, base, 36, 96).or_else(|| settings(bytes, at, base, 32, 72))
    })
}

/// The settings whose `sbrk_base` is at `at`.
fn settings(bytes: &[u8], at: u64, break_base: u64, counters_back: u64, first_back: u64) -> Option<Settings> {
    const DEFAULT_MAPPED_MAX: u32 = 65536;
    let (counters, first) = (at.checked_sub(counters_back)?, at.checked_sub(first_back)?);
    let (mapped_count, most) = (half(bytes, counters)?, half(bytes, counters + 4)?);
    let settings = Settings {
        mapped_bytes: word(bytes, at.checked_sub(16)?)?,
        mapped_count,
        trim_threshold_bytes: word(bytes, first)?,
        mmap_threshold_bytes: word(bytes, first + 16)?,
        arena_max: word(bytes, first + 32)?,
        break_base,
    };
    let max_mapped_bytes = word(bytes, at.checked_sub(8)?)?;
    let is_sane = most == DEFAULT_MAPPED_MAX
        && half(bytes, counters + 8)? >= mapped_count
        && settings.mapped_bytes <= max_mapped_bytes
        && settings.mapped_bytes.is_multiple_of(4096)
        && max_mapped_bytes < 1 << 47
        && settings.arena_max < 1 << 32;
    is_sane.then_some(settings)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ledger::fake::Fake;
    use proptest::prelude::*;

    const AT: u64 = 0x7000;

    /// An arena at an address, whose bins are empty.
    fn put_arena(memory: &mut Fake, at: u64, layout: &Layout, next: u64) {
        for bin in 0..BINS {
            memory.put(at + layout.bins + 16 * bin, at + layout.bin(bin));
            memory.put(at + layout.bins + 16 * bin + 8, at + layout.bin(bin));
        }
        for (offset, value) in [
            (layout.top, 0x10_0000),
            (layout.next, next),
            (layout.system_mem, 8192),
            (layout.system_mem + 8, 9000),
        ] {
            memory.put(at + offset, value);
        }
    }

    fn bytes_of(memory: &Fake, start: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        assert!(memory.read(start, &mut bytes));
        bytes
    }

    #[test]
    fn arenas_of_every_layout_are_found() {
        for layout in &LAYOUTS {
            let mut memory = Fake::new(&[(AT, 0x4000)]);
            put_arena(&mut memory, AT + 0x128, layout, AT + 0x128);
            let found = find(&bytes_of(&memory, AT, 0x4000), AT);
            let arena = found.into_iter().find(|arena| circle(&memory, arena.clone()).is_some()).unwrap();
            assert_eq!((arena.address, arena.layout), (AT + 0x128, *layout));
            assert_eq!((arena.top, arena.system_bytes, arena.max_system_bytes), (0x10_0000, 8192, 9000));
            assert_eq!(circle(&memory, arena).unwrap().len(), 1);
        }
    }

    #[test]
    fn what_contradicts_itself_is_no_arena() {
        let layout = LAYOUTS[0];
        for (offset, value) in [
            (0, 3),
            (layout.bins + 16 * 50, 0x1001),
            (layout.bins + 16 * 50 + 8, 0),
            (layout.top, 8),
            (layout.next, 0),
            (layout.system_mem, 9001),
            (layout.system_mem + 8, 1 << 50),
            (layout.fastbins, 1),
        ] {
            let mut memory = Fake::new(&[(AT, 0x4000)]);
            put_arena(&mut memory, AT, &layout, AT);
            memory.put(AT + offset, value);
            assert_eq!(read(&memory, AT, layout), None, "{offset}");
        }
    }

    #[test]
    fn the_circle_must_lead_back() {
        let layout = LAYOUTS[0];
        let (first, second) = (AT, 0x10_0030);
        let mut memory = Fake::new(&[(AT, 0x1000), (0x10_0000, 0x1000)]);
        put_arena(&mut memory, first, &layout, second);
        put_arena(&mut memory, second, &layout, first);
        let main = || read(&memory, first, layout).unwrap();
        assert_eq!(circle(&memory, main()).unwrap().len(), 2);
        let mut astray = memory.clone();
        astray.put(second + layout.next, second);
        assert_eq!(circle(&astray, main()), None, "a circle without the main arena");
        astray.put(second + layout.next, 0x5000);
        assert_eq!(circle(&astray, main()), None, "nothing there");
    }

    #[test]
    fn settings_of_both_forms_are_found() {
        for (counters_back, first_back) in [(36, 96), (32, 72)] {
            let mut memory = Fake::new(&[(0, 0x400)]);
            let at = 0x200;
            memory.put(at, 0x5555_0000_0123);
            memory.put(at - 8, 0x6000);
            memory.put(at - 16, 0x3000);
            let counters: Vec<u8> = [2u32, 65536, 4].iter().flat_map(|count| count.to_le_bytes()).collect();
            memory.put_bytes(at - counters_back, &counters);
            memory.put(at - first_back, 131_072);
            memory.put(at - first_back + 16, 262_144);
            let bytes = bytes_of(&memory, 0, 0x400);
            let found = find_settings(&bytes, 0x5555_0000_0000).unwrap();
            assert_eq!(
                (found.mapped_bytes, found.mapped_count, found.break_base),
                (0x3000, 2, 0x5555_0000_0123)
            );
            assert_eq!((found.trim_threshold_bytes, found.mmap_threshold_bytes), (131_072, 262_144));
            assert_eq!(find_settings(&bytes, 0x5555_1000_0000), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..3000), start in any::<u64>()) {
            let _ = find(&bytes, start);
            let _ = find_settings(&bytes, start);
        }
    }
}
