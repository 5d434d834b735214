//! Names every frame of a recording, once, at its end.

use std::collections::{BTreeMap, HashMap};

use super::{code_store::CodeStore, member::Program, stacks::StackBook};
use crate::{
    model::{Frame, FrameId, FrameKind, Location, ObjectId, ProcessId},
    symbolize::{CodeOffset, SymbolizeOptions, Symbolizer, hint_for, parse_jit_name},
};

/// What the frames are.
#[derive(Debug, Default)]
pub struct Naming {
    /// Locations by frame, for every frame.
    pub locations: Vec<(FrameId, Vec<Location>)>,
    /// Frames whose kind the name has told.
    pub kinds: Vec<(FrameId, FrameKind)>,
    /// Sentences for the user.
    pub hints: Vec<String>,
}

/// Names all frames: those of objects by their symbols, those made at run time by the runtime's perf map.
pub fn name_frames<'a>(
    book: &StackBook,
    store: &CodeStore,
    programs: impl Iterator<Item = &'a mut Program>,
) -> Naming {
    let mut naming = Naming::default();
    let mut by_object: BTreeMap<ObjectId, Vec<(FrameId, CodeOffset)>> = BTreeMap::new();
    let mut generated: HashMap<ProcessId, Vec<&Frame>> = HashMap::new();
    for (frame, is_return_address, process) in book.frames() {
        match (frame.object, frame.file_offset) {
            (Some(object), Some(file_offset)) => by_object
                .entry(object)
                .or_default()
                .push((frame.id, CodeOffset { file_offset, is_return_address })),
            _ if frame.kind == FrameKind::Jit => generated.entry(process).or_default().push(frame),
            _ => naming.locations.push((frame.id, unnamed())),
        }
    }
    name_objects(&mut naming, store, by_object);
    for program in programs {
        if let Some(frames) = generated.remove(&program.id) {
            name_generated(&mut naming, program, &frames);
        }
    }
    // Of a process that is not known any more; there should be none.
    naming.locations.extend(generated.into_values().flatten().map(|frame| (frame.id, unnamed())));
    naming
}

fn unnamed() -> Vec<Location> {
    vec![Location { function: None, file: None, line: None, inlined: false }]
}

fn name_objects(
    naming: &mut Naming,
    store: &CodeStore,
    by_object: BTreeMap<ObjectId, Vec<(FrameId, CodeOffset)>>,
) {
    let mut symbolizer = Symbolizer::new(SymbolizeOptions::default());
    let mut paths: HashMap<ObjectId, String> = HashMap::new();
    for (id, frames) in by_object {
        if let Some((source, path)) = store.symbol_source(id) {
            symbolizer.add_object(id, source);
            paths.insert(id, path);
        }
        let offsets: Vec<CodeOffset> = frames.iter().map(|(_, offset)| *offset).collect();
        let found = symbolizer.symbolize(id, &offsets);
        naming.locations.extend(frames.into_iter().map(|(frame, _)| frame).zip(found));
    }
    for (id, problem) in symbolizer.problems() {
        let path = paths.get(&id).map_or("an object", String::as_str);
        naming.hints.push(format!("no symbols from {path}: {problem}"));
    }
}

fn name_generated(naming: &mut Naming, program: &mut Program, frames: &[&Frame]) {
    let Program { target, perf_map, .. } = program;
    let perf_map = perf_map.as_mut().map(|map| {
        if let Err(error) = map.finish() {
            naming.hints.push(format!("no names from the perf map: {error}"));
        }
        &*map
    });
    let mut unnamed_count = 0;
    for frame in frames {
        let name = perf_map.and_then(|map| map.name_of(frame.address));
        match name.map(parse_jit_name) {
            Some(found) => {
                naming.kinds.push((frame.id, found.kind));
                naming.locations.push((frame.id, vec![found.location]));
            }
            None => {
                unnamed_count += 1;
                naming.locations.push((frame.id, unnamed()));
            }
        }
    }
    naming.hints.extend(target.runtime.as_ref().and_then(|runtime| hint_for(runtime, target, unnamed_count)));
}
