//! The command line: one file per command, all of them short; the work is done below.
//!
//! Exit codes: 0 done, 1 failed, 2 the command or a configuration file is wrong. What a command
//! found out goes to standard output, everything else to standard error; with `--json` standard
//! output is JSON also when the command failed. Problems of files are printed by `report`.

mod bill;
mod check;
mod context;
mod deploy;
mod doctor;
mod logs;
mod remove;
mod run;
mod sleep;
mod status;
mod table;
mod time;
mod units;
mod usage;
mod wake;

use std::process::ExitCode;

use clap::{
    CommandFactory, Parser, Subcommand,
    error::{ContextKind, ContextValue},
};

use crate::{conduit::client, report::Report};
use context::{Context, print};
use units::once;

/// The exit code of a command that failed.
const FAILED: u8 = 1;
/// The exit code of a wrong command line or configuration; clap uses the same.
const WRONG: u8 = 2;

/// An edge proxy that wakes apps from snapshots of their running processes.
#[derive(Debug, Parser)]
#[command(name = "edgepoint", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    context: Context,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Arguments),
    /// The proxy process; the supervisor starts it
    #[command(hide = true, after_help = "Example:\n  edgepoint serve")]
    Serve,
    Check(check::Arguments),
    Deploy(deploy::Arguments),
    Remove(remove::Arguments),
    Status(status::Arguments),
    Wake(wake::Arguments),
    Sleep(sleep::Arguments),
    Logs(logs::Arguments),
    Usage(usage::Arguments),
    Bill(bill::Arguments),
    Doctor(doctor::Arguments),
}

/// A wrong command line that clap could not see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Wrong(String);

/// A failure that has been printed already.
#[derive(Debug, thiserror::Error)]
#[error("failed")]
struct Told;

/// Files are wrong, and that has been printed already.
#[derive(Debug, thiserror::Error)]
#[error("wrong")]
struct Invalid;

/// Reads the command line, does what it says, and prints what came of it.
pub fn main() -> ExitCode {
    let Cli { context, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return unread(error),
    };
    let result = match command {
        Command::Run(arguments) => run::run(&context, &arguments),
        Command::Serve => run::serve(),
        Command::Check(arguments) => check::run(&context, &arguments),
        Command::Deploy(arguments) => wait(deploy::run(&context, &arguments)),
        Command::Remove(arguments) => wait(remove::run(&context, &arguments)),
        Command::Status(arguments) => wait(status::run(&context, &arguments)),
        Command::Wake(arguments) => wait(wake::run(&context, &arguments)),
        Command::Sleep(arguments) => wait(sleep::run(&context, &arguments)),
        Command::Logs(arguments) => wait(logs::run(&context, &arguments)),
        Command::Usage(arguments) => wait(usage::run(&context, &arguments)),
        Command::Bill(arguments) => wait(bill::run(&context, &arguments)),
        Command::Doctor(arguments) => wait(doctor::run(&context, &arguments)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(tell(&context, &error)),
    }
}

/// Answers a command line that asks for help, or that is wrong.
fn unread(mut error: clap::Error) -> ExitCode {
    hide(&mut error);
    let json = std::env::args_os().any(|argument| argument == "--json");
    if json && error.use_stderr() {
        let context = Context { config: None, json };
        return ExitCode::from(tell(&context, &Wrong(problem_of(&error)).into()));
    }
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(WRONG))
}

/// Commands that help does not show are not named by errors either.
fn hide(error: &mut clap::Error) {
    let cli = Cli::command();
    let is_hidden = |name: &str| cli.find_subcommand(name).is_some_and(|c| c.is_hide_set());
    for kind in [ContextKind::ValidSubcommand, ContextKind::SuggestedSubcommand] {
        let shown = match error.get(kind) {
            Some(ContextValue::Strings(names)) => {
                names.iter().filter(|name| !is_hidden(name)).cloned().collect::<Vec<_>>()
            }
            _ => continue,
        };
        error.remove(kind);
        if !shown.is_empty() {
            error.insert(kind, ContextValue::Strings(shown));
        }
    }
}

/// What is wrong with a command line, in one line and without the usage.
fn problem_of(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let told = |line: &&str| !line.starts_with("Usage:") && !line.starts_with("For more");
    let lines: Vec<&str> = text.lines().take_while(told).map(str::trim).collect();
    let line = lines.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
    line.trim_start_matches("error: ").to_owned()
}

/// Runs a command that waits for sockets.
fn wait<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}

