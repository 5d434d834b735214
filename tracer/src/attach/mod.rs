//! Finds the target's allocators and decides where each probe goes. Reads /proc and files, changes nothing.

mod aarch64;
pub mod absence;
mod allocator;
mod allocator_name;
mod calls;
pub(crate) mod code;
pub mod discover;
mod error;
pub mod exits;
pub mod feature;
pub mod group;
pub mod launch;
pub mod maps;
pub mod object;
pub mod placement;
pub(crate) mod plain_file;
pub mod preflight;
pub mod probe_kind;
pub mod resolve;
pub(crate) mod runtime;
pub mod scope;
pub mod selection;
pub mod target;
pub mod tracepoint;
pub mod uprobe_multi;

pub use error::AttachError;
