//! Debian's cloud kernels, fetched through apt with state of its own and cached outside the repository.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::command::{output, run};
use crate::ebpf::Arch;

/// Suites, and the beginning of the releases they have.
const SUITES: &[(&str, &str)] = &[
    ("bullseye-security", "5.10."),
    ("bookworm-security", "6.1."),
    ("trixie-security", "6.12."),
    ("trixie-backports", "7."),
];
/// Those of aarch64: offheap takes none that is older.
const SUITES_AARCH64: &[(&str, &str)] = &[("trixie-security", "6.12."), ("trixie-backports", "7.")];
/// Where the shell of guests of other machines comes from.
const BUSYBOX_SUITE: &str = "trixie";
/// The oldest kernel that offheap runs on.
const FLOOR: (u32, u32) = (5, 15);
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel image.
#[derive(Clone)]
pub struct Kernel {
    /// For instance `6.1.0-40-cloud-amd64`.
    pub release: String,
    /// The image.
    pub path: PathBuf,
}

impl Kernel {
    /// Whether offheap has to refuse it.
    pub fn is_below_floor(&self) -> bool {
        let mut numbers = self.release.split('.').map_while(|number| number.parse::<u32>().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < FLOOR
    }
}

/// Where kernels are cached: `OFFHEAP_KERNELS`, or below the user's cache.
fn cache() -> Result<PathBuf> {
    if let Some(directory) = env::var_os("OFFHEAP_KERNELS") {
        return Ok(PathBuf::from(directory));
    }
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    Ok(cache.context("neither OFFHEAP_KERNELS nor HOME is set")?.join("offheap/kernels"))
}

/// One kernel of every suite, oldest first: from the cache, or fetched. A suite without a kernel is an error,
/// lest a kernel drop out of the matrix unseen.
pub fn fetch(arch: Arch, refresh: bool) -> Result<Vec<Kernel>> {
    let (cache, suites) = match arch {
        Arch::X86_64 => (cache()?, SUITES),
        Arch::Aarch64 => (cache()?.join(arch.name()), SUITES_AARCH64),
    };
    suites
        .iter()
        .map(|&(suite, series)| {
            let directory = cache.join(suite);
            if !refresh && let Some(kernel) = cached(&directory, series) {
                return Ok(kernel);
            }
            fetch_suite(&directory, suite, arch).with_context(|| format!("no kernel of {suite}"))?;
            cached(&directory, series).with_context(|| format!("{suite} has no kernel {series}*"))
        })
        .collect()
}

fn cached(directory: &Path, series: &str) -> Option<Kernel> {
    let entry = fs::read_dir(directory).ok()?.flatten().find(|entry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| name.starts_with("vmlinuz-") && !name.ends_with(".part"))
    })?;
    let release = entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned();
    release.starts_with(series).then(|| Kernel { release, path: entry.path() })
}

/// The Debian mirror that this machine's own apt uses, in the old form of its sources or the new one.
fn mirror() -> Result<String> {
    if let Ok(mirror) = env::var("OFFHEAP_MIRROR") {
        return Ok(mirror);
    }
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(
        fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path()),
    );
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    texts
        .flat_map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .map(|word| word.trim_end_matches('/').to_owned())
        .find(|word| word.starts_with("http") && word.ends_with("/debian"))
        .context("no Debian mirror in the apt sources: set OFFHEAP_MIRROR")
}

/// As Debian names it.
fn debian_name(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "amd64",
        Arch::Aarch64 => "arm64",
    }
}

/// A configuration under which apt knows nothing of this machine but the keyring.
fn configuration(directory: &Path, suite: &str, arch: Arch) -> Result<PathBuf> {
    let arch = debian_name(arch);
    let mirror = mirror()?;
    let mirror = if suite.ends_with("-security") { format!("{mirror}-security") } else { mirror };
    for folder in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(directory.join("apt").join(folder))
            .context("cannot create the cache of kernels")?;
    }
    let root = directory.join("apt");
    let shown = root.display();
    let source = format!("deb [arch={arch} signed-by={KEYRING}] {mirror} {suite} main\n");
    fs::write(root.join("sources.list"), source).context("cannot write the cache of kernels")?;
    let text = format!(
        "Dir::Etc::SourceList \"{shown}/sources.list\";\nDir::Etc::SourceParts \"/dev/null\";\n\
         Dir::Etc::Preferences \"/dev/null\";\nDir::Etc::PreferencesParts \"/dev/null\";\n\
         Dir::State \"{shown}\";\nDir::State::Lists \"{shown}/lists\";\nDir::State::status \"/dev/null\";\n\
         Dir::Cache \"{shown}/cache\";\nAPT::Sandbox::User \"\";\n\
         APT::Architecture \"{arch}\";\nAPT::Architectures {{ \"{arch}\"; }};\n\
         APT::Update::Error-Mode \"any\";\nAcquire::Languages \"none\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\nAcquire::Retries \"3\";\n"
    );
    let path = root.join("apt.conf");
    fs::write(&path, text).context("cannot write the cache of kernels")?;
    Ok(path)
}

