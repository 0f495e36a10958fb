//! perfd: what the host is and what instances leave behind on it. Counters of instances are read
//! from their control groups when a client asks (`Sample`); logs are kept within bounds here.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::fd::OwnedFd,
    path::Path,
    thread,
    time::Duration,
};

use sha2::{Digest, Sha256};

use super::server::Agent;
use crate::model::AppName;

/// A log file is cut when it is longer than this; what remains is one old half beside it.
const LOG_MAX_BYTES: u64 = 8 << 20;
/// How often log files are looked at.
const LOG_INTERVAL: Duration = Duration::from_secs(5);
/// Files of ended instances kept per app (two per instance).
const LOG_FILES_KEPT: usize = 20;

/// The kernel's release.
pub fn kernel() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().into())
}

/// The CPU's model and a digest of its feature flags: state saved with one set of vector registers
/// cannot be restored with another.
pub fn cpu() -> io::Result<String> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_string()).unwrap_or_default()
    };
    let mut flags: Vec<String> = field("flags").split(' ').map(str::to_string).collect();
    flags.sort();
    let digest = Sha256::digest(flags.join(" "));
    let short: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{} ({short})", field("model name")))
}

/// Keeps the logs of living instances within bounds, for ever.
pub fn rotate_logs(agent: &Agent) {
    loop {
        thread::sleep(LOG_INTERVAL);
        let instances: Vec<_> = agent.table().instances.values().cloned().collect();
        for instance in instances {
            for name in ["stdout", "stderr"] {
                if let Err(error) = rotate(&instance.sandbox.directory.join(name), LOG_MAX_BYTES) {
                    eprintln!("edgepoint-agent: cannot rotate a log: {error}");
                }
            }
        }
    }
}

/// Copies the end of a file that has grown past `max` to `FILE.old` and empties it. Writers append,
/// so they go on at its new end; what they write in between is lost, which a log may.
fn rotate(path: &Path, max: u64) -> io::Result<()> {
    let mut file = File::options().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    if length <= max {
        return Ok(());
    }
    file.seek(SeekFrom::Start(length - max / 2))?;
    let mut copy = File::create(path.with_extension("old"))?;
    io::copy(&mut (&file).take(max / 2), &mut copy)?;
    copy.flush()?;
    file.set_len(0)
}

/// Removes the oldest logs of ended instances.
pub fn forget_old_logs(logs: &Path) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(logs)? {
        let entry = entry?;
        files.push((entry.metadata()?.modified()?, entry.path()));
    }
    files.sort();
    let surplus = files.len().saturating_sub(LOG_FILES_KEPT);
    files.iter().take(surplus).try_for_each(|(_, path)| fs::remove_file(path))
}

/// Names and files of an app's logs: living instances first, newest first.
pub fn logs(agent: &Agent, app: &AppName) -> io::Result<(Vec<String>, Vec<OwnedFd>)> {
    let mut found = Vec::new();
    let living: Vec<_> = agent.table().instances.values().rev().cloned().collect();
    for instance in living {
        let Ok(release) = agent.release(&instance.record.release) else {
            continue;
        };
        if release.app.name == *app {
            for stream in ["stdout", "stderr"] {
                let path = instance.sandbox.directory.join(stream);
                found.push((format!("{}.{stream}", instance.record.id), path));
            }
        }
    }
    let mut ended = Vec::new();
    match fs::read_dir(agent.logs_of(app)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        entries => {
            for entry in entries? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                ended.push((entry.metadata()?.modified()?, name, entry.path()));
            }
        }
    }
    ended.sort();
    found.extend(ended.into_iter().rev().map(|(_, name, path)| (name, path)));
    found.truncate(LOG_FILES_KEPT);
    let mut names = Vec::new();
    let mut files = Vec::new();
    for (name, path) in found {
        // An instance may have ended meanwhile.
        if let Ok(file) = File::open(path) {
            names.push(name);
            files.push(file.into());
        }
    }
    Ok((names, files))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_cut_to_its_newest_half_and_writers_go_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut writer = File::options().append(true).create(true).open(&path).unwrap();
        let old = directory.path().join("log.old");
        writer.write_all(b"0123456789").unwrap();
        rotate(&path, 10).unwrap();
        assert!(!old.exists());
        writer.write_all(b"ab").unwrap();
        rotate(&path, 10).unwrap();
        assert_eq!(fs::read(&old).unwrap(), b"789ab");
        writer.write_all(b"next").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"next");
    }
}
