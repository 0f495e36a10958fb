//! The owner task: feeds events to the core and carries out what it asks for.
//!
//! Everything that takes time runs as a task of its own and comes back as an [`Outcome`]; this loop
//! never waits for anything but the next thing to happen.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc, oneshot};
use tracing::{error, info, warn};

use super::{
    boot,
    core::{Answer, Core, Effect, Event, Failed, Note, Token},
    endpoint::Endpoint,
    entry::Entry,
    error::Error,
    handle::{Command, Config, Errands, Message, Preparation},
    instance::Origin,
    lease::{AppDirections, Bell, Directions, Lease, Running, Slots, Wake},
    status::{AppStatus, ImageStatus, InstanceStatus, LogPart, Phase},
    waiting_room::Waiter,
};
use crate::{
    agent::{
        client::{self, Client, Ended},
        protocol::{Answer as Reply, FailureKind, SOCKET_BATCH, Verb},
    },
    clock, meter,
    model::{App, AppName, Bytes, InstanceId, ReleaseId, ResourceUse},
    telemetry,
};

/// Outcomes that may wait; those who bring one wait when it is full.
const OUTCOMES: usize = 1024;
/// How long the agent may take for what needs neither a dump nor a restore.
const SHORT: Duration = Duration::from_secs(15);
/// How long it may take to end an instance or to remove many files.
const LONG: Duration = Duration::from_secs(60);
/// How long an instance has after SIGTERM.
const STOP_PATIENCE_MS: u32 = 5_000;
/// How long pooled connections may take to notice that they were shut down.
const CLOSE_PATIENCE: Duration = Duration::from_millis(200);
/// How long everything together may take to go to sleep at the end.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(60);

/// What came of something that took time.
pub(super) enum Outcome {
    AgentUp(Box<boot::AgentUp>),
    AgentEnded(Ended),
    AgentDown,
    Began { instance: InstanceId, result: Result<Vec<OwnedFd>, Failed> },
    Supplied { instance: InstanceId, sockets: Vec<OwnedFd> },
    Sampled { samples: Vec<(InstanceId, ResourceUse)> },
    Final { instance: InstanceId, usage: ResourceUse, event: Option<Event> },
    Event(Event),
    Described { release: ReleaseId, token: Token, app: Result<Box<App>, Error> },
}

struct Waiting {
    reply: oneshot::Sender<Result<Lease, Error>>,
    entered: Instant,
}

/// The owner of all instances.
pub(super) struct Task {
    config: Config,
    /// What an earlier manager wrote down.
    saved: Arc<boot::Saved>,
    core: Core,
    agent: Option<Client>,
    booted: bool,
    errands: Arc<dyn Errands>,
    outbox: meter::Outbox,
    windows: meter::Windows,
    directions: Arc<ArcSwap<Directions>>,
    messages: mpsc::Receiver<Message>,
    outcomes: mpsc::Receiver<Outcome>,
    outcome: mpsc::Sender<Outcome>,
    /// Rung by leases that end.
    bell: Arc<Notify>,
    bells: HashMap<AppName, Arc<Bell>>,
    /// Rung by endpoints that run out of sockets.
    low: Arc<Notify>,
    supplying: HashSet<InstanceId>,
    endpoints: HashMap<InstanceId, Endpoint>,
    running: HashMap<InstanceId, Arc<Running>>,
    closing: HashSet<InstanceId>,
    usage: HashMap<InstanceId, ResourceUse>,
    waiters: HashMap<Waiter, Waiting>,
    callers: HashMap<Token, oneshot::Sender<Result<Answer, Error>>>,
    /// Images that are held, for the bill.
    images: HashMap<InstanceId, (meter::Owner, Bytes)>,
    next: u64,
    /// What was published is not what is.
    stale: bool,
    ending: Option<(Vec<oneshot::Sender<()>>, Instant)>,
}

