//! What this kernel and these privileges allow: available, unsupported and not permitted are three things.

use std::{
    fs,
    os::fd::{FromRawFd, OwnedFd},
    path::Path,
};

use perf_event_open_sys::{
    bindings::{PERF_FLAG_FD_CLOEXEC, perf_event_attr},
    perf_event_open,
};

use super::{
    AttachError, preflight,
    probe_kind::{self, PidFilter},
    tracepoint::{Tracefs, TracepointError},
};
use crate::model::Machine;

/// The number of the uprobe PMU.
const UPROBE_TYPE: &str = "/sys/bus/event_source/devices/uprobe/type";

/// A state of a feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Feature {
    /// It is there; the text says more.
    Available(String),
    /// The kernel does not have it; the text says from when on it would.
    Unsupported(String),
    /// We may not use it; the text says what is needed.
    NotPermitted(String),
}

/// A kernel release: major, minor, patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release(pub u32, pub u32, pub u32);

impl Release {
    /// The first kernel with attach cookies for perf uprobes.
    #[cfg(target_arch = "x86_64")]
    pub const OLDEST: Self = Self(5, 15, 0);
    /// What is needed, and why.
    #[cfg(target_arch = "x86_64")]
    pub const NEEDED: &str = "5.15 or later (attach cookies of perf uprobes)";
    /// The oldest kernel that it is to be tried on. (Before 5.18 the JIT for aarch64 has no compare-and-exchange.)
    #[cfg(target_arch = "aarch64")]
    pub const OLDEST: Self = Self(6, 12, 0);
    /// What is needed, and why.
    #[cfg(target_arch = "aarch64")]
    pub const NEEDED: &str = "6.12 or later on aarch64 (older ones have not been tried)";

    /// Reads `6.1.0-18-amd64`; what is missing is 0.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers =
            text.split(|character: char| !character.is_ascii_digit()).map(|part| part.parse().ok());
        Some(Self(numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)))
    }
}

/// `uname -r`.
pub fn release_text() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Refuses kernels that are too old, before anything is tried on them.
///
/// # Errors
/// [`AttachError::OldKernel`].
pub fn require_kernel(release: &str) -> Result<(), AttachError> {
    match Release::parse(release) {
        Some(parsed) if parsed < Release::OLDEST => {
            Err(AttachError::OldKernel { release: release.to_owned() })
        }
        _ => Ok(()),
    }
}

/// Refuses what cannot work: no uprobes, no BTF, no privileges.
///
/// # Errors
/// [`AttachError::OldKernel`], [`AttachError::NotPermitted`], [`AttachError::Unsupported`].
pub fn require_tracing() -> Result<(), AttachError> {
    require_kernel(&release_text())?;
    require_page_size(rustix::param::page_size())?;
    let missing = missing_capabilities();
    if !missing.is_empty() {
        return Err(AttachError::NotPermitted {
            operation: "load BPF programs and read other processes".to_owned(),
            capability: "CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE",
        });
    }
    if is_in_user_namespace() {
        return Err(AttachError::NotPermitted {
            operation: "load BPF programs from within a user namespace".to_owned(),
            capability: "the capabilities of the initial one (a container that is not rootless)",
        });
    }
    if is_locked_down() {
        return Err(AttachError::Unsupported {
            what: "perf events while it is locked down for confidentiality",
            hint: "boot without `lockdown=confidentiality`",
        });
    }
    if !Path::new(UPROBE_TYPE).exists() {
        return Err(AttachError::Unsupported {
            what: "uprobes for perf",
            hint: "it was built without CONFIG_UPROBE_EVENTS, or /sys is not mounted",
        });
    }
    if uprobes_are_refused() && probe_kind::multi().is_err() {
        return Err(AttachError::NotPermitted {
            operation: "place probes".to_owned(),
            capability: "CAP_SYS_ADMIN, which this kernel wants for perf uprobes (as do 6.16 and later), and its links for \
                         many uprobes cannot be used",
        });
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Err(AttachError::Unsupported {
            what: "BTF",
            hint: "it was built without CONFIG_DEBUG_INFO_BTF, or /sys is not mounted",
        });
    }
    Ok(())
}

/// Refuses kernels with larger pages, which aarch64 may have: mappings, page tables and faults are counted in pages of 4 KiB.
fn require_page_size(page_bytes: usize) -> Result<(), AttachError> {
    if page_bytes == 4096 {
        return Ok(());
    }
    Err(AttachError::Unsupported {
        what: "pages of 4 KiB",
        hint: "offheap counts in those; boot a kernel that has them",
    })
}

