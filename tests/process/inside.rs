//! The real program from the outside: status, readiness, reload, a control server with faults, too
//! few descriptors.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tailbone::tailnet::Node;
use tempfile::TempDir;
use testkit::{
    devnet::Devnet,
    eventually,
    http::Connection,
    soon,
    world::{EmbeddedWorld, Who, World},
};

pub(super) struct Daemon {
    pub(super) child: Child,
    folder: PathBuf,
    control: String,
}

impl Daemon {
    /// Starts with the settings in the folder's `tailbone.toml` and without HOME; the shell runs
    /// `before` first.
    pub(super) async fn start(folder: &Path, devnet: &Devnet, before: &str) -> Self {
        Self::start_under(&[], folder, devnet, before).await
    }

    /// The same below a program that starts another one in changed surroundings.
    pub(super) async fn start_under(
        wrapper: &[&str],
        folder: &Path,
        devnet: &Devnet,
        before: &str,
    ) -> Self {
        let key = devnet.ready_key().await;
        let output = fs::File::create(folder.join("log")).unwrap();
        let script = format!("{before}\nexec \"$0\" \"$@\"");
        let line = [wrapper, &["/bin/sh", "-e", "-c", &script]].concat();
        let child = Command::new(line[0])
            .args(&line[1..])
            .arg(env!("CARGO_BIN_EXE_tailbone"))
            .args(["server", "start", "--config", "tailbone.toml"])
            .current_dir(folder)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TB_SERVER_TAILSCALE_CONTROLURL", &devnet.ready.control_url)
            .env("TB_SERVER_TAILSCALE_AUTHKEY", key)
            .env("NOTIFY_SOCKET", folder.join("notify"))
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let daemon = Self {
            child,
            folder: folder.to_owned(),
            control: devnet.ready.control_url.clone(),
        };
        // Until then its mounts may be missing.
        eventually("it begins", async || {
            let said = daemon.said();
            said.contains("starting").then_some(()).ok_or(said)
        })
        .await;
        daemon
    }

    /// A path below the folder as the server sees it, which may have mounts of its own.
    pub(super) fn seen(&self, place: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.child.id()));
        root.join(self.folder.strip_prefix("/").unwrap())
            .join(place)
    }

    pub(super) fn said(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// Runs another command like a health check: without HOME, with nothing but the folder.
    pub(super) fn ask(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_tailbone"))
            .args(arguments)
            .current_dir(self.seen(""))
            .env_clear()
            .env("TB_SERVER_TAILSCALE_CONTROLURL", &self.control)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{}", self.said()))
    }

    pub(super) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        // The child has not been waited for yet, so its process id is still valid.
        kill_process(pid, signal).unwrap();
    }

    pub(super) fn settings(&self, text: &str) {
        fs::write(self.folder.join("tailbone.toml"), text).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn settings(host: &str, expiry: &str) -> String {
    format!(
        "components = \"issuer,metrics\"\n[keys]\nexpiry = \"{expiry}\"\nalgorithm = \"ES256\"\n\
         [server.tailscale]\nhostname = \"{host}\"\n"
    )
}

pub(super) async fn ready(daemon: &Daemon) {
    let output = daemon.ask(&["wait", "--ready", "--timeout", "20s"]);
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stderr),
        daemon.said()
    );
}

pub(super) async fn call(node: &dyn Node, host: &str, port: u16) -> Connection {
    let addr = format!("{host}:{port}");
    let stream = soon("a connection", node.dial(&addr, Duration::from_secs(10)))
        .await
        .unwrap();
    Connection::over(stream).await.host(host)
}

fn claims(token: &str) -> Value {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let body = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).unwrap()).unwrap()
}

async fn life(node: &dyn Node, host: &str) -> i64 {
    let answer = call(node, host, 80).await.post("/issue").await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let claims = claims(answer.json()["token"].as_str().unwrap());
    claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap()
}

