//! All maps: key, value, who writes, who reads, and what happens when one is full.

use aya_ebpf::{
    EbpfContext, Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, PerCpuArray, ProgramArray, RingBuf},
};
use tracer_common::{
    abi::{
        Bucket, CallInFlight, CallPlace, EscapeRule, FAULT_STATES, LiveBlock, LiveKey, Loss, MappingChunk,
        PageChunk, PageFault, PageKey, Process, RowChunk, SLOTS_PER_CPU, Settings, SiteCounters, SiteKey,
        SiteLifetimes, TRAILS_PER_CPU, Tally,
    },
    sampling::SCALE_ONE,
};

use crate::{scratch::Slot, trail::Trail, variable::Variable};

/// Written by the loader before load.
#[unsafe(no_mangle)]
static SETTINGS: Global<Settings> = Global::new(Settings::DEFAULT);

/// Where the settings are.
#[inline(always)]
pub const fn settings() -> *const Settings {
    (&raw const SETTINGS).cast()
}

/// One of the settings. Read alone: `Global::load` reads them all at every use, and the verifier removes none of that.
macro_rules! setting {
    ($field:ident) => {
        // SAFETY: read-only memory; volatile, since the loader writes it.
        unsafe { core::ptr::read_volatile(&raw const (*$crate::map::settings()).$field) }
    };
}
pub(crate) use setting;

/// Whether counters are estimates: weights are added, and counts have [`tracer_common::sampling::COUNT_FRACTION_BITS`].
#[inline(always)]
pub fn is_estimate() -> bool {
    setting!(sample_bytes) != 0 || setting!(has_windows) != 0
}

/// The outermost allocator call of each thread, by the last bits of its tid. Taken: [`CALLS`].
#[map]
pub static CALL_PLACES: Array<CallPlace> = Array::with_max_entries(1, 0);

/// The same by `pid_tgid`, of threads whose place was taken. Full: [`Loss::InFlightFull`].
#[map]
pub static CALLS: HashMap<u64, CallInFlight> = HashMap::with_max_entries(16_384, 0);

/// Live blocks; user space maps them, and takes those of dead processes out. Bucket full: [`SPILLED`].
#[map]
pub static BUCKETS: Array<Bucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Live blocks that found no place in their bucket. Full: [`Loss::LiveMapFull`]. Preallocated: an insertion then costs
/// 100 ns less, and cannot fail for want of memory in the middle of a recording.
#[map]
pub static SPILLED: HashMap<LiveKey, LiveBlock> = HashMap::with_max_entries(1 << 16, 0);

/// Not 0 once a block was spilled. Mostly 0, so that most calls need no lookup there.
#[unsafe(link_section = ".bss.spilled")]
pub static HAS_SPILLED: Variable<u32> = Variable::new(0);

/// Pages that have faulted since user space has looked. Full: [`Loss::FaultMapFull`]. Small where page faults are not
/// recorded.
#[map]
pub static FAULTS: HashMap<PageKey, PageFault> = HashMap::with_max_entries(1 << 19, 0);

/// [`PageKey::moves`].
#[unsafe(link_section = ".bss.moves")]
pub static MOVES: Variable<u32> = Variable::new(0);

/// `FAULTS_` and `FAULT_LEVEL_` elements, each written by one side only; user space maps them.
#[map]
pub static FAULT_STATE: Array<u64> = Array::with_max_entries(FAULT_STATES, BPF_F_MMAPABLE);

/// Stack identity → site. Full: [`Loss::StackMapFull`].
#[map]
pub static SITE_KEYS: HashMap<SiteKey, u32> = HashMap::with_max_entries(65_536, 0);

/// Counters by site; user space maps them and reads without a system call. Full: [`Loss::SiteMapFull`].
#[map]
pub static SITES: Array<SiteCounters> = Array::with_max_entries(65_536, BPF_F_MMAPABLE);

/// How long released blocks lived, by site; user space maps them too.
#[map]
pub static LIFETIMES: Array<SiteLifetimes> = Array::with_max_entries(65_536, BPF_F_MMAPABLE);

/// Element 0: the number of sites handed out.
#[map]
pub static SITE_COUNT: Array<u32> = Array::with_max_entries(1, 0);

/// Losses and observations by [`Loss`] code.
#[map]
pub static TALLIES: PerCpuArray<Tally> = PerCpuArray::with_max_entries(Loss::COUNT, 0);

