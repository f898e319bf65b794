//! The defects T1 to T16 of TailSTS, with a test each that they cannot occur here.
//! `docs/compatibility/defects.md` lists them.

use testkit::counts::counts;

use super::*;

#[tokio::test]
async fn t01_validation_is_enforced() {
    let exchange = Exchange::new().await
        .file("a.toml", "issuer = \"\"\nalgorithm = \"HS256\"\njwks_url = \"/jwks\"\nallowed_scopes = []")
        .file("b.toml", "issuer = \"https://x.example\"\nalgorithm = \"RS256\"\njwks_url = \"https://x.example/k\"\nallowed_scopes = [\"acls\"]\nscope = 1");
    let told = TokenExchange::start(&exchange.settings, Meter::default())
        .unwrap_err()
        .to_string();
    for part in [
        "5 mistakes",
        "a.toml: issuer: no issuer",
        "a.toml: algorithm: unsupported algorithm",
        "a.toml: jwks_url: unparsable JWKS URL",
        "a.toml: allowed_scopes: no scopes",
        "b.toml: scope: unknown field",
    ] {
        assert!(told.contains(part), "{part}\n{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn t02_two_hundred_callers_each_get_their_own_grant() {
    let scopes: Vec<String> = (0..200).map(|n| format!("scope{n}")).collect();
    let all: Vec<&str> = scopes.iter().map(String::as_str).collect();
    let running = Arc::new(
        Exchange::new()
            .await
            .policy("p.toml", &all, "")
            .set(|settings| settings.cache_time = Duration::from_secs(60))
            .run()
            .await,
    );
    let client = reqwest::Client::new();
    let token = running.token(|_| {});
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..200 {
        let (client, token, url) = (client.clone(), token.clone(), running.url.clone());
        // Neighbours share a scope, so that requests with mixed-up halves would show too.
        let mine = [scopes[n].clone(), scopes[(n + 1) % 200].clone()];
        callers.spawn(async move {
            let mut wrong = 0;
            for _ in 0..2 {
                let request = client
                    .post(&url)
                    .bearer_auth(&token)
                    .json(&json!({"scopes": mine}));
                let answer = Answer::of(request).await;
                let own = TokenEndpoint::token_for(&mine.join(" "), "");
                if answer.plain() != (200, own.as_str()) {
                    wrong += 1;
                }
            }
            wrong
        });
    }
    let wrong: usize = callers.join_all().await.into_iter().sum();
    assert_eq!(wrong, 0, "callers got another's grant, or none");
    for seen in running.tokens.requests() {
        assert!(seen.basic && seen.value("grant_type") == Some("client_credentials"));
        assert_eq!(seen.value("client_secret"), None);
    }
}

/// `client.rs` runs the client; this checks that both ends agree.
#[tokio::test]
async fn t03_client_and_server_speak_the_same() {
    let running = Exchange::new()
        .await
        .policy("p.toml", &["acls", "routes"], "")
        .run()
        .await;
    let token = running.token(|_| {});
    let printed = super::client::exchange_command(
        &running.url,
        &["--token", &token, "--scopes", "acls,routes"],
    )
    .await
    .unwrap();
    assert_eq!(printed, TokenEndpoint::token_for("acls routes", "") + "\n");
}

#[tokio::test]
async fn t04_the_audience_is_checked() {
    let running = Exchange::new()
        .await
        .policy(
            "p.toml",
            &["acls"],
            "audience = [\"us\", \"https://sts.example\"]",
        )
        .run()
        .await;
    let with = |aud: Value| running.token(|c| c["aud"] = aud);
    for (aud, status) in [
        (json!("us"), 200),
        (json!(["x", "https://sts.example"]), 200),
        (json!("them"), 401),
        (json!([]), 401),
        (json!(1), 401),
        (Value::Null, 401),
    ] {
        assert_eq!(
            running.ask(&with(aud.clone()), &["acls"]).await.status,
            status,
            "{aud}"
        );
    }

    // A file of the old form has no audience: it loads with a warning, and `strict` refuses it.
    let old = Exchange::new().await.policy("p.toml", &["acls"], "");
    let lines = Lines::listen();
    let old = old.run().await;
    assert!(
        lines
            .all()
            .contains("p.toml: audience: tokens made for any service"),
        "{}",
        lines.all()
    );
    assert_eq!(
        old.ask(&old.token(|c| c["aud"] = "them".into()), &["acls"])
            .await
            .status,
        200
    );
    let mut strict = old.exchange.settings.clone();
    strict.strict = true;
    assert!(
        TokenExchange::start(&strict, Meter::default())
            .unwrap_err()
            .to_string()
            .contains("p.toml: audience")
    );
}

#[tokio::test]
async fn t05_tokens_expire_and_may_be_too_old() {
    let running = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "max_token_age = \"5m\"")
        .run()
        .await;
    let now = Timestamp::now().as_second();
    let eternal = running.token(|c| drop(c.as_object_mut().unwrap().remove("exp")));
    assert_eq!(
        running.ask(&eternal, &["acls"]).await.plain(),
        (401, "cannot handle this token\n")
    );
    let old = running.token(|c| c["iat"] = json!(now - 310));
    assert_eq!(
        running.ask(&old, &["acls"]).await.plain(),
        (401, "token expired or not yet valid\n")
    );
    assert_eq!(
        running.ask(&running.token(|_| {}), &["acls"]).await.status,
        200
    );

    let lax = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "require_exp = false")
        .run()
        .await;
    let eternal = lax.token(|c| drop(c.as_object_mut().unwrap().remove("exp")));
    assert_eq!(lax.ask(&eternal, &["acls"]).await.status, 200);
}

