//! `application/problem+json` (RFC 9457): how the control API says that something failed.
//!
//! The one place where errors of the manager and the meter become answers of the API. Its readers
//! are operators, so the detail holds every reason; what clients of apps may read is in the title.

use std::fmt;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::{manager, meter, telemetry::chain};

/// The media type of a problem.
pub(super) const MEDIA_TYPE: &str = "application/problem+json";

/// The request cannot be understood.
const UNREADABLE: &str = "E0101";
/// There is no such route, or not with this method.
const NO_ROUTE: &str = "E0102";
/// The request is longer than the API takes.
const TOO_LONG: &str = "E0103";
/// The query of usage asks for too much.
const TOO_MUCH_USAGE: &str = "E0104";
/// The ledger cannot answer now.
const LEDGER_LATE: &str = "E0105";
/// The ledger cannot be read.
const LEDGER_UNREADABLE: &str = "E0106";

/// What went wrong, for people and for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A name of this kind of problem: `urn:edgepoint:error:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// What kind of problem this is, in a few words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened this time, with the reasons behind it.
    pub detail: String,
    /// The code, which has a page in the documentation.
    pub code: String,
    /// After how many seconds another try makes sense, if at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u64>,
}

impl Problem {
    fn new(code: &str, status: StatusCode, title: impl Into<String>, detail: String) -> Self {
        Self {
            kind: format!("urn:edgepoint:error:{code}"),
            title: title.into(),
            status: status.as_u16(),
            detail,
            code: code.to_owned(),
            retry_after_s: None,
        }
    }

    /// The request cannot be understood.
    pub(super) fn unreadable(detail: impl fmt::Display) -> Self {
        let title = "the request cannot be understood";
        Self::new(UNREADABLE, StatusCode::BAD_REQUEST, title, detail.to_string())
    }

    /// The request is longer than `max` bytes.
    pub(super) fn too_long(max: usize) -> Self {
        let detail = format!("a request has at most {max} bytes");
        Self::new(TOO_LONG, StatusCode::PAYLOAD_TOO_LARGE, "the request is too long", detail)
    }

    /// There is no such route.
    pub(super) fn no_route(detail: String) -> Self {
        Self::new(NO_ROUTE, StatusCode::NOT_FOUND, "there is nothing at this path", detail)
    }

    /// The route exists, but not with this method.
    pub(super) fn no_method(detail: String) -> Self {
        let title = "this path does not take this method";
        Self::new(NO_ROUTE, StatusCode::METHOD_NOT_ALLOWED, title, detail)
    }
}

impl From<manager::Error> for Problem {
    fn from(error: manager::Error) -> Self {
        let status =
            StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut problem = Self::new(error.code(), status, error.client_message(), chain(&error));
        problem.retry_after_s = error.retry_after();
        problem
    }
}

impl From<meter::Error> for Problem {
    fn from(error: meter::Error) -> Self {
        use meter::Error::{Flush, QueryDeadline, QueryRows};
        let (code, status, title, retry_after_s) = match &error {
            QueryRows { .. } => {
                let title = "the query of usage asks for too much";
                (TOO_MUCH_USAGE, StatusCode::UNPROCESSABLE_ENTITY, title, None)
            }
            QueryDeadline | Flush => {
                let title = "the ledger is too slow";
                (LEDGER_LATE, StatusCode::SERVICE_UNAVAILABLE, title, Some(5))
            }
            _ => {
                let title = "the ledger cannot be read";
                (LEDGER_UNREADABLE, StatusCode::INTERNAL_SERVER_ERROR, title, None)
            }
        };
        Self { retry_after_s, ..Self::new(code, status, title, chain(&error)) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The detail often begins with what the title says.
        if self.detail.starts_with(&self.title) {
            f.write_str(&self.detail)?;
        } else {
            write!(f, "{}: {}", self.title, self.detail)?;
        }
        write!(f, " ({})", self.code)?;
        match self.retry_after_s {
            Some(seconds) => write!(f, "; try again in {seconds} s"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // A struct of texts and numbers; it always has a JSON form.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response();
        let headers = response.headers_mut();
        if let Ok(code) = HeaderValue::from_str(&self.code) {
            headers.insert("x-edgepoint-error", code);
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_ledger_says_who_can_help() {
        for (error, code, status, retry) in [
            (meter::Error::QueryRows { limit: 7 }, TOO_MUCH_USAGE, 422, None),
            (meter::Error::QueryDeadline, LEDGER_LATE, 503, Some(5)),
            (meter::Error::Flush, LEDGER_LATE, 503, Some(5)),
            (meter::Error::StopWriter, LEDGER_UNREADABLE, 500, None),
        ] {
            let text = error.to_string();
            let problem = Problem::from(error);
            assert_eq!((problem.code.as_str(), problem.status), (code, status));
            assert_eq!((problem.retry_after_s, problem.detail), (retry, text));
        }
    }

    #[test]
    fn a_problem_has_the_members_of_rfc_9457_and_its_headers() {
        let mut problem = Problem::unreadable("no such app name");
        problem.retry_after_s = Some(3);
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"type": "urn:edgepoint:error:E0101", "status": 400,
                "title": "the request cannot be understood", "detail": "no such app name",
                "code": "E0101", "retry_after_s": 3})
        );
        let response = problem.into_response();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let header = |name: &str| response.headers().get(name).unwrap().to_str().unwrap();
        assert_eq!(header("content-type"), MEDIA_TYPE);
        assert_eq!(header("x-edgepoint-error"), "E0101");
        assert_eq!(header("retry-after"), "3");
    }

    #[test]
    fn title_and_detail_are_one_sentence() {
        let mut problem = Problem::unreadable("count must be 1");
        let expected = "the request cannot be understood: count must be 1 (E0101)";
        assert_eq!(problem.to_string(), expected);
        problem.title = "count".into();
        problem.retry_after_s = Some(3);
        let expected = "count must be 1 (E0101); try again in 3 s";
        assert_eq!(problem.to_string(), expected);
    }
}
