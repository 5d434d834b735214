//! Whether the sites explain the growth of the resident set: pages of sites, less what was given back of the memory that
//! was there before, plus what has no fault, is the growth.

use super::{lens::Tracked, pagemap::PAGE_BYTES};

/// Bytes without a stack from which a recording is incomplete, and the share of the growth that they must be.
const WORTH_COUNTING_BYTES: u64 = 1 << 20;
const WORTH_COUNTING_SHARE: u64 = 20;

/// Where the growth of one process lies, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Resident set at the begin and at the end, as the kernel's smaps say; at the begin, less what was touched already
    /// when the programs ran.
    pub rss_bytes: Option<(u64, u64)>,
    /// Resident pages of sites, without the copies.
    pub of_sites_bytes: u64,
    /// Private copies of pages that were resident before, which add nothing to the resident set.
    pub copied_bytes: u64,
    /// Of what was resident before, what is not any more.
    pub given_back_bytes: u64,
    /// Resident pages that no site has.
    pub unattributed_bytes: u64,
    /// Pages of sites that are in swap.
    pub swapped_bytes: u64,
}

impl Summary {
    /// Of a process that was looked at as a whole at both ends.
    pub fn of(tracked: &Tracked) -> Option<Self> {
        let looked = tracked.looked?;
        let start = tracked.book.start_pages()?;
        let scaled = |pages: u64| (pages << tracked.book.level()).saturating_mul(PAGE_BYTES);
        let copied = scaled(looked.copied);
        Some(Self {
            rss_bytes: tracked.start_rss_bytes.zip(tracked.end_rss_bytes),
            of_sites_bytes: scaled(looked.of_sites).saturating_sub(copied),
            copied_bytes: copied,
            given_back_bytes: start
                .saturating_sub(looked.before)
                .saturating_mul(PAGE_BYTES)
                .saturating_sub(copied),
            unattributed_bytes: scaled(looked.unattributed),
            swapped_bytes: scaled(looked.swapped),
        })
    }

    /// Bytes without a stack, if they are so many that the result is incomplete.
    pub fn missing_bytes(&self) -> Option<u64> {
        let grown = self.of_sites_bytes.saturating_add(self.unattributed_bytes);
        let bytes = self.unattributed_bytes;
        (bytes >= WORTH_COUNTING_BYTES && bytes >= grown / WORTH_COUNTING_SHARE).then_some(bytes)
    }

    /// In one sentence.
    pub fn sentence(&self, tgid: u32, comm: &str) -> String {
        let size = |bytes: u64| humansize::format_size(bytes, humansize::BINARY);
        let growth = match self.rss_bytes {
            Some((start, end)) if end >= start => {
                format!("grew by {} ({} to {})", size(end - start), size(start), size(end))
            }
            Some((start, end)) => {
                format!("shrank by {} ({} to {})", size(start - end), size(start), size(end))
            }
            None => "is not known".to_owned(),
        };
        let mut text = format!(
            "resident memory of process {tgid} (`{comm}`) {growth}; call stacks hold {}, {} of what was there before has gone, \
             {} have no fault of their own",
            size(self.of_sites_bytes),
            size(self.given_back_bytes),
            size(self.unattributed_bytes),
        );
        if self.copied_bytes > 0 {
            text += &format!("; {} are copies on write of what was there before", size(self.copied_bytes));
        }
        if self.swapped_bytes > 0 {
            text += &format!("; {} more are in swap", size(self.swapped_bytes));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_adds_up() {
        let summary = Summary {
            rss_bytes: Some((10 << 20, 50 << 20)),
            of_sites_bytes: 41 << 20,
            copied_bytes: 1 << 20,
            given_back_bytes: 2 << 20,
            unattributed_bytes: 1 << 20,
            swapped_bytes: 0,
        };
        let text = summary.sentence(7, "x");
        assert!(
            text.contains("grew by 40 MiB (10 MiB to 50 MiB); call stacks hold 41 MiB, 2 MiB of"),
            "{text}"
        );
        assert!(text.contains("1 MiB are copies on write"), "{text}");
        assert_eq!(summary.missing_bytes(), None);
        let bad = Summary { unattributed_bytes: 5 << 20, ..summary };
        assert_eq!(bad.missing_bytes(), Some(5 << 20));
    }
}
