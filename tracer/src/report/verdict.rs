//! The verdict on a process in sentences. Names in them are the target's: escape them before they are printed.

use super::human::{counted, percent, rate, seconds, size};
use crate::model::{LedgerClass, Lens};
use crate::profile::{Cause, ProcessKind, ProcessVerdict, Profile, advice};
use crate::trend::Kind;

/// Other causes that are named beside the one that decided.
const OTHERS_NAMED: usize = 2;
/// Below this part, the growth of RSS counts as not explained.
const MIN_EXPLAINED: f64 = 0.5;

/// What a person who does not know the program understands.
pub(crate) fn summary(profile: &Profile, verdict: &ProcessVerdict) -> String {
    let mut text = who(profile, verdict);
    text.push_str(&match verdict.cause() {
        Some(cause) => caused(verdict, cause),
        None => without_cause(profile, verdict),
    });
    let is_other = |cause: &&Cause| verdict.cause() != Some(*cause);
    let others: Vec<String> = verdict
        .causes
        .iter()
        .filter(is_other)
        .take(OTHERS_NAMED)
        .map(|cause| format!("{} ({})", thing(cause), rate(cause.growth_bytes_per_s)))
        .collect();
    if !others.is_empty() {
        text.push_str(&format!(" Beside it grows: {}.", others.join(", ")));
    }
    text
}

/// Whose memory, where there are several.
fn who(profile: &Profile, verdict: &ProcessVerdict) -> String {
    match profile.process(verdict.process) {
        Some(row) if profile.verdicts.len() > 1 => {
            format!("Process {} ({}): ", row.process.target.tgid, row.process.target.comm)
        }
        _ => String::new(),
    }
}

/// What grows, as a noun.
fn thing(cause: &Cause) -> String {
    match (cause.class, &cause.sites) {
        (Some(class), _) => class.phrase().to_owned(),
        (None, Some(sites)) if sites.lens == Lens::Malloc => "blocks that are not freed".to_owned(),
        (None, _) => "mappings that are not unmapped".to_owned(),
    }
}

fn caused(verdict: &ProcessVerdict, cause: &Cause) -> String {
    let growth = rate(cause.growth_bytes_per_s);
    let sites = cause.sites.as_ref().map_or_else(String::new, |sites| {
        let count = counted(sites.count as u64, "call site", "call sites");
        let fastest = match (&sites.function, sites.count) {
            (Some(function), 1) => format!(", {function}"),
            (Some(function), _) => format!(", the fastest in {function}"),
            (None, _) => String::new(),
        };
        format!(" at {count}{fastest}")
    });
    let what = match (cause.kind, cause.class) {
        (ProcessKind::NativeLeak, _) => format!("native memory leaks, {growth}{sites}"),
        (ProcessKind::MappingGrowth, None) => format!("mappings leak, {growth}{sites}"),
        (ProcessKind::ManagedHeapGrowth, Some(LedgerClass::ManagedHeap)) => {
            format!("the garbage-collected heap grows, {growth}; that is no native leak")
        }
        (ProcessKind::AllocatorRetention, _) => format!(
            "the allocator takes more and more from the kernel, {growth}, while what the program holds does not grow: \
             freed memory is kept, or too scattered to be used again"
        ),
        (ProcessKind::Undetermined, _) => format!(
            "the allocator's memory grows, {growth}; whether blocks leak or freed ones are kept was not observed"
        ),
        (_, class) => {
            let phrase = class.map_or("memory", LedgerClass::phrase);
            format!("memory in {phrase} grows, {growth}{sites}")
        }
    };
    format!("{what}. {}", compared(verdict)).trim_end().to_owned()
}

