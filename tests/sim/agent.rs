//! The agent's part of the world: what lives and what is stored in truth, how it answers, how it
//! fails, how it goes away and is found again.

use std::sync::Arc;

use edgepoint::{
    agent::protocol::{LiveInstance, StoredAppshot},
    appshot::Kind,
    manager::{
        ImageStatus,
        core::{Event, Failed},
    },
    model::{App, AppshotId, Bytes, InstanceId, ReleaseId},
};

use crate::world::{Due, World};

/// What the agent may be asked.
#[derive(Debug, Clone)]
pub enum Ask {
    Start { instance: InstanceId, release: ReleaseId },
    Restore { instance: InstanceId, appshot: AppshotId },
    Adopt { instance: InstanceId },
    Park { instance: InstanceId, appshot: AppshotId, kind: Kind },
    Stop { instance: InstanceId },
    Discard { appshot: AppshotId },
    Forget { release: ReleaseId },
}

/// A living instance.
#[derive(Debug, Clone)]
pub struct Live {
    pub release: ReleaseId,
    pub app: Arc<App>,
    /// What it holds in memory: another number after each request.
    pub state: u64,
    /// What it held when it began.
    pub began_with: u64,
    /// The image that it came from.
    pub image: Option<u64>,
}

/// A stored appshot.
#[derive(Debug, Clone)]
pub struct Image {
    /// No two are the same, also if they have the same name.
    pub uid: u64,
    pub kind: Kind,
    pub release: ReleaseId,
    pub app: Arc<App>,
    pub of: InstanceId,
    pub state: u64,
}

impl World {
    /// The manager asks. Without an agent it hears so at once; what needs no answer is lost.
    pub fn ask(&mut self, ask: Ask) {
        if let Ask::Forget { release } = &ask {
            self.forgetting.insert(release.clone());
        }
        if !self.agent_up {
            return self.cut_off(ask, 1);
        }
        let (low, high) = match &ask {
            Ask::Start { .. } => (100, 1500),
            Ask::Restore { .. } => (10, 120),
            Ask::Park { .. } => (30, 400),
            Ask::Stop { .. } => (5, 600),
            _ => (1, 10),
        };
        let millis = self.rng.between(low, high);
        self.after(millis, Due::Agent { ask });
    }

    /// It is done: the answer goes out.
    pub fn done(&mut self, ask: Ask) {
        if let Some(event) = self.carry_out(ask) {
            self.feed(event);
        }
    }

    /// The connection broke before an answer came.
    fn cut_off(&mut self, ask: Ask, millis: u64) {
        let away = || Failed::AgentAway;
        let event = match ask {
            Ask::Start { instance, .. }
            | Ask::Restore { instance, .. }
            | Ask::Adopt { instance } => {
                let result = Err(away());
                Event::Began { instance, result }
            }
            Ask::Park { instance, .. } => {
                let result = Err(away());
                Event::Parked { instance, result }
            }
            // Said by `Found`.
            Ask::Stop { .. } | Ask::Discard { .. } => return,
            Ask::Forget { release } => {
                self.forgetting.remove(&release);
                return;
            }
        };
        self.after(millis, Due::Event(event));
    }

    /// Does it, or fails as the dice fall.
    pub fn carry_out(&mut self, ask: Ask) -> Option<Event> {
        let refuse = |text: &str| Err(Failed::Reason(text.into()));
        let faults = self.faults;
        match ask {
            Ask::Start { instance, release } => {
                let result = match self.releases.get(&release).cloned() {
                    _ if self.rng.permille(faults.start_fails) => refuse("it did not start"),
                    None => refuse("there is no such release"),
                    Some(app) => {
                        self.begin(instance, release, app, 0, None);
                        Ok(())
                    }
                };
                Some(Event::Began { instance, result })
            }
            Ask::Restore { instance, appshot } => {
                let result = match self.images.get(&appshot).cloned() {
                    _ if self.rng.permille(faults.restore_unusable) => {
                        Err(Failed::Unusable("the image is damaged".into()))
                    }
                    _ if self.rng.permille(faults.restore_fails) => refuse("it took too long"),
                    None => Err(Failed::Unknown("there is no such appshot".into())),
                    Some(image) => {
                        if image.kind == Kind::Parked {
                            self.images.remove(&appshot);
                        }
                        let Image { release, app, .. } = image;
                        self.begin(instance, release, app, image.state, Some(image.uid));
                        Ok(())
                    }
                };
                Some(Event::Began { instance, result })
            }
            Ask::Adopt { instance } => {
                let lives = self.live.contains_key(&instance);
                let fails = !lives || self.rng.permille(faults.adopt_fails);
                let result = if fails { refuse("no sockets") } else { Ok(()) };
                Some(Event::Began { instance, result })
            }
            Ask::Park { instance, appshot, kind } => {
                let fails = self.rng.permille(faults.dump_fails);
                let result = match self.live.get(&instance).cloned() {
                    None => Err(Failed::Reason("there is no such instance".into())),
                    Some(_) if fails => Err(Failed::Reason("not taken".into())),
                    Some(live) => {
                        self.live.remove(&instance);
                        let Live { release, app, state, .. } = live;
                        let (uid, of, id) = (self.number(), instance, appshot.clone());
                        let image = Image { uid, kind, release, app, of, state };
                        self.images.insert(appshot, image);
                        let bytes = Bytes(1);
                        Ok(ImageStatus { id, bytes })
                    }
                };
                Some(Event::Parked { instance, result })
            }
            Ask::Stop { instance } if self.rng.permille(faults.stop_fails) => {
                Some(Event::NotStopped { instance })
            }
            Ask::Stop { instance } => {
                self.live.remove(&instance);
                Some(Event::Ended { instance })
            }
            Ask::Discard { appshot } => {
                self.images.remove(&appshot);
                None
            }
            Ask::Forget { release } => {
                self.forgetting.remove(&release);
                let of_it: Vec<InstanceId> = self
                    .live
                    .iter()
                    .filter(|(_, live)| live.release == release)
                    .map(|(id, _)| *id)
                    .collect();
                assert!(of_it.is_empty(), "release {release} is forgotten while {of_it:?} live");
                self.releases.remove(&release);
                self.images.retain(|_, image| image.release != release);
                None
            }
        }
    }

