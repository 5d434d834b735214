//! `offheap diff` of real recordings: two moments, a restart, a rebuild.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;
use tracer_tests::target::Target;
use tracer_tests::tracer::{COMPLETE, Finished, Recording, USAGE, offheap, offheap_output};
use tracer_tests::{Result, build, require};

const QUICK: [&str; 4] = ["--lens", "malloc", "--interval", "100ms"];

/// The function that asked, how it was matched, bytes of before and after; `None`: not seen.
type Row = (String, String, Option<u64>, Option<u64>);

fn diff(arguments: &[&OsStr]) -> Result<Value> {
    let fixed = ["diff", "--format", "json", "--lens", "malloc"].map(OsStr::new);
    Ok(serde_json::from_str(&offheap_output(fixed.iter().chain(arguments))?)?)
}

/// The rows of the target's own call sites, by name; the sums must be those of all rows.
fn rows(diff: &Value) -> Result<Vec<Row>> {
    let rows = diff["rows"].as_array().context("no rows")?;
    let delta: i64 = rows.iter().filter_map(|row| row["delta_bytes"].as_i64()).sum();
    ensure!(diff["delta_bytes"]["malloc"].as_i64() == Some(delta), "{delta} bytes in the rows of {diff}");
    let mut found = Vec::new();
    for row in rows {
        let culprit = row["culprit"].as_u64().and_then(|index| usize::try_from(index).ok());
        let function = culprit.and_then(|index| row["stack"][index]["function"].as_str()).unwrap_or("?");
        let bytes = |side: &str| row[side]["outstanding_bytes"].as_u64();
        let matched = row["matched"].as_str().context("not matched")?;
        if function.starts_with("site_") {
            found.push((function.to_owned(), matched.to_owned(), bytes("before"), bytes("after")));
        }
    }
    found.sort();
    Ok(found)
}

fn expect(diff: &Value, wanted: &[(&str, &str, Option<u64>, Option<u64>)]) -> Result {
    let wanted: Vec<Row> =
        wanted.iter().map(|row| (row.0.to_owned(), row.1.to_owned(), row.2, row.3)).collect();
    let found = rows(diff)?;
    ensure!(found == wanted, "expected {wanted:#?}\nfound {found:#?}\nin {diff:#}");
    Ok(())
}

#[test]
fn two_moments_of_one_capture() -> Result {
    require!();
    let mut target = Target::start("versions")?;
    let recording = Recording::attach(&target, &QUICK)?;
    for order in ["grow 10 1000", "hold 100 64", "same 5 50"] {
        target.order(order)?;
    }
    let first_ns = recording.wait_until_outstanding(10_000 + 6400 + 250)?;
    for order in ["grow 20 1000", "drop 75", "fresh 3 7000"] {
        target.order(order)?;
    }
    let second_ns = recording.wait_until_outstanding(30_000 + 1600 + 250 + 21_000)?;
    target.order("grow 1 500")?;
    recording.wait_until_outstanding(30_500 + 1600 + 250 + 21_000)?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    let capture = finished.capture();
    let (first, second) = (format!("{first_ns}ns"), format!("{second_ns}ns"));
    let at = |moments: &[&str]| -> Result<Value> {
        let mut arguments = vec![capture.as_os_str()];
        arguments.extend(moments.iter().flat_map(|moment| ["--at", *moment]).map(OsStr::new));
        diff(&arguments)
    };
    let both = at(&[&first, &second])?;
    expect(
        &both,
        &[
            ("site_fresh", "alone", None, Some(21_000)),
            ("site_grow", "exact", Some(10_000), Some(30_000)),
            ("site_hold", "exact", Some(6400), Some(1600)),
            ("site_same", "exact", Some(250), Some(250)),
        ],
    )?;
    ensure!(both["rows"][0]["delta_bytes"] == 21_000 && both["rows"][1]["delta_bytes"] == 20_000, "{both}");
    ensure!(both["rows"][2]["delta_count"] == -75, "{both}");
    // Once: the other side is the end. The other way round: what came is what has gone.
    let to_the_end = rows(&at(&[&first])?)?;
    ensure!(
        to_the_end[1] == ("site_grow".into(), "exact".into(), Some(10_000), Some(30_500)),
        "{to_the_end:?}"
    );
    let back = at(&[&second, &first])?;
    ensure!(
        back["delta_bytes"]["malloc"].as_i64() == both["delta_bytes"]["malloc"].as_i64().map(|bytes| -bytes)
    );
    let same = [
        "diff".as_ref(),
        capture.as_os_str(),
        "--at".as_ref(),
        OsStr::new(&first),
        "--at".as_ref(),
        OsStr::new(&first),
    ];
    ensure!(offheap(same)?.status.code() == Some(USAGE), "a moment is compared with itself");
    pictures(
        &finished,
        &[capture.as_os_str(), "--at".as_ref(), first.as_ref(), "--at".as_ref(), second.as_ref()],
    )
}

