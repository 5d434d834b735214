//! What this kernel's verifier says of every program of the object.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use aya::{
    Btf,
    programs::{Program, ProgramError},
};

use super::{
    RecordError,
    kernel_map::program_info,
    load::{Limits, LoadOptions, TableSizes, load_object},
    weighing::Weighing,
};
use crate::attach::probe_kind::ProbeKind;

/// What became of a program.
#[derive(Debug)]
pub struct Verification {
    /// Program.
    pub program: String,
    /// Instructions that the verifier has processed, of at most a million (`BPF_COMPLEXITY_LIMIT_INSNS`); `None` where the
    /// kernel does not tell (before 5.16), or has refused the program.
    pub instructions: Option<u32>,
    /// Whether it was loaded with its types; without, global functions are verified as static ones.
    pub has_btf: bool,
    /// How long loading took.
    pub duration: Duration,
    /// Why the kernel has refused it.
    pub refused: Option<ProgramError>,
}

/// Loads every program of the object, one after the other, attaches none, and lets them go. Sorted by name.
///
/// # Errors
/// [`RecordError::Load`], [`RecordError::System`].
pub fn verify_programs() -> Result<Vec<Verification>, RecordError> {
    let options = LoadOptions {
        limits: Limits::DEFAULT,
        tables: TableSizes { page_chunks: 1, row_chunks: 1, escapes: 1, mapping_chunks: 1 },
        min_size_bytes: 0,
        max_size_bytes: u64::MAX,
        bpf_log: None,
        follow: true,
        clone_flags_offset: 0,
        validate: false,
        probe_kind: ProbeKind::Perf,
        weighing: Weighing::default(),
    };
    let mut bpf = load_object(&options)?;
    let mut all = Vec::new();
    for (name, program) in bpf.programs_mut() {
        let start = Instant::now();
        let loaded = load(program);
        let duration = start.elapsed();
        let (instructions, has_btf) = match program.fd() {
            Ok(fd) => {
                let info = program_info(fd.as_fd())?;
                ((info.verified_insns != 0).then_some(info.verified_insns), info.btf_id != 0)
            }
            Err(_) => (None, false),
        };
        let program = name.to_owned();
        all.push(Verification { program, instructions, has_btf, duration, refused: loaded.err() });
    }
    all.sort_by(|a, b| a.program.cmp(&b.program));
    Ok(all)
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::UProbe(program) => program.load(),
        Program::TracePoint(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        Program::BtfTracePoint(program) => {
            let btf = Btf::from_sys_fs().map_err(ProgramError::Btf)?;
            program.load("task_newtask", &btf)
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
