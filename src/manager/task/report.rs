//! What the owner task tells: status, logs, events, usage for the meter.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

use super::{
    AppName, AppStatus, Duration, Entry, Error, ImageStatus, InstanceId, InstanceStatus, LogPart,
    Note, Origin, OwnedFd, Reply, ResourceUse, SHORT, Task, Verb, clock, error, failed, info,
    meter, oneshot, telemetry, warn,
};
use crate::manager::task::Outcome;

impl Task {
    pub(super) fn status(&self) -> Vec<AppStatus> {
        self.core.entries().map(|(name, entry)| self.status_of(name, entry)).collect()
    }

    fn status_of(&self, name: &AppName, entry: &Entry) -> AppStatus {
        let instances = entry.instances.iter().map(|(id, instance)| {
            let usage = self.usage.get(id).copied().unwrap_or_default();
            InstanceStatus {
                id: *id,
                release: instance.release.clone(),
                state: instance.state.phase(),
                generation: instance.generation,
                in_flight: self.running.get(id).map_or(0, |running| running.slots.in_flight()),
                memory: usage.memory,
                cpu_micros: usage.cpu_micros,
                pressure: usage.pressure,
            }
        });
        let millis = |time: Option<Duration>| {
            time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
        };
        let troubles = [&entry.lost, &entry.last_failure, &entry.park_error];
        AppStatus {
            app: name.clone(),
            provider: entry.app.provider.clone(),
            release: entry.release.clone(),
            state: entry.phase(),
            detail: troubles.into_iter().flatten().next().cloned(),
            instances: instances.collect(),
            golden: entry.golden_image().cloned(),
            golden_error: entry.golden_error(),
            parked: entry.parked.clone(),
            waiting: u32::try_from(entry.waiting.len()).unwrap_or(u32::MAX),
            generation: entry.generation,
            wakes: entry.wakes,
            cold_start_ms: millis(entry.cold_start),
            restore_ms: millis(entry.restore_time),
            park_ms: millis(entry.park_time),
        }
    }

    pub(super) fn logs(
        &self,
        app: AppName,
        max_bytes: u64,
        reply: oneshot::Sender<Result<Vec<LogPart>, Error>>,
    ) {
        let Some(agent) = self.agent.clone() else {
            let _ = reply.send(Err(Error::Unavailable("the agent is away".into())));
            return;
        };
        // One whose only deployment failed is not known, and yet it may have written something.
        let known = self.core.entry(&app).is_some();
        tokio::spawn(async move {
            let asked = agent.ask(Verb::Logs { app: app.clone() }, &[], SHORT).await;
            let parts = match asked {
                Ok((Reply::Logs { names }, _)) if names.is_empty() && !known => {
                    Err(Error::UnknownApp(app))
                }
                Ok((Reply::Logs { names }, files)) => {
                    let read = move || tails(names, files, max_bytes);
                    let read = tokio::task::spawn_blocking(read).await;
                    read.map_err(io::Error::other)
                        .and_then(|parts| parts)
                        .map_err(|error| Error::Unavailable(error.to_string()))
                }
                Ok(_) => Err(Error::Unavailable("an odd answer".into())),
                Err(error) => Err(Error::Unavailable(telemetry::chain(&error))),
            };
            let _ = reply.send(parts);
        });
    }

    /// Asks for what instances use.
    pub(super) fn sample(&mut self) {
        self.meter_images();
        let Some(agent) = self.agent.clone() else {
            return;
        };
        let outcome = self.outcome.clone();
        tokio::spawn(async move {
            match agent.samples(SHORT).await {
                Ok(samples) => drop(outcome.send(Outcome::Sampled { samples }).await),
                Err(error) => warn!(error = ?failed(error), "cannot sample"),
            }
        });
    }

    pub(super) fn sampled(&mut self, samples: Vec<(InstanceId, ResourceUse)>) {
        let now = micros();
        for (id, usage) in samples {
            if self.core.instance(id).is_some() {
                self.usage.insert(id, usage);
                self.read(id, now, &usage);
            }
        }
        self.send_windows();
    }

    /// One reading of an instance. What one that was found running has used until then is on the
    /// record of the manager that ran it.
    fn read(&mut self, id: InstanceId, now: u64, usage: &ResourceUse) {
        let Some(owner) = self.owner(id) else { return };
        let found = self.core.instance(id).is_some_and(|(_, i)| i.origin == Origin::Found);
        let metered = match found {
            true => self.windows.sample_found(id, &owner, now, usage),
            false => self.windows.sample(id, &owner, now, usage),
        };
        if let Err(error) = metered {
            warn!(%error, "usage is not metered");
        }
    }

