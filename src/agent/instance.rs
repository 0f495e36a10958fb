//! Instances as the agent knows them: a sandbox, its first process, its layers, and the record on
//! disk by which an agent that was restarted finds them again.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::sandbox::Sandbox;
use crate::{
    model::{InstanceId, ReleaseId, ResourceUse},
    os::{process, tree},
};

const RECORD: &str = "record.json";

/// How the name of a layer begins that is to be removed.
const TRASH: &str = ".trash-";

/// What is written about an instance when it is made and once more when it runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its id.
    pub id: InstanceId,
    /// What it runs.
    pub release: ReleaseId,
    /// Its generation.
    pub generation: u64,
    /// Its file layers, top (its own) first.
    pub layers: Vec<String>,
    /// Its first process; `None` while it is being made.
    pub process: Option<Process>,
}

/// A process, told apart from later ones with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Host id.
    pub pid: i32,
    /// When it began, in ticks since boot.
    pub start_ticks: u64,
}

/// A running instance.
#[derive(Debug)]
pub struct Instance {
    /// Its record.
    pub record: Record,
    /// Where it runs.
    pub sandbox: Sandbox,
    /// Host id of its first process.
    pub pid: i32,
    /// The same, as a descriptor.
    pub pidfd: OwnedFd,
    /// One operation at a time.
    pub turn: Mutex<()>,
    /// Set by whoever takes it apart, so that its end is reported once.
    ending: AtomicBool,
}

impl Record {
    /// Writes it into the sandbox's directory, whole or not at all.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        let temporary = directory.join(".record.json");
        fs::write(&temporary, serde_json::to_vec(self)?)?;
        fs::rename(temporary, directory.join(RECORD))
    }

    /// Reads what [`Record::write`] wrote.
    pub fn read(directory: &Path) -> io::Result<Self> {
        Ok(serde_json::from_str(&fs::read_to_string(directory.join(RECORD))?)?)
    }
}

impl Instance {
    /// Takes a process that runs in `sandbox` under its care.
    pub fn adopt(mut record: Record, sandbox: Sandbox, pid: i32) -> io::Result<Self> {
        let pidfd = process::pidfd(pid)?;
        let start_ticks = process::start_ticks(pid)?;
        record.process = Some(Process { pid, start_ticks });
        record.write(&sandbox.directory)?;
        let (turn, ending) = (Mutex::new(()), AtomicBool::new(false));
        Ok(Self { record, sandbox, pid, pidfd, turn, ending })
    }

    /// Claims the end of the instance; true for the first caller only.
    pub fn claim_end(&self) -> bool {
        !self.ending.swap(true, Ordering::AcqRel)
    }

    /// Gives the claim back (a dump was called off).
    pub fn unclaim_end(&self) {
        self.ending.store(false, Ordering::Release);
    }

    /// Whether somebody claimed its end.
    pub fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Whether its first process has ended.
    pub fn has_ended(&self) -> bool {
        process::wait_for_end(&self.pidfd, 0).unwrap_or(true)
    }

    /// Asks it to end, then makes it.
    pub fn stop(&self, patience: Duration) -> io::Result<()> {
        use nix::sys::signal::Signal;
        process::signal(&self.pidfd, Signal::SIGTERM)?;
        let patience = u16::try_from(patience.as_millis()).unwrap_or(u16::MAX);
        if !process::wait_for_end(&self.pidfd, patience)? {
            // The first process of a pid namespace takes all others with it.
            process::signal(&self.pidfd, Signal::SIGKILL)?;
        }
        Ok(())
    }

    /// What it has used; the last known values once its group is gone.
    pub fn usage(&self) -> ResourceUse {
        self.sandbox.group.usage().unwrap_or_default()
    }

    /// The own layer's name.
    pub fn layer(&self) -> Option<&str> {
        self.record.layers.first().map(String::as_str)
    }
}

/// File layers below one directory: `NAME/upper` and `NAME/work`.
#[derive(Debug, Clone)]
pub struct Layers {
    root: PathBuf,
    /// Layers thrown away so far.
    thrown: Arc<AtomicU64>,
}

impl Layers {
    /// Opens or makes the directory.
    pub fn open(root: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&root)?;
        Ok(Self { root, thrown: Arc::default() })
    }

    /// Where a layer is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where a layer's files are.
    pub fn upper(&self, name: &str) -> PathBuf {
        self.root.join(name).join("upper")
    }

    /// Makes an empty layer, unless it exists.
    pub fn make(&self, name: &str) -> io::Result<PathBuf> {
        let layer = self.path(name);
        fs::create_dir_all(layer.join("upper"))?;
        fs::create_dir_all(layer.join("work"))?;
        Ok(layer)
    }

    /// Writes the generation number where the app can read it.
    pub fn write_generation(&self, name: &str, generation: u64) -> io::Result<()> {
        let directory = self.upper(name).join("run/edgepoint");
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("generation"), format!("{generation}\n"))
    }

    /// Throws every layer away that is not in `keep`: a new name for each, so that this is quick
    /// whatever the layer holds. Goes on after an error and returns the first.
    pub fn sweep(&self, keep: &HashSet<String>) -> io::Result<()> {
        let mut swept = Ok(());
        for entry in fs::read_dir(&self.root)? {
            let name = entry?.file_name();
            if !is_trash(&name) && !keep.contains(name.to_string_lossy().as_ref()) {
                swept = swept.and(self.throw_away(&self.root.join(name)));
            }
        }
        swept
    }

    fn throw_away(&self, layer: &Path) -> io::Result<()> {
        loop {
            let number = self.thrown.fetch_add(1, Ordering::Relaxed);
            let trash = self.root.join(format!("{TRASH}{number}"));
            match fs::rename(layer, &trash) {
                // The name of one that an earlier agent left.
                Err(_) if fs::symlink_metadata(&trash).is_ok() => {}
                other => return other,
            }
        }
    }

    /// Removes what was thrown away. Goes on after an error and returns the first.
    pub fn empty_trash(&self) -> io::Result<()> {
        let mut emptied = Ok(());
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            if is_trash(&entry.file_name()) {
                emptied = emptied.and(tree::remove(&entry.path()));
            }
        }
        emptied
    }
}

fn is_trash(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(TRASH.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(root: &Path) -> Vec<String> {
        let entries = fs::read_dir(root).unwrap().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn layers_that_nobody_needs_become_trash_and_the_trash_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("layers");
        // Left by an earlier agent, under the first name that this one would give.
        fs::create_dir_all(root.join(".trash-0/upper/x")).unwrap();
        let layers = Layers::open(root.clone()).unwrap();
        for name in ["1", "2", "3"] {
            layers.make(name).unwrap();
            layers.write_generation(name, 7).unwrap();
        }
        layers.sweep(&HashSet::from(["2".to_string()])).unwrap();
        assert_eq!(names(&root), [".trash-0", ".trash-1", ".trash-2", "2"]);
        layers.sweep(&HashSet::from(["2".to_string()])).unwrap();
        assert_eq!(names(&root).len(), 4, "trash is not thrown away twice");
        layers.clone().empty_trash().unwrap();
        assert_eq!(names(&root), ["2"]);
        assert!(layers.upper("2").join("run/edgepoint/generation").exists());
        layers.empty_trash().unwrap();
        layers.sweep(&HashSet::new()).unwrap();
        assert_eq!(names(&root), [".trash-3"]);
    }
}
