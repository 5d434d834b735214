//! What a recording takes, beside the time of requests.

use std::collections::HashSet;
use std::fs;

use anyhow::{Context, Result};

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// Nanoseconds of one tick in `/proc/PID/stat` (USER_HZ, 100 on every machine that Linux runs on).
const TICK_NS: u64 = 10_000_000;

/// What one recording of a server took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Footprint {
    /// From its start to its `attached`.
    pub attach_ms: f64,
    /// From its end being asked for to its end.
    pub detach_ms: f64,
    /// Of the tracer itself, while it was there.
    pub peak_rss_bytes: Option<u64>,
    /// Of its BPF maps.
    pub maps_bytes: Option<u64>,
    /// Time in its BPF programs over the CPU time of the server, without traps. Unlike throughput, the host hardly disturbs it.
    pub programs_share: Option<f64>,
    /// Of the file.
    pub capture_bytes: Option<u64>,
    /// How long it recorded.
    pub seconds: f64,
}

/// Sum of a field over the files that a process has open, what has the same id once; `None` where no file has it.
fn fields(pid: u32, id: &str, name: &str) -> Option<u64> {
    let mut seen = HashSet::new();
    let mut sum = None;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        if let (Some(id), Some(value)) = (field(id), field(name))
            && seen.insert(id)
        {
            sum = Some(sum.unwrap_or(0) + value);
        }
    }
    sum
}

/// Peak resident bytes of a process, and the bytes of its BPF maps as the kernel counts them; `None` of one that has ended.
pub fn memory(pid: u32) -> (Option<u64>, Option<u64>) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse::<u64>().ok());
    (kib.map(|kib| kib * 1024), fields(pid, "map_id:", "memlock:"))
}

/// CPU time of a process, in ns: fields 14 and 15 of `/proc/PID/stat`, proc_pid_stat(5).
fn cpu_ns(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks: Vec<u64> =
        rest.split_whitespace().skip(11).take(2).filter_map(|text| text.parse().ok()).collect();
    (ticks.len() == 2).then(|| ticks.iter().sum::<u64>() * TICK_NS)
}

/// Time that the programs of a tracer take, as a share of the CPU time of its target, while `load` runs. `None` of a tracer that
/// has ended: then there are none.
pub fn programs_share(tracer: u32, target: u32, load: impl FnOnce() -> Result<()>) -> Result<Option<f64>> {
    let before = fs::read_to_string(STATISTICS).context("the kernel has no statistics of BPF programs")?;
    fs::write(STATISTICS, "1").context("cannot switch on statistics of BPF programs")?;
    let read = || Some((fields(tracer, "prog_id:", "run_time_ns:")?, cpu_ns(target)?));
    let start = read();
    let loaded = load();
    let end = read();
    fs::write(STATISTICS, before.trim()).context("cannot restore statistics of BPF programs")?;
    loaded?;
    Ok(start.zip(end).and_then(|((start_ns, start_cpu_ns), (end_ns, end_cpu_ns))| {
        let cpu_ns = end_cpu_ns.checked_sub(start_cpu_ns).filter(|ns| *ns > 0)?;
        Some(end_ns.checked_sub(start_ns)? as f64 / cpu_ns as f64)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cpu_time_is_read() {
        assert!(cpu_ns(std::process::id()).is_some());
        assert_eq!(cpu_ns(u32::MAX), None);
        assert_eq!(memory(u32::MAX), (None, None));
    }
}
