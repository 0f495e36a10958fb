//! restored: makes instances run — from an appshot, or cold from their release.
//!
//! What can be done before it is known which app wakes is done beforehand: a [`Pool`] keeps
//! sandboxes ready, each with a CRIU worker that waits in it. A restore has a hard deadline; when it
//! passes, everything in the sandbox is killed.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use super::{
    criu::Restore,
    instance::{Instance, Record},
    protocol::{Failure, FailureKind, SOCKET_BATCH},
    release::Release,
    sandbox::{CriuProcess, Sandbox},
    server::{Agent, failure, internal},
    stage::AppStage,
};
use crate::{
    appshot::{self, Kind, Manifest},
    model::{AppshotId, InstanceId, ReleaseId},
    os::{ns, tree},
};

/// Numbers under which a worker holds what `sandbox::Maker::restorer` gave it.
const NETWORK_FD: i32 = 4;
const STREAM_FDS: [i32; 2] = [5, 6];

/// Between a restore and the making of the next sandbox.
const REFILL_PAUSE: Duration = Duration::from_millis(30);

/// Sandboxes kept ready.
#[derive(Debug)]
pub struct Pool {
    size: usize,
    serial: AtomicU64,
    ready: Mutex<VecDeque<(Sandbox, CriuProcess)>>,
    /// Held by the one who makes new ones.
    filling: Mutex<()>,
    /// No more are made.
    closed: AtomicBool,
}

impl Pool {
    /// An empty pool that [`Pool::fill`] fills up to `size`.
    pub fn new(size: usize) -> Self {
        let (serial, closed) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { size, serial, ready: Mutex::default(), filling: Mutex::default(), closed }
    }

    fn name(&self) -> String {
        // Names must differ from those of an agent before this one.
        format!("{}-{}", std::process::id(), self.serial.fetch_add(1, Ordering::Relaxed))
    }

    fn make(&self, agent: &Agent) -> io::Result<(Sandbox, CriuProcess)> {
        let sandbox = agent.maker.sandbox(self.name())?;
        match agent.maker.restorer(&sandbox) {
            Ok(worker) => Ok((sandbox, worker)),
            Err(error) => {
                let _ = sandbox.remove();
                Err(error)
            }
        }
    }

    /// Fills it up, on a thread of its own, after what was woken has had the processors.
    pub fn fill(&self, agent: &Arc<Agent>) {
        let agent = agent.clone();
        thread::spawn(move || {
            thread::sleep(REFILL_PAUSE);
            let _turn = agent.pool.filling.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                let ready = agent.pool.ready.lock().unwrap_or_else(PoisonError::into_inner).len();
                if ready >= agent.pool.size || agent.pool.closed.load(Ordering::Acquire) {
                    return;
                }
                match agent.pool.make(&agent) {
                    Ok(made) => {
                        let mut ready =
                            agent.pool.ready.lock().unwrap_or_else(PoisonError::into_inner);
                        ready.push_back(made);
                    }
                    Err(error) => {
                        eprintln!("edgepoint-agent: cannot make a sandbox: {error}");
                        return;
                    }
                }
            }
        });
    }

    /// A sandbox that is ready, or a new one.
    fn take(&self, agent: &Arc<Agent>) -> io::Result<(Sandbox, CriuProcess)> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        match ready {
            Some(made) => Ok(made),
            None => self.make(agent),
        }
    }

    /// Takes all of them apart, also the one that is being made.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let _turn = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = std::mem::take(&mut *self.ready.lock().unwrap_or_else(PoisonError::into_inner));
        for (sandbox, worker) in ready {
            drop(worker);
            let _ = sandbox.remove();
        }
    }
}

/// Starts an instance from its release.
pub fn start(
    agent: &Arc<Agent>,
    id: InstanceId,
    release: &ReleaseId,
    generation: u64,
) -> Result<Vec<OwnedFd>, Failure> {
    let release = agent.release(release)?;
    let layer = id.to_string();
    let record = begin(agent, id, &release.id, generation, vec![layer.clone()])?;
    let done = || -> Result<Vec<OwnedFd>, Failure> {
        agent.layers.make(&layer).map_err(internal)?;
        let sandbox = agent.maker.sandbox(agent.pool.name()).map_err(internal)?;
        let started = cold(agent, &sandbox, &release, &record);
        finish(agent, sandbox, record.clone(), started)
    };
    settle(agent, id, done())
}

