//! `edgepoint doctor`: is this host fit for an edgepoint? Each thing it needs is tried rather than
//! looked up where that is possible, and each failure comes with its remedy.
//!
//! It needs no edgepoint and leaves nothing behind. What only root can try is not tried by others.

mod host;
mod place;
mod selftest;

use std::fmt;

use serde::Serialize;

use super::{Context, Told, print};
use crate::{
    config::{self, Config},
    report::Report,
};

/// Check whether this host has what an edgepoint needs, and try a real park and wake
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo edgepoint doctor
  sudo edgepoint doctor --quick
  sudo edgepoint doctor --json | jq '.[] | select(.status != \"ok\")'")]
pub struct Arguments {
    /// Leave out the self-test that parks and wakes a small app
    #[arg(long)]
    quick: bool,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could.
    Warn,
    /// It does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    name: &'static str,
    status: Status,
    detail: String,
    remedy: Option<String>,
}

fn ok(name: &'static str, detail: impl Into<String>) -> Finding {
    Finding { name, status: Status::Ok, detail: detail.into(), remedy: None }
}

fn warn(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
    let remedy = Some(remedy.into());
    Finding { name, status: Status::Warn, detail: detail.into(), remedy }
}

fn fail(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { status: Status::Fail, ..warn(name, detail, remedy) }
}

/// What only root can try, asked by somebody else.
fn untried(name: &'static str) -> Finding {
    warn(name, "not tried", "run this command as root")
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.status {
            Status::Ok => "ok  ",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        writeln!(f, "{word} {} {}", self.name, self.detail.replace(char::is_control, " "))?;
        match &self.remedy {
            Some(remedy) => writeln!(f, "     remedy: {remedy}"),
            None => Ok(()),
        }
    }
}

/// Runs the command.
pub async fn run(context: &Context, arguments: &Arguments) -> anyhow::Result<()> {
    let mut findings = Vec::new();
    // One after the other: the self-test takes a moment.
    let tell = |finding: &Finding| {
        if context.json { Ok(()) } else { print(&finding.to_string()) }
    };
    let (config, finding) = configuration(context);
    tell(&finding)?;
    findings.push(finding);
    let root = host::is_root();
    for finding in host::check(root).into_iter().chain(place::check(&config, root)) {
        tell(&finding)?;
        findings.push(finding);
    }
    if !arguments.quick {
        let finding = match obstacle(&findings) {
            _ if !root => untried(selftest::NAME),
            Some(name) => {
                let detail = format!("not tried, because {name} failed");
                fail(selftest::NAME, detail, "mend that first")
            }
            None => selftest::check(&config).await,
        };
        tell(&finding)?;
        findings.push(finding);
    }
    if context.json {
        context.print_json(&findings)?;
    }
    let failed = findings.iter().any(|finding| finding.status == Status::Fail);
    if failed { Err(Told.into()) } else { Ok(()) }
}

/// What failed that the self-test needs, if anything.
fn obstacle(findings: &[Finding]) -> Option<&'static str> {
    let needed = |finding: &&Finding| {
        finding.status == Status::Fail && !["configuration", "open files"].contains(&finding.name)
    };
    findings.iter().find(needed).map(|finding| finding.name)
}

/// The configuration as far as there is one; else its defaults, so that the rest can be checked.
fn configuration(context: &Context) -> (Config, Finding) {
    const NAME: &str = "configuration";
    let finding = match context.found_config() {
        None => {
            let remedy = "write an edgepoint.toml, or name one with --config";
            warn(NAME, "there is none; defaults are assumed", remedy)
        }
        Some(path) => match (context.settings(), config::load(&path)) {
            (Ok(config), Ok(_)) => return (config, ok(NAME, path.display().to_string())),
            (Ok(config), Err(_)) => {
                let detail = format!("{} has policies with errors", path.display());
                return (config, fail(NAME, detail, "`edgepoint check` shows them"));
            }
            (Err(_), _) => {
                let detail = format!("{} has errors; defaults are assumed", path.display());
                fail(NAME, detail, "`edgepoint check` shows them")
            }
        },
    };
    (defaults(), finding)
}

/// What an `edgepoint.toml` with the least in it says.
fn defaults() -> Config {
    let text = "[listen]\nhttp = [\"127.0.0.1:0\"]\n";
    let base = std::path::Path::new("/etc/edgepoint");
    match config::parse("defaults", text, base, &mut Report::new()) {
        Some(config) => config,
        // The text above is right, and a test says so.
        None => unreachable!("the default configuration is wrong"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_a_configuration() {
        assert_eq!(defaults().listen.http.len(), 1);
        assert!(defaults().directories.state.is_absolute());
    }

    #[test]
    fn a_finding_is_a_line_and_a_failure_has_its_remedy() {
        assert_eq!(ok("kernel", "6.18").to_string(), "ok   kernel 6.18\n");
        let finding = fail("cgroup", "no\nmemory", "boot with it");
        assert_eq!(finding.to_string(), "FAIL cgroup no memory\n     remedy: boot with it\n");
        let json = serde_json::to_value(untried("x")).unwrap();
        assert_eq!(json["status"], "warn");
    }

    #[test]
    fn the_self_test_is_left_out_where_it_cannot_succeed() {
        let good = [ok("root", "yes"), warn("x", "", ""), ok("CRIU", "4.2")];
        assert_eq!(obstacle(&good), None);
        assert_eq!(obstacle(&[fail("configuration", "", "")]), None);
        let bad = [ok("root", "yes"), fail("CRIU", "", "")];
        assert_eq!(obstacle(&bad), Some("CRIU"));
    }

    #[test]
    fn a_broken_configuration_is_a_finding_and_not_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("edgepoint.toml");
        let context = Context { config: Some(file.clone()), json: false };
        std::fs::write(&file, "nonsense").unwrap();
        assert_eq!(configuration(&context).1.status, Status::Fail);
        // Its policies are missing, its directories are known.
        let text = "[listen]\nhttp = [\"127.0.0.1:0\"]\n[directories]\nstate = \"s\"\n";
        std::fs::write(&file, text).unwrap();
        let (config, finding) = configuration(&context);
        assert_eq!(finding.status, Status::Fail);
        assert_eq!(config.directories.state, directory.path().join("s"));
        std::fs::create_dir(directory.path().join("policies")).unwrap();
        assert_eq!(configuration(&context).1.status, Status::Ok);
    }
}
