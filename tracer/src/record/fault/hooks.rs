//! Loads and attaches the programs that follow page faults.

use std::os::fd::AsFd;

use aya::{
    Ebpf,
    programs::{RawTracePoint, TracePoint, raw_trace_point::RawTracePointLink},
};

use crate::{
    attach::tracepoint::{Hook, Tracefs},
    record::{RecordError, kernel_map},
};

/// Programs, which have the names of their raw tracepoints. (arch/x86/include/asm/trace/exceptions.h)
const FAULTS: [&str; 2] = ["page_fault_user", "page_fault_kernel"];
/// Programs and their tracepoints, some of which share one: memory that moves, goes, or becomes resident without a fault.
const SYSTEM_CALLS: [(&str, &str); 5] = [
    ("fault_range_exit", "syscalls/sys_exit_mremap"),
    ("fault_range_exit", "syscalls/sys_exit_mmap"),
    ("fault_range_exit", "syscalls/sys_exit_madvise"),
    ("fault_enter_munmap", "syscalls/sys_enter_munmap"),
    ("fault_enter_madvise", "syscalls/sys_enter_madvise"),
];

/// The attached programs. Dropping it takes them off.
#[derive(Debug)]
pub struct FaultHooks {
    faults: Vec<RawTracePointLink>,
    system_calls: Vec<Hook>,
}

impl FaultHooks {
    /// Loads the programs and attaches them, for all traced processes. The second part is why ranges cannot be followed,
    /// if they cannot: then what moves or is populated has no stack.
    ///
    /// # Errors
    /// Why the lens stays off.
    pub fn attach(bpf: &mut Ebpf) -> Result<(Self, Option<RecordError>), RecordError> {
        // First, so that nothing that was seen moves unseen.
        let (system_calls, problem) = match attach_system_calls(bpf) {
            Ok(hooks) => (hooks, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let faults = FAULTS.into_iter().map(|name| attach_fault(bpf, name)).collect::<Result<_, _>>()?;
        Ok((Self { faults, system_calls }, problem))
    }

    /// Faults at which the kernel did not run the program, because it was running on that CPU already.
    ///
    /// That of faults in the kernel is left out: it is not run for what it reads itself, and shall not be.
    ///
    /// # Errors
    /// [`RecordError::System`], [`RecordError::Object`].
    pub fn skipped_runs(&self, bpf: &Ebpf) -> Result<u64, RecordError> {
        let name = "page_fault_user";
        let program = bpf.program(name).ok_or(RecordError::Object { name })?;
        let fd = program.fd().map_err(|source| refused(name, source))?;
        kernel_map::skipped_runs(fd.as_fd())
    }

    /// Whether the programs run.
    pub fn is_attached(&self) -> bool {
        !self.faults.is_empty()
    }

    /// Takes the programs off.
    pub fn detach(&mut self) {
        self.faults.clear();
        std::thread::scope(|scope| {
            self.system_calls.drain(..).for_each(|hook| drop(scope.spawn(move || drop(hook))));
        });
    }
}

impl Drop for FaultHooks {
    fn drop(&mut self) {
        self.detach();
    }
}

fn refused(program: &'static str, source: aya::programs::ProgramError) -> RecordError {
    RecordError::Program { program, source: Box::new(source) }
}

fn attach_fault(bpf: &mut Ebpf, name: &'static str) -> Result<RawTracePointLink, RecordError> {
    let refused = |source| refused(name, source);
    let program: &mut RawTracePoint = bpf
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(RecordError::Object { name })?;
    program.load().map_err(refused)?;
    let id = program.attach(name).map_err(refused)?;
    program.take_link(id).map_err(refused)
}

fn attach_system_calls(bpf: &mut Ebpf) -> Result<Vec<Hook>, RecordError> {
    let tracefs = Tracefs::open()?;
    let hooks = SYSTEM_CALLS.into_iter().map(|(name, tracepoint)| {
        let refused = |source| refused(name, source);
        let program: &mut TracePoint = bpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(RecordError::Object { name })?;
        let id = tracefs.id(tracepoint)?;
        if program.fd().is_err() {
            program.load().map_err(refused)?;
        }
        Ok(Hook::attach(tracepoint, id, program.fd().map_err(refused)?.as_fd())?)
    });
    hooks.collect()
}
