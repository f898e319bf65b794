//! `workload.*`: tokens for machines that clouds trust.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tailbone_identity::{AudiencePattern, SubjectTemplate};
use tailbone_keys::{
    Algorithm, KeyPolicy, KeySpec, KeyStore,
    jwks::KeySet,
    tsiam::KeyFile,
};

use super::keys::{KeySettings, Publish, PublishRows};
use crate::config::{
    RuleSource,
    duration::format,
    listen::Listen,
    parse::{ParsedValue, text},
    read::SettingsReader,
    reload::Reloaded,
    table::{
        DAY, FlagScope, HOUR, MINUTE, ValueKind, YEAR, duration, duration_or_off, row, rows,
    },
};

const ALGORITHMS: &[&str] = &["RS256", "ES256", "ES384", "ES512", "EdDSA"];

rows! {
    LISTEN = row("workload.listen", ValueKind::Words(&[]))
        .flag("workload-listen", FlagScope::Start)
        .default("tailnet+tls://:443")
        .example("tailnet+tls://:443,funnel://:443")
        .help(
            "Where workload tokens are issued, separated by commas or blanks; clouds need Funnel, \
             or the published keys; docs/reference/listeners.md lists the forms",
        );
    ISSUER = row("workload.issuer", ValueKind::Url)
        .flag("workload-issuer", FlagScope::Start)
        .derived("https:// and the node's full name, which must then never change")
        .example("https://tokens.example.com")
        .help("The iss claim, at which clouds find the keys");
    AUDIENCES = row("workload.audiences", ValueKind::Words(&[]))
        .flag("workload-audiences", FlagScope::Start)
        .flag("workload-audiences", FlagScope::Policy)
        .example("sts.amazonaws.com,https://*.example.com")
        .help("Audiences that tokens may have, with * for any text; if empty, rules and grants alone decide");
    POLICY = row("workload.policy", ValueKind::Text)
        .flag("workload-policy", FlagScope::Start)
        .flag("workload-policy", FlagScope::Policy)
        .default("")
        .example("/etc/tailbone/workload.toml")
        .help("File with rules about callers and audiences; without it the tailnet's grants decide");
    CAPABILITY = row("workload.capability", ValueKind::Text)
        .flag("workload-capability", FlagScope::Start)
        .flag("workload-capability", FlagScope::Policy)
        .default(tailbone_identity::policy::WORKLOAD_CAPABILITY)
        .help("Capability whose grants are evaluated before the file");
    ALLOW_WITHOUT_GRANT = row("workload.allowWithoutGrant", ValueKind::Bool)
        .flag("workload-allow-without-grant", FlagScope::Start)
        .flag("workload-allow-without-grant", FlagScope::Policy)
        .default("false")
        .help(
            "Callers of the tailnet to whom no rule and no grant applies get tokens for every \
             audience of workload.audiences",
        );
    LIFETIME = row("workload.lifetime", duration(MINUTE, HOUR))
        .flag("workload-lifetime", FlagScope::Start)
        .default("5m")
        .help("Lifetime of a token, in whole seconds; the file of rules may say another for an audience");
    ALGORITHM = row("workload.algorithm", ValueKind::Word(ALGORITHMS))
        .flag("workload-algorithm", FlagScope::Start)
        .default("RS256")
        .help("Algorithm of tokens; the file of rules may say another for an audience");
    SUBJECT = row("workload.subject", ValueKind::Text)
        .flag("workload-subject", FlagScope::Start)
        .default("{id}")
        .example("spiffe://{tailnet}/node/{id}")
        .help(
            "The sub claim, made of {id} (stable), {name}, {label}, {tag}, {user} and {tailnet} \
             of the caller",
        );
    CAP_MAP = row("workload.capMap", ValueKind::Bool)
        .flag("workload-cap-map", FlagScope::Start)
        .default("false")
        .help("Put all capabilities of the caller into its tokens, as tsiam does");
    KEYS_DIR = row("workload.keys.dir", ValueKind::Path)
        .flag("workload-keys-dir", FlagScope::Start)
        .default("workload-keys")
        .help("Directory of the keys for workload tokens");
    KEYS_STORAGE = row("workload.keys.storage", ValueKind::Word(&["dir", "memory"]))
        .flag("workload-keys-storage", FlagScope::Start)
        .default("dir")
        .help(
            "Where these keys are kept: dir is workload.keys.dir; in memory they are gone with \
             the process, and each start makes new ones",
        );
    KEYS_TAKE_OVER = row("workload.keys.takeOver", ValueKind::Text)
        .flag("workload-keys-take-over", FlagScope::Start)
        .default("")
        .example("/var/lib/tsiam/key.json")
        .help("tsiam's key file; its key is copied once, keeps its id and signs first");
    KEYS_ALGORITHMS = row("workload.keys.algorithms", ValueKind::Words(ALGORITHMS))
        .flag("workload-keys-algorithms", FlagScope::Start)
        .default("RS256,ES256")
        .help("Algorithms for which there is a key");
    KEYS_ROTATE_EVERY = row("workload.keys.rotateEvery", duration_or_off(MINUTE, YEAR))
        .flag("workload-keys-rotate-every", FlagScope::Start)
        .default("off")
        .example("720h")
        .help("Age at which each of these keys gets a successor, or off");
    KEYS_BUCKET = row("workload.keys.bucket", ValueKind::Text)
        .flag("workload-keys-bucket", FlagScope::Start)
        .default("")
        .example("acme-workload-jwks")
        .help("S3 bucket where these keys are published; if empty, they are published in a file");
    KEYS_KEY_PATH = row("workload.keys.keyPath", ValueKind::Text)
        .flag("workload-keys-key-path", FlagScope::Start)
        .default("workload/.well-known/jwks.json")
        .help("Name of the JWKS object in that bucket");
    KEYS_JWKS_FILE = row("workload.keys.jwksFile", ValueKind::Path)
        .flag("workload-keys-jwks-file", FlagScope::Start)
        .derived("jwks.json in workload.keys.dir, unless there is a bucket")
        .example("/srv/www/workload-jwks.json")
        .help("File where these keys are published");
}

