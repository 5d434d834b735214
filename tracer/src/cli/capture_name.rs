//! The name of a capture file that was given none.

use std::path::PathBuf;

use jiff::Timestamp;

/// Longest part of the file name that comes from the target; the kernel's own limit is 15 bytes.
const MAX_COMM_CHARS: usize = 32;

/// `offheap-COMM-PID-YYYYMMDD-HHMMSS.offheap`, in UTC. `comm` is hostile: what is not a
/// letter, a digit, `.`, `_` or `-` becomes `_`, and a name cannot begin with a dot.
pub fn default_capture_name(comm: &str, tgid: u32, time: Timestamp) -> PathBuf {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    let comm: String = comm
        .chars()
        .take(MAX_COMM_CHARS)
        .map(|character| if is_plain(character) { character } else { '_' })
        .collect();
    let comm = if comm.is_empty() { "process" } else { &comm };
    let time = time.strftime("%Y%m%d-%H%M%S");
    PathBuf::from(format!("offheap-{comm}-{tgid}-{time}.offheap"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_one_plain_file_name_whatever_the_process_calls_itself() {
        let time: Timestamp = "2026-03-04T05:06:07Z".parse().unwrap();
        for (comm, expected) in [
            ("node", "offheap-node-12-20260304-050607.offheap"),
            ("../../etc/x", "offheap-.._.._etc_x-12-20260304-050607.offheap"),
            ("a b\n\u{1b}[31mü", "offheap-a_b___31m_-12-20260304-050607.offheap"),
            ("", "offheap-process-12-20260304-050607.offheap"),
        ] {
            let name = default_capture_name(comm, 12, time);
            assert_eq!(name, PathBuf::from(expected));
            assert_eq!(name.components().count(), 1);
        }
    }
}
