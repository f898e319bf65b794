//! A client and its registration (RFC 7592).

use super::{
    clients::{dcr, register},
    *,
};

/// A client that has registered itself: its path and its answer.
async fn registered(connection: &mut Connection, body: Value) -> (String, Value) {
    let answer = register(connection, body).await;
    assert_eq!(answer.status(), 201, "{answer:?}");
    let client = answer.json();
    let place = client["registration_client_uri"].as_str().unwrap();
    let id = client["client_id"].as_str().unwrap();
    assert_eq!(place, format!("{ISSUER}/register/{id}"));
    (place.strip_prefix(ISSUER).unwrap().to_owned(), client)
}

fn wanted() -> Value {
    json!({"redirect_uris": [APP], "client_name": "App", "client_uri": "https://app.example.com"})
}

async fn managed(
    connection: &mut Connection,
    method: &str,
    path: &str,
    token: &Value,
    body: &Value,
) -> Answer {
    let (parts, _) = request(method, path).into_parts();
    let request = Request::from_parts(parts, Full::from(body.to_string()));
    let bearer = format!("Bearer {}", token.as_str().unwrap());
    connection
        .send(with(request, "authorization", &bearer))
        .await
}

#[tokio::test]
async fn a_client_reads_replaces_and_removes_itself() {
    let server = OidcServer::open().await;
    let mut bob = server.person("bob", dcr).await;
    let (path, client) = registered(&mut bob, wanted()).await;
    let token = &client["registration_access_token"];
    let (id, secret) = (&client["client_id"], &client["client_secret"]);
    let stored = server
        .provider
        .store
        .client(id.as_str().unwrap(), Timestamp::now())
        .await;
    let stored = stored.unwrap().unwrap().registration_token.unwrap();
    assert_eq!(
        stored,
        Digest::of(token.as_str().unwrap()),
        "only a digest is kept"
    );

    let answer = managed(&mut bob, "GET", &path, token, &json!(null)).await;
    assert_eq!(
        (answer.status(), answer.header("cache-control")),
        (200, "no-store")
    );
    let mut expected = client.clone();
    expected.as_object_mut().unwrap().remove("client_secret");
    assert_eq!(
        answer.json(),
        expected,
        "all but the secret, which nobody knows any more"
    );

    // Who has the token needs no grant.
    let mut alice = server.alice().await;
    let body = json!({
        "client_id": id, "client_secret": secret, "client_name": "Other",
        "redirect_uris": ["https://other.example.com/cb"],
    });
    let answer = managed(&mut alice, "PUT", &path, token, &body).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let changed = answer.json();
    assert_eq!(changed["client_name"], "Other");
    assert!(
        changed.get("client_uri").is_none(),
        "what is not said again is gone"
    );
    assert!(changed.get("client_secret").is_none());
    assert_eq!(changed["created_at"], client["created_at"]);
    assert_eq!(&changed["registration_access_token"], token, "it stays");
    let mismatch = alice.get(&asking(id.as_str().unwrap(), &[])).await;
    assert_eq!(refusal(&mismatch).2, "redirect_uri mismatch");

    let answer = managed(&mut alice, "DELETE", &path, token, &json!(null)).await;
    assert_eq!((answer.status(), answer.text().as_str()), (204, ""));
    for method in ["GET", "PUT", "DELETE"] {
        let answer = managed(&mut bob, method, &path, token, &body).await;
        assert_eq!(answer.status(), 401, "{method}");
    }
}

#[tokio::test]
async fn a_secret_comes_and_goes_with_the_way_to_authenticate() {
    let server = OidcServer::open().await;
    let mut bob = server.person("bob", dcr).await;
    let (path, client) = registered(&mut bob, wanted()).await;
    let token = &client["registration_access_token"];
    let mut body = json!({
        "client_id": client["client_id"], "redirect_uris": [APP],
        "token_endpoint_auth_method": "none",
    });
    let public = managed(&mut bob, "PUT", &path, token, &body).await.json();
    for name in ["client_secret", "client_secret_expires_at"] {
        assert!(public.get(name).is_none(), "{name}");
    }
    // The secret of before is worth nothing.
    body["client_secret"] = client["client_secret"].clone();
    let refused = managed(&mut bob, "PUT", &path, token, &body).await;
    assert_eq!(refusal(&refused).1, "invalid_request");
    body.as_object_mut().unwrap().remove("client_secret");
    body["token_endpoint_auth_method"] = json!("client_secret_post");
    let again = managed(&mut bob, "PUT", &path, token, &body).await.json();
    assert_eq!(again["client_secret"].as_str().unwrap().len(), 64);
    assert_ne!(again["client_secret"], client["client_secret"]);
    assert_eq!(again["client_secret_expires_at"], 0);
}

