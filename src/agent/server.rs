//! The agent itself: listens, checks who asks, and answers each request on a thread of its own.
//!
//! Instances do not depend on it: they are children that nobody waits for, and an agent that starts
//! finds them by their records. What it holds in memory can be read again from its directories.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    instance::{Instance, Layers},
    perfd,
    protocol::{Failure, FailureKind, MAX_MESSAGE, Reply, Request},
    release::{Release, Releases},
    restored::Pool,
    sandbox::Maker,
};
use crate::{
    appshot::{self, Host, Manifest},
    model::{AppshotId, InstanceId, ReleaseId, ResourceUse},
    os::{cgroup::Hierarchy, process, seqpacket},
};

/// Requests worked on at the same time; more are answered `Busy`.
const MAX_BUSY: usize = 128;

/// After an accept that failed, for want of descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Between two looks at whether a manager is connected.
const MANAGER_PAUSE: Duration = Duration::from_millis(5);

/// Settings, given on the command line by the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where everything is kept.
    pub state: PathBuf,
    /// Where it listens.
    pub socket: PathBuf,
    /// Prefix of the CRIU installation.
    pub criu: PathBuf,
    /// Who besides root may ask.
    pub proxy_uid: u32,
    /// Group of the socket.
    pub proxy_gid: u32,
    /// First of the uids given to apps.
    pub first_uid: u32,
    /// The most instances at a time.
    pub max_instances: usize,
    /// A restore that takes longer is ended.
    pub restore_timeout: Duration,
    /// A dump that takes longer is given up.
    pub dump_timeout: Duration,
    /// Sandboxes kept ready.
    pub pool: usize,
}

/// One connection.
#[derive(Debug)]
struct Conversation {
    peer: OwnedFd,
    /// Its peer is there.
    open: AtomicBool,
    /// Requests that are being worked on.
    working: AtomicUsize,
}

/// What the agent knows; one lock, held for look-ups only.
#[derive(Debug, Default)]
pub struct Table {
    /// By id.
    pub releases: BTreeMap<ReleaseId, Arc<Release>>,
    /// By id.
    pub instances: BTreeMap<InstanceId, Arc<Instance>>,
    /// By id.
    pub appshots: BTreeMap<AppshotId, Arc<Manifest>>,
    /// Layers of instances that are being made.
    pub pending: Vec<(InstanceId, Vec<String>)>,
    /// Appshots whose digests this agent has seen to be right.
    pub verified: HashSet<AppshotId>,
}

/// The agent.
#[derive(Debug)]
pub struct Agent {
    /// Its settings.
    pub config: Config,
    /// Makes sandboxes.
    pub maker: Maker,
    /// Sandboxes kept ready.
    pub pool: Pool,
    /// Releases on disk.
    pub releases: Releases,
    /// Appshots on disk.
    pub store: appshot::Store,
    /// File layers on disk.
    pub layers: Layers,
    /// What appshots made here depend on.
    pub host: Host,
    table: Mutex<Table>,
    watch: process::Watch,
    managers: Mutex<Vec<Arc<Conversation>>>,
    /// Managers are refused from now on.
    ending: AtomicBool,
    busy: AtomicUsize,
    /// Requests to empty the trash; while there are any, one thread works on them.
    trash: Arc<AtomicUsize>,
    /// Held for life.
    _lock: Lock,
}

impl Agent {
    /// Opens the directories, finds what runs, clears away what does not.
    pub fn open(config: Config, init: &Path, lock: Lock) -> io::Result<Self> {
        let state = &config.state;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_string();
        let (sandboxes, cache) = (state.join("sandboxes"), state.join("criu").join(&boot));
        fs::create_dir_all(&sandboxes)?;
        let maker = Maker {
            directory: sandboxes,
            hierarchy: Hierarchy::open(&group_name(state))?,
            criu: config.criu.clone(),
            kernel_cache: cache,
        };
        let criu = maker.prepare().map_err(|error| {
            maker.hierarchy.remove();
            let prefix = maker.criu.display();
            io::Error::other(format!("CRIU in {prefix} ([agent] criu) does not run: {error}"))
        })?;
        let agent = Self {
            releases: Releases::open(state, init, config.first_uid)?,
            store: appshot::Store::open(&state.join("appshots")).map_err(io::Error::other)?,
            layers: Layers::open(state.join("layers"))?,
            pool: Pool::new(config.pool),
            host: Host { kernel: perfd::kernel()?, cpu: perfd::cpu()?, criu },
            table: Mutex::default(),
            watch: process::Watch::new()?,
            managers: Mutex::default(),
            ending: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
            trash: Arc::default(),
            _lock: lock,
            maker,
            config,
        };
        agent.recover()?;
        Ok(agent)
    }