/// Restores an instance from an appshot.
pub fn restore(
    agent: &Arc<Agent>,
    id: InstanceId,
    appshot: &AppshotId,
    generation: u64,
) -> Result<Vec<OwnedFd>, Failure> {
    let manifest = agent.appshot(appshot)?;
    let release = agent.release(&manifest.release)?;
    let fits = manifest.fits(&agent.host);
    fits.map_err(|error| Failure::new(FailureKind::Unusable, &error))?;
    let images = agent.store.images(&manifest).map_err(|error| of_image(&error))?;
    if !agent.table().verified.contains(appshot) {
        agent.store.verify(&manifest).map_err(|error| of_image(&error))?;
        agent.table().verified.insert(appshot.clone());
    }
    let layers = match manifest.kind {
        // It goes on in the layer that it was parked with.
        Kind::Parked => manifest.layers.clone(),
        Kind::Golden => [id.to_string()].into_iter().chain(manifest.layers.clone()).collect(),
    };
    let record = begin(agent, id, &release.id, generation, layers)?;
    let done = || -> Result<Vec<OwnedFd>, Failure> {
        let (sandbox, worker) = agent.pool.take(agent).map_err(no_way_now("make a sandbox"))?;
        let started = warm(agent, &sandbox, &worker, &release, &manifest, &images.into(), &record);
        drop(worker);
        finish(agent, sandbox, record.clone(), started)
    };
    let sockets = settle(agent, id, done());
    agent.pool.fill(agent);
    let sockets = sockets?;
    if manifest.kind == Kind::Parked {
        // The instance lives on; its old image would be older than its files. What takes time is
        // done when nobody waits for it.
        agent.table().appshots.remove(appshot);
        let (store, appshot) = (agent.store.clone(), appshot.clone());
        thread::spawn(move || {
            if let Err(error) = store.remove(&appshot) {
                eprintln!("edgepoint-agent: {}", Failure::new(FailureKind::Internal, &error));
            }
        });
    }
    Ok(sockets)
}

/// Reserves the id and the layers.
fn begin(
    agent: &Agent,
    id: InstanceId,
    release: &ReleaseId,
    generation: u64,
    layers: Vec<String>,
) -> Result<Record, Failure> {
    let mut table = agent.table();
    let pending = table.pending.iter().any(|(other, _)| *other == id);
    if pending || table.instances.contains_key(&id) {
        return Err(failure(FailureKind::Forbidden, format!("instance {id} exists already")));
    }
    if table.instances.len() + table.pending.len() >= agent.config.max_instances {
        return Err(failure(FailureKind::Busy, "this host holds its most instances already"));
    }
    table.pending.push((id, layers.clone()));
    Ok(Record { id, release: release.clone(), generation, layers, process: None })
}

/// Ends the reservation; layers of a failed try are swept.
fn settle<T>(agent: &Agent, id: InstanceId, result: Result<T, Failure>) -> Result<T, Failure> {
    agent.table().pending.retain(|(other, _)| *other != id);
    if result.is_err() {
        agent.sweep_layers();
    }
    result
}

/// The layers under an instance's own, top first.
fn lower(agent: &Agent, release: &Release, record: &Record) -> Vec<PathBuf> {
    let own = record.layers.iter().skip(1).map(|name| agent.layers.upper(name));
    own.chain(agent.releases.layers(release)).collect()
}

/// Until CRIU is asked nothing is wrong with an image, and nothing has happened to it: whatever the
/// host refuses, it is kept and tried again.
fn no_way_now(act: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| failure(FailureKind::Busy, format!("cannot {act}: {error}"))
}

/// An image that cannot be had: it is damaged, or the host has no room to open it.
fn of_image(error: &appshot::Error) -> Failure {
    use nix::errno::Errno;
    const NO_ROOM: [Errno; 3] = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM];
    let code = match error {
        appshot::Error::File { source, .. } => source.raw_os_error(),
        _ => None,
    };
    let no_room = code.is_some_and(|code| NO_ROOM.contains(&Errno::from_raw(code)));
    let kind = if no_room { FailureKind::Busy } else { FailureKind::Unusable };
    Failure::new(kind, error)
}

