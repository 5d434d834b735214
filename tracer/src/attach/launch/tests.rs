//! Real commands, started for real; C programs are compiled by `gcc`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::PermissionsExt, process::ExitStatusExt},
    },
    path::PathBuf,
    process::Command,
};

use rustix::{
    io::{Errno, FdFlags, fcntl_setfd},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, kill_process},
};
use tempfile::TempDir;

use super::*;
use crate::attach::maps;

/// Without the C library, whose start-up makes a call. Ends by itself, after a long time.
const SPIN: &str =
    "void _start(void) { for (volatile long i = 0; i < 10000000000; i++) { } __builtin_trap(); }";
const EMPTY: &str = "int main(void) { return 0; }";
/// Writes a byte to the descriptor in the first argument, from a constructor that allocates.
const CONSTRUCTOR: &str = r#"
#include <stdlib.h>
#include <unistd.h>
void *kept;
__attribute__((constructor)) static void begin(int argc, char **argv) {
    kept = malloc(100);
    if (argc > 1) write(atoi(argv[1]), "c", 1);
}
void used(void) { }
"#;

fn start(command: &[&str]) -> Result<Launched, LaunchError> {
    Launch::start(&command.iter().map(OsString::from).collect::<Vec<_>>(), None)
}

fn follow(launched: &mut Launched) -> Vec<Stop> {
    let mut stops = Vec::new();
    while !matches!(stops.last(), Some(Stop::Started | Stop::Exited(_))) {
        stops.push(launched.next_stop().unwrap());
    }
    stops
}

fn compile(directory: &TempDir, compiler: &str, name: &str, source: &str, options: &[&str]) -> PathBuf {
    let (input, output) = (directory.path().join("x.c"), directory.path().join(name));
    fs::write(&input, source).unwrap();
    let status =
        Command::new(compiler).args(["-O0", "-o"]).args([&output, &input]).args(options).status().unwrap();
    assert!(status.success());
    output
}

fn script(directory: &TempDir, text: &str, mode: u32) -> PathBuf {
    let path = directory.path().join("script");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

/// The value of a field of /proc/PID/status.
fn status_of(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().trim().to_owned()
}

fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

fn has_code(pid: u32, name: &str) -> bool {
    let is_it = |entry: &maps::MapEntry| entry.is_executable() && entry.display_name().contains(name);
    maps::read(pid).unwrap().iter().any(is_it)
}

/// A pipe whose writing end commands inherit, and that is never waited for.
fn inherited_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
    fcntl_setfd(&writer, FdFlags::empty()).unwrap();
    (reader, writer)
}

fn read_byte(reader: &OwnedFd) -> Result<u8, Errno> {
    let mut byte = [0];
    rustix::io::read(reader, &mut byte).map(|_| byte[0])
}

#[test]
fn a_dynamic_program_is_stopped_at_each_library_and_then_let_go() {
    let mut launched = start(&["/bin/true"]).unwrap();
    let stops = follow(&mut launched);
    assert_eq!((stops[0], stops[stops.len() - 1]), (Stop::Exec, Stop::Started), "{stops:?}");
    assert!(
        stops.len() > 2 && stops[1..stops.len() - 1].iter().all(|stop| *stop == Stop::NewCode),
        "{stops:?}"
    );
    assert_eq!(launched.next_stop().unwrap(), Stop::Exited(ExitStatus::Code(0)));
    assert_eq!(launched.next_stop().unwrap(), Stop::Exited(ExitStatus::Code(0)));
    assert_eq!(launched.wait().unwrap(), ExitStatus::Code(0));
}

