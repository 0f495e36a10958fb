//! What is said over the agent's socket: one JSON message of at most 64 KiB per packet, versioned,
//! with descriptors beside it where a verb says so.
//!
//! A request names things by id. The only message that brings in something new is `Register`,
//! which root alone may send, with the directory as a descriptor.

use serde::{Deserialize, Serialize};

use crate::{
    appshot::Kind,
    model::{App, AppName, AppshotId, Bytes, InstanceId, ReleaseId, ResourceUse},
    telemetry,
};

/// Version of this protocol; both ends must speak the same.
pub const VERSION: u16 = 1;

/// The longest message.
pub const MAX_MESSAGE: usize = 64 << 10;

/// Sockets handed over in one batch.
pub const SOCKET_BATCH: u16 = 64;

/// The most entries in one page of a list, so that a page fits a message.
pub const PAGE: usize = 64;

/// A request, answered by one [`Reply`] with the same id.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`]
    pub version: u16,
    /// Chosen by the client.
    pub id: u64,
    /// What is asked.
    pub verb: Verb,
}

/// What can be asked. Sixteen at most; each is a reason to look twice.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Verb {
    /// Who is there. With `events` the peer is the manager: the agent reports ended instances on
    /// this connection. There is one manager at a time; `Busy` while requests of another one go on.
    Hello {
        /// Whether to report.
        events: bool,
    },
    /// Makes a release of the app in the directory that comes as a descriptor. Root only.
    Register {
        /// The app as its `app.toml` says.
        app: Box<App>,
    },
    /// Forgets a release and everything that was made of it. Its instances must have ended.
    Forget {
        /// Which.
        release: ReleaseId,
    },
    /// The app of a release.
    Describe {
        /// Which.
        release: ReleaseId,
    },
    /// A page of living instances, by id.
    Instances {
        /// The last one of the page before.
        after: Option<InstanceId>,
    },
    /// A page of releases, by id.
    Releases {
        /// The last one of the page before.
        after: Option<ReleaseId>,
    },
    /// A page of appshots, by id.
    Appshots {
        /// The last one of the page before.
        after: Option<AppshotId>,
    },
    /// Starts a new instance. Answered when its processes run, with a batch of sockets.
    Start {
        /// The id it will have.
        instance: InstanceId,
        /// Of which release.
        release: ReleaseId,
        /// What the app reads as its generation.
        generation: u64,
    },
    /// Restores an instance from an appshot. Answered when it runs, with a batch of sockets.
    Restore {
        /// The id it will have.
        instance: InstanceId,
        /// From which appshot; a parked one is used up.
        appshot: AppshotId,
        /// What the app reads as its generation.
        generation: u64,
    },
    /// Takes an appshot of an instance and ends it.
    Park {
        /// Which.
        instance: InstanceId,
        /// The id the appshot will have.
        appshot: AppshotId,
        /// Golden or parked.
        kind: Kind,
    },
    /// Ends an instance: SIGTERM, then SIGKILL after the patience.
    Stop {
        /// Which.
        instance: InstanceId,
        /// How long it may take to end by itself.
        patience_ms: u32,
    },
    /// More unconnected sockets inside an instance's network namespace.
    Sockets {
        /// Which.
        instance: InstanceId,
        /// How many, [`SOCKET_BATCH`] at most.
        count: u16,
    },
    /// A page of what living instances use, by id.
    Sample {
        /// The last one of the page before.
        after: Option<InstanceId>,
    },
    /// Removes an appshot.
    Discard {
        /// Which.
        appshot: AppshotId,
    },
    /// The log files of an app's newest instances, as read-only descriptors, newest first.
    Logs {
        /// Which.
        app: AppName,
    },
}

/// A message from the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// The answer to a request.
    Done {
        /// The request's id.
        id: u64,
        /// What came of it.
        result: Result<Answer, Failure>,
    },
    /// An instance has ended without being asked to.
    Ended {
        /// Which.
        instance: InstanceId,
        /// Its exit code, or 128 + signal, if known.
        code: Option<i32>,
        /// What it had used.
        usage: ResourceUse,
    },
}

/// Answers by verb.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// To `Hello`.
    Hello {
        /// The agent's version.
        agent: String,
        /// The CRIU it uses.
        criu: String,
        /// Version of the control groups it found.
        cgroup: u8,
    },
    /// To `Register`.
    Registered {
        /// The release; the same content gives the same id.
        release: ReleaseId,
    },
    /// To `Describe`.
    Described {
        /// The app.
        app: Box<App>,
    },
    /// To `Instances`.
    Instances {
        /// The page; empty after the last.
        page: Vec<LiveInstance>,
    },
    /// To `Releases`.
    Releases {
        /// The page; empty after the last.
        page: Vec<StoredRelease>,
    },
    /// To `Appshots`.
    Appshots {
        /// The page; empty after the last.
        page: Vec<StoredAppshot>,
    },
    /// To `Start`, `Restore` and `Sockets`; the sockets come as descriptors.
    Ready,
    /// To `Park`.
    Parked {
        /// What the appshot costs to keep.
        bytes: Bytes,
        /// What the instance had used.
        usage: ResourceUse,
    },
    /// To `Stop`.
    Stopped {
        /// What the instance had used.
        usage: ResourceUse,
    },
    /// To `Sample`.
    Samples {
        /// The page; empty after the last.
        page: Vec<(InstanceId, ResourceUse)>,
    },
    /// To `Logs`; one name per descriptor.
    Logs {
        /// `INSTANCE.stdout` or `INSTANCE.stderr`.
        names: Vec<String>,
    },
    /// To everything else.
    Ok,
}

/// An instance that runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiveInstance {
    /// Its id.
    pub id: InstanceId,
    /// What it runs.
    pub release: ReleaseId,
    /// Its generation.
    pub generation: u64,
}

/// A release in the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredRelease {
    /// Its id.
    pub id: ReleaseId,
    /// Seconds since it was made.
    pub age_s: u64,
}

/// An appshot in the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredAppshot {
    /// Its id.
    pub id: AppshotId,
    /// Golden or parked.
    pub kind: Kind,
    /// Of which release.
    pub release: ReleaseId,
    /// What it costs to keep.
    pub bytes: Bytes,
    /// The generation of the instance it was taken of.
    pub generation: u64,
}

/// Why a request failed.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// In words, with the reasons behind it.
    pub message: String,
}

/// Kinds of failure that a client treats differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// There is nothing with that id.
    Unknown,
    /// The peer may not ask this.
    Forbidden,
    /// There is no room or no way now; trying again will help.
    Busy,
    /// The image is damaged or does not fit this host; trying again will not help.
    Unusable,
    /// It took too long and was ended.
    Deadline,
    /// An appshot could not be taken; the instance runs on.
    NotTaken,
    /// Anything else.
    Internal,
}

impl Failure {
    /// A failure with the chain of its reasons.
    pub fn new(kind: FailureKind, error: &dyn std::error::Error) -> Self {
        Self { kind, message: telemetry::chain(error) }
    }
}
