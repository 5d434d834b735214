//! Where resident memory lies: every mapping in one class, and what the runtimes say themselves.

use super::ProcessId;

/// What a part of a process's memory is. Every mapping falls into exactly one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LedgerClass {
    /// Text and data of mapped files.
    File,
    /// The heap below the program break, where nothing more is known about it.
    BrkHeap,
    /// What an allocator took from the kernel, where its free share is not known.
    AllocatorArena,
    /// The share of an allocator's memory that is in use.
    AllocatorLive,
    /// The share of an allocator's memory that is free inside the allocator, and resident.
    AllocatorSlack,
    /// The heap of a garbage collector.
    ManagedHeap,
    /// Code made at run time.
    JitCode,
    /// What a language runtime keeps for itself, for instance the JVM's metaspace.
    RuntimeInternal,
    /// Stacks of threads.
    ThreadStack,
    /// Anonymous memory that the program mapped for itself.
    Mmap,
    /// Memory shared with other processes: System V segments, memfd, shared anonymous mappings.
    SharedMemory,
    /// What the kernel maps: vDSO and its data.
    Kernel,
    /// Nothing is known about it.
    Unknown,
}

impl LedgerClass {
    /// Every class.
    pub const ALL: [Self; 13] = [
        Self::File,
        Self::BrkHeap,
        Self::AllocatorArena,
        Self::AllocatorLive,
        Self::AllocatorSlack,
        Self::ManagedHeap,
        Self::JitCode,
        Self::RuntimeInternal,
        Self::ThreadStack,
        Self::Mmap,
        Self::SharedMemory,
        Self::Kernel,
        Self::Unknown,
    ];

    /// The name used in captures and in reports for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::BrkHeap => "brk-heap",
            Self::AllocatorArena => "allocator-arena",
            Self::AllocatorLive => "allocator-live",
            Self::AllocatorSlack => "allocator-slack",
            Self::ManagedHeap => "managed-heap",
            Self::JitCode => "jit-code",
            Self::RuntimeInternal => "runtime-internal",
            Self::ThreadStack => "thread-stack",
            Self::Mmap => "mmap",
            Self::SharedMemory => "shared-memory",
            Self::Kernel => "kernel",
            Self::Unknown => "unknown",
        }
    }

    /// What a person reads.
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::File => "files",
            Self::BrkHeap => "program break heap",
            Self::AllocatorArena => "allocator arenas",
            Self::AllocatorLive => "allocator, in use",
            Self::AllocatorSlack => "allocator, free inside",
            Self::ManagedHeap => "garbage-collected heap",
            Self::JitCode => "JIT code",
            Self::RuntimeInternal => "runtime memory",
            Self::ThreadStack => "thread stacks",
            Self::Mmap => "anonymous mappings",
            Self::SharedMemory => "shared memory",
            Self::Kernel => "kernel",
            Self::Unknown => "unknown",
        }
    }

    /// The class with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }
}

/// One line of the ledger: memory of one class and label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerRow {
    /// Class.
    pub class: LedgerClass,
    /// More about it: `V8 heap`, `glibc malloc`, a file's path, `thread 4711 worker`… Hostile input.
    pub label: Option<String>,
    /// Mappings, or parts of mappings, that were summed.
    pub mapping_count: u64,
    /// Address space.
    pub size_bytes: u64,
    /// Resident: Rss of smaps.
    pub rss_bytes: u64,
    /// Resident, pages shared with other processes divided among them: Pss of smaps.
    pub pss_bytes: Option<u64>,
    /// Swapped out.
    pub swap_bytes: u64,
}

/// Where the resident memory of a process lies at one moment. `rss_bytes` of the rows add up to
/// [`Ledger::rss_bytes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// Whose memory.
    pub process: ProcessId,
    /// Since the start of the recording.
    pub elapsed_ns: u64,
    /// Sum of Rss over smaps.
    pub rss_bytes: u64,
    /// One per class and label.
    pub rows: Vec<LedgerRow>,
}

/// What a runtime or an allocator says about itself, read from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeFigure {
    /// Whose.
    pub process: ProcessId,
    /// Since the start of the recording.
    pub elapsed_ns: u64,
    /// Where it was read: `hsperfdata`, `jcmd VM.native_memory`, `glibc arenas`, `Go memstats`…
    pub source: String,
    /// What it says: `Java heap used`…
    pub name: String,
    /// The figure; `None` where it could not be read.
    pub bytes: Option<u64>,
}

/// The limit that ends a process's growth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Whose.
    pub process: ProcessId,
    /// Since the start of the recording.
    pub elapsed_ns: u64,
    /// Who sets it: `cgroup v2 memory.max of /a/b`, `physical memory`…
    pub source: String,
    /// The limit.
    pub limit_bytes: u64,
    /// What counts against it now, where that is known: for a cgroup, its usage and not this process's RSS.
    pub used_bytes: Option<u64>,
}
