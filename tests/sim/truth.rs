//! What must hold, whatever happens. Checked on each effect and after each event, against what lives
//! in truth (`agent.rs`) and not only against what the core believes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use edgepoint::{
    appshot::Kind,
    manager::{
        core::{Answer, Effect, Note},
        instance::{Origin, State},
    },
    model::{App, AppName, AppshotId, InstanceId, OnLostState, ReleaseId, State as Keep},
};

use crate::world::World;

/// Events per virtual second that only a busy loop exceeds.
const EVENTS_PER_SECOND: u32 = 2_000;

/// Where the state of an app that keeps it is now.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    /// Nothing of the live release has served yet.
    Fresh,
    /// In an image, with this content.
    Parked(u64),
    /// In this instance.
    Serving(InstanceId),
    /// Gone, and it was said.
    Lost,
}

/// What the checks remember.
#[derive(Debug, Default)]
pub struct Truth {
    /// Nothing may be asked about these any more.
    dropped: BTreeSet<InstanceId>,
    /// Served before the last deployment: on their way out.
    pub outgoing: BTreeSet<InstanceId>,
    /// An absent agent was asked to end them, or they were found by an agent that came back.
    pub orphans: BTreeSet<InstanceId>,
    /// Parked images that were asked for, by uid, and for which instance.
    restored: BTreeMap<u64, InstanceId>,
    opened: BTreeSet<InstanceId>,
    lines: BTreeMap<AppName, Line>,
    /// Those that lost their state and refuse until they are deployed again.
    refusing: BTreeSet<AppName>,
    /// The live release of each app.
    served: BTreeMap<AppName, ReleaseId>,
    second: Option<(Instant, u32)>,
    pub notes: BTreeMap<&'static str, u64>,
}

impl Truth {
    /// Counts events, so that a busy loop is seen.
    pub fn count(&mut self, now: Instant) {
        let (since, count) = self.second.get_or_insert((now, 0));
        if now - *since >= Duration::from_secs(1) {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        assert!(*count < EVENTS_PER_SECOND, "the core is busy with nothing");
    }

    fn line(&mut self, app: &AppName) -> &mut Line {
        self.lines.entry(app.clone()).or_insert(Line::Fresh)
    }
}

impl World {
    /// Before an effect is carried out.
    pub fn check_effect(&mut self, effect: &Effect) {
        if let Some(id) = about(effect) {
            let dropped = self.truth.dropped.contains(&id);
            // An instance that the agent found and nobody knows is ended by its number.
            let found = matches!(effect, Effect::Stop { .. }) && self.truth.orphans.contains(&id);
            assert!(!dropped || found, "{effect:?} after it was dropped");
        }
        match effect {
            Effect::Drop { instance } => {
                self.truth.dropped.insert(*instance);
            }
            Effect::Adopt { instance } => {
                self.truth.dropped.remove(instance);
                self.truth.orphans.insert(*instance);
            }
            Effect::Start { instance, release, .. } => {
                let known = self.releases.contains_key(release);
                assert!(known && !self.forgetting.contains(release), "{release} is forgotten");
                self.check_scale(*instance);
            }
            Effect::Restore { instance, appshot, .. } => self.check_restore(*instance, appshot),
            Effect::Open { instance } => self.check_open(*instance),
            Effect::Park { instance, .. } => {
                let busy = self.fronts.get(instance).is_some_and(|f| f.open || f.in_flight > 0);
                assert!(!busy, "{instance} is parked while it has requests");
            }
            Effect::Stop { instance } => {
                let open = self.fronts.get(instance).is_some_and(|front| front.open);
                assert!(!open, "{instance} is stopped while it is open");
                if self.core.instance(*instance).is_none() {
                    self.truth.orphans.insert(*instance);
                }
            }
            Effect::Forget { release } => self.check_forget(release),
            Effect::Answer { token, answer: Ok(answer) } => {
                let app = self.tokens.get(token).cloned().expect("answered once");
                match answer {
                    Answer::Deployed(deployed) if deployed.changed => {
                        let release = deployed.release.clone();
                        let before = self.truth.served.insert(app.clone(), release.clone());
                        if before == Some(release) && !self.truth.refusing.remove(&app) {
                            // Only its golden appshot is new.
                            return;
                        }
                        *self.truth.line(&app) = Line::Fresh;
                        let entry = self.core.entry(&app).expect("it is deployed");
                        // A golden appshot that could not be taken: its instance serves.
                        let stays = |id: &&InstanceId| {
                            deployed.golden.is_none()
                                && entry.instances.keys().next_back() == Some(*id)
                        };
                        let old = entry.instances.keys().filter(|id| !stays(id));
                        self.truth.outgoing.extend(old.copied());
                    }
                    Answer::Removed => {
                        self.truth.served.remove(&app);
                        *self.truth.line(&app) = Line::Fresh;
                    }
                    _ => {}
                }
            }
            Effect::Note(note) => self.check_note(note),
            _ => {}
        }
    }

