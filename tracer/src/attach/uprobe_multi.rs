//! Links that hold many uprobes of one file (`uprobe_multi`, kernel 6.6), by the system call: aya 0.14 has none.
//!
//! What a perf uprobe needs a perf event, a system call and a grace period for, such a link does once for all places: attach
//! and detach do not depend on their number, and no perf event is switched with the target's threads. A program has to be
//! loaded for it (`bpf_uprobe_multi_link_attach` in kernel/trace/bpf_trace.c asks for the attach type), and can then be
//! attached in no other way.

use std::{
    ffi::CString,
    ffi::c_char,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

use aya_obj::generated::{
    bpf_attach_type::BPF_TRACE_UPROBE_MULTI, bpf_attr, bpf_cmd, bpf_insn, bpf_prog_type::BPF_PROG_TYPE_KPROBE,
};

/// `BPF_F_UPROBE_MULTI_RETURN`, include/uapi/linux/bpf.h.
const RETURN: u32 = 1;
/// Bytes for what the verifier says of a program that it refuses.
const LOG_BYTES: usize = 1 << 20;
/// How often a load is tried that a signal has interrupted.
const LOAD_ATTEMPTS: u32 = 10;

/// A program, ready to be loaded: its maps and calls are resolved.
pub struct Code<'a> {
    /// Its name; what is beyond 15 bytes is cut.
    pub name: &'a str,
    /// Its instructions.
    pub instructions: &'a [bpf_insn],
    /// The type information that the next two refer to, if there is any.
    pub btf: Option<BorrowedFd<'a>>,
    /// What the functions are, and the size of one record in bytes.
    pub functions: (&'a [u8], usize),
    /// Where the lines are, and the size of one record in bytes.
    pub lines: (&'a [u8], usize),
}

/// Why the kernel did not load a program.
#[derive(Debug)]
pub struct Refusal {
    /// What the system call said.
    pub source: io::Error,
    /// What the verifier said.
    pub log: String,
}

/// Loads a program for links of many uprobes.
///
/// # Errors
/// [`Refusal`]; EINVAL without a log where the kernel does not know the attach type (before 6.6).
pub fn load(code: &Code<'_>) -> Result<OwnedFd, Refusal> {
    let mut attempt = 0;
    let source = loop {
        match load_once(code, &mut []) {
            Ok(program) => return Ok(program),
            // A signal came while the verifier was at work (`bpf_check` in kernel/bpf/verifier.c).
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && attempt < LOAD_ATTEMPTS => {
                attempt += 1
            }
            Err(error) => break error,
        }
    };
    let mut log = vec![0; LOG_BYTES];
    match load_once(code, &mut log) {
        Ok(program) => Ok(program),
        Err(_) => {
            let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
            Err(Refusal { source, log: String::from_utf8_lossy(text).into_owned() })
        }
    }
}

fn load_once(code: &Code<'_>, log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut attr = empty();
    // SAFETY: all fields of the union are integers, and it is zeroed.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = BPF_PROG_TYPE_KPROBE as u32;
    load.expected_attach_type = BPF_TRACE_UPROBE_MULTI as u32;
    load.insns = code.instructions.as_ptr() as u64;
    load.insn_cnt = narrow(code.instructions.len());
    load.license = c"GPL".as_ptr() as u64;
    for (to, from) in load.prog_name.iter_mut().take(15).zip(code.name.bytes()) {
        *to = from as c_char; // signed on some machines only
    }
    if let Some(btf) = code.btf {
        load.prog_btf_fd = number(btf);
        (load.func_info, load.func_info_rec_size, load.func_info_cnt) = records(code.functions);
        (load.line_info, load.line_info_rec_size, load.line_info_cnt) = records(code.lines);
    }
    if !log.is_empty() {
        load.log_level = 1;
        load.log_buf = log.as_mut_ptr() as u64;
        load.log_size = narrow(log.len());
    }
    // SAFETY: everything the attribute points to is alive until the call is over; it makes a descriptor.
    unsafe { make(bpf_cmd::BPF_PROG_LOAD, &mut attr) }
}

fn records((bytes, size): (&[u8], usize)) -> (u64, u32, u32) {
    (bytes.as_ptr() as u64, narrow(size), narrow(bytes.len().checked_div(size).unwrap_or(0)))
}

/// Gives type information to the kernel.
///
/// # Errors
/// Of the system call.
pub fn load_btf(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = empty();
    // SAFETY: all fields of the union are integers, and it is zeroed.
    let load = unsafe { &mut attr.__bindgen_anon_7 };
    load.btf = bytes.as_ptr() as u64;
    load.btf_size = narrow(bytes.len());
    // SAFETY: the bytes are alive until the call is over; it makes a descriptor.
    unsafe { make(bpf_cmd::BPF_BTF_LOAD, &mut attr) }
}

/// Uprobes of one file that run one program in one process.
#[derive(Clone, Debug)]
pub struct Places<'a> {
    /// The file, held open.
    pub file: BorrowedFd<'a>,
    /// The process.
    pub tgid: u32,
    /// Whether the program runs when the function that begins at the place returns.
    pub at_return: bool,
    /// Offsets within the file, in bytes.
    pub offsets: &'a [u64],
    /// What the program is told at each of them; as many.
    pub cookies: &'a [u64],
}

/// Places them, all or none. They are there until the descriptor is closed.
///
/// # Errors
/// Of the system call: ESRCH, the process has gone; EINVAL, EIO, ENOTSUPP and others, the kernel takes no probe at one
/// of the places, and does not say at which.
pub fn link(program: BorrowedFd<'_>, places: &Places<'_>) -> io::Result<OwnedFd> {
    if places.offsets.len() != places.cookies.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // Through our own descriptor: the kernel follows the link (`kern_path` with LOOKUP_FOLLOW) to the very file that is
    // mapped, also if it was deleted, replaced, or lies in another mount namespace.
    let path = CString::new(format!("/proc/self/fd/{}", places.file.as_raw_fd()))?;
    let mut attr = empty();
    // SAFETY: all fields of the union are integers, and it is zeroed.
    let create = unsafe { &mut attr.link_create };
    create.__bindgen_anon_1.prog_fd = number(program);
    create.attach_type = BPF_TRACE_UPROBE_MULTI as u32;
    // SAFETY: all fields of the union are integers, and it is zeroed.
    let multi = unsafe { &mut create.__bindgen_anon_3.uprobe_multi };
    multi.path = path.as_ptr() as u64;
    multi.offsets = places.offsets.as_ptr() as u64;
    multi.cookies = places.cookies.as_ptr() as u64;
    multi.cnt = narrow(places.offsets.len());
    multi.flags = if places.at_return { RETURN } else { 0 };
    multi.pid = places.tgid;
    // SAFETY: everything the attribute points to is alive until the call is over; it makes a descriptor.
    unsafe { make(bpf_cmd::BPF_LINK_CREATE, &mut attr) }
}

/// An attribute of all zeroes: a kernel that does not know its later fields accepts it for that.
pub(super) fn empty() -> bpf_attr {
    // SAFETY: a union of structures of integers, of which all zeroes is a value.
    unsafe { std::mem::zeroed() }
}

/// Calls `bpf(2)`.
///
/// # Safety
/// What `attr` points to must be alive and of the sizes that it gives.
pub(super) unsafe fn call(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: the caller's promise.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_int, ptr::from_mut(attr), size_of::<bpf_attr>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Calls `bpf(2)` for what gives a descriptor.
///
/// # Safety
/// As for [`call`]; and the command must be one that makes a descriptor.
pub(super) unsafe fn make(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise; the kernel has just made the descriptor, nobody else knows it.
    unsafe { call(command, attr).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

pub(super) fn number(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)
}

fn narrow(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
