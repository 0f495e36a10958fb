//! Appshots: the stored image of an instance at one moment — all its processes, memory, sockets
//! and its private file layer — and the manifest that says what it is and where it may be restored.
//!
//! `manifest` is the description, `store` the directory that holds images. Who takes and restores
//! them is the agent's part.

mod build_id;
mod manifest;
mod store;

pub use manifest::FORMAT;
pub use manifest::{Executable, FileEntry, Host, Kind, Manifest, Mismatch};
pub use store::{Error, Store, executables, sync_layer};
