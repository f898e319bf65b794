//! The real program as a process.

use std::{
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{devnet::Devnet, eventually, patience};

/// `tailbone server start`, before it is started: in a folder of its own, with no variables but
/// those that are set here. Only the issuer runs, unless a flag says otherwise.
pub struct Start {
    program: PathBuf,
    folder: PathBuf,
    flags: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    control_url: Option<String>,
    wrapper: Vec<String>,
    before: Option<String>,
    output: Option<(Stdio, Stdio)>,
}

impl Start {
    pub fn new(program: &str, folder: &Path) -> Self {
        Self {
            program: program.into(),
            folder: folder.to_owned(),
            flags: Vec::new(),
            variables: Vec::new(),
            control_url: None,
            wrapper: Vec::new(),
            before: None,
            output: None,
        }
        .variable("TB_COMPONENTS", "issuer")
    }

    /// On this devnet, with its certificate authority.
    #[must_use]
    pub fn on(mut self, devnet: &Devnet) -> Self {
        let url = &devnet.ready.control_url;
        if let Some(acme) = &devnet.ready.acme {
            self = self
                .variable("TS_DEBUG_ACME_DIRECTORY_URL", &acme.directory)
                .variable("SSL_CERT_FILE", &acme.ca_file);
        }
        Self {
            control_url: Some(url.clone()),
            ..self.variable("TB_SERVER_TAILSCALE_CONTROLURL", url)
        }
    }

    /// On this devnet, which it may join.
    pub async fn joining(self, devnet: &Devnet) -> Self {
        let key = devnet.ready_key().await;
        self.on(devnet).auth_key(&key)
    }

    #[must_use]
    pub fn auth_key(self, key: &str) -> Self {
        self.variable("TB_SERVER_TAILSCALE_AUTHKEY", key)
    }

    /// The name of its node.
    #[must_use]
    pub fn host(self, name: &str) -> Self {
        self.flags(&["--ts-hostname", name])
    }

    #[must_use]
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(OsString::from));
        self
    }

    #[must_use]
    pub fn variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    #[must_use]
    pub fn variables(self, variables: &[(&str, &str)]) -> Self {
        variables
            .iter()
            .fold(self, |start, (name, value)| start.variable(name, value))
    }

    /// With these settings in a config file, and none by variables of ours except how it joins.
    #[must_use]
    pub fn settings(mut self, text: &str) -> Self {
        fs::write(self.folder.join("tailbone.toml"), text).unwrap();
        self.variables.retain(|(name, _)| name != "TB_COMPONENTS");
        self.flags(&["--config", "tailbone.toml"])
    }

    /// Below a program that starts another one in changed surroundings.
    #[must_use]
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// After these lines, in the same shell.
    #[must_use]
    pub fn after(mut self, lines: &str) -> Self {
        self.before = Some(lines.to_owned());
        self
    }

    /// With other streams than the file `log` for its output and its errors.
    #[must_use]
    pub fn output(mut self, output: impl Into<Stdio>, errors: impl Into<Stdio>) -> Self {
        self.output = Some((output.into(), errors.into()));
        self
    }

    /// Starts it and waits until it has begun. Before that, mounts of its own may be missing.
    pub async fn started(self) -> Daemon {
        let mut daemon = self.start();
        daemon.logs("starting").await;
        daemon
    }

    pub fn start(self) -> Daemon {
        let mut line: Vec<OsString> = self.wrapper.iter().map(OsString::from).collect();
        if let Some(before) = self.before {
            let script = format!("{before}\nexec \"$0\" \"$@\"");
            line.extend(["/bin/sh", "-e", "-c", &script].map(OsString::from));
        }
        line.push(self.program.clone().into());
        let mut command = Command::new(&line[0]);
        command
            .args(&line[1..])
            .args(["server", "start"])
            .args(self.flags)
            .current_dir(&self.folder)
            .env_clear()
            .envs(self.variables)
            .stdin(Stdio::null());
        if line.len() > 1 {
            command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        }
        let (output, errors) = self.output.unwrap_or_else(|| {
            let log = File::options()
                .create(true)
                .append(true)
                .open(self.folder.join("log"))
                .unwrap();
            (log.try_clone().unwrap().into(), log.into())
        });
        let child = command.stdout(output).stderr(errors).spawn().unwrap();
        Daemon {
            child,
            program: self.program,
            folder: self.folder,
            control_url: self.control_url,
        }
    }
}

/// A server that runs. Killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    pub child: Child,
    program: PathBuf,
    folder: PathBuf,
    control_url: Option<String>,
}

impl Daemon {
    /// Its log, and those of servers in the same folder before it.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Waits until the log contains these words.
    pub async fn logs(&mut self, words: &str) {
        self.logs_times(words, 1).await;
    }

    pub async fn logs_times(&mut self, words: &str, times: usize) {
        eventually(words, async || {
            let log = self.log();
            if log.matches(words).count() >= times {
                return Ok(());
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the server ended:\n{log}");
            Err(log)
        })
        .await;
    }

    /// Waits for this number of listeners, counted from the beginning of the log.
    pub async fn listening(&mut self, times: usize) {
        self.logs_times("listening", times).await;
    }

    /// Waits until it is ready.
    pub fn ready(&self) {
        let timeout = format!("{}s", patience().as_secs());
        let waited = self.run(&["wait", "--ready", "--timeout", &timeout]);
        let errors = String::from_utf8_lossy(&waited.stderr);
        assert!(waited.status.success(), "{errors}\n{}", self.log());
    }

    /// Runs another command of the program as a health check would be: without HOME, with nothing
    /// but the folder.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .current_dir(self.path(""))
            .env_clear()
            .stdin(Stdio::null());
        if let Some(url) = &self.control_url {
            command.env("TB_SERVER_TAILSCALE_CONTROLURL", url);
        }
        command
            .output()
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{}", self.log()))
    }

    /// What `doctor` says of one thing; `flags` are those of the server.
    pub fn examined(&self, flags: &[&str], check: &str) -> Value {
        let output = self.run(&[&["doctor", "-o", "json"], flags].concat());
        let checks: Vec<Value> = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:?}\n{}", self.log()));
        let found = checks.into_iter().find(|one| one["name"] == check);
        found.unwrap_or_else(|| panic!("there is no check {check}"))
    }

    /// A path below the folder as the server sees it, which may have mounts of its own.
    pub fn path(&self, below: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.child.id()));
        root.join(self.folder.strip_prefix("/").unwrap())
            .join(below)
    }

    pub fn set_settings(&self, text: &str) {
        fs::write(self.folder.join("tailbone.toml"), text).unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        // The child has not been waited for yet, so its process id is still valid.
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    pub fn end(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            let log = self.log();
            assert!(began.elapsed() < patience(), "it does not end:\n{log}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to stop, and waits for its end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.end()
    }

    /// The most memory that it has had, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.unwrap().trim().strip_suffix(" kB").unwrap();
        kib.parse::<u64>().unwrap() << 10
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
