//! The allocators of a recording.

/// Identifies an [`Allocator`] within one recording: the number in the attach cookies of its functions.
/// 0 is never used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllocatorId(pub u32);

/// One implementation of malloc in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocator {
    /// Identity within the recording.
    pub id: AllocatorId,
    /// `glibc malloc`, `jemalloc`, `tcmalloc`, `mimalloc`, `musl malloc`, `snmalloc`… or `custom`.
    pub name: String,
    /// What its functions begin with, such as `je_`; empty for the plain names.
    pub prefix: String,
    /// The file it lies in, as the target sees it; hostile input.
    pub path: String,
    /// GNU build id of that file in lower-case hex, where it has one.
    pub build_id: Option<String>,
}
