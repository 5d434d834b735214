//! What a ledger means in one sentence, and what to do about it. No I/O.

use super::glibc::{self, Malloc};
use super::rows::{BETWEEN, WHOLE_PAGES};
use super::threads::ENDED;
use crate::model::{Ledger, LedgerClass, Runtime};

/// What is smaller is not worth an advice, in bytes, nor what is a smaller share of RSS, in percent.
const MIN_BYTES: u64 = 8 << 20;
const MIN_PERCENT: u64 = 10;
/// From this share on, unknown memory is worth a look.
const MIN_UNKNOWN_PERCENT: u64 = 5;
/// Most pieces of advice: what matters, the most first.
const MAX_ADVICE: usize = 4;
/// Parts that the first sentence names.
const MAX_PARTS: usize = 3;

/// One piece of advice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// For programs: `allocator-retention`, `fragmentation`, `managed-heap`, `allocations`, `mappings`, `thread-stacks`,
    /// `shared-memory`, `unknown`.
    pub kind: &'static str,
    /// The resident memory that it is about.
    pub bytes: u64,
    /// What it is, and what can be done, in sentences.
    pub text: String,
}

/// Resident bytes of rows.
fn sum(ledger: &Ledger, is_part: impl Fn(LedgerClass, &str) -> bool) -> u64 {
    let rows = ledger.rows.iter();
    rows.filter(|row| is_part(row.class, row.label.as_deref().unwrap_or_default()))
        .map(|row| row.rss_bytes)
        .sum()
}

/// Resident bytes of one class.
pub(crate) fn of_class(ledger: &Ledger, class: LedgerClass) -> u64 {
    sum(ledger, |of, _| of == class)
}

/// The first sentence: how far RSS exceeds the heap that the program knows, and what that is.
pub fn headline(ledger: &Ledger, size: impl Fn(u64) -> String) -> String {
    let heap_bytes = of_class(ledger, LedgerClass::ManagedHeap);
    let mut parts: Vec<(u64, LedgerClass)> = LedgerClass::ALL
        .into_iter()
        .filter(|class| *class != LedgerClass::ManagedHeap)
        .map(|class| (of_class(ledger, class), class))
        .filter(|(bytes, _)| *bytes > 0)
        .collect();
    parts.sort_by(|a, b| b.cmp(a));
    let named: Vec<String> = parts
        .iter()
        .take(MAX_PARTS)
        .map(|(bytes, class)| format!("{} {}", size(*bytes), phrase(*class)))
        .collect();
    let rest: u64 = parts.iter().skip(MAX_PARTS).map(|(bytes, _)| bytes).sum();
    let mut list = named.join(", ");
    if rest > 0 {
        list = format!("{list}, and {} others", size(rest));
    }
    if heap_bytes == 0 {
        return format!("RSS is {}: {list}.", size(ledger.rss_bytes));
    }
    let label = ledger.rows.iter().find(|row| row.class == LedgerClass::ManagedHeap);
    let heap = label.and_then(|row| row.label.as_deref()).unwrap_or("managed heap");
    let excess = ledger.rss_bytes.saturating_sub(heap_bytes);
    format!(
        "RSS ({}) exceeds the {} ({} resident) by {}, of which: {list}.",
        size(ledger.rss_bytes),
        heap.trim_end_matches("arena").trim_end().to_owned()
            + if heap.ends_with("arena") { " heap" } else { "" },
        size(heap_bytes),
        size(excess)
    )
}

/// A class within a sentence.
const fn phrase(class: LedgerClass) -> &'static str {
    match class {
        LedgerClass::AllocatorLive => "blocks in use in the allocator",
        LedgerClass::AllocatorSlack => "free inside the allocator",
        LedgerClass::AllocatorArena => "the allocator's (how much of it is free is not known)",
        LedgerClass::BrkHeap => "below the program break",
        LedgerClass::RuntimeInternal => "the runtime's own books",
        LedgerClass::Unknown => "unknown",
        LedgerClass::Mmap => "mapped by the program",
        other => other.phrase(),
    }
}

