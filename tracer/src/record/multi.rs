//! The probe programs, loaded for links of many uprobes.
//!
//! A program says at its load how it will be attached. aya loads uprobe programs for perf only, so these are taken from a
//! second reading of the object: its maps are those that aya has made.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use aya::{Ebpf, EbpfError, maps::Map, programs::ProgramError};
use aya_obj::{Object, VerifierLog};

use super::RecordError;
use crate::attach::uprobe_multi::{self, Code};

/// The programs.
pub struct MultiPrograms {
    /// With its maps and calls filled in.
    object: Object,
    /// The types of the object. Where the kernel takes none, global functions are verified as static ones, which these
    /// programs are too large for.
    types: Option<OwnedFd>,
    /// Those that are loaded, by name.
    loaded: HashMap<&'static str, OwnedFd>,
}

impl MultiPrograms {
    /// Makes the object ready for loading. `bpf` still has all its maps.
    ///
    /// # Errors
    /// [`RecordError::Load`], [`RecordError::Program`].
    pub fn read(object: &[u8], bpf: &Ebpf) -> Result<Self, RecordError> {
        let failed = |source: EbpfError| RecordError::Load { permission: false, source };
        let mut object = Object::parse(object).map_err(|error| failed(error.into()))?;
        let features = aya::features();
        let btf = match features.btf() {
            Some(features) => {
                object.fixup_and_sanitize_btf(features).map_err(|error| failed(error.into()))?
            }
            None => None,
        };
        let types = btf.map(|btf| uprobe_multi::load_btf(&btf.to_bytes())).transpose();
        let types = types.map_err(|source| refused("BTF", source, String::new()))?;
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let maps = object.maps.clone();
        let known = maps.iter().filter_map(|(name, map)| Some((name.as_str(), fd_of(bpf.map(name)?)?, map)));
        object.relocate_maps(known, &text).map_err(|error| failed(error.into()))?;
        object.relocate_calls(&text).map_err(|error| failed(error.into()))?;
        object.sanitize_functions(features);
        Ok(Self { object, types, loaded: HashMap::new() })
    }

    /// Loads a program, unless that was done.
    ///
    /// # Errors
    /// [`RecordError::Program`], [`RecordError::Object`].
    pub fn load(&mut self, name: &'static str) -> Result<(), RecordError> {
        if !self.loaded.contains_key(name) {
            self.loaded.insert(name, load_one(&self.object, name, self.types.as_ref().map(AsFd::as_fd))?);
        }
        Ok(())
    }

    /// A program, if it is loaded.
    pub fn get(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.loaded.get(name).map(AsFd::as_fd)
    }
}

fn load_one(
    object: &Object,
    name: &'static str,
    btf: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, RecordError> {
    let function = object
        .programs
        .get(name)
        .and_then(|program| object.functions.get(&program.function_key()))
        .ok_or(RecordError::Object { name })?;
    let functions = function.func_info.func_info_bytes();
    let lines = function.line_info.line_info_bytes();
    let code = Code {
        name,
        instructions: &function.instructions,
        btf,
        functions: (&functions, function.func_info_rec_size),
        lines: (&lines, function.line_info_rec_size),
    };
    uprobe_multi::load(&code).map_err(|refusal| refused(name, refusal.source, refusal.log))
}

fn refused(program: &'static str, io_error: io::Error, log: String) -> RecordError {
    let verifier_log = VerifierLog::new(log);
    RecordError::Program { program, source: Box::new(ProgramError::LoadError { io_error, verifier_log }) }
}

/// The descriptor of a map; aya gives it by the kind only. `None`: a kind that our object has not.
fn fd_of(map: &Map) -> Option<RawFd> {
    match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::PerCpuHashMap(data)
        | Map::LruHashMap(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data) => Some(data.fd().as_fd().as_raw_fd()),
        _ => None,
    }
}
