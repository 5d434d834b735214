//! Where resident memory lies: for a person and for a program.

use crate::ledger::Reading;

/// How it is shown.
#[derive(Clone, Copy, Debug)]
pub struct RssOptions {
    /// Process id.
    pub tgid: u32,
    /// One row per class.
    pub by_class: bool,
    /// Columns.
    pub width: usize,
}

/// Text.
pub fn rss_text(reading: &Reading, _options: &RssOptions) -> String {
    let mut text = format!("rss {}\n", reading.ledger.rss_bytes);
    for row in &reading.ledger.rows {
        text.push_str(&format!("{:>10} K {:>10} K {:<16} {:>4} {}\n", row.rss_bytes / 1024, row.size_bytes/1024, row.class.name(), row.mapping_count, row.label.as_deref().unwrap_or("")));
    }
    for f in &reading.figures { text.push_str(&format!("{} | {} = {:?}\n", f.source, f.name, f.bytes.map(|b| b / 1024))); }
    for g in &reading.gaps { text.push_str(&format!("! {g}\n")); }
    text
}

/// JSON.
pub fn rss_json(reading: &Reading, options: &RssOptions) -> String {
    rss_text(reading, options)
}
