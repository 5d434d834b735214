//! One line per sample, for spreadsheets and plots.

use crate::model::{RssSample, Target};
use crate::report::escape;

/// The first line.
pub const HEADER: &str =
    "elapsed_s,pid,comm,rss_bytes,anonymous_bytes,file_bytes,shared_bytes,swap_bytes,pss_bytes\n";

/// A sample; what was not read is empty.
pub fn line(target: &Target, sample: &RssSample) -> String {
    let number = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
    // Quoted as RFC 4180 says; control characters are made visible, so that a line stays a line.
    let comm = format!("\"{}\"", escape(&target.comm).replace('"', "\"\""));
    format!(
        "{:.3},{},{comm},{},{},{},{},{},{}\n",
        sample.elapsed_ns as f64 / 1e9,
        target.tgid,
        sample.rss_bytes,
        number(sample.anonymous_bytes),
        number(sample.file_bytes),
        number(sample.shared_bytes),
        number(sample.swap_bytes),
        number(sample.pss_bytes),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::series::tests::sample;

    #[test]
    fn a_name_stays_in_its_field() {
        let target = Target {
            tgid: 7,
            inner_tgid: None,
            comm: "a\",=\n".into(),
            cmdline: Vec::new(),
            exe: None,
            runtime: None,
        };
        assert_eq!(line(&target, &sample(2, 100)), "2.000,7,\"a\"\",=\\n\",100,50,50,0,,\n");
        assert_eq!(HEADER.matches(',').count(), 8);
    }
}
