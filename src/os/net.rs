//! Connected sockets: what the kernel knows about the other side.

use std::os::fd::AsRawFd;

use nix::libc;

/// Whether the other side has closed the connection or broken it. TCP does not tell one that is gone
/// from one that will only send no more: both count. Nothing is read, what was sent is still there.
pub fn is_closed_by_peer(socket: &impl AsRawFd) -> bool {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: poll reads and writes one pollfd, which lives until the call returns at once.
    let result = unsafe { libc::poll(&raw mut poll, 1, 0) };
    result > 0
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{Shutdown, TcpListener, TcpStream},
        time::Duration,
    };

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    /// The kernel tells the other side a little later.
    fn becomes_closed(socket: &TcpStream) -> bool {
        (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            is_closed_by_peer(socket)
        })
    }

    #[test]
    fn an_open_connection_is_not_closed_also_with_data_to_read() {
        let (mut client, server) = pair();
        assert!(!is_closed_by_peer(&server));
        client.write_all(b"abc").unwrap();
        server.peek(&mut [0; 3]).unwrap();
        assert!(!is_closed_by_peer(&server));
    }

    #[test]
    fn a_close_is_seen_behind_data_and_the_data_stays() {
        let (mut client, mut server) = pair();
        client.write_all(b"abc").unwrap();
        drop(client);
        assert!(becomes_closed(&server));
        let mut text = String::new();
        server.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc");
    }

    #[test]
    fn a_half_closed_connection_counts_as_closed() {
        let (client, server) = pair();
        client.shutdown(Shutdown::Write).unwrap();
        assert!(becomes_closed(&server));
    }
}
