//! One request: policy, lease, upstream, answer, meter.
//!
//! Policy answers come before any lease is asked for, so nothing that policy answers wakes an app.
//! A request that must wait holds its connection; its body stays in the socket until the instance
//! is there to take it.

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use http::StatusCode;
use pingora_core::{Error, ErrorSource, ErrorType, Result, upstreams::peer::HttpPeer};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};

use super::{answers, answers::Failure, connection, framing, target, upstream};
use crate::{
    clock,
    manager::{self, Lease, Wake},
    meter,
    model::AppName,
    policy::{Action, Policy},
    telemetry,
};

/// A request whose instance could not be connected is given to another one this many times.
const CONNECT_TRIES: u32 = 3;
/// An instance that sends nothing for this long while it owes an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Says that the app's kept state was lost before this answer.
const STATE_HEADER: &str = "x-edgepoint-state";

/// Headers that a client's own values are never taken for.
const OURS: [&str; 5] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-edgepoint-generation",
];

/// The dispatcher's view of the rest.
#[derive(Clone)]
pub struct Proxy {
    /// Routes; a request keeps those that it began with.
    pub policy: Arc<ArcSwap<Policy>>,
    /// Instances.
    pub manager: manager::Handle,
    /// Where usage goes.
    pub meter: meter::Handle,
}

/// What is known about one request.
pub struct Context {
    began: Instant,
    route: Arc<str>,
    app: Option<AppName>,
    lease: Option<Lease>,
    /// Kept after the lease is gone.
    owner: Option<Owner>,
    waited: Duration,
    tries: u32,
    failure: Option<Failure>,
}

struct Owner {
    provider: crate::model::ProviderName,
    instance: crate::model::InstanceId,
    wake: Wake,
    lost_state: bool,
}

impl Proxy {
    /// A slot for a request, or nothing if its client has gone while it waited: its place, or the
    /// lease that came too late, is free again before anything was sent to the app.
    async fn lease(
        &self,
        session: &Session,
        app: &AppName,
    ) -> Option<Result<Lease, manager::Error>> {
        let lease = tokio::select! {
            // A client that does not have to wait is not looked at.
            biased;
            lease = self.manager.acquire(app) => lease,
            () = connection::gone(session) => return None,
        };
        // Most wakes are shorter than the time between two looks.
        let waited = lease.as_ref().is_ok_and(|lease| lease.wake != Wake::None);
        (!waited || !connection::is_gone(session)).then_some(lease)
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context {
            began: clock::now(),
            route: Arc::from(""),
            app: None,
            lease: None,
            owner: None,
            waited: Duration::ZERO,
            tries: 0,
            failure: None,
        }
    }

    fn init_downstream_modules(&self, _: &mut pingora_core::modules::http::HttpModules) {
        // Bodies pass as they are: no compression module.
    }

    /// Called for every request, as each session is given its connection's turn.
    fn on_connection_reuse(
        &self,
        session: &mut Session,
        _: &mut Context,
        turn: Box<dyn Any + Send + Sync>,
    ) {
        if let Some(turn) = turn.downcast_ref::<connection::Turn>() {
            turn.pass();
        }
        connection::limit(session);
    }

    /// Policy. True if it has answered.
    async fn request_filter(&self, session: &mut Session, ctx: &mut Context) -> Result<bool> {
        if !is_understood(session)? {
            // Where the next request would begin is as unclear as this one.
            session.set_keepalive(None);
            answers::fail(session, &Failure::not_understood()).await?;
            return Ok(true);
        }
        let policy = self.policy.load_full();
        let header = session.req_header();
        let host = header.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
        let host = host.map(str::to_string);
        let path = header.uri.path().to_string();
        let query = header.uri.query().map(str::to_string);
        let Some(decision) = policy.decide(host.as_deref(), &path, query.as_deref()) else {
            answers::fail(session, &Failure::no_route()).await?;
            return Ok(true);
        };
        ctx.route = Arc::from(decision.route.as_str());
        match decision.action {
            Action::App(app) => {
                ctx.app = Some(app.clone());
                Ok(false)
            }
            Action::Refused => {
                answers::fail(session, &Failure::refused()).await?;
                Ok(true)
            }
            Action::Answer(answer) => answers::fixed(session, answer).await.map(|()| true),
            Action::Redirect { status, location } => {
                answers::redirect(session, status, &location).await.map(|()| true)
            }
        }
    }

