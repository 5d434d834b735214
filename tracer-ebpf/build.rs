//! Rebuilds when the linker changes.

fn main() {
    if let Some(linker) = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path).map(|dir| dir.join("bpf-linker")).find(|file| file.is_file())
    }) {
        println!("cargo:rerun-if-changed={}", linker.display());
    }
}
