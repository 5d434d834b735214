//! All allocator functions of a process, object by object.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    fs,
    os::unix::fs::MetadataExt,
    sync::Arc,
};

use object::{Object as _, ObjectSymbol as _};
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
    unread: Vec<AttachError>,
}

impl Discoverer {
    /// The allocators that are mapped now, in the order of their addresses. An object that cannot be read is
    /// left out, tried again the next time, and told of by [`Discoverer::unread`].
    ///
    /// # Errors
    /// [`AttachError::NoProcess`], [`AttachError::NotPermitted`].
    pub fn discover(&mut self, tgid: u32) -> Result<Vec<Arc<Allocator>>, AttachError> {
        let entries = maps::read(tgid)?;
        let exe = fs::metadata(format!("/proc/{tgid}/exe")).ok().map(|exe| (exe.dev(), exe.ino()));
        let mut found: Vec<Arc<Allocator>> = Vec::new();
        let mut seen = HashSet::new();
        self.unread.clear();
        for entry in entries.iter().filter(|entry| entry.is_executable() && entry.inode != 0) {
            let key = (entry.device, entry.inode);
            if !seen.insert(key) {
                continue;
            }
            let known = match self.known.entry(key) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => match examine(tgid, entry, exe) {
                    Ok(allocator) => unknown.insert(allocator.map(Arc::new)),
                    Err(error) => {
                        self.unread.push(error);
                        continue;
                    }
                },
            };
            found.extend(known.clone());
        }
        Ok(found)
    }

    /// Why objects could not be read the last time: an allocator in one of them has been missed.
    pub fn unread(&self) -> &[AttachError] {
        &self.unread
    }
}

/// `None`: it defines no allocator function. `exe` is device and inode of the main executable.
fn examine(tgid: u32, entry: &MapEntry, exe: Option<(u64, u64)>) -> Result<Option<Allocator>, AttachError> {
    let file = ObjectFile::open(tgid, entry)?;
    let is_exe = file.file().metadata().is_ok_and(|file| exe == Some((file.dev(), file.ino())));
    // A device may be mapped executable: graphics drivers do that.
    if file.file().metadata().is_ok_and(|metadata| !metadata.is_file()) {
        return Ok(None);
    }
    let bytes = file.read_all()?;
    // A file that is no ELF file has its code from elsewhere: a JIT's, or a loader's of its own.
    let Ok(elf) = object::File::parse(&*bytes) else { return Ok(None) };
    if elf.architecture() != object::Architecture::X86_64 || is_glibc_loader(&elf) {
        return Ok(None);
    }
    let Definitions { found, mut skipped } = definitions(&elf, is_exe);
    let mut probed = Vec::new();
    for definition in found {
        match place(definition.function, &definition.body) {
            Some(placement) => {
                let cookie = Cookie::new(definition.function, placement.pushed_bytes, 0);
                probed.push(Probed { definition, placement, cookie });
            }
            None => skipped.push(Skipped {
                name: definition.function.name,
                reason: "the kernel refuses to probe any of its first instructions",
            }),
        }
    }
    let is_empty = probed.is_empty() && skipped.is_empty();
    Ok((!is_empty).then(|| Allocator { key: (entry.device, entry.inode), file, probed, skipped }))
}

/// glibc's ld.so has a small malloc of its own (exported up to 2.30), which serves until libc's is there;
/// its blocks are never freed by it, and after relocation nobody calls it. `_rtld_global` tells ld.so by
/// whatever name; musl's, which is its libc, has none.
fn is_glibc_loader(elf: &object::File<'_>) -> bool {
    elf.dynamic_symbols().any(|symbol| !symbol.is_undefined() && symbol.name() == Ok("_rtld_global"))
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

    fn parse_mapped(name: &str, look: impl FnOnce(&object::File<'_>) -> bool) -> bool {
        let entries = maps::read(std::process::id()).unwrap();
        let entry = entries.iter().find(|entry| entry.display_name().contains(name)).unwrap();
        let bytes = fs::read(entry.display_name()).unwrap();
        look(&object::File::parse(&*bytes).unwrap())
    }

    #[test]
    fn the_loader_is_known_by_what_it_defines() {
        assert!(parse_mapped("/ld-linux", is_glibc_loader));
        assert!(!parse_mapped("/libc.so.6", is_glibc_loader), "libc imports it");
    }

    /// A preloaded allocator and libc are both found; the preloaded one is mapped, so it is probed too.
    #[test]
    fn a_preloaded_allocator_is_found_beside_libc() {
        let library = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2";
        if !std::path::Path::new(library).exists() {
            eprintln!("skipped: libjemalloc2 is not installed");
            return;
        }
        // `cat` answers when it runs, by what it is sent.
        let mut child = std::process::Command::new("cat")
            .env("LD_PRELOAD", library)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let answered = std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"x")
            .and_then(|()| std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]));
        let mut discoverer = Discoverer::default();
        let found = discoverer.discover(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        answered.unwrap();
        let found = found.unwrap();
        let paths: Vec<&str> = found
            .iter()
            .filter(|allocator| allocator.allocates())
            .map(|allocator| allocator.file.path())
            .collect();
        assert_eq!(paths.len(), 2, "{paths:?}");
        assert!(paths.iter().any(|path| path.contains("jemalloc")), "{paths:?}");
        assert!(discoverer.unread().is_empty());
    }
}
