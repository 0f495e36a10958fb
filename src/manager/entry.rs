//! What the manager holds about one app, and the questions that have an answer in it alone. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    core::Token,
    error::Error,
    instance::{Instance, Origin, State, Then},
    status::{ImageStatus, Phase},
    waiting_room::WaitingRoom,
};
use crate::{
    appshot::Kind,
    model::{App, AppName, InstanceId, ReleaseId, State as Keep},
};

/// The golden appshot of the live release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Golden {
    /// There is one.
    Ready(ImageStatus),
    /// There is none, for this reason.
    Failed(String),
}

/// A deployment in progress.
#[derive(Debug)]
pub struct Deploying {
    /// What will serve.
    pub release: ReleaseId,
    /// What that declares.
    pub app: Arc<App>,
    /// Who waits; nobody does if only the golden appshot is made anew.
    pub token: Option<Token>,
    /// How long its cold start took, once known.
    pub cold_start: Option<Duration>,
}

/// A wake by hand in progress.
#[derive(Debug)]
pub struct Waking {
    /// Who waits.
    pub token: Token,
    /// For how many running instances.
    pub count: u32,
    /// Since when.
    pub since: Instant,
}

/// A sleep by hand in progress.
#[derive(Debug)]
pub struct Sleeping {
    /// Who waits.
    pub tokens: Vec<Token>,
    /// Instances that are not yet gone.
    pub remaining: HashSet<InstanceId>,
    /// Parked so far.
    pub parked: u32,
    /// Ended so far.
    pub stopped: u32,
    /// Since when.
    pub since: Instant,
}

impl Sleeping {
    /// Nothing done yet.
    pub fn new(token: Token, since: Instant) -> Self {
        let (tokens, remaining) = (vec![token], HashSet::new());
        Self { tokens, remaining, parked: 0, stopped: 0, since }
    }
}

/// One app.
#[derive(Debug)]
pub struct Entry {
    /// The release that serves.
    pub release: ReleaseId,
    /// What it declares.
    pub app: Arc<App>,
    /// False until the first deployment is done.
    pub deployed: bool,
    /// A deployment in progress.
    pub deploying: Option<Deploying>,
    /// A removal in progress.
    pub removing: Option<Token>,
    /// The edgepoint ends.
    pub ending: bool,
    /// Releases that go when their last instance does.
    pub old: BTreeSet<ReleaseId>,
    /// All instances, of whatever release.
    pub instances: BTreeMap<InstanceId, Instance>,
    /// The golden appshot.
    pub golden: Golden,
    /// Restores of it that failed in a row.
    pub golden_failures: u32,
    /// To be made anew when an instance has come up cold.
    pub remake_golden: bool,
    /// The parked instance.
    pub parked: Option<ImageStatus>,
    /// Restores of it that failed in a row.
    pub parked_failures: u32,
    /// It keeps its state and has served: what is neither running nor parked is lost.
    pub has_state: bool,
    /// Put to sleep by hand: `scale.min` does not wake it, a request does.
    pub put_to_sleep: bool,
    /// Requests that wait.
    pub waiting: WaitingRoom,
    /// Wakes by hand.
    pub waking: Vec<Waking>,
    /// A sleep by hand.
    pub sleeping: Option<Sleeping>,
    /// Number of the newest instance.
    pub generation: u64,
    /// Failed wakes in a row.
    pub failures: u32,
    /// No wake before this.
    pub backoff_until: Option<Instant>,
    /// Why the last wake failed.
    pub last_failure: Option<String>,
    /// Kept state is lost and the app asked not to go on.
    pub lost: Option<String>,
    /// The next instance begins without the state that it should have.
    pub lost_pending: bool,
    /// The next instance is started cold whatever images there are.
    pub cold_next: bool,
    /// Why it could not be parked.
    pub park_error: Option<String>,
    /// Wakes so far.
    pub wakes: u64,
    /// How long the last ones took.
    pub cold_start: Option<Duration>,
    /// How long the last restore took.
    pub restore_time: Option<Duration>,
    /// How long the last park took.
    pub park_time: Option<Duration>,
}

impl Entry {
    /// An app that serves.
    pub fn new(release: ReleaseId, app: Arc<App>) -> Self {
        Self { deployed: true, ..Self::undeployed(release, app) }
    }

    /// An app whose first deployment begins.
    pub fn undeployed(release: ReleaseId, app: Arc<App>) -> Self {
        let bound = usize::try_from(app.wake.max_pending).unwrap_or(usize::MAX);
        Self {
            release,
            app,
            deployed: false,
            deploying: None,
            removing: None,
            ending: false,
            old: BTreeSet::new(),
            instances: BTreeMap::new(),
            golden: Golden::Failed("none has been taken yet".into()),
            golden_failures: 0,
            remake_golden: false,
            parked: None,
            parked_failures: 0,
            has_state: false,
            put_to_sleep: false,
            waiting: WaitingRoom::new(bound),
            waking: Vec::new(),
            sleeping: None,
            generation: 0,
            failures: 0,
            backoff_until: None,
            last_failure: None,
            lost: None,
            lost_pending: false,
            cold_next: false,
            park_error: None,
            wakes: 0,
            cold_start: None,
            restore_time: None,
            park_time: None,
        }
    }

    /// Instances of the live release that serve.
    pub fn running(&self) -> u32 {
        let running =
            self.instances.values().filter(|i| i.is_running() && i.release == self.release);
        u32::try_from(running.count()).unwrap_or(u32::MAX)
    }