    /// The lease: an instance to send the request to.
    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Context,
    ) -> Result<Box<HttpPeer>> {
        let Some(app) = &ctx.app else {
            return Error::e_explain(ErrorType::InternalError, "a request without an app");
        };
        ctx.lease = None;
        let asked = clock::now();
        let Some(lease) = self.lease(session, app).await else {
            ctx.waited += asked.elapsed();
            return Err(Error::new_down(ErrorType::ConnectionClosed));
        };
        let lease = lease.map_err(|error| {
            let failure = Failure::manager(&error);
            let status = failure.status;
            ctx.failure = Some(failure);
            Error::explain(ErrorType::HTTPStatus(status), error.to_string())
        })?;
        if lease.wake != Wake::None {
            ctx.waited += asked.elapsed();
        }
        let instance = lease.instance.clone();
        ctx.owner = Some(Owner {
            provider: instance.app.provider.clone(),
            instance: instance.id,
            wake: lease.wake,
            lost_state: instance.lost_state && matches!(lease.wake, Wake::Started | Wake::Restored),
        });
        let mut peer = upstream::peer(&instance);
        peer.options.read_timeout = Some(READ_TIMEOUT);
        peer.options.write_timeout = Some(READ_TIMEOUT);
        ctx.lease = Some(lease);
        Ok(Box::new(peer))
    }

    /// An instance that is gone: another one may take the request, of which nothing was sent.
    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        ctx: &mut Context,
        mut error: Box<Error>,
    ) -> Box<Error> {
        ctx.lease = None;
        ctx.tries += 1;
        error.set_retry(ctx.tries < CONNECT_TRIES);
        error
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        _: &mut Context,
    ) -> Result<()> {
        // What a client says about itself here is not believed: these are ours.
        for name in OURS {
            request.remove_header(name);
        }
        if let Some(address) = session.client_addr().and_then(|address| address.as_inet()) {
            request.insert_header("X-Forwarded-For", address.ip().to_string())?;
        }
        if let Some(host) = session.req_header().headers.get(http::header::HOST) {
            request.insert_header("X-Forwarded-Host", host.as_bytes())?;
        }
        request.insert_header("X-Forwarded-Proto", "http")?;
        Ok(())
    }

    async fn response_filter(
        &self,
        _: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        if ctx.owner.as_ref().is_some_and(|owner| owner.lost_state) {
            response.insert_header(STATE_HEADER, "lost")?;
        }
        Ok(())
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Context,
    ) -> FailToProxy {
        let failure = ctx.failure.clone().or_else(|| match (error.esource(), error.etype()) {
            // The client is there: it is what it sent, or did not, that cannot be passed on.
            (
                ErrorSource::Downstream,
                ErrorType::InvalidHTTPHeader
                | ErrorType::ReadTimedout
                | ErrorType::Custom("InvalidChunk" | "InvalidTrailerEnd"),
            ) => Some(Failure::not_understood()),
            // The client has gone, or takes nothing.
            (ErrorSource::Downstream, _) => None,
            (_, ErrorType::ReadTimedout | ErrorType::WriteTimedout) => {
                Some(Failure::upstream_timeout())
            }
            _ => Some(Failure::upstream()),
        });
        let Some(failure) = failure else {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        };
        // After `100 Continue` an answer is still owed.
        let begun = |header: &ResponseHeader| {
            !header.status.is_informational() || header.status == StatusCode::SWITCHING_PROTOCOLS
        };
        if !session.response_written().is_some_and(begun) {
            // pingora closes after an error; the answer is to say so.
            session.set_keepalive(None);
            let _ = answers::fail(session, &failure).await;
        }
        FailToProxy { error_code: failure.status, can_reuse_downstream: false }
    }

    fn suppress_error_log(&self, _: &Session, _: &Context, _: &Error) -> bool {
        // Requests have the meter's records and metrics; nothing per request in the log.
        true
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, ctx: &mut Context) {
        // The slot is free as soon as the answer is out, before anything is written down.
        ctx.lease = None;
        let took = ctx.began.elapsed();
        let status = session.response_written().map_or(0, |header| header.status.as_u16());
        let app = ctx.app.as_ref().map_or("", AppName::as_str);
        let waited = ctx.owner.as_ref().is_some_and(|owner| owner.wake != Wake::None);
        telemetry::request(app, status, took, waited.then_some(ctx.waited));
        let Some(app) = ctx.app.clone() else {
            return;
        };
        // A request that got no instance is on its app's record all the same.
        let of_app = || self.manager.provider(&app);
        let owner = ctx.owner.as_ref();
        let Some(provider) = owner.map(|owner| owner.provider.clone()).or_else(of_app) else {
            return;
        };
        let record = meter::RequestRecord {
            time_ms: u64::try_from(clock::wall().as_millis()).unwrap_or(u64::MAX),
            provider,
            app,
            instance: owner.map(|owner| owner.instance),
            route: ctx.route.clone(),
            status,
            bytes_in: u64::try_from(session.body_bytes_read()).unwrap_or(u64::MAX),
            bytes_out: u64::try_from(session.body_bytes_sent()).unwrap_or(u64::MAX),
            duration_micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            wait_micros: u64::try_from(ctx.waited.as_micros()).unwrap_or(u64::MAX),
            wake: match owner.map_or(Wake::None, |owner| owner.wake) {
                Wake::None => meter::WakeKind::None,
                Wake::Waited => meter::WakeKind::Waited,
                Wake::Restored => meter::WakeKind::Restored,
                Wake::Started => meter::WakeKind::Started,
            },
        };
        // Waits while the ledger is behind; what is lost after that is counted there.
        let _ = self.meter.request(record).await;
    }
}

/// Whether a head says one thing only, to us and to any app. Brings its target into origin form.
fn is_understood(session: &mut Session) -> Result<bool> {
    let headers = &session.req_header().headers;
    let clear = !framing::is_ambiguous(headers)
        && !framing::had_both(headers, || session.to_h1_raw())
        && !framing::drops_protected(headers);
    Ok(clear && target::settle(session.req_header_mut())?)
}