fn fetch_suite(directory: &Path, suite: &str, arch: Arch) -> Result<()> {
    ensure!(Path::new(KEYRING).exists(), "no `{KEYRING}`: run `cargo xtask setup`");
    let configuration = configuration(directory, suite, arch)?;
    let apt = |program: &str| {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &configuration);
        command
    };
    run(apt("apt-get").args(["-qq", "update"]))?;
    let show = |package: &str| output(apt("apt-cache").args(["show", "--no-all-versions", package]));
    let meta = show(&format!("linux-image-cloud-{}", debian_name(arch)))?;
    let depends = meta.lines().find(|line| line.starts_with("Depends:")).context("no `Depends:`")?;
    let image = depends
        .split([' ', ','])
        .find(|word| word.starts_with("linux-image-"))
        .context("the metapackage depends on no image")?;
    let release = image.trim_start_matches("linux-image-").trim_end_matches("-unsigned");
    // From 7.x on the image is in a package of its own.
    let binary = format!("linux-binary-{release}");
    let package = if show(&binary).is_ok() { binary } else { image.to_owned() };

    let scratch = tempfile::tempdir_in(directory).context("cannot create a temporary directory")?;
    run(apt("apt-get").current_dir(scratch.path()).args(["-qq", "download", &package]))?;
    let deb =
        fs::read_dir(scratch.path())?.flatten().map(|entry| entry.path()).next().context("no package")?;
    let tree = scratch.path().join("tree");
    run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&tree))?;
    let Some(vmlinuz) = find_vmlinuz(&tree)? else { bail!("no vmlinuz in {package}") };

    for old in fs::read_dir(directory)?.flatten() {
        if old.file_name().to_string_lossy().starts_with("vmlinuz-") {
            fs::remove_file(old.path()).context("cannot remove an old kernel")?;
        }
    }
    // Copied under another name first: an interrupted copy is no kernel.
    let part = directory.join(format!("vmlinuz-{release}.part"));
    fs::copy(&vmlinuz, &part).context("cannot store the kernel")?;
    fs::rename(&part, directory.join(format!("vmlinuz-{release}"))).context("cannot store the kernel")
}

/// A static busybox for a machine: from the cache, or fetched.
pub fn busybox(arch: Arch) -> Result<PathBuf> {
    let directory = cache()?.join(arch.name()).join("busybox");
    let path = directory.join("busybox");
    if path.is_file() {
        return Ok(path);
    }
    ensure!(Path::new(KEYRING).exists(), "no `{KEYRING}`: run `cargo xtask setup`");
    let configuration = configuration(&directory, BUSYBOX_SUITE, arch)?;
    let scratch = tempfile::tempdir_in(&directory).context("cannot create a temporary directory")?;
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", &configuration).current_dir(scratch.path());
        command
    };
    run(apt().args(["-qq", "update"]))?;
    run(apt().args(["-qq", "download", "busybox-static"]))?;
    let deb =
        fs::read_dir(scratch.path())?.flatten().map(|entry| entry.path()).next().context("no package")?;
    let tree = scratch.path().join("tree");
    run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&tree))?;
    let found = ["usr/bin/busybox", "bin/busybox"].map(|place| tree.join(place));
    let found = found.iter().find(|place| place.is_file()).context("no busybox in its package")?;
    let part = directory.join("busybox.part");
    fs::copy(found, &part).context("cannot store busybox")?;
    fs::rename(&part, &path).context("cannot store busybox")?;
    Ok(path)
}

fn find_vmlinuz(tree: &Path) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(tree)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find_vmlinuz(&entry.path())? {
                return Ok(Some(found));
            }
        } else if entry.file_name().to_string_lossy().starts_with("vmlinuz") {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_compared_by_number() {
        let kernel = |release: &str| Kernel { release: release.to_owned(), path: PathBuf::new() };
        assert!(kernel("5.10.0-36-cloud-amd64").is_below_floor());
        assert!(!kernel("5.15.0-1-amd64").is_below_floor());
        assert!(!kernel("6.1.0-40-cloud-amd64").is_below_floor());
        assert!(!kernel("6.12.57+deb13-cloud-amd64").is_below_floor());
    }
}
