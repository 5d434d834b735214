//! All allocator functions of a process, object by object.

use std::{collections::HashMap, sync::Arc};

use object::Object as _;
use tracer_common::cookie::Cookie;

use super::{
    AttachError,
    maps::{self, MapEntry},
    object::ObjectFile,
    placement::{Placement, place},
    resolve::{Definition, Definitions, Skipped, definitions},
};

/// Identity of an object: device and inode.
pub type ObjectKey = (u64, u64);

/// A function that is to be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// What is defined, and where.
    pub definition: Definition,
    /// On which instruction.
    pub placement: Placement,
    /// Attach cookie.
    pub cookie: Cookie,
}

impl Probed {
    /// Offset of the probed instruction in the file.
    pub fn file_offset(&self) -> u64 {
        self.definition.file_offset + self.placement.offset
    }
}

/// An object that defines allocator functions.
#[derive(Debug)]
pub struct Allocator {
    /// Identity.
    pub key: ObjectKey,
    /// The file.
    pub file: ObjectFile,
    /// Functions to probe.
    pub probed: Vec<Probed>,
    /// Functions that are left alone.
    pub skipped: Vec<Skipped>,
}

impl Allocator {
    /// Whether it has a function that allocates; one that only frees is not an allocator.
    pub fn allocates(&self) -> bool {
        self.probed.iter().any(|probed| probed.definition.function.shape.returns_block())
    }
}

/// Finds allocators, and remembers what it has found: an object is read once.
#[derive(Debug, Default)]
pub struct Discoverer {
    known: HashMap<ObjectKey, Option<Arc<Allocator>>>,
}

impl Discoverer {
    /// The allocators that are mapped now, in the order of their addresses.
    ///
    /// # Errors
    /// [`AttachError::NoProcess`], [`AttachError::NotPermitted`]. An object that cannot be opened has none.
    pub fn discover(&mut self, tgid: u32) -> Result<Vec<Arc<Allocator>>, AttachError> {
        let entries = maps::read(tgid)?;
        let exe = std::fs::metadata(format!("/proc/{tgid}/exe")).ok().map(|exe| {
            use std::os::unix::fs::MetadataExt;
            exe.ino()
        });
        let mut found: Vec<Arc<Allocator>> = Vec::new();
        for entry in entries.iter().filter(|entry| entry.is_executable() && entry.inode != 0) {
            let key = (entry.device, entry.inode);
            let is_exe = exe == Some(entry.inode);
            let known = self.known.entry(key).or_insert_with(|| examine(tgid, entry, is_exe).map(Arc::new));
            if let Some(allocator) = known
                && found.iter().all(|other| other.key != key)
            {
                found.push(Arc::clone(allocator));
            }
        }
        Ok(found)
    }
}

fn examine(tgid: u32, entry: &MapEntry, is_exe: bool) -> Option<Allocator> {
    let file = ObjectFile::open(tgid, entry).ok()?;
    let bytes = file.read_all().ok()?;
    let elf = object::File::parse(&*bytes).ok()?;
    if elf.architecture() != object::Architecture::X86_64 || is_glibc_loader(entry) {
        return None;
    }
    let Definitions { found, mut skipped } = definitions(&elf, is_exe);
    let mut probed = Vec::new();
    for definition in found {
        match place(definition.function, &definition.body) {
            Some(placement) => {
                let cookie = Cookie::new(definition.function, placement.pushed_bytes);
                probed.push(Probed { definition, placement, cookie });
            }
            None => skipped.push(Skipped {
                name: definition.function.name,
                reason: "the kernel refuses to probe any of its first instructions",
            }),
        }
    }
    (!probed.is_empty() || !skipped.is_empty()).then_some(Allocator {
        key: (entry.device, entry.inode),
        file,
        probed,
        skipped,
    })
}

/// glibc's ld.so has a small malloc of its own, which serves until libc's is there and is never freed by it.
/// (musl's ld.so is its libc.)
fn is_glibc_loader(entry: &MapEntry) -> bool {
    let name = entry.display_name();
    let base = name.rsplit('/').next().unwrap_or_default();
    base.starts_with("ld-linux") || base.starts_with("ld-2.")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn this_process_allocates_by_libc() {
        let mut discoverer = Discoverer::default();
        let found = discoverer.discover(std::process::id()).unwrap();
        let libc = found.iter().find(|allocator| allocator.file.path().contains("/libc.so.6")).unwrap();
        assert!(libc.allocates());
        let again = discoverer.discover(std::process::id()).unwrap();
        assert!(again.iter().any(|allocator| Arc::ptr_eq(allocator, libc)), "read once");
        assert!(found.iter().all(|allocator| !allocator.file.path().contains("ld-linux")));
    }
}
