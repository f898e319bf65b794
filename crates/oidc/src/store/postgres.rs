//! The state in PostgreSQL, for several servers that share it.
//!
//! Invariants
//! - No session keeps anything between two calls: no advisory lock, no named statement, no `SET`.
//!   So a pooler that hands out connections per transaction may stand between.
//! - A call that was certainly undone is tried again, a few times. One whose end is unknown never
//!   is: its caller hears that the store is not available.
//! - A connection on which a call was given up is closed.
//! - TLS verifies the server. Without TLS only the machine itself is asked, unless the address
//!   says `sslmode=disable`.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use deadpool_postgres::{
    Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::CertificateDer};
use tailbone_values::Secret;
use tokio_postgres::{
    Config,
    config::{Host, SslMode},
    error::SqlState,
    types::{ToSql, Type},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    Answer, StoreError,
    database::{Cell, Connection, Database, Failure, Kind, Operation, Row, Value},
    schema::{self, Dialect},
};

const DIALECT: Dialect = Dialect {
    bytes: "BYTEA",
    ordered_text: "TEXT COLLATE \"C\"",
    compact: "",
};

/// Attempts of a call that was undone, and the pause before the second one, which doubles.
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresSettings {
    /// A URL or the words of libpq.
    pub address: Secret,
    /// In place of the address's own.
    pub password: Option<Secret>,
    /// PEM file of the authorities that the server's certificate may be of; else the system's.
    pub authorities: Option<PathBuf>,
    pub connections: usize,
    /// For a connection, and for each call.
    pub timeout: Duration,
}

/// What is wrong with the settings, or with the database for our purpose. Waiting does not help.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    #[error("the address of PostgreSQL cannot be read: {0}")]
    Address(String),
    #[error("{path}: no certificates of authorities can be read: {detail}")]
    Authorities { path: PathBuf, detail: String },
    #[error(
        "{place}: its encoding is {encoding}, and must be UTF8: make the database anew with it"
    )]
    Encoding { place: String, encoding: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "{place}: synchronous_commit is off, so what was acknowledged could be lost: turn it on \
         for this role or database"
    )]
    Unsynchronized { place: String },
}

/// A store in a PostgreSQL database.
pub struct Postgres {
    place: String,
    pool: Pool,
    timeout: Duration,
    prepared: AtomicBool,
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Postgres").field(&self.place).finish()
    }
}

impl Postgres {
    /// Connects, and changes the tables to those of this version.
    pub async fn open(settings: &PostgresSettings) -> Result<Self, PostgresError> {
        let postgres = Self::new(settings)?;
        postgres.prepare().await?;
        Ok(postgres)
    }

