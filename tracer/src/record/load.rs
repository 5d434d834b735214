//! Loads the BPF object: settings, map sizes, programs, and the check that it is the right one.

use std::{os::fd::AsFd, time::Duration};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf},
    programs::{ProgramError, RawTracePoint, TracePoint, UProbe},
};
use aya_log::EbpfLogger;
use tracer_common::abi::{
    self, EscapeRule, Loss, MappingChunk, PageChunk, Process, RowChunk, Settings, SiteCounters,
    SiteLifetimes, TRAILS_PER_CPU, TableSize, Tally,
};

use super::{
    RecordError,
    cost::Runs,
    kernel_map::{Abi, MappedArray, program_info, skipped_runs},
    live_blocks::LiveBlocks,
    multi::MultiPrograms,
    ring::EventRing,
    weighing::Weighing,
};
use crate::attach::{
    probe_kind::ProbeKind,
    tracepoint::{Hook, Tracefs},
};

/// The object that was built from `tracer-ebpf`, checked in; `cargo xtask build-ebpf` makes it.
#[cfg(target_arch = "x86_64")]
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/offheap.x86_64.bpf.o");
/// The same with the registers of aarch64.
#[cfg(target_arch = "aarch64")]
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/offheap.aarch64.bpf.o");

/// The tracepoint of new processes and threads.
pub const NEW_TASK: &str = "task/task_newtask";

/// Bounds of the kernel's maps. Each one that is hit is counted and reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Blocks that can be live at the same time.
    pub max_live_blocks: u32,
    /// Distinct stacks.
    pub max_sites: u32,
    /// Threads that can be inside an allocator at the same time.
    pub max_threads: u32,
    /// Bytes of the ring through which new stacks come; a power of two.
    pub stack_ring_bytes: u32,
    /// Pages that can be known to belong to a call stack before they are sampled; 0: no page faults are recorded.
    pub max_fault_pages: u32,
}

impl Limits {
    /// For a large server: some 128 MiB of kernel memory, most of it for the live blocks; 50 MiB for page faults, where they
    /// are recorded.
    pub const DEFAULT: Self = Self {
        max_live_blocks: 1 << 20,
        max_sites: Settings::DEFAULT.max_sites,
        max_threads: 16_384,
        stack_ring_bytes: 8 << 20,
        max_fault_pages: super::fault::DEFAULT_MAX_PAGES,
    };
}

/// Sizes of the unwind-table maps, in chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSizes {
    /// Chunks of the page index.
    pub page_chunks: u32,
    /// Chunks of rows.
    pub row_chunks: u32,
    /// Escape rules.
    pub escapes: u32,
    /// Chunks of mappings.
    pub mapping_chunks: u32,
}

/// What to load.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Bounds.
    pub limits: Limits,
    /// Table sizes.
    pub tables: TableSizes,
    /// Smallest size booked, in bytes.
    pub min_size_bytes: u64,
    /// Largest size booked, in bytes.
    pub max_size_bytes: u64,
    /// Level of the BPF side's log lines; `None` compiles them out.
    pub bpf_log: Option<log::Level>,
    /// Whether children of traced processes are traced too.
    pub follow: bool,
    /// Where `clone_flags` stands in the record of `task_newtask`.
    pub clone_flags_offset: u32,
    /// Whether the validate mode is wanted: its ring is 64 MiB.
    pub validate: bool,
    /// How the probes will be placed.
    pub probe_kind: ProbeKind,
    /// Which allocations are seen.
    pub weighing: Weighing,
}

/// The programs of the object by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Booking.
    Trace,
    /// Empty programs at the same places.
    Floor,
    /// Stacks with registers and raw memory.
    Validate,
}

impl Purpose {
    /// Programs for entry, return, exit and release.
    pub const fn programs(self) -> [&'static str; 4] {
        match self {
            Self::Trace => ["call_enter", "call_return", "call_leave_at_exit", "release_enter"],
            Self::Floor => ["floor_enter", "floor_return", "floor_enter", "floor_enter"],
            Self::Validate => ["floor_enter", "validate_return", "floor_enter", "floor_enter"],
        }
    }

    /// Each of them once.
    fn distinct_programs(self) -> Vec<&'static str> {
        let mut names = self.programs().to_vec();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Those that every target needs. The one for exits has a stack walk, which the verifier takes long for, and most
    /// targets have no function that needs it.
    fn programs_for_all(self) -> [&'static str; 3] {
        let [enter, leave, _, release] = self.programs();
        [enter, leave, release]
    }
}

