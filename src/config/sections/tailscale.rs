//! `server.tailscale.*`: the node, how it joins, and where it keeps its state.

use std::{path::PathBuf, time::Duration};

use tailbone_tailnet::{Config, StateStore};

use crate::config::{
    Secret,
    load::Purpose,
    parse::{ParsedValue, text},
    read::SettingsReader,
    reload::Reloaded,
    report::ValueOrigin,
    table::{DAY, FlagScope, HOUR, ValueKind, legacy_duration, row, rows},
};

rows! {
    AUTHKEY = row("server.tailscale.authkey", ValueKind::Secret)
        .flag("ts-authkey", FlagScope::Start)
        .aliases(&["TS_AUTHKEY", "TS_AUTH_KEY"])
        .example("file:/run/secrets/authkey")
        .help(
            "Auth key for the first join, or file:PATH of a file that contains it; TS_AUTHKEY \
             does the same if no other credential is set",
        );
    CONTROL_URL = row("server.tailscale.controlUrl", ValueKind::Url)
        .flag("ts-control-url", FlagScope::Start)
        .example("https://headscale.example.com")
        .help("Control server; Tailscale's own if empty");
    HOSTNAME = row("server.tailscale.hostname", ValueKind::Text)
        .flag("ts-hostname", FlagScope::Start)
        .default("tailbone")
        .help("Name of the node on the tailnet");
    DIR = row("server.tailscale.dir", ValueKind::Path)
        .flag("ts-dir", FlagScope::Start)
        .default(".tsnet")
        .help("Directory of the node's state");
    STATE = row("server.tailscale.state", ValueKind::Text)
        .flag("ts-state", FlagScope::Start)
        .default("dir")
        .example("kube:tailbone-state")
        .help(
            "Where the node's state is kept: dir, mem (gone with the process, ephemeral nodes \
             only), or kube:NAME of a Kubernetes secret",
        );
    CLIENT_SECRET = row("server.tailscale.clientSecret", ValueKind::Secret)
        .flag("ts-client-secret", FlagScope::Start)
        .example("file:/run/secrets/client")
        .help("OAuth client secret to join with instead of an auth key; requires tags");
    CLIENT_ID = row("server.tailscale.clientId", ValueKind::Text)
        .flag("ts-client-id", FlagScope::Start)
        .default("")
        .example("k123456CNTRL")
        .help(
            "Client id of a federated identity to join with, together with an ID token or an \
             audience; requires tags",
        );
    ID_TOKEN = row("server.tailscale.idToken", ValueKind::Secret)
        .flag("ts-id-token", FlagScope::Start)
        .example("file:/run/secrets/id-token")
        .help("ID token of that identity, or file:PATH of a file that contains it");
    AUDIENCE = row("server.tailscale.audience", ValueKind::Text)
        .flag("ts-audience", FlagScope::Start)
        .default("")
        .help(
            "Audience to request a token for from the cloud's own token endpoint, instead of an \
             ID token",
        );
    EPHEMERAL = row("server.tailscale.ephemeral", ValueKind::Bool)
        .flag("ts-ephemeral", FlagScope::Start)
        .default("false")
        .help("Let the control server remove the node when it goes away");
    TAGS = row("server.tailscale.tags", ValueKind::Words(&[]))
        .flag("ts-tags", FlagScope::Start)
        .example("tag:tailbone")
        .help("Tags that the node requests, separated by commas or blanks");
    JOIN_TIMEOUT = row(
        "server.tailscale.joinTimeout",
        legacy_duration(Duration::from_millis(100), DAY),
    )
        .flag("ts-join-timeout", FlagScope::Start)
        .default("60s")
        .help("Time limit for joining the tailnet");
    JOIN_RETRY = row("server.tailscale.joinRetry", legacy_duration(Duration::from_millis(10), HOUR))
        .flag("ts-join-retry", FlagScope::Start)
        .default("1s")
        .help("Pause between two attempts to join");
    WAIT_FOR_DIR = row("server.tailscale.waitForDir", ValueKind::Bool)
        .flag("ts-wait-for-dir", FlagScope::Start)
        .default("false")
        .help(
            "Keep trying while the state directory cannot be created or written, for a volume \
             that is mounted later; otherwise the start fails at once",
        );
    UPLOAD_LOGS = row("server.tailscale.uploadLogs", ValueKind::Bool)
        .flag("ts-upload-logs", FlagScope::Start)
        .default("false")
        .help("Send the node's own log to Tailscale");
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TailscaleSettings {
    /// Needed only if there is no state yet.
    pub authkey: Option<Secret>,
    pub dir: PathBuf,
    pub hostname: String,
    pub control_url: Option<String>,
    pub state: StateStore,
    pub client_secret: Option<Secret>,
    pub client_id: Option<String>,
    pub id_token: Option<Secret>,
    pub audience: Option<String>,
    pub ephemeral: bool,
    pub tags: Vec<String>,
    pub join_timeout: Duration,
    pub join_retry: Duration,
    pub wait_for_dir: bool,
    pub upload_logs: bool,
}

/// What the settings hold; defaults for the rest.
impl From<&TailscaleSettings> for Config {
    fn from(settings: &TailscaleSettings) -> Self {
        Self {
            hostname: settings.hostname.clone(),
            dir: settings.dir.clone(),
            auth_key: settings.authkey.clone(),
            control_url: settings.control_url.clone(),
            ephemeral: settings.ephemeral,
            tags: settings.tags.clone(),
            store: settings.state.clone(),
            client_secret: settings.client_secret.clone(),
            client_id: settings.client_id.clone(),
            id_token: settings.id_token.clone(),
            audience: settings.audience.clone(),
            upload_logs: settings.upload_logs,
            ..Self::default()
        }
    }
}

impl TailscaleSettings {
    pub(in crate::config) fn reload(&self, new: &Self, reloaded: &mut Reloaded) {
        let Self {
            dir,
            hostname,
            control_url,
            state,
            ephemeral,
            tags,
            upload_logs,
            // How the node joins. It has joined; a change matters at the next start.
            authkey: _,
            client_secret: _,
            client_id: _,
            id_token: _,
            audience: _,
            join_timeout: _,
            join_retry: _,
            wait_for_dir: _,
        } = new;
        let name = "server.tailscale";
        reloaded.leave(name, &self.dir, dir);
        reloaded.leave(name, &self.hostname, hostname);
        reloaded.leave(name, &self.control_url, control_url);
        reloaded.leave(name, &self.state, state);
        reloaded.leave(name, &self.ephemeral, ephemeral);
        reloaded.leave(name, &self.tags, tags);
        reloaded.leave(name, &self.upload_logs, upload_logs);
    }
}

impl SettingsReader<'_> {
    pub(in crate::config) fn tailscale(&mut self, purpose: Purpose) -> Option<TailscaleSettings> {
        // Housekeeping joins no tailnet, so a secret that it cannot read is no mistake there.
        let mut secret = |row| match purpose {
            Purpose::Housekeeping => Some(None),
            Purpose::Start => self.secret(row),
        };
        let authkey = secret(&AUTHKEY);
        let client_secret = secret(&CLIENT_SECRET);
        let id_token = secret(&ID_TOKEN);
        let client_id = self.optional_text(&CLIENT_ID);
        let audience = self.optional_text(&AUDIENCE);
        let state = self.read(&STATE, state);
        let dir = self.path(&DIR);
        let hostname = self.read(&HOSTNAME, hostname);
        let control_url = self.url(&CONTROL_URL);
        let ephemeral = self.bool(&EPHEMERAL);
        let tags = self.words(&TAGS, tag);
        let join_timeout = self.duration(&JOIN_TIMEOUT);
        let join_retry = self.duration(&JOIN_RETRY);
        let wait_for_dir = self.bool(&WAIT_FOR_DIR);
        let upload_logs = self.bool(&UPLOAD_LOGS);
        let ignored = match purpose {
            Purpose::Housekeeping => &[][..],
            Purpose::Start => &self.raw.unread_variables,
        };
        for (name, row) in ignored {
            self.warn(
                ValueOrigin::Variable((*name).to_owned()),
                format!("not read; for the node it is {}", row.variable()),
            );
        }
        if state == Some(StateStore::Memory) && ephemeral == Some(false) {
            self.mistake(
                &STATE,
                Some("mem".into()),
                "a node whose state is only in memory must be ephemeral: set server.tailscale.ephemeral"
                    .into(),
            );
            return None;
        }
        Some(TailscaleSettings {
            authkey: authkey?,
            dir: dir?,
            hostname: hostname?,
            control_url: control_url?,
            state: state?,
            client_secret: client_secret?,
            client_id: client_id?,
            id_token: id_token?,
            audience: audience?,
            ephemeral: ephemeral?,
            tags: tags?,
            join_timeout: join_timeout?,
            join_retry: join_retry?,
            wait_for_dir: wait_for_dir?,
            upload_logs: upload_logs?,
        })
    }
}

