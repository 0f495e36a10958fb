//! Apps to simulate with: a plain one that tests change, and random ones within what `app.toml` allows.

use std::{collections::BTreeMap, time::Duration};

use edgepoint::model::{
    App, AppName, Bytes, Concurrency, Health, Limits, OnLostState, Process, ProviderName,
    ReleaseId, Scale, Sleep, Snapshot, State, Wake,
};

use crate::rng::Rng;

pub fn name(text: &str) -> AppName {
    AppName::new(text).unwrap()
}

pub fn release(text: &str) -> ReleaseId {
    ReleaseId::new(text).unwrap()
}

/// Keeps nothing, one instance of two requests, sleeps after five seconds.
pub fn plain(app: &str) -> App {
    App {
        name: name(app),
        provider: ProviderName::new("someone").unwrap(),
        processes: vec![Process { name: "main".into(), command: vec!["serve".into()] }],
        env: BTreeMap::new(),
        internal_port: 8080,
        health: Health {
            path: None,
            timeout: Duration::from_secs(1),
            grace_period: Duration::from_secs(10),
        },
        limits: Limits { memory: Bytes(1 << 26), cpu_millis: 1000, pids: 64 },
        scale: Scale { min: 0, max: 1 },
        concurrency: Concurrency { hard: 2 },
        wake: Wake { timeout: Duration::from_secs(10), max_pending: 3 },
        sleep: Sleep {
            park_after: Some(Duration::from_secs(5)),
            state: State::Discard,
            on_lost_state: OnLostState::Cold,
        },
        clonable: false,
        snapshot: Snapshot::default(),
    }
}

/// The same, but it keeps its state.
pub fn keeper(app: &str) -> App {
    let mut app = plain(app);
    app.sleep.state = State::Keep;
    app
}

/// Any app that the configuration would accept.
pub fn random(app: &str, rng: &mut Rng) -> App {
    let mut app = plain(app);
    app.clonable = rng.permille(500);
    app.concurrency.hard = rng.between(1, 4) as u32;
    app.wake.max_pending = rng.between(4, 20) as u32;
    app.wake.timeout = Duration::from_millis(rng.between(4_000, 12_000));
    app.sleep.park_after = Some(Duration::from_millis(rng.between(300, 5_000)));
    if rng.permille(500) {
        app.sleep.state = State::Keep;
        if rng.permille(400) {
            app.sleep.on_lost_state = OnLostState::Error;
        }
    } else {
        app.scale.max = rng.between(1, 5) as u32;
    }
    app.scale.min = u32::from(rng.permille(300));
    if app.scale.min == app.scale.max {
        app.sleep.park_after = None;
    }
    if rng.permille(300) {
        app.snapshot.after_restore = Some("/woken".into());
    }
    app
}
