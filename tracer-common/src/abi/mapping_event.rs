//! What a process does to its address space: one record per system call that maps or unmaps.
//!
//! Unmappings are announced before the kernel carries them out, mappings when they are done. So nobody else can be
//! given an address between the two records of one range, and the order of the ring is the order of the book.

use super::{EventHeader, layout};

/// [`EventHeader::kind`] of a [`MappingEvent`].
pub const EVENT_MAPPING: u32 = 4;

/// `mmap` has returned `address`; `length` is what was asked for, not rounded to pages.
pub const OPERATION_MAP: u32 = 1;
/// `munmap` is entered.
pub const OPERATION_UNMAP: u32 = 2;
/// The `munmap` with this address and length has failed: everything is still there.
pub const OPERATION_UNMAP_FAILED: u32 = 3;
/// `mremap` is entered: `old_address` and `old_length` may go.
pub const OPERATION_REMAP_ENTER: u32 = 4;
/// `mremap` has moved or resized the old range to `address` and `length`.
pub const OPERATION_REMAP: u32 = 5;
/// `mremap` has failed: the old range is as it was.
pub const OPERATION_REMAP_FAILED: u32 = 6;
/// `brk` has moved the break to `address`.
pub const OPERATION_BREAK: u32 = 7;
/// `shmat` has returned `address`; its length is only in `/proc/PID/maps`.
pub const OPERATION_SHM_ATTACH: u32 = 8;
/// `shmdt` is entered.
pub const OPERATION_SHM_DETACH: u32 = 9;
/// A thread was made whose stack pointer is `address`.
pub const OPERATION_THREAD_START: u32 = 10;
/// The thread ends with the stack pointer `address`.
pub const OPERATION_THREAD_EXIT: u32 = 11;

/// One step of a process in its address space.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MappingEvent {
    /// `value` is the time, `CLOCK_MONOTONIC` in ns.
    pub header: EventHeader,
    /// First address; depends on the operation.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// `mremap`: the first address before. Else 0.
    pub old_address: u64,
    /// `mremap`: the bytes before. Else 0.
    pub old_length: u64,
    /// Thread.
    pub tid: u32,
    /// One of the `OPERATION_` constants.
    pub operation: u32,
    /// `PROT_` bits of an `mmap`.
    pub protection: u32,
    /// `MAP_` bits of an `mmap`, `MREMAP_` bits of an `mremap`.
    pub flags: u32,
    /// Where it was asked for; [`super::SITE_LOST`] for operations that map nothing.
    pub site: u32,
    /// [`MappingOrigin`] of the site.
    pub origin: u32,
}
layout!(MappingEvent, 72, [header: EventHeader, address: u64, length: u64, old_address: u64, old_length: u64, tid: u32, operation: u32, protection: u32, flags: u32, site: u32, origin: u32]);

/// What a mapping is, as far as the system call tells.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MappingKind {
    /// Anonymous memory of this process.
    Anonymous = 1,
    /// Anonymous memory shared with children.
    SharedAnonymous = 2,
    /// A private mapping of a file.
    PrivateFile = 3,
    /// A shared mapping of a file, a memfd or a device; the name in `/proc/PID/maps` tells which.
    SharedFile = 4,
    /// Anonymous memory with `MAP_STACK`: how C libraries ask for the stack of a thread.
    ThreadStack = 5,
    /// Anonymous memory mapped executable.
    Code = 6,
    /// `brk`.
    Break = 7,
    /// A System V shared memory segment.
    SharedSegment = 8,
    /// What an `mremap` has added; its neighbours tell what it is.
    Remapped = 9,
}

impl MappingKind {
    /// Every kind, in order of its code.
    pub const ALL: [Self; 9] = [
        Self::Anonymous,
        Self::SharedAnonymous,
        Self::PrivateFile,
        Self::SharedFile,
        Self::ThreadStack,
        Self::Code,
        Self::Break,
        Self::SharedSegment,
        Self::Remapped,
    ];

