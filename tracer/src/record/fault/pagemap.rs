//! Which pages of a process are there: `/proc/PID/pagemap`.
//!
//! `PAGEMAP_SCAN` (kernel 6.7) gives runs and skips holes; where it is missing, the file is read, eight bytes a page
//! (Documentation/admin-guide/mm/pagemap.rst).

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    ptr,
    sync::OnceLock,
};

/// Bytes of a page; the only size x86-64 has at the lowest level.
pub const PAGE_BYTES: u64 = 4096;

/// What the page tables say of a page: `PRESENT` and so on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageState(u8);

impl PageState {
    /// It is mapped.
    pub const PRESENT: Self = Self(1);
    /// It is in swap.
    pub const SWAPPED: Self = Self(2);
    /// It is a page of a file or of shared memory.
    pub const FILE: Self = Self(4);
    /// It is the kernel's page of zeroes, which is nobody's memory.
    pub const ZERO: Self = Self(8);
    /// It may be the kernel's page of zeroes: it is anonymous, and one of a huge page, or shared with somebody.
    pub const PERHAPS_ZERO: Self = Self(16);

    /// Whether it has this property.
    pub const fn is(self, property: Self) -> bool {
        self.0 & property.0 != 0
    }

    /// Both properties.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Neighbouring pages of one state; pages without one are in no run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// First page: its address divided by 4096.
    pub start: u64,
    /// First page behind it.
    pub end: u64,
    /// What they are.
    pub state: PageState,
}

/// The page tables of a process.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    can_scan: bool,
}

/// Regions asked for at once.
const SCAN_REGIONS: usize = 4096;
/// Entries read at once.
const READ_ENTRIES: usize = 16 << 10;

impl Pagemap {
    /// Opens those of a process.
    ///
    /// # Errors
    /// The process is gone, or we may not look at it.
    pub fn open(tgid: u32) -> io::Result<Self> {
        Ok(Self { file: File::open(format!("/proc/{tgid}/pagemap"))?, can_scan: true })
    }

    /// Whether holes cost nothing.
    pub fn skips_holes(&self) -> bool {
        self.can_scan
    }

    /// Adds the runs between two pages, in order.
    ///
    /// # Errors
    /// Reading; `ESRCH` and an empty answer are no errors: the process has gone, and nothing is there.
    pub fn read(&mut self, start: u64, end: u64, runs: &mut Vec<PageRun>) -> io::Result<()> {
        if self.can_scan {
            match self.scan(start, end, runs) {
                Err(error) if is_unsupported(&error) => self.can_scan = false,
                done => return done,
            }
        }
        self.read_entries(start, end, runs)
    }

    fn scan(&self, start: u64, end: u64, runs: &mut Vec<PageRun>) -> io::Result<()> {
        let mut regions = vec![ScanRegion::default(); SCAN_REGIONS];
        let (mut position, end) = (start.saturating_mul(PAGE_BYTES), end.saturating_mul(PAGE_BYTES));
        while position < end {
            let mut argument = ScanArgument {
                size: u64::try_from(size_of::<ScanArgument>()).unwrap_or(0),
                start: position,
                end,
                vec: regions.as_mut_ptr() as u64,
                vec_len: u64::try_from(regions.len()).unwrap_or(0),
                category_anyof_mask: SCAN_PRESENT | SCAN_SWAPPED,
                return_mask: SCAN_PRESENT | SCAN_SWAPPED | SCAN_FILE | SCAN_ZERO | SCAN_HUGE,
                ..ScanArgument::default()
            };
            // SAFETY: the argument and the regions it points to are alive, and of the sizes given.
            let found = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
            let Ok(found) = usize::try_from(found) else {
                let error = io::Error::last_os_error();
                return if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) };
            };
            runs.extend(regions.iter().take(found).map(ScanRegion::run));
            if argument.walk_end <= position {
                return Ok(());
            }
            position = argument.walk_end;
        }
        Ok(())
    }

    fn read_entries(&self, start: u64, end: u64, runs: &mut Vec<PageRun>) -> io::Result<()> {
        let mut bytes = vec![0u8; READ_ENTRIES * 8];
        let mut page = start;
        while page < end {
            let wanted = usize::try_from(end - page).unwrap_or(READ_ENTRIES).min(READ_ENTRIES) * 8;
            let buffer = bytes.get_mut(..wanted).unwrap_or_default();
            let got = match self.file.read_at(buffer, page.saturating_mul(8)) {
                Ok(got) => got / 8,
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => 0,
                Err(error) => return Err(error),
            };
            if got == 0 {
                return Ok(());
            }
            for entry in bytes.chunks_exact(8).take(got) {
                let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
                add_page(runs, page, state_of(entry, zero_frame()));
                page += 1;
            }
        }
        Ok(())
    }
}

/// Adds a page to the runs.
fn add_page(runs: &mut Vec<PageRun>, page: u64, state: PageState) {
    if state == PageState::default() {
        return;
    }
    match runs.last_mut() {
        Some(last) if last.end == page && last.state == state => last.end += 1,
        _ => runs.push(PageRun { start: page, end: page + 1, state }),
    }
}

