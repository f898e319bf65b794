//! `workload.*`: tokens for machines that clouds trust.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tailbone_identity::{AudiencePattern, SubjectTemplate};
use tailbone_keys::{
    Algorithm, KeyPolicy, KeySpec, KeyStore,
    azure::{
        AzureClient, AzureIdentity, InvalidVault, SecretPerKey, SingleSecret, VaultSettings,
        WrappedKeyFile, WrappingKey,
    },
    jwks::KeySet,
    tsiam::{KeyFile, KeySource},
};
use tailbone_telemetry::meter::Meter;

use super::{
    keys::{KeyPace, KeySettings, Publish, PublishRows},
    signer::is_vault_name,
};
use crate::config::{
    RuleSource,
    listen::Listen,
    parse::{ParsedValue, text},
    read::SettingsReader,
    reload::Reloaded,
    table::{
        FlagScope, HOUR, MINUTE, Row, ValueKind, YEAR, duration, duration_or_off, row, rows,
    },
};

/// The last two are named as in tsiam.
const STORAGES: &[&str] = &[
    "dir",
    "memory",
    "AzureKeyVaultKeys",
    "AzureKeyVaultSecrets",
];

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
    KEYS_STORAGE = row("workload.keys.storage", ValueKind::Word(STORAGES))
        .flag("workload-keys-storage", FlagScope::Start)
        .default("dir")
        .help(
            "Where private keys are kept: in workload.keys.dir; in memory, gone with the process; \
             in the directory, encrypted with a key of Azure Key Vault; or as its secrets",
        );
    KEYS_TAKE_OVER = row("workload.keys.takeOver", ValueKind::Text)
        .flag("workload-keys-take-over", FlagScope::Start)
        .default("")
        .example("/var/lib/tsiam/key.json")
        .help(
            "tsiam's key file; its key is copied once, keeps its id and signs first. With \
             AzureKeyVaultSecrets the vault has it",
        );
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
    AZURE_VAULT = row("workload.keys.azure.vault", ValueKind::Url)
        .flag("workload-keys-azure-vault", FlagScope::Start)
        .example("https://acme.vault.azure.net")
        .help("Address of the Azure Key Vault of workload.keys.storage");
    AZURE_NAME = row("workload.keys.azure.name", ValueKind::Text)
        .flag("workload-keys-azure-name", FlagScope::Start)
        .default("")
        .example("tsiam-key")
        .help(
            "Name of its key; or what the names of its secrets begin with, and in whole the \
             secret of tsiam, which is taken over",
        );
    AZURE_TENANT = row("workload.keys.azure.tenantId", ValueKind::Text)
        .flag("workload-keys-azure-tenant-id", FlagScope::Start)
        .default("")
        .example("11111111-2222-3333-4444-555555555555")
        .help(
            "Tenant of the application that may use the vault; without tenant, client and secret, \
             Azure's own variables or the machine's managed identity apply",
        );
    AZURE_CLIENT = row("workload.keys.azure.clientId", ValueKind::Text)
        .flag("workload-keys-azure-client-id", FlagScope::Start)
        .default("")
        .example("66666666-7777-8888-9999-000000000000")
        .help("Id of that application");
    AZURE_CLIENT_SECRET = row("workload.keys.azure.clientSecret", ValueKind::Secret)
        .flag("workload-keys-azure-client-secret", FlagScope::Start)
        .example("file:/run/secrets/azure")
        .help("Its secret, or file:PATH of a file that contains it");
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

/// Where the private halves of workload keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkloadKeyStorage {
    Dir,
    /// Nothing is written, neither keys nor their document.
    Memory,
    /// In the directory, encrypted with this key of a vault.
    VaultKey(VaultSettings),
    /// In the vault's secrets whose names begin with this one.
    VaultSecrets(VaultSettings),
}

/// The key set of workload tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadKeySettings {
    pub dir: PathBuf,
    pub storage: WorkloadKeyStorage,
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
        let pace = KeyPace {
            cache_time: keys.cache_time,
            skew: keys.skew,
            rotate_every: keys.rotate_every,
        };
        // The longest life that any audience may have.
        pace.policy(HOUR)
    }
}

impl WorkloadKeySettings {
    /// The keys at their place of publication. Reads nothing yet, and asks no vault.
    pub fn set(&self) -> Result<KeySet, InvalidVault> {
        self.set_counted_by(&Meter::default())
    }

