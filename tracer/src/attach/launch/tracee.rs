//! The ptrace requests that are used, and waiting for a tracee with a bound.

use std::{
    io,
    mem::MaybeUninit,
    time::{Duration, Instant},
};

use super::ExitStatus;
use crate::model::Machine;

/// include/uapi/linux/ptrace.h; the libc crate has these for some C libraries only.
const GET_SYSCALL_INFO: libc::c_long = 0x420e;
const EVENT_STOP: i32 = 128;
const SYSCALL_INFO_ENTRY: u64 = 1;
const SYSCALL_INFO_EXIT: u64 = 2;
/// include/uapi/linux/audit.h: a call by the 64-bit little-endian table of this machine.
const AUDIT_ARCH: u64 = 0xc000_0000 | Machine::HOST.e_machine() as u64;
/// A wait is tried again after this long at the latest: another thread that does not block SIGCHLD may have
/// taken the signal that would have ended it.
const FIRST_RETRY: Duration = Duration::from_micros(200);
const LAST_RETRY: Duration = Duration::from_millis(20);

/// A request that failed.
#[derive(Debug)]
pub(super) struct PtraceError {
    pub(super) operation: &'static str,
    pub(super) source: io::Error,
}

/// A process that this thread traces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tracee(pub(super) libc::pid_t);

/// A call that is about to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SyscallEntry {
    /// Behind the instruction that makes it.
    pub(super) instruction_pointer: u64,
    pub(super) number: i64,
    /// The third argument: `prot` of mmap, mprotect and pkey_mprotect.
    pub(super) protection: u64,
}

impl SyscallEntry {
    /// Whether it can make memory executable.
    pub(super) fn maps_code(&self) -> bool {
        matches!(self.number, libc::SYS_mmap | libc::SYS_mprotect | libc::SYS_pkey_mprotect)
            && self.protection & libc::PROT_EXEC as u64 != 0
    }
}

/// One of the two stops of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SyscallStop {
    Entry(SyscallEntry),
    Exit {
        failed: bool,
    },
    /// Not by the 64-bit table, or not known.
    Foreign,
}

/// What waiting for a child found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    Ended(ExitStatus),
    /// Behind a successful exec.
    Exec,
    Syscall,
    /// A signal is about to be delivered; it is to be passed on.
    Signal(i32),
    /// Stopped by job control.
    GroupStop,
    /// Stopped by PTRACE_INTERRUPT, or continued by SIGCONT.
    Trap,
}

impl Report {
    fn of(status: i32) -> Self {
        if libc::WIFEXITED(status) {
            return Self::Ended(ExitStatus::Code(libc::WEXITSTATUS(status)));
        }
        if libc::WIFSIGNALED(status) {
            return Self::Ended(ExitStatus::Signal(libc::WTERMSIG(status)));
        }
        match (status >> 16, libc::WSTOPSIG(status)) {
            (libc::PTRACE_EVENT_EXEC, _) => Self::Exec,
            (EVENT_STOP, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU) => Self::GroupStop,
            (EVENT_STOP, _) => Self::Trap,
            // PTRACE_O_TRACESYSGOOD sets the bit.
            (_, signal) if signal == libc::SIGTRAP | 0x80 => Self::Syscall,
            (_, signal) => Self::Signal(signal),
        }
    }

    /// The signal that a resumed tracee is to get.
    pub(super) fn signal(self) -> i32 {
        if let Self::Signal(signal) = self { signal } else { 0 }
    }
}

impl Tracee {
    /// Starts tracing; the process is not stopped. It runs on when this thread ends: no PTRACE_O_EXITKILL.
    pub(super) fn seize(self) -> Result<(), PtraceError> {
        let options = (libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_TRACESYSGOOD) as usize;
        self.request("trace the command (`PTRACE_SEIZE`)", libc::PTRACE_SEIZE as _, 0, options).map(drop)
    }

    /// Resumes a stopped tracee up to the next exec or signal.
    pub(super) fn resume(self, signal: i32) -> Result<(), PtraceError> {
        self.resume_by("resume the command (`PTRACE_CONT`)", libc::PTRACE_CONT as _, signal)
    }

    /// Resumes a stopped tracee up to the next stop of a system call.
    pub(super) fn resume_to_syscall(self, signal: i32) -> Result<(), PtraceError> {
        self.resume_by("resume the command (`PTRACE_SYSCALL`)", libc::PTRACE_SYSCALL as _, signal)
    }

    /// Leaves a group-stopped tracee stopped, and hears of its continuation.
    pub(super) fn listen(self) -> Result<(), PtraceError> {
        self.resume_by("leave the command stopped (`PTRACE_LISTEN`)", libc::PTRACE_LISTEN as _, 0)
    }

    /// Ends the tracing of a stopped tracee, which runs on.
    pub(super) fn detach(self, signal: i32) -> Result<(), PtraceError> {
        self.resume_by("let the command go (`PTRACE_DETACH`)", libc::PTRACE_DETACH as _, signal)
    }

    /// Stops a running tracee. `false`: there is none that could be stopped.
    pub(super) fn interrupt(self) -> Result<bool, PtraceError> {
        match self.request("stop the command (`PTRACE_INTERRUPT`)", libc::PTRACE_INTERRUPT as _, 0, 0) {
            Err(error) if error.source.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            outcome => outcome.map(|_| true),
        }
    }

