//! The state in one SQLite file, for a server that runs alone.
//!
//! Invariants
//! - One thread writes. It runs all calls that are waiting in one transaction and makes them
//!   durable by one sync of the disk; only then are they answered. A call that fails takes back its
//!   own changes alone.
//! - A lock beside the file keeps a second process out. File systems of other machines are refused,
//!   since their locks and their shared memory do not hold what SQLite needs.
//! - Readers are threads of their own, and see what was answered before they began.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use rusqlite::{Error, ErrorCode, OpenFlags, types::ValueRef};
use tailbone_keys::disk::{self, DiskError, Lock};
use tokio::sync::{mpsc, oneshot};

use super::{
    Answer, StoreError,
    database::{Cell, Connection, Database, Failure, Kind, Operation, Row, Value},
    schema::{self, Dialect},
};

const DIALECT: Dialect = Dialect {
    bytes: "BLOB",
    ordered_text: "TEXT",
    compact: "WITHOUT ROWID",
};

/// Marks a file as ours (`PRAGMA application_id`): "tboc".
const APPLICATION: i64 = 0x7462_6f63;

/// Calls of one transaction: more than that, and the first of them wait longer than a sync takes.
const MAX_BATCH: usize = 256;
/// Calls that wait before a new one must wait to be let in.
const QUEUE: usize = 1024;
const READERS: usize = 2;
/// Statements that a connection keeps prepared; there are about fifty.
const STATEMENTS: usize = 64;
/// How long to wait for another program that has the file open, such as SQLite's own shell.
const BUSY: Duration = Duration::from_secs(5);

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(
        "{path} lies on a network file system ({kind}), where SQLite can lose data: choose a local \
         disk, or PostgreSQL"
    )]
    NetworkFileSystem { path: PathBuf, kind: &'static str },
    #[error("{path} is the SQLite file of another program, and is left alone")]
    NotOurs { path: PathBuf },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A store in a file. It ends its threads, and gives up the file, when it is dropped.
pub struct Sqlite {
    place: String,
    path: PathBuf,
    writer: Option<mpsc::Sender<Box<dyn Job>>>,
    readers: Vec<mpsc::Sender<Box<dyn Job>>>,
    next_reader: AtomicUsize,
    threads: Vec<JoinHandle<()>>,
    /// None for one that only reads.
    _lock: Option<Lock>,
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sqlite").field(&self.path).finish()
    }
}

