//! What `jcmd PID VM.native_memory summary` prints: native memory tracking, where the JVM was started with it.

use super::Told;
use crate::model::{ProcessId, RuntimeFigure};

const SOURCE: &str = "jcmd VM.native_memory";
/// Categories that are read.
const MAX_CATEGORIES: usize = 100;

/// The figures of a summary (`scale=KB`, which is the default), in the order in which they stand there; empty if tracking
/// is not on.
pub fn native_memory(text: &str, process: ProcessId, elapsed_ns: u64) -> Vec<RuntimeFigure> {
    let mut told = Told { figures: Vec::new(), process, elapsed_ns };
    let committed = |rest: &str| -> Option<u64> {
        let kib = rest.split("committed=").nth(1)?.split("KB").next()?;
        kib.parse::<u64>().ok()?.checked_mul(1024)
    };
    for line in text.lines() {
        if told.figures.len() >= MAX_CATEGORIES {
            break;
        }
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("Total: ") {
            told.add(SOURCE, "all, committed", committed(rest));
        } else if let Some((name, rest)) = line.strip_prefix('-').and_then(|line| line.split_once('(')) {
            let name = name.trim();
            if name.len() < 60 && rest.starts_with("reserved=") {
                told.add(SOURCE, &format!("{name}, committed"), committed(rest));
            }
        }
    }
    told.figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn categories_have_what_is_committed() {
        let text = "26375:\n\nNative Memory Tracking:\n\nTotal: reserved=1868213KB, committed=363209KB\n\
                    -                 Java Heap (reserved=262144KB, committed=262144KB)\n\
                    \x20                           (mmap: reserved=262144KB, committed=262144KB)\n\n\
                    -                     Class (reserved=1048698KB, committed=1210KB)\n\
                    -          Object Monitors (reserved=1KB, committed=xKB)\n";
        let figures = native_memory(text, ProcessId(0), 0);
        let figures: Vec<_> = figures.iter().map(|figure| (&*figure.name, figure.bytes)).collect();
        assert_eq!(
            figures,
            [
                ("all, committed", Some(363_209 << 10)),
                ("Java Heap, committed", Some(262_144 << 10)),
                ("Class, committed", Some(1210 << 10)),
                ("Object Monitors, committed", None),
            ]
        );
        assert_eq!(native_memory("Native memory tracking is not enabled\n", ProcessId(0), 0), []);
    }
}
