//! x86-64: registers, numbers of system calls, frames.

mod frame;

use core::{ffi::c_void, ptr};

use aya_ebpf::{bindings::pt_regs, helpers::generated::bpf_probe_read_user};

use crate::walk::Start;

pub use frame::step;

/// What a return adds to the stack pointer.
pub const RETURN_POPS_BYTES: u64 = 8;

/// Whether a walk knows which frame pointers it has used.
pub const TRACKS_FRAME_POINTER: bool = true;

/// Numbers of system calls, arch/x86/entry/syscalls/syscall_64.tbl.
pub mod system_call {
    /// `mmap`.
    pub const MMAP: u64 = 9;
    /// `brk`.
    pub const BRK: u64 = 12;
    /// `mremap`.
    pub const MREMAP: u64 = 25;
    /// `madvise`.
    pub const MADVISE: u64 = 28;
    /// `shmat`.
    pub const SHMAT: u64 = 30;
}

/// User registers at a probe.
#[derive(Clone, Copy)]
pub struct Registers(*const pt_regs);

impl Registers {
    /// The registers of a probe context.
    #[inline(always)]
    pub fn new(regs: *const pt_regs) -> Self {
        Self(regs)
    }

    /// Instruction pointer.
    #[inline(always)]
    pub fn pc(self) -> u64 {
        // SAFETY: the kernel passes a valid `pt_regs` as the context of every probe.
        unsafe { (*self.0).rip as u64 }
    }

    /// Stack pointer.
    #[inline(always)]
    pub fn sp(self) -> u64 {
        // SAFETY: as above.
        unsafe { (*self.0).rsp as u64 }
    }

    /// Frame pointer.
    #[inline(always)]
    pub fn fp(self) -> u64 {
        // SAFETY: as above.
        unsafe { (*self.0).rbp as u64 }
    }

    /// Where a stack walk from here begins.
    #[inline(always)]
    pub fn start(self) -> Start {
        Start { pc: self.pc(), sp: self.sp(), fp: self.fp(), leaf: 0 }
    }

    /// Return value.
    #[inline(always)]
    pub fn result(self) -> u64 {
        // SAFETY: as above.
        unsafe { (*self.0).rax as u64 }
    }

    /// Integer argument `index`, from 0; the function table has none beyond 3.
    ///
    /// All are read before one is chosen: LLVM would choose the address first, and the verifier refuses
    /// that ("dereference of modified ctx ptr").
    #[inline(always)]
    pub fn argument(self, index: u64) -> u64 {
        // SAFETY: as above; volatile keeps the four reads apart.
        let (first, second, third, fourth) = unsafe {
            (
                ptr::read_volatile(&raw const (*self.0).rdi) as u64,
                ptr::read_volatile(&raw const (*self.0).rsi) as u64,
                ptr::read_volatile(&raw const (*self.0).rdx) as u64,
                ptr::read_volatile(&raw const (*self.0).rcx) as u64,
            )
        };
        match index {
            0 => first,
            1 => second,
            2 => third,
            _ => fourth,
        }
    }

    /// The first four arguments of a system call. They are still there when it returns.
    #[inline(always)]
    pub fn system_call_arguments(self) -> [u64; 4] {
        // SAFETY: as above; volatile, so that each is a load of its own from the pointer that the verifier knows.
        unsafe {
            [
                ptr::read_volatile(&raw const (*self.0).rdi) as u64,
                ptr::read_volatile(&raw const (*self.0).rsi) as u64,
                ptr::read_volatile(&raw const (*self.0).rdx) as u64,
                ptr::read_volatile(&raw const (*self.0).r10) as u64,
            ]
        }
    }

    /// The number of the system call that the thread is in, as the tracepoints tell it (`syscall_get_nr` in
    /// arch/x86/include/asm/syscall.h).
    #[inline(always)]
    pub fn system_call(self) -> u64 {
        // SAFETY: as above.
        unsafe { (*self.0).orig_rax as u64 }
    }

    /// Where a stack walk begins behind the return of the function that this is the end of; `sp` is its stack pointer there.
    #[inline(always)]
    pub fn start_behind_return(self, sp: u64, return_address: u64) -> Start {
        Start { pc: return_address, sp: sp.wrapping_add(8), fp: self.fp(), leaf: 0 }
    }

    /// Where a stack walk begins from inside a system call.
    #[inline(always)]
    pub fn start_in_system_call(self) -> Start {
        self.start()
    }

    /// All registers in DWARF order (rax rdx rcx rbx rsi rdi rbp rsp r8-r15 ra).
    #[inline(always)]
    pub fn dwarf(self) -> [u64; 17] {
        // SAFETY: as above.
        let r = unsafe { &*self.0 };
        [
            r.rax as u64,
            r.rdx as u64,
            r.rcx as u64,
            r.rbx as u64,
            r.rsi as u64,
            r.rdi as u64,
            r.rbp as u64,
            r.rsp as u64,
            r.r8 as u64,
            r.r9 as u64,
            r.r10 as u64,
            r.r11 as u64,
            r.r12 as u64,
            r.r13 as u64,
            r.r14 as u64,
            r.r15 as u64,
            r.rip as u64,
        ]
    }
}

/// The return address of a function at its first instruction or at a `ret`, where `entry_sp` is its stack pointer.
#[inline(always)]
pub fn return_address(_regs: Registers, entry_sp: u64) -> Option<u64> {
    let mut word = 0u64;
    // SAFETY: the destination is a local of 8 bytes.
    let status = unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, entry_sp as *const c_void) };
    if status == 0 { Some(word) } else { None }
}

/// Whether the function that was entered at `entry_sp` with this return address may still run: while its frame stands,
/// the address stands there.
#[inline(always)]
pub fn may_still_run(regs: Registers, entry_sp: u64, address: u64) -> bool {
    return_address(regs, entry_sp) == Some(address)
}