/// How the causes and the growth of RSS compare.
fn compared(verdict: &ProcessVerdict) -> String {
    match (verdict.explained_part(), verdict.growth_bytes_per_s()) {
        (Some(part), Some(growth)) if part < MIN_EXPLAINED => format!(
            "This explains {} of the growth of RSS, {}.",
            percent((part.max(0.0) * 1000.0) as u64, 1000),
            rate(growth)
        ),
        (Some(_), Some(growth)) => format!("RSS grows {}.", rate(growth)),
        _ if verdict.trend.kind == Kind::Undetermined => String::new(),
        _ => "RSS does not show it yet.".to_owned(),
    }
}

fn without_cause(profile: &Profile, verdict: &ProcessVerdict) -> String {
    match verdict.kind {
        ProcessKind::AllocatorRetention => {
            let (kept, resident) = (verdict.retained_bytes.unwrap_or(0), verdict.resident_bytes.unwrap_or(0));
            format!(
                "nothing was seen to leak, but the allocator keeps {} that the program has freed: {} of RSS.",
                size(kept),
                percent(kept, resident)
            )
        }
        ProcessKind::Plateau => "memory grew, and is level since: no leak was seen.".to_owned(),
        ProcessKind::WarmUp => "memory grew in the beginning only: no leak was seen.".to_owned(),
        ProcessKind::NoGrowth => "memory does not grow.".to_owned(),
        _ => match verdict.growth_bytes_per_s() {
            Some(growth) if profile.lenses.is_empty() => {
                format!("RSS grows, {}; by whom was not observed.", rate(growth))
            }
            Some(growth) => format!(
                "RSS grows, {}, and no call site and no part of memory was seen to grow for good{}.",
                rate(growth),
                match verdict.undetermined_sites as u64 {
                    0 => String::new(),
                    open => format!("; {} undetermined", counted(open, "call site is", "call sites are")),
                }
            ),
            None => format!("not enough was seen to tell: {}.", verdict.trend.reason.phrase()),
        },
    }
}

/// What to do now: a command, or where to look.
pub(crate) fn next(profile: &Profile, verdict: &ProcessVerdict) -> String {
    let target = profile.process(verdict.process).map_or(&profile.header.target, |row| &row.process.target);
    let pid = target.tgid;
    let runtime = target.runtime.as_ref().map(|runtime| runtime.name.as_str());
    let has = |lens| profile.has_lens(lens);
    let class = verdict.cause().and_then(|cause| cause.class);
    match verdict.kind {
        ProcessKind::NativeLeak => {
            "look at the call sites marked leak; `offheap diff` of recordings before and after confirms the repair".into()
        }
        ProcessKind::MappingGrowth if class.is_none() => "look at the call sites marked leak".into(),
        ProcessKind::MappingGrowth => match class {
            Some(LedgerClass::ThreadStack) => format!("count its threads: ps -L {pid}"),
            _ if !has(Lens::Faults) => format!("offheap record --lens faults {pid}"),
            _ => "look at the resident pages by call stack".into(),
        },
        ProcessKind::ManagedHeapGrowth => advice("managed-heap", class.map(LedgerClass::phrase), runtime)
            .map_or_else(String::new, |advice| advice.replace("PID", &pid.to_string())),
        ProcessKind::AllocatorRetention => advice("allocator-slack", None, None).unwrap_or_default().into(),
        ProcessKind::Plateau | ProcessKind::WarmUp | ProcessKind::NoGrowth => {
            format!("to be sure over a longer time: offheap watch {pid} --duration 1h")
        }
        ProcessKind::Undetermined => match verdict.needed_s() {
            Some(needed_s) => {
                let needed_ns = (needed_s.clamp(1.0, 1e6).ceil() * 1e9) as u64;
                format!("record for about {} more", seconds(needed_ns))
            }
            None if !has(Lens::Malloc) => format!("offheap record {pid}"),
            None if !has(Lens::Faults) => format!("offheap record --lens faults {pid}"),
            None => format!("record for longer: offheap record --lens malloc,mmap,faults {pid} --duration 5m"),
        },
    }
}
