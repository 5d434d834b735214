//! The report for a person in a terminal.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::block::{blocks, shared_frames};
use super::escape;
use super::human::{count, counted, middle, percent, rate, seconds, size};
use crate::model::EndReason;
use crate::profile::{Profile, Rss};

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
    sites(&mut text, profile, width, paint);
    for hint in &profile.hints {
        line(&mut text, &wrapped(&format!("hint: {}", escape(hint)), width, "      ", str::to_owned));
    }
    if let Some(file) = options.file.filter(|_| profile.totals.outstanding_count > 0) {
        let file = quoted(file);
        line(&mut text, &format!("next: offheap export {file} --format svg -o flame.svg"));
        if profile.filter.min_age_ns.is_none() {
            line(&mut text, &format!("      offheap report {file} --min-age 5s"));
        }
        line(&mut text, &format!("      offheap report {file} --format json"));
    }
    text
}

fn line(text: &mut String, content: &str) {
    text.push_str(content.trim_end());
    text.push('\n');
}

/// Sentences about what is missing; empty if nothing is.
pub(super) fn warnings(profile: &Profile) -> Vec<String> {
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

fn head(text: &mut String, profile: &Profile, width: usize, paint: Paint) {
    let target = &profile.header.target;
    let mut who = format!("pid {}", target.tgid);
    if let Some(inner) = target.inner_tgid {
        let _ = write!(who, ", {inner} in its namespace");
    }
    if let Some(runtime) = &target.runtime {
        let version = runtime.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
        let _ = write!(who, ", {}{version}", runtime.name);
    }
    let comm = middle(&escape(&target.comm), width / 2);
    let who = middle(&escape(&who), width.saturating_sub(comm.chars().count() + 3));
    line(text, &format!("{} ({who})", paint.bold(&comm)));
    let cmdline = target.cmdline.join(" ");
    field(text, "command", &middle(&escape(&cmdline), width - 10), width);
    field(text, "recorded", &recorded(profile), width);
    field(text, "RSS", &profile.rss.map_or_else(|| "not read".into(), |rss| memory(&rss)), width);
    let totals = &profile.totals;
    let mut unfreed = format!(
        "{} in {} at {}",
        size(totals.outstanding_bytes),
        counted(totals.outstanding_count, "block", "blocks"),
        counted(totals.sites_outstanding as u64, "call site", "call sites"),
    );
    let _ = write!(unfreed, ", {}", growth(totals.growth_bytes_per_s));
    if let Some(age_ns) = profile.filter.min_age_ns {
        let _ = write!(unfreed, "; blocks older than {}, growth of any age", seconds(age_ns));
    }
    field(text, "unfreed", &unfreed, width);
    stacks(text, profile, width);
    if let Some(cost) = profile.cost {
        let cpu =
            cost.probe_cpu_percent.map(|percent| format!(", {percent:.1} % of a CPU")).unwrap_or_default();
        field(text, "probes", &format!("{} hits/s{cpu}", count(cost.probe_hits_per_s.round() as u64)), width);
    }
    text.push('\n');
}

fn field(text: &mut String, name: &str, value: &str, width: usize) {
    line(text, &wrapped(&format!("{name:<9} {value}"), width, "          ", str::to_owned));
}

fn recorded(profile: &Profile) -> String {
    let start = Timestamp::from_nanosecond(i128::from(profile.header.start_realtime_ns))
        .map(|start| format!("{start:.0}"))
        .unwrap_or_else(|_| "an unknown time".into());
    let end = match profile.window.end {
        Some(EndReason::Duration) => "",
        Some(EndReason::Interrupted) => ", stopped by the user",
        Some(EndReason::TargetExited) => ", ended by the target's exit",
        None => ", unfinished",
    };
    format!("{} from {start}{end}", seconds(profile.window.elapsed_ns))
}

fn memory(rss: &Rss) -> String {
    format!("{} → {}, {}", size(rss.start_bytes), size(rss.end_bytes), growth(rss.growth_bytes_per_s))
}

/// Growth, or why there is none.
pub(super) fn growth(bytes_per_s: Option<f64>) -> String {
    bytes_per_s.map_or_else(|| "growth unknown (too short)".into(), rate)
}

fn stacks(text: &mut String, profile: &Profile, width: usize) {
    let stacks = profile.completeness.stacks;
    if stacks.total == 0 {
        return field(text, "stacks", "none", width);
    }
    let whole = format!(
        "{} whole ({} of {}), {} of the allocations",
        percent(stacks.whole, stacks.total),
        count(stacks.whole),
        count(stacks.total),
        percent(stacks.whole_allocated_count, stacks.allocated_count),
    );
    field(text, "stacks", &whole, width);
    for broken in &profile.completeness.broken {
        let function = broken.function.as_deref().unwrap_or("the allocator's caller");
        let tail = format!(": {} ({})", broken.end.name(), counted(broken.stacks, "stack", "stacks"));
        let room = width.saturating_sub(20 + tail.chars().count());
        field(
            text,
            "",
            &format!("broken at {}{tail}", super::human::function(&escape(function), room)),
            width,
        );
    }
}

fn sites(text: &mut String, profile: &Profile, width: usize, paint: Paint) {
    let shown: Vec<_> = profile.sites.iter().filter(|site| site.outstanding_count > 0).collect();
    let shared = shared_frames(profile, &shown);
    for site in &shown {
        text.push_str(&blocks(profile, site, shared, width, paint));
        text.push('\n');
    }
    let more = profile.totals.sites_outstanding - shown.len().min(profile.totals.sites_outstanding);
    if shown.is_empty() && more == 0 {
        line(text, "Nothing allocated while recording is outstanding.");
        text.push('\n');
    } else if more > 0 {
        let sites = counted(more as u64, "more call site has", "more call sites have");
        line(text, &paint.dim(&format!("{sites} blocks outstanding (--top)")));
        text.push('\n');
    }
}

/// Breaks a sentence into lines.
fn wrapped(sentence: &str, width: usize, indent: &str, paint: impl Fn(&str) -> String) -> String {
    let mut words = sentence.split(' ').map(|word| middle(word, width - indent.len()));
    let mut lines = vec![words.next().unwrap_or_default()];
    for word in words {
        let Some(last) = lines.last_mut() else { break };
        if last.trim().is_empty() || last.chars().count() + 1 + word.chars().count() <= width {
            last.push(' ');
            last.push_str(&word);
        } else {
            lines.push(format!("{indent}{word}"));
        }
    }
    lines.iter().map(|line| paint(line)).collect::<Vec<_>>().join("\n")
}

/// A file name as a shell takes it.
fn quoted(name: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "/._-+=:@%".contains(character);
    if !name.is_empty() && name.chars().all(is_plain) {
        return name.to_owned();
    }
    format!("'{}'", escape(name).replace('\'', "'\\''"))
}
