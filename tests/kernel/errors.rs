//! Each error is one clear line and an exit status.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::ensure;
use tracer_tests::target::Target;
use tracer_tests::tracer::{COMPLETE, FAILED, Recording, USAGE, offheap};
use tracer_tests::{Result, require};

/// Fails unless offheap ends with this status and exactly one line on standard error, which begins with
/// `offheap: ` and contains every one of `words`.
fn expect_error<Argument: AsRef<OsStr>>(arguments: &[Argument], status: i32, words: &[&str]) -> Result {
    let output = offheap(arguments)?;
    let shown: Vec<OsString> = arguments.iter().map(|argument| argument.as_ref().to_owned()).collect();
    let errors = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(status), "{shown:?} ended with {}: {errors}", output.status);
    ensure!(errors.lines().count() == 1 && errors.starts_with("offheap: "), "{shown:?} printed\n{errors}");
    for word in words {
        ensure!(errors.contains(word), "{shown:?} does not name {word}: {errors}");
    }
    ensure!(output.stdout.is_empty(), "{shown:?} printed data");
    Ok(())
}

fn capture_in(directory: &tempfile::TempDir) -> String {
    directory.path().join("x.offheap").display().to_string()
}

#[test]
fn no_such_process() -> Result {
    require!();
    let directory = tempfile::tempdir()?;
    // The largest possible process id.
    expect_error(&["record", "-p", "4194303", "-o", &capture_in(&directory)], FAILED, &["4194303"])?;
    ensure!(fs::read_dir(directory.path())?.next().is_none(), "a failed recording left a file");
    Ok(())
}

#[test]
fn kernel_thread() -> Result {
    require!();
    let directory = tempfile::tempdir()?;
    expect_error(&["record", "-p", "2", "-o", &capture_in(&directory)], FAILED, &["kernel thread"])
}

#[test]
fn wrong_arguments() -> Result {
    require!();
    expect_error(&["record", "-p", "not-a-number"], USAGE, &["not-a-number"])?;
    expect_error(&["record", "--duration", "30", "-p", "1"], USAGE, &["30"])?;
    expect_error(&["record", "--no-such-option"], USAGE, &["--no-such-option"])?;
    expect_error(&["record"], USAGE, &[])
}

#[test]
fn command_not_found() -> Result {
    require!();
    let directory = tempfile::tempdir()?;
    let command = ["record", "-o", &capture_in(&directory), "--", "/no/such/command"];
    expect_error(&command, FAILED, &["/no/such/command"])
}

#[test]
fn output_exists() -> Result {
    require!();
    let target = Target::start("puppet")?;
    let directory = tempfile::tempdir()?;
    let capture = capture_in(&directory);
    fs::write(&capture, "precious")?;
    expect_error(&["record", "-p", &target.pid().to_string(), "-o", &capture], FAILED, &[&capture])?;
    ensure!(fs::read(&capture)? == b"precious", "an existing file was overwritten");
    target.finish_well()
}

#[test]
fn capture_missing() -> Result {
    require!();
    expect_error(&["report", "/no/such/capture"], FAILED, &["/no/such/capture"])
}

/// Root may read every file: the test reads as nobody.
#[test]
fn capture_unreadable() -> Result {
    require!();
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let capture = capture_in(&directory);
    fs::write(&capture, "")?;
    fs::set_permissions(&capture, fs::Permissions::from_mode(0o000))?;
    // Cargo's target directory need not be readable for nobody: run a copy.
    let program = directory.path().join("offheap");
    fs::copy(tracer_tests::tracer::program()?, &program)?;
    let mut command = std::process::Command::new(&program);
    std::os::unix::process::CommandExt::uid(&mut command, 65534);
    let output = command.args(["report", &capture]).output()?;
    let errors = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(FAILED), "{}: {errors}", output.status);
    ensure!(errors.lines().count() == 1 && errors.starts_with("offheap: "), "{errors}");
    ensure!(errors.contains(&capture) && errors.to_lowercase().contains("not permitted"), "{errors}");
    Ok(())
}

/// Not a database, cut off, and with its middle overwritten.
#[test]
fn capture_damaged() -> Result {
    require!();
    let directory = tempfile::tempdir()?;
    let damaged = capture_in(&directory);
    fs::write(&damaged, "no database at all, but long enough to be looked at as one".repeat(100))?;
    expect_error(&["report", &damaged], FAILED, &[&damaged])?;

    let good = fs::read(recorded(directory.path())?)?;
    fs::write(&damaged, &good[..good.len() / 2])?;
    expect_error(&["report", &damaged], FAILED, &[&damaged])?;

    let mut overwritten = good.clone();
    for byte in overwritten.iter_mut().skip(100) {
        *byte ^= 0x5a;
    }
    fs::write(&damaged, &overwritten)?;
    expect_error(&["report", &damaged], FAILED, &[&damaged])
}

#[test]
fn capture_from_a_newer_version() -> Result {
    require!();
    let directory = tempfile::tempdir()?;
    let capture = recorded(directory.path())?;
    let database = rusqlite::Connection::open(&capture)?;
    database.pragma_update(None, "user_version", 9999)?;
    database.close().map_err(|(_, error)| error)?;
    expect_error(&["report".as_ref(), capture.as_os_str()], FAILED, &["9999", "newer"])
}

#[test]
fn doctor_of_a_target() -> Result {
    require!();
    let target = Target::start("puppet")?;
    let output = tracer_tests::tracer::offheap_output(["doctor", &target.pid().to_string()])?;
    for word in ["malloc", "free", "realloc", "libc"] {
        ensure!(output.contains(word), "no {word} in\n{output}");
    }
    target.finish_well()
}

/// A capture in `directory`.
fn recorded(directory: &Path) -> Result<std::path::PathBuf> {
    let mut target = Target::start("puppet")?;
    let recording = Recording::attach(&target, &[])?;
    target.order("stacks 30 100")?;
    let finished = recording.stop()?;
    finished.expect_status(COMPLETE)?;
    target.finish_well()?;
    let copy = directory.join("good.offheap");
    fs::copy(finished.capture(), &copy)?;
    Ok(copy)
}
