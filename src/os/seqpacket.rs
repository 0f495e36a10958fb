//! Message sockets (`SOCK_SEQPACKET` over unix): one send is one message, with descriptors beside
//! it (`SCM_RIGHTS`). Every descriptor that arrives is close-on-exec and owned.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
    time::Duration,
};

use nix::sys::{
    socket::{
        AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
        UnixAddr, accept4, bind, connect, getsockopt, listen, recvmsg, sendmsg, setsockopt, socket,
        socketpair, sockopt,
    },
    time::TimeVal,
};

/// The most descriptors that one message carries (the kernel's own limit is 253).
pub const MAX_FDS: usize = 128;

/// A message as it arrived.
#[derive(Debug)]
pub struct Message {
    /// Its bytes; empty when the peer has closed.
    pub bytes: Vec<u8>,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// Sends one message. `WouldBlock` when the socket is non-blocking and full.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let iov = [IoSlice::new(bytes)];
    let fd = socket.as_fd().as_raw_fd();
    sendmsg::<UnixAddr>(fd, &iov, control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one message of at most `max` bytes; a longer one is an error, never cut silently.
pub fn recv(socket: impl AsFd, max: usize) -> io::Result<Message> {
    let mut bytes = vec![0; max];
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let (len, fds, cut) = {
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let fd = socket.as_fd().as_raw_fd();
        let message =
            recvmsg::<UnixAddr>(fd, &mut iov, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just made these descriptors for this process, and this is
                // the only place that takes them over.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let cut = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
        (message.bytes, fds, cut)
    };
    if cut {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too long"));
    }
    bytes.truncate(len);
    Ok(Message { bytes, fds })
}

/// A connected pair, both close-on-exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Listens at `path` (an old socket there is replaced) with file mode `mode`.
pub fn listen_at(path: &Path, mode: u32, group: Option<u32>) -> io::Result<OwnedFd> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    std::os::unix::fs::chown(path, None, group)?;
    listen(&fd, Backlog::new(64)?)?;
    Ok(fd)
}

/// Waits for the next connection.
pub fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    let fd = accept4(listener.as_fd().as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4 has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Connects to the socket at `path`.
pub fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

/// The user id of the process at the other end, as the kernel knows it.
pub fn peer_uid(socket: impl AsFd) -> io::Result<u32> {
    Ok(getsockopt(&socket.as_fd(), sockopt::PeerCredentials)?.uid())
}

/// A receive on this socket fails with `WouldBlock` after `timeout` (zero: never).
pub fn set_receive_timeout(socket: impl AsFd, timeout: Duration) -> io::Result<()> {
    let micros = timeout.subsec_micros().into();
    let value = TimeVal::new(timeout.as_secs().try_into().unwrap_or(i64::MAX), micros);
    Ok(setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &value)?)
}

/// Both ends read the end from now on.
pub fn hang_up(socket: impl AsFd) {
    shut_down(socket.as_fd().as_raw_fd());
}

/// Ends a connected socket in both directions. The caller knows that the number is open.
pub fn shut_down(socket: RawFd) {
    use nix::sys::socket::{Shutdown, shutdown};
    // One that has ended already needs nothing.
    let _ = shutdown(socket, Shutdown::Both);
}

/// Sends and receives return `WouldBlock` instead of waiting.
fn set_nonblocking(socket: impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(socket.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Makes the socket non-blocking and hands it to the tokio runtime that the caller runs in.
pub fn register(socket: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    set_nonblocking(&socket)?;
    // SAFETY: an OwnedFd keeps its descriptor open and the same until it is dropped, and it is
    // dropped together with its registration.
    Ok(unsafe { tokio::io::unix::AsyncFd::register(socket) }?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_message_carries_descriptors_and_keeps_its_borders() {
        let (a, b) = pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(&a, b"one", &[writer.as_fd()]).unwrap();
        send(&a, b"two", &[]).unwrap();
        drop(writer);
        let first = recv(&b, 64).unwrap();
        assert_eq!(first.bytes, b"one");
        assert_eq!(recv(&b, 64).unwrap().bytes, b"two");
        let mut writer = std::fs::File::from(first.fds.into_iter().next().unwrap());
        writer.write_all(b"x").unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn a_message_that_is_too_long_is_an_error() {
        let (a, b) = pair().unwrap();
        send(&a, &[0; 100], &[]).unwrap();
        assert_eq!(recv(&b, 64).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_closed_peer_reads_as_an_empty_message() {
        let (a, b) = pair().unwrap();
        drop(a);
        assert!(recv(&b, 64).unwrap().bytes.is_empty());
    }
}
