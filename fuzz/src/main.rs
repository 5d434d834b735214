//! All fuzz targets in one program, since building is what takes long: `OFFHEAP_FUZZ_TARGET` names the one that runs. The
//! targets themselves are in the library (`tracer/src/fuzz`), where they see what is private.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use offheap::fuzz::{Target, find};

static CHOSEN: OnceLock<&Target> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let target = CHOSEN.get_or_init(|| {
        let name = std::env::var("OFFHEAP_FUZZ_TARGET").unwrap_or_default();
        find(&name).unwrap_or_else(|| {
            eprintln!("offheap-fuzz: OFFHEAP_FUZZ_TARGET is `{name}`, which is no target");
            std::process::exit(2)
        })
    });
    (target.run)(bytes);
});