impl Task {
    pub(super) fn new(
        config: Config,
        saved: Arc<boot::Saved>,
        errands: Arc<dyn Errands>,
        meter: meter::Handle,
        directions: Arc<ArcSwap<Directions>>,
        messages: mpsc::Receiver<Message>,
    ) -> Self {
        let (outcome, outcomes) = mpsc::channel(OUTCOMES);
        // Seconds since 1970 in the upper part: no earlier manager's ids come again.
        let core = Core::new(clock::wall().as_secs() << 20);
        Self {
            config,
            saved,
            core,
            agent: None,
            booted: false,
            errands,
            outbox: meter::Outbox::new(meter),
            windows: meter::Windows::new(meter::Settings::default()),
            directions,
            messages,
            outcomes,
            outcome,
            bell: Arc::default(),
            bells: HashMap::new(),
            low: Arc::default(),
            supplying: HashSet::new(),
            endpoints: HashMap::new(),
            running: HashMap::new(),
            closing: HashSet::new(),
            usage: HashMap::new(),
            waiters: HashMap::new(),
            callers: HashMap::new(),
            images: HashMap::new(),
            next: 1,
            stale: true,
            ending: None,
        }
    }

    pub(super) async fn run(mut self) {
        boot::connect(&self.config, self.saved.clone(), self.outcome.clone());
        let mut samples = tokio::time::interval(self.config.sample_interval);
        samples.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let deadline = self.core.next_deadline();
            let ending = self.ending.as_ref().map(|(_, at)| *at);
            let deadline = deadline.into_iter().chain(ending).min();
            tokio::select! {
                // Outcomes first: they free what requests wait for.
                biased;
                Some(outcome) = self.outcomes.recv() => self.take(outcome),
                () = self.bell.notified() => self.rung(),
                message = self.messages.recv() => match message {
                    Some(message) if self.booted => self.message(message),
                    Some(message) => {
                        if refuse_early(message) {
                            return;
                        }
                    }
                    None => return,
                },
                () = self.low.notified() => self.supply(),
                () = until(deadline) => self.feed(Event::Tick),
                _ = samples.tick() => self.sample(),
            }
            if self.may_end().await {
                return;
            }
        }
    }

    fn take(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::AgentUp(up) => self.agent_up(*up),
            Outcome::AgentEnded(ended) => {
                self.final_sample(ended.instance, &ended.usage);
                self.feed(Event::Ended { instance: ended.instance });
            }
            Outcome::AgentDown => {
                error!("the agent is away; instances run on");
                self.agent = None;
                self.feed(Event::Away);
                boot::connect(&self.config, self.saved.clone(), self.outcome.clone());
            }
            Outcome::Began { instance, result } => {
                let result = result.map(|sockets| {
                    if let Some((_, known)) = self.core.instance(instance) {
                        let (port, low) = (known.app.internal_port, self.low.clone());
                        self.endpoints.insert(instance, Endpoint::new(port, sockets, low));
                    }
                });
                self.feed(Event::Began { instance, result });
            }
            Outcome::Supplied { instance, sockets } => {
                self.supplying.remove(&instance);
                if let Some(endpoint) = self.endpoints.get(&instance) {
                    endpoint.supply(sockets);
                }
            }
            Outcome::Sampled { samples } => self.sampled(samples),
            Outcome::Final { instance, usage, event } => {
                self.final_sample(instance, &usage);
                event.into_iter().for_each(|event| self.feed(event));
            }
            Outcome::Event(event) => self.feed(event),
            Outcome::Described { release, token, app } => match app {
                Ok(app) => self.feed(Event::Deploy { app: Arc::new(*app), release, token }),
                Err(error) => self.answer(token, Err(error)),
            },
        }
    }

    fn agent_up(&mut self, up: boot::AgentUp) {
        info!(instances = up.instances.len(), appshots = up.appshots.len(), "agent connected");
        self.agent = Some(up.client);
        if !self.booted {
            self.booted = true;
            for served in up.served {
                let app = Arc::new(served.app);
                let name = app.name.clone();
                let of_it = up.appshots.iter().filter(|stored| stored.release == served.release);
                self.core.restore_entry(
                    served.release.clone(),
                    app,
                    served.generation,
                    served.has_state,
                );
                for stored in of_it {
                    let image = ImageStatus { id: stored.id.clone(), bytes: stored.bytes };
                    self.core.restore_image(&name, stored.kind, image);
                }
            }
        }
        let (instances, appshots, releases) = (up.instances, up.appshots, up.releases);
        self.stale = true;
        self.feed(Event::Found { instances, appshots, releases });
    }

    /// Feeds one event and carries out all that follows from it.
    fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for effect in self.core.handle(event, clock::now()) {
                match effect {
                    Effect::Close { instance } => {
                        if self.close(instance) {
                            events.push_back(Event::Drained { instance });
                        }
                    }
                    Effect::LookIdle { instance } => {
                        let running = self.running.get(&instance);
                        let since = running.and_then(|running| running.slots.idle_since());
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
        }
        self.publish();
    }

    /// Gives free slots to those who wait; true if some wait although instances run.
    fn admit(&mut self, app: &AppName) -> bool {
        let running: Vec<Arc<Running>> = self
            .core
            .entry(app)
            .into_iter()
            .flat_map(|entry| entry.instances.iter().filter(|(_, i)| i.is_running()))
            .filter_map(|(id, _)| self.running.get(id).cloned())
            .collect();
        let waiting = |core: &Core| core.entry(app).is_some_and(|entry| !entry.waiting.is_empty());
        let bell = self.bells.entry(app.clone());
        let bell = bell.or_insert_with(|| Arc::new(Bell::new(self.bell.clone()))).clone();
        // Said before looking: a lease that ends from here on rings.
        bell.wanted.store(waiting(&self.core), Ordering::SeqCst);
        for instance in &running {
            while waiting(&self.core) {
                let Some(mut lease) = instance.lease(Wake::Waited) else {
                    break;
                };
                let Some(waiter) = self.core.next_waiter(app) else {
                    break;
                };
                let Some(waiting) = self.waiters.remove(&waiter) else {
                    continue;
                };
                if instance.opened >= waiting.entered {
                    lease.wake = if instance.restored { Wake::Restored } else { Wake::Started };
                }
                // Somebody who has given up drops the lease, which frees its slot again.
                let _ = waiting.reply.send(Ok(lease));
            }
        }
        let some = waiting(&self.core);
        bell.wanted.store(some, Ordering::SeqCst);
        some && !running.is_empty()
    }

    /// Leases ended.
    fn rung(&mut self) {
        let drained: Vec<InstanceId> = self
            .closing
            .iter()
            .filter(|id| self.running.get(id).is_none_or(|r| r.slots.in_flight() == 0))
            .copied()
            .collect();
        for instance in drained {
            self.closing.remove(&instance);
            self.feed(Event::Drained { instance });
        }
        let rung: Vec<AppName> =
            self.bells.iter().filter(|(_, bell)| bell.take()).map(|(app, _)| app.clone()).collect();
        for app in rung {
            if self.admit(&app) {
                self.feed(Event::Crowded { app });
            }
        }
    }

    /// Asks for more sockets where they run low.
    fn supply(&mut self) {
        for (id, endpoint) in &self.endpoints {
            if endpoint.wants_sockets() && self.supplying.insert(*id) {
                let instance = *id;
                let verb = Verb::Sockets { instance, count: SOCKET_BATCH };
                self.ask(verb, SHORT, move |result| Outcome::Supplied {
                    instance,
                    sockets: result.map(|(_, sockets)| sockets).unwrap_or_default(),
                });
            }
        }
    }

    /// Publishes what the dispatcher reads, if it has changed.
    fn publish(&mut self) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        let mut apps = HashMap::new();
        for (name, entry) in self.core.entries() {
            if entry.removing.is_some() || !entry.deployed {
                continue;
            }
            let bell = self.bells.entry(name.clone());
            let bell = bell.or_insert_with(|| Arc::new(Bell::new(self.bell.clone()))).clone();
            let running = entry.instances.iter().filter(|(_, i)| i.is_running());
            let running = running.filter_map(|(id, _)| self.running.get(id).cloned()).collect();
            apps.insert(name.clone(), AppDirections { app: entry.app.clone(), running, bell });
        }
        self.bells.retain(|name, _| self.core.entry(name).is_some());
        self.directions.store(Arc::new(Directions { apps, complete: self.booted }));
        let mut counts = Phase::ALL.map(|phase| (phase, 0));
        for (_, entry) in self.core.entries() {
            let of_instances = entry.instances.values().map(|i| i.state.phase());
            let asleep = entry.instances.is_empty().then(|| entry.phase());
            for phase in of_instances.chain(asleep) {
                counts.iter_mut().filter(|(p, _)| *p == phase).for_each(|(_, n)| *n += 1);
            }
        }
        telemetry::instances(counts.into_iter().map(|(phase, count)| (phase.as_str(), count)));
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Acquire { app, entered, reply } => {
                let Some(entry) = self.core.entry(&app) else {
                    let _ = reply.send(Err(Error::UnknownApp(app)));
                    return;
                };
                if self.ending.is_some() {
                    let _ = reply.send(Err(Error::Unavailable("it is shutting down".into())));
                    return;
                }
                let (deadline, full) = (entered + entry.app.wake.timeout, entry.waiting.is_full());
                if full {
                    self.forget_the_gone(&app);
                }
                let waiter = Waiter(self.number());
                self.waiters.insert(waiter, Waiting { reply, entered });
                self.feed(Event::Request { app, waiter, deadline });
            }
            Message::Command { command, reply } => {
                let token = self.number();
                self.callers.insert(token, reply);
                match command {
                    Command::Deploy(release) => {
                        let asked = release.clone();
                        self.ask(Verb::Describe { release: asked }, SHORT, move |result| {
                            let app = match result {
                                Ok((Reply::Described { app }, _)) => Ok(app),
                                Ok(_) => Err(Error::DeployFailed("an odd answer".into())),
                                Err(failed) => Err(Error::DeployFailed(format!("{failed:?}"))),
                            };
                            Outcome::Described { release, token, app }
                        });
                    }
                    Command::Remove(app) => self.feed(Event::Remove { app, token }),
                    Command::Wake(app, count) => self.feed(Event::Wake { app, count, token }),
                    Command::Sleep(app) => self.feed(Event::Sleep { app, token }),
                }
            }
            Message::Status { reply } => {
                let _ = reply.send(self.status());
            }
            Message::Logs { app, max_bytes, reply } => self.logs(app, max_bytes, reply),
            Message::Shutdown { reply } => self.begin_end(reply),
        }
    }

    /// Clients that went while they waited free their places.
    fn forget_the_gone(&mut self, app: &AppName) {
        let gone = |waiters: &HashMap<Waiter, Waiting>, waiter: &Waiter| {
            waiters.get(waiter).is_none_or(|waiting| waiting.reply.is_closed())
        };
        self.core.leave(app, |waiter| gone(&self.waiters, &waiter));
        self.waiters.retain(|_, waiting| !waiting.reply.is_closed());
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn answer(&mut self, token: Token, answer: Result<Answer, Error>) {
        if let Some(caller) = self.callers.remove(&token) {
            let _ = caller.send(answer);
        }
    }
}

mod ending;
mod perform;
mod report;

use ending::refuse_early;

/// What the agent's refusal means to the core.
fn failed(error: client::Error) -> Failed {
    match error {
        client::Error::Lost | client::Error::Connect { .. } | client::Error::Late(_) => {
            Failed::AgentAway
        }
        client::Error::Refused(failure) if failure.kind == FailureKind::Unknown => {
            Failed::Unknown(failure.message)
        }
        client::Error::Refused(failure) if failure.kind == FailureKind::Unusable => {
            Failed::Unusable(failure.message)
        }
        client::Error::Refused(failure) if failure.kind == FailureKind::Busy => {
            Failed::Busy(failure.message)
        }
        other => Failed::Reason(telemetry::chain(&other)),
    }
}

fn odd() -> Failed {
    Failed::Reason("the agent gave an odd answer".into())
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
