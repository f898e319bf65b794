//! Issuers' servers that are slow, huge, wrong, rotating or redirecting.

use testkit::{counts::counts, soon};

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn an_issuer_that_hangs_delays_nobody_else() {
    let hanging = JwksServer::start(Behaviour::Hang).await;
    let hanging_jwks = hanging.jwks_url();
    let other = format!(
        "issuer = \"{}\"\nalgorithm = \"RS256\"\njwks_url = \"{hanging_jwks}\"\nallowed_scopes = [\"acls\"]",
        hanging.url
    );
    let exchange = async || {
        Exchange::new()
            .await
            .policy("p.toml", &["acls"], "")
            .file("a-hanging.toml", &other)
    };
    // A request that waited for the other issuer's timeout would be far too late.
    let endless = exchange()
        .await
        .fetching(|rules| rules.time = Duration::from_secs(3600));
    let running = endless.run().await;
    let good = running.token(|_| {});
    let answer = soon("a token of the other issuer", running.ask(&good, &["acls"])).await;
    assert_eq!(answer.status, 200);

    let running = exchange().await.run().await;
    let stuck = running.token(|c| c["iss"] = hanging.url.as_str().into());
    let answer = running.ask(&stuck, &["acls"]).await;
    assert_eq!(answer.plain(), (401, "cannot handle this token\n"));
    assert_eq!(answer.header("retry-after"), "5");
    let answer = running.ask_json(&stuck, &["acls"]).await;
    assert_eq!(
        (answer.status.as_u16(), answer.json()["error"].as_str()),
        (503, Some("temporarily_unavailable"))
    );
    let readiness = running.sts().readiness();
    assert!(
        readiness.ready,
        "one issuer in trouble does not make all unready: {readiness:?}"
    );
}

#[tokio::test]
async fn bad_answers_never_replace_a_good_set() {
    let elsewhere = JwksServer::of(&[rsa()]).await;
    let running = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "")
        .fetching(|rules| rules.cool_down = Duration::ZERO)
        .run()
        .await;
    let good = running.token(|_| {});
    let unknown = sign(stranger(), &running.claims());
    assert_eq!(running.ask(&good, &["acls"]).await.status, 200);
    let troubles = [
        Behaviour::Status(500),
        Behaviour::Text("<html>"),
        Behaviour::Text("{}"),
        Behaviour::Text(r#"{"keys":[{"kty":"oct"}]}"#),
        Behaviour::Huge,
        Behaviour::Hang,
        Behaviour::Redirect(elsewhere.jwks_url()),
    ];
    for trouble in troubles {
        running.issuer.behave(trouble.clone());
        let before = running.issuer.hits();
        // An unknown key leads to a fetch, which fails.
        assert_eq!(
            running.ask(&unknown, &["acls"]).await.plain(),
            (401, "cannot handle this token\n")
        );
        assert!(
            running.issuer.hits() > before,
            "{trouble:?} was not fetched"
        );
        running
            .until(|r| r.sts().readiness().sources[0].problem.is_some())
            .await;
        assert_eq!(
            running.ask(&good, &["acls"]).await.status,
            200,
            "{trouble:?}"
        );
        running.issuer.behave(Behaviour::keys(&[rsa()]));
        running.ask(&unknown, &["acls"]).await;
        running
            .until(|r| r.sts().readiness().sources[0].problem.is_none())
            .await;
    }
    let counted = counts(&running.meter, "sts_key_fetches_total{result=\"failed\"}");
    assert_eq!(counted.len(), 1, "failed fetches are counted");
    assert_eq!(
        elsewhere.hits(),
        0,
        "the redirect was followed to another host"
    );
}

#[tokio::test]
async fn bad_first_answers_leave_the_start_alone() {
    for trouble in [
        Behaviour::Huge,
        Behaviour::Text("nonsense"),
        Behaviour::Status(404),
    ] {
        let running = Exchange::with(
            JwksServer::start(trouble.clone()).await,
            TokenEndpoint::start().await,
        )
        .policy("p.toml", &["acls"], "")
        .fetching(|rules| {
            rules.cool_down = MINUTE;
            rules.retry = (Duration::from_millis(100), MINUTE);
        })
        .run()
        .await;
        let good = running.token(|_| {});
        assert_eq!(
            running.ask(&good, &["acls"]).await.status,
            401,
            "{trouble:?}"
        );
        assert!(!running.sts().readiness().ready, "{trouble:?}");
        running.issuer.behave(Behaviour::keys(&[rsa()]));
        // The background task tries again by itself.
        running.until(|r| r.sts().readiness().ready).await;
        assert_eq!(
            running.ask(&good, &["acls"]).await.status,
            200,
            "{trouble:?}"
        );
    }
}