    /// Checks the settings and asks nobody. Until [`Self::prepare`] has succeeded, every call is
    /// answered with [`StoreError::Unavailable`].
    pub fn new(settings: &PostgresSettings) -> Result<Self, PostgresError> {
        let mut config: Config = settings
            .address
            .reveal()
            .parse()
            .map_err(|error| PostgresError::Address(told(&error)))?;
        if config.get_hosts().is_empty() {
            return Err(PostgresError::Address("it names no host".to_owned()));
        }
        if config.get_ssl_mode() == SslMode::Prefer && !config.get_hosts().iter().all(is_local) {
            config.ssl_mode(SslMode::Require);
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(settings.timeout);
        }
        if let Some(password) = &settings.password {
            config.password(password.reveal());
        }
        let place = place(&config);
        let tls = MakeRustlsConnect::new(tls(settings.authorities.as_deref())?);
        let recycling = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let pool = Pool::builder(Manager::from_config(config, tls, recycling))
            .max_size(settings.connections)
            .wait_timeout(Some(settings.timeout))
            .create_timeout(Some(settings.timeout))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| PostgresError::Address(error.to_string()))?;
        Ok(Self {
            place,
            pool,
            timeout: settings.timeout,
            prepared: AtomicBool::new(false),
        })
    }

    /// Checks that the database suits, and changes the tables to those of this version. May be
    /// called again after an error.
    pub async fn prepare(&self) -> Result<(), PostgresError> {
        self.fits().await?;
        while self.run_prepared(Kind::Bulk, (), migrate).await? {}
        self.prepared.store(true, Ordering::Release);
        Ok(())
    }

    /// As [`super::Store::place`].
    pub fn name(&self) -> &str {
        &self.place
    }

    /// Whether the database answers, keeps what it acknowledges, and can hold all texts.
    pub async fn fits(&self) -> Result<(), PostgresError> {
        let (encoding, synchronous) = self.run_prepared(Kind::Read, (), read_settings).await?;
        let place = self.place.clone();
        if encoding != "UTF8" {
            return Err(PostgresError::Encoding { place, encoding });
        }
        if synchronous == "off" {
            return Err(PostgresError::Unsynchronized { place });
        }
        Ok(())
    }

    /// Runs an operation, in at most the time of a call unless its kind may take longer.
    async fn run_prepared<P, T>(
        &self,
        kind: Kind,
        parameters: P,
        operation: Operation<P, T>,
    ) -> Result<T, StoreError> {
        let attempts = self.attempts(kind, &parameters, operation);
        let outcome = match kind {
            Kind::Bulk | Kind::Snapshot => attempts.await,
            Kind::Read | Kind::Statement | Kind::Transaction => {
                tokio::time::timeout(self.timeout, attempts)
                    .await
                    .unwrap_or_else(|_| {
                        let detail = format!("no answer within {:?}", self.timeout);
                        Err(Failure::Unavailable(detail))
                    })
            }
        };
        outcome.map_err(|failure| failure.at(&self.place))
    }

    /// Runs an operation until it has an end.
    async fn attempts<P, T>(
        &self,
        kind: Kind,
        parameters: &P,
        operation: Operation<P, T>,
    ) -> Result<T, Failure> {
        let mut pause = FIRST_PAUSE;
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            match self.attempt(kind, parameters, operation).await {
                Err(Failure::Again(_)) if left > 0 => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                other => return other,
            }
        }
    }

    async fn attempt<P, T>(
        &self,
        kind: Kind,
        parameters: &P,
        operation: Operation<P, T>,
    ) -> Result<T, Failure> {
        let object = self.pool.get().await.map_err(no_connection)?;
        let mut link = Link {
            object: Some(object),
            begin: begin(kind),
            kind,
        };
        let outcome = operation(&mut link, parameters).await;
        link.end(outcome).await
    }
}

/// What begins the transaction of a kind; `None` where each statement is its own.
fn begin(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Read | Kind::Statement => None,
        Kind::Bulk | Kind::Transaction => Some("BEGIN ISOLATION LEVEL READ COMMITTED"),
        Kind::Snapshot => Some("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
    }
}

impl Database for Postgres {
    fn place(&self) -> &str {
        &self.place
    }

    fn run<P, T>(&self, kind: Kind, parameters: P, operation: Operation<P, T>) -> Answer<'_, T>
    where
        P: Send + Sync + 'static,
        T: Send + 'static,
    {
        async move {
            if !self.prepared.load(Ordering::Acquire) {
                let detail = "it was not reached since the start".to_owned();
                return Err(Failure::Unavailable(detail).at(&self.place));
            }
            self.run_prepared(kind, parameters, operation).await
        }
        .boxed()
    }

    fn back_up<'a>(&'a self, _: &'a Path) -> Answer<'a, ()> {
        let what = "PostgreSQL makes its own backups, with pg_dump or pg_basebackup";
        std::future::ready(Err(StoreError::Unsupported(what))).boxed()
    }
}

/// A connection as an operation sees it. Dropped before its end it closes the connection, whose
/// transaction PostgreSQL then takes back.
struct Link {
    object: Option<Object>,
    /// What is sent in front of the first statement.
    begin: Option<&'static str>,
    kind: Kind,
}

