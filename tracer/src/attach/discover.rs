//! All allocator functions of a process, object by object.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
};

use object::{Object as _, ObjectSymbol as _};

use super::{
    AttachError,
    absence::{Absence, Evidence},
    allocator::place_all,
    allocator_name::name_of,
    code::Code,
    maps::{self, MapEntry},
    object::ObjectFile,
    resolve::{Definitions, Skipped, definitions},
    selection::{Names, Selection},
};
use crate::model::Machine;

pub use super::allocator::{Allocator, End, ObjectKey, PassedOver, Probed};

/// Files for another processor are not looked at.
const HOST_ARCHITECTURE: object::Architecture = match Machine::HOST {
    Machine::X86_64 => object::Architecture::X86_64,
    Machine::Aarch64 => object::Architecture::Aarch64,
};

/// What is known of an object.
#[derive(Debug, Default)]
struct Examined {
    allocators: Vec<Arc<Allocator>>,
    passed_over: Option<PassedOver>,
    is_static: bool,
    has_symbols: bool,
    /// Whether the user named it when it was examined.
    is_named: bool,
}

/// Finds allocators, and remembers what it has found: an object is read once, in however many processes it is mapped.
#[derive(Debug)]
pub struct Discoverer {
    selection: Selection,
    names: Names,
    known: HashMap<ObjectKey, Arc<Examined>>,
    numbers: HashMap<(ObjectKey, Arc<str>), u16>,
    last: Last,
}

/// What the last look at a process has brought to light besides its allocators.
#[derive(Debug, Default)]
struct Last {
    unread: Vec<AttachError>,
    passed_over: Vec<PassedOver>,
    unmatched: Vec<PathBuf>,
    evidence: Evidence,
}

impl Default for Discoverer {
    fn default() -> Self {
        Self::new(Selection::default())
    }
}

impl Discoverer {
    /// Looks for the functions of the table and for what the user adds.
    pub fn new(selection: Selection) -> Self {
        let names = Names::new(&selection.prefixes);
        Self { selection, names, known: HashMap::new(), numbers: HashMap::new(), last: Last::default() }
    }

    /// The allocators that are mapped now, in the order of their addresses. An object that cannot be read is
    /// left out, tried again the next time, and told of by [`Discoverer::unread`].
    ///
    /// # Errors
    /// [`AttachError::NoProcess`], [`AttachError::NotPermitted`].
    pub fn discover(&mut self, tgid: u32) -> Result<Vec<Arc<Allocator>>, AttachError> {
        let entries = maps::read(tgid)?;
        // A process that has exited has no memory, but is still in /proc.
        if entries.is_empty() {
            return Err(AttachError::NoProcess { tgid });
        }
        let exe = fs::metadata(format!("/proc/{tgid}/exe")).ok().map(|exe| (exe.dev(), exe.ino()));
        let named = self.selection.named_files(tgid);
        let mut is_mapped = vec![false; named.len()];
        let mut found: Vec<Arc<Allocator>> = Vec::new();
        let mut seen = HashSet::new();
        self.last = Last::default();
        for entry in entries.iter().filter(|entry| entry.is_executable() && entry.inode != 0) {
            let key = (entry.device, entry.inode);
            if !seen.insert(key) {
                continue;
            }
            // As the file tells them: on overlay file systems the mapping tells others.
            let identity = ObjectFile::identity(tgid, entry);
            let mut is_named = false;
            for (files, is_mapped) in named.iter().zip(&mut is_mapped) {
                let matches = identity.is_some_and(|identity| files.contains(&identity));
                is_named |= matches;
                *is_mapped |= matches;
            }
            let known = match self.known.get(&key).filter(|known| known.is_named == is_named) {
                Some(known) => Arc::clone(known),
                None => match self.examine(tgid, entry, is_named) {
                    Ok(examined) => {
                        let examined = Arc::new(examined);
                        self.known.insert(key, Arc::clone(&examined));
                        examined
                    }
                    Err(error) => {
                        self.last.unread.push(error);
                        continue;
                    }
                },
            };
            if exe.is_some() && exe == identity {
                self.last.evidence.is_static = known.is_static;
                self.last.evidence.is_bare = !known.is_static;
                self.last.evidence.has_symbols = known.has_symbols;
            }
            found.extend(known.allocators.iter().cloned());
            self.last.passed_over.extend(known.passed_over.clone());
        }
        self.last.evidence.is_bare &= seen.len() <= 2;
        let objects = self.selection.objects.iter().zip(is_mapped);
        self.last.unmatched = objects.filter(|(_, is)| !is).map(|(path, _)| path.clone()).collect();
        Ok(found)
    }

