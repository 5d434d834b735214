//! Every bound that is hit is counted, changes the exit status, and has the effect on the numbers that docs/losses.md says.
//!
//! Here are the losses of the books of allocator calls; `losses_elsewhere` has those of mappings, page faults and processes.
//! What no program does by itself is provoked from outside: by filling a map of the running offheap, or by stopping it.

use anyhow::ensure;
use tracer_tests::bpf::Map;
use tracer_tests::report::{MALLOC, Report};
use tracer_tests::require::Need;
use tracer_tests::target::Target;
use tracer_tests::tracer::{COMPLETE, Finished, Recording};
use tracer_tests::{Result, require};

/// The target's own allocator.
const CARELESS: [&str; 4] = ["--allocator-prefix", "careless_", "--lens", "malloc"];

/// Records a puppet that carries out `orders`.
fn record(arguments: &[&str], orders: &[&str]) -> Result<Finished> {
    let mut target = Target::start("puppet")?;
    let recording = Recording::attach(&target, arguments)?;
    for order in orders {
        target.order(order)?;
    }
    let finished = recording.stop()?;
    target.finish_well()?;
    Ok(finished)
}

/// The same with a careless target; between attach and orders `meddle` has its say.
fn record_careless(
    arguments: &[&str],
    meddle: impl FnOnce(&Recording) -> Result,
    orders: &[&str],
) -> Result<Finished> {
    let mut target = Target::start("careless")?;
    let recording = Recording::attach(&target, &[&CARELESS, arguments].concat())?;
    meddle(&recording)?;
    for order in orders {
        target.order(order)?;
    }
    let finished = recording.stop()?;
    target.finish_well()?;
    Ok(finished)
}

/// Outstanding bytes and blocks on the row of lost stacks.
fn without_stack(report: &Report) -> (u64, u64) {
    let lost = report.sites_in(MALLOC).filter(|site| site.stack.is_empty());
    lost.fold((0, 0), |sum, site| (sum.0 + site.outstanding_bytes, sum.1 + site.outstanding_count))
}

/// Outstanding bytes and blocks of one function.
fn of(report: &Report, function: &str) -> (u64, u64) {
    let sites = report.sites_in(MALLOC).filter(|site| site.functions().contains(&function));
    sites.fold((0, 0), |sum, site| (sum.0 + site.outstanding_bytes, sum.1 + site.outstanding_count))
}

/// The bytes of stacks that got no site are exact; only where they come from is lost.
#[test]
fn site_map_full() -> Result {
    require!();
    let finished = record(&["--max-sites", "8"], &["stacks 40 100"])?;
    finished.ensure_told("site-map-full", true)?;
    let report = finished.report()?;
    let (lost, lost_bytes) = report.loss("site-map-full");
    ensure!(lost >= 32 && lost_bytes == lost * 100, "{:?}", report.losses());
    ensure!(report.outstanding() == (4000, 40), "{:?}", report.outstanding());
    ensure!(without_stack(&report) == (lost_bytes, lost), "{:?}, {lost} lost", without_stack(&report));
    Ok(())
}

/// There are fewer sites than keys, so the map of keys fills up by foreign ones only.
#[test]
fn stack_map_full() -> Result {
    require!();
    let fill = |recording: &Recording| Map::of(recording.pid(), "SITE_KEYS")?.fill().map(drop);
    let finished = record_careless(&["--max-sites", "64"], fill, &["leak 9 100"])?;
    finished.ensure_told("stack-map-full", true)?;
    let report = finished.report()?;
    ensure!(report.loss("stack-map-full") == (9, 900), "{:?}", report.losses());
    ensure!(report.outstanding() == (900, 9), "{:?}", report.sites);
    ensure!(without_stack(&report) == (900, 9), "{:?}", report.sites);
    Ok(())
}

/// offheap stands still and empties nothing: stacks find the ring full.
#[test]
fn stack_ring_full() -> Result {
    require!();
    let mut target = Target::start("puppet")?;
    let recording = Recording::attach(&target, &["--stack-ring", "4KiB", "--lens", "malloc"])?;
    recording.pause()?;
    target.order("stacks 60 100")?;
    recording.resume()?;
    // A stack that was lost once is tried again.
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.ensure_told("stack-ring-full", true)?;
    let report = finished.report()?;
    let (lost, lost_bytes) = report.loss("stack-ring-full");
    ensure!((1..60).contains(&lost) && lost_bytes == lost * 100, "{:?}", report.losses());
    ensure!(report.outstanding() == (6000, 60), "{:?}", report.outstanding());
    ensure!(without_stack(&report) == (lost_bytes, lost), "{:?}, {lost} lost", without_stack(&report));
    Ok(())
}

