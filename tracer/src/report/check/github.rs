//! The result as commands for a workflow of GitHub Actions: annotations at the lines that allocate.

use std::path::Path;

use super::super::escape;
use super::{culprit, facts, found, notes, plain, verdict};
use crate::profile::{Gate, GateVerdict, Outcome, Site, SiteFrame};

/// Annotations of one step that are shown, at most.
const ANNOTATIONS: usize = 10;

/// Commands, each on one line: the verdict first, then the call sites, then what is not sure. Nothing else is printed, so
/// that no name of the target can be a command. Paths below one of `roots` are made relative to it, as annotations
/// want them.
pub fn github(gate: &Gate<'_>, roots: &[&Path]) -> String {
    let (level, title) = match gate.verdict() {
        GateVerdict::Passed => ("notice", "offheap check passed"),
        GateVerdict::Breached => ("error", "offheap check: breach"),
        GateVerdict::CommandFailed => ("error", "offheap check: the command failed"),
        GateVerdict::Incomplete => ("error", "offheap check: incomplete"),
    };
    let mut text = command(level, title, None, &verdict(gate));
    for offender in gate.offenders.iter().take(ANNOTATIONS - 1) {
        let Some(site) = gate.site(offender.site) else { continue };
        let title = format!(
            "offheap: {} in {}",
            facts(gate, offender, site).first().map_or("", String::as_str),
            culprit(gate, site)
        );
        text.push_str(&command("error", &title, place(gate, site, roots).as_ref(), &plain(gate, offender)));
    }
    for finding in gate.findings.iter().filter(|finding| finding.outcome == Outcome::NotSure) {
        let title = format!("offheap check: not sure of {}", finding.rule.name());
        text.push_str(&command("warning", &title, None, &found(gate, finding)));
    }
    for note in notes(gate) {
        text.push_str(&command("notice", "offheap check", None, &note));
    }
    text
}

/// File and line of the function that asked; of the nearest caller that has one.
fn place(gate: &Gate<'_>, site: &Site, roots: &[&Path]) -> Option<(String, u32)> {
    let place = |line: SiteFrame<'_>| Some((line.location.file.as_ref()?.clone(), line.location.line?));
    let (file, line) = gate.profile.stack(site).skip(site.culprit).find_map(place)?;
    let below = roots.iter().find_map(|root| Path::new(&file).strip_prefix(root).ok());
    let file = below.map_or(file.clone(), |path| path.to_string_lossy().into_owned());
    Some((escape(&file).into_owned(), line))
}

fn command(level: &str, title: &str, place: Option<&(String, u32)>, message: &str) -> String {
    let place =
        place.map_or_else(String::new, |(file, line)| format!("file={},line={line},", property(file)));
    format!("::{level} {place}title={}::{}\n", property(title), data(message.trim_end()))
}

/// As the runner wants messages.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// As the runner wants properties.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}
