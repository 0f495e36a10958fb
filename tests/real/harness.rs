//! An edgepoint for a test: started, talked to, ended, and looked at for what it left behind.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use edgepoint::{conduit::Client, manager::AppStatus, os::ns};
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// One edgepoint at a time: two cores, and counts of what the host holds.
static TURN: Mutex<()> = Mutex::new(());

/// The number of repetitions: a short form for every run, the full one for `make prove`.
pub fn scale(short: usize, full: usize) -> usize {
    if std::env::var_os("EDGEPOINT_PROVE").is_some() { full } else { short }
}

/// Prints a figure and, for `make prove`, keeps it with its samples.
pub fn record(name: &str, value: &serde_json::Value) {
    println!("{name}: {value}");
    if let Some(directory) = std::env::var_os("EDGEPOINT_PROVE") {
        let path = PathBuf::from(directory).join(format!("{name}.json"));
        fs::write(&path, serde_json::to_vec_pretty(value).unwrap()).unwrap();
    }
}

/// Seeded numbers (SplitMix64, Steele et al. 2014); the seed is printed with every failure.
pub struct Random(pub u64);

impl Random {
    /// From `EDGEPOINT_SEED`, or a new one; printed.
    pub fn seeded() -> Self {
        let seed = std::env::var("EDGEPOINT_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) * 0x9e37_79b9);
        println!("seed: {seed} (replay with EDGEPOINT_SEED={seed})");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[path = "harness/host.rs"]
mod host;
use host::Host;

pub struct Edgepoint {
    pub directory: PathBuf,
    pub http: Place,
    pub metrics: Place,
    child: Child,
    before: Host,
    _turn: MutexGuard<'static, ()>,
}

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A keep-alive connection.
pub struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Opens one inside the test's network namespace.
    pub async fn open(at: &Place) -> Result<Self> {
        let stream = ns::in_network(&*at.network, || TcpStream::connect(at.address))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let stream = tokio::net::TcpStream::from_std(stream)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    pub async fn send(
        &mut self,
        method: &str,
        host: &str,
        path: &str,
        body: Bytes,
    ) -> Result<Answer> {
        let request = Request::builder().method(method).uri(path).header("host", host);
        self.sender.ready().await?;
        let answer = self.sender.send_request(request.body(Full::new(body))?).await?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }

    pub async fn get(&mut self, host: &str, path: &str) -> Result<Answer> {
        self.send("GET", host, path, Bytes::new()).await
    }
}

/// A listener of an edgepoint: an address in the network namespace that the test made for it, so
/// that counters there are of this test alone and ports are free.
#[derive(Clone)]
pub struct Place {
    pub network: Arc<OwnedFd>,
    pub address: SocketAddr,
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where CRIU is, or a loud word.
pub fn criu_prefix() -> PathBuf {
    let prefix = std::env::var_os("CRIU_PREFIX").map_or(root().join("target/criu"), PathBuf::from);
    assert!(
        prefix.join("sbin/criu").exists(),
        "CRIU is not in {}: run `make setup` as root",
        prefix.display()
    );
    prefix
}

fn spawn(directory: &Path, network: &OwnedFd) -> Child {
    let log = fs::File::options().create(true).append(true).open(directory.join("log")).unwrap();
    // nsenter execs in place: its process id is the supervisor's.
    Command::new("nsenter")
        .arg(format!("--net=/proc/{}/fd/{}", std::process::id(), network.as_raw_fd()))
        .arg(env!("CARGO_BIN_EXE_edgepoint"))
        .args(["run", "--config"])
        .arg(directory.join("edgepoint.toml"))
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Edgepoint {
    /// Starts one with the routes `HOST.localhost -> app HOST` for each name.
    pub async fn start(apps: &[&str]) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        let before = Host::now();
        let unique = std::process::id();
        let directory = PathBuf::from(format!("/var/tmp/edgepoint-test-{unique}"));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(directory.join("policies")).unwrap();
        let network = Arc::new(ns::new_network().unwrap());
        let place = |port: u16| {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            Place { network: network.clone(), address }
        };
        let (http, metrics) = (place(8080), place(9464));
        let config = format!(
            "[listen]\nhttp = [\"{http}\"]\nmetrics = \"{metrics}\"\n\
             [directories]\nstate = \"state\"\nrun = \"run\"\n\
             [agent]\ncriu = \"{}\"\n[meter]\nsample_interval = \"1s\"\n\
             [tariff]\nrequests_per_million = \"0.20\"\ncpu_per_hour = \"0.04\"\n\
             wakes_per_thousand = \"0.01\"\n",
            criu_prefix().display(),
            http = http.address,
            metrics = metrics.address,
        );
        fs::write(directory.join("edgepoint.toml"), config).unwrap();
        let mut routes = String::new();
        for app in apps {
            routes += &format!("[[route]]\nhost = \"{app}.localhost\"\napp = \"{app}\"\n");
        }
        routes += "[[route]]\nhost = \"fixed.localhost\"\n[route.answer]\nbody = \"fixed\"\n";
        routes += "[[route]]\nhost = \"moved.localhost\"\n[route.redirect]\n\
                   to = \"https://example.com{path}{query}\"\n";
        fs::write(directory.join("policies/routes.toml"), routes).unwrap();
        let child = spawn(&directory, &network);
        let edgepoint = Self { directory, http, metrics, child, before, _turn: turn };
        edgepoint.wait_until_up().await;
        edgepoint
    }

    async fn wait_until_up(&self) {
        let client = self.client();
        // An empty edgepoint says so as soon as its agent is there: wake of nothing is E0002.
        wait_for("the edgepoint to be up", Duration::from_secs(60), || async {
            let error = client.remove(&"nothing".parse().unwrap()).await.err()?;
            error.to_string().contains("no app").then_some(())
        })
        .await;
    }

    pub fn client(&self) -> Client {
        Client::new(self.directory.join("run/control.sock"))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap()
    }

    /// Runs the command line with `--json` and returns what it printed.
    pub fn cli(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.cli_output(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        serde_json::from_slice(&output.stdout).unwrap_or(serde_json::Value::Null)
    }

    pub fn cli_output(&self, arguments: &[&str]) -> std::process::Output {
        Command::new(env!("CARGO_BIN_EXE_edgepoint"))
            .arg("--config")
            .arg(self.directory.join("edgepoint.toml"))
            .arg("--json")
            .args(arguments)
            .output()
            .unwrap()
    }

    /// Deploys a sample app under another name, with lines of its `app.toml` replaced.
    pub fn deploy(&self, sample: &str, name: &str, replace: &[(&str, &str)]) -> serde_json::Value {
        self.deploy_with(sample, name, replace, str::to_string)
    }

    /// The same, and with its `server.py` changed.
    pub fn deploy_with(
        &self,
        sample: &str,
        name: &str,
        replace: &[(&str, &str)],
        change: impl Fn(&str) -> String,
    ) -> serde_json::Value {
        let source = root().join("tests/apps").join(sample);
        let target = self.directory.join("apps").join(name);
        let _ = fs::remove_dir_all(&target);
        fs::create_dir_all(&target).unwrap();
        for entry in fs::read_dir(source).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let copy = target.join(path.file_name().unwrap());
                if path.ends_with("server.py") {
                    fs::write(copy, change(&fs::read_to_string(&path).unwrap())).unwrap();
                } else {
                    fs::copy(&path, copy).unwrap();
                }
            }
        }
        let mut text = fs::read_to_string(target.join("app.toml")).unwrap();
        let name_line = format!("name = \"{sample}\"");
        let mut all = vec![(name_line.as_str(), format!("name = \"{name}\""))];
        all.extend(replace.iter().map(|(from, to)| (*from, (*to).to_string())));
        for (from, to) in all {
            assert!(text.contains(from), "{from:?} is not in app.toml of {sample}");
            text = text.replacen(from, &to, 1);
        }
        fs::write(target.join("app.toml"), text).unwrap();
        self.cli(&["deploy", target.to_str().unwrap()])
    }

    pub async fn connect(&self) -> Connection {
        Connection::open(&self.http).await.unwrap()
    }

    /// One request on a connection of its own.
    pub async fn get(&self, app: &str, path: &str) -> Answer {
        let host = format!("{app}.localhost");
        self.connect().await.get(&host, path).await.unwrap()
    }

    pub async fn status(&self, app: &str) -> AppStatus {
        let all = self.client().status().await.unwrap();
        all.into_iter().find(|status| status.app.as_str() == app).expect("the app is deployed")
    }

    /// The value of a metric line that begins with `prefix`, 0 if there is none.
    pub async fn metric(&self, prefix: &str) -> f64 {
        let mut connection = Connection::open(&self.metrics).await.unwrap();
        let answer = connection.get("metrics", "/metrics").await.unwrap();
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        let lines = text.lines().filter(|line| line.starts_with(prefix));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Connections that had to be asked for again, in the namespace of the proxy and its clients.
    pub fn retransmits(&self) -> u64 {
        let read = || fs::read_to_string("/proc/thread-self/net/netstat");
        retransmits(&ns::in_network(&*self.http.network, read).unwrap())
    }

    /// The process of that name below the supervisor.
    pub fn part(&self, name: &str) -> i32 {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = fs::read_to_string(children).unwrap();
        let mut pids = children.split_whitespace().map(|pid| pid.parse::<i32>().unwrap());
        pids.find(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(name)
        })
        .unwrap_or_else(|| panic!("no {name} in {children}"))
    }

    /// Ends it as a user would and checks that the host is as it was.
    pub fn stop(mut self) {
        self.end();
    }

    /// Ends it and starts it again with the same state.
    pub async fn restart(&mut self) {
        self.halt();
        self.resume().await;
    }

    /// Everything dies at once, as when the power goes: supervisor, proxy, agent, all apps.
    pub async fn lose_power(&mut self) {
        use nix::{sys::signal, unistd::Pid};
        let die = |pid: i32| {
            let _ = signal::kill(Pid::from_raw(pid), signal::SIGKILL);
        };
        // The supervisor first, or it would start the others again.
        let parts =
            [self.child.id().cast_signed(), self.part("serve"), self.part("edgepoint-agent")];
        parts.into_iter().for_each(die);
        self.first_processes().into_iter().for_each(die);
        self.child.wait().unwrap();
        self.resume().await;
    }

    /// The supervisor alone dies, and another one is started at once.
    pub async fn lose_supervisor(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        // The old proxy still answers there; only the new one's answers count.
        let _ = fs::remove_file(self.directory.join("run/control.sock"));
        self.resume().await;
    }

    /// Ends it in order; [`Edgepoint::resume`] starts it again.
    pub fn halt(&mut self) {
        self.end();
    }

    /// Starts it again.
    pub async fn resume(&mut self) {
        self.child = spawn(&self.directory, &self.http.network);
        self.wait_until_up().await;
    }

    /// The first process of every living instance.
    pub fn first_processes(&self) -> Vec<i32> {
        let sandboxes = fs::read_dir(self.directory.join("state/agent/sandboxes")).unwrap();
        let records = sandboxes.flatten().filter_map(|entry| {
            let text = fs::read_to_string(entry.path().join("record.json")).ok()?;
            let record: serde_json::Value = serde_json::from_str(&text).ok()?;
            i32::try_from(record["process"]["pid"].as_i64()?).ok()
        });
        records.collect()
    }

    fn end(&mut self) {
        use nix::{sys::signal, unistd::Pid};
        signal::kill(Pid::from_raw(self.child.id().cast_signed()), signal::SIGTERM).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(status.success(), "{status}:\n{}", self.log());
        // The kernel takes namespaces apart a little later than their last process.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let after = Host::now();
            if after == self.before {
                break;
            }
            assert!(Instant::now() < deadline, "left: {after:#?}\nbefore: {:#?}", self.before);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Edgepoint {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the edgepoint\n{}", self.log());
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            use nix::{sys::signal, unistd::Pid};
            let _ = signal::kill(Pid::from_raw(self.child.id().cast_signed()), signal::SIGTERM);
            let deadline = Instant::now() + Duration::from_secs(30);
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// `TCPSynRetrans` of a namespace's `net/netstat`: connection requests that were sent again.
pub fn retransmits(netstat: &str) -> u64 {
    let mut lines = netstat.lines().filter(|line| line.starts_with("TcpExt:"));
    let names = lines.next().unwrap().split(' ');
    let values = lines.next().unwrap().split(' ');
    let (_, value) = names.zip(values).find(|(name, _)| *name == "TCPSynRetrans").unwrap();
    value.parse().unwrap()
}

/// Waits for a level, never for an edge.
pub async fn wait_for<T, F, R>(what: &str, patience: Duration, mut look: F) -> T
where
    F: FnMut() -> R,
    R: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
