//! Components at listeners of every kind, as the `listen` settings say.

use std::fs;

use tempfile::TempDir;
use testkit::{
    http::{Answer, Connection, request},
    proxies::free_addr,
    soon,
    world::EmbeddedWorld,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use super::server::Daemon;

const RULES: &str = "[[rule]]\nname = \"open\"\ndecision = \"anonymous\"\npaths = [\"/open\"]\n";

async fn get(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, path: &str) -> Answer {
    let answer = async {
        Connection::over(stream)
            .await
            .host("localhost")
            .get(path)
            .await
    };
    soon("an answer", answer).await
}

async fn post(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, path: &str) -> Answer {
    let answer = async {
        Connection::over(stream)
            .await
            .host("localhost")
            .post(path)
            .await
    };
    soon("an answer", answer).await
}

alone! {
    async fn any_component_stands_on_any_kind_of_listener() {
        let world = EmbeddedWorld::new();
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("policy.toml"), RULES).unwrap();
        let socket = |name: &str| folder.path().join(name);
        let host = free_addr();
        let issuer = format!("tailnet://:80,http://{host},unix://{}?mode=0600", socket("issuer").display());
        let metrics = format!("unix://{}", socket("metrics").display());
        let auth = format!("unix://{}?mode=0660", socket("auth").display());
        let key = world.devnet.ready_key().await;
        let more = [
            "--components", "issuer,metrics,gate", "--listen", &issuer, "--metrics-listen", &metrics,
            "--gate-auth-listen", &auth, "--gate-policy", "policy.toml",
        ];
        let mut daemon = Daemon::start(folder.path(), world.devnet, &world.host("kinds"), Some(&key), &more);
        daemon.listening(5).await;

        // The keys are for everybody, tokens for the tailnet alone.
        let at_host = async || TcpStream::connect(host).await.unwrap();
        let at = async |name: &str| UnixStream::connect(socket(name)).await.unwrap();
        assert_eq!(get(at_host().await, "/.well-known/jwks.json").await.status(), 200);
        assert_eq!(get(at("issuer").await, "/.well-known/jwks.json").await.status(), 200);
        for answer in [post(at_host().await, "/issue").await, post(at("issuer").await, "/issue").await] {
            assert_eq!(answer.refusal(), (403, "no_identity".to_owned()));
        }
        let numbers = get(at("metrics").await, "/metrics").await;
        assert_eq!(numbers.status(), 200);

        // Whoever can open the gate's socket asks about others.
        let stream = at("auth").await;
        let mut asked = request("GET", "/auth/nginx");
        for (name, value) in [("remote-addr", "192.0.2.1"), ("x-original-uri", "/open")] {
            asked.headers_mut().insert(name, value.parse().unwrap());
        }
        let answer = async { Connection::over(stream).await.host("wiki").send(asked).await };
        let answer = soon("an answer", answer).await;
        assert_eq!(answer.status(), 204, "{}", daemon.said());

        assert_eq!(daemon.stopped().code(), Some(0), "{}", daemon.said());
        for name in ["issuer", "metrics", "auth"] {
            assert!(!socket(name).exists(), "{name} was left behind");
        }
    }
}
