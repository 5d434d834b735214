//! The views of a report: sums by function, object, start routine and size, trees, suppressions; against what the target
//! has allocated.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;

use anyhow::{Context, ensure};
use serde_json::Value;
use tracer_tests::target::Target;
use tracer_tests::tracer::{COMPLETE, FAILED, Finished, Recording, offheap, offheap_output};
use tracer_tests::{Result, require};

/// Nodes of the C library's tree: three words each.
const TREE: (u64, u64) = (8 * 24, 8);

fn record() -> Result<Finished> {
    let mut target = Target::start("views")?;
    let recording = Recording::attach(&target, &["--lens", "malloc"])?;
    let truth = target.work()?;
    let finished = recording.stop()?;
    target.finish_well()?;
    finished.expect_status(COMPLETE)?;
    truth.compare(&finished.report()?)?;
    Ok(finished)
}

fn json(finished: &Finished, arguments: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&finished.report_json(arguments)?)?)
}

/// Bytes and blocks of every group, by its name.
fn groups(finished: &Finished, by: &str) -> Result<BTreeMap<String, (u64, u64)>> {
    let report = json(finished, &["--by", by, "--no-built-in-suppressions"])?;
    let groups = report["groups"].as_array().context("no groups")?;
    let amount = |group: &Value| {
        let number = |field: &str| group[field].as_u64().with_context(|| format!("no {field} in {group}"));
        let name = match (group["least_size_bytes"].as_u64(), group["largest_size_bytes"].as_u64()) {
            (Some(least), Some(largest)) => format!("{least}-{largest}"),
            _ => group["name"].as_str().context("no name")?.to_owned(),
        };
        Ok((name, (number("outstanding_bytes")?, number("outstanding_count")?)))
    };
    let groups: BTreeMap<_, _> = groups.iter().map(amount).collect::<Result<_>>()?;
    let sum = groups.values().fold((0, 0), |sum, group| (sum.0 + group.0, sum.1 + group.1));
    let totals = &report["totals"];
    ensure!(
        (Some(sum.0), Some(sum.1))
            == (totals["outstanding_bytes"].as_u64(), totals["outstanding_count"].as_u64()),
        "by {by}: {sum:?} in {groups:?}, and {totals} in all"
    );
    Ok(groups)
}

/// What the C library allocates for a thread, once, is there as well: dtv and TLS are older than the attach or belong to
/// `pthread_create`, so the groups of the target's own functions are compared one by one.
#[test]
fn groups_have_what_the_target_allocated() -> Result {
    require!();
    let finished = record()?;
    let exactly = |by: &str, wanted: &[(&str, (u64, u64))]| -> Result {
        let groups = groups(&finished, by)?;
        for (name, amount) in wanted {
            ensure!(groups.get(*name) == Some(amount), "by {by}: {name} is not {amount:?} in {groups:?}");
        }
        Ok(())
    };
    exactly(
        "function",
        &[
            ("site_main", (240, 10)),
            ("site_small", (1000, 10)),
            ("site_large", (85_000, 4)),
            ("site_shared", (12_000, 4)),
        ],
    )?;
    exactly("thread", &[("run_small", (1000 + 6000, 12)), ("run_large", (85_000 + 6000, 6))])?;
    exactly(
        "size-class",
        &[
            ("64-127", (1000, 10)),
            ("2048-4095", (12_000, 4)),
            ("4096-8191", (15_000, 3)),
            ("65536-131071", (70_000, 1)),
        ],
    )?;
    let sizes = groups(&finished, "size-class")?;
    // 24 bytes: the blocks of site_main and the nodes of the tree, which the C library may make otherwise.
    ensure!(
        sizes.get("16-31").is_some_and(|group| group.0 >= 240 + TREE.0 && group.1 >= 10 + TREE.1),
        "{sizes:?}"
    );
    let objects = groups(&finished, "object")?;
    let of = |end: &str| objects.iter().find(|(path, _)| path.ends_with(end)).map(|(_, amount)| *amount);
    ensure!(of("/views") == Some((240 + 1000 + 85_000 + 12_000, 28)), "{objects:?}");
    let library = objects.iter().find(|(path, _)| path.contains("libc.so")).map(|(_, amount)| *amount);
    ensure!(library.is_some_and(|(bytes, count)| bytes >= TREE.0 && count >= TREE.1), "{objects:?}");
    Ok(())
}

