//! Perf maps: the text files in which runtimes name the code they make, one `START SIZE NAME` per line.

use std::collections::BTreeMap;
use std::io::{self, BufRead};
use std::sync::Arc;

/// Bytes of a map that are read; a busy Node process writes some 100 MB a day.
const MAX_BYTES: u64 = 512 << 20;
/// Lines that are read.
const MAX_LINES: u64 = 4_000_000;
/// Bytes of a name that are kept.
const MAX_NAME_BYTES: usize = 4096;
/// Bytes of a line that can matter: two numbers, two spaces and a name.
const MAX_LINE_BYTES: usize = MAX_NAME_BYTES + 64;

/// What of a perf map is not in the [`PerfMap`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerfMapLosses {
    /// Lines that are not of the format.
    pub invalid_lines: u64,
    /// Names that were cut at their limit of 4096 bytes.
    pub cut_names: u64,
    /// The file goes on beyond the limits of 512 MiB or four million lines; the rest was not read.
    pub is_truncated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    end: u64,
    name: Arc<str>,
}

/// Names of address ranges that do not overlap.
#[derive(Clone, Debug, Default)]
pub struct PerfMap {
    ranges: BTreeMap<u64, Range>,
    losses: PerfMapLosses,
    read_bytes: u64,
    line_count: u64,
}

impl PerfMap {
    /// Reads a map. Code is moved and addresses are reused, so a line takes its range from the lines before
    /// it. Damaged lines are counted; the only error is that of the reader.
    pub fn parse(reader: impl BufRead) -> io::Result<Self> {
        let mut map = Self::default();
        map.add(reader, u64::MAX, true)?;
        Ok(map)
    }

    /// Adds lines, at most `max_bytes` of them, and gives the bytes that were used. Without `is_last`, a line
    /// that has no end yet is left for the next time.
    ///
    /// # Errors
    /// That of the reader; what came before it is in the map.
    pub fn add(&mut self, reader: impl BufRead, max_bytes: u64, is_last: bool) -> io::Result<u64> {
        self.add_bounded(reader, max_bytes, is_last, (MAX_BYTES, MAX_LINES))
    }

    fn add_bounded(
        &mut self,
        mut reader: impl BufRead,
        max_bytes: u64,
        is_last: bool,
        (limit_bytes, limit_lines): (u64, u64),
    ) -> io::Result<u64> {
        let mut used_bytes = 0;
        let mut line = Vec::new();
        while used_bytes < max_bytes {
            let (bytes, is_whole) = read_line(&mut reader, &mut line)?;
            if bytes == 0 || !(is_whole || is_last) {
                break;
            }
            if self.read_bytes + bytes > limit_bytes || self.line_count == limit_lines {
                self.losses.is_truncated = true;
                break;
            }
            self.read_bytes += bytes;
            self.line_count += 1;
            used_bytes += bytes;
            self.add_line(&line);
        }
        Ok(used_bytes)
    }

    fn add_line(&mut self, line: &[u8]) {
        match parse_line(line) {
            Some((start, end, name)) => {
                let text = String::from_utf8_lossy(name);
                let kept = text.floor_char_boundary(MAX_NAME_BYTES);
                self.losses.cut_names += u64::from(kept < text.len());
                self.insert(start, end, text[..kept].into());
            }
            None => self.losses.invalid_lines += 1,
        }
    }

    fn insert(&mut self, start: u64, end: u64, name: Arc<str>) {
        if let Some((&before, range)) = self.ranges.range_mut(..start).next_back()
            && range.end > start
        {
            let rest = Range { end: range.end, name: Arc::clone(&range.name) };
            range.end = start;
            debug_assert!(before < start);
            if rest.end > end {
                self.ranges.insert(end, rest);
            }
        }
        while let Some((&covered, range)) = self.ranges.range(start..end).next() {
            let rest = (range.end > end).then(|| range.clone());
            self.ranges.remove(&covered);
            if let Some(rest) = rest {
                self.ranges.insert(end, rest);
            }
        }
        self.ranges.insert(start, Range { end, name });
    }

    /// The name of the code at an address.
    pub fn find(&self, address: u64) -> Option<&str> {
        let (_, range) = self.ranges.range(..=address).next_back()?;
        (address < range.end).then_some(&*range.name)
    }

    /// The same, to be kept.
    pub(super) fn find_shared(&self, address: u64) -> Option<Arc<str>> {
        let (_, range) = self.ranges.range(..=address).next_back()?;
        (address < range.end).then(|| Arc::clone(&range.name))
    }

    /// Lines that were read.
    pub fn line_count(&self) -> u64 {
        self.line_count
    }

    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether no range has a name.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// What is missing.
    pub fn losses(&self) -> PerfMapLosses {
        self.losses
    }
}

