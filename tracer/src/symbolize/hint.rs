//! Which switch or command makes a runtime name the code it makes.

use crate::model::{Runtime, Target};

/// Advice for a target whose run-time-made code has frames without names; `None` where none is unnamed, nothing is
/// known that would help, or the command line has it already.
pub fn hint_for(runtime: &Runtime, target: &Target, unnamed_jit_frames: u64) -> Option<String> {
    if unnamed_jit_frames == 0 {
        return None;
    }
    let has = |switch: &str| target.cmdline.iter().any(|argument| argument == switch);
    let tgid = target.tgid;
    let advice = match (runtime.name.as_str(), runtime.version.as_deref().and_then(major_minor)) {
        ("node", _) if has("--perf-basic-prof") => return None,
        ("node", _) => "start Node with `--perf-basic-prof` to name JavaScript functions, and with \
             `--interpreted-frames-native-stack` to tell interpreted ones apart"
            .to_owned(),
        ("jvm", Some((..17, _))) => {
            let switch =
                if has(FRAME_POINTERS) { "" } else { "start the JVM with `-XX:+PreserveFramePointer` and " };
            format!(
                "{switch}attach perf-map-agent while recording to name compiled methods; Java 17 and later need no \
                 agent, but `jcmd {tgid} Compiler.perfmap`"
            )
        }
        ("jvm", _) => {
            let switch =
                if has(FRAME_POINTERS) { "" } else { "start the JVM with `-XX:+PreserveFramePointer` and " };
            format!(
                "{switch}run `jcmd {tgid} Compiler.perfmap` while recording to name compiled methods (Java 17 and later)"
            )
        }
        ("cpython", _) if ["perf", "-Xperf", "perf_jit", "-Xperf_jit"].into_iter().any(has) => return None,
        ("cpython", Some(version)) if version < (3, 12) => {
            "Python functions can be named from Python 3.12 on, with `python -X perf`; this one cannot"
                .to_owned()
        }
        ("cpython", _) => {
            "start Python with `-X perf` or `PYTHONPERFSUPPORT=1` (3.12 and later) to name Python \
             functions"
                .to_owned()
        }
        ("ruby", _) if has("--yjit-perf") => return None,
        ("ruby", _) => {
            "start Ruby with `--yjit --yjit-perf` (3.3 and later) to name compiled methods".to_owned()
        }
        ("dotnet", _) => {
            "start the program with `DOTNET_PerfMapEnabled=1` to name compiled methods".to_owned()
        }
        _ => return None,
    };
    let frames = if unnamed_jit_frames == 1 { "frame" } else { "frames" };
    Some(format!("{unnamed_jit_frames} {frames} of code made at run time without a name: {advice}"))
}

const FRAME_POINTERS: &str = "-XX:+PreserveFramePointer";

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

    fn hint(name: &str, version: Option<&str>, arguments: &[&str], frames: u64) -> Option<String> {
        let target = Target {
            tgid: 4711,
            inner_tgid: None,
            comm: String::new(),
            cmdline: ["x"].iter().chain(arguments).map(ToString::to_string).collect(),
            exe: None,
            runtime: None,
        };
        hint_for(&Runtime { name: name.into(), version: version.map(Into::into) }, &target, frames)
    }

    #[test]
    fn the_switch_fits_the_runtime_and_its_version() {
        for (name, version, expected) in [
            ("node", Some("20.20.2"), "--perf-basic-prof"),
            ("node", None, "--interpreted-frames-native-stack"),
            (
                "jvm",
                Some("21.0.2+13"),
                "-XX:+PreserveFramePointer` and run `jcmd 4711 Compiler.perfmap` while",
            ),
            ("jvm", Some("1.8.0_392"), "-XX:+PreserveFramePointer` and attach perf-map-agent"),
            ("jvm", Some("11.0.2"), "Java 17 and later need no agent"),
            ("jvm", None, "-XX:+PreserveFramePointer"),
            ("cpython", Some("3.11.7"), "from Python 3.12 on"),
            ("cpython", Some("3.12.1"), "start Python with `-X perf` or `PYTHONPERFSUPPORT=1`"),
            ("cpython", None, "-X perf"),
            ("ruby", Some("3.3.0"), "--yjit-perf"),
            ("dotnet", None, "DOTNET_PerfMapEnabled=1"),
        ] {
            let text = hint(name, version, &[], 3).unwrap_or_default();
            assert!(text.contains(expected) && text.starts_with("3 frames of"), "{name} {version:?}: {text}");
        }
    }

    #[test]
    fn what_the_command_line_has_is_not_advised() {
        assert_eq!(hint("node", None, &["--perf-basic-prof"], 3), None);
        assert_eq!(hint("cpython", None, &["-X", "perf"], 3), None);
        assert_eq!(hint("cpython", Some("3.13.0"), &["-Xperf"], 3), None);
        let java = hint("jvm", Some("17.0.1"), &[FRAME_POINTERS], 3).unwrap_or_default();
        assert!(java.contains("jcmd 4711 Compiler.perfmap") && !java.contains("start the JVM"), "{java}");
    }

    #[test]
    fn there_is_no_advice_without_need_or_knowledge() {
        assert_eq!(hint("node", None, &[], 0), None);
        // Its names are in the file, also of a stripped one.
        assert_eq!(hint("go", Some("1.22"), &[], 5), None);
        assert!(hint("node", None, &[], 1).is_some_and(|text| text.starts_with("1 frame of")));
    }
}
