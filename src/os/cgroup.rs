//! Control groups, version 2 and version 1 (and the hybrid of both) behind one face.
//!
//! Relies on the kernel's files only; knows nothing of instances. On the hybrid layout the
//! controllers are version 1 and the version 2 tree serves for `cgroup.kill`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::model::{Bytes, Limits, Pressure, ResourceUse};

const CPU_PERIOD_MICROS: u64 = 100_000;
const V1_CONTROLLERS: [&str; 4] = ["memory", "cpu", "cpuacct", "pids"];

/// Where control groups are mounted on this host, and a directory of ours in each tree.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    /// The version 2 tree, if there is one.
    unified: Option<PathBuf>,
    /// Controllers of version 1, in the order of [`V1_CONTROLLERS`]; empty on version 2.
    legacy: Vec<PathBuf>,
}

/// One control group: a directory in each tree.
#[derive(Debug)]
pub struct Group {
    unified: Option<PathBuf>,
    legacy: Vec<PathBuf>,
}

impl Hierarchy {
    /// Finds the trees and makes `name` in each. Fails where a controller is missing everywhere.
    pub fn open(name: &str) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mut unified = None;
        let mut legacy = [const { None }; 4];
        for line in mounts.lines() {
            let mut fields = line.split(' ');
            let (Some(_), Some(path), Some(kind), Some(options)) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            match kind {
                "cgroup2" if unified.is_none() => unified = Some(PathBuf::from(path)),
                "cgroup" => {
                    for (slot, controller) in legacy.iter_mut().zip(V1_CONTROLLERS) {
                        if slot.is_none() && options.split(',').any(|option| option == controller) {
                            *slot = Some(PathBuf::from(path));
                        }
                    }
                }
                _ => {}
            }
        }
        if let Some(root) = &unified {
            let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
            if ["memory", "cpu", "pids"]
                .iter()
                .all(|c| controllers.split_whitespace().any(|x| x == *c))
            {
                let group = root.join(name);
                enable(root)?;
                make(&group)?;
                enable(&group)?;
                return Ok(Self { unified: Some(group), legacy: Vec::new() });
            }
        }
        let mut groups = Vec::new();
        for (slot, controller) in legacy.into_iter().zip(V1_CONTROLLERS) {
            let root = slot.ok_or_else(|| {
                io::Error::other(format!("the {controller} controller is mounted nowhere"))
            })?;
            let group = root.join(name);
            make(&group)?;
            groups.push(group);
        }
        let unified = unified.map(|root| root.join(name));
        if let Some(group) = &unified {
            make(group)?;
        }
        Ok(Self { unified, legacy: groups })
    }

    /// Which version holds the controllers.
    pub fn version(&self) -> u8 {
        if self.legacy.is_empty() { 2 } else { 1 }
    }

    /// Makes a group, or opens the one that exists.
    pub fn group(&self, name: &str) -> io::Result<Group> {
        let group = self.existing(name);
        for directory in group.directories() {
            make(directory)?;
        }
        Ok(group)
    }

    /// A group that another process made.
    pub fn existing(&self, name: &str) -> Group {
        Group {
            unified: self.unified.as_ref().map(|path| path.join(name)),
            legacy: self.legacy.iter().map(|path| path.join(name)).collect(),
        }
    }

    /// Names of the groups in it.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let tree = self.legacy.first().or(self.unified.as_ref());
        let Some(tree) = tree else {
            return Ok(Vec::new());
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(tree)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }

    /// Removes our directory from each tree; groups in it that still hold processes keep it.
    pub fn remove(&self) {
        for directory in self.legacy.iter().chain(&self.unified) {
            let _ = fs::remove_dir(directory);
        }
    }
}

impl Group {
    fn directories(&self) -> impl Iterator<Item = &PathBuf> {
        self.legacy.iter().chain(&self.unified)
    }

    fn controller(&self, name: &str) -> Option<&Path> {
        if self.legacy.is_empty() {
            return self.unified.as_deref();
        }
        let index = V1_CONTROLLERS.iter().position(|controller| *controller == name)?;
        self.legacy.get(index).map(PathBuf::as_path)
    }

    fn is_v2(&self) -> bool {
        self.legacy.is_empty()
    }

    fn write(&self, controller: &str, file: &str, value: &str) -> io::Result<()> {
        let directory = self.controller(controller).ok_or(io::ErrorKind::NotFound)?;
        fs::write(directory.join(file), value)
    }

    fn read(&self, controller: &str, file: &str) -> io::Result<String> {
        let directory = self.controller(controller).ok_or(io::ErrorKind::NotFound)?;
        fs::read_to_string(directory.join(file))
    }

    /// Files to which a process writes "0" to join.
    pub fn joins(&self) -> Vec<PathBuf> {
        self.directories().map(|directory| directory.join("cgroup.procs")).collect()
    }

