//! Boots a kernel with an initramfs and watches its console.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::kernel::Kernel;
use crate::command::{find_program, lines};
use crate::ebpf::Arch;

const MEMORY_MIB: u32 = 2048;
/// How much earlier than QEMU the program in it is killed, so that what it printed arrives.
const GRACE_S: u64 = 30;

/// How QEMU is called for a machine.
struct Machine {
    program: &'static str,
    /// Debian's package.
    package: &'static str,
    arguments: &'static [&'static str],
    emulation: &'static str,
    cpu: &'static str,
    console: &'static str,
}

impl Machine {
    const fn of(arch: Arch) -> Self {
        match arch {
            Arch::X86_64 => Self {
                program: "qemu-system-x86_64",
                package: "qemu-system-x86",
                arguments: &[],
                // With a thread per virtual CPU, emulation races with the kernel's patching of its own code: a CPU takes a
                // breakpoint that has just been replaced, and the guest dies of `Oops: int3`.
                emulation: "tcg,thread=single",
                cpu: "max",
                console: "ttyS0",
            },
            Arch::Aarch64 => Self {
                program: "qemu-system-aarch64",
                package: "qemu-system-arm",
                arguments: &["-machine", "virt,gic-version=3"],
                emulation: "tcg,thread=multi",
                // The architecture's own algorithm for signing pointers makes emulation many times slower.
                cpu: "max,pauth-impdef=on",
                console: "ttyAMA0",
            },
        }
    }
}

/// Runs the guest's program and gives its exit status. A guest that ends without telling a status (a panic ends QEMU
/// with 0) or in time is an error.
pub fn boot(arch: Arch, kernel: &Kernel, extra: &str, archive: &[u8], timeout_s: u64) -> Result<i32> {
    let machine = Machine::of(arch);
    let Some(qemu) = find_program(machine.program) else {
        bail!("no {}: run `cargo xtask setup` (Debian: {})", machine.program, machine.package);
    };
    let scratch = tempfile::tempdir().context("cannot create a temporary directory")?;
    let initrd = scratch.path().join("initrd");
    fs::write(&initrd, archive).context("cannot write the initramfs")?;
    let nonce = nonce()?;
    let (accelerator, cpu) = match arch {
        Arch::X86_64 if can_use_kvm() => ("kvm", "host"),
        _ => (machine.emulation, machine.cpu),
    };
    let seconds = timeout_s.saturating_sub(GRACE_S).max(1);
    let parameters = format!(
        "console={} loglevel=4 panic=-1 oops=panic offheap.nonce={nonce} offheap.seconds={seconds} {extra}",
        machine.console
    );
    let name = name(kernel, extra);
    eprintln!("vm: {name} with {accelerator}");
    let child = Command::new(qemu)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .args(machine.arguments)
        .args(["-accel", accelerator, "-cpu", cpu, "-smp", "2", "-m", &MEMORY_MIB.to_string()])
        .arg("-kernel")
        .arg(&kernel.path)
        .arg("-initrd")
        .arg(&initrd)
        .args(["-append", &parameters])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start QEMU")?;
    watch(child, &name, &nonce, Duration::from_secs(timeout_s))
}

/// What stands in front of a guest's lines.
pub fn name(kernel: &Kernel, extra: &str) -> String {
    if extra.is_empty() { kernel.release.clone() } else { format!("{} {extra}", kernel.release) }
}

/// KVM by the device file alone hangs on some machines: it opens, and then stock kernels do not start.
fn can_use_kvm() -> bool {
    let is_writable = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    is_writable && flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

fn nonce() -> Result<String> {
    let mut bytes = [0; 8];
    let mut random = fs::File::open(Path::new("/dev/urandom")).context("cannot open `/dev/urandom`")?;
    random.read_exact(&mut bytes).context("cannot read `/dev/urandom`")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Prints the console until QEMU ends.
fn watch(mut child: Child, name: &str, nonce: &str, timeout: Duration) -> Result<i32> {
    let console = lines(child.stdout.take().context("no console")?);
    let deadline = Instant::now() + timeout;
    let mut status = None;
    let ended = loop {
        match console.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => match parse_status(&line, nonce) {
                Some(told) => status = Some(told),
                None => println!("{name}: {line}"),
            },
            Err(RecvTimeoutError::Disconnected) => break true,
            Err(RecvTimeoutError::Timeout) => break false,
        }
    };
    if !ended {
        child.kill().context("cannot end QEMU")?;
    }
    let qemu = child.wait().context("cannot wait for QEMU")?;
    match status {
        Some(status) => Ok(status),
        None if ended => bail!("the guest ended without a status, perhaps by a panic (QEMU: {qemu})"),
        None => bail!("no status after {} s", timeout.as_secs()),
    }
}

/// 7 of `offheap-status 0123abcd 7`; the guest's own output cannot know the nonce.
fn parse_status(line: &str, nonce: &str) -> Option<i32> {
    line.strip_prefix("offheap-status ")?.strip_prefix(nonce)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nonce_makes_a_status() {
        assert_eq!(parse_status("offheap-status 0123abcd 7", "0123abcd"), Some(7));
        assert_eq!(parse_status("offheap-status 0123abce 0", "0123abcd"), None);
        assert_eq!(parse_status("offheap-status 0123abcd", "0123abcd"), None);
        assert_eq!(parse_status("Kernel panic - not syncing", "0123abcd"), None);
    }
}
