//! What an instance has used since it began: counters, never levels that need their history.

use serde::{Deserialize, Serialize};

use super::Bytes;

/// A reading of the counters of one instance. `cpu_micros` only grows; `memory` is the level at
/// the moment of the reading (anonymous and file pages charged to its control group).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ResourceUse {
    /// CPU time of all its processes, in microseconds, since this instance began.
    pub cpu_micros: u64,
    /// Memory held now.
    pub memory: Bytes,
    /// Processes and threads now.
    pub pids: u64,
    /// How long it had to wait for the host.
    pub pressure: Pressure,
}

/// Time in microseconds, since this instance began, in which at least one of its processes stood
/// still for want of something: the kernel's pressure stall information (`some`). Zero where the
/// kernel does not keep it per control group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pressure {
    /// Waiting for a processor.
    pub cpu_micros: u64,
    /// Waiting for memory: reclaim, swap, pages that were dropped too early.
    pub memory_micros: u64,
    /// Waiting for a disk.
    pub io_micros: u64,
}
