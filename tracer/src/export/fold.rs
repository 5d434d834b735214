//! Folded stacks: one line per site, root first, frames separated by semicolons, then the bytes.

use std::io::Write;

use super::ExportError;
use crate::profile::{Diff, DiffRow, Profile, Site};
use crate::report::escape;
use crate::report::stack_tree::{memory_name, outer_names};

/// Writes `root;…;leaf BYTES` for every site with outstanding bytes: blocks, and mappings that can be leaks; or
/// resident pages, where nothing else was observed or asked for. A
/// stack that does not reach its root begins with a frame in brackets that says why, so that it is not taken
/// for a whole one. The leaf of a mapping or a page says in brackets what it is. Where there are several processes,
/// each has a root frame.
pub fn folded(profile: &Profile, mut out: impl Write) -> Result<(), ExportError> {
    for site in profile.drawable_sites().filter(|site| site.outstanding_bytes > 0) {
        writeln!(out, "{}", line(profile, site))?;
    }
    Ok(())
}

/// One line for every row of a comparison: the stack, bytes before, bytes after.
pub fn diff_folded(diff: &Diff<'_>, mut out: impl Write) -> Result<(), ExportError> {
    for line in diff_lines(diff) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// One line without its end.
pub(super) fn line(profile: &Profile, site: &Site) -> String {
    format!("{} {}", stack_names(profile, site), site.outstanding_bytes)
}

/// One line for each row whose bytes can be added: the stack, bytes before, bytes after.
pub(super) fn diff_lines(diff: &Diff<'_>) -> Vec<String> {
    let line = |row: &DiffRow| {
        let (profile, site) = diff.shown(row)?;
        let names = stack_names(profile, site);
        Some(format!("{names} {} {}", row.before.outstanding_bytes, row.after.outstanding_bytes))
    };
    diff.drawable_rows().filter_map(line).collect()
}

/// The frames of a site, root first, separated by semicolons.
fn stack_names(profile: &Profile, site: &Site) -> String {
    let mut names: Vec<String> = outer_names(profile, site).iter().map(|name| frame_name(name)).collect();
    let first = names.len();
    names.extend(profile.stack(site).map(|frame| frame_name(&frame.label())));
    if let Some(stack) = names.get_mut(first..) {
        stack.reverse();
    }
    names.extend(memory_name(site));
    names.join(";")
}

/// Escapes what has a meaning in the format: the separator, line ends, blanks and `#` at the begin
/// (comments), and a number at the end (a second count).
fn frame_name(label: &str) -> String {
    let name = escape(label).replace(';', "\\x3b");
    let name = name.trim();
    if let Some(rest) = name.strip_prefix('#') {
        return format!("\\x23{rest}");
    }
    match name.rsplit_once(' ') {
        Some((head, tail))
            if tail.chars().all(|character| character.is_ascii_digit() || character == '.') =>
        {
            format!("{head}\\x20{tail}")
        }
        _ if name.is_empty() => "[empty name]".into(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::capture::fixture::{Recording, at, blocks, leaky, server};
    use crate::model::StackEnd;
    use crate::report::tests::{assert_golden, profile};

    #[test]
    fn golden_folded() {
        let mut out = Vec::new();
        folded(&profile(&leaky()), &mut out).unwrap();
        assert_golden("export/golden/leaky.folded", &String::from_utf8(out).unwrap());
    }

    #[test]
    fn golden_folded_of_several_processes() {
        let mut out = Vec::new();
        folded(&profile(&server()), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(!text.contains(['\u{1b}', '\u{202e}']) && !text.contains("arena"));
        assert_golden("export/golden/server.folded", &text);
    }

    #[test]
    fn names_do_not_break_the_format() {
        assert_eq!(frame_name("<[u8; 8]>::f"), "<[u8\\x3b 8]>::f");
        assert_eq!(frame_name("a\nb 12"), "a\\nb\\x2012");
        assert_eq!(frame_name("# no comment"), "\\x23 no comment");
        assert_eq!(frame_name("  "), "[empty name]");
        assert_eq!(frame_name("operator new(unsigned long)"), "operator new(unsigned long)");
    }

    #[test]
    fn lines_sum_up_to_the_outstanding_bytes() {
        let mut recording = Recording::new();
        let object = recording.object("/x", None);
        for site in 0..50u32 {
            let frame = recording.frame(object, u64::from(site % 7), at("f 1;2", "f.c", site));
            recording.stack(site, StackEnd::ALL[site as usize % StackEnd::ALL.len()], &[frame]);
        }
        let samples: Vec<_> = (0..50).map(|site| (site, blocks(10 + u64::from(site), 3, 1))).collect();
        recording.tick(1, &samples, 1);
        let profile = profile(&recording);
        let mut out = Vec::new();
        folded(&profile, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let sum: u64 =
            text.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
        assert_eq!(sum, profile.totals.outstanding_bytes);
        assert_eq!(sum, (0..50).map(|site| (10 + site) * 2).sum::<u64>());
    }
}
