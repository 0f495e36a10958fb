//! `edgepoint run` as root: a small process that binds the listening sockets, starts the agent and
//! the proxy, and starts again what ends. It has one thread and holds no state that matters.
//!
//! The sockets live here, so a proxy that is started again refuses no connection; instances are
//! nobody's children but the agent's and, after its death, ours.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt},
        net::UnixListener,
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::{
    signal::{SigSet, Signal, kill},
    socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt,
        socket, sockopt,
    },
    wait::{WaitPidFlag, WaitStatus, waitpid},
};
use nix::unistd::{Pid, User};
use serde::{Deserialize, Serialize};

use crate::{
    agent::server,
    clock, conduit,
    config::Config,
    edgepoint::{AGENT_SOCKET, PROXY_STATE},
    os::process,
};

/// Directory of the agent below the state directory.
const AGENT_STATE: &str = "agent";
/// Connections that may wait to be accepted, per socket.
const BACKLOG: i32 = 4096;
/// Sandboxes kept ready by the agent.
const POOL: usize = 2;
/// A process that ends sooner than this after its start is started again only after a pause.
const SHORT_LIFE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_secs(1);
/// Tries to start a process that has never lived longer than that.
const START_TRIES: u32 = 5;
/// How long the last edgepoint may still hold the addresses, while it puts its apps to sleep.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(15);
/// How long the proxy may take to put everything to sleep.
const PROXY_PATIENCE: Duration = Duration::from_secs(120);
/// How long the agent may take to end.
const AGENT_PATIENCE: Duration = Duration::from_secs(10);

/// Why `run` fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something of the host failed.
    #[error("cannot {act}")]
    Host {
        /// What was attempted.
        act: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The user of the proxy does not exist.
    #[error("there is no user {0} to run the proxy as; see [agent] proxy_user")]
    NoUser(String),
    /// Only root can start the agent.
    #[error("only root can run an edgepoint: its agent makes namespaces and restores processes")]
    NotRoot,
    /// Another one runs with the same directory.
    #[error(
        "an edgepoint runs already in {}: another one needs its own [directories] state and run, \
         addresses and [agent] first_uid",
        .0.display()
    )]
    Running(PathBuf),
    /// A part does not start.
    #[error("the {0} ended {START_TRIES} times right after its start; it has said why above")]
    GivenUp(&'static str),
}

fn host<T>(act: impl Into<String>, result: io::Result<T>) -> Result<T, Error> {
    result.map_err(|source| Error::Host { act: act.into(), source })
}

/// What the proxy process reads on its standard input. Its sockets begin at descriptor 3: all of
/// `http`, then the control socket, then the metrics socket if there is one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxySettings {
    /// The configuration file.
    pub config: PathBuf,
    /// Number of HTTP sockets.
    pub http: usize,
    /// Whether there is a metrics socket.
    pub metrics: bool,
    /// The user and group to become.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
}

struct Supervisor {
    agent: server::Config,
    proxy: ProxySettings,
    sockets: Vec<OwnedFd>,
}

