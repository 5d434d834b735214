//! The losses of mappings, page faults and processes, as `losses` has those of allocator calls.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context, ensure};
use serde_json::Value;
use tracer_tests::bpf::Map;
use tracer_tests::report::{FAULTS, MMAP, Report, Site};
use tracer_tests::require::kernel_is_at_least;
use tracer_tests::target::Target;
use tracer_tests::tracer::{COMPLETE, Finished, Recording, offheap_output};
use tracer_tests::{Result, require};

const PAGE: u64 = 4096;

/// Resident bytes that one function has touched first.
fn touched_by(report: &Report, function: &str) -> u64 {
    let sites = report.sites_in(FAULTS).filter(|site| site.functions().contains(&function));
    sites.map(|site| site.outstanding_bytes).sum()
}

/// Records a target, and stops offheap in its tracks while `orders` are carried out; then `after` are, with offheap at work.
fn record_stopped(arguments: &[&str], orders: &[&str], after: &[&str]) -> Result<Finished> {
    let mut target = Target::start("careless")?;
    let recording = Recording::attach(&target, arguments)?;
    recording.pause()?;
    for order in orders {
        target.order(order)?;
    }
    recording.resume()?;
    for order in after {
        target.order(order)?;
    }
    let finished = recording.stop()?;
    target.finish_well()?;
    Ok(finished)
}

/// Mappings whose records do not fit are missing, and unmappings that were not told of are found at the next look.
#[test]
fn mapping_ring_full_and_healed() -> Result {
    require!();
    let mut target = Target::start("careless")?;
    let recording = Recording::attach(&target, &["--stack-ring", "4KiB", "--lens", "mmap"])?;
    // Before the ring is full: these are booked.
    target.order("map 10 4")?;
    recording.wait_for_report(&["--lens", "mmap"], |report| {
        let mapped = report["totals"]["mapped"]["outstanding_bytes"].as_u64();
        Ok((mapped == Some(10 * 4 * PAGE)).then_some(()))
    })?;
    recording.pause()?;
    target.order("balance 100 1")?;
    target.order("map 20 1")?;
    target.order("unmap 6")?;
    recording.resume()?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.ensure_told("mapping-ring-full", true)?;
    let report = finished.report()?;
    let (lost, bytes) = report.loss("mapping-ring-full");
    // Two records of each pair, one of each of the others, of which some have fitted.
    ensure!(lost >= 150 && bytes >= lost * PAGE, "{:?}", report.losses());
    // And perhaps the last of the pairs, of which one record has fitted.
    ensure!((6..=7).contains(&report.loss("mapping-healed").0), "{:?}", report.losses());
    let mapped = report.sites_in(MMAP).filter(|site| site.functions().contains(&"site_map"));
    let mapped: u64 = mapped.map(|site| site.outstanding_bytes).sum();
    ensure!(mapped == 4 * 4 * PAGE, "{mapped} bytes are said to be mapped: {:#?}", report.sites);
    Ok(())
}

/// What is told of life and death does not fit either: children are not known.
#[test]
fn event_ring_full() -> Result {
    require!();
    let finished =
        record_stopped(&["--stack-ring", "4KiB"], &["balance 100 1", "brief 12"], &["balance 1 1"])?;
    finished.ensure_told("event-ring-full", true)?;
    let report = finished.report()?;
    let lost = report.loss("event-ring-full").0;
    // A few have fitted behind the last mapping, and came too late.
    let (late, rows) = (report.loss("short-lived-child").0, report.processes.len() as u64 - 1);
    ensure!(lost >= 6 && lost + late + rows == 12, "{:?}, {rows} children", report.losses());
    Ok(())
}

/// perf's own ring overflows: offheap reads all mappings again, and nothing is missing. A shared memory segment that is attached and
/// detached while nobody looks has no length.
#[test]
fn mapping_event_lost_and_segment_unseen() -> Result {
    require!();
    let mut target = Target::start("careless")?;
    let arguments = ["--interval", "100ms", "--allocator-prefix", "careless_"];
    let recording = Recording::attach(&target, &arguments)?;
    recording.pause()?;
    target.order("segment 3")?;
    target.order("code 4000")?;
    recording.resume()?;
    // The kernel tells of a loss with the next record of the same CPU.
    recording.wait_for_report(&[], |report| {
        target.order("code 50")?;
        let losses = report["completeness"]["losses"].as_array();
        let is_lost = |loss: &Value| loss["reason"] == "mapping-event-lost" && loss["count"] != 0;
        Ok(losses.is_some_and(|losses| losses.iter().any(is_lost)).then_some(()))
    })?;
    target.order("leak 3 100")?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.ensure_told("mapping-event-lost", false)?;
    let report = finished.report()?;
    ensure!(report.outstanding() == (300, 3), "{:?}", report.sites);
    ensure!(
        report.sites.iter().all(|site| site.stack_end.as_deref() == Some("thread-start")),
        "{:?}",
        report.sites
    );
    Ok(())
}

