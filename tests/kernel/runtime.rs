//! Native leaks below language runtimes.

use anyhow::ensure;
use tracer_tests::require::Need;
use tracer_tests::{Result, require};

use crate::trace_exactly;

#[test]
fn cpython_extension() -> Result {
    require!(Need::Program("python3"), Need::Program("python3-config"));
    let report = trace_exactly("leak_python", 99.5)?;
    let raw = report.sites.iter().find(|site| site.functions().contains(&"site_python_raw"));
    ensure!(
        raw.is_some_and(|site| site.functions().iter().any(|name| name.contains("Py_RunMain"))),
        "{raw:?}"
    );
    Ok(())
}

#[test]
fn node_addon() -> Result {
    require!(Need::Program("node"), Need::File("/usr/include/node/node_api.h"));
    let report = trace_exactly("leak_node", 99.5)?;
    let leak = report.sites.iter().find(|site| site.functions().contains(&"site_node_malloc"));
    // Its `main` leaves by a jump, so it is on no stack.
    ensure!(
        leak.is_some_and(|site| site.functions().iter().any(|name| name.starts_with("node::Start("))),
        "{leak:?}"
    );
    Ok(())
}

#[test]
fn jni_library_with_frame_pointers() -> Result {
    require!(Need::Program("java"), Need::Program("javac"));
    trace_exactly("LeakJni", 99.0).map(drop)
}