    /// Why objects could not be read the last time: an allocator in one of them has been missed.
    pub fn unread(&self) -> &[AttachError] {
        &self.last.unread
    }

    /// Objects that the last look found to define functions of the table, but no allocator.
    pub fn passed_over(&self) -> &[PassedOver] {
        &self.last.passed_over
    }

    /// Objects that the user named and that the process has not mapped.
    pub fn unmatched_objects(&self) -> &[PathBuf] {
        &self.last.unmatched
    }

    /// Why the last look found no allocator, if it found none.
    pub fn absence(&self, is_go: bool) -> Absence {
        let is_candidate = |skipped: &Skipped| skipped.reason.starts_with("its object has nothing");
        Absence::of(Evidence {
            is_go,
            has_candidates: self.last.passed_over.iter().flat_map(|passed| &passed.skipped).any(is_candidate),
            has_unread: !self.last.unread.is_empty(),
            ..self.last.evidence
        })
    }

    fn examine(&mut self, tgid: u32, entry: &MapEntry, is_named: bool) -> Result<Examined, AttachError> {
        let nothing = Examined { is_named, ..Examined::default() };
        let file = ObjectFile::open(tgid, entry)?;
        // A device may be mapped executable: graphics drivers do that.
        if file.file().metadata().is_ok_and(|metadata| !metadata.is_file()) {
            return Ok(nothing);
        }
        let bytes = file.read_all()?;
        // A file that is no ELF file has its code from elsewhere: a JIT's, or a loader's of its own.
        let Ok(elf) = object::File::parse(&*bytes) else { return Ok(nothing) };
        if elf.architecture() != HOST_ARCHITECTURE || is_glibc_loader(&elf) {
            return Ok(nothing);
        }
        let mut code = Code::new(&elf, &self.names);
        let Definitions { groups, skipped, marks } = definitions(&elf, &mut code, &self.names, is_named);
        let file = Arc::new(file);
        let key = (entry.device, entry.inode);
        let mut allocators = Vec::new();
        for group in groups {
            let prefix = group.prefixes.first().cloned().unwrap_or_else(|| Arc::from(""));
            let next = u16::try_from(self.numbers.len() + 1).unwrap_or(0);
            // Beyond 65,535 allocators the number is 0: unknown.
            let number = match self.numbers.entry((key, prefix)) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(unknown) if next != 0 => *unknown.insert(next),
                Entry::Vacant(_) => 0,
            };
            let name = name_of(&group.prefixes, &marks);
            let prefixes = group.prefixes.clone();
            let (probed, skipped) = place_all(group, &code, number);
            let file = Arc::clone(&file);
            allocators.push(Arc::new(Allocator { number, name, prefixes, key, file, probed, skipped }));
        }
        let passed_over = (!skipped.is_empty()).then_some(PassedOver { file, skipped });
        let is_static = elf.section_by_name(".interp").is_none();
        let has_symbols = elf.symbols().next().is_some();
        Ok(Examined { allocators, passed_over, is_static, has_symbols, is_named })
    }
}

/// The places of probes in an object: what [`Discoverer::discover`] does with a file, without a process. Gives their
/// number.
#[cfg(any(test, fuzzing))]
pub(crate) fn places_in(bytes: &[u8]) -> usize {
    let Ok(elf) = object::File::parse(bytes) else { return 0 };
    if elf.architecture() != object::Architecture::X86_64 || is_glibc_loader(&elf) {
        return 0;
    }
    let names = Names::new(&[]);
    let mut code = Code::new(&elf, &names);
    let groups = definitions(&elf, &mut code, &names, true).groups;
    groups.into_iter().map(|group| place_all(group, &code, 1).0.len()).sum()
}

