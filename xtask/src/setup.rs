//! Installs what building the BPF object and running every test need, and only what is missing.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::command::{as_root, cargo, find_program, run};
use crate::ebpf::toolchain;

/// One thing that is needed, how to see whether it is there, and the Debian package that has it.
struct Need {
    package: &'static str,
    /// Program names or absolute paths; all of them must be there.
    present: &'static [&'static str],
}

const fn need(package: &'static str, present: &'static [&'static str]) -> Need {
    Need { package, present }
}

const NEEDS: &[Need] = &[
    need("gcc", &["gcc"]),
    need("g++", &["g++"]),
    need("make", &["make"]),
    need("binutils", &["strip"]),
    need("bpftool", &["bpftool"]),
    need("bpftrace", &["bpftrace"]),
    need("heaptrack", &["heaptrack"]),
    need("gdb", &["gdb"]),
    need("librsvg2-bin", &["rsvg-convert"]),
    need("nodejs", &["node"]),
    need("libnode-dev", &["/usr/include/node/node_api.h"]),
    need("openjdk-17-jdk-headless", &["java", "javac"]),
    need("chromium", &["chromium"]),
    need("golang-go", &["go"]),
    need("python3-dev", &["python3", "python3-config"]),
    need("libjemalloc2", &["/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"]),
    need("libjemalloc-dev", &["/usr/lib/x86_64-linux-gnu/libjemalloc.a"]),
    need("libmimalloc2.0", &["/usr/lib/x86_64-linux-gnu/libmimalloc.so.2"]),
    need("libmimalloc-dev", &["/usr/include/mimalloc.h"]),
    need("libgoogle-perftools-dev", &["/usr/lib/x86_64-linux-gnu/libtcmalloc.so"]),
    need("libtcmalloc-minimal4", &["/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"]),
    need("musl-tools", &["musl-gcc"]),
    need("qemu-system-x86", &["qemu-system-x86_64"]),
    need("seabios", &["/usr/share/seabios/bios-256k.bin"]),
    need("ipxe-qemu", &["/usr/lib/ipxe/qemu/efi-virtio.rom"]),
    need("busybox-static", &["/bin/busybox"]),
    need("debian-archive-keyring", &["/usr/share/keyrings/debian-archive-keyring.gpg"]),
];

/// Debian's compiler with a prebuilt `core` for the BPF target; the other route needs nightly Rust.
const BPF_COMPILER: &[&str] = &["rustc-web", "libstd-rust-web-dev-bpf"];

fn is_present(what: &str) -> bool {
    if what.starts_with('/') { Path::new(what).exists() } else { find_program(what).is_some() }
}

/// Installs everything that is missing.
pub fn install_missing() -> Result<()> {
    let mut packages: Vec<&str> = NEEDS
        .iter()
        .filter(|need| !need.present.iter().all(|what| is_present(what)))
        .map(|need| need.package)
        .collect();
    if toolchain::find_compiler().is_err() {
        packages.extend(BPF_COMPILER);
    }
    if !packages.is_empty() {
        install(&packages)?;
    }
    if !toolchain::has_linker() {
        let version = toolchain::LINKER_VERSION;
        run(cargo().args(["install", "bpf-linker", "--version", version, "--locked"]))
            .with_context(|| format!("setup: cannot install bpf-linker {version}"))?;
    }
    eprintln!("setup: complete ({} packages installed)", packages.len());
    Ok(())
}

fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    let Some(apt) = find_program("apt-get") else {
        bail!("setup: no apt-get here; install the equivalents of these Debian packages: {list}");
    };
    let noninteractive = [("DEBIAN_FRONTEND", "noninteractive".as_ref())];
    run(as_root(&apt, &noninteractive)?.args(["-qq", "update"]))
        .context("setup: cannot update package lists")?;
    run(as_root(&apt, &noninteractive)?
        .args(["-qq", "-y", "--no-install-recommends", "install"])
        .args(packages))
    .with_context(|| format!("setup: cannot install {list}"))
}
