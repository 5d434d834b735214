//! Kernels below the floor.

use anyhow::ensure;
use tracer_tests::target::Target;
use tracer_tests::tracer::{FAILED, offheap};
use tracer_tests::{Result, require};

/// `cargo xtask vm` runs this on 5.10.
#[test]
#[ignore = "only for a kernel below 5.15"]
fn old_kernel_is_refused() -> Result {
    require!();
    let target = Target::start("puppet")?;
    let directory = tempfile::tempdir()?;
    let capture = directory.path().join("x.offheap").display().to_string();
    let output = offheap(["record", "-p", &target.pid().to_string(), "-o", &capture])?;
    let errors = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(FAILED), "{}: {errors}", output.status);
    ensure!(errors.lines().count() == 1 && errors.starts_with("offheap: "), "{errors}");
    ensure!(
        errors.contains("5.10") && errors.contains("5.15"),
        "neither kernel nor floor is named: {errors}"
    );
    target.finish_well()
}