/// Reads one line, without its end, of which no more is kept than can matter. Gives its bytes, with its end,
/// and whether it had one; none at the end of the file.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<(u64, bool)> {
    line.clear();
    let mut read_bytes = 0;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok((read_bytes, false));
        }
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let text = &buffer[..end.unwrap_or(buffer.len())];
        line.extend_from_slice(&text[..text.len().min(MAX_LINE_BYTES - line.len())]);
        let used = text.len() + usize::from(end.is_some());
        read_bytes += used as u64;
        reader.consume(used);
        if end.is_some() {
            return Ok((read_bytes, true));
        }
    }
}

/// Start, end and name. Numbers are hexadecimal, with or without `0x`; names have spaces.
fn parse_line(line: &[u8]) -> Option<(u64, u64, &[u8])> {
    let mut fields = line.splitn(3, |&byte| byte == b' ');
    let start = parse_hex(fields.next()?)?;
    let end = start.checked_add(parse_hex(fields.next()?)?)?;
    let name = fields.next()?.trim_ascii();
    (end > start && !name.is_empty()).then_some((start, end, name))
}

fn parse_hex(digits: &[u8]) -> Option<u64> {
    let digits = digits.strip_prefix(b"0x").unwrap_or(digits);
    // `from_str_radix` takes a sign.
    if !digits.first()?.is_ascii_hexdigit() {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> PerfMap {
        PerfMap::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn names_with_spaces_and_both_kinds_of_numbers_are_read() {
        let map = parse("7f00 10 JS:~get foo /a b.js:1:2\n0x8000 0x20 py::f:/x.py\n9000 1 last without end");
        assert_eq!(map.find(0x7eff), None);
        assert_eq!(map.find(0x7f00), Some("JS:~get foo /a b.js:1:2"));
        assert_eq!(map.find(0x7f0f), Some("JS:~get foo /a b.js:1:2"));
        assert_eq!(map.find(0x7f10), None);
        assert_eq!(map.find(0x801f), Some("py::f:/x.py"));
        assert_eq!(map.find(0x9000), Some("last without end"));
        assert_eq!(map.losses(), PerfMapLosses::default());
    }

    #[test]
    fn damaged_lines_are_counted() {
        let lines = [
            "",
            "10",
            "10 20",
            "10 20 ",
            "x 20 name",
            "10 0 name",
            "+10 20 name",
            "ffffffffffffffff 10 name",
        ];
        for line in lines {
            let map = parse(&format!("{line}\n100 10 good\n"));
            assert_eq!((map.len(), map.losses().invalid_lines), (1, 1), "{line:?}");
        }
    }

    #[test]
    fn limits_are_kept_and_told() {
        let long = "ü".repeat(MAX_NAME_BYTES);
        let map = parse(&format!("10 10 {long}\n20 10 next\n"));
        assert_eq!(map.find(0x10).unwrap().len(), MAX_NAME_BYTES);
        assert_eq!(map.find(0x20), Some("next"));
        assert_eq!(map.losses().cut_names, 1);

        let text = "10 10 a\n20 10 b\n";
        let bounded = |bytes, lines| {
            let mut map = PerfMap::default();
            map.add_bounded(text.as_bytes(), u64::MAX, true, (bytes, lines)).unwrap();
            (map.len(), map.losses().is_truncated)
        };
        assert_eq!(bounded(text.len() as u64, 2), (2, false));
        assert_eq!(bounded(text.len() as u64 - 1, 2), (1, true));
        assert_eq!(bounded(1000, 1), (1, true));
    }

    #[test]
    fn a_line_that_is_still_written_is_left_for_the_next_time() {
        let mut map = PerfMap::default();
        assert_eq!(map.add(&b"10 10 one\n20 10 tw"[..], u64::MAX, false).unwrap(), 10);
        assert_eq!((map.len(), map.losses()), (1, PerfMapLosses::default()));
        assert_eq!(map.add(&b"20 10 two"[..], u64::MAX, true).unwrap(), 9);
        assert_eq!(map.find(0x20), Some("two"));
        // A bound is kept by whole lines.
        assert_eq!(map.add(&b"30 10 three\n40 10 four\n"[..], 1, false).unwrap(), 12);
        assert_eq!(map.find(0x40), None);
    }

    proptest! {
        #[test]
        fn the_last_line_that_covers_an_address_names_it(lines in prop::collection::vec((0u64..200, 1u64..40), 0..60)) {
            let text: String = lines.iter().enumerate().map(|(name, (start, size))| format!("{start:x} {size:x} {name}\n")).collect();
            let map = parse(&text);
            for address in 0..250 {
                let last = lines.iter().rposition(|&(start, size)| (start..start + size).contains(&address));
                let expected = last.map(|name| name.to_string());
                prop_assert_eq!(map.find(address), expected.as_deref());
            }
        }

        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let map = PerfMap::parse(&bytes[..]).unwrap();
            prop_assert!(map.len() <= bytes.len());
        }
    }
}
