//! What a skilled person would do by hand with the same image: namespaces and overlay made
//! beforehand (not timed), then the `criu restore` command line and a first GET; and the app's own
//! command started cold, without any sandbox, which is the fastest that it can be.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::TcpStream,
    os::fd::{AsFd, OwnedFd},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use edgepoint::{
    appshot::Manifest,
    os::{mount, ns, process},
};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use crate::harness::{Edgepoint, criu_prefix, root};

pub struct Rival {
    app: &'static str,
    /// A process whose mount namespace is ours to mount in.
    holder: Child,
    directory: PathBuf,
    images: PathBuf,
    lower: Vec<PathBuf>,
    manifest: Manifest,
    round: usize,
}

impl Rival {
    pub fn new(edgepoint: &Edgepoint, app: &'static str) -> Self {
        let state = edgepoint.directory.join("state/agent");
        let manifest = fs::read_dir(state.join("appshots"))
            .unwrap()
            .flatten()
            .filter_map(|entry| fs::read(entry.path().join("manifest.json")).ok())
            .map(|text| serde_json::from_slice::<Manifest>(&text).unwrap())
            .find(|manifest| {
                manifest.app.as_str() == app && manifest.id.as_str().contains("golden")
            })
            .expect("a golden appshot");
        let release = state.join("releases").join(manifest.release.as_str());
        let text = fs::read(release.join("release.json")).unwrap();
        let described: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let mut lower: Vec<PathBuf> = manifest
            .layers
            .iter()
            .map(|name| state.join("layers").join(name).join("upper"))
            .collect();
        lower.push(release.join("root"));
        lower.push(state.join("bases").join(described["base"].as_str().unwrap()));
        let directory = edgepoint.directory.join(format!("rival-{app}"));
        fs::create_dir_all(&directory).unwrap();
        let holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sleep", "3600"])
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(200));
        // The kernel-feature cache is warm for the command line too.
        let cache = fs::read_dir(state.join("criu")).unwrap().flatten().next().unwrap().path();
        let images = state.join("appshots").join(manifest.id.as_str()).join("img");
        let rival = Self { app, holder, directory, images, lower, manifest, round: 0 };
        ns::in_mounts(rival.mounts(), || mount::bind(&cache, Path::new("/run"))).unwrap();
        rival
    }

    fn mounts(&self) -> File {
        File::open(format!("/proc/{}/ns/mnt", self.holder.id())).unwrap()
    }

    /// Milliseconds from the start of `criu restore` to the first byte of an answer.
    pub fn restore(&mut self) -> f64 {
        self.round += 1;
        let here = self.directory.join(self.round.to_string());
        let part = |name: &str| here.join(name);
        for name in ["root", "upper", "work", "log"] {
            fs::create_dir_all(part(name)).unwrap();
        }
        let network = ns::new_network().unwrap();
        let lower: Vec<&Path> = self.lower.iter().map(PathBuf::as_path).collect();
        let (target, upper, work) = (part("root"), part("upper"), part("work"));
        ns::in_mounts(self.mounts(), || mount::overlay(&target, &lower, &upper, &work)).unwrap();
        let stream = || -> OwnedFd {
            File::options()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(part("log/out"))
                .unwrap()
                .into()
        };
        let streams = [stream(), stream()];
        let prefix = criu_prefix();
        let mut command = Command::new(prefix.join("lib/ld.so"));
        command
            .arg("--library-path")
            .arg(prefix.join("lib"))
            .arg(prefix.join("sbin/criu"))
            .args(["restore", "-d", "--manage-cgroups=ignore", "--tcp-close", "--file-locks"])
            .args(["--external", "mnt[usr]:/usr", "--inherit-fd", "fd[3]:extnet"])
            .arg("--inherit-fd")
            .arg(format!("fd[4]:{}", self.manifest.stdout_key))
            .arg("--inherit-fd")
            .arg(format!("fd[5]:{}", self.manifest.stderr_key))
            .args(["-o", "restore.log", "-W"])
            .arg(part("log"))
            .arg("-D")
            .arg(&self.images)
            .arg("--root")
            .arg(&target)
            .arg("--pidfile")
            .arg(part("log/pid"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let fds = [network.as_fd(), streams[0].as_fd(), streams[1].as_fd()];
        let began = Instant::now();
        let status =
            ns::in_mounts(self.mounts(), || process::spawn_with_fds(&mut command, &fds)?.wait())
                .unwrap();
        let log = || fs::read_to_string(part("log/restore.log")).unwrap_or_default();
        assert!(status.success(), "{}: {status}\n{}", self.app, log());
        get(&network).expect("a restored app answers at once");
        let took = began.elapsed().as_secs_f64() * 1e3;
        let pid: i32 = fs::read_to_string(part("log/pid")).unwrap().trim().parse().unwrap();
        let pidfd = process::pidfd(pid).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        assert!(process::wait_for_end(&pidfd, 5_000).unwrap());
        let unmount = || Ok(nix::mount::umount2(&target, nix::mount::MntFlags::MNT_DETACH)?);
        ns::in_mounts(self.mounts(), unmount).unwrap();
        took
    }

    /// Milliseconds from the start of the app's command to the first byte of a good answer.
    pub fn cold(&self) -> f64 {
        let network = ns::new_network().unwrap();
        let sources = root().join("tests/apps").join(self.app);
        let here = self.directory.join("cold");
        let _ = fs::remove_dir_all(&here);
        fs::create_dir_all(&here).unwrap();
        let socket = here.join("redis.sock");
        let socket = socket.to_str().unwrap();
        let commands: Vec<Vec<&str>> = match self.app {
            "node" => vec![vec!["/usr/bin/node", "server.js"]],
            "chain" => vec![
                vec![
                    "/usr/bin/redis-server",
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                    "--port",
                    "0",
                    "--unixsocket",
                    socket,
                    "--dir",
                    "/tmp",
                ],
                vec!["/usr/bin/python3", "server.py"],
            ],
            _ => vec![vec!["/usr/bin/python3", "server.py"]],
        };
        let began = Instant::now();
        let mut children: Vec<Child> = commands
            .iter()
            .map(|command| {
                let mut child = Command::new(command[0]);
                child
                    .args(&command[1..])
                    .current_dir(&sources)
                    .env("PORT", "8080")
                    .env("COUNT_FILE", here.join("count"))
                    .env("REDIS_SOCKET", socket)
                    .env("PYTHONDONTWRITEBYTECODE", "1")
                    .process_group(0)
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
                ns::in_network(&network, || child.spawn()).unwrap()
            })
            .collect();
        while get(&network).is_none() {
            assert!(began.elapsed() < Duration::from_secs(20), "{} does not start", self.app);
            std::thread::sleep(Duration::from_micros(200));
        }
        let took = began.elapsed().as_secs_f64() * 1e3;
        for child in &mut children {
            let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
            child.wait().unwrap();
        }
        took
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A GET of /; true if it was answered with 200.
fn get(network: &OwnedFd) -> Option<()> {
    let mut stream = ns::in_network(network, || TcpStream::connect(("127.0.0.1", 8080))).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
    let mut first = [0; 12];
    stream.read_exact(&mut first).ok()?;
    first.ends_with(b"200").then_some(())
}
