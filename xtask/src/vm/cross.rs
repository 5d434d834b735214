//! The guest of aarch64: everything in it is cross-compiled, with Debian's compilers and libraries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::initramfs::{Image, Sysroot};
use super::{GUEST_OFFHEAP, GUEST_TARGETS, kernel};
use crate::command::{cargo, find_program, output, run, workspace};
use crate::demo::target_directory;
use crate::ebpf::Arch;

/// As Rust names it.
const TARGET: &str = "aarch64-unknown-linux-gnu";
const GCC: &str = "aarch64-linux-gnu-gcc";
const CXX: &str = "aarch64-linux-gnu-g++";
/// Debian's packages for all of it.
const PACKAGES: &str = "gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-system-arm";
const SYSROOT: Sysroot = Sysroot { libraries: "/usr/aarch64-linux-gnu/lib", guest_libraries: "/lib" };
/// Tests that need no more than [`C_TARGETS`] and its like. (Those of losses need `careless`, which is in part written for x86-64.)
pub const TESTS: &[&str] = &[
    "native::",
    "mappings::every_system_call",
    "lifecycle::",
    "probe_kinds::both_kinds",
    "probe_kinds::the_kind_is_named",
];
const FLAGS: &[&str] = &["-O2", "-g", "-Wall", "-Wextra", "-Werror"];
const C_FLAGS: &[&str] = &["-std=gnu11", "-rdynamic", "-pthread"];
/// As `tests/src/build.rs` makes them.
const C_TARGETS: &[&str] =
    &["rules", "interposed", "mappings", "noleak", "lookalikes", "startup", "puppet", "family", "worker"];
/// Return addresses signed and landings marked, as distributions build by now.
const SIGNED: &[&str] = &["-mbranch-protection=standard"];

/// The guest: the tests with everything they need, or another program of that machine.
pub fn image(program: Option<&Path>) -> Result<Image> {
    let busybox = kernel::busybox(Arch::Aarch64)?;
    // Both at once: one after the other, cargo would choose other features for either and compile nearly everything twice.
    let (offheap, tests) = build()?;
    let mut image = Image::with(program.unwrap_or(&tests), &busybox, Some(&SYSROOT))?;
    image.add_program(&offheap, GUEST_OFFHEAP)?;
    for target in build_targets()? {
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        image.add_program(&target, &format!("{GUEST_TARGETS}/{name}"))?;
    }
    image.set_variable("OFFHEAP_BIN", GUEST_OFFHEAP);
    image.set_variable("OFFHEAP_TARGETS", GUEST_TARGETS);
    image.set_variable("OFFHEAP_REQUIRE", "1");
    Ok(image)
}

/// Builds offheap and the tests, and gives their paths.
fn build() -> Result<(PathBuf, PathBuf)> {
    if find_program(GCC).is_none() || find_program(CXX).is_none() {
        bail!("no {GCC} or no {CXX}: install {PACKAGES}");
    }
    let mut build = cargo();
    build.args([
        "build",
        "--release",
        "--target",
        TARGET,
        "--workspace",
        "--bin",
        "offheap",
        "--test",
        "kernel",
    ]);
    build.arg("--message-format=json-render-diagnostics");
    build.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", GCC);
    build.env("CC_aarch64_unknown_linux_gnu", GCC);
    let messages = output(&mut build)
        .with_context(|| format!("cannot build for {TARGET} (`rustup target add {TARGET}`, {PACKAGES})"))?;
    let messages: Vec<Value> = messages.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let path = |name: &str| {
        messages
            .iter()
            .filter(|message| message["target"]["name"] == name)
            .find_map(|message| message["executable"].as_str().map(PathBuf::from))
            .with_context(|| format!("cargo does not tell where {name} is"))
    };
    Ok((path("offheap")?, path("kernel")?))
}

/// Builds the targets, whose sources are those of every machine.
fn build_targets() -> Result<Vec<PathBuf>> {
    let sources = workspace().join("tests/targets");
    let directory = target_directory().join(TARGET).join("test-targets");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create `{}`", directory.display()))?;
    let compile = |compiler: &str, source: String, name: &str, flags: &[&[&str]]| -> Result<PathBuf> {
        let product = directory.join(name);
        let mut command = Command::new(compiler);
        command.args(FLAGS).args(flags.concat()).arg("-o").arg(&product).arg(sources.join(source));
        run(&mut command)?;
        Ok(product)
    };
    let mut targets = Vec::new();
    for name in C_TARGETS {
        let flags: &[&[&str]] = if *name == "rules" { &[C_FLAGS, SIGNED] } else { &[C_FLAGS] };
        targets.push(compile(GCC, format!("{name}.c"), name, flags)?);
    }
    let cpp: &[&str] = &["-std=c++17"];
    targets.push(compile(CXX, "exceptions.cpp".into(), "exceptions", &[cpp, &["-rdynamic", "-pthread"]])?);
    targets.push(compile(CXX, "server_stripped.cpp".into(), "server_stripped", &[cpp, &["-s"]])?);
    let rust = directory.join("leak_rust");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["-O", "-g", "--edition", "2024", "--target", TARGET, "-C", &format!("linker={GCC}"), "-o"]);
    run(rustc.arg(&rust).arg(sources.join("leak_rust.rs")))?;
    targets.push(rust);
    Ok(targets)
}
