//! Going to sleep: idle instances, ordered sleeps, parks, ends.

use super::*;

impl Core {
    pub(super) fn idle(&mut self, id: InstanceId, since: Option<Instant>, now: Instant) {
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
            instance.go(State::Draining { then, ordered: false, deadline }, now);
            self.effects.push(Effect::Close { instance: id });
        }
    }

    pub(super) fn drained(&mut self, id: InstanceId, now: Instant) {
        let Some((_, entry)) = self.find(id) else {
            return;
        };
        let Some(instance) = entry.instances.get_mut(&id) else {
            return;
        };
        let State::Draining { then, .. } = instance.state else {
            return;
        };
        // It came up and lived until its turn was over.
        entry.failures = 0;
        match then {
            Then::Park => {
                instance.go(State::Parking { kind: Kind::Parked }, now);
                let appshot = AppshotId::parked(id);
                self.effects.push(Effect::Park { instance: id, appshot, kind: Kind::Parked });
            }
            Then::Stop => {
                instance.go(State::Stopping { again: None }, now);
                self.effects.push(Effect::Stop { instance: id });
            }
        }
    }

    pub(super) fn parked(
        &mut self,
        id: InstanceId,
        result: Result<ImageStatus, Failed>,
        now: Instant,
    ) {
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
            Ok(image) if kind == Kind::Golden => {
                entry.park_time = Some(took);
                self.forget_instance(id, None);
                self.deployed(&app, Ok(image), None, now);
            }
            // Overtaken by a deployment or removal while it was parked.
            Ok(image) if entry.is_past(&instance) => {
                self.forget_instance(id, None);
                self.effects.push(Effect::Discard { appshot: image.id });
                self.after_end(&app, now);
            }
            Ok(image) => {
                entry.park_time = Some(took);
                entry.park_error = None;
                let stale = entry.parked.replace(image);
                self.forget_instance(id, Some(Then::Park));
                if let Some(stale) = stale {
                    self.effects.push(Effect::Discard { appshot: stale.id });
                }
                self.note(Note::Parked { app: app.clone(), instance: id, took });
                self.after_end(&app, now);
            }
            Err(Failed::AgentAway) => {}
            Err(failed) => {
                let reason = failed.reason();
                let (name, text) = (app.clone(), reason.clone());
                self.note(Note::ParkFailed { app: name, instance: id, reason: text });
                self.park_failed(&app, id, kind, reason, now);
            }
        }
    }

    /// The instance runs on.
    pub(super) fn park_failed(
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
        if kind == Kind::Parked {
            let instance = instance.clone();
            if entry.is_past(&instance) {
                return self.retire(id, now);
            }
        } else if entry.deployed && entry.release == instance.release {
            // The live release has its instances; this one was for the appshot only.
            self.deployed(app, Err(reason), None, now);
            return self.retire(id, now);
        } else {
            instance.for_golden = false;
        }
        entry.park_error = Some(reason.clone());
        match kind {
            Kind::Golden => self.deployed(app, Err(reason), Some(id), now),
            Kind::Parked => {
                let error = Error::NotSlept { app: app.clone(), reason };
                self.fail_sleepers(app, &error);
            }
        }
        self.effects.push(Effect::Open { instance: id });
        self.effects.push(Effect::Admit { app: app.clone() });
        self.answer_wakers(app, now);
        self.settle(app, false, now);
    }

    pub(super) fn fail_sleepers(&mut self, app: &AppName, error: &Error) {
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
    pub(super) fn ended(&mut self, id: InstanceId, now: Instant) {
        let Some((app, entry)) = self.find(id) else {
            return self.stray_ended(id);
        };
        let Some(instance) = entry.instances.get(&id).cloned() else {
            return;
        };
        let past = entry.is_past(&instance);
        let stopped = matches!(instance.state, State::Stopping { .. });
        self.forget_instance(id, stopped.then_some(Then::Stop));
        let crashed = !stopped;
        if crashed {
            self.note(Note::Crashed { app: app.clone(), instance: id });
        }
        let reason = || "its processes ended".to_string();
        match instance.state {
            _ if instance.for_golden && crashed => self.deploy_failed(&app, reason()),
            State::Starting | State::Restoring => {
                self.begin_failed(&app, &instance, Failed::Reason(reason()), now);
            }
            // Not the live release: nobody misses it.
            _ if past => {}
            State::Running { .. } | State::Draining { .. } | State::Parking { .. } => {
                let error = Error::NotSlept { app: app.clone(), reason: reason() };
                self.fail_sleepers(&app, &error);
                // One that dies right after it came up is not tried again at once.
                if instance.is_running() && now - instance.since < CRASH_LOOP {
                    self.back_off(&app, reason(), now);
                } else if let Some(entry) = self.entries.get_mut(&app) {
                    entry.failures = 0;
                }
                if instance.app.sleep.state == Keep::Keep {
                    self.state_lost(&app, reason(), now);
                }
            }
            State::Stopping { .. } => {}
        }
        self.after_end(&app, now);
    }

    /// Its processes do not end: asked again, for as long as it takes.
    pub(super) fn not_stopped(&mut self, id: InstanceId, now: Instant) {
        if self.instance(id).is_some_and(|(_, i)| matches!(i.state, State::Stopping { .. })) {
            self.go(id, State::Stopping { again: Some(now + STOP_AGAIN) }, now);
        } else if let Some(stray) = self.strays.get_mut(&id) {
            stray.again = Some(now + STOP_AGAIN);
        }
    }

    pub(super) fn sleep(&mut self, app: &AppName, token: Token, now: Instant) {
        let Some(entry) = self.entries.get_mut(app) else {
            return self.answer(token, Err(Error::UnknownApp(app.clone())));
        };
        let deploying = entry.deploying.as_ref().is_some_and(|d| d.token.is_some());
        if deploying || entry.removing.is_some() {
            return self.answer(token, Err(Error::Changing(app.clone())));
        }
        match &mut entry.sleeping {
            Some(sleeping) => sleeping.tokens.push(token),
            None => entry.sleeping = Some(Sleeping::new(token, now)),
        }
        self.order_sleep(app, now);
    }

    /// Closes every running instance for a sleep by hand.
    pub(super) fn order_sleep(&mut self, app: &AppName, now: Instant) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        let Some(then) = entry.sleep_way() else {
            let reason = entry.park_error.clone().unwrap_or_else(|| "it cannot be parked".into());
            let error = Error::NotSlept { app: app.clone(), reason };
            return self.fail_sleepers(app, &error);
        };
        let Some(sleeping) = &mut entry.sleeping else {
            return;
        };
        for (id, instance) in entry.instances.iter_mut().filter(|(_, i)| !i.for_golden) {
            match &mut instance.state {
                State::Running { .. } => {
                    let deadline = now + SLEEP_PATIENCE;
                    instance.go(State::Draining { then, ordered: true, deadline }, now);
                    self.effects.push(Effect::Close { instance: *id });
                }
                State::Draining { ordered, .. } => *ordered = true,
                _ => {}
            }
            sleeping.remaining.insert(*id);
        }
        self.slept_if_done(app, now);
    }

    pub(super) fn slept_if_done(&mut self, app: &AppName, now: Instant) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        if entry.sleeping.as_ref().is_some_and(|sleeping| sleeping.remaining.is_empty()) {
            if let Some(done) = entry.sleeping.take() {
                entry.put_to_sleep = entry.waiting.is_empty();
                let millis = millis(now - done.since);
                let slept = Slept { parked: done.parked, stopped: done.stopped, millis };
                for token in done.tokens {
                    self.answer(token, Ok(Answer::Slept(slept.clone())));
                }
            }
            self.settle(app, false, now);
        }
    }

    /// Requests that do not end hold an instance of the live release; an old one is ended.
    pub(super) fn drain_is_late(&mut self, app: &AppName, id: InstanceId, now: Instant) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        let Some(instance) = entry.instances.get_mut(&id) else {
            return;
        };
        let instance = instance.clone();
        // What keeps its state is ended only where another took its place; its release may be live
        // again since, but state that is kept is in one place.
        let keeps = instance.app.sleep.state == Keep::Keep;
        let replaced = keeps && matches!(instance.state, State::Draining { then: Then::Stop, .. });
        let past = entry.is_past(&instance) || replaced;
        let Some(instance) = entry.instances.get_mut(&id) else {
            return;
        };
        if !past {
            let idle_check = instance.app.sleep.park_after.map(|after| now + after);
            instance.go(State::Running { idle_check }, now);
            self.effects.push(Effect::Open { instance: id });
            self.effects.push(Effect::Admit { app: app.clone() });
            let reason = "requests are still being served".into();
            self.fail_sleepers(app, &Error::NotSlept { app: app.clone(), reason });
            self.answer_wakers(app, now);
        } else {
            let deadline = now;
            instance.go(State::Draining { then: Then::Stop, ordered: true, deadline }, now);
            self.drained(id, now);
        }
    }
}
