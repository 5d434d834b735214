//! aarch64: registers, numbers of system calls, frames.

mod frame;

use core::ptr;

use aya_ebpf::bindings::pt_regs;

use crate::walk::Start;

pub use frame::step;

/// What a return adds to the stack pointer: the return address is in a register.
pub const RETURN_POPS_BYTES: u64 = 0;

/// Bits of a user address. What stands above is no part of it: a signature (pointer authentication), or a tag. Processes
/// have no mappings above 48 bits unless they ask for them by their address (Documentation/arch/arm64/memory.rst), and the
/// rule cache has no room for more.
const ADDRESS_MASK: u64 = (1 << 48) - 1;
/// The frame pointer, and the link register, which holds the return address.
const FP: usize = 29;
const LINK: usize = 30;

/// A return address without its signature.
#[inline(always)]
pub fn strip(address: u64) -> u64 {
    address & ADDRESS_MASK
}

/// Whether a walk knows which frame pointers it has used: here it uses every one, mostly.
pub const TRACKS_FRAME_POINTER: bool = false;

/// Numbers of system calls, include/uapi/asm-generic/unistd.h.
pub mod system_call {
    /// `shmat`.
    pub const SHMAT: u64 = 196;
    /// `brk`.
    pub const BRK: u64 = 214;
    /// `mremap`.
    pub const MREMAP: u64 = 216;
    /// `mmap`.
    pub const MMAP: u64 = 222;
    /// `madvise`.
    pub const MADVISE: u64 = 233;
}

/// What the kernel's `struct pt_regs` has behind the registers of the user (arch/arm64/include/asm/ptrace.h). Only those of
/// a task may be looked at as this; the context of a probe ends before.
#[repr(C)]
struct TaskRegisters {
    user: pt_regs,
    /// The first argument of a system call: its own register is overwritten by the result.
    first_argument: u64,
    system_call: i32,
}

/// User registers at a probe, or of a task.
#[derive(Clone, Copy)]
pub struct Registers(*const pt_regs);

impl Registers {
    /// The registers of a probe context.
    #[inline(always)]
    pub fn new(regs: *const pt_regs) -> Self {
        Self(regs)
    }

    /// Program counter.
    #[inline(always)]
    pub fn pc(self) -> u64 {
        // SAFETY: the kernel passes valid registers as the context of every probe.
        unsafe { (*self.0).pc }
    }

    /// Stack pointer.
    #[inline(always)]
    pub fn sp(self) -> u64 {
        // SAFETY: as above.
        unsafe { (*self.0).sp }
    }

    /// Frame pointer.
    #[inline(always)]
    pub fn fp(self) -> u64 {
        // SAFETY: as above.
        unsafe { (*self.0).regs[FP] }
    }

    /// Link register: the return address of a function that has not called another one yet.
    #[inline(always)]
    pub fn link(self) -> u64 {
        // SAFETY: as above.
        strip(unsafe { (*self.0).regs[LINK] })
    }

    /// Where a stack walk begins behind a return: what the link register holds there is over.
    #[inline(always)]
    pub fn start(self) -> Start {
        Start { pc: strip(self.pc()), sp: self.sp(), fp: self.fp(), leaf: 0, link: 0 }
    }

    /// Where a stack walk begins behind the return of the function that this is the end of; `sp` is its stack pointer there.
    #[inline(always)]
    pub fn start_behind_return(self, sp: u64, return_address: u64) -> Start {
        Start { pc: return_address, sp, fp: self.fp(), leaf: 0, link: 0 }
    }

    /// Where a stack walk begins from inside a system call. The function that makes it often calls nothing else, and has its
    /// return address in the register.
    #[inline(always)]
    pub fn start_in_system_call(self) -> Start {
        Start { pc: self.pc(), sp: self.sp(), fp: self.fp(), leaf: 0, link: self.link() }
    }

    /// Return value.
    #[inline(always)]
    pub fn result(self) -> u64 {
        // SAFETY: as above.
        unsafe { (*self.0).regs[0] }
    }

    /// Integer argument `index`, from 0; the function table has none beyond 3.
    ///
    /// All are read before one is chosen, as on x86-64.
    #[inline(always)]
    pub fn argument(self, index: u64) -> u64 {
        // SAFETY: as above; volatile keeps the four reads apart.
        let (first, second, third, fourth) = unsafe {
            (
                ptr::read_volatile(&raw const (*self.0).regs[0]),
                ptr::read_volatile(&raw const (*self.0).regs[1]),
                ptr::read_volatile(&raw const (*self.0).regs[2]),
                ptr::read_volatile(&raw const (*self.0).regs[3]),
            )
        };
        match index {
            0 => first,
            1 => second,
            2 => third,
            _ => fourth,
        }
    }

    /// The first four arguments of a system call, of a task's registers. They are still there when it returns.
    #[inline(always)]
    pub fn system_call_arguments(self) -> [u64; 4] {
        // SAFETY: as above; volatile, so that each is a load of its own from the pointer that the verifier knows.
        unsafe {
            [
                ptr::read_volatile(&raw const (*self.0.cast::<TaskRegisters>()).first_argument),
                ptr::read_volatile(&raw const (*self.0).regs[1]),
                ptr::read_volatile(&raw const (*self.0).regs[2]),
                ptr::read_volatile(&raw const (*self.0).regs[3]),
            ]
        }
    }

    /// The number of the system call that the thread is in, of a task's registers (`syscall_get_nr` in
    /// arch/arm64/include/asm/syscall.h).
    #[inline(always)]
    pub fn system_call(self) -> u64 {
        // SAFETY: as above.
        unsafe { ptr::read_volatile(&raw const (*self.0.cast::<TaskRegisters>()).system_call) as u64 }
    }
}

/// The return address of a function at its first instruction or at a `ret`.
#[inline(always)]
pub fn return_address(regs: Registers, _entry_sp: u64) -> Option<u64> {
    Some(regs.link())
}

/// Whether the function that was entered at `entry_sp` with this return address may still run. Where it keeps the address
/// is its own affair, so nothing tells; user space places no probes that need to know.
#[inline(always)]
pub fn may_still_run(_regs: Registers, _entry_sp: u64, _address: u64) -> bool {
    true
}