const PLACE: PublishRows = PublishRows {
    bucket: &KEYS_BUCKET,
    key_path: &KEYS_KEY_PATH,
    file: &KEYS_JWKS_FILE,
};

/// Tokens for machines.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkloadSettings {
    pub listen: Vec<Listen>,
    /// `None`: the node's name says it.
    pub issuer: Option<String>,
    pub audiences: Vec<AudiencePattern>,
    pub rules: RuleSource,
    pub allow_without_grant: bool,
    pub lifetime: Duration,
    pub algorithm: Algorithm,
    pub subject: SubjectTemplate,
    pub cap_map: bool,
    pub keys: WorkloadKeySettings,
}

/// The key set of workload tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadKeySettings {
    pub dir: PathBuf,
    /// Nothing is written, neither keys nor their document.
    pub in_memory: bool,
    /// The key file of the tsiam that is replaced.
    pub take_over: Option<PathBuf>,
    /// One key for each.
    pub specs: Vec<KeySpec>,
    /// That of `workload.algorithm`.
    pub default: KeySpec,
    pub publish: Publish,
    /// First part of a new key's id.
    pub prefix: String,
    pub rotate_every: Option<Duration>,
    /// As for the keys of the issuer.
    pub cache_time: Duration,
    pub skew: Duration,
}

impl From<&WorkloadKeySettings> for KeyPolicy {
    fn from(keys: &WorkloadKeySettings) -> Self {
        Self {
            // The longest life that any audience may have.
            token_life: HOUR,
            cache_time: keys.cache_time,
            skew: keys.skew,
            rotate_every: keys.rotate_every,
            withdrawn_grace: DAY,
        }
    }
}

