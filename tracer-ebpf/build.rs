//! Rebuilds when the linker changes, and tells the sources which processor the programs are for.

fn main() -> aya_build::Result<()> {
    if let Some(linker) = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path).map(|dir| dir.join("bpf-linker")).find(|file| file.is_file())
    }) {
        println!("cargo:rerun-if-changed={}", linker.display());
    }
    // `cargo xtask build-ebpf` says which; otherwise that of the machine that builds.
    aya_build::emit_bpf_target_arch_cfg()
}
