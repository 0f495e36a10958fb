//! The other end of the control API, for the command line: one method per route, each with a
//! deadline, each on a connection of its own.
//!
//! It relies on `server` for the routes and on the problem+json of its errors. It does not retry.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, time::timeout};

use super::{DeployRequest, Problem, Statement};
use crate::{
    manager::{AppStatus, COMMAND_PATIENCE, Deployed, LogPart, Slept, Woken},
    meter::{Period, Query, UsageRow},
    model::{AppName, ReleaseId},
};

/// The longest answer: 100,000 rows of usage, or the logs of an app.
const MAX_ANSWER: usize = 128 << 20;
/// For a local socket whose owner is alive.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// For what the edgepoint knows already.
const LOOK_DEADLINE: Duration = Duration::from_secs(15);
/// For commands: the manager has the say in how long they take.
const ACT_DEADLINE: Duration = Duration::from_secs(COMMAND_PATIENCE.as_secs() + 30);
/// For flush and query of the ledger, which have 30 seconds each.
const USAGE_DEADLINE: Duration = Duration::from_secs(75);

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens there.
    #[error(
        "no edgepoint runs here: cannot connect to {} — start it with `edgepoint run`",
        path.display()
    )]
    NotRunning {
        /// The control socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The caller may not open the socket.
    #[error("may not connect to {}: run this command as root", path.display())]
    Forbidden {
        /// The control socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No answer in time; whether the request was carried out is unknown.
    #[error("the edgepoint did not answer within {} s", .0.as_secs())]
    Late(Duration),
    /// The connection broke; whether the request was carried out is unknown.
    #[error("the connection to the edgepoint broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An answer that does not fit the question.
    #[error("the edgepoint's answer is unreadable: is it of another version?")]
    Odd(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The edgepoint says no.
    #[error(transparent)]
    Refused(#[from] Problem),
}

/// The way to the edgepoint behind one control socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the edgepoint that listens at `socket`. Connects with each request.
    pub fn new(socket: impl AsRef<Path>) -> Self {
        Self { socket: socket.as_ref().to_path_buf() }
    }

    /// All apps and their instances.
    pub async fn status(&self) -> Result<Vec<AppStatus>, Error> {
        self.get("/v1/status", LOOK_DEADLINE).await
    }

    /// Makes a registered release the live one of its app.
    pub async fn deploy(&self, release: ReleaseId) -> Result<Deployed, Error> {
        let body = DeployRequest { release };
        self.ask(Method::POST, "/v1/deploy", Some(&body), ACT_DEADLINE).await
    }

    /// Forgets an app, its instances and its appshots. Usage stays in the ledger.
    pub async fn remove(&self, app: &AppName) -> Result<(), Error> {
        let path = format!("/v1/apps/{app}");
        self.send(Method::DELETE, &path, NOTHING, ACT_DEADLINE).await.map(drop)
    }

    /// Wakes an app until `count` instances run.
    pub async fn wake(&self, app: &AppName, count: u32) -> Result<Woken, Error> {
        let path = format!("/v1/apps/{app}/wake?count={count}");
        self.ask(Method::POST, &path, NOTHING, ACT_DEADLINE).await
    }

    /// Parks or ends all instances of an app now.
    pub async fn sleep(&self, app: &AppName) -> Result<Slept, Error> {
        let path = format!("/v1/apps/{app}/sleep");
        self.ask(Method::POST, &path, NOTHING, ACT_DEADLINE).await
    }

    /// The ends of an app's logs, `bytes` of each at most.
    pub async fn logs(&self, app: &AppName, bytes: u64) -> Result<Vec<LogPart>, Error> {
        self.get(&format!("/v1/apps/{app}/logs?bytes={bytes}"), LOOK_DEADLINE).await
    }

    /// Sums of usage.
    pub async fn usage(&self, query: &Query) -> Result<Vec<UsageRow>, Error> {
        self.get(&with_query("/v1/usage", query), USAGE_DEADLINE).await
    }

    /// Usage with its price.
    pub async fn bill(&self, query: &Query) -> Result<Statement, Error> {
        self.get(&with_query("/v1/bill", query), USAGE_DEADLINE).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, deadline: Duration) -> Result<T, Error> {
        self.ask(Method::GET, path, NOTHING, deadline).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        deadline: Duration,
    ) -> Result<T, Error> {
        let bytes = self.send(method, path, body, deadline).await?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Odd(error.into()))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        deadline: Duration,
    ) -> Result<Bytes, Error> {
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| Error::Odd(error.into()))?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "edgepoint")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Error::Odd(error.into()))?;
        let stream = self.connect().await?;
        let talk = timeout(deadline, converse(stream, request)).await;
        talk.unwrap_or(Err(Error::Late(deadline)))
    }

    async fn connect(&self) -> Result<UnixStream, Error> {
        let path = self.socket.clone();
        let connected = timeout(CONNECT_DEADLINE, UnixStream::connect(&self.socket)).await;
        let late = || Err(io::ErrorKind::TimedOut.into());
        connected.unwrap_or_else(|_| late()).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => Error::Forbidden { path, source },
            _ => Error::NotRunning { path, source },
        })
    }
}