#[test]
fn libraries_are_seen_before_their_constructors_run() {
    let directory = TempDir::new().unwrap();
    let library = compile(&directory, "gcc", "libctor.so", CONSTRUCTOR, &["-shared", "-fPIC"]);
    let origin = format!("-Wl,-rpath,{}", directory.path().display());
    let main = "void used(void); int main(void) { used(); return 0; }";
    let program = compile(&directory, "gcc", "program", main, &[library.to_str().unwrap(), &origin]);
    let (reader, writer) = inherited_pipe();
    let descriptor = writer.as_raw_fd().to_string();
    let mut launched = start(&[program.to_str().unwrap(), &descriptor]).unwrap();
    let pid = launched.pid();
    assert_eq!(launched.next_stop().unwrap(), Stop::Exec);
    assert!(has_code(pid, "/program") && has_code(pid, "ld-linux") && !has_code(pid, "libc.so"));
    let mut seen = Vec::new();
    while launched.next_stop().unwrap() == Stop::NewCode {
        assert!(status_of(pid, "State").starts_with('t'));
        assert_eq!(read_byte(&reader), Err(Errno::AGAIN));
        seen.push((has_code(pid, "libctor.so"), has_code(pid, "libc.so")));
    }
    assert_eq!(seen.first(), Some(&(true, false)));
    assert_eq!(seen.last(), Some(&(true, true)));
    assert_eq!(status_of(pid, "TracerPid"), "0");
    assert_eq!(launched.wait().unwrap(), ExitStatus::Code(0));
    assert_eq!(read_byte(&reader), Ok(b'c'));
}

#[test]
fn programs_without_a_loader_are_let_go_at_once() {
    let directory = TempDir::new().unwrap();
    for option in ["-static", "-static-pie"] {
        let program = compile(&directory, "gcc", "program", EMPTY, &[option]);
        let mut launched = start(&[program.to_str().unwrap()]).unwrap();
        assert_eq!(follow(&mut launched), [Stop::Exec, Stop::Started], "{option}");
        assert_eq!(launched.wait().unwrap(), ExitStatus::Code(0));
    }
}

#[test]
fn the_loader_of_musl_is_left_at_the_first_call_that_is_not_the_loaders() {
    let directory = TempDir::new().unwrap();
    if Command::new("musl-gcc").arg("--version").output().is_err() {
        eprintln!("skipped: `musl-gcc` is not installed");
        return;
    }
    let source = "#include <unistd.h>\nint main(void) { write(1, \"\", 0); alarm(60); for (;;) { } }";
    let program = compile(&directory, "musl-gcc", "program", source, &[]);
    let mut launched =
        start(&[program.to_str().unwrap()]).unwrap().with_start_up_bound(Duration::from_secs(3600));
    assert_eq!(follow(&mut launched), [Stop::Exec, Stop::Started]);
    send(launched.pid(), Signal::KILL);
    assert_eq!(launched.wait().unwrap(), ExitStatus::Signal(9));
}

#[test]
fn a_script_starts_its_interpreter() {
    let directory = TempDir::new().unwrap();
    let script = script(&directory, "#!/bin/sh\nexec /bin/true\n", 0o755);
    let mut launched = start(&[script.to_str().unwrap()]).unwrap();
    assert_eq!(launched.next_stop().unwrap(), Stop::Exec);
    assert_eq!(status_of(launched.pid(), "Name"), "script");
    assert_eq!(follow(&mut launched).last(), Some(&Stop::Started));
    assert_eq!(launched.wait().unwrap(), ExitStatus::Code(0));
}

#[test]
fn a_script_that_names_no_interpreter_is_run_by_sh() {
    let directory = TempDir::new().unwrap();
    let script = script(&directory, "exit $1\n", 0o755);
    let launched = start(&[script.to_str().unwrap(), "9"]).unwrap();
    assert_eq!(launched.wait().unwrap(), ExitStatus::Code(9));
}

#[test]
fn a_command_that_cannot_be_run_says_why() {
    let directory = TempDir::new().unwrap();
    let path = script(&directory, "#!/no/such/interpreter\n", 0o644);
    let path = path.to_str().unwrap();
    let message = |command: &[&str]| {
        let error = start(command).unwrap_err();
        (error.to_string(), error.shell_code())
    };
    assert_eq!(
        message(&["no-such-command"]),
        ("command `no-such-command` was not found in PATH".into(), Some(127))
    );
    assert_eq!(message(&["/no/such"]), ("command `/no/such` was not found".into(), Some(127)));
    assert_eq!(message(&[""]), ("command `` was not found".into(), Some(127)));
    let (text, code) = message(&[path]);
    assert!(text.contains(path) && text.contains("chmod +x") && code == Some(126), "{text}");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    let (text, code) = message(&[path]);
    assert!(text.contains(path) && text.contains("names an interpreter") && code == Some(127), "{text}");
    assert!(matches!(start(&[]), Err(LaunchError::NoCommand)));
    assert!(matches!(start(&["true", "a\0b"]), Err(LaunchError::ZeroByte { .. })));
    let long = "x".repeat(200_000);
    assert!(matches!(start(&["true", &long]), Err(LaunchError::Exec { source, .. })
        if source.raw_os_error() == Some(libc::E2BIG)));
}