/// Bits of the effective capabilities that matter, include/uapi/linux/capability.h.
const CAPABILITIES: [(u32, &str); 3] = [(19, "CAP_SYS_PTRACE"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];

/// Those that this process lacks. CAP_SYS_ADMIN stands for CAP_PERFMON and CAP_BPF.
pub fn missing_capabilities() -> Vec<&'static str> {
    let effective =
        fs::read_to_string("/proc/self/status").ok().and_then(|status| effective_capabilities(&status));
    let Some(effective) = effective else { return Vec::new() };
    let has = |bit: u32| effective & (1 << bit) != 0;
    let is_admin = has(21);
    CAPABILITIES
        .into_iter()
        .filter(|(bit, _)| !(has(*bit) || (*bit >= 38 && is_admin)))
        .map(|(_, name)| name)
        .collect()
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Whether capabilities count for a user namespace only: BPF and perf ask for those of the initial one.
fn is_in_user_namespace() -> bool {
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !maps_all_users(&map))
}

/// The initial namespace maps every user to itself.
fn maps_all_users(uid_map: &str) -> bool {
    uid_map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether the kernel refuses perf events to everybody. Without securityfs that is not known; opening the
/// first event tells then.
fn is_locked_down() -> bool {
    fs::read_to_string("/sys/kernel/security/lockdown").is_ok_and(|state| state.contains("[confidentiality]"))
}

/// Whether we may not open perf uprobes. Up to 6.15 CAP_PERFMON is enough, but stable releases of older
/// kernels have been changed too, so the kernel is asked: it checks the right before it looks at the path,
/// and a directory is never probed.
pub(super) fn uprobes_are_refused() -> bool {
    let kind = fs::read_to_string(UPROBE_TYPE).ok().and_then(|kind| kind.trim().parse().ok());
    let Some(kind) = kind else { return false };
    let mut event = perf_event_attr {
        type_: kind,
        size: u32::try_from(size_of::<perf_event_attr>()).unwrap_or(0),
        ..Default::default()
    };
    event.__bindgen_anon_3.config1 = c"/".as_ptr() as u64;
    // SAFETY: `event` and the path it points to outlive the call.
    let opened = unsafe { perf_event_open(&raw mut event, 0, -1, -1, PERF_FLAG_FD_CLOEXEC.into()) };
    if opened >= 0 {
        // SAFETY: the kernel has just given us this descriptor, nobody else knows it.
        drop(unsafe { OwnedFd::from_raw_fd(opened) });
        return false;
    }
    matches!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EACCES | libc::EPERM))
}

/// Everything `doctor` tells about this machine, by name.
pub fn survey() -> Vec<(&'static str, Feature)> {
    let release = release_text();
    let kernel = match require_kernel(&release) {
        Ok(()) => Feature::Available(release),
        Err(error) => Feature::Unsupported(error.to_string()),
    };
    let faults = preflight::kernel_faults(&release_text());
    let faults = if faults.is_empty() { "none known of this release".to_owned() } else { faults.join("; ") };
    let missing = missing_capabilities();
    let privileges = if is_in_user_namespace() {
        Feature::NotPermitted("inside a user namespace: run in the initial one".to_owned())
    } else if missing.is_empty() {
        Feature::Available("CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE".to_owned())
    } else {
        Feature::NotPermitted(format!("{} missing: run as root", missing.join(", ")))
    };
    let file = |path: &str, present: &str, absent: &str| {
        if Path::new(path).exists() {
            Feature::Available(present.to_owned())
        } else {
            Feature::Unsupported(absent.to_owned())
        }
    };
    let sysctl = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
    let jit = match sysctl("/proc/sys/net/core/bpf_jit_enable") {
        Ok(value) if value == "0" => {
            Feature::Available("off: programs are interpreted, several times slower".to_owned())
        }
        Ok(_) => Feature::Available("on".to_owned()),
        Err(error) => Feature::NotPermitted(format!("cannot be read: {error}")),
    };
    let machine = match (Machine::HOST, require_page_size(rustix::param::page_size())) {
        (_, Err(error)) => Feature::Unsupported(error.to_string()),
        (machine, Ok(())) => Feature::Available(match machine.reservation() {
            None => machine.name().to_owned(),
            Some(reservation) => format!(
                "{}, {reservation}; programs without a language runtime; no page faults, no division of resident memory",
                machine.name()
            ),
        }),
    };
    vec![
        ("machine", machine),
        ("kernel", kernel),
        ("faults", Feature::Available(faults)),
        ("privileges", privileges),
        (
            "lockdown",
            if is_locked_down() {
                Feature::Unsupported("for confidentiality: no perf events".to_owned())
            } else {
                Feature::Available("not for confidentiality".to_owned())
            },
        ),
        (
            "uprobes",
            if uprobes_are_refused() && probe_kind::multi().is_ok() {
                Feature::Available("by links for many; perf's want CAP_SYS_ADMIN here".to_owned())
            } else if uprobes_are_refused() {
                Feature::NotPermitted("CAP_SYS_ADMIN missing, which this kernel wants for them".to_owned())
            } else {
                file(UPROBE_TYPE, "perf uprobes", "CONFIG_UPROBE_EVENTS is missing")
            },
        ),
        ("probe kind", probe_kind()),
        ("BTF", file("/sys/kernel/btf/vmlinux", "of the kernel", "CONFIG_DEBUG_INFO_BTF is missing")),
        ("tracepoints", tracepoints()),
        ("BPF JIT", jit),
    ]
}

