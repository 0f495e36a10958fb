//! Deployments, removals and what is found after the agent was away.

use std::collections::HashSet;

use super::{
    Answer, App, AppName, AppshotId, Arc, Core, DRAIN_PATIENCE, Deployed, Deploying, Effect, Entry,
    Error, Failed, Golden, ImageStatus, Instance, InstanceId, Instant, Keep, Kind, Origin,
    ReleaseId, State, Then, Token, millis,
};

impl Core {
    /// Starts an instance of the new release; the old one serves until its golden appshot is made.
    pub(super) fn deploy(&mut self, app: Arc<App>, release: ReleaseId, token: Token, now: Instant) {
        let name = app.name.clone();
        let entry = self
            .entries
            .entry(name.clone())
            .or_insert_with(|| Entry::undeployed(release.clone(), app.clone()));
        if entry.deploying.is_some() || entry.removing.is_some() {
            return self.answer(token, Err(Error::Changing(name)));
        }
        if entry.deployed && entry.release == release && entry.lost.is_none() {
            let golden = entry.golden_image().cloned();
            let golden_error = entry.golden_error();
            let cold_start_ms = entry.cold_start.map(millis).unwrap_or(0);
            let done = Deployed {
                app: name,
                release,
                changed: false,
                cold_start_ms,
                golden,
                golden_error,
            };
            return self.answer(token, Ok(Answer::Deployed(done)));
        }
        entry.generation += 1;
        let id = InstanceId::new(self.next_instance);
        self.next_instance += 1;
        let instance = Instance {
            release: release.clone(),
            app: app.clone(),
            generation: entry.generation,
            state: State::Starting,
            origin: Origin::Cold,
            lost_state: false,
            since: now,
            born: now,
            for_golden: true,
        };
        let generation = entry.generation;
        entry.instances.insert(id, instance);
        entry.deploying =
            Some(Deploying { release: release.clone(), app, token, cold_start: None });
        self.home.insert(id, name);
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
        if !entry.deployed {
            self.refuse_all(app, &Error::UnknownApp(app.clone()));
        }
        self.answer(deploying.token, Err(Error::DeployFailed(reason)));
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
        let old = std::mem::replace(&mut entry.release, deploying.release.clone());
        let was_deployed = std::mem::replace(&mut entry.deployed, true);
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
        entry.golden = match golden.clone() {
            Ok(image) => Golden::Ready(image),
            Err(reason) => Golden::Failed(reason),
        };
        entry.heal();
        let parked = entry.parked.take();
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
        self.answer(deploying.token, Ok(Answer::Deployed(done)));
        self.effects.push(Effect::Save);
        self.fail_sleepers(app, &Error::Changing(app.clone()));
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
        instances: &[(InstanceId, ReleaseId)],
        appshots: &[AppshotId],
        now: Instant,
    ) {
        let alive: HashSet<InstanceId> = instances.iter().map(|(id, _)| *id).collect();
        let stored: HashSet<&AppshotId> = appshots.iter().collect();
        let known: Vec<InstanceId> = self.home.keys().copied().collect();
        for id in known {
            let Some((_, instance)) = self.instance(id) else {
                continue;
            };
            let instance = instance.clone();
            match (&instance.state, alive.contains(&id)) {
                (State::Running { .. } | State::Draining { .. }, true) => {}
                (State::Stopping, true) => self.effects.push(Effect::Stop { instance: id }),
                // Half made and nobody saw it come up: end it and begin again.
                (State::Starting | State::Restoring, true) => {
                    if let Some((app, entry)) = self.find(id) {
                        if let Some(instance) = entry.instances.get_mut(&id) {
                            instance.go(State::Stopping, now);
                        }
                        self.effects.push(Effect::Stop { instance: id });
                        let failed = Failed::Reason("the agent was away".into());
                        self.begin_failed(&app, &instance, failed, now);
                    }
                }
                (State::Parking { kind }, true) => {
                    if let Some((app, _)) = self.find(id) {
                        let reason = "the agent was away".to_string();
                        self.park_failed(&app, id, *kind, reason, now);
                    }
                }
                (State::Parking { kind }, false) => {
                    let appshot = match kind {
                        Kind::Golden => AppshotId::golden(&instance.release),
                        Kind::Parked => AppshotId::parked(id),
                    };
                    if stored.contains(&appshot) {
                        // Its size is read again when it is next listed.
                        let bytes = crate::model::Bytes(0);
                        let image = ImageStatus { id: appshot, bytes };
                        self.parked(id, Ok(image), now);
                    } else {
                        self.ended(id, now);
                    }
                }
                (State::Restoring, false) => self.restore_again(id, &stored, now),
                (_, false) => self.ended(id, now),
            }
        }
        for (id, release) in instances {
            if self.home.contains_key(id) {
                continue;
            }
            self.next_instance = self.next_instance.max(id.number() + 1);
            let owner = self.entries.iter_mut().find(|(_, entry)| entry.release == *release);
            // One that nobody misses, or one too many of an app that keeps its state, is ended.
            match owner {
                Some((name, entry))
                    if entry.removing.is_none()
                        && entry.lost.is_none()
                        && (entry.app.sleep.state == Keep::Discard
                            || entry.instances.is_empty()) =>
                {
                    // What it was restored from is older than it is.
                    if let Some(image) = entry.parked.take() {
                        self.effects.push(Effect::Discard { appshot: image.id });
                    }
                    let instance = Instance {
                        release: release.clone(),
                        app: entry.app.clone(),
                        generation: entry.generation,
                        state: State::Starting,
                        origin: Origin::Found,
                        lost_state: false,
                        since: now,
                        born: now,
                        for_golden: false,
                    };
                    entry.instances.insert(*id, instance);
                    self.home.insert(*id, name.clone());
                    self.effects.push(Effect::Adopt { instance: *id });
                }
                _ => self.effects.push(Effect::Stop { instance: *id }),
            }
        }
        let apps: Vec<AppName> = self.entries.keys().cloned().collect();
        for app in apps {
            self.settle(&app, false, now);
        }
    }

    /// A restore that the agent's absence cut off: its image may still be there.
    fn restore_again(&mut self, id: InstanceId, stored: &HashSet<&AppshotId>, now: Instant) {
        let Some((app, instance)) = self.instance(id) else {
            return;
        };
        let (app, instance) = (app.clone(), instance.clone());
        self.forget_instance(id, None);
        let Some(entry) = self.entries.get_mut(&app) else {
            return;
        };
        match &instance.origin {
            Origin::Image(Kind::Parked, image)
                if stored.contains(&image.id) && !entry.is_past(&instance) =>
            {
                entry.parked = Some(image.clone());
            }
            _ => {
                let failed = Failed::Reason("the agent was away".into());
                self.begin_failed(&app, &instance, failed, now);
            }
        }
        self.after_end(&app, now);
    }
}
