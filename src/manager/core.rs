//! The resource manager's decisions: events and time in, effects out. Pure.
//!
//! One entry per app: its live release, a deployment in progress, its instances, its golden and its
//! parked appshot, its waiting room. After each event [`Core::settle`] compares what is wanted with
//! what there is and asks for the difference. `task` carries the effects out and reports back; each
//! asked-for effect is answered by exactly one event, also when it failed.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    entry::{Deploying, Entry, Golden, Sleeping, Waking},
    error::Error,
    instance::{Instance, Origin, State, Then},
    status::{Deployed, ImageStatus, Slept, Woken},
    waiting_room::Waiter,
};
use crate::{
    appshot::Kind,
    model::{App, AppName, AppshotId, InstanceId, OnLostState, ReleaseId, State as Keep},
};

/// How long an instance may take to finish its requests when it is to go.
pub const DRAIN_PATIENCE: Duration = Duration::from_secs(30);
/// The first pause after a failed wake; it doubles with each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// The longest pause after failed wakes.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Restores of one golden appshot that may fail before it is given up.
const GOLDEN_FAILURES: u32 = 3;

/// Names the caller of a command.
pub type Token = u64;

/// Why an effect failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// The image cannot be used; trying again will not help.
    Unusable(String),
    /// It took too long or failed for another reason.
    Reason(String),
    /// The agent is away; what became of it is told by [`Event::Found`].
    AgentAway,
}

impl Failed {
    fn reason(&self) -> String {
        match self {
            Self::Unusable(reason) | Self::Reason(reason) => reason.clone(),
            Self::AgentAway => "the agent is away".into(),
        }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A request found no instance and wants to wait.
    Request {
        app: AppName,
        waiter: Waiter,
        deadline: Instant,
    },
    /// Requests wait although every slot of every running instance is taken.
    Crowded { app: AppName },
    /// Answer to [`Effect::Start`] and [`Effect::Restore`].
    Began {
        instance: InstanceId,
        result: Result<(), Failed>,
    },
    /// Answer to [`Effect::Prepare`].
    Prepared {
        instance: InstanceId,
        result: Result<(), Failed>,
    },
    /// A closed instance has no request left.
    Drained { instance: InstanceId },
    /// Answer to [`Effect::LookIdle`]; `None` while it has requests.
    Idle {
        instance: InstanceId,
        since: Option<Instant>,
    },
    /// Answer to [`Effect::Park`].
    Parked {
        instance: InstanceId,
        result: Result<ImageStatus, Failed>,
    },
    /// Answer to [`Effect::Stop`], or it ended by itself.
    Ended { instance: InstanceId },
    /// A release is to serve from now on.
    Deploy {
        app: Arc<App>,
        release: ReleaseId,
        token: Token,
    },
    /// An app is to go.
    Remove { app: AppName, token: Token },
    /// Instances are to run.
    Wake {
        app: AppName,
        count: u32,
        token: Token,
    },
    /// All instances are to sleep.
    Sleep { app: AppName, token: Token },
    /// What the agent holds, after a (re)connection.
    Found {
        instances: Vec<(InstanceId, ReleaseId)>,
        appshots: Vec<AppshotId>,
    },
    /// A deadline may have passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Start an instance cold.
    Start {
        instance: InstanceId,
        release: ReleaseId,
        generation: u64,
    },
    /// Restore an instance.
    Restore {
        instance: InstanceId,
        appshot: AppshotId,
        generation: u64,
    },
    /// Sockets of an instance that was found running.
    Adopt { instance: InstanceId },
    /// Wait until it answers; send warm-up requests; call its hook.
    Prepare {
        instance: InstanceId,
        until_ready: bool,
        warm_up: bool,
        hook: bool,
    },
    /// Let requests in. Opens a closed one again.
    Open { instance: InstanceId },
    /// Let no request in; report [`Event::Drained`].
    Close { instance: InstanceId },
    /// Tell whether it is idle.
    LookIdle { instance: InstanceId },
    /// Take its appshot and end it.
    Park {
        instance: InstanceId,
        appshot: AppshotId,
        kind: Kind,
    },
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
    Answer {
        token: Token,
        answer: Result<Answer, Error>,
    },
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
    Woken {
        app: AppName,
        instance: InstanceId,
        restored: bool,
        took: Duration,
    },
    WakeFailed {
        app: AppName,
        reason: String,
    },
    Parked {
        app: AppName,
        instance: InstanceId,
        took: Duration,
    },
    ParkFailed {
        app: AppName,
        instance: InstanceId,
        reason: String,
    },
    StateLost {
        app: AppName,
        reason: String,
    },
    Crashed {
        app: AppName,
        instance: InstanceId,
    },
}

/// The manager's state.
#[derive(Debug)]
pub struct Core {
    next_instance: u64,
    entries: BTreeMap<AppName, Entry>,
    home: BTreeMap<InstanceId, AppName>,
    effects: Vec<Effect>,
}

impl Core {
    /// Nothing deployed. Instances are numbered from `first_instance`, which no earlier manager on
    /// this host has reached.
    pub fn new(first_instance: u64) -> Self {
        Self {
            next_instance: first_instance,
            entries: BTreeMap::new(),
            home: BTreeMap::new(),
            effects: Vec::new(),
        }
    }