#[tokio::test]
async fn t06_every_policy_of_an_issuer_counts() {
    let running = Exchange::new()
        .await
        .policy("a.toml", &["acls"], "subject = \"first\"")
        .policy(
            "b.toml",
            &["routes"],
            "subject = \"second\"\naudience = \"us\"",
        )
        .run()
        .await;
    let of = |subject: &str| running.token(|c| c["sub"] = subject.into());
    assert_eq!(running.ask(&of("first"), &["acls"]).await.status, 200);
    assert_eq!(running.ask(&of("second"), &["routes"]).await.status, 200);
    assert_eq!(running.ask(&of("first"), &["routes"]).await.status, 403);
    assert_eq!(running.ask(&of("second"), &["acls"]).await.status, 403);
    assert_eq!(
        running.ask(&of("third"), &["acls"]).await.plain(),
        (403, "subject mismatch\n")
    );
}

#[tokio::test]
async fn t07_random_key_ids_cost_one_fetch_and_hold_nobody() {
    let running = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "")
        .fetching(|rules| rules.cool_down = Duration::from_secs(3600))
        .run()
        .await;
    let good = running.token(|_| {});
    assert_eq!(running.ask(&good, &["acls"]).await.status, 200);
    let started = std::time::Instant::now();
    for n in 0..20 {
        let unknown = with_kid(&good, &format!("random-{n}"));
        assert_eq!(
            running.ask(&unknown, &["acls"]).await.plain(),
            (401, "cannot handle this token\n")
        );
    }
    assert_eq!(
        running.issuer.hits(),
        2,
        "one at the start, one for all the unknown"
    );
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(running.ask(&good, &["acls"]).await.status, 200);
}

fn with_kid(token: &str, kid: &str) -> String {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let (_, rest) = token.split_once('.').unwrap();
    let header = json!({"alg": "RS256", "kid": kid}).to_string();
    format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header))
}

#[tokio::test]
async fn t08_bodies_and_times_have_bounds() {
    let running = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "")
        .set(|settings| settings.timeout = Duration::from_millis(100))
        .run()
        .await;
    let good = running.token(|_| {});
    let large = format!("{{\"scopes\": [\"{}\"]}}", "x".repeat(1 << 20));
    let asked = || running.post().bearer_auth(&good).body(large.clone());
    let plain = Answer::of(asked()).await;
    assert_eq!(plain.plain(), (413, "request too large\n"));
    let json = Answer::of(asked().header("accept", "application/json")).await;
    assert_eq!(
        (json.status.as_u16(), &json.json()["error"]),
        (413, &json!("invalid_request"))
    );
    // Without a length in advance.
    let part = hyper::body::Frame::data(bytes::Bytes::from(large.clone()));
    let parts = futures_util::stream::iter([Ok::<_, std::io::Error>(part)]);
    let unsized_body = reqwest::Body::wrap(http_body_util::StreamBody::new(parts));
    let streamed = Answer::of(running.post().bearer_auth(&good).body(unsized_body)).await;
    assert_eq!(streamed.plain(), (413, "request too large\n"));

    running.tokens.trouble(Trouble::Hang);
    let started = std::time::Instant::now();
    assert_eq!(
        running.ask(&good, &["acls"]).await.plain(),
        (500, "failed to get tailscale token\n")
    );
    assert!(started.elapsed() < Duration::from_secs(3));
    assert_eq!(running.ask(&good, &["acls"]).await.status, 200);
}

