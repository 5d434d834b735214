//! Golden reports, the schema, and the whole way from hostile files to text.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use serde_json::Value;

use super::table::Paint;
use super::{TableOptions, json, json_text, table};
use crate::capture::Capture;
use crate::capture::fixture::{
    Recording, at, blocks, budgeted, clean, leaky, resident, sampled, server, watched,
};
use crate::model::{Lens, StackEnd};
use crate::profile::{By, Direction, Filter, Profile, Sort, TreeView};

const PLAIN: TableOptions<'static> = TableOptions { width: 100, color: false, file: Some("leak.offheap") };

pub(crate) fn profile(recording: &Recording) -> Profile {
    Profile::new(recording.capture(), Filter::default()).unwrap()
}

/// Compares with a file in the source tree; `BLESS=1` rewrites it.
pub(crate) fn assert_golden(name: &str, found: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src").join(name);
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "{name} differs; BLESS=1 rewrites it\n--- expected\n{expected}\n--- found\n{found}"
    );
}

/// Three sites that share a root and a deep recursion, to see what is left out.
fn crowded() -> Recording {
    let mut recording = Recording::new();
    let object = recording.object("/srv/app", Some("ee55"));
    let root: Vec<_> = ["serve(Request const&)", "run()", "main"]
        .iter()
        .zip(0..)
        .map(|(name, line)| {
            recording.frame(object, 0x100 + u64::from(line), at(name, "srv/main.cc", line + 1))
        })
        .collect();
    let visit =
        recording.frame(object, 0x800, at("Tree<std::pair<int, std::string> >::visit(Node*)", "tree.h", 30));
    for site in 1..=3u32 {
        let own =
            recording.frame(object, 0x200 + u64::from(site), at(&format!("handler_{site}()"), "h.cc", site));
        let mut frames = vec![own];
        frames.extend(std::iter::repeat_n(visit, (site as usize - 1) * 10));
        frames.extend(&root);
        recording.stack(site, StackEnd::ThreadStart, &frames);
    }
    for second in 1..=5 {
        let samples: Vec<_> = (1..=3).map(|site| (site, blocks(u64::from(site) * 7, second, 0))).collect();
        recording.tick(second, &samples, 1 << 30);
    }
    recording
}

#[test]
fn golden_tables() {
    assert_golden("report/golden/leaky.txt", &table(&profile(&leaky()), &PLAIN));
    assert_golden("report/golden/clean.txt", &table(&profile(&clean()), &PLAIN));
    assert_golden("report/golden/crowded.txt", &table(&profile(&crowded()), &PLAIN));
    let narrow = TableOptions { width: 60, color: true, file: Some("it's here.offheap") };
    let filter =
        Filter { min_age_ns: Some(5_000_000_000), sort: Sort::Count, top: Some(2), ..Filter::default() };
    let mut recording = leaky();
    recording.finish = None;
    let aged = Profile::new(recording.capture(), filter).unwrap();
    assert_golden("report/golden/narrow.txt", &table(&aged, &narrow));
}

/// Estimates are marked as such, with their error where it is known.
#[test]
fn golden_tables_of_estimates() {
    let (sampled, budgeted) = (profile(&sampled()), profile(&budgeted()));
    let text = format!("{}=====\n{}", table(&sampled, &PLAIN), table(&budgeted, &PLAIN));
    assert_golden("report/golden/estimated.txt", &text);
    let report = json(&sampled);
    assert_eq!(report["estimate"]["sample_bytes"], 65_536.0);
    // 2624 blocks of 4 KiB at 64 KiB: 2624 / (exp(1/16) - 1) blocks squared.
    let (blocks, site) = ((2624.0 / 0.062_5f64.exp_m1()).sqrt(), &report["sites"][0]);
    let near = |found: &Value, wanted: f64| (found.as_f64().unwrap() / wanted - 1.0).abs() < 1e-9;
    assert!(near(&site["outstanding_count_error"], blocks), "{site}");
    assert!(near(&site["outstanding_bytes_error"], blocks * 4096.0), "{site}");
    let report = json(&budgeted);
    assert_eq!(report["estimate"]["windows"]["seen_percent"], 25.0);
    // 40 ms of programs and 120 ms of traps in 2 s.
    assert_eq!(report["overhead"]["target_percent"], 8.0);
    assert!(
        report["sites"][0]["outstanding_bytes_error"].is_null() && report["window"]["end"] == "over-budget"
    );
}

