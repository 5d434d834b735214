//! Memory of the process as the kernel accounts it.

use crate::model::{ProcessId, RssSample};

/// Reads `/proc/PID/status`; `None` if the process is gone or has no memory of its own any more.
pub fn sample(tgid: u32, row: ProcessId, elapsed_ns: u64) -> Option<RssSample> {
    let process = procfs::process::Process::new(i32::try_from(tgid).ok()?).ok()?;
    let status = process.status().ok()?;
    // The kernel writes these fields in KiB.
    let bytes = |kib: Option<u64>| kib.and_then(|kib| kib.checked_mul(1024));
    Some(RssSample {
        process: row,
        elapsed_ns,
        rss_bytes: bytes(status.vmrss)?,
        anonymous_bytes: bytes(status.rssanon),
        file_bytes: bytes(status.rssfile),
        shared_bytes: bytes(status.rssshmem),
        swap_bytes: bytes(status.vmswap),
        pss_bytes: None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_moves_with_what_is_touched() {
        let before = sample(std::process::id(), ProcessId(3), 1).unwrap();
        // Other tests of this process take and give memory at the same time: much less than this.
        let block = std::hint::black_box(vec![1u8; 512 << 20]);
        let after = sample(std::process::id(), ProcessId(3), 2).unwrap();
        assert_eq!((after.elapsed_ns, after.process), (2, ProcessId(3)));
        let grown = after.rss_bytes - before.rss_bytes;
        assert!((256 << 20..1024 << 20).contains(&grown), "{grown} bytes, {} touched", block.len());
        assert!(after.anonymous_bytes.unwrap() <= after.rss_bytes);
    }

    #[test]
    fn a_process_that_does_not_exist_has_none() {
        assert_eq!(sample(u32::MAX, ProcessId(0), 0), None);
    }
}