#[tokio::test]
async fn a_new_key_is_found_at_once_and_a_gone_one_is_forgotten() {
    let running = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "")
        .fetching(|rules| rules.cool_down = MINUTE)
        .run()
        .await;
    let old = running.token(|_| {});
    assert_eq!(running.ask(&old, &["acls"]).await.status, 200);
    let next = stranger();
    running.issuer.behave(Behaviour::keys(&[next]));
    let new = sign(next, &running.claims());
    assert_eq!(running.issuer.hits(), 1);
    let (a, b) = tokio::join!(running.ask(&new, &["acls"]), running.ask(&new, &["acls"]));
    assert_eq!((a.status.as_u16(), b.status.as_u16()), (200, 200));
    assert_eq!(running.issuer.hits(), 2, "both wait for one fetch");
    assert_eq!(
        running.ask(&old, &["acls"]).await.plain(),
        (401, "cannot handle this token\n")
    );
}

#[tokio::test]
async fn tokens_without_a_key_id_are_tried_with_every_fitting_key() {
    let running = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "")
        .run()
        .await;
    let decoy = stranger();
    let key = rsa();
    running.issuer.behave(Behaviour::keys(&[decoy, ec(), key]));
    // Built by hand, without a kid in the header.
    let nameless = nameless(&running.claims());
    let unnamed: Vec<_> = [decoy, key]
        .iter()
        .map(|s| {
            let mut jwk = s.public().to_value();
            jwk.as_object_mut().unwrap().remove("kid");
            jwk
        })
        .chain([nameless.1])
        .collect();
    running.issuer.behave(Behaviour::Keys(unnamed));
    assert_eq!(running.ask(&nameless.0, &["acls"]).await.status, 200);
}

/// A token whose header has no `kid`, and its key.
fn nameless(claims: &Value) -> (String, Value) {
    use aws_lc_rs::{
        rand::SystemRandom,
        rsa::KeySize,
        signature::{KeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
    };
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let message = format!(
        "{}.{}",
        BASE64.encode(r#"{"alg":"RS256"}"#),
        BASE64.encode(claims.to_string())
    );
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(
        &RSA_PKCS1_SHA256,
        &SystemRandom::new(),
        message.as_bytes(),
        &mut signature,
    )
    .unwrap();
    let n = BASE64.encode(
        pair.public_key()
            .modulus()
            .big_endian_without_leading_zero(),
    );
    (
        format!("{message}.{}", BASE64.encode(signature)),
        json!({"kty": "RSA", "n": n, "e": "AQAB"}),
    )
}

#[tokio::test]
async fn discovery_finds_the_keys_of_the_very_issuer() {
    let exchange = Exchange::new().await;
    let keys = exchange.issuer.jwks_url();
    let issuer = exchange.issuer.url.clone();
    let policy = format!(
        "issuer = \"{issuer}\"\nalgorithms = [\"RS256\", \"ES256\"]\naudience = \"us\"\nsubject = \"test\"\nallowed_scopes = [\"acls\"]"
    );
    let exchange = exchange
        .file("p.toml", &policy)
        .fetching(|rules| rules.cool_down = Duration::ZERO);
    exchange
        .issuer
        .configure(json!({"issuer": "https://evil.example", "jwks_uri": keys}));
    let running = exchange.run().await;
    let good = sign(ec(), &running.claims());
    assert_eq!(running.ask(&good, &["acls"]).await.status, 401);
    let problem = running.sts().readiness().sources[0]
        .problem
        .clone()
        .unwrap();
    assert!(problem.contains("evil.example"), "{problem}");
    assert_eq!(
        running.issuer.hits(),
        0,
        "another issuer's keys were fetched"
    );

    running
        .issuer
        .configure(json!({"issuer": issuer, "jwks_uri": keys}));
    assert_eq!(running.ask(&good, &["acls"]).await.status, 200);
}

#[tokio::test]
async fn an_unchanged_set_is_not_sent_again() {
    let running = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "")
        .fetching(|rules| rules.cool_down = Duration::ZERO)
        .run()
        .await;
    let unknown = sign(stranger(), &running.claims());
    assert_eq!(
        running.ask(&running.token(|_| {}), &["acls"]).await.status,
        200
    );
    assert_eq!(running.ask(&unknown, &["acls"]).await.status, 401);
    assert_eq!(running.issuer.not_modified(), 1);
    assert_eq!(
        counts(&running.meter, "sts_key_fetches_total"),
        [
            r#"sts_key_fetches_total{result="new"} 1"#,
            r#"sts_key_fetches_total{result="unchanged"} 1"#,
        ]
    );
    assert_eq!(
        running.ask(&running.token(|_| {}), &["acls"]).await.status,
        200
    );
}
