//! The cases: how each tracer is attached, and how the target is measured under it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::{find_program, lines};

/// Batches measured per attach; one more before them warms up.
const BATCHES: usize = 3;
const PATIENCE: Duration = Duration::from_secs(240);
/// How long a tracer may take to end.
const DETACH_PATIENCE: Duration = Duration::from_secs(30);

/// What is attached while the target is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Case {
    /// Nothing.
    Untraced,
    /// Empty programs at the places that offheap uses.
    EmptyProbes,
    /// `offheap record`.
    Offheap,
    /// bpftrace with the script that one would write.
    Bpftrace,
    /// heaptrack, preloaded.
    Heaptrack,
}

/// What is measured.
pub struct Subject<'a> {
    /// The program.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Options for offheap.
    pub options: Vec<String>,
    /// Pairs of one batch, untraced and traced; `None`: as many as take a quarter of a second in the simplest case.
    pub batch_pairs: Option<(u64, u64)>,
}

/// Programs that are measured.
pub struct Programs {
    /// The release build.
    pub offheap: PathBuf,
    /// The target that allocates.
    pub spin: PathBuf,
    /// The target that allocates in many settings.
    pub spin_grid: PathBuf,
    /// The target that touches pages.
    pub spin_pages: PathBuf,
}

impl Case {
    /// Every case, in the order of the table.
    pub const ALL: [Self; 5] =
        [Self::Untraced, Self::EmptyProbes, Self::Offheap, Self::Bpftrace, Self::Heaptrack];

    /// The name in tables and results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Untraced => "untraced",
            Self::EmptyProbes => "empty probes",
            Self::Offheap => "offheap",
            Self::Bpftrace => "bpftrace script",
            Self::Heaptrack => "heaptrack",
        }
    }

    /// Whether the tool is there.
    pub fn is_installed(self) -> bool {
        match self {
            Self::Untraced | Self::EmptyProbes | Self::Offheap => true,
            Self::Bpftrace => find_program("bpftrace").is_some(),
            Self::Heaptrack => find_program("heaptrack").is_some(),
        }
    }

    /// Pairs of one batch: about a quarter of a second each.
    const fn batch_pairs(self) -> u64 {
        match self {
            Self::Untraced => 10_000_000,
            Self::EmptyProbes | Self::Offheap => 120_000,
            Self::Bpftrace => 12_000,
            Self::Heaptrack => 300_000,
        }
    }

    fn pairs_of(self, subject: &Subject<'_>) -> u64 {
        match subject.batch_pairs {
            None => self.batch_pairs(),
            Some((untraced, _)) if self == Self::Untraced => untraced,
            Some((_, traced)) => traced,
        }
    }

    /// Starts a target, attaches, measures, detaches; mean ns per pair of each batch, the first of which is not counted. A
    /// capture of offheap is written to `capture`.
    pub fn measure(self, programs: &Programs, subject: &Subject<'_>, capture: &Path) -> Result<Vec<f64>> {
        let scratch = tempfile::tempdir().context("cannot create a temporary directory")?;
        let mut spin = Command::new(subject.program);
        if self == Self::Heaptrack {
            spin = Command::new(find_program("heaptrack").context("no heaptrack")?);
            // Raw: not interpreted at the same time, which would compete for the CPU.
            spin.arg("--raw").arg("-o").arg(scratch.path().join("heaptrack")).arg(subject.program);
        }
        let mut target = Target::start(spin.args(&subject.arguments))?;
        let mut tracer = self.tracer(programs, target.child.id(), scratch.path(), capture)?;
        let tracer = tracer
            .as_mut()
            .map(|tracer| {
                if self == Self::Offheap {
                    tracer.args(&subject.options);
                }
                Tracer::attach(tracer)
            })
            .transpose()?;
        let pairs = self.pairs_of(subject);
        let warm_up = target.batch(pairs);
        let samples = (0..BATCHES).map(|_| target.batch(pairs)).collect::<Result<Vec<f64>>>();
        if let Some(tracer) = tracer {
            tracer.detach()?;
        }
        warm_up?;
        target.finish()?;
        samples
    }

    fn tracer(
        self,
        programs: &Programs,
        pid: u32,
        scratch: &Path,
        capture: &Path,
    ) -> Result<Option<Command>> {
        let pid_text = pid.to_string();
        let mut command = Command::new(&programs.offheap);
        match self {
            Self::Untraced | Self::Heaptrack => return Ok(None),
            Self::EmptyProbes => {
                command.args(["bench-floor", &pid_text]);
            }
            Self::Offheap => {
                command.args(["record", "-p", &pid_text, "--duration", "600s", "--force", "-o"]).arg(capture);
            }
            Self::Bpftrace => {
                command = bpftrace(pid, scratch)?;
            }
        }
        Ok(Some(command))
    }
}

