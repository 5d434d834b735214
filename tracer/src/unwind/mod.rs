//! Unwind tables: .eh_frame to 4-byte rows, and the full DWARF walk they are checked with.
//!
//! Takes ELF files as bytes and the list of a process's executable mappings; gives the contents of the
//! maps that the BPF unwinder searches. Never opens a target's files and never touches the kernel:
//!
//! ```text
//! ELF file ─ table::FileTable ─ store::TableStore ─ PAGES, ROWS and ESCAPES
//!                   │ bias
//! mappings ─ process::MappingSet ─ PROCS and MAPS
//! ```
//!
//! [`mod@reference`] walks a captured stack by every rule of the DWARF tables, in user space. It shares with the
//! tables how FDEs are found, and not one rule, so that the two can be compared.
//!
//! Every file is hostile input: all loops, allocations and evaluations are bounded by constants.

mod cfi;
mod elf;
mod error;
mod go;
pub mod process;
pub mod reference;
mod rule;
mod sigreturn;
pub mod store;
pub mod table;
mod vdso;

pub use elf::{CodeSegments, Segment};
pub use error::UnwindError;
pub use go::{GoFunction, GoFunctions};
pub use vdso::own_vdso;
