//! What may be used once, presented by many at the same time.

use std::future::Future;

use tailbone_oidc::device::DEVICE_CODE_GRANT;

use super::{pages::Browser, tokens::introspect, *};

const RACERS: usize = 8;

/// Connections of one person, each of which sends at the same time.
async fn race<F: Future<Output = Answer> + Send + 'static>(
    server: &OidcServer,
    send: impl Fn(Connection) -> F,
) -> Vec<Answer> {
    let node = server
        .world
        .join("racer", Identity::user("racer@example.com"));
    let mut running = Vec::new();
    for _ in 0..RACERS {
        running.push(tokio::spawn(send(server.world.call(&node, 443).await)));
    }
    let mut answers = Vec::new();
    for one in running {
        answers.push(one.await.unwrap());
    }
    answers
}

/// The tokens of those who had some.
fn given(answers: &[Answer]) -> Vec<Value> {
    let (won, lost): (Vec<_>, Vec<_>) = answers.iter().partition(|one| one.status() == 200);
    for answer in lost {
        let refused = refusal(answer);
        assert_eq!((refused.0, refused.1.as_str()), (400, "invalid_grant"));
    }
    won.into_iter().map(Answer::json).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_redeem_a_code_nobody_keeps_anything() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    let code = code(&mut alice, &asking("silent", &[])).await;
    let answers = race(&server, |mut connection| {
        let code = code.clone();
        async move { redeem(&mut connection, &code, &[]).await }
    })
    .await;
    let won = given(&answers);
    assert!(won.len() <= 1, "one at most has tokens: {answers:?}");
    for tokens in &won {
        let told = introspect(&mut alice, &tokens["access_token"]).await;
        assert_eq!(told["active"], false, "and none that works");
        let again = refresh(&mut alice, &tokens["refresh_token"], &[]).await;
        assert_eq!(refusal(&again).1, "invalid_grant");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_refresh_all_have_the_one_successor() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    let first = tokens(&mut alice, &[]).await;
    let answers = race(&server, |mut connection| {
        let token = first["refresh_token"].clone();
        async move { refresh(&mut connection, &token, &[]).await }
    })
    .await;
    let won = given(&answers);
    assert_eq!(
        won.len(),
        RACERS,
        "the answer may have been lost: {answers:?}"
    );
    let successor = &won[0]["refresh_token"];
    for tokens in &won {
        assert_eq!(&tokens["refresh_token"], successor);
        let told = introspect(&mut alice, &tokens["access_token"]).await;
        assert_eq!(told["active"], true);
    }
    // Once the successor was used, the first one is stolen goods, and everything ends.
    let third = refresh(&mut alice, successor, &[]).await;
    assert_eq!(third.status(), 200);
    let late = refresh(&mut alice, &first["refresh_token"], &[]).await;
    assert_eq!(refusal(&late).1, "invalid_grant");
    for tokens in won.iter().chain([&third.json(), &first]) {
        let told = introspect(&mut alice, &tokens["access_token"]).await;
        assert_eq!(told["active"], false);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_poll_for_one_device_nobody_keeps_anything() {
    let server = OidcServer::open().await;
    server
        .add_with("tv", AuthMethod::None, |metadata| {
            metadata.grant_types = vec![DEVICE_CODE_GRANT.into()];
        })
        .await;
    let mut alice = Browser::of(&server, "alice").await;
    let begin = form("/device_authorization", &[("client_id", "tv")]);
    let device = alice.connection.send(begin).await.json();
    let done = alice.decide(&device, "continue").await;
    assert!(done.text().contains("The device is connected"), "{done:?}");
    let code = device["device_code"].as_str().unwrap().to_owned();
    let answers = race(&server, |mut connection| {
        let pairs = [
            ("grant_type", DEVICE_CODE_GRANT),
            ("device_code", &code),
            ("client_id", "tv"),
        ];
        let poll = form("/token", &pairs);
        async move { connection.send(poll).await }
    })
    .await;
    let won = given(&answers);
    assert!(won.len() <= 1, "{answers:?}");
    for tokens in &won {
        let told = introspect(&mut alice.connection, &tokens["access_token"]).await;
        assert_eq!(told["active"], false);
    }
}

#[tokio::test]
async fn the_grace_for_a_lost_answer_ends() {
    let server = OidcServer::open().await;
    let mut alice = server.alice().await;
    let first = tokens(&mut alice, &[]).await;
    let second = refresh(&mut alice, &first["refresh_token"], &[])
        .await
        .json();
    let pairs = [
        ("grant_type", "refresh_token"),
        ("refresh_token", first["refresh_token"].as_str().unwrap()),
    ];
    let again = async |seconds| {
        let form = tailbone_oidc::Params::parse(query(&pairs).as_bytes());
        let caller = tailbone_oidc::provider::Caller::Unknown;
        let then = Timestamp::now() + Duration::from_secs(seconds);
        let basic = basic("silent");
        let token = server.provider.token(&form, Some(&basic), &caller, then);
        token.await
    };
    let lost = again(50).await.unwrap();
    assert_eq!(
        lost.refresh_token.as_deref(),
        second["refresh_token"].as_str()
    );
    assert_eq!(again(61).await.unwrap_err().code, "invalid_grant");
    let family = refresh(&mut alice, &second["refresh_token"], &[]).await;
    assert_eq!(refusal(&family).1, "invalid_grant", "reuse ends the family");
}
