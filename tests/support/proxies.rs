//! Real proxies from Debian's packages, each on a port of its own, with a configuration in a folder of the test.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::eventually;

/// A running proxy. Ends when dropped.
pub struct Proxy {
    pub addr: SocketAddr,
    child: Child,
}

impl Proxy {
    pub async fn nginx(dir: &Path, port: u16, server: &str) -> Self {
        let shown = dir.display();
        // As root nginx would give its workers to another user, who could not open the socket.
        let user = if rustix::process::geteuid().is_root() {
            "user root;"
        } else {
            ""
        };
        let config = format!(
            "daemon off; worker_processes 1; pid {shown}/nginx.pid; error_log stderr warn; {user}\n\
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
        Self::start("nginx", command, dir, port).await
    }

    pub async fn caddy(dir: &Path, port: u16, site: &str) -> Self {
        let file = dir.join("Caddyfile");
        let config = format!("{{\n\tadmin off\n\tauto_https off\n}}\n{site}\n");
        fs::write(&file, config).unwrap();
        let mut command = Command::new("caddy");
        command
            .env("HOME", dir)
            .env("XDG_DATA_HOME", dir)
            .env("XDG_CONFIG_HOME", dir);
        command
            .args(["run", "--adapter", "caddyfile", "--config"])
            .arg(file);
        Self::start("caddy", command, dir, port).await
    }

    pub async fn haproxy(dir: &Path, port: u16, config: &str) -> Self {
        let file = dir.join("haproxy.cfg");
        fs::write(&file, config).unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(file);
        Self::start("haproxy", command, dir, port).await
    }

    async fn start(name: &str, mut command: Command, dir: &Path, port: u16) -> Self {
        // Debian keeps servers where the path of a plain user does not lead.
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
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut proxy = Self { addr, child };
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
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // nginx and HAProxy have workers, which a kill would leave behind.
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

/// A port that nobody listened on a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}
