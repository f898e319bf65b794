//! What every store promises. Each test is given an empty store.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::future::{LocalBoxFuture, join_all};
use jiff::{SignedDuration, Timestamp};
use tailbone_oidc::store::{
    AccessToken, AddedClient, ApplyMode, ApplyOptions, Client, ClientChange, ClientOrigin,
    ClientQuery, ClientSecret, Code, DeviceDecision, DevicePoll, DeviceRequest, Digest, Grant,
    GrantId, GrantsOf, Imported, Issue, Issued, LiveRows, MAX_NAME, Presented, PushedRequest,
    RefreshToken, RegistrationLimits, Session, SessionId, SessionsOf, Store, StoreError,
    WithoutFile,
};

pub(crate) type Shared = Arc<dyn Store>;
pub(crate) type Promise = fn(Shared) -> LocalBoxFuture<'static, ()>;

/// Declares the tests and the list of them.
macro_rules! promises {
    ($(async fn $name:ident($store:ident) $body:block)*) => {
        pub(crate) const ALL: &[(&str, Promise)] = &[$((stringify!($name), $name)),*];

        $(fn $name($store: Shared) -> LocalBoxFuture<'static, ()> {
            Box::pin(async move { $body })
        })*
    };
}

/// Callers that race for one thing.
const RACERS: usize = 12;
const GRACE: Duration = Duration::from_secs(30);
const NO_GRACE: Duration = Duration::ZERO;

/// Seconds after the beginning of the test.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::constant(1_800_000_000, 0) + SignedDuration::from_secs(seconds)
}

pub(crate) fn client(id: &str, origin: ClientOrigin) -> Client {
    Client {
        id: id.to_owned(),
        origin,
        owner: None,
        secrets: Vec::new(),
        registration_token: None,
        metadata: r#"{"client_name":"App"}"#.to_owned(),
        created_at: at(0),
        updated_at: at(0),
        expires_at: None,
        version: 1,
    }
}

fn registered(id: &str, owner: &str, expires_at: i64) -> Client {
    Client {
        owner: Some(owner.to_owned()),
        expires_at: Some(at(expires_at)),
        ..client(id, ClientOrigin::Registered)
    }
}

pub(crate) fn grant(client: &str, subject: &str) -> Grant {
    Grant {
        id: GrantId::random().unwrap(),
        client_id: client.to_owned(),
        subject: Some(subject.to_owned()),
        session: None,
        created_at: at(0),
        details: r#"{"scope":"openid"}"#.to_owned(),
    }
}

pub(crate) fn code(text: &str) -> Code {
    Code {
        digest: Digest::of(text),
        expires_at: at(60),
    }
}

pub(crate) fn token(text: &str, expires_at: i64) -> AccessToken {
    AccessToken {
        digest: Digest::of(text),
        client_id: "app".to_owned(),
        issued_at: at(0),
        expires_at: at(expires_at),
        details: r#"{"aud":["app"]}"#.to_owned(),
    }
}

/// An access token until 300 and a refresh token until 3000.
pub(crate) fn both(text: &str) -> Issue {
    Issue {
        access: Some(token(text, 300)),
        refresh_until: Some(at(3000)),
        details: None,
    }
}

fn refresh_token(presented: Presented<Issued>) -> RefreshToken {
    match presented {
        Presented::Valid(issued) => issued.refresh.expect("a refresh token"),
        other => panic!("{other:?}"),
    }
}

/// A redeemed grant: its first refresh token; the access token is called `name`.
async fn logged_in(store: &dyn Store, name: &str) -> (Grant, RefreshToken) {
    let grant = grant("app", "alice");
    store.authorize(&grant, code(name)).await.unwrap();
    let issue = both(name);
    let issued = store.redeem_code(code(name).digest, &issue, at(1)).await;
    let refresh = refresh_token(issued.unwrap());
    (grant, refresh)
}

async fn is_alive(store: &dyn Store, access_token: &str, now: i64) -> bool {
    let found = store.access_token(Digest::of(access_token), at(now));
    found.await.unwrap().is_some()
}

