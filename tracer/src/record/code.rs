//! The target's executable mappings, in the forms in which the kernel, the symbolizer and the capture
//! need them.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    num::NonZeroU32,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::PathBuf,
    time::Instant,
};

use tracer_common::abi::{
    MAPPING_FILE, MAPPING_FRAME_POINTER, MAPPING_NO_TABLE, MAPPING_RETURN_PROBE, MAPPING_TRAMPOLINE, Mapping,
};

use super::{
    RecordError,
    address_space::{AddressSpace, Code, CodeRange},
    kernel_map::Abi,
    load::{CHUNK_GRACE, Programs, TableSizes},
};
use crate::{
    attach::{
        maps::{self, MapEntry},
        object::ObjectFile,
    },
    model::{Object, ObjectId},
    symbolize::ObjectSource,
    unwind::{
        UnwindError, own_vdso,
        process::{ChunkAllocator, MappingSet, OwnedChunks, TRAMPOLINE_BYTES, is_trampoline},
        store::{Change, StoreLimits, TableStore},
        table::FileTable,
    },
};

/// Entries of the mapping-chunk map: room for eight full sets, so that replaced ones can wait.
const MAPPING_CHUNKS: u32 = 256;
/// Smallest table maps, so that code which arrives later has room: 512 MiB of text, 4 M rows.
const MIN_PAGE_CHUNKS: u32 = 1024;
const MIN_ROW_CHUNKS: u32 = 4096;
/// Largest table maps, 32 times that.
const MAX_PAGE_CHUNKS: u32 = 32 * MIN_PAGE_CHUNKS;
const MAX_ROW_CHUNKS: u32 = 32 * MIN_ROW_CHUNKS;
const ESCAPES: u32 = 8191;

/// What is known of an object that is mapped executable.
struct Known {
    id: ObjectId,
    source: Source,
    /// `None`: no ELF file, so code made at run time; its mappings have no object.
    table: Option<Table>,
}

enum Source {
    File(ObjectFile),
    Vdso(Vec<u8>),
}

enum Table {
    /// Rows in the kernel's maps.
    Placed { file: Box<FileTable>, page_base: u32 },
    /// No unwind information at all.
    Empty,
    /// Unreadable, or no room.
    Missing,
}

/// Identity of an object: device and inode; the vDSO is (0, 0).
pub type Key = (u64, u64);

/// A mapping set that was replaced, and since when.
type Retired = (Instant, OwnedChunks);

/// All executable mappings of the target, now and before.
pub struct CodeTables {
    objects: HashMap<Key, Known>,
    new_objects: Vec<Object>,
    store: TableStore<Key>,
    limits: StoreLimits,
    allocator: ChunkAllocator,
    current: Option<OwnedChunks>,
    retired: VecDeque<Retired>,
    space: AddressSpace,
    mappings: Vec<Mapping>,
    ranges: Vec<CodeRange>,
    generation: u32,
    published: bool,
    problems: Vec<String>,
    /// Most mappings that ever had no room in the kernel's set.
    left_out: usize,
    /// The target's root directory, held so that debug files in it are found after it has exited.
    root: Option<OwnedFd>,
}

/// A mapping with the identity of its object, for the validate mode.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// The mapping as the kernel has it.
    pub mapping: Mapping,
    /// Its object.
    pub key: Option<Key>,
}

/// The code ranges and kernel mappings of one look at the target.
struct Layout {
    mappings: Vec<Mapping>,
    ranges: Vec<CodeRange>,
}

