//! The report for programs: schema `offheap.report/1`, described by `docs/report-schema.json`.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::escape::is_deceptive;
use super::estimate::notes;
use super::section::{group_name, state};
use super::{tree, verdict};
use crate::model::{
    EndReason, LedgerClass, Lens, LiveSize, MemoryClass, MemoryLimit, ProcessId, Runtime, Target,
};
use crate::profile::{
    AllocatorSummary, FigureSummary, Group, GroupKey, LedgerLine, LedgerSummary, ProcessSummary,
    ProcessVerdict, Profile, Rss, SetAside, Site, SiteFrame, SiteVerdict, Suppressed, Totals, advice,
};

/// Name and version of the schema.
pub const SCHEMA: &str = "offheap.report/1";

/// The report. A field that was not measured is null.
pub fn json(profile: &Profile) -> Value {
    let mut report = json!({
        "schema": SCHEMA,
        "target": target(&profile.header.target),
        "lenses": profile.lenses.iter().map(|lens| lens.name()).collect::<Vec<_>>(),
        "window": {
            "start": start(profile.header.start_realtime_ns),
            "seconds": seconds(profile.window.elapsed_ns),
            "end": profile.window.end.map(EndReason::name),
            "ticks": profile.window.tick_count,
            "points": profile.window.point_count,
        },
        "completeness": completeness(profile),
        "overhead": profile.cost.map(|cost| json!({
            "probe_hits_per_s": cost.probe_hits_per_s,
            "probe_cpu_percent": cost.probe_cpu_percent,
            "trap_cpu_percent": cost.trap_cpu_percent,
            "target_percent": cost.target_percent,
        })),
        "estimate": profile.estimate.map(|estimate| json!({
            "sample_bytes": estimate.sample_bytes,
            "windows": estimate.windows.map(|windows| json!({
                "allowed_percent": windows.allowed_share * 100.0,
                "seen_percent": windows.seen_part.map(|part| part * 100.0),
                "count": windows.count,
            })),
            "notes": notes(profile),
        })),
        "rss": profile.rss.map(|memory| {
            let mut memory = rss(&memory);
            memory["ledger"] = profile.ledger().map(ledger).into();
            memory
        }),
        "figures": profile.figures.iter().map(|row| figure(profile, row)).collect::<Vec<_>>(),
        "limits": profile.limits.iter().map(|row| limit(profile, row)).collect::<Vec<_>>(),
        "verdict": profile.verdicts.first().map(|verdict| process_verdict(profile, verdict)),
        "filter": {
            "sort": profile.filter.sort.name(),
            "min_age_s": profile.filter.min_age_ns.map(seconds),
            "top": profile.filter.top,
            "by": profile.filter.by.name(),
            "lens": profile.filter.lens.map(Lens::name),
            "pid": profile.filter.tgid,
            "allocator": profile.filter.allocator,
            "class": profile.filter.class.map(MemoryClass::name),
            "merge_processes": profile.filter.merges_processes,
        },
        "totals": totals(profile),
        "processes": profile.processes.iter().map(|row| process(profile, row)).collect::<Vec<_>>(),
        "allocators": profile.allocators.iter().map(allocator).collect::<Vec<_>>(),
        "groups": profile.groups.iter().map(|row| group(profile, row)).collect::<Vec<_>>(),
        "mappings": profile.set_aside.iter().map(|row| set_aside(profile, row)).collect::<Vec<_>>(),
        "suppressed": suppressed(profile),
        "sites": profile.sites.iter().map(|row| site(profile, row)).collect::<Vec<_>>(),
        "hints": profile.hints,
    });
    if let Some(view) = profile.filter.tree {
        report["tree"] = tree::json(profile, view);
    }
    report
}

/// The report as text with a line end. What a terminal would act on is escaped as JSON can.
pub fn json_text(profile: &Profile) -> String {
    safe_text(&json(profile))
}

/// A document as text with a line end, without what a terminal would act on.
pub(super) fn safe_text(document: &Value) -> String {
    let plain = format!("{document:#}\n");
    let mut text = String::with_capacity(plain.len());
    for character in plain.chars() {
        // Beyond layout, such characters occur in strings only, where an escape means the same.
        if character != '\n' && is_deceptive(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            text.push(character);
        }
    }
    text
}

/// What rules have hidden.
pub(super) fn suppressed(profile: &Profile) -> Vec<Value> {
    let row = |sum: &Suppressed| {
        json!({
            "pattern": sum.rule.pattern,
            "origin": sum.rule.origin.name(),
            "sites": sum.sites,
            "outstanding_bytes": sum.outstanding_bytes,
            "outstanding_count": sum.outstanding_count,
        })
    };
    profile.suppressed.iter().map(row).collect()
}

pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

pub(super) fn start(realtime_ns: u64) -> Option<String> {
    Timestamp::from_nanosecond(i128::from(realtime_ns)).ok().map(|start| start.to_string())
}

fn rss(rss: &Rss) -> Value {
    json!({
        "start_bytes": rss.start_bytes,
        "end_bytes": rss.end_bytes,
        "growth_bytes_per_s": rss.growth_bytes_per_s,
    })
}

fn ledger(summary: &LedgerSummary) -> Value {
    let line = |line: &LedgerLine| {
        json!({
            "class": line.row.class.name(),
            "label": line.row.label,
            "bytes": line.row.rss_bytes,
            "start_bytes": line.start_bytes,
            "growth_bytes_per_s": line.growth_bytes_per_s,
            "mapping_count": line.row.mapping_count,
            "size_bytes": line.row.size_bytes,
            "pss_bytes": line.row.pss_bytes,
            "swap_bytes": line.row.swap_bytes,
        })
    };
    summary.lines.iter().map(line).collect()
}

fn pid(profile: &Profile, process: ProcessId) -> Option<u32> {
    profile.process(process).map(|row| row.process.target.tgid)
}

fn figure(profile: &Profile, row: &FigureSummary) -> Value {
    json!({
        "process": row.last.process.0,
        "pid": pid(profile, row.last.process),
        "source": row.last.source,
        "name": row.last.name,
        "bytes": row.last.bytes,
        "start_bytes": row.start_bytes,
    })
}

fn limit(profile: &Profile, row: &MemoryLimit) -> Value {
    json!({
        "process": row.process.0,
        "pid": pid(profile, row.process),
        "source": row.source,
        "limit_bytes": row.limit_bytes,
        "used_bytes": row.used_bytes,
    })
}

fn runtime(runtime: &Runtime) -> Value {
    json!({ "name": runtime.name, "version": runtime.version })
}

pub(super) fn target(target: &Target) -> Value {
    json!({
        "pid": target.tgid,
        "comm": target.comm,
        "cmdline": target.cmdline,
        "runtime": target.runtime.as_ref().map(runtime),
        "inner_pid": target.inner_tgid,
        "exe": target.exe,
    })
}

fn process(profile: &Profile, row: &ProcessSummary) -> Value {
    let has_mappings = profile.has_lens(Lens::Mmap);
    let mut process = target(&row.process.target);
    let parent = row.process.parent.and_then(|id| profile.process(id));
    let more = json!({
        "id": row.process.id.0,
        "parent": row.process.parent.map(|id| id.0),
        "parent_pid": parent.map(|row| row.process.target.tgid),
        "state": state(row),
        "start_s": seconds(row.process.start_ns),
        "end_s": row.ended.map(|ended| seconds(ended.elapsed_ns)),
        "rss": row.rss.as_ref().map(|memory| {
            let mut memory = rss(memory);
            memory["ledger"] = row.ledger.as_ref().map(ledger).into();
            memory
        }),
        "outstanding_bytes": row.unfreed.bytes,
        "outstanding_count": row.unfreed.count,
        "mapped_bytes": has_mappings.then_some(row.mapped.bytes),
        "mapped_count": has_mappings.then_some(row.mapped.count),
        "resident_bytes": profile.has_lens(Lens::Faults).then_some(row.resident.bytes),
        "resident_count": profile.has_lens(Lens::Faults).then_some(row.resident.count),
        "verdict": profile
            .verdicts
            .iter()
            .find(|verdict| verdict.process == row.process.id)
            .map(|verdict| process_verdict(profile, verdict)),
    });
    if let (Some(process), Value::Object(more)) = (process.as_object_mut(), more) {
        process.extend(more);
    }
    process
}

fn allocator(row: &AllocatorSummary) -> Value {
    json!({
        "id": row.allocator.id.0,
        "name": row.allocator.name,
        "prefix": row.allocator.prefix,
        "path": row.allocator.path,
        "build_id": row.allocator.build_id,
        "outstanding_bytes": row.unfreed.bytes,
        "outstanding_count": row.unfreed.count,
        "allocated_bytes": row.counters.allocated_bytes,
        "allocated_count": row.counters.allocated_count,
        "freed_bytes": row.counters.freed_bytes,
        "freed_count": row.counters.freed_count,
    })
}

