//! From program counters to functions, files and lines.
//!
//! Two sources: ELF symbols and DWARF of the objects that were mapped ([`Symbolizer`], on blazesym), and the
//! maps that runtimes write for the code they make ([`PerfMap`]). Everything read here is the target's and
//! hostile. A place without a name is a [`Location`] with nothing in it; what stood in the way of an object's
//! names is in [`Symbolizer::problems`].
//!
//! Separate debug files are found by build id and debug link, in the target's root and then in the host's. The
//! compressed mini symbol table that Fedora puts into stripped files (`.gnu_debugdata`) is not read: such a
//! file has its dynamic symbols.
//!
//! Limits, stated so that nobody takes them for absent: a crafted file can still exhaust the memory of this
//! process (DWARF tables are built as large as the file asks for, within its own size times a factor) and its
//! stack (scopes nested a hundred thousand deep), and truncating a library between two reads of it is a
//! SIGBUS. Each needs a process of its own to be contained.

mod debug_file;
mod demangle;
mod elf;
mod error;
mod hint;
mod jit_name;
mod perf_map;
mod perf_map_file;
mod prepared;
mod rewrite;
mod worker;

#[cfg(any(test, fuzzing))]
pub(crate) use self::prepared::prepare_headers;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use self::demangle::demangle;
pub use self::error::SymbolizeError;
pub use self::hint::hint_for;
pub use self::jit_name::{JitFunction, parse_jit_name};
pub use self::perf_map::{PerfMap, PerfMapLosses};
pub use self::perf_map_file::{PerfMapError, PerfMapSource};

use self::prepared::KeptObject;
use self::rewrite::{Links, memory_file};
use self::worker::Worker;
use crate::model::{Location, ObjectId};

/// Looked-up places that are remembered; beyond it the memory starts afresh.
const MAX_CACHED: usize = 200_000;

/// How to symbolize.
#[derive(Clone, Copy, Debug)]
pub struct SymbolizeOptions {
    /// Longest wait for one answer, after which the object is given up.
    pub deadline: Duration,
}

impl Default for SymbolizeOptions {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(60) }
    }
}

/// Where an object's bytes are.
#[derive(Debug)]
pub enum ObjectSource {
    /// A file that was opened when it was mapped, so that it does not matter if it is gone by now.
    File {
        /// The file.
        file: File,
        /// Path as the target sees it; debug links are relative to it.
        display_path: PathBuf,
        /// The target's root directory (`/proc/PID/root`), in which debug files are looked for before the
        /// host's. Opened at once: the target may end.
        root: Option<PathBuf>,
    },
    /// An object without a file: the vDSO.
    Bytes(Vec<u8>),
}

/// A place in an object's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CodeOffset {
    /// Offset in the file.
    pub file_offset: u64,
    /// Whether it is a return address, which belongs to the call before it. False for the place where a
    /// signal interrupted a function.
    pub is_return_address: bool,
}

impl CodeOffset {
    fn lookup_offset(self) -> u64 {
        self.file_offset.saturating_sub(u64::from(self.is_return_address))
    }
}

/// A location about which nothing is known.
pub(crate) fn nowhere() -> Vec<Location> {
    vec![Location { function: None, file: None, line: None, inlined: false }]
}

/// Finds the functions, files and lines of places in objects.
pub struct Symbolizer {
    deadline: Duration,
    host_root: Option<Arc<File>>,
    roots: HashMap<PathBuf, Option<Arc<File>>>,
    objects: HashMap<ObjectId, Arc<KeptObject>>,
    /// The first thing that went wrong with each object.
    problems: HashMap<ObjectId, SymbolizeError>,
    /// Objects that are not asked again.
    given_up: HashSet<ObjectId>,
    cache: HashMap<(ObjectId, u64), Vec<Location>>,
    worker: Option<Worker>,
}

impl Symbolizer {
    /// An empty symbolizer. Its thread is started with the first lookup.
    pub fn new(options: SymbolizeOptions) -> Self {
        Self {
            deadline: options.deadline,
            host_root: open_directory(Path::new("/")),
            roots: HashMap::new(),
            objects: HashMap::new(),
            problems: HashMap::new(),
            given_up: HashSet::new(),
            cache: HashMap::new(),
            worker: None,
        }
    }

