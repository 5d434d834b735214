//! What ends a process's growth: the smallest memory limit of its control groups, or the machine's memory.

use std::fs::File;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use crate::model::{MemoryLimit, ProcessId};

/// Longest file that is believed; `mountinfo` of a host with many containers is large.
const MAX_BYTES: u64 = 4 << 20;
/// Deepest group that is looked at.
const MAX_DEPTH: usize = 64;

/// Reads a file as text; a test reads from a table.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> Option<String>;

/// Reads a file of the system.
pub fn read_file(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A limit, and what counts against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Who sets it.
    pub source: String,
    /// Bytes.
    pub limit_bytes: u64,
    /// In use now: of a group its usage without the page cache that the kernel would give back first
    /// (`inactive_file`), as Kubernetes counts; of the machine what is not available.
    pub used_bytes: Option<u64>,
}

impl Limit {
    /// As it stands in a capture.
    pub fn for_process(self, process: ProcessId, elapsed_ns: u64) -> MemoryLimit {
        let Self { source, limit_bytes, used_bytes } = self;
        MemoryLimit { process, elapsed_ns, source, limit_bytes, used_bytes }
    }
}

/// The limit of a process: the smallest of those of its groups that can be seen from here, and of the machine's memory.
/// `None` where not even that can be read.
pub fn of_process(tgid: u32, read: ReadFile<'_>) -> Option<Limit> {
    let groups = read(Path::new(&format!("/proc/{tgid}/cgroup"))).unwrap_or_default();
    let mounts = read(Path::new("/proc/self/mountinfo")).unwrap_or_default();
    let mut limits: Vec<Limit> = groups.lines().filter_map(|line| of_group(line, &mounts, read)).collect();
    limits.extend(read(Path::new("/proc/meminfo")).and_then(|text| of_machine(&text)));
    limits.into_iter().min_by_key(|limit| limit.limit_bytes)
}

/// MemTotal, and MemTotal without MemAvailable.
fn of_machine(meminfo: &str) -> Option<Limit> {
    let find = |name: &str| {
        let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let limit_bytes = find("MemTotal").filter(|bytes| *bytes > 0)?;
    let used_bytes = find("MemAvailable").map(|available| limit_bytes.saturating_sub(available));
    Some(Limit { source: "physical memory".to_owned(), limit_bytes, used_bytes })
}

/// Names of the files of one version of the memory controller.
struct Files {
    version: &'static str,
    limit: &'static str,
    usage: &'static str,
    inactive: &'static str,
}

const V1: Files = Files {
    version: "v1",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    inactive: "total_inactive_file",
};
const V2: Files =
    Files { version: "v2", limit: "memory.max", usage: "memory.current", inactive: "inactive_file" };

/// From a line of `/proc/PID/cgroup`: `0::/a/b`, or `4:memory:/a/b`.
fn of_group(line: &str, mounts: &str, read: ReadFile<'_>) -> Option<Limit> {
    let mut parts = line.splitn(3, ':');
    let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let files = match (number, controllers) {
        ("0", "") => &V2,
        _ if controllers.split(',').any(|name| name == "memory") => &V1,
        _ => return None,
    };
    // What cannot be named from here (`/../..`) belongs to another namespace.
    let path = Path::new(path.strip_suffix(" (deleted)").unwrap_or(path));
    let is_plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !is_plain {
        return None;
    }
    mounts
        .lines()
        .filter_map(|line| Mount::parse(line, files))
        .find_map(|mount| mount.limit(path, files, read))
}

/// Where a hierarchy is mounted.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// A line of `mountinfo` (proc(5)): id, parent, device, root, mount point, options, fields up to `-`, type, source,
    /// options of the file system.
    fn parse(line: &str, files: &Files) -> Option<Self> {
        let (before, behind) = line.split_once(" - ")?;
        let mut behind = behind.split(' ');
        let (kind, _, options) = (behind.next()?, behind.next()?, behind.next()?);
        let fits = match files.version {
            "v2" => kind == "cgroup2",
            _ => kind == "cgroup" && options.split(',').any(|option| option == "memory"),
        };
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        fits.then(|| Self { root: unescape(root).into(), point: unescape(point).into() })
    }

    /// The smallest limit of a group and those above it, as far as the mount shows them.
    fn limit(&self, path: &Path, files: &Files, read: ReadFile<'_>) -> Option<Limit> {
        let inner = path.strip_prefix(&self.root).ok()?;
        let mut smallest: Option<Limit> = None;
        for group in inner.ancestors().take(MAX_DEPTH) {
            let folder = self.point.join(group);
            let Some(limit_bytes) = read(&folder.join(files.limit)).and_then(|text| parse_limit(&text))
            else {
                continue;
            };
            if smallest.as_ref().is_none_or(|limit| limit_bytes < limit.limit_bytes) {
                let name = self.root.join(group);
                let source = format!("cgroup {} {} of {}", files.version, files.limit, name.display());
                smallest = Some(Limit { source, limit_bytes, used_bytes: used(&folder, files, read) });
            }
        }
        // v1 also tells the smallest limit of groups above the mount.
        if files.version == "v1"
            && let Some(stat) = read(&self.point.join(inner).join("memory.stat"))
            && let Some(above) =
                stat_field(&stat, "hierarchical_memory_limit").filter(|bytes| is_limit(*bytes))
            && smallest.as_ref().is_none_or(|limit| above < limit.limit_bytes)
        {
            let source = format!("cgroup v1 limit above {}", path.display());
            smallest = Some(Limit { source, limit_bytes: above, used_bytes: None });
        }
        smallest
    }
}