/// What to do, the most bytes first.
pub(super) fn advise(
    ledger: &Ledger,
    malloc: Option<&Malloc>,
    runtime: Option<&Runtime>,
    tgid: u32,
) -> Vec<Advice> {
    let mut advice = Vec::new();
    let mut add = |kind, bytes: u64, min_percent: u64, text: &dyn Fn() -> String| {
        if bytes >= MIN_BYTES && bytes / min_percent.max(1) * 100 >= ledger.rss_bytes {
            advice.push(Advice { kind, bytes, text: text() });
        }
    };
    let name = runtime.map(|runtime| runtime.name.as_str());
    let whole = sum(ledger, |_, label| label == WHOLE_PAGES);
    add("allocator-retention", whole, MIN_PERCENT, &|| retention(malloc));
    let between = sum(ledger, |_, label| label == BETWEEN);
    add("fragmentation", between, MIN_PERCENT, &|| {
        "is free between blocks in use, on pages that hold some of them: malloc_trim cannot give it back. Blocks that live \
         long were allocated among blocks that did not. Keep them apart (a pool, an arena of their own), or try an allocator \
         that sorts blocks by size (jemalloc, mimalloc, tcmalloc)."
            .to_owned()
    });
    add("managed-heap", of_class(ledger, LedgerClass::ManagedHeap), 40, &|| managed(name, tgid));
    add("allocations", of_class(ledger, LedgerClass::AllocatorLive), 25, &|| {
        format!(
            "is in blocks that the program allocated and did not free. Which code did: offheap record {tgid}"
        )
    });
    add("mappings", of_class(ledger, LedgerClass::Mmap), 25, &|| {
        format!(
            "is memory that the program, or a library, mapped for itself. Which code did: offheap record --lens mmap {tgid}"
        )
    });
    let ended = sum(ledger, |_, label| label == ENDED);
    add("thread-stacks", of_class(ledger, LedgerClass::ThreadStack), MIN_PERCENT, &|| {
        let kept = if ended > 0 { " Those of ended threads are kept for the next ones." } else { "" };
        format!(
            "is in stacks of threads: are there more threads than the program needs? (ps -L {tgid}){kept}"
        )
    });
    add("shared-memory", of_class(ledger, LedgerClass::SharedMemory), 25, &|| {
        "is shared memory: it counts for every process that has touched it, and stays if its file does."
            .to_owned()
    });
    add("unknown", of_class(ledger, LedgerClass::Unknown), MIN_UNKNOWN_PERCENT, &|| {
        format!("is claimed by nobody. Which code maps such memory: offheap record --lens mmap {tgid}")
    });
    advice.sort_by_key(|advice| std::cmp::Reverse(advice.bytes));
    advice.truncate(MAX_ADVICE);
    advice
}

/// What helps against whole free pages that glibc keeps.
fn retention(malloc: Option<&Malloc>) -> String {
    let mut text = "is free and in whole pages, but glibc has not given it back. malloc_trim(0), called by the program when it \
                    is idle, does."
        .to_owned();
    let Some((malloc, walk)) = malloc.and_then(|malloc| Some((malloc, malloc.walk.as_ref()?))) else {
        return text;
    };
    let threshold = malloc.settings.as_ref().map_or(0, |settings| settings.trim_threshold_bytes);
    if walk.top_resident_bytes * 2 > walk.trimmable_bytes {
        text.push_str(&format!(
            " Most of it lies at the ends of arenas: with MALLOC_TRIM_THRESHOLD_=131072 (M_TRIM_THRESHOLD, now {threshold}) the \
             main arena gives it back by itself."
        ));
    }
    let in_threads = malloc.system_bytes.saturating_sub(malloc.main_system_bytes);
    if malloc.arena_count > 4 && in_threads * 2 > malloc.system_bytes {
        let arenas = malloc.arena_count;
        text.push_str(&format!(
            " There are {arenas} arenas, each of which keeps what its threads have freed: MALLOC_ARENA_MAX=2 makes threads share."
        ));
    }
    text
}

/// Who can look into a collected heap.
fn managed(name: Option<&str>, tgid: u32) -> String {
    let command = match name {
        Some("node") => {
            "with --heapsnapshot-signal=SIGUSR2: kill -USR2 PID, then open the file in Chrome's DevTools"
        }
        Some("jvm") => "jcmd PID GC.class_histogram, or jcmd PID GC.heap_dump FILE",
        Some("cpython") => "tracemalloc in the program, or memray attach PID",
        Some("go") => "go tool pprof http://…/debug/pprof/heap",
        Some("dotnet") => "dotnet-gcdump collect -p PID",
        _ => "the runtime's own heap profiler",
    };
    format!(
        "is the garbage-collected heap: that is no native leak, and the runtime's own tools see into it: {}",
        command.replace("PID", &tgid.to_string())
    )
}