/// Runs until SIGTERM or SIGINT.
pub fn run(config_path: &Path, config: &Config) -> Result<(), Error> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let (uid, gid) = match &config.agent.proxy_user {
        None => (config.agent.first_uid - 1, config.agent.first_uid - 1),
        Some(name) => {
            let user = User::from_name(name).ok().flatten();
            let user = user.ok_or_else(|| Error::NoUser(name.clone()))?;
            (user.uid.as_raw(), user.gid.as_raw())
        }
    };

    let (state, run) = (&config.directories.state, &config.directories.run);
    make_directory(state, 0o755, None)?;
    let _lock = lock(state)?;
    make_directory(&state.join(AGENT_STATE), 0o700, None)?;
    make_directory(&state.join(PROXY_STATE), 0o700, Some(uid))?;
    host("give the ledger to the proxy's user", give_files(&state.join(PROXY_STATE), uid))?;
    make_directory(run, 0o755, None)?;
    let _run_lock = lock(run)?;

    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        signals.add(signal);
    }
    host("block signals", signals.thread_block().map_err(Into::into))?;
    host("become a subreaper", process::become_subreaper())?;
    host("raise the limit of open files", process::raise_open_files())?;

    let mut sockets = Vec::new();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for address in &config.listen.http {
        let mut address = *address;
        host(format!("listen on {address}"), wait_until_free(address))?;
        for _ in 0..cores {
            let bound = host(format!("listen on {address}"), listen_on(address, true))?;
            // With port 0 the first socket chooses for all.
            address = host("read an address", bound.local_addr())?;
            sockets.push(bound.into());
        }
    }
    let http = sockets.len();
    let control = run.join(conduit::SOCKET);
    sockets.push(host(format!("listen at {}", control.display()), control_socket(&control, uid))?);
    if let Some(address) = config.listen.metrics {
        host(format!("listen on {address}"), wait_until_free(address))?;
        let bound = host(format!("listen on {address}"), listen_on(address, true))?;
        sockets.push(bound.into());
    }
    let config_path = host("find the configuration", fs::canonicalize(config_path))?;
    let supervisor = Supervisor {
        agent: server::Config {
            state: state.join(AGENT_STATE),
            socket: run.join(AGENT_SOCKET),
            criu: host("find CRIU", std::path::absolute(&config.agent.criu))?,
            proxy_uid: uid,
            proxy_gid: gid,
            first_uid: config.agent.first_uid,
            max_instances: usize::try_from(config.limits.instances).unwrap_or(usize::MAX),
            restore_timeout: config.agent.restore_timeout,
            dump_timeout: config.agent.dump_timeout,
            pool: POOL,
        },
        proxy: ProxySettings {
            config: config_path,
            http,
            metrics: config.listen.metrics.is_some(),
            uid,
            gid,
        },
        sockets,
    };
    let result = supervisor.watch(&signals);
    let _ = fs::remove_file(&control);
    result
}

/// A child and when it began.
struct Part {
    name: &'static str,
    child: Child,
    began: Instant,
    /// Starts that failed so far; `None` once it has come up.
    tries: Option<u32>,
}

impl Supervisor {
    fn watch(&self, signals: &SigSet) -> Result<(), Error> {
        let mut agent = self.start_agent()?;
        let mut proxy = match self.start_proxy() {
            Ok(proxy) => proxy,
            Err(error) => {
                end(&agent, AGENT_PATIENCE);
                return Err(error);
            }
        };
        let result = self.keep_up(&mut agent, &mut proxy, signals);
        end(&proxy, PROXY_PATIENCE);
        end(&agent, AGENT_PATIENCE);
        result
    }

    /// Starts again what ends, until a signal says that it is enough.
    fn keep_up(&self, agent: &mut Part, proxy: &mut Part, signals: &SigSet) -> Result<(), Error> {
        loop {
            match host("wait for signals", signals.wait().map_err(Into::into))? {
                Signal::SIGCHLD => {
                    // Orphaned instances end here too: they are reaped and nothing more.
                    for (pid, failed) in ended() {
                        if pid == agent.pid() {
                            again(agent, failed, || self.start_agent())?;
                        } else if pid == proxy.pid() {
                            again(proxy, failed, || self.start_proxy())?;
                        }
                    }
                }
                Signal::SIGHUP => {
                    eprintln!("edgepoint: reload is not built yet; start again to read files anew");
                }
                _ => return Ok(()),
            }
        }
    }

    fn start_agent(&self) -> Result<Part, Error> {
        let program = host("find the agent", std::env::current_exe())?;
        let program = program.with_file_name("edgepoint-agent");
        let mut command = Command::new(&program);
        let settings = serde_json::to_vec(&self.agent).map_err(io::Error::other);
        let settings = host("write the agent's settings", settings)?;
        start("agent", command.env_clear(), &[], &settings)
    }

    fn start_proxy(&self) -> Result<Part, Error> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("serve");
        let settings = serde_json::to_vec(&self.proxy).map_err(io::Error::other);
        let settings = host("write the proxy's settings", settings)?;
        start("proxy", &mut command, &self.sockets, &settings)
    }
}

impl Part {
    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }
}

