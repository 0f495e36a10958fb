//! The life of one instance, as the manager sees it.
//!
//! ```text
//!            start                    ready
//!   (cold) ────────▶ Starting ─────────────────▶ Running ◀─────────────┐
//!                       │  └ golden ▶ Parking      │  ▲               │
//!            restore    │                          │  │ called off    │ dump failed
//!   (parked) ──────▶ Restoring ── ready ──────────▶│  │               │
//!                       │                          ▼  │   drained     │
//!                       │                       Draining ──────────▶ Parking ──▶ (parked)
//!                       │ failed                   │ drained
//!                       ▼                          ▼
//!                    Stopping ◀────────────────────┘ ──▶ (ended)
//! ```
//! What is in parentheses is no instance but a state of its app. Pure; every arrow is a test.

use std::{sync::Arc, time::Instant};

use super::status::{ImageStatus, Phase};
use crate::{
    appshot::Kind,
    model::{App, ReleaseId},
};

/// What an instance is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Its processes start, or it is made ready after that.
    Starting,
    /// It is restored, or told so by its hook.
    Restoring,
    /// It serves.
    Running {
        /// When to look whether it is idle.
        idle_check: Option<Instant>,
    },
    /// It serves what it has and gets nothing new.
    Draining {
        /// What comes after.
        then: Then,
        /// A person asked for it: new requests do not call it off.
        ordered: bool,
        /// When to give it up.
        deadline: Instant,
    },
    /// Its appshot is taken.
    Parking {
        /// Which kind.
        kind: Kind,
    },
    /// It is ended.
    Stopping {
        /// It did not end: when to ask again.
        again: Option<Instant>,
    },
}

/// What comes after draining.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It is parked with its state.
    Park,
    /// It is ended.
    Stop,
}

/// How an instance came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Started from its release.
    Cold,
    /// Restored from this appshot.
    Image(Kind, ImageStatus),
    /// Found running by a manager that started.
    Found,
}

/// An instance.
#[derive(Debug, Clone)]
pub struct Instance {
    /// What it runs.
    pub release: ReleaseId,
    /// What that declares.
    pub app: Arc<App>,
    /// Its generation.
    pub generation: u64,
    /// What it is doing.
    pub state: State,
    /// How it came about.
    pub origin: Origin,
    /// It began without the state that it should have.
    pub lost_state: bool,
    /// Its processes run, or ran: the agent has said so.
    pub begun: bool,
    /// The agent has handed sockets into it over.
    pub reached: bool,
    /// When its present state began.
    pub since: Instant,
    /// When it began.
    pub born: Instant,
    /// It exists to make the golden appshot of a deployment.
    pub for_golden: bool,
}

impl State {
    /// The word for it.
    pub fn phase(&self) -> Phase {
        match self {
            Self::Starting => Phase::Starting,
            Self::Restoring => Phase::Restoring,
            Self::Running { .. } => Phase::Running,
            Self::Draining { .. } | Self::Stopping { .. } => Phase::Draining,
            Self::Parking { .. } => Phase::Parking,
        }
    }

    /// Whether the picture above has an arrow from here to there.
    pub fn may_become(&self, next: &Self) -> bool {
        matches!(
            (self, next),
            (Self::Starting | Self::Restoring, Self::Running { .. } | Self::Stopping { .. })
                | (Self::Starting, Self::Parking { kind: Kind::Golden })
                | (Self::Running { .. }, Self::Draining { .. } | Self::Running { .. })
                | (Self::Draining { .. }, Self::Running { .. } | Self::Draining { .. })
                | (Self::Draining { then: Then::Park, .. }, Self::Parking { kind: Kind::Parked })
                | (Self::Draining { then: Then::Stop, .. }, Self::Stopping { .. })
                | (Self::Parking { .. }, Self::Running { .. })
                | (Self::Stopping { .. }, Self::Stopping { .. })
        )
    }
}

impl Instance {
    /// One that is being made, or found, for requests.
    pub fn new(
        release: ReleaseId,
        app: Arc<App>,
        generation: u64,
        (state, origin): (State, Origin),
        now: Instant,
    ) -> Self {
        Self {
            release,
            app,
            generation,
            state,
            origin,
            lost_state: false,
            begun: false,
            reached: false,
            since: now,
            born: now,
            for_golden: false,
        }
    }

    /// Goes to another state.
    pub fn go(&mut self, next: State, now: Instant) {
        debug_assert!(self.state.may_become(&next), "{:?} -> {next:?}", self.state);
        if std::mem::discriminant(&self.state) != std::mem::discriminant(&next) {
            self.since = now;
        }
        self.state = next;
    }

    /// Whether it serves.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// Whether it is on its way to serving.
    pub fn is_coming(&self) -> bool {
        matches!(self.state, State::Starting | State::Restoring) && !self.for_golden
    }

    /// Whether it is on its way out.
    pub fn is_leaving(&self) -> bool {
        matches!(
            self.state,
            State::Draining { .. } | State::Parking { .. } | State::Stopping { .. }
        ) && !self.for_golden
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_arrows_of_the_picture_exist() {
        let now = crate::clock::now();
        let drain = |then| State::Draining { then, ordered: false, deadline: now };
        let states = [
            State::Starting,
            State::Restoring,
            State::Running { idle_check: None },
            drain(Then::Park),
            drain(Then::Stop),
            State::Parking { kind: Kind::Parked },
            State::Parking { kind: Kind::Golden },
            State::Stopping { again: None },
        ];
        // Rows: from; columns: to, in the order above.
        let arrows = [
            "..R...GS", // starting: ready, golden, failed
            "..R....S", // restoring: ready, failed
            "..RDD...", // running: idle look, drain
            "..RDDP..", // draining to park: called off, ordered, parked
            "..RDD..S", // draining to stop
            "..R.....", // dump failed
            "..R.....", // golden dump failed
            ".......S", // stopping: asked again; else it only ends
        ];
        for (from, row) in states.iter().zip(arrows) {
            for (to, arrow) in states.iter().zip(row.chars()) {
                assert_eq!(from.may_become(to), arrow != '.', "{from:?} -> {to:?}");
            }
        }
    }
}
