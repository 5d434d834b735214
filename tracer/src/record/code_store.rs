//! The code of all traced processes: objects, their unwind tables, and the room that the kernel's maps have.

use std::{
    collections::{HashMap, VecDeque},
    num::NonZeroU32,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use tracer_common::abi::Mapping;

use super::{
    RecordError,
    kernel_map::Abi,
    load::{CHUNK_GRACE, Programs, TableSizes},
};
use crate::{
    attach::{maps::MapEntry, object::ObjectFile},
    model::{Object, ObjectId},
    symbolize::ObjectSource,
    unwind::{
        UnwindError, own_vdso,
        process::{ChunkAllocator, MappingSet, OwnedChunks},
        store::{Change, StoreLimits, TableStore},
        table::FileTable,
    },
};

/// Entries of the mapping-chunk map, 2 KiB each: most processes need one, and replaced ones wait for a while.
const MAPPING_CHUNKS: u32 = 2048;
/// Smallest table maps, so that code which arrives later has room: 512 MiB of text, 4 M rows.
const MIN_PAGE_CHUNKS: u32 = 1024;
const MIN_ROW_CHUNKS: u32 = 4096;
/// Largest table maps, 32 times that.
const MAX_PAGE_CHUNKS: u32 = 32 * MIN_PAGE_CHUNKS;
const MAX_ROW_CHUNKS: u32 = 32 * MIN_ROW_CHUNKS;
const ESCAPES: u32 = 8191;

/// What is known of an object that is mapped executable.
pub struct Known {
    /// Identity within the recording.
    pub id: ObjectId,
    source: Source,
    /// Root directory of the process it was first seen in, held so that debug files in it are found later.
    root: Option<Arc<OwnedFd>>,
    /// `None`: no ELF file, so code made at run time; its mappings have no object.
    pub table: Option<Table>,
}

enum Source {
    File(ObjectFile),
    Vdso(Vec<u8>),
}

/// The unwind table of an object.
pub enum Table {
    /// Rows in the kernel's maps.
    Placed {
        /// The table.
        file: Box<FileTable>,
        /// Where its pages begin.
        page_base: u32,
    },
    /// No unwind information at all.
    Empty,
    /// Unreadable, or no room.
    Missing,
}

/// Identity of an object: device and inode; the vDSO is (0, 0).
pub type Key = (u64, u64);

/// A mapping set that was replaced, and since when.
type Retired = (Instant, OwnedChunks);

/// All objects of the recording.
pub struct CodeStore {
    objects: HashMap<Key, Known>,
    new_objects: Vec<Object>,
    store: TableStore<Key>,
    limits: StoreLimits,
    allocator: ChunkAllocator,
    retired: VecDeque<Retired>,
    generation: u32,
    problems: Vec<String>,
    /// Most mappings of one process that ever had no room in the kernel's set.
    left_out: usize,
}

impl CodeStore {
    /// Nothing is known yet.
    pub fn new() -> Self {
        let limits =
            StoreLimits { page_chunks: MAX_PAGE_CHUNKS, row_chunks: MAX_ROW_CHUNKS, escapes: ESCAPES };
        Self {
            objects: HashMap::new(),
            new_objects: Vec::new(),
            store: TableStore::new(limits),
            limits,
            allocator: ChunkAllocator::new(MAPPING_CHUNKS),
            retired: VecDeque::new(),
            generation: 0,
            problems: Vec::new(),
            left_out: 0,
        }
    }

    /// The object behind a mapping, opened and read when it is first seen.
    pub fn known(
        &mut self,
        tgid: NonZeroU32,
        entry: &MapEntry,
        key: Key,
        root: Option<&Arc<OwnedFd>>,
    ) -> Option<&Known> {
        if !self.objects.contains_key(&key) {
            let id = ObjectId(u32::try_from(self.objects.len()).unwrap_or(u32::MAX));
            let source = if key == (0, 0) {
                Source::Vdso(own_vdso().ok().flatten()?)
            } else {
                match ObjectFile::open(tgid.get(), entry) {
                    Ok(file) => Source::File(file),
                    Err(error) => {
                        self.problems.push(error.to_string());
                        return None;
                    }
                }
            };
            let table = self.table_of(key, &source);
            if table.is_some() {
                self.new_objects.push(describe(id, &source));
            }
            self.objects.insert(key, Known { id, source, table, root: root.cloned() });
        }
        self.objects.get(&key)
    }

    fn table_of(&mut self, key: Key, source: &Source) -> Option<Table> {
        let built = match source {
            Source::Vdso(bytes) => FileTable::from_elf(bytes),
            Source::File(file) => match file.read_all() {
                Ok(bytes) => FileTable::from_elf(&bytes),
                Err(error) => {
                    self.problems.push(error.to_string());
                    return Some(Table::Missing);
                }
            },
        };
        let placed = match built {
            Err(UnwindError::NotElf) => return None,
            Ok(table) if table.is_empty() => return Some(Table::Empty),
            Ok(table) => self.fit(key, &table).map(|page_base| (table, page_base)),
            Err(error) => Err(error),
        };
        Some(match placed {
            Ok((file, page_base)) => Table::Placed { file: Box::new(file), page_base },
            Err(error) => {
                self.problems.push(error.to_string());
                Table::Missing
            }
        })
    }

    /// Places a table, if it also fits into the kernel's maps, whose sizes are fixed once they are loaded.
    fn fit(&mut self, key: Key, table: &FileTable) -> Result<u32, UnwindError> {
        self.store.add(key, table).map(|placed| placed.page_base)
    }

    /// Sizes of the kernel's maps: twice what is needed now. From then on the store keeps to them.
    pub fn sizes(&mut self) -> TableSizes {
        let used = self.store.usage();
        self.limits = StoreLimits {
            page_chunks: (used.page_chunks * 2).clamp(MIN_PAGE_CHUNKS, MAX_PAGE_CHUNKS),
            row_chunks: (used.row_chunks * 2).clamp(MIN_ROW_CHUNKS, MAX_ROW_CHUNKS),
            escapes: ESCAPES,
        };
        self.store.set_limits(self.limits);
        TableSizes {
            page_chunks: self.limits.page_chunks,
            row_chunks: self.limits.row_chunks,
            escapes: ESCAPES,
            mapping_chunks: MAPPING_CHUNKS,
        }
    }

    /// Writes to the kernel what it does not have yet: tables first, then mappings, then the set of `tgid`. `None` if
    /// there was no room for another set, because those that were replaced are still waiting to be
    /// reused: to be tried again.
    ///
    /// # Errors
    /// [`RecordError::Map`].
    pub fn publish(
        &mut self,
        programs: &mut Programs,
        tgid: NonZeroU32,
        mappings: &[Mapping],
        epoch: u32,
    ) -> Result<Option<OwnedChunks>, RecordError> {
        self.reclaim();
        let failed = |map| move |source| RecordError::Map { operation: "write", map, source };
        for change in self.store.drain_changes() {
            match change {
                Change::Escape(index, rule) => {
                    programs.escapes.set(index, Abi(rule), 0).map_err(failed("ESCAPES"))?;
                }
                Change::Rows(index, rows) => {
                    programs.rows.set(index, Abi(*rows), 0).map_err(failed("ROWS"))?
                }
                Change::Pages(index, pages) => {
                    programs.pages.set(index, Abi(*pages), 0).map_err(failed("PAGES"))?;
                }
            }
        }
        self.generation += 1;
        let set = match MappingSet::build(mappings, self.generation, epoch, &mut self.allocator) {
            Ok(set) => set,
            Err(UnwindError::MappingsFull { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Said once for each new maximum: their stacks end as `no-mapping`.
        if set.left_out() > self.left_out {
            self.left_out = set.left_out();
            self.problems.push(format!("{} executable mappings are beyond what is followed", self.left_out));
        }
        for (index, chunk) in set.chunks() {
            programs.mappings.set(index, Abi(*chunk), 0).map_err(failed("MAPPINGS"))?;
        }
        programs.set_process(tgid.get(), set.process())?;
        Ok(Some(set.into_chunks()))
    }

    /// Takes the chunks of a set that was replaced or whose process has gone; they are used again when no program
    /// can be reading them any more.
    pub fn retire(&mut self, chunks: OwnedChunks) {
        self.retired.push_back((Instant::now(), chunks));
    }

    /// Gives chunks back that no program can be reading any more.
    fn reclaim(&mut self) {
        while self.retired.front().is_some_and(|(since, _)| since.elapsed() >= CHUNK_GRACE) {
            if let Some((_, chunks)) = self.retired.pop_front() {
                self.allocator.release(chunks);
            }
        }
    }

    /// Where the symbols of an object are, and its path for messages.
    pub fn symbol_source(&self, id: ObjectId) -> Option<(ObjectSource, String)> {
        let known = self.objects.values().find(|known| known.id == id)?;
        match &known.source {
            Source::Vdso(bytes) => Some((ObjectSource::Bytes(bytes.clone()), "[vdso]".to_owned())),
            Source::File(file) => Some((
                ObjectSource::File {
                    file: file.file().try_clone().ok()?,
                    display_path: PathBuf::from(file.path()),
                    root: known
                        .root
                        .as_ref()
                        .map(|root| PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()))),
                },
                file.path().to_owned(),
            )),
        }
    }

    /// Path by object.
    pub fn paths(&self) -> HashMap<ObjectId, String> {
        let path = |known: &Known| match &known.source {
            Source::Vdso(_) => "[vdso]".to_owned(),
            Source::File(file) => file.path().to_owned(),
        };
        self.objects.values().map(|known| (known.id, path(known))).collect()
    }

    /// The identity of an object.
    pub fn key_of(&self, id: ObjectId) -> Option<Key> {
        self.objects.iter().find(|(_, known)| known.id == id).map(|(key, _)| *key)
    }

    /// The contents of an object.
    pub fn read_object(&self, key: Key) -> Option<Vec<u8>> {
        match &self.objects.get(&key)?.source {
            Source::Vdso(bytes) => Some(bytes.clone()),
            Source::File(file) => file.read_all().ok(),
        }
    }

    /// Objects that were not asked for yet.
    pub fn take_new_objects(&mut self) -> Vec<Object> {
        std::mem::take(&mut self.new_objects)
    }

    /// Objects that could not be read, and tables that had no room, in words.
    pub fn take_problems(&mut self) -> Vec<String> {
        std::mem::take(&mut self.problems)
    }
}

fn describe(id: ObjectId, source: &Source) -> Object {
    match source {
        Source::Vdso(_) => Object { id, path: "[vdso]".to_owned(), build_id: None },
        Source::File(file) => {
            Object { id, path: file.path().to_owned(), build_id: file.build_id().map(str::to_owned) }
        }
    }
}
