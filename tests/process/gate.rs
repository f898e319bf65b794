//! The gate in the real program, on a real tailnet: the caller is the node at the other end,
//! whatever the request claims.

use std::fs;

use ::http::HeaderValue;
use rustix::process::Signal;
use rustls::pki_types::ServerName;
use tailbone::tailnet::Node;
use tempfile::TempDir;
use testkit::{
    backend::Backend,
    files::certificate_file,
    http::{Connection, dial, request},
    pyjwt, soon,
    tailnet::{DevnetTailnet, Owner, Tailnet},
};

use super::{alone, listeners::https, tailbone};

const RULES: &str = r#"
[[rule]]
name = "staff"
decision = "allow"
who = ["*@staff.example.com", "tag:ci"]
"#;

/// A connection to the gate's default port.
async fn at_the_gate(node: &dyn Node, host: &str) -> Connection {
    Connection::to(node, host, 8082).await
}

#[test]
fn a_user_whose_login_has_no_domain_is_named_by_a_rule() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let folder = TempDir::new().unwrap();
        let backend = Backend::start().await;
        let policy = folder.path().join("policy.toml");
        let login = tailnet.login("alice");
        assert!(!login.contains('@'));
        fs::write(
            &policy,
            format!("[[rule]]\ndecision = \"allow\"\nwho = [\"{login}\"]\n"),
        )
        .unwrap();
        let upstream = format!("http://{}", backend.addr);
        let host = tailnet.host("wiki");
        let key = tailnet.devnet.ready_key().await;
        let alice = tailnet.node("alice", Owner::User("alice")).await;
        let eve = tailnet.node("eve", Owner::User("alice@example.com")).await;
        let more = [
            "--components",
            "gate",
            "--gate-upstream",
            &upstream,
            "--gate-policy",
            policy.to_str().unwrap(),
        ];
        let mut daemon = tailbone(&folder)
            .on(tailnet.devnet)
            .host(&host)
            .auth_key(&key)
            .flags(&more)
            .start();
        daemon.listening(1).await;
        let answer = at_the_gate(&*alice, &host).await.get("/page").await;
        assert_eq!(answer.status(), 200, "{answer:?}");
        assert_eq!(
            at_the_gate(&*eve, &host).await.get("/page").await.status(),
            403
        );
        assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
    });
}

#[test]
fn a_service_learns_by_which_scheme_the_caller_came() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let folder = TempDir::new().unwrap();
        let backend = Backend::start().await;
        let policy = folder.path().join("policy.toml");
        fs::write(&policy, "[[rule]]\ndecision = \"allow\"\nwho = [\"*\"]\n").unwrap();
        let upstream = format!("http://{}", backend.addr);
        let host = tailnet.host("wiki");
        let key = tailnet.devnet.ready_key().await;
        let alice = tailnet
            .node("alice", Owner::User("alice@staff.example.com"))
            .await;
        let (cert, key_file) = (certificate_file("first.crt"), certificate_file("first.key"));
        let (cert, key_file) = (cert.display(), key_file.display());
        let listen = format!("tailnet://:80,tailnet+tls://:443?cert={cert}&key={key_file}");
        let more = [
            "--components",
            "gate",
            "--gate-upstream",
            &upstream,
            "--gate-policy",
            policy.to_str().unwrap(),
            "--gate-listen",
            &listen,
        ];
        let mut daemon = tailbone(&folder)
            .on(tailnet.devnet)
            .host(&host)
            .auth_key(&key)
            .flags(&more)
            .start();
        daemon.listening(2).await;

        let plain = dial(&*alice, &format!("{host}:80")).await;
        let mut plain = Connection::over(plain).await.host(&host);
        let name = ServerName::try_from("localhost").unwrap();
        let encrypted = dial(&*alice, &format!("{host}:443")).await;
        let encrypted = soon("a handshake", https().connect(name, encrypted)).await;
        let mut encrypted = Connection::over(encrypted.unwrap()).await.host(&host);
        for (connection, scheme) in [(&mut plain, "http"), (&mut encrypted, "https")] {
            // What the caller claims does not count.
            let mut asked = request("GET", "/page");
            let claim = HeaderValue::from_static("gopher");
            asked.headers_mut().insert("x-forwarded-proto", claim);
            let answer = connection.send(asked).await;
            assert_eq!(answer.status(), 200, "{answer:?}\n{}", daemon.log());
            let headers = answer.json()["headers"].clone();
            let received = |name: &str| -> Vec<String> {
                let all = headers.as_array().unwrap().iter();
                let same = all.filter(|pair| pair[0] == name);
                same.map(|pair| pair[1].as_str().unwrap().to_owned())
                    .collect()
            };
            assert_eq!(received("x-forwarded-proto"), [scheme]);
            assert_eq!(received("tailscale-user-login").len(), 1);
            let forwarded = received("forwarded").concat();
            assert!(
                forwarded.ends_with(&format!("proto={scheme}")),
                "{forwarded}"
            );
        }
        assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
        tailnet.end().await;
    });
}

