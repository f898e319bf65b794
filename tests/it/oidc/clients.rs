//! Registration, and tsidp's `/clients/`.

use super::*;

pub(super) fn dcr(identity: Identity) -> Identity {
    identity.cap(CAPABILITY, json!({"allow_dcr": true}))
}

pub(super) fn admin(identity: Identity) -> Identity {
    identity.cap(CAPABILITY, json!({"allow_admin_ui": true}))
}

pub(super) async fn register(connection: &mut Connection, body: Value) -> Answer {
    let (parts, _) = request("POST", "/register").into_parts();
    connection
        .send(Request::from_parts(parts, Full::from(body.to_string())))
        .await
}

#[tokio::test]
async fn a_client_registers_itself_where_policy_allows_it() {
    let server = OidcServer::open().await;
    let body = json!({"redirect_uris": [APP], "client_name": "App", "newer": {"x": 1}});
    let refused = register(&mut server.alice().await, body.clone()).await;
    let words = "application capability not granted";
    assert_eq!(refusal(&refused), is(403, "access_denied", words));

    let mut bob = server.person("bob", dcr).await;
    let answer = register(&mut bob, body).await;
    assert_eq!(answer.status(), 201, "{answer:?}");
    assert_eq!(answer.header("cache-control"), "no-store");
    let client = answer.json();
    for (name, value) in [
        ("client_name", json!("App")),
        ("redirect_uris", json!([APP])),
        ("redirect_uri", json!(APP)),
        ("dynamically_registered", json!(true)),
        ("token_endpoint_auth_method", json!("client_secret_basic")),
        ("grant_types", json!(["authorization_code"])),
        ("response_types", json!(["code"])),
        ("application_type", json!("web")),
        ("client_secret_expires_at", json!(0)),
    ] {
        assert_eq!(client[name], value, "{name}");
    }
    assert_eq!(client["client_id"].as_str().unwrap().len(), 32);
    assert_eq!(client["client_secret"].as_str().unwrap().len(), 64);

    let public = json!({"redirect_uris": [APP], "token_endpoint_auth_method": "none"});
    let public = register(&mut bob, public).await.json();
    assert!(public.get("client_secret").is_none());
    assert!(public.get("client_secret_expires_at").is_none());
}

#[tokio::test]
async fn what_a_registration_must_say() {
    let server = OidcServer::open().await;
    let mut bob = server.person("bob", dcr).await;
    for (body, code, words) in [
        (
            json!({}),
            "invalid_client_metadata",
            "redirect_uris is required",
        ),
        (
            json!({"redirect_uris": []}),
            "invalid_client_metadata",
            "redirect_uris is required",
        ),
        (json!([]), "invalid_request", "invalid request body"),
        (
            json!({"redirect_uris": ["https://a/#x"]}),
            "invalid_redirect_uri",
            "redirect URI number 1 must not have a fragment",
        ),
    ] {
        let answer = register(&mut bob, body.clone()).await;
        assert_eq!(refusal(&answer), is(400, code, words), "{body}");
    }
    let get = bob.get("/register").await;
    assert_eq!(
        refusal(&get),
        is(405, "invalid_request", "method not allowed")
    );
}

#[tokio::test]
async fn an_administrator_keeps_clients_and_a_removed_one_takes_its_tokens_along() {
    let server = OidcServer::open().await;
    let mut root = server.person("root", admin).await;
    let wanted = [
        ("name", "Wiki"),
        (
            "redirect_uri",
            " https://wiki.example.com/cb\n\nhttps://b\n",
        ),
    ];
    let made = root.send(form("/clients/new", &wanted)).await;
    assert_eq!(made.status(), 200, "{made:?}");
    let wiki = made.json();
    assert_eq!(
        wiki["redirect_uris"],
        json!(["https://wiki.example.com/cb", "https://b"])
    );
    let id = wiki["client_id"].as_str().unwrap().to_owned();

    let listed = root.get("/clients/").await.json();
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), 4);
    assert!(listed.iter().all(|one| one.get("client_secret").is_none()));
    let one = root.get(&format!("/clients/{id}")).await.json();
    assert_eq!(
        (&one["client_name"], &one["redirect_uri"]),
        (&json!("Wiki"), &json!(""))
    );

    let missing = root.send(form("/clients/new", &[("name", "x")])).await;
    let words = "missing redirect_uri or name";
    assert_eq!(refusal(&missing), is(400, "invalid_request", words));
    let nobody = root.get("/clients/nobody").await;
    assert_eq!(refusal(&nobody), is(404, "not_found", "client not found"));

    let mut alice = server.alice().await;
    let given = tokens(&mut alice, &[]).await;
    let delete = |id: &str| request("DELETE", &format!("/clients/{id}"));
    assert_eq!(root.send(delete("silent")).await.status(), 204);
    assert_eq!(
        userinfo(&mut alice, &given["access_token"]).await.status(),
        401
    );
    let again = refresh(&mut alice, &given["refresh_token"], &[]).await;
    assert_eq!(again.status(), 400);
    assert_eq!(root.send(delete("silent")).await.status(), 404);
    assert_eq!(root.get(&format!("/clients/{id}")).await.status(), 200);
}

#[tokio::test]
async fn no_page_of_another_origin_administers() {
    let server = OidcServer::open().await;
    let mut root = server.person("root", admin).await;
    let delete = || request("DELETE", "/clients/asking");
    for forged in [
        with(delete(), "sec-fetch-site", "cross-site"),
        with(delete(), "sec-fetch-site", "same-site"),
        with(delete(), "origin", "https://evil.example"),
        with(delete(), "origin", "null"),
    ] {
        assert_eq!(root.send(forged).await.status(), 403);
    }
    let own = with(
        with(delete(), "sec-fetch-site", "same-site"),
        "origin",
        ISSUER,
    );
    assert_eq!(root.send(own).await.status(), 204);
}