impl Sqlite {
    /// Opens the file, or makes it, and changes its tables to those of this version.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        disk::make_directory(directory)?;
        refuse_network(directory)?;
        let lock = Lock::take(&beside(path, ".lock"))?;
        create(path)?;
        let place = format!("sqlite:{}", path.display());
        let mut connection = connect(path).map_err(|error| failure(&error).at(&place))?;
        prepare(&mut connection, path, &place)?;
        let mut sqlite = Self {
            place,
            path: path.to_owned(),
            writer: None,
            readers: Vec::new(),
            next_reader: AtomicUsize::new(0),
            threads: Vec::new(),
            _lock: Some(lock),
        };
        let writer = sqlite.start("oidc-write", connection, write)?;
        sqlite.writer = Some(writer);
        sqlite.start_readers()?;
        Ok(sqlite)
    }

    /// Opens the file of another process to read it, copy it or dump it while that one serves. It
    /// must be there, with the tables of this version.
    pub fn open_to_read(path: &Path) -> Result<Self, OpenError> {
        refuse_network(path)?;
        let place = format!("sqlite:{}", path.display());
        let connection = connect(path).map_err(|error| failure(&error).at(&place))?;
        let number = |statement: &str| -> Result<i64, StoreError> {
            connection
                .query_row(statement, [], |row| row.get(0))
                .map_err(|error| failure(&error).at(&place))
        };
        if number("PRAGMA application_id")? != APPLICATION {
            return Err(OpenError::NotOurs {
                path: path.to_owned(),
            });
        }
        let version = number("SELECT version FROM oidc_schema")?;
        if version != schema::newest() {
            let known = schema::newest();
            let detail = format!(
                "its tables have version {version}, and this tailbone knows {known}: use the \
                 tailbone that serves them"
            );
            return Err(StoreError::Broken { place, detail }.into());
        }
        let mut sqlite = Self {
            place,
            path: path.to_owned(),
            writer: None,
            readers: Vec::new(),
            next_reader: AtomicUsize::new(0),
            threads: Vec::new(),
            _lock: None,
        };
        sqlite.start_readers()?;
        Ok(sqlite)
    }

    fn start_readers(&mut self) -> Result<(), OpenError> {
        for _ in 0..READERS {
            let connection =
                connect(&self.path).map_err(|error| failure(&error).at(&self.place))?;
            let reader = self.start("oidc-read", connection, read)?;
            self.readers.push(reader);
        }
        Ok(())
    }

    fn start(
        &mut self,
        name: &str,
        connection: rusqlite::Connection,
        run: fn(rusqlite::Connection, mpsc::Receiver<Box<dyn Job>>),
    ) -> Result<mpsc::Sender<Box<dyn Job>>, OpenError> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(connection, receiver))
            .map_err(|error| StoreError::Unavailable {
                place: self.place.clone(),
                detail: format!("no thread can be started: {error}"),
            })?;
        self.threads.push(thread);
        Ok(sender)
    }

    /// Why a call has no thread to run it.
    fn ended(&self) -> StoreError {
        StoreError::Unavailable {
            place: self.place.clone(),
            detail: "its thread has ended".to_owned(),
        }
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.writer = None;
        self.readers.clear();
        for thread in self.threads.drain(..) {
            // A panic there was told when it happened.
            let _ = thread.join();
        }
    }
}

impl Database for Sqlite {
    fn place(&self) -> &str {
        &self.place
    }

    fn run<P, T>(&self, kind: Kind, parameters: P, operation: Operation<P, T>) -> Answer<'_, T>
    where
        P: Send + Sync + 'static,
        T: Send + 'static,
    {
        let thread = match kind {
            Kind::Snapshot => {
                return self.apart(move |connection| {
                    connection
                        .execute_batch("BEGIN")
                        .map_err(|error| failure(&error))?;
                    run(connection, &parameters, operation)
                });
            }
            Kind::Read => {
                let next = self.next_reader.fetch_add(1, Ordering::Relaxed);
                self.readers.get(next % READERS)
            }
            Kind::Bulk | Kind::Statement | Kind::Transaction => self.writer.as_ref(),
        };
        async move {
            let (reply, answer) = oneshot::channel();
            let call = Call {
                parameters,
                operation,
                outcome: None,
                reply,
            };
            let thread = thread.ok_or_else(|| self.ended())?;
            thread
                .send(Box::new(call))
                .await
                .map_err(|_| self.ended())?;
            match answer.await {
                Ok(outcome) => outcome.map_err(|failure| failure.at(&self.place)),
                Err(_) => Err(self.ended()),
            }
        }
        .boxed()
    }

    fn back_up<'a>(&'a self, to: &'a Path) -> Answer<'a, ()> {
        let to = to.to_owned();
        self.apart(move |connection| {
            copy(connection, &to)
                .map_err(|why| Failure::Unavailable(format!("no copy at {}: {why}", to.display())))
        })
    }
}

impl Sqlite {
    /// Works on a connection, and in a thread, of its own.
    fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut rusqlite::Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Answer<'_, T> {
        let path = self.path.clone();
        async move {
            let done = tokio::task::spawn_blocking(move || {
                let mut connection = connect(&path).map_err(|error| failure(&error))?;
                work(&mut connection)
            });
            match done.await {
                Ok(outcome) => outcome.map_err(|failure| failure.at(&self.place)),
                Err(_) => Err(self.ended()),
            }
        }
        .boxed()
    }
}

/// A call on its way through a thread.
trait Job: Send {
    /// Whether anybody waits for the answer.
    fn is_wanted(&self) -> bool;