    fn begin(
        &mut self,
        id: InstanceId,
        release: ReleaseId,
        app: Arc<App>,
        state: u64,
        image: Option<u64>,
    ) {
        self.check_birth(image, &app);
        let began_with = state;
        let live = Live { release, app, state, began_with, image };
        let before = self.live.insert(id, live);
        assert!(before.is_none(), "instance {id} lives twice");
    }

    /// Health checks and hooks answer, whether or not there is an agent.
    pub fn prepared(&mut self, instance: InstanceId) {
        let fails = self.rng.permille(self.faults.health_fails);
        let result = match self.live.contains_key(&instance) {
            true if !fails => Ok(()),
            _ => Err(Failed::Reason("it is not well".into())),
        };
        self.feed(Event::Prepared { instance, result });
    }

    /// An instance ends by itself.
    pub fn crash(&mut self, instance: InstanceId) {
        self.say(|| format!("fault  {instance} crashes"));
        self.live.remove(&instance);
        if self.agent_up {
            let millis = self.rng.between(1, 20);
            self.after(millis, Due::Event(Event::Ended { instance }));
        }
    }

    /// The agent dies: of what it worked on, some is done and some is not.
    pub fn agent_leaves(&mut self) {
        self.say(|| "fault  the agent goes away".into());
        self.agent_up = false;
        self.feed(Event::Away);
        for ask in self.take_agent_work() {
            let was_done = self.rng.permille(500);
            if was_done {
                self.say(|| format!("fault  done, but not answered: {ask:?}"));
                let before = self.images.clone();
                let _ = self.carry_out(ask.clone());
                // It may also have died before it removed what it restored from.
                if let Ask::Restore { appshot, .. } = &ask {
                    let kept = before.get(appshot).filter(|_| self.rng.permille(300));
                    let kept = kept.map(|image| (appshot.clone(), image.clone()));
                    self.images.extend(kept);
                }
            }
            let millis = self.rng.between(0, 20);
            match ask {
                Ask::Discard { .. } | Ask::Forget { .. } if was_done => {}
                ask => self.cut_off(ask, millis),
            }
        }
        let millis = self.rng.between(30, 4_000);
        self.after(millis, Due::AgentBack);
    }

    /// It is there again: its images are looked through and what lives is told, as in `task.rs`.
    pub fn agent_back(&mut self) {
        self.agent_up = true;
        // An agent that starts voids images whose instance lives on.
        let live: Vec<InstanceId> = self.live.keys().copied().collect();
        self.images.retain(|_, image| !live.contains(&image.of));
        if !self.booted {
            self.boot();
        }
        let instances = self.live.iter().map(|(id, live)| {
            let (id, release) = (*id, live.release.clone());
            LiveInstance { id, release, generation: 1 }
        });
        let appshots = self.images.iter().map(|(id, image)| {
            let (id, kind, release) = (id.clone(), image.kind, image.release.clone());
            StoredAppshot { id, kind, release, bytes: Bytes(1), generation: 1 }
        });
        let found = Event::Found {
            instances: instances.collect(),
            appshots: appshots.collect(),
            releases: self.releases.keys().cloned().collect(),
        };
        self.feed(found);
    }
}