    /// Announces an object. The second announcement of an id is ignored: ids are never reused.
    pub fn add_object(&mut self, id: ObjectId, source: ObjectSource) {
        if self.objects.contains_key(&id) {
            return;
        }
        let kept = match source {
            ObjectSource::File { file, display_path, root } => {
                let roots = self.roots_for(root);
                Ok(KeptObject { file: Arc::new(file), display_path, roots })
            }
            ObjectSource::Bytes(bytes) => {
                memory_file().and_then(|mut file| file.write_all(&bytes).map(|()| file)).map(|file| {
                    KeptObject { file: Arc::new(file), display_path: PathBuf::new(), roots: Vec::new() }
                })
            }
        };
        match kept {
            Ok(kept) => drop(self.objects.insert(id, Arc::new(kept))),
            Err(error) => drop(self.problems.insert(id, SymbolizeError::Copy(error))),
        }
    }

    fn roots_for(&mut self, target_root: Option<PathBuf>) -> Vec<(Arc<File>, Links)> {
        let target = target_root
            .and_then(|path| self.roots.entry(path).or_insert_with_key(|path| open_directory(path)).clone())
            .filter(|target| !self.host_root.as_deref().is_some_and(|host| is_same_file(host, target)));
        let target = target.map(|root| (root, Links::Untrusted));
        let host = self.host_root.clone().map(|root| (root, Links::Trusted));
        target.into_iter().chain(host).collect()
    }

    /// The locations of each place, in order; each list is innermost first and never empty.
    pub fn symbolize(&mut self, id: ObjectId, offsets: &[CodeOffset]) -> Vec<Vec<Location>> {
        if self.cache.len() + offsets.len() > MAX_CACHED {
            self.cache.clear();
        }
        let mut missing: Vec<u64> = offsets.iter().map(|offset| offset.lookup_offset()).collect();
        missing.sort_unstable();
        missing.dedup();
        missing.retain(|&offset| !self.cache.contains_key(&(id, offset)));
        if !missing.is_empty()
            && !self.given_up.contains(&id)
            && let Err(error) = self.look_up(id, &missing)
        {
            log::debug!("object {}: {error}", id.0);
            if self.objects.contains_key(&id) {
                self.given_up.insert(id);
            }
            self.problems.entry(id).or_insert(error);
        }
        let found = |offset: &CodeOffset| self.cache.get(&(id, offset.lookup_offset())).cloned();
        offsets.iter().map(|offset| found(offset).unwrap_or_else(nowhere)).collect()
    }

    fn look_up(&mut self, id: ObjectId, file_offsets: &[u64]) -> Result<(), SymbolizeError> {
        let object = self.objects.get(&id).ok_or(SymbolizeError::UnknownObject)?;
        let worker = match self.worker.take() {
            Some(worker) => worker,
            None => Worker::start().map_err(|error| SymbolizeError::NoWorker(Some(error)))?,
        };
        let (cache, problems) = (&mut self.cache, &mut self.problems);
        let outcome = worker.run(id, object, file_offsets, self.deadline, |file_offset, answer| {
            cache.insert((id, file_offset), answer.locations);
            if let Some(problem) = answer.problem {
                problems.entry(id).or_insert(problem);
            }
        });
        if !matches!(outcome, Err(SymbolizeError::TimedOut(_) | SymbolizeError::NoWorker(_))) {
            self.worker = Some(worker);
        }
        outcome
    }

    /// What stood in the way of an object's symbols: the first problem of each object that had one.
    pub fn problems(&self) -> impl Iterator<Item = (ObjectId, &SymbolizeError)> {
        self.problems.iter().map(|(id, error)| (*id, error))
    }
}

fn open_directory(path: &Path) -> Option<Arc<File>> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).ok().map(|fd| Arc::new(fd.into()))
}

fn is_same_file(one: &File, other: &File) -> bool {
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}
