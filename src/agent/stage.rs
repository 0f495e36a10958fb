//! What runs between the agent and a new program: a fresh copy of the agent's binary with one
//! thread reads what to become from its standard input, builds the surroundings and calls `exec`.
//!
//! Doing this in a process of its own, not between `fork` and `exec`, lets all of it be ordinary
//! code that can fail in words: reports go to descriptor 3 until `exec` closes it.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::os::{caps, mount, ns, process};

/// Where the sandbox's own program lies in every root.
pub const INIT: &str = "/.edgepoint/init";

/// Open files of an app's process.
const APP_OPEN_FILES: u64 = 8192;

/// What to become.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Stage {
    /// The first process of a new sandbox. Descriptors: 3 reports, 4 network namespace, 5 and 6
    /// standard output and error.
    App(Box<AppStage>),
    /// A `criu swrk` worker. Descriptors: 3 its socket; if it restores 4 the network namespace, 5
    /// and 6 standard output and error; and one for reports after them.
    Criu(CriuStage),
    /// Makes CRIU's cache of kernel features and writes it to standard output.
    KernelCache {
        /// Prefix of the CRIU installation.
        criu: PathBuf,
    },
}

/// The surroundings of an app.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppStage {
    /// Control group files to write "0" to.
    pub joins: Vec<PathBuf>,
    /// The mounts of its root.
    pub root: Root,
    /// Its host name.
    pub host_name: String,
    /// Its user and group.
    pub uid: u32,
    /// Its environment, whole.
    pub env: Vec<(String, String)>,
    /// Arguments of [`INIT`].
    pub arguments: Vec<String>,
}

/// The mounts of a sandbox's root.
#[derive(Debug, Serialize, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Where it is mounted.
    pub target: PathBuf,
    /// Read-only layers, top first.
    pub lower: Vec<PathBuf>,
    /// The private layer.
    pub upper: PathBuf,
    /// The overlay's work directory.
    pub work: PathBuf,
}

impl Root {
    /// Mounts the layers at the target, in the caller's mount namespace.
    pub fn mount(&self) -> io::Result<()> {
        let lower: Vec<&Path> = self.lower.iter().map(PathBuf::as_path).collect();
        mount::overlay(&self.target, &lower, &self.upper, &self.work)
    }
}

/// The surroundings of a CRIU worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CriuStage {
    /// Prefix of the installation.
    pub criu: PathBuf,
    /// A directory with the kernel-feature cache, shown as /run.
    pub run: PathBuf,
    /// Become this user (to dump what belongs to it).
    pub user: Option<u32>,
    /// Control group files to write "0" to.
    pub joins: Vec<PathBuf>,
    /// How many descriptors CRIU gets; the one after them is for reports.
    pub hand_on: usize,
}

/// Runs a stage; returns only if something failed.
pub fn main() -> anyhow::Result<()> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    match serde_json::from_str(&text)? {
        Stage::App(stage) => app(*stage),
        Stage::Criu(stage) => criu(&stage),
        Stage::KernelCache { criu } => kernel_cache(&criu),
    }
}

/// Names the step that failed.
fn step<T>(what: &str, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{what}: {error}")))
}

fn app(stage: AppStage) -> anyhow::Result<()> {
    let mut report = File::from(process::inherited(process::FIRST_FD)?);
    let network = process::inherited(process::FIRST_FD + 1)?;
    let stdout = process::inherited(process::FIRST_FD + 2)?;
    let stderr = process::inherited(process::FIRST_FD + 3)?;
    let surround = || -> io::Result<()> {
        for file in &stage.joins {
            step("join the control group", fs::write(file, "0"))?;
        }
        step("enter the network namespace", ns::enter_network(&network))?;
        step("make a mount namespace", ns::private_mounts())?;
        step("make pid, ipc and uts namespaces", ns::private_processes())
    };
    if let Err(error) = surround() {
        write!(report, "error {error}")?;
        return Ok(());
    }
    if let Some(pid) = process::fork_single_threaded()? {
        // The child is the first process of the sandbox; the agent adopts it when we end.
        writeln!(report, "pid {pid}")?;
        return Ok(());
    }
    let Err(error) = become_init(&stage, stdout, stderr);
    write!(report, "error {error}")?;
    Ok(())
}

