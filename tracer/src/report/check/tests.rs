//! What gates print: golden texts, the schema, an XML parser, and names that want to break out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use quick_xml::Reader;
use quick_xml::events::Event;
use serde_json::Value;
use tracer_common::abi::Loss;

use super::super::tests::assert_golden;
use super::*;
use crate::capture::fixture::{MIB, Recording, at, blocks, clean, leaky};
use crate::model::{EndReason, LiveAge, StackEnd};
use crate::profile::{Filter, Profile, Rate, RateUnit, Rules, Run, Sort};

const SECOND_NS: u64 = 1_000_000_000;
/// Function, file and object of a target that knows all formats.
const HOSTILE: [&str; 3] = [
    "leak<int>(\"&amp;\")\n::error file=x::pwned\r\n]]></failure>\u{1b}[31m%0A\u{fffe}",
    "/src/a,b:c%\n::stop-commands::x/\"quoted\".c",
    "/lib/\u{202e}<evil>&\u{0}\u{7}.so",
];

/// Half a minute of a leak, a level cache, and noise of which nobody can tell; memory grows with the leak.
fn gated(function: &str, file: &str, object: &str) -> Recording {
    let mut recording = Recording::new();
    let object = recording.object(object, Some("aa11"));
    let main = recording.frame(object, 0x900, at("main", "/work/repo/src/main.c", 9));
    let leak = recording.frame(object, 0x100, at(function, file, 12));
    let cache = recording.frame(object, 0x200, at("fill_cache", "/work/repo/src/cache.c", 40));
    let queue = recording.frame(object, 0x300, at("push, pop: 50%", "/work/repo/src/queue.c", 7));
    for (site, frame) in (1..).zip([leak, cache, queue]) {
        recording.stack(site, StackEnd::ThreadStart, &[frame, main]);
    }
    for second in 0..=30 {
        let wobble = 4000 + second * 20 + second * second * 7919 % 3000;
        let samples =
            [(1, blocks(4096, second * 20, 0)), (2, blocks(1 << 20, 3, 0)), (3, blocks(100, wobble, 0))];
        recording.tick(second, &samples, 60 * MIB + second * 20 * 4096);
        let ages = LiveAge { site: 1, born_ns: second * SECOND_NS, count: 20, bytes: 20 * 4096 };
        recording.live_ages.extend((second < 30).then_some(ages));
    }
    recording.finish = Some((EndReason::Duration, 30 * SECOND_NS));
    recording
}

fn profile(recording: &Recording) -> Profile {
    Profile::new(recording.capture(), Filter { sort: Sort::Verdict, ..Filter::default() }).unwrap()
}

fn limits() -> Rules {
    let rate = Some(Rate { bytes: MIB, unit: RateUnit::Minute });
    Rules {
        max_leak_sites: Some(0),
        min_leak_rate: None,
        max_growth: rate,
        max_rss_growth: rate,
        max_unfreed_bytes: Some(64 * MIB),
        tolerance_percent: 25,
    }
}

/// Results of every kind, by name.
fn each(mut look: impl FnMut(&str, &Gate<'_>)) {
    let ordinary = profile(&gated("leak_scratch", "/work/repo/src/scratch.c", "/app/server"));
    let hostile = profile(&gated(HOSTILE[0], HOSTILE[1], HOSTILE[2]));
    let (old, short, lossy) = (profile(&leaky()), profile(&clean()), {
        let mut lossy = gated("leak_scratch", "/work/repo/src/scratch.c", "/app/server");
        lossy.loss(Loss::StackRingFull, 3, 64);
        profile(&lossy)
    });
    let ended = |status| Run { command_status: Some(status), warm_up_ns: 5 * SECOND_NS };
    let lenient = Rules {
        max_leak_sites: Some(3),
        min_leak_rate: Some(Rate { bytes: 16 * MIB, unit: RateUnit::Hour }),
        max_unfreed_bytes: Some(1 << 40),
        ..Rules::default()
    };
    look("breach", &Gate::new(&ordinary, None, limits(), Run::default()));
    look("hostile", &Gate::new(&hostile, Some(&old), limits(), ended(7)));
    look("known", &Gate::new(&ordinary, Some(&ordinary), limits(), Run::default()));
    look("passed", &Gate::new(&ordinary, None, lenient, ended(0)));
    look("failed", &Gate::new(&ordinary, None, lenient, ended(130)));
    look("short", &Gate::new(&short, None, limits(), ended(0)));
    look("lossy", &Gate::new(&lossy, None, lenient, Run::default()));
}

#[test]
fn golden_texts() {
    let mut text = String::new();
    each(|name, gate| {
        text.push_str(&format!("===== {name}\n"));
        text.push_str(&check_text(gate, &TableOptions { width: 100, color: false, file: None }));
    });
    assert_golden("report/golden/check.txt", &text);
}

#[test]
fn the_first_line_is_the_verdict_and_nothing_acts_on_a_terminal() {
    each(|name, gate| {
        for width in [60, 80, 200] {
            let text = check_text(gate, &TableOptions { width, color: false, file: None });
            let first = text.lines().next().unwrap();
            let expected = match gate.verdict() {
                GateVerdict::Passed => "passed",
                GateVerdict::Breached => "BREACH",
                GateVerdict::CommandFailed => "FAILED",
                GateVerdict::Incomplete => "INCOMPLETE",
            };
            assert!(first.starts_with(expected), "{name}: {first}");
            for line in text.lines() {
                assert!(line.chars().count() <= width, "{name}, {width}: {line}");
                assert!(!line.contains(super::super::escape::is_deceptive), "{line:?}");
            }
        }
    });
}

/// The schema, with what it takes from the report's.
fn schema() -> Value {
    let read = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
        serde_json::from_str::<Value>(&fs::read_to_string(path).unwrap()).unwrap()
    };
    fn put(value: &mut Value, report: &Value) {
        if let Some(pointer) = value.get("$ref").and_then(Value::as_str) {
            let pointer = pointer.strip_prefix("report-schema.json#").unwrap();
            *value = report.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}")).clone();
        }
        match value {
            Value::Array(items) => items.iter_mut().for_each(|item| put(item, report)),
            Value::Object(fields) => fields.values_mut().for_each(|field| put(field, report)),
            _ => {}
        }
    }
    let mut schema = read("check-schema.json");
    put(&mut schema, &read("report-schema.json"));
    schema
}

