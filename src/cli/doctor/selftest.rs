//! The self-test: a private agent parks and wakes a small app, whose count must go on.
//!
//! The agent has a state directory of its own, and the app is a copy of the agent's program that
//! runs as `probe`. Every step has a deadline; whatever happens, the instances are ended, then the
//! agent, then the directory is removed.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::TcpStream,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::PermissionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    time::{sleep, timeout},
};

use super::{Finding, fail, ok, place};
use crate::{
    agent::{
        client::Client,
        protocol::{Answer, Verb},
        server,
    },
    appshot::Kind,
    cli::{units::millis, words},
    clock,
    config::Config,
    model::{
        App, AppName, AppshotId, Bytes, Concurrency, Health, InstanceId, Limits, OnLostState,
        Process, ProviderName, Scale, Sleep, Snapshot, State, Wake,
    },
    os::process,
};

/// What it is called.
pub const NAME: &str = "self-test";

/// The whole self-test; it takes a second where everything is well.
const DEADLINE: Duration = Duration::from_secs(90);
/// One request to the agent, the longest of which is a dump.
const STEP: Duration = Duration::from_secs(40);
/// Until the agent listens; on the first start of a boot CRIU looks at the kernel.
const AGENT_START: Duration = Duration::from_secs(30);
/// Until the app answers.
const APP_START: Duration = Duration::from_secs(10);
/// One request to the app.
const REQUEST: Duration = Duration::from_secs(5);
/// How long the agent may take to end.
const AGENT_END: Duration = Duration::from_secs(10);
/// Between two looks at something that is about to happen.
const PAUSE: Duration = Duration::from_millis(10);
/// The longest path that a socket can have, less its name.
const MAX_PATH: usize = 90;
/// Users of real apps begin lower.
const UID_OFFSET: u32 = 50_000;
/// Lines of the agent's log that are shown when the self-test fails.
const LAST_LINES: usize = 3;
const PORT: u16 = 8080;
const SIGTERM: i32 = 15;

/// How long the two acts took that matter.
struct Figures {
    dump: Duration,
    restore: Duration,
    bytes: Bytes,
}

/// Runs the self-test.
pub async fn check(config: &Config) -> Finding {
    match guarded(config).await {
        Ok(Figures { dump, restore, bytes }) => {
            let time = |time: Duration| millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
            let (dump, restore) = (time(dump), time(restore));
            ok(NAME, format!("parked in {dump} ({bytes}), woken in {restore}, counted on"))
        }
        Err(error) => {
            let remedy = "mend what is wrong above, then try again; if nothing is, the reason \
                          is in the words of CRIU";
            fail(NAME, words(&error), remedy)
        }
    }
}

/// Prepares, runs and clears away.
async fn guarded(config: &Config) -> anyhow::Result<Figures> {
    let mut work = Work::make(&config.directories.state)?;
    let settings = settings(config, &work.path);
    let log = work.path.join("agent.log");
    let mut agent = AgentProcess::start(&settings, &log)?;
    let result = tokio::select! {
        // Whoever interrupts does not want to wait for anything else.
        biased;
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        result = timeout(DEADLINE, exercise(&mut agent, &settings, &work.path)) => {
            result.unwrap_or_else(|_| bail!("not done within {} s", DEADLINE.as_secs()))
        }
    };
    let result = result.map_err(|error| {
        let said = last_words(&fs::read_to_string(&log).unwrap_or_default());
        let error = words(&error);
        anyhow::anyhow!(if said.is_empty() {
            error
        } else {
            format!("{error}; the agent said: {said}")
        })
    });
    let mut stopped = stop_all(&settings.socket).await;
    if agent.has_ended() && result.is_err() {
        // It has no hand left to end the instance; one that starts finds it again.
        agent = AgentProcess::start(&settings, &log)?;
        stopped = match agent.connect(&settings.socket).await {
            Ok(_) => stop_all(&settings.socket).await,
            Err(error) => Err(error),
        };
    }
    agent.end();
    let removed = work.remove();
    let figures = result?;
    stopped.context("it worked, but an instance was left")?;
    removed.with_context(|| format!("it worked, but {} is left", work.path.display()))?;
    Ok(figures)
}

