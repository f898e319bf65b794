//! The node's own log: lines from a pipe become `tracing` events of the target `tsnet`, each with
//! its level.
//!
//! Invariants
//! - The pipe is read until Go closes it, so Go never has to drop lines for lack of a reader.
//! - A line that is not JSON is logged as it is.
//! - What a person must see (the login URL) is never below `info`.

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

/// Longer lines are cut into pieces of this many bytes.
const MAX_LINE: u64 = 64 * 1024;

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Line {
    #[serde(default)]
    level: String,
    msg: String,
    /// Number of lines lost before this one because the pipe was full.
    #[serde(default)]
    dropped: u64,
}

/// Logs every line until the other end is closed.
pub(super) async fn pump(pipe: impl AsyncRead + Unpin, node: String) {
    let mut pipe = BufReader::new(pipe);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match (&mut pipe)
            .take(MAX_LINE)
            .read_until(b'\n', &mut bytes)
            .await
        {
            Ok(0) => return,
            Ok(_) => emit(&line(&bytes), &node),
            Err(error) => {
                tracing::warn!(target: "tsnet", %error, node, "the node's log can no longer be read");
                return;
            }
        }
    }
}

fn line(bytes: &[u8]) -> Line {
    let mut line = serde_json::from_slice(bytes).unwrap_or_else(|_| Line {
        level: "info".into(),
        msg: String::from_utf8_lossy(bytes).trim_end().to_owned(),
        dropped: 0,
    });
    if line.msg.contains("login URL") && matches!(line.level.as_str(), "trace" | "debug") {
        line.level = "info".into();
    }
    line
}

fn emit(line: &Line, node: &str) {
    if line.dropped > 0 {
        tracing::warn!(target: "tsnet", dropped = line.dropped, node, "lines of the node's log were dropped");
    }
    let msg = line.msg.as_str();
    match line.level.as_str() {
        "trace" => tracing::trace!(target: "tsnet", node, "{msg}"),
        "debug" => tracing::debug!(target: "tsnet", node, "{msg}"),
        "warn" => tracing::warn!(target: "tsnet", node, "{msg}"),
        "error" => tracing::error!(target: "tsnet", node, "{msg}"),
        _ => tracing::info!(target: "tsnet", node, "{msg}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_keeps_its_level() {
        let line = line(br#"{"level":"debug","msg":"magicsock: x","dropped":3}"#);
        assert_eq!((line.level.as_str(), line.dropped), ("debug", 3));
    }

    #[test]
    fn the_login_url_is_always_shown() {
        let line = line(br#"{"level":"trace","msg":"login URL: https://x"}"#);
        assert_eq!(line.level, "info");
    }

    #[test]
    fn a_line_that_is_not_json_is_logged_as_it_is() {
        let line = line(b"fatal \xff\n");
        assert_eq!(line.msg, "fatal \u{fffd}");
    }

    #[tokio::test]
    async fn the_pipe_is_read_to_its_end() {
        let mut long = vec![b'x'; 3 * 64 * 1024];
        long.extend(b"\n{\"msg\":\"after\"}\nno end");
        pump(long.as_slice(), "test".into()).await;
    }
}
