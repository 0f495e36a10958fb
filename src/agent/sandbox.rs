//! What an instance runs in, before it runs: network namespace, control group, streams, a root to
//! mount — and, if it is to be restored, a CRIU worker that waits.
//!
//! A sandbox is made beforehand where possible, used once, and taken apart with [`Sandbox::remove`].

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::{OpenOptionsExt, fchown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::{
    criu,
    stage::{AppStage, CriuStage, Root, Stage},
};
use crate::os::{
    cgroup::{Group, Hierarchy},
    ns, process, seqpacket, tree,
};

/// How long the processes of a sandbox may take to vanish once killed.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// How long CRIU may take to let an app go.
const DISMISS_PATIENCE_MS: u16 = 60_000;

/// Makes sandboxes below one directory.
#[derive(Debug)]
pub struct Maker {
    /// Directory of all sandboxes.
    pub directory: PathBuf,
    /// Control groups of this edgepoint.
    pub hierarchy: Hierarchy,
    /// Prefix of the CRIU installation.
    pub criu: PathBuf,
    /// Directory with CRIU's kernel-feature cache.
    pub kernel_cache: PathBuf,
}

/// One sandbox.
#[derive(Debug)]
pub struct Sandbox {
    /// Its name: directory and control group.
    pub name: String,
    /// Its directory.
    pub directory: PathBuf,
    /// Its network namespace.
    pub network: OwnedFd,
    /// Its control group.
    pub group: Group,
    /// Standard output and error, opened for append.
    pub streams: [File; 2],
}

/// A CRIU process that waits for one request.
#[derive(Debug)]
pub struct CriuProcess {
    child: Child,
    /// Its line.
    pub line: criu::Worker,
}

impl Drop for CriuProcess {
    /// A worker that restores, or waits, is killed. One that dumps must be dismissed instead.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl CriuProcess {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Hangs up and waits until it has ended by itself: a CRIU that is killed while it holds an app
    /// can take the app along, one whose line breaks gives the dump up and lets the app run on.
    /// One that never lets go is killed in the end: an app that stands still for ever is no better.
    pub fn dismiss(self) -> io::Result<()> {
        self.line.hang_up();
        let pidfd = process::pidfd(self.pid())?;
        if process::wait_for_end(&pidfd, DISMISS_PATIENCE_MS)? {
            return Ok(());
        }
        let text =
            format!("CRIU did not let go of it within {DISMISS_PATIENCE_MS} ms; killing CRIU");
        Err(io::Error::other(text))
    }
}

impl Maker {
    /// Makes a sandbox named `name`.
    pub fn sandbox(&self, name: String) -> io::Result<Sandbox> {
        let directory = self.directory.join(&name);
        fs::create_dir(&directory)?;
        let made = || -> io::Result<Sandbox> {
            fs::create_dir(directory.join("root"))?;
            let stream = |file: &str| {
                let mut options = OpenOptions::new();
                // Write-only: CRIU lets only such a file differ in size at the restore.
                options.append(true).create_new(true).mode(0o600);
                options.open(directory.join(file))
            };
            Ok(Sandbox {
                network: ns::new_network()?,
                group: self.hierarchy.group(&name)?,
                streams: [stream("stdout")?, stream("stderr")?],
                name: name.clone(),
                directory: directory.clone(),
            })
        };
        made().inspect_err(|_| {
            let _ = fs::remove_dir_all(&directory);
            let _ = self.hierarchy.existing(&name).remove();
        })
    }

    /// Starts a worker that will restore into the sandbox.
    pub fn restorer(&self, sandbox: &Sandbox) -> io::Result<CriuProcess> {
        let [stdout, stderr] = &sandbox.streams;
        let fds = [sandbox.network.as_fd(), stdout.as_fd(), stderr.as_fd()];
        self.worker(None, sandbox.group.joins(), &fds)
    }

    /// Starts a worker that can dump processes of user `uid`.
    pub fn dumper(&self, uid: u32) -> io::Result<CriuProcess> {
        self.worker(Some(uid), Vec::new(), &[])
    }

    fn worker(
        &self,
        user: Option<u32>,
        joins: Vec<PathBuf>,
        fds: &[std::os::fd::BorrowedFd<'_>],
    ) -> io::Result<CriuProcess> {
        let (ours, theirs) = seqpacket::pair()?;
        let (mut report, reports) = io::pipe()?;
        let (criu, run) = (self.criu.clone(), self.kernel_cache.clone());
        let hand_on = 1 + fds.len();
        let stage = Stage::Criu(CriuStage { criu, run, user, joins, hand_on });
        let mut all = vec![theirs.as_fd()];
        all.extend(fds);
        all.push(reports.as_fd());
        let child = launch(&stage, &all, Stdio::null())?;
        drop(reports);
        let process = CriuProcess { child, line: criu::Worker::new(ours) };
        // Closed by the exec: only then is the worker in a mount namespace of its own. Before that
        // it is in ours, and what is mounted there would be mounted on the host.
        let mut text = String::new();
        report.read_to_string(&mut text)?;
        if !text.is_empty() {
            return Err(io::Error::other(text));
        }
        Ok(process)
    }

    /// Asks CRIU for its version and makes its kernel-feature cache if there is none for this boot.
    pub fn prepare(&self) -> io::Result<String> {
        let file = self.kernel_cache.join("criu.kdat");
        if !file.exists() {
            fs::create_dir_all(&self.kernel_cache)?;
            let stage = Stage::KernelCache { criu: self.criu.clone() };
            let mut child = launch(&stage, &[], Stdio::piped())?;
            let mut cache = Vec::new();
            if let Some(mut output) = child.stdout.take() {
                output.read_to_end(&mut cache)?;
            }
            if !child.wait()?.success() {
                return Err(io::Error::other(
                    "CRIU cannot work on this host; see `edgepoint doctor`",
                ));
            }
            let temporary = self.kernel_cache.join(".criu.kdat");
            fs::write(&temporary, cache)?;
            fs::rename(temporary, file)?;
        }
        let worker = self.worker(None, Vec::new(), &[])?;
        worker.line.version(Duration::from_secs(10)).map_err(io::Error::other)
    }
}

impl Sandbox {
    /// Starts the first process and returns its host id.
    pub fn start(&self, stage: AppStage) -> io::Result<i32> {
        let (mut report, theirs) = io::pipe()?;
        let [stdout, stderr] = &self.streams;
        let fds = [theirs.as_fd(), self.network.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let mut child = launch(&Stage::App(Box::new(stage)), &fds, Stdio::null())?;
        drop(theirs);
        // The pipe closes when the app's own program runs.
        let mut text = String::new();
        report.read_to_string(&mut text)?;
        child.wait()?;
        if let Some((_, error)) = text.split_once("error ") {
            return Err(io::Error::other(error.to_string()));
        }
        let pid = text.strip_prefix("pid ").and_then(|rest| rest.trim().parse().ok());
        pid.ok_or_else(|| io::Error::other("the sandbox ended before its first process ran"))
    }

    /// The root as it will be mounted.
    pub fn root(&self, lower: Vec<PathBuf>, layer: &Path) -> Root {
        Root {
            target: self.directory.join("root"),
            lower,
            upper: layer.join("upper"),
            work: layer.join("work"),
        }
    }

    /// Lets the app's user open its streams by name (`/dev/stdout`), as servers do for their logs.
    pub fn give_streams(&self, uid: u32) -> io::Result<()> {
        self.streams.iter().try_for_each(|stream| fchown(stream, Some(uid), Some(uid)))
    }

    /// Under which name CRIU knows a stream: mount and inode, as this process sees them.
    pub fn stream_keys(&self) -> io::Result<[String; 2]> {
        use std::os::{fd::AsRawFd, unix::fs::MetadataExt};
        let key = |file: &File| -> io::Result<String> {
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
            let mount: u64 = info
                .lines()
                .find_map(|line| line.strip_prefix("mnt_id:"))
                .and_then(|id| id.trim().parse().ok())
                .ok_or_else(|| io::Error::other("no mount id"))?;
            Ok(format!("file[{mount:x}:{:x}]", file.metadata()?.ino()))
        };
        let [stdout, stderr] = &self.streams;
        Ok([key(stdout)?, key(stderr)?])
    }

    /// Inode of the network namespace.
    pub fn network_inode(&self) -> io::Result<u64> {
        Ok(nix::sys::stat::fstat(&self.network)?.st_ino)
    }

    /// Ends what still runs in it and removes it from the host.
    pub fn remove(&self) -> io::Result<()> {
        self.group.kill(KILL_PATIENCE)?;
        self.group.remove()?;
        tree::remove(&self.directory)
    }
}

/// Starts this program again as a stage.
fn launch(stage: &Stage, fds: &[std::os::fd::BorrowedFd<'_>], stdout: Stdio) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("stage").env_clear().stdin(Stdio::piped()).stdout(stdout);
    let mut child = process::spawn_with_fds(&mut command, fds)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&serde_json::to_vec(stage)?)?;
    }
    Ok(child)
}
