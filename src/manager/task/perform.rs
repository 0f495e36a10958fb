//! Carrying effects out: what the agent is asked, what the dispatcher is asked, what opens and
//! closes instances. Whatever takes time is spawned and comes back as an outcome.

use super::{
    Arc, Bell, CLOSE_PATIENCE, Duration, Effect, Event, Failed, ImageStatus, InstanceId, LONG,
    Origin, Outcome, OwnedFd, Preparation, Reply, ResourceUse, Running, SHORT, SOCKET_BATCH,
    STOP_PATIENCE_MS, Slots, Task, Verb, clock, failed, odd, telemetry, warn,
};

impl Task {
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Start { instance, release, generation } => {
                self.begin(instance, Verb::Start { instance, release, generation }, SHORT);
            }
            Effect::Restore { instance, appshot, generation } => {
                let deadline = self.config.restore_timeout + SHORT;
                self.begin(instance, Verb::Restore { instance, appshot, generation }, deadline);
            }
            Effect::Adopt { instance } => {
                let verb = Verb::Sockets { instance, count: SOCKET_BATCH };
                self.begin(instance, verb, SHORT);
            }
            Effect::Prepare { instance, until_ready, warm_up, hook } => {
                self.prepare(instance, until_ready, warm_up, hook);
            }
            Effect::Open { instance } => self.open(instance),
            Effect::Park { instance, appshot, kind } => {
                let deadline = self.config.dump_timeout * 2 + LONG;
                let verb = Verb::Park { instance, appshot: appshot.clone(), kind };
                self.end(instance, verb, deadline, move |reply| match reply {
                    Ok(Reply::Parked { bytes, usage }) => {
                        let image = ImageStatus { id: appshot, bytes };
                        (usage, Some(Event::Parked { instance, result: Ok(image) }))
                    }
                    Ok(_) => (
                        ResourceUse::default(),
                        Some(Event::Parked { instance, result: Err(odd()) }),
                    ),
                    Err(failed) => (
                        ResourceUse::default(),
                        Some(Event::Parked { instance, result: Err(failed) }),
                    ),
                });
            }
            Effect::Stop { instance } => {
                let verb = Verb::Stop { instance, patience_ms: STOP_PATIENCE_MS };
                self.end(instance, verb, LONG, move |reply| match reply {
                    Ok(Reply::Stopped { usage }) => (usage, Some(Event::Ended { instance })),
                    // `Found` tells.
                    Err(Failed::AgentAway) => (ResourceUse::default(), None),
                    Err(Failed::Unknown(_)) => {
                        (ResourceUse::default(), Some(Event::Ended { instance }))
                    }
                    _ => (ResourceUse::default(), Some(Event::NotStopped { instance })),
                });
            }
            Effect::Drop { instance } => {
                self.endpoints.remove(&instance);
                self.running.remove(&instance);
                self.closing.remove(&instance);
                self.usage.remove(&instance);
                self.stale = true;
            }
            Effect::Discard { appshot } => {
                self.tell(Verb::Discard { appshot });
            }
            Effect::Forget { release } => self.tell(Verb::Forget { release }),
            Effect::Refuse { waiter, error } => {
                if let Some(waiting) = self.waiters.remove(&waiter) {
                    let _ = waiting.reply.send(Err(error));
                }
            }
            Effect::Answer { token, answer } => {
                // Who is told that an app is there finds it there.
                self.stale = true;
                self.publish();
                self.answer(token, answer);
            }
            Effect::Save => {
                self.stale = true;
                self.save(false);
            }
            Effect::Note(note) => self.note(note),
            // Answered at once, in `feed`.
            Effect::Close { .. } | Effect::LookIdle { .. } | Effect::Admit { .. } => {}
        }
    }

    /// Asks the agent and sends what came of it back to this task.
    pub(super) fn ask(
        &self,
        verb: Verb,
        deadline: Duration,
        then: impl FnOnce(Result<(Reply, Vec<OwnedFd>), Failed>) -> Outcome + Send + 'static,
    ) {
        let (agent, outcome) = (self.agent.clone(), self.outcome.clone());
        tokio::spawn(async move {
            let result = match agent {
                Some(agent) => agent.ask(verb, &[], deadline).await.map_err(failed),
                None => Err(Failed::AgentAway),
            };
            let _ = outcome.send(then(result)).await;
        });
    }

    fn begin(&self, instance: InstanceId, verb: Verb, deadline: Duration) {
        self.ask(verb, deadline, move |result| Outcome::Began {
            instance,
            result: result.map(|(_, sockets)| sockets),
        });
    }

    /// Closes every socket of an instance, then asks the agent to park or stop it.
    fn end(
        &mut self,
        instance: InstanceId,
        verb: Verb,
        deadline: Duration,
        then: impl FnOnce(Result<Reply, Failed>) -> (ResourceUse, Option<Event>) + Send + 'static,
    ) {
        let (agent, outcome) = (self.agent.clone(), self.outcome.clone());
        let endpoint = self.endpoints.get(&instance).cloned();
        self.stale = true;
        tokio::spawn(async move {
            if let Some(endpoint) = endpoint {
                endpoint.close();
                let patience = clock::now() + CLOSE_PATIENCE;
                while endpoint.connected() > 0 && clock::now() < patience {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            let result = match agent {
                Some(agent) => agent.ask(verb, &[], deadline).await.map_err(failed),
                None => Err(Failed::AgentAway),
            };
            let (usage, event) = then(result.map(|(reply, _)| reply));
            let _ = outcome.send(Outcome::Final { instance, usage, event }).await;
        });
    }

    /// Asks the agent for something whose outcome changes nothing here. What is lost while it is
    /// away is seen by the next `Found`.
    pub(super) fn tell(&self, verb: Verb) {
        let Some(agent) = self.agent.clone() else {
            return;
        };
        tokio::spawn(async move {
            let what = format!("{verb:?}");
            if let Err(error) = agent.ask(verb, &[], LONG).await {
                warn!(what, error = %telemetry::chain(&error), "the agent did not do it");
            }
        });
    }

    fn prepare(&self, instance: InstanceId, until_ready: bool, warm_up: bool, hook: bool) {
        let Some((_, known)) = self.core.instance(instance) else {
            return;
        };
        let (app, generation) = (known.app.clone(), known.generation);
        let preparation = Preparation { app, generation, until_ready, warm_up, hook };
        let endpoint = self.endpoints.get(&instance).cloned();
        let (errands, outcome) = (self.errands.clone(), self.outcome.clone());
        tokio::spawn(async move {
            let result = match endpoint {
                Some(endpoint) => errands.prepare(&endpoint, &preparation).await,
                None => Err("it has no endpoint".into()),
            };
            let result = result.map_err(Failed::Reason);
            let _ = outcome.send(Outcome::Event(Event::Prepared { instance, result })).await;
        });
    }

    /// Lets requests in.
    pub(super) fn open(&mut self, instance: InstanceId) {
        self.closing.remove(&instance);
        let Some(endpoint) = self.endpoints.get(&instance) else {
            return;
        };
        if let Some(running) = self.running.get(&instance) {
            endpoint.reopen();
            running.slots.reopen();
            self.stale = true;
            return;
        }
        let Some((name, known)) = self.core.instance(instance) else {
            return;
        };
        let bell = self
            .bells
            .entry(name.clone())
            .or_insert_with(|| Arc::new(Bell::new(self.bell.clone())))
            .clone();
        endpoint.reopen();
        let running = Running {
            id: instance,
            app: known.app.clone(),
            generation: known.generation,
            lost_state: known.lost_state,
            restored: matches!(known.origin, Origin::Image(..)),
            opened: clock::now(),
            endpoint: endpoint.clone(),
            slots: Slots::new(known.app.concurrency.hard),
            bell,
        };
        self.running.insert(instance, Arc::new(running));
        self.stale = true;
    }

    /// Lets no request in; true if none is left.
    pub(super) fn close(&mut self, instance: InstanceId) -> bool {
        let Some(running) = self.running.get(&instance) else {
            return true;
        };
        let drained = running.slots.close() == 0;
        if !drained {
            self.closing.insert(instance);
        }
        self.stale = true;
        drained
    }
}
