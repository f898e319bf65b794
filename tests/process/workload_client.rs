//! `tailbone workload …` beside the component on a real tailnet: the client's process has no node,
//! and reaches the issuer through the SOCKS proxy of another node, whose identity it gets.

use std::fs;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;
use tempfile::TempDir;
use testkit::devnet::Devnet;

use super::{alone, tailbone};

const SERVER: &str = "https://public.example-devnet.ts.net";
const AUDIENCE: &str = "sts.amazonaws.com";

fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[test]
fn a_client_without_a_node_gets_the_tokens_of_its_proxys_node() {
    alone(async {
        let devnet = Devnet::with_https_and_peers(&["web=tag:web"]);
        let folder = TempDir::new().unwrap();
        let rules = "[[rule]]\ndecision = \"allow\"\n";
        fs::write(folder.path().join("workload.toml"), rules).unwrap();
        let mut daemon = tailbone(&folder)
            .flags(&["--components", "workload"])
            .flags(&["--workload-listen", "tailnet+tls://:443"])
            .flags(&["--workload-policy", "workload.toml"])
            .flags(&["--workload-subject", "{name}"])
            .host("public")
            .joining(&devnet)
            .await
            .start();
        daemon.logs("certificate of the node's name in use").await;
        devnet.ping("web", "public").await;

        let root = devnet.ready.acme.as_ref().unwrap().root_file.clone();
        let proxy = &devnet.ready.peers["web"].proxy;
        let run = |command: &[&str], proxy: &str| {
            let way = ["--server", SERVER, "--proxy", proxy, "--timeout", "30s"];
            let trusted = ["--ca-file", root.to_str().unwrap()];
            let line = [&["workload"], command, &way, &trusted].concat();
            let output = daemon.run(&line);
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            (
                output.status.code(),
                text(&output.stdout),
                text(&output.stderr),
            )
        };
        let (code, token, said) = run(&["token", "--audience", AUDIENCE, "--raw"], proxy);
        assert_eq!((code, said.as_str()), (Some(0), ""));
        let claims_of_token = claims(&token);
        assert_eq!(claims_of_token["iss"], SERVER);
        assert_eq!(claims_of_token["sub"], "web.example-devnet.ts.net");

        let file = folder.path().join("token");
        let write = format!("{AUDIENCE}={}", file.display());
        let (code, _, said) = run(&["agent", "--once", "--write", &write], proxy);
        assert_eq!((code, said.as_str()), (Some(0), ""));
        let written = fs::read_to_string(&file).unwrap();
        assert_eq!(claims(&written)["sub"], "web.example-devnet.ts.net");

        let aws = ["recipe", "aws", "--subject", "web.example-devnet.ts.net"];
        let aws = [&aws[..], &["--account", "123456789012", "--role", "web"]].concat();
        let (code, recipe, said) = run(&aws, proxy);
        assert_eq!((code, said.as_str()), (Some(0), ""));
        assert!(
            recipe.starts_with(&format!("# Issuer: {SERVER}\n")),
            "{recipe}"
        );

        // Nobody listens there.
        let (code, _, said) = run(&["token", "--audience", AUDIENCE], "socks5h://127.0.0.1:1");
        assert_eq!(code, Some(1));
        let words = format!("Error: the issuer at {SERVER} cannot be reached: ");
        assert!(said.starts_with(&words), "{said}");
    });
}
