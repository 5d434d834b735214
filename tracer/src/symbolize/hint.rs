//! Which switch makes a runtime name the code it makes.

use crate::model::Runtime;

/// Advice for a target whose run-time-made code has frames without names; `None` where none is unnamed, no
/// switch is known, or the command line has it already.
pub fn hint_for(runtime: &Runtime, cmdline: &[String], unnamed_jit_frames: u64) -> Option<String> {
    if unnamed_jit_frames == 0 {
        return None;
    }
    let has = |switch: &str| cmdline.iter().any(|argument| argument == switch);
    let advice = match (runtime.name.as_str(), runtime.version.as_deref().and_then(major_minor)) {
        ("node", _) if has("--perf-basic-prof") => return None,
        ("cpython", _) if has("perf") => return None,
        ("jvm", _) if has("-XX:+PreserveFramePointer") => {
            "run `jcmd PID Compiler.perfmap` while recording to name compiled methods (Java 17 and later)"
        }
        ("node", _) => {
            "start Node with `--perf-basic-prof` to name JavaScript functions, and with \
             `--interpreted-frames-native-stack` to tell interpreted ones apart"
        }
        ("jvm", Some((major, _))) if major < 17 => {
            "start the JVM with `-XX:+PreserveFramePointer`; Java 17 and later can also name compiled methods, with \
             `jcmd PID Compiler.perfmap`"
        }
        ("jvm", _) => {
            "start the JVM with `-XX:+PreserveFramePointer`, and run `jcmd PID Compiler.perfmap` while recording \
             (Java 17 and later)"
        }
        ("cpython", Some(version)) if version < (3, 12) => {
            "Python functions can be named from Python 3.12 on, with `python -X perf`"
        }
        ("cpython", _) => "start Python with `-X perf` (3.12 and later) to name Python functions",
        _ => return None,
    };
    let frames = if unnamed_jit_frames == 1 { "frame" } else { "frames" };
    Some(format!("{unnamed_jit_frames} {frames} of code made at run time without a name: {advice}"))
}

/// The first two numbers of a version; Java's old `1.8` is 8.
fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.trim_start_matches('v').split(|character: char| !character.is_ascii_digit());
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next().and_then(|number| number.parse().ok()).unwrap_or(0);
    Some(if major == 1 { (minor, 0) } else { (major, minor) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(name: &str, version: Option<&str>, frames: u64) -> Option<String> {
        hint_for(&Runtime { name: name.into(), version: version.map(Into::into) }, &[], frames)
    }

    #[test]
    fn the_switch_fits_the_runtime_and_its_version() {
        for (name, version, expected) in [
            ("node", Some("20.20.2"), "--perf-basic-prof"),
            ("node", None, "--interpreted-frames-native-stack"),
            ("jvm", Some("21.0.2+13"), "jcmd PID Compiler.perfmap` while"),
            ("jvm", Some("1.8.0_392"), "Java 17 and later can also"),
            ("jvm", None, "-XX:+PreserveFramePointer"),
            ("cpython", Some("3.11.7"), "from Python 3.12 on"),
            ("cpython", Some("3.12.1"), "start Python with `-X perf`"),
            ("cpython", None, "-X perf"),
        ] {
            let text = hint(name, version, 3).unwrap_or_default();
            assert!(text.contains(expected) && text.starts_with("3 frames of"), "{name} {version:?}: {text}");
        }
    }

    #[test]
    fn what_the_command_line_has_is_not_advised() {
        let hint = |name: &str, switch: &str| {
            hint_for(&Runtime { name: name.into(), version: None }, &["x".into(), switch.into()], 3)
        };
        assert_eq!(hint("node", "--perf-basic-prof"), None);
        assert_eq!(hint("cpython", "perf"), None);
        let java = hint("jvm", "-XX:+PreserveFramePointer").unwrap_or_default();
        assert!(java.contains("Compiler.perfmap") && !java.contains("start the JVM"), "{java}");
    }

    #[test]
    fn there_is_no_advice_without_need_or_knowledge() {
        assert_eq!(hint("node", None, 0), None);
        assert_eq!(hint("go", Some("1.22"), 5), None);
        assert!(hint("node", None, 1).is_some_and(|text| text.starts_with("1 frame of")));
    }
}
