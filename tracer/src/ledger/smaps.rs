//! `/proc/PID/smaps`, line by line: what is mapped where, and how much of it is resident.
//!
//! The file is read in pieces while the process runs. A mapping that grows or is joined with its neighbour between two
//! pieces is shown a second time from its old start on (the kernel goes on at the first mapping that *ends* behind the
//! last one); such a mapping is cut to what is new, so that no address is in the ledger twice.

use std::io::{self, BufRead};

use crate::attach::maps::{self, MapEntry};

/// Most mappings that are read: sixteen times the kernel's default limit (`vm.max_map_count`).
pub(crate) const MAX_MAPPINGS: usize = 1 << 20;
/// Longest line: a path of 4,096 bytes, all of them escaped as four, and what stands before it.
const MAX_LINE_BYTES: u64 = 20 << 10;

/// One mapping and its sums, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vma {
    /// Where it is.
    pub(crate) entry: MapEntry,
    /// Resident.
    pub(crate) rss_bytes: u64,
    /// Resident, divided among those who share it.
    pub(crate) pss_bytes: u64,
    /// Swapped out.
    pub(crate) swap_bytes: u64,
}

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Smaps {
    /// In order of addresses, no two of which overlap.
    pub(crate) vmas: Vec<Vma>,
    /// Mappings that were shown twice since they changed while the file was read.
    pub(crate) overlap_count: u64,
    /// There are more mappings than are read.
    pub(crate) is_cut: bool,
}

/// Reads all of it. Lines of another form are passed over: later kernels add some.
///
/// # Errors
/// Those of the reader.
pub(crate) fn read(mut reader: impl BufRead) -> io::Result<Smaps> {
    let mut smaps = Smaps::default();
    let mut line = Vec::new();
    let mut end = 0;
    loop {
        line.clear();
        let mut limited = io::Read::take(&mut reader, MAX_LINE_BYTES);
        if limited.read_until(b'\n', &mut line)? == 0 {
            return Ok(smaps);
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        // Fields begin with a capital letter, ranges with a small hexadecimal digit.
        if text.first().is_some_and(u8::is_ascii_uppercase) {
            if let Some(vma) = smaps.vmas.last_mut() {
                add_field(vma, text);
            }
            continue;
        }
        let Some(mut entry) = maps::parse(text).pop() else { continue };
        if smaps.vmas.len() >= MAX_MAPPINGS {
            smaps.is_cut = true;
            return Ok(smaps);
        }
        if entry.start < end {
            smaps.overlap_count += 1;
            entry.file_offset = entry.file_offset.wrapping_add(end - entry.start);
            entry.start = end.min(entry.end);
        }
        end = end.max(entry.end);
        smaps.vmas.push(Vma { entry, rss_bytes: 0, pss_bytes: 0, swap_bytes: 0 });
    }
}

/// Takes a line such as `Rss:       12 kB`.
fn add_field(vma: &mut Vma, line: &[u8]) {
    let size_bytes = vma.entry.end - vma.entry.start;
    let field = match line.split(|byte| *byte == b':').next() {
        Some(b"Rss") => &mut vma.rss_bytes,
        Some(b"Pss") => &mut vma.pss_bytes,
        Some(b"Swap") => &mut vma.swap_bytes,
        _ => return,
    };
    let digits = line.iter().skip_while(|byte| !byte.is_ascii_digit()).take_while(|b| b.is_ascii_digit());
    let kib = digits.fold(0u64, |kib, digit| kib.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
    // Of a mapping that was cut, no more can be resident than there is.
    *field = kib.saturating_mul(1024).min(size_bytes);
}

impl Smaps {
    /// Drops what a cut has left nothing of.
    pub(crate) fn without_empty(mut self) -> Self {
        self.vmas.retain(|vma| vma.entry.start < vma.entry.end);
        self
    }

    /// Resident bytes of all mappings.
    pub(crate) fn rss_bytes(&self) -> u64 {
        self.vmas.iter().fold(0, |sum, vma| sum.saturating_add(vma.rss_bytes))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &[u8]) -> Smaps {
        read(text).unwrap()
    }

    #[test]
    fn fields_belong_to_the_mapping_before_them() {
        let smaps = parse(
            b"Rss: 99 kB\n\
              00400000-00500000 r-xp 00000000 fe:01 7      /a\\012Rss:     77 kB\n\
              Size:               1024 kB\nRss:                 512 kB\nPss:                 256 kB\n\
              Pss_Dirty:           9 kB\nSwap:                  8 kB\nSwapPss:               3 kB\n\
              VmFlags: rd ex mr mw me\n\
              7f0000000000-7f0000001000 rw-p 00000000 00:00 0\nRss:                   4 kB\n\
              Rss of nothing\nrubbish\n",
        );
        let sums: Vec<_> =
            smaps.vmas.iter().map(|vma| (vma.rss_bytes, vma.pss_bytes, vma.swap_bytes)).collect();
        assert_eq!(sums, [(512 << 10, 256 << 10, 8 << 10), (4096, 0, 0)]);
        assert_eq!(smaps.vmas[0].entry.name, b"/a\\012Rss:     77 kB");
        assert_eq!(smaps.rss_bytes(), (512 << 10) + 4096);
        assert!(!smaps.is_cut && smaps.overlap_count == 0);
    }

    #[test]
    fn a_mapping_that_grew_while_it_was_read_is_in_it_once() {
        let smaps = parse(
            b"1000-3000 rw-p 00000000 00:00 0\nRss: 8 kB\n\
              2000-5000 rw-p 00000000 00:00 0\nRss: 12 kB\n\
              2000-4000 rw-p 00000000 00:00 0\nRss: 8 kB\n",
        )
        .without_empty();
        let ranges: Vec<_> = smaps.vmas.iter().map(|vma| (vma.entry.start, vma.entry.end)).collect();
        assert_eq!(ranges, [(0x1000, 0x3000), (0x3000, 0x5000)]);
        assert_eq!((smaps.overlap_count, smaps.vmas[1].rss_bytes), (2, 8192));
    }

    #[test]
    fn a_line_without_end_is_survived() {
        let mut text = b"1000-2000 rw-p 00000000 00:00 0 /".to_vec();
        text.resize(1 << 20, b'x');
        assert_eq!(parse(&text).vmas.len(), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(text in "([0-9a-f]{1,6}-[0-9a-f]{1,6} rw-p 0 00:00 0|Rss: [0-9]{1,25} kB|.{0,9})(\n([0-9a-f]{1,6}-[0-9a-f]{1,6} rw-p 0 00:00 0|Rss: [0-9]{1,25} kB|.{0,9})){0,40}") {
            let smaps = parse(text.as_bytes()).without_empty();
            for vma in &smaps.vmas {
                prop_assert!(vma.rss_bytes <= vma.entry.end - vma.entry.start);
            }
            for pair in smaps.vmas.windows(2) {
                prop_assert!(pair[0].entry.end <= pair[1].entry.start);
            }
        }
    }
}