/// How probes would be placed.
fn probe_kind() -> Feature {
    let filter = match probe_kind::multi() {
        Ok(filter) => filter,
        Err(error) => return Feature::Unsupported(format!("perf, an event for each place: {error}")),
    };
    Feature::Available(
        match filter {
            PidFilter::Process => {
                "uprobe_multi, a link for many places; calls in vfork children are counted as not seen"
            }
            PidFilter::Memory | PidFilter::Thread => "uprobe_multi, a link for many places",
        }
        .to_owned(),
    )
}

/// Whether children, mappings and page faults can be followed. Without them, allocator calls still can.
fn tracepoints() -> Feature {
    let found = Tracefs::open().and_then(|tracefs| {
        tracefs.id("task/task_newtask")?;
        tracefs.id("syscalls/sys_enter_munmap")?;
        match Machine::HOST {
            Machine::X86_64 => {
                tracefs.id("exceptions/page_fault_user").map(|_| "children, mappings and page faults")
            }
            // It has no such tracepoint.
            Machine::Aarch64 => Ok("children and mappings"),
        }
    });
    match found {
        Ok(what) => Feature::Available(format!("{what} can be recorded")),
        Err(error @ TracepointError::NoTracepoint { .. }) => Feature::Unsupported(error.to_string()),
        Err(error) => Feature::NotPermitted(error.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(Release::parse("6.1.0-18-amd64"), Some(Release(6, 1, 0)));
        assert_eq!(Release::parse("5.10.262+x"), Some(Release(5, 10, 262)));
        assert_eq!(Release::parse("7.2-rc1"), Some(Release(7, 2, 0)), "rc 1 is no patch level");
        assert_eq!(Release::parse("nonsense"), None);
        assert!(matches!(require_kernel("5.10.0-8-amd64"), Err(AttachError::OldKernel { .. })));
        assert!(require_kernel("5.15.0").is_ok() && require_kernel("6.1.0").is_ok());
    }

    #[test]
    fn other_page_sizes_are_refused() {
        assert!(require_page_size(4096).is_ok());
        assert!(matches!(require_page_size(65_536), Err(AttachError::Unsupported { .. })));
    }

    #[test]
    fn the_initial_user_namespace_is_known_by_its_map() {
        assert!(maps_all_users("         0          0 4294967295\n"));
        assert!(!maps_all_users("         0       1000          1\n"));
        assert!(!maps_all_users("0 100000 65536\n65536 0 1\n"));
        assert!(!maps_all_users(""));
    }

    #[test]
    fn root_may_place_uprobes() {
        if missing_capabilities().is_empty() && !is_in_user_namespace() && Path::new(UPROBE_TYPE).exists() {
            assert!(!uprobes_are_refused());
        }
    }

    /// A thread has capabilities of its own: one gives them away, and is refused.
    #[test]
    fn without_capabilities_uprobes_are_refused() {
        if !Path::new(UPROBE_TYPE).exists() {
            eprintln!("skipped: this kernel has no perf uprobes");
            return;
        }
        let is_refused = std::thread::spawn(|| {
            let none = rustix::thread::CapabilitySets {
                effective: rustix::thread::CapabilitySet::empty(),
                permitted: rustix::thread::CapabilitySet::empty(),
                inheritable: rustix::thread::CapabilitySet::empty(),
            };
            rustix::thread::set_capabilities(None, none).unwrap();
            uprobes_are_refused()
        });
        assert!(is_refused.join().unwrap());
    }

    #[test]
    fn capabilities_are_read_from_status() {
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }
}
