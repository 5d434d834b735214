//! What memory is used for.

/// What the memory of a site is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MemoryClass {
    /// Blocks of an allocator.
    Allocation,
    /// Anonymous memory that the program mapped for itself.
    DirectMapping,
    /// A mapped file.
    FileMapping,
    /// Memory shared with other processes: System V segments, memfd, shared anonymous mappings.
    SharedMemory,
    /// The stack of a thread, booked to whoever created the thread.
    ThreadStack,
    /// The stack of a thread that has ended: it was not joined, or the C library keeps it for the next one.
    EndedThreadStack,
    /// What an allocator took from the kernel to cut blocks from.
    AllocatorArena,
    /// The heap below the program break.
    BrkHeap,
    /// The heap of a garbage collector.
    ManagedHeap,
    /// Code made at run time.
    JitCode,
    /// What a language runtime keeps for itself, for instance the JVM's metaspace.
    RuntimeInternal,
    /// A mapping that nothing is known about.
    Unknown,
}

impl MemoryClass {
    /// Every class.
    pub const ALL: [Self; 12] = [
        Self::Allocation,
        Self::DirectMapping,
        Self::FileMapping,
        Self::SharedMemory,
        Self::ThreadStack,
        Self::EndedThreadStack,
        Self::AllocatorArena,
        Self::BrkHeap,
        Self::ManagedHeap,
        Self::JitCode,
        Self::RuntimeInternal,
        Self::Unknown,
    ];

    /// The names of all, in the same order.
    pub const NAMES: [&'static str; 12] = {
        let mut names = [""; 12];
        let mut index = 0;
        while index < names.len() {
            names[index] = Self::ALL[index].name();
            index += 1;
        }
        names
    };

    /// The name used in captures and in reports for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allocation => "allocation",
            Self::DirectMapping => "mmap",
            Self::FileMapping => "file",
            Self::SharedMemory => "shared-memory",
            Self::ThreadStack => "thread-stack",
            Self::EndedThreadStack => "ended-thread-stack",
            Self::AllocatorArena => "allocator-arena",
            Self::BrkHeap => "brk-heap",
            Self::ManagedHeap => "managed-heap",
            Self::JitCode => "jit-code",
            Self::RuntimeInternal => "runtime-internal",
            Self::Unknown => "unknown",
        }
    }

    /// What a person reads.
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::Allocation => "allocated blocks",
            Self::DirectMapping => "anonymous memory",
            Self::FileMapping => "file",
            Self::SharedMemory => "shared memory",
            Self::ThreadStack => "thread stack",
            Self::EndedThreadStack => "stack of an ended thread",
            Self::AllocatorArena => "allocator arena",
            Self::BrkHeap => "program break heap",
            Self::ManagedHeap => "garbage-collected heap",
            Self::JitCode => "JIT code",
            Self::RuntimeInternal => "runtime memory",
            Self::Unknown => "unknown use",
        }
    }

    /// The class with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }

    /// Whether memory of this class that is not given back can be a leak of the program. The rest belongs to
    /// allocators and runtimes: an arena contains the blocks that are counted already, a collected heap
    /// has a collector, and the stack of a running thread, which is address space more than memory, is in use.
    pub const fn can_leak(self) -> bool {
        match self {
            Self::Allocation
            | Self::DirectMapping
            | Self::FileMapping
            | Self::SharedMemory
            | Self::EndedThreadStack
            | Self::Unknown => true,
            Self::AllocatorArena
            | Self::BrkHeap
            | Self::ThreadStack
            | Self::ManagedHeap
            | Self::JitCode
            | Self::RuntimeInternal => false,
        }
    }
}

/// What the memory of one site is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteClass {
    /// Site.
    pub site: u32,
    /// Its class.
    pub class: MemoryClass,
    /// More about it: `V8 heap`, `JVM metaspace`, `stack of 3 ended threads, not joined`… May contain names from
    /// the target: hostile input.
    pub label: Option<String>,
}