    /// Puts an app that served before this manager started back in its place.
    pub fn restore_entry(&mut self, release: ReleaseId, app: Arc<App>, generation: u64) {
        let name = app.name.clone();
        let mut entry = Entry::new(release, app);
        entry.generation = generation;
        self.entries.insert(name, entry);
    }

    /// Tells an app which appshots it has.
    pub fn restore_image(&mut self, app: &AppName, kind: Kind, image: ImageStatus) {
        if let Some(entry) = self.entries.get_mut(app) {
            match kind {
                Kind::Golden => entry.golden = Golden::Ready(image),
                Kind::Parked => entry.parked = Some(image),
            }
        }
    }

    /// All apps.
    pub fn entries(&self) -> impl Iterator<Item = (&AppName, &Entry)> {
        self.entries.iter()
    }

    /// One app.
    pub fn entry(&self, app: &AppName) -> Option<&Entry> {
        self.entries.get(app)
    }

    /// The app of an instance, and the instance.
    pub fn instance(&self, id: InstanceId) -> Option<(&AppName, &Instance)> {
        let app = self.home.get(&id)?;
        Some((app, self.entries.get(app)?.instances.get(&id)?))
    }

    /// The next request whose turn it is.
    pub fn next_waiter(&mut self, app: &AppName) -> Option<Waiter> {
        self.entries.get_mut(app)?.waiting.next()
    }

    /// When [`Event::Tick`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.entries.values().filter_map(Entry::next_deadline).min()
    }