/// bpftrace with the script, for one process.
pub fn bpftrace(pid: u32, scratch: &Path) -> Result<Command> {
    let script = scratch.join("leak.bt");
    fs::write(&script, bpftrace_script(&allocator_of(pid)?, pid))
        .context("cannot write the bpftrace script")?;
    let mut command = Command::new(find_program("bpftrace").context("no bpftrace")?);
    command.args(["-p", &pid.to_string()]).arg(script);
    Ok(command)
}

/// Path of the library that the target allocates with.
fn allocator_of(pid: u32) -> Result<String> {
    let maps =
        fs::read_to_string(format!("/proc/{pid}/maps")).context("cannot read the target's mappings")?;
    let of = |name: &str| maps.split_whitespace().find(|word| word.contains(name));
    let path = of("/libjemalloc.so").or_else(|| of("/libc.so")).or_else(|| of("/libc-"));
    Ok(path.context("the target has no C library")?.to_owned())
}

/// Outstanding bytes by stack, as one would write it. The interval tells that everything is attached: bpftrace runs
/// BEGIN before it attaches the rest. The predicates are needed, because `-p` of some versions lets in other processes.
fn bpftrace_script(libc: &str, pid: u32) -> String {
    format!(
        "uprobe:{libc}:malloc /pid == {pid}/ {{ @size[tid] = arg0; }}\n\
         uretprobe:{libc}:malloc /pid == {pid} && @size[tid]/ {{\n  \
           @live[retval] = @size[tid]; @stack[retval] = ustack; @bytes[ustack] += @size[tid]; delete(@size[tid]);\n}}\n\
         uprobe:{libc}:free /pid == {pid} && @live[arg0]/ {{\n  \
           @bytes[@stack[arg0]] -= @live[arg0]; delete(@live[arg0]); delete(@stack[arg0]);\n}}\n\
         interval:s:1 {{ @ticks += 1; if (@ticks == 2) {{ printf(\"attached\\n\"); }} }}\n"
    )
}

/// The target: answers a number of pairs with the mean time of one.
pub struct Target {
    child: Child,
    input: ChildStdin,
    output: Receiver<String>,
}

impl Target {
    /// Starts it and waits until it is ready.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let input = child.stdin.take().context("no input")?;
        let output = lines(child.stdout.take().context("no output")?);
        let target = Self { child, input, output };
        wait_for(&target.output, |line| (line == "ready").then_some(()))?;
        Ok(target)
    }

    /// Mean time of one pair, page or call, in ns.
    pub fn batch(&mut self, pairs: u64) -> Result<f64> {
        writeln!(self.input, "{pairs}").context("the target does not read")?;
        wait_for(&self.output, |line| line.strip_prefix("pairs ")?.parse().ok())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it, which must go well.
    pub fn finish(self) -> Result<()> {
        let Self { mut child, input, output } = self;
        drop(input);
        while output.recv_timeout(PATIENCE).is_ok() {}
        let status = child.wait().context("cannot wait for the target")?;
        if !status.success() {
            bail!("the target ended with {status}");
        }
        Ok(())
    }
}

/// A tracer that runs until it is interrupted.
pub struct Tracer {
    child: Child,
    // Read until the end, lest the tracer block on a full pipe.
    output: Receiver<String>,
    _errors: Receiver<String>,
}

impl Tracer {
    /// Starts it and waits until it says `attached`, on either of its outputs.
    pub fn attach(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let output = lines(child.stdout.take().context("no output")?);
        let errors = lines(child.stderr.take().context("no errors")?);
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while Instant::now() < deadline {
            seen.extend(output.try_iter());
            if let Ok(line) = errors.recv_timeout(Duration::from_millis(20)) {
                seen.push(line);
            }
            if seen.iter().any(|line| line.contains("attached")) {
                return Ok(Self { child, output, _errors: errors });
            }
            if let Some(status) = child.try_wait().context("cannot wait for the tracer")? {
                bail!("{command:?} ended with {status}: {}", seen.join("; "));
            }
        }
        child.kill().context("cannot end the tracer")?;
        bail!("{command:?} is not attached after {} s: {}", PATIENCE.as_secs(), seen.join("; "))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Interrupts it and waits for its end, for as long as it may take.
    pub fn detach(mut self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.context("not a process id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::INT)
            .context("cannot interrupt the tracer")?;
        // bpftrace names the stacks of a JIT for many minutes, and nothing is measured any more.
        let deadline = Instant::now() + DETACH_PATIENCE;
        let has_ended = loop {
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break true,
                Err(RecvTimeoutError::Timeout) => break false,
            }
        };
        if !has_ended {
            self.child.kill().context("cannot end the tracer")?;
        }
        // Its status is not looked at: bpftrace may end with one that means nothing.
        self.child.wait().context("cannot wait for the tracer").map(drop)
    }
}

/// Waits for the first line that `wanted` accepts.
pub fn wait_for<Found>(output: &Receiver<String>, wanted: impl Fn(&str) -> Option<Found>) -> Result<Found> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let line = output
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            .context("the target does not answer")?;
        if let Some(found) = wanted(&line) {
            return Ok(found);
        }
    }
}
