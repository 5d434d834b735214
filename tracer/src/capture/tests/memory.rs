//! Memory over time: what is written is read, little is written, and what does not add up is not shown.

use std::fs;

use rusqlite::Connection;

use super::super::fixture::{Recording, blocks, resident, watched};
use super::super::{Capture, CaptureWriter};
use crate::model::{
    EndReason, Ledger, LedgerClass, LedgerRow, MemoryLimit, ProcessId, RssSample, RuntimeFigure,
};

const SECOND_NS: u64 = 1_000_000_000;

fn sorted(ledgers: &[Ledger]) -> Vec<Ledger> {
    let mut ledgers = ledgers.to_vec();
    for ledger in &mut ledgers {
        ledger.rows.sort_by(|a, b| (a.class, &a.label).cmp(&(b.class, &b.label)));
    }
    ledgers
}

#[test]
fn ledgers_figures_limits_residents_and_lifetimes_are_read() {
    let recording = resident();
    let capture = recording.capture();
    assert_eq!(capture.skipped_rows, 0);
    assert_eq!(sorted(&capture.ledgers), sorted(&recording.ledgers));
    assert_eq!(capture.rss, recording.rss);
    assert!(capture.rss.iter().all(|sample| sample.pss_bytes == Some(sample.rss_bytes / 2)));
    assert_eq!(capture.limits, recording.limits);
    assert_eq!(capture.lifetimes, recording.lifetimes);
    // What stays the same is written once.
    let mut figures = recording.figures.clone();
    figures.retain(|figure| figure.name != "free inside" || figure.elapsed_ns == SECOND_NS);
    assert_eq!(capture.figures, figures);
    assert_eq!(capture.figures[1].bytes, None, "not read is not 0");
    let all: Vec<(u16, u64)> = (0u16..10).map(|point| (point, 4096 * 250 * (u64::from(point) + 1))).collect();
    assert_eq!(capture.residents.get(&1), Some(&all));
    assert_eq!(capture.residents.get(&2), Some(&vec![(1, 64 << 10)]));
    assert_eq!(capture.residents.get(&11), None, "not measured");
}

#[test]
fn a_capture_without_a_lens_has_memory_alone() {
    let capture = watched().capture();
    assert_eq!((capture.skipped_rows, capture.ledgers.len(), capture.rss.len()), (0, 10, 10));
    assert!(capture.stacks.is_empty() && capture.series.sites.is_empty());
}

#[test]
fn a_ledger_that_does_not_add_up_is_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sum.offheap");
    let read = |sql: &str| {
        let _ = fs::remove_file(&path);
        watched().write(&path);
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let capture = Capture::open(&path).unwrap();
        (capture.skipped_rows, capture.ledgers.len())
    };
    assert_eq!(read("UPDATE ledger_look SET rss_bytes = rss_bytes + 1 WHERE id = 3"), (1, 9));
    assert_eq!(read("UPDATE ledger_look SET elapsed_ns = 0 WHERE id = 5"), (3, 9), "and its rows");
    assert_eq!(read("UPDATE ledger_look SET process = 9 WHERE id = 10").1, 9);
    // An entry of another process, or of none.
    assert_eq!(read("UPDATE ledger_entry SET process = 9").1, 0);
    assert_eq!(read("DELETE FROM ledger_entry").1, 0);
    assert_eq!(read("DELETE FROM ledger_look"), (26, 0));
}

