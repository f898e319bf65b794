//! `keys.*` and `key.prefix`: the signing keys, the tokens they sign, and where their public halves
//! are published.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tailbone_keys::{
    KeyPolicy, KeyStore,
    jwks::{FilePublisher, Publisher, S3Publisher, S3Settings, life::KeyLife},
};
use tailbone_telemetry::meter::Meter;

use super::workload;
use crate::config::{
    KeySpec, RSA_SIZES, SignerSettings,
    duration::format,
    parse::{ParsedValue, integer, octal_warning, text},
    read::SettingsReader,
    reload::Reloaded,
    report::ValueOrigin,
    table::{
        DAY, DefaultValue, FlagScope, HOUR, MINUTE, MONTH, Row, ValueKind, YEAR, duration,
        duration_or_off, legacy_duration, row, rows,
    },
};

rows! {
    DIR = row("keys.dir", ValueKind::Path)
        .flag("dir", FlagScope::Server)
        .flag("dir", FlagScope::Keys)
        .default("keys")
        .help("Directory of the signing keys");
    BUCKET = row("keys.bucket", ValueKind::Text)
        .flag("bucket", FlagScope::Server)
        .default("")
        .example("acme-jwks")
        .help(
            "S3 bucket where the JWKS is published; if empty, it is published in a file",
        );
    KEY_PATH = row("keys.keyPath", ValueKind::Text)
        .flag("key-path", FlagScope::Server)
        .default(".well-known/jwks.json")
        .help("Name of the JWKS object in the bucket");
    S3_ENDPOINT = row("keys.s3.endpoint", ValueKind::Url)
        .flag("s3-endpoint", FlagScope::Server)
        .example("https://s3.example.com")
        .help(
            "Address of an S3-compatible store; if empty, AWS's usual configuration applies",
        );
    S3_PATH_STYLE = row("keys.s3.pathStyle", ValueKind::Bool)
        .flag("s3-path-style", FlagScope::Server)
        .default("false")
        .help("Put the bucket into the path instead of the host name");
    JWKS_FILE = row("keys.jwksFile", ValueKind::Path)
        .flag("jwks-file", FlagScope::Server)
        .derived("jwks.json in keys.dir, unless there is a bucket")
        .example("/srv/www/jwks.json")
        .help("File where the JWKS is published");
    ISSUER = row("keys.issuer", ValueKind::Text)
        .flag("issuer", FlagScope::Start)
        .default("tailbone")
        .help("The iss claim; omitted from tokens if empty");
    EXPIRY = row("keys.expiry", legacy_duration(Duration::from_secs(1), MONTH))
        .flag("expiry", FlagScope::Server)
        .default("20m")
        .help("Lifetime of a token, in whole seconds");
    ALGORITHM = row("keys.algorithm", ValueKind::Word(&["RS256", "ES256", "ES384", "ES512", "EdDSA"]))
        .flag("key-algorithm", FlagScope::Server)
        .flag("algorithm", FlagScope::Make)
        .default("RS256")
        .help(
            "Algorithm of new keys; a Go server on the same directory only signs with RS256",
        );
    SIZE = row("keys.size", ValueKind::Size(RSA_SIZES))
        .flag("key-size", FlagScope::Server)
        .short("size", 's', FlagScope::Make)
        .default("2048")
        .help("Bits of a new RSA key: 2048, 3072 or 4096");
    ROTATE_EVERY = row("keys.rotateEvery", duration_or_off(MINUTE, YEAR))
        .flag("rotate-every", FlagScope::Server)
        .default("off")
        .example("720h")
        .help("Age at which the signing key gets a successor, or off");
    CACHE_TIME = row("keys.cacheTime", duration(Duration::ZERO, DAY))
        .flag("cache-time", FlagScope::Server)
        .default("5m")
        .help("How long verifiers may keep the JWKS; a new key waits this long before it signs");
    SKEW = row("keys.skew", duration(Duration::ZERO, HOUR))
        .flag("clock-skew", FlagScope::Server)
        .default("1m")
        .help("How far verifiers' clocks may be off");
    PREFIX = row("key.prefix", ValueKind::Text)
        .flag("key-prefix", FlagScope::Server)
        .default("tb")
        .help("First part of a new key's id: letters, digits, underscore, dot");
}

/// Signing keys and where their public halves are published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySettings {
    pub dir: PathBuf,
    pub token: TokenSettings,
    /// First part of a new key's id.
    pub prefix: String,
    /// `keys.algorithm` and, for RSA, `keys.size`: what a new key is.
    pub spec: KeySpec,
    /// Where new keys are made, and the services that keep keys.
    pub signer: SignerSettings,
    /// Age at which the signing key gets a successor; `None` turns this off.
    pub rotate_every: Option<Duration>,
    /// How long verifiers may keep the JWKS; a new key waits this long before it signs.
    pub cache_time: Duration,
    pub publish: Publish,
}

