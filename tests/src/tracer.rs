//! Running offheap: attached to a target, with a command, or on a capture.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use crate::Result;
use crate::lines::{Lines, PATIENCE};
use crate::report::Report;
use crate::target::Target;

/// Everything recorded, nothing lost.
pub const COMPLETE: i32 = 0;
/// Failed.
pub const FAILED: i32 = 1;
/// Wrong arguments.
pub const USAGE: i32 = 2;
/// Finished, but the data is incomplete.
pub const INCOMPLETE: i32 = 3;

/// The program under test: `OFFHEAP_BIN`, or the release build.
pub fn program() -> Result<PathBuf> {
    if let Some(program) = env::var_os("OFFHEAP_BIN") {
        return Ok(PathBuf::from(program));
    }
    let executable = env::current_exe().context("cannot find the test program")?;
    let target = executable.ancestors().find(|path| path.join("CACHEDIR.TAG").is_file());
    let program =
        target.context("the test program is not in cargo's target directory")?.join("release/offheap");
    ensure!(program.is_file(), "no `{}`: `cargo build --release` makes it", program.display());
    Ok(program)
}

/// Runs offheap to its end.
pub fn offheap<Argument: AsRef<OsStr>>(arguments: impl IntoIterator<Item = Argument>) -> Result<Output> {
    let mut command = Command::new(program()?);
    command.args(arguments).stdin(Stdio::null());
    command.output().with_context(|| format!("cannot run {command:?}"))
}

