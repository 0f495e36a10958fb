//! Clients as they come: those that go while they wait, send what is no HTTP, or ask in other forms.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use edgepoint::os::ns;

use crate::harness::{Edgepoint, Place, wait_for};

const PATIENCE: Duration = Duration::from_secs(10);

/// A client that says what it likes.
struct Raw {
    stream: TcpStream,
    /// Read, but not yet an answer.
    rest: Vec<u8>,
}

impl Raw {
    fn open(at: &Place) -> Self {
        let stream = ns::in_network(&*at.network, || TcpStream::connect(at.address)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, rest: Vec::new() }
    }

    fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    /// Reads a piece; false at the end.
    fn fill(&mut self) -> bool {
        let mut piece = [0; 4096];
        let count = self.stream.read(&mut piece).unwrap();
        self.rest.extend_from_slice(&piece[..count]);
        count > 0
    }

    /// The next answer: its status, its head in lower case, its body.
    fn hear(&mut self) -> (u16, String, String) {
        let end = loop {
            if let Some(at) = self.rest.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.fill(), "closed after {:?}", String::from_utf8_lossy(&self.rest));
        };
        let head = String::from_utf8(self.rest.drain(..end).collect()).unwrap().to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        while self.rest.len() < length {
            assert!(self.fill(), "closed in the body of {head}");
        }
        let body = String::from_utf8(self.rest.drain(..length).collect()).unwrap();
        (head[9..12].parse().unwrap(), head, body)
    }

    /// Whether nothing more comes.
    fn is_over(&mut self) -> bool {
        self.rest.is_empty() && !self.fill()
    }
}

fn count(body: &str) -> Option<u64> {
    serde_json::from_str::<serde_json::Value>(body).unwrap()["count"].as_u64()
}

#[tokio::test]
async fn a_client_that_goes_while_it_waits_is_not_served() {
    let edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[("hard = 64", "hard = 1")]);
    let step = "GET / HTTP/1.1\r\nHost: counter.localhost\r\n\r\n";
    let post = "POST /echo HTTP/1.1\r\nHost: counter.localhost\r\nContent-Length: 3\r\n\r\nabc";
    let waiting = |count: u32| {
        let edgepoint = &edgepoint;
        wait_for("requests that wait", PATIENCE, move || async move {
            (edgepoint.status("counter").await.waiting == count).then_some(())
        })
    };
    let ended = || edgepoint.metric("edgepoint_dispatch_requests_total");

    let mut busy = Raw::open(&edgepoint.http);
    busy.say("GET /slow?ms=4000 HTTP/1.1\r\nHost: counter.localhost\r\n\r\n");
    wait_for("the slot to be taken", PATIENCE, || async {
        let status = edgepoint.status("counter").await;
        status.instances.iter().any(|instance| instance.in_flight == 1).then_some(())
    })
    .await;
    let before = ended().await;
    let mut clients: Vec<Raw> = (0..4).map(|_| Raw::open(&edgepoint.http)).collect();
    for (client, text) in clients.iter_mut().zip([step, step, post, step]) {
        client.say(text);
    }
    waiting(4).await;
    // The first stays and sends its next request; so does the second, but then it goes.
    clients[0].say(step);
    clients[1].say(step);
    clients.truncate(1);
    wait_for("three requests without an answer", PATIENCE, || async {
        (ended().await >= before + 3.0).then_some(())
    })
    .await;
    assert_eq!(busy.hear().0, 200);
    for expected in 1..=2 {
        let (status, _, body) = clients[0].hear();
        assert_eq!((status, count(&body)), (200, Some(expected)), "nobody else stepped");
    }
    assert_eq!(edgepoint.get("counter", "/").await.json()["count"].as_u64(), Some(3));
    let usage = edgepoint.cli(&["usage", "--app", "counter"]);
    assert_eq!(usage[0]["requests"].as_u64(), Some(4), "{usage}");
    edgepoint.stop();
}

#[tokio::test]
async fn a_client_that_goes_during_a_wake_is_not_served() {
    let edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[]);
    let mut client = Raw::open(&edgepoint.http);
    client.say("GET / HTTP/1.1\r\nHost: counter.localhost\r\n\r\n");
    drop(client);
    wait_for("the request's end", PATIENCE, || async {
        let ended = edgepoint.metric("edgepoint_dispatch_requests_total").await;
        (ended >= 1.0).then_some(())
    })
    .await;
    assert_eq!(edgepoint.get("counter", "/").await.json()["count"].as_u64(), Some(1));
    edgepoint.stop();
}

