//! What to do about a collected heap that grew: it is no leak of native code, and its own tools say more.

/// Growth of a collected heap, in bytes, from which something is said.
const WORTH_SAYING_BYTES: u64 = 1 << 20;

/// Runtime (as in [`crate::model::Runtime`]) and what shows who holds its heap.
const ADVICE: &[(&str, &str)] = &[
    (
        "node",
        "take two heap snapshots and compare them (`node --heapsnapshot-signal=SIGUSR2`, or `node --inspect` and DevTools)",
    ),
    ("jvm", "look at who holds it (`jcmd PID GC.class_histogram`, `jcmd PID GC.heap_dump FILE`)"),
    ("cpython", "compare two snapshots of `tracemalloc`, or run under `memray`"),
    ("go", "compare two heap profiles (`go tool pprof -sample_index=inuse_space`)"),
    ("dotnet", "compare two heap dumps (`dotnet-gcdump collect -p PID`)"),
];

/// The sentence, if the heap has grown enough.
pub fn of_heap(runtime: &str, label: &str, tgid: u32, comm: &str, grown_bytes: u64) -> Option<String> {
    if grown_bytes < WORTH_SAYING_BYTES {
        return None;
    }
    let advice = ADVICE.iter().find(|(name, _)| *name == runtime).map(|(_, advice)| *advice);
    let advice = advice.unwrap_or("ask the runtime who holds it").replace("PID", &tgid.to_string());
    let size = humansize::format_size(grown_bytes, humansize::BINARY);
    Some(format!(
        "{label} of process {tgid} (`{comm}`) grew by {size} of resident memory. It is collected, and no leak of native \
         code by itself: {advice}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_runtime_has_its_advice() {
        let said = of_heap("node", "V8 heap", 7, "app", 40 << 20).unwrap_or_default();
        assert!(said.starts_with("V8 heap of process 7 (`app`) grew by 40 MiB"), "{said}");
        assert!(said.contains("heap snapshots"), "{said}");
        assert!(of_heap("jvm", "Java heap", 7, "java", 2 << 20).unwrap_or_default().contains("jcmd 7 GC"));
        assert!(of_heap("other", "heap", 7, "x", 2 << 20).unwrap_or_default().contains("ask the runtime"));
        assert_eq!(of_heap("node", "V8 heap", 7, "app", 1000), None);
    }
}
