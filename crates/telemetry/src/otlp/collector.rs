//! The connection to the collector: one HTTP client for both signals, and one warning per outage.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use prost::Message;
use reqwest::Url;

use super::Settings;

/// The timeout of one message. Messages are sent in the background, so a long timeout only costs
/// memory for those that wait.
const TIME: Duration = Duration::from_secs(10);
const CONNECT_TIME: Duration = Duration::from_secs(3);

/// The connection. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Collector(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    http: reqwest::Client,
    traces: Url,
    metrics: Url,
    /// Whether the last message was lost; the warning was written then.
    lost: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Signal {
    Metrics,
    Traces,
}

/// The collector's address in the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NoCollector {
    #[error("the collector's address cannot be used")]
    Address,
    #[error("the HTTP client cannot be made")]
    Client(#[source] reqwest::Error),
}

/// Why a message was lost. Does not contain the URL, whose query may hold a key.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("it cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    #[error("it answers {0}")]
    Refused(StatusCode),
}

impl Collector {
    pub(super) fn new(settings: &Settings) -> Result<Self, NoCollector> {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/x-protobuf"),
        );
        for (name, value) in &settings.headers {
            let name = HeaderName::from_bytes(name.as_bytes());
            let value = HeaderValue::from_str(value.reveal());
            // Both were checked when the settings were read.
            if let (Ok(name), Ok(mut value)) = (name, value) {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
        }
        let http = reqwest::Client::builder()
            .default_headers(headers)
            // Another server must not get the headers.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIME)
            .timeout(TIME)
            .user_agent(concat!("tailbone/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(NoCollector::Client)?;
        Ok(Self(Arc::new(Inner {
            http,
            traces: below(&settings.endpoint, "traces")?,
            metrics: below(&settings.endpoint, "metrics")?,
            lost: AtomicBool::new(false),
        })))
    }

    pub(super) async fn send(
        &self,
        signal: Signal,
        message: &impl Message,
    ) -> Result<(), SendError> {
        let outcome = self.try_send(signal, message.encode_to_vec()).await;
        let lost = outcome.is_err();
        match (&outcome, self.0.lost.swap(lost, Ordering::Relaxed)) {
            (Err(error), false) => {
                tracing::warn!(target: "server", error = error as &dyn std::error::Error, "the collector does not take traces and metrics; they are lost until it does");
            }
            (Ok(()), true) => {
                tracing::info!(target: "server", "the collector takes traces and metrics again");
            }
            _ => {}
        }
        outcome
    }

    async fn try_send(&self, signal: Signal, body: Vec<u8>) -> Result<(), SendError> {
        let to = match signal {
            Signal::Metrics => &self.0.metrics,
            Signal::Traces => &self.0.traces,
        };
        let sent = self.0.http.post(to.clone()).body(body).send().await;
        let status = sent
            .map_err(|error| SendError::Unreachable(error.without_url()))?
            .status();
        if status.is_success() {
            Ok(())
        } else {
            Err(SendError::Refused(status))
        }
    }
}

/// The URL of a signal, relative to the collector's as the protocol defines it.
fn below(endpoint: &str, signal: &str) -> Result<Url, NoCollector> {
    let mut url = Url::parse(endpoint).map_err(|_| NoCollector::Address)?;
    url.path_segments_mut()
        .map_err(|()| NoCollector::Address)?
        .pop_if_empty()
        .extend(["v1", signal]);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_lie_below_the_collectors_path() {
        let at = |endpoint| below(endpoint, "traces").unwrap().to_string();
        assert_eq!(at("http://c:4318"), "http://c:4318/v1/traces");
        assert_eq!(at("http://c:4318/"), "http://c:4318/v1/traces");
        assert_eq!(at("https://c/otlp?k=v"), "https://c/otlp/v1/traces?k=v");
        assert_eq!(at("https://c/otlp/"), "https://c/otlp/v1/traces");
    }
}