impl Link {
    async fn end<T>(mut self, outcome: Result<T, Failure>) -> Result<T, Failure> {
        let has_begun = begin(self.kind).is_some() && self.begin.is_none();
        let end = if outcome.is_ok() {
            "COMMIT"
        } else {
            "ROLLBACK"
        };
        if let Some(object) = &self.object
            && has_begun
        {
            let ended = object.batch_execute(end).await;
            match (&outcome, ended) {
                (Ok(_), Err(error)) => return Err(failure(&error, Kind::Statement)),
                // The connection is of no use; what went wrong first is told.
                (Err(_), Err(_)) => return outcome,
                (_, Ok(())) => {}
            }
        }
        // Back to the pool, which sees whether it is closed.
        drop(self.object.take());
        outcome
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            drop(Object::take(object));
        }
    }
}

impl Connection for Link {
    fn query<'c>(
        &'c mut self,
        statement: &'c str,
        parameters: &'c [Value<'c>],
    ) -> BoxFuture<'c, Result<Vec<Row>, Failure>> {
        async move {
            let begin = self.begin.take();
            let client = self.object.as_ref().ok_or_else(closed)?;
            let parameters: Vec<_> = parameters.iter().map(typed).collect();
            let query = client.query_typed(statement, &parameters);
            let rows = match begin {
                // Both go out before either is answered.
                Some(begin) => {
                    let (begun, rows) =
                        futures_util::future::join(client.batch_execute(begin), query).await;
                    begun.and(rows)
                }
                None => query.await,
            };
            let rows = rows.map_err(|error| failure(&error, self.kind))?;
            rows.iter().map(row).collect()
        }
        .boxed()
    }

    fn batch<'c>(&'c mut self, statements: &'c str) -> BoxFuture<'c, Result<(), Failure>> {
        async move {
            let begin = self.begin.take();
            let client = self.object.as_ref().ok_or_else(closed)?;
            for statements in begin.into_iter().chain([statements]) {
                let done = client.batch_execute(statements).await;
                done.map_err(|error| failure(&error, self.kind))?;
            }
            Ok(())
        }
        .boxed()
    }
}

fn closed() -> Failure {
    Failure::Unavailable("the connection is closed".to_owned())
}

fn typed<'v>(value: &'v Value<'_>) -> (&'v (dyn ToSql + Sync), Type) {
    match value {
        Value::Bytes(bytes) => (bytes, Type::BYTEA),
        Value::Int(number) => (number, Type::INT8),
        Value::Text(text) => (text, Type::TEXT),
    }
}

fn row(row: &tokio_postgres::Row) -> Result<Row, Failure> {
    let cells: Result<Vec<_>, _> = row
        .columns()
        .iter()
        .enumerate()
        .map(|(at, column)| cell(row, at, column.type_()))
        .collect();
    cells
        .map(Row::from)
        .map_err(|error| Failure::Broken(told(&error)))
}

fn cell(row: &tokio_postgres::Row, at: usize, kind: &Type) -> Result<Cell, tokio_postgres::Error> {
    let cell = match *kind {
        Type::BYTEA => row.try_get::<_, Option<Vec<u8>>>(at)?.map(Cell::Bytes),
        Type::INT4 => row
            .try_get::<_, Option<i32>>(at)?
            .map(|number| Cell::Int(number.into())),
        Type::INT8 => row.try_get::<_, Option<i64>>(at)?.map(Cell::Int),
        _ => row.try_get::<_, Option<String>>(at)?.map(Cell::Text),
    };
    Ok(cell.unwrap_or(Cell::Null))
}

