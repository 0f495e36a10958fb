//! CRIU over its RPC: protobuf messages (CRIU's `images/rpc.proto`, the fields that we set) over a
//! message socket to a `criu swrk` process, one request per worker.
//!
//! Relies on a worker that `sandbox` has started; knows nothing of instances. A worker that does not
//! answer in time is the caller's to kill, with all that it started.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use prost::Message;

use crate::os::seqpacket;

/// CRIU's own replies are small; its error message is the longest part.
const MAX_REPLY: usize = 64 << 10;

/// What can go wrong between us and CRIU.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed or the deadline passed.
    #[error("no answer from CRIU")]
    Talk(#[source] io::Error),
    /// The worker ended without an answer.
    #[error("CRIU ended without an answer")]
    Gone,
    /// The answer is no protobuf message.
    #[error("CRIU's answer is unreadable")]
    Decode(#[source] prost::DecodeError),
    /// CRIU says no.
    #[error("CRIU failed with {errno}: {message}")]
    Refused {
        /// Its errno.
        errno: i32,
        /// Its words.
        message: String,
    },
}

impl Error {
    /// Whether the deadline passed.
    pub fn is_deadline(&self) -> bool {
        matches!(self, Self::Talk(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct InheritFd {
    #[prost(string, required, tag = "1")]
    key: String,
    #[prost(int32, required, tag = "2")]
    fd: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Options {
    #[prost(int32, required, tag = "1")]
    images_dir_fd: i32,
    #[prost(int32, optional, tag = "2")]
    pid: Option<i32>,
    #[prost(bool, optional, tag = "8")]
    file_locks: Option<bool>,
    #[prost(int32, optional, tag = "9")]
    log_level: Option<i32>,
    #[prost(string, optional, tag = "10")]
    log_file: Option<String>,
    #[prost(bool, optional, tag = "12")]
    notify_scripts: Option<bool>,
    #[prost(string, optional, tag = "13")]
    root: Option<String>,
    #[prost(int32, optional, tag = "17")]
    work_dir_fd: Option<i32>,
    #[prost(bool, optional, tag = "26")]
    rst_sibling: Option<bool>,
    #[prost(message, repeated, tag = "27")]
    inherit_fd: Vec<InheritFd>,
    #[prost(int32, optional, tag = "34")]
    manage_cgroups_mode: Option<i32>,
    #[prost(uint32, optional, tag = "35")]
    ghost_limit: Option<u32>,
    #[prost(string, repeated, tag = "37")]
    external: Vec<String>,
    #[prost(bool, optional, tag = "52")]
    tcp_close: Option<bool>,
    #[prost(int32, optional, tag = "64")]
    network_lock: Option<i32>,
    #[prost(bool, optional, tag = "67")]
    unprivileged: Option<bool>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(message, optional, tag = "2")]
    opts: Option<Options>,
    #[prost(bool, optional, tag = "3")]
    notify_success: Option<bool>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RestoreReply {
    #[prost(int32, required, tag = "1")]
    pid: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Notify {
    #[prost(string, optional, tag = "1")]
    script: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Version {
    #[prost(int32, required, tag = "1")]
    major: i32,
    #[prost(int32, required, tag = "2")]
    minor: i32,
    #[prost(int32, optional, tag = "4")]
    sublevel: Option<i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Response {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(bool, required, tag = "2")]
    success: bool,
    #[prost(message, optional, tag = "4")]
    restore: Option<RestoreReply>,
    #[prost(message, optional, tag = "5")]
    notify: Option<Notify>,
    #[prost(int32, optional, tag = "7")]
    errno: Option<i32>,
    #[prost(string, optional, tag = "9")]
    message: Option<String>,
    #[prost(message, optional, tag = "10")]
    version: Option<Version>,
}

const DUMP: i32 = 1;
const RESTORE: i32 = 2;
const NOTIFY: i32 = 6;
const VERSION: i32 = 10;
const CGROUPS_IGNORE: i32 = 0;
const NETWORK_LOCK_SKIP: i32 = 3;
const LOG_ERRORS: i32 = 1;

/// Deleted files up to this size go into the image; larger ones make the dump fail, in words.
const GHOST_LIMIT: u32 = 64 << 20;

/// Names in an image for what the sandbox supplies.
const NETWORK_KEY: &str = "extnet";
const USR_KEY: &str = "usr";

/// What to dump.
pub struct Dump<'a> {
    /// Host id of the first process of the sandbox.
    pub pid: i32,
    /// Where the image goes.
    pub images: &'a OwnedFd,
    /// Inode of its network namespace.
    pub network_inode: u64,
    /// Keys of its standard output and error.
    pub stream_keys: [&'a str; 2],
}

/// What to restore. The worker holds the network namespace and the two streams at fixed numbers.
pub struct Restore<'a> {
    /// The image.
    pub images: &'a OwnedFd,
    /// Where CRIU's log goes.
    pub work: &'a OwnedFd,
    /// The mounted root, as the worker sees it.
    pub root: &'a str,
    /// Number of the network namespace in the worker.
    pub network_fd: i32,
    /// Keys of standard output and error with their numbers in the worker.
    pub streams: [(&'a str, i32); 2],
}

/// A worker's end of the line.
#[derive(Debug)]
pub struct Worker {
    socket: OwnedFd,
}

impl Worker {
    /// Talks over this socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Ends the conversation; CRIU gives up what it does and ends.
    pub fn hang_up(&self) {
        seqpacket::hang_up(&self.socket);
    }

    /// Dumps. `commit` is called when the image is complete and the processes still stand frozen;
    /// only if it agrees does CRIU end them, else they run on.
    pub fn dump(
        &self,
        job: &Dump<'_>,
        deadline: Duration,
        mut commit: impl FnMut() -> bool,
    ) -> Result<(), Error> {
        let [stdout, stderr] = job.stream_keys;
        let options = Options {
            images_dir_fd: job.images.as_raw_fd(),
            pid: Some(job.pid),
            file_locks: Some(true),
            log_level: Some(LOG_ERRORS),
            log_file: Some("dump.log".into()),
            notify_scripts: Some(true),
            manage_cgroups_mode: Some(CGROUPS_IGNORE),
            ghost_limit: Some(GHOST_LIMIT),
            external: vec![
                format!("net[{}]:{NETWORK_KEY}", job.network_inode),
                format!("mnt[/usr]:{USR_KEY}"),
                stdout.into(),
                stderr.into(),
            ],
            tcp_close: Some(true),
            network_lock: Some(NETWORK_LOCK_SKIP),
            unprivileged: Some(true),
            ..Options::default()
        };
        seqpacket::set_receive_timeout(&self.socket, deadline).map_err(Error::Talk)?;
        self.send(&Request { kind: DUMP, opts: Some(options), notify_success: None })?;
        loop {
            let reply = self.receive()?;
            if reply.kind != NOTIFY {
                return check(reply).map(drop);
            }
            let script = reply.notify.and_then(|notify| notify.script).unwrap_or_default();
            let agreed = script != "post-dump" || commit();
            self.send(&Request { kind: NOTIFY, opts: None, notify_success: Some(agreed) })?;
        }
    }

    /// Restores and returns the host id of the first process, which runs from then on.
    pub fn restore(&self, job: &Restore<'_>, deadline: Duration) -> Result<i32, Error> {
        let mut inherit_fd = vec![InheritFd { key: NETWORK_KEY.into(), fd: job.network_fd }];
        for (key, fd) in job.streams {
            inherit_fd.push(InheritFd { key: key.into(), fd });
        }
        let options = Options {
            images_dir_fd: job.images.as_raw_fd(),
            work_dir_fd: Some(job.work.as_raw_fd()),
            log_level: Some(LOG_ERRORS),
            log_file: Some("restore.log".into()),
            file_locks: Some(true),
            root: Some(job.root.into()),
            rst_sibling: Some(true),
            inherit_fd,
            manage_cgroups_mode: Some(CGROUPS_IGNORE),
            external: vec![format!("mnt[{USR_KEY}]:/usr")],
            tcp_close: Some(true),
            ..Options::default()
        };
        seqpacket::set_receive_timeout(&self.socket, deadline).map_err(Error::Talk)?;
        self.send(&Request { kind: RESTORE, opts: Some(options), notify_success: None })?;
        let reply = check(self.receive()?)?;
        reply.restore.map(|restore| restore.pid).ok_or(Error::Gone)
    }

    /// The version as `major.minor.sublevel`.
    pub fn version(&self, deadline: Duration) -> Result<String, Error> {
        seqpacket::set_receive_timeout(&self.socket, deadline).map_err(Error::Talk)?;
        self.send(&Request { kind: VERSION, opts: None, notify_success: None })?;
        let version = check(self.receive()?)?.version.ok_or(Error::Gone)?;
        let sublevel = version.sublevel.unwrap_or(0);
        Ok(format!("{}.{}.{sublevel}", version.major, version.minor))
    }

    fn send(&self, request: &Request) -> Result<(), Error> {
        seqpacket::send(self.socket.as_fd(), &request.encode_to_vec(), &[]).map_err(Error::Talk)
    }

    fn receive(&self) -> Result<Response, Error> {
        let message = seqpacket::recv(self.socket.as_fd(), MAX_REPLY).map_err(Error::Talk)?;
        if message.bytes.is_empty() {
            return Err(Error::Gone);
        }
        Response::decode(message.bytes.as_slice()).map_err(Error::Decode)
    }
}

fn check(reply: Response) -> Result<Response, Error> {
    if reply.success {
        return Ok(reply);
    }
    // Without CAP_SYS_RESOURCE each log begins with a harmless line about a limit.
    let message = reply.message.unwrap_or_default();
    let telling: Vec<&str> =
        message.lines().map(str::trim).filter(|line| !line.contains("RLIMIT_NOFILE")).collect();
    let message = if telling.is_empty() { "it gave no reason".into() } else { telling.join("; ") };
    Err(Error::Refused { errno: reply.errno.unwrap_or(0), message })
}