impl WorkloadKeySettings {
    /// The keys at their place of publication. Reads nothing yet.
    pub fn set(&self) -> KeySet {
        let (name, policy) = ("workload", KeyPolicy::from(self));
        if self.in_memory {
            return KeySet::in_memory(name, &policy, &self.prefix, self.default, &self.specs)
                .in_real_time();
        }
        let set = KeySet::new(
            name,
            KeyStore::new(&self.dir),
            self.publish.publisher(self.cache_time),
            &policy,
            &self.prefix,
            self.default,
            &self.specs,
        )
        .in_real_time();
        match &self.take_over {
            Some(file) => set.taking_over(Arc::new(KeyFile::new(file))),
            None => set,
        }
    }
}

impl WorkloadSettings {
    pub(in crate::config) fn reload(&mut self, new: &Self, reloaded: &mut Reloaded) {
        let Self {
            listen,
            issuer,
            audiences,
            rules,
            allow_without_grant,
            lifetime,
            algorithm,
            subject,
            cap_map,
            keys,
        } = new;
        reloaded.apply(AUDIENCES.key, &mut self.audiences, audiences);
        let allow = &mut self.allow_without_grant;
        reloaded.apply(ALLOW_WITHOUT_GRANT.key, allow, allow_without_grant);
        reloaded.apply(LIFETIME.key, &mut self.lifetime, lifetime);
        reloaded.apply(SUBJECT.key, &mut self.subject, subject);
        reloaded.apply(CAP_MAP.key, &mut self.cap_map, cap_map);
        reloaded.leave(LISTEN.key, &self.listen, listen);
        reloaded.leave(ISSUER.key, &self.issuer, issuer);
        let rows = "workload.policy or workload.capability";
        reloaded.leave(rows, &self.rules, rules);
        reloaded.leave(ALGORITHM.key, &self.algorithm, algorithm);
        reloaded.leave("workload.keys", &self.keys, keys);
    }
}

