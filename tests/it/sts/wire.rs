//! The plain dialect, compared byte by byte with the contract's table.

use super::*;

#[tokio::test]
async fn every_answer_of_tailsts_contract() {
    let exchange =
        Exchange::new()
            .await
            .policy("p.toml", &["acls", "routes"], "subject = \"test\"");
    let running = exchange.run().await;
    let good = running.token(|_| {});
    let body = |text: &'static str| running.post().bearer_auth(&good).body(text);
    let rows = [
        (
            running.post().body("x"),
            401,
            "missing Authorization header\n",
        ),
        (
            running.post().header("authorization", ""),
            401,
            "missing Authorization header\n",
        ),
        (
            running.post().header("authorization", "bearer x"),
            401,
            "invalid Authorization header\n",
        ),
        (
            running.post().header("authorization", "Basic x").body("x"),
            401,
            "invalid Authorization header\n",
        ),
        (body("not json"), 400, "invalid request\n"),
        (body("[]"), 400, "invalid request\n"),
        (body(r#"{"scopes": "acls"}"#), 400, "invalid request\n"),
        (body(""), 400, "invalid request\n"),
        (body("{}"), 400, "missing scopes\n"),
        (body("null"), 400, "missing scopes\n"),
        (body(r#"{"scopes": null}"#), 400, "missing scopes\n"),
        (body(r#"{"scopes": []}"#), 400, "missing scopes\n"),
    ];
    for (request, status, text) in rows {
        let answer = Answer::of(request).await;
        assert_eq!(answer.plain(), (status, text));
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
    }
    let tokens = [
        ("nonsense".to_owned(), 401, "invalid token\n"),
        (
            running.token(|c| c["iss"] = "https://other.example".into()),
            401,
            "no matching policy\n",
        ),
        (
            running.token(|c| drop(c.as_object_mut().unwrap().remove("iss"))),
            401,
            "no matching policy\n",
        ),
        (sign(ec(), &running.claims()), 401, "invalid signature\n"),
        (forged(&good), 401, "invalid signature\n"),
        (
            running.token(|c| c["exp"] = json!(1_000_000_000)),
            401,
            "token expired or not yet valid\n",
        ),
        (
            running.token(|c| c["nbf"] = json!(9_999_999_999_u64)),
            401,
            "token expired or not yet valid\n",
        ),
        (
            running.token(|c| c["exp"] = "soon".into()),
            401,
            "cannot handle this token\n",
        ),
        (
            running.token(|c| c["sub"] = "other".into()),
            403,
            "subject mismatch\n",
        ),
    ];
    for (token, status, text) in tokens {
        assert_eq!(running.ask(&token, &["acls"]).await.plain(), (status, text));
    }
    assert_eq!(
        running.ask(&good, &["acls", "all"]).await.plain(),
        (403, "request denied\n")
    );
    assert_eq!(
        running.tokens.requests().len(),
        0,
        "no refusal may reach Tailscale"
    );

    running.tokens.trouble(Trouble::Answer(500, "{}"));
    let failed = running.ask(&good, &["acls"]).await;
    assert_eq!(failed.plain(), (500, "failed to get tailscale token\n"));

    let granted = running.ask(&good, &["routes", "acls"]).await;
    let token = TokenEndpoint::token_for("routes acls", "");
    assert_eq!(
        granted.plain(),
        (200, token.as_str()),
        "bare, without a newline, scopes in the order asked"
    );
    assert_eq!(granted.header("content-type"), "text/plain; charset=utf-8");
}

/// The token with another payload under the same signature.
fn forged(token: &str) -> String {
    let parts: Vec<_> = token.split('.').collect();
    let payload =
        base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, parts[1])
            .unwrap();
    let payload = String::from_utf8(payload)
        .unwrap()
        .replace("\"test\"", "\"root\"");
    let payload =
        base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, payload);
    format!("{}.{payload}.{}", parts[0], parts[2])
}

#[tokio::test]
async fn every_path_takes_post_and_nothing_else() {
    let running = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "")
        .run()
        .await;
    let client = running.http.clone();
    for path in ["", "token", "a/b/c", "_healthz"] {
        let request = client.post(format!("{}{path}", running.url));
        let answer = Answer::of(request.body("x")).await;
        assert_eq!(
            answer.plain(),
            (401, "missing Authorization header\n"),
            "{path}"
        );
    }
    for method in ["GET", "PUT", "DELETE", "OPTIONS"] {
        let method = http::Method::from_bytes(method.as_bytes()).unwrap();
        let answer = Answer::of(client.request(method, format!("{}x", running.url))).await;
        assert_eq!(answer.plain(), (405, "Method Not Allowed\n"));
        assert_eq!(answer.header("allow"), "POST");
    }
}

#[tokio::test]
async fn bodies_are_read_as_loosely_as_the_original_did() {
    let running = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "")
        .run()
        .await;
    let good = running.token(|_| {});
    for body in [
        r#"{"scopes": ["acls"]}"#,
        r#"{"Scopes": ["acls"], "more": 1}"#,
        "{\"scopes\": [\"acls\"]} and more",
    ] {
        // curl sends this content type for every body given with -d.
        for kind in [
            "application/x-www-form-urlencoded",
            "application/json",
            "text/x",
        ] {
            let request = running
                .post()
                .bearer_auth(&good)
                .header("content-type", kind);
            assert_eq!(
                Answer::of(request.body(body)).await.status,
                200,
                "{body} as {kind}"
            );
        }
    }
}

#[tokio::test]
async fn a_page_exchanges_nothing_unless_its_origin_is_allowed() {
    let exchange = Exchange::new()
        .await
        .policy("p.toml", &["acls"], "subject = \"test\"");
    let running = exchange.run().await;
    let good = running.token(|_| {});
    let ask = |name: &str, value: &str| {
        let request = running.post().bearer_auth(&good).header(name, value);
        Answer::of(request.body(r#"{"scopes": ["acls"]}"#))
    };
    for (name, value) in [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "same-origin"),
    ] {
        let answer = ask(name, value).await;
        assert_eq!(answer.status, 403, "{name}: {value}");
        assert_eq!(answer.json()["error"], "browser_request");
    }
    assert!(running.tokens.requests().is_empty());
    assert_eq!(ask("origin", "https://app.example.com").await.status, 200);
    // The exchange's health is public.
    let health = running.http.get(format!("{}_healthz", running.url));
    let health = Answer::of(health.header("origin", "https://evil.example"));
    assert_eq!(health.await.status, 200);
}
