//! The files behind executable mappings, opened as what is mapped, not by name.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt},
    },
    path::Path,
};

use object::{Object as _, ReadCache};

use super::{AttachError, maps::MapEntry, plain_file};

/// Largest file that is read whole.
pub(super) const MAX_BYTES: u64 = 2 << 30;
/// How much code is compared to tell one file from another.
const MAX_COMPARED_BYTES: usize = 64 << 10;
/// `int3`: what a uprobe, ours or another's, leaves in memory.
const BREAKPOINT: u8 = 0xcc;

/// An open file.
#[derive(Debug)]
pub struct ObjectFile {
    file: File,
    path: String,
    build_id: Option<String>,
}

impl ObjectFile {
    /// Opens the file behind a mapping: through `map_files`, which gives the very file also if it was
    /// deleted or replaced or lies in another mount namespace; else by the target's root, if device and
    /// inode agree.
    ///
    /// # Errors
    /// [`AttachError::Object`].
    pub fn open(tgid: u32, entry: &MapEntry) -> Result<Self, AttachError> {
        let path = entry.display_name();
        let mapped = format!("/proc/{tgid}/map_files/{:x}-{:x}", entry.start, entry.end);
        let file = plain_file::open_linked(&mapped)
            .or_else(|error| open_by_name(tgid, entry).ok_or(error))
            .map_err(|source| AttachError::Object { tgid, path: path.clone(), source })?;
        let build_id = build_id(&file);
        Ok(Self { file, path, build_id })
    }

