//! Processes by control group or container, as `/proc/PID/cgroup` names them (v1 and v2).

use std::{fs, io};

use super::AttachError;

/// Shortest container id that is looked for: what `docker ps` prints has 12 digits.
const MIN_ID_DIGITS: usize = 8;
/// Longest `/proc/PID/cgroup` that is believed.
const MAX_BYTES: u64 = 64 << 10;

/// A set of processes that changes while it is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A control group and those below it: a path that begins with `/`, from the root of its hierarchy.
    Cgroup(String),
    /// A container: its id, or the beginning of it, in hexadecimal digits.
    Container(String),
}

impl Scope {
    /// A control group by path: as `/proc/PID/cgroup` prints it, or below `/sys/fs/cgroup`.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn cgroup(path: &str) -> Result<Self, String> {
        let inner = path.strip_prefix("/sys/fs/cgroup").unwrap_or(path).trim_end_matches('/');
        if inner.is_empty() {
            return Err(format!("`{path}` is the root of all control groups: name one below it"));
        }
        Ok(Self::Cgroup(format!("/{}", inner.trim_start_matches('/'))))
    }

    /// A container by its id; `docker://ID` and the like, as Kubernetes prints them, too.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn container(id: &str) -> Result<Self, String> {
        let bare = id.rsplit("//").next().unwrap_or(id).to_ascii_lowercase();
        if bare.len() < MIN_ID_DIGITS || !bare.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!(
                "`{id}` is no container id: give at least {MIN_ID_DIGITS} of its hexadecimal digits, as `docker ps`, \
                 `podman ps` or `crictl ps` print them"
            ));
        }
        Ok(Self::Container(bare))
    }

    /// What the user calls it.
    pub fn describe(&self) -> String {
        match self {
            Self::Cgroup(path) => format!("control group {path}"),
            Self::Container(id) => format!("container {id}"),
        }
    }

    /// Whether a process with this `/proc/PID/cgroup` belongs to it.
    pub fn holds(&self, cgroup: &str) -> bool {
        cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(|path| match self {
            // v1 under /sys/fs/cgroup has the name of the controller in front: `/memory/user.slice`.
            Self::Cgroup(wanted) => [Some(wanted.as_str()), without_first(wanted)]
                .into_iter()
                .flatten()
                .any(|wanted| is_at_or_below(path, wanted)),
            Self::Container(id) => path.split('/').any(|part| is_container(part, id)),
        })
    }

    /// The processes that belong to it now, by rising process id.
    ///
    /// # Errors
    /// [`AttachError::Proc`] if `/proc` cannot be read.
    pub fn members(&self) -> Result<Vec<u32>, AttachError> {
        let failed = |source| AttachError::proc(0, "/proc".to_owned(), source);
        let mut members = Vec::new();
        for entry in fs::read_dir("/proc").map_err(failed)? {
            let Some(tgid) = entry.ok().and_then(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            else {
                continue;
            };
            // A process that has gone meanwhile is in no group.
            if read_cgroup(tgid).is_ok_and(|cgroup| self.holds(&cgroup)) {
                members.push(tgid);
            }
        }
        members.sort_unstable();
        Ok(members)
    }
}

fn read_cgroup(tgid: u32) -> io::Result<String> {
    use io::Read as _;
    let mut bytes = Vec::new();
    fs::File::open(format!("/proc/{tgid}/cgroup"))?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn without_first(path: &str) -> Option<&str> {
    let rest = path.strip_prefix('/')?;
    rest.find('/').map(|at| &rest[at..])
}

fn is_at_or_below(path: &str, wanted: &str) -> bool {
    path.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `ID` (docker on v1, containerd), `docker-ID.scope`, `cri-containerd-ID.scope`, `crio-ID.scope`, `libpod-ID.scope`,
/// `libpod-payload-ID`, `cri-containerd:POD:ID`: the id stands at the end, behind `-` or `:` or alone.
fn is_container(part: &str, id: &str) -> bool {
    let part = part.strip_suffix(".scope").unwrap_or(part);
    let last = part.rsplit(['-', ':']).next().unwrap_or(part);
    // The whole id has 64 digits; what is shorter is a pod's or a user's number.
    last.len() >= 32 && last.bytes().all(|byte| byte.is_ascii_hexdigit()) && last.starts_with(id)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ID: &str = "3f4e8a1b2c3d4e5f60718293a4b5c6d7e8f90123456789abcdef0123456789ab";

    #[test]
    fn containers_are_known_in_the_forms_that_engines_write() {
        let scope = Scope::container(&ID[..12]).unwrap();
        for line in [
            format!("0::/system.slice/docker-{ID}.scope"),
            format!("12:memory:/docker/{ID}"),
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1234.slice/cri-containerd-{ID}.scope"
            ),
            format!("0::/kubepods/besteffort/pod0f0f/{ID}"),
            format!("0::/kubepods.slice/kubepods-pod1.slice/crio-{ID}.scope/container"),
            format!("0::/machine.slice/libpod-{ID}.scope/container"),
            format!("0::/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{ID}"),
            format!("5:cpu:/\n0::/user.slice/user-0.slice/libpod-{ID}.scope"),
        ] {
            assert!(scope.holds(&line), "{line}");
        }
        assert!(!scope.holds("0::/user.slice/user-1000.slice/session-3f4e8a1b2c3d.scope"));
        assert!(!scope.holds(&format!("0::/system.slice/docker-{}.scope", ID.replace('3', "4"))));
        assert!(!scope.holds(""));
    }

    #[test]
    fn ids_are_taken_as_tools_print_them() {
        assert_eq!(Scope::container("docker://3F4E8A1B2C3D"), Ok(Scope::Container("3f4e8a1b2c3d".into())));
        assert!(Scope::container("web-1").unwrap_err().contains("web-1"));
        assert!(Scope::container("3f4e").is_err());
    }

    #[test]
    fn a_group_holds_what_is_below_it() {
        let scope = Scope::cgroup("/sys/fs/cgroup/system.slice/nginx.service/").unwrap();
        assert_eq!(scope, Scope::Cgroup("/system.slice/nginx.service".into()));
        assert!(scope.holds("0::/system.slice/nginx.service"));
        assert!(scope.holds("0::/system.slice/nginx.service/worker"));
        assert!(!scope.holds("0::/system.slice/nginx.service2"));
        assert!(!scope.holds("0::/system.slice"));
        let first = Scope::cgroup("/sys/fs/cgroup/memory/batch").unwrap();
        assert!(first.holds("9:memory:/batch/job"), "v1");
        assert!(Scope::cgroup("/sys/fs/cgroup").is_err());
        assert!(Scope::cgroup("/").is_err());
    }

    #[test]
    fn this_process_is_in_its_own_group() {
        let own = read_cgroup(std::process::id()).unwrap();
        let Some(path) =
            own.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find(|path| path.len() > 1)
        else {
            return assert!(own.lines().all(|line| line.ends_with(":/")), "{own}");
        };
        assert!(Scope::cgroup(path).unwrap().members().unwrap().contains(&std::process::id()));
    }
}