fn migrate<'c>(link: &'c mut dyn Connection, (): &'c ()) -> BoxFuture<'c, Result<bool, Failure>> {
    async move {
        // A role that may only use the tables may not even try to make one.
        let there = "SELECT CAST(to_regclass('oidc_schema') AS TEXT)";
        let mut there = link.query(there, &[]).await?;
        let made = match there.first_mut() {
            Some(row) => row.opt_text()?.is_some(),
            None => false,
        };
        if !made {
            // Another process may be making it, too.
            link.batch(schema::CREATE)
                .await
                .map_err(|failure| match failure {
                    Failure::Broken(detail) => Failure::Again(detail),
                    other => other,
                })?;
        }
        schema::step(link, &DIALECT, " FOR UPDATE").await
    }
    .boxed()
}

fn read_settings<'c>(
    link: &'c mut dyn Connection,
    (): &'c (),
) -> BoxFuture<'c, Result<(String, String), Failure>> {
    async move {
        let statement = "SELECT current_setting('server_encoding'), \
                         current_setting('synchronous_commit')";
        let rows = link.query(statement, &[]).await?;
        match rows.into_iter().next() {
            Some(mut row) => Ok((row.text()?, row.text()?)),
            None => Err(Failure::Broken("it has no settings".to_owned())),
        }
    }
    .boxed()
}

/// Whether a failed statement is certain to have had no effect depends on the kind of call.
fn failure(error: &tokio_postgres::Error, kind: Kind) -> Failure {
    let detail = told(error);
    let Some(code) = error.code() else {
        return match kind {
            _ if !error.is_closed() && error.as_db_error().is_none() && !is_io(error) => {
                Failure::Broken(detail)
            }
            Kind::Statement => Failure::Unavailable(detail),
            Kind::Bulk | Kind::Read | Kind::Snapshot | Kind::Transaction => Failure::Again(detail),
        };
    };
    let undone = [
        SqlState::FOREIGN_KEY_VIOLATION,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::T_R_SERIALIZATION_FAILURE,
    ];
    let class = &code.code()[..2];
    if undone.contains(code) {
        Failure::Again(detail)
    } else if *code == SqlState::DISK_FULL {
        Failure::Full
    } else if ["08", "28", "53", "55", "57"].contains(&class)
        || *code == SqlState::READ_ONLY_SQL_TRANSACTION
    {
        Failure::Unavailable(detail)
    } else {
        Failure::Broken(detail)
    }
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>())
}

fn no_connection(error: PoolError) -> Failure {
    match error {
        PoolError::Backend(error) => match failure(&error, Kind::Statement) {
            Failure::Full => Failure::Full,
            Failure::Broken(detail) | Failure::Again(detail) | Failure::Unavailable(detail) => {
                Failure::Unavailable(detail)
            }
            other => other,
        },
        PoolError::Timeout(_) => Failure::Unavailable("no connection in time".to_owned()),
        other => Failure::Unavailable(other.to_string()),
    }
}

/// The server's message alone: its details repeat values of rows.
fn told(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{} ({})", error.message(), error.code().code()),
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

fn place(config: &Config) -> String {
    let hosts: Vec<_> = config
        .get_hosts()
        .iter()
        .enumerate()
        .map(|(at, host)| {
            let ports = config.get_ports();
            let port = ports.get(at).or(ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(folder) => format!("{}:{port}", folder.display()),
            }
        })
        .collect();
    let database = config
        .get_dbname()
        .or(config.get_user())
        .unwrap_or_default();
    format!("postgres:{}/{database}", hosts.join(","))
}

fn is_local(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => {
            name == "localhost"
                || name
                    .parse::<std::net::IpAddr>()
                    .is_ok_and(|address| address.is_loopback())
        }
        Host::Unix(_) => true,
    }
}

fn tls(authorities: Option<&Path>) -> Result<ClientConfig, PostgresError> {
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(path) => {
            let unreadable = |detail: String| PostgresError::Authorities {
                path: path.to_owned(),
                detail,
            };
            let pem = fs::read(path).map_err(|error| unreadable(error.to_string()))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|error| unreadable(error.to_string()))?;
                let added = roots.add(certificate);
                added.map_err(|error| unreadable(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(unreadable("it has none".to_owned()));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| PostgresError::Address(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}