#[test]
fn ends_are_told_as_shells_do() {
    for (text, status, code) in [
        ("exit 7", ExitStatus::Code(7), 7),
        ("kill -TERM $$", ExitStatus::Signal(15), 143),
        ("kill -SEGV $$", ExitStatus::Signal(11), 139),
    ] {
        let mut launched = start(&["sh", "-c", text]).unwrap();
        assert_eq!(launched.try_wait().unwrap(), None);
        assert_eq!(follow(&mut launched).last(), Some(&Stop::Started));
        assert_eq!(launched.next_stop().unwrap(), Stop::Exited(status));
        assert_eq!(launched.try_wait().unwrap(), Some(status));
        assert_eq!(status.exit_code(), code);
    }
}

#[test]
fn signals_in_the_start_up_are_passed_on() {
    for signal in [Signal::TERM, Signal::KILL] {
        let mut launched = start(&["/bin/true"]).unwrap();
        assert_eq!(launched.next_stop().unwrap(), Stop::Exec);
        assert_eq!(launched.next_stop().unwrap(), Stop::NewCode);
        send(launched.pid(), signal);
        assert_eq!(launched.next_stop().unwrap(), Stop::Exited(ExitStatus::Signal(signal.as_raw())));
    }
}

#[test]
fn job_control_works_in_the_start_up() {
    let mut launched = start(&["/bin/true"]).unwrap().with_start_up_bound(Duration::from_millis(100));
    let pid = launched.pid();
    assert_eq!(launched.next_stop().unwrap(), Stop::Exec);
    assert_eq!(launched.next_stop().unwrap(), Stop::NewCode);
    send(pid, Signal::STOP);
    assert_eq!(launched.next_stop().unwrap(), Stop::Started);
    assert_eq!(status_of(pid, "TracerPid"), "0");
    while !status_of(pid, "State").starts_with('T') {
        thread::yield_now();
    }
    assert_eq!(launched.try_wait().unwrap(), None);
    send(pid, Signal::CONT);
    assert_eq!(launched.wait().unwrap(), ExitStatus::Code(0));
}

#[test]
fn a_start_up_that_does_not_end_is_left_by_the_clock() {
    let directory = TempDir::new().unwrap();
    let program = compile(&directory, "gcc", "program", SPIN, &["-nostdlib", "-pie", "-fPIE"]);
    let bound = Duration::from_millis(200);
    let mut launched = start(&[program.to_str().unwrap()]).unwrap().with_start_up_bound(bound);
    let begin = Instant::now();
    assert_eq!(follow(&mut launched).last(), Some(&Stop::Started));
    assert!((bound..bound * 10).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    assert_eq!(status_of(launched.pid(), "TracerPid"), "0");
    assert!(status_of(launched.pid(), "State").starts_with('R'));
    send(launched.pid(), Signal::KILL);
    assert_eq!(launched.wait().unwrap(), ExitStatus::Signal(9));
}

#[test]
fn the_command_has_the_terminal_group_directory_and_signals_of_its_starter() {
    let mut launched = start(&["/bin/true"]).unwrap();
    assert_eq!(launched.next_stop().unwrap(), Stop::Exec);
    let pid = launched.pid();
    let signals = |field| u64::from_str_radix(&status_of(pid, field), 16).unwrap();
    let sigpipe = 1 << (libc::SIGPIPE - 1);
    let own = u64::from_str_radix(&status_of(std::process::id(), "SigIgn"), 16).unwrap();
    assert_ne!(own & sigpipe, 0, "Rust's start-up ignores SIGPIPE: what is tested here");
    assert_eq!((signals("SigBlk"), signals("SigCgt"), signals("SigIgn")), (0, 0, own & !sigpipe));
    let group = |pid: u32| rustix::process::getpgid(Pid::from_raw(pid.cast_signed())).unwrap();
    assert_eq!(group(pid), group(std::process::id()));
    let link = |pid: u32, name: &str| fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    for name in ["cwd", "fd/0", "fd/1", "fd/2"] {
        assert_eq!(link(pid, name), link(std::process::id(), name), "{name}");
    }
    assert_eq!(launched.wait().unwrap(), ExitStatus::Code(0));
}

#[test]
fn only_the_thread_that_started_a_command_can_follow_it() {
    let mut launched = start(&["/bin/true"]).unwrap();
    let outcome = thread::scope(|scope| scope.spawn(|| launched.next_stop()).join().unwrap());
    assert!(matches!(outcome, Err(LaunchError::OtherThread)));
    assert_eq!(follow(&mut launched).last(), Some(&Stop::Started));
    assert_eq!(launched.wait().unwrap(), ExitStatus::Code(0));
}

fn assert_root() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
}