#[test]
fn peers_of_a_tailnet_are_who_they_are_and_not_who_they_say() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let folder = TempDir::new().unwrap();
        let backend = Backend::start().await;
        let policy = folder.path().join("policy.toml");
        fs::write(&policy, RULES).unwrap();
        let upstream = format!("http://{}", backend.addr);
        let host = tailnet.host("wiki");
        let key = tailnet.devnet.ready_key().await;
        let alice = tailnet
            .node("alice", Owner::User("alice@staff.example.com"))
            .await;
        let robot = tailnet.node("robot", Owner::Tag("tag:ci")).await;
        let eve = tailnet.node("eve", Owner::User("eve@example.com")).await;

        let more = [
            "--components",
            "gate",
            "--gate-upstream",
            &upstream,
            "--gate-policy",
            policy.to_str().unwrap(),
        ];
        let mut daemon = tailbone(&folder)
            .on(tailnet.devnet)
            .host(&host)
            .auth_key(&key)
            .flags(&more)
            .start();
        daemon.listening(1).await;
        assert!(
            !folder.path().join("keys").exists(),
            "nothing signs, so there are no keys"
        );

        // A user whose headers claim to be somebody else, in three spellings.
        let mut forged = request("GET", "/page");
        for name in [
            "tailscale-user-login",
            "Tailscale_User_Login",
            "tailscale-user",
        ] {
            forged.headers_mut().insert(
                ::http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                "root@example.com".parse().unwrap(),
            );
        }
        let answer = at_the_gate(&*alice, &host).await.send(forged).await;
        assert_eq!(answer.status(), 200, "{answer:?}");
        let told = String::from_utf8_lossy(answer.0.body()).into_owned();
        assert!(
            told.contains(&tailnet.login("alice@staff.example.com")),
            "{told}"
        );
        assert!(!told.contains("root@example.com"), "{told}");

        // A machine, admitted by its tag.
        assert_eq!(
            at_the_gate(&*robot, &host)
                .await
                .get("/page")
                .await
                .status(),
            200
        );

        // Another user.
        let answer = at_the_gate(&*eve, &host).await.get("/page").await;
        assert_eq!(answer.status(), 403, "{answer:?}");

        // The rules change while the server runs.
        fs::write(
            &policy,
            RULES.replace("*@staff.example.com", "*@example.com"),
        )
        .unwrap();
        daemon.signal(Signal::HUP);
        testkit::eventually("the new rules hold", async || {
            match at_the_gate(&*eve, &host).await.get("/page").await.status() {
                200 => Ok(()),
                other => Err(other.to_string()),
            }
        })
        .await;
        assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
    });
}

#[test]
fn a_token_for_a_backend_is_none_of_the_issuers() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let folder = TempDir::new().unwrap();
        let backend = Backend::start().await;
        let policy = folder.path().join("policy.toml");
        fs::write(&policy, RULES).unwrap();
        let host = tailnet.host("wiki");
        let upstream = format!("{host}=http://{}", backend.addr);
        let key = tailnet.devnet.ready_key().await;
        let alice = tailnet
            .node("alice", Owner::User("alice@staff.example.com"))
            .await;
        let more = [
            "--components",
            "issuer,gate",
            "--gate-upstream",
            &upstream,
            "--gate-policy",
            policy.to_str().unwrap(),
            "--gate-token",
        ];
        let mut daemon = tailbone(&folder)
            .on(tailnet.devnet)
            .host(&host)
            .auth_key(&key)
            .flags(&more)
            .start();
        daemon.listening(2).await;

        let answer = at_the_gate(&*alice, &host).await.get("/page").await;
        assert_eq!(answer.status(), 200, "{answer:?}");
        let headers = answer.json()["headers"].as_array().unwrap().clone();
        let for_backend = headers
            .iter()
            .find(|pair| pair[0] == "tailbone-token")
            .unwrap();
        let for_backend = for_backend[1].as_str().unwrap();
        let mut issuer = Connection::to(&*alice, &host, 80).await;
        let issued = issuer.post("/issue").await.json();
        let jwks = folder.path().join("published.json");
        fs::write(&jwks, issuer.get("/.well-known/jwks.json").await.0.body()).unwrap();

        pyjwt::verify(&jwks, "tailbone", issued["token"].as_str().unwrap())
            .expect("a token of the issuer");
        let refused =
            pyjwt::verify(&jwks, "tailbone", for_backend).expect_err("a token of the gate");
        assert!(refused.contains("InvalidIssuerError"), "{refused}");
        // Its own verifier accepts it and sees its type.
        let taken = pyjwt::verify(&jwks, "tailbone/gate", for_backend).unwrap();
        assert!(taken.contains(r#""typ": "gate+jwt""#), "{taken}");
        assert!(taken.contains(&format!(r#""aud": "{host}""#)), "{taken}");
        assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
    });
}