fn prepare(
    agent: &Agent,
    sandbox: &Sandbox,
    release: &Release,
    record: &Record,
) -> io::Result<super::stage::Root> {
    let own = record.layers.first().map(String::as_str).unwrap_or_default();
    agent.layers.write_generation(own, record.generation)?;
    sandbox.group.limit(&release.app.limits)?;
    sandbox.give_streams(release.uid)?;
    record.write(&sandbox.directory)?;
    Ok(sandbox.root(lower(agent, release, record), &agent.layers.path(own)))
}

fn cold(
    agent: &Agent,
    sandbox: &Sandbox,
    release: &Release,
    record: &Record,
) -> Result<i32, Failure> {
    let root = prepare(agent, sandbox, release, record).map_err(internal)?;
    let app = &release.app;
    let mut env = vec![
        ("PATH".into(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()),
        ("HOME".into(), "/app".into()),
        ("PORT".into(), app.internal_port.to_string()),
    ];
    env.extend(app.env.clone());
    let mut arguments = Vec::new();
    for process in &app.processes {
        arguments.push(process.command.len().to_string());
        arguments.extend(process.command.iter().cloned());
    }
    let stage = AppStage {
        joins: sandbox.group.joins(),
        root,
        host_name: app.name.to_string(),
        uid: release.uid,
        env,
        arguments,
    };
    sandbox.start(stage).map_err(internal)
}

fn warm(
    agent: &Agent,
    sandbox: &Sandbox,
    worker: &CriuProcess,
    release: &Release,
    manifest: &Manifest,
    images: &OwnedFd,
    record: &Record,
) -> Result<i32, Failure> {
    let own = record.layers.first().map(String::as_str).unwrap_or_default();
    agent.layers.make(own).map_err(no_way_now("make its layer"))?;
    let prepared = prepare(agent, sandbox, release, record);
    let root = prepared.map_err(no_way_now("prepare its sandbox"))?;
    let mounts = File::open(format!("/proc/{}/ns/mnt", worker.pid()));
    let mounts = mounts.map_err(no_way_now("find the CRIU worker of its sandbox"))?;
    ns::in_mounts(&mounts, || root.mount()).map_err(no_way_now("mount its root"))?;
    let work = File::open(&sandbox.directory).map_err(no_way_now("open its sandbox"))?;
    let work: OwnedFd = work.into();
    let [stdout, stderr] = STREAM_FDS;
    let job = Restore {
        images,
        work: &work,
        root: &root.target.to_string_lossy(),
        network_fd: NETWORK_FD,
        streams: [(&manifest.stdout_key, stdout), (&manifest.stderr_key, stderr)],
    };
    worker.line.restore(&job, agent.config.restore_timeout).map_err(|error| {
        let kind = match &error {
            error if error.is_deadline() => FailureKind::Deadline,
            _ => FailureKind::Internal,
        };
        let mut failure = Failure::new(kind, &error);
        let log = fs::read_to_string(sandbox.directory.join("restore.log")).unwrap_or_default();
        let telling = |line: &&str| line.contains("Error") && !line.contains("RLIMIT_NOFILE");
        if let Some(line) = log.lines().find(telling) {
            failure.message.push_str(": ");
            failure.message.push_str(line);
        }
        failure
    })
}

/// Takes a running process into the table, or the sandbox apart.
fn finish(
    agent: &Agent,
    sandbox: Sandbox,
    record: Record,
    started: Result<i32, Failure>,
) -> Result<Vec<OwnedFd>, Failure> {
    let adopted = started.and_then(|pid| {
        let sockets = ns::sockets_in(&sandbox.network, SOCKET_BATCH.into()).map_err(internal)?;
        Ok((pid, sockets))
    });
    match adopted {
        Ok((pid, sockets)) => {
            let name = sandbox.name.clone();
            let instance = Instance::adopt(record, sandbox, pid).map_err(|error| {
                // It ended at once; what it left is cleared by its name.
                let group = agent.maker.hierarchy.existing(&name);
                let _ = group.kill(std::time::Duration::from_secs(5)).and_then(|()| group.remove());
                let _ = tree::remove(&agent.maker.directory.join(&name));
                internal(error)
            })?;
            agent.enter(instance).map_err(internal)?;
            Ok(sockets)
        }
        Err(failure) => {
            if let Err(error) = sandbox.remove() {
                eprintln!("edgepoint-agent: cannot remove sandbox {}: {error}", sandbox.name);
            }
            Err(failure)
        }
    }
}
