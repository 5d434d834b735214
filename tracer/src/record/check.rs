//! Two recordings that are none: the floor for the benchmark (empty programs at the same places), and the
//! comparison of the kernel's stacks with full DWARF walks in user space.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroU32,
    time::{Duration, Instant},
};

use tracer_common::abi::{FRAME_INTERRUPTED, StackEnd, Validation, read};

use super::{
    RecordError,
    code_store::CodeStore,
    link::{Links, Probe},
    load::{Limits, LoadOptions, Programs, Purpose},
    probe::probes_of,
    process_code::{ProcessCode, Region},
    weighing::Weighing,
};
use crate::{
    attach::{
        discover::Discoverer,
        probe_kind::{self, ProbeChoice},
    },
    unwind::{
        own_vdso,
        reference::{self, Code, CodeMap, FileCfi},
    },
};

/// Programs that are attached; dropping it takes them off.
pub struct Attached {
    programs: Programs,
    links: Links,
    code: ProcessCode,
    store: CodeStore,
}

impl Attached {
    /// Attaches the programs of one purpose where a recording would attach its own.
    ///
    /// # Errors
    /// As for a recording.
    pub fn new(tgid: NonZeroU32, purpose: Purpose, choice: ProbeChoice) -> Result<Self, RecordError> {
        let mut store = CodeStore::new();
        let mut code = ProcessCode::new(tgid, 0);
        code.survey(&mut store)?;
        let options = LoadOptions {
            limits: Limits::DEFAULT,
            tables: store.sizes(),
            min_size_bytes: 0,
            max_size_bytes: u64::MAX,
            bpf_log: None,
            follow: false,
            clone_flags_offset: 0,
            validate: purpose == Purpose::Validate,
            probe_kind: probe_kind::choose(choice, true)?,
            weighing: Weighing::default(),
        };
        let mut programs = Programs::load(&options, purpose)?;
        code.publish(&mut store, &mut programs)?;
        let allocators = Discoverer::default().discover(tgid.get())?;
        let probes: Vec<Probe<'_>> = allocators.iter().flat_map(|allocator| probes_of(allocator)).collect();
        let mut links = Links::default();
        links.place(&mut programs, purpose, tgid, &probes)?;
        Ok(Self { programs, links, code, store })
    }

    /// Probes in place.
    pub fn probe_count(&self) -> usize {
        self.links.len()
    }
}

/// How the kernel's stacks compare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Stacks compared.
    pub compared: u32,
    /// Those with the same frames and the same end.
    pub identical: u32,
    /// Those that reach the root.
    pub whole: u32,
    /// Those whose raw stack was too short to walk to the end in user space, or went on on another stack
    /// (Go); not compared.
    pub too_deep: u32,
    /// Frames of all compared stacks.
    pub frames: u64,
    /// Descriptions of the others, with how often.
    pub differences: BTreeMap<String, u32>,
}

/// Compares up to `samples` stacks of a process, for at most `limit`.
///
/// # Errors
/// As for a recording.
pub fn validate(tgid: NonZeroU32, samples: u32, limit: Duration) -> Result<Comparison, RecordError> {
    let mut attached = Attached::new(tgid, Purpose::Validate, ProbeChoice::Auto)?;
    let map = ReferenceMap::new(&attached.code, &attached.store)?;
    let mut comparison = Comparison::default();
    let started = Instant::now();
    while comparison.compared < samples && started.elapsed() < limit {
        let Some(item) = attached.programs.validations.next() else {
            std::thread::park_timeout(Duration::from_millis(1));
            continue;
        };
        if let Some(sample) = read_sample(&item) {
            drop(item);
            compare(&sample, &map, &mut comparison);
        }
    }
    Ok(comparison)
}

/// On the heap: 60 KiB.
fn read_sample(bytes: &[u8]) -> Option<Box<Validation>> {
    read::<Validation>(bytes).map(Box::new)
}

fn compare(sample: &Validation, map: &ReferenceMap, comparison: &mut Comparison) {
    let count = (sample.frame_count as usize).min(sample.frames.len());
    let kernel: Vec<u64> = sample.frames[..count].iter().map(|frame| frame & !FRAME_INTERRUPTED).collect();
    let end = u8::try_from(sample.end).ok().and_then(StackEnd::from_code);
    let stack = sample.stack.as_flattened();
    let stack = &stack[..(sample.stack_bytes as usize).min(stack.len())];
    let walk = reference::walk(sample.registers, stack, sample.registers[7], false, map);
    let is_cut = stack.len() == sample.stack.as_flattened().len();
    if walk.end == StackEnd::ReadFault && (is_cut || walk.left_stack) {
        comparison.too_deep += 1;
        return;
    }
    comparison.compared += 1;
    comparison.frames += kernel.len() as u64;
    comparison.whole += u32::from(end == Some(StackEnd::ThreadStart));
    if walk.frames == kernel && Some(walk.end) == end {
        comparison.identical += 1;
        return;
    }
    let same = walk.frames.iter().zip(&kernel).take_while(|(one, other)| one == other).count();
    let text = format!(
        "kernel {} frames, {}; user space {} frames, {}; {same} in common",
        kernel.len(),
        end.map_or("?", StackEnd::name),
        walk.frames.len(),
        walk.end.name()
    );
    *comparison.differences.entry(text).or_default() += 1;
}

/// What the reference walk needs to know of every address.
struct ReferenceMap {
    files: HashMap<(u64, u64), FileCfi>,
    ranges: Vec<Region>,
}

impl ReferenceMap {
    fn new(code: &ProcessCode, store: &CodeStore) -> Result<Self, RecordError> {
        let ranges = code.regions(store);
        let mut files = HashMap::new();
        for key in ranges.iter().filter_map(|range| range.key) {
            if files.contains_key(&key) {
                continue;
            }
            let bytes = if key == (0, 0) { own_vdso()? } else { store.read_object(key) };
            if let Some(cfi) = bytes.and_then(|bytes| FileCfi::from_elf(&bytes).ok()) {
                files.insert(key, cfi);
            }
        }
        Ok(Self { files, ranges })
    }
}

impl CodeMap for ReferenceMap {
    fn code_at(&self, pc: u64) -> Code<'_> {
        use tracer_common::abi::{
            MAPPING_FILE, MAPPING_FRAME_POINTER, MAPPING_RETURN_PROBE, MAPPING_TRAMPOLINE,
        };
        let index = self.ranges.partition_point(|range| range.mapping.start <= pc);
        let Some(range) = index.checked_sub(1).map(|index| &self.ranges[index]) else {
            return Code::Unmapped;
        };
        if pc >= range.mapping.end {
            return Code::Unmapped;
        }
        match (range.mapping.kind, range.key.and_then(|key| self.files.get(&key))) {
            (MAPPING_FILE, Some(cfi)) => Code::File { cfi, bias: range.mapping.bias },
            (MAPPING_FRAME_POINTER, _) => Code::FramePointer,
            (MAPPING_TRAMPOLINE, _) => Code::Trampoline,
            (MAPPING_RETURN_PROBE, _) => Code::ReturnProbe,
            _ => Code::NoTable,
        }
    }
}
