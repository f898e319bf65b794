//! What is in a token.

use std::collections::BTreeSet;

use super::*;
use tailbone::policy::WORKLOAD_CAPABILITY;

#[tokio::test]
async fn the_claims_are_tsiams_in_their_order() {
    let server = WorkloadServer::open().await;
    let answer = token_for(&mut server.web().await, AUDIENCE).await;
    let token = token_in(&answer);
    let (header, claims) = server.verified(&token).await;
    let kid = header["kid"].as_str().unwrap();
    assert_eq!(header, json!({"alg": "ES256", "kid": kid, "typ": "JWT"}));
    assert_eq!(claims["iss"], ISSUER);
    assert_eq!(claims["aud"], json!([AUDIENCE]));
    assert_eq!(claims["sub"], "web.fake-tailnet.ts.net");
    let jti = claims["jti"].as_str().unwrap();
    assert_eq!(URL_SAFE_NO_PAD.decode(jti).unwrap().len(), 24);
    let record = &claims["italypaleale.me/tsiam"];
    assert_eq!(record["name"], "web.fake-tailnet.ts.net");
    assert_eq!(record["hostname"], "web");
    assert_eq!(record["userLoginName"], "tagged-devices");
    assert_eq!(record["tags"], json!(["tag:web"]));
    assert!(record["nodeId"].as_str().is_some_and(|id| !id.is_empty()));
    // Bare addresses, without a length of prefix.
    let address = |name: &str| record[name].as_str().unwrap().to_owned();
    assert!(address("ip4").is_empty() || address("ip4").parse::<std::net::Ipv4Addr>().is_ok());
    assert!(address("ip6").is_empty() || address("ip6").parse::<std::net::Ipv6Addr>().is_ok());
    assert!(record.get("capMap").is_none());

    let payload = token.split('.').nth(1).unwrap();
    let payload = String::from_utf8(URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
    let places = [
        "{\"aud\":",
        ",\"exp\":",
        ",\"iat\":",
        ",\"iss\":",
        ",\"italypaleale.me/tsiam\":{\"nodeId\":",
        ",\"jti\":",
        ",\"nbf\":",
        ",\"sub\":",
    ]
    .map(|member| {
        payload
            .find(member)
            .unwrap_or_else(|| panic!("{member} in {payload}"))
    });
    assert!(places.is_sorted(), "{payload}");
}

#[tokio::test]
async fn every_lifetime_is_in_the_claims_and_in_the_answer() {
    let server = WorkloadServer::open().await;
    let mut web = server.web().await;
    for minutes in [1, 5, 30, 60] {
        let seconds = minutes * 60;
        server.set(|settings| settings.lifetime = Duration::from_secs(seconds));
        let before = Timestamp::now().as_second();
        let answer = token_for(&mut web, AUDIENCE).await;
        let (_, claims) = server.verified(&token_in(&answer)).await;
        let (told, number) = (answer.json(), |name: &str| claims[name].as_i64().unwrap());
        assert_eq!(told["expires_in"], seconds.to_string());
        assert_eq!(told["expires_on"], number("exp").to_string());
        assert_eq!(told["not_before"], number("nbf").to_string());
        assert_eq!(
            number("exp") - number("iat"),
            i64::try_from(seconds).unwrap()
        );
        assert_eq!(number("nbf"), number("iat"));
        assert!((before..=Timestamp::now().as_second()).contains(&number("iat")));
    }
}

#[tokio::test]
async fn every_token_has_an_id_of_its_own() {
    let server = WorkloadServer::open().await;
    let mut web = server.web().await;
    let mut ids = BTreeSet::new();
    for _ in 0..100 {
        let token = token_in(&token_for(&mut web, AUDIENCE).await);
        let payload = URL_SAFE_NO_PAD
            .decode(token.split('.').nth(1).unwrap())
            .unwrap();
        let claims: Value = serde_json::from_slice(&payload).unwrap();
        ids.insert(claims["jti"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids.len(), 100);
}

#[tokio::test]
async fn capabilities_are_in_a_token_only_where_they_are_asked_for() {
    let server = WorkloadServer::open().await;
    let identity = machine(audiences(&[AUDIENCE]));
    let mut web = server.call("web", identity).await;
    let cap_map = async |web: &mut Connection| {
        let token = token_in(&token_for(web, AUDIENCE).await);
        server.verified(&token).await.1["italypaleale.me/tsiam"]["capMap"].clone()
    };
    assert_eq!(cap_map(&mut web).await, Value::Null);
    server.set(|settings| settings.with_capabilities = true);
    let granted = json!({TSIAM_CAPABILITY: [{"allowedAudiences": [AUDIENCE]}]});
    assert_eq!(cap_map(&mut web).await, granted);
}

#[tokio::test]
async fn an_audience_has_its_own_life_algorithm_subject_and_form() {
    let server = WorkloadServer::with_rules(
        r#"
        [[rule]]
        decision = "allow"
        audiences = ["short"]
        max_lifetime = "2m"
        algorithms = ["EdDSA"]
        claims = { team = "payments", roles = ["a", "b"], admin = false }

        [[rule]]
        decision = "allow"

        [[audience]]
        match = ["sts.amazonaws.com", "short"]
        lifetime = "15m"
        algorithm = "ES384"
        subject = "spiffe://fake-tailnet.ts.net/{tag}/{label}"
        aud = "text"
        aws_session = true
        "#,
    )
    .await;
    let mut web = server.web().await;
    let token = token_in(&token_for(&mut web, "sts.amazonaws.com").await);
    let (header, claims) = server.verified(&token).await;
    assert_eq!(header["alg"], "ES384");
    assert_eq!(claims["aud"], "sts.amazonaws.com");
    assert_eq!(claims["sub"], "spiffe://fake-tailnet.ts.net/web/web");
    let life = |claims: &Value| claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
    assert_eq!(life(&claims), 900);
    let tags = &claims["https://aws.amazon.com/tags"]["principal_tags"];
    assert_eq!(tags["tag:web"], json!(["true"]));
    assert_eq!(tags["node-name"], json!(["web.fake-tailnet.ts.net"]));
    let identity = &claims["https://aws.amazon.com/source_identity"];
    assert_eq!(*identity, tags["node-id"][0]);

    let token = token_in(&token_for(&mut web, "short").await);
    let (header, claims) = server.verified(&token).await;
    assert_eq!(
        header["alg"], "EdDSA",
        "the rule does not allow that of the audience"
    );
    assert_eq!(life(&claims), 120, "a rule only shortens");
    assert_eq!(claims["team"], "payments");
    assert_eq!(claims["roles"], json!(["a", "b"]));
    assert_eq!(claims["admin"], false);

    let two = Identity::tagged(["tag:web", "tag:db"]);
    let answer = token_for(&mut server.call("two", two).await, "short").await;
    assert_eq!(refusal(&answer), (403, "no_subject".to_owned()));
    assert!(
        answer.json()["innerError"]
            .as_str()
            .unwrap()
            .contains("2 tags")
    );
}

#[tokio::test]
async fn a_grant_narrows_as_a_rule_does() {
    let server = WorkloadServer::with_rules("").await;
    let grant = json!({
        "audiences": [AUDIENCE], "maxLifetime": "1m", "algorithms": ["ES384"],
        "claims": {"team": "payments"}
    });
    let identity = Identity::tagged(["tag:web"]).cap(WORKLOAD_CAPABILITY, grant);
    let answer = token_for(&mut server.call("web", identity).await, AUDIENCE).await;
    assert_eq!(answer.json()["expires_in"], "60");
    let (header, claims) = server.verified(&token_in(&answer)).await;
    assert_eq!(
        (header["alg"].as_str(), claims["team"].as_str()),
        (Some("ES384"), Some("payments"))
    );

    let forged = json!({"audiences": [AUDIENCE], "claims": {"sub": "root"}});
    let identity = Identity::tagged(["tag:web"]).cap(WORKLOAD_CAPABILITY, forged);
    let answer = token_for(&mut server.call("db", identity).await, AUDIENCE).await;
    assert_eq!(refusal(&answer), (403, "audience_not_permitted".to_owned()));
}

#[tokio::test]
async fn an_algorithm_without_a_key_is_said_to_be_our_trouble() {
    let server = WorkloadServer::with_rules(
        "[[rule]]\ndecision = 'allow'\n[[audience]]\nmatch = ['*']\nalgorithm = 'RS256'\n",
    )
    .await;
    let answer = token_for(&mut server.web().await, AUDIENCE).await;
    assert_eq!(refusal(&answer), (503, "no_signing_key".to_owned()));
    assert_eq!(answer.header("retry-after"), "10");
}
