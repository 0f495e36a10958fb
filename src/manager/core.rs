//! The resource manager's decisions: events and time in, effects out. Pure.
//!
//! One entry per app: its live release, a deployment in progress, its instances, its golden and its
//! parked appshot, its waiting room. After each event `Core::settle` compares what is wanted with
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
    agent::protocol::{LiveInstance, StoredAppshot},
    appshot::Kind,
    model::{App, AppName, AppshotId, InstanceId, OnLostState, ReleaseId, State as Keep},
};

/// How long an instance may take to finish its requests when it is to go.
pub const DRAIN_PATIENCE: Duration = Duration::from_secs(30);
/// How long new requests may be held for a sleep by hand while open ones end.
pub const SLEEP_PATIENCE: Duration = Duration::from_secs(5);
/// The first pause after a failed wake; it doubles with each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// The longest pause after failed wakes.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// One that dies so soon after it came up is likely to do so again.
const CRASH_LOOP: Duration = Duration::from_secs(1);
/// Restores of one appshot that may fail in a row before it is given up.
const IMAGE_FAILURES: u32 = 3;
/// Between two tries to end an instance that does not end.
const STOP_AGAIN: Duration = Duration::from_secs(10);

/// An instance that was found and that nobody knows.
#[derive(Debug)]
struct Stray {
    release: ReleaseId,
    /// It did not end: when to ask again.
    again: Option<Instant>,
}

