//! The capture file: SQLite, one file, readable while and after recording.
