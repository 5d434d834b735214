//! What a mapping is by its own name and flags, where nobody has claimed it; and zeroed data of objects.

use std::borrow::Cow;

use super::claim::{Claims, Use};
use super::smaps::Vma;
use crate::attach::maps::MapEntry;
use crate::managed::memory::{Memory, is_anonymous};
use crate::managed::native;
use crate::model::{LedgerClass, MemoryClass};

/// What the kernel maps for every process.
const KERNEL: &[&str] = &["[vdso]", "[vvar", "[vsyscall]", "[uprobes]", "[sigpage]", "[vectors]"];
/// Shared memory: `memfd_create`, System V segments, POSIX shared memory, and shared anonymous mappings.
const SHARED: &[&str] = &["/memfd:", "/SYSV", "/dev/shm/", "/dev/zero", "[anon_shmem:"];
/// Longest name that is kept, in bytes.
const MAX_NAME_BYTES: usize = 4096;
/// Program headers of an object that are read.
const MAX_HEADERS: u64 = 64;

/// What unnamed memory that nobody claims is, depending on what is known about the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leftover {
    /// Class.
    pub(super) class: LedgerClass,
    /// Its name.
    pub(super) label: &'static str,
}

/// The ledger's class for what the stages before know as a class of memory.
pub(super) const fn class_of(class: MemoryClass) -> LedgerClass {
    match class {
        MemoryClass::Allocation => LedgerClass::AllocatorLive,
        MemoryClass::DirectMapping => LedgerClass::Mmap,
        MemoryClass::FileMapping => LedgerClass::File,
        MemoryClass::SharedMemory => LedgerClass::SharedMemory,
        MemoryClass::ThreadStack | MemoryClass::EndedThreadStack => LedgerClass::ThreadStack,
        MemoryClass::AllocatorArena => LedgerClass::AllocatorArena,
        MemoryClass::BrkHeap => LedgerClass::BrkHeap,
        MemoryClass::ManagedHeap => LedgerClass::ManagedHeap,
        MemoryClass::JitCode => LedgerClass::JitCode,
        MemoryClass::RuntimeInternal => LedgerClass::RuntimeInternal,
        MemoryClass::Unknown => LedgerClass::Unknown,
    }
}

/// What a mapping is that nobody claims.
pub(super) fn what(entry: &MapEntry, leftover: Leftover) -> Use {
    let name = String::from_utf8_lossy(entry.name.get(..MAX_NAME_BYTES).unwrap_or(&entry.name));
    if KERNEL.iter().any(|start| name.starts_with(start)) {
        return Use::new(LedgerClass::Kernel, name.into_owned());
    }
    if let Some((class, label)) = native::by_name(&name) {
        return Use::new(class_of(class), label);
    }
    if name == "[heap]" {
        return Use::new(LedgerClass::BrkHeap, "below the program break");
    }
    let is_shared = entry.permissions.get(3) == Some(&b's');
    if SHARED.iter().any(|start| name.starts_with(start)) || (is_shared && entry.inode == 0) {
        let label = if name.is_empty() { Cow::Borrowed("without a name") } else { name };
        return Use::new(LedgerClass::SharedMemory, label.into_owned());
    }
    if entry.inode != 0 || name.starts_with('/') {
        let is_data = entry.permissions.starts_with(b"rw") && !is_shared;
        return Use::new(LedgerClass::File, if is_data { data(&name) } else { name.into_owned() });
    }
    if name.starts_with("[anon:") {
        // Whoever mapped it has named it.
        return Use::new(LedgerClass::Mmap, name.into_owned());
    }
    if entry.is_executable() {
        return Use::new(LedgerClass::JitCode, "anonymous executable memory");
    }
    if entry.permissions.starts_with(b"---") {
        return Use::new(LedgerClass::Mmap, "reserved, not accessible");
    }
    Use::new(leftover.class, leftover.label)
}

/// Label of an object's writable data: pages that were written are the process's own.
fn data(name: &str) -> String {
    format!("{name} (data)")
}

/// Claims the zeroed data behind objects' own data: anonymous memory that belongs to the file by its program headers,
/// which are read from the process's memory. What the kernel has joined to it from above is not claimed.
pub(super) fn claim_zeroed(memory: &impl Memory, vmas: &[Vma], claims: &mut Claims) {
    let mut base: Option<&MapEntry> = None;
    for pair in vmas.windows(2) {
        let [object, zeroed] = pair else { continue };
        let (object, zeroed) = (&object.entry, &zeroed.entry);
        if object.file_offset == 0 && object.inode != 0 {
            base = Some(object);
        }
        let is_behind = object.inode != 0
            && object.permissions.starts_with(b"rw")
            && object.end == zeroed.start
            && is_anonymous(zeroed)
            && zeroed.permissions.starts_with(b"rw");
        let Some(base) = base.filter(|base| is_behind && base.name == object.name) else { continue };
        if let Some(end) = end_of_data(memory, base.start, object.end) {
            let name = String::from_utf8_lossy(object.name.get(..MAX_NAME_BYTES).unwrap_or(&object.name));
            claims.add(zeroed.start, end.min(zeroed.end), &Use::new(LedgerClass::File, data(&name)));
        }
    }
}