    /// Runs it; `false` if its changes are to be taken back.
    fn run(&mut self, connection: &mut rusqlite::Connection) -> bool;

    /// Answers with what `run` came to, or with `failure` if that came to nothing after all.
    fn answer(self: Box<Self>, failure: Option<Failure>);
}

struct Call<P, T> {
    parameters: P,
    operation: Operation<P, T>,
    outcome: Option<Result<T, Failure>>,
    reply: oneshot::Sender<Result<T, Failure>>,
}

impl<P: Send + Sync, T: Send> Job for Call<P, T> {
    fn is_wanted(&self) -> bool {
        !self.reply.is_closed()
    }

    fn run(&mut self, connection: &mut rusqlite::Connection) -> bool {
        let outcome = run(connection, &self.parameters, self.operation);
        self.outcome.insert(outcome).is_ok()
    }

    fn answer(self: Box<Self>, failure: Option<Failure>) {
        let outcome = match (self.outcome, failure) {
            // What an operation says of itself is more exact than what became of the others.
            (Some(Err(own)), _) => Err(own),
            (_, Some(failure)) => Err(failure),
            (Some(outcome), None) => outcome,
            (None, None) => return,
        };
        // Whoever asked may have left.
        let _ = self.reply.send(outcome);
    }
}

/// Runs an operation to its end. Nothing in it waits, so that is at its first poll.
fn run<P, T>(
    connection: &mut rusqlite::Connection,
    parameters: &P,
    operation: Operation<P, T>,
) -> Result<T, Failure> {
    operation(&mut Link(connection), parameters)
        .now_or_never()
        .unwrap_or_else(|| Err(Failure::Broken("an operation waits".to_owned())))
}

/// The life of a reading thread.
fn read(mut connection: rusqlite::Connection, mut jobs: mpsc::Receiver<Box<dyn Job>>) {
    while let Some(mut job) = jobs.blocking_recv() {
        if job.is_wanted() {
            job.run(&mut connection);
            job.answer(None);
        }
    }
}

/// The life of the writing thread. While the disk syncs one transaction, the calls of the next one
/// gather.
fn write(mut connection: rusqlite::Connection, mut jobs: mpsc::Receiver<Box<dyn Job>>) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    while let Some(first) = jobs.blocking_recv() {
        batch.push(first);
        while batch.len() < MAX_BATCH
            && let Ok(next) = jobs.try_recv()
        {
            batch.push(next);
        }
        batch.retain(|job| job.is_wanted());
        let written = transact(&mut connection, &mut batch);
        for job in batch.drain(..) {
            job.answer(written.as_ref().err().map(failure));
        }
    }
}

/// Runs the calls in one transaction, and makes it durable.
fn transact(
    connection: &mut rusqlite::Connection,
    batch: &mut [Box<dyn Job>],
) -> Result<(), Error> {
    if batch.is_empty() {
        return Ok(());
    }
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let done = run_all(connection, batch).and_then(|()| connection.execute_batch("COMMIT"));
    if done.is_err() && !connection.is_autocommit() {
        // Should this fail as well, the next BEGIN says so.
        let _ = connection.execute_batch("ROLLBACK");
    }
    done
}

fn run_all(connection: &mut rusqlite::Connection, batch: &mut [Box<dyn Job>]) -> Result<(), Error> {
    for job in batch {
        connection.execute_batch("SAVEPOINT call")?;
        let keep = job.run(connection);
        // A full disk, for one, ends the whole transaction. Then this says that there is none.
        if !keep {
            connection.execute_batch("ROLLBACK TO call")?;
        }
        connection.execute_batch("RELEASE call")?;
    }
    Ok(())
}

/// The connection as an operation sees it.
struct Link<'c>(&'c mut rusqlite::Connection);

