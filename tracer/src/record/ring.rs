//! The ring of events, and how far it has been written and read.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::{MapData, RingBuf, ring_buf::RingBufItem};

use super::{RecordError, kernel_map::MappedArray};

/// Words of a page: recording needs pages of 4 KiB.
const WORDS_PER_PAGE: u32 = 4096 / 8;

/// A ring whose positions can be seen. An event that a program is just writing ends what can be read, though later ones may be
/// complete behind it; so that nothing more can be read does not say that all was read that had been written.
pub struct EventRing {
    ring: RingBuf<MapData>,
    /// Two pages that the kernel lets anybody read who has the map: the reader's position at the begin of the first one, the
    /// writers' at the begin of the second one (kernel/bpf/ringbuf.c, `struct bpf_ringbuf`).
    positions: MappedArray<u64>,
}

impl EventRing {
    /// Maps the positions.
    ///
    /// # Errors
    /// [`RecordError::MapCall`].
    pub fn map(ring: RingBuf<MapData>) -> Result<Self, RecordError> {
        let positions = MappedArray::map(&ring, "EVENTS", 2 * WORDS_PER_PAGE)?;
        Ok(Self { ring, positions })
    }

    /// The next event that is complete.
    pub fn next(&mut self) -> Option<RingBufItem<'_>> {
        self.ring.next()
    }

    fn position(&self, page: u32) -> u64 {
        let place = self.positions.place(page * WORDS_PER_PAGE);
        // SAFETY: within the mapping, which lives as long as `self`; aligned, and only read, by an atomic load.
        place.map_or(0, |place| unsafe { AtomicU64::from_ptr(place) }.load(Ordering::Acquire))
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
