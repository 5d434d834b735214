//! Unwind tables: .eh_frame to 4-byte rows, and the full DWARF walk they are checked with.