/// The flame graph is well-formed, what grew is red, what shrank is blue, what did not change is neither.
fn pictures(finished: &Finished, sides: &[&OsStr]) -> Result {
    let path = finished.directory().join("diff.svg");
    let fixed = ["diff", "--lens", "malloc", "--format", "svg", "-o"].map(OsStr::new);
    offheap_output(fixed.into_iter().chain([path.as_os_str()]).chain(sides.iter().copied()))?;
    let svg = fs::read_to_string(&path)?;
    let checked = Command::new("python3")
        .args(["-c", "import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])"])
        .arg(&path)
        .output()
        .context("cannot run `python3`")?;
    ensure!(checked.status.success(), "not well-formed: {}", String::from_utf8_lossy(&checked.stderr));
    let color = |function: &str| -> Result<(i32, i32, i32)> {
        let at =
            svg.find(&format!("<title>{function} (")).with_context(|| format!("no {function} in {svg}"))?;
        let rest = svg.get(at..).unwrap_or_default();
        let rgb =
            rest.split("fill=\"rgb(").nth(1).and_then(|rest| rest.split(')').next()).context("no colour")?;
        let parts: Vec<i32> =
            rgb.split(',').map(|part| part.trim().parse()).collect::<std::result::Result<_, _>>()?;
        let [red, green, blue] = parts.as_slice() else { anyhow::bail!("not a colour: {rgb}") };
        Ok((*red, *green, *blue))
    };
    let (grew, shrank, same) = (color("site_grow")?, color("site_hold")?, color("site_same")?);
    ensure!(grew.0 > grew.2 + 50, "not red: {grew:?}");
    ensure!(shrank.2 > shrank.0 + 50, "not blue: {shrank:?}");
    ensure!((same.0 - same.2).abs() < 20, "{same:?}");
    Ok(())
}

/// A program in a directory of its own under the same name, whatever its build.
fn install(build: &str, directory: &Path) -> Result<PathBuf> {
    let path = directory.join("server");
    // A new file, as an installation makes it: one that runs cannot be written.
    let fresh = directory.join("server.new");
    fs::copy(build::target(build)?, &fresh)?;
    fs::rename(&fresh, &path)?;
    Ok(path)
}

fn run(program: &Path, orders: &[&str]) -> Result<Finished> {
    let mut target = Target::start_command(Command::new(program))?;
    let recording = Recording::attach(&target, &QUICK)?;
    for order in orders {
        target.order(order)?;
    }
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    Ok(finished)
}

#[test]
fn a_restart_and_a_rebuild() -> Result {
    require!();
    let directory = tempfile::tempdir()?;
    let before = ["grow 10 1000", "hold 100 64", "same 5 50"];
    let after = ["grow 30 1000", "hold 100 64", "drop 75", "same 5 50", "fresh 3 7000"];
    let wanted = |how| {
        [
            ("site_fresh", "alone", None, Some(21_000)),
            ("site_grow", how, Some(10_000), Some(30_000)),
            ("site_hold", how, Some(6400), Some(1600)),
            ("site_same", how, Some(250), Some(250)),
        ]
    };
    let program = install("versions", directory.path())?;
    let old = run(&program, &before)?;
    let restarted = run(&program, &after)?;
    let (first, second) = (old.capture(), restarted.capture());
    let restart = diff(&[first.as_os_str(), second.as_os_str()])?;
    expect(&restart, &wanted("exact"))?;
    ensure!(restart["rebuilt"] == Value::Array(Vec::new()), "{}", restart["rebuilt"]);

    let rebuilt = run(&install("versions_rebuilt", directory.path())?, &after)?;
    let second = rebuilt.capture();
    let sides = [first.as_os_str(), second.as_os_str()];
    let rebuild = diff(&sides)?;
    expect(&rebuild, &wanted("names"))?;
    ensure!(rebuild["rebuilt"] == serde_json::json!(["server"]), "{}", rebuild["rebuilt"]);
    let build_id = |side: &Finished| -> Result<Value> {
        let report: Value = serde_json::from_str(&side.report_json(&["--lens", "malloc"])?)?;
        Ok(report["sites"][0]["stack"][0]["build_id"].clone())
    };
    ensure!(build_id(&old)? != build_id(&rebuilt)?, "it is the same build");
    let text = offheap_output([OsStr::new("diff")].into_iter().chain(sides))?;
    ensure!(text.contains("by function names: server differ"), "{text}");
    ensure!(text.contains("+20,000") || text.contains("+19.5 KiB"), "{text}");

    // What is hidden is hidden on both sides.
    let rules = directory.path().join("known.supp");
    fs::write(&rules, "leak:^site_grow$\n")?;
    let hidden = diff(&[sides[0], sides[1], "--suppressions".as_ref(), rules.as_os_str()])?;
    ensure!(rows(&hidden)?.iter().all(|row| row.0 != "site_grow"), "{hidden}");
    let sums = &hidden["suppressed"][0];
    ensure!(sums["before_bytes"] == 10_000 && sums["after_bytes"] == 30_000 && sums["rows"] == 1, "{sums}");
    Ok(())
}

/// A new build is installed while the old one runs: its file is gone, and its name still the same.
#[test]
fn a_build_that_was_replaced_while_it_ran() -> Result {
    require!();
    let directory = tempfile::tempdir()?;
    let program = install("versions", directory.path())?;
    let mut target = Target::start_command(Command::new(&program))?;
    let program = install("versions_rebuilt", directory.path())?;
    let recording = Recording::attach(&target, &QUICK)?;
    target.order("grow 10 1000")?;
    let old = recording.stop()?;
    target.finish_well()?;
    old.expect_status(COMPLETE)?;
    let new = run(&program, &["grow 12 1000"])?;
    let (first, second) = (old.capture(), new.capture());
    let compared = diff(&[first.as_os_str(), second.as_os_str()])?;
    expect(&compared, &[("site_grow", "names", Some(10_000), Some(12_000))])
}
