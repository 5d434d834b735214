//! The tables of every format version. `docs/capture-format.md` explains every column.

/// `PRAGMA application_id` of every capture: `ohea` in ASCII.
pub const APPLICATION_ID: u32 = u32::from_be_bytes(*b"ohea");

/// `PRAGMA user_version` of the captures this program writes. Older ones stay readable.
pub const FORMAT_VERSION: u32 = 4;

/// Name and definition of a table.
type Table = (&'static str, &'static str);

/// Tables of a version. The reader demands these very definitions, so that a prepared file cannot have it
/// evaluate a view, a virtual table or a generated column.
pub(super) fn tables(version: u32) -> impl Iterator<Item = &'static Table> {
    let own: [&[Table]; 3] = match version {
        1 => [ONLY_1, &[], &[]],
        2 => [SINCE_2, ONLY_2, &[]],
        3 => [SINCE_2, SINCE_3, &[]],
        _ => [SINCE_2, SINCE_3, SINCE_4],
    };
    SHARED.iter().chain(own.into_iter().flatten())
}

/// As they have been since version 1.
const SHARED: &[Table] = &[
    (
        "recording",
        "CREATE TABLE recording(start_realtime_ns INTEGER NOT NULL, interval_ns INTEGER NOT NULL, \
         kernel_release TEXT NOT NULL, offheap_version TEXT NOT NULL, machine TEXT NOT NULL)",
    ),
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

/// One process, one lens.
const ONLY_1: &[Table] = &[
    (
        "target",
        "CREATE TABLE target(tgid INTEGER NOT NULL, inner_tgid INTEGER, comm TEXT NOT NULL, exe TEXT, \
         runtime_name TEXT, runtime_version TEXT)",
    ),
    ("argument", "CREATE TABLE argument(position INTEGER PRIMARY KEY, value TEXT NOT NULL)"),
    (
        "stack",
        "CREATE TABLE stack(site INTEGER PRIMARY KEY, lens TEXT NOT NULL, tgid INTEGER NOT NULL, \
         end TEXT NOT NULL)",
    ),
    (
        "rss",
        "CREATE TABLE rss(id INTEGER PRIMARY KEY, elapsed_ns INTEGER NOT NULL, rss_bytes INTEGER NOT NULL, \
         anonymous_bytes INTEGER, file_bytes INTEGER, shared_bytes INTEGER, swap_bytes INTEGER)",
    ),
];

/// Processes, allocators and what memory is used for.
const SINCE_2: &[Table] = &[
    (
        "process",
        "CREATE TABLE process(id INTEGER PRIMARY KEY, parent INTEGER, tgid INTEGER NOT NULL, \
         inner_tgid INTEGER, comm TEXT NOT NULL, exe TEXT, runtime_name TEXT, runtime_version TEXT, \
         start_ns INTEGER NOT NULL, end_ns INTEGER, end_reason TEXT)",
    ),
    (
        "process_argument",
        "CREATE TABLE process_argument(process INTEGER NOT NULL, position INTEGER NOT NULL, \
         value TEXT NOT NULL, PRIMARY KEY(process, position)) WITHOUT ROWID",
    ),
    (
        "allocator",
        "CREATE TABLE allocator(id INTEGER PRIMARY KEY, name TEXT NOT NULL, prefix TEXT NOT NULL, \
         path TEXT NOT NULL, build_id TEXT)",
    ),
    (
        "stack",
        "CREATE TABLE stack(site INTEGER PRIMARY KEY, process INTEGER NOT NULL, lens TEXT NOT NULL, \
         allocator INTEGER, end TEXT NOT NULL)",
    ),
    ("site_class", "CREATE TABLE site_class(site INTEGER PRIMARY KEY, class TEXT NOT NULL, label TEXT)"),
];

/// Memory without the proportional share.
const ONLY_2: &[Table] = &[(
    "rss",
    "CREATE TABLE rss(id INTEGER PRIMARY KEY, process INTEGER NOT NULL, elapsed_ns INTEGER NOT NULL, \
     rss_bytes INTEGER NOT NULL, anonymous_bytes INTEGER, file_bytes INTEGER, shared_bytes INTEGER, \
     swap_bytes INTEGER)",
)];

/// Where resident memory lies, how long blocks live, and how large those are that live at the end.
const SINCE_3: &[Table] = &[
    (
        "rss",
        "CREATE TABLE rss(id INTEGER PRIMARY KEY, process INTEGER NOT NULL, elapsed_ns INTEGER NOT NULL, \
         rss_bytes INTEGER NOT NULL, anonymous_bytes INTEGER, file_bytes INTEGER, shared_bytes INTEGER, \
         swap_bytes INTEGER, pss_bytes INTEGER)",
    ),
    (
        "ledger_look",
        "CREATE TABLE ledger_look(id INTEGER PRIMARY KEY, process INTEGER NOT NULL, \
         elapsed_ns INTEGER NOT NULL, rss_bytes INTEGER NOT NULL)",
    ),
    (
        "ledger_entry",
        "CREATE TABLE ledger_entry(id INTEGER PRIMARY KEY, process INTEGER NOT NULL, class TEXT NOT NULL, \
         label TEXT)",
    ),
    (
        "ledger",
        "CREATE TABLE ledger(look INTEGER NOT NULL, entry INTEGER NOT NULL, mapping_count INTEGER NOT NULL, \
         size_bytes INTEGER NOT NULL, rss_bytes INTEGER NOT NULL, pss_bytes INTEGER, \
         swap_bytes INTEGER NOT NULL, PRIMARY KEY(look, entry)) WITHOUT ROWID",
    ),
    (
        "figure",
        "CREATE TABLE figure(id INTEGER PRIMARY KEY, process INTEGER NOT NULL, elapsed_ns INTEGER NOT NULL, \
         source INTEGER NOT NULL, name INTEGER NOT NULL, bytes INTEGER)",
    ),
    (
        "memory_limit",
        "CREATE TABLE memory_limit(id INTEGER PRIMARY KEY, process INTEGER NOT NULL, \
         elapsed_ns INTEGER NOT NULL, source INTEGER NOT NULL, limit_bytes INTEGER NOT NULL, \
         used_bytes INTEGER)",
    ),
    (
        "resident",
        "CREATE TABLE resident(tick INTEGER NOT NULL, site INTEGER NOT NULL, \
         resident_bytes INTEGER NOT NULL, PRIMARY KEY(tick, site)) WITHOUT ROWID",
    ),
    (
        "lifetime",
        "CREATE TABLE lifetime(site INTEGER NOT NULL, bucket INTEGER NOT NULL, count INTEGER NOT NULL, \
         PRIMARY KEY(site, bucket)) WITHOUT ROWID",
    ),
    (
        "live_size",
        "CREATE TABLE live_size(site INTEGER NOT NULL, bucket INTEGER NOT NULL, count INTEGER NOT NULL, \
         bytes INTEGER NOT NULL, PRIMARY KEY(site, bucket)) WITHOUT ROWID",
    ),
];

/// Blocks that were seen where these stand for others, and what tracing cost.
const SINCE_4: &[Table] = &[
    (
        "sampled_age",
        "CREATE TABLE sampled_age(site INTEGER NOT NULL, born_ns INTEGER NOT NULL, count INTEGER NOT NULL)",
    ),
    (
        "budget",
        "CREATE TABLE budget(trap_ns INTEGER, target_cpu_ns INTEGER, seen_ns INTEGER NOT NULL, \
         window_count INTEGER NOT NULL)",
    ),
];

/// The statements that differ between versions. All give the same columns.
pub(super) struct Queries {
    /// id, parent, tgid, inner_tgid, comm, exe, runtime_name, runtime_version, start_ns, end_ns, end_reason.
    pub processes: &'static str,
    /// process, value.
    pub arguments: &'static str,
    /// id, name, prefix, path, build_id; `None`: there are none.
    pub allocators: Option<&'static str>,
    /// site, process, lens, allocator, end.
    pub stacks: &'static str,
    /// site, class, label; `None`: there are none.
    pub classes: Option<&'static str>,
    /// process, elapsed_ns, rss_bytes, anonymous_bytes, file_bytes, shared_bytes, swap_bytes, pss_bytes.
    pub rss: &'static str,
    /// What version 3 brought; `None`: there is nothing of it.
    pub memory: Option<MemoryQueries>,
    /// What version 4 brought; `None`: there is nothing of it.
    pub estimate: Option<EstimateQueries>,
}

/// The statements for tables that came with version 4.
#[derive(Clone, Copy)]
pub(super) struct EstimateQueries {
    /// site, born_ns, count.
    pub sampled_ages: &'static str,
    /// trap_ns, target_cpu_ns, seen_ns, window_count.
    pub budget: &'static str,
}

/// The statements for tables that came with version 3.
#[derive(Clone, Copy)]
pub(super) struct MemoryQueries {
    /// id, process, elapsed_ns, rss_bytes.
    pub looks: &'static str,
    /// id, process, class, label.
    pub entries: &'static str,
    /// look, entry, mapping_count, size_bytes, rss_bytes, pss_bytes, swap_bytes.
    pub rows: &'static str,
    /// process, elapsed_ns, source, name, bytes.
    pub figures: &'static str,
    /// process, elapsed_ns, source, limit_bytes, used_bytes.
    pub limits: &'static str,
    /// tick, site, resident_bytes.
    pub residents: &'static str,
    /// site, bucket, count.
    pub lifetimes: &'static str,
    /// site, bucket, count, bytes.
    pub sizes: &'static str,
}

/// The statements for a version.
pub(super) const fn queries(version: u32) -> Queries {
    match version {
        1 => QUERIES_1,
        2 => QUERIES_2,
        3 => QUERIES_3,
        _ => QUERIES_4,
    }
}

/// The target is process 0.
const QUERIES_1: Queries = Queries {
    processes: "SELECT 0, NULL, tgid, inner_tgid, comm, exe, runtime_name, runtime_version, 0, NULL, NULL \
                FROM target ORDER BY rowid",
    arguments: "SELECT 0, value FROM argument ORDER BY position",
    allocators: None,
    stacks: "SELECT site, CASE WHEN tgid = (SELECT tgid FROM target ORDER BY rowid LIMIT 1) THEN 0 END, \
             lens, NULL, end FROM stack ORDER BY site",
    classes: None,
    rss: "SELECT 0, elapsed_ns, rss_bytes, anonymous_bytes, file_bytes, shared_bytes, swap_bytes, NULL \
          FROM rss ORDER BY id",
    memory: None,
    estimate: None,
};

const QUERIES_2: Queries = Queries {
    processes: "SELECT id, parent, tgid, inner_tgid, comm, exe, runtime_name, runtime_version, start_ns, \
                end_ns, end_reason FROM process ORDER BY id",
    arguments: "SELECT process, value FROM process_argument ORDER BY process, position",
    allocators: Some("SELECT id, name, prefix, path, build_id FROM allocator ORDER BY id"),
    stacks: "SELECT site, process, lens, allocator, end FROM stack ORDER BY site",
    classes: Some("SELECT site, class, label FROM site_class ORDER BY site"),
    rss: "SELECT process, elapsed_ns, rss_bytes, anonymous_bytes, file_bytes, shared_bytes, swap_bytes, NULL \
          FROM rss ORDER BY id",
    memory: None,
    estimate: None,
};

const QUERIES_3: Queries = Queries {
    rss: "SELECT process, elapsed_ns, rss_bytes, anonymous_bytes, file_bytes, shared_bytes, swap_bytes, \
          pss_bytes FROM rss ORDER BY id",
    memory: Some(MemoryQueries {
        looks: "SELECT id, process, elapsed_ns, rss_bytes FROM ledger_look ORDER BY id",
        entries: "SELECT id, process, class, label FROM ledger_entry ORDER BY id",
        rows: "SELECT look, entry, mapping_count, size_bytes, rss_bytes, pss_bytes, swap_bytes FROM ledger \
               ORDER BY look, entry",
        figures: "SELECT f.process, f.elapsed_ns, s.value, n.value, f.bytes FROM figure f \
                  LEFT JOIN string s ON s.id = f.source LEFT JOIN string n ON n.id = f.name ORDER BY f.id",
        limits: "SELECT l.process, l.elapsed_ns, s.value, l.limit_bytes, l.used_bytes FROM memory_limit l \
                 LEFT JOIN string s ON s.id = l.source ORDER BY l.id",
        residents: "SELECT tick, site, resident_bytes FROM resident ORDER BY tick, site",
        lifetimes: "SELECT site, bucket, count FROM lifetime ORDER BY site, bucket",
        sizes: "SELECT site, bucket, count, bytes FROM live_size ORDER BY site, bucket",
    }),
    ..QUERIES_2
};

const QUERIES_4: Queries = Queries {
    estimate: Some(EstimateQueries {
        sampled_ages: "SELECT site, born_ns, count FROM sampled_age",
        budget: "SELECT trap_ns, target_cpu_ns, seen_ns, window_count FROM budget",
    }),
    ..QUERIES_3
};