/// The loaded object.
pub struct Programs {
    /// Follows new processes; `None` where that is not possible, or nobody is traced.
    new_task: Option<Hook>,
    /// Log lines of the programs, where they were asked for.
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    /// aya's handle: programs and their links.
    pub bpf: Ebpf,
    /// The probe programs, where they are loaded for links of many uprobes; `None`: they are aya's.
    pub multi: Option<MultiPrograms>,
    /// Site counters.
    pub sites: MappedArray<SiteCounters>,
    /// How long released blocks lived, by site.
    pub lifetimes: MappedArray<SiteLifetimes>,
    /// The maps of these: programs that are loaded later name them by their descriptors.
    _mapped: [MapData; 3],
    /// Number of sites handed out.
    site_count: Array<MapData, u32>,
    /// Not 0 from the end of the recording on.
    stopped: Array<MapData, u32>,
    /// The window that is now, where allocations are booked in windows.
    window: Array<MapData, u64>,
    /// Losses.
    pub tallies: PerCpuArray<MapData, Abi<Tally>>,
    /// New stacks and lifecycle events.
    pub events: EventRing,
    /// Samples of the validate mode.
    pub validations: RingBuf<MapData>,
    /// Live blocks.
    pub blocks: LiveBlocks,
    /// Time of the last exec by process.
    pub execs: HashMap<MapData, u32, u64>,
    /// Mapping sets.
    processes: HashMap<MapData, u32, Abi<Process>>,
    /// How often they were changed, here in element 0.
    set_versions: Array<MapData, u64>,
    set_version: u64,
    /// Mapping chunks.
    pub mappings: Array<MapData, Abi<MappingChunk>>,
    /// Page index.
    pub pages: Array<MapData, Abi<PageChunk>>,
    /// Rows.
    pub rows: Array<MapData, Abi<RowChunk>>,
    /// Escape rules.
    pub escapes: Array<MapData, Abi<EscapeRule>>,
}

impl Programs {
    /// Loads the object and the programs of one purpose, and attaches those that follow lifecycles.
    ///
    /// # Errors
    /// [`RecordError::Load`], [`RecordError::Program`], [`RecordError::Object`], [`RecordError::Map`].
    pub fn load(options: &LoadOptions, purpose: Purpose) -> Result<Self, RecordError> {
        let mut bpf = load_object(options)?;
        let multi = match options.probe_kind {
            ProbeKind::Multi(_) => Some(MultiPrograms::read(OBJECT, &bpf)?),
            ProbeKind::Perf => None,
        };
        if purpose == Purpose::Trace {
            for (name, tracepoint) in
                [("thread_exit", "sched_process_exit"), ("process_exec", "sched_process_exec")]
            {
                let program: &mut RawTracePoint = bpf
                    .program_mut(name)
                    .and_then(|program| program.try_into().ok())
                    .ok_or(RecordError::Object { name })?;
                program.load().map_err(|source| refused(name, source))?;
                program.attach(tracepoint).map_err(|source| refused(name, source))?;
            }
        }
        let counters = take(&mut bpf, "SITES")?;
        let Map::Array(counters) = counters else { return Err(RecordError::Object { name: "SITES" }) };
        let Map::Array(lifetimes) = take(&mut bpf, "LIFETIMES")? else {
            return Err(RecordError::Object { name: "LIFETIMES" });
        };
        let Map::Array(buckets) = take(&mut bpf, "BUCKETS")? else {
            return Err(RecordError::Object { name: "BUCKETS" });
        };
        let Map::HashMap(spilled) = take(&mut bpf, "SPILLED")? else {
            return Err(RecordError::Object { name: "SPILLED" });
        };
        let size = TableSize::for_blocks(options.limits.max_live_blocks);
        let logger = options.bpf_log.map(|_| EbpfLogger::init(&mut bpf)).transpose();
        let logger = logger.map_err(|_| RecordError::Object { name: "AYA_LOGS" })?;
        let mut programs = Self {
            new_task: None,
            logger,
            sites: MappedArray::map(counters.fd(), "SITES", options.limits.max_sites)?,
            lifetimes: MappedArray::map(lifetimes.fd(), "LIFETIMES", options.limits.max_sites)?,
            blocks: LiveBlocks::new(&buckets, size, spilled)?,
            _mapped: [counters, lifetimes, buckets],
            site_count: typed(&mut bpf, "SITE_COUNT")?,
            stopped: typed(&mut bpf, ".bss.stopped")?,
            window: typed(&mut bpf, ".bss.window")?,
            tallies: typed(&mut bpf, "TALLIES")?,
            events: EventRing::map(typed(&mut bpf, "EVENTS")?)?,
            validations: typed(&mut bpf, "VALIDATIONS")?,
            execs: typed(&mut bpf, "EXECS")?,
            processes: typed(&mut bpf, "PROCESSES")?,
            set_versions: typed(&mut bpf, ".bss.sets")?,
            set_version: 0,
            mappings: typed(&mut bpf, "MAPPINGS")?,
            pages: typed(&mut bpf, "PAGES")?,
            rows: typed(&mut bpf, "ROWS")?,
            escapes: typed(&mut bpf, "ESCAPES")?,
            bpf,
            multi,
        };
        purpose.programs_for_all().into_iter().try_for_each(|name| programs.load_probe(name))?;
        Ok(programs)
    }