impl Connection for Link<'_> {
    fn query<'c>(
        &'c mut self,
        statement: &'c str,
        parameters: &'c [Value<'c>],
    ) -> BoxFuture<'c, Result<Vec<Row>, Failure>> {
        let rows = query(self.0, statement, parameters).map_err(|error| failure(&error));
        std::future::ready(rows).boxed()
    }

    fn batch<'c>(&'c mut self, statements: &'c str) -> BoxFuture<'c, Result<(), Failure>> {
        let done = self.0.execute_batch(statements);
        std::future::ready(done.map_err(|error| failure(&error))).boxed()
    }
}

fn query(
    connection: &rusqlite::Connection,
    statement: &str,
    parameters: &[Value<'_>],
) -> Result<Vec<Row>, Error> {
    // SQLite takes `$1` for a name; its numbers are `?1`.
    let mut prepared = connection.prepare_cached(&statement.replace('$', "?"))?;
    for (at, value) in parameters.iter().enumerate() {
        match *value {
            Value::Bytes(bytes) => prepared.raw_bind_parameter(at + 1, bytes)?,
            Value::Int(number) => prepared.raw_bind_parameter(at + 1, number)?,
            Value::Text(text) => prepared.raw_bind_parameter(at + 1, text)?,
        }
    }
    let columns = prepared.column_count();
    let mut rows = prepared.raw_query();
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let cells: Result<Vec<_>, _> = (0..columns).map(|at| cell(row, at)).collect();
        all.push(cells?.into());
    }
    Ok(all)
}

fn cell(row: &rusqlite::Row<'_>, at: usize) -> Result<Cell, Error> {
    Ok(match row.get_ref(at)? {
        ValueRef::Blob(bytes) => Cell::Bytes(bytes.to_vec()),
        ValueRef::Integer(number) => Cell::Int(number),
        ValueRef::Null => Cell::Null,
        ValueRef::Real(_) => return Err(Error::InvalidQuery),
        ValueRef::Text(text) => Cell::Text(String::from_utf8_lossy(text).into_owned()),
    })
}

fn connect(path: &Path) -> Result<rusqlite::Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = rusqlite::Connection::open_with_flags(path, flags)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.busy_timeout(BUSY)?;
    // A checkpoint leaves the log as large as it was; a long backup can make it very large.
    connection.execute_batch(
        "PRAGMA synchronous = FULL;
         PRAGMA foreign_keys = ON;
         PRAGMA trusted_schema = OFF;
         PRAGMA journal_size_limit = 67108864;
         PRAGMA cache_size = -8192;",
    )?;
    Ok(connection)
}

/// Makes sure that the file is ours, has a write-ahead log, and has the tables of this version.
fn prepare(
    connection: &mut rusqlite::Connection,
    path: &Path,
    place: &str,
) -> Result<(), OpenError> {
    let number = |statement: &str| -> Result<i64, StoreError> {
        connection
            .query_row(statement, [], |row| row.get(0))
            .map_err(|error| failure(&error).at(place))
    };
    let application = number("PRAGMA application_id")?;
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    if application != APPLICATION && (application != 0 || tables != 0) {
        return Err(OpenError::NotOurs {
            path: path.to_owned(),
        });
    }
    let prepared = (|| {
        let wal: String =
            connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        if wal != "wal" {
            return Ok(false);
        }
        if application != APPLICATION {
            connection.execute_batch(&format!("PRAGMA application_id = {APPLICATION}"))?;
        }
        connection.execute_batch(schema::CREATE)?;
        Ok(true)
    })();
    match prepared {
        Ok(true) => {}
        Ok(false) => {
            return Err(StoreError::Unavailable {
                place: place.to_owned(),
                detail: "it cannot have a write-ahead log there".to_owned(),
            }
            .into());
        }
        Err(error) => return Err(failure(&error).at(place).into()),
    }
    while migrate(connection).map_err(|failure| failure.at(place))? {}
    Ok(())
}

