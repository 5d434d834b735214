//! Stacks and what their frames mean.

use super::{AllocatorId, Lens, ProcessId, StackEnd};

/// Identifies an [`Object`] within one recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub u32);

/// Identifies a [`Frame`] within one recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrameId(pub u32);

/// A file (or the vDSO) that was mapped executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Identity within the recording.
    pub id: ObjectId,
    /// Path as the target sees it; hostile input.
    pub path: String,
    /// GNU build id in lower-case hex, where the file has one.
    pub build_id: Option<String>,
}

/// What kind of code a frame is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// Compiled code of an object.
    Native,
    /// Code made at run time.
    Jit,
    /// A function of an interpreted language.
    Interpreted,
    /// Kernel code.
    Kernel,
    /// In no known mapping.
    Unknown,
}

impl FrameKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Native, Self::Jit, Self::Interpreted, Self::Kernel, Self::Unknown];

    /// The name used in reports and captures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Jit => "jit",
            Self::Interpreted => "interpreted",
            Self::Kernel => "kernel",
            Self::Unknown => "unknown",
        }
    }

    /// The kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// One source-level function at a program counter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// Demangled name; `None` where no symbol covers the address. Hostile input.
    pub function: Option<String>,
    /// Source file; hostile input.
    pub file: Option<String>,
    /// Line, from 1.
    pub line: Option<u32>,
    /// Whether the compiler inlined this function into the next one.
    pub inlined: bool,
}

/// One program counter of a recording, and what is known about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Identity within the recording.
    pub id: FrameId,
    /// Program counter in the target's address space (a return address, unless after a signal frame).
    pub address: u64,
    /// The object it lies in.
    pub object: Option<ObjectId>,
    /// Offset of the address within the object's file.
    pub file_offset: Option<u64>,
    /// Kind of code.
    pub kind: FrameKind,
    /// Innermost first; every one but the last is inlined. Never empty after symbolization: a frame
    /// without a symbol has one location with nothing in it.
    pub locations: Vec<Location>,
}

/// A stack, which is also an allocation site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Site number in the kernel's counters, unique whatever the lens; 0 is the site of stacks that were lost.
    pub site: u32,
    /// Whose call it was.
    pub process: ProcessId,
    /// How it was observed.
    pub lens: Lens,
    /// The allocator that was called, or within whose call the kernel was asked; `None` where not known.
    pub allocator: Option<AllocatorId>,
    /// Innermost first; the first is the caller of the allocator, or the one who asked the kernel.
    pub frames: Vec<FrameId>,
    /// Why it ends.
    pub end: StackEnd,
}