/// The steps.
async fn exercise(
    agent: &mut AgentProcess,
    settings: &server::Config,
    work: &Path,
) -> anyhow::Result<Figures> {
    let client = agent.connect(&settings.socket).await?;
    let ask = async |verb: Verb, what: &'static str| {
        client.ask(verb, &[], STEP).await.with_context(|| format!("cannot {what} the app"))
    };
    let source = File::open(app_directory(work)?)?;
    let verb = Verb::Register { app: Box::new(app()?) };
    let answer = client.ask(verb, &[source.as_fd()], STEP).await;
    let Answer::Registered { release } = answer.context("cannot register the app")?.0 else {
        bail!("the agent registered the app in an odd way");
    };

    let (first, second) = (InstanceId::new(1), InstanceId::new(2));
    let verb = Verb::Start { instance: first, release: release.clone(), generation: 1 };
    let (_, mut sockets) = ask(verb, "start").await?;
    for expected in 1..=3 {
        let count = answered(&mut sockets).await.context("the app does not answer")?;
        ensure!(count == expected, "the app counted {count} at request {expected}");
    }

    let appshot = AppshotId::new("parked-1")?;
    let verb = Verb::Park { instance: first, appshot: appshot.clone(), kind: Kind::Parked };
    let begin = clock::now();
    let (answer, _) = ask(verb, "park").await?;
    let dump = clock::now() - begin;
    let Answer::Parked { bytes, .. } = answer else { bail!("the agent parked in an odd way") };
    let left = client.instances(STEP).await?;
    ensure!(left.is_empty(), "an instance runs on after it was parked");
    let socket = sockets.pop().context("the agent gave too few sockets")?;
    ensure!(request(socket).await.is_err(), "the app answers although it is parked");

    let verb = Verb::Restore { instance: second, appshot, generation: 2 };
    let begin = clock::now();
    let (_, mut sockets) = ask(verb, "restore").await?;
    let restore = clock::now() - begin;
    let count = answered(&mut sockets).await.context("the restored app does not answer")?;
    ensure!(count == 4, "the restored app counted {count} instead of 4");

    ask(Verb::Stop { instance: second, patience_ms: 1_000 }, "stop").await?;
    ask(Verb::Forget { release }, "forget").await?;
    Ok(Figures { dump, restore, bytes })
}

/// Asks the app until it answers: its port opens a moment after its process runs.
async fn answered(sockets: &mut Vec<OwnedFd>) -> anyhow::Result<u64> {
    let end = clock::now() + APP_START;
    loop {
        let socket = sockets.pop().context("it never accepted a connection")?;
        match request(socket).await {
            Ok(count) => return Ok(count),
            Err(error) if clock::now() > end => return Err(error),
            // A batch has 64 sockets: they last for the time that there is.
            Err(_) => sleep(APP_START / 60).await,
        }
    }
}

/// One request over a socket that is inside the app's network namespace.
async fn request(socket: OwnedFd) -> anyhow::Result<u64> {
    let talk = async {
        let socket = TcpSocket::from_std_stream(TcpStream::from(socket));
        let mut stream = socket.connect(([127, 0, 0, 1], PORT).into()).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: probe\r\n\r\n").await?;
        let mut text = String::new();
        stream.take(4 << 10).read_to_string(&mut text).await?;
        let (_, body) = text.split_once("\r\n\r\n").context("no whole answer")?;
        Ok(body.trim().parse()?)
    };
    timeout(REQUEST, talk).await.unwrap_or_else(|_| bail!("no answer in time"))
}

/// The end of the agent's log in one line. That workers which were never used are gone is no news.
fn last_words(log: &str) -> String {
    let telling = |line: &&str| !line.is_empty() && !line.contains("Can't recv request");
    let lines: Vec<&str> = log.lines().map(str::trim).filter(telling).collect();
    let last = lines.iter().skip(lines.len().saturating_sub(LAST_LINES));
    last.copied().collect::<Vec<_>>().join(" ")
}

/// Ends whatever still runs.
async fn stop_all(socket: &Path) -> anyhow::Result<()> {
    let stopping = async {
        let client = Client::connect(socket).await?;
        for instance in client.instances(STEP).await? {
            let verb = Verb::Stop { instance: instance.id, patience_ms: 0 };
            client.ask(verb, &[], STEP).await?;
        }
        Ok(())
    };
    timeout(STEP, stopping).await.unwrap_or_else(|_| bail!("not done in time"))
}

/// A directory that is removed in the end.
struct Work {
    path: PathBuf,
}

