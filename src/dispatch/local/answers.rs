//! Answers of our own: what policy says, and errors with a code that has a page.

use bytes::Bytes;
use pingora_core::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use crate::{
    manager::{self, Blame},
    policy::Answer,
    telemetry,
};

/// The code of an error, with its page in `src/docs/errors`.
pub const ERROR_HEADER: &str = "x-edgepoint-error";

/// An error as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// HTTP status.
    pub status: u16,
    /// `E0001`
    pub code: &'static str,
    /// Who must act.
    pub blame: Blame,
    /// One sentence.
    pub message: String,
    /// Seconds until a new try makes sense.
    pub retry_after: Option<u64>,
}

impl Failure {
    fn new(status: u16, code: &'static str, blame: Blame, message: &str) -> Self {
        Self { status, code, blame, message: message.into(), retry_after: None }
    }

    /// No route matches.
    pub fn no_route() -> Self {
        let message = "no route leads there";
        Self::new(404, "E0001", Blame::Client, message)
    }

    /// The path or the host may mean another thing to an app than to a route.
    pub fn refused() -> Self {
        let message = "the path or the host of this request is ambiguous";
        Self::new(400, "E0013", Blame::Client, message)
    }

    /// The head or the body is not what HTTP says it must be.
    pub fn not_understood() -> Self {
        let message = "the request cannot be understood";
        Self::new(400, "E0014", Blame::Client, message)
    }

    /// The instance broke the connection or answered nonsense.
    pub fn upstream() -> Self {
        let message = "the app did not answer properly";
        Self::new(502, "E0008", Blame::App, message)
    }

    /// The instance took too long.
    pub fn upstream_timeout() -> Self {
        let message = "the app did not answer in time";
        Self::new(504, "E0009", Blame::App, message)
    }

    /// There is no instance.
    pub fn manager(error: &manager::Error) -> Self {
        // A command's error cannot get here; whatever does is this edgepoint's affair.
        Self {
            status: error.status(),
            code: error.code(),
            blame: error.blame(),
            message: error.client_message(),
            retry_after: error.retry_after(),
        }
    }
}

/// Writes an error.
pub async fn fail(session: &mut Session, failure: &Failure) -> Result<()> {
    telemetry::refused(failure.code, failure.blame.as_str());
    let body = format!("{} {}\n", failure.code, failure.message);
    let mut header = head(failure.status, "text/plain; charset=utf-8", body.len())?;
    header.insert_header(ERROR_HEADER, failure.code)?;
    header.insert_header("Cache-Control", "no-store")?;
    if let Some(seconds) = failure.retry_after {
        header.insert_header("Retry-After", seconds.to_string())?;
    }
    write(session, header, body.into()).await
}

/// Writes the answer of a policy.
pub async fn fixed(session: &mut Session, answer: &Answer) -> Result<()> {
    let body = Bytes::copy_from_slice(answer.body.as_bytes());
    let header = head(answer.status, &answer.content_type, body.len())?;
    write(session, header, body).await
}

/// Writes a redirect.
pub async fn redirect(session: &mut Session, status: u16, location: &str) -> Result<()> {
    let mut header = head(status, "text/plain; charset=utf-8", 0)?;
    header.insert_header("Location", location)?;
    write(session, header, Bytes::new()).await
}

fn head(status: u16, content_type: &str, length: usize) -> Result<ResponseHeader> {
    let mut header = ResponseHeader::build(status, Some(6))?;
    header.insert_header("Content-Type", content_type)?;
    header.insert_header("Content-Length", length.to_string())?;
    Ok(header)
}

async fn write(session: &mut Session, mut header: ResponseHeader, body: Bytes) -> Result<()> {
    let bodiless = matches!(header.status.as_u16(), 204 | 304);
    if bodiless {
        header.remove_header("Content-Length");
        header.remove_header("Content-Type");
    }
    let silent = bodiless || session.req_header().method == http::Method::HEAD || body.is_empty();
    session.write_response_header(Box::new(header), silent).await?;
    if !silent {
        session.write_response_body(Some(body), true).await?;
    }
    Ok(())
}
