//! stub
use std::ffi::OsString;
pub struct Invoker;
impl Invoker {
    pub fn from_environment() -> Option<Self> {
        None
    }
    pub fn uid(&self) -> u32 {
        0
    }
    pub fn gid(&self) -> u32 {
        0
    }
}
pub struct Launch;
pub struct Launched;
#[derive(Debug, thiserror::Error)]
#[error("not yet")]
pub struct LaunchError;
pub struct ExitStatus;
impl ExitStatus {
    pub fn exit_code(&self) -> i32 {
        0
    }
}
pub enum Stop {
    Exec,
    NewCode,
    Started,
    Exited(ExitStatus),
}
impl Launch {
    pub fn start(_: &[OsString], _: Option<Invoker>) -> Result<Launched, LaunchError> {
        Err(LaunchError)
    }
}
impl Launched {
    pub fn next_stop(&mut self) -> Result<Stop, LaunchError> {
        Err(LaunchError)
    }
    pub fn pid(&self) -> u32 {
        0
    }
    pub fn wait(self) -> std::io::Result<ExitStatus> {
        Ok(ExitStatus)
    }
}
