//! The routes of the control API and of the metrics listener.
//!
//! Each route asks the manager or the ledger and writes down what they answer; limits are here,
//! decisions are not. A request that its client gives up goes on in the manager. Relies on the
//! socket's file mode for who may ask at all.

use std::{
    future::{Future, IntoFuture},
    io,
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, Path, Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    response::{IntoResponse, Response},
    routing::{delete, get, post},
    serve::Listener,
};
use http::{Method, Uri, header};
use serde::Deserialize;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::oneshot,
    time::sleep,
};

use super::{DeployRequest, Problem, listener::Bounded};
use crate::{
    manager::{AppStatus, Deployed, Handle, LogPart, Slept, Woken},
    meter::{self, Bill, Period, UsageRow},
    model::{AppName, ProviderName, Tariff},
};

/// The longest request: the only body is one release id.
const MAX_BODY: usize = 64 << 10;
/// Connections to the control socket: commands of operators, and each uses one.
const MAX_CONTROL_CONNECTIONS: usize = 64;
/// Connections to the metrics listener: a few scrapers.
const MAX_METRICS_CONNECTIONS: usize = 32;
/// Longer than any act of the manager, during which the connection is silent.
const CONTROL_IDLE: Duration = Duration::from_secs(3_600);
/// Longer than the usual scrape interval.
const METRICS_IDLE: Duration = Duration::from_secs(120);
/// How long open requests may go on when the edgepoint stops.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How much of each log is given unless asked otherwise: a few screens.
pub(super) const DEFAULT_LOG_BYTES: u64 = 16 << 10;
/// How much of each log may be asked for.
const MAX_LOG_BYTES: u64 = 1 << 20;
/// How many instances may be woken by one request; the manager has its own limits below it.
const MAX_WAKE: u32 = 1_000;

/// What the routes need.
#[derive(Clone)]
pub struct Api {
    /// Who owns the instances.
    pub manager: Handle,
    /// Who keeps usage.
    pub meter: meter::Handle,
    /// What usage costs.
    pub tariff: Tariff,
}

/// Renders all metrics in Prometheus' text format.
pub type Render = Arc<dyn Fn() -> String + Send + Sync>;

impl Api {
    /// All routes of the control API.
    pub fn router(self) -> Router {
        Router::new()
            .route("/v1/status", get(status))
            .route("/v1/deploy", post(deploy))
            .route("/v1/apps/{app}", delete(remove))
            .route("/v1/apps/{app}/wake", post(wake))
            .route("/v1/apps/{app}/sleep", post(sleep_now))
            .route("/v1/apps/{app}/logs", get(logs))
            .route("/v1/usage", get(usage))
            .route("/v1/bill", get(bill))
            .fallback(no_route)
            .method_not_allowed_fallback(no_method)
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .with_state(Arc::new(self))
    }

    /// Answers on the control socket until `shutdown`; open requests may end for a few seconds.
    pub async fn serve(
        self,
        listener: UnixListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let listener = Bounded::new(listener, MAX_CONTROL_CONNECTIONS, CONTROL_IDLE);
        serve_until(listener, self.router(), shutdown).await
    }
}

/// The routes of the metrics listener.
pub fn metrics_router(render: Render) -> Router {
    let metrics = |State(render): State<Render>| async move {
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], render())
    };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(render)
}

/// Answers on the metrics listener until `shutdown`.
pub async fn serve_metrics(
    listener: TcpListener,
    render: Render,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let listener = Bounded::new(listener, MAX_METRICS_CONNECTIONS, METRICS_IDLE);
    serve_until(listener, metrics_router(render), shutdown).await
}

