//! Coming up: what begins, what is prepared, what serves; and what becomes of those that fail.

use super::*;

impl Core {
    pub(super) fn began(&mut self, id: InstanceId, result: Result<(), Failed>, now: Instant) {
        let Some((app, instance)) = self.coming(id) else {
            return;
        };
        match result {
            Ok(()) => {
                if let Some(instance) = self.instance_mut(id) {
                    (instance.begun, instance.reached) = (true, true);
                }
                let restored = matches!(instance.origin, Origin::Image(..));
                let hook = restored && instance.app.snapshot.after_restore.is_some();
                if restored && !hook {
                    return self.serve(id, now);
                }
                let warm_up = instance.for_golden;
                let until_ready = !restored;
                self.effects.push(Effect::Prepare { instance: id, until_ready, warm_up, hook });
            }
            // What became of it comes with the next `Found`.
            Err(Failed::AgentAway) => {}
            // It lives, but cannot be reached.
            Err(failed) if instance.begun => {
                self.stop(id, now);
                self.begin_failed(&app, &instance, failed, now);
            }
            Err(failed) => {
                self.forget_instance(id, None);
                self.begin_failed(&app, &instance, failed, now);
                self.after_end(&app, now);
            }
        }
    }

    /// An instance did not come up: fall back, or give up for a while.
    pub(super) fn begin_failed(
        &mut self,
        app: &AppName,
        instance: &Instance,
        failed: Failed,
        now: Instant,
    ) {
        let reason = failed.reason();
        self.note(Note::WakeFailed { app: app.clone(), reason: reason.clone() });
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        if instance.for_golden {
            return self.deploy_failed(app, reason);
        }
        if entry.is_past(instance) {
            // Nobody misses it; what it came from goes with its release.
            if let Origin::Image(Kind::Parked, image) = &instance.origin {
                let appshot = image.id.clone();
                self.effects.push(Effect::Discard { appshot });
            }
            return;
        }
        // The next one begins without its state just the same.
        entry.lost_pending |= instance.lost_state;
        match &instance.origin {
            // Nothing is wrong with the image: it is tried again.
            Origin::Image(Kind::Parked, image) if matches!(failed, Failed::Busy(_)) => {
                entry.parked = Some(image.clone());
                return self.back_off(app, reason, now);
            }
            Origin::Image(Kind::Golden, _) if matches!(failed, Failed::Busy(_)) => {
                return self.back_off(app, reason, now);
            }
            // The processes ran: the image is used up, and older than their files.
            Origin::Image(Kind::Parked, _) if instance.begun => {
                entry.cold_next = true;
                return self.state_lost(app, reason, now);
            }
            Origin::Image(Kind::Parked, image) => {
                entry.parked_failures += 1;
                let unusable = matches!(failed, Failed::Unusable(_) | Failed::Unknown(_));
                entry.parked = Some(image.clone());
                if unusable || entry.parked_failures >= IMAGE_FAILURES {
                    entry.cold_next = true;
                    return self.state_lost(app, reason, now);
                }
            }
            Origin::Image(Kind::Golden, image) => {
                entry.golden_failures += 1;
                let unusable = matches!(failed, Failed::Unusable(_) | Failed::Unknown(_));
                if unusable || entry.golden_failures >= IMAGE_FAILURES {
                    entry.golden = Golden::Failed(reason);
                    entry.remake_golden = true;
                    self.effects.push(Effect::Discard { appshot: image.id.clone() });
                } else {
                    entry.cold_next = true;
                }
            }
            Origin::Found if instance.app.sleep.state == Keep::Keep => {
                return self.state_lost(app, reason, now);
            }
            Origin::Cold | Origin::Found => return self.back_off(app, reason, now),
        }
        self.settle(app, false, now);
    }

    /// Kept state is gone, or cannot be had; the app said what then. With `error` an image that
    /// could not be restored stays, and a wake by hand tries it again.
    pub(super) fn state_lost(&mut self, app: &AppName, reason: String, now: Instant) {
        self.note(Note::StateLost { app: app.clone(), reason: reason.clone() });
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        match entry.app.sleep.on_lost_state {
            OnLostState::Cold => {
                entry.lost_pending = true;
                entry.parked_failures = 0;
                if let Some(image) = entry.parked.take() {
                    self.effects.push(Effect::Discard { appshot: image.id });
                }
                self.settle(app, false, now);
            }
            OnLostState::Error => {
                entry.lost = Some(reason);
                self.refuse_all(app, &Error::StateLost(app.clone()));
            }
        }
    }

