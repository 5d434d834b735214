//! Which of the kernel's two ways to place uprobes is used: links that hold many, or a perf event for each.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr,
    sync::OnceLock,
};

use aya_obj::generated::{bpf_cmd, bpf_insn, bpf_map_type::BPF_MAP_TYPE_ARRAY};

use super::{
    AttachError, feature, maps,
    uprobe_multi::{self, Code, Places},
};

/// A way to place uprobes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// One link for all places of a file that run the same program (`uprobe_multi`).
    Multi(PidFilter),
    /// A perf event for each place.
    Perf,
}

impl ProbeKind {
    /// Its name, for messages and captures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Multi(_) => "uprobe_multi",
            Self::Perf => "perf",
        }
    }

    /// Whether the program runs also where a process that is not the target, but shares its memory (vfork,
    /// clone(CLONE_VM)), comes to a probe. perf asks for the memory only (`uprobe_perf_filter` in
    /// kernel/trace/trace_uprobe.c).
    pub const fn sees_sharers(self) -> bool {
        matches!(self, Self::Perf | Self::Multi(PidFilter::Memory))
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProbeChoice {
    /// Links that hold many where they work, else perf events.
    #[default]
    Auto,
    /// Links that hold many, or nothing.
    Multi,
    /// Perf events.
    Perf,
}

/// For whom a link that was made for one process runs its program. `uprobe_prog_run` in kernel/trace/bpf_trace.c has
/// changed twice, and both changes went into stable releases and distributions' kernels, so that version numbers do not
/// tell. The breakpoints themselves were always placed in the memory of that process only (`uprobe_multi_link_filter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PidFilter {
    /// For its first thread only: of no use. 6.6 to 6.9, until "bpf: fix multi-uprobe PID filtering logic".
    Thread,
    /// For whoever works on its memory. From there (6.10, and stable releases of 6.6 and 6.9) on.
    Memory,
    /// For its threads. 6.12 and later, "bpf: Fix uprobe multi pid filter check".
    Process,
}

/// Why links that hold many uprobes are not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MultiError {
    /// The kernel does not know them.
    #[error("the kernel has none (they came with 6.6)")]
    Unknown,
    /// It has them, and runs their programs for the first thread only.
    #[error("this kernel runs their programs for the first thread of a process only (fixed in 6.10)")]
    FirstThreadOnly,
    /// It has them, and the trial did not run.
    #[error("a trial on offheap itself did not run its program")]
    Silent,
    /// The trial failed.
    #[error("a trial failed: cannot {operation}: {source}")]
    Trial {
        /// Operation.
        operation: &'static str,
        /// Cause.
        source: io::Error,
    },
}

/// What links that hold many uprobes can do here. Found by a trial on this process, once.
///
/// # Errors
/// [`MultiError`].
pub fn multi() -> Result<PidFilter, &'static MultiError> {
    static FOUND: OnceLock<Result<PidFilter, MultiError>> = OnceLock::new();
    match FOUND.get_or_init(|| try_out().and_then(usable)) {
        Ok(filter) => Ok(*filter),
        Err(error) => Err(error),
    }
}

const fn usable(filter: PidFilter) -> Result<PidFilter, MultiError> {
    match filter {
        PidFilter::Thread => Err(MultiError::FirstThreadOnly),
        PidFilter::Memory | PidFilter::Process => Ok(filter),
    }
}

/// Chooses. `follow`: whether the target's children are recorded too. Breakpoints come along into a child, and stay there
/// while a link of its parent is open, since the program of a link cannot have them removed as perf's uprobes do at the
/// first hit; a child that is recorded needs them anyway, another one would pay for nothing.
///
/// # Errors
/// [`AttachError::NoMulti`] if they are asked for and cannot be used.
pub fn choose(choice: ProbeChoice, follow: bool) -> Result<ProbeKind, AttachError> {
    let kind = match choice {
        ProbeChoice::Perf => ProbeKind::Perf,
        // Kernels from 6.16 on want more rights for perf's.
        ProbeChoice::Auto if !follow && !feature::uprobes_are_refused() => ProbeKind::Perf,
        ProbeChoice::Auto => multi().map_or_else(
            |error| {
                log::info!("no uprobe_multi links: {error}");
                ProbeKind::Perf
            },
            ProbeKind::Multi,
        ),
        ProbeChoice::Multi => {
            ProbeKind::Multi(multi().map_err(|error| AttachError::NoMulti { reason: error.to_string() })?)
        }
    };
    log::info!("probes are {}", kind.name());
    Ok(kind)
}

