//! The executable mappings of one process, in the forms in which the kernel, the symbolizer and the capture
//! need them.

use std::{
    fs::File,
    num::NonZeroU32,
    os::{fd::OwnedFd, unix::fs::FileExt},
    sync::Arc,
};

use tracer_common::abi::{
    MAPPING_FILE, MAPPING_FRAME_POINTER, MAPPING_NO_TABLE, MAPPING_RETURN_PROBE, MAPPING_TRAMPOLINE, Mapping,
};

use super::{
    RecordError,
    address_space::{AddressSpace, Code, CodeRange},
    code_store::{CodeStore, Key, Table},
    load::Programs,
};
use crate::{
    attach::{
        AttachError,
        maps::{self, MapEntry},
    },
    unwind::process::{OwnedChunks, TRAMPOLINE_BYTES, is_trampoline},
};

/// All executable mappings of a process, now and before.
pub struct ProcessCode {
    tgid: NonZeroU32,
    current: Option<OwnedChunks>,
    space: AddressSpace,
    mappings: Vec<Mapping>,
    ranges: Vec<CodeRange>,
    published: bool,
    /// The process's root directory.
    root: Option<Arc<OwnedFd>>,
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

impl ProcessCode {
    /// Nothing is known yet; its first epoch is `epoch`.
    pub fn new(tgid: NonZeroU32, epoch: u32) -> Self {
        Self {
            tgid,
            current: None,
            space: AddressSpace::beginning_at(epoch),
            mappings: Vec::new(),
            ranges: Vec::new(),
            published: false,
            root: None,
        }
    }

    /// Reads the mappings of the process and makes a table for every object that is new. True if anything
    /// has changed since the last look.
    ///
    /// # Errors
    /// [`RecordError::Discover`] when the process is gone or may not be read. An object that cannot be read
    /// is none: its stacks end as `no-unwind-table`.
    pub fn survey(&mut self, store: &mut CodeStore) -> Result<bool, RecordError> {
        let tgid = self.tgid;
        if self.root.is_none() {
            use rustix::fs::{Mode, OFlags};
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open(format!("/proc/{tgid}/root"), flags, Mode::empty());
            self.root = root.ok().map(Arc::new);
        }
        let entries = maps::read(tgid.get())?;
        // A process that has exited has no memory, but is still in /proc.
        if entries.is_empty() {
            return Err(AttachError::NoProcess { tgid: tgid.get() }.into());
        }
        let mut layout = Layout { mappings: Vec::new(), ranges: Vec::new() };
        for entry in entries.iter().filter(|entry| entry.is_executable()) {
            self.add_entry(store, entry, &mut layout);
        }
        let changed = layout.mappings != self.mappings;
        self.published &= !changed;
        self.space.update(&layout.ranges);
        self.mappings = layout.mappings;
        self.ranges = layout.ranges;
        Ok(changed)
    }

    fn add_entry(&self, store: &mut CodeStore, entry: &MapEntry, layout: &mut Layout) {
        let mapping = |kind| Mapping { start: entry.start, end: entry.end, bias: 0, page_base: 0, kind };
        let generated = CodeRange { start: entry.start, end: entry.end, code: Code::Generated };
        let key = match entry.name.as_slice() {
            b"[uprobes]" => return layout.mappings.push(mapping(MAPPING_RETURN_PROBE)),
            b"[vsyscall]" => return,
            b"[vdso]" => (0, 0),
            _ if entry.inode != 0 => (entry.device, entry.inode),
            _ => {
                let kind = if begins_with_trampoline(self.tgid, entry.start) {
                    MAPPING_TRAMPOLINE
                } else {
                    MAPPING_FRAME_POINTER
                };
                layout.ranges.push(generated);
                return layout.mappings.push(mapping(kind));
            }
        };
        let Some(known) = store.known(self.tgid, entry, key, self.root.as_ref()) else {
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

    /// Brings the kernel's set up to the last look. False if there was no room for it yet: to be tried again.
    ///
    /// # Errors
    /// [`RecordError::Map`].
    pub fn publish(&mut self, store: &mut CodeStore, programs: &mut Programs) -> Result<bool, RecordError> {
        if self.published {
            return Ok(true);
        }
        let epoch = self.space.epoch();
        let Some(chunks) = store.publish(programs, self.tgid, &self.mappings, epoch)? else {
            return Ok(false);
        };
        if let Some(old) = self.current.replace(chunks) {
            store.retire(old);
        }
        self.published = true;
        Ok(true)
    }

    /// The process has executed a new program: the kernel has emptied its mapping set, and begun the next epoch.
    pub fn next_program(&mut self) {
        self.space.next_program();
        self.published = false;
        self.mappings.clear();
        self.root = None;
    }

    /// The process has gone; what addresses meant is kept.
    pub fn end(&mut self, store: &mut CodeStore) {
        if let Some(chunks) = self.current.take() {
            store.retire(chunks);
        }
        self.published = false;
    }

    /// What addresses mean.
    pub fn space(&self) -> &AddressSpace {
        &self.space
    }

    /// The mappings as the kernel has them, with their objects.
    pub fn regions(&self, store: &CodeStore) -> Vec<Region> {
        let mut regions: Vec<Region> = self
            .mappings
            .iter()
            .map(|mapping| {
                let range = self.ranges.iter().find(|range| range.start == mapping.start);
                let key = range.and_then(|range| match range.code {
                    Code::Object { id, .. } => store.key_of(id),
                    Code::Generated => None,
                });
                Region { mapping: *mapping, key }
            })
            .collect();
        regions.sort_by_key(|region| region.mapping.start);
        regions
    }
}

/// Whether the mapping holds CPython's perf trampolines.
fn begins_with_trampoline(tgid: NonZeroU32, start: u64) -> bool {
    let mut bytes = [0; TRAMPOLINE_BYTES];
    File::open(format!("/proc/{tgid}/mem")).and_then(|memory| memory.read_exact_at(&mut bytes, start)).is_ok()
        && is_trampoline(&bytes)
}
