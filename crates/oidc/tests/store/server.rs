//! Stores on a PostgreSQL server of the test's own.

use std::{net::SocketAddr, time::Duration};

use tailbone_oidc::store::{Postgres, PostgresSettings};
pub(crate) use tailbone_postgres::{Proxy, Server, Way, certificate, signal};
use tailbone_values::Secret;

pub(crate) trait Stores {
    fn settings(&self, database: &str) -> PostgresSettings;

    fn store(&self, database: &str) -> impl Future<Output = Postgres>;
}

impl Stores for Server {
    fn settings(&self, database: &str) -> PostgresSettings {
        settings(self.addr, database)
    }

    async fn store(&self, database: &str) -> Postgres {
        Postgres::open(&Stores::settings(self, database))
            .await
            .unwrap()
    }
}

pub(crate) fn settings(addr: SocketAddr, database: &str) -> PostgresSettings {
    PostgresSettings {
        address: Secret::new(tailbone_postgres::url(addr, database)),
        password: None,
        authorities: None,
        connections: 8,
        timeout: Duration::from_secs(5),
    }
}
