//! What a program reads: `docs/watch-schema.json`.

use serde_json::{Value, json};

use super::outlook::{Outlook, Reach};
use super::watcher::{Program, Watch};
use super::{Series, outlook};
use crate::model::{Ledger, ProcessId, RssSample};

/// Name and version of the schema.
pub const SCHEMA: &str = "offheap.watch/1";

/// When was watched, and why it ended.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Begin, RFC 3339.
    pub start: String,
    /// Length.
    pub seconds: f64,
    /// Distance of the samples at the end.
    pub interval_s: f64,
    /// Why it ended.
    pub end: &'static str,
}

/// The whole watch.
pub fn document(watch: &Watch, frame: &Frame) -> Value {
    let programs: Vec<Value> = watch.programs().iter().map(|program| self::program(watch, program)).collect();
    json!({
        "schema": SCHEMA,
        "window": {
            "start": frame.start, "seconds": frame.seconds, "interval_s": frame.interval_s, "end": frame.end,
        },
        "completeness": {
            "complete": is_complete(watch),
            "failed_reads": watch.failed_reads(),
            "processes_left_out": watch.left_out,
            "programs_forgotten": watch.forgotten,
        },
        "total": (watch.programs().len() > 1).then(|| memory(watch.total(), &outlook(watch.total(), None))),
        "programs": programs,
    })
}

/// Whether everything was seen that was asked for.
pub fn is_complete(watch: &Watch) -> bool {
    watch.failed_reads() == 0 && watch.left_out == 0 && watch.forgotten == 0
}

fn program(watch: &Watch, program: &Program) -> Value {
    let target = &program.process.target;
    let pid_of = |id: Option<ProcessId>| Some(watch.program(id?)?.process.target.tgid);
    let outlook = outlook(&program.series, program.limit.as_ref());
    let mut value = json!({
        "id": program.process.id.0,
        "pid": target.tgid,
        "inner_pid": target.inner_tgid,
        "comm": target.comm,
        "cmdline": target.cmdline,
        "exe": target.exe,
        "state": program.end.map_or("running", |end| end.end.name()),
        "start_s": program.process.start_ns as f64 / 1e9,
        "end_s": program.end.map(|end| end.elapsed_ns as f64 / 1e9),
        "executed_from": program.process.parent.map(|id| id.0),
        "restart_of": program.restart_of.map(|id| id.0),
        "restart_of_pid": pid_of(program.restart_of),
        "failed_reads": program.failed_reads,
    });
    if let (Value::Object(all), Value::Object(more)) = (&mut value, memory(&program.series, &outlook)) {
        all.extend(more);
        all.insert("limit".into(), outlook.reach.as_ref().map(reach).into());
        all.insert("ledger".into(), program.ledgers.as_ref().map(|(first, last)| ledger(first, last)).into());
    }
    value
}

fn memory(series: &Series, outlook: &Outlook) -> Value {
    let evidence = &outlook.verdict.evidence;
    let per_hour = |slope: f64| slope * 3600.0;
    let parts: serde_json::Map<String, Value> = outlook
        .parts
        .iter()
        .map(|(name, slope)| (format!("{name}_bytes_per_hour"), slope.map(per_hour).into()))
        .collect();
    json!({
        "samples": series.seen(),
        "first": outlook.first.as_ref().map(sample),
        "last": outlook.last.as_ref().map(sample),
        "last_with_pss": outlook.last_pss.as_ref().map(sample),
        "verdict": {
            "kind": outlook.verdict.kind.name(),
            "reason": outlook.verdict.reason.name(),
            "sentence": outlook.sentence(),
            "watch_s_more": outlook.verdict.needed_s,
            "slope_bytes_per_hour": evidence.slope.map(per_hour),
            "slope_low_bytes_per_hour": evidence.interval.map(|interval| per_hour(interval.0)),
            "slope_high_bytes_per_hour": evidence.interval.map(|interval| per_hour(interval.1)),
            "doubling_s": evidence.doubling_s,
            "doublings_s": evidence.doublings_s,
            "doubled_in_equal_times": evidence.doubled_in_equal_times,
            "evidence": {
                "points": evidence.samples,
                "span_s": evidence.span_s,
                "trend_p": evidence.trend_p,
                "drift_p": evidence.drift_p,
                "autocorrelation": evidence.autocorrelation,
                "effective_samples": evidence.effective_samples,
                "noise_bytes": evidence.noise,
                "thirds_bytes_per_hour": evidence.thirds.map(|thirds| thirds.map(per_hour)),
                "rises": evidence.rises,
                "cycles": evidence.cycles,
            },
        },
        "parts": parts,
    })
}