#[test]
fn rows_of_one_class_and_label_are_summed_and_what_goes_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sum.offheap");
    let mut writer = CaptureWriter::create(&path, false, &Recording::new().header).unwrap();
    let row = |label: &str, rss_bytes, pss_bytes| LedgerRow {
        class: LedgerClass::File,
        label: Some(label.into()),
        mapping_count: 1,
        size_bytes: 8192,
        rss_bytes,
        pss_bytes,
        swap_bytes: 1,
    };
    let ledger = |second: u64, rows: &[LedgerRow]| Ledger {
        process: ProcessId(0),
        elapsed_ns: second * SECOND_NS,
        rss_bytes: rows.iter().map(|row| row.rss_bytes).sum(),
        rows: rows.to_vec(),
    };
    let twice = [row("a", 4096, Some(1)), row("a", 8192, Some(2)), row("b", 1, None)];
    writer.add_ledger(&ledger(1, &twice)).unwrap();
    writer.add_ledger(&ledger(2, &twice[2..])).unwrap();
    writer.add_ledger(&ledger(3, &twice)).unwrap();
    writer.finish(EndReason::Duration, 3 * SECOND_NS).unwrap();
    let capture = Capture::open(&path).unwrap();
    assert_eq!(capture.skipped_rows, 0);
    let sum = LedgerRow { mapping_count: 2, size_bytes: 16384, swap_bytes: 2, ..row("a", 12288, Some(3)) };
    let (one, three) = (&capture.ledgers[0].rows, &capture.ledgers[2].rows);
    assert_eq!(*one, [sum.clone(), twice[2].clone()]);
    assert_eq!(capture.ledgers[1].rows, &twice[2..]);
    assert_eq!((three.len(), capture.ledgers[2].rss_bytes), (2, 12289));
    assert!(three.contains(&sum));
}

/// An hour of a busy process, one in twenty: 2,000 sites that change each second, a ledger of 60 rows of which ten change.
/// As a whole it is 33,562,624 bytes with 514 ticks.
#[test]
fn an_hour_of_a_busy_process_is_below_50_mb() {
    const SHARE: u64 = 20;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hour.offheap");
    let mut writer = CaptureWriter::create(&path, false, &Recording::new().header).unwrap();
    writer.written.divide_budgets(SHARE);
    let process = ProcessId(0);
    for second in 1..=3600u64 {
        let elapsed_ns = second * SECOND_NS;
        let samples: Vec<_> =
            (1..=100u32).map(|site| (site, blocks(77, 1000 * second, 990 * second))).collect();
        writer.add_samples(elapsed_ns, &samples).unwrap();
        let rss_bytes = second * 4096;
        let (anonymous_bytes, file_bytes) = (Some(rss_bytes), Some(0));
        let (shared_bytes, swap_bytes, pss_bytes) = (Some(0), Some(0), Some(rss_bytes));
        let sample = RssSample {
            process,
            elapsed_ns,
            rss_bytes,
            anonymous_bytes,
            file_bytes,
            shared_bytes,
            swap_bytes,
            pss_bytes,
        };
        writer.add_rss(&sample).unwrap();
        let rows: Vec<_> = (0..3u64)
            .map(|index| LedgerRow {
                class: LedgerClass::File,
                label: Some(format!("/usr/lib/some/where/library-{index}.so")),
                mapping_count: 4,
                size_bytes: 1 << 20,
                rss_bytes: 400_000 + if index < 1 { second * 4096 } else { 0 },
                pss_bytes: Some(100_000),
                swap_bytes: 0,
            })
            .collect();
        let rss_bytes = rows.iter().map(|row| row.rss_bytes).sum();
        writer.add_ledger(&Ledger { process, elapsed_ns, rss_bytes, rows }).unwrap();
        for name in ["used", "free", "committed"] {
            let (source, name, bytes) = ("runtime".into(), name.into(), Some(second));
            writer.add_figure(&RuntimeFigure { process, elapsed_ns, source, name, bytes }).unwrap();
        }
        let (source, limit_bytes, used_bytes) = ("cgroup".into(), 1 << 30, Some(second));
        writer.add_limit(&MemoryLimit { process, elapsed_ns, source, limit_bytes, used_bytes }).unwrap();
    }
    writer.finish(EndReason::Duration, 3600 * SECOND_NS).unwrap();
    let length = fs::metadata(&path).unwrap().len();
    assert!(length < 50_000_000 / SHARE, "{length}");
    let capture = Capture::open(&path).unwrap();
    assert_eq!((capture.skipped_rows, capture.elapsed_ns()), (0, 3600 * SECOND_NS));
    assert_eq!(capture.series.last(100), blocks(77, 3_600_000, 3600 * 990), "the end is exact");
    assert_eq!(capture.series.points_ns.last(), Some(&(3600 * SECOND_NS)));
    assert!(capture.series.tick_count > 500, "{}", capture.series.tick_count);
    let last = capture.ledgers.last().unwrap();
    assert_eq!((last.elapsed_ns, last.rows.len()), (3600 * SECOND_NS, 3));
}