/// More pages wait than the map takes, because others stand in it.
#[test]
fn fault_map_full() -> Result {
    require!();
    let mut target = Target::start("careless")?;
    let recording = Recording::attach(&target, &["--lens", "faults", "--max-fault-pages", "4096"])?;
    target.order("touch 16")?;
    // Pages without a fault would count for their neighbours of the same 2 MiB.
    target.ask("reserve 2048")?;
    recording.pause()?;
    let faults = Map::of(recording.pid(), "FAULTS")?;
    let keys = faults.fill()?;
    target.order("touch 600")?;
    for key in &keys {
        faults.delete(key)?;
    }
    recording.resume()?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.ensure_told("fault-map-full", true)?;
    let report = finished.report()?;
    let (lost, bytes) = report.loss("fault-map-full");
    ensure!(lost >= 600 && bytes == lost * PAGE, "{:?}", report.losses());
    let touched = touched_by(&report, "site_touch");
    ensure!(touched == 16 * PAGE, "{touched} bytes have a stack");
    Ok(())
}

#[test]
fn fault_range_lost() -> Result {
    require!();
    let orders = ["populate 100 2"];
    let finished = record_stopped(&["--stack-ring", "4KiB", "--lens", "faults"], &orders, &[])?;
    finished.ensure_told("fault-range-lost", true)?;
    let report = finished.report()?;
    let (lost, bytes) = report.loss("fault-range-lost");
    ensure!((1..=100).contains(&lost) && bytes == lost * 2 * PAGE, "{:?}", report.losses());
    // Pages of lost ranges count for their neighbours of the same 2 MiB, where there are such.
    let populated = touched_by(&report, "site_populate");
    let (least, most) = ((100 - lost) * 2 * PAGE, 100 * 2 * PAGE);
    ensure!((least..=most).contains(&populated), "{populated} bytes have a stack, {lost} ranges lost");
    Ok(())
}

/// Another process writes into the target's untouched memory: resident, and no fault of its own.
#[test]
fn unattributed_growth() -> Result {
    const PAGES: u64 = 4096;
    require!();
    let mut target = Target::start("careless")?;
    let recording = Recording::attach(&target, &["--lens", "faults"])?;
    target.order("touch 16")?;
    let address = *target.ask(&format!("reserve {PAGES}"))?.get("address").context("no address")?;
    let memory = File::options().write(true).open(format!("/proc/{}/mem", target.pid()))?;
    memory.write_all_at(&vec![1; (PAGES * PAGE) as usize], address)?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.ensure_told("unattributed-growth", true)?;
    let (_, bytes) = finished.report()?.loss("unattributed-growth");
    ensure!(bytes.abs_diff(PAGES * PAGE) <= PAGES * PAGE / 50, "{bytes} bytes");
    Ok(())
}

/// The walk of a stack that cannot be read faults itself. That is no fault of the target that was skipped, and the pages have
/// the part of the stack that is there.
///
/// And there is address space beyond what can be looked at page by page, whose holes the kernel skips since Linux 6.7.
#[test]
fn an_unreadable_stack_at_a_fault_and_unseen_before() -> Result {
    const PAGES: u64 = (65 << 30) / PAGE;
    require!();
    let mut target = Target::start("careless")?;
    target.ask(&format!("reserve {PAGES}"))?;
    let recording = Recording::attach(&target, &["--lens", "faults"])?;
    target.order("broken_fault")?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    ensure!(report.loss("fault-skipped").0 == 0, "{:?}", report.losses());
    let broken = || report.sites_in(FAULTS).filter(|site| site.functions().contains(&"site_broken_fault"));
    ensure!(touched_by(&report, "site_broken_fault") >= 2 * PAGE, "{:#?}", report.sites);
    let is_broken = |site: &Site| site.stack_end.as_deref() == Some("read-fault");
    ensure!(broken().all(is_broken), "{:#?}", report.sites);
    let wanted = if kernel_is_at_least((6, 7))? { 0 } else { PAGES * PAGE };
    ensure!(report.loss("unseen-before").1 == wanted, "{wanted} expected: {:?}", report.losses());
    Ok(())
}

/// posix_spawn: a child that shares the memory until it executes. Whether its calls are seen depends on the kind of probes.
#[test]
fn sharer_executed() -> Result {
    require!();
    let mut target = Target::start("careless")?;
    let recording = Recording::attach(&target, &["-v"])?;
    target.order("spawn 4")?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    let is_blind = offheap_output(["doctor"])?.contains("counted as not seen");
    let is_multi = finished.errors.iter().any(|line| line.contains("probes are uprobe_multi"));
    let wanted = if is_blind && is_multi { 4 } else { 0 };
    let report = finished.report()?;
    ensure!(report.loss("sharer-executed").0 == wanted, "{wanted} expected: {:?}", report.losses());
    if wanted > 0 {
        finished.ensure_told("sharer-executed", false)?;
    }
    Ok(())
}

/// A program without an allocator that can be found: its mappings are there, its blocks are not.
#[test]
fn no_allocator() -> Result {
    require!();
    let mut target = Target::start("stripped_static")?;
    let recording = Recording::attach(&target, &[])?;
    target.work()?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.ensure_told("no-allocator", true)?;
    let report = finished.report()?;
    ensure!(report.loss("no-allocator").0 == 1 && report.outstanding() == (0, 0), "{:?}", report.losses());
    Ok(())
}

/// Where a tracefs may be neither made nor found, the tracepoints have no numbers: allocator calls only.
#[test]
fn no_mappings() -> Result {
    require!(tracer_tests::require::Need::Program("unshare"));
    let mut target = Target::start("puppet")?;
    let recording = Recording::attach_without_tracefs(&target, &[])?;
    target.order("leak 3 100")?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.ensure_told("no-mappings", true)?;
    let report = finished.report()?;
    ensure!(report.outstanding() == (300, 3) && report.outstanding_in(MMAP) == (0, 0), "{:?}", report.sites);
    Ok(())
}
