//! Starts a command, so that it is traced from its first instruction on: `offheap record -- COMMAND`.
//!
//! ```text
//! fork -> child waits at a pipe -> PTRACE_SEIZE -> child execs -> Exec
//!      -> every system call of the dynamic loader is watched; new executable memory -> NewCode
//!      -> first system call that the loader does not make -> detached -> Started
//! ```
//! At `Exec` and `NewCode` the program is stopped and none of the code that was just mapped has run: probes that
//! are set there miss nothing. Constructors of libraries run behind the last `NewCode` of the start-up. From
//! `Started` on nothing slows the program down, and a debugger may attach.

mod child;
mod error;
mod invoker;
pub(crate) mod loader;
#[cfg(test)]
mod tests;
mod tracee;

use std::{
    ffi::OsString,
    fmt,
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use rustix::pipe::{PipeFlags, pipe_with};

pub use error::LaunchError;
pub use invoker::Invoker;
use loader::Loader;
use tracee::{Report, SyscallStop, Tracee};

/// A start-up that takes longer, without the time that the caller takes at its stops, is followed no further.
const START_UP_BOUND: Duration = Duration::from_secs(5);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It called exit with this code, 0 to 255.
    Code(i32),
    /// A signal of this number ended it.
    Signal(i32),
}

impl ExitStatus {
    /// The code as shells give it: that of the process, or 128 and the signal's number.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Code(code) => *code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Code(code) => write!(out, "exit code {code}"),
            Self::Signal(signal) => write!(out, "signal {signal}"),
        }
    }
}

/// What [`Launched::next_stop`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The process has become a new program and is stopped: mappings of before are gone, those of the program
    /// and of its loader are there, none of its instructions has run.
    Exec,
    /// The loader has mapped executable memory, and the process is stopped.
    NewCode,
    /// The start-up is over. The process runs and is not traced any more.
    Started,
    /// The process has ended.
    Exited(ExitStatus),
}

/// Starts commands.
#[derive(Debug)]
pub struct Launch;

impl Launch {
    /// Starts a command in the terminal, process group and directory of this process, with its standard files,
    /// and returns when the command's program is loaded and stopped: the first [`Launched::next_stop`] is
    /// [`Stop::Exec`]. The command is looked for in `PATH`, with the rights of the user that it runs as.
    ///
    /// Files that are to stay with this process must be close-on-exec, and its resource limits are inherited.
    /// Programs that are set-user-id gain no rights unless this process has CAP_SYS_PTRACE.
    ///
    /// # Errors
    /// [`LaunchError`]; no process is left over.
    pub fn start(command: &[OsString], run_as: Option<Invoker>) -> Result<Launched, LaunchError> {
        let mut image = child::Image::new(command, run_as)?;
        let pipe = || {
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| LaunchError::system("make a pipe")(error.into()))
        };
        let (release, releaser) = pipe()?;
        let (failure, reporter) = pipe()?;
        keep_children();
        let pid = child::fork(&mut image, release.as_fd(), releaser.as_fd(), reporter.as_fd())
            .map_err(LaunchError::system("start a process (`fork`)"))?;
        drop((release, reporter));
        let tracee = Tracee(pid);
        let released = tracee.seize().map_err(LaunchError::from).and_then(|()| {
            File::from(releaser).write_all(b"x").map_err(LaunchError::system("release the new process"))
        });
        // Dropped pipes make a child that was not released end by itself.
        if let Err(error) = released {
            let _ = tracee.wait_long();
            return Err(error);
        }
        match exec_of(tracee)? {
            None => Ok(Launched::at_exec(tracee)),
            Some(status) => {
                let mut bytes = [0; 12];
                Err(match File::from(failure).read_exact(&mut bytes) {
                    Ok(()) => image.failure(bytes),
                    Err(_) => LaunchError::Ended { status },
                })
            }
        }
    }
}

/// Follows a released child up to its exec; `Some`: it ended before.
fn exec_of(tracee: Tracee) -> Result<Option<ExitStatus>, LaunchError> {
    loop {
        match tracee.wait_long().map_err(WAIT_FAILED)? {
            Report::Exec => return Ok(None),
            Report::Ended(status) => return Ok(Some(status)),
            Report::GroupStop => tracee.listen()?,
            report => tracee.resume(report.signal())?,
        }
    }
}

/// Someone may have started this process with SIGCHLD ignored: the kernel would throw away how the child ended.
fn keep_children() {
    // SAFETY: plain memory of ours; a disposition that is not "ignore" is left alone.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGCHLD, std::ptr::null(), &mut action);
        if action.sa_sigaction == libc::SIG_IGN {
            action.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(libc::SIGCHLD, &action, std::ptr::null_mut());
        }
    }
}

const WAIT_FAILED: fn(io::Error) -> LaunchError =
    |source| LaunchError::System { operation: "wait for the command", source };

/// Where a launched process is.
#[derive(Debug)]
enum Phase {
    /// Traced and stopped at its exec, which the caller has not been told of.
    AtExec,
    /// Traced and stopped, in the start-up.
    Loading(Loader),
    /// Traced and stopped, nothing to be followed any more.
    Loaded,
    /// Not traced.
    Free,
    Ended(ExitStatus),
}

/// A process that was started. Dropped in its start-up it is let go and runs on.
#[derive(Debug)]
pub struct Launched {
    tracee: Tracee,
    phase: Phase,
    /// The only thread whose ptrace requests the kernel takes.
    tracer: ThreadId,
    bound: Duration,
    /// Time spent waiting since the last exec.
    waited: Duration,
}