#[tokio::test]
async fn t09_claim_names_are_exact_and_stand_once() {
    let running = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "subject = \"root\"")
        .run()
        .await;
    let capital = running.token(|c| c["Sub"] = "root".into());
    assert_eq!(
        running.ask(&capital, &["acls"]).await.plain(),
        (403, "subject mismatch\n")
    );
    let claims = running.claims().to_string();
    let twice = claims.replacen("\"sub\":\"test\"", "\"sub\":\"test\",\"sub\":\"root\"", 1);
    assert_ne!(claims, twice);
    let twice = rsa().sign(twice.as_bytes()).unwrap();
    assert_eq!(
        running.ask(&twice, &["acls"]).await.plain(),
        (401, "invalid token\n")
    );
}

#[tokio::test]
async fn t10_a_taken_port_is_an_error_and_stopping_ends_the_tasks() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = super::tls::bind(taken.local_addr().unwrap())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("cannot be listened on"),
        "{error}"
    );

    let mut running = Exchange::with(
        JwksServer::start(Behaviour::Status(500)).await,
        TokenEndpoint::start().await,
    )
    .policy("p.toml", &["acls"], "")
    .fetching(|rules| rules.retry = (Duration::from_millis(5), Duration::from_millis(5)))
    .run()
    .await;
    running.until(|r| r.issuer.hits() > 3).await;
    running.sts.take().unwrap().stop();
    // One fetch may still be running.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let after = running.issuer.hits();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(running.issuer.hits(), after, "still fetching");
}

#[tokio::test]
async fn t11_only_policies_are_policies() {
    let exchange = Exchange::new()
        .await
        .policy("z.toml", &["acls"], "")
        .file("z.toml~", "junk [")
        .file(".DS_Store", "junk [")
        .file(".z.toml.swp", "junk [")
        .file("z.toml.bak", "junk [")
        .file("README.md", "# junk [")
        .file("#z.toml#", "junk [");
    let example = "issuer = \"http://localhost:8888\"\nalgorithm = \"RS256\"\njwks_url = \"http://localhost:8888/jwks\"\nallowed_scopes = [\"all\"]";
    let exchange = exchange.file("policy.example.toml", example);
    // The layout of a Kubernetes volume.
    let data = exchange.dir.path().join("..2026_01_01");
    std::fs::create_dir(&data).unwrap();
    std::fs::rename(exchange.dir.path().join("z.toml"), data.join("z.toml")).unwrap();
    std::os::unix::fs::symlink("..2026_01_01", exchange.dir.path().join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/z.toml", exchange.dir.path().join("z.toml")).unwrap();
    let loaded = sts::policy::load(exchange.dir.path(), false).unwrap();
    let names: Vec<_> = loaded.policies.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["z.toml"]);
    let warnings: Vec<_> = loaded.warnings.iter().map(|w| w.file.as_str()).collect();
    assert!(
        warnings.contains(&"policy.example.toml") && warnings.contains(&"README.md"),
        "{warnings:?}"
    );
    TokenExchange::start(&exchange.settings, Meter::default()).unwrap();
}

