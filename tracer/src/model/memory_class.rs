//! What a piece of memory is for.

/// The class of an allocation or mapping site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MemoryClass {
    /// Blocks that an allocator handed out.
    Allocation,
    /// Anonymous memory that the program mapped by itself.
    DirectMapping,
    /// A file.
    FileMapping,
    /// Memory that several processes can share.
    SharedMemory,
    /// Stacks of threads.
    ThreadStack,
    /// Memory an allocator took from the system for its blocks.
    AllocatorArena,
    /// The heap behind the program's data (`brk`).
    BrkHeap,
    /// The heap of a language runtime, which its garbage collector looks after.
    ManagedHeap,
    /// Code made at run time.
    JitCode,
    /// What a language runtime needs besides.
    RuntimeInternal,
    /// Not known.
    Unknown,
}

impl MemoryClass {
    /// Every class.
    pub const ALL: [Self; 11] = [
        Self::Allocation,
        Self::DirectMapping,
        Self::FileMapping,
        Self::SharedMemory,
        Self::ThreadStack,
        Self::AllocatorArena,
        Self::BrkHeap,
        Self::ManagedHeap,
        Self::JitCode,
        Self::RuntimeInternal,
        Self::Unknown,
    ];

    /// The name used in reports and captures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allocation => "allocation",
            Self::DirectMapping => "mmap",
            Self::FileMapping => "file",
            Self::SharedMemory => "shared-memory",
            Self::ThreadStack => "thread-stack",
            Self::AllocatorArena => "allocator-arena",
            Self::BrkHeap => "brk-heap",
            Self::ManagedHeap => "managed-heap",
            Self::JitCode => "jit-code",
            Self::RuntimeInternal => "runtime-internal",
            Self::Unknown => "unknown",
        }
    }

    /// The class with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }
}
