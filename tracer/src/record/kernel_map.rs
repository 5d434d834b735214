//! Access to the BPF maps that aya has no type for: plain-data values, the mapped site counters, and
//! reading a large hash map in batches.

use std::{
    io,
    mem::{align_of, size_of},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    ptr::{self, NonNull},
};

use aya_obj::generated::bpf_prog_info;
use tracer_common::abi::{Plain, SiteCounters, SiteLifetimes};

use super::RecordError;

/// Makes an ABI type acceptable to aya, whose trait cannot be implemented for foreign types.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Abi<T>(pub T);

// SAFETY: `Plain` promises the same as `Pod`: no padding, every bit pattern a value.
unsafe impl<T: Plain> aya::Pod for Abi<T> {}

/// An array map, mapped: reading it costs the target and the kernel nothing.
pub struct MappedArray<T> {
    base: NonNull<T>,
    count: usize,
    bytes: usize,
}

// SAFETY: the mapping belongs to no thread.
unsafe impl<T: Plain> Send for MappedArray<T> {}

impl<T: Plain> MappedArray<T> {
    /// Maps the array of `count` values, which the kernel keeps at multiples of 8 bytes.
    ///
    /// # Errors
    /// [`RecordError::MapCall`].
    pub fn map(map: &impl AsFd, name: &'static str, count: u32) -> Result<Self, RecordError> {
        Self::map_with(map, name, count, rustix::mm::ProtFlags::READ)
    }

    /// The same, to be written by both sides.
    ///
    /// # Errors
    /// [`RecordError::MapCall`].
    pub fn map_shared(map: &impl AsFd, name: &'static str, count: u32) -> Result<Self, RecordError> {
        let both = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        Self::map_with(map, name, count, both)
    }

    fn map_with(
        map: &impl AsFd,
        name: &'static str,
        count: u32,
        protection: rustix::mm::ProtFlags,
    ) -> Result<Self, RecordError> {
        const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 8) };
        let failed = |source| RecordError::MapCall { operation: "mmap", map: name, source };
        let count = count as usize;
        let bytes = (count * size_of::<T>()).next_multiple_of(rustix::param::page_size());
        // SAFETY: a fresh mapping, nothing else is at that address.
        let base = unsafe {
            rustix::mm::mmap(ptr::null_mut(), bytes, protection, rustix::mm::MapFlags::SHARED, map.as_fd(), 0)
        }
        .map_err(|errno| failed(errno.into()))?;
        let base = NonNull::new(base.cast()).ok_or_else(|| failed(io::ErrorKind::AddrNotAvailable.into()))?;
        Ok(Self { base, count, bytes })
    }

    /// Where a value is, to be written only in an array that was mapped so; `None` beyond the array. The kernel writes it concurrently, each word as a whole: read the
    /// fields one by one, volatile.
    pub(super) fn place(&self, index: u32) -> Option<*mut T> {
        // SAFETY: in bounds of the mapping, which lives as long as `self`.
        ((index as usize) < self.count).then(|| unsafe { self.base.as_ptr().add(index as usize) })
    }
}

