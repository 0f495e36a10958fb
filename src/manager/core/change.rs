//! Deployments, removals and what is found after the agent was away.

use std::collections::HashSet;

use super::{
    Answer, App, AppName, AppshotId, Arc, Core, DRAIN_PATIENCE, Deployed, Deploying, Effect, Entry,
    Error, Failed, Golden, ImageStatus, Instance, InstanceId, Instant, Keep, Kind, LiveInstance,
    Origin, ReleaseId, State, StoredAppshot, Stray, Then, Token, millis,
};

impl Core {
    /// Starts an instance of the new release; the old one serves until its golden appshot is made.
    pub(super) fn deploy(&mut self, app: Arc<App>, release: ReleaseId, token: Token, now: Instant) {
        let name = app.name.clone();
        if self.away {
            return self.answer(token, Err(Error::Unavailable("the agent is away".into())));
        }
        let entry = self
            .entries
            .entry(name.clone())
            .or_insert_with(|| Entry::undeployed(release.clone(), app.clone()));
        if entry.deploying.is_some() || entry.removing.is_some() {
            return self.answer(token, Err(Error::Changing(name)));
        }
        let live = entry.deployed && entry.release == release && entry.lost.is_none();
        // One that has no golden appshot gets another try.
        if live && let Some(golden) = entry.golden_image().cloned() {
            let done = Deployed {
                app: name,
                release,
                changed: false,
                cold_start_ms: entry.cold_start.map(millis).unwrap_or(0),
                golden: Some(golden),
                golden_error: None,
            };
            return self.answer(token, Ok(Answer::Deployed(done)));
        }
        self.begin_golden(&name, app, release, Some(token), now);
    }

    /// Makes the golden appshot of the live release anew; what was wrong with the last one may have
    /// been of its time (a kernel update, a full disk).
    pub(super) fn remake_golden(&mut self, name: &AppName, now: Instant) {
        let Some(entry) = self.entries.get(name) else {
            return;
        };
        if entry.deploying.is_some() || entry.removing.is_some() || entry.ending || self.away {
            return;
        }
        let (app, release) = (entry.app.clone(), entry.release.clone());
        self.begin_golden(name, app, release, None, now);
    }

