//! Managed runtimes: stacks through Go, and names of code that is made at run time.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use tracer_tests::report::{Report, Site};
use tracer_tests::require::Need;
use tracer_tests::target::{Target, command};
use tracer_tests::tracer::{COMPLETE, Recording, offheap};
use tracer_tests::{Result, require};

use crate::trace_exactly;

/// The stacks in which `function` is.
fn through<'a>(report: &'a Report, function: &str) -> Vec<&'a Site> {
    report.sites.iter().filter(|site| site.functions().contains(&function)).collect()
}

/// Fails unless the stack is whole and passes through all of `way`, innermost first.
fn expect_way(site: &Site, way: &[&str]) -> Result {
    let functions = site.functions();
    let mut left = functions.iter();
    let is_way = way.iter().all(|wanted| left.any(|name| name == wanted));
    ensure!(is_way && site.stack_end.as_deref() == Some("thread-start"), "{way:?} in {functions:?}");
    Ok(())
}

/// Fails unless the outermost frame is this function.
fn expect_root(site: &Site, root: &str) -> Result {
    ensure!(site.functions().last() == Some(&root), "{root} is not the root of {:?}", site.functions());
    Ok(())
}

/// The same for every way in which the program is built: names, numbers and ways are equal.
fn go_program(name: &str, has_c_names: bool) -> Result {
    // In a virtual machine the programs lie ready.
    if std::env::var_os("OFFHEAP_TARGETS").is_none() {
        require!(Need::Program("go"), Need::Program("gcc"));
    }
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
            expect_way(site, &[cgo[0], cgo[1], function, caller, "main.main.func1"])?;
            expect_root(site, root)?;
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
        expect_way(site, &[&cgo[..], &back, call_back, &cgo, &["main.work"]].concat())?;
        expect_root(site, root)?;
    }
    // A thread that Go did not make has its root in the C library.
    for site in foreign {
        expect_way(site, &[&cgo[..], &back, call_back].concat())?;
        // Which of its functions that is only debug files tell.
        let root = site.stack.last().and_then(|frame| frame.object.as_deref()).unwrap_or_default();
        ensure!(root.contains("libc.so"), "{root}: {:?}", site.functions());
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

/// Traces a command that behaves like a target; `between` is done when it has worked.
fn trace(command: Command, between: impl FnOnce(&Target) -> Result) -> Result<(Report, String)> {
    let mut target = Target::start_command(command)?;
    let recording = Recording::attach(&target, &[])?;
    let truth = target.work()?;
    between(&target)?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    let report = finished.report()?;
    truth.compare(&report)?;
    Ok((report, finished.errors.join("\n")))
}

#[test]
fn node_functions_have_names() -> Result {
    require!(Need::Program("node"), Need::File("/usr/include/node/node_api.h"));
    let leak_node = command("leak_node")?;
    let mut node = Command::new(leak_node.get_program());
    node.args(["--perf-basic-prof", "--interpreted-frames-native-stack"]).args(leak_node.get_args());
    // The second switch makes it write a log, too.
    let directory = tempfile::tempdir()?;
    node.current_dir(directory.path());
    let mut map = None;
    let (report, errors) = trace(node, |target| {
        map = Some(format!("/tmp/perf-{}.map", target.pid()));
        Ok(())
    })?;
    // The file is the target's; it leaves it behind.
    map.map(std::fs::remove_file).transpose()?;
    // The addon is called by `handle`, at every depth, and that by the script.
    let sites = through(&report, "site_node_malloc");
    ensure!(!sites.is_empty(), "no site");
    for site in sites {
        let handle = site.stack.iter().find(|frame| frame.function.as_deref() == Some("handle"));
        let handle = handle.with_context(|| format!("{:?}", site.functions()))?;
        ensure!(handle.file.as_deref().is_some_and(|file| file.ends_with("leak_node.js")), "{handle:?}");
    }
    ensure!(!errors.contains("--perf-basic-prof"), "{errors}");
    Ok(())
}

#[test]
fn java_methods_get_their_names_in_the_middle() -> Result {
    require!(Need::Program("java"), Need::Program("javac"), Need::Program("jcmd"));
    let leak_jni = command("LeakJni")?;
    let mut java = Command::new(leak_jni.get_program());
    // What is to be compiled is compiled before it is called again.
    java.arg("-Xbatch").args(leak_jni.get_args());
    let (report, _) = trace(java, |target| {
        let pid = target.pid().to_string();
        ensure!(!Path::new(&format!("/tmp/perf-{pid}.map")).exists(), "there is a map already");
        let output = Command::new("jcmd").args([&pid, "Compiler.perfmap"]).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    })?;
    let sites = through(&report, "site_jni_malloc");
    let is_named = |site: &&&Site| {
        site.functions()
            .iter()
            .any(|name| name.starts_with("LeakJni.handle") || name.contains(" LeakJni.handle"))
    };
    ensure!(
        sites.iter().filter(is_named).count() > 0,
        "{:?}",
        sites.iter().map(|site| site.functions()).collect::<Vec<_>>()
    );
    Ok(())
}

#[test]
fn java_without_a_map_says_how_to_get_one() -> Result {
    require!(Need::Program("java"), Need::Program("javac"));
    let mut command_line = String::new();
    let (_, errors) = trace(command("LeakJni")?, |target| {
        command_line = format!("jcmd {} Compiler.perfmap", target.pid());
        Ok(())
    })?;
    ensure!(errors.contains(&command_line), "{errors}");
    Ok(())
}
