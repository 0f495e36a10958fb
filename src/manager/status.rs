//! What the manager tells people: one plain value per app, as the API sends and the CLI prints it.

use serde::{Deserialize, Serialize};

use crate::model::{AppName, AppshotId, Bytes, InstanceId, Pressure, ProviderName, ReleaseId};

/// An app and all that exists of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AppStatus {
    /// Its name.
    pub app: AppName,
    /// Who pays.
    pub provider: ProviderName,
    /// The release that serves.
    pub release: ReleaseId,
    /// Its state as a whole: the most awake of its instances, else how it sleeps.
    pub state: Phase,
    /// Why, where that needs words.
    pub detail: Option<String>,
    /// Its instances.
    pub instances: Vec<InstanceStatus>,
    /// Its golden appshot.
    pub golden: Option<ImageStatus>,
    /// Why it has none.
    pub golden_error: Option<String>,
    /// The parked instance, if one is.
    pub parked: Option<ImageStatus>,
    /// Requests that wait.
    pub waiting: u32,
    /// The generation of its newest instance.
    pub generation: u64,
    /// Wakes since the proxy started.
    pub wakes: u64,
    /// How long its last cold start took until it was ready.
    pub cold_start_ms: Option<u64>,
    /// How long its last restore took until it was ready.
    pub restore_ms: Option<u64>,
    /// How long its last park took.
    pub park_ms: Option<u64>,
}

/// A stored appshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStatus {
    /// Its id.
    pub id: AppshotId,
    /// What it costs to keep.
    pub bytes: Bytes,
}

/// One instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Its id.
    pub id: InstanceId,
    /// What it runs.
    pub release: ReleaseId,
    /// Its state.
    pub state: Phase,
    /// Its generation.
    pub generation: u64,
    /// Requests that it serves now.
    pub in_flight: u32,
    /// Memory at the last sample.
    pub memory: Bytes,
    /// CPU used at the last sample.
    pub cpu_micros: u64,
    /// How long it had waited for the host at the last sample.
    pub pressure: Pressure,
}

/// The states of DESIGN.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Phase {
    Cold,
    Starting,
    Running,
    Parking,
    Parked,
    Restoring,
    Draining,
    Failed,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Cold,
        Self::Starting,
        Self::Running,
        Self::Parking,
        Self::Parked,
        Self::Restoring,
        Self::Draining,
        Self::Failed,
    ];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Parking => "parking",
            Self::Parked => "parked",
            Self::Restoring => "restoring",
            Self::Draining => "draining",
            Self::Failed => "failed",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// What came of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployed {
    /// The app.
    pub app: AppName,
    /// The release that serves now.
    pub release: ReleaseId,
    /// False if it served already.
    pub changed: bool,
    /// How long its cold start took until it was ready.
    pub cold_start_ms: u64,
    /// Its golden appshot.
    pub golden: Option<ImageStatus>,
    /// Why it has none.
    pub golden_error: Option<String>,
}

/// What came of a wake by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Woken {
    /// Instances that run now.
    pub running: u32,
    /// How long it took.
    pub millis: u64,
}

/// What came of putting an app to sleep by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slept {
    /// Instances parked with their state.
    pub parked: u32,
    /// Instances ended.
    pub stopped: u32,
    /// How long it took.
    pub millis: u64,
}

/// The end of one log file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPart {
    /// `INSTANCE.stdout` or `INSTANCE.stderr`.
    pub name: String,
    /// Its text.
    pub text: String,
}