/// What of the ledger a figure is to be compared with: resident bytes.
pub fn ours(ledger: &Ledger, source: &str, name: &str) -> Option<u64> {
    let labels = |wanted: &[&str]| sum(ledger, |_, label| wanted.contains(&label));
    Some(match (source, name) {
        ("hsperfdata", "Java heap, committed")
        | ("CPython arenas", "room in the pools")
        | ("jcmd VM.native_memory", "Java Heap, committed")
        | ("Go memstats", "heap in use (HeapInuse)") => of_class(ledger, LedgerClass::ManagedHeap),
        ("hsperfdata", "metaspace, committed") => labels(&["JVM metaspace", "JVM class space"]),
        ("hsperfdata", "class space, committed") => labels(&["JVM class space"]),
        ("jcmd VM.native_memory", "Code, committed") => of_class(ledger, LedgerClass::JitCode),
        ("jcmd VM.native_memory", "Thread, committed") => of_class(ledger, LedgerClass::ThreadStack),
        ("glibc malloc", "arenas, from the kernel") => {
            labels(&["glibc malloc", WHOLE_PAGES, BETWEEN, glibc::MAIN, glibc::THREADS, glibc::CUT])
        }
        ("glibc malloc", "blocks with a mapping of their own") => labels(&[glibc::MAPPED]),
        ("glibc malloc", "in use in arenas") => labels(&["glibc malloc"]),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LedgerRow, ProcessId};

    fn ledger(rows: &[(LedgerClass, &str, u64)]) -> Ledger {
        let row = |(class, label, mib): &(LedgerClass, &str, u64)| LedgerRow {
            class: *class,
            label: Some((*label).to_owned()),
            mapping_count: 1,
            size_bytes: mib << 20,
            rss_bytes: mib << 20,
            pss_bytes: None,
            swap_bytes: 0,
        };
        let rows: Vec<LedgerRow> = rows.iter().map(row).collect();
        let rss_bytes = rows.iter().map(|row| row.rss_bytes).sum();
        Ledger { process: ProcessId(0), elapsed_ns: 0, rss_bytes, rows }
    }

    fn size(bytes: u64) -> String {
        format!("{}M", bytes >> 20)
    }

    #[test]
    fn the_first_sentence_says_what_exceeds_the_heap() {
        let node = ledger(&[
            (LedgerClass::ManagedHeap, "V8 heap", 40),
            (LedgerClass::AllocatorLive, "glibc malloc", 60),
            (LedgerClass::File, "/node", 30),
            (LedgerClass::ThreadStack, "thread 7", 2),
            (LedgerClass::JitCode, "V8 code", 1),
        ]);
        assert_eq!(
            headline(&node, size),
            "RSS (133M) exceeds the V8 heap (40M resident) by 93M, of which: 60M blocks in use in the allocator, 30M files, \
             2M thread stacks, and 1M others."
        );
        let native = ledger(&[(LedgerClass::AllocatorSlack, WHOLE_PAGES, 9)]);
        assert_eq!(headline(&native, size), "RSS is 9M: 9M free inside the allocator.");
        let python = ledger(&[(LedgerClass::ManagedHeap, "CPython arena", 9), (LedgerClass::File, "f", 1)]);
        assert!(
            headline(&python, size).starts_with("RSS (10M) exceeds the CPython heap (9M resident) by 1M, ")
        );
    }

    #[test]
    fn advice_is_about_what_is_large() {
        let rows = [
            (LedgerClass::AllocatorSlack, WHOLE_PAGES, 100),
            (LedgerClass::AllocatorSlack, BETWEEN, 40),
            (LedgerClass::AllocatorLive, "glibc malloc", 10),
            (LedgerClass::Unknown, "x", 5),
        ];
        let kinds = |rows: &[(LedgerClass, &str, u64)]| -> Vec<&str> {
            advise(&ledger(rows), None, None, 7).into_iter().map(|advice| advice.kind).collect()
        };
        assert_eq!(kinds(&rows), ["allocator-retention", "fragmentation"]);
        assert_eq!(kinds(&[(LedgerClass::AllocatorLive, "glibc malloc", 7)]), Vec::<&str>::new(), "small");
        assert_eq!(kinds(&[(LedgerClass::Unknown, "x", 9), (LedgerClass::File, "f", 30)]), ["unknown"]);
    }
}