    pub(super) fn back_off(&mut self, app: &AppName, reason: String, now: Instant) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        let pause = BACKOFF_FIRST.saturating_mul(1 << entry.failures.min(16)).min(BACKOFF_MAX);
        entry.failures += 1;
        entry.backoff_until = Some(now + pause);
        entry.last_failure = Some(reason.clone());
        let error = Error::WakeFailed { app: app.clone(), reason, retry_after: pause };
        if entry.running() == 0 {
            return self.refuse_all(app, &error);
        }
        // Who waits for a request gets a slot of those that run.
        self.refuse_wakers(app, &error);
    }

    /// Sends away everybody who waits for the app, commands too.
    pub(super) fn refuse_all(&mut self, app: &AppName, error: &Error) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        for waiter in entry.waiting.clear() {
            self.effects.push(Effect::Refuse { waiter, error: error.clone() });
        }
        self.refuse_wakers(app, error);
    }

    pub(super) fn refuse_wakers(&mut self, app: &AppName, error: &Error) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        for waking in std::mem::take(&mut entry.waking) {
            self.effects.push(Effect::Answer { token: waking.token, answer: Err(error.clone()) });
        }
    }

    pub(super) fn prepared(&mut self, id: InstanceId, result: Result<(), Failed>, now: Instant) {
        let Some((app, instance)) = self.coming(id) else {
            return;
        };
        match result {
            Ok(()) if instance.for_golden => {
                if let Some((_, entry)) = self.find(id)
                    && let Some(deploying) = &mut entry.deploying
                {
                    deploying.cold_start = Some(now - instance.born);
                }
                self.go(id, State::Parking { kind: Kind::Golden }, now);
                let appshot = AppshotId::golden(&instance.release);
                self.effects.push(Effect::Park { instance: id, appshot, kind: Kind::Golden });
            }
            Ok(()) => self.serve(id, now),
            Err(failed) => {
                self.stop(id, now);
                self.begin_failed(&app, &instance, failed, now);
            }
        }
    }

    /// An instance is ready: let requests in.
    pub(super) fn serve(&mut self, id: InstanceId, now: Instant) {
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
        let instance = instance.clone();
        if entry.is_past(&instance) {
            // Overtaken by a deployment or removal while it came up.
            return self.retire(id, now);
        }
        // One that was found running did not wake now.
        let woke = instance.origin != Origin::Found;
        if woke {
            entry.came_up(restored, took);
        }
        // Remembered before the first request: from here on there is something to lose.
        let keeps = instance.app.sleep.state == Keep::Keep;
        let first = keeps && !std::mem::replace(&mut entry.has_state, true);
        let failed = matches!(entry.golden, Golden::Failed(_));
        let remake = woke && !restored && failed && std::mem::take(&mut entry.remake_golden);
        let sleeping = entry.sleeping.is_some();
        if first {
            self.effects.push(Effect::Save);
        }
        self.effects.push(Effect::Open { instance: id });
        if woke {
            self.note(Note::Woken { app: app.clone(), instance: id, restored, took });
        }
        self.effects.push(Effect::Admit { app: app.clone() });
        self.answer_wakers(&app, now);
        if sleeping {
            self.order_sleep(&app, now);
        }
        if remake {
            self.remake_golden(&app, now);
        }
        self.settle(&app, false, now);
    }

    /// One that serves no more finishes its requests and ends.
    pub(super) fn retire(&mut self, id: InstanceId, now: Instant) {
        let Some((_, entry)) = self.find(id) else {
            return;
        };
        let Some(instance) = entry.instances.get_mut(&id) else {
            return;
        };
        let next =
            State::Draining { then: Then::Stop, ordered: true, deadline: now + DRAIN_PATIENCE };
        instance.go(next, now);
        self.effects.push(Effect::Close { instance: id });
    }

    pub(super) fn answer_wakers(&mut self, app: &AppName, now: Instant) {
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

    pub(super) fn wake(&mut self, app: &AppName, count: u32, token: Token, now: Instant) {
        let Some(entry) = self.entries.get_mut(app) else {
            return self.answer(token, Err(Error::UnknownApp(app.clone())));
        };
        // A person asks: the image that could not be restored is tried again.
        if entry.parked.is_some() && entry.lost.take().is_some() {
            (entry.parked_failures, entry.cold_next) = (0, false);
        }
        if let Some(error) = entry.refusal(app, now) {
            return self.answer(token, Err(error));
        }
        entry.put_to_sleep = false;
        let count = count.clamp(1, entry.app.scale.max);
        entry.waking.push(Waking { token, count, since: now });
        self.answer_wakers(app, now);
        self.settle(app, false, now);
    }
}