    /// Loads a program for probes, unless that was done.
    ///
    /// # Errors
    /// [`RecordError::Program`], [`RecordError::Object`].
    pub fn load_probe(&mut self, name: &'static str) -> Result<(), RecordError> {
        if let Some(multi) = &mut self.multi {
            return multi.load(name);
        }
        let program = uprobe(&mut self.bpf, name)?;
        if program.fd().is_ok() {
            return Ok(());
        }
        program.load().map_err(|source| refused(name, source))
    }

    /// Attaches the program that follows new processes.
    ///
    /// # Errors
    /// [`RecordError::Tracepoint`], [`RecordError::Program`], [`RecordError::Object`].
    pub fn watch_new_tasks(&mut self, tracefs: &Tracefs) -> Result<(), RecordError> {
        let name = "new_task";
        let program: &mut TracePoint = self
            .bpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(RecordError::Object { name })?;
        program.load().map_err(|source| refused(name, source))?;
        let fd = program.fd().map_err(|source| refused(name, source))?;
        self.new_task = Some(Hook::attach(NEW_TASK, tracefs.id(NEW_TASK)?, fd.as_fd())?);
        Ok(())
    }

    /// Writes the log lines of the programs to our own log.
    pub fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// From now on no call of an allocator counts.
    ///
    /// # Errors
    /// [`RecordError::Map`].
    pub fn stop(&mut self) -> Result<(), RecordError> {
        let failed = |source| RecordError::Map { operation: "write", map: ".bss.stopped", source };
        self.stopped.set(0, 1, 0).map_err(failed)
    }

    /// Gives a process another mapping set.
    ///
    /// # Errors
    /// [`RecordError::Map`].
    pub fn set_process(&mut self, tgid: u32, process: &Process) -> Result<(), RecordError> {
        let failed = |source| RecordError::Map { operation: "write", map: "PROCESSES", source };
        self.processes.insert(tgid, Abi(*process), 0).map_err(failed)?;
        self.sets_changed()
    }

    /// Takes a process out, if it is there.
    ///
    /// # Errors
    /// [`RecordError::Map`].
    pub fn remove_process(&mut self, tgid: u32) -> Result<(), RecordError> {
        // What is not there need not be removed.
        let _ = self.processes.remove(&tgid);
        self.sets_changed()
    }

    /// Walks that were made before, and are remembered, are not to be trusted any more.
    fn sets_changed(&mut self) -> Result<(), RecordError> {
        self.set_version += 1;
        let failed = |source| RecordError::Map { operation: "write", map: ".bss.sets", source };
        self.set_versions.set(0, self.set_version, 0).map_err(failed)
    }

    /// Says which window is now ([`tracer_common::abi::window`]).
    ///
    /// # Errors
    /// [`RecordError::Map`].
    pub fn set_window(&mut self, window: u64) -> Result<(), RecordError> {
        let failed = |source| RecordError::Map { operation: "write", map: ".bss.window", source };
        self.window.set(0, window, 0).map_err(failed)
    }

    /// How often and how long a probe program has run, while the kernel's statistics were on.
    ///
    /// # Errors
    /// [`RecordError::System`], [`RecordError::Object`].
    pub fn runs(&self, name: &'static str) -> Result<Runs, RecordError> {
        // What was not needed is not loaded.
        let info = match &self.multi {
            Some(programs) => programs.get(name).map(program_info),
            None => {
                let program = self.bpf.program(name).ok_or(RecordError::Object { name })?;
                program.fd().ok().map(|fd| program_info(fd.as_fd()))
            }
        };
        let info = info.transpose()?;
        Ok(info.map_or_else(Runs::default, |info| Runs { count: info.run_cnt, time_ns: info.run_time_ns }))
    }

    /// Sites handed out.
    ///
    /// # Errors
    /// [`RecordError::Map`].
    pub fn site_count(&self) -> Result<u32, RecordError> {
        self.site_count.get(&0, 0).map_err(|source| RecordError::Map {
            operation: "read",
            map: "SITE_COUNT",
            source,
        })
    }

