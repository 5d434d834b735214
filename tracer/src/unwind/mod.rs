//! Unwind tables: .eh_frame to 4-byte rows, and the full DWARF walk they are checked with.

#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct UnwindError;
