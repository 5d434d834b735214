//! Finds a Rust compiler for the BPF target: Debian's with a prebuilt `core`, or nightly with `rust-src`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::command::{cargo, cargo_home, find_program, output, search_path, workspace};

/// The version of bpf-linker that the object is linked with.
pub const LINKER_VERSION: &str = "0.10.3";

const TARGET: &str = "bpfel-unknown-none";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Edition 2024 and the BPF target features that the sources use.
const OLDEST_MINOR: u32 = 90;

/// What an object was built with.
#[derive(Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Versions {
    rustc: String,
    bpf_linker: String,
    core: String,
}

/// A compiler that can build for the BPF target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// Debian's rustc, with `core` for the target in its sysroot.
    Debian,
    /// Nightly through rustup, which builds `core` itself.
    Nightly,
}

/// Where the build leaves the object, whatever its architecture.
pub fn built_object() -> PathBuf {
    target_directory().join(TARGET).join("release/offheap")
}

fn crate_directory() -> PathBuf {
    workspace().join("tracer-ebpf")
}

fn target_directory() -> PathBuf {
    crate_directory().join("target")
}

/// Whether bpf-linker is there in the right version.
pub fn has_linker() -> bool {
    linker_version().is_ok_and(|version| version == LINKER_VERSION)
}

fn linker_version() -> Result<String> {
    let linker = find_program("bpf-linker").context("no bpf-linker")?;
    let line = output(Command::new(linker).arg("--version"))?;
    Ok(line.trim().trim_start_matches("bpf-linker ").to_owned())
}

/// The compiler to use, or what is missing for either of them.
pub fn find_compiler() -> Result<Compiler> {
    let Err(debian) = find_debian() else { return Ok(Compiler::Debian) };
    let Err(nightly) = find_nightly() else { return Ok(Compiler::Nightly) };
    bail!(
        "no compiler for {TARGET}: Debian's has {debian:#} (`cargo xtask setup` installs it); \
         rustup's has {nightly:#} (`rustup toolchain install nightly --component rust-src`)"
    );
}

fn find_debian() -> Result<()> {
    if !Path::new(DEBIAN_RUSTC).is_file() {
        bail!("no `{DEBIAN_RUSTC}` (package rustc-web)");
    }
    let version = output(Command::new(DEBIAN_RUSTC).arg("--version"))?;
    if minor_version(&version).is_none_or(|minor| minor < OLDEST_MINOR) {
        bail!("`{}`, older than 1.{OLDEST_MINOR} (package rustc-web)", version.trim());
    }
    let library = sysroot(Command::new(DEBIAN_RUSTC))?.join("lib/rustlib").join(TARGET).join("lib");
    let has_core = fs::read_dir(&library).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    });
    if !has_core {
        bail!("no `core` in `{}` (package libstd-rust-web-dev-bpf)", library.display());
    }
    Ok(())
}

fn find_nightly() -> Result<()> {
    let sysroot = sysroot(nightly("rustc")?).context("no nightly toolchain")?;
    if !sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file() {
        bail!("no rust-src in its nightly toolchain");
    }
    Ok(())
}

fn nightly(program: &str) -> Result<Command> {
    let mut command = Command::new(find_program("rustup").context("no rustup")?);
    command.args(["run", "nightly", program]);
    Ok(command)
}

fn sysroot(mut rustc: Command) -> Result<PathBuf> {
    Ok(PathBuf::from(output(rustc.args(["--print", "sysroot"]))?.trim()))
}

/// 96 of `rustc 1.96.0 (…)`.
fn minor_version(line: &str) -> Option<u32> {
    line.strip_prefix("rustc 1.")?.split('.').next()?.parse().ok()
}

impl Compiler {
    /// The command that builds the BPF crate with the registers of an architecture.
    pub fn build_command(self, arch: &str) -> Result<Command> {
        let mut command = match self {
            Self::Debian => {
                let mut command = cargo();
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command
            }
            Self::Nightly => {
                let mut command = nightly("cargo")?;
                command.env_remove("RUSTC");
                command
            }
        };
        command.args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"]);
        command.arg(target_directory());
        if self == Self::Nightly {
            command.arg("-Zbuild-std=core");
        }
        // The encoded form wins over RUSTFLAGS and over every configuration file.
        command.env("CARGO_ENCODED_RUSTFLAGS", self.flags(arch)?.join("\x1f"));
        command.env_remove("RUSTFLAGS").env_remove("RUSTC_WRAPPER").env_remove("RUSTC_WORKSPACE_WRAPPER");
        // With it there would be several units of code, and another object.
        command.env("CARGO_INCREMENTAL", "0");
        command.env("PATH", search_path()?).current_dir(crate_directory());
        Ok(command)
    }

    fn flags(self, arch: &str) -> Result<Vec<String>> {
        let mut flags: Vec<String> =
            ["-Clinker=bpf-linker", "-Clink-arg=--btf", "-Ctarget-cpu=v3"].map(String::from).to_vec();
        // A flag and no variable, so that what is built for one architecture is kept beside that for another.
        flags.push(format!("--cfg=bpf_target_arch=\"{arch}\""));
        // BTF line information names source files: keep this machine's paths out, so that the object
        // is the same wherever it is built.
        let mut remap =
            |from: &Path, to: &str| flags.push(format!("--remap-path-prefix={}={to}", from.display()));
        let sysroot = match self {
            Self::Debian => sysroot(Command::new(DEBIAN_RUSTC))?,
            Self::Nightly => sysroot(nightly("rustc")?)?,
        };
        remap(&sysroot.join("lib/rustlib/src/rust"), "rust");
        remap(workspace(), "offheap");
        let registries = cargo_home().map(|home| home.join("registry/src"));
        for registry in registries.iter().flat_map(fs::read_dir).flatten().flatten() {
            remap(&registry.path(), "crates");
        }
        Ok(flags)
    }

    /// What goes into the manifest.
    pub fn versions(self) -> Result<Versions> {
        let mut rustc = match self {
            Self::Debian => Command::new(DEBIAN_RUSTC),
            Self::Nightly => nightly("rustc")?,
        };
        Ok(Versions {
            rustc: output(rustc.arg("--version"))?.trim().to_owned(),
            bpf_linker: linker_version()?,
            core: match self {
                Self::Debian => "prebuilt by Debian",
                Self::Nightly => "built with -Z build-std",
            }
            .to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minor_versions() {
        assert_eq!(minor_version("rustc 1.96.0 (ac68faa20 2026-05-25)\n"), Some(96));
        assert_eq!(minor_version("rustc 2.0.0"), None);
        assert_eq!(minor_version(""), None);
    }
}
