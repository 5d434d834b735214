//! The head of a report: who, when, how much, how complete.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::estimate::{error_of_bytes, error_of_count};
use super::human::{count, counted, middle, percent, seconds, size};
use super::table::{Paint, growth};
use super::{escape, estimate, memory, verdict};
use crate::model::{EndReason, Lens, ProcessEnd};
use crate::profile::{ProcessSummary, Profile, Rss, SiteVerdict, Totals};

/// Distinct names of processes in the first line.
const NAMES_SHOWN: usize = 5;

/// Who, what, when, how much, how well.
pub(super) fn head(text: &mut String, profile: &Profile, width: usize, paint: Paint) {
    title(text, profile, width, paint);
    let target = &profile.header.target;
    let cmdline = target.cmdline.join(" ");
    field(text, "command", &middle(&escape(&cmdline), width - 10), width);
    field(text, "recorded", &recorded(profile), width);
    if let Some(first) = profile.verdicts.first() {
        let said = format!("{}: {}", first.kind.name(), verdict::summary(profile, first));
        field(text, "verdict", &escape(&said), width);
        field(text, "next", &escape(&verdict::next(profile, first)), width);
    }
    let mut rss = profile.rss.map_or_else(|| "not read".into(), |rss| start_and_end(&rss));
    if process_count(profile) > 1 {
        let _ = write!(rss, " (pid {} alone)", target.tgid);
    }
    field(text, "RSS", &rss, width);
    if let Some(only) = only(profile) {
        field(text, "only", &only, width);
    }
    if let Some(limit) = profile.limits.first() {
        field(text, "limit", &memory::limit(limit), width);
    }
    for note in estimate::notes(profile) {
        field(text, "estimated", &note, width);
    }
    sums(text, profile, width);
    if let Some(cost) = profile.cost {
        let cpu =
            cost.probe_cpu_percent.map(|percent| format!(", {percent:.1} % of a CPU")).unwrap_or_default();
        let traps =
            cost.trap_cpu_percent.map(|percent| format!(" and {percent:.1} % in traps")).unwrap_or_default();
        let of_target = cost
            .target_percent
            .map(|percent| format!(": {percent:.1} % of the target's CPU time"))
            .unwrap_or_default();
        field(
            text,
            "probes",
            &format!("{} hits/s{cpu}{traps}{of_target}", count(cost.probe_hits_per_s.round() as u64)),
            width,
        );
    }
    text.push('\n');
}

/// Rules named in one line.
const RULES_SHOWN: usize = 4;

/// What suppressions have taken out of everything else.
pub(super) fn hidden(profile: &Profile) -> String {
    let sites: usize = profile.suppressed.iter().map(|sum| sum.sites).sum();
    let mut rules: Vec<String> = profile
        .suppressed
        .iter()
        .take(RULES_SHOWN)
        .map(|sum| {
            format!(
                "{} ({}, {})",
                escape(&sum.rule.pattern),
                sum.rule.origin.name(),
                size(sum.outstanding_bytes)
            )
        })
        .collect();
    if profile.suppressed.len() > RULES_SHOWN {
        rules.push("…".to_owned());
    }
    let sites = counted(sites as u64, "call site", "call sites");
    format!("{} at {sites}, suppressed by {}", size(profile.suppressed_bytes()), rules.join(", "))
}

/// What each lens found.
fn sums(text: &mut String, profile: &Profile, width: usize) {
    let is_wanted = |lens| profile.has_lens(lens) && profile.filter.lens.is_none_or(|only| only == lens);
    if is_wanted(Lens::Malloc) {
        let mut unfreed = amount(&profile.totals, ("block", "blocks"));
        if let Some(age_ns) = profile.filter.min_age_ns {
            let _ = write!(unfreed, "; blocks older than {}, growth of any age", seconds(age_ns));
        }
        field(text, "unfreed", &unfreed, width);
    }
    if profile.filter.lens == Some(Lens::Mmap) || profile.mapped.sites > 0 {
        let mut mapped = amount(&profile.mapped, ("mapping", "mappings"));
        if profile.filter.min_age_ns.is_some() {
            mapped.push_str("; of any age");
        }
        field(text, "mapped", &mapped, width);
    }
    if is_wanted(Lens::Faults) {
        field(text, "resident", &amount(&profile.resident, ("page", "pages")), width);
        if let Some(accounted) = memory::accounted(profile) {
            field(text, "", &accounted, width);
        }
    }
    if !profile.suppressed.is_empty() {
        field(text, "hidden", &hidden(profile), width);
    }
    let too_short = profile.sites.iter().filter_map(|site| site.verdict.as_ref());
    let too_short = too_short.filter(|verdict| verdict.is_too_short()).find_map(SiteVerdict::needed_s);
    let is_said = profile.verdicts.first().is_some_and(|verdict| verdict.needed_s().is_some());
    if let Some(needed_s) = too_short.filter(|_| !is_said) {
        let needed_ns = (needed_s.clamp(1.0, 1e6).ceil() * 1e9) as u64;
        let said = format!("too few samples to tell leaks; record for {} more", seconds(needed_ns));
        field(text, "verdicts", &said, width);
    }
    if profile.lenses.is_empty() {
        field(text, "sites", "none: no call site was observed, memory was only looked at", width);
    } else {
        stacks(text, profile, width);
    }
}