fn used(folder: &Path, files: &Files, read: ReadFile<'_>) -> Option<u64> {
    let usage: u64 = read(&folder.join(files.usage))?.trim().parse().ok()?;
    let stat = read(&folder.join("memory.stat")).unwrap_or_default();
    Some(usage.saturating_sub(stat_field(&stat, files.inactive).unwrap_or(0)))
}

fn stat_field(stat: &str, name: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `max`, or a number; v1 has no word for none and writes the largest number of pages.
fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| is_limit(*bytes))
}

fn is_limit(bytes: u64) -> bool {
    bytes > 0 && bytes < 1 << 60
}

/// `mountinfo` writes blanks and the like as `\040`.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let code = behind.get(..3).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            digits.bytes().all(|digit| digit.is_ascii_digit()).then_some(())?;
            u8::from_str_radix(digits, 8).ok()
        });
        match code {
            Some(code) if *first == b'\\' => {
                bytes.push(code);
                rest = behind.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MEMINFO: (&str, &str) =
        ("/proc/meminfo", "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 400 kB\n");

    fn limit(files: &[(&str, &str)]) -> Option<Limit> {
        let read = |path: &Path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned())
        };
        of_process(7, &read)
    }

    #[test]
    fn the_smallest_of_all_ancestors_in_v2() {
        let found = limit(&[
            MEMINFO,
            ("/proc/7/cgroup", "0::/a/b/c\n"),
            ("/proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"),
            ("/sys/fs/cgroup/a/memory.max", "409600\n"),
            ("/sys/fs/cgroup/a/memory.current", "300000\n"),
            ("/sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 100000\nactive_file 5\n"),
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/b/c/memory.max", "500000\n"),
        ]);
        let source = "cgroup v2 memory.max of /a".to_owned();
        assert_eq!(found, Some(Limit { source, limit_bytes: 409_600, used_bytes: Some(200_000) }));
    }

    #[test]
    fn v1_in_a_container_that_sees_only_its_own_group() {
        let mounts = "1 2 0:30 /docker/x\\040y /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
                      1 2 0:31 /docker/x\\040y /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n";
        let base = [
            MEMINFO,
            ("/proc/7/cgroup", "5:cpu:/docker/x y\n4:memory:/docker/x y/job\n0::/\n"),
            ("/proc/self/mountinfo", mounts),
            ("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "204800\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "104800\n"),
        ];
        let found = limit(&base).unwrap();
        assert_eq!((found.limit_bytes, found.used_bytes), (204_800, Some(104_800)));
        assert_eq!(found.source, "cgroup v1 memory.limit_in_bytes of /docker/x y/");
        let stat = ("/sys/fs/cgroup/memory/job/memory.stat", "cache 1\nhierarchical_memory_limit 102400\n");
        let found = limit(&[&base[..], &[stat]].concat()).unwrap();
        assert_eq!((found.limit_bytes, found.used_bytes), (102_400, None));
    }

    #[test]
    fn without_a_limit_the_machine_is_one() {
        let machine =
            Limit { source: "physical memory".to_owned(), limit_bytes: 1_024_000, used_bytes: Some(614_400) };
        assert_eq!(limit(&[MEMINFO]), Some(machine.clone()));
        let larger = [
            MEMINFO,
            ("/proc/7/cgroup", "0::/a\n"),
            ("/proc/self/mountinfo", "30 23 0:26 / /cg rw - cgroup2 cgroup2 rw\n"),
            ("/cg/a/memory.max", "99999999999\n"),
        ];
        assert_eq!(limit(&larger), Some(machine.clone()), "a limit above the machine's memory is none");
        assert_eq!(limit(&[MEMINFO, ("/proc/7/cgroup", "0::/../../x\n")]), Some(machine));
        assert_eq!(limit(&[]), None);
    }

    #[test]
    fn this_process_has_one() {
        let found = of_process(std::process::id(), &read_file).unwrap();
        assert!(found.limit_bytes > 1 << 20, "{found:?}");
    }

    proptest! {
        #[test]
        fn hostile_texts_are_no_panic(cgroup in ".{0,80}", mounts in ".{0,120}", text in ".{0,40}") {
            let mounts = format!("1 2 0:26 / /cg rw - cgroup2 c rw\n{mounts}");
            let read = |path: &Path| Some(match path.to_str()? {
                "/proc/7/cgroup" => format!("0::{cgroup}\n{cgroup}"),
                "/proc/self/mountinfo" => mounts.clone(),
                _ => text.clone(),
            });
            let _ = of_process(7, &read);
            let _ = unescape(&mounts);
        }
    }
}