/// Inside the new namespaces, as process 1.
fn become_init(
    stage: &AppStage,
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> Result<std::convert::Infallible, io::Error> {
    let target = &stage.root.target;
    step("start a session", nix::unistd::setsid().map_err(io::Error::from))?;
    step("set the host name", nix::unistd::sethostname(&stage.host_name).map_err(io::Error::from))?;
    step("mount the layers", stage.root.mount())?;
    step("show /usr", mount::bind_read_only(Path::new("/usr"), &target.join("usr")))?;
    step("mount /proc", mount::proc(&target.join("proc")))?;
    step("enter the root", mount::pivot(target))?;
    step("enter /app", std::env::set_current_dir("/app"))?;
    let null = step("open /dev/null", File::options().read(true).open("/dev/null"))?;
    process::place(&null, 0)?;
    process::place(&stdout, 1)?;
    process::place(&stderr, 2)?;
    process::close_on_exec_from(process::FIRST_FD)?;
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let files = APP_OPEN_FILES.min(hard);
    step("limit open files", setrlimit(Resource::RLIMIT_NOFILE, files, files).map_err(Into::into))?;
    step("forbid core files", setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(Into::into))?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    step("give up rights", caps::become_nobody(stage.uid, stage.uid))?;
    let text = |text: &str| CString::new(text).map_err(io::Error::other);
    let mut arguments = vec![text(INIT)?];
    for argument in &stage.arguments {
        arguments.push(text(argument)?);
    }
    let mut env = Vec::new();
    for (name, value) in &stage.env {
        env.push(text(&format!("{name}={value}"))?);
    }
    step("run the init", nix::unistd::execve(&text(INIT)?, &arguments, &env).map_err(Into::into))
}

fn criu(stage: &CriuStage) -> anyhow::Result<()> {
    let mut fds = (process::FIRST_FD..).map(process::inherited);
    let hand_on = fds.by_ref().take(stage.hand_on).collect::<io::Result<Vec<_>>>()?;
    let report = fds.next().unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))?;
    let Err(error) = become_criu(stage, &hand_on);
    write!(File::from(report), "{error}")?;
    Ok(())
}

fn become_criu(stage: &CriuStage, hand_on: &[OwnedFd]) -> io::Result<std::convert::Infallible> {
    for file in &stage.joins {
        step("join the control group", fs::write(file, "0"))?;
    }
    step("make a mount namespace", ns::private_mounts())?;
    step("show the kernel-feature cache", mount::bind(&stage.run, Path::new("/run")))?;
    hand_on.iter().try_for_each(process::keep_over_exec)?;
    if let Some(uid) = stage.user {
        step("become the app's user", caps::become_criu_user(uid, uid))?;
    }
    let mut command = command(&stage.criu);
    command.args(["swrk", "3"]);
    Err(std::os::unix::process::CommandExt::exec(&mut command))
}

fn kernel_cache(prefix: &Path) -> anyhow::Result<()> {
    step("make a mount namespace", ns::private_mounts())?;
    step("mount a tmpfs on /run", mount::tmpfs(Path::new("/run")))?;
    let output = command(prefix).arg("check").output()?;
    if !output.status.success() {
        anyhow::bail!("criu check: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    io::stdout().write_all(&fs::read("/run/criu.kdat")?)?;
    Ok(())
}

/// CRIU by its own loader and libraries, without a shell between.
fn command(prefix: &Path) -> std::process::Command {
    let lib = prefix.join("lib");
    let mut command = std::process::Command::new(lib.join("ld.so"));
    command.arg("--library-path").arg(&lib).arg(prefix.join("sbin/criu")).env_clear();
    command
}
