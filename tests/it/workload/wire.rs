//! `POST /token` and its neighbours, byte for byte as tsiam answers.

use super::*;

#[tokio::test]
async fn the_answer_is_tsiams_and_all_its_numbers_are_strings() {
    let server = WorkloadServer::open().await;
    let answer = token_for(&mut server.web().await, AUDIENCE).await;
    assert_eq!(
        answer.header("content-type"),
        "application/json; charset=utf-8"
    );
    assert_eq!(answer.header("cache-control"), "no-store");
    let text = answer.text();
    let token = token_in(&answer);
    let (_, claims) = server.verified(&token).await;
    let number = |name: &str| claims[name].as_i64().unwrap();
    assert_eq!(
        text,
        format!(
            "{{\"access_token\":\"{token}\",\"token_type\":\"Bearer\",\"expires_in\":\"300\",\
             \"expires_on\":\"{}\",\"not_before\":\"{}\"}}\n",
            number("exp"),
            number("nbf")
        )
    );
    assert_eq!(number("exp"), number("iat") + 300);
    assert_eq!(number("nbf"), number("iat"));
}

#[tokio::test]
async fn the_audience_is_in_the_query_alone() {
    let server = WorkloadServer::open().await;
    let mut web = server.web().await;
    for query in [
        "resource=a",
        "audience=a",
        "resource=a&audience=a",
        "resource=+a+",
        "resource=a&resource=b",
    ] {
        let token = token_in(&web.send(asking(&format!("/token?{query}"))).await);
        assert_eq!(
            server.verified(&token).await.1["aud"],
            json!(["a"]),
            "{query}"
        );
    }
    let long = |length: usize| format!("resource={}", "a".repeat(length));
    assert_eq!(
        web.send(asking(&format!("/token?{}", long(512))))
            .await
            .status(),
        200
    );
    for (query, code, message) in [
        (
            "resource=a&audience=b".to_owned(),
            "audience_conflict",
            "Conflicting query parameters: 'resource' and 'audience' have different values; only one should be provided",
        ),
        (
            String::new(),
            "missing_audience",
            "Missing required query parameter 'resource'",
        ),
        (
            "resource=%zz".into(),
            "missing_audience",
            "Missing required query parameter 'resource'",
        ),
        (
            "resource=a;b".into(),
            "missing_audience",
            "Missing required query parameter 'resource'",
        ),
        (
            long(513),
            "audience_too_long",
            "Invalid audience: value exceeds maximum length of 512 characters",
        ),
    ] {
        let answer = web.send(asking(&format!("/token?{query}"))).await;
        assert_eq!(answer.status(), 400, "{query}");
        assert_eq!(
            answer.text(),
            format!("{{\"code\":\"{code}\",\"message\":\"{message}\"}}\n")
        );
    }
    // A body says nothing, unless it is a form with a grant type.
    let form = request("POST", "/token").map(|_| Full::new(Bytes::from_static(b"resource=a")));
    let (mut parts, body) = form.into_parts();
    parts.headers.insert("x-tsiam", "1".parse().unwrap());
    let form = "application/x-www-form-urlencoded".parse().unwrap();
    parts.headers.insert("content-type", form);
    let answer = web.send(Request::from_parts(parts, body)).await;
    assert_eq!(refusal(&answer), (400, "missing_audience".to_owned()));
}

#[tokio::test]
async fn an_audience_that_is_no_text_gets_no_token() {
    let server = WorkloadServer::open().await;
    let answer = server
        .web()
        .await
        .send(asking("/token?resource=%ff%fe"))
        .await;
    assert_eq!(refusal(&answer), (403, "audience_not_allowed".to_owned()));
}

#[tokio::test]
async fn browsers_are_refused_before_anything_else_is_looked_at() {
    let server = WorkloadServer::open().await;
    let mut web = server.web().await;
    let plain = web.post("/token").await;
    assert_eq!(plain.status(), 403);
    assert_eq!(
        plain.text(),
        "{\"code\":\"no_browser\",\"message\":\"To prevent web browsers from accessing protected \
         endpoints, make sure to include the 'X-Tsiam: 1' header in the request. Additionally, \
         headers typically set by web browsers are forbidden.\",\"innerError\":\"missing header \
         X-Tsiam\"}\n"
    );
    for name in [
        "Origin",
        "Sec-Fetch-Site",
        "Sec-Fetch-Mode",
        "Sec-Fetch-Dest",
        "Sec-Fetch-User",
    ] {
        for value in ["none", ""] {
            let mut request = asking("/token?resource=a");
            let header: ::http::HeaderName = name.parse().unwrap();
            request.headers_mut().insert(header, value.parse().unwrap());
            let answer = web.send(request).await;
            assert_eq!(
                refusal(&answer),
                (403, "no_browser".to_owned()),
                "{name}: {value:?}"
            );
            assert_eq!(
                answer.json()["innerError"],
                format!("found browser header '{name}'")
            );
        }
    }
}

