//! Where the dynamic loader of a program lies, and which of its system calls matter.

use std::{fs::File, io::Read, ops::Range};

use super::{super::maps, tracee::SyscallEntry};

/// More than any kernel writes.
const MAX_AUXV_BYTES: u64 = 4096;
/// The auxiliary vector's entry for the address of the interpreter (ld.so), include/uapi/linux/auxvec.h.
const AT_BASE: u64 = 7;

/// All that musl's loader calls before it has mapped the last library. The allocator is in the same file, so
/// that the place of a call says nothing.
const MUSL_START_UP: &[i64] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    libc::SYS_set_tid_address,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_close,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_brk,
    libc::SYS_madvise,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "aarch64")]
    libc::SYS_readlinkat,
    libc::SYS_getrandom,
];

/// A dynamic loader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loader {
    range: Range<u64>,
    is_musl: bool,
}

impl Loader {
    /// Of a process that is stopped right behind its exec. `None`: the program has none (static), or is not
    /// a 64-bit one, or /proc does not tell.
    pub(super) fn find(tgid: u32) -> Option<Self> {
        let mut auxv = Vec::new();
        File::open(format!("/proc/{tgid}/auxv")).ok()?.take(MAX_AUXV_BYTES).read_to_end(&mut auxv).ok()?;
        Self::within(base_of(&auxv)?, &maps::read(tgid).ok()?)
    }

    fn within(base: u64, mappings: &[maps::MapEntry]) -> Option<Self> {
        let first = mappings.iter().find(|entry| entry.start == base && entry.inode != 0)?;
        let same_file = |entry: &&maps::MapEntry| {
            entry.start >= base && (entry.device, entry.inode) == (first.device, first.inode)
        };
        let end = mappings.iter().filter(same_file).map(|entry| entry.end).max()?;
        let is_musl = first.name.windows(4).any(|part| part == b"musl");
        Some(Self { range: base..end, is_musl })
    }

    /// Whether the call belongs to the start-up: made by the loader, for its own ends.
    pub(super) fn makes(&self, call: &SyscallEntry) -> bool {
        self.range.contains(&call.instruction_pointer)
            && (!self.is_musl || MUSL_START_UP.contains(&call.number))
    }
}

pub(crate) fn base_of(auxv: &[u8]) -> Option<u64> {
    auxiliary(auxv, AT_BASE).filter(|base| *base != 0)
}

/// The value of a key of the auxiliary vector.
pub(crate) fn auxiliary(auxv: &[u8], wanted: u64) -> Option<u64> {
    let words = |pair: &[u8; 16]| {
        let pair = u128::from_le_bytes(*pair);
        (pair as u64, (pair >> 64) as u64)
    };
    let (pairs, _) = auxv.as_chunks::<16>();
    pairs.iter().map(words).find(|(key, _)| *key == wanted).map(|(_, value)| value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn call(instruction_pointer: u64, number: i64) -> SyscallEntry {
        SyscallEntry { instruction_pointer, number, protection: 0 }
    }

    #[test]
    fn the_loader_is_all_mappings_of_the_file_at_its_base() {
        let mappings = |name: &str| {
            maps::parse(
                format!(
                    "1000-2000 r-xp 00000000 fe:01 1 /bin/x\n8000-9000 r--p 00000000 fe:01 2 {name}\n\
                     9000-b000 r-xp 00001000 fe:01 2 {name}\nc000-d000 rw-p 00003000 fe:01 2 {name}\n\
                     e000-f000 r-xp 00000000 00:00 0 [vdso]\n"
                )
                .as_bytes(),
            )
        };
        let glibc = Loader::within(0x8000, &mappings("/lib64/ld-linux-x86-64.so.2")).unwrap();
        assert_eq!(glibc, Loader { range: 0x8000..0xd000, is_musl: false });
        assert!(glibc.makes(&call(0x9002, libc::SYS_write)) && !glibc.makes(&call(0x1002, libc::SYS_mmap)));
        let musl = Loader::within(0x8000, &mappings("/lib/ld-musl-x86_64.so.1")).unwrap();
        assert!(musl.makes(&call(0x9002, libc::SYS_mmap)) && !musl.makes(&call(0x9002, libc::SYS_write)));
        assert_eq!(Loader::within(0x7000, &mappings("/lib/ld.so")), None);
        assert_eq!(Loader::within(0xe000, &mappings("/lib/ld.so")), None);
    }

    #[test]
    fn a_vector_without_base_or_cut_short_is_a_static_program() {
        let vector =
            |pairs: &[[u64; 2]]| pairs.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
        let whole: Vec<u8> = vector(&[[6, 4096], [AT_BASE, 0x8000], [0, 0]]);
        assert_eq!(base_of(&whole), Some(0x8000));
        assert_eq!(base_of(&whole[..31]), None);
        assert_eq!(base_of(&vector(&[[AT_BASE, 0], [0, 0]])), None);
        assert_eq!(base_of(b""), None);
    }

    #[test]
    fn the_loader_of_this_very_program_is_found() {
        assert!(Loader::find(std::process::id()).is_some());
    }
}
