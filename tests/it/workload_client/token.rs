//! `tailbone workload token`.

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;

#[tokio::test]
async fn a_token_is_printed_in_three_ways() {
    let issuer = FakeIssuer::start().await;
    let server = issuer.url.as_str();
    let ask = [
        "token",
        "--server",
        server,
        "--audience",
        "sts.amazonaws.com",
    ];
    let line = run(&ask).await.unwrap();
    assert_eq!(line.trim_end().split('.').count(), 3);
    assert!(line.ends_with('\n'));
    let raw = run(&[&ask[..], &["--raw"]].concat()).await.unwrap();
    assert!(!raw.ends_with('\n') && raw.split('.').count() == 3, "{raw}");
    let variables = [("TAILBONE_WORKLOAD_SERVER", server)];
    let json = run_as(
        OutputFormat::Json,
        &["token", "--audience", "a b&c"],
        &variables,
    )
    .await
    .unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["expires_in"], 300);
    assert!(json["expires_on"].as_i64().unwrap() > jiff::Timestamp::now().as_second() + 200);
    let token = json["access_token"].as_str().unwrap();
    let claims = jsonwebtoken::dangerous::insecure_decode::<Value>(token)
        .unwrap()
        .claims;
    assert_eq!(claims["aud"][0], "a b&c");
}

#[tokio::test]
async fn what_goes_wrong_is_one_sentence() {
    let issuer = FakeIssuer::start().await;
    let refused = run(&["token", "--server", &issuer.url, "--audience", "forbidden"])
        .await
        .unwrap_err();
    assert_eq!(
        words(&refused),
        format!(
            "the issuer at {} refused: 403 Forbidden: audience_not_allowed: The requested \
             audience is not allowed by service configuration",
            issuer.url
        )
    );
    let gone = run(&["token", "--server", "http://127.0.0.1:1", "--audience", "a"])
        .await
        .unwrap_err();
    assert!(
        words(&gone).starts_with("the issuer at http://127.0.0.1:1 cannot be reached: "),
        "{}",
        words(&gone)
    );
    for wrong in [
        vec!["token", "--audience", "a"],
        vec!["token", "--audience", "a", "--server", "tsiam"],
        vec![
            "token",
            "--audience",
            "a",
            "--server",
            "http://x",
            "--proxy",
            "127.0.0.1:1055",
        ],
    ] {
        let error = run(&wrong).await.unwrap_err();
        assert!(matches!(error, WorkloadError::Usage(_)), "{error}");
    }
}

/// A server that takes the connection and says nothing.
#[tokio::test]
async fn an_issuer_that_says_nothing_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let ask = [
        "token",
        "--server",
        &url,
        "--audience",
        "a",
        "--timeout",
        "50ms",
    ];
    let error = soon("the end of the wait", run(&ask)).await.unwrap_err();
    assert_eq!(
        words(&error),
        format!("the issuer at {url} did not answer in time")
    );
}

/// The name is resolved by the proxy, as names of a tailnet must be.
#[tokio::test]
async fn a_socks_proxy_gets_the_name_of_the_issuer() {
    let issuer = FakeIssuer::start().await;
    let proxy = SocksProxy::start(issuer.url.trim_start_matches("http://")).await;
    let token = run(&[
        "token",
        "--server",
        "http://tsiam.tail1234.ts.net",
        "--audience",
        "a",
        "--proxy",
        &format!("socks5h://{}", proxy.addr),
    ])
    .await
    .unwrap();
    assert_eq!(token.split('.').count(), 3);
    let asked = proxy.asked.await.unwrap();
    assert_eq!(asked, "tsiam.tail1234.ts.net:80");
}

/// Takes one connection, and leads it to `target` whatever was asked for.
struct SocksProxy {
    addr: std::net::SocketAddr,
    asked: tokio::task::JoinHandle<String>,
}

impl SocksProxy {
    async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let target = target.to_owned();
        let asked = tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut greeting = [0; 2];
            client.read_exact(&mut greeting).await.unwrap();
            let mut methods = vec![0; usize::from(greeting[1])];
            client.read_exact(&mut methods).await.unwrap();
            client.write_all(&[5, 0]).await.unwrap();
            let mut head = [0; 5];
            client.read_exact(&mut head).await.unwrap();
            assert_eq!(head[..4], [5, 1, 0, 3], "a connection to a name");
            let mut name = vec![0; usize::from(head[4])];
            client.read_exact(&mut name).await.unwrap();
            let port = client.read_u16().await.unwrap();
            client
                .write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 0])
                .await
                .unwrap();
            let mut server = TcpStream::connect(target).await.unwrap();
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
            format!("{}:{port}", String::from_utf8(name).unwrap())
        });
        Self { addr, asked }
    }
}
