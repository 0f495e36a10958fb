//! The world around the core: virtual time, the adapter that `manager::task` is in truth (slots,
//! admission, closing), and the requests and callers that wait. It does what `task.rs` does, in the
//! same order. What the agent does is in `agent.rs`, what must hold in `truth.rs`.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use edgepoint::{
    manager::{
        Error, ImageStatus,
        core::{Answer, Core, Effect, Event, Token},
        waiting_room::Waiter,
    },
    model::{App, AppName, AppshotId, Bytes, InstanceId, ReleaseId},
};

use crate::{
    agent::{Ask, Image, Live},
    rng::Rng,
    truth::Truth,
};

/// Lines of the event log that a failure shows; `EDGEPOINT_SIM_TAIL` says otherwise.
const TAIL: usize = 80;

/// How often things go wrong, in a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    pub start_fails: u64,
    pub health_fails: u64,
    pub restore_unusable: u64,
    pub restore_fails: u64,
    pub dump_fails: u64,
    pub adopt_fails: u64,
    pub stop_fails: u64,
    /// Of requests: they hold their slot longer than a drain waits.
    pub hangs: u64,
    /// Of instances, looked at once a second.
    pub crashes: u64,
    /// Of seconds.
    pub agent_leaves: u64,
    /// Of seconds: the manager dies; half of the time everything does.
    pub manager_dies: u64,
    /// Of seconds.
    pub commands: u64,
    /// Of those commands.
    pub changes: u64,
}

/// What is going to happen.
#[derive(Debug)]
pub enum Due {
    /// The agent has done what it was asked, if it has not gone away since.
    Agent {
        ask: Ask,
    },
    /// An event reaches the manager.
    Event(Event),
    /// Sockets answer, or they do not.
    Prepare {
        instance: InstanceId,
    },
    /// A request is answered.
    Answered {
        instance: InstanceId,
    },
    /// A request comes.
    Arrival {
        app: AppName,
    },
    /// Once a second: faults and commands.
    Second,
    AgentBack,
}

/// The adapter's side of an instance: who may come in.
#[derive(Debug)]
pub struct Front {
    pub open: bool,
    pub hard: u32,
    pub in_flight: u32,
    pub idle_since: Instant,
}

/// What is written down about an app that serves.
#[derive(Debug)]
struct Saved {
    release: ReleaseId,
    app: Arc<App>,
    generation: u64,
    has_state: bool,
}

/// The last lines of what happened; empty unless a seed is replayed.
pub type Log = Rc<RefCell<Option<VecDeque<String>>>>;

pub struct World {
    pub rng: Rng,
    pub faults: Faults,
    pub base: Instant,
    pub now: Instant,
    pub core: Core,
    /// The manager has seen the agent.
    pub booted: bool,
    /// What the manager wrote down.
    saved: BTreeMap<AppName, Saved>,
    queue: BTreeMap<(Instant, u64), Due>,
    serial: u64,
    pub log: Log,
    // The agent's.
    pub agent_up: bool,
    pub live: BTreeMap<InstanceId, Live>,
    pub images: BTreeMap<AppshotId, Image>,
    pub releases: BTreeMap<ReleaseId, Arc<App>>,
    /// Told to be forgotten, not yet done.
    pub forgetting: BTreeSet<ReleaseId>,
    // The adapter's.
    pub fronts: BTreeMap<InstanceId, Front>,
    closing: BTreeSet<InstanceId>,
    wanted: BTreeSet<AppName>,
    pub waiters: BTreeMap<Waiter, (AppName, Instant)>,
    pub tokens: BTreeMap<Token, AppName>,
    // The test's.
    pub truth: Truth,
    pub served: BTreeMap<AppName, u64>,
    pub refused: Vec<(Instant, AppName, Error)>,
    pub answers: BTreeMap<Token, Result<Answer, Error>>,
}

