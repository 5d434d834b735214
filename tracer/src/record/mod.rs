//! Runs a recording: loads the programs, attaches, reads back, ends.