fn sample(sample: &RssSample) -> Value {
    json!({
        "elapsed_s": sample.elapsed_ns as f64 / 1e9,
        "rss_bytes": sample.rss_bytes,
        "anonymous_bytes": sample.anonymous_bytes,
        "file_bytes": sample.file_bytes,
        "shared_bytes": sample.shared_bytes,
        "swap_bytes": sample.swap_bytes,
        "pss_bytes": sample.pss_bytes,
    })
}

fn reach(reach: &Reach) -> Value {
    let marks: Vec<Value> = reach
        .marks
        .iter()
        .map(|mark| {
            json!({
                "percent": mark.percent, "bytes": mark.bytes, "passed": mark.is_passed, "in_s": mark.in_s,
            })
        })
        .collect();
    json!({
        "source": reach.limit.source,
        "limit_bytes": reach.limit.limit_bytes,
        "used_bytes": reach.used_bytes,
        "full_in_s": reach.full_s,
        "full_soonest_s": reach.full_between_s.map(|between| between.0),
        "full_latest_s": reach.full_between_s.and_then(|between| between.1),
        "marks": marks,
    })
}

/// Each class and label of the last ledger, and what it was in the first.
fn ledger(first: &Ledger, last: &Ledger) -> Value {
    let rows: Vec<Value> = last
        .rows
        .iter()
        .map(|row| {
            let before = first.rows.iter().find(|old| old.class == row.class && old.label == row.label);
            json!({
                "class": row.class.name(),
                "label": row.label,
                "first_rss_bytes": before.map_or(0, |row| row.rss_bytes),
                "rss_bytes": row.rss_bytes,
            })
        })
        .collect();
    json!({
        "first_s": first.elapsed_ns as f64 / 1e9,
        "last_s": last.elapsed_ns as f64 / 1e9,
        "rss_bytes": last.rss_bytes,
        "rows": rows,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::model::{LedgerClass, LedgerRow};
    use crate::report::tests::check;
    use crate::watch::{Whom, text};

    fn ledger_of(_: u32) -> Option<(Ledger, Vec<crate::model::RuntimeFigure>)> {
        let row = LedgerRow {
            class: LedgerClass::Unknown,
            label: Some("\u{1b}[2J".into()),
            mapping_count: 1,
            size_bytes: 2,
            rss_bytes: 3,
            pss_bytes: None,
            swap_bytes: 0,
        };
        Some((Ledger { process: ProcessId(9), elapsed_ns: 0, rss_bytes: 3, rows: vec![row] }, Vec::new()))
    }

    /// This process, a child of it, or both, looked at some times.
    fn watched(tgids: Vec<u32>, looks: u64) -> Watch {
        let mut watch = Watch::new(Whom::Processes(tgids), 8, Some(ledger_of)).unwrap();
        for second in 0..looks {
            watch.tick(Duration::from_secs(second)).unwrap();
        }
        watch
    }

    #[test]
    fn documents_match_their_schema() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/watch-schema.json");
        let schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let own = std::process::id();
        let frame = Frame { start: "x".into(), seconds: 1.0, interval_s: 1.0, end: "duration" };
        for (tgids, looks) in [(vec![own], 0), (vec![own], 1), (vec![own, child.id()], 20)] {
            let watch = watched(tgids.clone(), looks);
            let document = document(&watch, &frame);
            check(&schema, &document, "watch").unwrap();
            assert_eq!(document["completeness"]["complete"], true);
            assert_eq!(document["total"].is_null(), tgids.len() == 1);
            assert_eq!(document["programs"][0]["samples"], looks);
            let mut spoiled = document.clone();
            spoiled["programs"][0]["surprise"] = 1.into();
            assert!(check(&schema, &spoiled, "watch").is_err());
            assert!(!text::verdicts(&watch).contains('\u{1b}'));
        }
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn the_end_of_the_last_one_is_the_end() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let mut watch = watched(vec![child.id()], 2);
        assert!(!watch.is_over());
        drop(child.stdin.take());
        child.wait().unwrap();
        let tick = watch.tick(Duration::from_secs(3)).unwrap();
        assert!(tick.samples.is_empty() && watch.is_over(), "{tick:?}");
        assert!(watch.tick(Duration::from_secs(4)).unwrap().changes.is_empty());
        let frame = Frame { start: "x".into(), seconds: 4.0, interval_s: 1.0, end: "target-exited" };
        assert_eq!(document(&watch, &frame)["programs"][0]["state"], "exited");
        assert!(text::verdicts(&watch).contains("ended after 3 s"));
    }
}
