//! clap's errors in one line each: what, why, what to do.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::CliError;

/// A usage error whose text stays on one line, whatever was typed.
pub(super) fn usage(reason: &str) -> CliError {
    let line = reason.chars().flat_map(|character| {
        let escaped = character.is_control().then(|| character.escape_default());
        escaped.into_iter().flatten().chain((!character.is_control()).then_some(character))
    });
    CliError::Usage(line.collect())
}

/// Words clap's error as one of ours.
pub(super) fn explain(error: &clap::Error, command: &clap::Command, words: &[OsString]) -> CliError {
    let help = help_for(command, words);
    let argument =
        first(error, ContextKind::InvalidArg).map(|argument| bare(&argument).to_owned()).unwrap_or_default();
    let value = first(error, ContextKind::InvalidValue).unwrap_or_default();
    let reason = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            return CliError::Help(error.render().to_string());
        }
        ErrorKind::InvalidValue if value.is_empty() => {
            format!(
                "`{argument}` needs a value{}",
                choices(error).map(|list| format!(": {list}")).unwrap_or_default()
            )
        }
        ErrorKind::InvalidValue => {
            format!("`{argument} {value}` is not known; use {}", choices(error).unwrap_or(help))
        }
        ErrorKind::ValueValidation => {
            let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            format!("`{argument} {value}`: {source}")
        }
        ErrorKind::UnknownArgument => {
            match (misspelt_command(command, words), first(error, ContextKind::SuggestedArg)) {
                (Some(word), _) => not_a_command(&word),
                (None, Some(suggestion)) => {
                    format!("unknown argument `{argument}`; did you mean `{suggestion}`?")
                }
                (None, None) => format!("unknown argument `{argument}`; {help} lists what there is"),
            }
        }
        ErrorKind::MissingRequiredArgument => {
            let missing: Vec<_> =
                all(error, ContextKind::InvalidArg).iter().map(|argument| format!("`{argument}`")).collect();
            format!("missing {}; see {help}", missing.join(" and "))
        }
        ErrorKind::ArgumentConflict => match first(error, ContextKind::PriorArg) {
            Some(other) if bare(&other) != argument => {
                format!("`{argument}` and `{}` exclude each other; give one of them", bare(&other))
            }
            _ => format!("`{argument}` is given twice; give it once"),
        },
        ErrorKind::InvalidUtf8 => format!("an argument is not UTF-8 text; see {help}"),
        _ => {
            let text = error.render().to_string();
            let line = text.lines().next().unwrap_or_default();
            format!("{}; see {help}", line.strip_prefix("error: ").unwrap_or(line))
        }
    };
    usage(&reason)
}

/// What is said about a word that stands where a command or a process id should.
pub(super) fn not_a_command(word: &str) -> String {
    format!("`{word}` is neither a command nor a process id; `offheap --help` lists the commands")
}

/// The first word, if it was meant as a command and is none: clap takes it for a process id, and complains of
/// the next one.
fn misspelt_command(command: &clap::Command, words: &[OsString]) -> Option<String> {
    let word = words.get(1)?.to_str()?;
    let is_other = word.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    (!is_other && command.find_subcommand(word).is_none()).then(|| word.to_owned())
}

/// An argument without its placeholder: `--top` for `--top <N>`.
fn bare(argument: &str) -> &str {
    argument.split(' ').next().unwrap_or(argument)
}

/// The help of the command that was meant, as something to type.
fn help_for(command: &clap::Command, words: &[OsString]) -> String {
    let subcommand = words.iter().skip(1).find_map(|word| command.find_subcommand(word));
    match subcommand {
        Some(subcommand) => format!("`offheap {} --help`", subcommand.get_name()),
        None => "`offheap --help`".into(),
    }
}

fn choices(error: &clap::Error) -> Option<String> {
    let words: Vec<_> = all(error, ContextKind::ValidValue).iter().map(|word| format!("`{word}`")).collect();
    let (last, rest) = words.split_last()?;
    Some(if rest.is_empty() { last.clone() } else { format!("{} or {last}", rest.join(", ")) })
}

fn first(error: &clap::Error, kind: ContextKind) -> Option<String> {
    all(error, kind).into_iter().next()
}

fn all(error: &clap::Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => Vec::new(),
    }
}