async fn serve_until<L: Listener>(
    listener: L,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()>
where
    L::Addr: std::fmt::Debug,
{
    let (tell, told) = oneshot::channel();
    let shutdown = async move {
        shutdown.await;
        let _ = tell.send(());
    };
    let serving = axum::serve(listener, router).with_graceful_shutdown(shutdown).into_future();
    let patience = async {
        let _ = told.await;
        sleep(STOP_PATIENCE).await;
    };
    tokio::select! {
        // The order matters only if both end at once: an error is worth more than the patience.
        biased;
        result = serving => result,
        () = patience => Ok(()),
    }
}

type Shared = State<Arc<Api>>;
type Answer<T> = Result<Json<T>, Problem>;

async fn status(State(api): Shared) -> Answer<Vec<AppStatus>> {
    Ok(Json(api.manager.status().await?))
}

async fn deploy(State(api): Shared, body: Result<Bytes, BytesRejection>) -> Answer<Deployed> {
    let body = body.map_err(|rejection| match rejection.status().as_u16() {
        413 => Problem::too_long(MAX_BODY),
        _ => Problem::unreadable(rejection.body_text()),
    })?;
    let request: DeployRequest = serde_json::from_slice(&body).map_err(Problem::unreadable)?;
    Ok(Json(api.manager.deploy(request.release).await?))
}

async fn remove(State(api): Shared, Path(app): Path<String>) -> Result<Response, Problem> {
    api.manager.remove(app_name(&app)?).await?;
    Ok(http::StatusCode::NO_CONTENT.into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WakeQuery {
    count: Option<u32>,
}

async fn wake(
    State(api): Shared,
    Path(app): Path<String>,
    query: Result<Query<WakeQuery>, QueryRejection>,
) -> Answer<Woken> {
    let count = read(query)?.count.unwrap_or(1);
    if !(1..=MAX_WAKE).contains(&count) {
        return Err(Problem::unreadable(format!("count must be from 1 to {MAX_WAKE}")));
    }
    Ok(Json(api.manager.wake(app_name(&app)?, count).await?))
}

async fn sleep_now(State(api): Shared, Path(app): Path<String>) -> Answer<Slept> {
    Ok(Json(api.manager.sleep(app_name(&app)?).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogsQuery {
    bytes: Option<u64>,
}

async fn logs(
    State(api): Shared,
    Path(app): Path<String>,
    query: Result<Query<LogsQuery>, QueryRejection>,
) -> Answer<Vec<LogPart>> {
    let bytes = read(query)?.bytes.unwrap_or(DEFAULT_LOG_BYTES);
    if bytes > MAX_LOG_BYTES {
        return Err(Problem::unreadable(format!("bytes must be at most {MAX_LOG_BYTES}")));
    }
    Ok(Json(api.manager.logs(app_name(&app)?, bytes).await?))
}

/// `meter::Query`, in which a misspelt name must not ask for everything.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UsageQuery {
    provider: Option<ProviderName>,
    app: Option<AppName>,
    since_ms: Option<u64>,
    until_ms: Option<u64>,
    by: Option<Period>,
}

async fn rows(
    api: &Api,
    query: Result<Query<UsageQuery>, QueryRejection>,
) -> Result<Vec<UsageRow>, Problem> {
    let UsageQuery { provider, app, since_ms, until_ms, by } = read(query)?;
    // Who asks should see what has just happened.
    api.meter.flush().await?;
    let query = meter::Query { provider, app, since_ms, until_ms, by };
    Ok(api.meter.usage(query).await?)
}

async fn usage(
    State(api): Shared,
    query: Result<Query<UsageQuery>, QueryRejection>,
) -> Answer<Vec<UsageRow>> {
    Ok(Json(rows(&api, query).await?))
}

async fn bill(
    State(api): Shared,
    query: Result<Query<UsageQuery>, QueryRejection>,
) -> Answer<Bill> {
    Ok(Json(meter::charge(&api.tariff, &rows(&api, query).await?)))
}

async fn no_route(uri: Uri) -> Problem {
    Problem::no_route(format!("there is no {}", uri.path()))
}

async fn no_method(method: Method, uri: Uri) -> Problem {
    Problem::no_method(format!("{} does not take {method}", uri.path()))
}

fn read<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    query.map(|Query(query)| query).map_err(|rejection| Problem::unreadable(rejection.body_text()))
}

fn app_name(text: &str) -> Result<AppName, Problem> {
    AppName::new(text)
        .map_err(|error| Problem::unreadable(format!("{text:?} is no name of an app: {error}")))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    async fn ask(address: std::net::SocketAddr, line: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn the_metrics_listener_answers_its_two_paths_and_stops() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let render: Render = Arc::new(|| "edgepoint_up 1\n".to_owned());
        let shutdown = async { drop(stopped.await) };
        let serving = tokio::spawn(serve_metrics(listener, render, shutdown));
        let metrics = ask(address, "GET /metrics").await;
        assert!(metrics.starts_with("HTTP/1.1 200") && metrics.ends_with("edgepoint_up 1\n"));
        assert!(metrics.contains("version=0.0.4"), "{metrics}");
        assert!(ask(address, "GET /healthz").await.ends_with("ok\n"));
        let missing = ask(address, "GET /v1/status").await;
        assert!(missing.starts_with("HTTP/1.1 404") && missing.contains("E0102"), "{missing}");
        let wrong = ask(address, "POST /metrics").await;
        assert!(wrong.starts_with("HTTP/1.1 405") && wrong.contains("problem+json"), "{wrong}");
        stop.send(()).unwrap();
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_connection_beyond_the_bound_waits_for_a_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut bounded = Bounded::new(listener, 1, Duration::from_millis(20));
        let (_one, _two) = (
            TcpStream::connect(address).await.unwrap(),
            TcpStream::connect(address).await.unwrap(),
        );
        let (mut held, _) = Listener::accept(&mut bounded).await;
        let second =
            tokio::time::timeout(Duration::from_millis(50), Listener::accept(&mut bounded));
        assert!(second.await.is_err(), "a second connection was let in");
        // It is silent, and so it ends.
        let error = held.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(held);
        Listener::accept(&mut bounded).await;
    }
}
