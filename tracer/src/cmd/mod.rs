//! One file per subcommand: wires the stages, prints, has no logic.
