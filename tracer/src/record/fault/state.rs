//! What both sides know of each other: pages that wait, and the level of sampling. The array is mapped.

use std::{
    io,
    os::fd::AsFd,
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::MapData;
use tracer_common::abi::{FAULT_LEVEL_KERNEL, FAULT_LEVEL_USER, FAULT_STATES, FAULTS_TAKEN, MAX_FAULT_LEVEL};

use crate::record::RecordError;

/// The array `FAULT_STATE`.
pub struct FaultState {
    base: NonNull<AtomicU64>,
    bytes: usize,
    _map: MapData,
}

// SAFETY: the mapping belongs to no thread, and is read and written atomically.
unsafe impl Send for FaultState {}

impl FaultState {
    /// Maps it.
    ///
    /// # Errors
    /// [`RecordError::MapCall`].
    pub fn map(map: MapData) -> Result<Self, RecordError> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let failed = |source| RecordError::MapCall { operation: "mmap", map: "FAULT_STATE", source };
        let bytes = rustix::param::page_size();
        // SAFETY: a fresh mapping, nothing else is at that address.
        let base = unsafe {
            mmap(
                ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map.fd().as_fd(),
                0,
            )
        };
        let base = base.map_err(|errno| failed(errno.into()))?;
        let base = NonNull::new(base.cast()).ok_or_else(|| failed(io::ErrorKind::AddrNotAvailable.into()))?;
        Ok(Self { base, bytes, _map: map })
    }

    fn element(&self, index: u32) -> &AtomicU64 {
        let index = index.min(FAULT_STATES - 1) as usize;
        // SAFETY: within the mapping, which is a page and lives as long as `self`; aligned, and only used atomically.
        unsafe { self.base.add(index).as_ref() }
    }

    /// Counts pages that were taken out.
    pub fn add_taken(&self, pages: u64) {
        self.element(FAULTS_TAKEN).fetch_add(pages, Ordering::SeqCst);
    }

    /// The level that counts.
    pub fn level(&self) -> u32 {
        let read = |index| self.element(index).load(Ordering::SeqCst);
        let level = read(FAULT_LEVEL_KERNEL).max(read(FAULT_LEVEL_USER));
        u32::try_from(level).unwrap_or(MAX_FAULT_LEVEL).min(MAX_FAULT_LEVEL)
    }

    /// Asks for a level.
    pub fn raise(&self, level: u32) {
        self.element(FAULT_LEVEL_USER).fetch_max(u64::from(level.min(MAX_FAULT_LEVEL)), Ordering::SeqCst);
    }
}

impl Drop for FaultState {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, of that size.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
