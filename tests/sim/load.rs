//! One run: apps are deployed; faults, commands and uneven load for a minute; then no more faults and
//! steady load, under which every app must serve; then everything is removed and nothing may be left.

use std::{sync::Arc, time::Duration};

use edgepoint::{
    manager::{Error, core::Event},
    model::{AppName, InstanceId, ReleaseId},
};

use crate::{
    apps,
    world::{Due, Faults, Log, World},
};

const TROUBLE: Duration = Duration::from_secs(60);
/// Longer than the longest pause after failures and the longest drain together.
const RECOVERY: Duration = Duration::from_secs(65);
const STEADY: Duration = Duration::from_secs(15);
const REMOVAL: Duration = Duration::from_secs(60);
const APPS: [&str; 2] = ["one", "two"];

/// Runs one seed from beginning to end; panics where a rule is broken.
pub fn run(seed: u64, faults: Faults, log: Log) {
    let mut world = World::new(seed, faults, log);
    let world = &mut world;
    for app in APPS {
        world.deploy_something(&apps::name(app));
        world.next_arrival(apps::name(app));
    }
    world.after(1000, Due::Second);
    world.run_until(world.base + TROUBLE);

    world.say(|| "--- no more faults".into());
    world.faults = Faults::default();
    let end = world.now + RECOVERY;
    // What was being deployed or removed comes to its end first.
    world.run_until(world.now + Duration::from_secs(35));
    for app in APPS.map(apps::name) {
        if world.core.entry(&app).is_none_or(|entry| !entry.deployed) {
            world.deploy_something(&app);
        }
    }
    world.run_until(end);
    world.say(|| "--- every app must serve".into());
    world.refused.clear();
    world.served.clear();
    world.run_until(world.now + STEADY);
    world.check_serving();

    world.say(|| "--- all apps are removed".into());
    for app in APPS.map(apps::name) {
        world.command(&app.clone(), |token| Event::Remove { app, token });
    }
    world.run_until(world.now + REMOVAL);
    world.check_empty();
}

impl World {
    fn check_serving(&self) {
        for app in APPS.map(apps::name) {
            let entry = self.core.entry(&app).expect("it is deployed");
            let served = self.served.get(&app).copied().unwrap_or(0);
            let mut refused = self.refused.iter().filter(|(_, of, _)| *of == app);
            if entry.lost.is_some() {
                assert_eq!(served, 0, "{app} serves although its state is lost");
                for (_, _, error) in refused {
                    assert_eq!(*error, Error::StateLost(app.clone()));
                }
                continue;
            }
            if let Some((at, _, error)) = refused.next() {
                panic!("{app} refused at {:?}: {error}", *at - self.base);
            }
            assert!(served >= STEADY.as_secs() - 5, "{app} served {served}");
            let running = entry.running();
            assert!(running >= entry.app.scale.min, "{running} of {app} run");
        }
    }

    fn is_calm(&self) -> bool {
        self.now >= self.base + TROUBLE
    }

    /// Uneven in the first part: bursts, single ones, long pauses. Then one a second.
    pub fn next_arrival(&mut self, app: AppName) {
        let rng = &mut self.rng;
        let millis = match rng.between(0, 99) {
            _ if self.now >= self.base + TROUBLE => 1000,
            0..40 => rng.between(0, 30),
            40..90 => rng.between(100, 2_000),
            _ => rng.between(3_000, 12_000),
        };
        self.after(millis, Due::Arrival { app });
    }

    /// Once a second: what goes wrong, and what people do.
    pub fn second(&mut self) {
        if self.is_calm() {
            return;
        }
        self.after(1000, Due::Second);
        let faults = self.faults;
        let living: Vec<InstanceId> = self.live.keys().copied().collect();
        for id in living {
            if self.rng.permille(faults.crashes) {
                self.crash(id);
            }
        }
        if self.agent_up && self.rng.permille(faults.agent_leaves) {
            self.agent_leaves();
        }
        if self.rng.permille(faults.manager_dies) {
            let power = self.rng.permille(500);
            self.manager_dies(power);
        }
        if self.booted && self.rng.permille(faults.commands) {
            let app = apps::name(self.rng.pick::<&str>(&APPS));
            if self.rng.permille(faults.changes) {
                match self.rng.between(0, 3) {
                    0 => drop(self.command(&app.clone(), |token| Event::Remove { app, token })),
                    _ => self.deploy_something(&app),
                }
            } else if self.rng.permille(500) {
                self.command(&app.clone(), |token| Event::Sleep { app, token });
            } else {
                let count = self.rng.between(1, 6) as u32;
                self.command(&app.clone(), |token| Event::Wake { app, count, token });
            }
        }
    }

    /// A new release, or one that served before.
    pub fn deploy_something(&mut self, app: &AppName) {
        let of_app = self.releases.iter().filter(|(_, a)| a.name == *app);
        let usable = |release: &&ReleaseId| !self.forgetting.contains(*release);
        let earlier: Vec<ReleaseId> = of_app.map(|(id, _)| id).filter(usable).cloned().collect();
        let (release, declared) = if !earlier.is_empty() && self.rng.permille(400) {
            let release = self.rng.pick(&earlier).clone();
            let declared = (*self.releases[&release]).clone();
            (release, Arc::new(declared))
        } else {
            let release = apps::release(&format!("{app}-{}", self.number()));
            let declared = Arc::new(apps::random(app.as_str(), &mut self.rng));
            self.releases.insert(release.clone(), declared.clone());
            (release, declared)
        };
        let refused = release.clone();
        let token = self.command(app, |token| Event::Deploy { app: declared, release, token });
        // Never taken up: nobody will forget it.
        if matches!(self.answers.get(&token), Some(Err(Error::Changing(_)))) {
            let used = self.core.entries().any(|(_, entry)| {
                let coming = entry.deploying.as_ref().map(|d| &d.release);
                entry.release == refused || coming == Some(&refused) || entry.old.contains(&refused)
            });
            if !used {
                self.releases.remove(&refused);
            }
        }
    }
}
