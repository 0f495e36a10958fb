//! What the configuration names: CRIU, the programs beside this one, the state directory and its
//! file system, the addresses to listen on.
//!
//! It makes and removes one empty directory, and binds addresses for a moment.

use std::{
    fs,
    io::{self, Read},
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use super::{Finding, fail, host::version, ok, untried, warn};
use crate::{clock, conduit::SOCKET, config::Config, model::Bytes};

/// Older ones fail on current kernels, some of them silently.
const OLDEST_CRIU: (u32, u32) = (4, 2);
/// A few releases and appshots.
const LEAST_FREE: Bytes = Bytes(1 << 30);
/// What overlayfs takes as its upper layer.
const GOOD_SYSTEMS: [&str; 4] = ["ext4", "xfs", "btrfs", "tmpfs"];
/// What it certainly does not.
const BAD_SYSTEMS: [&str; 7] = ["overlay", "nfs", "nfs4", "9p", "vfat", "fuse", "cifs"];
/// How long a program that prints one line may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The two programs that the edgepoint starts.
pub const PROGRAMS: [&str; 2] = ["edgepoint-agent", "edgepoint-init"];

/// All checks of what the configuration names.
pub fn check(config: &Config, root: bool) -> Vec<Finding> {
    let mut findings = vec![programs(), criu(&config.agent.criu)];
    findings.extend(state(&config.directories.state, root));
    findings.extend(listen(config));
    findings
}

/// A program that lies beside this one.
pub fn beside(name: &str) -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

fn programs() -> Finding {
    let missing = PROGRAMS.map(|name| beside(name).ok().filter(|path| path.is_file()).ok_or(name));
    let missing: Vec<&str> = missing.into_iter().filter_map(Result::err).collect();
    if missing.is_empty() {
        return ok("programs", PROGRAMS.join(" and "));
    }
    let detail = format!("{} is not beside this program", missing.join(", "));
    fail(
        "programs",
        detail,
        "install all three programs into one directory (cargo build makes them)",
    )
}

fn criu(prefix: &Path) -> Finding {
    const NAME: &str = "CRIU";
    let remedy = "install CRIU 4.2 or newer, and name its directory: [agent] criu = \"...\"";
    let (loader, program) = (prefix.join("lib/ld.so"), prefix.join("sbin/criu"));
    if let Some(missing) = [&loader, &program].into_iter().find(|path| !path.is_file()) {
        return fail(NAME, format!("there is no {}", missing.display()), remedy);
    }
    let mut command = Command::new(loader);
    command.arg("--library-path").arg(prefix.join("lib")).arg(program).arg("--version");
    match output(&mut command) {
        Ok(text) => match version(&text) {
            Some(found) if found >= OLDEST_CRIU => {
                let line = text.lines().next().unwrap_or_default();
                let number = line.trim_start_matches("Version:").trim();
                ok(NAME, format!("{number} in {}", prefix.display()))
            }
            Some((major, minor)) => fail(NAME, format!("{major}.{minor} is too old"), remedy),
            None => fail(NAME, "its version cannot be read", remedy),
        },
        Err(error) => fail(NAME, format!("cannot be run: {error}"), remedy),
    }
}

/// What a program prints that prints little and ends soon.
fn output(command: &mut Command) -> io::Result<String> {
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let end = clock::now() + PATIENCE;
    loop {
        if child.try_wait()?.is_some() {
            break;
        }
        if clock::now() > end {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(2));
    }
    let mut text = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut text)?;
    }
    Ok(text)
}

fn state(state: &Path, root: bool) -> Vec<Finding> {
    const NAME: &str = "state directory";
    let Some(existing) = state.ancestors().find(|path| path.is_dir()) else {
        return vec![fail(NAME, format!("{} cannot be made", state.display()), "make it")];
    };
    let writable = if root { writable(existing, state) } else { untried(NAME) };
    vec![writable, file_system(existing), free(existing)]
}

fn writable(existing: &Path, state: &Path) -> Finding {
    const NAME: &str = "state directory";
    let probe = existing.join(format!(".edgepoint-doctor-{}", std::process::id()));
    match fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)) {
        Ok(()) if existing == state => ok(NAME, state.display().to_string()),
        Ok(()) => ok(NAME, format!("{}, which will be made", state.display())),
        Err(error) => {
            let detail = format!("{} cannot be written to: {error}", existing.display());
            fail(NAME, detail, "name another one: [directories] state = \"...\"")
        }
    }
}

