//! Loads and attaches the programs that follow mappings.

use std::{collections::BTreeSet, os::fd::AsFd};

use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, TracePoint, tp_btf::BtfTracePointLink},
};

use super::MappingError;
use crate::{
    attach::tracepoint::{Hook, Tracefs},
    record::{RecordError, kernel_map},
};

/// Programs and their tracepoints, some of which share one. Unmappings come first: an unmapping that is missed of a mapping that is
/// seen would stay in the book until the next look.
const SYSTEM_CALLS: [(&str, &str); 8] = [
    ("sys_enter_munmap", "syscalls/sys_enter_munmap"),
    ("sys_exit_munmap", "syscalls/sys_exit_munmap"),
    ("sys_enter_mremap", "syscalls/sys_enter_mremap"),
    ("mapping_exit", "syscalls/sys_exit_mremap"),
    ("sys_enter_shmdt", "syscalls/sys_enter_shmdt"),
    ("mapping_exit", "syscalls/sys_exit_shmat"),
    ("mapping_exit", "syscalls/sys_exit_brk"),
    ("mapping_exit", "syscalls/sys_exit_mmap"),
];
/// The program that follows new threads.
const THREAD_START: &str = "thread_start";

/// The attached programs. Dropping it takes them off.
#[derive(Debug)]
pub struct MappingHooks {
    hooks: Vec<Hook>,
    thread_start: Option<BtfTracePointLink>,
}

impl MappingHooks {
    /// Loads the programs and attaches them, for all traced processes.
    ///
    /// # Errors
    /// Why the lens stays off; what was attached before is taken off.
    pub fn attach(bpf: &mut Ebpf) -> Result<Self, MappingError> {
        let tracefs = Tracefs::open()?;
        let thread_start = attach_thread_start(bpf)?;
        let hooks = SYSTEM_CALLS.into_iter().map(|(name, tracepoint)| {
            let refused = |source| MappingError::Program { name, source: Box::new(source) };
            let program: &mut TracePoint = bpf
                .program_mut(name)
                .and_then(|program| program.try_into().ok())
                .ok_or(MappingError::Object { name })?;
            let id = tracefs.id(tracepoint)?;
            if program.fd().is_err() {
                program.load().map_err(refused)?;
            }
            Ok(Hook::attach(tracepoint, id, program.fd().map_err(refused)?.as_fd())?)
        });
        Ok(Self { hooks: hooks.collect::<Result<_, MappingError>>()?, thread_start: Some(thread_start) })
    }

    /// Hits at which the kernel did not run a program, because another one was running on that CPU (counted since
    /// kernel 6.7).
    ///
    /// # Errors
    /// [`RecordError::System`], [`RecordError::Object`].
    pub fn skipped_runs(&self, bpf: &Ebpf) -> Result<u64, RecordError> {
        let names: BTreeSet<_> = SYSTEM_CALLS.into_iter().map(|(name, _)| name).collect();
        names.into_iter().try_fold(0u64, |sum, name| {
            let program = bpf.program(name).ok_or(RecordError::Object { name })?;
            let fd = program
                .fd()
                .map_err(|source| RecordError::Program { program: name, source: Box::new(source) })?;
            Ok(sum.saturating_add(kernel_map::skipped_runs(fd.as_fd())?))
        })
    }
}

impl MappingHooks {
    /// Whether the programs run.
    pub fn is_attached(&self) -> bool {
        !self.hooks.is_empty()
    }

    /// Takes the programs off. Closing one waits until no CPU can be running its program: all at the same time.
    pub fn detach(&mut self) {
        std::thread::scope(|scope| {
            self.hooks.drain(..).for_each(|hook| drop(scope.spawn(move || drop(hook))));
        });
        self.thread_start.take();
    }
}

impl Drop for MappingHooks {
    fn drop(&mut self) {
        self.detach();
    }
}

fn attach_thread_start(bpf: &mut Ebpf) -> Result<BtfTracePointLink, MappingError> {
    let name = THREAD_START;
    let refused = |source| MappingError::Program { name, source: Box::new(source) };
    let btf = Btf::from_sys_fs().map_err(|source| MappingError::Btf { source: Box::new(source) })?;
    let program: &mut BtfTracePoint = bpf
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(MappingError::Object { name })?;
    program.load("task_newtask", &btf).map_err(refused)?;
    let id = program.attach().map_err(refused)?;
    program.take_link(id).map_err(refused)
}
