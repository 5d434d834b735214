//! The report for programs: schema `offheap.report/1`, described by `docs/report-schema.json`.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::escape::is_deceptive;
use crate::model::{EndReason, Runtime, Target};
use crate::profile::{Profile, Site, SiteFrame};

/// Name and version of the schema.
pub const SCHEMA: &str = "offheap.report/1";

/// The report. A field that was not measured is null.
pub fn json(profile: &Profile) -> Value {
    json!({
        "schema": SCHEMA,
        "target": target(&profile.header.target),
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
        })),
        "rss": profile.rss.map(|rss| json!({
            "start_bytes": rss.start_bytes,
            "end_bytes": rss.end_bytes,
            "growth_bytes_per_s": rss.growth_bytes_per_s,
            "ledger": null,
        })),
        "verdict": null,
        "filter": {
            "sort": profile.filter.sort.name(),
            "min_age_s": profile.filter.min_age_ns.map(seconds),
            "top": profile.filter.top,
        },
        "totals": {
            "sites": profile.totals.sites,
            "outstanding_bytes": profile.totals.outstanding_bytes,
            "outstanding_count": profile.totals.outstanding_count,
            "growth_bytes_per_s": profile.totals.growth_bytes_per_s,
            "allocated_bytes": profile.totals.counters.allocated_bytes,
            "allocated_count": profile.totals.counters.allocated_count,
            "freed_bytes": profile.totals.counters.freed_bytes,
            "freed_count": profile.totals.counters.freed_count,
        },
        "sites": profile.sites.iter().map(|row| site(profile, row)).collect::<Vec<_>>(),
        "hints": profile.hints,
    })
}

/// The report as text with a line end. What a terminal would act on is escaped as JSON can.
pub fn json_text(profile: &Profile) -> String {
    let plain = format!("{:#}\n", json(profile));
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

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn start(realtime_ns: u64) -> Option<String> {
    Timestamp::from_nanosecond(i128::from(realtime_ns)).ok().map(|start| start.to_string())
}

fn target(target: &Target) -> Value {
    let runtime = |runtime: &Runtime| json!({ "name": runtime.name, "version": runtime.version });
    json!({
        "pid": target.tgid,
        "comm": target.comm,
        "cmdline": target.cmdline,
        "runtime": target.runtime.as_ref().map(runtime),
        "inner_pid": target.inner_tgid,
        "exe": target.exe,
    })
}

fn completeness(profile: &Profile) -> Value {
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

fn site(profile: &Profile, site: &Site) -> Value {
    json!({
        "rank": site.rank,
        "lens": site.lens.name(),
        "verdict": null,
        "outstanding_bytes": site.outstanding_bytes,
        "outstanding_count": site.outstanding_count,
        "growth_bytes_per_s": site.growth_bytes_per_s,
        "allocated_bytes": site.counters.allocated_bytes,
        "allocated_count": site.counters.allocated_count,
        "freed_bytes": site.counters.freed_bytes,
        "freed_count": site.counters.freed_count,
        "resident_bytes": null,
        "stack_end": site.end.name(),
        "stack_lost": site.is_lost,
        "culprit": (!site.frames.is_empty()).then_some(site.culprit),
        "stack": profile.stack(site).map(|line| frame(&line)).collect::<Vec<_>>(),
    })
}

fn frame(line: &SiteFrame<'_>) -> Value {
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