#[tokio::test]
async fn t12_tailscales_answers_are_told_apart() {
    let exchange =
        Exchange::new()
            .await
            .policy("p.toml", &["acls", "forbidden"], "tags = [\"tag:ci\"]");
    let running = exchange
        .set(|settings| settings.cache_time = Duration::from_secs(300))
        .run()
        .await;
    let good = running.token(|_| {});
    let code = |answer: &Answer| {
        (
            answer.status.as_u16(),
            answer.json()["error"].as_str().unwrap().to_owned(),
        )
    };

    // A refused scope is a fault of the grant: one request, no second try in the other style.
    let refused = running.ask_json(&good, &["forbidden"]).await;
    assert_eq!(code(&refused), (400, "invalid_scope".into()));
    assert_eq!(running.tokens.requests().len(), 1);

    running.tokens.trouble(Trouble::Answer(503, "{}"));
    assert_eq!(
        code(&running.ask_json(&good, &["acls"]).await),
        (502, "server_error".into())
    );

    let granted = running.ask(&good, &["acls"]).await;
    assert_eq!(
        granted.plain(),
        (200, TokenEndpoint::token_for("acls", "tag:ci").as_str())
    );
    let calls = running.tokens.requests().len();
    assert_eq!(running.ask(&good, &["acls"]).await.status, 200);
    assert_eq!(
        running.tokens.requests().len(),
        calls,
        "the second is from the cache"
    );

    let throttled = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "")
        .run()
        .await;
    let good = throttled.token(|_| {});
    throttled.tokens.trouble(Trouble::Throttle(30));
    let first = throttled.ask(&good, &["acls"]).await;
    assert_eq!(
        (first.status.as_u16(), first.header("retry-after")),
        (500, "30")
    );
    let second = throttled.ask_json(&good, &["acls"]).await;
    assert_eq!(code(&second), (503, "temporarily_unavailable".into()));
    assert!(!second.header("retry-after").is_empty());
    assert_eq!(
        throttled.tokens.requests().len(),
        1,
        "Retry-After is kept to"
    );

    let form = Exchange::with(
        JwksServer::of(&[rsa()]).await,
        TokenEndpoint::start_form_only().await,
    )
    .policy("p.toml", &["acls"], "")
    .run()
    .await;
    for _ in 0..2 {
        assert_eq!(form.ask(&form.token(|_| {}), &["acls"]).await.status, 200);
    }
    let styles: Vec<_> = form
        .tokens
        .requests()
        .iter()
        .map(|seen| seen.basic)
        .collect();
    assert_eq!(
        styles,
        [true, false, false],
        "Basic first, then the form, which is remembered"
    );
}

#[tokio::test]
async fn t13_every_decision_is_written_down_and_no_token_is() {
    let running = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "subject = \"test\"")
        .run()
        .await;
    let lines = Lines::listen();
    let good = running.token(|c| c["jti"] = "j-1".into());
    let other = running.token(|c| c["sub"] = "other\nline".into());
    let granted = running.ask(&good, &["acls"]).await;
    let refused = running.ask(&other, &["acls"]).await;
    let unauthorized = Answer::of(running.post()).await;
    running.tokens.trouble(Trouble::Answer(
        401,
        r#"{"error":"invalid_client","error_description":"no"}"#,
    ));
    running.tokens.trouble(Trouble::Answer(
        401,
        r#"{"error":"invalid_client","error_description":"no"}"#,
    ));
    running.ask(&good, &["acls"]).await;

    let audit = lines.audit();
    assert_eq!(audit.len(), 4, "{audit:#?}");
    let has = |line: &str, parts: &[&str]| {
        for part in parts {
            assert!(line.contains(part), "{part} not in {line}");
        }
    };
    let issuer = format!("issuer=\"{}\"", running.issuer.url);
    has(
        &audit[0],
        &[
            "decision=\"allowed\"",
            &issuer,
            "subject=\"test\"",
            "policy=\"p.toml\"",
            "scopes=\"acls\"",
            "jti=\"j-1\"",
            "kid=\"rsa-1\"",
            "request_id=",
            "peer=\"127.0.0.1:",
        ],
    );
    has(
        &audit[1],
        &[
            "decision=\"refused\"",
            "reason=\"subject\"",
            "policy=\"p.toml\"",
            "verified=true",
        ],
    );
    has(
        &audit[2],
        &["decision=\"refused\"", "reason=\"no_authorization\""],
    );
    has(&audit[3], &["reason=\"upstream_refused_client\""]);
    let all = lines.all();
    for secret in [
        SECRET,
        "k%25id%2Bsecret",
        granted.body.as_str(),
        good.as_str(),
        good.rsplit('.').next().unwrap(),
        other.as_str(),
    ] {
        assert!(!all.contains(secret), "{secret} was logged");
    }

    assert_eq!(
        counts(&running.meter, "sts_exchanges_total"),
        [
            r#"sts_exchanges_total{policy="",result="refused",reason="no_authorization"} 1"#,
            r#"sts_exchanges_total{policy="p.toml",result="granted",reason=""} 1"#,
            r#"sts_exchanges_total{policy="p.toml",result="refused",reason="subject"} 1"#,
            r#"sts_exchanges_total{policy="p.toml",result="refused",reason="upstream_refused_client"} 1"#,
        ]
    );
    for answer in [&granted, &refused, &unauthorized] {
        assert_eq!(answer.header("cache-control"), "no-store");
        assert!(!answer.header("x-request-id").is_empty());
    }
    assert_eq!(unauthorized.header("www-authenticate"), "Bearer");
    let health = Answer::of(running.http.get(format!("{}_healthz", running.url))).await;
    assert_eq!(
        (health.status.as_u16(), health.json()),
        (200, json!({"ok": true, "ready": true}))
    );
}

