//! The corpora, and every input that has found something, without libFuzzer. An input that found something has a name that
//! says what.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use super::TARGETS;

#[test]
fn corpora_are_survived() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let mut bytes = 0;
    for target in TARGETS {
        let folder = corpora.join(target.name);
        let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!files.is_empty(), "no corpus in `{}`", folder.display());
        for file in files {
            let input = fs::read(&file).unwrap();
            assert!(input.len() <= target.max_bytes, "`{}` is longer than any input", file.display());
            bytes += input.len();
            eprintln!("{}", file.display());
            (target.run)(&input);
        }
    }
    assert!(bytes < 1 << 20, "{bytes} bytes are too many for the repository");
    let folders = fs::read_dir(&corpora).unwrap().count();
    assert_eq!(folders, TARGETS.len(), "a corpus without a target");
}
