//! The report for a person in a terminal.

use super::block::{blocks, shared_frames};
use super::head::{head, line, wrapped};
use super::human::{counted, rate, size};
use super::{escape, memory, section, tree};
use crate::model::Lens;
use crate::profile::{By, Profile, Site};

/// Sites that a table shows where the user did not say.
pub const DEFAULT_TABLE_SITES: usize = 10;
/// Narrower terminals get lines of this width all the same.
const MIN_WIDTH: usize = 60;

/// How a table looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableOptions<'a> {
    /// Columns of the terminal.
    pub width: usize,
    /// ANSI colours.
    pub color: bool,
    /// Name of the capture, for the commands at the end; none are shown without it.
    pub file: Option<&'a str>,
}

/// Draws in colours, or does not.
#[derive(Clone, Copy)]
pub(super) struct Paint(bool);

impl Paint {
    pub(super) const fn new(color: bool) -> Self {
        Self(color)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    pub(super) fn warning(self, text: &str) -> String {
        self.with("1;33", text)
    }

    pub(super) fn culprit(self, text: &str) -> String {
        self.with("1;36", text)
    }
}

/// The report as text with a line end. Every name is escaped.
pub fn table(profile: &Profile, options: &TableOptions<'_>) -> String {
    let width = options.width.max(MIN_WIDTH);
    let paint = Paint(options.color);
    let mut text = String::new();
    for warning in warnings(profile) {
        line(&mut text, &wrapped(&format!("! {warning}"), width, "  ", |part| paint.warning(part)));
    }
    if !text.is_empty() {
        text.push('\n');
    }
    head(&mut text, profile, width, paint);
    text.push_str(&memory::ledger(profile, width, paint));
    text.push_str(&memory::figures(profile, width, paint));
    text.push_str(&section::processes(profile, width, paint));
    text.push_str(&section::allocators(profile, width, paint));
    match profile.filter.by {
        _ if profile.lenses.is_empty() => {}
        By::Site => match profile.filter.tree {
            Some(view) => text.push_str(&tree::text(profile, view, width, paint)),
            None => sites(&mut text, profile, width, paint),
        },
        _ => groups(&mut text, profile, width, paint),
    }
    text.push_str(&section::set_aside(profile, width, paint));
    for hint in &profile.hints {
        line(&mut text, &wrapped(&format!("hint: {}", escape(hint)), width, "      ", str::to_owned));
    }
    memory::write_advice(&mut text, profile, width);
    if options.file.is_some() && profile.lenses.is_empty() {
        let pid = profile.header.target.tgid;
        line(&mut text, &format!("next: sudo offheap record {pid} --lens faults"));
    }
    let found = profile.sites_outstanding() + profile.resident.sites_outstanding;
    if let Some(file) = options.file.filter(|_| found > 0) {
        let file = quoted(file);
        let lens = if profile.shows_pages() && profile.lenses.len() > 1 { " --lens faults" } else { "" };
        line(&mut text, &format!("next: offheap export {file} --format html -o report.html"));
        line(&mut text, &format!("      offheap export {file}{lens} --format svg -o flame.svg"));
        if profile.filter.min_age_ns.is_none() && profile.totals.outstanding_count > 0 {
            line(&mut text, &format!("      offheap report {file} --min-age 5s"));
        }
        line(&mut text, &format!("      offheap report {file} --format json"));
    }
    text
}

/// Sentences about what is missing; empty if nothing is.
pub(crate) fn warnings(profile: &Profile) -> Vec<String> {
    let completeness = &profile.completeness;
    let mut warnings = Vec::new();
    if !completeness.is_finished {
        warnings
            .push("unfinished: the recording was interrupted or still goes on; this is what it had".into());
    }
    for loss in completeness.incomplete_losses() {
        let bytes = if loss.bytes > 0 { format!(", {}", size(loss.bytes)) } else { String::new() };
        let times = counted(loss.count, "time", "times");
        let (reason, meaning) = (escape(&loss.reason), escape(&loss.meaning));
        warnings.push(format!("incomplete: {reason} ({times}{bytes}). {meaning}"));
    }
    if completeness.skipped_rows > 0 {
        let rows = counted(completeness.skipped_rows, "row makes", "rows make");
        warnings.push(format!("damaged: {rows} no sense or exceed a bound, and were left out"));
    }
    warnings
}

/// Growth, or why there is none.
pub(super) fn growth(bytes_per_s: Option<f64>) -> String {
    bytes_per_s.map_or_else(|| "growth unknown (too short)".into(), rate)
}

fn sites(text: &mut String, profile: &Profile, width: usize, paint: Paint) {
    let is_mapped = profile.mapped.sites_outstanding > 0;
    let (what, outstanding) = (if is_mapped { "memory" } else { "blocks" }, profile.sites_outstanding());
    let wanted = |lens| profile.filter.lens.is_none_or(|only| only == lens);
    let has_pages = profile.has_lens(Lens::Faults) && wanted(Lens::Faults);
    let has_others =
        [Lens::Malloc, Lens::Mmap].into_iter().any(|lens| profile.has_lens(lens) && wanted(lens));
    if has_others {
        let title = has_pages.then_some("Not freed, by who allocated it");
        site_list(text, profile, false, title, (outstanding, what, "outstanding"), (width, paint));
    }
    if has_pages {
        let title = Some("Resident, by who touched it first");
        let outstanding = profile.resident.sites_outstanding;
        site_list(text, profile, true, title, (outstanding, "pages", "resident"), (width, paint));
    }
}

/// The sites of resident pages, or all others: `outstanding` there are, with `what` in `state`.
fn site_list(
    text: &mut String,
    profile: &Profile,
    pages: bool,
    title: Option<&str>,
    (outstanding, what, state): (usize, &str, &str),
    (width, paint): (usize, Paint),
) {
    let is_shown = |site: &&Site| site.outstanding_count > 0 && (site.lens == Lens::Faults) == pages;
    let shown: Vec<_> = profile.sites.iter().filter(is_shown).collect();
    if let Some(title) = title {
        line(text, &paint.bold(title));
    }
    let shared = shared_frames(profile, &shown);
    for site in &shown {
        text.push_str(&blocks(profile, site, shared, width, paint));
        text.push('\n');
    }
    let more = outstanding.saturating_sub(shown.len());
    if shown.is_empty() && more == 0 && pages {
        line(text, "Nothing touched while recording is resident.");
        text.push('\n');
    } else if shown.is_empty() && more == 0 {
        nothing(text);
    } else if more > 0 {
        let sites = counted(more as u64, "more call site has", "more call sites have");
        line(text, &paint.dim(&format!("{sites} {what} {state} (--top)")));
        text.push('\n');
    }
}

fn groups(text: &mut String, profile: &Profile, width: usize, paint: Paint) {
    let groups = section::groups(profile, width, paint);
    if groups.is_empty() {
        nothing(text);
    }
    text.push_str(&groups);
}

fn nothing(text: &mut String) {
    line(text, "Nothing allocated while recording is outstanding.");
    text.push('\n');
}

/// A file name as a shell takes it.
fn quoted(name: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "/._-+=:@%".contains(character);
    if !name.is_empty() && name.chars().all(is_plain) {
        return name.to_owned();
    }
    format!("'{}'", escape(name).replace('\'', "'\\''"))
}