    /// With calls of the vault counted there.
    pub fn set_counted_by(&self, meter: &Meter) -> Result<KeySet, InvalidVault> {
        let (name, policy) = ("workload", KeyPolicy::from(self));
        let store = KeyStore::new(&self.dir);
        let file = self.take_over.as_deref();
        let (store, source): (KeyStore, Option<Arc<dyn KeySource>>) = match &self.storage {
            WorkloadKeyStorage::Dir => {
                let source = file.map(|file| -> Arc<dyn KeySource> { Arc::new(KeyFile::new(file)) });
                (store, source)
            }
            WorkloadKeyStorage::Memory => {
                let (prefix, default) = (&self.prefix, self.default);
                let set = KeySet::in_memory(name, &policy, prefix, default, &self.specs);
                return Ok(set);
            }
            WorkloadKeyStorage::VaultKey(vault) => {
                let key = WrappingKey::new(vault, &AzureClient::default())?;
                let source = file.map(|file| -> Arc<dyn KeySource> {
                    Arc::new(WrappedKeyFile::new(file, key.clone()))
                });
                (store.with_sealing(Arc::new(key)), source)
            }
            WorkloadKeyStorage::VaultSecrets(vault) => {
                let secrets = SecretPerKey::new(vault, &AzureClient::default())?;
                let source: Arc<dyn KeySource> = Arc::new(SingleSecret::new(secrets.clone()));
                (store.with_sealing(Arc::new(secrets)), Some(source))
            }
        };
        let set = KeySet::new(
            name,
            store.counted_by(meter),
            self.publish.publisher(self.cache_time),
            &policy,
            &self.prefix,
            self.default,
            &self.specs,
        );
        Ok(match source {
            Some(source) => set.taking_over(source),
            None => set,
        })
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
        let name = self.issuer_url(&ISSUER);
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
    pub(super) fn issuer_url(&mut self, row: &'static Row) -> Option<Option<String>> {
        let given = self.url(row)?.filter(|url| !url.is_empty());
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
        self.mistake(row, Some(issuer), sentence.into());
        None
    }

    fn workload_keys(
        &mut self,
        algorithm: Algorithm,
        issuer: Option<&KeySettings>,
        on: bool,
    ) -> Option<WorkloadKeySettings> {
        let dir = self.path(&KEYS_DIR);
        let storage = self.workload_key_storage(on);
        let take_over = self.optional_path(&KEYS_TAKE_OVER);
        let algorithms = self.words(&KEYS_ALGORITHMS, |word| {
            word.parse::<Algorithm>().map_err(|error| error.to_string())
        });
        let rotate_every = self.duration(&KEYS_ROTATE_EVERY);
        let publish = self.publish(&PLACE, dir.as_deref());
        let bits = self.key_size();
        let (dir, publish, issuer) = (dir?, publish?, issuer?);
        let (mut algorithms, rotate_every, bits) = (algorithms?, rotate_every?, bits?);
        let (storage, take_over) = (storage?, take_over?);
        algorithms.sort_unstable();
        algorithms.dedup();
        if algorithms.is_empty() {
            self.mistake(&KEYS_ALGORITHMS, None, "no algorithm, so nothing could sign".into());
        }
        self.refuse_early_rotation(&KEYS_ROTATE_EVERY, rotate_every, issuer.cache_time);
        if on && matches!(storage, WorkloadKeyStorage::VaultSecrets(_)) && take_over.is_some() {
            let sentence = "with the storage AzureKeyVaultSecrets the key of tsiam is in the \
                            vault, as the secret workload.keys.azure.name, and not in a file";
            self.mistake(&KEYS_TAKE_OVER, None, sentence.into());
        }
        if on && storage == WorkloadKeyStorage::Memory {
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
            storage,
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

    /// `on`: what the storage needs must be there.
    fn workload_key_storage(&mut self, on: bool) -> Option<WorkloadKeyStorage> {
        let storage = self.word(&KEYS_STORAGE);
        let vault = self.workload_vault(on);
        let (storage, vault) = (storage?, vault?);
        let in_vault = match storage {
            "AzureKeyVaultKeys" => WorkloadKeyStorage::VaultKey,
            "AzureKeyVaultSecrets" => WorkloadKeyStorage::VaultSecrets,
            "memory" => return Some(WorkloadKeyStorage::Memory),
            _ => return Some(WorkloadKeyStorage::Dir),
        };
        if on {
            let (missing_vault, missing_name) = (vault.vault.is_empty(), vault.name.is_empty());
            for (row, missing) in [(&AZURE_VAULT, missing_vault), (&AZURE_NAME, missing_name)] {
                if missing {
                    let sentence = format!("{storage} needs {} too", row.key);
                    self.mistake(&KEYS_STORAGE, None, sentence);
                }
            }
        }
        Some(in_vault(vault))
    }

    /// With empty texts for what is not set.
    fn workload_vault(&mut self, on: bool) -> Option<VaultSettings> {
        let vault = self.url(&AZURE_VAULT);
        let name = self.read(&AZURE_NAME, |input, origin| {
            let name = text(input, origin)?;
            if name.value.is_empty() || is_vault_name(&name.value) {
                Ok(name)
            } else {
                Err("not a name of a vault: letters, digits or -".into())
            }
        });
        let tenant = self.optional_text(&AZURE_TENANT);
        let client = self.optional_text(&AZURE_CLIENT);
        let secret = self.secret(&AZURE_CLIENT_SECRET);
        let vault = vault?.unwrap_or_default();
        if on && !vault.is_empty() && !vault.starts_with("https://") {
            let sentence = "a vault is asked over https alone";
            self.mistake(&AZURE_VAULT, Some(vault.clone()), sentence.into());
        }
        let identity = match (tenant?, client?, secret?) {
            (Some(tenant), Some(client), Some(secret)) => AzureIdentity::Secret {
                tenant,
                client,
                secret,
            },
            (None, None, None) => AzureIdentity::Environment,
            _ => {
                for row in [&AZURE_TENANT, &AZURE_CLIENT, &AZURE_CLIENT_SECRET] {
                    if on && self.is_set(row) {
                        let origin = self.lookup(row).origin;
                        let sentence = "has no effect without the two others of tenantId, \
                                        clientId and clientSecret: the environment says who this \
                                        server is to Azure";
                        self.warn(origin, sentence.into());
                    }
                }
                AzureIdentity::Environment
            }
        };
        Some(VaultSettings {
            vault,
            name: name?,
            identity,
        })
    }
}