    /// Serves until the process is ended.
    pub fn run(self: Arc<Self>) -> io::Result<()> {
        let config = &self.config;
        let socket = seqpacket::listen_at(&config.socket, 0o660, Some(config.proxy_gid))?;
        self.pool.fill(&self);
        let agent = self.clone();
        thread::spawn(move || agent.report_ends());
        let agent = self.clone();
        thread::spawn(move || perfd::rotate_logs(&agent));
        loop {
            let accepted =
                seqpacket::accept(&socket).and_then(|peer| Ok((seqpacket::peer_uid(&peer)?, peer)));
            let (uid, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    eprintln!("edgepoint-agent: cannot accept: {error}");
                    thread::sleep(ACCEPT_PAUSE);
                    continue;
                }
            };
            if uid != 0 && uid != config.proxy_uid {
                eprintln!("edgepoint-agent: refused a connection of uid {uid}");
                continue;
            }
            let (open, working) = (AtomicBool::new(true), AtomicUsize::new(0));
            let conversation = Arc::new(Conversation { peer, open, working });
            let agent = self.clone();
            thread::spawn(move || {
                agent.converse(&conversation, uid);
                conversation.open.store(false, Ordering::Release);
            });
        }
    }

    /// The table, locked.
    pub fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A release.
    pub fn release(&self, id: &ReleaseId) -> Result<Arc<Release>, Failure> {
        self.table().releases.get(id).cloned().ok_or_else(|| unknown("release", id))
    }

    /// An instance.
    pub fn instance(&self, id: InstanceId) -> Result<Arc<Instance>, Failure> {
        self.table().instances.get(&id).cloned().ok_or_else(|| unknown("instance", id))
    }

    /// An appshot.
    pub fn appshot(&self, id: &AppshotId) -> Result<Arc<Manifest>, Failure> {
        self.table().appshots.get(id).cloned().ok_or_else(|| unknown("appshot", id))
    }

    /// Enters an instance into the table and watches it.
    pub fn enter(&self, instance: Instance) -> io::Result<Arc<Instance>> {
        let instance = Arc::new(instance);
        self.watch.add(&instance.pidfd, instance.record.id.number())?;
        self.table().instances.insert(instance.record.id, instance.clone());
        Ok(instance)
    }

    /// Takes an ended instance off the host. Returns what it had used.
    pub fn bury(&self, instance: &Instance) -> ResourceUse {
        let usage = instance.usage();
        process::reap(instance.pid);
        self.keep_logs(instance);
        if let Err(error) = instance.sandbox.remove() {
            eprintln!("edgepoint-agent: cannot remove sandbox {}: {error}", instance.sandbox.name);
        }
        process::reap(instance.pid);
        self.table().instances.remove(&instance.record.id);
        self.sweep_layers();
        usage
    }

    /// Throws layers away that nothing refers to any more. They are removed soon.
    pub fn sweep_layers(&self) {
        {
            let table = self.table();
            let of_instances = table.instances.values().flat_map(|i| &i.record.layers);
            let of_appshots = table.appshots.values().flat_map(|manifest| &manifest.layers);
            let of_pending = table.pending.iter().flat_map(|(_, layers)| layers);
            let keep = of_instances.chain(of_appshots).chain(of_pending).cloned().collect();
            // Under the lock: a layer made meanwhile would be in no list yet.
            if let Err(error) = self.layers.sweep(&keep) {
                eprintln!("edgepoint-agent: cannot throw a layer away: {error}");
            }
        }
        self.empty_trash();
    }

    /// Removes what was thrown away, on a thread of its own: a tenant may have made very much.
    fn empty_trash(&self) {
        if self.trash.fetch_add(1, Ordering::AcqRel) > 0 {
            // The thread that works on it looks again.
            return;
        }
        let (layers, trash) = (self.layers.clone(), self.trash.clone());
        let worker = thread::Builder::new().spawn(move || {
            loop {
                let seen = trash.load(Ordering::Acquire);
                if let Err(error) = layers.empty_trash() {
                    eprintln!("edgepoint-agent: cannot remove a layer: {error}");
                }
                if trash.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                    return;
                }
            }
        });
        if let Err(error) = worker {
            self.trash.store(0, Ordering::Release);
            eprintln!("edgepoint-agent: cannot remove layers now: {error}");
        }
    }

    /// Files of an app's logs.
    pub fn logs_of(&self, app: &crate::model::AppName) -> PathBuf {
        self.config.state.join("logs").join(app.as_str())
    }

    fn keep_logs(&self, instance: &Instance) {
        let Ok(release) = self.release(&instance.record.release) else {
            return;
        };
        let logs = self.logs_of(&release.app.name);
        let moved = fs::create_dir_all(&logs).and_then(|()| {
            for stream in ["stdout", "stderr"] {
                let name = format!("{}.{stream}", instance.record.id);
                fs::rename(instance.sandbox.directory.join(stream), logs.join(name))?;
            }
            perfd::forget_old_logs(&logs)
        });
        if let Err(error) = moved {
            eprintln!("edgepoint-agent: cannot keep logs of {}: {error}", instance.record.id);
        }
    }

    /// Tells clients of instances that end by themselves.
    fn report_ends(&self) {
        loop {
            let Ok(Some(key)) = self.watch.next() else {
                continue;
            };
            let id = InstanceId::new(key);
            let Ok(instance) = self.instance(id) else {
                continue;
            };
            if !instance.claim_end() {
                continue;
            }
            self.report_end(&instance);
        }
    }

    /// Takes an instance that ended by itself off the host and tells the manager.
    pub fn report_end(&self, instance: &Instance) {
        let code = process::reap(instance.pid);
        let usage = self.bury(instance);
        let reply = Reply::Ended { instance: instance.record.id, code, usage };
        for manager in self.managers().iter() {
            // One that is gone finds the instance gone when it is back.
            let _ = send(&manager.peer, &reply, &[]);
        }
    }

    /// The manager, if one is there, and earlier ones of whose requests some go on.
    fn managers(&self) -> MutexGuard<'_, Vec<Arc<Conversation>>> {
        let mut managers = self.managers.lock().unwrap_or_else(PoisonError::into_inner);
        managers.retain(|manager| {
            manager.open.load(Ordering::Acquire) || manager.working.load(Ordering::Acquire) > 0
        });
        managers
    }

    /// Makes the peer the manager, once all that an earlier one asked for is done: what it is told
    /// afterwards is not overtaken.
    fn manage(&self, conversation: &Arc<Conversation>) -> Result<(), Failure> {
        let mut managers = self.managers();
        if self.ending.load(Ordering::Acquire) {
            return Err(failure(FailureKind::Busy, "the agent is ending"));
        }
        if !managers.is_empty() {
            let text = "another manager is connected, or what it asked for goes on";
            return Err(failure(FailureKind::Busy, text));
        }
        managers.push(conversation.clone());
        Ok(())
    }

    /// Reads requests of one connection until it closes.
    fn converse(self: &Arc<Self>, conversation: &Arc<Conversation>, uid: u32) {
        let peer = &conversation.peer;
        loop {
            let message = match seqpacket::recv(peer, MAX_MESSAGE) {
                Ok(message) if !message.bytes.is_empty() => message,
                _ => return,
            };
            let request: Request = match serde_json::from_slice(&message.bytes) {
                Ok(request) => request,
                Err(error) => {
                    eprintln!("edgepoint-agent: unreadable request: {error}");
                    return;
                }
            };
            if self.busy.fetch_add(1, Ordering::AcqRel) >= MAX_BUSY {
                self.busy.fetch_sub(1, Ordering::AcqRel);
                let failure = failure(FailureKind::Busy, "the agent has too much to do");
                let _ = send(peer, &Reply::Done { id: request.id, result: Err(failure) }, &[]);
                continue;
            }
            let (agent, conversation) = (self.clone(), conversation.clone());
            conversation.working.fetch_add(1, Ordering::AcqRel);
            thread::spawn(move || {
                let id = request.id;
                let answered = agent.answer(request, message.fds, &conversation, uid);
                agent.busy.fetch_sub(1, Ordering::AcqRel);
                conversation.working.fetch_sub(1, Ordering::AcqRel);
                let (result, fds) = match answered {
                    Ok((answer, fds)) => (Ok(answer), fds),
                    Err(failure) => (Err(failure), Vec::new()),
                };
                let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                if let Err(error) = send(&conversation.peer, &Reply::Done { id, result }, &fds) {
                    eprintln!("edgepoint-agent: cannot answer: {error}");
                }
            });
        }
    }

    /// Refuses new managers from now on, and returns when none is connected any more and nothing
    /// that one asked for goes on: it may be putting its apps to sleep.
    pub fn see_managers_off(&self) {
        self.ending.store(true, Ordering::Release);
        while !self.managers().is_empty() {
            thread::sleep(MANAGER_PAUSE);
        }
    }

    /// Ends whatever of the host is ours and not an instance: for an orderly stop.
    pub fn close(&self) {
        self.pool.close();
        self.maker.hierarchy.remove();
        let _ = fs::remove_file(&self.config.socket);
    }
}

/// The control group of the edgepoint that keeps its state in `state`.
fn group_name(state: &Path) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(state.as_os_str().as_encoded_bytes());
    let short: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("edgepoint-{short}")
}

fn send(peer: &OwnedFd, reply: &Reply, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    seqpacket::send(peer, &serde_json::to_vec(reply)?, fds)
}

/// A failure in plain words.
pub fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure { kind, message: message.into() }
}

/// Nothing has that id.
pub fn unknown(what: &str, id: impl std::fmt::Display) -> Failure {
    failure(FailureKind::Unknown, format!("there is no {what} {id}"))
}

/// An operation on the host failed.
pub fn internal(error: io::Error) -> Failure {
    Failure::new(FailureKind::Internal, &error)
}

mod answer;
mod lock;
mod recover;

pub use lock::Lock;