/// What is not in the capture is not known, and not guessed.
#[test]
fn sizes_are_known_at_the_end_only() -> Result {
    require!();
    let mut target = Target::start("puppet")?;
    let recording = Recording::attach(&target, &["--lens", "malloc", "--interval", "100ms"])?;
    target.order("leak 10 100")?;
    let moment_ns = recording.wait_until_outstanding(1000)?;
    target.order("leak 1 3000")?;
    recording.wait_until_outstanding(4000)?;
    let finished = recording.stop()?;
    finished.expect_status(COMPLETE)?;
    let moment = format!("{moment_ns}ns");
    let early = json(&finished, &["--by", "size-class", "--at", &moment])?;
    let groups = early["groups"].as_array().context("no groups")?;
    let [unknown] = groups.as_slice() else { anyhow::bail!("{groups:?}") };
    ensure!(unknown["outstanding_bytes"] == 1000 && unknown["least_size_bytes"].is_null(), "{unknown}");
    ensure!(unknown["name"].as_str().is_some_and(|name| name.contains("earlier moment")), "{unknown}");
    let capture = finished.capture();
    let by_age = ["report", "--by", "size-class", "--min-age", "1s"].map(OsStr::new);
    let refused = offheap(by_age.into_iter().chain([capture.as_os_str()]))?;
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(FAILED) && message.contains("not kept by age"), "{message}");
    target.finish_well()
}

/// Rows of a tree with their names, joined by blanks.
fn rows(tree: &Value) -> Result<Vec<(u64, String, u64, u64)>> {
    let rows = tree["rows"].as_array().context("no rows")?;
    let row = |row: &Value| {
        let frames = row["frames"].as_array()?.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ");
        Some((row["depth"].as_u64()?, frames, row["bytes"].as_u64()?, row["count"].as_u64()?))
    };
    rows.iter().map(|found| row(found).with_context(|| format!("not a row: {found}"))).collect()
}

#[test]
fn trees_have_what_the_target_allocated() -> Result {
    require!();
    let finished = record()?;
    let capture = finished.capture();
    let tree = |direction: &str, least: &str| -> Result<Value> {
        let arguments = ["report", "--format", "json", "--no-built-in-suppressions", "--tree", direction];
        let arguments = arguments.into_iter().chain(["--tree-min-percent", least]).map(OsStr::new);
        let report: Value = serde_json::from_str(&offheap_output(arguments.chain([capture.as_os_str()]))?)?;
        Ok(report["tree"].clone())
    };
    let down = rows(&tree("top-down", "0")?)?;
    let at = |routine: &str| down.iter().position(|row| row.1.split(' ').any(|name| name == routine));
    let large = at("run_large").with_context(|| format!("{down:?}"))?;
    ensure!((down[large].2, down[large].3) == (91_000, 6), "{down:?}");
    let below: Vec<_> = down[large + 1..].iter().take_while(|row| row.0 > down[large].0).collect();
    for (function, amount) in [("site_large", (85_000, 4)), ("site_shared", (6000, 2))] {
        let row = below.iter().find(|row| row.1.split(' ').any(|name| name == function));
        ensure!(row.map(|row| (row.2, row.3)) == Some(amount), "{function}: {down:?}");
    }
    let up = rows(&tree("bottom-up", "0")?)?;
    let shared = up.iter().position(|row| row.0 == 0 && row.1.starts_with("site_shared"));
    let shared = shared.with_context(|| format!("{up:?}"))?;
    ensure!((up[shared].2, up[shared].3) == (12_000, 4), "{up:?}");
    let callers: Vec<_> = up[shared + 1..].iter().take_while(|row| row.0 > 0).collect();
    for caller in ["run_small", "run_large"] {
        let row = callers.iter().find(|row| row.1.starts_with(caller));
        ensure!(row.map(|row| (row.2, row.3)) == Some((6000, 2)), "{caller}: {up:?}");
    }
    // A tenth of some 98 KiB: only site_large and site_shared are that large, and the callers of the latter are not.
    let cut = tree("bottom-up", "10")?;
    let whole = cut["bytes"].as_u64().context("no bytes")?;
    ensure!(cut["left_out"]["bytes"].as_u64() == Some(whole - 85_000), "{cut}");
    let drawn = rows(&cut)?;
    ensure!(drawn.iter().filter(|row| row.0 == 0).map(|row| row.2).sum::<u64>() == whole, "{cut}");
    let arguments = ["report", "--tree", "top-down", "--tree-min-percent", "10"].map(OsStr::new);
    let text = offheap_output(arguments.into_iter().chain([capture.as_os_str()]))?;
    ensure!(text.contains("run_large") && text.contains("site_large"), "{text}");
    ensure!(text.contains("below 10 %, together") && !text.contains("site_main"), "{text}");
    Ok(())
}

