//! The verbs, one after the other: what each asks of the parts, and its answer.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, PoisonError},
    time::Duration,
};

use super::{
    super::{
        instance::Instance,
        perfd,
        protocol::{
            Answer, Failure, FailureKind, LiveInstance, PAGE, Request, SOCKET_BATCH, StoredAppshot,
            StoredRelease, VERSION, Verb,
        },
        restored, snapd,
    },
    Agent, Conversation, failure, internal, unknown,
};
use crate::{
    model::{AppName, AppshotId, InstanceId, ReleaseId},
    os::{ns, process, tree},
};

impl Agent {
    pub(super) fn answer(
        self: &Arc<Self>,
        request: Request,
        fds: Vec<OwnedFd>,
        conversation: &Arc<Conversation>,
        uid: u32,
    ) -> Result<(Answer, Vec<OwnedFd>), Failure> {
        if request.version != VERSION {
            let text = format!("protocol {} was asked, this is {VERSION}", request.version);
            return Err(failure(FailureKind::Forbidden, text));
        }
        let plain = |answer| Ok((answer, Vec::new()));
        match request.verb {
            Verb::Hello { events } => {
                if events {
                    self.manage(conversation)?;
                }
                plain(Answer::Hello {
                    agent: env!("CARGO_PKG_VERSION").into(),
                    criu: self.host.criu.clone(),
                    cgroup: self.maker.hierarchy.version(),
                })
            }
            Verb::Register { app } => {
                if uid != 0 {
                    return Err(failure(FailureKind::Forbidden, "only root may register"));
                }
                let directory = fds.into_iter().next().ok_or_else(|| {
                    failure(FailureKind::Forbidden, "no directory came with the request")
                })?;
                let release = self.releases.register(*app, &directory.into()).map_err(internal)?;
                let id = release.id.clone();
                self.table().releases.insert(id.clone(), Arc::new(release));
                plain(Answer::Registered { release: id })
            }
            Verb::Forget { release } => self.forget(&release).and_then(plain),
            Verb::Describe { release } => {
                let app = Box::new(self.release(&release)?.app.clone());
                plain(Answer::Described { app })
            }
            Verb::Instances { after } => {
                let page = self.page(after, |instance| LiveInstance {
                    id: instance.record.id,
                    release: instance.record.release.clone(),
                    generation: instance.record.generation,
                });
                plain(Answer::Instances { page })
            }
            Verb::Releases { after } => {
                let later: Vec<ReleaseId> = {
                    let table = self.table();
                    let later = table.releases.keys().filter(|id| Some(*id) > after.as_ref());
                    later.take(PAGE).cloned().collect()
                };
                let page = later.into_iter().map(|id| {
                    let age_s = self.releases.age(&id).as_secs();
                    StoredRelease { id, age_s }
                });
                plain(Answer::Releases { page: page.collect() })
            }
            Verb::Appshots { after } => {
                let table = self.table();
                let later = table.appshots.values().filter(|m| Some(&m.id) > after.as_ref());
                let page = later.take(PAGE).map(|manifest| StoredAppshot {
                    id: manifest.id.clone(),
                    kind: manifest.kind,
                    release: manifest.release.clone(),
                    bytes: manifest.bytes(),
                    generation: manifest.generation,
                });
                plain(Answer::Appshots { page: page.collect() })
            }
            Verb::Start { instance, release, generation } => {
                restored::start(self, instance, &release, generation)
                    .map(|sockets| (Answer::Ready, sockets))
            }
            Verb::Restore { instance, appshot, generation } => {
                restored::restore(self, instance, &appshot, generation)
                    .map(|sockets| (Answer::Ready, sockets))
            }
            Verb::Park { instance, appshot, kind } => {
                let (bytes, usage) = snapd::park(self, instance, appshot, kind)?;
                plain(Answer::Parked { bytes, usage })
            }
            Verb::Stop { instance, patience_ms } => {
                let instance = self.instance(instance)?;
                let _turn = instance.turn.lock().unwrap_or_else(PoisonError::into_inner);
                if !instance.claim_end() {
                    return Err(unknown("instance", instance.record.id));
                }
                let patience = Duration::from_millis(patience_ms.into());
                let stopped = instance.stop(patience);
                let ended = stopped.and_then(|()| process::wait_for_end(&instance.pidfd, 5_000));
                if !ended.as_ref().is_ok_and(|ended| *ended) {
                    instance.unclaim_end();
                    return Err(failure(FailureKind::Internal, "its processes do not end"));
                }
                plain(Answer::Stopped { usage: self.bury(&instance) })
            }
            Verb::Sockets { instance, count } => {
                let instance = self.instance(instance)?;
                let count = count.min(SOCKET_BATCH).into();
                let sockets = ns::sockets_in(&instance.sandbox.network, count).map_err(internal)?;
                Ok((Answer::Ready, sockets))
            }
            Verb::Sample { after } => {
                let page = self.page(after, |instance| (instance.record.id, instance.usage()));
                plain(Answer::Samples { page })
            }
            Verb::Discard { appshot } => {
                self.store
                    .remove(&appshot)
                    .map_err(|error| Failure::new(FailureKind::Internal, &error))?;
                self.table().appshots.remove(&appshot);
                self.sweep_layers();
                plain(Answer::Ok)
            }
            Verb::Logs { app } => {
                let (names, files) = perfd::logs(self, &app).map_err(internal)?;
                Ok((Answer::Logs { names }, files))
            }
        }
    }

    fn page<T>(&self, after: Option<InstanceId>, make: impl Fn(&Instance) -> T) -> Vec<T> {
        let later: Vec<Arc<Instance>> = {
            let table = self.table();
            let later = table.instances.values().filter(|i| Some(i.record.id) > after);
            later.take(PAGE).cloned().collect()
        };
        later.iter().map(|instance| make(instance)).collect()
    }

    fn forget(&self, release: &ReleaseId) -> Result<Answer, Failure> {
        let (gone, is_last, appshots) = {
            let mut table = self.table();
            if table.instances.values().any(|i| i.record.release == *release) {
                return Err(failure(FailureKind::Busy, "instances of the release still run"));
            }
            let gone = table.releases.remove(release);
            let is_of = |app: &AppName| table.releases.values().any(|r| r.app.name == *app);
            let is_last = gone.as_ref().is_some_and(|gone| !is_of(&gone.app.name));
            let of_it = table.appshots.values().filter(|m| m.release == *release);
            let appshots: Vec<AppshotId> = of_it.map(|manifest| manifest.id.clone()).collect();
            (gone, is_last, appshots)
        };
        if let Some(gone) = gone.filter(|_| is_last) {
            // Whoever deploys an app of this name later may be somebody else.
            if let Err(error) = tree::remove(&self.logs_of(&gone.app.name)) {
                self.table().releases.insert(gone.id.clone(), gone);
                return Err(internal(error));
            }
        }
        for id in appshots {
            self.store.remove(&id).map_err(|error| Failure::new(FailureKind::Internal, &error))?;
            self.table().appshots.remove(&id);
        }
        self.releases.remove(release).map_err(internal)?;
        self.sweep_layers();
        Ok(Answer::Ok)
    }
}
