//! The new process between fork and exec. The parent may have other threads, one of which may hold any lock at
//! the moment of the fork: all memory is allocated before, and the child makes only system calls.

use std::{
    ffi::{CStr, CString, OsStr, OsString},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::Path,
    ptr,
};

use super::{Invoker, LaunchError};

/// Where execvp(3) looks without `PATH`.
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";
/// What execvp(3) runs a file with that has no format the kernel knows.
const SHELL: &CStr = c"/bin/sh";
/// The kernel's highest signal number.
const LAST_SIGNAL: i32 = 64;

/// Steps, in their order; the index is what the child reports.
const STEPS: [&str; 4] = ["set the groups", "set the group id", "set the user id", "execute the file"];
const EXEC_STEP: u32 = 3;

/// What the child says when a step fails: step, errno, index of the file. One write, far below PIPE_BUF.
const FAILURE_BYTES: usize = 12;

/// Everything that the child needs, in memory that it only reads.
pub(super) struct Image {
    command: OsString,
    /// Files to try, in their order.
    files: Vec<CString>,
    arguments: CStrings,
    /// The same behind `/bin/sh FILE`; the second is put in by the child.
    shell_arguments: Vec<*const libc::c_char>,
    environment: CStrings,
    run_as: Option<Invoker>,
}

/// Strings, and the array of pointers to them that execve wants, with a null at its end.
struct CStrings {
    pointers: Vec<*const libc::c_char>,
    /// What is pointed to. A CString's bytes do not move with it.
    _strings: Vec<CString>,
}

impl CStrings {
    fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        Self { pointers, _strings: strings }
    }
}

impl Image {
    pub(super) fn new(command: &[OsString], run_as: Option<Invoker>) -> Result<Self, LaunchError> {
        let [name, ..] = command else { return Err(LaunchError::NoCommand) };
        let strings = command.iter().map(|argument| c_string(argument.clone(), "an argument of the command"));
        let arguments = CStrings::new(strings.collect::<Result<_, _>>()?);
        let own: Vec<_> = std::env::vars_os().collect();
        let path = own.iter().find(|(key, _)| key == "PATH").map(|(_, path)| path.as_bytes());
        let files = files_of(name, path.unwrap_or(DEFAULT_PATH));
        let files = files.into_iter().map(|file| c_string(file, "the command's name"));
        let mut shell_arguments = vec![SHELL.as_ptr(), ptr::null()];
        shell_arguments.extend(&arguments.pointers[1..]);
        Ok(Self {
            command: name.clone(),
            files: files.collect::<Result<_, _>>()?,
            arguments,
            shell_arguments,
            environment: environment_of(own, run_as.as_ref())?,
            run_as,
        })
    }

    /// The child's part. Returns when a step failed: step, errno and index of the file.
    ///
    /// # Safety
    /// Only for the child of a fork, before anything else, with every signal blocked.
    unsafe fn become_command(&mut self) -> (u32, i32, u32) {
        if let Some(step) = self.run_as.as_ref().and_then(change_user) {
            return (step, errno(), 0);
        }
        reset_signals();
        let mut denied = None;
        let mut error = libc::ENOENT;
        for (index, file) in (0u32..).zip(&self.files) {
            // SAFETY: arrays of C strings with a null at their end.
            unsafe {
                libc::execve(
                    file.as_ptr(),
                    self.arguments.pointers.as_ptr(),
                    self.environment.pointers.as_ptr(),
                );
            }
            error = errno();
            match error {
                libc::ENOEXEC => {
                    self.shell_arguments[1] = file.as_ptr();
                    // SAFETY: as above.
                    unsafe {
                        libc::execve(
                            SHELL.as_ptr(),
                            self.shell_arguments.as_ptr(),
                            self.environment.pointers.as_ptr(),
                        );
                    }
                    return (EXEC_STEP, error, index);
                }
                libc::EACCES => denied = denied.or(Some(index)),
                libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ESTALE | libc::ETIMEDOUT => {}
                _ => return (EXEC_STEP, error, index),
            }
        }
        match denied {
            Some(index) => (EXEC_STEP, libc::EACCES, index),
            None => (EXEC_STEP, error, 0),
        }
    }

