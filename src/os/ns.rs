//! Namespaces. A thread that enters one is made for that purpose and ends afterwards, so that no
//! other code ever runs in the wrong place.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    thread,
};

use nix::{
    libc,
    sched::{CloneFlags, setns, unshare},
    sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt},
};

/// Runs `work` on a thread of its own that may change its namespaces.
fn aside<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("namespace thread panicked")))
    })
}

/// Makes a network namespace: loopback up, any port may be bound by any user in it.
pub fn new_network() -> io::Result<OwnedFd> {
    aside(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        raise_loopback()?;
        std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")?;
        Ok(File::open("/proc/thread-self/ns/net")?.into())
    })
}

/// Makes `count` unconnected, non-blocking TCP sockets inside a network namespace.
pub fn sockets_in(network: impl AsFd + Sync, count: usize) -> io::Result<Vec<OwnedFd>> {
    in_network(network, || {
        (0..count)
            .map(|_| {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
                setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
                Ok(fd)
            })
            .collect()
    })
}

/// Runs `work` inside a network namespace.
pub fn in_network<T: Send>(
    network: impl AsFd + Sync,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    aside(|| {
        setns(network.as_fd(), CloneFlags::CLONE_NEWNET)?;
        work()
    })
}

/// Runs `work` with the file tree of another mount namespace in view.
pub fn in_mounts<T: Send>(
    mounts: impl AsFd + Sync,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    aside(|| {
        // A thread that shares its root and working directory may not change mount namespace.
        unshare(CloneFlags::CLONE_FS)?;
        setns(mounts.as_fd(), CloneFlags::CLONE_NEWNS)?;
        work()
    })
}

/// Enters the network namespace with the whole calling thread, for good.
pub fn enter_network(network: impl AsFd) -> io::Result<()> {
    Ok(setns(network, CloneFlags::CLONE_NEWNET)?)
}

/// Gives the calling process a mount namespace whose changes are not seen outside.
pub fn private_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    super::mount::make_private("/")
}

/// The next child of the calling process becomes the first of new pid, ipc and uts namespaces
/// (ipc and uts change at once).
pub fn private_processes() -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)?)
}

/// Sets IFF_UP on `lo` of the current network namespace.
fn raise_loopback() -> io::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    // SAFETY: an all-zero ifreq is a valid value of this plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *slot = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).unwrap_or(1);
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which lives until the call returns.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
