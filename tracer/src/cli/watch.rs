//! `offheap watch`: what can be typed, and what it means.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args};

use super::plan::{Scope, TargetPlan, WatchFormat, WatchPlan};
use super::quantity::{parse_count_in, parse_duration_in};

const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);

/// Watch the memory of processes, without probes, and say whether it grows.
#[derive(Debug, Args)]
#[command(
    override_usage = "offheap watch [OPTIONS] PID...\n       \
                      offheap watch [OPTIONS] --cgroup PATH\n       \
                      offheap watch [OPTIONS] --container ID",
    after_help = "Reads /proc alone: no probes, no privileges on one's own processes. Without --duration it ends with\n\
                  Ctrl-C, or with the last process."
)]
pub(super) struct WatchArgs {
    /// Processes to watch
    #[arg(value_name = "PID", help_heading = "Target")]
    pub targets: Vec<String>,

    /// The same as the argument PID
    #[arg(short = 'p', long = "pid", value_name = "PID", help_heading = "Target", action = ArgAction::Append)]
    pub pids: Vec<String>,

    /// All processes of a control group, as `/proc/PID/cgroup` names it, also those that join it
    #[arg(long, value_name = "PATH", help_heading = "Target")]
    pub cgroup: Option<String>,

    /// All processes of a container: docker, containerd, podman, CRI-O; its id or the beginning of it
    #[arg(long, value_name = "ID", help_heading = "Target", conflicts_with = "cgroup")]
    pub container: Option<String>,

    /// How long [default: until Ctrl-C, or until the processes have ended]
    #[arg(long, help_heading = "What to watch", value_parser = |text: &str| parse_duration_in(text, Duration::from_secs(1)..=LONGEST))]
    pub duration: Option<Duration>,

    /// Time between two samples [default: 1s, longer after the first hour]
    #[arg(long, help_heading = "What to watch", value_parser = |text: &str| parse_duration_in(text, Duration::from_millis(50)..=Duration::from_secs(3600)))]
    pub interval: Option<Duration>,

    /// Processes that can be watched at one time
    #[arg(long, value_name = "N", default_value = "256", help_heading = "What to watch", value_parser = |text: &str| parse_count_in(text, 1..=1000))]
    pub max_processes: u32,

    /// Text for a person, JSON for a program, CSV with every sample
    #[arg(short, long, default_value = "text", help_heading = "Output", value_parser = PossibleValuesParser::new(WatchFormat::NAMES).try_map(|name| WatchFormat::from_name(&name).ok_or("not one of the possible values")))]
    pub format: WatchFormat,

    /// Write a capture that `offheap report` reads
    #[arg(short, long, visible_alias = "out", value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,

    /// Overwrite an existing file
    #[arg(long, requires = "output", help_heading = "Output")]
    pub force: bool,
}

/// Applies defaults and checks rules.
pub(super) fn resolve(args: WatchArgs) -> Result<WatchPlan, String> {
    let pids: Vec<&str> = args.targets.iter().chain(&args.pids).map(String::as_str).collect();
    let scope = match (&args.cgroup, &args.container) {
        (Some(path), _) => Some(Scope::cgroup(path)?),
        (None, Some(id)) => Some(Scope::container(id)?),
        (None, None) => None,
    };
    let target = match (pids.is_empty(), scope) {
        (true, None) => {
            return Err("nothing to watch; give a process id, as in `offheap watch 1234`".into());
        }
        (true, Some(scope)) => TargetPlan::Scope(scope),
        (false, None) => super::resolve::processes(&args.targets, &pids)?,
        (false, Some(scope)) => {
            return Err(format!("the {} and a process id; watch one of them at a time", scope.describe()));
        }
    };
    let interval = args.interval.unwrap_or(DEFAULT_INTERVAL);
    if args.duration.is_some_and(|duration| duration < interval) {
        return Err(
            "`--interval` is longer than `--duration`, so that there would be no series; shorten it".into()
        );
    }
    Ok(WatchPlan {
        target,
        duration: args.duration,
        interval,
        adapts: args.interval.is_none(),
        max_processes: args.max_processes,
        format: args.format,
        output: args.output,
        force: args.force,
    })
}