#[tokio::test]
async fn a_removed_client_takes_what_it_was_given_along() {
    let server = OidcServer::open().await;
    let mut bob = server.person("bob", dcr).await;
    let (path, client) = registered(
        &mut bob,
        json!({"grant_types": ["client_credentials"], "redirect_uris": []}),
    )
    .await;
    let own = form(
        "/token",
        &[
            ("grant_type", "client_credentials"),
            ("client_id", client["client_id"].as_str().unwrap()),
            ("client_secret", client["client_secret"].as_str().unwrap()),
        ],
    );
    let given = bob.send(own.clone()).await;
    assert_eq!(given.status(), 200, "{given:?}");
    let given = given.json();
    let token = &client["registration_access_token"];
    let removed = managed(&mut bob, "DELETE", &path, token, &json!(null)).await;
    assert_eq!(removed.status(), 204);
    let told = super::tokens::introspect(&mut bob, &given["access_token"]).await;
    assert_eq!(told, json!({"active": false}));
    assert_eq!(refusal(&bob.send(own).await).1, "invalid_client");
}

#[tokio::test]
async fn nobody_else_keeps_a_registration() {
    let server = OidcServer::open().await;
    let mut bob = server.person("bob", dcr).await;
    let (path, client) = registered(&mut bob, wanted()).await;
    let (_, other) = registered(&mut bob, wanted()).await;
    let token = &client["registration_access_token"];
    for (path, token) in [
        (path.as_str(), &other["registration_access_token"]),
        (path.as_str(), &client["client_secret"]),
        (path.as_str(), &json!("")),
        ("/register/nobody", token),
        ("/register/", token),
        // A client that an administrator made has no such token.
        ("/register/silent", token),
    ] {
        for method in ["GET", "PUT", "DELETE"] {
            let answer = managed(&mut bob, method, path, token, &wanted()).await;
            assert_eq!(
                (answer.status(), answer.text().as_str()),
                (401, ""),
                "{path}"
            );
            let challenge = answer.header("www-authenticate");
            assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
        }
    }
    let unsaid = bob.get(&path).await;
    assert_eq!(unsaid.status(), 401);
    let basic = with(request("GET", &path), "authorization", &basic("silent"));
    assert_eq!(bob.send(basic).await.status(), 401);

    // Through Funnel there is no registration, as at /register.
    let mut outside = server.outside().await;
    let answer = managed(&mut outside, "GET", &path, token, &json!(null)).await;
    let words = "not available over funnel";
    assert_eq!(refusal(&answer), is(401, "access_denied", words));
    let marked = with(request("GET", &path), "tailscale-funnel-request", "?1");
    assert_eq!(
        refusal(&bob.send(marked).await),
        is(401, "access_denied", words)
    );
    let posted = managed(&mut bob, "POST", &path, token, &wanted()).await;
    assert_eq!(refusal(&posted).0, 405);
    assert_eq!(
        managed(&mut bob, "GET", &path, token, &json!(null))
            .await
            .status(),
        200
    );
}

#[tokio::test]
async fn what_a_replacement_must_not_say() {
    let server = OidcServer::open().await;
    let mut bob = server.person("bob", dcr).await;
    let (path, client) = registered(&mut bob, wanted()).await;
    let token = &client["registration_access_token"];
    let with_member = |name: &str, value: Value| {
        let mut body = wanted();
        body["client_id"] = client["client_id"].clone();
        body[name] = value;
        body
    };
    for (body, code) in [
        (wanted(), "invalid_request"),
        (json!([]), "invalid_request"),
        (with_member("client_id", json!("silent")), "invalid_request"),
        (
            with_member("client_secret", json!("chosen")),
            "invalid_request",
        ),
        (with_member("client_secret", json!(1)), "invalid_request"),
        (
            with_member("registration_access_token", token.clone()),
            "invalid_request",
        ),
        (
            with_member("registration_client_uri", json!("x")),
            "invalid_request",
        ),
        (
            with_member("client_secret_expires_at", json!(0)),
            "invalid_request",
        ),
        (
            with_member("client_id_issued_at", json!(1)),
            "invalid_request",
        ),
        (
            with_member("redirect_uris", json!([])),
            "invalid_client_metadata",
        ),
        (
            with_member("redirect_uris", json!(["javascript:alert(1)"])),
            "invalid_redirect_uri",
        ),
        (
            with_member("jwks_uri", json!("http://10.0.0.1/")),
            "invalid_client_metadata",
        ),
    ] {
        let answer = managed(&mut bob, "PUT", &path, token, &body).await;
        let refused = refusal(&answer);
        assert_eq!((refused.0, refused.1.as_str()), (400, code), "{body}");
    }
    let unchanged = managed(&mut bob, "GET", &path, token, &json!(null))
        .await
        .json();
    assert_eq!(unchanged["redirect_uris"], client["redirect_uris"]);
}
