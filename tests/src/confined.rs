//! Runs offheap as somebody without rights but those that a test names.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use tempfile::TempDir;

use crate::Result;
use crate::tracer::program;

/// A user that owns nothing.
pub const NOBODY: u32 = 65_534;

/// Numbers of capabilities, include/uapi/linux/capability.h.
pub const CAP_DAC_READ_SEARCH: u32 = 2;
/// The same.
pub const CAP_SYS_PTRACE: u32 = 19;
/// The same.
pub const CAP_SYS_ADMIN: u32 = 21;
/// The same.
pub const CAP_PERFMON: u32 = 38;
/// The same.
pub const CAP_BPF: u32 = 39;
/// The same.
pub const CAP_CHECKPOINT_RESTORE: u32 = 40;

/// `_LINUX_CAPABILITY_VERSION_3`.
const VERSION_3: u32 = 0x2008_0522;

/// The capability system call's header and its two halves of three sets.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// Effective, permitted, inheritable.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// A directory of nobody's with a copy of offheap in it: cargo's own need not be readable for nobody.
pub fn home_of_nobody() -> Result<TempDir> {
    let home = tempfile::tempdir().context("cannot create a temporary directory")?;
    let copy = home.path().join("offheap");
    fs::copy(program()?, &copy)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    std::os::unix::fs::chown(home.path(), Some(NOBODY), Some(NOBODY))?;
    Ok(home)
}

/// The command that runs the copy of offheap as nobody with these capabilities and no others.
pub fn offheap_as_nobody(home: &Path, capabilities: &'static [u32]) -> Command {
    let mut command = Command::new(home.join("offheap"));
    command.current_dir(home);
    // SAFETY: between fork and exec only system calls are made; nothing allocates or locks.
    unsafe { command.pre_exec(move || become_nobody(capabilities)) };
    command
}

fn check(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn become_nobody(wanted: &[u32]) -> io::Result<()> {
    let mut sets = [Sets::default(); 2];
    for capability in wanted {
        let half = sets.get_mut(*capability as usize / 32).ok_or(io::ErrorKind::InvalidInput)?;
        let bit = 1 << (capability % 32);
        (half.effective, half.permitted, half.inheritable) =
            (half.effective | bit, half.permitted | bit, half.inheritable | bit);
    }
    let header = Header { version: VERSION_3, pid: 0 };
    // SAFETY: system calls on this very process, with numbers or with pointers to what is alive.
    unsafe {
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).into())?;
        check(libc::setgroups(0, std::ptr::null()).into())?;
        check(libc::setresgid(NOBODY, NOBODY, NOBODY).into())?;
        check(libc::setresuid(NOBODY, NOBODY, NOBODY).into())?;
        check(libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()))?;
        for capability in wanted {
            let raise = libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong;
            let capability = libc::c_ulong::from(*capability);
            check(
                libc::prctl(libc::PR_CAP_AMBIENT, raise, capability, 0 as libc::c_ulong, 0 as libc::c_ulong)
                    .into(),
            )?;
        }
    }
    Ok(())
}