/// A rule hides the site that it names and nothing else; what is hidden and what is left are the whole.
#[test]
fn suppressions_hide_what_they_name() -> Result {
    require!();
    let finished = record()?;
    let rules = finished.directory().join("known.supp");
    fs::write(&rules, "# known\nleak:^site_large$\nleak:nowhere\n")?;
    let rules = rules.to_str().context("not UTF-8")?;
    let amount = |report: &Value| {
        let totals = &report["totals"];
        totals["outstanding_bytes"].as_u64().zip(totals["outstanding_count"].as_u64()).context("no totals")
    };
    let culprits = |report: &Value| -> Vec<String> {
        let sites = report["sites"].as_array().map(Vec::as_slice).unwrap_or_default();
        let culprit = |site: &Value| {
            let index = usize::try_from(site["culprit"].as_u64()?).ok()?;
            site["stack"][index]["function"].as_str().map(str::to_owned)
        };
        sites.iter().filter_map(culprit).collect()
    };
    let all = json(&finished, &["--no-built-in-suppressions"])?;
    let rest = json(&finished, &["--no-built-in-suppressions", "--suppressions", rules])?;
    let (whole, left) = (amount(&all)?, amount(&rest)?);
    ensure!((whole.0 - left.0, whole.1 - left.1) == (85_000, 4), "{whole:?} {left:?}");
    let hidden = rest["suppressed"].as_array().context("no suppressed")?;
    let [hidden] = hidden.as_slice() else { anyhow::bail!("{hidden:?}") };
    ensure!(hidden["pattern"] == "^site_large$" && hidden["origin"] == "user", "{hidden}");
    ensure!(
        (hidden["outstanding_bytes"].as_u64(), hidden["outstanding_count"].as_u64())
            == (Some(85_000), Some(4)),
        "{hidden}"
    );
    let (before, after) = (culprits(&all), culprits(&rest));
    ensure!(before.iter().any(|name| name == "site_large") && !after.iter().any(|name| name == "site_large"));
    for name in ["site_main", "site_small", "site_shared"] {
        ensure!(after.iter().any(|known| known == name), "{name} is hidden, too: {after:?}");
    }
    let capture = finished.capture();
    let broken = finished.directory().join("broken.supp");
    fs::write(&broken, "leak:fine\nsite_large\n")?;
    let arguments =
        [OsStr::new("report"), capture.as_os_str(), "--suppressions".as_ref(), broken.as_os_str()];
    let refused = offheap(arguments)?;
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(FAILED) && message.contains("line 2"), "{message}");
    Ok(())
}
