//! The digest over everything the BPF object is made from.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Files and folders that go into the object, relative to the workspace.
const SOURCES: [&str; 6] = [
    "tracer-common/Cargo.toml",
    "tracer-common/src",
    "tracer-ebpf/Cargo.lock",
    "tracer-ebpf/Cargo.toml",
    "tracer-ebpf/build.rs",
    "tracer-ebpf/src",
];

/// SHA-256 in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 over path, length and content of every source file, in order of the paths.
pub fn sources(workspace: &Path) -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(workspace, Path::new(source), &mut files)?;
    }
    files.sort();
    let mut text = Vec::new();
    for file in files {
        let path = workspace.join(&file);
        let content = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        text.extend(format!("{} {}\n", file.display(), content.len()).into_bytes());
        text.extend(content);
    }
    Ok(hex(&text))
}

fn collect(workspace: &Path, relative: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let path = workspace.join(relative);
    let kind = fs::metadata(&path).with_context(|| format!("no BPF source `{}`", path.display()))?;
    if !kind.is_dir() {
        files.push(relative.to_path_buf());
        return Ok(());
    }
    for entry in fs::read_dir(&path).with_context(|| format!("cannot list `{}`", path.display()))? {
        let entry = entry.with_context(|| format!("cannot list `{}`", path.display()))?;
        collect(workspace, &relative.join(entry.file_name()), files)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tree() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for source in SOURCES {
            let path = directory.path().join(source);
            if source.ends_with("src") {
                fs::create_dir_all(path.join("inner")).unwrap();
                fs::write(path.join("inner/a.rs"), "a").unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "x").unwrap();
            }
        }
        directory
    }

    #[test]
    fn content_and_name_of_every_file_count() {
        let tree = tree();
        let original = sources(tree.path()).unwrap();
        assert_eq!(original, sources(tree.path()).unwrap());

        fs::write(tree.path().join("tracer-common/src/inner/a.rs"), "b").unwrap();
        let changed = sources(tree.path()).unwrap();
        assert_ne!(original, changed);

        fs::write(tree.path().join("tracer-common/src/inner/a.rs"), "a").unwrap();
        assert_eq!(original, sources(tree.path()).unwrap());
        fs::rename(
            tree.path().join("tracer-common/src/inner/a.rs"),
            tree.path().join("tracer-common/src/inner/b.rs"),
        )
        .unwrap();
        assert_ne!(original, sources(tree.path()).unwrap());
    }

    #[test]
    fn a_missing_source_is_an_error() {
        let tree = tree();
        fs::remove_file(tree.path().join("tracer-ebpf/Cargo.lock")).unwrap();
        assert!(sources(tree.path()).is_err());
    }
}
