//! Memory of the process as the kernel accounts it.

use crate::model::{ProcessId, RssSample};

/// Reads `/proc/PID/status`; `None` if the process is gone or has no memory of its own any more.
pub fn sample(of: ProcessId, tgid: u32, elapsed_ns: u64) -> Option<RssSample> {
    let process = procfs::process::Process::new(i32::try_from(tgid).ok()?).ok()?;
    let status = process.status().ok()?;
    // The kernel writes these fields in KiB.
    let bytes = |kib: Option<u64>| kib.and_then(|kib| kib.checked_mul(1024));
    Some(RssSample {
        process: of,
        elapsed_ns,
        rss_bytes: bytes(status.vmrss)?,
        anonymous_bytes: bytes(status.rssanon),
        file_bytes: bytes(status.rssfile),
        shared_bytes: bytes(status.rssshmem),
        swap_bytes: bytes(status.vmswap),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_moves_with_what_is_touched() {
        let before = sample(ProcessId(0), std::process::id(), 1).unwrap();
        // Other tests of this process take and give memory at the same time: much less than this.
        let block = std::hint::black_box(vec![1u8; 512 << 20]);
        let after = sample(ProcessId(0), std::process::id(), 2).unwrap();
        assert_eq!(after.elapsed_ns, 2);
        let grown = after.rss_bytes - before.rss_bytes;
        assert!((256 << 20..1024 << 20).contains(&grown), "{grown} bytes, {} touched", block.len());
        assert!(after.anonymous_bytes.unwrap() <= after.rss_bytes);
    }

    #[test]
    fn a_process_that_does_not_exist_has_none() {
        assert_eq!(sample(ProcessId(0), u32::MAX, 0), None);
    }
}
