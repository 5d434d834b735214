//! From typed words to plans and messages.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use super::plan::*;
use super::*;

const PIPE: Environment = Environment {
    no_color: false,
    stdout_is_terminal: false,
    stderr_is_terminal: false,
    terminal_width: None,
};
const TERMINAL: Environment = Environment {
    no_color: false,
    stdout_is_terminal: true,
    stderr_is_terminal: true,
    terminal_width: Some(132),
};

fn parse_in(line: &str, environment: &Environment) -> Result<Invocation, CliError> {
    parse(["offheap"].into_iter().chain(line.split_whitespace()).map(OsString::from), environment)
}

fn action(line: &str) -> Action {
    parse_in(line, &PIPE).unwrap_or_else(|error| panic!("{line}: {error}")).action
}

fn record_plan(line: &str) -> RecordPlan {
    match action(line) {
        Action::Record(plan) => plan,
        other => panic!("{line}: {other:?}"),
    }
}

fn pid(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

/// The message, which has to be one line.
fn complaint(line: &str) -> String {
    match parse_in(line, &PIPE) {
        Err(CliError::Usage(text)) => {
            assert!(!text.contains('\n') && !text.is_empty(), "{line}: {text:?}");
            text
        }
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn the_grammar_is_consistent() {
    command().debug_assert();
}

#[test]
fn a_letter_has_one_meaning_in_every_command() {
    let mut meanings = std::collections::HashMap::new();
    let commands: Vec<_> = std::iter::once(command()).chain(command().get_subcommands().cloned()).collect();
    for command in &commands {
        for argument in command.get_arguments() {
            if let Some(letter) = argument.get_short() {
                let meaning = meanings.entry(letter).or_insert_with(|| argument.get_long());
                assert_eq!(*meaning, argument.get_long(), "-{letter} of {}", command.get_name());
            }
        }
    }
    assert!(meanings.len() >= 5);
}

#[test]
fn a_process_id_alone_records_for_thirty_seconds_and_reports() {
    for line in ["1234", "-p 1234", "--pid 1234", "--pid=1234", "-p1234", "-v 1234", "1234 -v"] {
        let plan = record_plan(line);
        assert_eq!(plan.target, TargetPlan::Processes(vec![pid(1234)]), "{line}");
        assert_eq!((plan.duration, plan.then_report), (Some(Duration::from_secs(30)), true), "{line}");
    }
}

fn doctor(tgid: Option<NonZeroU32>, calibrates: bool) -> Action {
    Action::Doctor { tgid, selection: AllocatorSelection::default(), calibrates }
}

#[test]
fn a_recording_has_defaults() {
    let expected = RecordPlan {
        target: TargetPlan::Processes(vec![pid(7)]),
        duration: Some(Duration::from_secs(30)),
        interval: Duration::from_secs(1),
        output: None,
        force: false,
        min_size_bytes: 0,
        max_size_bytes: u64::MAX,
        limits: Limits::DEFAULT,
        lenses: vec![LensKey::Malloc, LensKey::Mmap],
        follow: true,
        max_processes: 256,
        selection: AllocatorSelection::default(),
        bpf_log: None,
        probe_kind: ProbeKindKey::Auto,
        sample_bytes: None,
        max_overhead: None,
        then_report: false,
    };
    assert_eq!(record_plan("record 7"), expected);
    assert_eq!(record_plan("record -p 7"), expected);
}

#[test]
fn a_recording_takes_every_option() {
    let plan = record_plan(
        "record --duration 5m --interval 500ms -o out.offheap --force --min-size 64B --max-size 1MiB \
         --max-live-blocks 5000 --max-sites 128 --max-threads 64 --stack-ring 1MiB --lens malloc --sample 64KiB --max-overhead 5% --max-processes 9 --no-follow --bpf-log debug --probe-kind perf -p 7",
    );
    let expected = RecordPlan {
        target: TargetPlan::Processes(vec![pid(7)]),
        duration: Some(Duration::from_secs(300)),
        interval: Duration::from_millis(500),
        output: Some("out.offheap".into()),
        force: true,
        min_size_bytes: 64,
        max_size_bytes: 1 << 20,
        limits: Limits {
            max_live_blocks: 5000,
            max_sites: 128,
            max_threads: 64,
            stack_ring_bytes: 1 << 20,
            ..Limits::DEFAULT
        },
        lenses: vec![LensKey::Malloc],
        follow: false,
        max_processes: 9,
        selection: AllocatorSelection::default(),
        bpf_log: Some(BpfLogLevel::Debug),
        probe_kind: ProbeKindKey::Perf,
        sample_bytes: NonZeroU64::new(64 << 10),
        max_overhead: NonZeroU32::new(50_000),
        then_report: false,
    };
    assert_eq!(plan, expected);
}

#[test]
fn lenses_are_named_once_each() {
    for (line, wanted) in [
        ("record 7 --lens malloc", vec![LensKey::Malloc]),
        ("record 7 --lens mmap,malloc", vec![LensKey::Malloc, LensKey::Mmap]),
        ("record 7 --lens mmap --lens mmap", vec![LensKey::Mmap]),
    ] {
        assert_eq!(record_plan(line).lenses, wanted, "{line}");
    }
    let said = complaint("record 7 --lens heap");
    assert!(LensKey::NAMES.iter().all(|name| said.contains(&format!("`{name}`"))), "{said}");
}

#[test]
fn several_processes_or_a_group_of_them_are_recorded() {
    for line in ["record 7 8 9", "record -p 7 -p 8 --pid 9", "record 7 -p 8 -p 9"] {
        assert_eq!(record_plan(line).target, TargetPlan::Processes(vec![pid(7), pid(8), pid(9)]), "{line}");
    }
    let group = record_plan("record --cgroup /sys/fs/cgroup/system.slice/redis.service");
    assert_eq!(group.target, TargetPlan::Scope(Scope::Cgroup("/system.slice/redis.service".into())));
    assert_eq!(group.duration, Some(Duration::from_secs(30)));
    let container = record_plan("record --container 3f4e8a1b2c3d");
    assert_eq!(container.target, TargetPlan::Scope(Scope::Container("3f4e8a1b2c3d".into())));
    for (line, part) in [
        ("record 7 7", "given twice"),
        ("record 7 eight", "not a process id"),
        ("record --cgroup /", "root"),
        ("record --container web", "no container id"),
        ("record --container 3f4e8a1b2c3d 7", "one of them"),
        ("record --cgroup /a -- ls", "one of them"),
        ("record --cgroup /a --container 3f4e8a1b2c3d", "exclude"),
        ("record 7 --max-processes 0", "--max-processes"),
    ] {
        let CliError::Usage(text) = parse_in(line, &PIPE).unwrap_err() else { panic!("{line}") };
        assert!(text.contains(part), "{line}: {text}");
    }
}

#[test]
fn a_command_is_recorded_until_it_ends_and_keeps_its_own_options() {
    let plan = record_plan("record -o x -- node -p --duration app.js -- end");
    let words = ["node", "-p", "--duration", "app.js", "--", "end"].map(OsString::from).to_vec();
    assert_eq!(plan.target, TargetPlan::Command(words));
    assert_eq!((plan.duration, plan.output), (None, Some(PathBuf::from("x"))));
    assert_eq!(record_plan("record --duration 10s -- sleep 60").duration, Some(Duration::from_secs(10)));
}

#[test]
fn documented_defaults_are_the_real_ones() {
    let help = command().find_subcommand("record").unwrap().clone().render_long_help().to_string();
    let Limits { max_live_blocks, max_sites, max_threads, stack_ring_bytes, max_fault_pages } =
        Limits::DEFAULT;
    for default in [max_live_blocks, max_sites, max_threads, max_fault_pages] {
        assert!(help.contains(&format!("[default: {default}]")), "{default}");
    }
    assert!(help.contains(&format!("[default: {}MiB]", stack_ring_bytes >> 20)));
}

#[test]
fn the_other_commands_are_understood() {
    let report = |top, min_age, sort, format| {
        let (by, merges_processes, selection) = (GroupKey::Site, false, Selection::default());
        let (file, color, width) = ("a.offheap".into(), false, None);
        let at = None;
        let plan = ReportPlan {
            file,
            format,
            top,
            min_age,
            at,
            sort,
            by,
            tree: None,
            merges_processes,
            selection,
            color,
            width,
        };
        Action::Report(plan)
    };
    let age = Some(Duration::from_secs(5));
    let export = |format, output: Option<&str>, force| {
        let (selection, output) = (Selection::default(), output.map(Into::into));
        Action::Export(ExportPlan { file: "a.offheap".into(), format, selection, output, force })
    };
    for (line, expected) in [
        ("report a.offheap", report(None, None, SortKey::Verdict, ReportFormat::Table)),
        (
            "report a.offheap --format json --top 3 --min-age 5s --sort growth",
            report(Some(3), age, SortKey::Growth, ReportFormat::Json),
        ),
        ("report --sort count a.offheap", report(None, None, SortKey::Count, ReportFormat::Table)),
        ("export a.offheap --format folded", export(ExportFormat::Folded, None, false)),
        ("export a.offheap -f html -o -", export(ExportFormat::Html, None, false)),
        ("export a.offheap -f svg -o x.svg --force", export(ExportFormat::Svg, Some("x.svg"), true)),
        ("doctor", doctor(None, false)),
        ("doctor --calibrate", doctor(None, true)),
        ("doctor 5", doctor(Some(pid(5)), false)),
        ("doctor -p 5", doctor(Some(pid(5)), false)),
        ("pair-target", Action::PairTarget),
        ("demo", Action::Demo { output_directory: ".".into() }),
        ("demo -o /tmp/x", Action::Demo { output_directory: "/tmp/x".into() }),
        ("completions zsh", Action::Completions { shell: Shell::Zsh }),
        ("man", Action::Man { command: None }),
        ("man record", Action::Man { command: Some("record".into()) }),
        ("demo-target --duration 2s", Action::DemoTarget { duration: Duration::from_secs(2) }),
        ("validate-unwind 9", Action::ValidateUnwind { tgid: pid(9), samples: 1000 }),
        ("validate-unwind 9 --samples 50", Action::ValidateUnwind { tgid: pid(9), samples: 50 }),
    ] {
        assert_eq!(action(line), expected, "{line}");
    }
}

#[test]
fn a_part_of_a_capture_is_selected() {
    let all = "--lens mmap --process 77 --class thread-stack --allocator jemalloc \
               --suppressions a.supp --suppressions b.supp --no-built-in-suppressions";
    let selection = Selection {
        lens: Some(LensKey::Mmap),
        process: Some(pid(77)),
        class: Some(MemoryClass::ThreadStack),
        allocator: Some("jemalloc".into()),
        suppressions: vec!["a.supp".into(), "b.supp".into()],
        has_built_in_suppressions: false,
    };
    let Action::Report(plan) = action(&format!("report x {all} --by executable")) else { panic!() };
    assert_eq!((&plan.selection, plan.by, plan.merges_processes), (&selection, GroupKey::Executable, false));
    let Action::Export(plan) = action(&format!("export x --format svg {all}")) else { panic!() };
    assert_eq!(plan.selection, selection);
    let Action::Report(plan) = action("report x --merge-processes") else { panic!() };
    assert!(plan.merges_processes && plan.by == GroupKey::Site);
    assert!(complaint("report x --process no").contains("`no` is not a process id"));
    complaint("report x --merge-processes --by process");
}

#[test]
fn hidden_commands_are_not_in_the_help() {
    let CliError::Help(help) = parse_in("--help", &PIPE).unwrap_err() else { panic!() };
    for shown in ["record", "report", "export", "doctor", "demo", "man"] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(&format!("{shown} "))), "{shown}");
    }
    for hidden in ["demo-target", "validate-unwind", "completions"] {
        assert!(!help.contains(hidden), "{hidden}");
    }
    let CliError::Help(version) = parse_in("--version", &PIPE).unwrap_err() else { panic!() };
    assert_eq!(version, concat!("offheap ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn messages_and_colours_follow_words_before_the_environment() {
    for (line, verbosity) in [
        ("doctor", Verbosity::Normal),
        ("-q doctor", Verbosity::Quiet),
        ("doctor --quiet", Verbosity::Quiet),
        ("-v doctor", Verbosity::Verbose),
        ("doctor -vv", Verbosity::Debug),
        ("doctor -vvvvv", Verbosity::Trace),
    ] {
        assert_eq!(parse_in(line, &PIPE).unwrap().verbosity, verbosity, "{line}");
    }
    let no_color = Environment { no_color: true, ..TERMINAL };
    for (line, environment, color) in [
        ("doctor", &TERMINAL, true),
        ("doctor", &PIPE, false),
        ("doctor", &no_color, false),
        ("doctor --no-color", &TERMINAL, false),
        ("--color never doctor", &TERMINAL, false),
        ("doctor --color always", &PIPE, true),
        ("doctor --color always", &no_color, true),
        ("doctor --color auto", &no_color, false),
    ] {
        let invocation = parse_in(line, environment).unwrap();
        assert_eq!((invocation.color_stdout, invocation.color_stderr), (color, color), "{line}");
    }
    let Action::Report(plan) = parse_in("report x", &TERMINAL).unwrap().action else { panic!() };
    assert_eq!((plan.color, plan.width), (true, Some(132)));
}

#[test]
fn every_mistake_is_one_line_that_says_what_to_do() {
    for (line, expected) in [
        ("", "nothing to do; give a process id, as in `offheap 1234`"),
        ("nonsense", "`nonsense` is neither a command nor a process id; `offheap --help`"),
        ("recrod 5 -o x", "`recrod` is neither a command nor a process id"),
        ("12x", "`12x` is not a process id; give a number"),
        ("0", "there is no process id `0`; they go from 1 to 4194304"),
        ("4194305", "there is no process id `4194305`"),
        ("99999999999999999999", "there is no process id `99999999999999999999`"),
        ("-p nonsense", "`nonsense` is not a process id"),
        ("1 2", "unknown argument `2`; `offheap --help` lists what there is"),
        ("1 -p 2", "two process ids, `1` and `2`"),
        ("-p", "`--pid` needs a value"),
        ("1 record 2", "`1` stands before the command; the process id goes after it"),
        ("-p 1 record", "`1` stands before the command"),
        ("1 --duration 5s", "unknown argument `--duration`; `offheap --help`"),
        ("record", "nothing to record; give a process id, as in `offheap record 1234`, or a command"),
        ("record --", "nothing to record"),
        ("record ls", "`ls` is not a process id; to start a command, put `--` before it"),
        ("record 1 -p 1", "process id `1` is given twice; give it once"),
        ("record 1 -- ls", "a process id and a command; record one of them at a time"),
        ("record -p 1 -- ls", "a process id and a command"),
        ("record 1 x", "`x` is not a process id; to start a command, put `--` before it"),
        ("record -p x", "`x` is not a process id"),
        ("record 1 --duration 30", "`--duration 30`: without a unit; write `30s`"),
        ("record 1 --duration 0s", "`--duration 0s`: out of range; choose from 1s to 7days"),
        ("record 1 --duration", "`--duration` needs a value"),
        ("record 1 --interval 1ms", "`--interval 1ms`: out of range; choose from 100ms to 1m"),
        ("record 1 --interval 10s --duration 5s", "`--interval` is longer than `--duration`"),
        ("record 1 --min-size 64", "`--min-size 64`: without a unit; write `64B`"),
        ("record 1 --max-size 1Q", "`--max-size 1Q`: unknown unit"),
        ("record 1 --min-size 2KiB --max-size 1KiB", "`--min-size` is above `--max-size`"),
        ("record 1 --max-live-blocks 0", "`--max-live-blocks 0`: out of range; choose from 1 to"),
        ("record 1 --max-sites x", "`--max-sites x`: not a whole number"),
        ("record 1 --max-threads 0", "`--max-threads 0`: out of range"),
        ("record 1 --stack-ring 3MiB", "`--stack-ring 3MiB`: not a power of two; the next one is `4MiB`"),
        (
            "record 1 --bpf-log loud",
            "`--bpf-log loud` is not known; use `error`, `warn`, `info`, `debug` or `trace`",
        ),
        ("record 1 --bpf-log", "`--bpf-log` needs a value"),
        ("record 1 --forse", "unknown argument `--forse`; did you mean `--force`?"),
        ("record 1 --force --force", "`--force` is given twice"),
        ("report", "missing `<FILE>`; see `offheap report --help`"),
        ("report x --format xml", "`--format xml` is not known; use `table` or `json`"),
        ("report x --top 0", "`--top 0`: out of range; choose from 1 to"),
        ("report x --min-age 5", "`--min-age 5`: without a unit; write `5s`"),
        (
            "report x --sort size",
            "`--sort size` is not known; use `verdict`, `outstanding`, `growth` or `count`",
        ),
        ("export x", "missing `--format <FORMAT>`; see `offheap export --help`"),
        ("export", "missing `--format <FORMAT>` and `<FILE>`"),
        ("doctor me", "`me` is not a process id"),
        ("doctor 1 -p 1", "two process ids"),
        ("completions csh", "is not known; use `bash`, `zsh` or `fish`"),
        ("completions", "missing `<SHELL>`"),
        ("validate-unwind x", "`x` is not a process id"),
        ("-q -v doctor", "exclude each other; give one of them"),
        ("--no-color --color never doctor", "exclude each other"),
        ("--color sometimes doctor", "`--color sometimes` is not known; use `auto`, `always` or `never`"),
    ] {
        let text = complaint(line);
        assert!(text.contains(expected), "{line}: {text}");
    }
}

#[test]
fn what_was_typed_cannot_break_the_line() {
    let words = ["offheap", "a\nb\u{1b}[31m"].map(OsString::from);
    let Err(CliError::Usage(text)) = parse(words, &PIPE) else { panic!() };
    assert!(text.starts_with("`a\\nb\\u{1b}[31m` is neither"), "{text}");
    use std::os::unix::ffi::OsStringExt;
    let words = ["offheap".into(), OsString::from_vec(vec![0xff])];
    let Err(CliError::Usage(text)) = parse(words, &PIPE) else { panic!() };
    assert!(text.contains("not UTF-8"), "{text}");
}

#[test]
fn allocators_can_be_added() {
    let selection = AllocatorSelection {
        prefixes: vec!["foo_".to_owned(), "bar_".to_owned()],
        objects: vec![PathBuf::from("/srv/app"), PathBuf::from("lib.so")],
    };
    let words = "--allocator-prefix foo_ --object /srv/app --allocator-prefix bar_ --object lib.so";
    assert_eq!(record_plan(&format!("{words} 5")).selection, selection);
    assert_eq!(record_plan(&format!("record {words} 5")).selection, selection);
    assert_eq!(
        action(&format!("doctor 5 {words}")),
        Action::Doctor { tgid: Some(pid(5)), selection, calibrates: false }
    );
    assert_eq!(record_plan("record 5").selection, AllocatorSelection::default());
    assert!(complaint(&format!("{words} doctor 5")).contains("after the command"));
    assert!(complaint("record 5 --allocator-prefix=").contains("empty"));
    assert!(complaint("report x --object y").contains("--object"));
}

#[test]
fn a_look_at_resident_memory_has_its_settings() {
    let plain = RssPlan {
        tgid: pid(7),
        by: LedgerKey::Label,
        format: RssFormat::Text,
        is_quick: false,
        runs_jcmd: false,
        out: None,
        force: false,
        width: None,
    };
    assert_eq!(action("rss 7"), Action::Rss(plain.clone()));
    let all = "rss -p 7 --by class --format json --quick --jcmd --out x.json --force";
    let every = RssPlan {
        by: LedgerKey::Class,
        format: RssFormat::Json,
        is_quick: true,
        runs_jcmd: true,
        out: Some(PathBuf::from("x.json")),
        force: true,
        ..plain
    };
    assert_eq!(action(all), Action::Rss(every));
    assert!(complaint("rss").contains("process id"));
    assert!(complaint("rss 7 --by size").contains("`class` or `label`"), "{}", complaint("rss 7 --by size"));
}

#[test]
fn a_watch_has_defaults_and_rules() {
    let plan = |line: &str| match action(line) {
        Action::Watch(plan) => plan,
        other => panic!("{line}: {other:?}"),
    };
    let expected = WatchPlan {
        target: TargetPlan::Processes(vec![pid(7), pid(8)]),
        duration: None,
        interval: Duration::from_secs(1),
        adapts: true,
        max_processes: 256,
        format: WatchFormat::Text,
        output: None,
        force: false,
    };
    assert_eq!(plan("watch 7 8"), expected);
    assert_eq!(plan("watch 7 -p 8"), expected);
    let plan = plan("watch --cgroup /a --interval 5s --duration 1h --format csv --out x --force");
    assert_eq!(plan.target, TargetPlan::Scope(Scope::Cgroup("/a".into())));
    assert_eq!((plan.interval, plan.adapts), (Duration::from_secs(5), false));
    assert_eq!((plan.format, plan.force), (WatchFormat::Csv, true));
    assert_eq!(plan.output, Some(PathBuf::from("x")));
    for (line, words) in [
        ("watch", "nothing to watch"),
        ("watch node", "not a process id"),
        ("watch 7 7", "given twice"),
        ("watch 7 --cgroup /a", "one of them"),
        ("watch 7 --duration 1s --interval 2s", "no series"),
        ("watch 7 --interval 5", "without a unit"),
        ("watch 7 --force", "--output"),
    ] {
        assert!(complaint(line).contains(words), "{line}: {}", complaint(line));
    }
}

fn check_plan(line: &str) -> check::CheckPlan {
    match action(line) {
        Action::Check(plan) => *plan,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn a_gate_has_defaults_and_takes_the_options_of_a_recording() {
    use crate::profile::{Rate, RateUnit, Rules};
    let plan = check_plan("check 7");
    assert_eq!((plan.measured, plan.is_default_duration), (Some(Duration::from_secs(60)), true));
    let none = Rules { max_leak_sites: Some(0), tolerance_percent: 25, ..Rules::default() };
    assert_eq!((plan.rules, plan.format, plan.output), (none, CheckFormat::Text, None));
    let recorded = record_plan("record 7 --duration 60s");
    assert_eq!(plan.record, recorded);
    let plan =
        check_plan("check --warm-up 20s --duration 30s --lens malloc --interval 500ms --min-size 64B 7 8");
    let recorded = record_plan("record --duration 50s --lens malloc --interval 500ms --min-size 64B 7 8");
    assert_eq!((plan.record, plan.warm_up), (recorded, Duration::from_secs(20)));
    let plan = check_plan("check -- npm test");
    assert_eq!((plan.record.duration, plan.is_default_duration), (None, false));
    assert_eq!(plan.record.target, TargetPlan::Command(vec!["npm".into(), "test".into()]));
    let plan = check_plan(
        "check --max-growth 1MiB/min --baseline b.offheap --tolerance 50% --suppressions s.txt \
         --no-built-in-suppressions --out r.xml --format junit --capture c.offheap --force 7",
    );
    let rate = Some(Rate { bytes: 1 << 20, unit: RateUnit::Minute });
    let rules = Rules { max_growth: rate, max_rss_growth: rate, tolerance_percent: 50, ..Rules::default() };
    assert_eq!(
        (plan.rules, plan.format),
        (rules, CheckFormat::Junit),
        "a rule that is given is the only one"
    );
    assert_eq!((plan.output, plan.baseline), (Some("r.xml".into()), Some("b.offheap".into())));
    assert_eq!((plan.record.output, plan.record.force), (Some("c.offheap".into()), true));
    assert_eq!(plan.selection.suppressions, [PathBuf::from("s.txt")]);
    assert!(!plan.selection.has_built_in_suppressions);
    let plan = check_plan("check 7 --max-growth 1MiB/min --max-rss-growth 5MB/h --max-unfreed 1KiB");
    assert_eq!(plan.rules.max_rss_growth, Some(Rate { bytes: 5_000_000, unit: RateUnit::Hour }));
    assert_eq!((plan.rules.max_unfreed_bytes, plan.rules.max_leak_sites), (Some(1024), None));
    assert_eq!(check_plan("check --duration 5s --max-unfreed 0B 7").measured, Some(Duration::from_secs(5)));
}

#[test]
fn a_gate_has_rules() {
    for (line, words) in [
        ("check", "nothing to check"),
        ("check 7 -- ls", "check one of them"),
        ("check npm test", "put `--` before it"),
        ("check 7 --max-growth 1MiB", "a size and a time"),
        ("check 7 --duration 5s", "at least 11s here"),
        ("check 7 --duration 30s --interval 5s", "at least 55s here"),
        ("check 7 --tolerance 25", "`25%`"),
        ("check 7 --format xml", "`text`, `json`, `junit` or `github`"),
        ("check 7 --out a --capture a", "name the same file"),
    ] {
        assert!(complaint(line).contains(words), "{line}: {}", complaint(line));
    }
}