    /// Losses and observations so far, summed over CPUs, in the order of [`Loss::ALL`].
    ///
    /// # Errors
    /// [`RecordError::Map`].
    pub fn tallies(&self) -> Result<Vec<(Loss, Tally)>, RecordError> {
        Loss::ALL
            .iter()
            .map(|loss| {
                let values = self.tallies.get(&(*loss as u32), 0).map_err(|source| RecordError::Map {
                    operation: "read",
                    map: "TALLIES",
                    source,
                })?;
                let sum = values.iter().fold(Tally::default(), |sum, value| Tally {
                    count: sum.count.wrapping_add(value.0.count),
                    bytes: sum.bytes.wrapping_add(value.0.bytes),
                });
                Ok((*loss, sum))
            })
            .collect()
    }

    /// Probe hits at which the kernel did not run the program, summed over the programs of `purpose`.
    ///
    /// # Errors
    /// [`RecordError::System`].
    pub fn skipped_runs(&self, purpose: Purpose) -> Result<u64, RecordError> {
        purpose.distinct_programs().into_iter().try_fold(0u64, |sum, name| {
            // What was not needed is not loaded.
            let skipped = match &self.multi {
                Some(programs) => programs.get(name).map(skipped_runs),
                None => {
                    let program = self.bpf.program(name).ok_or(RecordError::Object { name })?;
                    program.fd().ok().map(|fd| skipped_runs(fd.as_fd()))
                }
            };
            Ok(sum.saturating_add(skipped.transpose()?.unwrap_or(0)))
        })
    }
}

pub(super) fn load_object(options: &LoadOptions) -> Result<Ebpf, RecordError> {
    let fault_capacity = options.limits.max_fault_pages.clamp(1, super::fault::MAX_PENDING);
    let size = TableSize::for_blocks(options.limits.max_live_blocks);
    let call_places = abi::call_places(options.limits.max_threads);
    let settings = Abi(Settings {
        min_size_bytes: options.min_size_bytes,
        max_size_bytes: options.max_size_bytes,
        max_sites: options.limits.max_sites,
        reserved: 0,
        follow: u32::from(options.follow),
        clone_flags_offset: options.clone_flags_offset,
        fault_capacity,
        sharers_unseen: u32::from(!options.probe_kind.sees_sharers()),
        sample_bytes: options.weighing.sample_bytes,
        has_windows: u32::from(options.weighing.has_windows),
        buckets: size.buckets,
        call_places,
        padding: 0,
    });
    let cpus = aya::util::nr_cpus()
        .map_err(|(_, source)| RecordError::System { operation: "read the number of CPUs", source })?;
    let trails = u32::try_from(cpus).unwrap_or(u32::MAX).saturating_mul(TRAILS_PER_CPU);
    let level = options.bpf_log.map_or(0, |level| level as u8);
    EbpfLoader::new()
        .verifier_log_level(VerifierLogLevel::STATS)
        .override_global("SETTINGS", &settings, true)
        .override_global(aya_log::LEVEL, &level, true)
        .map_max_entries("BUCKETS", size.buckets.max(1))
        .map_max_entries("SPILLED", size.spilled)
        .map_max_entries("FAULTS", fault_capacity)
        .map_max_entries("CALL_PLACES", call_places.max(1))
        .map_max_entries("CALLS", options.limits.max_threads)
        .map_max_entries("SITE_KEYS", options.limits.max_sites)
        .map_max_entries("SITES", options.limits.max_sites)
        .map_max_entries("LIFETIMES", options.limits.max_sites)
        .map_max_entries("TRAILS", trails)
        .map_max_entries("EVENTS", options.limits.stack_ring_bytes)
        .map_max_entries("PAGES", options.tables.page_chunks)
        .map_max_entries("ROWS", options.tables.row_chunks)
        .map_max_entries("ESCAPES", options.tables.escapes)
        .map_max_entries("MAPPINGS", options.tables.mapping_chunks)
        .map_max_entries("VALIDATIONS", if options.validate { 64 << 20 } else { 4096 })
        .load(OBJECT)
        .map_err(|source| RecordError::Load { permission: is_permission(&source), source })
}

fn is_permission(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|io| io.kind() == std::io::ErrorKind::PermissionDenied)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A probe program by name.
pub fn uprobe<'a>(bpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut UProbe, RecordError> {
    bpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or(RecordError::Object { name })
}

fn refused(program: &'static str, source: ProgramError) -> RecordError {
    RecordError::Program { program, source: Box::new(source) }
}

fn take(bpf: &mut Ebpf, name: &'static str) -> Result<Map, RecordError> {
    bpf.take_map(name).ok_or(RecordError::Object { name })
}

fn typed<T: TryFrom<Map, Error = aya::maps::MapError>>(
    bpf: &mut Ebpf,
    map: &'static str,
) -> Result<T, RecordError> {
    T::try_from(take(bpf, map)?).map_err(|source| RecordError::Map { operation: "use", map, source })
}

/// How long chunks of a replaced mapping set are kept: a program that still reads them is long done.
pub const CHUNK_GRACE: Duration = Duration::from_secs(1);