alone! {
    async fn status_readiness_reload_and_supervisor_of_a_running_server() {
        let world = EmbeddedWorld::new();
        let folder = TempDir::new().unwrap();
        let host = world.host("tailbone");
        let supervisor = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        supervisor.set_nonblocking(true).unwrap();
        fs::write(folder.path().join("tailbone.toml"), settings(&host, "20m")).unwrap();
        let daemon = Daemon::start(folder.path(), world.devnet, "").await;
        ready(&daemon).await;
        assert!(daemon.ask(&["status", "--check"]).status.success());
        let status: Value = serde_json::from_slice(&daemon.ask(&["status", "-o", "json"]).stdout).unwrap();
        assert_eq!(status["node"]["state"], "running", "{status}");
        assert_eq!(status["ready"], true);
        assert_eq!(status["keys"][0]["state"], "active");
        let listeners: Vec<_> = status["listeners"].as_array().unwrap().iter().map(|l| l["name"].as_str().unwrap()).collect();
        assert_eq!(listeners, ["admin socket", "issuer", "metrics"]);

        let alice = world.node("alice", Who::User("alice@example.com")).await;
        assert_eq!(call(&*alice, &host, 80).await.get("/readyz").await.status(), 200);
        assert_eq!(life(&*alice, &host).await, 20 * 60);
        let own = alice.watch().borrow().addresses[0].to_string();
        let known = daemon.ask(&["whois", &own, "-o", "json"]);
        let known: Value = serde_json::from_slice(&known.stdout).unwrap();
        assert!(known["login"].as_str().unwrap().ends_with("alice@example.com"), "{known}");
        let metrics = call(&*alice, &host, 9090).await.get("/metrics").await;
        let text = String::from_utf8(metrics.0.body().to_vec()).unwrap();
        assert!(text.contains(r#"tailbone_tokens_total{component="issuer",result="issued",reason=""} 1"#), "{text}");

        let examined = daemon.ask(&["doctor", "-o", "json"]);
        let checks: Value = serde_json::from_slice(&examined.stdout).unwrap();
        assert!(examined.status.success(), "{checks:#}");
        for name in ["state-dir-writable", "keys-dir", "control-reachable", "join-state", "whois-works", "jwks-public"] {
            let check = checks.as_array().unwrap().iter().find(|check| check["name"] == name).unwrap();
            assert_eq!(check["verdict"], "ok", "{check}");
        }
        let report = daemon.ask(&["bugreport"]);
        let report = String::from_utf8(report.stdout).unwrap();
        assert!(report.contains("issued token") && report.contains("node.state"), "{report}");

        // What can be changed at run time is; anything else is named in the log.
        daemon.settings(&settings(&host, "5m").replace("[keys]", "[server]\nport = 8080\n[keys]"));
        daemon.signal(Signal::HUP);
        eventually("the reload", async || {
            let said = daemon.said();
            said.contains("need a restart").then_some(()).ok_or(said)
        }).await;
        assert!(daemon.said().contains("server.port"), "{}", daemon.said());
        assert_eq!(life(&*alice, &host).await, 5 * 60);

        // Invalid settings change nothing.
        daemon.settings("[keys]\nexpiry = \"never\"\n");
        daemon.signal(Signal::HUP);
        eventually("the refusal", async || {
            let said = daemon.said();
            said.contains("not reloaded").then_some(()).ok_or(said)
        }).await;
        assert_eq!(life(&*alice, &host).await, 5 * 60);

        let mut heard = String::new();
        let mut piece = [0; 500];
        while let Ok(length) = supervisor.recv(&mut piece) {
            heard += std::str::from_utf8(&piece[..length]).unwrap();
            heard += "\n";
        }
        let (before, after) = heard.split_once("READY=1").unwrap();
        assert!(!before.contains("RELOADING"), "{heard}");
        assert!(after.contains("RELOADING=1\nMONOTONIC_USEC="), "{heard}");
    }
}

alone! {
    async fn readiness_follows_what_the_control_server_does() {
        // A fault of the control server affects its whole tailnet, so this test has one of its own.
        let devnet = Devnet::start();
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("tailbone.toml"), settings("tailbone", "20m")).unwrap();
        devnet.control(json!({"mode": "hold"})).await;
        let daemon = Daemon::start(folder.path(), &devnet, "").await;
        // The socket exists while the node is joining.
        eventually("the socket answers", async || {
            let output = daemon.ask(&["status", "-o", "json"]);
            output.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
        }).await;
        let check = daemon.ask(&["status", "--check"]);
        assert_eq!(check.status.code(), Some(1));
        let said = String::from_utf8_lossy(&check.stderr).into_owned();
        assert!(said.contains("node-running: ") && said.contains("listeners-up: "), "{said}");
        let waited = daemon.ask(&["wait", "--ready", "--timeout", "500ms"]);
        assert_eq!(waited.status.code(), Some(1));

        devnet.control(json!({"mode": "ok"})).await;
        ready(&daemon).await;

        // A node on the tailnet stays there while its control server fails; a node whose key
        // expires does not.
        devnet.control(json!({"mode": "fail", "status": 500})).await;
        assert!(daemon.ask(&["status", "--check"]).status.success(), "{}", daemon.said());
        devnet.control(json!({"mode": "ok"})).await;
        devnet.expire("tailbone").await;
        eventually("not ready", async || {
            let check = daemon.ask(&["status", "--check"]);
            (check.status.code() == Some(1)).then_some(()).ok_or_else(|| daemon.said())
        }).await;
        let check = daemon.ask(&["status", "--check"]);
        assert!(String::from_utf8_lossy(&check.stderr).contains("expired"), "{check:?}");
        devnet.unexpire("tailbone").await;
        ready(&daemon).await;
    }
}

alone! {
    async fn more_callers_than_descriptors_wait_and_leave_the_rest_alive() {
        let world = EmbeddedWorld::new();
        let folder = TempDir::new().unwrap();
        let host = world.host("tailbone");
        fs::write(folder.path().join("tailbone.toml"), settings(&host, "20m")).unwrap();
        let daemon = Daemon::start(folder.path(), world.devnet, "ulimit -n 256").await;
        ready(&daemon).await;
        assert!(daemon.said().contains("may not have more descriptors"), "{}", daemon.said());
        let alice = world.node("alice", Who::User("alice@example.com")).await;
        let mut open = Vec::new();
        for _ in 0..120 {
            let addr = format!("{host}:80");
            if let Ok(stream) = alice.dial(&addr, Duration::from_secs(5)).await {
                open.push(stream);
            }
        }
        assert!(open.len() > 60, "{}", open.len());
        // The listener is full, and the status still works: the local socket is another listener.
        assert!(daemon.ask(&["status", "--check"]).status.success(), "{}", daemon.said());
        drop(open);
        // The node recovers by itself.
        eventually("a token", async || {
            let mut connection = call(&*alice, &host, 80).await;
            match tokio::time::timeout(Duration::from_secs(5), connection.post("/issue")).await {
                Ok(answer) if answer.status() == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        }).await;
    }
}
