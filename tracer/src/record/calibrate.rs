//! What traps cost on this machine: empty programs at functions of this very process, and a pair of malloc and free in a
//! child, with the programs of a recording.

use std::{fs::File, num::NonZeroU32, os::fd::AsFd, time::Instant};

use tracer_common::cookie::Cookie;

use super::{
    RecordError,
    link::{Links, Probe, Role},
    load::{Limits, LoadOptions, Programs, Purpose, TableSizes},
    weighing::Weighing,
};
use crate::attach::{maps, probe_kind::ProbeKind};

/// Calls of one batch, and batches of which the fastest counts: others were disturbed. A single-stepped instruction takes
/// some 10 µs.
const CALLS: u32 = 500;
const BATCHES: usize = 20;

/// What one probe costs the thread that hits it, in ns, with an empty program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrapCosts {
    /// A probe on an instruction that the kernel emulates (`push`; `b` on aarch64).
    pub emulated_ns: f64,
    /// A probe on an instruction that the kernel single-steps.
    pub stepped_ns: f64,
    /// What a return probe adds where there is a probe at the entry already.
    pub return_ns: f64,
    /// A probe on a `ret`, which is single-stepped (not on aarch64).
    pub exit_ns: f64,
}

impl TrapCosts {
    /// What a hit costs in a role. `is_stepped`: the kernel does not emulate the instruction.
    pub const fn of(&self, role: Role, is_stepped: bool) -> f64 {
        match (role, is_stepped) {
            (Role::Return, _) => self.return_ns,
            (Role::Exit, _) => self.exit_ns,
            (Role::Entry | Role::Release, true) => self.stepped_ns,
            (Role::Entry | Role::Release, false) => self.emulated_ns,
        }
    }
}

/// Functions that do next to nothing, by known instructions. No two are the same, or they would be made one.
mod place {
    use core::arch::naked_asm;

    macro_rules! functions {
        ($($name:ident: $x86_64:literal, $aarch64:literal;)+) => {
            $(#[unsafe(naked)]
            pub extern "C" fn $name() {
                #[cfg(target_arch = "x86_64")]
                naked_asm!($x86_64, "ret");
                #[cfg(target_arch = "aarch64")]
                naked_asm!($aarch64, "ret");
            })+
        };
    }

    functions! {
        emulated: "push rbp; pop rbp", "b 2f; 2:";
        returning: "push rbx; pop rbx", "b 2f; 2: nop";
        stepped: "test rdi, rdi", "cmp x0, x0";
        leaving: "", "";
    }
}

/// Measures; takes some tenths of a second, most of them to take the probes off again.
///
/// # Errors
/// As for a recording.
pub fn trap_costs(probe_kind: ProbeKind) -> Result<TrapCosts, RecordError> {
    let system = |operation| move |source| RecordError::System { operation, source };
    let mut programs = Programs::load(&smallest(probe_kind), Purpose::Floor)?;
    let tgid = std::process::id();
    let own = NonZeroU32::new(tgid)
        .ok_or_else(|| system("find the own process id")(std::io::ErrorKind::NotFound.into()))?;
    let file = File::open("/proc/self/exe").map_err(system("open /proc/self/exe"))?;
    let entries = maps::read(tgid)?;
    let probe = |function: extern "C" fn(), name, role| {
        let address = function as *const () as u64;
        let entry = entries.iter().find(|entry| (entry.start..entry.end).contains(&address))?;
        Some(Probe {
            object: file.as_fd(),
            object_key: (0, 0),
            object_path: "/proc/self/exe",
            function: name,
            file_offset: address - entry.start + entry.file_offset,
            cookie: Cookie(0),
            role,
        })
    };
    let probes: Option<Vec<Probe<'_>>> = [
        probe(place::emulated, "emulated", Role::Entry),
        probe(place::returning, "returning", Role::Entry),
        probe(place::returning, "returning", Role::Return),
        probe(place::stepped, "stepped", Role::Release),
        probe(place::leaving, "leaving", Role::Exit),
    ]
    .into_iter()
    .collect();
    let probes =
        probes.ok_or_else(|| system("find the own code in memory")(std::io::ErrorKind::NotFound.into()))?;
    let functions = [place::emulated, place::returning, place::stepped, place::leaving];
    let before = functions.map(time_ns);
    let mut links = Links::default();
    links.place(&mut programs, Purpose::Floor, own, &probes)?;
    let with = functions.map(time_ns);
    links.detach();
    let [emulated_ns, returning_ns, stepped_ns, exit_ns] = difference(with, before);
    Ok(TrapCosts { emulated_ns, stepped_ns, return_ns: (returning_ns - emulated_ns).max(0.0), exit_ns })
}

fn difference(with: [f64; 4], before: [f64; 4]) -> [f64; 4] {
    let mut result = with;
    for (value, before) in result.iter_mut().zip(before) {
        *value = (*value - before).max(0.0);
    }
    result
}

/// Mean time of a call in the fastest batch, in ns.
fn time_ns(function: extern "C" fn()) -> f64 {
    let times = (0..BATCHES).map(|_| {
        let function = std::hint::black_box(function);
        let start = Instant::now();
        (0..CALLS).for_each(|_| function());
        start.elapsed().as_nanos() as f64 / f64::from(CALLS)
    });
    times.fold(f64::INFINITY, f64::min)
}

/// Next to no maps.
fn smallest(probe_kind: ProbeKind) -> LoadOptions {
    LoadOptions {
        limits: Limits {
            max_live_blocks: 1,
            max_sites: 2,
            max_threads: 1,
            stack_ring_bytes: 4096,
            max_fault_pages: 0,
        },
        tables: TableSizes { page_chunks: 1, row_chunks: 1, escapes: 1, mapping_chunks: 1 },
        min_size_bytes: 0,
        max_size_bytes: u64::MAX,
        bpf_log: None,
        follow: false,
        clone_flags_offset: 0,
        validate: false,
        probe_kind,
        weighing: Weighing::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_have_their_costs() {
        let costs = TrapCosts { emulated_ns: 1.0, stepped_ns: 2.0, return_ns: 3.0, exit_ns: 4.0 };
        assert_eq!(
            [Role::Release, Role::Entry, Role::Return, Role::Exit].map(|role| costs.of(role, false)),
            [1.0, 1.0, 3.0, 4.0]
        );
        assert_eq!(costs.of(Role::Entry, true), 2.0);
    }

    #[test]
    fn places_are_distinct_and_return() {
        let functions = [place::emulated, place::returning, place::stepped, place::leaving];
        let mut addresses = functions.map(|function| function as *const () as u64);
        addresses.sort_unstable();
        assert!(addresses.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(functions.map(time_ns).iter().all(|time_ns| *time_ns > 0.0));
        assert_eq!(difference([5.0, 4.0, 3.0, 1.0], [1.0, 4.0, 2.0, 3.0]), [4.0, 0.0, 1.0, 0.0]);
    }
}
