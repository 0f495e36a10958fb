//! Finding things again: the connection to the agent, kept up for ever, and the file that says
//! which releases serve.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::Path,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::warn;

use super::{handle::Config, task::Outcome};
use crate::{
    agent::{
        client::{self, Client},
        protocol::{Answer, FailureKind, LiveInstance, StoredAppshot, Verb},
    },
    clock,
    model::{App, AppName, ReleaseId},
    telemetry,
};

/// Between two tries to reach the agent.
const RETRY: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(15);
/// An agent that starts beside us is there by then; nothing is said before.
const TELL_AFTER: Duration = Duration::from_secs(3);
/// A release younger than this may be about to be deployed.
const RELEASE_GRACE_SECONDS: u64 = 3_600;
/// Generations that a manager which did not end in order may have given out unseen.
const GENERATION_GAP: u64 = 1000;

/// What is there when the agent is reached.
pub(super) struct AgentUp {
    pub client: Client,
    pub served: Vec<Served>,
    pub instances: Vec<LiveInstance>,
    pub appshots: Vec<StoredAppshot>,
    /// Without those made just now.
    pub releases: Vec<ReleaseId>,
}

/// An app that served before this manager began.
pub(super) struct Served {
    pub release: ReleaseId,
    pub app: App,
    pub generation: u64,
    pub has_state: bool,
}

/// The file: by app, the release that serves and its newest generation.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Saved {
    /// Written by a manager that ended in order.
    pub clean: bool,
    /// The apps.
    pub apps: BTreeMap<AppName, SavedApp>,
}

/// One app of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedApp {
    pub release: ReleaseId,
    pub generation: u64,
    /// It keeps its state and has served: if nothing runs and nothing is parked, that is lost.
    #[serde(default)]
    pub has_state: bool,
}

impl Saved {
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        match fs::read_to_string(path) {
            // Beginning with none instead would remove every appshot.
            Ok(text) => serde_json::from_str(&text).map_err(|error| {
                io::Error::other(format!("{} is damaged: {error}", path.display()))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension("tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(temporary, path)
    }
}

/// Connects to the agent, however long it takes, and reports what is there; then reports events
/// until the connection breaks.
pub(super) fn connect(config: &Config, saved: Arc<Saved>, outcome: mpsc::Sender<Outcome>) {
    let config = config.clone();
    tokio::spawn(async move {
        let (began, mut told) = (clock::now(), false);
        let (up, mut events) = loop {
            match reach(&config, &saved).await {
                Ok(found) => break found,
                Err(error) => {
                    let late = began.elapsed() > TELL_AFTER;
                    if late && !std::mem::replace(&mut told, true) {
                        warn!(error = %telemetry::chain(&error), "waiting for the agent");
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
            if outcome.is_closed() {
                return;
            }
        };
        if outcome.send(Outcome::AgentUp(Box::new(up))).await.is_err() {
            return;
        }
        while let Some(ended) = events.recv().await {
            if outcome.send(Outcome::AgentEnded(ended)).await.is_err() {
                return;
            }
        }
        let _ = outcome.send(Outcome::AgentDown).await;
    });
}

async fn reach(
    config: &Config,
    saved: &Saved,
) -> Result<(AgentUp, mpsc::Receiver<client::Ended>), client::Error> {
    let (client, events) = Client::manage(&config.agent).await?;
    let instances = client.instances(PATIENCE).await?;
    let appshots = client.appshots(PATIENCE).await?;
    let releases = client.releases(PATIENCE).await?.into_iter();
    let releases = releases.filter(|release| release.age_s >= RELEASE_GRACE_SECONDS);
    let releases = releases.map(|release| release.id).collect();
    let mut served = Vec::new();
    for (name, saved_app) in &saved.apps {
        let release = saved_app.release.clone();
        match client.ask(Verb::Describe { release: release.clone() }, &[], PATIENCE).await {
            Ok((Answer::Described { app }, _)) => {
                let gap = if saved.clean { 0 } else { GENERATION_GAP };
                let of_images = appshots.iter().filter(|image| image.release == release);
                let newest = of_images.map(|image| image.generation).max().unwrap_or(0);
                let generation = saved_app.generation.max(newest) + gap;
                let has_state = saved_app.has_state;
                served.push(Served { release, app: *app, generation, has_state });
            }
            Err(client::Error::Refused(failure)) if failure.kind == FailureKind::Unknown => {
                warn!(app = %name, %release, "the release of a deployed app is gone");
            }
            Err(error) => return Err(error),
            Ok(_) => return Err(client::Error::Odd),
        }
    }
    Ok((AgentUp { client, served, instances, appshots, releases }, events))
}