    /// The last reading of an instance that ended.
    pub(super) fn final_sample(&mut self, id: InstanceId, usage: &ResourceUse) {
        if self.core.instance(id).is_none() {
            return;
        }
        let now = micros();
        if usage.cpu_micros > 0 {
            self.read(id, now, usage);
        }
        self.windows.ended(id, now);
        self.send_windows();
    }

    fn owner(&self, id: InstanceId) -> Option<meter::Owner> {
        let (app, instance) = self.core.instance(id)?;
        Some(meter::Owner { provider: instance.app.provider.clone(), app: app.clone() })
    }

    /// Images that are held count from the moment they are seen until they are seen no more.
    fn meter_images(&mut self) {
        let now = micros();
        let mut held = std::collections::HashMap::new();
        for (name, entry) in self.core.entries() {
            let owner = meter::Owner { provider: entry.app.provider.clone(), app: name.clone() };
            for image in entry.golden_image().into_iter().chain(&entry.parked) {
                if let Some(key) = image_key(image) {
                    held.insert(key, (owner.clone(), image.bytes));
                }
            }
        }
        let gone: Vec<InstanceId> =
            self.images.keys().filter(|id| !held.contains_key(id)).copied().collect();
        for id in gone {
            self.windows.ended(id, now);
        }
        for (id, (owner, bytes)) in &held {
            if let Err(error) = self.windows.image(*id, owner, now, *bytes) {
                warn!(%error, "an image is not metered");
            }
        }
        self.images = held;
        self.send_windows();
    }

    /// Sends what has changed to the ledger. Records replace earlier ones, so sending twice is safe.
    fn send_windows(&mut self) {
        self.outbox.send(&mut self.windows, micros());
    }

    /// Sends the rest; when this returns, nothing is under way to the ledger.
    pub(super) async fn send_last_windows(&mut self) {
        self.outbox.close(&mut self.windows, micros()).await;
    }

    pub(super) fn note(&mut self, note: Note) {
        match note {
            Note::Woken { app, instance, restored, took } => {
                if let Some(owner) = self.owner(instance) {
                    let _ = self.windows.woke(instance, &owner, micros());
                    self.send_windows();
                }
                telemetry::woke(&app, restored, took);
                let wake_ms = telemetry::millis(took);
                info!(%app, %instance, restored, wake_ms, "instance woken");
            }
            Note::WakeFailed { app, reason } => {
                telemetry::wake_failed(&app);
                warn!(%app, reason, "wake failed");
            }
            Note::Parked { app, instance, took } => {
                self.meter_images();
                info!(%app, %instance, park_ms = telemetry::millis(took), "instance parked");
            }
            Note::ParkFailed { app, instance, reason } => {
                telemetry::park_failed(&app);
                warn!(%app, %instance, reason, "instance not parked; it runs on");
            }
            Note::StateLost { app, reason } => {
                telemetry::state_lost(&app);
                error!(%app, reason, "kept state is lost");
            }
            Note::Crashed { app, instance } => {
                telemetry::crashed(&app);
                warn!(%app, %instance, "instance ended by itself; see its logs");
            }
        }
    }
}

/// The number under which an image is metered: a parked one goes on under its instance's, a golden
/// one has that of its release.
fn image_key(image: &ImageStatus) -> Option<InstanceId> {
    let (kind, number) = image.id.as_str().split_once('-')?;
    let number = u64::from_str_radix(number, 16).ok()?;
    // One bit less: the ledger keeps signed numbers.
    Some(InstanceId::new(if kind == "golden" { number >> 1 } else { number }))
}

fn micros() -> u64 {
    u64::try_from(clock::wall().as_micros()).unwrap_or(u64::MAX)
}

/// The ends of files.
fn tails(names: Vec<String>, files: Vec<OwnedFd>, max_bytes: u64) -> io::Result<Vec<LogPart>> {
    let mut parts = Vec::new();
    for (name, file) in names.into_iter().zip(files) {
        let mut file = File::from(file);
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(max_bytes)))?;
        let mut bytes = Vec::new();
        file.take(max_bytes).read_to_end(&mut bytes)?;
        parts.push(LogPart { name, text: String::from_utf8_lossy(&bytes).into_owned() });
    }
    Ok(parts)
}
