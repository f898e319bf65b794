//! Programs that log people in before a page, used with a real browser by two people of the
//! tailnet. The programs are not on the tailnet, and reach the provider through Funnel.

use serde_json::{Value, json};
use tailbone_oidc::capability::CAPABILITY;
use testkit::{
    backend::Backend,
    browser::{Browser, Person, Seen},
    connect_proxy::ConnectProxy,
    eventually,
    files::certificate_file,
    oidc_apps::{Apache, AppPlace, AppSetup, OAuth2Proxy},
};

use super::{
    alone,
    funnel::{Edge, NAME},
    oidc_server::{start, write_tsidp_files},
    workload::ISSUER,
};

/// Registers an application as alice, who may do so. Its id and its secret.
async fn registered(edge: &Edge, metadata: &Value) -> [String; 2] {
    let client = reqwest::Client::builder()
        .proxy(reqwest::Proxy::all(&edge.devnet.ready.peers["alice"].proxy).unwrap())
        .tls_certs_merge([reqwest::Certificate::from_der(&edge.root).unwrap()])
        .build()
        .unwrap();
    let told: Value = eventually("a registration", async || {
        let request = client.post(format!("{ISSUER}/register")).json(metadata);
        let answer = request.send().await.map_err(|error| format!("{error:?}"))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| error.to_string())?;
        // Until the grant counts it is refused.
        (status == 201)
            .then(|| serde_json::from_str(&text).unwrap())
            .ok_or(text)
    })
    .await;
    ["client_id", "client_secret"].map(|name| told[name].as_str().unwrap().to_owned())
}

/// The page behind an application names the person by this header.
fn is_logged_in(seen: &Seen, header: &str, login: &str) -> bool {
    let shown: Result<Value, _> = serde_json::from_str(&seen.text);
    shown.is_ok_and(|page| {
        let headers = page["headers"].as_array().unwrap();
        headers.contains(&json!([header, login]))
    })
}

/// The person goes to an application, which asks the provider who it is.
fn log_in(person: Person<'_>, name: &str, url: &str, header: &str) {
    let asked = person.open(url);
    assert!(asked.url.starts_with(ISSUER), "{asked:?}");
    let back = person.press(&format!("Continue as {name}"));
    let login = &format!("{}@example.com", name.to_lowercase());
    assert!(back.url.starts_with(url), "{back:?}");
    assert!(is_logged_in(&back, header, login), "{back:?}");
}

/// What oauth2-proxy and mod_auth_openidc tell the page.
const BY_PROXY: &str = "x-forwarded-email";
const BY_APACHE: &str = "oidc_claim_email";

#[test]
fn two_people_use_two_applications_and_a_sign_out_in_one_ends_the_other() {
    alone(async {
        let peers = ["alice=alice@example.com", "bob=bob@example.com"];
        let edge = Edge::with_authority_and_peers(&peers);
        write_tsidp_files(&edge);
        let trusted = certificate_file("first.crt");
        let reaching_apache = [
            "--oidc-private-hosts",
            "localhost",
            "--oidc-ca-file",
            trusted.to_str().unwrap(),
        ];
        let mut daemon = start(&edge, &reaching_apache).await;
        let grant = json!({"allow_dcr": true});
        edge.devnet
            .grant("alice", "public", CAPABILITY, grant)
            .await;
        // Once the internet reaches the server, applications do.
        assert_eq!(edge.get("/.well-known/jwks.json").await.status(), 200);

        let page = Backend::start().await;
        let proxy = ConnectProxy::start(&[NAME], edge.devnet.ready.funnel["443"]).await;
        let setup = AppSetup {
            issuer: ISSUER,
            ca_file: &edge.devnet.ready.acme.as_ref().unwrap().root_file,
            client_id: "",
            secret: "",
            proxy: &proxy,
            page: page.addr,
        };
        let [before_wiki, before_mail] = [AppPlace::new(), AppPlace::new()];
        let (wiki_url, mail_url) = (OAuth2Proxy::url(&before_wiki), Apache::url(&before_mail));
        let [client_id, secret] = &registered(
            &edge,
            &json!({
                "client_name": "Wiki",
                "redirect_uris": [OAuth2Proxy::redirect_uri(&before_wiki)],
                "post_logout_redirect_uris": [format!("{wiki_url}/ping")],
            }),
        )
        .await;
        let signs_out = format!(
            "{wiki_url}/oauth2/sign_out?rd={}",
            percent(&format!("{ISSUER}/logout?client_id={client_id}")),
        );
        let wiki = AppSetup {
            client_id,
            secret,
            ..setup
        };
        let wiki = OAuth2Proxy::start(before_wiki, wiki, NAME).await;
        let [client_id, secret] = &registered(
            &edge,
            &json!({
                "client_name": "Mail",
                "redirect_uris": [Apache::redirect_uri(&before_mail)],
                "post_logout_redirect_uris": [mail_url],
                "backchannel_logout_uri": Apache::backchannel_logout_uri(&before_mail),
                "backchannel_logout_session_required": true,
            }),
        )
        .await;
        let mail = AppSetup {
            client_id,
            secret,
            ..setup
        };
        let mail = Apache::start(before_mail, mail).await;
        let told = || {
            format!(
                "{}\n{}\n{}",
                daemon.log(),
                wiki.program.said(),
                mail.program.said()
            )
        };

        let browser = Browser::start(&edge.devnet, &["alice", "bob"]);
        let [alice, bob] = ["alice", "bob"].map(|name| browser.person(name));
        for (person, name) in [(alice, "Alice"), (bob, "Bob")] {
            log_in(person, name, &wiki_url, BY_PROXY);
            log_in(person, name, &mail_url, BY_APACHE);
        }

        // The provider tells Apache that alice has gone; nobody asks her browser.
        let question = alice.open(&signs_out);
        assert!(question.text.contains("Sign out?"), "{question:?}");
        let out = alice.press("Sign out");
        assert!(out.text.contains("Signed out"), "{out:?}");
        eventually("alice is asked by the other application", async || {
            let seen = alice.open(&mail_url);
            let asked = seen.url.starts_with(ISSUER);
            asked
                .then_some(())
                .ok_or_else(|| format!("{seen:?}\n{}", told()))
        })
        .await;
        let again = alice.open(&wiki_url);
        assert!(again.url.starts_with(ISSUER), "{again:?}");
        let still = bob.open(&mail_url);
        assert!(
            is_logged_in(&still, BY_APACHE, "bob@example.com"),
            "{still:?}"
        );

        // The other way leads from Apache to the provider and back, where bob is asked.
        // oauth2-proxy cannot be told.
        let leaving = format!("{mail_url}/callback?logout={}", percent(&mail_url));
        let asked = bob.open(&leaving);
        assert!(asked.url.starts_with(ISSUER), "{asked:?}");
        assert!(asked.text.contains("Continue as Bob"), "{asked:?}");
        let still = bob.open(&wiki_url);
        assert!(
            is_logged_in(&still, BY_PROXY, "bob@example.com"),
            "{still:?}"
        );
        drop(browser);
        assert!(daemon.stop().success(), "{}", daemon.log());
    });
}

fn percent(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
