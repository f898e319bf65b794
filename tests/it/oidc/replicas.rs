//! Two providers on one PostgreSQL and one directory of keys, each on a node of its own.

use tailbone::{jwks::FilePublisher, keys::KeyStore};
use tailbone_oidc::store::{Postgres, PostgresSettings};
use tailbone_postgres::Server as Database;
use tailbone_values::Secret;

use super::*;

struct Replicas {
    one: OidcServer,
    two: OidcServer,
    _database: Database,
    _keys: TempDir,
}

impl Replicas {
    /// `None` where PostgreSQL is not installed.
    async fn open() -> Option<Self> {
        let database = Database::start()?;
        let name = database.database();
        let keys = TempDir::new().unwrap();
        let open = async || {
            let settings = PostgresSettings {
                address: Secret::new(database.url(&name)),
                password: None,
                authorities: None,
                connections: 4,
                timeout: Duration::from_secs(5),
            };
            let set = KeySet::new(
                "oidc",
                KeyStore::new(keys.path().join("keys")),
                Arc::new(FilePublisher::new(keys.path().join("jwks.json"))),
                &policy(),
                "tb",
                KeySpec::Es256,
                &[],
            );
            set.start(Timestamp::now()).await.expect("the first keys");
            let store = Arc::new(Postgres::open(&settings).await.unwrap());
            let access = LoginAccess::grants_only(LOGIN_CAPABILITY);
            OidcServer::on(store, None, (set, access, Groups::default()), |_| {}).await
        };
        Some(Self {
            one: open().await,
            two: open().await,
            _database: database,
            _keys: keys,
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_replica_gives_the_other_one_takes() {
    let Some(Replicas { one, two, .. }) = &Replicas::open().await else {
        return;
    };
    let code = code(&mut one.alice().await, &asking("silent", &[])).await;
    let answer = redeem(&mut two.outside().await, &code, &[]).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let given = answer.json();
    // The keys are shared: each publishes what the other signs with.
    let token = given["id_token"].as_str().unwrap();
    let claims = one.verified(token).await;
    assert_eq!(claims, two.verified(token).await);
    let told = userinfo(&mut one.outside().await, &given["access_token"]).await;
    assert_eq!(told.status(), 200, "{told:?}");
    assert_eq!(told.json()["sub"], claims["sub"]);

    // A code that comes again is reuse, wherever, and ends what it gave everywhere.
    let again = redeem(&mut one.outside().await, &code, &[]).await;
    assert_eq!(again.status(), 400, "{again:?}");
    for replica in [one, two] {
        let told = userinfo(&mut replica.outside().await, &given["access_token"]).await;
        assert_eq!(told.status(), 401, "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_replicas_that_are_given_one_code_one_answers() {
    let Some(Replicas { one, two, .. }) = &Replicas::open().await else {
        return;
    };
    for _ in 0..5 {
        let code = code(&mut one.alice().await, &asking("silent", &[])).await;
        let (mut here, mut there) = tokio::join!(one.outside(), two.outside());
        let (first, second) = tokio::join!(
            redeem(&mut here, &code, &[]),
            redeem(&mut there, &code, &[])
        );
        let mut statuses = [first.status(), second.status()];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 400], "{first:?} {second:?}");
    }
}
