//! `offheap completions` and `offheap man`.

use std::io::Write;

use anyhow::{Context, Result, bail};
use clap_mangen::Man;

use crate::cli;
use crate::cli::plan::Shell;

/// Writes completions for a shell.
pub fn print_completions(shell: Shell, out: &mut dyn Write) -> Result<()> {
    use clap_complete::{Shell as Generator, generate};
    let generator = match shell {
        Shell::Bash => Generator::Bash,
        Shell::Zsh => Generator::Zsh,
        Shell::Fish => Generator::Fish,
    };
    // The generator panics when it cannot write.
    let mut text = Vec::new();
    generate(generator, &mut cli::command(), "offheap", &mut text);
    out.write_all(&text).context("write completions")
}

/// Writes the manual page of the program, or of one of its commands.
pub fn print_man(command: Option<&str>, out: &mut dyn Write) -> Result<()> {
    let mut program = cli::command();
    program.build();
    let page = match command {
        None => program,
        Some(name) => match program.find_subcommand(name) {
            Some(command) => command.clone().display_name(format!("offheap-{name}")),
            None => bail!("no command `{name}`; `offheap --help` lists them"),
        },
    };
    Man::new(page).render(out).context("write the manual page")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    fn completions(shell: Shell) -> String {
        let mut text = Vec::new();
        print_completions(shell, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn completions_know_commands_and_options_in_every_shell() {
        for name in Shell::NAMES {
            let text = completions(Shell::from_name(name).unwrap());
            for word in ["record", "doctor", "min-age"] {
                assert!(text.contains(word), "{name}: {word}");
            }
        }
    }

    #[test]
    fn bash_accepts_its_completions() {
        let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
        bash.stdin.take().unwrap().write_all(completions(Shell::Bash).as_bytes()).unwrap();
        assert!(bash.wait().unwrap().success());
    }

    fn man(command: Option<&str>) -> Result<String> {
        let mut text = Vec::new();
        print_man(command, &mut text)?;
        Ok(String::from_utf8(text)?)
    }

    #[test]
    fn the_program_and_each_command_have_a_page() {
        let program = man(None).unwrap();
        assert!(program.contains(".TH offheap 1") && program.contains("record"), "{program}");
        assert!(!program.contains("demo\\-target"));
        let record = man(Some("record")).unwrap();
        assert!(
            record.contains(".TH offheap-record 1") && record.contains("max\\-live\\-blocks"),
            "{record}"
        );
        assert!(man(Some("nonsense")).is_err());
    }
}
