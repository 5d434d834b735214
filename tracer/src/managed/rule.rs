//! Tables of functions: what it means that one of them is on the stack of a mapping.

use super::mapping::{FrameFacts, MappingFacts, Place};
use crate::model::MemoryClass;

/// What a function on the stack says about the mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// How the function's name begins, without return type; a trailing `$` demands that it ends there (behind it
    /// may be parameters, or `.abi0`).
    pub(super) function: &'static str,
    /// What the mapping is.
    pub(super) class: MemoryClass,
    /// Its name in reports.
    pub(super) label: &'static str,
    /// What it is where the runtime says that the address is not its heap, if that is something else.
    pub(super) outside: Option<(MemoryClass, &'static str)>,
}

/// A rule.
pub(super) const fn rule(function: &'static str, class: MemoryClass, label: &'static str) -> Rule {
    Rule { function, class, label, outside: None }
}

/// The table of a runtime.
pub(super) struct Table {
    /// In order of their weight: the first that fits any frame of the front decides.
    pub(super) rules: &'static [Rule],
    /// Functions from which on the stack is the program's: what they call is done for it.
    pub(super) borders: &'static [&'static str],
    /// How the names of the runtime's own functions begin; empty: they are told by their object.
    pub(super) own_functions: &'static [&'static str],
    /// How the file names of the runtime's own objects begin.
    pub(super) own_objects: &'static [&'static str],
    /// What the runtime itself maps if no rule says more.
    pub(super) otherwise: Option<(MemoryClass, &'static str)>,
    /// Label of executable memory that the rules take for heap.
    pub(super) code_label: Option<&'static str>,
}

/// Functions that are between any others: those of C++'s library, which are made for whoever uses them.
const PASSING: &str = "std::";
/// Frames looked at for a rule.
const MAX_FRONT: usize = 40;

impl Table {
    /// What the stack says, if the runtime made the mapping. `stack` begins behind the C library's frames.
    pub(super) fn apply(
        &self,
        facts: &MappingFacts<'_>,
        stack: &[FrameFacts<'_>],
        place: Place<'_>,
    ) -> Option<(MemoryClass, &'static str)> {
        let is_passing = |frame: &FrameFacts<'_>| frame.function.is_some_and(|name| matches(name, PASSING));
        let is_front =
            |frame: &&FrameFacts<'_>| (self.is_own(frame) || is_passing(frame)) && !self.is_border(frame);
        let front = stack.iter().take(MAX_FRONT).take_while(is_front).count();
        let front = stack.get(..front).filter(|front| front.iter().any(|frame| self.is_own(frame)))?;
        let fits = |rule: &&Rule| {
            front.iter().any(|frame| frame.function.is_some_and(|name| matches(name, rule.function)))
        };
        let (class, label) = match self.rules.iter().find(fits) {
            Some(Rule { outside: Some(outside), .. }) if place == Place::Outside => *outside,
            Some(rule) => (rule.class, rule.label),
            None => self.otherwise?,
        };
        match self.code_label {
            Some(code) if facts.is_executable && class == MemoryClass::ManagedHeap => {
                Some((MemoryClass::JitCode, code))
            }
            _ => Some((class, label)),
        }
    }

    fn is_own(&self, frame: &FrameFacts<'_>) -> bool {
        let is_own_object = self.own_objects.iter().any(|start| file_name(frame.object).starts_with(start));
        if self.own_functions.is_empty() {
            return is_own_object;
        }
        match frame.function {
            Some(name) => self.own_functions.iter().any(|start| matches(name, start)),
            // A frame without a name is believed to be the runtime's if its object is.
            None => is_own_object,
        }
    }

    fn is_border(&self, frame: &FrameFacts<'_>) -> bool {
        frame.function.is_some_and(|name| self.borders.iter().any(|border| matches(name, border)))
    }
}

/// Name of an object's file.
pub(super) fn file_name(object: Option<&str>) -> &str {
    object.and_then(|path| path.rsplit('/').next()).unwrap_or_default()
}

/// Whether a function's name begins like this. A return type may stand before it, as templates have one.
pub(super) fn matches(function: &str, pattern: &str) -> bool {
    let (start, is_whole) = pattern.strip_suffix('$').map_or((pattern, false), |start| (start, true));
    let fits = |name: &str| {
        name.strip_prefix(start).is_some_and(|rest| {
            let rest = rest.strip_suffix(".abi0").unwrap_or(rest);
            !is_whole || rest.is_empty() || rest.starts_with(['(', '<'])
        })
    };
    if fits(function) {
        return true;
    }
    // Spaces before the parameters only: those behind them belong to types.
    let head = function.find('(').map_or(function, |end| function.get(..end).unwrap_or(function));
    head.match_indices(' ').any(|(at, _)| function.get(at + 1..).is_some_and(fits))
}
