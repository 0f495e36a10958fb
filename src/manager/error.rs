//! Why a request or a command gets no instance: what the client may read, who is to blame, when to
//! try again. Each code has a page in `src/docs/errors`.

use std::time::Duration;

use crate::model::AppName;

/// Who must act for it to go better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blame {
    /// Who asked.
    Client,
    /// The app.
    App,
    /// This edgepoint.
    Edge,
    /// A limit that was set.
    Limit,
}

impl Blame {
    /// The word for it, as metrics are labelled.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::App => "app",
            Self::Edge => "edge",
            Self::Limit => "limit",
        }
    }
}

/// Why there is no instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No such app is deployed.
    #[error("no app {0} is deployed here")]
    UnknownApp(AppName),
    /// Too many requests wait for it.
    #[error("too many requests wait for app {0}")]
    WaitingRoomFull(AppName),
    /// It did not wake within the request's patience.
    #[error("app {0} did not wake in time")]
    WakeTimeout(AppName),
    /// It could not be started or restored.
    #[error("app {app} could not be woken: {reason}")]
    WakeFailed {
        /// Which.
        app: AppName,
        /// Why, for the operator.
        reason: String,
        /// When the next try is made.
        retry_after: Duration,
    },
    /// Its kept state could not be restored and it asked not to start without.
    #[error("the state of app {0} is lost; remove or deploy it to go on")]
    StateLost(AppName),
    /// Another command works on the app.
    #[error("app {0} is being deployed or removed")]
    Changing(AppName),
    /// A deployment failed; the old release goes on.
    #[error("the deployment failed: {0}")]
    DeployFailed(String),
    /// It could not be put to sleep.
    #[error("app {app} was not put to sleep: {reason}")]
    NotSlept {
        /// Which.
        app: AppName,
        /// Why.
        reason: String,
    },
    /// This edgepoint is ending, or its agent is away.
    #[error("this edgepoint cannot do that now: {0}")]
    Unavailable(String),
}

impl Error {
    /// Its code, as in `x-edgepoint-error`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownApp(_) => "E0002",
            Self::WaitingRoomFull(_) => "E0003",
            Self::WakeTimeout(_) => "E0004",
            Self::WakeFailed { .. } => "E0005",
            Self::StateLost(_) => "E0006",
            Self::Unavailable(_) => "E0007",
            Self::Changing(_) => "E0010",
            Self::DeployFailed(_) => "E0011",
            Self::NotSlept { .. } => "E0012",
        }
    }

    /// The HTTP status that fits.
    pub fn status(&self) -> u16 {
        match self {
            Self::UnknownApp(_) => 404,
            Self::Changing(_) | Self::NotSlept { .. } => 409,
            Self::DeployFailed(_) => 422,
            _ => 503,
        }
    }

    /// What a client on the internet may read.
    pub fn client_message(&self) -> String {
        match self {
            Self::WakeFailed { app, .. } => format!("app {app} could not be woken"),
            other => other.to_string(),
        }
    }

    /// Who must act.
    pub fn blame(&self) -> Blame {
        match self {
            Self::UnknownApp(_) | Self::Changing(_) => Blame::Client,
            Self::WakeFailed { .. } | Self::DeployFailed(_) | Self::NotSlept { .. } => Blame::App,
            Self::WaitingRoomFull(_) => Blame::Limit,
            Self::WakeTimeout(_) | Self::StateLost(_) | Self::Unavailable(_) => Blame::Edge,
        }
    }

    /// After how many seconds it is worth trying again; rounded up, as who comes a moment early
    /// comes twice.
    pub fn retry_after(&self) -> Option<u64> {
        match self {
            Self::WaitingRoomFull(_) | Self::WakeTimeout(_) | Self::Unavailable(_) => Some(1),
            Self::WakeFailed { retry_after, .. } => {
                let part = u64::from(retry_after.subsec_nanos() > 0);
                Some((retry_after.as_secs() + part).max(1))
            }
            Self::Changing(_) => Some(5),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_rounded_up_to_whole_seconds() {
        for (millis, expected) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2)] {
            let (app, reason) = (AppName::new("a").unwrap(), String::new());
            let retry_after = Duration::from_millis(millis);
            let error = Error::WakeFailed { app, reason, retry_after };
            assert_eq!(error.retry_after(), Some(expected));
        }
    }
}