    fn check_note(&mut self, note: &Note) {
        let (word, _) = match note {
            Note::Woken { app, .. } => ("woken", app),
            Note::WakeFailed { app, .. } => ("wake failed", app),
            Note::Parked { app, instance, .. } => {
                let id = AppshotId::parked(*instance);
                let state = self.images.get(&id).map(|image| image.state);
                let state = state.expect("it was told as parked");
                *self.truth.line(app) = Line::Parked(state);
                ("parked", app)
            }
            Note::ParkFailed { app, .. } => ("park failed", app),
            Note::StateLost { app, .. } => {
                *self.truth.line(app) = Line::Lost;
                let entry = self.core.entry(app).expect("its app");
                if entry.app.sleep.on_lost_state == OnLostState::Error {
                    self.truth.refusing.insert(app.clone());
                }
                ("state lost", app)
            }
            Note::Crashed { app, .. } => ("crashed", app),
        };
        *self.truth.notes.entry(word).or_default() += 1;
    }

    /// No more instances than the app allows; found ones do not count.
    fn check_scale(&self, id: InstanceId) {
        let Some((name, _)) = self.core.instance(id) else {
            return;
        };
        let entry = self.core.entry(name).expect("its app");
        let of_live = entry.instances.iter().filter(|(id, i)| {
            let serves = i.is_running() || i.is_coming();
            serves && i.release == entry.release && !self.truth.outgoing.contains(id)
        });
        let ours = of_live.filter(|(_, i)| i.origin != Origin::Found).count();
        assert!(ours <= entry.app.scale.max as usize, "{ours} instances of {name}");
    }

    fn check_restore(&mut self, id: InstanceId, appshot: &AppshotId) {
        self.check_scale(id);
        let (name, instance) = self.core.instance(id).expect("it is made");
        if !self.agent_up {
            return;
        }
        let image = self.images.get(appshot);
        let image = image.unwrap_or_else(|| panic!("{appshot} of {name} does not exist"));
        assert_eq!(image.release, instance.release, "an image of another release");
        if image.kind == Kind::Parked {
            assert!(!self.live.contains_key(&image.of), "{appshot}: its instance lives");
            let before = self.truth.restored.insert(image.uid, id);
            // Once, or again after an absent agent never came to it.
            let again = before.is_none_or(|id| self.truth.dropped.contains(&id));
            assert!(again, "{appshot} is restored twice");
        }
    }

    /// No two living instances of one image, unless it may be cloned.
    pub fn check_birth(&self, image: Option<u64>, app: &Arc<App>) {
        if app.clonable || image.is_none() {
            return;
        }
        let twins = self
            .live
            .iter()
            .filter(|(id, live)| live.image == image && !self.truth.orphans.contains(id));
        let twins: Vec<_> = twins.map(|(id, _)| *id).collect();
        assert!(twins.is_empty(), "{twins:?} came from the same image");
    }

    fn check_open(&mut self, id: InstanceId) {
        let (name, instance) = self.core.instance(id).expect("opened, not known");
        let (name, instance) = (name.clone(), instance.clone());
        let entry = self.core.entry(&name).expect("its app");
        if instance.release != entry.release || entry.removing.is_some() {
            // Overtaken by what the same event brought: it is closed again at once.
            let closes = matches!(instance.state, State::Draining { .. });
            assert!(closes, "{id} is opened, which is of the past");
            return;
        }
        let ordered = entry.sleeping.as_ref();
        let to_sleep = ordered.is_some_and(|sleeping| sleeping.remaining.contains(&id));
        assert!(!to_sleep || !instance.is_running(), "{id} is to sleep and serves");
        if entry.app.sleep.state != Keep::Keep {
            return;
        }
        let began_with = self.live.get(&id).map(|live| live.began_with);
        let first = self.truth.opened.insert(id);
        let line = self.truth.line(&name);
        match line {
            Line::Serving(other) => {
                assert_eq!(*other, id, "the state of {name} was lost in silence")
            }
            Line::Parked(state) if first => {
                let goes_on = began_with.is_none_or(|began| began == *state);
                assert!(goes_on, "{id} began with {began_with:?}, parked was {state}");
            }
            Line::Parked(_) => panic!("{id} is parked and opened again"),
            Line::Lost => {
                // Or a person had the image that could not be restored tried again.
                let regained = matches!(instance.origin, Origin::Image(Kind::Parked, _));
                let found = instance.origin == Origin::Found;
                let told = instance.lost_state || regained || found || !first;
                assert!(told, "{id} does not say that its state is lost");
            }
            Line::Fresh => {}
        }
        *line = Line::Serving(id);
        self.truth.refusing.remove(&name);
    }