#[test]
fn json_matches_its_schema() {
    let schema = jsonschema::draft202012::new(&schema()).unwrap();
    each(|name, gate| {
        let text = check_json(gate, 4);
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{name}: safe on a terminal");
        let result: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(result, json::document(gate, 4));
        if let Some(error) = schema.iter_errors(&result).next() {
            panic!("{name}: {}: {error}", error.instance_path());
        }
        for (field, spoilt) in [("surprise", Value::Null), ("verdict", "fine".into()), ("rules", Value::Null)]
        {
            let mut result = result.clone();
            result[field] = spoilt;
            assert!(!schema.is_valid(&result), "{name}: {field}");
        }
        let mut result = result;
        result.as_object_mut().unwrap().remove("shortfalls");
        assert!(!schema.is_valid(&result), "{name}");
    });
}

/// What a test runner's reader sees: by test case, the problem's element and everything that is text in it.
fn cases(text: &str) -> BTreeMap<String, (Option<String>, String)> {
    let mut reader = Reader::from_str(text);
    let (mut cases, mut case, mut depth) = (BTreeMap::new(), None, 0i32);
    loop {
        let event = reader.read_event().unwrap_or_else(|error| panic!("{error} in\n{text}"));
        match event {
            Event::Start(tag) => {
                depth += 1;
                let name = String::from_utf8(tag.name().as_ref().to_vec()).unwrap();
                let attribute = |key: &str| {
                    let attributes = tag.attributes().map(Result::unwrap);
                    let mut found = attributes.filter(|one| one.key.as_ref() == key.as_bytes());
                    found.next().map(|one| {
                        one.normalized_value(quick_xml::XmlVersion::Explicit1_0).unwrap().into_owned()
                    })
                };
                match name.as_str() {
                    "testcase" => {
                        case = attribute("name");
                        cases.insert(case.clone().unwrap(), (None, String::new()));
                    }
                    "failure" | "error" => {
                        let entry: &mut (Option<String>, String) =
                            cases.get_mut(case.as_ref().unwrap()).unwrap();
                        entry.0 = Some(name);
                        entry.1.push_str(&attribute("message").unwrap());
                    }
                    "testsuites" | "testsuite" | "system-out" => {}
                    other => panic!("element {other} in\n{text}"),
                }
            }
            Event::End(_) => depth -= 1,
            Event::Eof => break,
            _ => {}
        }
    }
    assert_eq!(depth, 0);
    cases
}

#[test]
fn junit_is_xml_with_a_case_for_each_rule() {
    each(|name, gate| {
        let text = junit(gate);
        // Only what XML 1.0 allows.
        assert!(text.chars().all(|one| one == '\n' || (one >= ' ' && !('\u{7f}'..='\u{9f}').contains(&one))));
        assert!(!text.contains(['\u{fffe}', '\u{ffff}', '\u{202e}']), "{name}");
        let cases = cases(&text);
        assert_eq!(
            cases.len(),
            gate.findings.len() + 1 + usize::from(gate.run.command_status.is_some()),
            "{name}"
        );
        for finding in &gate.findings {
            let expected = match finding.outcome {
                Outcome::Breached => Some("failure"),
                Outcome::NotJudged => Some("error"),
                Outcome::Passed | Outcome::NotSure => None,
            };
            assert_eq!(cases[finding.rule.name()].0.as_deref(), expected, "{name}");
        }
        let has_problem = cases.values().any(|case| case.0.is_some());
        assert_eq!(has_problem, gate.verdict() != GateVerdict::Passed, "{name}: green means passed");
        for (what, count) in [("failure", "failures"), ("error", "errors")] {
            let number = cases.values().filter(|case| case.0.as_deref() == Some(what)).count();
            assert!(text.contains(&format!("{count}=\"{number}\"")), "{name}: {number} {count}");
        }
    });
}

#[test]
fn github_gets_commands_and_nothing_else() {
    let root = Path::new("/work/repo");
    each(|name, gate| {
        let text = github(gate, &[root]);
        for line in text.lines() {
            assert!(
                ["::error ", "::warning ", "::notice "].iter().any(|start| line.starts_with(start)),
                "{line}"
            );
            assert!(!line.contains(super::super::escape::is_deceptive), "{line:?}");
        }
        assert_eq!(text.starts_with("::notice "), gate.verdict() == GateVerdict::Passed, "{name}");
        assert_eq!(text.lines().count(), text.trim_end().split('\n').count());
        if name == "breach" {
            assert!(
                text.contains("::error file=src/scratch.c,line=12,title=offheap%3A leak-sites%2C growth"),
                "{text}"
            );
        }
        if name == "hostile" {
            let annotated = text.lines().find(|line| line.contains("line=12")).unwrap();
            let (properties, message) = annotated.strip_prefix("::error ").unwrap().split_once("::").unwrap();
            let files: Vec<&str> =
                properties.split(',').map(|part| part.split_once('=').unwrap().0).collect();
            assert_eq!(files, ["file", "line", "title"], "{properties}");
            assert!(
                message.contains("%250A") && !message.contains("\n"),
                "a percent sign stays one: {message}"
            );
        }
    });
}