pub(super) fn totals(profile: &Profile) -> Value {
    let sums = |totals: &Totals| {
        json!({
            "sites": totals.sites,
            "outstanding_bytes": totals.outstanding_bytes,
            "outstanding_count": totals.outstanding_count,
            "outstanding_bytes_error": totals.variance.map(|variance| variance.error_bytes()),
            "outstanding_count_error": totals.variance.and_then(|variance| variance.error_count()),
            "growth_bytes_per_s": totals.growth_bytes_per_s,
            "allocated_bytes": totals.counters.allocated_bytes,
            "allocated_count": totals.counters.allocated_count,
            "freed_bytes": totals.counters.freed_bytes,
            "freed_count": totals.counters.freed_count,
            "resident_bytes": totals.resident_bytes,
        })
    };
    let mut totals = sums(&profile.totals);
    totals["resident"] = profile.has_lens(Lens::Faults).then(|| sums(&profile.resident)).into();
    totals["mapped"] = profile.has_lens(Lens::Mmap).then(|| sums(&profile.mapped)).into();
    totals
}

fn group(profile: &Profile, group: &Group) -> Value {
    let (process, name) = match &group.key {
        GroupKey::Process(id) => {
            let target = profile.process(*id).map(|row| &row.process.target);
            (Some(*id), target.map_or_else(String::new, |target| target.comm.clone()))
        }
        GroupKey::Executable(name) | GroupKey::Allocator(name) => (None, name.clone()),
        GroupKey::Class(class) => (None, class.name().to_owned()),
        GroupKey::Function { name, .. } | GroupKey::Thread { name, .. } => (None, name.clone()),
        GroupKey::Object(path) => (None, path.clone()),
        GroupKey::NoSize => (None, format!("size not known: {}", profile.why_no_sizes().unwrap_or("?"))),
        key => (None, group_name(profile, key)),
    };
    let (has_mappings, has_pages) = (profile.has_lens(Lens::Mmap), profile.has_lens(Lens::Faults));
    let pid = process.and_then(|id| profile.process(id)).map(|row| row.process.target.tgid);
    let sizes = match &group.key {
        GroupKey::SizeClass(bucket) => Some(LiveSize::sizes(*bucket)),
        _ => None,
    };
    json!({
        "rank": group.rank,
        "name": name,
        "object": match &group.key {
            GroupKey::Function { object, .. } | GroupKey::Thread { object, .. } => object.as_ref(),
            GroupKey::Object(path) => Some(path),
            _ => None,
        },
        "least_size_bytes": sizes.map(|sizes| sizes.0),
        "largest_size_bytes": sizes.map(|sizes| sizes.1),
        "process": process.map(|id| id.0),
        "pid": pid,
        "sites": group.unfreed.sites + group.mapped.sites + group.resident.sites,
        "outstanding_bytes": group.unfreed.outstanding_bytes,
        "outstanding_count": group.unfreed.outstanding_count,
        "mapped_bytes": has_mappings.then_some(group.mapped.outstanding_bytes),
        "mapped_count": has_mappings.then_some(group.mapped.outstanding_count),
        "resident_bytes": has_pages.then_some(group.resident.outstanding_bytes),
        "resident_count": has_pages.then_some(group.resident.outstanding_count),
        "growth_bytes_per_s": group.growth_bytes_per_s,
    })
}

fn set_aside(profile: &Profile, row: &SetAside) -> Value {
    let allocator = row.allocator.and_then(|id| profile.allocator(id));
    let runtime = profile.header.target.runtime.as_ref().map(|runtime| runtime.name.as_str());
    json!({
        "lens": row.lens.name(),
        "class": row.class.name(),
        "label": row.label,
        "advice": advice(row.class.name(), row.label.as_deref(), runtime),
        "allocator": allocator.map(|row| &row.allocator.name),
        "outstanding_bytes": row.outstanding.bytes,
        "outstanding_count": row.outstanding.count,
        "growth_bytes_per_s": row.growth_bytes_per_s,
    })
}

pub(super) fn completeness(profile: &Profile) -> Value {
    let completeness = &profile.completeness;
    let stacks = completeness.stacks;
    json!({
        "complete": completeness.is_complete,
        "finished": completeness.is_finished,
        "losses": completeness.losses.iter().map(|loss| json!({
            "reason": loss.reason,
            "count": loss.count,
            "bytes": loss.bytes,
            "incomplete": loss.is_incomplete,
        })).collect::<Vec<_>>(),
        "stacks": {
            "total": stacks.total,
            "whole": stacks.whole,
            "allocated_count": stacks.allocated_count,
            "whole_allocated_count": stacks.whole_allocated_count,
            "broken": completeness.broken.iter().map(|broken| json!({
                "function": broken.function,
                "stack_end": broken.end.name(),
                "stacks": broken.stacks,
                "allocated_count": broken.allocated_count,
            })).collect::<Vec<_>>(),
        },
        "skipped_rows": completeness.skipped_rows,
    })
}