/// Where the trial's probe goes. The two reads keep it from being merged with another function, or inlined.
#[inline(never)]
extern "C" fn landing(value: u64) -> u64 {
    std::hint::black_box(value ^ 0x0ff_4ea9)
}

/// Attaches a program that counts to [`landing`] and looks who is counted.
fn try_out() -> Result<PidFilter, MultiError> {
    let failed = |operation| move |source| MultiError::Trial { operation, source };
    let counter = Counter::new().map_err(failed("make a map"))?;
    let instructions = counting(counter.map.as_fd());
    let code = Code {
        name: "offheap_trial",
        instructions: &instructions,
        btf: None,
        functions: (&[], 0),
        lines: (&[], 0),
    };
    let program = uprobe_multi::load(&code).map_err(|refusal| match refusal.source.raw_os_error() {
        // `bpf_prog_load_check_attach` and `bpf_check_uarg_tail_zero` of older kernels.
        Some(libc::EINVAL | libc::E2BIG) => MultiError::Unknown,
        _ => failed("load a program")(refusal.source),
    })?;
    let file = File::open("/proc/self/exe").map_err(failed("open /proc/self/exe"))?;
    let offset = offset_of_landing().ok_or(MultiError::Silent)?;
    let places = Places {
        file: file.as_fd(),
        tgid: std::process::id(),
        at_return: false,
        offsets: &[offset],
        cookies: &[0],
    };
    let link =
        uprobe_multi::link(program.as_fd(), &places).map_err(|source| match source.raw_os_error() {
            // Before 6.6 the attach type of a program was not looked at, but the link is refused.
            Some(libc::EINVAL | libc::EOPNOTSUPP) => MultiError::Unknown,
            _ => failed("make a link")(source),
        })?;
    // This thread need not be the first one.
    std::thread::scope(|scope| scope.spawn(|| landing(1)).join()).map_err(|_| MultiError::Silent)?;
    let by_thread = counter.read().map_err(failed("read a map"))?;
    call_in_sharer();
    let by_sharer = counter.read().map_err(failed("read a map"))?;
    landing(2);
    let by_all = counter.read().map_err(failed("read a map"))?;
    // Closing waits for the kernel; nobody need wait with it.
    std::thread::spawn(move || drop((link, program)));
    match (by_thread, by_all) {
        (0, 0) => Err(MultiError::Silent),
        (0, _) => Ok(PidFilter::Thread),
        _ if by_sharer > by_thread => Ok(PidFilter::Memory),
        // Also where no such process can be made: then it is taken for the one that sees less.
        _ => Ok(PidFilter::Process),
    }
}

/// Where [`landing`] begins within the file that is mapped there.
fn offset_of_landing() -> Option<u64> {
    let address = landing as *const () as u64;
    let entries = maps::read(std::process::id()).ok()?;
    let entry = entries.iter().find(|entry| (entry.start..entry.end).contains(&address))?;
    (entry.inode != 0).then(|| address - entry.start + entry.file_offset)
}

/// Calls [`landing`] in a process that shares the memory of this one, as after vfork. This thread goes on when it has ended.
fn call_in_sharer() {
    extern "C" fn child(_: *mut libc::c_void) -> libc::c_int {
        landing(3);
        // SAFETY: always; nothing of the shared process is run down.
        unsafe { libc::_exit(0) }
    }
    let mut stack = vec![0u128; 4096];
    let end = stack.as_mut_ptr_range().end;
    // SAFETY: the stack is the child's only and outlives it, since CLONE_VFORK holds this thread until the child has exited.
    // The child allocates nothing and takes no lock. It sends no signal when it ends, so it is nobody else's business.
    let pid = unsafe { libc::clone(child, end.cast(), libc::CLONE_VM | libc::CLONE_VFORK, ptr::null_mut()) };
    if pid > 0 {
        // SAFETY: our child, which nobody else waits for; the status is not asked for.
        unsafe { libc::waitpid(pid, ptr::null_mut(), libc::__WALL) };
    }
}