    /// What a failure that the child reported means.
    pub(super) fn failure(&self, bytes: [u8; FAILURE_BYTES]) -> LaunchError {
        let [step, error, file] =
            [0, 4, 8].map(|at| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
        let source = io::Error::from_raw_os_error(error.cast_signed());
        if step != EXEC_STEP {
            let step = STEPS.get(step as usize).copied().unwrap_or("prepare the process");
            return LaunchError::Prepare { step, source };
        }
        let path = self.files.get(file as usize).map(|file| file.to_string_lossy().into_owned());
        let path = path.unwrap_or_else(|| self.command.to_string_lossy().into_owned());
        match error.cast_signed() {
            libc::ENOENT | libc::ENOTDIR => self.absent(),
            libc::EACCES => LaunchError::NotExecutable { path },
            _ => LaunchError::Exec { path, source },
        }
    }

    /// ENOENT is said of a missing interpreter as well: then the file is there.
    fn absent(&self) -> LaunchError {
        let paths = || self.files.iter().map(|file| Path::new(OsStr::from_bytes(file.as_bytes())));
        match paths().find(|path| path.is_file()) {
            Some(path) => LaunchError::NoInterpreter { path: path.to_string_lossy().into_owned() },
            None => LaunchError::NotFound {
                command: self.command.to_string_lossy().into_owned(),
                place: if is_path(self.command.as_bytes()) { "" } else { " in PATH" },
            },
        }
    }
}

/// Forks. The child waits for a byte on `release`, and writes to `report` what failed; both close at its exec.
///
/// # Errors
/// Those of fork(2).
pub(super) fn fork(
    image: &mut Image,
    release: BorrowedFd,
    releaser: BorrowedFd,
    report: BorrowedFd,
) -> io::Result<libc::pid_t> {
    let (release, releaser, report) = (release.as_raw_fd(), releaser.as_raw_fd(), report.as_raw_fd());
    // SAFETY: sigset_t is plain memory; both sets are filled in before they are read. No handler of ours may
    // run in the child. The child uses system calls and memory that was allocated before, and never returns.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let child = libc::fork();
        let error = io::Error::last_os_error();
        if child != 0 {
            libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
            return if child > 0 { Ok(child) } else { Err(error) };
        }
        // Or the end of the parent would not be seen.
        libc::close(releaser);
        let mut byte = 0u8;
        if libc::read(release, (&raw mut byte).cast(), 1) != 1 {
            // The parent gave up.
            libc::_exit(0);
        }
        let (step, error, file) = image.become_command();
        let mut failure = [0u8; FAILURE_BYTES];
        failure[..4].copy_from_slice(&step.to_ne_bytes());
        failure[4..8].copy_from_slice(&error.to_ne_bytes());
        failure[8..].copy_from_slice(&file.to_ne_bytes());
        libc::write(report, failure.as_ptr().cast(), failure.len());
        libc::_exit(127)
    }
}

/// The step that failed, if one did. Not by the library's functions: they would tell the threads of the parent.
fn change_user(user: &Invoker) -> Option<u32> {
    // SAFETY: the ids are plain numbers, the pointer is to as many groups as is said. The groups and the group
    // come first: they need root.
    unsafe {
        if libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr()) != 0 {
            return Some(0);
        }
        if libc::syscall(libc::SYS_setresgid, user.gid, user.gid, user.gid) != 0 {
            return Some(1);
        }
        (libc::syscall(libc::SYS_setresuid, user.uid, user.uid, user.uid) != 0).then_some(2)
    }
}

/// What a command finds when a shell starts it: handlers are gone, as by exec; what the user had ignored
/// (`nohup`) stays ignored; SIGPIPE, which Rust's start-up ignored, is not; and no signal is blocked.
fn reset_signals() {
    // SAFETY: plain memory of ours and system calls; signals that the C library keeps are refused with EINVAL.
    unsafe {
        let mut default: libc::sigaction = std::mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        for signal in 1..=LAST_SIGNAL {
            let mut action: libc::sigaction = std::mem::zeroed();
            let known = libc::sigaction(signal, ptr::null(), &mut action) == 0;
            if known && (signal == libc::SIGPIPE || action.sa_sigaction != libc::SIG_IGN) {
                libc::sigaction(signal, &default, ptr::null_mut());
            }
        }
        let none: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, ptr::null_mut());
    }
}

fn errno() -> i32 {
    // No allocation: the error is a number.
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn c_string(text: OsString, what: &str) -> Result<CString, LaunchError> {
    CString::new(text.into_vec()).map_err(|_| LaunchError::ZeroByte { what: what.to_owned() })
}

fn is_path(name: &[u8]) -> bool {
    name.is_empty() || name.contains(&b'/')
}

/// A name with a slash is the file itself; another one is looked for in `path`, where an empty part means the
/// working directory.
fn files_of(name: &OsStr, path: &[u8]) -> Vec<OsString> {
    let name = name.as_bytes();
    if is_path(name) {
        return vec![OsString::from_vec(name.to_vec())];
    }
    let join = |directory: &[u8]| {
        let directory = if directory.is_empty() { b"." } else { directory };
        OsString::from_vec([directory, b"/", name].concat())
    };
    path.split(|byte| *byte == b':').map(join).collect()
}

fn environment_of(own: Vec<(OsString, OsString)>, run_as: Option<&Invoker>) -> Result<CStrings, LaunchError> {
    let replaced = run_as.map_or(&[][..], |user| &user.environment);
    let kept = own.into_iter().filter(|(key, _)| replaced.iter().all(|(name, _)| key != name));
    let new = replaced.iter().map(|(name, value)| (OsString::from(name), value.clone()));
    let strings = kept.chain(new).map(|(mut variable, value)| {
        variable.push("=");
        variable.push(value);
        c_string(variable, "a variable of the environment")
    });
    Ok(CStrings::new(strings.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_for_as_execvp_does() {
        assert_eq!(files_of("ls".as_ref(), b"/a::/b/"), ["/a/ls", "./ls", "/b//ls"]);
        assert_eq!(files_of("./ls".as_ref(), b"/a"), ["./ls"]);
        assert_eq!(files_of("".as_ref(), b"/a"), [""]);
    }
}
