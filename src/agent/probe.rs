//! A tiny app for the self-test of `edgepoint doctor`: an HTTP server on 127.0.0.1:$PORT that
//! answers each request with how many there were.
//!
//! Started as `edgepoint-agent probe` inside a sandbox, where the agent's own binary is the only
//! program that is surely there. Its count lives in memory alone: it goes on after a restore only
//! if the process itself came back.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use anyhow::Context;

/// A request is one short line and a few headers.
const MAX_HEAD: usize = 4 << 10;
/// How long a client may take with it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Counts until it is ended.
pub fn main() -> anyhow::Result<()> {
    let port: u16 =
        std::env::var("PORT").context("PORT is not set")?.parse().context("PORT is no port")?;
    let listener = TcpListener::bind(("127.0.0.1", port)).context("cannot listen")?;
    let mut count = 0_u64;
    for stream in listener.incoming() {
        // A connection that breaks is its client's trouble.
        let _ = stream.and_then(|stream| answer(stream, &mut count));
    }
    Ok(())
}

fn answer(mut stream: TcpStream, count: &mut u64) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut head: Vec<u8> = Vec::new();
    let mut part = [0; 512];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let length = stream.read(&mut part)?;
        head.extend(part.iter().take(length));
        if length == 0 || head.len() > MAX_HEAD {
            return Ok(());
        }
    }
    *count += 1;
    let body = count.to_string();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_requests_are_counted_and_others_are_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut count = 0;
        for (request, expected) in [("GET / HTTP/1.1\r\n\r\n", "1"), ("GET", ""), ("\r\n\r\n", "2")]
        {
            let mut client = TcpStream::connect(address).unwrap();
            client.write_all(request.as_bytes()).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            answer(listener.accept().unwrap().0, &mut count).unwrap();
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            let body = text.split("\r\n\r\n").nth(1).unwrap_or_default();
            assert_eq!(body, expected, "{request:?}");
        }
    }
}
