//! A desk for directed tests: it answers what the adapter answers at once (closing, idle looks,
//! admission) and leaves to the test what the agent answers.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use edgepoint::{
    agent::protocol::{LiveInstance, StoredAppshot},
    appshot::Kind,
    manager::{
        Error, ImageStatus,
        core::{Answer, Core, Effect, Event, Failed, Note, Token},
        waiting_room::Waiter,
    },
    model::{App, AppName, AppshotId, Bytes, InstanceId, ReleaseId},
};

use crate::apps;

pub struct Desk {
    pub core: Core,
    pub now: Instant,
    /// The app under test.
    pub app: AppName,
    /// Free slots of all running instances together.
    pub slots: u32,
    /// These have requests that do not end.
    pub busy: BTreeSet<InstanceId>,
    idle_since: Instant,
    pub leased: Vec<Waiter>,
    pub refused: Vec<(Waiter, Error)>,
    pub answers: Vec<(Token, Result<Answer, Error>)>,
    pub notes: Vec<Note>,
    /// All others, in their order.
    pub asked: Vec<Effect>,
    next: u64,
}

pub fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub fn reason() -> Failed {
    Failed::Reason("of the test".into())
}

impl Desk {
    /// Nothing is deployed.
    pub fn empty(app: &str) -> Self {
        let now = edgepoint::clock::now();
        Self {
            core: Core::new(1),
            now,
            app: apps::name(app),
            slots: u32::MAX,
            busy: BTreeSet::new(),
            idle_since: now,
            leased: Vec::new(),
            refused: Vec::new(),
            answers: Vec::new(),
            notes: Vec::new(),
            asked: Vec::new(),
            next: 0,
        }
    }

    /// Deployed with a golden appshot, nothing runs.
    pub fn deployed(app: App) -> Self {
        let mut desk = Self::empty(app.name.as_str());
        desk.deploy(app, "first");
        desk
    }

    /// A deployment in which all goes well.
    pub fn deploy(&mut self, app: App, release: &str) {
        let id = self.begin_deploy(app, release);
        self.began(id, Ok(()));
        self.prepared(id, Ok(()));
        self.parked(id, Ok(()));
        assert_eq!(self.entry().release, apps::release(release));
        self.forget();
    }

    /// The instance that is to become the golden appshot.
    pub fn begin_deploy(&mut self, app: App, release: &str) -> InstanceId {
        let (token, release) = (self.number(), apps::release(release));
        let app = Arc::new(app);
        self.feed(Event::Deploy { app, release, token });
        self.started()
    }

    /// Forgets what was seen so far.
    pub fn forget(&mut self) {
        self.leased.clear();
        self.refused.clear();
        self.answers.clear();
        self.notes.clear();
        self.asked.clear();
    }

    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub fn entry(&self) -> &edgepoint::manager::entry::Entry {
        self.core.entry(&self.app).expect("it is there")
    }

    pub fn feed(&mut self, event: Event) {
        for effect in self.core.handle(event, self.now) {
            match effect {
                Effect::Close { instance } if !self.busy.contains(&instance) => {
                    self.asked.push(Effect::Close { instance });
                    self.feed(Event::Drained { instance });
                }
                Effect::LookIdle { instance } => {
                    let busy = self.busy.contains(&instance);
                    let since = (!busy).then_some(self.idle_since);
                    self.feed(Event::Idle { instance, since });
                }
                Effect::Admit { app } => self.admit(app),
                Effect::Refuse { waiter, error } => self.refused.push((waiter, error)),
                Effect::Answer { token, answer } => self.answers.push((token, answer)),
                Effect::Note(note) => self.notes.push(note),
                Effect::Save => {}
                effect => self.asked.push(effect),
            }
        }
    }

    fn admit(&mut self, app: AppName) {
        let Some(entry) = self.core.entry(&app) else {
            return;
        };
        if entry.running() == 0 {
            return;
        }
        while self.slots > 0 {
            let Some(waiter) = self.core.next_waiter(&app) else {
                return;
            };
            self.slots -= 1;
            self.idle_since = self.now;
            self.leased.push(waiter);
        }
        if !self.core.entry(&app).is_none_or(|entry| entry.waiting.is_empty()) {
            self.feed(Event::Crowded { app });
        }
    }