    /// The kind with this code, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| *kind as u8 == code)
    }
}

/// `PROT_EXEC`, `MAP_SHARED`, `MAP_ANONYMOUS`, `MAP_STACK` of x86-64, include/uapi/asm-generic/mman-common.h.
const PROT_EXEC: u32 = 4;
const MAP_SHARED: u32 = 1;
const MAP_ANONYMOUS: u32 = 0x20;
const MAP_STACK: u32 = 0x2_0000;

/// The origin of a site of mappings: bits 0-7 the kind, bit 8 whether an allocator asked, bits 16-31 its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MappingOrigin(pub u32);

impl MappingOrigin {
    const IN_ALLOCATOR: u32 = 1 << 8;

    /// A mapping that the program asked for.
    #[inline(always)]
    pub const fn new(kind: MappingKind) -> Self {
        Self(kind as u32)
    }

    /// The origin of an `mmap` with these arguments.
    #[inline(always)]
    pub const fn of_mmap(protection: u32, flags: u32) -> Self {
        // `MAP_SHARED_VALIDATE` has the bit too.
        let is_shared = flags & MAP_SHARED != 0;
        Self(if flags & MAP_ANONYMOUS == 0 {
            if is_shared { MappingKind::SharedFile as u32 } else { MappingKind::PrivateFile as u32 }
        } else if is_shared {
            MappingKind::SharedAnonymous as u32
        } else if flags & MAP_STACK != 0 {
            MappingKind::ThreadStack as u32
        } else if protection & PROT_EXEC != 0 {
            MappingKind::Code as u32
        } else {
            MappingKind::Anonymous as u32
        })
    }

    /// The same, asked for from inside a call of the allocator with this number (0: not known which).
    #[inline(always)]
    pub const fn in_allocator(self, allocator: u32) -> Self {
        Self(self.0 & 0xff | Self::IN_ALLOCATOR | allocator << 16)
    }

    /// Whether an allocator asked.
    #[inline(always)]
    pub const fn is_in_allocator(self) -> bool {
        self.0 & Self::IN_ALLOCATOR != 0
    }

    /// The allocator that asked; 0 if it is not known which.
    pub const fn allocator(self) -> Option<u32> {
        if self.is_in_allocator() { Some(self.0 >> 16) } else { None }
    }

    /// The kind; `None` for a number that was made elsewhere.
    pub fn kind(self) -> Option<MappingKind> {
        MappingKind::from_code(self.0 as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_packed_and_unpacked() {
        for kind in MappingKind::ALL {
            let direct = MappingOrigin::new(kind);
            assert_eq!((direct.kind(), direct.allocator()), (Some(kind), None));
            for allocator in [0, 1, 0xffff] {
                let inside = direct.in_allocator(allocator);
                assert_eq!((inside.kind(), inside.allocator()), (Some(kind), Some(allocator)));
            }
        }
        assert_eq!(MappingOrigin(0).kind(), None);
    }

    #[test]
    fn the_arguments_of_mmap_tell_the_kind() {
        let kind = |protection, flags| MappingOrigin::of_mmap(protection, flags).kind();
        assert_eq!(kind(3, 0x22), Some(MappingKind::Anonymous));
        assert_eq!(kind(0, 0x4022), Some(MappingKind::Anonymous));
        assert_eq!(kind(3, 0x21), Some(MappingKind::SharedAnonymous));
        assert_eq!(kind(3, 0x2), Some(MappingKind::PrivateFile));
        assert_eq!(kind(7, 0x2), Some(MappingKind::PrivateFile));
        assert_eq!(kind(3, 0x1), Some(MappingKind::SharedFile));
        assert_eq!(kind(3, 0x3), Some(MappingKind::SharedFile), "MAP_SHARED_VALIDATE");
        assert_eq!(kind(0, 0x2_0022), Some(MappingKind::ThreadStack));
        assert_eq!(kind(7, 0x22), Some(MappingKind::Code));
    }
}