    /// Device and inode of the file behind a mapping, as the file tells them; `None` if it cannot be reached.
    pub fn identity(tgid: u32, entry: &MapEntry) -> Option<(u64, u64)> {
        let mapped = format!("/proc/{tgid}/map_files/{:x}-{:x}", entry.start, entry.end);
        let metadata = std::fs::metadata(mapped).ok().or_else(|| {
            let name = OsStr::from_bytes(entry.name.strip_prefix(b"/")?);
            std::fs::metadata(Path::new(&format!("/proc/{tgid}/root")).join(name)).ok()
        })?;
        Some((metadata.dev(), metadata.ino()))
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Path as the target sees it; hostile input.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// GNU build id in hex.
    pub fn build_id(&self) -> Option<&str> {
        self.build_id.as_deref()
    }

    /// The contents. Read rather than mapped: a file that somebody truncates must not kill us.
    ///
    /// # Errors
    /// [`AttachError::TooLarge`], [`AttachError::Object`].
    pub fn read_all(&self) -> Result<Vec<u8>, AttachError> {
        let failed = |source| AttachError::Object { tgid: 0, path: self.path.clone(), source };
        let metadata = self.file.metadata().map_err(failed)?;
        // A device or a pipe may never end.
        if !metadata.is_file() || metadata.len() > MAX_BYTES {
            return Err(AttachError::TooLarge {
                path: self.path.clone(),
                bytes: metadata.len(),
                limit: MAX_BYTES,
            });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
        let mut reader = OffsetReader::new(&self.file);
        reader.by_ref().take(MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }
}

/// Without CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE `map_files` is closed. The file of that name is taken if
/// it is the one that is mapped: by device and inode, or, on overlay file systems, whose mappings tell
/// other numbers than the file does, by its code.
fn open_by_name(tgid: u32, entry: &MapEntry) -> Option<File> {
    let file = plain_file::open_in_root_of(tgid, Path::new(OsStr::from_bytes(&entry.name))).ok()?;
    let metadata = file.metadata().ok()?;
    let device =
        u64::from(rustix::fs::major(metadata.dev())) << 32 | u64::from(rustix::fs::minor(metadata.dev()));
    let is_same = metadata.is_file()
        && ((device == entry.device && metadata.ino() == entry.inode) || has_mapped_code(tgid, entry, &file));
    is_same.then_some(file)
}

/// Whether memory holds what the file holds, breakpoints aside.
fn has_mapped_code(tgid: u32, entry: &MapEntry, file: &File) -> bool {
    let compared = usize::try_from(entry.end - entry.start).unwrap_or(usize::MAX).min(MAX_COMPARED_BYTES);
    let (mut mapped, mut stored) = (vec![0; compared], vec![0; compared]);
    // The last page of a mapping goes on behind the end of its file.
    let Ok(count @ 1..) = file.read_at(&mut stored, entry.file_offset) else { return false };
    read_memory(tgid, entry.start, &mut mapped[..count])
        && mapped[..count]
            .iter()
            .zip(&stored)
            .all(|(mapped, stored)| mapped == stored || *mapped == BREAKPOINT)
}

/// Fills `buffer` from the memory of a process. (`/proc/PID/mem` would want the process's own user besides
/// CAP_SYS_PTRACE.)
pub(crate) fn read_memory(tgid: u32, address: u64, buffer: &mut [u8]) -> bool {
    let (Ok(pid), Ok(start)) = (i32::try_from(tgid), usize::try_from(address)) else { return false };
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: start as *mut libc::c_void, iov_len: buffer.len() };
    // SAFETY: `local` is `buffer`, which is borrowed mutably for the call; `remote` is an address in another
    // process, which the kernel checks.
    let count = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(count) == Ok(buffer.len())
}

fn build_id(file: &File) -> Option<String> {
    let metadata = file.metadata().ok()?;
    // Tables of headers and of symbols are read into memory: a sparse file can claim any size for them.
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return None;
    }
    let cache = ReadCache::new(OffsetReader::new(file));
    let object = object::File::parse(&cache).ok()?;
    let id = object.build_id().ok()??;
    (id.len() <= 64).then(|| id.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A reader with a position of its own: that of a descriptor is shared with its duplicates.
pub(super) struct OffsetReader<'a> {
    file: &'a File,
    offset: u64,
}

impl<'a> OffsetReader<'a> {
    /// Reads from the first byte on.
    pub(super) fn new(file: &'a File) -> Self {
        Self { file, offset: 0 }
    }
}

impl Read for OffsetReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

impl io::Seek for OffsetReader<'_> {
    fn seek(&mut self, position: io::SeekFrom) -> io::Result<u64> {
        let (base, distance) = match position {
            io::SeekFrom::Start(offset) => (offset, 0),
            io::SeekFrom::Current(distance) => (self.offset, distance),
            io::SeekFrom::End(distance) => (self.file.metadata()?.len(), distance),
        };
        self.offset = base.checked_add_signed(distance).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.offset)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::attach::maps;

    #[test]
    fn libc_is_opened_as_it_is_mapped() {
        let entries = maps::read(std::process::id()).unwrap();
        let libc = entries
            .iter()
            .find(|entry| entry.is_executable() && entry.display_name().contains("/libc.so.6"))
            .unwrap();
        let object = ObjectFile::open(std::process::id(), libc).unwrap();
        assert_eq!(&object.read_all().unwrap()[..4], b"\x7fELF");
        assert_eq!(object.build_id().unwrap().len(), 40);
        assert!(open_by_name(std::process::id(), libc).is_some());
        let overlaid = MapEntry { device: libc.device + 1, inode: libc.inode + 1, ..libc.clone() };
        assert!(open_by_name(std::process::id(), &overlaid).is_some(), "known by its code");
        let exe = std::fs::read_link("/proc/self/exe").unwrap();
        let other = MapEntry { name: exe.into_os_string().into_encoded_bytes(), ..overlaid };
        assert!(open_by_name(std::process::id(), &other).is_none(), "another file of that name");
        let behind = MapEntry { file_offset: u64::MAX >> 1, ..libc.clone() };
        assert!(!has_mapped_code(std::process::id(), &behind, object.file()), "behind the end of the file");
    }
}
