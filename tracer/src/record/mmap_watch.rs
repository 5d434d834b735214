//! Learns of new executable mappings as they are made, from perf's software events.
//!
//! One event per CPU, for all processes: an event that follows the threads of one process would have to
//! be opened per thread and CPU, and would inherit. Executable mappings are rare, so reading those of
//! other processes costs next to nothing. Only the fact counts: the mappings themselves are then read
//! from /proc.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use perf_event_open_sys::{bindings, perf_event_open};

use super::RecordError;

/// Pages of one CPU's ring, a power of two.
const DATA_PAGES: usize = 16;

/// What has happened since the last look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Processes that made executable mappings or executed a program.
    pub tgids: BTreeSet<u32>,
    /// Records that the kernel could not deliver: every process may have changed.
    pub lost: u64,
}

/// The event of one CPU.
pub struct MmapWatch {
    fd: OwnedFd,
    base: NonNull<u8>,
    bytes: usize,
    page_bytes: usize,
}

// SAFETY: the mapping belongs to no thread; all access goes through `&mut self`.
unsafe impl Send for MmapWatch {}

impl AsFd for MmapWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for MmapWatch {
    fn as_raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

impl MmapWatch {
    /// Opens one watch per online CPU.
    ///
    /// # Errors
    /// [`RecordError::Watch`].
    pub fn open_all() -> Result<Vec<Self>, RecordError> {
        let cpus = aya::util::online_cpus().map_err(|(_, source)| RecordError::Watch { cpu: 0, source })?;
        cpus.into_iter()
            .map(|cpu| Self::open(cpu).map_err(|source| RecordError::Watch { cpu, source }))
            .collect()
    }

    fn open(cpu: u32) -> io::Result<Self> {
        let mut attr = bindings::perf_event_attr {
            type_: bindings::PERF_TYPE_SOFTWARE,
            size: u32::try_from(size_of::<bindings::perf_event_attr>()).unwrap_or(0),
            config: u64::from(bindings::PERF_COUNT_SW_DUMMY),
            ..Default::default()
        };
        attr.set_mmap(1); // executable mappings only; `mmap_data` would add the others
        attr.set_mmap2(1);
        attr.set_comm(1);
        attr.set_comm_exec(1);
        attr.__bindgen_anon_2.wakeup_events = 1;
        // SAFETY: `attr` is alive and complete.
        let fd = unsafe {
            perf_event_open(
                &raw mut attr,
                -1,
                i32::try_from(cpu).map_err(|_| io::ErrorKind::InvalidInput)?,
                -1,
                bindings::PERF_FLAG_FD_CLOEXEC.into(),
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let page_bytes = rustix::param::page_size();
        let bytes = (DATA_PAGES + 1) * page_bytes;
        // SAFETY: a fresh mapping.
        let base = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                bytes,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED,
                &fd,
                0,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { fd, base, bytes, page_bytes })
    }

    /// Reads all records there are.
    pub fn drain(&mut self, changes: &mut Changes) {
        let page = self.base.as_ptr().cast::<bindings::perf_event_mmap_page>();
        // SAFETY: the first page of the mapping is the control page; head is written by the kernel, tail
        // by us, both as whole words.
        let (head, tail) = unsafe {
            (AtomicU64::from_ptr(&raw mut (*page).data_head), AtomicU64::from_ptr(&raw mut (*page).data_tail))
        };
        let end = head.load(Ordering::Acquire);
        let mut position = tail.load(Ordering::Relaxed);
        while position < end {
            let header = self.word(position);
            let (kind, size) = (header as u32, header >> 48);
            match kind {
                bindings::PERF_RECORD_MMAP | bindings::PERF_RECORD_MMAP2 => {
                    changes.tgids.insert(self.word(position + 8) as u32);
                }
                // The bit says that the name changed because of an exec.
                bindings::PERF_RECORD_COMM
                    if (header >> 32) as u32 & bindings::PERF_RECORD_MISC_COMM_EXEC != 0 =>
                {
                    changes.tgids.insert(self.word(position + 8) as u32);
                }
                bindings::PERF_RECORD_LOST => changes.lost += self.word(position + 16),
                _ => {}
            }
            // A size of zero would never end; the kernel does not write one.
            position += size.max(8);
        }
        tail.store(end, Ordering::Release);
    }

    /// The aligned word at a position of the ring; records are aligned to 8 bytes.
    fn word(&self, position: u64) -> u64 {
        let data_bytes = (DATA_PAGES * self.page_bytes) as u64;
        let offset = usize::try_from(position & (data_bytes - 1) & !7).unwrap_or(0);
        // SAFETY: `offset` is below the size of the data area, which follows the control page.
        unsafe { ptr::read_volatile(self.base.as_ptr().add(self.page_bytes + offset).cast::<u64>()) }
    }
}

impl Drop for MmapWatch {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `open`, of that size.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