/// The manager's state.
#[derive(Debug)]
pub struct Core {
    next_instance: u64,
    entries: BTreeMap<AppName, Entry>,
    home: BTreeMap<InstanceId, AppName>,
    /// Instances that were found, that nobody knows and that are being ended.
    strays: BTreeMap<InstanceId, Stray>,
    /// The agent is away: nothing new is asked of it.
    away: bool,
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
            strays: BTreeMap::new(),
            away: false,
            effects: Vec::new(),
        }
    }

    /// Puts an app that served before this manager started back in its place.
    pub fn restore_entry(
        &mut self,
        release: ReleaseId,
        app: Arc<App>,
        generation: u64,
        has_state: bool,
    ) {
        let name = app.name.clone();
        let mut entry = Entry::new(release, app);
        entry.generation = generation;
        entry.has_state = has_state;
        entry.remake_golden = true;
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

    /// From now on nothing is woken: everything goes to sleep for good.
    pub fn end(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.ending = true);
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

    /// Waiters that have gone by themselves give their places up.
    pub fn leave(&mut self, app: &AppName, gone: impl Fn(Waiter) -> bool) {
        if let Some(entry) = self.entries.get_mut(app) {
            entry.waiting.leave(gone);
        }
    }

    /// The next request whose turn it is.
    pub fn next_waiter(&mut self, app: &AppName) -> Option<Waiter> {
        self.entries.get_mut(app)?.waiting.call()
    }

    /// When [`Event::Tick`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        let of_strays = self.strays.values().filter_map(|stray| stray.again);
        self.entries.values().filter_map(Entry::next_deadline).chain(of_strays).min()
    }

    /// Takes an event in and says what is to be done.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        match event {
            Event::Request { app, waiter, deadline } => self.request(&app, waiter, deadline, now),
            Event::Crowded { app } => self.settle(&app, true, now),
            Event::Began { instance, result } => self.began(instance, result, now),
            Event::Prepared { instance, result } => self.prepared(instance, result, now),
            Event::Drained { instance } => self.drained(instance, now),
            Event::Idle { instance, since } => self.idle(instance, since, now),
            Event::Parked { instance, result } => self.parked(instance, result, now),
            Event::Ended { instance } => self.ended(instance, now),
            Event::NotStopped { instance } => self.not_stopped(instance, now),
            Event::Deploy { app, release, token } => self.deploy(app, release, token, now),
            Event::Remove { app, token } => self.remove(&app, token, now),
            Event::Wake { app, count, token } => self.wake(&app, count, token, now),
            Event::Sleep { app, token } => self.sleep(&app, token, now),
            Event::Away => self.away = true,
            Event::Found { instances, appshots, releases } => {
                self.found(&instances, &appshots, &releases, now);
            }
            Event::Tick => self.tick(now),
        }
        debug_assert_eq!(self.broken(), None);
        std::mem::take(&mut self.effects)
    }

    /// An invariant that does not hold, in words. The simulation looks after each event.
    pub fn broken(&self) -> Option<String> {
        for (name, entry) in &self.entries {
            let homeless = entry.instances.keys().find(|id| self.home.get(id) != Some(name));
            if let Some(id) = homeless {
                return Some(format!("instance {id} of {name} has no home"));
            }
            let keep = entry.app.sleep.state == Keep::Keep;
            if keep && entry.running() > 1 {
                return Some(format!("two instances of {name}, which keeps its state"));
            }
            if keep && entry.running() > 0 && entry.parked.is_some() {
                return Some(format!("{name} runs, and an older state of it is parked"));
            }
        }
        let gone = self.home.iter().find(|(id, _)| self.instance(**id).is_none());
        gone.map(|(id, name)| format!("instance {id} of {name} is no more"))
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
        entry.put_to_sleep = false;
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
        if self.away {
            // What is asked now is lost; `found` settles everything.
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
                return self.answer_wakers(app, now);
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
                    let effect = Effect::Restore { instance: id, appshot, generation };
                    (State::Restoring, Origin::Image(kind, image), effect)
                }
                None => {
                    let release = entry.release.clone();
                    let effect = Effect::Start { instance: id, release, generation };
                    (State::Starting, Origin::Cold, effect)
                }
            };
            let (release, declared) = (entry.release.clone(), entry.app.clone());
            let made = Instance::new(release, declared, generation, (state, origin), now);
            let instance = Instance { lost_state: std::mem::take(&mut entry.lost_pending), ..made };
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

    /// One that is on its way up, and its app; an answer that comes after it was given up finds none.
    fn coming(&self, id: InstanceId) -> Option<(AppName, Instance)> {
        let (app, instance) = self.instance(id)?;
        let coming = matches!(instance.state, State::Starting | State::Restoring);
        coming.then(|| (app.clone(), instance.clone()))
    }

    /// The instance goes to another state.
    fn go(&mut self, id: InstanceId, next: State, now: Instant) {
        if let Some(instance) = self.instance_mut(id) {
            instance.go(next, now);
        }
    }

    fn instance_mut(&mut self, id: InstanceId) -> Option<&mut Instance> {
        let app = self.home.get(&id)?;
        self.entries.get_mut(app)?.instances.get_mut(&id)
    }

    /// Asks the agent to end it.
    fn stop(&mut self, id: InstanceId, now: Instant) {
        self.go(id, State::Stopping { again: None }, now);
        self.effects.push(Effect::Stop { instance: id });
    }

    /// It is no more. A sleep by hand that waits for its end counts it as `how`.
    fn forget_instance(&mut self, id: InstanceId, how: Option<Then>) {
        let Some(app) = self.home.remove(&id) else {
            return;
        };
        if let Some(entry) = self.entries.get_mut(&app) {
            entry.instances.remove(&id);
            if let Some(sleeping) = &mut entry.sleeping
                && sleeping.remaining.remove(&id)
            {
                match how {
                    Some(Then::Park) => sleeping.parked += 1,
                    Some(Then::Stop) => sleeping.stopped += 1,
                    None => {}
                }
            }
        }
        self.effects.push(Effect::Drop { instance: id });
    }

    /// What may have waited for an instance to be gone.
    fn after_end(&mut self, app: &AppName, now: Instant) {
        self.slept_if_done(app, now);
        self.finish_removal(app);
        self.forget_old_releases(app);
        self.settle(app, false, now);
    }

    fn tick(&mut self, now: Instant) {
        for (id, stray) in &mut self.strays {
            if stray.again.is_some_and(|at| at <= now) {
                stray.again = None;
                self.effects.push(Effect::Stop { instance: *id });
            }
        }
        let apps: Vec<AppName> = self.entries.keys().cloned().collect();
        for app in apps {
            let Some(entry) = self.entries.get_mut(&app) else {
                continue;
            };
            for waiter in entry.waiting.expire(now) {
                let error = match self.away {
                    true => Error::Unavailable("the agent is away".into()),
                    false => Error::WakeTimeout(app.clone()),
                };
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
                    State::Stopping { again } if again.is_some_and(|at| at <= now) => {
                        *again = None;
                        self.effects.push(Effect::Stop { instance: *id });
                    }
                    _ => {}
                }
            }
            let was_late = !late.is_empty();
            for id in late {
                self.drain_is_late(&app, id, now);
            }
            if was_late {
                self.settle(&app, false, now);
            }
            if self.entries.get(&app).is_some_and(|e| e.backoff_until.is_some_and(|at| at <= now)) {
                if let Some(entry) = self.entries.get_mut(&app) {
                    entry.backoff_until = None;
                }
                self.settle(&app, false, now);
            }
        }
    }
}

mod change;
mod message;
mod sleep;
mod wake;

pub use message::{Answer, Effect, Event, Failed, Note, Token};

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