impl SettingsReader<'_> {
    /// `issuer` has what the key sets have in common; `on`: the component is switched on.
    pub(in crate::config) fn workload(
        &mut self,
        issuer: Option<&KeySettings>,
        on: bool,
    ) -> Option<WorkloadSettings> {
        let listen = self.words(&LISTEN, Listen::parse);
        let name = self.issuer_url();
        let audiences = self.workload_audiences();
        let rules = self.workload_rules();
        let allow_without_grant = self.workload_allow_without_grant();
        let lifetime = self.whole_seconds(&LIFETIME);
        let algorithm = self.word(&ALGORITHM).and_then(|word| word.parse().ok());
        let subject = self.read(&SUBJECT, |input, _| {
            let template = SubjectTemplate::parse(input.trim())?;
            let shown = template.to_string();
            Ok(ParsedValue::new(template, shown))
        });
        let cap_map = self.bool(&CAP_MAP);
        let keys = algorithm.and_then(|algorithm| self.workload_keys(algorithm, issuer, on));
        let (audiences, allow_without_grant) = (audiences?, allow_without_grant?);
        let (algorithm, keys) = (algorithm?, keys?);
        if on && allow_without_grant && audiences.is_empty() {
            let sentence = "every caller would get tokens for every audience: list those that \
                            are meant in workload.audiences";
            self.mistake(&ALLOW_WITHOUT_GRANT, None, sentence.into());
        }
        if on && !keys.specs.iter().any(|spec| spec.algorithm() == algorithm) {
            let sentence = format!("there is no key for {algorithm} (workload.algorithm)");
            self.mistake(&KEYS_ALGORITHMS, None, sentence);
        }
        Some(WorkloadSettings {
            listen: listen?,
            issuer: name?,
            audiences,
            rules: rules?,
            allow_without_grant,
            lifetime: lifetime?,
            algorithm,
            subject: subject?,
            cap_map: cap_map?,
            keys,
        })
    }

    pub(in crate::config) fn workload_rules(&mut self) -> Option<RuleSource> {
        let file = self.optional_path(&POLICY);
        let capability = self.read(&CAPABILITY, text);
        Some(RuleSource {
            file: file?,
            capability: capability?,
        })
    }

    pub(in crate::config) fn workload_audiences(&mut self) -> Option<Vec<AudiencePattern>> {
        // An audience may contain a comma.
        self.whole_words(&AUDIENCES, AudiencePattern::parse)
    }

    pub(in crate::config) fn workload_allow_without_grant(&mut self) -> Option<bool> {
        self.bool(&ALLOW_WITHOUT_GRANT)
    }

    /// An https address without query and fragment (RFC 8414, section 2), as it was written.
    fn issuer_url(&mut self) -> Option<Option<String>> {
        let given = self.url(&ISSUER)?.filter(|url| !url.is_empty());
        let Some(issuer) = given else {
            return Some(None);
        };
        let fits = url::Url::parse(&issuer).is_ok_and(|url| {
            url.scheme() == "https" && url.query().is_none() && url.fragment().is_none()
        });
        if fits {
            return Some(Some(issuer));
        }
        let sentence = "not an https address without query, which an issuer's name is";
        self.mistake(&ISSUER, Some(issuer), sentence.into());
        None
    }

    fn workload_keys(
        &mut self,
        algorithm: Algorithm,
        issuer: Option<&KeySettings>,
        on: bool,
    ) -> Option<WorkloadKeySettings> {
        let dir = self.path(&KEYS_DIR);
        let in_memory = self.word(&KEYS_STORAGE).map(|word| word == "memory");
        let take_over = self.optional_path(&KEYS_TAKE_OVER);
        let algorithms = self.words(&KEYS_ALGORITHMS, |word| {
            word.parse::<Algorithm>().map_err(|error| error.to_string())
        });
        let rotate_every = self.duration(&KEYS_ROTATE_EVERY);
        let publish = self.publish(&PLACE, dir.as_deref());
        let bits = self.key_size();
        let (dir, publish, issuer) = (dir?, publish?, issuer?);
        let (mut algorithms, rotate_every, bits) = (algorithms?, rotate_every?, bits?);
        let (in_memory, take_over) = (in_memory?, take_over?);
        algorithms.sort_unstable();
        algorithms.dedup();
        if algorithms.is_empty() {
            self.mistake(&KEYS_ALGORITHMS, None, "no algorithm, so nothing could sign".into());
        }
        if !rotate_every.is_zero() && rotate_every <= issuer.cache_time {
            let sentence = format!(
                "a new key waits {} (keys.cacheTime) before it signs, so it would be replaced \
                 before it signs",
                format(issuer.cache_time)
            );
            self.mistake(&KEYS_ROTATE_EVERY, Some(format(rotate_every)), sentence);
        }
        if on && in_memory {
            for row in [&KEYS_BUCKET, &KEYS_JWKS_FILE, &KEYS_TAKE_OVER] {
                if self.is_set(row) {
                    let sentence = "has no effect on keys in memory (workload.keys.storage), \
                                    which this process alone knows: keep one of the two";
                    self.mistake(row, None, sentence.into());
                }
            }
        }
        if on && dir == issuer.dir {
            let sentence = "the keys of the issuer are there (keys.dir): each set needs its own";
            self.mistake(&KEYS_DIR, Some(dir.display().to_string()), sentence.into());
        }
        if on && publish == issuer.publish {
            let row = match publish {
                Publish::File { .. } => &KEYS_JWKS_FILE,
                Publish::S3 { .. } => &KEYS_KEY_PATH,
            };
            let sentence = "the keys of the issuer are published there: each set needs its place";
            self.mistake(row, None, sentence.into());
        }
        Some(WorkloadKeySettings {
            dir,
            in_memory,
            take_over,
            default: KeySpec::new(algorithm, bits),
            specs: algorithms.into_iter().map(|one| KeySpec::new(one, bits)).collect(),
            publish,
            prefix: issuer.prefix.clone(),
            rotate_every: Some(rotate_every).filter(|every| !every.is_zero()),
            cache_time: issuer.cache_time,
            skew: issuer.token.skew,
        })
    }
}
