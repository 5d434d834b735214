//! Page faults: the pages that were touched since user space has looked, and which pages are looked at.

use super::layout;

/// A page of a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageKey {
    /// The process whose memory it is.
    pub tgid: u32,
    /// How often memory had moved, in any of the processes: faults on one page before and after it did are two.
    pub moves: u32,
    /// Address divided by 4096.
    pub page: u64,
}
layout!(PageKey, 16, [tgid: u32, moves: u32, page: u64]);

/// The last fault of a page.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageFault {
    /// `CLOCK_MONOTONIC` in ns.
    pub time_ns: u64,
    /// Whose it is.
    pub site: u32,
    /// `FAULT_` bits.
    pub flags: u32,
}
layout!(PageFault, 16, [time_ns: u64, site: u32, flags: u32]);

/// The page was there, and may not be used so: `X86_PF_PROT`, arch/x86/include/asm/trap_pf.h.
pub const FAULT_ON_PRESENT: u32 = 1;
/// It was written to: `X86_PF_WRITE`.
pub const FAULT_WRITE: u32 = 2;
/// Since user space has looked, the page was not there at a fault.
pub const FAULT_FRESH: u32 = 1 << 8;
/// The kernel touched it for the process, in a system call.
pub const FAULT_IN_KERNEL: u32 = 1 << 9;
/// It is near the stack pointer.
pub const FAULT_ON_STACK: u32 = 1 << 10;

/// A [`super::MappingEvent`] follows: memory that moves, that goes, or that is made resident without faults. Operations are
/// `OPERATION_REMAP`, `OPERATION_UNMAP` and `OPERATION_MAP`.
pub const EVENT_FAULT_RANGE: u32 = 6;
/// Many pages wait for user space: [`super::EventHeader`] alone.
pub const EVENT_FAULTS_PENDING: u32 = 7;

/// Elements of the state array: pages that the kernel has added to the map of faults;
pub const FAULTS_ADDED: u32 = 0;
/// pages that user space has taken out;
pub const FAULTS_TAKEN: u32 = 1;
/// the level of sampling that the kernel wants;
pub const FAULT_LEVEL_KERNEL: u32 = 2;
/// the level that user space wants. The higher one counts.
pub const FAULT_LEVEL_USER: u32 = 3;
/// Number of elements.
pub const FAULT_STATES: u32 = 4;

/// Highest level of sampling: one block in a million.
pub const MAX_FAULT_LEVEL: u32 = 20;

/// log2 of the pages of a block: what one huge page of x86-64 covers.
pub const BLOCK_SHIFT: u32 = 9;

/// Whether a page is looked at. Of level `n`, one block of 2 MiB in 2ⁿ is, chosen by a hash of its address: the same
/// ones at every time, and every higher level a part of the lower ones.
///
/// Blocks and not pages: a fault can bring in a whole block, and the pages it brings in have no fault of their own.
#[inline(always)]
pub const fn is_admitted(page: u64, level: u32) -> bool {
    if level == 0 {
        return true;
    }
    let level = if level > MAX_FAULT_LEVEL { MAX_FAULT_LEVEL } else { level };
    // The finalizer of MurmurHash3, whose upper bits depend on all lower ones.
    let mut hash = (page >> BLOCK_SHIFT).wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 33;
    hash >> (64 - level) == 0
}

/// Pages that may wait at a level before the next one begins. Each level leaves half of the room of the one before, for
/// half of the pages.
#[inline(always)]
pub const fn pending_limit(capacity: u32, level: u32) -> u64 {
    let level = if level > MAX_FAULT_LEVEL { MAX_FAULT_LEVEL } else { level };
    capacity as u64 - (capacity as u64 >> (level + 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_nested_and_take_their_share() {
        let blocks = 1 << 16;
        for level in [1, 3, 6] {
            let taken = (0..blocks).filter(|block| is_admitted(block << BLOCK_SHIFT, level)).count();
            let wanted = (blocks >> level) as f64;
            let error = (taken as f64 - wanted).abs();
            assert!(error < 4.0 * wanted.sqrt(), "level {level}: {taken} of {blocks}");
        }
        for block in 0..blocks {
            let page = block << BLOCK_SHIFT;
            for level in 1..MAX_FAULT_LEVEL {
                assert!(!is_admitted(page, level + 1) || is_admitted(page, level));
            }
            assert_eq!(is_admitted(page, 4), is_admitted(page + 511, 4), "a block is one");
        }
    }

    #[test]
    fn each_level_has_room_of_its_own() {
        assert_eq!(pending_limit(1024, 0), 896);
        assert_eq!(pending_limit(1024, 1), 960);
        assert_eq!(pending_limit(1024, MAX_FAULT_LEVEL + 5), 1024);
    }
}