/// Runs offheap to its end, which must be good, and gives its standard output.
pub fn offheap_output<Argument: AsRef<OsStr>>(
    arguments: impl IntoIterator<Item = Argument>,
) -> Result<String> {
    let output = offheap(arguments)?;
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Waits for a child, but not for ever.
pub(crate) fn wait(child: &mut Child, name: &str) -> Result<ExitStatus> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for {name}"))? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            bail!("{name} does not end");
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// offheap while it records. It is killed when the value is dropped.
pub struct Recording {
    child: Child,
    errors: Option<Lines>,
    directory: Option<TempDir>,
}

impl Recording {
    /// Attaches to a target, with further arguments, and waits until the probes are in place.
    pub fn attach(target: &Target, arguments: &[&str]) -> Result<Self> {
        let pid = target.pid().to_string();
        Self::attach_with(&[&["-p", &pid], arguments].concat())
    }

    /// Attaches to what the arguments say, and waits until the probes are in place.
    pub fn attach_with(arguments: &[&str]) -> Result<Self> {
        let fixed = ["--duration", "600s"];
        let all = fixed.iter().chain(arguments).map(OsStr::new);
        let mut recording = Self::start(all, Stdio::null(), Stdio::null())?;
        recording.wait_until_attached()?;
        Ok(recording)
    }

    /// Runs a command under offheap; gives its input and output too.
    pub fn launch(command: &[&OsStr]) -> Result<(Self, ChildStdin, Lines)> {
        Self::launch_with(&[], command)
    }

    /// The same with arguments.
    pub fn launch_with(arguments: &[&str], command: &[&OsStr]) -> Result<(Self, ChildStdin, Lines)> {
        let arguments = arguments.iter().map(OsStr::new);
        let arguments = arguments.chain([OsStr::new("--")]).chain(command.iter().copied());
        let mut recording = Self::start(arguments, Stdio::piped(), Stdio::piped())?;
        let input = recording.child.stdin.take().context("no input pipe")?;
        let output = Lines::new("the command", recording.child.stdout.take().context("no output pipe")?);
        Ok((recording, input, output))
    }

    fn start<'a>(arguments: impl Iterator<Item = &'a OsStr>, input: Stdio, output: Stdio) -> Result<Self> {
        let directory = tempfile::tempdir().context("cannot create a temporary directory")?;
        Self::start_command(Command::new(program()?), directory, arguments, input, output)
    }

    /// Attaches by a command that runs offheap, whose capture goes into `directory`, and waits until the probes are in
    /// place.
    pub fn attach_by(command: Command, directory: TempDir, arguments: &[&str]) -> Result<Self> {
        let all = ["--duration", "600s"].iter().chain(arguments).map(OsStr::new);
        let mut recording = Self::start_command(command, directory, all, Stdio::null(), Stdio::null())?;
        recording.wait_until_attached()?;
        Ok(recording)
    }

    /// Process id of offheap.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn start_command<'a>(
        mut command: Command,
        directory: TempDir,
        arguments: impl Iterator<Item = &'a OsStr>,
        input: Stdio,
        output: Stdio,
    ) -> Result<Self> {
        command.arg("record").arg("-o").arg(capture_in(&directory)).args(arguments);
        command.stdin(input).stdout(output).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let errors = Lines::new("offheap", child.stderr.take().context("no error pipe")?);
        Ok(Self { child, errors: Some(errors), directory: Some(directory) })
    }

    fn wait_until_attached(&mut self) -> Result {
        let errors = self.errors.as_mut().context("the recording has ended")?;
        errors.wait_for("`attached`", |line| line.contains("attached")).map(drop)
    }

    /// Waits for a line on the standard error that has `text` in it; with `-v` there is one for each change of what
    /// is recorded. Returns that line.
    pub fn wait_until_said(&mut self, text: &str) -> Result<String> {
        let errors = self.errors.as_mut().context("the recording has ended")?;
        errors.wait_for(&format!("`{text}`"), |line| line.contains(text))
    }

    /// The capture that is being written.
    pub fn capture(&self) -> Result<PathBuf> {
        self.directory.as_ref().map(capture_in).context("the recording has ended")
    }

    /// Waits until the capture says that so many bytes are outstanding (lens `malloc`); gives the time of that sample,
    /// since the start, in nanoseconds.
    pub fn wait_until_outstanding(&self, bytes: u64) -> Result<u64> {
        let deadline = Instant::now() + PATIENCE;
        let capture = self.capture()?;
        loop {
            let fixed = ["report", "--format", "json", "--lens", "malloc"].map(OsStr::new);
            let output = offheap(fixed.into_iter().chain([capture.as_os_str()]))?;
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let (seconds, found) = (&report["window"]["seconds"], &report["totals"]["outstanding_bytes"]);
            if found.as_u64() == Some(bytes)
                && let Some(seconds) = seconds.as_f64()
            {
                return Ok((seconds * 1e9).round() as u64);
            }
            ensure!(Instant::now() < deadline, "{found} bytes are outstanding instead of {bytes}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Ends the recording as Ctrl-C does.
    pub fn stop(self) -> Result<Finished> {
        self.signal(libc::SIGINT)?;
        self.finish()
    }

    /// Kills offheap on the spot and waits until it is gone.
    pub fn kill(mut self) -> Result {
        self.signal(libc::SIGKILL)?;
        wait(&mut self.child, "offheap").map(drop)
    }

    fn signal(&self, signal: i32) -> Result {
        let pid = i32::try_from(self.child.id()).context("not a process id")?;
        // SAFETY: the child has not been waited for, so the id is still its own.
        ensure!(unsafe { libc::kill(pid, signal) } == 0, "cannot signal offheap");
        Ok(())
    }

    /// Waits until offheap ends by itself.
    pub fn finish(mut self) -> Result<Finished> {
        let status = wait(&mut self.child, "offheap")?;
        let errors = self.errors.take().map(Lines::rest).unwrap_or_default();
        let directory = self.directory.take().context("the recording has ended")?;
        Ok(Finished { status, errors, directory })
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn capture_in(directory: &TempDir) -> PathBuf {
    directory.path().join("test.offheap")
}

/// A recording that has ended.
pub struct Finished {
    /// How offheap ended.
    pub status: ExitStatus,
    /// Its standard error, line by line.
    pub errors: Vec<String>,
    directory: TempDir,
}

impl Finished {
    /// The capture file.
    pub fn capture(&self) -> PathBuf {
        capture_in(&self.directory)
    }

    /// A directory that lives as long as the capture.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Fails unless offheap ended with this status.
    pub fn expect_status(&self, status: i32) -> Result {
        ensure!(
            self.status.code() == Some(status),
            "offheap ended with {} instead of {status}: {:#?}\n{}",
            self.status,
            self.errors,
            self.completeness()
        );
        Ok(())
    }

    /// What the capture says of losses and broken stacks, for a message.
    fn completeness(&self) -> String {
        let json =
            self.report_json(&[]).and_then(|text| Ok(serde_json::from_str::<serde_json::Value>(&text)?));
        json.map_or_else(|error| error.to_string(), |json| json["completeness"].to_string())
    }

    /// The whole report, every site in it.
    pub fn report(&self) -> Result<Report> {
        self.report_with(&[])
    }

    /// The report with further arguments.
    pub fn report_with(&self, arguments: &[&str]) -> Result<Report> {
        Report::parse(&self.report_json(arguments)?)
    }

    /// The text of the report.
    pub fn report_json(&self, arguments: &[&str]) -> Result<String> {
        let capture = self.capture();
        let fixed = ["report", "--format", "json", "--top", "1000000"];
        let all = fixed.iter().chain(arguments).map(OsStr::new);
        let output = offheap(all.chain([capture.as_os_str()]))?;
        // 3: done, data incomplete; the report says how.
        ensure!(
            matches!(output.status.code(), Some(0 | 3)),
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}