impl World {
    pub fn new(seed: u64, faults: Faults, log: Log) -> Self {
        let base = edgepoint::clock::now();
        Self {
            rng: Rng::new(seed),
            faults,
            base,
            now: base,
            core: Core::new(1),
            booted: true,
            saved: BTreeMap::new(),
            queue: BTreeMap::new(),
            serial: 0,
            log,
            agent_up: true,
            live: BTreeMap::new(),
            images: BTreeMap::new(),
            releases: BTreeMap::new(),
            forgetting: BTreeSet::new(),
            fronts: BTreeMap::new(),
            closing: BTreeSet::new(),
            wanted: BTreeSet::new(),
            waiters: BTreeMap::new(),
            tokens: BTreeMap::new(),
            truth: Truth::default(),
            served: BTreeMap::new(),
            refused: Vec::new(),
            answers: BTreeMap::new(),
        }
    }

    pub fn say(&self, line: impl FnOnce() -> String) {
        if let Some(log) = &mut *self.log.borrow_mut() {
            let at = self.now - self.base;
            log.push_back(format!("{:>9.3} {}", at.as_secs_f64(), line()));
            let tail = std::env::var("EDGEPOINT_SIM_TAIL").ok().and_then(|text| text.parse().ok());
            if log.len() > tail.unwrap_or(TAIL) {
                log.pop_front();
            }
        }
    }

    pub fn number(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// Something will happen after so many milliseconds.
    pub fn after(&mut self, millis: u64, due: Due) {
        let key = (self.now + Duration::from_millis(millis), self.number());
        self.queue.insert(key, due);
    }

    /// Takes out what the agent was working on.
    pub fn take_agent_work(&mut self) -> Vec<Ask> {
        let mut taken = Vec::new();
        for (key, due) in std::mem::take(&mut self.queue) {
            match due {
                Due::Agent { ask } => taken.push(ask),
                due => drop(self.queue.insert(key, due)),
            }
        }
        taken
    }

    /// Lets time pass until `end`.
    pub fn run_until(&mut self, end: Instant) {
        loop {
            let due = self.queue.first_key_value().map(|((at, _), _)| *at);
            let tick = self.core.next_deadline();
            let Some(next) = due.into_iter().chain(tick).min().filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(next);
            if due.is_some_and(|at| tick.is_none_or(|tick| at <= tick)) {
                if let Some((_, due)) = self.queue.pop_first() {
                    self.happen(due);
                }
            } else {
                self.feed(Event::Tick);
                let next = self.core.next_deadline();
                let progress = next.is_none_or(|next| next > self.now);
                assert!(progress, "a tick leaves a deadline that has passed");
            }
        }
        self.now = end;
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Agent { ask } => self.done(ask),
            Due::Event(event) => self.feed(event),
            Due::Prepare { instance } => self.prepared(instance),
            Due::Answered { instance } => self.answered(instance),
            Due::Arrival { app } => {
                self.arrive(&app);
                self.next_arrival(app);
            }
            Due::Second => self.second(),
            Due::AgentBack => self.agent_back(),
        }
    }