/// What all tokens of the issuer have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSettings {
    /// The `iss` claim; omitted from tokens if empty.
    pub issuer: String,
    /// The time from `iat` to `exp`, in whole seconds.
    pub expiry: Duration,
    /// How far verifiers' clocks may be off: a token's `nbf` is this long before its `iat`.
    pub skew: Duration,
}

/// Where the JWKS is published for verifiers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publish {
    /// `keys.jwksFile`; the default is `jwks.json` in `keys.dir`.
    File { path: PathBuf },
    /// `keys.bucket`, `keys.keyPath`, `keys.s3.endpoint`, `keys.s3.pathStyle`
    S3 {
        bucket: String,
        key_path: String,
        endpoint: Option<String>,
        path_style: bool,
    },
}

/// The rows that say where a key set is published.
pub(super) struct PublishRows {
    pub(super) bucket: &'static Row,
    pub(super) key_path: &'static Row,
    pub(super) file: &'static Row,
}

const PLACE: PublishRows = PublishRows {
    bucket: &BUCKET,
    key_path: &KEY_PATH,
    file: &JWKS_FILE,
};

impl From<&KeySettings> for KeyPolicy {
    fn from(keys: &KeySettings) -> Self {
        keys.pace().policy(keys.token.expiry)
    }
}

/// How fast the keys of a set follow each other, whatever their tokens are.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyPace {
    pub(super) cache_time: Duration,
    pub(super) skew: Duration,
    pub(super) rotate_every: Option<Duration>,
}

impl KeyPace {
    /// `token_life` is the longest life of a token.
    pub(super) fn policy(self, token_life: Duration) -> KeyPolicy {
        let Self {
            cache_time,
            skew,
            rotate_every,
        } = self;
        KeyPolicy {
            token_life,
            cache_time,
            skew,
            rotate_every,
            withdrawn_grace: DAY,
        }
    }
}

impl Publish {
    /// The publisher for this place; verifiers may keep what is there for `cache_time`.
    pub fn publisher(&self, cache_time: Duration) -> Arc<dyn Publisher> {
        match self {
            Self::File { path } => Arc::new(FilePublisher::new(path)),
            Self::S3 {
                bucket,
                key_path,
                endpoint,
                path_style,
            } => Arc::new(S3Publisher::new(&S3Settings {
                bucket: bucket.clone(),
                key_path: key_path.clone(),
                endpoint: endpoint.clone(),
                path_style: *path_style,
                cache_time,
            })),
        }
    }
}

impl KeySettings {
    fn pace(&self) -> KeyPace {
        KeyPace {
            cache_time: self.cache_time,
            skew: self.token.skew,
            rotate_every: self.rotate_every,
        }
    }

    /// The keys of `keys.dir` at their place of publication. Reads nothing yet.
    pub fn life(&self) -> KeyLife {
        self.life_counted_by(&Meter::default())
    }

    /// With calls of signing services counted there.
    pub fn life_counted_by(&self, meter: &Meter) -> KeyLife {
        KeyLife::new(
            KeyStore::new(&self.dir),
            self.publisher(),
            KeyPolicy::from(self),
            &self.prefix,
            self.spec,
        )
        .with_remote(self.signer.services().counted_by(meter))
    }

    /// The publisher for the place that the settings name.
    pub fn publisher(&self) -> Arc<dyn Publisher> {
        self.publish.publisher(self.cache_time)
    }

    pub(in crate::config) fn reload(&mut self, new: &Self, reloaded: &mut Reloaded) {
        let Self {
            dir,
            token:
                TokenSettings {
                    issuer,
                    expiry,
                    skew,
                },
            prefix,
            spec,
            signer,
            rotate_every,
            cache_time,
            publish,
        } = new;
        reloaded.apply(ISSUER.key, &mut self.token.issuer, issuer);
        reloaded.apply(EXPIRY.key, &mut self.token.expiry, expiry);
        reloaded.apply(SKEW.key, &mut self.token.skew, skew);
        reloaded.apply(ROTATE_EVERY.key, &mut self.rotate_every, rotate_every);
        reloaded.leave(DIR.key, &self.dir, dir);
        let places = "keys.bucket, keys.jwksFile, keys.keyPath or keys.s3";
        reloaded.leave(places, &self.publish, publish);
        reloaded.leave("keys.algorithm or keys.size", &self.spec, spec);
        let services = "keys.signer, keys.remote or a signing service";
        reloaded.leave(services, &self.signer, signer);
        reloaded.leave(PREFIX.key, &self.prefix, prefix);
        reloaded.leave(CACHE_TIME.key, &self.cache_time, cache_time);
    }
}