#[test]
fn golden_tables_of_several_processes() {
    let text = |width, filter: Filter| {
        let options = TableOptions { width, ..PLAIN };
        table(&Profile::new(server().capture(), filter).unwrap(), &options)
    };
    assert_golden("report/golden/server.txt", &text(100, Filter::default()));
    assert_golden("report/golden/server-narrow.txt", &text(80, Filter::default()));
    let grouped = [By::Process, By::Executable, By::Allocator, By::Class]
        .map(|by| text(80, Filter { by, ..Filter::default() }))
        .join("=====\n");
    assert_golden("report/golden/server-groups.txt", &grouped);
    let leaky_by = |by| {
        let filter = Filter { by, ..Filter::default() };
        table(&Profile::new(leaky().capture(), filter).unwrap(), &TableOptions { width: 90, ..PLAIN })
    };
    let of_stacks = [By::Function, By::Object, By::Thread, By::SizeClass];
    let grouped = of_stacks
        .map(leaky_by)
        .into_iter()
        .chain(of_stacks.map(|by| text(80, Filter { by, ..Filter::default() })));
    assert_golden("report/golden/stack-groups.txt", &grouped.collect::<Vec<_>>().join("=====\n"));
    let filters = [
        Filter { lens: Some(Lens::Mmap), tgid: Some(4250), ..Filter::default() },
        Filter { allocator: Some("JEmalloc".into()), merges_processes: true, ..Filter::default() },
        Filter { min_age_ns: Some(7_000_000_000), top: Some(1), ..Filter::default() },
        Filter { by: By::Process, top: Some(1), ..Filter::default() },
    ];
    let filtered = filters.map(|filter| text(80, filter)).join("=====\n");
    assert_golden("report/golden/server-filters.txt", &filtered);
}

#[test]
fn golden_trees() {
    let text = |recording: &Recording, width, direction, least_ppm| {
        let filter = Filter { tree: Some(TreeView { direction, least_ppm }), ..Filter::default() };
        let profile = Profile::new(recording.capture(), filter).unwrap();
        assert_eq!(json(&profile)["tree"]["direction"], direction.name());
        super::tree::text(&profile, profile.filter.tree.unwrap(), width, Paint::new(false))
    };
    let trees = [
        text(&leaky(), 100, Direction::TopDown, 10_000),
        text(&leaky(), 80, Direction::BottomUp, 10_000),
        text(&crowded(), 100, Direction::TopDown, 0),
        text(&crowded(), 60, Direction::BottomUp, 200_000),
        text(&server(), 100, Direction::TopDown, 50_000),
        text(&server(), 100, Direction::BottomUp, 5_000),
        text(&clean(), 100, Direction::TopDown, 0),
    ];
    assert_golden("report/golden/trees.txt", &trees.join("=====\n"));
}

/// At every frame, what is below it, with what is left out, is what it has; in JSON and for any least share.
#[test]
fn trees_add_up() {
    for recording in [leaky(), crowded(), server(), resident(), clean()] {
        for direction in [Direction::TopDown, Direction::BottomUp] {
            for least_ppm in [0, 10_000, 300_000, 1_000_000] {
                let filter = Filter { tree: Some(TreeView { direction, least_ppm }), ..Filter::default() };
                let profile = Profile::new(recording.capture(), filter).unwrap();
                let tree = &json(&profile)["tree"];
                let amount = |row: &Value| ["bytes", "count"].map(|field| row[field].as_u64().unwrap());
                assert_eq!(
                    tree["bytes"],
                    profile.drawable_sites().map(|site| site.outstanding_bytes).sum::<u64>()
                );
                let rows = tree["rows"].as_array().unwrap();
                let below = |from: usize, depth: u64| {
                    let below =
                        rows[from..].iter().take_while(move |row| row["depth"].as_u64().unwrap() >= depth);
                    let level = below.filter(|row| row["depth"] == depth).map(amount);
                    level.fold([0, 0], |sum, row| [sum[0] + row[0], sum[1] + row[1]])
                };
                if amount(tree)[1] > 0 {
                    assert_eq!(below(0, 0), amount(tree));
                }
                for (index, row) in rows.iter().enumerate() {
                    let depth = row["depth"].as_u64().unwrap() + 1;
                    let sum = below(index + 1, depth);
                    assert!(sum == [0, 0] || sum == amount(row), "{row}");
                    let least_bytes = amount(tree)[0] * u64::from(least_ppm) / 1_000_000;
                    assert!(row["kind"] == "left-out" || amount(row)[0] >= least_bytes, "{row}");
                }
            }
        }
    }
}