    /// Moves a process into the group.
    pub fn join(&self, pid: i32) -> io::Result<()> {
        self.joins().iter().try_for_each(|file| fs::write(file, pid.to_string()))
    }

    /// Sets what the processes in it may use together.
    pub fn limit(&self, limits: &Limits) -> io::Result<()> {
        let quota = u64::from(limits.cpu_millis) * CPU_PERIOD_MICROS / 1000;
        let quota = quota.max(1000);
        if self.is_v2() {
            self.write("memory", "memory.max", &limits.memory.0.to_string())?;
            self.write("cpu", "cpu.max", &format!("{quota} {CPU_PERIOD_MICROS}"))?;
        } else {
            self.write("memory", "memory.limit_in_bytes", &limits.memory.0.to_string())?;
            self.write("cpu", "cpu.cfs_period_us", &CPU_PERIOD_MICROS.to_string())?;
            self.write("cpu", "cpu.cfs_quota_us", &quota.to_string())?;
        }
        self.write("pids", "pids.max", &limits.pids.to_string())
    }

    /// Reads its counters. Memory is the working set: what is charged to it less file pages that
    /// the kernel would drop first.
    pub fn usage(&self) -> io::Result<ResourceUse> {
        let number = |text: String| text.trim().parse::<u64>().map_err(io::Error::other);
        let stat = self.read("memory", "memory.stat")?;
        let (cpu_micros, charged, key) = if self.is_v2() {
            let cpu = self.read("cpu", "cpu.stat")?;
            let charged = number(self.read("memory", "memory.current")?)?;
            (field(&cpu, "usage_usec"), charged, "inactive_file")
        } else {
            let nanos = number(self.read("cpuacct", "cpuacct.usage")?)?;
            let charged = number(self.read("memory", "memory.usage_in_bytes")?)?;
            (nanos / 1000, charged, "total_inactive_file")
        };
        Ok(ResourceUse {
            cpu_micros,
            memory: Bytes(charged.saturating_sub(field(&stat, key))),
            pids: number(self.read("pids", "pids.current")?)?,
            pressure: self.pressure(),
        })
    }

    /// Pressure stall information is version 2's; on a host with both it is there all the same.
    fn pressure(&self) -> Pressure {
        let total = |file: &str| {
            let text = self.unified.as_ref().and_then(|at| fs::read_to_string(at.join(file)).ok());
            text.as_deref().map_or(0, stalled)
        };
        Pressure {
            cpu_micros: total("cpu.pressure"),
            memory_micros: total("memory.pressure"),
            io_micros: total("io.pressure"),
        }
    }

    /// Host ids of the processes in it.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        let Some(directory) = self.directories().next() else {
            return Ok(Vec::new());
        };
        let text = fs::read_to_string(directory.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Kills everything in it and waits until it is empty, for `patience` at most.
    pub fn kill(&self, patience: Duration) -> io::Result<()> {
        use nix::sys::signal::{Signal, kill};
        const PAUSE: Duration = Duration::from_millis(1);
        let mut left = patience;
        loop {
            let killed = self
                .unified
                .as_ref()
                .is_some_and(|directory| fs::write(directory.join("cgroup.kill"), "1").is_ok());
            let processes = match self.processes() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            };
            if processes.is_empty() {
                return Ok(());
            }
            if !killed {
                for pid in processes {
                    let _ = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
            left = left.checked_sub(PAUSE).ok_or(io::ErrorKind::TimedOut)?;
            std::thread::sleep(PAUSE);
        }
    }

    /// Removes its directories. A process that is listed no more may still be on its way out: tries
    /// for a while.
    pub fn remove(&self) -> io::Result<()> {
        const TRIES: u32 = 5_000;
        for directory in self.directories() {
            let mut tries = 0;
            loop {
                match fs::remove_dir(directory) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(_) if tries < TRIES => {
                        tries += 1;
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

fn make(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Lets children of `directory` use the controllers.
fn enable(directory: &Path) -> io::Result<()> {
    fs::write(directory.join("cgroup.subtree_control"), "+memory +cpu +pids")
}

/// The `total` of the line `some`, as in `cpu.pressure`.
fn stalled(text: &str) -> u64 {
    text.lines()
        .find(|line| line.starts_with("some "))
        .and_then(|line| line.rsplit_once("total="))
        .and_then(|(_, total)| total.trim().parse().ok())
        .unwrap_or(0)
}

/// `key value` lines, as in `cpu.stat`.
fn field(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalled_time_is_the_total_of_some() {
        let text = "some avg10=8.23 avg60=6.99 avg300=4.88 total=2164774780\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!(stalled(text), 2_164_774_780);
        assert_eq!((stalled(""), stalled("some avg10=x")), (0, 0));
    }
}