/// A map of one number that the trial's program counts in.
struct Counter {
    map: OwnedFd,
}

impl Counter {
    fn new() -> io::Result<Self> {
        let mut attr = uprobe_multi::empty();
        // SAFETY: all fields of the union are integers, and it is zeroed.
        let create = unsafe { &mut attr.__bindgen_anon_1 };
        create.map_type = BPF_MAP_TYPE_ARRAY as u32;
        (create.key_size, create.value_size, create.max_entries) = (4, 8, 1);
        // SAFETY: nothing is pointed to; it makes a descriptor.
        let map = unsafe { uprobe_multi::make(bpf_cmd::BPF_MAP_CREATE, &mut attr) }?;
        Ok(Self { map })
    }

    fn read(&self) -> io::Result<u64> {
        let (key, mut value) = (0u32, 0u64);
        let mut attr = uprobe_multi::empty();
        // SAFETY: all fields of the union are integers, and it is zeroed.
        let element = unsafe { &mut attr.__bindgen_anon_2 };
        element.map_fd = uprobe_multi::number(self.map.as_fd());
        element.key = ptr::from_ref(&key) as u64;
        element.__bindgen_anon_1.value = ptr::from_mut(&mut value) as u64;
        // SAFETY: key and value are alive, and of the sizes of the map.
        unsafe { uprobe_multi::call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) }?;
        Ok(value)
    }
}

/// The program `map[0] += 1; return 0`. The codes are those of include/uapi/linux/bpf.h.
fn counting(map: BorrowedFd<'_>) -> [bpf_insn; 6] {
    let instruction = |code, (to, from), imm| bpf_insn {
        code,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(to, from),
        off: 0,
        imm,
    };
    [
        instruction(0x18, (1, 2), map.as_raw_fd()), // r1 = address of the value of the map (BPF_PSEUDO_MAP_VALUE)
        instruction(0, (0, 0), 0),                  // (second half: offset 0)
        instruction(0xb7, (2, 0), 1),               // r2 = 1
        instruction(0xdb, (1, 2), 0),               // lock *(u64 *)r1 += r2
        instruction(0xb7, (0, 0), 0),               // r0 = 0
        instruction(0x95, (0, 0), 0),               // exit
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_by_thread_is_of_no_use() {
        assert!(matches!(usable(PidFilter::Thread), Err(MultiError::FirstThreadOnly)));
        for filter in [PidFilter::Memory, PidFilter::Process] {
            assert_eq!(usable(filter).unwrap(), filter);
        }
        assert!(ProbeKind::Perf.sees_sharers() && ProbeKind::Multi(PidFilter::Memory).sees_sharers());
        assert!(!ProbeKind::Multi(PidFilter::Process).sees_sharers());
    }

    #[test]
    fn perf_is_taken_if_it_is_asked_for_or_children_are_left_alone() {
        assert_eq!(choose(ProbeChoice::Perf, true).unwrap(), ProbeKind::Perf);
        assert_eq!(choose(ProbeChoice::Auto, false).unwrap(), ProbeKind::Perf);
    }

    /// The trial probes this very program; where it cannot, it says so and leaves perf.
    #[test]
    fn the_trial_comes_to_a_result() {
        let expected = multi().map_or(ProbeKind::Perf, ProbeKind::Multi);
        assert_eq!(choose(ProbeChoice::Auto, true).unwrap(), expected);
        assert_eq!(choose(ProbeChoice::Multi, true).is_ok(), multi().is_ok());
        assert_eq!(landing(0), 0x0ff_4ea9, "it still does what it did");
    }

    #[test]
    fn the_landing_is_in_this_program() {
        let offset = offset_of_landing().unwrap();
        let length = std::fs::metadata("/proc/self/exe").unwrap().len();
        assert!(offset > 0 && offset < length);
    }
}
