//! Running `offheap watch`.

use std::ffi::OsStr;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::Result;
use crate::lines::Lines;
use crate::tracer::{program, wait};

/// `offheap watch --format json` while it watches. It is killed when the value is dropped.
pub struct Watch {
    child: Child,
    errors: Option<Lines>,
}

/// A watch that has ended.
pub struct Watched {
    /// How offheap ended.
    pub status: ExitStatus,
    /// What it printed.
    pub json: Value,
    /// Its standard error, line by line.
    pub errors: Vec<String>,
}

impl Watch {
    /// Starts it with further arguments, and waits until it has begun.
    pub fn start<Argument: AsRef<OsStr>>(arguments: impl IntoIterator<Item = Argument>) -> Result<Self> {
        Self::start_command(Command::new(program()?), arguments)
    }

    /// The same with a command that is offheap, for instance as another user.
    pub fn start_command<Argument: AsRef<OsStr>>(
        mut command: Command,
        arguments: impl IntoIterator<Item = Argument>,
    ) -> Result<Self> {
        command.args(["watch", "--format", "json"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let errors = Lines::new("offheap", child.stderr.take().context("no error pipe")?);
        let mut watch = Self { child, errors: Some(errors) };
        watch.wait_until_said("watching")?;
        // The line of the first look.
        watch.wait_until_said("RSS")?;
        Ok(watch)
    }

    /// Waits for a line on the standard error that has `text` in it.
    pub fn wait_until_said(&mut self, text: &str) -> Result {
        let errors = self.errors.as_mut().context("the watch has ended")?;
        errors.wait_for(&format!("`{text}`"), |line| line.contains(text)).map(drop)
    }

    /// Ends it as Ctrl-C does.
    pub fn stop(self) -> Result<Watched> {
        let pid = i32::try_from(self.child.id()).context("not a process id")?;
        // SAFETY: the child has not been waited for, so the id is still its own.
        ensure!(unsafe { libc::kill(pid, libc::SIGINT) } == 0, "cannot signal offheap");
        self.finish()
    }

    /// Waits until it ends by itself.
    pub fn finish(mut self) -> Result<Watched> {
        // Before the wait: a document is larger than a pipe.
        let mut text = String::new();
        self.child.stdout.take().context("no output pipe")?.read_to_string(&mut text)?;
        let status = wait(&mut self.child, "offheap")?;
        let errors = self.errors.take().map(Lines::rest).unwrap_or_default();
        let json = serde_json::from_str(&text).with_context(|| format!("{status}, {errors:#?}: {text}"))?;
        Ok(Watched { status, json, errors })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Watched {
    /// Every program of a process, in the order in which they began.
    pub fn programs(&self, pid: u32) -> Vec<&Value> {
        let programs = self.json["programs"].as_array().map(Vec::as_slice).unwrap_or_default();
        programs.iter().filter(|program| program["pid"] == pid).collect()
    }

    /// The only program of a process.
    pub fn program(&self, pid: u32) -> Result<&Value> {
        let programs = self.programs(pid);
        ensure!(programs.len() == 1, "{} programs of {pid}: {:#}", programs.len(), self.json);
        programs.into_iter().next().context("no program")
    }

    /// Fails unless offheap ended with this status.
    pub fn expect_status(&self, status: i32) -> Result {
        ensure!(
            self.status.code() == Some(status),
            "offheap ended with {} instead of {status}: {:#?}\n{:#}",
            self.status,
            self.errors,
            self.json
        );
        Ok(())
    }
}

/// A control group of the memory controller with a limit, v1 or v2. It is removed when the value is dropped.
pub struct MemoryGroup {
    folder: std::path::PathBuf,
    /// As `/proc/PID/cgroup` names it.
    pub path: String,
}

impl MemoryGroup {
    /// Makes one; `None` where this machine has no memory controller that groups can be made of.
    pub fn create(name: &str, limit_bytes: u64) -> Result<Option<Self>> {
        let candidates =
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        for (root, limit) in candidates {
            let folder = Path::new(root).join(name);
            if !Path::new(root).join("cgroup.procs").exists() || std::fs::create_dir(&folder).is_err() {
                continue;
            }
            let group = Self { folder, path: format!("/{name}") };
            if std::fs::write(group.folder.join(limit), limit_bytes.to_string()).is_ok() {
                return Ok(Some(group));
            }
        }
        Ok(None)
    }

    /// A command that joins the group and then becomes `command`: what it takes from its begin on counts.
    pub fn command(&self, command: &Command) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]).arg(self.folder.join("cgroup.procs"));
        shell.arg(command.get_program()).args(command.get_args());
        shell
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // A process that has just ended is in it for another moment.
        for _ in 0..200 {
            if std::fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
