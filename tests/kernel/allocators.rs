//! Every allocator that Debian has, in every way in which one gets into a process: preloaded, linked, linked statically,
//! hidden in a library, under a prefix, and several at a time. The numbers are exact with all of them.

use anyhow::ensure;
use tracer_tests::target::{Target, command};
use tracer_tests::tracer::{FAILED, offheap, offheap_output};
use tracer_tests::{Result, build, require};

use crate::{trace_exactly, trace_target};

const WHOLE_PERCENT: f64 = 99.5;
/// Debian's musl has no unwind tables: stacks end in its start-up code, behind `main`.
const MUSL_WHOLE_PERCENT: f64 = 0.0;

/// What `doctor` says of a target.
fn doctor(target: &Target, arguments: &[&str]) -> Result<String> {
    let pid = target.pid().to_string();
    offheap_output(["doctor", &pid].into_iter().chain(arguments.iter().copied()))
}

/// All C functions, all forms of operator new and delete; exceptions that leave operator new are caught, and nothing is
/// missed after them.
fn trace_preloaded(library: &str, allocator: &str) -> Result {
    let mut command = command("new_forms")?;
    command.env("LD_PRELOAD", library);
    let target = Target::start_command(command)?;
    let found = doctor(&target, &[])?;
    ensure!(found.contains(&format!(": {allocator}")), "no {allocator} was found:\n{found}");
    ensure!(!found.contains("calls are missed"), "an exit was not found:\n{found}");
    let report = trace_target(target, &[], WHOLE_PERCENT)?;
    ensure!(report.loss("missed-release").0 == 0, "a release was missed: {:?}", report.losses());
    Ok(())
}

#[test]
fn glibc() -> Result {
    require!();
    trace_exactly("new_forms", WHOLE_PERCENT).map(drop)
}

#[test]
fn jemalloc() -> Result {
    require!();
    trace_preloaded("libjemalloc.so.2", "jemalloc")
}

#[test]
fn jemalloc_linked_statically() -> Result {
    require!();
    trace_exactly("new_forms_jemalloc", WHOLE_PERCENT).map(drop)
}

#[test]
fn tcmalloc_minimal() -> Result {
    require!();
    trace_preloaded("libtcmalloc_minimal.so.4", "tcmalloc")
}

#[test]
fn tcmalloc() -> Result {
    require!();
    trace_preloaded("libtcmalloc.so.4", "tcmalloc")
}

#[test]
fn mimalloc() -> Result {
    require!();
    trace_preloaded("libmimalloc.so.2", "mimalloc")
}

#[test]
fn static_glibc() -> Result {
    require!();
    trace_exactly("c_forms_static", WHOLE_PERCENT).map(drop)
}

#[test]
fn musl() -> Result {
    require!();
    for name in ["c_forms_musl", "c_forms_musl_static"] {
        let target = Target::start(name)?;
        let found = doctor(&target, &[])?;
        ensure!(found.contains("Allocator 1: musl malloc"), "{name}:\n{found}");
        trace_target(target, &[], MUSL_WHOLE_PERCENT)?;
    }
    Ok(())
}

#[test]
fn functions_of_jemalloc_only() -> Result {
    require!();
    trace_exactly("mallocx", WHOLE_PERCENT).map(drop)
}

#[test]
fn functions_of_mimalloc_only() -> Result {
    require!();
    trace_exactly("mi_forms", WHOLE_PERCENT).map(drop)
}

/// jemalloc in a library that was loaded, all of its symbols local, beside the C library's malloc.
#[test]
fn hidden_in_a_library() -> Result {
    require!();
    let mut command = command("hidden_host")?;
    command.arg(build::target("hidden_plugin")?);
    // jemalloc's thread-local data is larger than what is set aside for libraries that are loaded late.
    command.env("GLIBC_TUNABLES", "glibc.rtld.optional_static_tls=16384");
    let target = Target::start_command(command)?;
    let found = doctor(&target, &[])?;
    ensure!(found.contains(": jemalloc") && found.contains(": glibc malloc"), "{found}");
    trace_target(target, &[], WHOLE_PERCENT).map(drop)
}

#[test]
fn three_allocators_in_one_process() -> Result {
    require!();
    let target = Target::start("prefixes")?;
    let found = doctor(&target, &[])?;
    ensure!(found.contains("custom, as `je_`") && !found.contains("pool_"), "{found}");
    ensure!(found.contains("its object has nothing that allocates:\n        rpfree"), "{found}");
    trace_target(target, &[], WHOLE_PERCENT)?;

    let mut command = command("prefixes")?;
    command.arg("with-prefix");
    let target = Target::start_command(command)?;
    let arguments = ["--allocator-prefix", "pool_"];
    ensure!(doctor(&target, &arguments)?.contains("custom, as `pool_`"), "the prefix finds nothing");
    trace_target(target, &arguments, WHOLE_PERCENT).map(drop)
}

/// An object that is named is probed also if it only releases; by the path in the target, and by that of the host.
#[test]
fn an_object_that_is_named() -> Result {
    require!();
    let target = Target::start("prefixes")?;
    let path = build::target("prefixes")?;
    let found = doctor(&target, &["--object", &path.to_string_lossy(), "--object", "/no/such/object"])?;
    ensure!(found.contains("rpmalloc, as `rp`"), "{found}");
    ensure!(found.contains("Not mapped by this process: /no/such/object"), "{found}");
    Ok(())
}

#[test]
fn a_stripped_static_program_is_told_to_be_one() -> Result {
    require!();
    let target = Target::start("stripped_static")?;
    let output = offheap(["doctor", &target.pid().to_string()])?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(FAILED), "{}: {text}", output.status);
    ensure!(text.contains("static program without symbols"), "{text}");
    Ok(())
}
