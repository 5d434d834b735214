//! Arguments of `offheap rss`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::plan::{LedgerKey, RssFormat};

/// Say where a process's resident memory lies.
#[derive(Debug, Args)]
pub(super) struct RssArgs {
    /// Process to look at
    #[arg(value_name = "PID")]
    pub target: Option<String>,

    /// The same as the argument PID
    #[arg(short = 'p', long = "pid", value_name = "PID")]
    pub pid: Option<String>,

    /// Sum by class of memory, or show what each class is made of
    #[arg(long, value_name = "KEY", default_value = "label",
        value_parser = PossibleValuesParser::new(LedgerKey::NAMES)
            .try_map(|name| LedgerKey::from_name(&name).ok_or("not one of the possible values")))]
    pub by: LedgerKey,

    /// Text for a person, JSON for a program
    #[arg(short, long, default_value = "text",
        value_parser = PossibleValuesParser::new(RssFormat::NAMES)
            .try_map(|name| RssFormat::from_name(&name).ok_or("not one of the possible values")))]
    pub format: RssFormat,

    /// Do not look into the allocator's heaps: faster, and what is free in them stays unknown
    #[arg(long)]
    pub quick: bool,

    /// Run `jcmd PID VM.native_memory` too, which makes a JVM work for the answer
    #[arg(long)]
    pub jcmd: bool,

    /// File to write [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    /// Overwrite an existing file
    #[arg(long)]
    pub force: bool,
}