/// A stack of any depth and names of any length are drawn within the width.
#[test]
fn trees_keep_to_the_width() {
    let mut recording = Recording::new();
    let object = recording.object("/srv/app", Some("ee55"));
    let mut frames = Vec::new();
    for depth in 0..200u32 {
        let name = format!(
            "\u{1b}[31mDeep<{}>::{}{depth}()",
            "std::pair<int, long>, ".repeat(depth as usize),
            "x".repeat(90)
        );
        frames.push(recording.frame(object, u64::from(depth), at(&name, "x.cc", 1)));
        // Each has a fork, so that nothing can be folded.
        let own = recording.frame(object, 10_000 + u64::from(depth), at(&format!("own_{depth}"), "x.cc", 1));
        let stack: Vec<_> = [own].into_iter().chain(frames.iter().rev().copied()).collect();
        recording.stack(depth + 1, StackEnd::ThreadStart, &stack);
    }
    let samples: Vec<_> = (1..=200).map(|site| (site, blocks(u64::from(site), 3, 0))).collect();
    recording.tick(1, &samples, 1 << 20);
    for direction in [Direction::TopDown, Direction::BottomUp] {
        for width in [60, 100, 200] {
            let filter = Filter { tree: Some(TreeView { direction, least_ppm: 0 }), ..Filter::default() };
            let profile = Profile::new(recording.capture(), filter).unwrap();
            let text = table(&profile, &TableOptions { width, color: false, file: None });
            assert!(text.lines().count() > 200);
            for line in text.lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
                assert!(!line.contains(super::escape::is_deceptive), "{line:?}");
            }
        }
    }
}

#[test]
fn golden_tables_of_resident_memory() {
    let text = |width, recording: &Recording, filter: Filter| {
        let options = TableOptions { width, ..PLAIN };
        table(&Profile::new(recording.capture(), filter).unwrap(), &options)
    };
    assert_golden("report/golden/resident.txt", &text(100, &resident(), Filter::default()));
    let faults = Filter { lens: Some(Lens::Faults), ..Filter::default() };
    let by_class = Filter { by: By::Class, ..faults.clone() };
    let filtered = [faults, by_class].map(|filter| text(80, &resident(), filter)).join("=====\n");
    assert_golden("report/golden/resident-filters.txt", &filtered);
    assert_golden("report/golden/watched.txt", &text(80, &watched(), Filter::default()));
}

#[test]
fn golden_json() {
    assert_golden("report/golden/resident.json", &json_text(&profile(&resident())));
    assert_golden("report/golden/watched.json", &json_text(&profile(&watched())));
    assert_golden("report/golden/server.json", &json_text(&profile(&server())));

    assert_golden("report/golden/leaky.json", &json_text(&profile(&leaky())));
    assert_golden("report/golden/clean.json", &json_text(&profile(&clean())));
}

#[test]
fn json_text_is_the_json() {
    let profile = profile(&leaky());
    let text = json_text(&profile);
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json(&profile));
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "safe on a terminal");
}

#[test]
fn tables_keep_to_the_width_and_carry_no_control_characters() {
    for recording in [leaky(), clean(), crowded(), server(), resident(), watched()] {
        for width in [60, 80, 200] {
            let text = table(&profile(&recording), &TableOptions { width, color: false, file: None });
            for line in text.lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
                assert!(!line.contains(super::escape::is_deceptive), "{line:?}");
            }
        }
    }
}

#[test]
fn reports_match_their_schema() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/report-schema.json");
    let schema: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let schema = jsonschema::draft202012::new(&schema).unwrap();
    let check = |report: &Value| match schema.iter_errors(report).next() {
        Some(error) => Err(format!("{}: {error}", error.instance_path())),
        None => Ok(()),
    };
    let mut unfinished = leaky();
    unfinished.finish = None;
    for recording in [
        leaky(),
        clean(),
        crowded(),
        server(),
        resident(),
        watched(),
        sampled(),
        budgeted(),
        Recording::new(),
        unfinished,
    ] {
        let report = json(&profile(&recording));
        check(&report).unwrap();
        for by in By::ALL {
            let view = TreeView { direction: Direction::BottomUp, least_ppm: 10_000 };
            let filter = Filter { by, tree: (by == By::Site).then_some(view), ..Filter::default() };
            check(&json(&Profile::new(recording.capture(), filter).unwrap())).unwrap();
        }
        let mut spoiled = report.clone();
        spoiled["schema"] = "offheap.report/2".into();
        assert!(check(&spoiled).is_err());
        let mut spoiled = report.clone();
        spoiled["surprise"] = 1.into();
        assert!(check(&spoiled).is_err());
        let mut spoiled = report.clone();
        spoiled["completeness"]["complete"] = Value::Null;
        assert!(check(&spoiled).is_err());
        let mut spoiled = report;
        spoiled.as_object_mut().unwrap().remove("rss");
        assert!(check(&spoiled).is_err());
    }
}

