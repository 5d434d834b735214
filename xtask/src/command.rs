//! Running other programs: printed, checked, and as root where it must be.

use std::env;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result, bail};

/// Root of the workspace.
pub fn workspace() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// A command on one line, arguments with blanks quoted.
fn line(command: &Command) -> String {
    let quote = |word: &OsStr| match word.to_string_lossy() {
        plain if !plain.is_empty() && !plain.contains(char::is_whitespace) => plain.into_owned(),
        blank => format!("'{}'", blank.replace(['\n', '\x1f'], " ")),
    };
    std::iter::once(command.get_program()).chain(command.get_args()).map(quote).collect::<Vec<_>>().join(" ")
}

/// Prints the command, runs it, and fails with its line when its status is not 0.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    eprintln!("$ {line}");
    let status = command.status().with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Runs the command and gives its standard output; fails with the last line of its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let line = line(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("cannot run `{line}`"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let reason = stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message");
        bail!("`{line}` failed ({}): {reason}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of `{line}` is not UTF-8"))
}

/// Lines of a pipe, read by a thread, so that one can wait for them with a time limit. Disconnected at its end.
pub fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|size| size > 0) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    receiver
}

/// Where `$CARGO_HOME` is.
pub fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
}

/// Directories in which programs are looked for: `PATH`, the system's own, and cargo's.
fn program_directories() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&path).collect();
    directories.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    directories.extend(cargo_home().map(|home| home.join("bin")));
    directories
}

/// Finds a program; `PATH` of an ordinary user does not contain the administrator's directories.
pub fn find_program(name: &str) -> Option<PathBuf> {
    program_directories().into_iter().map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// `PATH` with the directories that [`find_program`] looks into.
pub fn search_path() -> Result<std::ffi::OsString> {
    env::join_paths(program_directories()).context("`PATH` cannot be extended")
}

/// Cargo, the one that runs this program if there is one.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// A command that runs as root: directly, or through sudo with `variables` passed on.
pub fn as_root(program: &Path, variables: &[(&str, &OsStr)]) -> Result<Command> {
    if rustix::process::geteuid().is_root() {
        let mut command = Command::new(program);
        command.envs(variables.iter().copied());
        return Ok(command);
    }
    let Some(sudo) = find_program("sudo") else {
        bail!("`{}` needs root, and there is no sudo: run as root", program.display());
    };
    let mut command = Command::new(sudo);
    command.arg("env");
    for (name, value) in variables {
        let mut assignment = std::ffi::OsString::from(format!("{name}="));
        assignment.push(value);
        command.arg(assignment);
    }
    command.arg(program);
    Ok(command)
}