#[tokio::test]
async fn t14_credentials_are_needed_at_the_start_and_may_lie_in_files() {
    let exchange = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "")
        .set(|settings| settings.credentials = None);
    let told = TokenExchange::start(&exchange.settings, Meter::default())
        .unwrap_err()
        .to_string();
    assert!(
        told.contains("sts.clientId") && told.contains("p.toml"),
        "{told}"
    );

    let own = exchange
        .policy(
            "p.toml",
            &["acls"],
            &format!("client_id = \"{ID}\"\nclient_secret_file = \".secret\""),
        )
        .file(".secret", &format!("{SECRET}\n"));
    let running = own.run().await;
    assert_eq!(
        running.ask(&running.token(|_| {}), &["acls"]).await.status,
        200
    );
    let shown = format!("{:?}", running.sts());
    assert!(!shown.contains(SECRET), "{shown}");
}

/// Expiry, audience, key id, concurrency and client have tests above. This covers the rest that had
/// none.
#[tokio::test]
async fn t15_a_key_never_verifies_what_it_was_not_made_for() {
    let running = Exchange::new()
        .await
        .policy(
            "p.toml",
            &["acls"],
            "algorithms = [\"RS256\", \"PS256\", \"ES256\"]",
        )
        .run()
        .await;
    assert_eq!(
        running
            .ask(&sign(ec(), &running.claims()), &["acls"])
            .await
            .status,
        200
    );
    assert_eq!(
        running
            .ask(&sign(rsa(), &running.claims()), &["acls"])
            .await
            .status,
        200
    );
    // The published RSA key is for RS256: the same key under PS256, and the EC key's id under RSA,
    // do not fit.
    let good = running.token(|_| {});
    for header in [
        json!({"alg": "PS256", "kid": "rsa-1"}),
        json!({"alg": "RS256", "kid": "ec-1"}),
        json!({"alg": "RS256", "kid": 7}),
        json!({"alg": "RS256", "kid": "rsa-1", "crit": ["x"]}),
    ] {
        let answer = running.ask(&with_header(&good, &header), &["acls"]).await;
        assert_eq!(
            answer.plain(),
            (401, "cannot handle this token\n"),
            "{header}"
        );
    }
    for alg in ["none", "HS256"] {
        let answer = running
            .ask(
                &with_header(&good, &json!({"alg": alg, "kid": "rsa-1"})),
                &["acls"],
            )
            .await;
        assert_eq!(answer.plain(), (401, "invalid signature\n"), "{alg}");
    }
    let answer = running
        .ask(&with_header(&good, &json!({"alg": "XX256"})), &["acls"])
        .await;
    assert_eq!(answer.plain(), (401, "invalid token\n"));
}

fn with_header(token: &str, header: &Value) -> String {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let (_, rest) = token.split_once('.').unwrap();
    format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header.to_string()))
}

#[tokio::test]
async fn t16_the_trial_issuers_tokens_expire_and_name_their_key() {
    let (token, base, _stop) = super::client::trial(
        &["--port", "0", "--life", "10m", "--audience", "us"],
        &[("KID", "mine"), ("SUBJECT", "me")],
    )
    .await;
    let read = tailbone::jwks::verify::ParsedToken::read(&token).unwrap();
    assert_eq!(read.kid(), Some("mine"));
    assert_eq!(read.claims.text("sub"), Some("me"));
    let tailbone::jwks::verify::TimeClaim::At(exp) = read.claims.time("exp") else {
        panic!("no exp")
    };
    let left = exp - Timestamp::now().as_second() as f64;
    assert!((590.0..=600.0).contains(&left), "{left}");

    // An exchange accepts them, by discovery.
    let exchange = Exchange::new().await;
    let policy = format!(
        "issuer = \"{base}\"\nalgorithm = \"RS256\"\naudience = \"us\"\nsubject = \"me\"\nallowed_scopes = [\"acls\"]"
    );
    let running = exchange.file("p.toml", &policy).run().await;
    assert_eq!(running.ask(&token, &["acls"]).await.status, 200);
    let fresh = running
        .http
        .get(format!("{base}/token?sub=you"))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert_eq!(
        running.ask(&fresh, &["acls"]).await.plain(),
        (403, "subject mismatch\n")
    );
}
