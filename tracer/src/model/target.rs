//! The traced process.

/// A language runtime that was recognised in the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// `node`, `cpython`, `jvm`, `go`, `dotnet`, `ruby`…
    pub name: String,
    /// Version, where it can be read from outside.
    pub version: Option<String>,
}

/// Who was traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Process id as the host sees it.
    pub tgid: u32,
    /// Process id in the innermost pid namespace, where it differs.
    pub inner_tgid: Option<u32>,
    /// `/proc/PID/comm`; hostile input.
    pub comm: String,
    /// Command line; hostile input.
    pub cmdline: Vec<String>,
    /// Executable as the target sees it.
    pub exe: Option<String>,
    /// Runtime, where one was recognised.
    pub runtime: Option<Runtime>,
}
