//! A PostgreSQL server in a temporary directory, and a way to it that can be closed.
//!
//! A crate of its own, since the tests of the provider's state need no tailnet and those of the
//! whole program do.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener as AsyncListener, TcpStream},
};

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Server {
    folder: TempDir,
    programs: PathBuf,
    child: Child,
    pub addr: SocketAddr,
    databases: AtomicUsize,
    options: Vec<String>,
}

impl Server {
    /// `None`, with a printed reason, where PostgreSQL is not installed.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// With the first of the tests' certificates, which is for `localhost`.
    pub fn start_with_tls() -> Option<Self> {
        Self::start_with(&["ssl=on", "ssl_cert_file=tls.crt", "ssl_key_file=tls.key"])
    }

    fn start_with(options: &[&str]) -> Option<Self> {
        let Some(programs) = programs() else {
            eprintln!("left out, PostgreSQL is not installed: scripts/setup --tests installs it");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        if is_root() {
            let user = user_id("postgres").or(user_id("nobody")).unwrap();
            chown(folder.path(), Some(user), None).unwrap();
        }
        let data = folder.path().join("data");
        let made = command(&programs.join("initdb"), folder.path())
            .args([
                "--no-sync",
                "-E",
                "UTF8",
                "--locale=C",
                "-A",
                "trust",
                "-U",
                "tailbone",
            ])
            .arg("-D")
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        for (from, to) in [("first.crt", "tls.crt"), ("first.key", "tls.key")] {
            let to = data.join(to);
            fs::copy(certificate(from), &to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
            let (user, group) = owner(folder.path());
            chown(&to, Some(user), Some(group)).unwrap();
        }
        let addr = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let mut server = Self {
            child: run(&programs, folder.path(), addr, options),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            folder,
            programs,
            addr,
            databases: AtomicUsize::new(0),
        };
        server.wait();
        Some(server)
    }

    /// Ends the server as a loss of power would, and starts it again.
    pub fn crash(&mut self) {
        self.stop();
        self.resume();
    }

    pub fn stop(&mut self) {
        signal(&self.child, "QUIT");
        self.child.wait().unwrap();
    }

    pub fn resume(&mut self) {
        let options: Vec<_> = self.options.iter().map(String::as_str).collect();
        self.child = run(&self.programs, self.folder.path(), self.addr, &options);
        self.wait();
    }

    fn wait(&mut self) {
        let begun = Instant::now();
        loop {
            let answered = self.psql("postgres", "SELECT 1");
            if answered.status.success() {
                return;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && begun.elapsed() < PATIENCE,
                "{answered:?}\n{}",
                fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn psql(&self, database: &str, statement: &str) -> std::process::Output {
        Command::new(self.programs.join("psql"))
            .args([
                "-X",
                "-q",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "tailbone",
            ])
            .args(["-h", "127.0.0.1", "-p", &self.addr.port().to_string()])
            .args(["-d", database, "-c", statement])
            .output()
            .unwrap()
    }

    pub fn ask(&self, database: &str, statement: &str) -> String {
        let output = self.psql(database, statement);
        assert!(output.status.success(), "{statement}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The name of a new database.
    pub fn database(&self) -> String {
        let name = format!("db{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.ask("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    /// The URL of a database.
    pub fn url(&self, database: &str) -> String {
        url(self.addr, database)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        signal(&self.child, "QUIT");
        let _ = self.child.wait();
    }
}

/// The URL of a database behind this address.
pub fn url(addr: SocketAddr, database: &str) -> String {
    format!("postgres://tailbone@{addr}/{database}")
}

/// Of the tests' certificates and keys.
pub fn certificate(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../testkit/tls")
        .join(name)
}

fn run(programs: &Path, folder: &Path, addr: SocketAddr, options: &[&str]) -> Child {
    let log = fs::File::create(folder.join("log")).unwrap();
    command(&programs.join("postgres"), folder)
        .arg("-D")
        .arg(folder.join("data"))
        .args(["-p", &addr.port().to_string()])
        .args(["-c", "listen_addresses=127.0.0.1"])
        .arg("-c")
        .arg(format!("unix_socket_directories={}", folder.display()))
        .args(options.iter().flat_map(|option| ["-c", option]))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// PostgreSQL refuses to run as root.
fn command(program: &Path, folder: &Path) -> Command {
    let mut command = if is_root() {
        let (user, group) = owner(folder);
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--reuid={user}"))
            .arg(format!("--regid={group}"))
            .args(["--clear-groups", "--"])
            .arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir(folder).stdin(Stdio::null());
    command
}

fn owner(folder: &Path) -> (u32, u32) {
    let metadata = fs::metadata(folder).unwrap();
    (metadata.uid(), metadata.gid())
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

fn user_id(name: &str) -> Option<u32> {
    fs::read_to_string("/etc/passwd")
        .unwrap()
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then(|| fields.nth(1))?
        })?
        .parse()
        .ok()
}

/// Debian keeps them out of the search path.
fn programs() -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        folders.extend(versions.map(|version| version.unwrap().path().join("bin")));
    }
    folders.into_iter().find(|folder| {
        ["initdb", "postgres", "psql"]
            .iter()
            .all(|name| folder.join(name).exists())
    })
}

pub fn signal(child: &Child, name: &str) {
    let _ = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(child.id().to_string())
        .status();
}

/// What the way to the database does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Open,
    /// Connections end, and no new ones come about.
    Closed,
    /// Bytes stay where they are.
    Stuck,
    /// Bytes from the server are late by some milliseconds.
    Slow(u32),
}

/// A way to a server on loopback.
#[derive(Debug)]
pub struct Proxy {
    pub addr: SocketAddr,
    way: Arc<AtomicU32>,
}

impl Proxy {
    pub async fn to(server: SocketAddr) -> Self {
        let listener = AsyncListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let way = Arc::new(AtomicU32::new(0));
        let shared = way.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if shared.load(Ordering::Relaxed) == CLOSED {
                    continue;
                }
                if let Ok(server) = TcpStream::connect(server).await {
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    tokio::spawn(pass(from_client, to_server, shared.clone(), false));
                    tokio::spawn(pass(from_server, to_client, shared.clone(), true));
                }
            }
        });
        Self { addr, way }
    }

    pub fn set(&self, way: Way) {
        let number = match way {
            Way::Open => 0,
            Way::Closed => CLOSED,
            Way::Stuck => STUCK,
            Way::Slow(ms) => ms,
        };
        self.way.store(number, Ordering::Relaxed);
    }
}

const CLOSED: u32 = u32::MAX;
const STUCK: u32 = u32::MAX - 1;
const TICK: Duration = Duration::from_millis(5);

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    way: Arc<AtomicU32>,
    is_answer: bool,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = match tokio::time::timeout(TICK, from.read(&mut buffer)).await {
            Ok(read) => read.unwrap_or(0),
            Err(_) if way.load(Ordering::Relaxed) == CLOSED => return,
            Err(_) => continue,
        };
        if read == 0 {
            return;
        }
        loop {
            match way.load(Ordering::Relaxed) {
                CLOSED => return,
                STUCK => tokio::time::sleep(TICK).await,
                late => {
                    if is_answer && late > 0 {
                        tokio::time::sleep(Duration::from_millis(late.into())).await;
                    }
                    break;
                }
            }
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