/// New stacks and lifecycle events. Full: [`Loss::StackRingFull`], [`Loss::EventRingFull`].
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// Mapping sets by tgid; a process that is not in here is not traced. Replaced as a whole by user
/// space, so not preallocated: a preallocated element would be reused while a program still reads it.
#[map]
pub static PROCESSES: HashMap<u32, Process> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);

/// Processes that share the memory of a traced one without being its threads (vfork, CLONE_VM): tgid → the tgid
/// whose memory it is.
#[map]
pub static OWNERS: HashMap<u32, u32> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);

/// Entries of [`OWNERS`]. Mostly 0, so that most calls need no lookup there.
#[unsafe(link_section = ".bss.sharers")]
pub static SHARER_COUNT: Variable<u32> = Variable::new(0);

/// Not 0 from the end of the recording on. No call that begins later counts, so that all counters stay as they
/// are while the probes are taken off, one after the other. User space writes it.
#[unsafe(link_section = ".bss.stopped")]
pub static STOPPED: Variable<u32> = Variable::new(0);

/// The window that is now ([`tracer_common::abi::window`]). User space writes it, where allocations are booked in windows.
#[unsafe(link_section = ".bss.window")]
pub static WINDOW: Variable<u64> = Variable::new(0);

/// The window that is now: of all times alike where there are none.
#[inline(always)]
pub fn window() -> u64 {
    if setting!(has_windows) == 0 {
        return u64::from(SCALE_ONE);
    }
    WINDOW.load()
}

/// Whether the recording has ended.
#[inline(always)]
pub fn has_stopped() -> bool {
    STOPPED.load() != 0
}

/// Time of the last exec by tgid, in ns.
#[map]
pub static EXECS: HashMap<u32, u64> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);

/// Mapping chunks; written by user space before the [`Process`] that names them.
#[map]
pub static MAPPINGS: Array<MappingChunk> = Array::with_max_entries(256, 0);

/// Page index of all unwind tables; written by user space.
#[map]
pub static PAGES: Array<PageChunk> = Array::with_max_entries(1024, 0);

/// Rows of all unwind tables; written by user space.
#[map]
pub static ROWS: Array<RowChunk> = Array::with_max_entries(4096, 0);

/// Rules that do not fit into a row; written by user space.
#[map]
pub static ESCAPES: Array<EscapeRule> = Array::with_max_entries(8192, 0);

/// Scratch space of running programs. All taken: [`Loss::NoScratchSlot`].
#[map]
pub static SLOTS: PerCpuArray<Slot> = PerCpuArray::with_max_entries(SLOTS_PER_CPU, 0);

/// Walks that are remembered, [`TRAILS_PER_CPU`] of each CPU. Full: another one is forgotten.
#[map]
pub static TRAILS: Array<Trail> = Array::with_max_entries(TRAILS_PER_CPU, 0);

/// How often user space has changed mapping sets, after it did.
#[unsafe(link_section = ".bss.sets")]
pub static SETS_WRITTEN: Variable<u64> = Variable::new(0);

/// How often programs have changed mapping sets, after they did.
#[unsafe(link_section = ".bss.sets_ended")]
pub static SETS_ENDED: Variable<u64> = Variable::new(0);

/// Samples of the validate mode; the loader makes it small when that is not used.
#[map]
pub static VALIDATIONS: RingBuf = RingBuf::with_byte_size(64 << 20, 0);

/// Always empty; see [`forbid_private_stack`].
#[map]
static NO_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Keeps the kernel from giving the program a *private stack*.
///
/// Kernels from 6.13 on put the stack of a tracing program that uses 64 bytes or more into one piece of memory per
/// CPU, which is safe where programs cannot be interrupted by themselves. Uprobe programs can: they are
/// preemptible, and another thread then runs the same program on the same CPU, on the same stack. Seen on 7.2:
/// keys of map lookups were overwritten in the middle of a lookup, one call in three hundred. A program with
/// a tail call anywhere gets no private stack (`check_max_stack_depth` in kernel/bpf/verifier.c); this one is
/// dead code to the verifier, since `reserved` is a constant 0, and is removed.
///
/// Programs on tracepoints need it not: the kernel does not run them while one is preempted on that CPU (`trace_call_bpf`,
/// `__bpf_trace_run` in kernel/trace/bpf_trace.c), and counts that. Nor could they use the same map, which takes
/// programs of one type only.
#[inline(always)]
pub fn forbid_private_stack<C: EbpfContext>(ctx: &C) {
    if setting!(reserved) != 0 {
        // SAFETY: never reached; an empty slot would fall through.
        let _ = unsafe { NO_PROGRAMS.tail_call(ctx, 0) };
    }
}