/// Bits of an entry; the page frame is in the lower 55, zero for those who may not see it.
fn state_of(entry: u64, zero_frame: u64) -> PageState {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const FILE: u64 = 1 << 61;
    const EXCLUSIVE: u64 = 1 << 56;
    const FRAME: u64 = (1 << 55) - 1;
    if entry & PRESENT == 0 {
        return if entry & SWAPPED != 0 { PageState::SWAPPED } else { PageState::default() };
    }
    let mut state = PageState::PRESENT;
    if entry & FILE != 0 {
        state = state.and(PageState::FILE);
    } else if zero_frame != 0 && entry & FRAME == zero_frame {
        state = state.and(PageState::ZERO);
    } else if entry & EXCLUSIVE == 0 {
        state = state.and(PageState::PERHAPS_ZERO);
    }
    state
}

/// The frame of the kernel's page of zeroes: that of an anonymous page of our own that was only read. 0 if it cannot be
/// known.
fn zero_frame() -> u64 {
    static FRAME: OnceLock<u64> = OnceLock::new();
    *FRAME.get_or_init(|| find_zero_frame().unwrap_or(0))
}

fn find_zero_frame() -> io::Result<u64> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
    let bytes = usize::try_from(PAGE_BYTES).unwrap_or(0);
    // SAFETY: a fresh mapping, which nobody else knows.
    let page = unsafe { mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::PRIVATE)? };
    // SAFETY: the mapping is readable.
    let _ = unsafe { ptr::read_volatile(page.cast::<u8>()) };
    let mut entry = [0u8; 8];
    let offset = (page as u64) / PAGE_BYTES * 8;
    let read = File::open("/proc/self/pagemap").and_then(|file| file.read_exact_at(&mut entry, offset));
    // SAFETY: the mapping made above.
    let _ = unsafe { munmap(page, bytes) };
    read?;
    Ok(u64::from_ne_bytes(entry) & ((1 << 55) - 1))
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL | libc::ENOSYS))
}

/// `PAGEMAP_SCAN` and its types, include/uapi/linux/fs.h: `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const SCAN_FILE: u64 = 1 << 2;
const SCAN_PRESENT: u64 = 1 << 3;
const SCAN_SWAPPED: u64 = 1 << 4;
const SCAN_ZERO: u64 = 1 << 5;
const SCAN_HUGE: u64 = 1 << 6;

#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}
const _: () = assert!(size_of::<ScanArgument>() == 0x60);

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ScanRegion {
    start: u64,
    end: u64,
    categories: u64,
}

impl ScanRegion {
    fn run(&self) -> PageRun {
        let has = |bit| self.categories & bit != 0;
        let mut state = PageState::default();
        for (bit, property) in [
            (SCAN_PRESENT, PageState::PRESENT),
            (SCAN_SWAPPED, PageState::SWAPPED),
            (SCAN_FILE, PageState::FILE),
            (SCAN_ZERO, PageState::ZERO),
        ] {
            state = if has(bit) { state.and(property) } else { state };
        }
        // Kernels before 6.17 do not say of the huge page of zeroes that it is one.
        if has(SCAN_HUGE) && !has(SCAN_FILE) {
            state = state.and(PageState::PERHAPS_ZERO);
        }
        PageRun { start: self.start / PAGE_BYTES, end: self.end / PAGE_BYTES, state }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_understood() {
        let state = |entry| state_of(entry, 7);
        assert_eq!(state(0), PageState::default());
        assert_eq!(state(1 << 62 | 9), PageState::SWAPPED);
        assert_eq!(state(1 << 63 | 1 << 61 | 9), PageState::PRESENT.and(PageState::FILE));
        assert_eq!(state(1 << 63 | 1 << 56 | 9), PageState::PRESENT);
        assert_eq!(state(1 << 63 | 7), PageState::PRESENT.and(PageState::ZERO));
        assert_eq!(state(1 << 63 | 9), PageState::PRESENT.and(PageState::PERHAPS_ZERO));
        assert_eq!(state_of(1 << 63, 0), PageState::PRESENT.and(PageState::PERHAPS_ZERO));
    }

    /// Both ways say the same of pages of our own: untouched, read, written.
    #[test]
    fn own_pages_are_seen_in_both_ways() {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
        let bytes = 16 * 4096;
        // SAFETY: a fresh mapping.
        let base = unsafe {
            mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }
        .unwrap();
        for page in 4..8 {
            // SAFETY: within the mapping.
            unsafe { ptr::write_volatile(base.cast::<u8>().add(page * 4096), 1) };
        }
        // SAFETY: within the mapping.
        let _ = unsafe { ptr::read_volatile(base.cast::<u8>().add(12 * 4096)) };
        let first = base as u64 / PAGE_BYTES;
        for can_scan in [true, false] {
            let mut pagemap = Pagemap::open(std::process::id()).unwrap();
            pagemap.can_scan = can_scan;
            let mut runs = Vec::new();
            pagemap.read(first, first + 16, &mut runs).unwrap();
            let written = runs.iter().find(|run| run.start == first + 4).unwrap();
            assert_eq!((written.end, written.state), (first + 8, PageState::PRESENT));
            let read = runs.iter().find(|run| run.start == first + 12).unwrap();
            assert!(read.state.is(PageState::ZERO) || read.state.is(PageState::PERHAPS_ZERO), "{read:?}");
            assert_eq!(runs.len(), 2);
        }
        // SAFETY: the mapping made above.
        unsafe { munmap(base, bytes) }.unwrap();
    }
}
