//! The resource manager: owns every instance of the edgepoint.
//!
//! `core` decides (pure: events and time in, effects out), `task` is the one owner that carries the
//! effects out, [`Handle`] is how the others reach it. A request for a running instance never gets
//! here: it takes a [`Lease`] from the published [`Directions`] with one atomic.

mod boot;
pub mod core;
mod endpoint;
pub mod entry;
mod error;
mod handle;
pub mod instance;
mod lease;
mod status;
mod task;
pub mod waiting_room;

pub use self::{
    endpoint::{Endpoint, Registration},
    error::{Blame, Error},
    handle::{COMMAND_PATIENCE, Config, Errands, Handle, Preparation, start},
    lease::{AppDirections, Directions, Lease, Running, Wake},
    status::{AppStatus, Deployed, ImageStatus, InstanceStatus, LogPart, Phase, Slept, Woken},
};