    /// Whether an instance serves no more: of an earlier release, or the app is being removed.
    pub fn is_past(&self, instance: &Instance) -> bool {
        instance.release != self.release || self.removing.is_some()
    }

    fn coming(&self) -> u32 {
        let coming = self.instances.values().filter(|i| i.is_coming() && i.release == self.release);
        u32::try_from(coming.count()).unwrap_or(u32::MAX)
    }

    /// Why a request is turned away at once, if it is.
    pub fn refusal(&self, app: &AppName, now: Instant) -> Option<Error> {
        if self.lost.is_some() {
            return Some(Error::StateLost(app.clone()));
        }
        if self.removing.is_some() || (!self.deployed && self.deploying.is_none()) {
            return Some(Error::UnknownApp(app.clone()));
        }
        let until = self.backoff_until.filter(|until| *until > now)?;
        (self.running() == 0).then(|| Error::WakeFailed {
            app: app.clone(),
            reason: self.last_failure.clone().unwrap_or_default(),
            retry_after: until - now,
        })
    }

    /// Whether one more instance is to be made, and from which image (`None`: cold). Takes a parked
    /// image out of the entry.
    pub fn next_instance(&mut self, crowded: bool) -> Option<Option<(Kind, ImageStatus)>> {
        let asleep = self.removing.is_some() || self.sleeping.is_some() || self.ending;
        if !self.deployed || asleep {
            return None;
        }
        let (running, coming) = (self.running(), self.coming());
        let mut wanted = if self.put_to_sleep { 0 } else { self.app.scale.min };
        wanted = wanted.max(self.waking.iter().map(|waking| waking.count).max().unwrap_or(0));
        if !self.waiting.is_empty() {
            wanted = wanted.max(1);
            if crowded && coming == 0 {
                wanted = wanted.max(running + 1);
            }
        }
        let single = self.app.sleep.state == Keep::Keep;
        let max = if single { 1 } else { self.app.scale.max };
        if running + coming >= wanted.min(max) {
            return None;
        }
        let mut others = self.instances.values().filter(|i| i.release == self.release);
        // What leaves is the same state, or the same image: one after the other.
        if (single || !self.app.clonable) && others.clone().any(Instance::is_leaving) {
            return None;
        }
        if std::mem::take(&mut self.cold_next) {
            return Some(None);
        }
        if let Some(image) = self.parked.take() {
            return Some(Some((Kind::Parked, image)));
        }
        let Golden::Ready(image) = &self.golden else {
            return Some(None);
        };
        let taken = others.any(|other| matches!(other.origin, Origin::Image(..) | Origin::Found));
        let clone = self.app.clonable || !taken;
        Some(clone.then(|| (Kind::Golden, image.clone())))
    }

    /// How its instances sleep; `None` if they cannot.
    pub fn sleep_way(&self) -> Option<Then> {
        match self.app.sleep.state {
            Keep::Discard => Some(Then::Stop),
            // What could not be dumped once, as golden, will not be the next time.
            Keep::Keep if matches!(self.golden, Golden::Ready(_)) => Some(Then::Park),
            Keep::Keep => None,
        }
    }

    /// An instance is ready.
    pub fn came_up(&mut self, restored: bool, took: Duration) {
        self.wakes += 1;
        self.backoff_until = None;
        self.last_failure = None;
        if restored {
            self.golden_failures = 0;
            self.parked_failures = 0;
            self.restore_time = Some(took);
        } else {
            self.cold_start = Some(took);
        }
    }

    /// A new release: what went wrong with the old one does not count.
    pub fn heal(&mut self) {
        self.lost = None;
        self.lost_pending = false;
        self.cold_next = false;
        self.failures = 0;
        self.golden_failures = 0;
        self.parked_failures = 0;
        self.put_to_sleep = false;
        self.backoff_until = None;
        self.last_failure = None;
        self.park_error = None;
    }

    /// The golden appshot.
    pub fn golden_image(&self) -> Option<&ImageStatus> {
        match &self.golden {
            Golden::Ready(image) => Some(image),
            Golden::Failed(_) => None,
        }
    }

    /// Why there is no golden appshot.
    pub fn golden_error(&self) -> Option<String> {
        match &self.golden {
            Golden::Ready(_) => None,
            Golden::Failed(reason) => Some(reason.clone()),
        }
    }

    /// The app's state as a whole.
    pub fn phase(&self) -> Phase {
        let has = |phase| self.instances.values().any(|i| i.state.phase() == phase);
        let order =
            [Phase::Running, Phase::Restoring, Phase::Starting, Phase::Parking, Phase::Draining];
        if let Some(phase) = order.into_iter().find(|phase| has(*phase)) {
            return phase;
        }
        let asleep = self.parked.is_some() || matches!(self.golden, Golden::Ready(_));
        match () {
            () if self.lost.is_some() || self.failures > 0 => Phase::Failed,
            () if asleep => Phase::Parked,
            () => Phase::Cold,
        }
    }

    /// When the next deadline of the app passes.
    pub fn next_deadline(&self) -> Option<Instant> {
        let of_instances = self.instances.values().filter_map(|instance| match instance.state {
            State::Running { idle_check } => idle_check,
            State::Draining { deadline, .. } => Some(deadline),
            State::Stopping { again } => again,
            _ => None,
        });
        of_instances.chain(self.waiting.next_deadline()).chain(self.backoff_until).min()
    }
}
