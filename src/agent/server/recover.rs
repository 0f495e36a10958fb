//! Finding everything again after the agent was started anew: instances that run on, appshots,
//! releases; and clearing away what belongs to none of them.

use std::{collections::HashSet, fs, io, path::Path, sync::Arc, time::Duration};

use super::{
    super::{
        instance::{Instance, Record},
        protocol::{Failure, FailureKind},
        sandbox::Sandbox,
    },
    Agent, Manifest, process,
};
use crate::appshot::Kind;

impl Agent {
    /// Reads the directories; adopts what runs; an image whose instance lives on is void.
    pub(super) fn recover(&self) -> io::Result<()> {
        let mut adopted = HashSet::new();
        {
            let mut table = self.table();
            for release in self.releases.list()? {
                table.releases.insert(release.id.clone(), Arc::new(release));
            }
            let (manifests, broken) = self.store.list().map_err(io::Error::other)?;
            for error in broken {
                eprintln!("edgepoint-agent: {}", Failure::new(FailureKind::Unusable, &error));
            }
            for manifest in manifests {
                table.appshots.insert(manifest.id.clone(), Arc::new(manifest));
            }
        }
        for entry in fs::read_dir(&self.maker.directory)? {
            let directory = entry?.path();
            if let Some(instance) = self.find_again(&directory) {
                adopted.insert(instance.record.id);
                self.enter(instance)?;
            }
        }
        let void: Vec<_> = {
            let table = self.table();
            let in_use = |layer: &String| {
                table.instances.values().any(|instance| instance.record.layers.contains(layer))
            };
            // Its own instance lives on, or one that was restored from it and has its files.
            let lives = |manifest: &&Arc<Manifest>| {
                let parked = manifest.kind == Kind::Parked;
                adopted.contains(&manifest.instance)
                    || parked && manifest.layers.first().is_some_and(in_use)
            };
            table.appshots.values().filter(lives).map(|manifest| manifest.id.clone()).collect()
        };
        for id in void {
            self.store.remove(&id).map_err(io::Error::other)?;
            self.table().appshots.remove(&id);
        }
        // Groups and directories without a living instance.
        let living: HashSet<String> =
            self.table().instances.values().map(|i| i.sandbox.name.clone()).collect();
        for name in self.maker.hierarchy.names()? {
            if !living.contains(&name) {
                let group = self.maker.hierarchy.existing(&name);
                group.kill(Duration::from_secs(5))?;
                group.remove()?;
            }
        }
        for entry in fs::read_dir(&self.maker.directory)? {
            let entry = entry?;
            if !living.contains(entry.file_name().to_string_lossy().as_ref()) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        self.sweep_layers();
        Ok(())
    }

    /// The instance that a sandbox directory describes, if it still runs.
    fn find_again(&self, directory: &Path) -> Option<Instance> {
        let record = Record::read(directory).ok()?;
        let process = record.process?;
        if process::start_ticks(process.pid).ok()? != process.start_ticks {
            return None;
        }
        let name = directory.file_name()?.to_string_lossy().into_owned();
        let open = |file: &str| fs::File::options().append(true).open(directory.join(file));
        let sandbox = Sandbox {
            group: self.maker.hierarchy.existing(&name),
            network: fs::File::open(format!("/proc/{}/ns/net", process.pid)).ok()?.into(),
            streams: [open("stdout").ok()?, open("stderr").ok()?],
            directory: directory.into(),
            name,
        };
        Instance::adopt(record, sandbox, process.pid).ok()
    }
}