#[tokio::test]
async fn any_word_in_the_header_is_enough_and_headers_of_programs_do_no_harm() {
    let server = WorkloadServer::open().await;
    let mut web = server.web().await;
    for (name, value, status) in [
        ("X-Tsiam", "1", 200),
        ("X-Tsiam", "true", 200),
        ("x-tsiam", "any word", 200),
        ("X-TSIAM", "0", 200),
        ("X-Tsiam", "", 403),
        ("X-Other", "1", 403),
    ] {
        let mut request = request("POST", "/token?resource=a");
        let headers = request.headers_mut();
        for (name, value) in [
            ("accept", "*/*"),
            ("user-agent", "curl/8.5.0"),
            ("content-type", "application/json"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let name: ::http::HeaderName = name.parse().unwrap();
        headers.insert(name.clone(), value.parse().unwrap());
        let answer = web.send(request).await;
        assert_eq!(answer.status(), status, "{name}: {value:?}");
    }
    let mut several = asking("/token?resource=a");
    for name in ["sec-fetch-user", "sec-fetch-mode", "origin"] {
        several.headers_mut().insert(name, "x".parse().unwrap());
    }
    // The first in tsiam's order is told.
    let told = web.send(several).await.json();
    assert_eq!(told["innerError"], "found browser header 'Origin'");
}

#[tokio::test]
async fn paths_and_methods_are_answered_as_gos_router_does() {
    let server = WorkloadServer::open().await;
    let mut web = server.web().await;
    let mut outside = server.outside().await;
    for (method, path, tailnet, funnel, allow) in [
        ("GET", "/healthz", 204, 404, ""),
        ("HEAD", "/healthz", 204, 404, ""),
        ("GET", "/", 200, 404, ""),
        ("GET", "/token", 404, 404, ""),
        ("HEAD", "/token", 404, 404, ""),
        ("GET", "/nope", 404, 404, ""),
        ("PUT", "/token", 405, 405, "GET, HEAD, POST"),
        ("OPTIONS", "/token", 405, 405, "GET, HEAD, POST"),
        ("DELETE", "/token", 405, 405, "GET, HEAD, POST"),
        ("POST", "/healthz", 405, 405, "GET, HEAD"),
        ("POST", "/nope", 405, 405, "GET, HEAD"),
        ("POST", "/token/", 405, 405, "GET, HEAD"),
        ("GET", "//token", 307, 307, ""),
        ("GET", "/.well-known/jwks.json", 200, 200, ""),
        ("HEAD", "/.well-known/jwks.json", 200, 200, ""),
        ("GET", "/.well-known/openid-configuration", 200, 200, ""),
        ("POST", "/.well-known/jwks.json", 405, 405, "GET, HEAD"),
    ] {
        for (connection, status) in [(&mut web, tailnet), (&mut outside, funnel)] {
            let answer = connection.send(request(method, path)).await;
            assert_eq!(answer.status(), status, "{method} {path}: {answer:?}");
            assert_eq!(answer.header("allow"), allow, "{method} {path}");
            if matches!(status, 404 | 405) {
                assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
                assert_eq!(answer.header("x-content-type-options"), "nosniff");
            }
        }
    }
    assert_eq!(web.get("/").await.text(), "\u{1f44b}");
    assert_eq!(web.get("/nope").await.text(), "404 page not found\n");
    assert_eq!(
        web.send(request("PUT", "/token")).await.text(),
        "Method Not Allowed\n"
    );
    assert_eq!(web.get("//token").await.header("location"), "/token");
}

#[tokio::test]
async fn through_funnel_there_is_no_token_whatever_the_request_says() {
    let server = WorkloadServer::open().await;
    let mut outside = server.outside().await;
    for path in ["/token", "/token?resource=a", "/oauth/token"] {
        let answer = outside.send(asking(path)).await;
        assert_eq!(answer.status(), 404, "{path}");
        assert_eq!(answer.text(), "404 page not found\n");
    }
}

#[tokio::test]
async fn a_caller_that_the_tailnet_does_not_vouch_for_is_told_so_and_no_more() {
    let server = WorkloadServer::open().await;
    let mut web = server.web().await;
    assert!(server.world.tailnet.expire("web"));
    let answer = token_for(&mut web, AUDIENCE).await;
    assert_eq!(answer.status(), 403);
    assert_eq!(
        answer.text(),
        "{\"code\":\"node_identity\",\"message\":\"Could not determine the Tailscale node's identity\"}\n"
    );
}
