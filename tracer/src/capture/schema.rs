//! The tables of format version 1. `docs/capture-format.md` explains every column.

/// `PRAGMA application_id` of every capture: `ohea` in ASCII.
pub const APPLICATION_ID: u32 = u32::from_be_bytes(*b"ohea");

/// `PRAGMA user_version` of the captures this program writes. Older ones stay readable.
pub const FORMAT_VERSION: u32 = 1;

/// Name and definition of each table. The reader demands these very definitions, so that a prepared
/// file cannot have it evaluate a view, a virtual table or a generated column.
pub(super) const TABLES: &[(&str, &str)] = &[
    (
        "recording",
        "CREATE TABLE recording(start_realtime_ns INTEGER NOT NULL, interval_ns INTEGER NOT NULL, \
         kernel_release TEXT NOT NULL, offheap_version TEXT NOT NULL, machine TEXT NOT NULL)",
    ),
    (
        "target",
        "CREATE TABLE target(tgid INTEGER NOT NULL, inner_tgid INTEGER, comm TEXT NOT NULL, exe TEXT, \
         runtime_name TEXT, runtime_version TEXT)",
    ),
    ("argument", "CREATE TABLE argument(position INTEGER PRIMARY KEY, value TEXT NOT NULL)"),
    (
        "setting",
        "CREATE TABLE setting(position INTEGER PRIMARY KEY, name TEXT NOT NULL, value TEXT NOT NULL)",
    ),
    ("string", "CREATE TABLE string(id INTEGER PRIMARY KEY, value TEXT NOT NULL)"),
    ("object", "CREATE TABLE object(id INTEGER PRIMARY KEY, path TEXT NOT NULL, build_id TEXT)"),
    (
        "frame",
        "CREATE TABLE frame(id INTEGER PRIMARY KEY, address INTEGER NOT NULL, object INTEGER, \
         file_offset INTEGER, kind TEXT NOT NULL)",
    ),
    (
        "location",
        "CREATE TABLE location(frame INTEGER NOT NULL, position INTEGER NOT NULL, function INTEGER, \
         file INTEGER, line INTEGER, inlined INTEGER NOT NULL, PRIMARY KEY(frame, position)) WITHOUT ROWID",
    ),
    (
        "stack",
        "CREATE TABLE stack(site INTEGER PRIMARY KEY, lens TEXT NOT NULL, tgid INTEGER NOT NULL, \
         end TEXT NOT NULL)",
    ),
    (
        "stack_frame",
        "CREATE TABLE stack_frame(site INTEGER NOT NULL, position INTEGER NOT NULL, frame INTEGER NOT NULL, \
         PRIMARY KEY(site, position)) WITHOUT ROWID",
    ),
    ("tick", "CREATE TABLE tick(id INTEGER PRIMARY KEY, elapsed_ns INTEGER NOT NULL)"),
    (
        "sample",
        "CREATE TABLE sample(tick INTEGER NOT NULL, site INTEGER NOT NULL, allocated_bytes INTEGER NOT NULL, \
         allocated_count INTEGER NOT NULL, freed_bytes INTEGER NOT NULL, freed_count INTEGER NOT NULL, \
         PRIMARY KEY(tick, site)) WITHOUT ROWID",
    ),
    (
        "rss",
        "CREATE TABLE rss(id INTEGER PRIMARY KEY, elapsed_ns INTEGER NOT NULL, rss_bytes INTEGER NOT NULL, \
         anonymous_bytes INTEGER, file_bytes INTEGER, shared_bytes INTEGER, swap_bytes INTEGER)",
    ),
    (
        "loss",
        "CREATE TABLE loss(position INTEGER PRIMARY KEY, reason TEXT NOT NULL, count INTEGER NOT NULL, \
         bytes INTEGER NOT NULL, is_incomplete INTEGER NOT NULL, meaning TEXT NOT NULL)",
    ),
    (
        "live_age",
        "CREATE TABLE live_age(site INTEGER NOT NULL, born_ns INTEGER NOT NULL, count INTEGER NOT NULL, \
         bytes INTEGER NOT NULL)",
    ),
    ("overhead", "CREATE TABLE overhead(probe_hits INTEGER NOT NULL, probe_cpu_ns INTEGER)"),
    ("hint", "CREATE TABLE hint(position INTEGER PRIMARY KEY, sentence TEXT NOT NULL)"),
    ("finish", "CREATE TABLE finish(reason TEXT NOT NULL, elapsed_ns INTEGER NOT NULL)"),
];