/// A client that the file `ID.toml` describes.
fn of_file(id: &str, name: &str, secret: &str, now: i64) -> Client {
    let secret = ClientSecret {
        digest: Digest::of(secret),
        created_at: at(now),
        expires_at: None,
    };
    Client {
        owner: Some(format!("{id}.toml")),
        secrets: vec![secret],
        metadata: format!(r#"{{"client_name":"{name}"}}"#),
        created_at: at(now),
        updated_at: at(now),
        ..client(id, ClientOrigin::File)
    }
}

/// What each client's change is called, in the order in which they are told.
async fn apply(
    store: &dyn Store,
    clients: &[Client],
    options: (ApplyMode, WithoutFile),
    now: i64,
) -> Vec<(String, &'static str)> {
    let (mode, without_file) = options;
    let options = ApplyOptions { mode, without_file };
    let changes = store.apply_clients(clients, options, at(now)).await;
    let changes = changes.unwrap().into_iter().map(|change| {
        let word = match change {
            ClientChange::Added(_) => "added",
            ClientChange::Changed { .. } => "changed",
            ClientChange::Kept(_) => "kept",
            ClientChange::Removed(_) => "removed",
            ClientChange::Unchanged(_) => "unchanged",
        };
        (change.client().id.clone(), word)
    });
    changes.collect()
}

fn words(of: &[(&str, &'static str)]) -> Vec<(String, &'static str)> {
    of.iter()
        .map(|(id, word)| ((*id).to_owned(), *word))
        .collect()
}

const WRITE: (ApplyMode, WithoutFile) = (ApplyMode::Write, WithoutFile::Keep);
const PRUNE: (ApplyMode, WithoutFile) = (ApplyMode::Write, WithoutFile::Remove);
const PREVIEW: (ApplyMode, WithoutFile) = (ApplyMode::Preview, WithoutFile::Remove);

/// Lets `RACERS` tasks begin at once, and gives what they came to.
pub(crate) async fn race<T, F>(racer: impl Fn(usize) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let racers: Vec<_> = (0..RACERS).map(|at| tokio::spawn(racer(at))).collect();
    join_all(racers)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect()
}

promises! {
    async fn a_client_is_read_as_it_was_stored(store) {
        let mut client = Client {
            secrets: vec![
                ClientSecret { digest: Digest::of("one"), created_at: at(0), expires_at: None },
                ClientSecret {
                    digest: Digest::of("two"), created_at: at(1), expires_at: Some(at(9)),
                },
            ],
            registration_token: Some(Digest::of("manage")),
            metadata: "{\"client_name\":\"Käse \\u0000 \u{1F9C0}\"}".to_owned(),
            created_at: "0001-01-01T00:00:00Z".parse().unwrap(),
            ..client("app", ClientOrigin::Tsidp)
        };
        assert_eq!(store.client("app", at(0)).await.unwrap(), None);
        assert_eq!(store.add_client(&client, None).await.unwrap(), AddedClient::Added);
        assert_eq!(store.client("app", at(0)).await.unwrap().as_ref(), Some(&client));
        assert_eq!(store.client("App", at(0)).await.unwrap(), None);
        assert_eq!(store.add_client(&client, None).await.unwrap(), AddedClient::Exists);

        client.metadata = "{}".to_owned();
        client.secrets.pop();
        assert!(store.replace_client(&client, at(5)).await.unwrap());
        assert!(!store.replace_client(&client, at(6)).await.unwrap(), "it was read too early");
        (client.version, client.updated_at) = (2, at(5));
        assert_eq!(store.client("app", at(7)).await.unwrap(), Some(client));
    }

    async fn clients_come_in_the_order_of_their_ids(store) {
        for id in ["b", "Z", "a", "ä", "a-1", "_"] {
            store.add_client(&client(id, ClientOrigin::Admin), None).await.unwrap();
        }
        store.add_client(&registered("gone", "alice", 10), None).await.unwrap();
        store.remove_client("b", at(0)).await.unwrap();
        let mut ids: Vec<String> = Vec::new();
        loop {
            let page = store.clients(ids.last().map(String::as_str), 2, at(10)).await.unwrap();
            if page.is_empty() {
                break;
            }
            assert!(page.len() <= 2);
            ids.extend(page.into_iter().map(|client| client.id));
        }
        assert_eq!(ids, ["Z", "_", "a", "a-1", "ä"]);
    }

    async fn registrations_are_limited_in_total_and_by_owner(store) {
        let limits = Some(RegistrationLimits { total: 3, per_owner: 2 });
        let add = async |id: &str, owner: &str| {
            store.add_client(&registered(id, owner, 100), limits).await.unwrap()
        };
        assert_eq!(add("a", "alice").await, AddedClient::Added);
        assert_eq!(add("a", "alice").await, AddedClient::Exists);
        assert_eq!(add("b", "alice").await, AddedClient::Added);
        assert_eq!(add("c", "alice").await, AddedClient::TooManyOfOwner);
        assert_eq!(add("c", "bob").await, AddedClient::Added);
        assert_eq!(add("d", "carol").await, AddedClient::TooMany);
        assert_eq!(store.client("d", at(0)).await.unwrap(), None);
        let by_hand = client("hand", ClientOrigin::Admin);
        assert_eq!(store.add_client(&by_hand, limits).await.unwrap(), AddedClient::Added);
        // What goes makes room, whether it is removed or expires.
        assert!(store.remove_client("a", at(1)).await.unwrap());
        assert!(!store.remove_client("a", at(1)).await.unwrap());
        assert!(store.remove_client("hand", at(1)).await.unwrap());
        assert_eq!(add("d", "alice").await, AddedClient::Added);
        assert_eq!(add("e", "bob").await, AddedClient::TooMany);
        store.sweep(100, at(100)).await.unwrap();
        let later = registered("e", "bob", 200);
        for (id, answer) in [("e", AddedClient::Added), ("f", AddedClient::Added),
                             ("g", AddedClient::TooManyOfOwner)] {
            let client = Client { id: id.to_owned(), ..later.clone() };
            assert_eq!(store.add_client(&client, limits).await.unwrap(), answer, "{id}");
        }
    }

    async fn no_race_of_registrations_passes_the_limit(store) {
        let limits = Some(RegistrationLimits { total: 5, per_owner: 100 });
        let answers = race(|at| {
            let store = store.clone();
            async move {
                let client = registered(&format!("app-{at}"), &format!("owner-{at}"), 100);
                store.add_client(&client, limits).await.unwrap()
            }
        })
        .await;
        let added = answers.iter().filter(|answer| **answer == AddedClient::Added).count();
        assert_eq!(added, 5, "{answers:?}");
        assert_eq!(store.clients(None, 100, at(0)).await.unwrap().len(), 5);
    }

    async fn a_registration_ends_unless_it_is_extended(store) {
        store.add_client(&registered("app", "alice", 100), None).await.unwrap();
        store.add_client(&client("ours", ClientOrigin::Admin), None).await.unwrap();
        assert!(store.client("app", at(99)).await.unwrap().is_some());
        assert!(store.client("app", at(100)).await.unwrap().is_none());
        store.extend_client("app", at(200), at(50)).await.unwrap();
        store.extend_client("app", at(150), at(50)).await.unwrap();
        store.extend_client("ours", at(200), at(50)).await.unwrap();
        let found = store.client("app", at(199)).await.unwrap().unwrap();
        assert_eq!((found.expires_at, found.version), (Some(at(200)), 1));
        store.extend_client("app", at(300), at(200)).await.unwrap();
        assert!(store.client("app", at(200)).await.unwrap().is_none(), "it had ended");
        assert_eq!(store.client("ours", at(999)).await.unwrap().unwrap().expires_at, None);
    }

    async fn clients_of_another_program_come_once(store) {
        store.add_client(&client("b", ClientOrigin::Admin), None).await.unwrap();
        let old = [client("a", ClientOrigin::Tsidp), client("b", ClientOrigin::Tsidp)];
        let imported = Imported::Now { added: vec!["a".to_owned()], taken: vec!["b".to_owned()] };
        assert_eq!(store.import_clients("tsidp", &old, at(0)).await.unwrap(), imported);
        assert_eq!(store.client("b", at(0)).await.unwrap().unwrap().origin, ClientOrigin::Admin);
        store.remove_client("a", at(1)).await.unwrap();
        let again = store.import_clients("tsidp", &old, at(2)).await.unwrap();
        assert_eq!(again, Imported::Before);
        assert_eq!(store.client("a", at(2)).await.unwrap(), None, "it was removed");
    }

    async fn clients_of_files_are_as_their_files_say(store) {
        store.add_client(&client("manual", ClientOrigin::Admin), None).await.unwrap();
        let (a, b) = (of_file("a", "A", "s", 0), of_file("b", "B", "s", 0));
        let both_are = |word| words(&[("a", word), ("b", word)]);
        let given = [b.clone(), a.clone()];
        assert_eq!(apply(&*store, &given, PREVIEW, 0).await, both_are("added"));
        assert_eq!(store.clients(None, 9, at(0)).await.unwrap().len(), 1, "only a preview");
        assert_eq!(apply(&*store, &given, WRITE, 0).await, both_are("added"));
        assert_eq!(store.client("a", at(0)).await.unwrap(), Some(a.clone()));

        let later = [of_file("a", "A", "s", 5), of_file("b", "B", "s", 5)];
        assert_eq!(apply(&*store, &later, WRITE, 5).await, both_are("unchanged"));
        assert_eq!(store.client("a", at(5)).await.unwrap(), Some(a.clone()), "not even its times");

        let mut changed = of_file("a", "New", "s", 6);
        changed.secrets.push(of_file("a", "", "another", 6).secrets[0]);
        let given = [changed.clone()];
        let told = words(&[("a", "changed"), ("b", "kept")]);
        assert_eq!(apply(&*store, &given, WRITE, 6).await, told);
        changed.secrets[0].created_at = at(0);
        let expected = Client { created_at: at(0), version: 2, ..changed };
        assert_eq!(store.client("a", at(6)).await.unwrap(), Some(expected));
        assert_eq!(store.client("b", at(6)).await.unwrap(), Some(b));

        let told = words(&[("a", "unchanged"), ("b", "removed")]);
        assert_eq!(apply(&*store, &given, PREVIEW, 7).await, told);
        assert_eq!(apply(&*store, &given, PRUNE, 7).await, told);
        assert!(store.client("b", at(7)).await.unwrap().is_none());
        assert!(store.client("manual", at(7)).await.unwrap().is_some(), "no file ever had it");
    }

    async fn a_file_that_cannot_be_stored_changes_no_client(store) {
        apply(&*store, &[of_file("a", "A", "s", 0)], WRITE, 0).await;
        let given = [of_file("a", "New", "s", 1), of_file("b", "\0", "s", 1)];
        let options = ApplyOptions { mode: ApplyMode::Write, without_file: WithoutFile::Remove };
        let refused = store.apply_clients(&given, options, at(1)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Unsuitable { .. }), "{refused}");
        let found = store.clients(None, 9, at(1)).await.unwrap();
        assert_eq!(found, [of_file("a", "A", "s", 0)]);
    }

    async fn a_file_takes_a_registered_client_over_with_its_grants(store) {
        let limits = Some(RegistrationLimits { total: 1, per_owner: 1 });
        let token = Some(Digest::of("registration"));
        let own = Client { registration_token: token, ..registered("app", "alice", 100) };
        assert_eq!(store.add_client(&own, limits).await.unwrap(), AddedClient::Added);
        let (_, refresh) = logged_in(&*store, "access").await;
        let told = apply(&*store, &[of_file("app", "App", "s", 2)], WRITE, 2).await;
        assert_eq!(told, words(&[("app", "changed")]));

        let found = store.client("app", at(999)).await.unwrap().expect("it does not end any more");
        assert_eq!((found.origin, found.registration_token), (ClientOrigin::File, token));
        assert!(is_alive(&*store, "access", 3).await);
        let presented = store.present_refresh(&refresh, GRACE, at(3)).await.unwrap();
        assert!(matches!(presented, Presented::Valid(_)), "{presented:?}");
        let another = registered("another", "alice", 100);
        let added = store.add_client(&another, limits).await.unwrap();
        assert_eq!(added, AddedClient::Added, "it is counted no more");
    }

    async fn a_file_does_not_inherit_the_grants_of_a_registration_that_has_ended(store) {
        let limits = Some(RegistrationLimits { total: 1, per_owner: 1 });
        store.add_client(&registered("app", "alice", 10), limits).await.unwrap();
        logged_in(&*store, "access").await;
        let told = apply(&*store, &[of_file("app", "App", "s", 20)], WRITE, 20).await;
        assert_eq!(told, words(&[("app", "added")]));
        assert!(store.client("app", at(20)).await.unwrap().is_some());
        assert!(!is_alive(&*store, "access", 20).await);
        let another = registered("another", "alice", 100);
        let added = store.add_client(&another, limits).await.unwrap();
        assert_eq!(added, AddedClient::Added, "it is counted no more");
    }

    async fn a_client_whose_file_is_pruned_loses_its_grants(store) {
        apply(&*store, &[of_file("app", "App", "s", 0)], WRITE, 0).await;
        logged_in(&*store, "access").await;
        apply(&*store, &[], PRUNE, 2).await;
        assert!(!is_alive(&*store, "access", 3).await);
        apply(&*store, &[of_file("app", "App", "s", 4)], WRITE, 4).await;
        assert!(!is_alive(&*store, "access", 5).await, "they were another client's");
    }

    async fn replicas_that_apply_the_same_files_at_once_change_them_once(store) {
        let shared = store.clone();
        let told = race(move |_| {
            let store = shared.clone();
            async move {
                let given = [of_file("a", "A", "s", 0), of_file("b", "B", "s", 0)];
                apply(&*store, &given, PRUNE, 0).await
            }
        });
        let told = told.await;
        let of = |word| told.iter().filter(|one| **one == words(&[("a", word), ("b", word)])).count();
        assert_eq!((of("added"), of("unchanged")), (1, RACERS - 1), "{told:?}");
    }

    async fn a_code_is_redeemed_once(store) {
        let grant = grant("app", "alice");
        store.authorize(&grant, code("c")).await.unwrap();
        let digest = code("c").digest;
        let found = store.present_code(digest, at(1)).await.unwrap();
        assert_eq!(found, Presented::Valid(grant.clone()));
        let issue = Issue { details: Some("{}".to_owned()), ..both("access") };
        let issued = store.redeem_code(digest, &issue, at(2)).await.unwrap();
        let refresh = refresh_token(issued);
        let now = Grant { details: "{}".to_owned(), ..grant.clone() };
        let found = store.access_token(Digest::of("access"), at(3)).await.unwrap();
        assert_eq!(found, Some((token("access", 300), now.clone())));
        let found = store.present_refresh(&refresh, NO_GRACE, at(3)).await.unwrap();
        assert_eq!(found, Presented::Valid(now));

        let again = store.redeem_code(digest, &both("other"), at(4)).await.unwrap();
        assert_eq!(again, Presented::Reused(grant.id));
        assert!(!is_alive(&*store, "access", 5).await, "what it gave is revoked");
        assert!(!is_alive(&*store, "other", 5).await);
        let found = store.present_refresh(&refresh, NO_GRACE, at(5)).await.unwrap();
        assert_eq!(found, Presented::Unknown);
    }

    async fn a_redeemed_code_that_is_presented_revokes_what_it_gave(store) {
        let (grant, _) = logged_in(&*store, "c").await;
        // Long after the code itself had expired.
        let found = store.present_code(code("c").digest, at(1000)).await.unwrap();
        assert_eq!(found, Presented::Reused(grant.id));
        assert!(!is_alive(&*store, "c", 2).await);
        assert_eq!(store.present_code(code("c").digest, at(3)).await.unwrap(), Presented::Unknown);
    }

    async fn of_those_who_race_for_a_code_one_has_it(store) {
        store.authorize(&grant("app", "alice"), code("c")).await.unwrap();
        let answers = race(|at_| {
            let store = store.clone();
            async move {
                let issue = both(&format!("access-{at_}"));
                store.redeem_code(code("c").digest, &issue, at(1)).await.unwrap()
            }
        })
        .await;
        let valid = answers.iter().filter(|answer| matches!(answer, Presented::Valid(_))).count();
        assert_eq!(valid, 1, "{answers:?}");
        for at in 0..RACERS {
            assert!(!is_alive(&*store, &format!("access-{at}"), 2).await, "reuse revokes");
        }
    }

    async fn a_code_ends_with_its_time(store) {
        store.authorize(&grant("app", "alice"), code("c")).await.unwrap();
        let digest = code("c").digest;
        assert_eq!(store.present_code(digest, at(60)).await.unwrap(), Presented::Unknown);
        let late = store.redeem_code(digest, &both("a"), at(60)).await.unwrap();
        assert_eq!(late, Presented::Unknown);
        assert!(!is_alive(&*store, "a", 60).await);
        let in_time = store.redeem_code(digest, &both("a"), at(59)).await.unwrap();
        assert!(matches!(in_time, Presented::Valid(_)), "{in_time:?}");
        let unknown = store.redeem_code(Digest::of("x"), &both("b"), at(1)).await.unwrap();
        assert_eq!(unknown, Presented::Unknown);
        assert!(!is_alive(&*store, "b", 2).await);
    }

    async fn a_burned_code_is_gone(store) {
        store.authorize(&grant("app", "alice"), code("c")).await.unwrap();
        store.burn_code(code("c").digest).await.unwrap();
        let gone = store.redeem_code(code("c").digest, &both("a"), at(1)).await.unwrap();
        assert_eq!(gone, Presented::Unknown);
        // Burning comes too late: that is reuse.
        logged_in(&*store, "d").await;
        store.burn_code(code("d").digest).await.unwrap();
        assert!(!is_alive(&*store, "d", 2).await);
    }

    async fn a_refresh_token_is_replaced_at_each_use(store) {
        let (grant, mut refresh) = logged_in(&*store, "first").await;
        let first = refresh.clone();
        for round in 0..5 {
            let name = format!("access-{round}");
            let issue = both(&name);
            let rotated = store.rotate_refresh(&refresh, NO_GRACE, &issue, at(10 + round)).await;
            let next = refresh_token(rotated.unwrap());
            assert_ne!(next, refresh);
            assert_eq!(next.grant(), grant.id);
            assert!(is_alive(&*store, &name, 20).await && is_alive(&*store, "first", 20).await);
            refresh = next;
        }
        // However old it is.
        let reused = store.rotate_refresh(&first, NO_GRACE, &both("thief"), at(30)).await.unwrap();
        assert_eq!(reused, Presented::Reused(grant.id));
        for name in ["first", "access-0", "access-4", "thief"] {
            assert!(!is_alive(&*store, name, 31).await, "{name}");
        }
        let end = store.rotate_refresh(&refresh, NO_GRACE, &both("owner"), at(31)).await.unwrap();
        assert_eq!(end, Presented::Unknown);
    }

    async fn a_replaced_refresh_token_that_is_presented_revokes_its_grant(store) {
        let (grant, first) = logged_in(&*store, "a").await;
        store.rotate_refresh(&first, NO_GRACE, &both("b"), at(10)).await.unwrap();
        let found = store.present_refresh(&first, NO_GRACE, at(11)).await.unwrap();
        assert_eq!(found, Presented::Reused(grant.id));
        assert!(!is_alive(&*store, "b", 12).await);
    }

    async fn a_lost_answer_is_given_again_within_the_grace(store) {
        let (_, first) = logged_in(&*store, "a").await;
        let rotate = async |token: &RefreshToken, name: &str, now: i64| {
            store.rotate_refresh(token, GRACE, &both(name), at(now)).await.unwrap()
        };
        let second = refresh_token(rotate(&first, "b", 10).await);
        assert!(matches!(store.present_refresh(&first, GRACE, at(39)).await.unwrap(),
                         Presented::Valid(_)));
        assert_eq!(refresh_token(rotate(&first, "c", 39).await), second);
        assert!(is_alive(&*store, "b", 40).await && is_alive(&*store, "c", 40).await);
        let third = refresh_token(rotate(&second, "d", 40).await);
        assert_ne!(third, second);
        // Its successor was used, so no answer was lost.
        assert!(matches!(rotate(&first, "e", 40).await, Presented::Reused(_)));
        assert!(!is_alive(&*store, "d", 41).await);

        let (_, first) = logged_in(&*store, "f").await;
        rotate(&first, "g", 10).await;
        assert!(matches!(rotate(&first, "h", 40).await, Presented::Reused(_)), "too late");
    }

    async fn of_those_who_race_for_a_refresh_token_one_has_it(store) {
        let (_, first) = logged_in(&*store, "a").await;
        let answers = race(|at_| {
            let (store, first) = (store.clone(), first.clone());
            async move {
                let issue = both(&format!("access-{at_}"));
                store.rotate_refresh(&first, NO_GRACE, &issue, at(10)).await.unwrap()
            }
        })
        .await;
        let valid = answers.iter().filter(|answer| matches!(answer, Presented::Valid(_))).count();
        assert_eq!(valid, 1, "{answers:?}");
        assert!(!is_alive(&*store, "a", 11).await, "reuse revokes");

        // With a grace they are one client whose requests overtook each other.
        let (_, first) = logged_in(&*store, "b").await;
        let answers = race(|at_| {
            let (store, first) = (store.clone(), first.clone());
            async move {
                let issue = both(&format!("graced-{at_}"));
                store.rotate_refresh(&first, GRACE, &issue, at(10)).await.unwrap()
            }
        })
        .await;
        let tokens: HashSet<_> = answers
            .into_iter()
            .map(|answer| refresh_token(answer).reveal().to_string())
            .collect();
        assert_eq!(tokens.len(), 1);
        assert!(is_alive(&*store, "b", 11).await);
    }

    async fn a_refresh_token_ends_with_its_time(store) {
        let (grant, first) = logged_in(&*store, "a").await;
        assert_eq!(store.present_refresh(&first, NO_GRACE, at(3000)).await.unwrap(),
                   Presented::Unknown);
        let late = store.rotate_refresh(&first, NO_GRACE, &both("b"), at(3000)).await.unwrap();
        assert_eq!(late, Presented::Unknown);
        let longer = Issue { refresh_until: Some(at(6000)), ..both("c") };
        let second = store.rotate_refresh(&first, NO_GRACE, &longer, at(2999)).await.unwrap();
        let second = refresh_token(second);
        let found = store.present_refresh(&second, NO_GRACE, at(5999)).await.unwrap();
        assert_eq!(found, Presented::Valid(grant));
        let none = Issue { refresh_until: None, ..both("d") };
        let refused = store.rotate_refresh(&second, NO_GRACE, &none, at(10)).await;
        assert!(matches!(refused, Err(StoreError::Unsupported(_))), "{refused:?}");
    }

    async fn a_grant_without_a_refresh_token_has_none_to_be_guessed(store) {
        let grant = grant("app", "alice");
        let issue = Issue { refresh_until: None, ..both("a") };
        let issued = store.issue(&grant, &issue, at(0)).await.unwrap();
        assert_eq!(issued.refresh, None);
        let guess = RefreshToken::parse(&(grant.id.text() + &"0".repeat(32))).unwrap();
        let found = store.rotate_refresh(&guess, GRACE, &both("b"), at(1)).await.unwrap();
        assert_eq!(found, Presented::Unknown);
        assert!(is_alive(&*store, "a", 2).await);
        assert!(!is_alive(&*store, "a", 300).await);
    }

    async fn more_access_tokens_of_a_grant_end_with_it(store) {
        let (grant, _) = logged_in(&*store, "a").await;
        let exchanged = AccessToken { client_id: "gateway".to_owned(), ..token("x", 9000) };
        assert!(store.add_access_token(grant.id, &exchanged, at(5)).await.unwrap());
        let found = store.access_token(Digest::of("x"), at(8999)).await.unwrap();
        assert_eq!(found, Some((exchanged, grant.clone())));
        assert!(store.revoke_access_token(Digest::of("a"), at(6)).await.unwrap());
        assert!(!store.revoke_access_token(Digest::of("a"), at(6)).await.unwrap());
        assert!(!is_alive(&*store, "a", 7).await && is_alive(&*store, "x", 7).await);
        assert!(store.revoke_grant(grant.id, at(8)).await.unwrap());
        assert!(!store.revoke_grant(grant.id, at(8)).await.unwrap());
        assert!(!is_alive(&*store, "x", 9).await);
        assert!(!store.add_access_token(grant.id, &token("y", 300), at(9)).await.unwrap());
        assert!(!is_alive(&*store, "y", 9).await);
    }

    async fn a_removed_client_takes_its_grants_along(store) {
        store.add_client(&registered("app", "alice", 100), None).await.unwrap();
        let (granted, refresh) = logged_in(&*store, "a").await;
        store.authorize(&grant("app", "bob"), code("pending")).await.unwrap();
        // Others' grants gave it a token, too.
        let other = Grant { client_id: "other".to_owned(), ..grant("other", "carol") };
        let issue = Issue { access: Some(AccessToken {
            client_id: "other".to_owned(), ..token("o", 300) }), ..both("o") };
        store.issue(&other, &issue, at(0)).await.unwrap();
        store.add_access_token(other.id, &token("x", 300), at(1)).await.unwrap();
        assert!(is_alive(&*store, "x", 2).await);
        let all_dead = async |now: i64| {
            assert!(!is_alive(&*store, "a", now).await && !is_alive(&*store, "x", now).await);
            let code = store.present_code(code("pending").digest, at(now)).await.unwrap();
            assert_eq!(code, Presented::Unknown);
            let found = store.present_refresh(&refresh, GRACE, at(now)).await.unwrap();
            assert_eq!(found, Presented::Unknown);
            let found = store.rotate_refresh(&refresh, GRACE, &both("n"), at(now)).await.unwrap();
            assert_eq!(found, Presented::Unknown);
            let found = store.grants(&GrantsOf::Client("app".to_owned()), 9, at(now)).await;
            assert_eq!(found.unwrap(), []);
            assert!(is_alive(&*store, "o", now).await);
        };
        assert!(is_alive(&*store, "a", 50).await);
        all_dead(100).await;
        assert!(store.remove_client("app", at(50)).await.unwrap());
        all_dead(50).await;
        store.sweep(100, at(51)).await.unwrap();
        all_dead(52).await;
        // A new client of that id has nothing of the old one's.
        let again = client("app", ClientOrigin::Admin);
        assert_eq!(store.add_client(&again, None).await.unwrap(), AddedClient::Added);
        assert_eq!(store.client("app", at(53)).await.unwrap(), Some(again));
        all_dead(53).await;
        assert!(!store.add_access_token(granted.id, &token("z", 300), at(53)).await.unwrap());
        let (_, refresh) = logged_in(&*store, "new").await;
        assert!(is_alive(&*store, "new", 54).await);
        assert!(matches!(store.present_refresh(&refresh, GRACE, at(54)).await.unwrap(),
                         Presented::Valid(_)));
    }

    async fn grants_are_listed_and_revoked_by_what_they_have_in_common(store) {
        let session = SessionId::random().unwrap();
        let mut all = Vec::new();
        for number in 0..5 {
            let grant = Grant {
                session: (number < 3).then_some(session),
                created_at: at(number),
                ..grant(if number % 2 == 0 { "even" } else { "odd" }, "alice")
            };
            store.issue(&grant, &both(&format!("t{number}")), at(0)).await.unwrap();
            all.push(grant);
        }
        store.authorize(&grant("even", "alice"), code("pending")).await.unwrap();
        let alices = GrantsOf::Subject("alice".to_owned());
        let newest: Vec<_> = all.iter().rev().take(4).cloned().collect();
        assert_eq!(store.grants(&alices, 4, at(9)).await.unwrap(), newest);
        assert_eq!(store.grants(&alices, 9, at(3000)).await.unwrap(), []);
        let evens = GrantsOf::Client("even".to_owned());
        assert_eq!(store.grants(&evens, 9, at(9)).await.unwrap().len(), 3);
        assert_eq!(store.revoke_grants(&GrantsOf::Session(session)).await.unwrap(), 3);
        let rest = [all[4].clone(), all[3].clone()];
        assert_eq!(store.grants(&alices, 9, at(9)).await.unwrap(), rest);
        assert!(!is_alive(&*store, "t0", 9).await && is_alive(&*store, "t4", 9).await);
        // Codes that are on their way go as well.
        assert_eq!(store.revoke_grants(&evens).await.unwrap(), 2);
        assert_eq!(store.present_code(code("pending").digest, at(1)).await.unwrap(),
                   Presented::Unknown);
        assert_eq!(store.revoke_grants(&GrantsOf::Subject("bob".to_owned())).await.unwrap(), 0);
    }

    async fn a_session_is_found_by_its_cookie_until_it_ends(store) {
        let mut session = Session {
            id: SessionId::random().unwrap(),
            cookie: Digest::of("cookie"),
            subject: "alice".to_owned(),
            authenticated_at: at(0),
            created_at: at(0),
            expires_at: at(100),
            details: "{}".to_owned(),
        };
        store.add_session(&session).await.unwrap();
        let by = async |cookie: &str, now: i64| {
            store.session(Digest::of(cookie), at(now)).await.unwrap()
        };
        assert_eq!(by("cookie", 99).await.as_ref(), Some(&session));
        assert_eq!(by("cookie", 100).await, None);
        for app in ["two", "one", "one"] {
            let grant = Grant { session: Some(session.id), ..grant(app, "alice") };
            let code = Code { digest: Digest::of(&grant.id.text()), expires_at: at(60) };
            store.authorize(&grant, code).await.unwrap();
        }
        (session.cookie, session.authenticated_at) = (Digest::of("new"), at(50));
        session.expires_at = at(200);
        assert!(store.renew_session(&session, at(50)).await.unwrap());
        assert_eq!(by("cookie", 51).await, None);
        assert_eq!(by("new", 199).await.as_ref(), Some(&session));
        let of_bob = Session { subject: "bob".to_owned(), ..session.clone() };
        assert!(!store.renew_session(&of_bob, at(51)).await.unwrap());
        assert_eq!(store.sessions("alice", 9, at(60)).await.unwrap(), [session.clone()]);
        assert_eq!(store.sessions("bob", 9, at(60)).await.unwrap(), []);

        assert_eq!(store.end_session(session.id, at(200)).await.unwrap(), None, "it has expired");
        let ended = store.end_session(session.id, at(70)).await.unwrap().unwrap();
        assert_eq!(ended.session, session);
        assert_eq!(ended.clients, ["one", "two"]);
        assert_eq!(store.end_session(session.id, at(70)).await.unwrap(), None);
        assert_eq!(by("new", 71).await, None);
        assert!(!store.renew_session(&session, at(71)).await.unwrap());
    }

    async fn administrators_find_clients_by_what_they_say_a_page_at_a_time(store) {
        for (id, name) in [("b", "50% Wiki"), ("c", "Grafana"), ("a", "wiki_2")] {
            let metadata = format!(
                r#"{{"client_name":"{name}","redirect_uris":["https://{id}.example.com/x"]}}"#
            );
            let client = Client { metadata, ..client(id, ClientOrigin::Admin) };
            assert_eq!(store.add_client(&client, None).await.unwrap(), AddedClient::Added);
        }
        let found = async |query: ClientQuery| -> Vec<String> {
            let found = store.find_clients(&query, at(1)).await.unwrap();
            found.into_iter().map(|client| client.id).collect()
        };
        let with = |text: &str| ClientQuery {
            text: text.to_owned(),
            limit: 2,
            ..ClientQuery::default()
        };
        assert_eq!(found(with("")).await, ["a", "b"]);
        assert_eq!(found(ClientQuery { after: Some("b".to_owned()), ..with("") }).await, ["c"]);
        assert_eq!(found(with("WIKI")).await, ["a", "b"]);
        assert_eq!(found(with("0%")).await, ["b"], "a sign of patterns means itself");
        assert_eq!(found(with("i_2")).await, ["a"]);
        assert_eq!(found(with("c.example")).await, ["c"]);
        let of_files = ClientQuery { origin: Some(ClientOrigin::File), ..with("") };
        assert!(found(of_files).await.is_empty());
        let mut renamed = store.client("c", at(1)).await.unwrap().unwrap();
        renamed.metadata = r#"{"client_name":"Wiki three"}"#.to_owned();
        assert!(store.replace_client(&renamed, at(2)).await.unwrap());
        assert!(found(with("grafana")).await.is_empty());
        assert_eq!(found(with("three")).await, ["c"]);
        assert!(store.remove_client("c", at(3)).await.unwrap());
        assert!(found(with("three")).await.is_empty());
    }

    async fn administrators_find_sessions_and_a_grant_by_its_name(store) {
        let session_of = |number: i64, subject: &str| Session {
            id: SessionId::random().unwrap(),
            cookie: Digest::of(&format!("cookie {number}")),
            subject: subject.to_owned(),
            authenticated_at: at(0),
            created_at: at(number),
            expires_at: at(100 + number),
            details: format!(r#"{{"login":"{subject}@example.com"}}"#),
        };
        let sessions = [session_of(0, "alice"), session_of(1, "bob"), session_of(2, "alice")];
        for session in &sessions {
            store.add_session(session).await.unwrap();
        }
        let found = async |of: SessionsOf, now: i64| {
            store.find_sessions(&of, 2, at(now)).await.unwrap()
        };
        let newest_of_alice = [sessions[2].clone(), sessions[0].clone()];
        let last_two = [sessions[2].clone(), sessions[1].clone()];
        assert_eq!(found(SessionsOf::All, 9).await, last_two);
        assert_eq!(found(SessionsOf::All, 101).await, [sessions[2].clone()]);
        assert_eq!(found(SessionsOf::Subject("alice".to_owned()), 9).await, newest_of_alice);
        let bobs = SessionsOf::Details("bob@".to_owned());
        assert_eq!(found(bobs, 9).await, [sessions[1].clone()]);
        assert!(found(SessionsOf::Client("app".to_owned()), 9).await.is_empty());

        let granted = Grant { session: Some(sessions[1].id), ..grant("app", "bob") };
        store.authorize(&granted, code("a code")).await.unwrap();
        let of_app = SessionsOf::Client("app".to_owned());
        assert_eq!(found(of_app, 9).await, [sessions[1].clone()]);
        let named = async |now: i64| {
            store.grant_named(granted.id.name(), at(now)).await.unwrap()
        };
        assert_eq!(named(1).await, None, "its code has not been redeemed");
        store.redeem_code(code("a code").digest, &both("t"), at(1)).await.unwrap();
        assert_eq!(named(2).await.as_ref(), Some(&granted));
        let other = GrantId::random().unwrap().name();
        assert_eq!(store.grant_named(other, at(2)).await.unwrap(), None);
        assert_eq!(named(3000).await, None, "it has expired");
    }

    async fn a_pushed_request_is_taken_once(store) {
        let request = PushedRequest {
            reference: Digest::of("urn:1"),
            client_id: "app".to_owned(),
            parameters: "scope=openid".to_owned(),
            expires_at: at(90),
        };
        let reference = request.reference;
        store.push_request(&request).await.unwrap();
        for _ in 0..2 {
            let read = store.pushed_request(reference, at(1)).await.unwrap();
            assert_eq!(read.as_ref(), Some(&request));
        }
        assert_eq!(store.pushed_request(reference, at(90)).await.unwrap(), None);
        assert_eq!(store.take_pushed_request(reference, at(90)).await.unwrap(), None);
        let taken = race(|_| {
            let store = store.clone();
            async move { store.take_pushed_request(reference, at(2)).await.unwrap() }
        })
        .await;
        let taken: Vec<_> = taken.into_iter().flatten().collect();
        assert_eq!(taken, [request]);
    }

    async fn a_device_hears_what_its_user_decides(store) {
        let device = |name: &str| DeviceRequest {
            device_code: Digest::of(&format!("device {name}")),
            user_code: Digest::of(name),
            client_id: "tv".to_owned(),
            details: "{}".to_owned(),
            created_at: at(0),
            expires_at: at(600),
            interval: 5,
        };
        let (yes, no) = (device("yes"), device("no"));
        assert!(store.start_device(&yes, at(0)).await.unwrap());
        assert!(store.start_device(&no, at(0)).await.unwrap());
        let same_code = DeviceRequest { device_code: Digest::of("x"), ..yes.clone() };
        assert!(!store.start_device(&same_code, at(0)).await.unwrap(), "the code is taken");
        let poll = async |device: &DeviceRequest, now: i64| {
            store.poll_device(device.device_code, at(now)).await.unwrap()
        };
        assert_eq!(poll(&yes, 1).await, DevicePoll::Pending);
        assert_eq!(poll(&yes, 6).await, DevicePoll::Pending);
        assert_eq!(poll(&yes, 10).await, DevicePoll::SlowDown { interval: 10 });
        assert_eq!(poll(&yes, 20).await, DevicePoll::Pending);
        assert_eq!(poll(&yes, 600).await, DevicePoll::Unknown);
        let slower = DeviceRequest { interval: 10, ..yes.clone() };
        assert_eq!(store.device(yes.user_code, at(21)).await.unwrap(), Some(slower));
        assert_eq!(store.device(yes.user_code, at(600)).await.unwrap(), None);

        let approved = grant("tv", "alice");
        let decide = async |user_code, decision: DeviceDecision, now: i64| {
            store.decide_device(user_code, &decision, at(now)).await
        };
        let other = DeviceDecision::Approved(grant("app", "alice"));
        decide(yes.user_code, other, 22).await.expect_err("it is another client's");
        let decision = DeviceDecision::Approved(approved.clone());
        assert!(decide(yes.user_code, decision, 22).await.unwrap());
        assert!(!decide(yes.user_code, DeviceDecision::Denied, 23).await.unwrap());
        assert_eq!(store.device(yes.user_code, at(23)).await.unwrap(), None);
        assert_eq!(poll(&yes, 30).await, DevicePoll::Approved);
        let found = store.present_code(yes.device_code, at(30)).await.unwrap();
        assert_eq!(found, Presented::Valid(approved.clone()));
        let redeemed = store.redeem_code(yes.device_code, &both("tv"), at(31)).await.unwrap();
        assert!(matches!(redeemed, Presented::Valid(_)), "{redeemed:?}");
        let again = store.redeem_code(yes.device_code, &both("tv2"), at(32)).await.unwrap();
        assert_eq!(again, Presented::Reused(approved.id));

        assert!(decide(no.user_code, DeviceDecision::Denied, 40).await.unwrap());
        assert_eq!(poll(&no, 41).await, DevicePoll::Denied);
        assert_eq!(store.present_code(no.device_code, at(41)).await.unwrap(), Presented::Unknown);
        // A user code comes again after its device's time.
        let later = DeviceRequest { expires_at: at(1200), ..same_code };
        assert!(store.start_device(&later, at(600)).await.unwrap());
    }

    async fn of_those_who_race_to_decide_for_a_device_one_does(store) {
        let device = DeviceRequest {
            device_code: Digest::of("device"),
            user_code: Digest::of("user"),
            client_id: "tv".to_owned(),
            details: "{}".to_owned(),
            created_at: at(0),
            expires_at: at(600),
            interval: 5,
        };
        store.start_device(&device, at(0)).await.unwrap();
        let decided = race(|number| {
            let store = store.clone();
            async move {
                let decision = if number % 2 == 0 {
                    DeviceDecision::Approved(grant("tv", "alice"))
                } else {
                    DeviceDecision::Denied
                };
                store.decide_device(Digest::of("user"), &decision, at(1)).await.unwrap()
            }
        })
        .await;
        assert_eq!(decided.iter().filter(|first| **first).count(), 1, "{decided:?}");
    }

    async fn an_assertion_is_used_once(store) {
        let first = race(|_| {
            let store = store.clone();
            async move { store.use_assertion(Digest::of("jti"), at(60), at(0)).await.unwrap() }
        })
        .await;
        assert_eq!(first.iter().filter(|first| **first).count(), 1);
        assert!(!store.use_assertion(Digest::of("jti"), at(600), at(59)).await.unwrap());
        assert!(store.use_assertion(Digest::of("other"), at(60), at(0)).await.unwrap());
        // By then the assertion itself has expired.
        assert!(store.use_assertion(Digest::of("jti"), at(120), at(60)).await.unwrap());
        assert!(!store.use_assertion(Digest::of("jti"), at(120), at(60)).await.unwrap());
    }

    async fn the_sweep_deletes_what_has_expired_and_nothing_else(store) {
        for number in 0..7 {
            let name = format!("n{number}");
            let digest = Digest::of(&name);
            store.add_client(&registered(&name, "alice", 100), None).await.unwrap();
            let code = Code { digest, expires_at: at(100) };
            store.authorize(&grant("app", "alice"), code).await.unwrap();
            store.add_session(&Session {
                id: SessionId::random().unwrap(), cookie: digest, subject: "alice".to_owned(),
                authenticated_at: at(0), created_at: at(0), expires_at: at(100),
                details: String::new(),
            }).await.unwrap();
            store.push_request(&PushedRequest {
                reference: digest, client_id: "app".to_owned(), parameters: String::new(),
                expires_at: at(100),
            }).await.unwrap();
            store.start_device(&DeviceRequest {
                device_code: digest, user_code: digest, client_id: "app".to_owned(),
                details: String::new(), created_at: at(0), expires_at: at(100), interval: 5,
            }, at(0)).await.unwrap();
            store.use_assertion(digest, at(100), at(0)).await.unwrap();
        }
        let (_, refresh) = logged_in(&*store, "alive").await;
        let all = LiveRows {
            access_tokens: 1, assertions: 7, clients: 7, devices: 7, grants: 8,
            pushed_requests: 7, sessions: 7,
        };
        assert_eq!(store.count_live(at(99)).await.unwrap(), all);
        let alive = LiveRows { access_tokens: 1, grants: 1, ..LiveRows::default() };
        assert_eq!(store.count_live(at(100)).await.unwrap(), alive, "before they are swept");
        let young = store.sweep(100, at(99)).await.unwrap();
        assert_eq!((young.rows, young.more), (0, false));
        let some = store.sweep(5, at(100)).await.unwrap();
        assert_eq!((some.rows, some.more), (30, true), "five of six kinds");
        let rest = store.sweep(5, at(100)).await.unwrap();
        assert_eq!((rest.rows, rest.more), (12, false));
        let none = store.sweep(5, at(100)).await.unwrap();
        assert_eq!((none.rows, none.more), (0, false));
        assert_eq!(store.count_live(at(100)).await.unwrap(), alive, "nor after");
        assert!(is_alive(&*store, "alive", 101).await);
        // The access token ends first, then the grant.
        assert_eq!(store.sweep(5, at(300)).await.unwrap().rows, 1);
        let found = store.present_refresh(&refresh, GRACE, at(301)).await.unwrap();
        assert!(matches!(found, Presented::Valid(_)), "{found:?}");
        assert_eq!(store.sweep(5, at(3000)).await.unwrap().rows, 1);
        // The rows of removed clients stay for a day, and then go with what they were granted.
        assert_eq!(store.sweep(5, at(100 + 86_400)).await.unwrap().rows, 5);
        assert_eq!(store.sweep(5, at(100 + 86_400)).await.unwrap().rows, 2);
    }

    async fn what_a_database_cannot_hold_is_refused_and_never_found(store) {
        let long = "x".repeat(MAX_NAME + 1);
        for name in ["a\0b", &long] {
            assert_eq!(store.client(name, at(0)).await.unwrap(), None);
            assert!(!store.remove_client(name, at(0)).await.unwrap());
            assert_eq!(store.sessions(name, 1, at(0)).await.unwrap(), []);
            let subject = GrantsOf::Subject(name.to_owned());
            assert_eq!(store.grants(&subject, 1, at(0)).await.unwrap(), []);
            let added = store.add_client(&client(name, ClientOrigin::Admin), None).await;
            assert!(matches!(added, Err(StoreError::Unsuitable { .. })), "{added:?}");
            let authorized = store.authorize(&grant(name, "alice"), code("c")).await;
            assert!(matches!(authorized, Err(StoreError::Unsuitable { .. })));
            let authorized = store.authorize(&grant("app", name), code("c")).await;
            assert!(matches!(authorized, Err(StoreError::Unsuitable { .. })));
        }
        // The longest name there may be, which does not compress.
        let longest: String = (0..MAX_NAME / 32)
            .map(|_| GrantId::random().unwrap().text())
            .collect();
        let all = client(&longest, ClientOrigin::Admin);
        assert_eq!(store.add_client(&all, None).await.unwrap(), AddedClient::Added);
        store.authorize(&grant(&longest, &longest), code("c")).await.unwrap();
        assert_eq!(store.client(&longest, at(0)).await.unwrap(), Some(all));
    }
}
