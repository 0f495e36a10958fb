//! What the core is told and what it asks for. Fields say what they are by their types.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    agent::protocol::{LiveInstance, StoredAppshot},
    appshot::Kind,
    manager::{
        error::Error,
        status::{Deployed, ImageStatus, Slept, Woken},
        waiting_room::Waiter,
    },
    model::{App, AppName, AppshotId, InstanceId, ReleaseId},
};

/// Names the caller of a command.
pub type Token = u64;

/// Why an effect failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// The image cannot be used; trying again will not help.
    Unusable(String),
    /// The agent knows no such instance or image.
    Unknown(String),
    /// There is no room now; trying again will help.
    Busy(String),
    /// It took too long or failed for another reason.
    Reason(String),
    /// The agent is away; what became of it is told by [`Event::Found`].
    AgentAway,
}

impl Failed {
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Unusable(reason)
            | Self::Unknown(reason)
            | Self::Busy(reason)
            | Self::Reason(reason) => reason.clone(),
            Self::AgentAway => "the agent is away".into(),
        }
    }
}

/// What happened. Fields say what they are by their types.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Event {
    /// A request found no instance and wants to wait.
    Request { app: AppName, waiter: Waiter, deadline: Instant },
    /// Requests wait although every slot of every running instance is taken.
    Crowded { app: AppName },
    /// Answer to [`Effect::Start`] and [`Effect::Restore`].
    Began { instance: InstanceId, result: Result<(), Failed> },
    /// Answer to [`Effect::Prepare`].
    Prepared { instance: InstanceId, result: Result<(), Failed> },
    /// A closed instance has no request left.
    Drained { instance: InstanceId },
    /// Answer to [`Effect::LookIdle`]; `None` while it has requests.
    Idle { instance: InstanceId, since: Option<Instant> },
    /// Answer to [`Effect::Park`].
    Parked { instance: InstanceId, result: Result<ImageStatus, Failed> },
    /// Answer to [`Effect::Stop`], or it ended by itself.
    Ended { instance: InstanceId },
    /// Answer to [`Effect::Stop`]: its processes do not end.
    NotStopped { instance: InstanceId },
    /// A release is to serve from now on.
    Deploy { app: Arc<App>, release: ReleaseId, token: Token },
    /// An app is to go.
    Remove { app: AppName, token: Token },
    /// Instances are to run.
    Wake { app: AppName, count: u32, token: Token },
    /// All instances are to sleep.
    Sleep { app: AppName, token: Token },
    /// The connection to the agent broke.
    Away,
    /// What the agent holds, after a (re)connection. Of releases only those that were not made
    /// just now: a deployment may be about to begin.
    Found { instances: Vec<LiveInstance>, appshots: Vec<StoredAppshot>, releases: Vec<ReleaseId> },
    /// A deadline may have passed.
    Tick,
}

/// What is to be done. Fields say what they are by their types.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Effect {
    /// Start an instance cold.
    Start { instance: InstanceId, release: ReleaseId, generation: u64 },
    /// Restore an instance.
    Restore { instance: InstanceId, appshot: AppshotId, generation: u64 },
    /// Sockets of an instance that was found running. Answered by [`Event::Began`].
    Adopt { instance: InstanceId },
    /// Wait until it answers; send warm-up requests; call its hook.
    Prepare { instance: InstanceId, until_ready: bool, warm_up: bool, hook: bool },
    /// Let requests in. Opens a closed one again.
    Open { instance: InstanceId },
    /// Let no request in; report [`Event::Drained`].
    Close { instance: InstanceId },
    /// Tell whether it is idle.
    LookIdle { instance: InstanceId },
    /// Take its appshot and end it.
    Park { instance: InstanceId, appshot: AppshotId, kind: Kind },
    /// End it.
    Stop { instance: InstanceId },
    /// Forget all about an instance that is no more.
    Drop { instance: InstanceId },
    /// Remove an appshot.
    Discard { appshot: AppshotId },
    /// Remove a release and its golden appshot.
    Forget { release: ReleaseId },
    /// Give free slots to those who wait.
    Admit { app: AppName },
    /// Send one away.
    Refuse { waiter: Waiter, error: Error },
    /// Answer a command.
    Answer { token: Token, answer: Result<Answer, Error> },
    /// Remember which releases serve.
    Save,
    /// Something that an operator may want to know.
    Note(Note),
}

/// Answers to commands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Answer {
    Deployed(Deployed),
    Removed,
    Woken(Woken),
    Slept(Slept),
}

/// Events for people and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Note {
    Woken { app: AppName, instance: InstanceId, restored: bool, took: Duration },
    WakeFailed { app: AppName, reason: String },
    Parked { app: AppName, instance: InstanceId, took: Duration },
    ParkFailed { app: AppName, instance: InstanceId, reason: String },
    StateLost { app: AppName, reason: String },
    Crashed { app: AppName, instance: InstanceId },
}