/// All slots are claimed by somebody else, on every CPU.
#[test]
fn no_scratch_slot() -> Result {
    require!();
    let mut target = Target::start("puppet")?;
    let recording = Recording::attach(&target, &["--lens", "malloc"])?;
    let slots = Map::of(recording.pid(), "SLOTS")?;
    let set = |owner: u64| -> Result {
        let value = slots.value(&owner.to_le_bytes())?;
        (0..slots.max_entries).try_for_each(|slot| Ok(slots.update(&slot.to_le_bytes(), &value)?))
    };
    set(u64::MAX)?;
    target.order("leak 7 100")?;
    set(0)?;
    target.order("leak 5 100")?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.ensure_told("no-scratch-slot", true)?;
    let report = finished.report()?;
    ensure!(report.loss("no-scratch-slot") == (7, 0), "{:?}", report.losses());
    ensure!(without_stack(&report) == (700, 7), "{:?}", report.sites);
    ensure!(of(&report, "site_leak") == (500, 5), "{:?}", report.sites);
    Ok(())
}

/// The first thread takes the only place: the second one's calls are not followed, and their returns fit nothing.
#[test]
fn in_flight_full() -> Result {
    require!();
    let orders = ["leak 3 100", "thread 5 100", "leak 2 100"];
    let finished = record_careless(&["--max-threads", "1"], |_| Ok(()), &orders)?;
    finished.ensure_told("in-flight-full", true)?;
    let report = finished.report()?;
    ensure!(report.loss("in-flight-full").0 >= 5, "{:?}", report.losses());
    ensure!(report.loss("unmatched-return").0 >= 5, "{:?}", report.losses());
    ensure!(of(&report, "site_leak") == (500, 5), "{:?}", report.sites);
    Ok(())
}

/// An allocator that breaks its promises: a result that cannot be read, an address that is given out four times, a block in spite of an
/// overflow. And a stack whose older half cannot be read breaks off there: no loss, its bytes are exact.
#[test]
fn read_fault_missed_release_and_size_overflow() -> Result {
    require!();
    let orders = ["unreadable 70", "twice 4 100", "overflow 90", "broken 6 50", "leak 1 10"];
    let finished = record_careless(&[], |_| Ok(()), &orders)?;
    for reason in ["read-fault", "missed-release", "size-overflow"] {
        finished.ensure_told(reason, true)?;
    }
    let report = finished.report()?;
    ensure!(report.loss("read-fault") == (1, 70), "{:?}", report.losses());
    ensure!(of(&report, "site_unreadable") == (0, 0), "{:?}", report.sites);
    ensure!(report.loss("missed-release") == (3, 300), "{:?}", report.losses());
    ensure!(of(&report, "site_twice") == (100, 1), "{:?}", report.sites);
    let site = report.sites_in(MALLOC).find(|site| site.functions().contains(&"site_twice"));
    ensure!(site.is_some_and(|site| (site.allocated_count, site.freed_count) == (4, 3)), "{site:?}");
    ensure!(report.loss("size-overflow").0 == 1, "{:?}", report.losses());
    ensure!(of(&report, "site_overflow") == (0, 0), "{:?}", report.sites);
    let site = report.sites_in(MALLOC).find(|site| site.functions().contains(&"site_broken"));
    ensure!(site.is_some_and(|site| site.stack_end.as_deref() == Some("read-fault")), "{:#?}", report.sites);
    ensure!(of(&report, "site_broken") == (300, 6), "{:#?}", report.sites);
    ensure!(report.outstanding() == (100 + 300 + 10, 8), "{:?}", report.outstanding());
    Ok(())
}

