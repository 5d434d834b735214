//! A running target: it prints `ready`, waits for a line, works, prints `truth {…}` and waits for the end
//! of its input.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use anyhow::{Context, bail};

use crate::Result;
use crate::build::{directory, sources, target};
use crate::lines::Lines;
use crate::truth::Truth;

/// A target that runs. It is killed when the value is dropped.
pub struct Target {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines,
}

/// The command that runs a target.
pub fn command(name: &str) -> Result<Command> {
    let product = target(name)?;
    Ok(match name {
        "leak_python" => {
            let mut python = Command::new("python3");
            python.arg(sources().join("leak_python.py")).env("PYTHONPATH", directory()?);
            python
        }
        "leak_node" => {
            let mut node = Command::new("node");
            node.arg(sources().join("leak_node.js")).arg(directory()?);
            node
        }
        "FaultsJava" => {
            let mut java = Command::new("java");
            java.args(["-XX:+PreserveFramePointer", "-XX:+UseSerialGC", "-Xmx256m", "-cp"]);
            java.arg(directory()?).arg(name);
            java
        }
        "LeakJni" => {
            let mut library_path = std::ffi::OsString::from("-Djava.library.path=");
            library_path.push(directory()?);
            let mut java = Command::new("java");
            java.args(["-XX:+PreserveFramePointer", "-Xmx64m"]).arg(library_path);
            java.arg("-cp").arg(directory()?).arg(name);
            java
        }
        _ => Command::new(product),
    })
}

impl Target {
    /// Starts a target and waits until it is ready.
    pub fn start(name: &str) -> Result<Self> {
        Self::start_command(command(name)?)
    }

    /// Starts a command that behaves like a target.
    pub fn start_command(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let output = Lines::new("the target", child.stdout.take().context("no output pipe")?);
        let input = child.stdin.take();
        let mut target = Self { child, input, output };
        target.output.wait_for("`ready`", |line| line == "ready")?;
        Ok(target)
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends one line.
    pub fn send(&mut self, line: &str) -> Result {
        let input = self.input.as_mut().context("the target's input is closed")?;
        input.write_all(format!("{line}\n").as_bytes()).context("the target does not read")
    }

    /// Sends an order to a puppet and waits until it is carried out.
    pub fn order(&mut self, order: &str) -> Result {
        self.send(order)?;
        self.wait_done()
    }

    /// Waits until an order that was sent is carried out.
    pub fn wait_done(&mut self) -> Result {
        self.output.wait_for("`done`", |line| line == "done").map(drop)
    }

    /// The same for an order that is answered by lines of a name and a number before `done`.
    pub fn ask(&mut self, order: &str) -> Result<HashMap<String, u64>> {
        self.send(order)?;
        self.answers()
    }

    /// Waits for the lines of a name and a number, up to `done`.
    pub fn answers(&mut self) -> Result<HashMap<String, u64>> {
        let mut answers = HashMap::new();
        loop {
            let line = self.output.wait_for("an answer", |_| true)?;
            if line == "done" {
                return Ok(answers);
            }
            let (name, number) = line.split_once(' ').with_context(|| format!("not an answer: {line}"))?;
            answers.insert(name.to_owned(), number.parse().with_context(|| format!("not a number: {line}"))?);
        }
    }

    /// The same for an order to a family that makes a child; gives the child's process id.
    pub fn order_child(&mut self) -> Result<u32> {
        self.order_child_by("fork")
    }

    /// The same by another order.
    pub fn order_child_by(&mut self, order: &str) -> Result<u32> {
        self.send(order)?;
        let line = self.output.wait_for("`child`", |line| line.starts_with("child "))?;
        self.output.wait_for("`done`", |line| line == "done")?;
        line.trim_start_matches("child ").parse().context("not a process id")
    }

    /// Sends an order after which the target says `ready`.
    pub fn order_anew(&mut self, order: &str) -> Result {
        self.send(order)?;
        self.output.wait_for("`ready`", |line| line == "ready").map(drop)
    }

    /// Lets the target work, and waits for what it knows.
    pub fn work(&mut self) -> Result<Truth> {
        self.send("go")?;
        self.truth()
    }

    /// Waits for what the target knows.
    pub fn truth(&mut self) -> Result<Truth> {
        Truth::parse(&self.output.wait_for("`truth`", is_truth_or_broken)?)
    }

    /// Closes the target's input, which ends it, and gives its status.
    pub fn finish(mut self) -> Result<ExitStatus> {
        drop(self.input.take());
        self.wait()
    }

    /// Closes the input and fails unless the target ends with status 0: tracing has not hurt it.
    pub fn finish_well(self) -> Result {
        let status = self.finish()?;
        if !status.success() {
            bail!("the target ended with {status}");
        }
        Ok(())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) -> Result {
        let pid = i32::try_from(self.pid()).context("not a process id")?;
        // SAFETY: the child has not been waited for, so the id is still its own.
        if unsafe { libc::kill(pid, signal) } != 0 {
            bail!("cannot signal the target");
        }
        Ok(())
    }

    /// Kills the target on the spot, and waits until it is gone.
    pub fn kill(&mut self) -> Result {
        self.signal(libc::SIGKILL)?;
        self.wait().map(drop)
    }

    /// Waits until the target has ended.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        crate::tracer::wait(&mut self.child, "the target")
    }

    /// The executable text of the first mapped file whose name starts with `prefix`: as it is in memory, and as it is in
    /// the file.
    pub fn text(&self, prefix: &str) -> Result<(Vec<u8>, Vec<u8>)> {
        let pid = self.pid();
        let maps =
            fs::read_to_string(format!("/proc/{pid}/maps")).context("cannot read the target's mappings")?;
        let mapping = maps.lines().find_map(|line| Mapping::parse(line, prefix));
        let mapping = mapping.with_context(|| format!("no text of {prefix} in\n{maps}"))?;
        let memory = read_at(Path::new(&format!("/proc/{pid}/mem")), mapping.start, mapping.size_bytes)?;
        let file = read_at(Path::new(&mapping.path), mapping.file_offset, mapping.size_bytes)?;
        Ok((memory, file))
    }
}

fn is_truth_or_broken(line: &str) -> bool {
    line.starts_with("truth ") || line.starts_with("broken: ")
}

impl Drop for Target {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Mapping {
    start: u64,
    size_bytes: usize,
    file_offset: u64,
    path: String,
}

impl Mapping {
    /// Parses `7f…-7f… r-xp 00026000 fd:00 123  /usr/lib/…/libc.so.6`.
    fn parse(line: &str, prefix: &str) -> Option<Self> {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let permissions = fields.next()?;
        let file_offset = u64::from_str_radix(fields.next()?, 16).ok()?;
        let path = fields.nth(2)?;
        let name = Path::new(path).file_name()?.to_str()?;
        if permissions != "r-xp" || !name.starts_with(prefix) {
            return None;
        }
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(end, 16).ok()?;
        let size_bytes = usize::try_from(end.checked_sub(start)?).ok()?;
        Some(Self { start, size_bytes, file_offset, path: path.to_owned() })
    }
}

fn read_at(path: &Path, offset: u64, size_bytes: usize) -> Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let file = fs::File::open(path).with_context(|| format!("cannot open `{}`", path.display()))?;
    let mut bytes = vec![0; size_bytes];
    let mut filled = 0;
    // The last page of a mapping reaches beyond the end of the file: the rest stays zero, as it is in memory.
    while filled < size_bytes {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(size) => filled += size,
            Err(error) => bail!("cannot read `{}` at {offset:#x}: {error}", path.display()),
        }
    }
    Ok(bytes)
}