    fn check_forget(&self, release: &ReleaseId) {
        for (name, entry) in self.core.entries() {
            let serves = entry.deployed && entry.release == *release;
            let comes = entry.deploying.as_ref().is_some_and(|d| d.release == *release);
            assert!(!serves && !comes, "{release} of {name} is forgotten while in use");
            let runs = entry.instances.values().any(|i| i.release == *release);
            assert!(!runs, "{release} of {name} is forgotten while it runs");
        }
        let known = self.releases.contains_key(release) || !self.agent_up;
        assert!(known, "{release} is forgotten twice");
    }

    /// A request is given to an instance.
    pub fn check_lease(&self, id: InstanceId) {
        let (name, instance) = self.core.instance(id).expect("leased, not known");
        assert!(instance.is_running(), "{id} of {name} is given a request");
    }

    /// The manager is another one from here on.
    pub fn forget_manager(&mut self) {
        for (_, entry) in self.core.entries() {
            self.truth.dropped.extend(entry.instances.keys().copied());
        }
        self.truth.orphans.extend(self.live.keys().copied());
        // A park that was done, and nobody was left to hear of it.
        for line in self.truth.lines.values_mut() {
            if let Line::Serving(id) = line
                && let Some(image) = self.images.get(&AppshotId::parked(*id))
            {
                *line = Line::Parked(image.state);
            }
        }
    }

    /// After each event.
    pub fn check(&self) {
        for (name, entry) in self.core.entries() {
            for (id, instance) in &entry.instances {
                let front = self.fronts.get(id);
                let leaves =
                    matches!(instance.state, State::Parking { .. } | State::Stopping { .. });
                let open = front.is_some_and(|front| front.open);
                assert!(!leaves || !open, "{id} of {name} leaves and is open");
            }
            if entry.app.sleep.state == Keep::Keep {
                let alive = entry.instances.iter().filter(|(id, instance)| {
                    let ours = instance.release == entry.release && !instance.for_golden;
                    ours && self.live.contains_key(id) && !self.truth.outgoing.contains(id)
                });
                let alive: Vec<_> = alive.map(|(id, _)| *id).collect();
                assert!(alive.len() <= 1, "{alive:?} of {name}, which keeps its state");
            }
        }
    }

    /// When nothing more follows from what happened: nobody waits longer than he may.
    pub fn check_when_quiet(&self) {
        for (waiter, (app, deadline)) in &self.waiters {
            assert!(*deadline >= self.now, "{waiter:?} for {app} was forgotten");
            let held = self.core.entry(app).is_some_and(|entry| !entry.waiting.is_empty());
            assert!(held, "{waiter:?} waits for {app} in no room");
        }
        for (name, entry) in self.core.entries() {
            let running = entry.instances.iter().filter(|(_, i)| i.is_running());
            for (id, _) in running {
                let open = self.fronts.get(id).is_some_and(|front| front.open);
                assert!(open, "{id} of {name} runs and is not open");
            }
        }
    }

    /// All apps are removed and time has passed: nothing is left.
    pub fn check_empty(&self) {
        let left: Vec<_> = self.core.entries().map(|(name, _)| name).collect();
        assert!(left.is_empty(), "not removed: {left:?}");
        assert!(self.live.is_empty(), "left alive: {:?}", self.live);
        assert!(self.waiters.is_empty(), "left waiting: {:?}", self.waiters);
        assert!(self.tokens.is_empty(), "never answered: {:?}", self.tokens);
        assert!(self.releases.is_empty(), "left in the store: {:?}", self.releases.keys());
        assert!(self.images.is_empty(), "left in the store: {:?}", self.images.keys());
        assert!(self.core.next_deadline().is_none(), "it waits for nothing");
    }
}

fn about(effect: &Effect) -> Option<InstanceId> {
    match effect {
        Effect::Start { instance, .. }
        | Effect::Restore { instance, .. }
        | Effect::Prepare { instance, .. }
        | Effect::Open { instance }
        | Effect::Close { instance }
        | Effect::LookIdle { instance }
        | Effect::Park { instance, .. }
        | Effect::Stop { instance }
        | Effect::Drop { instance } => Some(*instance),
        _ => None,
    }
}
