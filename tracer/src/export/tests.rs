//! Every export read back by the tool, or checked against the schema, that it is for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::{html, pprof, speedscope};
use crate::capture::fixture::{Recording, at, blocks, clean, leaky, resident, server, watched};
use crate::model::{Lens, StackEnd};
use crate::profile::{Filter, Profile};
use crate::report::tests::profile;

mod page;

/// Names that try everything against whoever prints them.
const HOSTILE: [&str; 6] = [
    "</script><script>document.documentElement.dataset.owned='1'</script>",
    "<img src=x onerror=\"document.documentElement.dataset.owned='2'\">",
    "<!--<script>",
    "\"];document.documentElement.dataset.owned='3';//",
    "a\u{2028}b\u{1b}[31m\u{202e}c\u{0}&lt;b&gt;",
    "__proto__",
];

/// A recording in which every name is hostile.
pub(super) fn hostile() -> Recording {
    let mut recording = resident();
    recording.header.target.comm = HOSTILE[0].into();
    recording.header.target.cmdline = HOSTILE.map(str::to_owned).to_vec();
    recording.hints = HOSTILE.map(str::to_owned).to_vec();
    let mut frames = Vec::new();
    for (index, name) in HOSTILE.iter().enumerate() {
        let object = recording.object(name, Some(name));
        frames.push(recording.frame(object, 0x10 + index as u64, at(name, name, 1)));
    }
    recording.stack(21, StackEnd::ThreadStart, &frames);
    recording.stack(22, StackEnd::NoTable, &frames[..2]);
    recording.ticks[9].1.extend([(21, blocks(5_000_000, 3, 0)), (22, blocks(4096, 7, 0))]);
    for (ledger, name) in recording.ledgers.iter_mut().zip(HOSTILE.iter().cycle()) {
        ledger.rows[0].label = Some((*name).into());
    }
    for (figure, name) in recording.figures.iter_mut().zip(HOSTILE.iter().cycle()) {
        figure.name = (*name).into();
    }
    recording
}

/// The program, or `None` where it is not here; with `OFFHEAP_REQUIRE` that is a failure.
fn program(names: &[&str]) -> Option<String> {
    let is_there =
        |name: &&&str| Command::new("which").arg(name).output().is_ok_and(|out| out.status.success());
    let found = names.iter().find(is_there).map(|name| (*name).to_owned());
    if found.is_none() {
        assert!(std::env::var_os("OFFHEAP_REQUIRE").is_none(), "needs one of {names:?}");
        eprintln!("skipped: needs one of {names:?}");
    }
    found
}

fn succeeded(output: Output) -> String {
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn pprof_is_read_by_go() {
    let Some(go) = program(&["go"]) else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("leak.pb.gz");
    let top = |profile: &Profile, index: &str| {
        let mut out = Vec::new();
        pprof(profile, &mut out).unwrap();
        fs::write(&path, out).unwrap();
        let mut command = Command::new(&go);
        command
            .args(["tool", "pprof", "-top", "-unit=B", "-nodecount=50", "-nodefraction=0"])
            .arg(format!("-sample_index={index}"));
        succeeded(
            command.arg(&path).env("HOME", dir.path()).env("PPROF_TMPDIR", dir.path()).output().unwrap(),
        )
    };
    let leaky = profile(&leaky());
    let text = top(&leaky, "inuse_space");
    let line = |text: &str, name: &str| {
        let line =
            text.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name} in {text}"));
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    // The unit is asked for, whatever is counted. Flat, flat %, sum %, cumulative: the leak of both epochs is one function.
    assert_eq!(line(&text, "leak_scratch")[0], "10747904B", "{text}");
    assert_eq!(line(&text, "Scratch::grow (inline)")[3], "10747904B", "{text}");
    assert_eq!(line(&text, "operator new")[0], "3145728B");
    assert!(text.contains("[stack lost]") && text.contains("[stack breaks off: no-unwind-table]"));
    assert!(text.contains("Type: inuse_space") && text.contains("Duration: 10s"), "{text}");
    let all = leaky.totals.outstanding_bytes;
    assert!(text.contains(&format!("Total samples = {all}B")), "{text}");
    let text = top(&leaky, "alloc_objects");
    assert_eq!(line(&text, "leak_scratch")[0], "2624B", "{text}");
    assert_eq!(line(&text, "evil")[0], "500B", "what was freed, too: {text}");
    for recording in [server(), resident(), hostile(), clean(), watched()] {
        let text = top(&profile(&recording), "inuse_space");
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
    }
    let faults = Filter { lens: Some(Lens::Faults), ..Filter::default() };
    let text = top(&Profile::new(resident().capture(), faults).unwrap(), "inuse_space");
    assert_eq!(line(&text, "fill_scratch")[0], "10485760B", "{text}");
}

#[test]
fn pprof_has_the_files_with_their_build_ids() {
    let Some(go) = program(&["go"]) else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("leak.pb.gz");
    let mut out = Vec::new();
    pprof(&profile(&leaky()), &mut out).unwrap();
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&out[..]).read_to_end(&mut plain).unwrap();
    assert!(plain.len() > 500);
    fs::write(&path, &out).unwrap();
    let mut command = Command::new(go);
    command.args(["tool", "pprof", "-raw"]).arg(&path).env("HOME", dir.path());
    let raw = succeeded(command.output().unwrap());
    let mappings = raw.split("Mappings").nth(1).unwrap();
    assert_eq!(mappings.matches("/app/addon.node bb22").count(), 1, "both epochs are one file: {mappings}");
    assert!(mappings.contains("/usr/bin/node aa11 [FN][FL][LN][IN]"), "{mappings}");
    assert!(raw.contains("0x100000011ff"), "one byte before the return address: {raw}");
}