impl SettingsReader<'_> {
    pub(in crate::config) fn keys(&mut self) -> Option<KeySettings> {
        let dir = self.path(&DIR);
        let issuer = self.read(&ISSUER, text);
        let expiry = self.whole_seconds(&EXPIRY);
        let prefix = self.read(&PREFIX, prefix);
        let algorithm = self.key_algorithm();
        let bits = self.key_size();
        let signer = self.signer();
        let rotate_every = self.duration(&ROTATE_EVERY);
        let cache_time = self.duration(&CACHE_TIME);
        let skew = self.duration(&SKEW);
        let publish = self.publish(&PLACE, dir.as_deref());
        if let Some(Publish::File { .. }) = publish
            && !self.is_set(&workload::KEYS_BUCKET)
        {
            for row in [&S3_ENDPOINT, &S3_PATH_STYLE] {
                if self.is_set(row) {
                    let origin = self.lookup(row).origin;
                    self.warn(origin, "has no effect without keys.bucket".into());
                }
            }
        }
        if let (Some(every), Some(cache)) = (rotate_every, cache_time) {
            self.refuse_early_rotation(&ROTATE_EVERY, every, cache);
        }
        let bits = bits?;
        Some(KeySettings {
            dir: dir?,
            token: TokenSettings {
                issuer: issuer?,
                expiry: expiry?,
                skew: skew?,
            },
            prefix: prefix?,
            spec: match algorithm? {
                "ES256" => KeySpec::Es256,
                "ES384" => KeySpec::Es384,
                "ES512" => KeySpec::Es512,
                "EdDSA" => KeySpec::EdDsa,
                _ => KeySpec::Rs256 { bits },
            },
            signer: signer?,
            rotate_every: Some(rotate_every?).filter(|every| !every.is_zero()),
            cache_time: cache_time?,
            publish: publish?,
        })
    }

    /// A key must not be replaced before it signs. Zero is off.
    pub(super) fn refuse_early_rotation(
        &mut self,
        row: &'static Row,
        every: Duration,
        cache_time: Duration,
    ) {
        if every.is_zero() || every > cache_time {
            return;
        }
        let sentence = format!(
            "a new key waits {} (keys.cacheTime) before it signs, so it would be replaced before \
             it signs",
            format(cache_time)
        );
        self.mistake(row, Some(format(every)), sentence);
    }

    /// The algorithm of new keys, in its proper spelling.
    pub(in crate::config) fn key_algorithm(&mut self) -> Option<&'static str> {
        self.word(&ALGORITHM)
    }

    pub(in crate::config) fn key_size(&mut self) -> Option<u32> {
        self.read(&SIZE, size)
    }

    /// Where a key set is published. The address of the S3 store is the same for all of them.
    pub(super) fn publish(
        &mut self,
        rows: &PublishRows,
        keys_dir: Option<&Path>,
    ) -> Option<Publish> {
        let bucket = self.read(rows.bucket, bucket);
        let key_path = self.read(rows.key_path, |input, origin| {
            let mut reading = text(input, origin)?;
            if reading.value.is_empty()
                && let DefaultValue::Text(default) = rows.key_path.default
            {
                reading.value = default.to_owned();
                reading.shown = default.into();
            }
            Ok(reading)
        });
        let endpoint = self.url(&S3_ENDPOINT);
        let path_style = self.bool(&S3_PATH_STYLE);
        let (bucket, key_path, endpoint, path_style) = (bucket?, key_path?, endpoint?, path_style?);
        if bucket.is_empty() {
            let path = if self.is_set(rows.file) {
                self.path(rows.file)?
            } else {
                let path = keys_dir?.join("jwks.json");
                self.derived(rows.file, &path.display().to_string());
                path
            };
            return Some(Publish::File { path });
        }
        if self.is_set(rows.file) {
            let other = self
                .raw
                .given(rows.bucket)
                .map_or_else(String::new, |input| format!(" ({})", input.origin));
            self.mistake(
                rows.file,
                None,
                format!(
                    "{}{other} is set too: the JWKS is published in one place",
                    rows.bucket.key
                ),
            );
            return None;
        }
        Some(Publish::S3 {
            bucket,
            key_path,
            endpoint,
            path_style,
        })
    }
}

fn size(input: &str, _: &ValueOrigin) -> Result<ParsedValue<u32>, String> {
    let size = integer(input)
        .and_then(|number| u32::try_from(number).ok())
        .filter(|size| RSA_SIZES.contains(size))
        .ok_or("not the size of an RSA key: 2048, 3072 or 4096")?;
    Ok(ParsedValue::new(size, size).with_warning(octal_warning(input, i64::from(size))))
}

fn prefix(input: &str, origin: &ValueOrigin) -> Result<ParsedValue<String>, String> {
    let reading = text(input, origin)?;
    let prefix = &reading.value;
    if prefix.contains('-') {
        return Err(
            "a - in the prefix makes key ids that cannot be read back: the time is what follows \
             the first -"
                .into(),
        );
    }
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    if prefix.is_empty() || prefix.len() > 64 || !prefix.chars().all(fine) {
        return Err("not a prefix: 1 to 64 letters, digits, _ or .".into());
    }
    Ok(reading)
}

fn bucket(input: &str, origin: &ValueOrigin) -> Result<ParsedValue<String>, String> {
    let reading = text(input, origin)?;
    if reading.value.contains("://") || reading.value.contains(char::is_whitespace) {
        return Err("not the name of a bucket; write the name alone".into());
    }
    Ok(reading)
}
