//! What a host holds before and after an edgepoint.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::PathBuf};

/// What the host holds that an edgepoint could leave behind.
#[derive(Debug, PartialEq, Eq)]
pub struct Host {
    pub edgepoint_processes: Vec<String>,
    pub network_namespaces: usize,
    pub control_groups: Vec<PathBuf>,
    pub mounts: usize,
    pub temporary_files: Vec<PathBuf>,
}

impl Host {
    pub fn now() -> Self {
        let mut processes = Vec::new();
        let mut namespaces = BTreeMap::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            if let Ok(meta) = fs::metadata(format!("/proc/{pid}/ns/net")) {
                namespaces.insert(meta.ino(), pid);
            }
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let ours = ["edgepoint-agent", "edgepoint/init", "criu swrk", "edgepoint run"];
            if ours.iter().any(|part| line.contains(part)) {
                processes.push(line);
            }
        }
        let mut control_groups = Vec::new();
        let mut open = vec![PathBuf::from("/sys/fs/cgroup")];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    if entry.file_name().to_string_lossy().starts_with("edgepoint-") {
                        control_groups.push(entry.path());
                    } else {
                        open.push(entry.path());
                    }
                }
            }
        }
        let temporary = |directory: &str| -> Vec<PathBuf> {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            let paths = entries.map(|entry| entry.path());
            paths.filter(|path| path.to_string_lossy().contains("criu")).collect()
        };
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap().lines().count();
        Self {
            edgepoint_processes: processes,
            network_namespaces: namespaces.len(),
            control_groups,
            mounts,
            temporary_files: [temporary("/tmp"), temporary("/run")].concat(),
        }
    }
}