impl Launched {
    fn at_exec(tracee: Tracee) -> Self {
        let tracer = thread::current().id();
        Self { tracee, phase: Phase::AtExec, tracer, bound: START_UP_BOUND, waited: Duration::ZERO }
    }

    /// Follows the start-up no longer than this instead of 5 s, without the time that the caller takes at stops.
    #[must_use]
    pub fn with_start_up_bound(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// Process id, in the namespace of this process.
    pub fn pid(&self) -> u32 {
        self.tracee.0.cast_unsigned()
    }

    /// Lets the process run up to the next stop. To be called by the thread that started it; the process is
    /// stopped from [`Stop::Exec`] or [`Stop::NewCode`] up to the next call. After [`Stop::Started`] it waits
    /// for the end of the process; after [`Stop::Exited`] it returns that again.
    ///
    /// Takes SIGCHLD from this process while it waits.
    ///
    /// # Errors
    /// [`LaunchError::OtherThread`]; [`LaunchError::System`] when the kernel refuses a request.
    pub fn next_stop(&mut self) -> Result<Stop, LaunchError> {
        if thread::current().id() != self.tracer {
            return Err(LaunchError::OtherThread);
        }
        match self.phase {
            Phase::AtExec => {
                self.waited = Duration::ZERO;
                self.phase = Loader::find(self.pid()).map_or(Phase::Loaded, Phase::Loading);
                Ok(Stop::Exec)
            }
            Phase::Loading(ref loader) => {
                let loader = loader.clone();
                self.follow(&loader)
            }
            Phase::Loaded => self.let_go(0),
            Phase::Free | Phase::Ended(_) => self.end().map(Stop::Exited).map_err(WAIT_FAILED),
        }
    }

    /// From one stop in the start-up to the next that the caller is told of.
    fn follow(&mut self, loader: &Loader) -> Result<Stop, LaunchError> {
        let mut maps_code = false;
        self.tracee.resume_to_syscall(0)?;
        loop {
            let before = Instant::now();
            let report = self.tracee.wait(self.bound.saturating_sub(self.waited)).map_err(WAIT_FAILED)?;
            self.waited += before.elapsed();
            match report {
                None => return self.give_up(),
                Some(Report::Syscall) => {
                    match self.tracee.syscall()? {
                        SyscallStop::Entry(call) if loader.makes(&call) => maps_code = call.maps_code(),
                        SyscallStop::Entry(_) | SyscallStop::Foreign => return self.let_go(0),
                        SyscallStop::Exit { failed } => {
                            if std::mem::take(&mut maps_code) && !failed {
                                return Ok(Stop::NewCode);
                            }
                        }
                    }
                    self.tracee.resume_to_syscall(0)?;
                }
                Some(Report::GroupStop) => self.tracee.listen()?,
                Some(report @ (Report::Signal(_) | Report::Trap)) => {
                    self.tracee.resume_to_syscall(report.signal())?;
                }
                Some(report @ (Report::Exec | Report::Ended(_))) => return self.turn(report),
            }
        }
    }

    /// The start-up took too long: stops the process wherever it is, to let it go.
    fn give_up(&mut self) -> Result<Stop, LaunchError> {
        if !self.tracee.interrupt()? {
            // No thread of it is traced: it is ending, or another thread has replaced the traced one by exec.
            self.phase = Phase::Free;
            return Ok(Stop::Started);
        }
        match self.tracee.wait_long().map_err(WAIT_FAILED)? {
            report @ (Report::Exec | Report::Ended(_)) => self.turn(report),
            report => self.let_go(report.signal()),
        }
    }

    /// Another program, or none any more.
    fn turn(&mut self, report: Report) -> Result<Stop, LaunchError> {
        if let Report::Ended(status) = report {
            self.phase = Phase::Ended(status);
            return Ok(Stop::Exited(status));
        }
        self.phase = Phase::AtExec;
        self.next_stop()
    }

    fn let_go(&mut self, signal: i32) -> Result<Stop, LaunchError> {
        self.tracee.detach(signal)?;
        self.phase = Phase::Free;
        Ok(Stop::Started)
    }

    /// Waits for the end of the process. One that is still in its start-up is let go before.
    ///
    /// # Errors
    /// Those of waitpid(2).
    pub fn wait(mut self) -> io::Result<ExitStatus> {
        self.release();
        self.end()
    }

    /// How the process ended, `None` while it runs or is in its start-up.
    ///
    /// # Errors
    /// Those of waitpid(2).
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if let Phase::Free = self.phase
            && let Some(Report::Ended(status)) = self.tracee.poll()?
        {
            self.phase = Phase::Ended(status);
        }
        Ok(if let Phase::Ended(status) = self.phase { Some(status) } else { None })
    }

    fn end(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Phase::Ended(status) = self.phase {
                return Ok(status);
            }
            if let Report::Ended(status) = self.tracee.wait_long()? {
                self.phase = Phase::Ended(status);
            }
        }
    }

    /// Detaches where that is still to be done.
    fn release(&mut self) {
        if !matches!(self.phase, Phase::Free | Phase::Ended(_)) {
            // Another thread cannot; the kernel does it when the tracing thread ends.
            let _ = self.tracee.detach(0);
            self.phase = Phase::Free;
        }
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        self.release();
    }
}
