//! Everything that was measured over time, as comma-separated values: one row per moment and series.

use std::io::{self, Write};

use super::ExportError;
use crate::profile::{Profile, Site};
use crate::report::escape;

const TITLES: &str = "seconds,series,pid,rank,lens,class,name,bytes";

/// Writes RSS, ledgers, figures and the outstanding bytes of the sites over time.
///
/// | series | name | bytes |
/// |---|---|---|
/// | `rss` | `rss`, `anonymous`, `file`, `shared`, `swap`, `pss` | what `/proc` says |
/// | `ledger` | label of the line, `class` beside it | resident |
/// | `site` | function that the table names | outstanding at that time, of any age |
///
/// What was not measured has no row.
pub fn csv(profile: &Profile, mut out: impl Write) -> Result<(), ExportError> {
    writeln!(out, "{TITLES}")?;
    let pid =
        |process| profile.process(process).map(|row| row.process.target.tgid.to_string()).unwrap_or_default();
    for sample in profile.rss_samples() {
        let pid = pid(sample.process);
        let values = [
            ("rss", Some(sample.rss_bytes)),
            ("anonymous", sample.anonymous_bytes),
            ("file", sample.file_bytes),
            ("shared", sample.shared_bytes),
            ("swap", sample.swap_bytes),
            ("pss", sample.pss_bytes),
        ];
        for (name, bytes) in values.into_iter().filter_map(|(name, bytes)| Some((name, bytes?))) {
            row(&mut out, sample.elapsed_ns, ["rss", &pid, "", "", "", name], bytes)?;
        }
    }
    for look in profile.ledger_looks() {
        let pid = pid(look.process);
        for line in &look.rows {
            let label = line.label.as_deref().unwrap_or_default();
            row(
                &mut out,
                look.elapsed_ns,
                ["ledger", &pid, "", "", line.class.name(), label],
                line.rss_bytes,
            )?;
        }
    }
    for site in &profile.sites {
        let pids: Vec<String> = site.processes.iter().map(|process| pid(*process)).collect();
        let (pids, rank, name) = (pids.join(" "), site.rank.to_string(), name(profile, site));
        let cells = ["site", &pids, &rank, site.lens.name(), site.class.name(), &name];
        for (elapsed_ns, bytes) in profile.points_ns().iter().zip(profile.outstanding_series(site)) {
            row(&mut out, *elapsed_ns, cells, bytes)?;
        }
    }
    Ok(())
}

/// The function that a site is named after.
pub(super) fn name(profile: &Profile, site: &Site) -> String {
    match profile.stack(site).nth(site.culprit) {
        Some(line) => line.label(),
        None if site.is_lost => "[stack lost]".into(),
        None => format!("[no stack: {}]", site.end.name()),
    }
}

fn row(out: &mut impl Write, elapsed_ns: u64, cells: [&str; 6], bytes: u64) -> io::Result<()> {
    let seconds = elapsed_ns as f64 / 1e9;
    let cells = cells.map(cell).join(",");
    writeln!(out, "{seconds:.3},{cells},{bytes}")
}

/// Quoted where it must be (RFC 4180). What a spreadsheet would take for a formula gets an apostrophe, which says
/// that it is text.
fn cell(text: &str) -> String {
    let text = escape(text);
    let is_formula = text.starts_with(['=', '+', '-', '@', '|', '%']);
    let text = if is_formula { format!("'{text}") } else { text.into_owned() };
    if text.contains(['"', ',', ';']) || text.starts_with(' ') || text.ends_with(' ') {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::capture::fixture::{Recording, at, blocks, resident};
    use crate::model::StackEnd;
    use crate::report::tests::{assert_golden, profile};

    #[test]
    fn golden_csv() {
        let mut out = Vec::new();
        csv(&profile(&resident()), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.lines().all(|line| line.split(',').count() == 8), "no name has a comma here");
        assert_golden("export/golden/resident.csv", &text);
    }

    #[test]
    fn names_stay_in_their_cell_and_are_no_formulas() {
        assert_eq!(cell("f(int, char)"), "\"f(int, char)\"");
        assert_eq!(cell("operator\"\"_x"), "\"operator\"\"\"\"_x\"");
        assert_eq!(cell("=HYPERLINK(\"http://x\")"), "\"'=HYPERLINK(\"\"http://x\"\")\"");
        assert_eq!(cell("a\nb\u{1b}"), "a\\nb\\x1b");
        let mut recording = Recording::new();
        let object = recording.object("/x", None);
        let frame = recording.frame(object, 1, at("@SUM(1+1),\n2", "f.c", 1));
        recording.stack(1, StackEnd::ThreadStart, &[frame]);
        recording.tick(1, &[(1, blocks(10, 3, 1))], 1);
        let mut out = Vec::new();
        csv(&profile(&recording), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().last(), Some("1.000,site,4242,1,malloc,allocation,\"'@SUM(1+1),\\n2\",20"));
    }
}