    fn begin_golden(
        &mut self,
        name: &AppName,
        app: Arc<App>,
        release: ReleaseId,
        token: Option<Token>,
        now: Instant,
    ) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        entry.generation += 1;
        entry.remake_golden = false;
        let id = InstanceId::new(self.next_instance);
        self.next_instance += 1;
        let generation = entry.generation;
        let coming = (State::Starting, Origin::Cold);
        let made = Instance::new(release.clone(), app.clone(), generation, coming, now);
        let instance = Instance { for_golden: true, ..made };
        entry.instances.insert(id, instance);
        entry.deploying =
            Some(Deploying { release: release.clone(), app, token, cold_start: None });
        self.home.insert(id, name.clone());
        self.effects.push(Effect::Start { instance: id, release, generation });
    }

    /// The new release cannot serve; the old one goes on.
    pub(super) fn deploy_failed(&mut self, app: &AppName, reason: String) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        let Some(deploying) = entry.deploying.take() else {
            return;
        };
        if deploying.release != entry.release || !entry.deployed {
            entry.old.insert(deploying.release);
        }
        let Some(token) = deploying.token else {
            entry.golden = Golden::Failed(reason);
            return;
        };
        if !entry.deployed {
            self.refuse_all(app, &Error::UnknownApp(app.clone()));
        }
        self.answer(token, Err(Error::DeployFailed(reason)));
        self.forget_old_releases(app);
    }

    /// The new release serves from now on; the old one's instances finish and end.
    pub(super) fn deployed(
        &mut self,
        app: &AppName,
        golden: Result<ImageStatus, String>,
        running: Option<InstanceId>,
        now: Instant,
    ) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        let Some(deploying) = entry.deploying.take() else {
            return;
        };
        let made = match golden.clone() {
            Ok(image) => Golden::Ready(image),
            Err(reason) => Golden::Failed(reason),
        };
        let Some(token) = deploying.token else {
            // Nobody deployed: the appshot is new, and nothing else.
            (entry.golden, entry.golden_failures) = (made, 0);
            return self.settle(app, false, now);
        };
        let old = std::mem::replace(&mut entry.release, deploying.release.clone());
        let was_deployed = std::mem::replace(&mut entry.deployed, true);
        // The release that is live already: only its golden appshot is new.
        let again = was_deployed && old == entry.release && entry.lost.is_none();
        if was_deployed && old != entry.release {
            entry.old.insert(old);
        }
        // One that served before serves again.
        entry.old.remove(&entry.release);
        entry.app = deploying.app;
        for waking in &mut entry.waking {
            waking.count = waking.count.min(entry.app.scale.max);
        }
        entry.waiting.resize(usize::try_from(entry.app.wake.max_pending).unwrap_or(usize::MAX));
        entry.cold_start = deploying.cold_start;
        entry.golden = made;
        let pending = entry.lost_pending;
        entry.heal();
        let parked = if again {
            entry.lost_pending = pending;
            None
        } else {
            // Where no appshot could be taken, the instance that was started serves on.
            entry.has_state = running.is_some() && entry.app.sleep.state == Keep::Keep;
            entry.parked.take()
        };
        for (id, instance) in &mut entry.instances {
            if Some(*id) == running || instance.release == entry.release {
                continue;
            }
            match &mut instance.state {
                State::Running { .. } | State::Draining { .. } => {
                    let deadline = now + DRAIN_PATIENCE;
                    let next = State::Draining { then: Then::Stop, ordered: true, deadline };
                    instance.go(next, now);
                    self.effects.push(Effect::Close { instance: *id });
                }
                // One that is on its way up is ended when it arrives (`serve`).
                _ => {}
            }
        }
        if let Some(image) = parked {
            self.effects.push(Effect::Discard { appshot: image.id });
        }
        let done = Deployed {
            app: app.clone(),
            release: deploying.release,
            changed: true,
            cold_start_ms: deploying.cold_start.map(millis).unwrap_or(0),
            golden: golden.clone().ok(),
            golden_error: golden.err(),
        };
        self.answer(token, Ok(Answer::Deployed(done)));
        self.effects.push(Effect::Save);
        if !again {
            self.fail_sleepers(app, &Error::Changing(app.clone()));
        }
        self.forget_old_releases(app);
        self.settle(app, false, now);
    }

    /// Releases that no instance runs any more.
    pub(super) fn forget_old_releases(&mut self, app: &AppName) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        let in_use: HashSet<&ReleaseId> =
            entry.instances.values().map(|instance| &instance.release).collect();
        let deploying = entry.deploying.as_ref().map(|d| &d.release);
        let gone: Vec<ReleaseId> = entry
            .old
            .iter()
            .filter(|release| !in_use.contains(release))
            .filter(|release| deploying != Some(release))
            .cloned()
            .collect();
        for release in gone {
            entry.old.remove(&release);
            self.effects.push(Effect::Forget { release });
        }
        if !entry.deployed && entry.instances.is_empty() && entry.deploying.is_none() {
            self.entries.remove(app);
        }
    }

    pub(super) fn remove(&mut self, app: &AppName, token: Token, now: Instant) {
        let Some(entry) = self.entries.get_mut(app) else {
            return self.answer(token, Err(Error::UnknownApp(app.clone())));
        };
        if entry.deploying.is_some() || entry.removing.is_some() {
            return self.answer(token, Err(Error::Changing(app.clone())));
        }
        entry.removing = Some(token);
        let parked = entry.parked.take();
        for (id, instance) in &mut entry.instances {
            if matches!(instance.state, State::Running { .. } | State::Draining { .. }) {
                let deadline = now + DRAIN_PATIENCE;
                instance.go(State::Draining { then: Then::Stop, ordered: true, deadline }, now);
                self.effects.push(Effect::Close { instance: *id });
            }
        }
        if let Some(image) = parked {
            self.effects.push(Effect::Discard { appshot: image.id });
        }
        self.refuse_all(app, &Error::UnknownApp(app.clone()));
        self.fail_sleepers(app, &Error::Changing(app.clone()));
        self.finish_removal(app);
    }

    /// Ends a removal once no instance is left.
    pub(super) fn finish_removal(&mut self, app: &AppName) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        let Some(token) = entry.removing else { return };
        if !entry.instances.is_empty() {
            return;
        }
        let mut releases = std::mem::take(&mut entry.old);
        releases.insert(entry.release.clone());
        self.entries.remove(app);
        for release in releases {
            self.effects.push(Effect::Forget { release });
        }
        self.answer(token, Ok(Answer::Removed));
        self.effects.push(Effect::Save);
    }

    /// The agent was away: compare what it holds with what we believe.
    pub(super) fn found(
        &mut self,
        instances: &[LiveInstance],
        appshots: &[StoredAppshot],
        releases: &[ReleaseId],
        now: Instant,
    ) {
        let alive: HashSet<InstanceId> = instances.iter().map(|live| live.id).collect();
        let known: Vec<InstanceId> = self.home.keys().copied().collect();
        for id in known {
            self.compare(id, alive.contains(&id), appshots, now);
        }
        self.strays.clear();
        for live in instances {
            if !self.home.contains_key(&live.id) {
                self.adopt_or_stop(live, now);
            }
        }
        self.discard_unused(appshots);
        self.forget_unknown(releases);
        self.away = false;
        let apps: Vec<AppName> = self.entries.keys().cloned().collect();
        for app in apps {
            let gone = self.entries.get(&app).is_some_and(|entry| {
                let nothing = entry.parked.is_none() && entry.instances.is_empty();
                let said = entry.lost.is_some() || entry.lost_pending;
                entry.has_state && nothing && !said && entry.removing.is_none()
            });
            if gone {
                let reason = "it ran when the host, the agent or the edgepoint ended".into();
                self.state_lost(&app, reason, now);
            }
            self.settle(&app, false, now);
        }
    }

    /// One instance that we know.
    fn compare(&mut self, id: InstanceId, alive: bool, appshots: &[StoredAppshot], now: Instant) {
        let Some((app, instance)) = self.instance(id) else {
            return;
        };
        let (app, instance) = (app.clone(), instance.clone());
        match (&instance.state, alive) {
            (State::Running { .. } | State::Draining { .. }, true) => {}
            (State::Stopping { .. }, true) => self.effects.push(Effect::Stop { instance: id }),
            // It is being prepared, over sockets that we have.
            (State::Starting | State::Restoring, true) if instance.reached => {}
            // It came up, and only the answer was lost.
            (State::Starting | State::Restoring, true) => {
                if let Some(instance) = self.instance_mut(id) {
                    instance.begun = true;
                }
                self.effects.push(Effect::Adopt { instance: id });
            }
            (State::Starting | State::Restoring, false) if !instance.begun => {
                self.never_began(id, app, &instance, appshots, now);
            }
            (State::Parking { kind }, true) => {
                let reason = "the agent was away".to_string();
                self.park_failed(&app, id, *kind, reason, now);
            }
            (State::Parking { kind }, false) => {
                let appshot = match kind {
                    Kind::Golden => AppshotId::golden(&instance.release),
                    Kind::Parked => AppshotId::parked(id),
                };
                match appshots.iter().find(|stored| stored.id == appshot) {
                    Some(stored) => {
                        let image = ImageStatus { id: appshot, bytes: stored.bytes };
                        self.parked(id, Ok(image), now);
                    }
                    None => self.ended(id, now),
                }
            }
            (_, false) => self.ended(id, now),
        }
    }

    /// A start or restore that the agent's absence cut off: it is asked again.
    fn never_began(
        &mut self,
        id: InstanceId,
        app: AppName,
        instance: &Instance,
        appshots: &[StoredAppshot],
        now: Instant,
    ) {
        let away = "the agent was away".to_string();
        self.forget_instance(id, None);
        match &instance.origin {
            _ if instance.for_golden => self.deploy_failed(&app, away),
            Origin::Image(Kind::Parked, image) => {
                let stored = appshots.iter().any(|stored| stored.id == image.id);
                let failed = match stored {
                    true => Failed::Reason(away),
                    false => Failed::Unusable("the agent has lost the image".into()),
                };
                self.begin_failed(&app, instance, failed, now);
            }
            _ => {
                if let Some(entry) = self.entries.get_mut(&app) {
                    entry.lost_pending |= instance.lost_state;
                }
            }
        }
        self.after_end(&app, now);
    }

    /// One that lives and that we do not know: an earlier manager's.
    fn adopt_or_stop(&mut self, live: &LiveInstance, now: Instant) {
        self.next_instance = self.next_instance.max(live.id.number() + 1);
        let owner = self.entries.iter_mut().find(|(_, entry)| entry.release == live.release);
        // One that nobody misses, or one too many of an app that keeps its state, is ended.
        let Some((name, entry)) = owner.filter(|(_, entry)| {
            let single = entry.app.sleep.state == Keep::Keep;
            let gone = entry.removing.is_some() || entry.lost.is_some();
            !gone && (!single || entry.instances.is_empty())
        }) else {
            let stray = Stray { release: live.release.clone(), again: None };
            self.strays.insert(live.id, stray);
            return self.effects.push(Effect::Stop { instance: live.id });
        };
        // What it was restored from is older than it is.
        if let Some(image) = entry.parked.take() {
            self.effects.push(Effect::Discard { appshot: image.id });
        }
        entry.generation = entry.generation.max(live.generation);
        let found = (State::Starting, Origin::Found);
        let (release, app) = (live.release.clone(), entry.app.clone());
        let made = Instance::new(release, app, live.generation, found, now);
        let instance = Instance { begun: true, ..made };
        entry.instances.insert(live.id, instance);
        self.home.insert(live.id, name.clone());
        self.effects.push(Effect::Adopt { instance: live.id });
    }

    /// Appshots that nothing will be restored from; what was told while the agent was away is lost.
    fn discard_unused(&mut self, appshots: &[StoredAppshot]) {
        for stored in appshots {
            let is_it = |image: &ImageStatus| image.id == stored.id;
            let used = self.entries.values().any(|entry| {
                let coming = entry.deploying.as_ref().is_some_and(|d| d.release == stored.release);
                let restoring = |instance: &Instance| match &instance.origin {
                    Origin::Image(_, image) => !instance.begun && is_it(image),
                    _ => false,
                };
                entry.golden_image().is_some_and(is_it)
                    || entry.parked.as_ref().is_some_and(is_it)
                    || coming
                    || entry.instances.values().any(restoring)
            });
            let told = Effect::Discard { appshot: stored.id.clone() };
            if !used && !self.effects.contains(&told) {
                self.effects.push(told);
            }
        }
    }

    /// Releases that no app has and that do not run.
    fn forget_unknown(&mut self, releases: &[ReleaseId]) {
        for release in releases {
            let runs = self.strays.values().any(|stray| stray.release == *release);
            let known = self.entries.values().any(|entry| {
                let coming = entry.deploying.as_ref().map(|deploying| &deploying.release);
                entry.release == *release || coming == Some(release) || entry.old.contains(release)
            });
            let told = Effect::Forget { release: release.clone() };
            if !runs && !known && !self.effects.contains(&told) {
                self.effects.push(told);
            }
        }
    }

    /// One that nobody knew is no more, and perhaps its release goes with it.
    pub(super) fn stray_ended(&mut self, id: InstanceId) {
        if let Some(stray) = self.strays.remove(&id) {
            self.forget_unknown(&[stray.release]);
        }
    }
}
