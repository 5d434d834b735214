//! Why a stack ends where it ends.

/// Why the unwinder stopped. [`StackEnd::is_whole`] says which ends are good.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StackEnd {
    /// The return address is undefined by the unwind table, or the code is a known entry stub: the root.
    ThreadStart = 1,
    /// Code without unwind information, and the frame pointer is zero.
    FramePointerZero = 2,
    /// More than [`super::MAX_FRAMES`] frames; the inner ones are kept.
    Truncated = 3,
    /// The program counter lies in no known mapping.
    NoMapping = 4,
    /// The stack could not be read.
    ReadFault = 5,
    /// The next frame would lie below the current one or is not aligned.
    BadFrame = 6,
    /// The unwind rule is of a kind that is not supported.
    UnsupportedRule = 7,
    /// A return address of zero.
    NullReturn = 8,
    /// The mapping is known, its unwind table is not (not built yet, unreadable, or over the limit).
    NoTable = 9,
    /// The stack runs through the return trampoline of another tracer.
    ForeignReturnProbe = 10,
    /// The process had no mapping set yet.
    NoProcess = 11,
    /// All scratch slots of the CPU were taken; the stack was not walked.
    NoScratchSlot = 12,
    /// The stack was walked but could not be kept (ring or site map full).
    NotKept = 13,
    /// A mapping made inside an allocator call: the stack is known down to the allocator function, whose return
    /// address is our own return probe.
    AllocatorCall = 14,
    /// Go's runtime changed stacks here, and the goroutine's stack is not found from this frame.
    GoBoundary = 15,
}

impl StackEnd {
    /// Every reason, in order of its code.
    pub const ALL: [Self; 15] = [
        Self::ThreadStart,
        Self::FramePointerZero,
        Self::Truncated,
        Self::NoMapping,
        Self::ReadFault,
        Self::BadFrame,
        Self::UnsupportedRule,
        Self::NullReturn,
        Self::NoTable,
        Self::ForeignReturnProbe,
        Self::NoProcess,
        Self::NoScratchSlot,
        Self::NotKept,
        Self::AllocatorCall,
        Self::GoBoundary,
    ];

    /// The reason with this code, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|end| *end as u8 == code)
    }

    /// The name used in reports and captures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ThreadStart => "thread-start",
            Self::FramePointerZero => "frame-pointer-zero",
            Self::Truncated => "truncated",
            Self::NoMapping => "no-mapping",
            Self::ReadFault => "read-fault",
            Self::BadFrame => "bad-frame",
            Self::UnsupportedRule => "unsupported-rule",
            Self::NullReturn => "null-return-address",
            Self::NoTable => "no-unwind-table",
            Self::ForeignReturnProbe => "foreign-return-probe",
            Self::NoProcess => "no-process-table",
            Self::NoScratchSlot => "no-scratch-slot",
            Self::NotKept => "not-kept",
            Self::AllocatorCall => "allocator-call",
            Self::GoBoundary => "go-boundary",
        }
    }

    /// The reason with this name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|end| end.name() == name)
    }

    /// Whether the stack reaches the root of its thread, the allocator function that a mapping belongs to, or the place
    /// where Go's runtime changed stacks.
    pub const fn is_whole(self) -> bool {
        matches!(self, Self::ThreadStart | Self::AllocatorCall | Self::GoBoundary)
    }
}