/// glibc's ld.so has a small malloc of its own (exported up to 2.30), which serves until libc's is there;
/// its blocks are never freed by it, and after relocation nobody calls it. `_rtld_global` tells ld.so by
/// whatever name; musl's, which is its libc, has none.
fn is_glibc_loader(elf: &object::File<'_>) -> bool {
    elf.dynamic_symbols().any(|symbol| !symbol.is_undefined() && symbol.name() == Ok("_rtld_global"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn this_process_allocates_by_libc() {
        let mut discoverer = Discoverer::default();
        let found = discoverer.discover(std::process::id()).unwrap();
        let libc = found.iter().find(|allocator| allocator.file.path().contains("/libc.so.6")).unwrap();
        assert!(libc.allocates());
        assert_eq!((libc.name, libc.prefix()), ("glibc malloc", ""));
        assert_ne!(libc.number, 0);
        let again = discoverer.discover(std::process::id()).unwrap();
        assert!(again.iter().any(|allocator| Arc::ptr_eq(allocator, libc)), "read once");
        assert!(found.iter().all(|allocator| !allocator.file.path().contains("ld-linux")));
        // The main functions are probed where the kernel emulates the instruction.
        for name in ["malloc", "free", "calloc", "realloc"] {
            let probed = libc.probed.iter().find(|probed| probed.definition.function.name == name).unwrap();
            assert!(probed.placement.is_emulated, "{probed:?}");
            assert_eq!(probed.cookie.allocator(), u32::from(libc.number));
        }
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

    /// What is found in `cat` under a preloaded library; `None` if that is not installed.
    fn preloaded(library: &str, selection: Selection) -> Option<(Discoverer, Vec<Arc<Allocator>>)> {
        let library = format!("/usr/lib/x86_64-linux-gnu/{library}");
        if !std::path::Path::new(&library).exists() {
            eprintln!("skipped: {library} is not installed");
            return None;
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
        let mut discoverer = Discoverer::new(selection);
        let found = discoverer.discover(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        answered.unwrap();
        assert!(discoverer.unread().is_empty());
        Some((discoverer, found.unwrap()))
    }

    /// A preloaded allocator and libc are both found; the preloaded one is mapped, so it is probed too.
    #[test]
    fn a_preloaded_allocator_is_found_beside_libc() {
        for (library, name) in [
            ("libjemalloc.so.2", "jemalloc"),
            ("libtcmalloc_minimal.so.4", "tcmalloc"),
            ("libmimalloc.so.2", "mimalloc"),
        ] {
            let Some((_, found)) = preloaded(library, Selection::default()) else { continue };
            let mut names: Vec<&str> = found.iter().map(|allocator| allocator.name).collect();
            names.sort_unstable();
            assert_eq!(names, ["glibc malloc", name]);
            let numbers: HashSet<u16> = found.iter().map(|allocator| allocator.number).collect();
            assert_eq!(numbers, HashSet::from([1, 2]));
            let own = found.iter().find(|allocator| allocator.name == name).unwrap();
            let new = own.probed.iter().find(|p| p.definition.names.iter().any(|n| n == "_Znwm")).unwrap();
            let End::Exits(exits) = &new.end else { panic!("{new:?}") };
            assert!(exits.file_offsets.len() >= 2 && exits.gaps.is_empty(), "{library}: {exits:x?}");
            for probed in &own.probed {
                let has_return = probed.end == End::Return;
                assert!(!(has_return && probed.definition.may_throw), "{probed:?}");
                assert_eq!(probed.cookie.is_left_at_exit(), matches!(probed.end, End::Exits(_)));
            }
        }
    }

    #[test]
    fn the_standard_library_is_passed_over() {
        let selection = Selection {
            objects: vec![PathBuf::from("/no/such/object"), PathBuf::from("/usr/bin/cat")],
            ..Selection::default()
        };
        let Some((discoverer, found)) = preloaded("libstdc++.so.6", selection) else { return };
        assert_eq!(found.len(), 1, "only libc: {found:?}");
        let [passed] = discoverer.passed_over() else { panic!("{:?}", discoverer.passed_over()) };
        assert!(passed.file.path().contains("libstdc++") && passed.skipped.len() == 20, "{passed:?}");
        assert_eq!(discoverer.unmatched_objects(), [PathBuf::from("/no/such/object")]);
        assert_eq!(discoverer.absence(false), Absence::Nothing);
    }
}