    /// Takes an event in and says what is to be done.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        match event {
            Event::Request {
                app,
                waiter,
                deadline,
            } => self.request(&app, waiter, deadline, now),
            Event::Crowded { app } => self.settle(&app, true, now),
            Event::Began { instance, result } => self.began(instance, result, now),
            Event::Prepared { instance, result } => self.prepared(instance, result, now),
            Event::Drained { instance } => self.drained(instance, now),
            Event::Idle { instance, since } => self.idle(instance, since, now),
            Event::Parked { instance, result } => self.parked(instance, result, now),
            Event::Ended { instance } => self.ended(instance, now),
            Event::Deploy {
                app,
                release,
                token,
            } => self.deploy(app, release, token, now),
            Event::Remove { app, token } => self.remove(&app, token, now),
            Event::Wake { app, count, token } => self.wake(&app, count, token, now),
            Event::Sleep { app, token } => self.sleep(&app, token, now),
            Event::Found {
                instances,
                appshots,
            } => self.found(&instances, &appshots, now),
            Event::Tick => self.tick(now),
        }
        #[cfg(debug_assertions)]
        self.check_invariants();
        std::mem::take(&mut self.effects)
    }

    #[cfg(debug_assertions)]
    fn check_invariants(&self) {
        for (name, entry) in &self.entries {
            for id in entry.instances.keys() {
                assert_eq!(self.home.get(id), Some(name), "instance {id} has no home");
            }
            let keep = entry.app.sleep.state == Keep::Keep;
            let of_live = entry.instances.values();
            let serving = of_live
                .filter(|i| i.is_running() && i.release == entry.release)
                .count();
            assert!(
                !keep || serving <= 1,
                "two instances of {name}, which keeps its state"
            );
        }
    }

    fn answer(&mut self, token: Token, answer: Result<Answer, Error>) {
        self.effects.push(Effect::Answer { token, answer });
    }

    fn note(&mut self, note: Note) {
        self.effects.push(Effect::Note(note));
    }

    fn request(&mut self, app: &AppName, waiter: Waiter, deadline: Instant, now: Instant) {
        let Some(entry) = self.entries.get_mut(app) else {
            let error = Error::UnknownApp(app.clone());
            return self.effects.push(Effect::Refuse { waiter, error });
        };
        if let Some(error) = entry.refusal(app, now) {
            return self.effects.push(Effect::Refuse { waiter, error });
        }
        if entry.waiting.enter(waiter, deadline).is_err() {
            let error = Error::WaitingRoomFull(app.clone());
            return self.effects.push(Effect::Refuse { waiter, error });
        }
        self.effects.push(Effect::Admit { app: app.clone() });
        self.settle(app, false, now);
    }

    /// Compares what is wanted with what there is.
    fn settle(&mut self, app: &AppName, crowded: bool, now: Instant) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        if entry.lost.is_some() || entry.backoff_until.is_some_and(|until| until > now) {
            return;
        }
        // Cheapest first: take back an instance that only began to leave for being idle.
        if !entry.waiting.is_empty() && entry.running() == 0 {
            let leaving = entry.instances.iter_mut().find(|(_, instance)| {
                matches!(instance.state, State::Draining { ordered: false, .. })
                    && instance.release == entry.release
            });
            if let Some((id, instance)) = leaving {
                let idle_check = entry.app.sleep.park_after.map(|after| now + after);
                instance.go(State::Running { idle_check }, now);
                self.effects.push(Effect::Open { instance: *id });
                self.effects.push(Effect::Admit { app: app.clone() });
                return;
            }
        }
        while let Some(plan) = entry.next_instance(crowded) {
            let id = InstanceId::new(self.next_instance);
            self.next_instance += 1;
            entry.generation += 1;
            let generation = entry.generation;
            let (state, origin, effect) = match plan {
                Some((kind, image)) => {
                    let appshot = image.id.clone();
                    let effect = Effect::Restore {
                        instance: id,
                        appshot,
                        generation,
                    };
                    (State::Restoring, Origin::Image(kind, image), effect)
                }
                None => {
                    let release = entry.release.clone();
                    let effect = Effect::Start {
                        instance: id,
                        release,
                        generation,
                    };
                    (State::Starting, Origin::Cold, effect)
                }
            };
            let instance = Instance {
                release: entry.release.clone(),
                app: entry.app.clone(),
                generation,
                state,
                origin,
                lost_state: std::mem::take(&mut entry.lost_pending),
                since: now,
                born: now,
                for_golden: false,
            };
            entry.instances.insert(id, instance);
            self.home.insert(id, app.clone());
            self.effects.push(effect);
            if crowded {
                break;
            }
        }
    }

    /// The entry and instance of an id; an instance that is gone is no error.
    fn find(&mut self, id: InstanceId) -> Option<(AppName, &mut Entry)> {
        let app = self.home.get(&id)?.clone();
        let entry = self.entries.get_mut(&app)?;
        entry.instances.contains_key(&id).then_some((app, entry))
    }

    fn began(&mut self, id: InstanceId, result: Result<(), Failed>, now: Instant) {
        let Some((app, entry)) = self.find(id) else {
            return;
        };
        let Some(instance) = entry.instances.get_mut(&id) else {
            return;
        };
        match result {
            Ok(()) => {
                let restored = matches!(instance.origin, Origin::Image(..));
                let hook = restored && instance.app.snapshot.after_restore.is_some();
                if restored && !hook {
                    return self.serve(id, now);
                }
                let warm_up = instance.for_golden;
                let until_ready = !restored;
                self.effects.push(Effect::Prepare {
                    instance: id,
                    until_ready,
                    warm_up,
                    hook,
                });
            }
            // What became of it comes with the next `Found`.
            Err(Failed::AgentAway) => {}
            Err(failed) => {
                let instance = instance.clone();
                self.forget_instance(id);
                self.begin_failed(&app, &instance, failed, now);
            }
        }
    }

    /// An instance did not come up: fall back, or give up for a while.
    fn begin_failed(&mut self, app: &AppName, instance: &Instance, failed: Failed, now: Instant) {
        let reason = failed.reason();
        self.note(Note::WakeFailed {
            app: app.clone(),
            reason: reason.clone(),
        });
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        if instance.for_golden {
            return self.deploy_failed(app, reason);
        }
        match &instance.origin {
            Origin::Image(Kind::Parked, image) => {
                self.effects.push(Effect::Discard {
                    appshot: image.id.clone(),
                });
                return self.state_lost(app, reason, now);
            }
            Origin::Image(Kind::Golden, image) => {
                entry.golden_failures += 1;
                let unusable = matches!(failed, Failed::Unusable(_));
                if unusable || entry.golden_failures >= GOLDEN_FAILURES {
                    entry.golden = Golden::Failed(reason);
                    self.effects.push(Effect::Discard {
                        appshot: image.id.clone(),
                    });
                } else {
                    entry.cold_next = true;
                }
            }
            Origin::Cold | Origin::Found => return self.back_off(app, reason, now),
        }
        self.settle(app, false, now);
    }

    /// Kept state is gone; the app said what then.
    fn state_lost(&mut self, app: &AppName, reason: String, now: Instant) {
        self.note(Note::StateLost {
            app: app.clone(),
            reason: reason.clone(),
        });
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        match entry.app.sleep.on_lost_state {
            OnLostState::Cold => {
                entry.lost_pending = true;
                entry.cold_next = true;
                self.settle(app, false, now);
            }
            OnLostState::Error => {
                entry.lost = Some(reason);
                self.refuse_all(app, &Error::StateLost(app.clone()));
            }
        }
    }

    fn back_off(&mut self, app: &AppName, reason: String, now: Instant) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        let pause = BACKOFF_FIRST
            .saturating_mul(1 << entry.failures.min(16))
            .min(BACKOFF_MAX);
        entry.failures += 1;
        entry.backoff_until = Some(now + pause);
        entry.last_failure = Some(reason.clone());
        let error = Error::WakeFailed {
            app: app.clone(),
            reason,
            retry_after: pause,
        };
        self.refuse_all(app, &error);
    }

    /// Sends away everybody who waits for the app, commands too.
    fn refuse_all(&mut self, app: &AppName, error: &Error) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        for waiter in entry.waiting.clear() {
            self.effects.push(Effect::Refuse {
                waiter,
                error: error.clone(),
            });
        }
        for waking in std::mem::take(&mut entry.waking) {
            self.effects.push(Effect::Answer {
                token: waking.token,
                answer: Err(error.clone()),
            });
        }
    }

    fn prepared(&mut self, id: InstanceId, result: Result<(), Failed>, now: Instant) {
        let Some((app, entry)) = self.find(id) else {
            return;
        };
        let Some(instance) = entry.instances.get_mut(&id) else {
            return;
        };
        match result {
            Ok(()) if instance.for_golden => {
                if let Some(deploying) = &mut entry.deploying {
                    deploying.cold_start = Some(now - instance.born);
                }
                instance.go(State::Parking { kind: Kind::Golden }, now);
                let appshot = AppshotId::golden(&instance.release);
                self.effects.push(Effect::Park {
                    instance: id,
                    appshot,
                    kind: Kind::Golden,
                });
            }
            Ok(()) => self.serve(id, now),
            Err(failed) => {
                let failing = instance.clone();
                instance.go(State::Stopping, now);
                self.effects.push(Effect::Stop { instance: id });
                self.begin_failed(&app, &failing, failed, now);
            }
        }
    }

    /// An instance is ready: let requests in.
    fn serve(&mut self, id: InstanceId, now: Instant) {
        let Some((app, entry)) = self.find(id) else {
            return;
        };
        let Some(instance) = entry.instances.get_mut(&id) else {
            return;
        };
        let idle_check = instance.app.sleep.park_after.map(|after| now + after);
        let restored = matches!(instance.origin, Origin::Image(..));
        let took = now - instance.born;
        instance.go(State::Running { idle_check }, now);
        if instance.release != entry.release || entry.removing.is_some() {
            // Overtaken by a deployment or removal while it came up.
            let deadline = now + DRAIN_PATIENCE;
            instance.go(
                State::Draining {
                    then: Then::Stop,
                    ordered: true,
                    deadline,
                },
                now,
            );
            return self.effects.push(Effect::Close { instance: id });
        }
        entry.came_up(restored, took);
        let sleeping = entry.sleeping.is_some();
        self.effects.push(Effect::Open { instance: id });
        self.note(Note::Woken {
            app: app.clone(),
            instance: id,
            restored,
            took,
        });
        self.effects.push(Effect::Admit { app: app.clone() });
        self.answer_wakers(&app, now);
        if sleeping {
            self.order_sleep(&app, now);
        }
        self.settle(&app, false, now);
    }

    fn answer_wakers(&mut self, app: &AppName, now: Instant) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        let running = entry.running();
        let mut answers = Vec::new();
        entry.waking.retain(|waking| {
            let done = running >= waking.count;
            if done {
                let millis = millis(now - waking.since);
                answers.push((waking.token, Answer::Woken(Woken { running, millis })));
            }
            !done
        });
        for (token, answer) in answers {
            self.answer(token, Ok(answer));
        }
    }

    fn idle(&mut self, id: InstanceId, since: Option<Instant>, now: Instant) {
        let Some((_, entry)) = self.find(id) else {
            return;
        };
        let spare = entry.running() > entry.app.scale.min;
        let Some(instance) = entry.instances.get_mut(&id) else {
            return;
        };
        let (State::Running { .. }, Some(after)) = (&instance.state, instance.app.sleep.park_after)
        else {
            return;
        };
        let due = since.map_or(now, |since| since) + after;
        if since.is_none() || due > now || !spare {
            let idle_check = Some(due.max(now + after.min(Duration::from_secs(1))));
            return instance.go(State::Running { idle_check }, now);
        }
        let Some(then) = entry.sleep_way() else {
            return;
        };
        if let Some(instance) = entry.instances.get_mut(&id) {
            let deadline = now + DRAIN_PATIENCE;
            instance.go(
                State::Draining {
                    then,
                    ordered: false,
                    deadline,
                },
                now,
            );
            self.effects.push(Effect::Close { instance: id });
        }
    }

    fn drained(&mut self, id: InstanceId, now: Instant) {
        let Some((_, entry)) = self.find(id) else {
            return;
        };
        let Some(instance) = entry.instances.get_mut(&id) else {
            return;
        };
        let State::Draining { then, .. } = instance.state else {
            return;
        };
        match then {
            Then::Park => {
                instance.go(State::Parking { kind: Kind::Parked }, now);
                let appshot = AppshotId::parked(id);
                self.effects.push(Effect::Park {
                    instance: id,
                    appshot,
                    kind: Kind::Parked,
                });
            }
            Then::Stop => {
                instance.go(State::Stopping, now);
                self.effects.push(Effect::Stop { instance: id });
            }
        }
    }

    fn parked(&mut self, id: InstanceId, result: Result<ImageStatus, Failed>, now: Instant) {
        let Some((app, entry)) = self.find(id) else {
            return;
        };
        let Some(instance) = entry.instances.get(&id).cloned() else {
            return;
        };
        let State::Parking { kind } = instance.state else {
            return;
        };
        let took = now - instance.since;
        match result {
            Ok(image) => {
                entry.park_time = Some(took);
                if kind == Kind::Parked {
                    entry.parked = Some(image.clone());
                }
                self.forget_instance(id);
                match kind {
                    Kind::Golden => self.deployed(&app, Ok(image), None, now),
                    Kind::Parked => {
                        self.note(Note::Parked {
                            app: app.clone(),
                            instance: id,
                            took,
                        });
                        self.slept(&app, id, Some(Then::Park), now);
                        self.settle(&app, false, now);
                    }
                }
            }
            Err(Failed::AgentAway) => {}
            Err(failed) => {
                let reason = failed.reason();
                let (name, text) = (app.clone(), reason.clone());
                self.note(Note::ParkFailed {
                    app: name,
                    instance: id,
                    reason: text,
                });
                self.park_failed(&app, id, kind, reason, now);
            }
        }
    }

    /// The instance runs on.
    fn park_failed(
        &mut self,
        app: &AppName,
        id: InstanceId,
        kind: Kind,
        reason: String,
        now: Instant,
    ) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        let Some(instance) = entry.instances.get_mut(&id) else {
            return;
        };
        // Tried again after a longer pause than usual, in case what stood in its way has gone.
        let after = instance.app.sleep.park_after;
        let idle_check = after.map(|after| now + after.max(Duration::from_secs(10)));
        instance.go(State::Running { idle_check }, now);
        instance.for_golden = false;
        entry.park_error = Some(reason.clone());
        match kind {
            Kind::Golden => self.deployed(app, Err(reason), Some(id), now),
            Kind::Parked => {
                let error = Error::NotSlept {
                    app: app.clone(),
                    reason,
                };
                self.fail_sleepers(app, &error);
            }
        }
        self.effects.push(Effect::Open { instance: id });
        self.effects.push(Effect::Admit { app: app.clone() });
        self.settle(app, false, now);
    }

    fn fail_sleepers(&mut self, app: &AppName, error: &Error) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        if let Some(sleeping) = entry.sleeping.take() {
            for token in sleeping.tokens {
                self.answer(token, Err(error.clone()));
            }
        }
    }

    /// An instance is no more.
    fn ended(&mut self, id: InstanceId, now: Instant) {
        let Some((app, entry)) = self.find(id) else {
            return;
        };
        let Some(instance) = entry.instances.get(&id).cloned() else {
            return;
        };
        let release = entry.release.clone();
        self.forget_instance(id);
        let crashed = instance.state != State::Stopping;
        if crashed {
            self.note(Note::Crashed {
                app: app.clone(),
                instance: id,
            });
        }
        let reason = || "its processes ended".to_string();
        match instance.state {
            _ if instance.for_golden && crashed => self.deploy_failed(&app, reason()),
            State::Starting | State::Restoring => {
                self.begin_failed(&app, &instance, Failed::Reason(reason()), now);
            }
            // Not the live release: nobody misses it.
            _ if instance.release != release => {}
            State::Running { .. } | State::Draining { .. } | State::Parking { .. } => {
                if instance.app.sleep.state == Keep::Keep {
                    self.note(Note::StateLost {
                        app: app.clone(),
                        reason: reason(),
                    });
                    if let Some(entry) = self.entries.get_mut(&app) {
                        entry.lost_pending = true;
                    }
                }
                let error = Error::NotSlept {
                    app: app.clone(),
                    reason: reason(),
                };
                self.fail_sleepers(&app, &error);
                // One that dies right after it came up is not tried again at once.
                if now - instance.since < Duration::from_secs(1) {
                    self.back_off(&app, reason(), now);
                }
            }
            State::Stopping => self.slept(&app, id, Some(Then::Stop), now),
        }
        self.finish_removal(&app);
        self.forget_old_releases(&app);
        self.settle(&app, false, now);
    }

    fn forget_instance(&mut self, id: InstanceId) {
        if let Some(app) = self.home.remove(&id) {
            if let Some(entry) = self.entries.get_mut(&app) {
                entry.instances.remove(&id);
            }
            self.effects.push(Effect::Drop { instance: id });
        }
    }

    fn wake(&mut self, app: &AppName, count: u32, token: Token, now: Instant) {
        let Some(entry) = self.entries.get_mut(app) else {
            return self.answer(token, Err(Error::UnknownApp(app.clone())));
        };
        if let Some(error) = entry.refusal(app, now) {
            return self.answer(token, Err(error));
        }
        let count = count.clamp(1, entry.app.scale.max);
        entry.waking.push(Waking {
            token,
            count,
            since: now,
        });
        self.answer_wakers(app, now);
        self.settle(app, false, now);
    }

    fn sleep(&mut self, app: &AppName, token: Token, now: Instant) {
        let Some(entry) = self.entries.get_mut(app) else {
            return self.answer(token, Err(Error::UnknownApp(app.clone())));
        };
        if entry.deploying.is_some() || entry.removing.is_some() {
            return self.answer(token, Err(Error::Changing(app.clone())));
        }
        match &mut entry.sleeping {
            Some(sleeping) => sleeping.tokens.push(token),
            None => entry.sleeping = Some(Sleeping::new(token, now)),
        }
        self.order_sleep(app, now);
    }

    /// Closes every running instance for a sleep by hand.
    fn order_sleep(&mut self, app: &AppName, now: Instant) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        let Some(then) = entry.sleep_way() else {
            let reason = entry
                .park_error
                .clone()
                .unwrap_or_else(|| "it cannot be parked".into());
            let error = Error::NotSlept {
                app: app.clone(),
                reason,
            };
            return self.fail_sleepers(app, &error);
        };
        let Some(sleeping) = &mut entry.sleeping else {
            return;
        };
        for (id, instance) in &mut entry.instances {
            match &mut instance.state {
                State::Running { .. } => {
                    let deadline = now + DRAIN_PATIENCE;
                    instance.go(
                        State::Draining {
                            then,
                            ordered: true,
                            deadline,
                        },
                        now,
                    );
                    self.effects.push(Effect::Close { instance: *id });
                }
                State::Draining { ordered, .. } => *ordered = true,
                _ => {}
            }
            sleeping.remaining.insert(*id);
        }
        self.slept_if_done(app, now);
    }

    /// One instance of those put to sleep by hand is gone.
    fn slept(&mut self, app: &AppName, id: InstanceId, how: Option<Then>, now: Instant) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        if let Some(sleeping) = &mut entry.sleeping {
            if sleeping.remaining.remove(&id) {
                match how {
                    Some(Then::Park) => sleeping.parked += 1,
                    Some(Then::Stop) => sleeping.stopped += 1,
                    None => {}
                }
            }
        }
        self.slept_if_done(app, now);
    }

    fn slept_if_done(&mut self, app: &AppName, now: Instant) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        if entry
            .sleeping
            .as_ref()
            .is_some_and(|sleeping| sleeping.remaining.is_empty())
        {
            if let Some(done) = entry.sleeping.take() {
                let millis = millis(now - done.since);
                let slept = Slept {
                    parked: done.parked,
                    stopped: done.stopped,
                    millis,
                };
                for token in done.tokens {
                    self.answer(token, Ok(Answer::Slept(slept.clone())));
                }
            }
            self.settle(app, false, now);
        }
    }

    fn tick(&mut self, now: Instant) {
        let apps: Vec<AppName> = self.entries.keys().cloned().collect();
        for app in apps {
            let Some(entry) = self.entries.get_mut(&app) else {
                continue;
            };
            for waiter in entry.waiting.expire(now) {
                let error = Error::WakeTimeout(app.clone());
                self.effects.push(Effect::Refuse { waiter, error });
            }
            let mut late = Vec::new();
            for (id, instance) in &mut entry.instances {
                match &mut instance.state {
                    State::Running { idle_check } if idle_check.is_some_and(|at| at <= now) => {
                        *idle_check = None;
                        self.effects.push(Effect::LookIdle { instance: *id });
                    }
                    State::Draining { deadline, .. } if *deadline <= now => late.push(*id),
                    _ => {}
                }
            }
            for id in late {
                self.drain_is_late(&app, id, now);
            }
            if self
                .entries
                .get(&app)
                .is_some_and(|e| e.backoff_until.is_some_and(|at| at <= now))
            {
                if let Some(entry) = self.entries.get_mut(&app) {
                    entry.backoff_until = None;
                }
                self.settle(&app, false, now);
            }
        }
    }

    /// Requests that do not end hold an instance of the live release; an old one is ended.
    fn drain_is_late(&mut self, app: &AppName, id: InstanceId, now: Instant) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        let Some(instance) = entry.instances.get_mut(&id) else {
            return;
        };
        if instance.release == entry.release && entry.removing.is_none() {
            let idle_check = instance.app.sleep.park_after.map(|after| now + after);
            instance.go(State::Running { idle_check }, now);
            self.effects.push(Effect::Open { instance: id });
            let reason = "requests are still being served".into();
            self.fail_sleepers(
                app,
                &Error::NotSlept {
                    app: app.clone(),
                    reason,
                },
            );
        } else {
            let deadline = now;
            instance.go(
                State::Draining {
                    then: Then::Stop,
                    ordered: true,
                    deadline,
                },
                now,
            );
            self.drained(id, now);
        }
    }
}

mod change;

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
