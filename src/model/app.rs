//! The app as its provider declared it, checked: no option left that has a default, no text left
//! that has a type. `config::app` makes it from `app.toml`; a release carries it unchanged.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{AppName, Bytes, ProviderName};

/// Everything that one release of an app declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Its name, unique on the edgepoint.
    pub name: AppName,
    /// Who pays for it.
    pub provider: ProviderName,
    /// What runs, at least one; all in one sandbox, started in this order.
    pub processes: Vec<Process>,
    /// Environment of every process. `PORT` is added by the sandbox.
    pub env: BTreeMap<String, String>,
    /// Where it listens for HTTP, on 127.0.0.1 or all addresses of its own network namespace.
    pub internal_port: u16,
    /// How to see that it is ready.
    pub health: Health,
    /// What one instance may use.
    pub limits: Limits,
    /// How many instances there may be.
    pub scale: Scale,
    /// How many requests one instance serves at once.
    pub concurrency: Concurrency,
    /// What a request may cost while the app wakes.
    pub wake: Wake,
    /// When and how it sleeps.
    pub sleep: Sleep,
    /// Whether two instances of one appshot may live at the same time.
    pub clonable: bool,
    /// What happens around the making and restoring of appshots.
    pub snapshot: Snapshot,
}

/// One process of an app: an argument vector, found by `PATH` inside the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its name in logs and messages.
    pub name: String,
    /// The program and its arguments; never empty.
    pub command: Vec<String>,
}

/// `[health]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// A path that answers 2xx or 3xx when the app is ready; without one an accepted connection
    /// is enough.
    pub path: Option<String>,
    /// Deadline of one check.
    pub timeout: Duration,
    /// How long a cold start may take until the first good check.
    pub grace_period: Duration,
}

/// `[limits]`, of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory of all processes together.
    pub memory: Bytes,
    /// CPU in thousandths of a core.
    pub cpu_millis: u32,
    /// Processes and threads.
    pub pids: u32,
}

/// `[scale]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    /// Instances that are kept running.
    pub min: u32,
    /// Instances that there may be at once.
    pub max: u32,
}

/// `[concurrency]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Concurrency {
    /// Requests that one instance is given at the same time; more wait.
    pub hard: u32,
}

/// `[wake]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wake {
    /// How long a request waits for an instance before it is answered with 503.
    pub timeout: Duration,
    /// How many requests may wait at the same time.
    pub max_pending: u32,
}

/// `[sleep]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sleep {
    /// Idle time after which an instance is parked; `None` keeps it running.
    pub park_after: Option<Duration>,
    /// What becomes of an instance's state when it sleeps.
    pub state: State,
    /// What to do when kept state cannot be restored.
    pub on_lost_state: OnLostState,
}

/// What becomes of an instance's state when it sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The instance is parked with its own memory and files, and continues from there.
    Keep,
    /// The instance ends; the next one begins from the golden appshot.
    Discard,
}

/// What to do when kept state cannot be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLostState {
    /// Start anew, and say so in an event, a metric and a response header.
    Cold,
    /// Answer 503 until an operator removes or replaces the app.
    Error,
}

/// `[snapshot]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Snapshot {
    /// Paths requested once, in order, before the golden appshot is taken.
    pub warm_up: Vec<String>,
    /// A path that is sent a POST after each restore, before the first request is let in.
    pub after_restore: Option<String>,
}
