//! Applications whose libraries are not ours log a person in with the real program. The browser is
//! on the tailnet; the application's back end is not, and reaches the provider through Funnel.

use serde_json::Value;
use testkit::{
    connect_proxy::ConnectProxy,
    oidc_clients::{Application, Registration},
    tailnet::users_node,
};

use super::{
    alone,
    funnel::{Edge, NAME},
    oidc::{APP, ID, SECRET, start, tsidp},
    workload::{ISSUER, https},
};

/// What every application must have learned of the person.
fn check(learned: &Value, library: &str) {
    let [claims, told, refreshed] = ["claims", "userinfo", "refreshed"].map(|name| &learned[name]);
    assert_eq!(claims["iss"], ISSUER, "{library}: {learned}");
    assert_eq!(claims["aud"], ID, "{library}: {learned}");
    assert_eq!(
        claims["preferred_username"], "alice",
        "{library}: {learned}"
    );
    assert_eq!(claims["email"], "alice@example.com", "{library}: {learned}");
    for claim in ["sub", "email"] {
        assert_eq!(told[claim], claims[claim], "{library}: {learned}");
    }
    for claim in ["iss", "sub", "aud", "auth_time"] {
        assert_eq!(refreshed[claim], claims[claim], "{library}: {learned}");
    }
}

#[test]
fn libraries_of_three_languages_log_a_person_in() {
    alone(async {
        let edge = Edge::with_authority();
        tsidp(&edge);
        let mut daemon = start(&edge).await;
        daemon.ready();
        let alice = users_node(&edge.devnet, edge.folder(), "alice").await;
        // Once the internet reaches the server, applications do.
        assert_eq!(edge.get("/.well-known/jwks.json").await.status(), 200);
        let proxy = ConnectProxy::start(&[NAME], edge.devnet.ready.funnel["443"]).await;
        let registered = Registration {
            issuer: ISSUER,
            ca_file: &edge.devnet.ready.acme.as_ref().unwrap().root_file,
            client_id: ID,
            secret: SECRET,
            redirect_uri: APP,
            proxy: &proxy,
        };
        let mut browser = https(&edge, &alice).await;
        for library in ["Authlib", "openid-client", "go-oidc"] {
            let application = match library {
                "Authlib" => registered.authlib(),
                "openid-client" => registered.openid_client(),
                _ => registered.go_oidc(),
            };
            let address = application.authorize();
            let path = address
                .strip_prefix(ISSUER)
                .unwrap_or_else(|| panic!("{address}"));
            let login = browser.get(path).await;
            assert_eq!(login.status(), 302, "{library}: {login:?}");
            check(&application.learned(login.header("location")), library);
        }
        let log = daemon.log();
        assert!(daemon.stop().success(), "{log}");
    });
}
