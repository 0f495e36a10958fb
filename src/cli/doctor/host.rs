//! What the kernel and the system must offer: rights, calls, namespaces, control groups, overlayfs,
//! a merged /usr, open files.
//!
//! Namespaces are made on threads that end at once; the control group that is made is removed.

use std::{fs, io, path::Path, thread};

use super::{Finding, fail, ok, untried, warn};
use crate::{
    model::{Bytes, Limits},
    os::{
        cgroup::{Group, Hierarchy},
        ns, process,
    },
};

/// `close_range`, the youngest call that is needed at all.
const OLDEST_KERNEL: (u32, u32) = (5, 9);
/// Instances, their sockets and the connections of clients.
const LEAST_OPEN_FILES: u64 = 4_096;
/// No process has a descriptor there: setting a flag from here on does nothing.
const UNUSED_DESCRIPTOR: i32 = i32::MAX - 1;

/// Whether this process may do everything.
pub fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_uid(&status) == Some(0)
}

/// The second number of the line `Uid:`.
fn effective_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// All checks of the host.
pub fn check(root: bool) -> Vec<Finding> {
    let mut findings = vec![
        if root {
            ok("root", "yes")
        } else {
            fail("root", "no: an edgepoint makes namespaces and mounts", "run it as root")
        },
        kernel(),
    ];
    if root {
        findings.push(namespaces());
        findings.extend(cgroups());
    } else {
        findings.extend(["namespaces", "cgroup"].map(untried));
    }
    findings.extend([overlay(), merged_usr(Path::new("/")), open_files()]);
    findings
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut missing = Vec::new();
    if version(release).is_none_or(|version| version < OLDEST_KERNEL) {
        missing.push("5.9");
    }
    if process::pidfd(std::process::id().cast_signed()).is_err() {
        missing.push("pidfd_open");
    }
    if process::close_on_exec_from(UNUSED_DESCRIPTOR).is_err() {
        missing.push("close_range");
    }
    for (file, what) in [
        ("/proc/self/ns/time", "time namespaces"),
        ("/proc/sys/kernel/ns_last_pid", "checkpoint and restore"),
    ] {
        if !Path::new(file).exists() {
            missing.push(what);
        }
    }
    if missing.is_empty() {
        return ok("kernel", release);
    }
    let remedy = "boot Linux 5.11 or newer with CONFIG_TIME_NS and CONFIG_CHECKPOINT_RESTORE";
    fail("kernel", format!("{release} lacks {}", missing.join(", ")), remedy)
}

/// `6.18.44-x` → (6, 18), `Version: 4.2` → (4, 2).
pub fn version(text: &str) -> Option<(u32, u32)> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let mut parts = text.get(start..)?.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn namespaces() -> Finding {
    let inside = || {
        ns::private_mounts()?;
        ns::private_processes()
    };
    let tried = ns::new_network().map(drop).and_then(|()| {
        let joined = thread::spawn(inside).join();
        joined.unwrap_or_else(|_| Err(io::Error::other("the thread that tried has ended")))
    });
    match tried {
        Ok(()) => ok("namespaces", "mnt, pid, ipc, uts and net can be made"),
        Err(error) => {
            let remedy = "run outside of a container, or give it all capabilities (--privileged)";
            fail("namespaces", format!("cannot be made: {error}"), remedy)
        }
    }
}

fn cgroups() -> Vec<Finding> {
    const NAME: &str = "cgroup";
    let own = format!("edgepoint-doctor-{}", std::process::id());
    let hierarchy = match Hierarchy::open(&own) {
        Ok(hierarchy) => hierarchy,
        Err(error) => {
            let remedy = "mount cgroup2 at /sys/fs/cgroup, writable, with memory, cpu and pids \
                          (a container needs its own writable tree)";
            return vec![fail(NAME, format!("cannot be used: {error}"), remedy)];
        }
    };
    let tried = try_group(&hierarchy);
    let _ = hierarchy.existing("probe").remove();
    hierarchy.remove();
    let version = hierarchy.version();
    match tried {
        Err(error) => {
            let remedy = "enable the controllers memory, cpu and pids, and let root write to them";
            vec![fail(NAME, format!("v{version}: a group cannot be limited: {error}"), remedy)]
        }
        Ok(has_kill) => {
            let mut findings = vec![ok(NAME, format!("v{version}: memory, cpu and pids"))];
            if !has_kill {
                let detail = "not there: ending an instance is slower";
                findings.push(warn("cgroup.kill", detail, "boot Linux 5.14 or newer"));
            }
            findings
        }
    }
}

