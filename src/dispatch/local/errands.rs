//! What the manager needs done over HTTP: readiness, warm-up requests, after-restore hooks.

use std::time::Duration;

use async_trait::async_trait;
use pingora_core::protocols::http::v1::client::HttpSession;
use pingora_http::RequestHeader;
use tokio::time::{sleep, timeout};

use super::upstream;
use crate::{
    clock,
    manager::{Endpoint, Errands, Preparation},
};

/// Between two looks whether a starting app listens.
const LOOK: Duration = Duration::from_millis(1);
/// How long one warm-up request or hook may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A warm-up answer is read to its end, up to this many bytes.
const BODY_MAX: usize = 16 << 20;

/// Does the errands.
#[derive(Debug, Clone, Copy)]
pub struct Client;

#[async_trait]
impl Errands for Client {
    async fn prepare(&self, endpoint: &Endpoint, preparation: &Preparation) -> Result<(), String> {
        let app = &preparation.app;
        if preparation.until_ready {
            wait_until_ready(endpoint, preparation).await?;
        }
        if preparation.warm_up {
            for path in &app.snapshot.warm_up {
                let status = ask(endpoint, "GET", path, preparation, PATIENCE).await?;
                if status >= 500 {
                    return Err(format!("its warm-up request {path} was answered with {status}"));
                }
            }
        }
        if let (true, Some(path)) = (preparation.hook, &app.snapshot.after_restore) {
            let status = ask(endpoint, "POST", path, preparation, PATIENCE).await?;
            if !(200..300).contains(&status) {
                return Err(format!("its after-restore hook {path} was answered with {status}"));
            }
        }
        Ok(())
    }
}

/// Tries until the app listens and its health check, if it has one, is good.
async fn wait_until_ready(endpoint: &Endpoint, preparation: &Preparation) -> Result<(), String> {
    let health = &preparation.app.health;
    let deadline = clock::now() + health.grace_period;
    loop {
        let tried = match &health.path {
            Some(path) => match ask(endpoint, "GET", path, preparation, health.timeout).await {
                Ok(status) if (200..400).contains(&status) => return Ok(()),
                Ok(status) => format!("its health check {path} was answered with {status}"),
                Err(error) => error,
            },
            None => match upstream::connect(endpoint).await {
                Ok(_) => return Ok(()),
                Err(error) => error.to_string(),
            },
        };
        if clock::now() >= deadline {
            let seconds = health.grace_period.as_secs_f32();
            return Err(format!("it was not ready within {seconds} s: {tried}"));
        }
        sleep(LOOK).await;
    }
}

/// One request on a connection of its own; returns the status after the whole answer was read.
async fn ask(
    endpoint: &Endpoint,
    method: &str,
    path: &str,
    preparation: &Preparation,
    patience: Duration,
) -> Result<u16, String> {
    let talk = async {
        let stream = upstream::connect(endpoint).await.map_err(|error| error.to_string())?;
        let mut session = HttpSession::new(Box::new(stream));
        let mut request = RequestHeader::build(method, path.as_bytes(), Some(4))
            .map_err(|error| error.to_string())?;
        let headers = [
            ("Host", preparation.app.name.to_string()),
            ("Connection", "close".into()),
            ("Content-Length", "0".into()),
            ("X-Edgepoint-Generation", preparation.generation.to_string()),
        ];
        for (name, value) in headers {
            request.insert_header(name, value).map_err(|error| error.to_string())?;
        }
        session.write_request_header(Box::new(request)).await.map_err(|error| error.to_string())?;
        session.read_resp_header_parts().await.map_err(|error| error.to_string())?;
        let status = session.get_status().map_or(0, |status| status.as_u16());
        let mut read = 0;
        while let Some(part) = session.read_body_bytes().await.map_err(|error| error.to_string())? {
            read += part.len();
            if read > BODY_MAX {
                break;
            }
        }
        session.shutdown().await;
        Ok(status)
    };
    match timeout(patience, talk).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("{path} was not answered within {} s", patience.as_secs_f32())),
    }
}
