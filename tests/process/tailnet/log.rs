//! The node's log arrives as events, without any secret in it.

use tailbone::tailnet::{LogLevel, Node};
use testkit::{
    eventually,
    tailnet::{DevnetTailnet, Tailnet, running},
    written::Written,
};

use crate::alone;

#[test]
fn lines_of_the_node_are_events_without_secrets() {
    alone(async {
        let captured = Written::default();
        let writer = captured.clone();
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || writer.clone())
            .init();
        let tailnet = DevnetTailnet::new();
        let key = tailnet.devnet.ready_key().await;
        let mut config = tailnet.config("chatty", &key);
        config.log_level = LogLevel::Trace;
        let node = tailnet.start(&config).await;
        running(&*node).await;
        node.close().await;

        for level in ["INFO tsnet", "DEBUG tsnet", "TRACE tsnet"] {
            eventually(level, || async {
                captured
                    .text()
                    .contains(level)
                    .then_some(())
                    .ok_or_else(|| captured.text())
            })
            .await;
        }
        let text = captured.text();
        assert!(text.contains(&tailnet.host("chatty")), "{text}");
        let (_, secret) = key.rsplit_once('-').unwrap();
        assert!(!text.contains(secret), "the log shows the auth key");
        assert!(!text.contains("privkey:"), "the log shows a private key");
        tailnet.end().await;
    });
}
