//! Go programs: the few functions at which frame pointers alone do not lead to the caller.
//!
//! Go keeps frame pointers and writes no `.eh_frame`, so its functions take frame-pointer steps. C code called
//! from Go runs on the thread's stack; below it lies `runtime.asmcgocall`, whose rule leads to the goroutine. The
//! roots are those of the runtime's own traceback (`topofstack` in runtime/traceback.go).

mod calls;
mod follow;
mod functions;

use tracer_common::row::{END_GO_BOUNDARY, KIND_END, rule};

use self::calls::calls;
pub(super) use self::follow::{follow, leaves_stack};
pub use self::functions::{GoFunction, GoFunctions};
use super::elf::Elf;
use super::rule::Expressed;
use crate::model::Machine;

/// What is known of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Nothing called it: the first frame of a goroutine, or of a thread's own stack.
    Root,
    /// It works on another stack for a goroutine that is not found from there.
    Boundary,
    /// Assembly that is followed to its calls. Where that fails the stack ends, with the reason, at those
    /// that change stacks.
    Assembly { changes_stacks: bool },
}

const SWITCHES: Role = Role::Assembly { changes_stacks: true };
const STAYS: Role = Role::Assembly { changes_stacks: false };

/// Names without `.abi0`, the mark of assembly functions in symbol tables since Go 1.17.
const FUNCTIONS: &[(&str, Role)] = &[
    ("runtime.goexit", Role::Root),
    ("runtime.mstart", Role::Root),
    // The scheduler's work is nobody's: it never returns to the goroutine that gave up the thread.
    ("runtime.mcall", Role::Root),
    ("runtime.rt0_go", Role::Root),
    ("runtime.morestack", Role::Boundary),
    ("runtime.asmcgocall", SWITCHES),
    ("runtime.asmcgocall_no_g", SWITCHES),
    ("runtime.systemstack", SWITCHES),
    ("runtime.cgocallback", SWITCHES),
    ("runtime.asmcgocall_landingpad", STAYS),
    // By its frame's size: its frame pointer, which C has kept for it, is stale if the stack has moved meanwhile.
    ("runtime.cgocall", STAYS),
    ("crosscall2", STAYS),
];

/// A range of code with a rule that goes before whatever else is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Special {
    /// First virtual address.
    pub(super) start: u64,
    /// First one behind it.
    pub(super) end: u64,
    pub(super) rule: Expressed,
}

/// The special ranges of a file, sorted and disjoint; none if it is no Go program.
pub(super) fn specials(elf: &Elf<'_>) -> Vec<Special> {
    // What the functions look like is known of x86-64 only.
    if elf.machine != Machine::X86_64 {
        return Vec::new();
    }
    let Some(functions) = GoFunctions::of(elf) else { return Vec::new() };
    let boundary = Expressed::Rule(rule(KIND_END, END_GO_BOUNDARY, 0));
    let mut found = Vec::new();
    for function in functions.iter() {
        let name = function.name.strip_suffix(".abi0").unwrap_or(function.name);
        let Some((_, role)) = FUNCTIONS.iter().find(|(known, _)| *known == name) else { continue };
        // Other segments have no code, and no page entries.
        if elf.code.end_of(function.start).is_none_or(|end| function.end > end) {
            continue;
        }
        let whole = |rule| Special { start: function.start, end: function.end, rule };
        match role {
            Role::Root => found.push(whole(Expressed::Rule(rule(KIND_END, 0, 0)))),
            Role::Boundary => found.push(whole(boundary)),
            Role::Assembly { changes_stacks } => {
                let Some(code) = elf.bytes_from_address(function.start) else { continue };
                let size_bytes = usize::try_from(function.end - function.start).unwrap_or(usize::MAX);
                for site in calls(code.get(..size_bytes).unwrap_or(code), function.start) {
                    if let Some(rule) = site.rule.or(changes_stacks.then_some(boundary)) {
                        found.push(Special { start: site.start, end: site.end, rule });
                    }
                }
            }
        }
    }
    found.sort_by_key(|special| special.start);
    found.dedup_by(|next, previous| next.start < previous.end);
    found
}

/// Index of the last special range that begins at or before `address`, if it contains it.
pub(super) fn find(specials: &[Special], address: u64) -> Option<&Special> {
    let behind = specials.partition_point(|special| special.start <= address);
    specials.get(behind.checked_sub(1)?).filter(|special| address < special.end)
}
