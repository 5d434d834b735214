//! Checks the BTF of the object: bpf-linker writes garbage type ids when the crate is built with too
//! little debug information, the kernel then refuses the BTF, and everything is slower to verify.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{find_program, output};

/// Fails unless every function in the BTF of `object` has a prototype; gives the number of functions.
pub fn check(object: &Path) -> Result<usize> {
    let Some(bpftool) = find_program("bpftool") else {
        bail!("no bpftool to check the BTF with: run `cargo xtask setup`");
    };
    let dump = output(Command::new(bpftool).args(["btf", "dump", "file"]).arg(object))?;
    check_dump(&dump).with_context(|| format!("BTF of `{}`", object.display()))
}

/// Number of functions in a dump like this, all of which have a prototype:
///
/// ```text
/// [11] FUNC_PROTO '(anon)' ret_type_id=10 vlen=1
/// [12] FUNC 'call_enter' type_id=11 linkage=global
/// ```
fn check_dump(dump: &str) -> Result<usize> {
    let id = |line: &str| line.strip_prefix('[')?.split_once(']').map(|(id, _)| id.to_owned());
    let prototypes: HashSet<String> =
        dump.lines().filter(|line| line.contains("] FUNC_PROTO ")).filter_map(id).collect();
    let mut function_count = 0;
    for line in dump.lines().filter(|line| line.contains("] FUNC '")) {
        let type_id = line.split("type_id=").nth(1).and_then(|rest| rest.split_whitespace().next());
        if !type_id.is_some_and(|type_id| prototypes.contains(type_id)) {
            bail!("a function without a prototype: {line}");
        }
        function_count += 1;
    }
    if function_count == 0 {
        bail!("no functions");
    }
    Ok(function_count)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = "[1] INT 'u64' size=8\n[11] FUNC_PROTO '(anon)' ret_type_id=1 vlen=1\n\t'ctx' type_id=1\n\
                        [12] FUNC 'call_enter' type_id=11 linkage=global\n";

    #[test]
    fn functions_with_prototypes_are_counted() {
        assert_eq!(check_dump(GOOD).unwrap(), 1);
    }

    #[test]
    fn garbage_type_ids_and_an_absent_btf_are_refused() {
        check_dump(&GOOD.replace("type_id=11", "type_id=1")).unwrap_err();
        check_dump(&GOOD.replace("type_id=11", "type_id=99")).unwrap_err();
        check_dump("").unwrap_err();
    }
}