/// Validates against the part of JSON Schema that the file uses; any other keyword is an error.
pub(crate) fn check(schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let is = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("type {other} in the schema"),
    };
    let fail = |what: &str| Err(format!("{at}: {what}: {value}"));
    for (keyword, rule) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "$schema" | "$id" | "title" | "description" => {}
            "type" => {
                let types: Vec<_> = rule.as_array().map_or(vec![rule], |types| types.iter().collect());
                if !types.iter().any(|name| is(name.as_str().unwrap())) {
                    return fail("type");
                }
            }
            "const" if rule != value => return fail("const"),
            "enum" if !rule.as_array().unwrap().contains(value) => return fail("enum"),
            "minimum" if value.as_f64().is_some_and(|number| number < rule.as_f64().unwrap()) => {
                return fail("minimum");
            }
            "const" | "enum" | "minimum" => {}
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(rule, item, &format!("{at}[{index}]"))?;
                }
            }
            "required" => {
                let missing = |name: &&Value| value.get(name.as_str().unwrap()).is_none();
                if value.is_object() && rule.as_array().unwrap().iter().any(|name| missing(&name)) {
                    return fail("required");
                }
            }
            "properties" => {
                for (name, inner) in value.as_object().into_iter().flatten() {
                    let rule = rule.get(name).ok_or_else(|| format!("{at}.{name} is not in the schema"))?;
                    check(rule, inner, &format!("{at}.{name}"))?;
                }
            }
            "additionalProperties" => assert_eq!(rule, &Value::Bool(false)),
            other => panic!("keyword {other} in the schema"),
        }
    }
    Ok(())
}

/// Everything that is done with a file, whoever wrote it.
fn digest(path: &Path) -> bool {
    let Ok(capture) = Capture::open(path) else { return false };
    let plain = Filter { sort: Sort::Growth, ..Filter::default() };
    let aged = Filter { min_age_ns: Some(1_000_000_000), sort: Sort::Count, ..Filter::default() };
    let grouped = Filter { by: By::Executable, merges_processes: true, ..Filter::default() };
    for filter in [plain, aged, grouped] {
        let Ok(profile) = Profile::new(capture.clone(), filter) else { continue };
        let text = table(&profile, &TableOptions { width: 80, color: false, file: None });
        assert!(
            text.lines()
                .all(|line| line.chars().count() <= 80 && !line.contains(super::escape::is_deceptive))
        );
        serde_json::from_str::<Value>(&json_text(&profile)).unwrap();
        let mut folded = Vec::new();
        crate::export::folded(&profile, &mut folded).unwrap();
        assert!(folded.split(|byte| *byte == b'\n').all(|line| line.is_empty() || line.contains(&b' ')));
        let _ = crate::export::svg(&profile, std::io::sink());
        crate::export::pprof(&profile, std::io::sink()).unwrap();
        crate::export::speedscope(&profile, std::io::sink()).unwrap();
        crate::export::csv(&profile, std::io::sink()).unwrap();
        crate::export::html(&profile, std::io::sink()).unwrap();
    }
    true
}

#[test]
fn damaged_files_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mutated.offheap");
    let wholes = [leaky(), server(), resident()].map(|recording| {
        let _ = fs::remove_file(&path);
        recording.write(&path);
        fs::read(&path).unwrap()
    });
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut readable = 0;
    for case in 0..600 {
        let mut bytes = wholes[case / 8 % 3].clone();
        // From single flips to noise, all over the file or in its rows only.
        for _ in 0..1 << (case % 7) {
            let first = if case % 3 == 0 { 0 } else { 4096 };
            let index = first + random.next_u64() as usize % (bytes.len() - first);
            bytes[index] = if case % 2 == 0 {
                bytes[index] ^ (1 << (random.next_u32() % 8))
            } else {
                random.next_u32() as u8
            };
        }
        if case % 50 == 49 {
            bytes.truncate(random.next_u64() as usize % bytes.len());
        }
        fs::write(&path, &bytes).unwrap();
        readable += usize::from(digest(&path));
    }
    assert!((100..600).contains(&readable), "{readable} of 600 mutations were read");
}
