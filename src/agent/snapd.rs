//! snapd: takes the appshot of an instance and ends it.
//!
//! CRIU freezes the processes, writes the image and then asks (post-dump notification). In that
//! moment processes and file layer stand still together; there the image is made durable, described
//! and named. Only after that does CRIU end the processes. A commit that fails leaves the app
//! running, and so does the death of this agent at any moment before.

use std::{fs::File, os::fd::OwnedFd, sync::PoisonError};

use super::{
    criu::Dump,
    protocol::{Failure, FailureKind},
    sandbox::CriuProcess,
    server::{Agent, failure, internal, unknown},
};
use crate::{
    appshot::{self, FORMAT, Kind, Manifest},
    clock,
    model::{AppshotId, Bytes, InstanceId, ResourceUse},
    os::{process, tree},
};

/// How long the processes may take to vanish after the commit.
const END_PATIENCE_MS: u16 = 10_000;

/// How long to look whether the processes end after a commit whose end was not heard.
const LAST_LOOK_MS: u16 = 1_000;

/// Takes the appshot `id` of an instance; returns its size and what the instance had used.
pub fn park(
    agent: &Agent,
    instance: InstanceId,
    id: AppshotId,
    kind: Kind,
) -> Result<(Bytes, ResourceUse), Failure> {
    let instance = agent.instance(instance)?;
    let _turn = instance.turn.lock().unwrap_or_else(PoisonError::into_inner);
    let expected = match kind {
        Kind::Golden => AppshotId::golden(&instance.record.release),
        Kind::Parked => AppshotId::parked(instance.record.id),
    };
    if id != expected {
        return Err(failure(
            FailureKind::Forbidden,
            format!("its appshot is {expected}, not {id}"),
        ));
    }
    // From here its end is ours to report; given back if the dump fails.
    if !instance.claim_end() {
        return Err(unknown("instance", instance.record.id));
    }
    let taken = take(agent, &instance, &id, kind);
    let manifest = match taken {
        Ok(manifest) => manifest,
        Err(failure) => {
            agent.store.abandon(&id);
            instance.unclaim_end();
            if instance.has_ended() && instance.claim_end() {
                agent.report_end(&instance);
            }
            return Err(failure);
        }
    };
    let bytes = manifest.bytes();
    {
        let mut table = agent.table();
        table.verified.insert(id.clone());
        table.appshots.insert(id, manifest.into());
    }
    process::wait_for_end(&instance.pidfd, END_PATIENCE_MS).map_err(internal)?;
    Ok((bytes, agent.bury(&instance)))
}

fn take(
    agent: &Agent,
    instance: &super::instance::Instance,
    id: &AppshotId,
    kind: Kind,
) -> Result<Manifest, Failure> {
    let not_taken = |error: &dyn std::error::Error| Failure::new(FailureKind::NotTaken, error);
    let release = agent.release(&instance.record.release)?;
    let directory = agent.store.begin(id, release.uid).map_err(|error| not_taken(&error))?;
    let images: OwnedFd = File::open(&directory).map_err(|error| not_taken(&error))?.into();
    let keys = instance.sandbox.stream_keys().map_err(|error| not_taken(&error))?;
    let [stdout_key, stderr_key] = &keys;
    let executables: Vec<_> = instance
        .sandbox
        .group
        .processes()
        .map_err(|error| not_taken(&error))?
        .into_iter()
        .filter_map(|pid| appshot::executables(pid).ok())
        .flatten()
        .fold(Vec::new(), |mut all, executable| {
            if !all.contains(&executable) {
                all.push(executable);
            }
            all
        });
    // What the app has written goes to disk while it still runs: the commit, for which it stands
    // still, has to sync only what came since.
    let layer = agent.layers.upper(instance.layer().unwrap_or_default());
    let synced = File::open(layer).and_then(|layer| tree::sync_file_system(&layer));
    synced.map_err(|error| not_taken(&error))?;
    let worker: CriuProcess = agent.maker.dumper(release.uid).map_err(internal)?;
    let job = Dump {
        pid: instance.pid,
        images: &images,
        network_inode: instance.sandbox.network_inode().map_err(internal)?,
        stream_keys: [stdout_key, stderr_key],
    };
    let mut committed: Option<Result<Manifest, Failure>> = None;
    let dumped = worker.line.dump(&job, agent.config.dump_timeout, || {
        let result = commit(agent, instance, id, kind, &keys, &executables);
        let agreed = result.is_ok();
        committed = Some(result);
        agreed
    });
    if let Err(error) = worker.dismiss() {
        eprintln!("edgepoint-agent: instance {}: {error}", instance.record.id);
    }
    match (dumped, committed) {
        (Ok(()), Some(Ok(manifest))) => Ok(manifest),
        // The commit said no: its reason is the one that matters.
        (_, Some(Err(failure))) => Err(failure),
        (Ok(()), None) => Err(failure(FailureKind::NotTaken, "CRIU ended the dump unasked")),
        (Err(error), committed) => {
            let log = std::fs::read_to_string(directory.join("dump.log")).unwrap_or_default();
            if let Some(Ok(manifest)) = committed {
                if process::wait_for_end(&instance.pidfd, LAST_LOOK_MS).unwrap_or(false) {
                    // Done, only the last word was lost.
                    return Ok(manifest);
                }
                // Named, but its processes were not ended: the instance is the truth.
                let _ = agent.store.remove(id);
            }
            let mut failure = Failure::new(FailureKind::NotTaken, &error);
            let telling = |line: &&str| line.contains("Error") && !failure.message.contains(*line);
            if let Some(line) = log.lines().find(telling) {
                failure.message.push_str(": ");
                failure.message.push_str(line);
            }
            Err(failure)
        }
    }
}

/// Called while everything stands still.
fn commit(
    agent: &Agent,
    instance: &super::instance::Instance,
    id: &AppshotId,
    kind: Kind,
    [stdout_key, stderr_key]: &[String; 2],
    executables: &[appshot::Executable],
) -> Result<Manifest, Failure> {
    let not_taken = |error: &dyn std::error::Error| Failure::new(FailureKind::NotTaken, error);
    let release = agent.release(&instance.record.release)?;
    let layer = instance.layer().unwrap_or_default();
    let layer_bytes =
        appshot::sync_layer(&agent.layers.upper(layer)).map_err(|error| not_taken(&error))?;
    let created_ms = u64::try_from(clock::wall().as_millis()).unwrap_or(u64::MAX);
    let describe = |files| Manifest {
        format: FORMAT,
        id: id.clone(),
        kind,
        app: release.app.name.clone(),
        release: release.id.clone(),
        instance: instance.record.id,
        generation: instance.record.generation,
        created_ms,
        host: agent.host.clone(),
        layers: instance.record.layers.clone(),
        layer_bytes: Bytes(layer_bytes),
        stdout_key: stdout_key.clone(),
        stderr_key: stderr_key.clone(),
        executables: executables.to_vec(),
        files,
    };
    agent.store.commit(id, describe).map_err(|error| not_taken(&error))
}
