//! One file per subcommand: wires the stages, prints, has no logic.

pub mod completions;
pub mod demo_target;
