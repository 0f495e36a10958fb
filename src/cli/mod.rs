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

use clap::{Parser, Subcommand};

use crate::report::Report;
use context::{Context, print};

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
    let Cli { context, command } = Cli::parse();
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
    use crate::conduit::client::Error;
    let problem = match error.downcast_ref::<Error>() {
        Some(Error::Refused(problem)) => serde_json::to_value(problem).ok(),
        _ => None,
    };
    problem.unwrap_or_else(|| serde_json::json!({"title": "failed", "detail": words(error)}))
}

/// The error and its reasons, each once.
fn words(error: &anyhow::Error) -> String {
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
    use clap::CommandFactory;

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

    #[test]
    fn a_reason_that_was_said_is_not_said_again() {
        let error = anyhow::anyhow!("no such file").context("cannot read x: no such file");
        assert_eq!(words(&error), "cannot read x: no such file");
        let error = anyhow::anyhow!("no such file").context("cannot read x");
        assert_eq!(words(&error), "cannot read x: no such file");
    }
}