/// A `realloc` that fails while another thread takes the place that its block has left: the block lives, and is booked as freed.
/// And blocks for which there is no place are not booked.
#[test]
fn live_map_full_and_restore_failed() -> Result {
    require!();
    let orders = ["leak 4 10", "survive 100", "leak 40 1000"];
    let finished = record_careless(&["--max-live-blocks", "5"], |_| Ok(()), &orders)?;
    for reason in ["restore-failed", "live-map-full"] {
        finished.ensure_told(reason, true)?;
    }
    finished.ensure_shown("live-map-full")?;
    let report = finished.report()?;
    ensure!(report.loss("restore-failed") == (1, 100), "{:?}", report.losses());
    ensure!(report.loss("live-map-full") == (40, 40_000), "{:?}", report.losses());
    ensure!(of(&report, "site_survive") == (0, 0), "{:?}", report.sites);
    ensure!(of(&report, "site_leak") == (4 * 10 + 100, 5), "{:?}", report.sites);
    Ok(())
}

/// As many blocks as there is room for: some find no place in their buckets and are booked elsewhere, and all are found again.
#[test]
fn a_full_table_of_live_blocks() -> Result {
    const ROOM: u64 = 16_384;
    require!();
    let mut target = Target::start("puppet")?;
    let recording =
        Recording::attach(&target, &["--lens", "malloc", "--max-live-blocks", &ROOM.to_string()])?;
    let has_spilled = Map::of(recording.pid(), ".bss.spilled")?;
    ensure!(has_spilled.lookup(&[0; 4])? == 0u32.to_ne_bytes(), "spilled before there was a block");
    for order in [format!("hoard {ROOM} 24"), format!("leak {ROOM} 24")] {
        target.order(&order)?;
    }
    ensure!(has_spilled.lookup(&[0; 4])? == 1u32.to_ne_bytes(), "every block found a place in its bucket");
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    ensure!(of(&report, "site_hoard") == (0, 0), "{:?}", report.sites);
    ensure!(of(&report, "site_leak") == (ROOM * 24, ROOM), "{:?}", report.sites);
    ensure!(report.loss("unknown-release").0 == 0, "{:?}", report.losses());
    Ok(())
}

/// More blocks than there is room for: none is lost without being counted.
#[test]
fn more_live_blocks_than_the_table_holds() -> Result {
    const BLOCKS: u64 = 50_000;
    require!();
    let arguments = ["--lens", "malloc", "--max-live-blocks", "16384"];
    let finished = record(&arguments, &[&format!("leak {BLOCKS} 24")])?;
    finished.ensure_told("live-map-full", true)?;
    let report = finished.report()?;
    let ((bytes, booked), (lost, lost_bytes)) = (of(&report, "site_leak"), report.loss("live-map-full"));
    ensure!(booked >= 16_384 && booked + lost == BLOCKS, "{booked} booked, {lost} lost");
    ensure!(bytes + lost_bytes == BLOCKS * 24, "{bytes} booked, {lost_bytes} lost");
    Ok(())
}

#[test]
fn sizes_outside_the_range() -> Result {
    require!();
    let range = ["--min-size", "50B", "--max-size", "200B"];
    let finished = record(&range, &["leak 3 49", "leak 4 50", "leak 5 200", "leak 6 201"])?;
    finished.ensure_told("filtered-size", false)?;
    let report = finished.report()?;
    ensure!(report.outstanding() == (1200, 9), "{:?}", report.sites);
    ensure!(report.loss("filtered-size").0 == 9, "{:?}", report.losses());
    Ok(())
}

/// Two threads use each stack for the first time at the same moment. Whoever interns it, both blocks are on its one row.
#[test]
fn interning_race() -> Result {
    const ROUNDS: u64 = 4000;
    require!(Need::Cpus(2));
    let finished = record_careless(&[], |_| Ok(()), &[&format!("race {ROUNDS} 100")])?;
    finished.ensure_told("interning-race", false)?;
    let report = finished.report()?;
    let rows: Vec<_> =
        report.sites_in(MALLOC).filter(|site| site.functions().contains(&"site_race")).collect();
    ensure!(rows.len() as u64 == ROUNDS, "{} rows of {ROUNDS} stacks", rows.len());
    let wrong = rows.iter().find(|site| (site.outstanding_bytes, site.outstanding_count) != (200, 2));
    ensure!(wrong.is_none(), "{wrong:?}");
    Ok(())
}