impl<T> MappedArray<T> {
    /// Number of values.
    pub const fn count(&self) -> usize {
        self.count
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, of that size.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

impl MappedArray<SiteCounters> {
    /// Counters of one site; `None` beyond the array.
    ///
    /// Freed is read before allocated, so that a block that comes and goes meanwhile never makes the
    /// difference negative.
    pub fn get(&self, site: u32) -> Option<SiteCounters> {
        let site = self.place(site)?;
        // SAFETY: see `place`.
        unsafe {
            let freed_bytes = ptr::read_volatile(&raw const (*site).freed_bytes);
            let freed_count = ptr::read_volatile(&raw const (*site).freed_count);
            let allocated_bytes = ptr::read_volatile(&raw const (*site).allocated_bytes);
            let allocated_count = ptr::read_volatile(&raw const (*site).allocated_count);
            Some(SiteCounters { allocated_bytes, allocated_count, freed_bytes, freed_count })
        }
    }
}

impl MappedArray<SiteLifetimes> {
    /// Lifetimes of one site; `None` beyond the array.
    pub fn get(&self, site: u32) -> Option<SiteLifetimes> {
        let site = self.place(site)?;
        // SAFETY: see `place`.
        unsafe {
            let mut lifetimes = SiteLifetimes::default();
            let counts = (&raw const (*site).counts).cast::<u64>();
            for (index, count) in lifetimes.counts.iter_mut().enumerate() {
                *count = ptr::read_volatile(counts.add(index));
            }
            Some(lifetimes)
        }
    }
}

/// `bpf(BPF_MAP_LOOKUP_BATCH)`, from the kernel's uapi: include/uapi/linux/bpf.h.
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
/// `bpf(BPF_MAP_LOOKUP_AND_DELETE_BATCH)`.
const BPF_MAP_LOOKUP_AND_DELETE_BATCH: libc::c_int = 25;
/// Entries asked for at once.
const BATCH: usize = 4096;

/// The `batch` arm of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Reads a hash map in batches and hands every entry to `visit`. Entries that come and go meanwhile may
/// be seen or not; none is seen twice unless it was removed and added again.
///
/// # Errors
/// [`RecordError::MapCall`].
pub fn read_hash<K: Plain + Default, V: Plain + Default>(
    map: BorrowedFd<'_>,
    name: &'static str,
    visit: impl FnMut(&K, &V),
) -> Result<(), RecordError> {
    batches(map, name, BPF_MAP_LOOKUP_BATCH, visit)
}

/// The same, and takes the entries out. What a program adds or changes meanwhile is handed out or stays; nothing is
/// deleted that was not handed out.
///
/// # Errors
/// [`RecordError::MapCall`].
pub fn take_hash<K: Plain + Default, V: Plain + Default>(
    map: BorrowedFd<'_>,
    name: &'static str,
    visit: impl FnMut(&K, &V),
) -> Result<(), RecordError> {
    batches(map, name, BPF_MAP_LOOKUP_AND_DELETE_BATCH, visit)
}

fn batches<K: Plain + Default, V: Plain + Default>(
    map: BorrowedFd<'_>,
    name: &'static str,
    command: libc::c_int,
    mut visit: impl FnMut(&K, &V),
) -> Result<(), RecordError> {
    let failed = |source| RecordError::MapCall { operation: "read", map: name, source };
    let mut size = BATCH;
    let (mut keys, mut values) = (vec![K::default(); size], vec![V::default(); size]);
    // The cursor of a hash map is the number of the bucket: 4 bytes.
    let (mut cursor, mut next) = ([0u8; 16], [0u8; 16]);
    let mut first = true;
    loop {
        let mut attr = BatchAttr {
            in_batch: if first { 0 } else { cursor.as_ptr() as u64 },
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(size).unwrap_or(u32::MAX),
            map_fd: u32::try_from(map.as_raw_fd()).unwrap_or(u32::MAX),
            ..BatchAttr::default()
        };
        // SAFETY: `attr` and everything it points to is alive, and of the sizes given.
        let status = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<BatchAttr>()) };
        let error = (status != 0).then(io::Error::last_os_error);
        match error.as_ref().and_then(io::Error::raw_os_error) {
            // One bucket holds more than the buffers do: nothing was copied.
            Some(libc::ENOSPC) => {
                size *= 2;
                keys.resize(size, K::default());
                values.resize(size, V::default());
                continue;
            }
            None | Some(libc::ENOENT) => {}
            Some(_) => return Err(failed(error.unwrap_or_else(|| io::ErrorKind::Other.into()))),
        }
        let count = (attr.count as usize).min(size);
        keys[..count].iter().zip(&values[..count]).for_each(|(key, value)| visit(key, value));
        if error.is_some() {
            return Ok(()); // ENOENT: that was the last batch
        }
        cursor = next;
        first = false;
    }
}

/// `bpf(BPF_MAP_DELETE_ELEM)`.
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;

/// The element arm of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Deletes an entry; false if there was none.
///
/// # Errors
/// [`RecordError::MapCall`].
pub fn delete<K: Plain>(map: BorrowedFd<'_>, name: &'static str, key: &K) -> Result<bool, RecordError> {
    let mut attr = ElementAttr {
        map_fd: u32::try_from(map.as_raw_fd()).unwrap_or(u32::MAX),
        key: ptr::from_ref(key) as u64,
        ..ElementAttr::default()
    };
    // SAFETY: `attr` and the key it points to are alive, and of the size the map has.
    let status =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_DELETE_ELEM, &raw mut attr, size_of::<ElementAttr>()) };
    if status == 0 {
        return Ok(true);
    }
    let source = io::Error::last_os_error();
    if source.raw_os_error() == Some(libc::ENOENT) {
        return Ok(false);
    }
    Err(RecordError::MapCall { operation: "delete from", map: name, source })
}

/// `bpf(BPF_OBJ_GET_INFO_BY_FD)`.
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;

/// The information arm of `union bpf_attr`.
#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// How often the kernel did not run a program because it was running on that CPU already, preempted in the
/// middle (`recursion_misses` of `struct bpf_prog_info`, kernel 5.12). aya does not give it.
///
/// # Errors
/// [`RecordError::System`].
pub fn skipped_runs(program: BorrowedFd<'_>) -> Result<u64, RecordError> {
    program_info(program).map(|info| info.recursion_misses)
}

/// What the kernel says of a program.
///
/// # Errors
/// [`RecordError::System`].
pub fn program_info(program: BorrowedFd<'_>) -> Result<bpf_prog_info, RecordError> {
    // SAFETY: the structure is integers only, of which all zeroes is a value.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attr = InfoAttr {
        bpf_fd: u32::try_from(program.as_raw_fd()).unwrap_or(u32::MAX),
        info_len: u32::try_from(size_of_val(&info)).unwrap_or(0),
        info: ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: `attr` and the structure it points to are alive, and of the sizes given.
    let status =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw mut attr, size_of::<InfoAttr>()) };
    if status == 0 {
        return Ok(info);
    }
    Err(RecordError::System {
        operation: "read what the kernel says of a program",
        source: io::Error::last_os_error(),
    })
}
