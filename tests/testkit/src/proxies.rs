//! Real proxies, configured by the recipes in `deploy/`. Only what an operator would change is
//! changed. Envoy comes as a Python package, the others are Debian's.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{
    eventually,
    files::{tree, venv},
};

/// Address of a proxy, and what it stands between.
#[derive(Debug, Clone, Copy)]
pub struct ProxySetup<'a> {
    pub listen: SocketAddr,
    pub gate: Gate<'a>,
    pub backend: SocketAddr,
}

/// Where the proxy asks the gate.
#[derive(Debug, Clone, Copy)]
pub enum Gate<'a> {
    Socket(&'a Path),
    /// Over the network. Not for HAProxy, whose script knows only the socket.
    At(SocketAddr),
}

/// A running proxy. Ends when dropped.
pub struct Proxy {
    pub addr: SocketAddr,
    child: Child,
    log: PathBuf,
}

impl Proxy {
    pub async fn named(name: &str, dir: &Path, setup: ProxySetup<'_>) -> Self {
        match name {
            "nginx" => Self::nginx(dir, setup).await,
            "caddy" => Self::caddy(dir, setup).await,
            "haproxy" => Self::haproxy(dir, setup).await,
            "envoy" => Self::envoy(dir, setup).await,
            other => panic!("no proxy {other}"),
        }
    }

    async fn nginx(dir: &Path, setup: ProxySetup<'_>) -> Self {
        let shown = dir.display();
        let gate = match setup.gate {
            Gate::Socket(path) => format!("unix:{}:", path.display()),
            Gate::At(addr) => addr.to_string(),
        };
        let changes = [
            ("listen 80;", format!("listen {};", setup.listen)),
            ("unix:/run/tailbone/gate.sock:", gate),
            ("127.0.0.1:3000", setup.backend.to_string()),
        ];
        let server = recipe("nginx/tailbone-gate.conf", &changes);
        // One process under our own user: if that is root, a worker of another user could not open
        // the socket.
        let config = format!(
            "daemon off; master_process off; pid {shown}/nginx.pid; error_log stderr warn; user root;\n\
             events {{}}\n\
             http {{\n\
             access_log off;\n\
             client_body_temp_path {shown}/t1; proxy_temp_path {shown}/t2; fastcgi_temp_path {shown}/t3;\n\
             uwsgi_temp_path {shown}/t4; scgi_temp_path {shown}/t5;\n\
             {server}\n}}\n"
        );
        let file = dir.join("nginx.conf");
        fs::write(&file, config).unwrap();
        let mut command = Command::new("nginx");
        command
            .arg("-e")
            .arg("stderr")
            .arg("-p")
            .arg(dir)
            .arg("-c")
            .arg(file);
        Self::start("nginx", command, dir, setup.listen).await
    }

    async fn caddy(dir: &Path, setup: ProxySetup<'_>) -> Self {
        let file = dir.join("Caddyfile");
        let (ip, port) = (setup.listen.ip(), setup.listen.port());
        let gate = match setup.gate {
            Gate::Socket(path) => format!("unix/{}", path.display()),
            Gate::At(addr) => addr.to_string(),
        };
        let changes = [
            (
                "wiki.example.com {\n",
                format!("http://:{port} {{\n\tbind {ip}\n"),
            ),
            ("unix//run/tailbone/gate.sock", gate),
            ("127.0.0.1:3000", setup.backend.to_string()),
        ];
        let site = recipe("caddy/Caddyfile", &changes);
        fs::write(
            &file,
            format!("{{\n\tadmin off\n\tauto_https off\n}}\n{site}\n"),
        )
        .unwrap();
        let mut command = Command::new("caddy");
        command
            .env("HOME", dir)
            .env("XDG_DATA_HOME", dir)
            .env("XDG_CONFIG_HOME", dir);
        command
            .args(["run", "--adapter", "caddyfile", "--config"])
            .arg(file);
        Self::start("caddy", command, dir, setup.listen).await
    }

    async fn haproxy(dir: &Path, setup: ProxySetup<'_>) -> Self {
        let file = dir.join("haproxy.cfg");
        let script = tree("deploy/haproxy/tailbone-auth.lua");
        let Gate::Socket(socket) = setup.gate else {
            panic!("HAProxy asks at the socket alone")
        };
        let changes = [
            ("bind :80\n", format!("bind {}\n", setup.listen)),
            (
                "/etc/haproxy/tailbone-auth.lua",
                script.display().to_string(),
            ),
            ("/run/tailbone/gate.sock", socket.display().to_string()),
            ("127.0.0.1:3000", setup.backend.to_string()),
        ];
        fs::write(&file, recipe("haproxy/haproxy.cfg", &changes)).unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(file);
        Self::start("haproxy", command, dir, setup.listen).await
    }

    async fn envoy(dir: &Path, setup: ProxySetup<'_>) -> Self {
        let file = dir.join("envoy.yaml");
        let endpoint =
            |addr: SocketAddr| format!("{{ address: {}, port_value: {} }}", addr.ip(), addr.port());
        let gate = match setup.gate {
            Gate::Socket(path) => format!("pipe: {{ path: {} }}", path.display()),
            Gate::At(addr) => format!("socket_address: {}", endpoint(addr)),
        };
        let changes = [
            (
                "{ address: 0.0.0.0, port_value: 80 }",
                endpoint(setup.listen),
            ),
            (
                "{ address: 127.0.0.1, port_value: 3000 }",
                endpoint(setup.backend),
            ),
            ("pipe: { path: /run/tailbone/gate.sock }", gate),
        ];
        fs::write(&file, recipe("envoy/envoy.yaml", &changes)).unwrap();
        let mut command = Command::new(venv("bin/envoy"));
        command
            .args([
                "--use-dynamic-base-id",
                "--concurrency",
                "1",
                "--log-level",
                "warn",
                "-c",
            ])
            .arg(file);
        Self::start("envoy", command, dir, setup.listen).await
    }

    /// Any program that listens at this address, with its log in this folder.
    pub(crate) async fn start(
        name: &str,
        mut command: Command,
        dir: &Path,
        addr: SocketAddr,
    ) -> Self {
        // Debian installs servers outside of a plain user's path.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
        let log = dir.join(format!("{name}.log"));
        command
            .stdin(Stdio::null())
            .stdout(fs::File::create(&log).unwrap())
            .stderr(fs::File::options().append(true).open(&log).unwrap());
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("{name} cannot be started ({error}): run scripts/setup --tests")
        });
        let mut proxy = Self {
            addr,
            child,
            log: log.clone(),
        };
        eventually(name, || {
            let ended = proxy.child.try_wait().unwrap();
            let log = log.clone();
            async move {
                if let Some(status) = ended {
                    panic!("ended with {status}: {}", fs::read_to_string(log).unwrap());
                }
                let connected = tokio::net::TcpStream::connect(addr).await;
                connected.map(drop).map_err(|error| error.to_string())
            }
        })
        .await;
        proxy
    }

    /// Its log.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

/// A file of `deploy/` with this test's addresses in it.
fn recipe(file: &str, changes: &[(&str, String)]) -> String {
    let path = tree("deploy").join(file);
    // Without comments, which contain the same names.
    let mut text: String = fs::read_to_string(path)
        .unwrap()
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect();
    for (delivered, changed) in changes {
        let times = text.matches(delivered).count();
        assert_eq!(times, 1, "{file} does not have {delivered:?} once");
        text = text.replace(delivered, changed);
    }
    text
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // HAProxy has workers, which a kill would leave behind.
        if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        for _ in 0..200 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address of loopback that was free a moment ago.
pub fn free_addr() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}
