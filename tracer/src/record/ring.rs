//! The ring of events, and how far it has been written and read.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::{MapData, RingBuf, ring_buf::RingBufItem};

use super::RecordError;

/// A ring whose positions can be seen. An event that a program is just writing ends what can be read, though later ones may be
/// complete behind it; so that nothing more can be read does not say that all was read that had been written.
pub struct EventRing {
    ring: RingBuf<MapData>,
    /// Two pages that the kernel lets anybody read who has the map: the reader's position at the begin of the first one, the
    /// writers' at the begin of the second one (kernel/bpf/ringbuf.c, `struct bpf_ringbuf`).
    positions: NonNull<AtomicU64>,
    page_bytes: usize,
}

// SAFETY: the mapping belongs to no thread, and is only read, atomically.
unsafe impl Send for EventRing {}

impl EventRing {
    /// Maps the positions.
    ///
    /// # Errors
    /// [`RecordError::MapCall`].
    pub fn map(ring: RingBuf<MapData>) -> Result<Self, RecordError> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let failed = |source| RecordError::MapCall { operation: "mmap", map: "EVENTS", source };
        let page_bytes = rustix::param::page_size();
        // SAFETY: a fresh mapping, nothing else is at that address.
        let base = unsafe {
            mmap(ptr::null_mut(), 2 * page_bytes, ProtFlags::READ, MapFlags::SHARED, ring.as_fd(), 0)
        };
        let base = base.map_err(|errno| failed(errno.into()))?;
        let positions =
            NonNull::new(base.cast()).ok_or_else(|| failed(io::ErrorKind::AddrNotAvailable.into()))?;
        Ok(Self { ring, positions, page_bytes })
    }

    /// The next event that is complete.
    pub fn next(&mut self) -> Option<RingBufItem<'_>> {
        self.ring.next()
    }

    fn position(&self, page: usize) -> u64 {
        // SAFETY: the begin of one of the two pages of the mapping, which lives as long as `self`; aligned, and only read.
        unsafe { self.positions.byte_add(page * self.page_bytes).as_ref() }.load(Ordering::Acquire)
    }

    /// How far programs have written, or are writing.
    pub fn written(&self) -> u64 {
        self.position(1)
    }

    /// Whether everything before a position was read. (Positions only grow.)
    pub fn has_read(&self, written: u64) -> bool {
        self.position(0) >= written
    }
}

impl AsFd for EventRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl Drop for EventRing {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, of that size.
        let _ = unsafe { rustix::mm::munmap(self.positions.as_ptr().cast(), 2 * self.page_bytes) };
    }
}