/// Where the segment ends, in memory, whose file part ends in the page before `file_end`. ELF-64: `e_phoff` at 32,
/// `e_phentsize` at 54, `e_phnum` at 56; `p_vaddr` at 16, `p_filesz` at 32, `p_memsz` at 40 of each header.
fn end_of_data(memory: &impl Memory, base: u64, file_end: u64) -> Option<u64> {
    const PT_LOAD: u32 = 1;
    let mut header = [0; 64];
    if !memory.read(base, &mut header) || !header.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = memory.word(base.checked_add(32)?)?;
    let sizes = memory.half(base.checked_add(54)?)?;
    let (size_bytes, count) = (u64::from(sizes & 0xffff), u64::from(sizes >> 16).min(MAX_HEADERS));
    let mut bias = None;
    for index in 0..count {
        let at = base.checked_add(table)?.checked_add(index * size_bytes)?;
        if memory.half(at)? != PT_LOAD {
            continue;
        }
        let word = |offset: u64| memory.word(at.checked_add(offset)?);
        let (address, in_file, in_memory) = (word(16)?, word(32)?, word(40)?);
        // The first segment is what `base` shows.
        let bias = *bias.get_or_insert(base.wrapping_sub(address & !0xfff));
        let start = bias.wrapping_add(address);
        if start.checked_add(in_file)?.checked_next_multiple_of(4096)? == file_end {
            return start.checked_add(in_memory)?.checked_next_multiple_of(4096);
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::attach::maps;
    use crate::ledger::fake::Fake;

    const LEFT: Leftover = Leftover { class: LedgerClass::Unknown, label: "?" };

    fn of(line: &str) -> (LedgerClass, String) {
        let found = what(&maps::parse(line.as_bytes()).pop().unwrap(), LEFT);
        (found.class, found.label.into_owned())
    }

    #[test]
    fn every_kind_of_mapping_has_its_class() {
        for (line, class, label) in [
            ("1000-2000 r-xp 0 00:00 0 [vdso]", LedgerClass::Kernel, "[vdso]"),
            ("1000-2000 r--p 0 00:00 0 [vvar_vclock]", LedgerClass::Kernel, "[vvar_vclock]"),
            ("1000-2000 --xp 0 00:00 0 [vsyscall]", LedgerClass::Kernel, "[vsyscall]"),
            ("1000-2000 rw-p 0 00:00 0 [heap]", LedgerClass::BrkHeap, "below the program break"),
            (
                "1000-2000 rw-s 0 00:01 7 /memfd:a b (deleted)",
                LedgerClass::SharedMemory,
                "/memfd:a b (deleted)",
            ),
            ("1000-2000 rw-p 0 00:01 7 /memfd:x (deleted)", LedgerClass::SharedMemory, "/memfd:x (deleted)"),
            (
                "1000-2000 rw-s 0 00:01 0 /SYSV00000000 (deleted)",
                LedgerClass::SharedMemory,
                "/SYSV00000000 (deleted)",
            ),
            (
                "1000-2000 rw-s 0 00:01 9 /dev/zero (deleted)",
                LedgerClass::SharedMemory,
                "/dev/zero (deleted)",
            ),
            ("1000-2000 rw-s 0 fe:01 9 /data/db", LedgerClass::File, "/data/db"),
            ("1000-2000 r-xp 0 fe:01 9 /lib/a.so", LedgerClass::File, "/lib/a.so"),
            ("1000-2000 rw-p 0 fe:01 9 /lib/a.so", LedgerClass::File, "/lib/a.so (data)"),
            ("1000-2000 rw-p 0 fe:01 9 /a\\012[heap]", LedgerClass::File, "/a\\012[heap] (data)"),
            ("1000-2000 rw-p 0 00:00 0 [anon:my pool]", LedgerClass::Mmap, "[anon:my pool]"),
            ("1000-2000 rw-p 0 00:00 0 [anon: Go: heap]", LedgerClass::ManagedHeap, "Go heap"),
            ("1000-2000 rwxp 0 00:00 0", LedgerClass::JitCode, "anonymous executable memory"),
            ("1000-2000 ---p 0 00:00 0", LedgerClass::Mmap, "reserved, not accessible"),
            ("1000-2000 rw-p 0 00:00 0", LedgerClass::Unknown, "?"),
        ] {
            assert_eq!(of(line), (class, label.to_owned()), "{line}");
        }
    }

    #[test]
    fn zeroed_data_ends_where_the_file_says() {
        let mut memory = Fake::new(&[(0x10000, 0x1000)]);
        memory.put_bytes(0x10000, b"\x7fELF\x02\x01");
        memory.put(0x10020, 0x40);
        memory.put_bytes(0x10036, &[56, 0, 2, 0]);
        for (at, address, in_file, in_memory) in
            [(0x10040, 0, 0x800, 0x800), (0x10078, 0x1f00, 0x200, 0x3000)]
        {
            memory.put(at, 1);
            memory.put(at + 16, address);
            memory.put(at + 32, in_file);
            memory.put(at + 40, in_memory);
        }
        let vma = |line: &str| Vma {
            entry: maps::parse(line.as_bytes()).pop().unwrap(),
            rss_bytes: 0,
            pss_bytes: 0,
            swap_bytes: 0,
        };
        let vmas = [
            vma("10000-11000 r--p 0 fe:01 9 /lib/a.so"),
            vma("11000-13000 rw-p 1000 fe:01 9 /lib/a.so"),
            vma("13000-20000 rw-p 0 00:00 0"),
        ];
        let mut claims = Claims::default();
        claim_zeroed(&memory, &vmas, &mut claims);
        assert_eq!(claims.at(0x14fff).unwrap().label, "/lib/a.so (data)");
        assert!(!claims.covers(0x15000));
    }
}