pub(super) fn site(profile: &Profile, site: &Site) -> Value {
    let pid = match site.processes.as_slice() {
        [id] => profile.process(*id).map(|row| row.process.target.tgid),
        _ => None,
    };
    let allocator = site.allocator.and_then(|id| profile.allocator(id));
    json!({
        "rank": site.rank,
        "lens": site.lens.name(),
        "class": site.class.name(),
        "label": site.label,
        "pid": pid,
        "processes": site.processes.iter().map(|id| id.0).collect::<Vec<_>>(),
        "allocator": allocator.map(|row| &row.allocator.name),
        "verdict": site.verdict.as_ref().map(|verdict| verdict.kind.name()),
        "evidence": site.verdict.as_ref().map(evidence),
        "outstanding_bytes": site.outstanding_bytes,
        "outstanding_count": site.outstanding_count,
        "outstanding_bytes_error": site.variance.map(|variance| variance.error_bytes()),
        "outstanding_count_error": site.variance.and_then(|variance| variance.error_count()),
        "growth_bytes_per_s": site.growth_bytes_per_s,
        "allocated_bytes": site.counters.allocated_bytes,
        "allocated_count": site.counters.allocated_count,
        "freed_bytes": site.counters.freed_bytes,
        "freed_count": site.counters.freed_count,
        "resident_bytes": site.resident_bytes,
        "stack_end": site.end.name(),
        "stack_lost": site.is_lost,
        "culprit": (!site.frames.is_empty()).then_some(site.culprit),
        "stack": profile.stack(site).map(|line| frame(&line)).collect::<Vec<_>>(),
    })
}

fn process_verdict(profile: &Profile, verdict: &ProcessVerdict) -> Value {
    let trend = &verdict.trend.evidence;
    json!({
        "kind": verdict.kind.name(),
        "summary": verdict::summary(profile, verdict),
        "next": verdict::next(profile, verdict),
        "pid": profile.process(verdict.process).map(|row| row.process.target.tgid),
        "evidence": {
            "series": verdict.trend.kind.name(),
            "reason": verdict.trend.reason.name(),
            "needed_s": verdict.needed_s(),
            "slope_bytes_per_s": trend.slope,
            "slope_low_bytes_per_s": trend.interval.map(|interval| interval.0),
            "slope_high_bytes_per_s": trend.interval.map(|interval| interval.1),
            "trend_p": trend.trend_p,
            "samples": trend.samples,
            "explained_part": verdict.explained_part(),
            "retained_bytes": verdict.retained_bytes,
            "undetermined_sites": verdict.undetermined_sites,
            "causes": verdict.causes.iter().map(|cause| json!({
                "kind": cause.kind.name(),
                "class": cause.class.map(LedgerClass::name),
                "lens": cause.sites.as_ref().map(|sites| sites.lens.name()),
                "sites": cause.sites.as_ref().map(|sites| sites.count),
                "function": cause.sites.as_ref().and_then(|sites| sites.function.as_ref()),
                "growth_bytes_per_s": cause.growth_bytes_per_s,
            })).collect::<Vec<_>>(),
        },
    })
}

fn evidence(verdict: &SiteVerdict) -> Value {
    let trend = &verdict.trend.evidence;
    json!({
        "by": if verdict.by_survivors { "survivors" } else { "series" },
        "series": verdict.trend.kind.name(),
        "reason": verdict.trend.reason.name(),
        "confidence": verdict.confidence(),
        "awaits_collection": verdict.awaits_collection,
        "growth_bytes_per_s": verdict.growth_bytes_per_s,
        "needed_s": verdict.needed_s(),
        "slope_bytes_per_s": trend.slope,
        "slope_low_bytes_per_s": trend.interval.map(|interval| interval.0),
        "slope_high_bytes_per_s": trend.interval.map(|interval| interval.1),
        "trend_p": trend.trend_p,
        "samples": trend.samples,
        "last_freed_s": verdict.last_freed_ns.map(seconds),
        "survival": verdict.survival.map(|survival| json!({
            "settled_age_s": survival.settled_age_ns.map(seconds),
            "survivors": survival.survivors,
            "survivor_bytes": survival.survivor_bytes,
            "freed_older": survival.freed_older,
            "steady": survival.is_steady,
        })),
    })
}

pub(super) fn frame(line: &SiteFrame<'_>) -> Value {
    json!({
        "function": line.location.function,
        "object": line.object.map(|object| &object.path),
        "build_id": line.object.and_then(|object| object.build_id.as_ref()),
        "offset": line.frame.file_offset.map(|offset| format!("{offset:#x}")),
        "file": line.location.file,
        "line": line.location.line,
        "inlined": line.location.inlined,
        "kind": line.frame.kind.name(),
    })
}
