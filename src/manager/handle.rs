//! The manager's face: a cheap clone that asks the owner task, and the fast path beside it.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use super::{
    boot,
    core::Answer,
    endpoint::Endpoint,
    error::Error,
    lease::{Directions, Lease, Wake},
    status::{AppStatus, Deployed, LogPart, Slept, Woken},
    task,
};
use crate::{
    clock, meter,
    model::{App, AppName, ProviderName, ReleaseId},
};

/// Messages that may wait for the owner task; callers wait when it is full.
const INBOX: usize = 4096;

/// How long a command may take: a deployment waits for the longest grace period (an hour) and for up
/// to a hundred warm-up requests, then takes an appshot.
pub const COMMAND_PATIENCE: Duration = Duration::from_secs(2 * 3_600);

/// Settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// The agent's socket.
    pub agent: PathBuf,
    /// Where to remember which releases serve.
    pub deployed: PathBuf,
    /// How long the agent may take for a restore.
    pub restore_timeout: Duration,
    /// How long the agent may take for a dump.
    pub dump_timeout: Duration,
    /// How often instances are sampled.
    pub sample_interval: Duration,
}

/// What an instance needs before requests are let in.
#[derive(Debug, Clone)]
pub struct Preparation {
    /// What it declares.
    pub app: Arc<App>,
    /// Its generation.
    pub generation: u64,
    /// Wait until its health check passes, for its grace period at most.
    pub until_ready: bool,
    /// Then send its warm-up requests.
    pub warm_up: bool,
    /// Call its after-restore hook.
    pub hook: bool,
}

/// What the manager needs done over HTTP, which it does not speak. The dispatcher does it.
#[async_trait]
pub trait Errands: Send + Sync {
    /// Makes an instance ready; an error says in words what it did wrong.
    async fn prepare(&self, endpoint: &Endpoint, preparation: &Preparation) -> Result<(), String>;
}

/// A message to the owner task.
#[derive(Debug)]
pub(super) enum Message {
    /// A request wants a lease.
    Acquire { app: AppName, entered: Instant, reply: oneshot::Sender<Result<Lease, Error>> },
    /// A person wants something.
    Command { command: Command, reply: oneshot::Sender<Result<Answer, Error>> },
    /// How is everything?
    Status { reply: oneshot::Sender<Vec<AppStatus>> },
    /// The ends of an app's logs.
    Logs { app: AppName, max_bytes: u64, reply: oneshot::Sender<Result<Vec<LogPart>, Error>> },
    /// Put everything to sleep and end.
    Shutdown { reply: oneshot::Sender<()> },
}

/// What people can ask for.
#[derive(Debug)]
#[allow(missing_docs)]
pub(super) enum Command {
    Deploy(ReleaseId),
    Remove(AppName),
    Wake(AppName, u32),
    Sleep(AppName),
}

/// The way to the manager.
#[derive(Debug, Clone)]
pub struct Handle {
    inbox: mpsc::Sender<Message>,
    directions: Arc<ArcSwap<Directions>>,
}

/// Starts the manager's task. It ends when it was told to shut down or every handle is gone. Fails if
/// what an earlier manager wrote down cannot be read.
pub fn start(
    config: Config,
    errands: Arc<dyn Errands>,
    meter: meter::Handle,
) -> io::Result<(Handle, tokio::task::JoinHandle<()>)> {
    let saved = Arc::new(boot::Saved::read(&config.deployed)?);
    let (inbox, messages) = mpsc::channel(INBOX);
    let directions = Arc::new(ArcSwap::from_pointee(Directions::default()));
    let task = task::Task::new(config, saved, errands, meter, directions.clone(), messages);
    let joined = tokio::spawn(task.run());
    Ok((Handle { inbox, directions }, joined))
}

fn ending() -> Error {
    Error::Unavailable("it is shutting down".into())
}

impl Handle {
    /// A slot of a running instance of `app`; wakes the app and waits if there is none. Dropping
    /// the future gives up the place.
    pub async fn acquire(&self, app: &AppName) -> Result<Lease, Error> {
        {
            let directions = self.directions.load();
            let Some(app) = directions.apps.get(app) else {
                return Err(match directions.complete {
                    true => Error::UnknownApp(app.clone()),
                    false => Error::Unavailable("it is starting".into()),
                });
            };
            if !app.is_crowded()
                && let Some(lease) = app.lease(Wake::None)
            {
                return Ok(lease);
            }
        }
        let (reply, lease) = oneshot::channel();
        let message = Message::Acquire { app: app.clone(), entered: clock::now(), reply };
        self.inbox.send(message).await.map_err(|_| ending())?;
        lease.await.map_err(|_| ending())?
    }

    /// Who pays for an app, if it is deployed.
    pub fn provider(&self, app: &AppName) -> Option<ProviderName> {
        let directions = self.directions.load();
        directions.apps.get(app).map(|directions| directions.app.provider.clone())
    }

    async fn command(&self, command: Command) -> Result<Answer, Error> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(Message::Command { command, reply }).await.map_err(|_| ending())?;
        match tokio::time::timeout(COMMAND_PATIENCE, answer).await {
            Ok(answer) => answer.map_err(|_| ending())?,
            Err(_) => Err(Error::Unavailable("it took too long".into())),
        }
    }

    /// Makes a release the one that serves.
    pub async fn deploy(&self, release: ReleaseId) -> Result<Deployed, Error> {
        match self.command(Command::Deploy(release)).await? {
            Answer::Deployed(deployed) => Ok(deployed),
            _ => Err(ending()),
        }
    }

    /// Ends an app and removes all that was made of it.
    pub async fn remove(&self, app: AppName) -> Result<(), Error> {
        self.command(Command::Remove(app)).await.map(drop)
    }

    /// Makes `count` instances of an app run.
    pub async fn wake(&self, app: AppName, count: u32) -> Result<Woken, Error> {
        match self.command(Command::Wake(app, count)).await? {
            Answer::Woken(woken) => Ok(woken),
            _ => Err(ending()),
        }
    }

    /// Puts all instances of an app to sleep.
    pub async fn sleep(&self, app: AppName) -> Result<Slept, Error> {
        match self.command(Command::Sleep(app)).await? {
            Answer::Slept(slept) => Ok(slept),
            _ => Err(ending()),
        }
    }

    /// All apps.
    pub async fn status(&self) -> Result<Vec<AppStatus>, Error> {
        let (reply, status) = oneshot::channel();
        self.inbox.send(Message::Status { reply }).await.map_err(|_| ending())?;
        status.await.map_err(|_| ending())
    }

    /// The last `max_bytes` of each of an app's log files.
    pub async fn logs(&self, app: AppName, max_bytes: u64) -> Result<Vec<LogPart>, Error> {
        let (reply, logs) = oneshot::channel();
        let message = Message::Logs { app, max_bytes, reply };
        self.inbox.send(message).await.map_err(|_| ending())?;
        logs.await.map_err(|_| ending())?
    }

    /// Parks what keeps its state, ends the rest, and ends the task.
    pub async fn shutdown(&self) {
        let (reply, done) = oneshot::channel();
        if self.inbox.send(Message::Shutdown { reply }).await.is_ok() {
            let _ = done.await;
        }
    }
}