/// Prints a failure and says which exit code it has.
fn tell(context: &Context, error: &anyhow::Error) -> u8 {
    if error.is::<Told>() {
        return FAILED;
    }
    if error.is::<Invalid>() {
        return WRONG;
    }
    if let Some(report) = error.downcast_ref::<Report>() {
        if context.json {
            let _ = context.print_json(&report.located());
        } else {
            eprint!("{report}");
        }
        return WRONG;
    }
    if context.json {
        let _ = context.print_json(&failure(error));
    } else {
        eprintln!("error: {}", words(error));
    }
    if error.is::<Wrong>() { WRONG } else { FAILED }
}

/// A failure as a program reads it: the edgepoint's own problem, or one with the same members.
fn failure(error: &anyhow::Error) -> serde_json::Value {
    let problem = match error.downcast_ref::<client::Error>() {
        Some(client::Error::Refused(problem)) => serde_json::to_value(problem).ok(),
        _ => None,
    };
    let title = if error.is::<Wrong>() { "the command line is wrong" } else { "failed" };
    problem.unwrap_or_else(|| serde_json::json!({"title": title, "detail": words(error)}))
}

/// The error and its reasons, each once.
fn words(error: &anyhow::Error) -> String {
    if let Some(client::Error::Refused(problem)) = error.downcast_ref() {
        let mut problem = problem.clone();
        problem.detail = once(&problem.detail).to_owned();
        return problem.to_string();
    }
    let mut text = String::new();
    for reason in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = reason;
        } else if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example_and_takes_the_global_options() {
        let mut cli = Cli::command();
        cli.build();
        for command in cli.get_subcommands().filter(|command| command.get_name() != "help") {
            let name = command.get_name();
            let example = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(example.contains(&format!("edgepoint {name}")), "{name}: {example:?}");
            for option in ["config", "json"] {
                assert!(command.get_arguments().any(|a| a.get_id() == option), "{name} {option}");
            }
            assert!(command.get_about().is_some(), "{name} says not what it does");
        }
    }

    #[test]
    fn wrong_files_and_options_have_another_exit_code_than_failures() {
        let context = Context::default();
        let mut report = Report::new();
        report.file_error("edgepoint.toml", "wrong".into(), None);
        assert_eq!(tell(&context, &report.into()), WRONG);
        assert_eq!(tell(&context, &Wrong("--since".into()).into()), WRONG);
        assert_eq!(tell(&context, &anyhow::anyhow!("the disk is full")), FAILED);
        assert_eq!(tell(&context, &Told.into()), FAILED);
        assert_eq!(tell(&context, &Invalid.into()), WRONG);
    }

    /// The problem of a command line.
    fn wrong(line: &str) -> String {
        let mut error = Cli::try_parse_from(line.split(' ')).unwrap_err();
        hide(&mut error);
        problem_of(&error)
    }

    #[test]
    fn a_wrong_command_line_is_one_line_without_the_usage() {
        for (line, expected) in [
            (
                "edgepoint --json deploy",
                "the following required arguments were not provided: <DIR>",
            ),
            (
                "edgepoint usage --by week",
                "invalid value 'week' for '--by <PERIOD>' [possible values: hour, day]",
            ),
            ("edgepoint status UPPER", "invalid value 'UPPER' for '[APP]': "),
            ("edgepoint sleeep shop", "unrecognized subcommand 'sleeep' "),
        ] {
            let problem = wrong(line);
            assert!(problem.starts_with(expected), "{line}: {problem:?}");
            assert!(!problem.contains("Usage") && !problem.contains('\n'), "{problem:?}");
        }
        let json = failure(&Wrong("--since".into()).into());
        assert_eq!(json["title"], "the command line is wrong");
        assert_eq!(json["detail"], "--since");
    }

    #[test]
    fn a_hidden_command_is_in_no_help_and_in_no_error() {
        for line in ["edgepoint --json", "edgepoint serv", "edgepoint"] {
            let problem = wrong(line);
            assert!(!problem.contains("serve,") && !problem.contains("'serve'"), "{problem}");
        }
        assert!(wrong("edgepoint --json").contains("[subcommands: run, check, deploy"));
        assert!(!Cli::command().render_long_help().to_string().contains("serve "));
    }

    #[test]
    fn a_reason_that_was_said_is_not_said_again() {
        let error = anyhow::anyhow!("no such file").context("cannot read x: no such file");
        assert_eq!(words(&error), "cannot read x: no such file");
        let error = anyhow::anyhow!("no such file").context("cannot read x");
        assert_eq!(words(&error), "cannot read x: no such file");
    }
}
