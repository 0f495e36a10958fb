//! Slots and leases: how many requests an instance serves, in one atomic.
//!
//! A lease is one slot of one instance and gives it back when dropped. An instance that is to sleep
//! is closed first: from then on no lease begins, and when the last one ends it is drained. Closing
//! and counting are the same atomic, so nothing slips between them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::endpoint::Endpoint;
use crate::{
    clock,
    model::{App, InstanceId},
};

const CLOSED: u32 = 1 << 31;

/// The slots of one instance.
#[derive(Debug)]
pub struct Slots {
    /// The closed bit and the number of leases.
    word: AtomicU32,
    hard: u32,
    /// When the last lease ended, in milliseconds since `born`.
    idle_since_ms: AtomicU64,
    born: Instant,
}

impl Slots {
    /// All free; idle from now on.
    pub fn new(hard: u32) -> Self {
        Self {
            word: AtomicU32::new(0),
            hard: hard.min(CLOSED - 1),
            idle_since_ms: AtomicU64::new(0),
            born: clock::now(),
        }
    }

    fn try_take(&self) -> bool {
        let take = |word: u32| (word & CLOSED == 0 && word < self.hard).then_some(word + 1);
        self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok()
    }

    /// Lets no lease begin any more; returns how many there are.
    pub fn close(&self) -> u32 {
        self.word.fetch_or(CLOSED, Ordering::AcqRel) & !CLOSED
    }

    /// Takes a close back.
    pub fn reopen(&self) {
        self.word.fetch_and(!CLOSED, Ordering::AcqRel);
    }

    /// Leases now.
    pub fn in_flight(&self) -> u32 {
        self.word.load(Ordering::Acquire) & !CLOSED
    }

    /// Since when it has no lease; `None` if it has one.
    pub fn idle_since(&self) -> Option<Instant> {
        let since = Duration::from_millis(self.idle_since_ms.load(Ordering::Acquire));
        (self.in_flight() == 0).then(|| self.born + since)
    }
}

/// What becomes known when a lease ends, shared by all instances of an app.
#[derive(Debug, Default)]
pub struct Bell {
    /// Somebody waits for a slot.
    pub wanted: AtomicBool,
    /// Wakes the manager.
    notify: Arc<Notify>,
    /// A slot was given back while wanted, or a closed instance has drained.
    rung: AtomicBool,
}

impl Bell {
    /// A bell that wakes `notify`.
    pub fn new(notify: Arc<Notify>) -> Self {
        Self { wanted: AtomicBool::new(false), notify, rung: AtomicBool::new(false) }
    }

    /// Whether it was rung since the last call.
    pub fn take(&self) -> bool {
        self.rung.swap(false, Ordering::AcqRel)
    }

    fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        self.notify.notify_one();
    }
}

/// A running instance as the dispatcher sees it.
#[derive(Debug)]
pub struct Running {
    /// Its id: one restore, one id.
    pub id: InstanceId,
    /// What it runs.
    pub app: Arc<App>,
    /// Its generation.
    pub generation: u64,
    /// It began without the state that its app asked to keep.
    pub lost_state: bool,
    /// It was restored, not started.
    pub restored: bool,
    /// When requests were let in first.
    pub opened: Instant,
    /// How to reach it.
    pub endpoint: Endpoint,
    /// Its slots.
    pub slots: Slots,
    /// Rung when a lease ends.
    pub bell: Arc<Bell>,
}

impl Running {
    /// A lease, if it is open and has a free slot.
    pub fn lease(self: &Arc<Self>, wake: Wake) -> Option<Lease> {
        self.slots.try_take().then(|| Lease { instance: self.clone(), wake })
    }
}

/// How a request came to its instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// It ran.
    None,
    /// It ran, but every slot was taken for a while.
    Waited,
    /// It was restored meanwhile.
    Restored,
    /// It was started cold meanwhile.
    Started,
}

/// One slot of one instance.
#[derive(Debug)]
pub struct Lease {
    /// Whose.
    pub instance: Arc<Running>,
    /// How it was come by.
    pub wake: Wake,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let slots = &self.instance.slots;
        let idle = u64::try_from(slots.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        slots.idle_since_ms.store(idle, Ordering::Release);
        let before = slots.word.fetch_sub(1, Ordering::AcqRel);
        let drained = before == CLOSED + 1;
        if drained || self.instance.bell.wanted.load(Ordering::SeqCst) {
            self.instance.bell.ring();
        }
    }
}

/// What the dispatcher reads: every app with its running instances.
#[derive(Debug, Default)]
pub struct Directions {
    /// By name.
    pub apps: std::collections::HashMap<crate::model::AppName, AppDirections>,
    /// The agent was reached once: an app that is not here does not exist.
    pub complete: bool,
}

/// One app's part of the directions.
#[derive(Debug, Clone)]
pub struct AppDirections {
    /// What it declares.
    pub app: Arc<App>,
    /// Its running instances.
    pub running: Vec<Arc<Running>>,
    /// Rung when a lease of any of them ends.
    pub bell: Arc<Bell>,
}

impl AppDirections {
    /// Requests wait: a newcomer must not overtake them.
    pub fn is_crowded(&self) -> bool {
        self.bell.wanted.load(Ordering::SeqCst)
    }

    /// A lease on the running instance with the fewest requests.
    pub fn lease(&self, wake: Wake) -> Option<Lease> {
        let mut running: Vec<_> = self.running.iter().collect();
        if running.len() > 1 {
            running.sort_by_key(|instance| instance.slots.in_flight());
        }
        running.into_iter().find_map(|instance| instance.lease(wake))
    }
}
