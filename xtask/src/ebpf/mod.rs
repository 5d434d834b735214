//! Builds the BPF object and keeps it in step with its sources.
//!
//! The object is checked in (`tracer/bpf`), so that whoever builds offheap needs stable Rust only. Beside it
//! stands a digest of the sources it was made from; `--check` and a test compare the two.

mod btf;
mod digest;
mod strip;
pub mod toolchain;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::ValueEnum as _;
use serde::{Deserialize, Serialize};

use crate::command::{run, workspace};

/// `cargo xtask build-ebpf`.
#[derive(clap::Args, Default)]
pub struct Arguments {
    /// Build nothing; fail if the object that is checked in was made from other sources.
    #[arg(long)]
    check: bool,
    /// Architecture whose registers the programs read; all of them if none is named.
    #[arg(long, value_enum)]
    arch: Option<Arch>,
}

/// An architecture that offheap traces.
#[derive(Clone, Copy, Debug, clap::ValueEnum, PartialEq, Eq)]
pub enum Arch {
    /// x86-64.
    #[value(name = "x86_64")]
    X86_64,
    /// 64-bit ARM, experimental.
    #[value(name = "aarch64")]
    Aarch64,
}

impl Arch {
    /// As Rust names it, and aya.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    fn object(self) -> PathBuf {
        workspace().join(format!("tracer/bpf/offheap.{}.bpf.o", self.name()))
    }

    fn manifest(self) -> PathBuf {
        self.object().with_extension("json")
    }
}

/// What stands beside the object.
#[derive(Debug, Deserialize, Serialize, PartialEq, Eq)]
struct Manifest {
    /// SHA-256 over the sources ([`digest::sources`]).
    source_digest: String,
    /// SHA-256 of the object file.
    object_sha256: String,
    /// What it was built with, for whoever reads it.
    toolchain: toolchain::Versions,
}

/// Builds or checks.
pub fn run_step(arguments: &Arguments) -> Result<()> {
    let all = Arch::value_variants();
    let wanted = arguments.arch.as_ref().map_or(all, std::slice::from_ref);
    wanted.iter().try_for_each(|arch| if arguments.check { check(*arch) } else { build(*arch) })
}

/// Fails if object, manifest and sources disagree.
pub fn check(arch: Arch) -> Result<()> {
    let manifest_path = arch.manifest();
    let text = fs::read_to_string(&manifest_path)
        .with_context(|| format!("no `{}`: run `cargo xtask build-ebpf`", manifest_path.display()))?;
    let manifest: Manifest = serde_json::from_str(&text)
        .with_context(|| format!("`{}` is not a manifest", manifest_path.display()))?;
    let object = fs::read(arch.object()).with_context(|| format!("no `{}`", arch.object().display()))?;
    if manifest.object_sha256 != digest::hex(&object) {
        bail!("`{}` is not the object its manifest describes", arch.object().display());
    }
    if manifest.source_digest != digest::sources(workspace())? {
        bail!("the BPF sources have changed since the object was built: run `cargo xtask build-ebpf`");
    }
    Ok(())
}

fn build(arch: Arch) -> Result<()> {
    let compiler = toolchain::find_compiler()?;
    if !toolchain::has_linker() {
        bail!(
            "no bpf-linker {version}: run `cargo xtask setup`, or `cargo install bpf-linker --version {version} --locked`",
            version = toolchain::LINKER_VERSION
        );
    }
    run(&mut compiler.build_command(arch.name())?)?;
    let built = toolchain::built_object();
    let bytes = fs::read(&built).with_context(|| format!("the build left no `{}`", built.display()))?;
    let object = strip::without_debug_info(&bytes)?;
    refuse_local_paths(&object)?;

    let path = arch.object();
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot create `{}`", directory.display()))?;
    }
    fs::write(&path, &object).with_context(|| format!("cannot write `{}`", path.display()))?;
    let function_count = btf::check(&path)?;
    let manifest = Manifest {
        source_digest: digest::sources(workspace())?,
        object_sha256: digest::hex(&object),
        toolchain: compiler.versions()?,
    };
    let text = serde_json::to_string_pretty(&manifest).context("cannot encode the manifest")? + "\n";
    fs::write(arch.manifest(), text)
        .with_context(|| format!("cannot write `{}`", arch.manifest().display()))?;
    eprintln!(
        "build-ebpf: {} bytes, {function_count} functions with BTF, {}",
        object.len(),
        path.strip_prefix(workspace()).unwrap_or(&path).display()
    );
    Ok(())
}

/// BTF line information names source files: none of them may be a path of the machine it was built on.
fn refuse_local_paths(object: &[u8]) -> Result<()> {
    let home = crate::command::cargo_home();
    for path in [Some(workspace().to_path_buf()), home].into_iter().flatten() {
        let needle = path.as_os_str().as_encoded_bytes();
        if object.windows(needle.len()).any(|window| window == needle) {
            bail!("the object names `{}`, a path of this machine", path.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_objects_were_built_from_these_sources() {
        Arch::value_variants().iter().for_each(|arch| check(*arch).unwrap());
    }

    #[test]
    fn local_paths_are_refused() {
        let mut object = b"core/src/lib.rs\0".to_vec();
        refuse_local_paths(&object).unwrap();
        object.extend(workspace().as_os_str().as_encoded_bytes());
        refuse_local_paths(&object).unwrap_err();
    }
}
