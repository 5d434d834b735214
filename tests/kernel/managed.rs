//! Managed runtimes: stacks through Go, and names of code that is made at run time.

use std::ffi::OsStr;

use anyhow::ensure;
use tracer_tests::report::{Report, Site};
use tracer_tests::require::Need;
use tracer_tests::target::Target;
use tracer_tests::tracer::{COMPLETE, offheap};
use tracer_tests::{Result, require};

use crate::trace_exactly;

/// The stacks in which `function` is.
fn through<'a>(report: &'a Report, function: &str) -> Vec<&'a Site> {
    report.sites.iter().filter(|site| site.functions().contains(&function)).collect()
}

/// Fails unless the stack is whole and passes through all of `way`, innermost first, the last being its root.
fn expect_way(site: &Site, way: &[&str]) -> Result {
    let functions = site.functions();
    let mut left = functions.iter();
    let is_way = way.iter().all(|wanted| left.any(|name| name == wanted)) && left.next().is_none();
    ensure!(is_way && site.stack_end.as_deref() == Some("thread-start"), "{way:?} in {functions:?}");
    Ok(())
}

/// The same for every way in which the program is built: names, numbers and ways are equal.
fn go_program(name: &str, has_c_names: bool) -> Result {
    require!(Need::Program("go"), Need::Program("gcc"));
    // Since Go 1.17 symbol tables mark assembly functions.
    let report = trace_exactly(name, 100.0)?.without_suffix(".abi0");
    let cgo = ["runtime.asmcgocall", "runtime.cgocall"];
    let root = "runtime.goexit";
    for (function, caller) in [
        ("main.leakDirectly", "main.work"),
        ("main.leakInFunction", "main.work"),
        ("main.(*pool).take", "main.leakInMethod"),
        ("main.leakDeep", "main.deepen"),
    ] {
        let sites = through(&report, function);
        ensure!(!sites.is_empty(), "no stack through {function}");
        for site in sites {
            expect_way(site, &[cgo[0], cgo[1], function, caller, "main.main.func1", root])?;
        }
    }
    // Out of C and back: from the thread's stack to the goroutine's, and again.
    let sites = through(&report, "main.leakInCallback");
    let is_own = |site: &&Site| site.functions().contains(&"main.work");
    let (own, foreign): (Vec<_>, Vec<_>) = sites.into_iter().partition(is_own);
    ensure!(!own.is_empty() && !foreign.is_empty(), "{} own, {} foreign", own.len(), foreign.len());
    let back = ["main.leakInCallback", "main.goCallback", "runtime.cgocallback", "crosscall2"];
    let call_back: &[&str] = if has_c_names { &["call_back"] } else { &[] };
    for site in own {
        expect_way(site, &[&cgo[..], &back, call_back, &cgo, &["main.work", root]].concat())?;
    }
    // A thread that Go did not make has its root in the C library.
    for site in foreign {
        let way = [&cgo[..], &back, call_back].concat();
        let functions = site.functions();
        ensure!(functions.last().is_some_and(|root| root.contains("clone")), "{functions:?}");
        expect_way(site, &[&way, &functions[functions.len() - 1..]].concat())?;
    }
    Ok(())
}

#[test]
fn go_with_symbols() -> Result {
    go_program("leak_go", true)
}

#[test]
fn go_without_symbols() -> Result {
    go_program("leak_go_stripped", false)
}

#[test]
fn go_position_independent_without_symbols() -> Result {
    go_program("leak_go_pie_stripped", false)
}

#[test]
fn go_without_c() -> Result {
    require!(Need::Program("go"));
    let target = Target::start("go_only")?;
    let pid = target.pid().to_string();
    let directory = tempfile::tempdir()?;
    let capture = directory.path().join("none.offheap");
    let fixed = ["record", "-p", &pid, "--duration", "1s", "-o"].map(OsStr::new);
    let output = offheap(fixed.into_iter().chain([capture.as_os_str()]))?;
    let text = String::from_utf8_lossy(&output.stderr);
    // Its memory is mappings, all of which are seen: nothing is missing.
    ensure!(output.status.code() == Some(COMPLETE) && text.contains("Go program without C code"), "{text}");
    target.finish_well()
}
