//! Running offheap: attached to a target, with a command, or on a capture.

use std::env;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
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

    /// Begins to attach to a target, and does not wait until the probes are in place.
    pub fn begin(target: &Target, arguments: &[&str]) -> Result<Self> {
        let pid = target.pid().to_string();
        let all = ["--duration", "7d", "-p", &pid].into_iter().chain(arguments.iter().copied());
        Self::start(all.map(OsStr::new), Stdio::null(), Stdio::null())
    }

    /// Attaches to what the arguments say, and waits until the probes are in place.
    pub fn attach_with(arguments: &[&str]) -> Result<Self> {
        Self::attach_by(Command::new(program()?), arguments)
    }

    /// Attaches to a target where no tracefs is mounted, and none can be.
    pub fn attach_without_tracefs(target: &Target, arguments: &[&str]) -> Result<Self> {
        // Each mount point may be missing.
        let script = "umount -l /sys/kernel/debug/tracing /sys/kernel/tracing /sys/kernel/debug 2>/dev/null; \
                      exec \"$0\" \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(program()?);
        // SAFETY: `deny` makes one system call and allocates nothing.
        unsafe { command.pre_exec(|| deny(libc::SYS_fsopen)) };
        Self::attach_by(command, &[&["-p", &target.pid().to_string()], arguments].concat())
    }

    fn attach_by(offheap: Command, arguments: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir().context("cannot create a temporary directory")?;
        Self::attach_in(directory, offheap, arguments)
    }

    /// Attaches by a command that runs offheap, whose capture goes into `directory`, and waits until the probes are in
    /// place.
    pub fn attach_in(directory: TempDir, offheap: Command, arguments: &[&str]) -> Result<Self> {
        let fixed = ["--duration", "7d"];
        let all = fixed.iter().chain(arguments).map(OsStr::new);
        let mut recording = Self::start_by(offheap, directory, all, (Stdio::null(), Stdio::null()))?;
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
        Self::start_by(Command::new(program()?), directory, arguments, (input, output))
    }

    fn start_by<'a>(
        mut command: Command,
        directory: TempDir,
        arguments: impl Iterator<Item = &'a OsStr>,
        (input, output): (Stdio, Stdio),
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

    /// Process id of offheap.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops offheap in its tracks (SIGSTOP), and waits until it stands still.
    pub fn pause(&self) -> Result {
        self.signal(libc::SIGSTOP)?;
        let deadline = Instant::now() + PATIENCE;
        while !all_threads_stopped(self.child.id())? {
            ensure!(Instant::now() < deadline, "offheap does not stand still");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Ok(())
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result {
        self.signal(libc::SIGCONT)
    }

    /// The capture that is being written.
    pub fn capture(&self) -> Result<PathBuf> {
        self.directory.as_ref().map(capture_in).context("the recording has ended")
    }

    /// Waits until the capture says that so many bytes are outstanding (lens `malloc`); gives the time of that sample,
    /// since the start, in nanoseconds.
    pub fn wait_until_outstanding(&self, bytes: u64) -> Result<u64> {
        self.wait_for_report(&["--lens", "malloc"], |report| {
            let is_reached = report["totals"]["outstanding_bytes"].as_u64() == Some(bytes);
            let seconds = report["window"]["seconds"].as_f64().filter(|_| is_reached);
            Ok(seconds.map(|seconds| (seconds * 1e9).round() as u64))
        })
    }

    /// Reports on the capture as it stands, again and again, until `found` finds something in it.
    pub fn wait_for_report<Found>(
        &self,
        arguments: &[&str],
        mut found: impl FnMut(&serde_json::Value) -> Result<Option<Found>>,
    ) -> Result<Found> {
        let deadline = Instant::now() + PATIENCE;
        let capture = self.capture()?;
        loop {
            let all = ["report", "--format", "json"].iter().chain(arguments).map(OsStr::new);
            let output = offheap(all.chain([capture.as_os_str()]))?;
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if let Some(found) = found(&report)? {
                return Ok(found);
            }
            ensure!(Instant::now() < deadline, "the capture never says it: {report:#}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Ends the recording as Ctrl-C does.
    pub fn stop(self) -> Result<Finished> {
        self.signal(libc::SIGINT)?;
        self.finish()
    }

    /// Sends a signal and does not wait for what it brings about.
    pub fn send_signal(&self, signal: i32) -> Result {
        self.signal(signal)
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

/// Makes a system call fail with EPERM from now on, in this process and those it becomes.
fn deny(system_call: libc::c_long) -> std::io::Result<()> {
    // `BPF_LD | BPF_W | BPF_ABS` of the call's number, `BPF_JMP | BPF_JEQ | BPF_K`, `BPF_RET | BPF_K`.
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let number = u32::try_from(system_call).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    let mut filter = [
        step(0x20, 0, 0, 0),
        step(0x15, 0, 1, number),
        step(0x06, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs()),
        step(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: program and filter are alive for the call, which copies them.
    let status = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Whether every thread of a process is stopped.
fn all_threads_stopped(pid: u32) -> Result<bool> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).context("cannot list threads")? {
        let stat =
            std::fs::read_to_string(thread?.path().join("stat")).context("cannot read a thread's state")?;
        // The name before it may have anything in it.
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        if state != Some('T') {
            return Ok(false);
        }
    }
    Ok(true)
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

    /// Standard output of an offheap command on the capture, which may say that data is missing.
    fn output_of(&self, arguments: &[&str]) -> Result<(i32, String)> {
        let capture = self.capture();
        let all = arguments.iter().map(OsStr::new).chain([capture.as_os_str()]);
        let output = offheap(all)?;
        let status = output.status.code().context("offheap was killed")?;
        ensure!([COMPLETE, INCOMPLETE].contains(&status), "{}", String::from_utf8_lossy(&output.stderr));
        Ok((status, String::from_utf8(output.stdout)?))
    }

    /// Fails unless the loss has happened, and unless it makes the recording incomplete if it has to, and only then.
    pub fn ensure_told(&self, reason: &str, is_incomplete: bool) -> Result {
        self.expect_status(if is_incomplete { INCOMPLETE } else { COMPLETE })?;
        let report = self.report()?;
        ensure!(report.loss(reason).0 > 0, "{reason} did not happen: {:?}", report.losses());
        ensure!(report.completeness.complete != is_incomplete, "{:?}", report.completeness);
        Ok(())
    }

    /// Fails unless a loss that makes the recording incomplete is shown wherever a person looks, and changes the status of the
    /// report. (A unit test does so for each reason.)
    pub fn ensure_shown(&self, reason: &str) -> Result {
        let line = format!("incomplete: {reason} (");
        let (status, table) = self.output_of(&["report", "--format", "table"])?;
        ensure!(status == INCOMPLETE, "the report ended with {status}:\n{table}");
        ensure!(table.contains(&line), "{reason} is not in the table:\n{table}");
        let (status, page) = self.output_of(&["export", "--format", "html"])?;
        ensure!(status == INCOMPLETE && page.contains(&line), "{reason} is not in the page ({status})");
        Ok(())
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