fn invoker(uid: &str) -> Invoker {
    let found = Invoker::from_variables(|name| match name {
        "SUDO_UID" | "SUDO_GID" => Some(uid.into()),
        _ => None,
    });
    found.unwrap().unwrap()
}

#[test]
#[ignore = "needs root"]
fn under_sudo_the_command_runs_as_the_caller() {
    assert_root();
    let directory = TempDir::new().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let output = directory.path().join("output");
    fs::write(&output, "").unwrap();
    fs::set_permissions(&output, fs::Permissions::from_mode(0o666)).unwrap();
    let text = format!(
        "{{ id -u; id -g; id -G; echo $USER $HOME; grep CapEff /proc/self/status; }} > {}",
        output.display()
    );
    let command = ["sh", "-c", &text].map(OsString::from);
    let invoker = invoker("65534");
    let home = invoker.environment[0].1.to_string_lossy().into_owned();
    let mut launched = Launch::start(&command, Some(invoker)).unwrap();
    let stops = follow(&mut launched);
    assert!(stops.contains(&Stop::NewCode), "{stops:?}");
    assert_eq!(launched.wait().unwrap(), ExitStatus::Code(0));
    let expected = format!("65534\n65534\n65534\nnobody {home}\nCapEff:\t0000000000000000\n");
    assert_eq!(fs::read_to_string(&output).unwrap(), expected);
}

#[test]
#[ignore = "needs root"]
fn files_are_looked_for_with_the_rights_of_the_caller() {
    assert_root();
    let directory = TempDir::new().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let script = script(&directory, "#!/bin/sh\n", 0o744);
    let error = Launch::start(&[script.clone().into()], Some(invoker("65534"))).unwrap_err();
    assert!(matches!(error, LaunchError::NotExecutable { .. }), "{error}");
    assert_eq!(start(&[script.to_str().unwrap()]).unwrap().wait().unwrap(), ExitStatus::Code(0));
}

const TRACER_MODE: &str = "OFFHEAP_TEST_TRACER";

/// This test is two processes: the second one is a tracer that is killed in mid-phase.
#[test]
fn a_command_outlives_a_tracer_that_is_killed() {
    if std::env::var_os(TRACER_MODE).is_some() {
        let mut launched =
            start(&["sh", "-c", "echo ran on $(awk '/TracerPid/ { print $2 }' /proc/$$/status)"]).unwrap();
        assert_eq!(launched.next_stop().unwrap(), Stop::Exec);
        assert_eq!(launched.next_stop().unwrap(), Stop::NewCode);
        send(std::process::id(), Signal::KILL);
        unreachable!("the signal is not survived");
    }
    let (_, name) =
        concat!(module_path!(), "::a_command_outlives_a_tracer_that_is_killed").split_once("::").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(TRACER_MODE, "1")
        .output()
        .unwrap();
    assert_eq!(output.status.signal(), Some(9));
    // Read up to the end of the pipe, which the command holds as well.
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.ends_with("ran on 0\n"), "{text}");
}

#[test]
fn a_command_that_is_dropped_in_its_start_up_runs_on() {
    let (reader, writer) = inherited_pipe();
    let text = format!("exec 3>/proc/self/fd/{}; echo done >&3", writer.as_raw_fd());
    let mut launched = start(&["sh", "-c", &text]).unwrap();
    assert_eq!(launched.next_stop().unwrap(), Stop::Exec);
    let pid = launched.pid();
    drop(launched);
    assert_eq!(Tracee(pid.cast_signed()).wait_long().unwrap(), Report::Ended(ExitStatus::Code(0)));
    assert_eq!(read_byte(&reader), Ok(b'd'));
}
