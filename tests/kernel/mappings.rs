//! The lens on mappings, against a target that maps and unmaps in every way there is.

use anyhow::{Context, ensure};
use tracer_tests::report::{MALLOC, MMAP};
use tracer_tests::target::Target;
use tracer_tests::tracer::{COMPLETE, Recording};
use tracer_tests::{Result, require};

const PAGE: u64 = 4096;

/// Every number equal, nothing lost, every stack whole.
#[test]
fn every_system_call() -> Result {
    require!();
    let mut target = Target::start("mappings")?;
    let recording = Recording::attach(&target, &[])?;
    let truth = target.work()?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    let mut report = finished.report()?;
    // Running threads' stacks are no leaks, and are listed on demand only.
    report.sites.extend(finished.report_with(&["--class", "thread-stack"])?.sites);
    truth.in_lens(MMAP).compare(&report)?;
    ensure!(report.completeness.complete, "incomplete: {:?}", report.losses());
    for site in report.sites_in(MMAP) {
        let end = site.stack_end.as_deref().context("no end")?;
        let is_whole = end == "thread-start" || end == "allocator-call";
        ensure!(is_whole, "a stack ends as {end}: {:?}", site.functions());
    }
    let (unknown, bytes) = report.loss("unknown-unmap");
    ensure!(unknown >= 1 && bytes >= 4 * PAGE, "{unknown} unmappings of older ranges, {bytes} bytes");
    ensure!(report.loss("mapping-healed").0 == 0, "unmappings were missed: {:?}", report.losses());
    Ok(())
}

/// `malloc` of a large block maps: that is the allocator's, not the program's, and its stack ends there.
#[test]
fn what_an_allocator_maps() -> Result {
    require!();
    let mut target = Target::start("mappings")?;
    let recording = Recording::attach(&target, &[])?;
    target.work()?;
    let finished = recording.stop()?;
    target.finish_well()?;
    let report = finished.report()?;
    let block = report.sites_in(MALLOC).find(|site| site.functions().contains(&"site_malloc_large"));
    ensure!(block.context("the block is missing")?.outstanding_bytes == 8 << 20, "{block:?}");
    // glibc adds a header and rounds up to pages.
    // Which of its names is shown depends on whether there is debug information.
    let is_malloc = |name: &&&str| ["malloc", "__libc_malloc"].contains(*name);
    ensure!(
        report.sites_in(MMAP).all(|site| !site.functions().contains(&"site_malloc_large")),
        "counted as a leak"
    );
    ensure!(report.set_aside("allocator-arena").0 >= (8 << 20) + PAGE, "{:?}", report.mappings);
    let arenas = finished.report_with(&["--class", "allocator-arena"])?;
    let inside: Vec<_> =
        arenas.sites_in(MMAP).filter(|site| site.functions().last().filter(is_malloc).is_some()).collect();
    let mapping = inside.iter().find(|site| site.outstanding_bytes == (8 << 20) + PAGE);
    let mapping = mapping.with_context(|| format!("no mapping of 8 MiB in an allocator: {inside:?}"))?;
    ensure!(mapping.stack_end.as_deref() == Some("allocator-call"), "{mapping:?}");
    Ok(())
}

/// Each kind of mapping has its class, and a name where there is one.
#[test]
fn classes_and_names() -> Result {
    require!();
    let mut target = Target::start("mappings")?;
    let recording = Recording::attach(&target, &[])?;
    target.work()?;
    let finished = recording.stop()?;
    target.finish_well()?;
    let report = finished.report()?;
    let threads = finished.report_with(&["--class", "thread-stack"])?;
    let is = |function: &str, class: &str, label: &str| {
        let sites = report.sites_in(MMAP).chain(threads.sites_in(MMAP));
        let mut sites =
            sites.filter(|site| site.functions().contains(&function) && site.outstanding_count > 0);
        let site = sites.next().with_context(|| format!("{function} is missing"))?;
        let (found, text) =
            (site.class.as_deref().unwrap_or_default(), site.label.as_deref().unwrap_or_default());
        ensure!(found == class && text.contains(label), "{function} is {found}: {text}");
        Ok(())
    };
    is("site_kept", "mmap", "")?;
    is("site_shared", "shared-memory", "")?;
    is("site_memfd", "shared-memory", "/memfd:")?;
    is("site_file", "file", "/")?;
    is("site_segment", "shared-memory", "SYSV")?;
    is("site_break", "mmap", "program break")?;
    is("site_thread_running", "thread-stack", "stack of a running thread")?;
    is("site_thread_not_joined", "ended-thread-stack", "stack of an ended thread, not joined")
}