fn state(input: &str, origin: &ValueOrigin) -> Result<ParsedValue<StateStore>, String> {
    text(input, origin)?.try_map(|text| {
        Ok(match text.as_str() {
            "dir" => StateStore::Dir,
            "mem" => StateStore::Memory,
            other => match other.strip_prefix("kube:") {
                Some(name) if !name.is_empty() => StateStore::Kube(name.to_owned()),
                _ => return Err("not a place for state; there are dir, mem and kube:NAME".into()),
            },
        })
    })
}

fn hostname(input: &str, origin: &ValueOrigin) -> Result<ParsedValue<String>, String> {
    let reading = text(input, origin)?;
    let name = &reading.value;
    if name.is_empty() {
        return Err("an empty host name".into());
    }
    if name.len() > 63 {
        return Err("longer than a host name can be (63 bytes)".into());
    }
    let shown = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    let warning = (!shown).then(|| {
        "contains other characters than letters, digits and -: the control server gives the node another name"
            .to_owned()
    });
    Ok(reading.with_warning(warning))
}

fn tag(word: &str) -> Result<String, String> {
    let name = word
        .strip_prefix("tag:")
        .ok_or_else(|| format!("not a tag; did you mean tag:{word}?"))?;
    let fine = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if fine {
        Ok(word.to_owned())
    } else {
        Err("not a tag: tag: and a letter, then letters, digits and -".into())
    }
}