impl Work {
    /// In the state directory, so that its file system is the one that is tried.
    fn make(state: &Path) -> anyhow::Result<Self> {
        let fits = state.is_dir() && state.as_os_str().len() < MAX_PATH;
        let parent = if fits { state.to_owned() } else { std::env::temp_dir() };
        let path = parent.join(format!(".doctor-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path })
    }

    fn remove(&mut self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

/// An agent of our own, ended in the end.
struct AgentProcess {
    child: Child,
}

impl AgentProcess {
    fn start(settings: &server::Config, log: &Path) -> anyhow::Result<Self> {
        let program = place::beside("edgepoint-agent")?;
        let mut command = Command::new(&program);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(File::create(log)?);
        command.env("RUST_BACKTRACE", "0");
        // Ctrl-C is for us; we end the agent in our own order.
        command.process_group(0);
        let spawned = command.spawn();
        let child = spawned.with_context(|| format!("cannot run {}", program.display()))?;
        let mut agent = Self { child };
        if let Some(mut stdin) = agent.child.stdin.take() {
            stdin.write_all(&serde_json::to_vec(settings)?)?;
        }
        Ok(agent)
    }

    /// Connects as soon as it listens.
    async fn connect(&mut self, socket: &Path) -> anyhow::Result<Client> {
        let end = clock::now() + AGENT_START;
        loop {
            match Client::connect(socket).await {
                Ok(client) => return Ok(client),
                Err(error) if clock::now() > end => return Err(error.into()),
                Err(_) => {}
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent ended at once ({status})");
            }
            sleep(PAUSE).await;
        }
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGTERM, and SIGKILL if that does not help.
    fn end(&mut self) {
        if self.has_ended() {
            return;
        }
        let asked = process::pidfd(self.child.id().cast_signed()).and_then(|pidfd| {
            process::signal(&pidfd, SIGTERM.try_into().map_err(io::Error::from)?)
        });
        let end = clock::now() + AGENT_END;
        while asked.is_ok() && clock::now() < end {
            if self.has_ended() {
                return;
            }
            thread::sleep(PAUSE);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        self.end();
    }
}

fn settings(config: &Config, work: &Path) -> server::Config {
    server::Config {
        state: work.join("state"),
        socket: work.join("agent.sock"),
        criu: config.agent.criu.clone(),
        // Nobody but root need ask.
        proxy_uid: 0,
        proxy_gid: 0,
        first_uid: config.agent.first_uid.saturating_add(UID_OFFSET),
        max_instances: 4,
        restore_timeout: config.agent.restore_timeout,
        dump_timeout: config.agent.dump_timeout,
        pool: 1,
    }
}

/// The files of the app: one program.
fn app_directory(work: &Path) -> anyhow::Result<PathBuf> {
    let directory = work.join("app");
    fs::create_dir(&directory)?;
    let program = directory.join("probe");
    fs::copy(place::beside("edgepoint-agent")?, &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(directory)
}

fn app() -> anyhow::Result<App> {
    let command = vec!["/app/probe".to_owned(), "probe".to_owned()];
    Ok(App {
        name: AppName::new("probe")?,
        provider: ProviderName::new("doctor")?,
        processes: vec![Process { name: "probe".into(), command }],
        env: std::collections::BTreeMap::new(),
        internal_port: PORT,
        health: Health { path: None, timeout: REQUEST, grace_period: APP_START },
        limits: Limits { memory: Bytes(128 << 20), cpu_millis: 1_000, pids: 16 },
        scale: Scale { min: 0, max: 1 },
        concurrency: Concurrency { hard: 1 },
        wake: Wake { timeout: APP_START, max_pending: 1 },
        sleep: Sleep { park_after: None, state: State::Keep, on_lost_state: OnLostState::Error },
        clonable: false,
        snapshot: Snapshot::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_last_words_are_one_line_without_noise() {
        let log = "a\nError: cannot start\n\nCaused by:\n    no CRIU\n\
                   Error (criu/cr-service.c:1373): Can't recv request: reset\n";
        assert_eq!(last_words(log), "Error: cannot start Caused by: no CRIU");
        assert_eq!(last_words(""), "");
    }

    #[test]
    fn the_probe_is_an_app_and_its_directory_does_not_outlive_the_test() {
        assert_eq!(app().unwrap().name.as_str(), "probe");
        let state = tempfile::tempdir().unwrap();
        let work = Work::make(state.path()).unwrap();
        assert!(work.path.starts_with(state.path()));
        fs::write(work.path.join("x"), "").unwrap();
        drop(work);
        assert!(fs::read_dir(state.path()).unwrap().next().is_none());
        // A state directory that is missing or too deep for a socket is not used.
        let work = Work::make(&state.path().join("missing")).unwrap();
        assert!(work.path.starts_with(std::env::temp_dir()));
    }
}
