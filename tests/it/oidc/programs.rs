//! Programs that act for themselves: clients with a secret, and tagged machines.

use super::{
    tokens::{ACCESS_TOKEN, EXCHANGE, introspect},
    *,
};

const JOB: &str = "job";

async fn with_a_job() -> OidcServer {
    let server = OidcServer::open().await;
    let registered = |metadata: &mut ClientMetadata| {
        metadata.grant_types = vec!["client_credentials".into()];
        metadata.redirect_uris.clear();
    };
    server
        .add_with(JOB, AuthMethod::ClientSecretBasic, registered)
        .await;
    server.add_with("open", AuthMethod::None, registered).await;
    server
        .add_with("userid:1", AuthMethod::ClientSecretPost, registered)
        .await;
    server
}

/// What policy gives the client and machines with the tag.
fn by_name(identity: Identity) -> Identity {
    let rule = json!({"users": ["client:job", "tag:ci"], "resources": [RESOURCE]});
    identity.cap(CAPABILITY, rule)
}

fn credentials(more: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let usual = [("grant_type", "client_credentials")];
    let all: Vec<_> = usual.iter().chain(more).copied().collect();
    form("/token", &all)
}

async fn ask(connection: &mut Connection, more: &[(&str, &str)]) -> Answer {
    let request = with(credentials(more), "authorization", &basic(JOB));
    connection.send(request).await
}

async fn machine(server: &OidcServer, grants: impl FnOnce(Identity) -> Identity) -> Connection {
    let node = server
        .world
        .join("ci", grants(Identity::tagged(["tag:ci"])));
    server.world.call(&node, 443).await
}

#[tokio::test]
async fn a_client_has_a_token_of_its_own() {
    let server = with_a_job().await;
    let mut outside = server.outside().await;
    let told = outside
        .get("/.well-known/openid-configuration")
        .await
        .json();
    let types = told["grant_types_supported"].as_array().unwrap();
    assert!(types.contains(&json!("client_credentials")));

    let answer = ask(&mut outside, &[]).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert_eq!(answer.header("cache-control"), "no-store");
    let given = answer.json();
    let mut members: Vec<_> = given.as_object().unwrap().keys().collect();
    members.sort();
    assert_eq!(members, ["access_token", "expires_in", "token_type"]);

    let proven = [("token", given["access_token"].as_str().unwrap())];
    let proven = with(form("/introspect", &proven), "authorization", &basic(JOB));
    let told = outside.send(proven).await.json();
    for (name, value) in [
        ("active", json!(true)),
        ("sub", json!(JOB)),
        ("client_id", json!(JOB)),
        ("aud", json!([JOB])),
        ("scope", json!("")),
    ] {
        assert_eq!(told[name], value, "{name}");
    }
    assert!(told.get("username").is_none(), "{told}");

    // It is no person.
    let person = userinfo(&mut outside, &given["access_token"]).await;
    assert_eq!(person.status(), 403);
    let challenge = person.header("www-authenticate");
    assert!(
        challenge.contains("error=\"insufficient_scope\""),
        "{challenge}"
    );

    let asked = ask(&mut outside, &[("scope", "openid email")]).await.json();
    assert_eq!(asked["scope"], "", "none of them was granted");
    let revoked = with(
        form(
            "/revoke",
            &[("token", given["access_token"].as_str().unwrap())],
        ),
        "authorization",
        &basic(JOB),
    );
    assert_eq!(outside.send(revoked).await.status(), 200);
    let ended = userinfo(&mut outside, &given["access_token"]).await;
    assert_eq!(ended.status(), 401);
}

#[tokio::test]
async fn who_has_no_token_of_their_own() {
    let server = with_a_job().await;
    let mut alice = server.alice().await;
    let failed = is(401, "invalid_client", "client authentication failed");
    let unregistered = "the client did not register this grant type";
    let unfit = "the client does not authenticate, or has an id that others could have";
    for (pairs, refused) in [
        (vec![], failed.clone()),
        (vec![("client_id", JOB)], failed.clone()),
        (vec![("client_id", JOB), ("client_secret", "wrong")], failed),
        (
            vec![("client_id", "silent"), ("client_secret", SECRET)],
            is(400, "unauthorized_client", unregistered),
        ),
        (
            vec![("client_id", "open")],
            is(400, "unauthorized_client", unfit),
        ),
        (
            vec![("client_id", "userid:1"), ("client_secret", SECRET)],
            is(400, "unauthorized_client", unfit),
        ),
    ] {
        let answer = alice.send(credentials(&pairs)).await;
        assert_eq!(refusal(&answer), refused, "{pairs:?}");
    }
    let strict = OidcServer::with(|settings| settings.unknown_scopes = UnknownScopes::Refuse).await;
    strict
        .add_with(JOB, AuthMethod::ClientSecretBasic, |metadata| {
            metadata.grant_types = vec!["client_credentials".into()];
        })
        .await;
    let answer = ask(&mut strict.alice().await, &[("scope", "admin")]).await;
    assert_eq!(refusal(&answer).1, "invalid_scope");
}