fn start(
    name: &'static str,
    command: &mut Command,
    sockets: &[OwnedFd],
    settings: &[u8],
) -> Result<Part, Error> {
    let what = command.get_program().to_string_lossy().into_owned();
    let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    // Out of the terminal's group: ctrl-c is for us, and the proxy needs the agent to the end.
    command.stdin(Stdio::piped()).process_group(0);
    let mut child = host(format!("start {what}"), process::spawn_with_fds(command, &fds))?;
    if let Some(mut stdin) = child.stdin.take()
        && let Err(error) = stdin.write_all(settings)
    {
        // It has ended, which is seen like any other end.
        eprintln!("edgepoint: cannot talk to the {name}: {error}");
    }
    Ok(Part { name, child, began: clock::now(), tries: Some(1) })
}

/// Starts a part again that has ended. One that has come up is started for ever: what runs beside it
/// needs it. One that only ever ended with an error of its own (`failed`) right after its start is
/// given up, since what is wrong was so from the beginning.
fn again(
    part: &mut Part,
    failed: bool,
    start: impl FnOnce() -> Result<Part, Error>,
) -> Result<(), Error> {
    let short = part.began.elapsed() < SHORT_LIFE;
    let tries = part.tries.filter(|_| short && failed);
    if tries.is_some_and(|tries| tries >= START_TRIES) {
        return Err(Error::GivenUp(part.name));
    }
    eprintln!("edgepoint: the {} ended; starting it again", part.name);
    if short {
        std::thread::sleep(PAUSE);
    }
    *part = Part { tries: tries.map(|tries| tries + 1), ..start()? };
    Ok(())
}

/// Reaps children that have ended; says of each whether it ended with an error, not by a signal.
fn ended() -> Vec<(i32, bool)> {
    let mut pids = Vec::new();
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        match status {
            WaitStatus::Exited(pid, code) => pids.push((pid.as_raw(), code != 0)),
            WaitStatus::Signaled(pid, _, _) => pids.push((pid.as_raw(), false)),
            WaitStatus::StillAlive => break,
            _ => {}
        }
    }
    pids
}

/// SIGTERM, patience, SIGKILL.
fn end(part: &Part, patience: Duration) {
    let pid = Pid::from_raw(part.pid());
    let deadline = clock::now() + patience;
    if kill(pid, Signal::SIGTERM).is_err() {
        return;
    }
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) if clock::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(WaitStatus::StillAlive) => {
                let _ = kill(pid, Signal::SIGKILL);
                let _ = waitpid(pid, None);
                return;
            }
            _ => return,
        }
    }
}

fn make_directory(path: &Path, mode: u32, owner: Option<u32>) -> Result<(), Error> {
    let make = || {
        fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        std::os::unix::fs::chown(path, owner, owner)
    };
    host(format!("make the directory {}", path.display()), make())
}

/// Held as long as the supervisor lives.
fn lock(state: &Path) -> Result<File, Error> {
    let path = state.join("lock");
    let file = host(format!("open {}", path.display()), File::create(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Running(state.into())),
        Err(fs::TryLockError::Error(error)) => host("lock the state directory", Err(error)),
    }
}

/// What an earlier user wrote is the present one's.
fn give_files(directory: &Path, uid: u32) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        std::os::unix::fs::lchown(entry?.path(), Some(uid), Some(uid))?;
    }
    Ok(())
}

/// Sockets share an address so that each core has its own: another edgepoint's would share it too,
/// so it must be free before.
fn wait_until_free(address: SocketAddr) -> io::Result<()> {
    let deadline = clock::now() + ADDRESS_PATIENCE;
    let mut told = false;
    loop {
        match listen_on(address, false) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && clock::now() < deadline => {
                if !std::mem::replace(&mut told, true) {
                    eprintln!("edgepoint: {address} is in use; waiting for it to become free");
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            other => return other.map(drop),
        }
    }
}

fn listen_on(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::ReusePort, &shared)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(address))?;
    listen(&fd, Backlog::new(BACKLOG).map_err(io::Error::from)?)?;
    Ok(TcpListener::from(fd))
}

fn control_socket(path: &Path, uid: u32) -> io::Result<OwnedFd> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    std::os::unix::fs::chown(path, Some(uid), None)?;
    Ok(listener.into())
}