/// No body, of some type.
const NOTHING: Option<&()> = None;

async fn converse(stream: UnixStream, request: Request<Full<Bytes>>) -> Result<Bytes, Error> {
    let broken = |error: hyper::Error| Error::Broken(error.into());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(Error::Broken)?;
        let bytes = body.to_bytes();
        if head.status.is_success() {
            return Ok(bytes);
        }
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => Err(Error::Refused(problem)),
            Err(_) => Err(Error::Odd(format!("status {}", head.status).into())),
        }
    };
    // The connection's own end is of no interest once the answer is whole.
    tokio::pin!(talk);
    tokio::select! {
        biased;
        result = &mut talk => result,
        ended = connection => match ended {
            // The peer closed after its answer; what has arrived is still to be read.
            Ok(()) => talk.await,
            Err(error) => Err(broken(error)),
        },
    }
}

/// All values are names, numbers or words; none needs an escape.
fn with_query(path: &str, query: &Query) -> String {
    let Query { provider, app, since_ms, until_ms, by } = query;
    let mut parts = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        parts.extend(value.map(|value| format!("{name}={value}")));
    };
    add("provider", provider.as_ref().map(ToString::to_string));
    add("app", app.as_ref().map(ToString::to_string));
    add("since_ms", since_ms.map(|ms| ms.to_string()));
    add("until_ms", until_ms.map(|ms| ms.to_string()));
    let word = |period: &Period| match period {
        Period::Hour => "hour".to_owned(),
        Period::Day => "day".to_owned(),
    };
    add("by", by.as_ref().map(word));
    if parts.is_empty() { path.to_owned() } else { format!("{path}?{}", parts.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ProviderName;

    #[test]
    fn a_query_becomes_the_names_that_the_server_reads() {
        assert_eq!(with_query("/v1/usage", &Query::default()), "/v1/usage");
        let query = Query {
            provider: Some(ProviderName::new("acme").unwrap()),
            app: Some(AppName::new("shop").unwrap()),
            since_ms: Some(1),
            until_ms: Some(2),
            by: Some(Period::Hour),
        };
        let expected = "/v1/bill?provider=acme&app=shop&since_ms=1&until_ms=2&by=hour";
        assert_eq!(with_query("/v1/bill", &query), expected);
    }

    #[tokio::test]
    async fn without_an_edgepoint_the_error_says_how_to_start_one() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control.sock");
        let error = Client::new(&socket).status().await.unwrap_err();
        assert!(matches!(error, Error::NotRunning { .. }));
        let text = error.to_string();
        assert!(text.contains("start it with `edgepoint run`"), "{text}");
        assert!(text.contains(socket.to_str().unwrap()), "{text}");
    }

    #[tokio::test]
    async fn a_peer_that_hangs_up_or_talks_nonsense_is_an_error_and_no_hang() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        for (answer, expected) in [
            ("", "broke"),
            ("hello\r\n\r\n", "broke"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno", "unreadable"),
            ("HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\nno", "unreadable"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let socket = directory.path().join("control.sock");
            let listener = tokio::net::UnixListener::bind(&socket).unwrap();
            let peer = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 1024];
                let _ = stream.read(&mut head).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
            let error = Client::new(&socket).status().await.unwrap_err();
            assert!(error.to_string().contains(expected), "{answer:?}: {error}");
            peer.await.unwrap();
        }
    }
}