impl CodeTables {
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
            current: None,
            retired: VecDeque::new(),
            space: AddressSpace::default(),
            mappings: Vec::new(),
            ranges: Vec::new(),
            generation: 0,
            published: false,
            problems: Vec::new(),
            left_out: 0,
            root: None,
        }
    }

    /// Reads the mappings of the target and makes a table for every object that is new. True if anything
    /// has changed since the last look.
    ///
    /// # Errors
    /// [`RecordError::Discover`] when the target is gone or may not be read. An object that cannot be read
    /// is none: its stacks end as `no-unwind-table`.
    pub fn survey(&mut self, tgid: NonZeroU32) -> Result<bool, RecordError> {
        if self.root.is_none() {
            use rustix::fs::{Mode, OFlags};
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            self.root = rustix::fs::open(format!("/proc/{tgid}/root"), flags, Mode::empty()).ok();
        }
        let entries = maps::read(tgid.get())?;
        let mut layout = Layout { mappings: Vec::new(), ranges: Vec::new() };
        for entry in entries.iter().filter(|entry| entry.is_executable()) {
            self.add_entry(tgid, entry, &mut layout);
        }
        let changed = layout.mappings != self.mappings;
        self.published &= !changed;
        self.space.update(&layout.ranges);
        self.mappings = layout.mappings;
        self.ranges = layout.ranges;
        Ok(changed)
    }

    fn add_entry(&mut self, tgid: NonZeroU32, entry: &MapEntry, layout: &mut Layout) {
        let mapping = |kind| Mapping { start: entry.start, end: entry.end, bias: 0, page_base: 0, kind };
        let generated = CodeRange { start: entry.start, end: entry.end, code: Code::Generated };
        let key = match entry.name.as_slice() {
            b"[uprobes]" => return layout.mappings.push(mapping(MAPPING_RETURN_PROBE)),
            b"[vsyscall]" => return,
            b"[vdso]" => (0, 0),
            _ if entry.inode != 0 => (entry.device, entry.inode),
            _ => {
                let kind = if begins_with_trampoline(tgid, entry.start) {
                    MAPPING_TRAMPOLINE
                } else {
                    MAPPING_FRAME_POINTER
                };
                layout.ranges.push(generated);
                return layout.mappings.push(mapping(kind));
            }
        };
        let Some(known) = self.known(tgid, entry, key) else {
            return layout.mappings.push(mapping(MAPPING_NO_TABLE));
        };
        let object =
            CodeRange { code: Code::Object { id: known.id, file_offset: entry.file_offset }, ..generated };
        match &known.table {
            None => {
                layout.ranges.push(generated);
                layout.mappings.push(mapping(MAPPING_FRAME_POINTER));
            }
            Some(Table::Empty) => {
                layout.ranges.push(object);
                layout.mappings.push(mapping(MAPPING_FRAME_POINTER));
            }
            Some(Table::Missing) => {
                layout.ranges.push(object);
                layout.mappings.push(mapping(MAPPING_NO_TABLE));
            }
            Some(Table::Placed { file, page_base }) => {
                layout.ranges.push(object);
                layout.mappings.push(match file.bias_of(entry.start, entry.file_offset) {
                    Some(bias) => Mapping {
                        end: file.covered_end(entry.end, bias),
                        bias,
                        page_base: *page_base,
                        ..mapping(MAPPING_FILE)
                    },
                    // Mapped as code, though the file does not say that it is.
                    None => mapping(MAPPING_FRAME_POINTER),
                });
            }
        }
    }

    /// The object behind a mapping, opened and read when it is first seen.
    fn known(&mut self, tgid: NonZeroU32, entry: &MapEntry, key: Key) -> Option<&Known> {
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
            self.objects.insert(key, Known { id, source, table });
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

    /// Writes to the kernel what it does not have yet: tables first, then mappings, then the set. False if
    /// there was no room for another set, because those that were replaced are still waiting to be
    /// reused: to be tried again.
    ///
    /// # Errors
    /// [`RecordError::Map`], [`RecordError::Unwind`].
    pub fn publish(&mut self, programs: &mut Programs, tgid: NonZeroU32) -> Result<bool, RecordError> {
        self.reclaim();
        if self.published {
            return Ok(true);
        }
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
        let set =
            MappingSet::build(&self.mappings, self.generation, self.space.epoch(), &mut self.allocator)?;
        // Said once for each new maximum: their stacks end as `no-mapping`.
        if set.left_out() > self.left_out {
            self.left_out = set.left_out();
            self.problems.push(format!("{} executable mappings are beyond what is followed", self.left_out));
        }
        for (index, chunk) in set.chunks() {
            programs.mappings.set(index, Abi(*chunk), 0).map_err(failed("MAPPINGS"))?;
        }
        programs.processes.insert(tgid.get(), Abi(*set.process()), 0).map_err(failed("PROCESSES"))?;
        if let Some(old) = self.current.replace(set.into_chunks()) {
            self.retired.push_back((Instant::now(), old));
        }
        self.published = true;
        Ok(true)
    }

    /// Gives chunks back that no program can be reading any more.
    fn reclaim(&mut self) {
        while self.retired.front().is_some_and(|(since, _)| since.elapsed() >= CHUNK_GRACE) {
            if let Some((_, chunks)) = self.retired.pop_front() {
                self.allocator.release(chunks);
            }
        }
    }

    /// The process has executed a new program: the kernel has dropped its mapping set.
    pub fn next_program(&mut self) {
        self.space.next_program();
        self.published = false;
        self.mappings.clear();
    }

    /// What addresses mean.
    pub fn space(&self) -> &AddressSpace {
        &self.space
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
                    root: self
                        .root
                        .as_ref()
                        .map(|root| PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()))),
                },
                file.path().to_owned(),
            )),
        }
    }

    /// The mappings as the kernel has them, with their objects.
    pub fn regions(&self) -> Vec<Region> {
        let key_of = |id| self.objects.iter().find(|(_, known)| known.id == id).map(|(key, _)| *key);
        let mut regions: Vec<Region> = self
            .mappings
            .iter()
            .map(|mapping| {
                let range = self.ranges.iter().find(|range| range.start == mapping.start);
                let key = range.and_then(|range| match range.code {
                    Code::Object { id, .. } => key_of(id),
                    Code::Generated => None,
                });
                Region { mapping: *mapping, key }
            })
            .collect();
        regions.sort_by_key(|region| region.mapping.start);
        regions
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

/// Whether the mapping holds CPython's perf trampolines.
fn begins_with_trampoline(tgid: NonZeroU32, start: u64) -> bool {
    let mut bytes = [0; TRAMPOLINE_BYTES];
    File::open(format!("/proc/{tgid}/mem")).and_then(|memory| memory.read_exact_at(&mut bytes, start)).is_ok()
        && is_trampoline(&bytes)
}