#[tokio::test]
async fn what_cannot_be_understood_is_told_so_and_wakes_no_app() {
    let edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[]);
    let chunks = "3\r\nabc\r\n0\r\n\r\n";
    let heads = [
        ("Content-Length: 3, 3\r\n", "abc"),
        ("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"),
        ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", chunks),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", chunks),
        ("Transfer-Encoding: gzip, chunked\r\n", chunks),
        ("Connection: close, X-Forwarded-For\r\n", ""),
    ];
    // The same connection is not used for what follows: where that begins is not known.
    let refused = |head: &str, body: &str| {
        let mut client = Raw::open(&edgepoint.http);
        client.say(&format!("POST /echo HTTP/1.1\r\nHost: counter.localhost\r\n{head}\r\n{body}"));
        let (status, answer, text) = client.hear();
        assert_eq!(status, 400, "{head}{body}");
        assert!(answer.contains("x-edgepoint-error: e0014"), "{head}{body}: {answer}");
        assert!(answer.contains("connection: close"), "{head}{body}: {answer}");
        assert!(text.starts_with("E0014 "), "{text}");
        assert!(client.is_over());
    };
    for (head, body) in heads {
        refused(head, body);
    }
    // pingora's own answer, before any code of ours.
    let mut client = Raw::open(&edgepoint.http);
    client.say("POST /echo HTTP/1.1\r\nHost: counter.localhost\r\n");
    client.say("Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc");
    assert_eq!(client.hear().0, 400);
    assert!(client.is_over());
    let status = edgepoint.status("counter").await;
    assert_eq!((status.state.as_str(), status.wakes), ("parked", 0));

    let chunked = "Transfer-Encoding: chunked\r\n";
    refused(chunked, "zz\r\nabc\r\n0\r\n\r\n");
    refused(chunked, "ffffffffffffffffff\r\nabc\r\n");
    refused(chunked, "ffffffffffffffff\r\nabc\r\n");
    refused(chunked, "3\r\nabcX0\r\n\r\n");
    refused(chunked, "3\nabc\n0\n\n");
    // What is right goes through, on one connection.
    let mut client = Raw::open(&edgepoint.http);
    for head in [chunked, "Transfer-Encoding: Chunked\r\nConnection: keep-alive\r\n"] {
        client
            .say(&format!("POST /echo HTTP/1.1\r\nHost: counter.localhost\r\n{head}\r\n{chunks}"));
        let (status, _, body) = client.hear();
        assert_eq!((status, body.as_str()), (200, "abc"));
    }
    edgepoint.stop();
}

#[tokio::test]
async fn an_absolute_target_is_the_path_and_the_host() {
    let edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[]);
    let mut client = Raw::open(&edgepoint.http);
    for host in ["", "Host: counter.localhost\r\n"] {
        // The app knows /echo in origin form only.
        client.say(&format!(
            "POST http://counter.localhost/echo HTTP/1.1\r\n{host}Content-Length: 3\r\n\r\nabc"
        ));
        let (status, _, body) = client.hear();
        assert_eq!((status, body.as_str()), (200, "abc"), "{host}");
    }
    client.say("GET http://moved.localhost:80?b=c HTTP/1.1\r\n\r\n");
    let (status, head, _) = client.hear();
    assert_eq!(status, 308);
    assert!(head.contains("location: https://example.com/?b=c"), "{head}");
    client.say("GET ftp://counter.localhost/ HTTP/1.1\r\nHost: counter.localhost\r\n\r\n");
    let (status, head, _) = client.hear();
    assert_eq!(status, 400);
    assert!(head.contains("x-edgepoint-error: e0014"), "{head}");
    edgepoint.stop();
}

#[tokio::test]
async fn requests_that_come_together_are_answered_in_order() {
    let edgepoint = Edgepoint::start(&["counter"]).await;
    edgepoint.deploy("counter", "counter", &[]);
    let mut client = Raw::open(&edgepoint.http);
    let ask = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}.localhost\r\n\r\n");
    // Together with the first, and while it is served.
    client.say(&[ask("counter"), ask("fixed"), ask("counter")].concat());
    assert_eq!(count(&client.hear().2), Some(1));
    assert_eq!(client.hear().2, "fixed");
    assert_eq!(count(&client.hear().2), Some(2));
    client.say("GET /slow?ms=300 HTTP/1.1\r\nHost: counter.localhost\r\n\r\n");
    std::thread::sleep(Duration::from_millis(100));
    client.say(&ask("counter"));
    assert_eq!(client.hear().2, "slow\n");
    assert_eq!(count(&client.hear().2), Some(3));
    edgepoint.stop();
}