    /// Which call the tracee is stopped at.
    pub(super) fn syscall(self) -> Result<SyscallStop, PtraceError> {
        // struct ptrace_syscall_info, at most 84 bytes: op and arch, instruction pointer, stack pointer; then
        // number and six arguments at an entry, or result and error flag at an exit.
        let mut words = [0u64; 11];
        let filled = self.request(
            "read a system call of the command (`PTRACE_GET_SYSCALL_INFO`)",
            GET_SYSCALL_INFO,
            size_of_val(&words),
            words.as_mut_ptr() as usize,
        );
        match filled {
            Ok(_) => Ok(decode_syscall(&words)),
            // Killed while it was stopped: the next wait tells.
            Err(error) if error.source.raw_os_error() == Some(libc::ESRCH) => {
                Ok(SyscallStop::Exit { failed: true })
            }
            Err(error) => Err(error),
        }
    }

    /// ESRCH is no error: SIGKILL ends a stopped tracee as well, and the next wait tells.
    fn resume_by(
        self,
        operation: &'static str,
        request: libc::c_long,
        signal: i32,
    ) -> Result<(), PtraceError> {
        match self.request(operation, request, 0, usize::try_from(signal).unwrap_or(0)) {
            Err(error) if error.source.raw_os_error() != Some(libc::ESRCH) => Err(error),
            _ => Ok(()),
        }
    }

    fn request(
        self,
        operation: &'static str,
        request: libc::c_long,
        address: usize,
        data: usize,
    ) -> Result<libc::c_long, PtraceError> {
        // SAFETY: the only request that writes to memory of ours is PTRACE_GET_SYSCALL_INFO, whose caller
        // passes a buffer and its size.
        let outcome = unsafe { libc::syscall(libc::SYS_ptrace, request, self.0, address, data) };
        if outcome >= 0 {
            Ok(outcome)
        } else {
            Err(PtraceError { operation, source: io::Error::last_os_error() })
        }
    }

    /// Waits until something is to be said of the process. `None`: nothing came in time.
    pub(super) fn wait(self, bound: Duration) -> io::Result<Option<Report>> {
        if let Some(report) = self.poll()? {
            return Ok(Some(report));
        }
        let start = Instant::now();
        let mut retry = FIRST_RETRY;
        // Blocked, a SIGCHLD stays pending for `sigtimedwait`; what came before is seen by the first poll.
        let signal = BlockedSignal::child()?;
        loop {
            if let Some(report) = self.poll()? {
                return Ok(Some(report));
            }
            let rest = bound.saturating_sub(start.elapsed());
            if rest.is_zero() {
                return Ok(None);
            }
            signal.wait(retry.min(rest));
            retry = (retry * 2).min(LAST_RETRY);
        }
    }

    /// Waits without a bound.
    pub(super) fn wait_long(self) -> io::Result<Report> {
        loop {
            if let Some(report) = self.wait_with(0)? {
                return Ok(report);
            }
        }
    }

    /// Does not wait.
    pub(super) fn poll(self) -> io::Result<Option<Report>> {
        self.wait_with(libc::WNOHANG)
    }

    fn wait_with(self, flags: i32) -> io::Result<Option<Report>> {
        loop {
            let mut status = 0;
            // SAFETY: `status` is ours.
            match unsafe { libc::waitpid(self.0, &mut status, flags) } {
                0 => return Ok(None),
                -1 => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
                _ => return Ok(Some(Report::of(status))),
            }
        }
    }
}

fn decode_syscall(words: &[u64; 11]) -> SyscallStop {
    if words[0] >> 32 != AUDIT_ARCH {
        return SyscallStop::Foreign;
    }
    match words[0] & 0xff {
        SYSCALL_INFO_ENTRY => SyscallStop::Entry(SyscallEntry {
            instruction_pointer: words[1],
            number: words[3].cast_signed(),
            protection: words[6],
        }),
        SYSCALL_INFO_EXIT => SyscallStop::Exit { failed: words[4] & 0xff != 0 },
        _ => SyscallStop::Foreign,
    }
}

/// SIGCHLD, blocked in this thread for as long as this lives.
struct BlockedSignal {
    set: libc::sigset_t,
    before: libc::sigset_t,
}

impl BlockedSignal {
    fn child() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: both sets are ours, the first is made empty before it is used.
        let error = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr())
        };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: both were filled in by the calls above.
        Ok(unsafe { Self { set: set.assume_init(), before: before.assume_init() } })
    }

    /// Returns when the signal came, or another one was handled, or the time is over: the caller looks itself.
    fn wait(&self, bound: Duration) {
        let bound = libc::timespec {
            tv_sec: libc::time_t::try_from(bound.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: bound.subsec_nanos().into(),
        };
        // SAFETY: the set is initialised; a null pointer means that the details are not wanted.
        unsafe { libc::sigtimedwait(&self.set, std::ptr::null_mut(), &bound) };
    }
}

impl Drop for BlockedSignal {
    fn drop(&mut self) {
        // SAFETY: the mask that this thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}
