//! The user who called `sudo`: a command that offheap starts runs as that user, not as root.

use std::{
    ffi::{CStr, CString, OsStr, OsString},
    io,
    mem::MaybeUninit,
    os::unix::ffi::OsStringExt,
};

use super::LaunchError;

/// Most bytes of an entry of the user data base.
const MAX_PASSWD_BYTES: usize = 1 << 20;
/// The kernel's NGROUPS_MAX.
const MAX_GROUPS: usize = 65_536;

/// A user, with all that a process of theirs is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invoker {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Every group, the primary one as well.
    pub groups: Vec<u32>,
    /// `HOME`, `USER`, `LOGNAME` and `SHELL`, as far as they are known.
    pub environment: Vec<(&'static str, OsString)>,
}

impl Invoker {
    /// The caller of `sudo`, when this process runs as root and `SUDO_UID` names another user.
    ///
    /// # Errors
    /// [`LaunchError::Invoker`] when the variables are not ids: then nothing is known of the wanted user.
    /// [`LaunchError::System`] when the user data base cannot be read.
    pub fn from_environment() -> Result<Option<Self>, LaunchError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        Self::from_variables(|name| std::env::var_os(name))
    }

    pub(super) fn from_variables(
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Option<Self>, LaunchError> {
        let Some(uid) = variable("SUDO_UID") else { return Ok(None) };
        let uid = parse_id("SUDO_UID", &uid)?;
        if uid == 0 {
            return Ok(None);
        }
        let gid = parse_id("SUDO_GID", &variable("SUDO_GID").unwrap_or_default())?;
        Self::of(uid, gid, variable("SUDO_USER")).map(Some)
    }

    /// Reads the user data base. `name` is used for a user who is not in it.
    fn of(uid: u32, gid: u32, name: Option<OsString>) -> Result<Self, LaunchError> {
        let failed = LaunchError::system("read the user data base (`getpwuid_r`)");
        let Some(entry) = Passwd::read(uid).map_err(failed)? else {
            // Root's home is nothing that such a user could write to.
            let mut environment = vec![("HOME", OsString::from("/"))];
            if let Some(name) = name {
                environment.extend([("USER", name.clone()), ("LOGNAME", name)]);
            }
            return Ok(Self { uid, gid, groups: vec![gid], environment });
        };
        let groups = groups_of(&entry.name, gid)
            .map_err(LaunchError::system("read the groups of the invoking user (`getgrouplist`)"))?;
        let name = OsString::from_vec(entry.name.into_bytes());
        let mut environment =
            vec![("HOME", entry.home), ("USER", name.clone()), ("LOGNAME", name), ("SHELL", entry.shell)];
        // passwd(5): an empty shell means this one.
        if let Some((_, shell)) = environment.last_mut().filter(|(_, shell)| shell.is_empty()) {
            *shell = "/bin/sh".into();
        }
        Ok(Self { uid, gid, groups, environment })
    }
}

/// Ids are decimal; -1 (`u32::MAX`) means "leave as it is" to the kernel and is none.
fn parse_id(variable: &'static str, value: &OsStr) -> Result<u32, LaunchError> {
    let id = value.to_str().and_then(|text| text.parse().ok()).filter(|id| *id != u32::MAX);
    id.ok_or_else(|| LaunchError::Invoker { variable, value: value.to_string_lossy().into_owned() })
}

/// The parts of an entry that are used.
struct Passwd {
    name: CString,
    home: OsString,
    shell: OsString,
}

impl Passwd {
    fn read(uid: u32) -> io::Result<Option<Self>> {
        let mut buffer: Vec<libc::c_char> = vec![0; 1024];
        loop {
            let mut entry = MaybeUninit::<libc::passwd>::uninit();
            let mut found = std::ptr::null_mut();
            // SAFETY: every pointer is to memory of ours, the buffer's length is its own.
            let error = unsafe {
                libc::getpwuid_r(uid, entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &mut found)
            };
            match error {
                0 if found.is_null() => return Ok(None),
                0 => {
                    // SAFETY: `found` is not null, so the entry was filled in.
                    let entry = unsafe { entry.assume_init() };
                    let text = |field: *const libc::c_char| {
                        if field.is_null() {
                            return CString::default();
                        }
                        // SAFETY: a field that is not null is a C string within `buffer`, which lives on.
                        unsafe { CStr::from_ptr(field) }.to_owned()
                    };
                    return Ok(Some(Self {
                        name: text(entry.pw_name),
                        home: OsString::from_vec(text(entry.pw_dir).into_bytes()),
                        shell: OsString::from_vec(text(entry.pw_shell).into_bytes()),
                    }));
                }
                libc::EINTR => {}
                libc::ERANGE if buffer.len() < MAX_PASSWD_BYTES => buffer.resize(buffer.len() * 2, 0),
                // getpwuid_r(3) names these for "there is no such user".
                libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM => return Ok(None),
                error => return Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
}

/// What `initgroups` would set. It cannot be called after a fork (it allocates and reads files).
fn groups_of(name: &CStr, gid: u32) -> io::Result<Vec<u32>> {
    let mut groups = vec![0; 64];
    loop {
        let mut count = libc::c_int::try_from(groups.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `name` is a C string, `groups` has room for `count` ids.
        let outcome = unsafe { libc::getgrouplist(name.as_ptr(), gid, groups.as_mut_ptr(), &mut count) };
        let count = usize::try_from(count).unwrap_or(0);
        if outcome >= 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        if groups.len() >= MAX_GROUPS {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        groups.resize((groups.len() * 2).max(count).min(MAX_GROUPS), 0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Result<Option<Invoker>, LaunchError> {
        Invoker::from_variables(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn a_user_of_the_data_base_is_found_with_home_and_groups() {
        let invoker = from(&[("SUDO_UID", "1"), ("SUDO_GID", "1")]).unwrap().unwrap();
        assert_eq!((invoker.uid, invoker.gid), (1, 1));
        assert!(invoker.groups.contains(&1), "{:?}", invoker.groups);
        let names: Vec<_> = invoker.environment.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["HOME", "USER", "LOGNAME", "SHELL"]);
        assert_eq!(invoker.environment[1].1, "daemon");
    }

    #[test]
    fn a_user_who_is_not_in_the_data_base_gets_the_group_and_no_home_of_root() {
        let invoker = from(&[("SUDO_UID", "3999999999"), ("SUDO_GID", "77"), ("SUDO_USER", "ghost")]);
        let invoker = invoker.unwrap().unwrap();
        assert_eq!((invoker.uid, invoker.groups), (3_999_999_999, vec![77]));
        assert_eq!(invoker.environment[..2], [("HOME", "/".into()), ("USER", "ghost".into())]);
    }

    #[test]
    fn root_and_nobody_at_all_are_no_invoker() {
        assert_eq!(from(&[]).unwrap(), None);
        assert_eq!(from(&[("SUDO_UID", "0"), ("SUDO_GID", "0")]).unwrap(), None);
    }

    #[test]
    fn what_is_no_id_is_an_error_and_never_root() {
        for (uid, gid) in
            [("", "1"), ("abc", "1"), ("-1", "1"), ("4294967295", "1"), ("1000", ""), ("1 ", "1")]
        {
            let error = from(&[("SUDO_UID", uid), ("SUDO_GID", gid)]).unwrap_err();
            assert!(matches!(error, LaunchError::Invoker { .. }), "{uid} {gid}: {error}");
        }
    }
}