/// One migration; `false` if none is left.
fn migrate(connection: &mut rusqlite::Connection) -> Result<bool, Failure> {
    let batch = |connection: &rusqlite::Connection, statement| {
        connection
            .execute_batch(statement)
            .map_err(|error| failure(&error))
    };
    batch(connection, "BEGIN IMMEDIATE")?;
    let stepped = schema::step(&mut Link(connection), &DIALECT, "")
        .now_or_never()
        .unwrap_or_else(|| Err(Failure::Broken("a migration waits".to_owned())));
    batch(
        connection,
        if stepped.is_ok() {
            "COMMIT"
        } else {
            "ROLLBACK"
        },
    )?;
    stepped
}

/// Writes a copy under another name first, so that no half of one is ever taken for a whole.
fn copy(connection: &rusqlite::Connection, to: &Path) -> Result<(), String> {
    if to.exists() {
        return Err("there is a file".to_owned());
    }
    let half = beside(to, ".partial");
    let written = (|| {
        // Empty, so that it has the mode of ours rather than SQLite's.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&half)
            .map_err(|error| error.to_string())?;
        let name = half.to_str().ok_or("its name is not UTF-8")?;
        connection
            .execute("VACUUM INTO ?1", [name])
            .map_err(|error| error.to_string())?;
        finish(&file, &half, to).map_err(|error| error.to_string())
    })();
    if written.is_err() {
        // Nothing refers to it.
        let _ = fs::remove_file(&half);
    }
    written
}

fn finish(file: &File, half: &Path, whole: &Path) -> io::Result<()> {
    file.sync_all()?;
    fs::rename(half, whole)?;
    match whole.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => File::open(directory)?.sync_all(),
        _ => Ok(()),
    }
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// SQLite would make the file readable for others.
fn create(path: &Path) -> Result<(), DiskError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|source| DiskError::Io {
            path: path.to_owned(),
            source,
        })
}

/// File systems whose files live on another machine, or behind a program: the magic numbers that
/// `statfs` gives (Linux, `include/uapi/linux/magic.h` and the sources of each).
const NETWORK: &[(u32, &str)] = &[
    (0x0000_517b, "SMB"),
    (0x0000_564c, "NCP"),
    (0x0000_6969, "NFS"),
    (0x00c3_6400, "Ceph"),
    (0x0102_1997, "9P"),
    (0x0116_1970, "GFS2"),
    (0x0bd0_0bd0, "Lustre"),
    (0x1983_0326, "BeeGFS"),
    (0x4750_4653, "GPFS"),
    (0x5346_414f, "AFS"),
    (0x6573_5546, "FUSE"),
    (0x7461_636f, "OCFS2"),
    (0x7375_7245, "Coda"),
    (0x786f_4256, "VirtualBox shared folder"),
    (0xfe53_4d42, "SMB2"),
    (0xff53_4d42, "CIFS"),
];

fn refuse_network(directory: &Path) -> Result<(), OpenError> {
    let status = rustix::fs::statfs(directory).map_err(|errno| DiskError::Io {
        path: directory.to_owned(),
        source: errno.into(),
    })?;
    match network_kind(status.f_type) {
        Some(kind) => Err(OpenError::NetworkFileSystem {
            path: directory.to_owned(),
            kind,
        }),
        None => Ok(()),
    }
}

/// The number is one of 32 bits, whatever type the platform gives it.
fn network_kind(magic: impl Into<i128>) -> Option<&'static str> {
    let magic = magic.into() & 0xffff_ffff;
    NETWORK
        .iter()
        .find(|(known, _)| i128::from(*known) == magic)
        .map(|(_, kind)| *kind)
}

fn failure(error: &Error) -> Failure {
    let Error::SqliteFailure(code, text) = error else {
        return Failure::Broken(error.to_string());
    };
    let detail = text.clone().unwrap_or_else(|| code.to_string());
    match code.code {
        ErrorCode::DiskFull => Failure::Full,
        ErrorCode::CannotOpen
        | ErrorCode::DatabaseBusy
        | ErrorCode::DatabaseLocked
        | ErrorCode::OutOfMemory
        | ErrorCode::PermissionDenied
        | ErrorCode::ReadOnly
        | ErrorCode::SystemIoFailure => Failure::Unavailable(detail),
        _ => Failure::Broken(detail),
    }
}