fn file_system(existing: &Path) -> Finding {
    const NAME: &str = "file system";
    let remedy = "put the state directory on ext4, xfs, btrfs or tmpfs (in a container: a volume)";
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let existing = fs::canonicalize(existing).unwrap_or_else(|_| existing.to_owned());
    let Some(kind) = mounted_as(&mounts, &existing) else {
        return warn(NAME, format!("that of {} is unknown", existing.display()), remedy);
    };
    let of_state = format!("of {} is {kind}", existing.display());
    if GOOD_SYSTEMS.contains(&kind) {
        ok(NAME, of_state)
    } else if BAD_SYSTEMS.contains(&kind) || kind.starts_with("fuse.") {
        fail(NAME, format!("{of_state}, which cannot hold layers"), remedy)
    } else {
        warn(NAME, format!("{of_state}, which nobody has tried"), remedy)
    }
}

/// The type of the file system that is mounted over `path`, by `/proc/self/mountinfo`.
fn mounted_as<'m>(mounts: &'m str, path: &Path) -> Option<&'m str> {
    let mut best: Option<(usize, &str)> = None;
    for line in mounts.lines() {
        let Some((head, tail)) = line.split_once(" - ") else {
            continue;
        };
        let (Some(point), Some(kind)) = (head.split(' ').nth(4), tail.split(' ').next()) else {
            continue;
        };
        let point = point.replace("\\040", " ");
        let depth = Path::new(&point).components().count();
        // Of two at one place, the later one lies above.
        if path.starts_with(&point) && best.is_none_or(|(deepest, _)| depth >= deepest) {
            best = Some((depth, kind));
        }
    }
    best.map(|(_, kind)| kind)
}

fn free(existing: &Path) -> Finding {
    const NAME: &str = "free space";
    let remedy = "make room: appshots take what the memory of their apps takes";
    let mut command = Command::new("/usr/bin/df");
    let text = output(command.arg("-Pk").arg(existing)).ok();
    match text.as_deref().and_then(available) {
        Some(free) if free >= LEAST_FREE => ok(NAME, free.to_string()),
        Some(free) => warn(NAME, format!("{free}, less than {LEAST_FREE}"), remedy),
        None => warn(NAME, "unknown", remedy),
    }
}

/// The fourth column of `df -Pk`.
fn available(text: &str) -> Option<Bytes> {
    let kib: u64 = text.lines().nth(1)?.split_ascii_whitespace().nth(3)?.parse().ok()?;
    Some(Bytes(kib.saturating_mul(1024)))
}

fn listen(config: &Config) -> Vec<Finding> {
    const NAME: &str = "listen";
    let ours = UnixStream::connect(config.directories.run.join(SOCKET)).is_ok();
    let addresses = config.listen.http.iter().chain(&config.listen.metrics);
    // Port 0 is a new port each time.
    let fixed = addresses.filter(|address| address.port() != 0);
    let check = |address: &SocketAddr| match TcpListener::bind(address) {
        Ok(_) => ok(NAME, format!("{address} is free")),
        Err(error) if ours && error.kind() == io::ErrorKind::AddrInUse => {
            ok(NAME, format!("{address} is in use, and an edgepoint runs here"))
        }
        Err(error) => {
            let remedy = "end the program that listens there, or choose another address";
            warn(NAME, format!("{address} cannot be listened on: {error}"), remedy)
        }
    };
    fixed.map(check).collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Status, defaults},
        *,
    };

    #[test]
    fn the_deepest_and_latest_mount_counts() {
        let mounts = "22 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n\
                      23 22 0:5 / /var/lib rw - xfs /dev/b rw\n\
                      24 22 0:6 / /var/li rw - vfat /dev/c rw\n\
                      25 22 0:7 / /a\\040b rw - nfs4 h:/ rw\n\
                      26 22 0:8 / /var/lib rw - tmpfs t rw\n";
        for (path, kind) in [
            ("/", "ext4"),
            ("/var", "ext4"),
            ("/var/lib/edgepoint", "tmpfs"),
            ("/var/library", "ext4"),
            ("/a b/c", "nfs4"),
        ] {
            assert_eq!(mounted_as(mounts, Path::new(path)), Some(kind), "{path}");
        }
        assert_eq!(mounted_as("", Path::new("/")), None);
    }

    #[test]
    fn free_space_is_the_fourth_column() {
        let text = "Filesystem 1024-blocks Used Available Capacity Mounted on\n\
                    /dev/vda 263000000 15000000 2097152 16% /\n";
        assert_eq!(available(text), Some(Bytes(2 << 30)));
        assert_eq!(available(""), None);
    }

    #[test]
    fn a_missing_criu_and_a_taken_address_are_found() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(criu(directory.path()).status, Status::Fail);
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = defaults();
        assert_eq!(listen(&config), []);
        config.listen.http = vec![taken.local_addr().unwrap()];
        config.directories.run = directory.path().into();
        assert_eq!(listen(&config)[0].status, Status::Warn);
    }

    #[test]
    fn a_state_directory_that_is_missing_is_judged_by_its_parent() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("a/b");
        let finding = writable(directory.path(), &state);
        assert!(finding.detail.ends_with("will be made"), "{}", finding.detail);
        assert!(fs::read_dir(directory.path()).unwrap().next().is_none());
    }
}