#[test]
fn speedscope_matches_its_schema() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schema/speedscope/file-format-schema.json");
    let schema: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for recording in [leaky(), server(), resident(), clean(), watched(), hostile()] {
        let mut out = Vec::new();
        let profile = profile(&recording);
        speedscope(&profile, &mut out).unwrap();
        let file: Value = serde_json::from_slice(&out).unwrap();
        let errors: Vec<String> = validator.iter_errors(&file).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}");
        let frames = file["shared"]["frames"].as_array().unwrap().len() as u64;
        let of = &file["profiles"][0];
        let (samples, weights) = (of["samples"].as_array().unwrap(), of["weights"].as_array().unwrap());
        assert_eq!(samples.len(), weights.len());
        assert!(
            samples
                .iter()
                .flat_map(|stack| stack.as_array().unwrap())
                .all(|frame| frame.as_u64().unwrap() < frames)
        );
        let sum: u64 = weights.iter().map(|weight| weight.as_u64().unwrap()).sum();
        assert_eq!((sum, of["endValue"].as_u64()), (profile.outstanding_bytes(), Some(sum)));
        let mut spoiled = file.clone();
        spoiled["profiles"][0]["unit"] = "apples".into();
        assert!(!validator.is_valid(&spoiled));
    }
}

#[test]
fn a_stack_begins_with_its_root_in_speedscope() {
    let mut out = Vec::new();
    speedscope(&profile(&leaky()), &mut out).unwrap();
    let file: Value = serde_json::from_slice(&out).unwrap();
    let name = |frame: &Value| file["shared"]["frames"][frame.as_u64().unwrap() as usize]["name"].clone();
    let first: Vec<Value> = file["profiles"][0]["samples"][0].as_array().unwrap().iter().map(name).collect();
    assert_eq!(first[0], "__libc_start_main");
    assert_eq!(first.last().unwrap(), "leak_scratch(unsigned long)");
}

#[test]
fn nothing_from_the_target_is_markup() {
    let mut out = Vec::new();
    html(&profile(&hostile()), &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let begin = text.find("id=\"data\">").unwrap() + 10;
    let island = &text[begin..begin + text[begin..].find('<').unwrap()];
    assert!(!island.contains(['>', '&', '\u{2028}', '\u{2029}', '\u{1b}', '\u{202e}', '\n']));
    let data: Value = serde_json::from_str(island).unwrap();
    assert!(data["title"].as_str().unwrap().starts_with("</script><script>"), "it is there, as data");
    let outside = text.replace(island, "");
    assert!(!outside.contains("owned") && !outside.contains("onerror"));
    // Nothing is loaded from anywhere.
    for reference in
        [" src=", " href=", "url(", "@import", "fetch(", "XMLHttpRequest", "innerHTML", "insertAdjacent"]
    {
        let count = |text: &str| text.matches(reference).count();
        // uPlot's own code sets no reference and empties no element but its own.
        assert_eq!(count(&outside), 0, "{reference}");
    }
}