    /// Feeds one event and carries out all that follows from it, as the task does.
    pub fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.say(|| format!("event  {event:?}"));
            self.truth.count(self.now);
            for effect in self.core.handle(event, self.now) {
                self.say(|| format!("       effect {effect:?}"));
                self.check_effect(&effect);
                match effect {
                    Effect::Close { instance } => {
                        if self.close(instance) {
                            events.push_back(Event::Drained { instance });
                        }
                    }
                    Effect::LookIdle { instance } => {
                        let front = self.fronts.get(&instance);
                        let idle = front.filter(|front| front.in_flight == 0);
                        let since = idle.map(|front| front.idle_since);
                        events.push_back(Event::Idle { instance, since });
                    }
                    Effect::Admit { app } => {
                        if self.admit(&app) {
                            events.push_back(Event::Crowded { app });
                        }
                    }
                    effect => self.perform(effect),
                }
            }
            assert_eq!(self.core.broken(), None);
            self.check();
        }
        self.check_when_quiet();
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Start { instance, release, .. } => self.ask(Ask::Start { instance, release }),
            Effect::Restore { instance, appshot, .. } => {
                self.ask(Ask::Restore { instance, appshot })
            }
            Effect::Adopt { instance } => self.ask(Ask::Adopt { instance }),
            Effect::Park { instance, appshot, kind } => {
                self.ask(Ask::Park { instance, appshot, kind })
            }
            Effect::Stop { instance } => self.ask(Ask::Stop { instance }),
            Effect::Discard { appshot } => self.ask(Ask::Discard { appshot }),
            Effect::Forget { release } => self.ask(Ask::Forget { release }),
            Effect::Prepare { instance, .. } => {
                let millis = self.rng.between(20, 900);
                self.after(millis, Due::Prepare { instance });
            }
            Effect::Open { instance } => self.open(instance),
            Effect::Drop { instance } => {
                self.fronts.remove(&instance);
                self.closing.remove(&instance);
            }
            Effect::Refuse { waiter, error } => {
                let waiting = self.waiters.remove(&waiter);
                let (app, _) = waiting.expect("somebody was refused who does not wait");
                self.refused.push((self.now, app, error));
            }
            Effect::Answer { token, answer } => {
                let caller = self.tokens.remove(&token);
                caller.expect("a command was answered that nobody waits for");
                self.answers.insert(token, answer);
            }
            Effect::Save => self.save(),
            Effect::Note(_) => {}
            // Answered at once, in `feed`.
            Effect::Close { .. } | Effect::LookIdle { .. } | Effect::Admit { .. } => {}
        }
    }

    fn save(&mut self) {
        let saved = self.core.entries().filter(|(_, entry)| entry.deployed).map(|(name, entry)| {
            let (release, app) = (entry.release.clone(), entry.app.clone());
            let (generation, has_state) = (entry.generation, entry.has_state);
            (name.clone(), Saved { release, app, generation, has_state })
        });
        self.saved = saved.collect();
    }

    /// The manager dies, and with `power` all that lives; then there is a new manager.
    pub fn manager_dies(&mut self, power: bool) {
        self.say(|| {
            format!("fault  the manager dies{}", if power { " with all apps" } else { "" })
        });
        // A new manager is heard when all that the old one asked for is done, or cut off.
        for ask in self.take_agent_work() {
            if !power || self.rng.permille(500) {
                let _ = self.carry_out(ask);
            }
        }
        if power {
            self.live.clear();
        }
        self.queue
            .retain(|_, due| matches!(due, Due::Arrival { .. } | Due::Second | Due::AgentBack));
        self.forget_manager();
        self.fronts.clear();
        self.closing.clear();
        self.wanted.clear();
        self.waiters.clear();
        self.tokens.clear();
        self.forgetting.clear();
        let first = self.number() << 20;
        self.core = Core::new(first);
        self.booted = false;
        if self.agent_up {
            self.agent_back();
        }
    }

    /// A new manager sees the agent for the first time.
    pub fn boot(&mut self) {
        self.booted = true;
        for (name, saved) in &self.saved {
            let Saved { release, app, generation, has_state } = saved;
            self.core.restore_entry(release.clone(), app.clone(), *generation, *has_state);
            for (id, image) in self.images.iter().filter(|(_, i)| i.release == *release) {
                let image_status = ImageStatus { id: id.clone(), bytes: Bytes(1) };
                self.core.restore_image(name, image.kind, image_status);
            }
        }
    }

    fn open(&mut self, instance: InstanceId) {
        self.closing.remove(&instance);
        let (_, known) = self.core.instance(instance).expect("opened, not known");
        let (hard, idle_since) = (known.app.concurrency.hard, self.now);
        let fresh = Front { open: true, hard, in_flight: 0, idle_since };
        self.fronts.entry(instance).or_insert(fresh).open = true;
    }

    fn close(&mut self, instance: InstanceId) -> bool {
        let Some(front) = self.fronts.get_mut(&instance) else {
            return true;
        };
        front.open = false;
        let drained = front.in_flight == 0;
        if !drained {
            self.closing.insert(instance);
        }
        drained
    }

    /// A slot is taken for a request.
    fn lease(&mut self, app: &AppName) -> bool {
        let Some(entry) = self.core.entry(app) else {
            return false;
        };
        let of_live = entry.instances.iter().filter(|(_, i)| i.is_running());
        let mut free: Vec<(u32, InstanceId)> = of_live
            .filter_map(|(id, _)| Some((*id, self.fronts.get(id)?)))
            .filter(|(_, front)| front.open && front.in_flight < front.hard)
            .map(|(id, front)| (front.in_flight, id))
            .collect();
        free.sort();
        let Some((_, instance)) = free.first().copied() else {
            return false;
        };
        self.check_lease(instance);
        if let Some(front) = self.fronts.get_mut(&instance) {
            front.in_flight += 1;
        }
        *self.served.entry(app.clone()).or_default() += 1;
        let hangs = self.rng.permille(self.faults.hangs);
        let millis = match hangs {
            true => self.rng.between(35_000, 55_000),
            false => self.rng.between(5, 400),
        };
        self.say(|| format!("lease  {instance} for {millis} ms"));
        self.after(millis, Due::Answered { instance });
        true
    }

    /// Gives free slots to those who wait; true if some wait although instances run.
    fn admit(&mut self, app: &AppName) -> bool {
        let waits = |core: &Core| core.entry(app).is_some_and(|e| !e.waiting.is_empty());
        while waits(&self.core) && self.lease(app) {
            let waiter = self.core.next_waiter(app).expect("one waits");
            let waiting = self.waiters.remove(&waiter);
            let (_, deadline) = waiting.expect("a place was kept for one who is gone");
            assert!(deadline >= self.now, "a lease after the deadline");
        }
        let some = waits(&self.core);
        if some {
            self.wanted.insert(app.clone());
        } else {
            self.wanted.remove(app);
        }
        let entry = self.core.entry(app);
        some && entry.is_some_and(|e| e.instances.values().any(|i| i.is_running()))
    }

    /// A lease ends; the bell rings if somebody listens.
    fn answered(&mut self, instance: InstanceId) {
        let state = self.number();
        if let Some(live) = self.live.get_mut(&instance) {
            live.state = state;
        }
        let Some(front) = self.fronts.get_mut(&instance) else {
            return;
        };
        front.in_flight -= 1;
        front.idle_since = self.now;
        if front.in_flight == 0 && self.closing.remove(&instance) {
            self.feed(Event::Drained { instance });
        }
        let app = self.core.instance(instance).map(|(app, _)| app.clone());
        if let Some(app) = app.filter(|app| self.wanted.contains(app))
            && self.admit(&app)
        {
            self.feed(Event::Crowded { app });
        }
        self.check_when_quiet();
    }

    /// A request comes: to a running instance at once, or into the waiting room.
    pub fn arrive(&mut self, app: &AppName) {
        let published = self.core.entry(app).map(|e| e.deployed);
        if published == Some(true) && !self.wanted.contains(app) && self.lease(app) {
            return;
        }
        let Some(entry) = self.core.entry(app) else {
            return;
        };
        let deadline = self.now + entry.app.wake.timeout;
        let waiter = Waiter(self.number());
        self.waiters.insert(waiter, (app.clone(), deadline));
        let app = app.clone();
        self.feed(Event::Request { app, waiter, deadline });
    }

    /// A command comes from a person.
    pub fn command(&mut self, app: &AppName, event: impl FnOnce(Token) -> Event) -> Token {
        let token = self.number();
        self.tokens.insert(token, app.clone());
        self.feed(event(token));
        token
    }
}