/// The process, or how many and which.
fn title(text: &mut String, profile: &Profile, width: usize, paint: Paint) {
    let processes = process_count(profile);
    if processes > 1 {
        let named = middle(&escape(&names(profile)), width.saturating_sub(24));
        return line(text, &format!("{}: {named}", paint.bold(&format!("{} processes", count(processes)))));
    }
    // After an exec it is the same process with another name.
    let mut comms: Vec<&str> = profile.processes.iter().map(|row| row.process.target.comm.as_str()).collect();
    comms.dedup();
    let target = profile.processes.last().map_or(&profile.header.target, |row| &row.process.target);
    let mut who = format!("pid {}", target.tgid);
    if let Some(inner) = target.inner_tgid {
        let _ = write!(who, ", {inner} in its namespace");
    }
    if let Some(runtime) = &target.runtime {
        let version = runtime.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
        let _ = write!(who, ", {}{version}", runtime.name);
    }
    let comm = middle(&escape(&comms.join(" → ")), width / 2);
    let who = middle(&escape(&who), width.saturating_sub(comm.chars().count() + 3));
    line(text, &format!("{} ({who})", paint.bold(&comm)));
}

/// `node (pid 7)`, or how many processes and which; safe to print.
pub(crate) fn who(profile: &Profile) -> String {
    let target = &profile.header.target;
    match process_count(profile) {
        0 | 1 => format!("{} (pid {})", escape(&target.comm), target.tgid),
        several => format!("{several} processes: {}", escape(&names(profile))),
    }
}

/// Processes that were seen; one that has executed another program is counted under its last name.
fn process_count(profile: &Profile) -> u64 {
    last_programs(profile).count() as u64
}

fn last_programs(profile: &Profile) -> impl Iterator<Item = &ProcessSummary> {
    let is_replaced =
        |row: &&ProcessSummary| row.ended.is_some_and(|ended| ended.how == ProcessEnd::Executed);
    profile.processes.iter().filter(move |row| !is_replaced(row))
}

/// `nginx (1 parent, 2 children)`, or the names and how many have each.
fn names(profile: &Profile) -> String {
    let mut names: Vec<(&str, u64)> = Vec::new();
    let (mut parents, mut others) = (0, 0);
    for row in last_programs(profile) {
        let comm = row.process.target.comm.as_str();
        if row.process.parent.is_none() {
            parents += 1;
        }
        let is_known = names.iter().any(|(name, _)| *name == comm);
        if !is_known && names.len() < NAMES_SHOWN {
            names.push((comm, 0));
        }
        match names.iter_mut().find(|(name, _)| *name == comm) {
            Some((_, count)) => *count += 1,
            None => others += 1,
        }
    }
    if let [(name, count)] = names.as_slice() {
        if parents == *count {
            return (*name).to_owned();
        }
        let children = counted(count - parents.min(*count), "child", "children");
        return format!("{name} ({}, {children})", counted(parents, "parent", "parents"));
    }
    let mut parts: Vec<_> = names
        .into_iter()
        .map(|(name, count)| if count == 1 { name.to_owned() } else { format!("{name} ({count})") })
        .collect();
    if others > 0 {
        parts.push(counted(others, "other", "others"));
    }
    parts.join(", ")
}

/// What the report is restricted to.
fn only(profile: &Profile) -> Option<String> {
    let filter = &profile.filter;
    let parts: Vec<_> = filter
        .lens
        .map(|lens| match lens {
            Lens::Malloc => "allocator calls".to_owned(),
            Lens::Mmap => "mappings".to_owned(),
            Lens::Faults => "resident pages".to_owned(),
        })
        .into_iter()
        .chain(filter.tgid.map(|tgid| format!("process {tgid}")))
        .chain(filter.allocator.as_ref().map(|name| format!("allocator {}", escape(name))))
        .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// `1.0 MiB in 3 blocks at 2 call sites, +1.0 KiB/s`.
fn amount(totals: &Totals, (one, many): (&str, &str)) -> String {
    let resident = match (totals.resident_bytes, one) {
        (Some(bytes), "block" | "mapping") if totals.outstanding_count > 0 => {
            format!(" ({} of it resident)", size(bytes))
        }
        _ => String::new(),
    };
    format!(
        "{}{}{resident} in {}{} at {}, {}",
        size(totals.outstanding_bytes),
        error_of_bytes(totals.variance.as_ref()),
        counted(totals.outstanding_count, one, many),
        error_of_count(totals.variance.as_ref()),
        counted(totals.sites_outstanding as u64, "call site", "call sites"),
        growth(totals.growth_bytes_per_s),
    )
}

pub(super) fn field(text: &mut String, name: &str, value: &str, width: usize) {
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
        Some(EndReason::OverBudget) => ", ended because its budget could not be held",
        None => ", unfinished",
    };
    format!("{} from {start}{end}", seconds(profile.window.elapsed_ns))
}

fn start_and_end(rss: &Rss) -> String {
    format!("{} → {}, {}", size(rss.start_bytes), size(rss.end_bytes), growth(rss.growth_bytes_per_s))
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

pub(super) fn line(text: &mut String, content: &str) {
    text.push_str(content.trim_end());
    text.push('\n');
}

/// Breaks a sentence into lines.
pub(super) fn wrapped(sentence: &str, width: usize, indent: &str, paint: impl Fn(&str) -> String) -> String {
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