    /// Lets time pass, deadline by deadline.
    pub fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.core.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.feed(Event::Tick);
        }
        self.now = end;
    }

    pub fn request(&mut self) -> Waiter {
        let waiter = Waiter(self.number());
        let timeout = self.core.entry(&self.app).map(|e| e.app.wake.timeout);
        let deadline = self.now + timeout.unwrap_or(seconds(10));
        let app = self.app.clone();
        self.feed(Event::Request { app, waiter, deadline });
        waiter
    }

    pub fn sleep(&mut self) -> Token {
        let (app, token) = (self.app.clone(), self.number());
        self.feed(Event::Sleep { app, token });
        token
    }

    pub fn wake(&mut self, count: u32) -> Token {
        let (app, token) = (self.app.clone(), self.number());
        self.feed(Event::Wake { app, count, token });
        token
    }

    pub fn remove(&mut self) -> Token {
        let (app, token) = (self.app.clone(), self.number());
        self.feed(Event::Remove { app, token });
        token
    }

    pub fn began(&mut self, instance: InstanceId, result: Result<(), Failed>) {
        self.feed(Event::Began { instance, result });
    }

    pub fn prepared(&mut self, instance: InstanceId, result: Result<(), Failed>) {
        self.feed(Event::Prepared { instance, result });
    }

    pub fn ended(&mut self, instance: InstanceId) {
        self.feed(Event::Ended { instance });
    }

    /// The agent is back and holds these, all of the first release.
    pub fn found(&mut self, instances: &[InstanceId], appshots: &[AppshotId]) {
        let release = apps::release("first");
        let live = |id: &InstanceId| {
            let release = release.clone();
            LiveInstance { id: *id, release, generation: 7 }
        };
        let stored = |id: &AppshotId| {
            let golden = id.as_str().starts_with("golden");
            let kind = if golden { Kind::Golden } else { Kind::Parked };
            let (id, release) = (id.clone(), release.clone());
            StoredAppshot { id, kind, release, bytes: Bytes(1), generation: 7 }
        };
        self.feed(Event::Found {
            instances: instances.iter().map(live).collect(),
            appshots: appshots.iter().map(stored).collect(),
            releases: vec![release.clone(), apps::release("unknown")],
        });
    }

    /// The dump that was asked for last is done, or not.
    pub fn parked(&mut self, instance: InstanceId, result: Result<(), Failed>) {
        let id = self.asked.iter().rev().find_map(|effect| match effect {
            Effect::Park { appshot, .. } => Some(appshot.clone()),
            _ => None,
        });
        let id = id.expect("asked to park");
        let bytes = Bytes(1);
        let result = result.map(|()| ImageStatus { id, bytes });
        self.feed(Event::Parked { instance, result });
    }

    /// A request wakes it; the instance that runs then.
    pub fn up(&mut self) -> InstanceId {
        self.request();
        let id = self.made();
        self.began(id, Ok(()));
        if self.core.instance(id).is_some_and(|(_, i)| !i.is_running()) {
            self.prepared(id, Ok(()));
        }
        self.forget();
        id
    }

    /// The instance that was asked for last, in whatever way.
    pub fn made(&self) -> InstanceId {
        let made = self.asked.iter().rev().find_map(|effect| match effect {
            Effect::Start { instance, .. } | Effect::Restore { instance, .. } => Some(*instance),
            _ => None,
        });
        made.expect("an instance was asked for")
    }

    /// The same, started cold.
    pub fn started(&self) -> InstanceId {
        let id = self.made();
        assert_eq!(self.image_of(id), None);
        id
    }

    /// What an instance was restored from.
    pub fn image_of(&self, id: InstanceId) -> Option<AppshotId> {
        self.asked.iter().find_map(|effect| match effect {
            Effect::Restore { instance, appshot, .. } if *instance == id => Some(appshot.clone()),
            _ => None,
        })
    }

    /// How many instances were asked for.
    pub fn makings(&self) -> usize {
        let makes =
            |effect: &&Effect| matches!(effect, Effect::Start { .. } | Effect::Restore { .. });
        self.asked.iter().filter(makes).count()
    }

    pub fn was_parked(&self, id: InstanceId) -> bool {
        let parks =
            |effect: &Effect| matches!(effect, Effect::Park { instance, .. } if *instance == id);
        self.asked.iter().any(parks)
    }

    pub fn was_stopped(&self, id: InstanceId) -> bool {
        self.asked.contains(&Effect::Stop { instance: id })
    }

    pub fn was_forgotten(&self, release: &str) -> bool {
        let release: ReleaseId = apps::release(release);
        self.asked.contains(&Effect::Forget { release })
    }

    /// What the last command brought.
    pub fn answer(&self, token: Token) -> Option<&Result<Answer, Error>> {
        self.answers.iter().find(|(of, _)| *of == token).map(|(_, answer)| answer)
    }
}
