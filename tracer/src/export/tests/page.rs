//! The page in a real browser.
//!
//! `OFFHEAP_SCREENSHOTS=DIR` keeps pictures: light, dark, narrow.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{hostile, program};
use crate::capture::fixture::{Recording, leaky, resident, server, watched};
use crate::export::html;
use crate::report::tests::profile;

/// What the browser makes of a page, as markup after its scripts have run.
fn rendered(browser: &str, recording: &Recording, name: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.html");
    let mut out = Vec::new();
    html(&profile(recording), &mut out).unwrap();
    fs::write(&page, &out).unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(browser)
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
            ])
            .arg(format!("--user-data-dir={}", dir.path().join("user").display()))
            .args(["--virtual-time-budget=3000", "--no-first-run", "--disable-extensions"])
            .args(arguments)
            .arg(format!("file://{}", page.display()))
            .env("HOME", dir.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    if let Some(kept) = std::env::var_os("OFFHEAP_SCREENSHOTS") {
        for (kind, size, more) in [
            ("light", "1366,2400", None),
            ("dark", "1366,2400", Some("--blink-settings=preferredColorScheme=0")),
            ("narrow", "500,3600", None),
        ] {
            let picture = Path::new(&kept).join(format!("{name}-{kind}.png"));
            let (picture, size) =
                (format!("--screenshot={}", picture.display()), format!("--window-size={size}"));
            let arguments: Vec<&str> = [picture.as_str(), &size].into_iter().chain(more).collect();
            run(&arguments);
        }
    }
    run(&["--dump-dom"])
}

#[test]
fn the_page_is_drawn_by_a_browser() {
    let Some(browser) = program(&["chromium", "chromium-browser", "google-chrome"]) else { return };
    let text = rendered(&browser, &resident(), "resident");
    assert!(text.contains("data-ready=\"yes\""), "the script ran to its end");
    let body = text.split("<main").nth(1).unwrap();
    for wanted in [
        "node (pid 4242)",
        "Where RSS lies",
        "leak_scratch(unsigned long)",
        "12.0 MiB",
        "Flame graph",
        "<canvas",
    ] {
        assert!(body.contains(wanted), "{wanted}");
    }
    assert_eq!(body.matches("class=\"uplot").count(), 4, "RSS, ledger, both kinds of sites");
    assert!(body.matches("class=\"frame").count() >= 4);
    for (recording, name) in
        [(leaky(), "leaky"), (server(), "server"), (watched(), "watched"), (Recording::new(), "empty")]
    {
        let text = rendered(&browser, &recording, name);
        assert!(text.contains("data-ready=\"yes\""), "{name}");
    }
}

#[test]
fn hostile_names_are_inert_in_a_browser() {
    let Some(browser) = program(&["chromium", "chromium-browser", "google-chrome"]) else { return };
    let text = rendered(&browser, &hostile(), "hostile");
    assert!(text.contains("data-ready=\"yes\""));
    assert!(!text.contains("data-owned"), "a name was run");
    let body = text.split("<main").nth(1).unwrap();
    assert!(!body.contains("<script") && !body.contains("<img"), "a name became an element");
    assert!(body.contains("&lt;/script&gt;&lt;script&gt;"), "it is shown as text");
}
