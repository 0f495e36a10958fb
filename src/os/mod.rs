//! Safe faces of the kernel: descriptors over sockets, spawning, namespaces, mounts, control
//! groups, capabilities, trees of files. The only home of `unsafe`; each use says why it is sound.
//!
//! Nothing here knows what an app or an instance is.

#![allow(unsafe_code)]

pub mod caps;
pub mod cgroup;
pub mod mount;
pub mod net;
pub mod ns;
pub mod process;
pub mod seqpacket;
pub mod tree;