/// Makes a group and limits it. Says whether the kernel can end it at once.
fn try_group(hierarchy: &Hierarchy) -> io::Result<bool> {
    let group: Group = hierarchy.group("probe")?;
    group.limit(&Limits { memory: Bytes(16 << 20), cpu_millis: 100, pids: 8 })?;
    group.usage()?;
    Ok(group.joins().iter().any(|procs| procs.with_file_name("cgroup.kill").exists()))
}

fn overlay() -> Finding {
    let systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if systems.lines().any(|line| line.trim() == "nodev\toverlay") {
        ok("overlayfs", "known to the kernel")
    } else {
        fail("overlayfs", "unknown to the kernel", "modprobe overlay")
    }
}

/// Releases find the host's programs and libraries in /usr alone.
fn merged_usr(root: &Path) -> Finding {
    let apart: Vec<_> = ["bin", "lib", "lib64"]
        .into_iter()
        .filter(|name| {
            // Some architectures have no lib64.
            fs::symlink_metadata(root.join(name)).is_ok_and(|meta| !meta.is_symlink())
        })
        .map(|name| format!("/{name}"))
        .collect();
    if apart.is_empty() {
        ok("/usr", "/bin, /lib and /lib64 are links into it")
    } else {
        let detail = format!("{} is a directory of its own", apart.join(", "));
        fail("/usr", detail, "merge /usr (Debian: install usrmerge)")
    }
}

fn open_files() -> Finding {
    const NAME: &str = "open files";
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    match soft_limit(&limits) {
        Some(limit) if limit >= LEAST_OPEN_FILES => {
            let text = if limit == u64::MAX { "unlimited".into() } else { limit.to_string() };
            ok(NAME, format!("{text} at most"))
        }
        limit => {
            let detail = match limit {
                Some(limit) => format!("{limit} at most, {LEAST_OPEN_FILES} are needed"),
                None => "their limit cannot be read".into(),
            };
            fail(NAME, detail, "ulimit -n 65536, or LimitNOFILE=65536 in the service's unit")
        }
    }
}

fn soft_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Status, *};

    #[test]
    fn versions_are_read_from_what_programs_print() {
        for (text, expected) in [
            ("6.18.44-fc-v595", Some((6, 18))),
            ("5.9", Some((5, 9))),
            ("Version: 4.2.1\nGitID: v4.2\n", Some((4, 2))),
            ("4", None),
            ("", None),
            ("99999999999.1", None),
        ] {
            assert_eq!(version(text), expected, "{text:?}");
        }
    }

    #[test]
    fn proc_files_are_read() {
        assert_eq!(effective_uid("Name:\tx\nUid:\t1000\t0\t0\t0\n"), Some(0));
        assert_eq!(effective_uid("Uid:\t0\t1000\t0\t0\n"), Some(1000));
        assert_eq!(effective_uid(""), None);
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files  1024  4096  files\n";
        assert_eq!(soft_limit(limits), Some(1024));
        assert_eq!(soft_limit("Max open files  unlimited unlimited files"), Some(u64::MAX));
        assert_eq!(soft_limit(""), None);
    }

    #[test]
    fn a_directory_beside_usr_is_found() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("usr/bin", root.path().join("bin")).unwrap();
        std::os::unix::fs::symlink("usr/lib", root.path().join("lib")).unwrap();
        assert_eq!(merged_usr(root.path()).status, Status::Ok);
        fs::create_dir(root.path().join("lib64")).unwrap();
        let finding = merged_usr(root.path());
        assert_eq!(finding.status, Status::Fail);
        assert!(finding.detail.starts_with("/lib64 is"), "{}", finding.detail);
    }
}