#[tokio::test]
async fn policy_gives_audiences_to_programs_by_name() {
    let server = with_a_job().await;
    let none = "policy gives the program none of these resources";
    let none = is(400, "invalid_target", none);
    // The rules are those of the node that calls; `*` is every person, and no program.
    for mut connection in [
        server.outside().await,
        server.alice().await,
        server.person("bob", mcp).await,
    ] {
        let answer = ask(&mut connection, &[("resource", RESOURCE)]).await;
        assert_eq!(refusal(&answer), none);
    }
    let mut carol = server.person("carol", by_name).await;
    let denied = ("resource", "https://denied.example.com");
    let answer = ask(&mut carol, &[("resource", RESOURCE), denied]).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let told = introspect(&mut carol, &answer.json()["access_token"]).await;
    assert_eq!(told["aud"], json!([JOB, RESOURCE]));
    assert_eq!(refusal(&ask(&mut carol, &[denied]).await), none);
    let fragment = ask(&mut carol, &[("resource", "https://a/#b")]).await;
    assert_eq!(refusal(&fragment).1, "invalid_target");
}

#[tokio::test]
async fn a_tagged_machine_has_the_tokens_that_policy_gives_its_tags() {
    let server = with_a_job().await;
    let resource = [("resource", RESOURCE)];
    let mut ci = machine(&server, by_name).await;
    let answer = ci.send(credentials(&resource)).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let given = answer.json();
    let told = introspect(&mut ci, &given["access_token"]).await;
    assert_eq!(told["aud"], json!([RESOURCE]));
    assert_eq!(told["sub"], told["client_id"]);
    assert!(told["sub"].as_str().unwrap().starts_with("node:"), "{told}");
    let person = userinfo(&mut ci, &given["access_token"]).await;
    assert_eq!(person.status(), 403);

    let unnamed = ci.send(credentials(&[])).await;
    let words = "a machine must name the resource that its token is for";
    assert_eq!(refusal(&unnamed), is(400, "invalid_target", words));
    let none = "policy gives the program none of these resources";
    let denied = [("resource", "https://denied.example.com")];
    let answer = ci.send(credentials(&denied)).await;
    assert_eq!(refusal(&answer), is(400, "invalid_target", none));
    // A rule for every person is none for machines.
    let answer = machine(&server, mcp)
        .await
        .send(credentials(&resource))
        .await;
    assert_eq!(refusal(&answer), is(400, "invalid_target", none));

    // A page in a browser on the machine is not the machine, nor is somebody through Funnel.
    let failed = is(401, "invalid_client", "client authentication failed");
    for (name, value) in [
        ("origin", "https://evil.example"),
        ("sec-fetch-site", "cross-site"),
        ("tailscale-funnel-request", "?1"),
    ] {
        let answer = ci.send(with(credentials(&resource), name, value)).await;
        assert_eq!(refusal(&answer), failed, "{name}");
    }
    // People have tokens by logging in.
    let mut alice = server.person("alice", by_name).await;
    assert_eq!(refusal(&alice.send(credentials(&resource)).await), failed);
}

#[tokio::test]
async fn a_program_exchanges_its_token_by_its_own_policy() {
    let server = with_a_job().await;
    let mut ci = machine(&server, |identity| {
        let rule = json!({"users": ["tag:ci"], "resources": [RESOURCE, "https://b.example.com"]});
        identity.cap(CAPABILITY, rule)
    })
    .await;
    let answer = ci.send(credentials(&[("resource", RESOURCE)])).await;
    let given = answer.json();
    let exchange = |audience| {
        let pairs = [
            ("grant_type", EXCHANGE),
            ("subject_token", given["access_token"].as_str().unwrap()),
            ("subject_token_type", ACCESS_TOKEN),
            ("audience", audience),
        ];
        form("/token", &pairs)
    };
    let answer = ci.send(exchange("https://b.example.com")).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let told = introspect(&mut ci, &answer.json()["access_token"]).await;
    assert_eq!(told["aud"], json!(["https://b.example.com"]));
    assert!(told["sub"].as_str().unwrap().starts_with("node:"), "{told}");
    let refused = ci.send(exchange("https://denied.example.com")).await;
    assert_eq!(refusal(&refused).1, "access_denied");
}
