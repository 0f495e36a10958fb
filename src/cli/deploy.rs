//! `edgepoint deploy`: an app's directory becomes a release, and the release becomes live.
//!
//! The directory is checked here, handed to the agent as a descriptor (no path crosses its socket),
//! and made live by the manager, which starts it once and takes its golden appshot.

use std::{
    fs::File,
    io::{self, IsTerminal},
    os::fd::AsFd,
    path::PathBuf,
    time::Duration,
};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    Context, context, print,
    units::{millis, plain},
};
use crate::{
    agent::{
        client::{Client as Agent, Error},
        protocol::{Answer, FailureKind, Verb},
    },
    config,
    manager::Deployed,
    model::{App, ReleaseId},
};

/// The file name of the agent's socket in the run directory.
const AGENT_SOCKET: &str = "agent.sock";
/// Copying a release of 4 GiB, the largest, to a slow disk.
const REGISTER_DEADLINE: Duration = Duration::from_secs(300);
/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(100);

/// Make a release of an app's directory, and make it live
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  edgepoint deploy ./shop
  edgepoint deploy --json ./shop | jq -r .release")]
pub struct Arguments {
    /// The app: a directory with an app.toml and its files
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Runs the command.
pub async fn run(context: &Context, arguments: &Arguments) -> anyhow::Result<()> {
    let settings = context.settings()?;
    let app = config::load_app(&arguments.directory)?;
    let progress = Progress::new(context.json);
    let processes = match app.processes.len() {
        1 => "1 process".to_owned(),
        more => format!("{more} processes"),
    };
    let (name, provider, memory) = (&app.name, &app.provider, app.limits.memory);
    progress.done(&format!("checked {name} of {provider}: {processes}, {memory}"))?;

    progress.doing("looking for the edgepoint");
    let client = context::client(&settings);
    let live = client.status().await?;
    progress.doing("copying the files");
    let socket = settings.directories.run.join(AGENT_SOCKET);
    let agent = Agent::connect(&socket).await?;
    let release = register(&agent, app, arguments).await?;
    // Its name is a digest of its content: the same content is the same release.
    let same = live.iter().any(|app| app.release == release);
    let how = if same { "is the same as before" } else { "is ready" };
    progress.done(&format!("release {release} {how}"))?;

    progress.doing("starting it once, taking its appshot");
    let deployed = client.deploy(release).await?;
    for line in outcome(&deployed) {
        progress.done(&line)?;
    }
    progress.end();
    if context.json { context.print_json(&deployed) } else { Ok(()) }
}

async fn register(agent: &Agent, app: App, arguments: &Arguments) -> anyhow::Result<ReleaseId> {
    let directory = &arguments.directory;
    let opened = File::open(directory);
    let opened = opened.with_context(|| format!("cannot open {}", directory.display()))?;
    let verb = Verb::Register { app: Box::new(app) };
    let answer = agent.ask(verb, &[opened.as_fd()], REGISTER_DEADLINE).await;
    let hint = match &answer {
        Err(Error::Refused(failure)) if failure.kind == FailureKind::Forbidden => {
            "the agent refused the release: run this command as root"
        }
        _ => "the agent could not make the release",
    };
    match answer.context(hint)?.0 {
        Answer::Registered { release } => Ok(release),
        _ => Err(Error::Odd.into()),
    }
}

/// What happened, in lines.
fn outcome(deployed: &Deployed) -> Vec<String> {
    let mut lines = Vec::new();
    if deployed.changed {
        lines.push(format!("cold start {}", millis(deployed.cold_start_ms)));
    } else {
        lines.push("this release was live already".to_owned());
    }
    match (&deployed.golden, &deployed.golden_error) {
        (Some(golden), _) => lines.push(format!("golden appshot {}", golden.bytes)),
        (None, Some(error)) => {
            let reason = plain(error);
            lines.push(format!("no golden appshot, it will always start cold: {reason}"));
        }
        (None, None) => {}
    }
    if deployed.changed {
        lines.push(format!("{} is live", deployed.app));
    }
    lines
}

/// Lines for what is done and, on a terminal, a spinner for what is being done.
struct Progress {
    bar: ProgressBar,
    quiet: bool,
}

impl Progress {
    fn new(quiet: bool) -> Self {
        let shown = !quiet && io::stderr().is_terminal();
        let bar = if shown { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        if shown {
            bar.enable_steady_tick(TICK);
        }
        Self { bar, quiet }
    }

    fn doing(&self, what: &'static str) {
        self.bar.set_message(what);
    }

    fn done(&self, line: &str) -> anyhow::Result<()> {
        if self.quiet { Ok(()) } else { self.bar.suspend(|| print(&format!("{line}\n"))) }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::AppName;

    #[test]
    fn the_outcome_says_what_is_fast_and_what_is_not() {
        let deployed = Deployed {
            app: AppName::new("shop").unwrap(),
            release: ReleaseId::new("3f").unwrap(),
            changed: true,
            cold_start_ms: 80,
            golden: None,
            golden_error: Some("an open device".into()),
        };
        let lines = outcome(&deployed).join("\n");
        assert!(lines.starts_with("cold start 80 ms\n"), "{lines}");
        assert!(lines.contains("always start cold: an open device"), "{lines}");
        assert!(lines.ends_with("shop is live"), "{lines}");
        let lines = outcome(&Deployed { changed: false, golden_error: None, ..deployed });
        assert_eq!(lines, ["this release was live already"]);
    }
}
