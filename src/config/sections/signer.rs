//! `keys.signer`, `keys.remote.*` and a group for each signing service: where new keys are made,
//! and how to reach the services that keep them.
//!
//! A service whose settings are here signs with the keys that it already has, also while
//! `keys.signer` names another place for new ones.

use std::{sync::Arc, time::Duration};

use tailbone_keys::remote::{
    KeyService, RemoteLimits, RemoteServices, ServiceKind,
    awskms::{AwsKms, AwsKmsSettings},
    azure::{KeyVault, KeyVaultSettings},
    pkcs11::{Pkcs11Settings, Token},
    vault::{Vault, VaultSettings, VaultToken},
};
use url::Url;

use crate::config::{
    RawValue,
    parse::{ParsedValue, text},
    read::SettingsReader,
    report::ValueOrigin,
    table::{FlagScope, HOUR, ValueKind, count, duration, row, rows},
};

rows! {
    SIGNER = row("keys.signer", ValueKind::Word(&["local", "vault", "awskms", "azure", "pkcs11"]))
        .flag("signer", FlagScope::Server)
        .default("local")
        .help(
            "Where new keys are made: in keys.dir, or by a signing service that never hands \
             them out",
        );
    CONCURRENCY = row("keys.remote.concurrency", count(1, 4096))
        .flag("signer-concurrency", FlagScope::Server)
        .default("64")
        .help("Most signatures that a signing service is asked for at one time");
    TIMEOUT = row("keys.remote.timeout", duration(Duration::from_millis(100), HOUR))
        .flag("signer-timeout", FlagScope::Server)
        .default("3s")
        .help("How long a caller waits for a signing service, repeated calls included");
    VAULT_ADDRESS = row("keys.vault.address", ValueKind::Url)
        .flag("vault-address", FlagScope::Server)
        .example("https://vault.example.com:8200")
        .help("Address of HashiCorp Vault or OpenBao");
    VAULT_MOUNT = row("keys.vault.mount", ValueKind::Text)
        .flag("vault-mount", FlagScope::Server)
        .default("transit")
        .help("Path at which the transit engine is mounted there");
    VAULT_KEY = row("keys.vault.key", ValueKind::Text)
        .flag("vault-key", FlagScope::Server)
        .default("tailbone-{algorithm}")
        .help(
            "Name of the transit key; {algorithm} in it stands for rs256 and the like. It is made \
             if there is none",
        );
    VAULT_NAMESPACE = row("keys.vault.namespace", ValueKind::Text)
        .flag("vault-namespace", FlagScope::Server)
        .example("team/prod")
        .help("Namespace of the transit engine");
    VAULT_TOKEN = row("keys.vault.token", ValueKind::Secret)
        .flag("vault-token", FlagScope::Server)
        .example("file:/run/vault/token")
        .help("Token for the service; a file is read again when the service refuses its token");
    VAULT_CA_FILE = row("keys.vault.caFile", ValueKind::Path)
        .flag("vault-ca-file", FlagScope::Server)
        .example("/etc/vault/ca.crt")
        .help("Certificates (PEM) to trust for that address, beside those of the system");
    AWSKMS_REGION = row("keys.awskms.region", ValueKind::Text)
        .flag("awskms-region", FlagScope::Server)
        .example("eu-central-1")
        .help("Region of AWS KMS; if empty, AWS's usual configuration applies");
    AWSKMS_ENDPOINT = row("keys.awskms.endpoint", ValueKind::Url)
        .flag("awskms-endpoint", FlagScope::Server)
        .example("https://kms.example.com")
        .help("Address of another service with the interface of AWS KMS");
    AZURE_VAULT = row("keys.azure.vault", ValueKind::Url)
        .flag("azure-vault", FlagScope::Server)
        .example("https://acme.vault.azure.net")
        .help("Address of the Azure Key Vault that keeps the keys");
    AZURE_KEY = row("keys.azure.key", ValueKind::Text)
        .flag("azure-key", FlagScope::Server)
        .default("tailbone-{algorithm}")
        .help("Name of its key, whose versions sign; {algorithm} in it stands for rs256 and the like");
    PKCS11_MODULE = row("keys.pkcs11.module", ValueKind::Path)
        .flag("pkcs11-module", FlagScope::Server)
        .example("/usr/lib/softhsm/libsofthsm2.so")
        .help("Shared library of the device's vendor");
    PKCS11_TOKEN = row("keys.pkcs11.token", ValueKind::Text)
        .flag("pkcs11-token", FlagScope::Server)
        .example("tailbone")
        .help("Label of the token that keeps the keys");
    PKCS11_PIN = row("keys.pkcs11.pin", ValueKind::Secret)
        .flag("pkcs11-pin", FlagScope::Server)
        .example("file:/run/secrets/pin")
        .help("PIN of that token's user");
    PKCS11_SESSIONS = row("keys.pkcs11.sessions", count(1, 64))
        .flag("pkcs11-sessions", FlagScope::Server)
        .default("4")
        .help("Sessions with the token, each on a thread of its own");
}

/// Where new keys are made, and the signing services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SignerSettings {
    /// Makes new keys; `None`: they are made in the key directory.
    pub maker: Option<ServiceKind>,
    pub limits: RemoteLimits,
    pub vault: Option<VaultSettings>,
    /// Needs no setting, since AWS's usual configuration may say everything.
    pub awskms: AwsKmsSettings,
    pub azure: Option<KeyVaultSettings>,
    pub pkcs11: Option<Pkcs11Settings>,
}

impl SignerSettings {
    /// The services. Connects to nothing yet.
    pub fn services(&self) -> RemoteServices {
        let mut services: Vec<Arc<dyn KeyService>> = Vec::new();
        if let Some(vault) = &self.vault {
            services.push(Arc::new(Vault::new(vault.clone())));
        }
        if let Some(azure) = &self.azure {
            services.push(Arc::new(KeyVault::new(azure.clone())));
        }
        if let Some(pkcs11) = &self.pkcs11 {
            services.push(Arc::new(Token::new(pkcs11.clone())));
        }
        services.push(Arc::new(AwsKms::new(self.awskms.clone())));
        let maker = self
            .maker
            .and_then(|maker| services.iter().position(|service| service.kind() == maker))
            .map(|at| services.remove(at));
        RemoteServices::new(maker, services, self.limits)
    }
}

impl SettingsReader<'_> {
    pub(in crate::config) fn signer(&mut self) -> Option<SignerSettings> {
        let maker = self.word(&SIGNER);
        let concurrency = self.count(&CONCURRENCY);
        let timeout = self.duration(&TIMEOUT);
        let vault = self.vault(maker == Some("vault"));
        let azure = self.azure(maker == Some("azure"));
        let pkcs11 = self.pkcs11(maker == Some("pkcs11"));
        let region = self.optional_text(&AWSKMS_REGION);
        let endpoint = self.url(&AWSKMS_ENDPOINT);
        Some(SignerSettings {
            maker: match maker? {
                "awskms" => Some(ServiceKind::AwsKms),
                "azure" => Some(ServiceKind::Azure),
                "pkcs11" => Some(ServiceKind::Pkcs11),
                "vault" => Some(ServiceKind::Vault),
                _ => None,
            },
            limits: RemoteLimits {
                concurrency: usize::try_from(concurrency?).unwrap_or(usize::MAX),
                timeout: timeout?,
            },
            vault: vault?,
            awskms: AwsKmsSettings {
                endpoint: endpoint?,
                region: region?,
            },
            azure: azure?,
            pkcs11: pkcs11?,
        })
    }

    fn vault(&mut self, needed: bool) -> Option<Option<VaultSettings>> {
        let address = self.url(&VAULT_ADDRESS);
        let mount = self.read(&VAULT_MOUNT, mount);
        let key = self.read(&VAULT_KEY, transit_key);
        let namespace = self.optional_text(&VAULT_NAMESPACE);
        let token = self.vault_token();
        let ca_file = self.optional_path(&VAULT_CA_FILE);
        let Some(address) = address? else {
            if needed {
                self.mistake(&SIGNER, None, "vault needs keys.vault.address too".into());
                return None;
            }
            return Some(None);
        };
        let Some(token) = token? else {
            let origin = self.lookup(&VAULT_ADDRESS).origin;
            if needed {
                self.mistake(&SIGNER, None, "vault needs keys.vault.token too".into());
                return None;
            }
            self.warn(origin, "has no effect without keys.vault.token".into());
            return Some(None);
        };
        Some(Some(VaultSettings {
            // It was checked to be one when it was read.
            address: Url::parse(&address).ok()?,
            mount: mount?,
            key: key?,
            namespace: namespace?,
            token,
            ca_file: ca_file?,
        }))
    }

    fn azure(&mut self, needed: bool) -> Option<Option<KeyVaultSettings>> {
        let vault = self.url(&AZURE_VAULT);
        let key = self.read(&AZURE_KEY, vault_key);
        let (vault, key) = (vault?, key?);
        if vault.is_none() && needed {
            self.mistake(&SIGNER, None, "azure needs keys.azure.vault too".into());
            return None;
        }
        Some(vault.map(|vault| KeyVaultSettings { vault, key }))
    }

    fn pkcs11(&mut self, needed: bool) -> Option<Option<Pkcs11Settings>> {
        let module = self.optional_path(&PKCS11_MODULE);
        let token = self.optional_text(&PKCS11_TOKEN);
        let pin = self.secret_with_blanks(&PKCS11_PIN);
        let sessions = self.count(&PKCS11_SESSIONS);
        let (module, token, pin, sessions) = (module?, token?, pin?, sessions?);
        let (Some(module), Some(token), Some(pin)) = (module, token, pin) else {
            if needed {
                let sentence =
                    "pkcs11 needs keys.pkcs11.module, keys.pkcs11.token and keys.pkcs11.pin too";
                self.mistake(&SIGNER, None, sentence.into());
                return None;
            }
            return Some(None);
        };
        Some(Some(Pkcs11Settings {
            module,
            token,
            pin,
            sessions: usize::try_from(sessions).unwrap_or(usize::MAX),
        }))
    }

    /// The secret, or the file that holds it and is read again later.
    fn vault_token(&mut self) -> Option<Option<VaultToken>> {
        let given = self.lookup(&VAULT_TOKEN);
        let secret = self.secret(&VAULT_TOKEN)?;
        Some(secret.map(|secret| match given.value {
            RawValue::Text(text) => match text.strip_prefix("file:") {
                Some(path) => VaultToken::File(path.into()),
                None => VaultToken::Fixed(secret),
            },
            RawValue::List(_) => VaultToken::Fixed(secret),
        }))
    }
}

fn mount(input: &str, origin: &ValueOrigin) -> Result<ParsedValue<String>, String> {
    let parsed = text(input, origin)?.map(|text| text.trim_matches('/').to_owned());
    let fine = |part: &str| !part.is_empty() && part != "." && part != "..";
    if parsed.value.split('/').all(fine) {
        Ok(parsed)
    } else {
        Err("not a path such as transit".into())
    }
}

fn vault_key(input: &str, origin: &ValueOrigin) -> Result<ParsedValue<String>, String> {
    let parsed = text(input, origin)?;
    if is_vault_name(&parsed.value.replace("{algorithm}", "rs256")) {
        Ok(parsed)
    } else {
        Err("not the name of a vault key: letters, digits or -".into())
    }
}

/// What Azure Key Vault takes as the name of a key or secret.
pub(super) fn is_vault_name(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-';
    (1..=127).contains(&name.len()) && name.chars().all(fine)
}

fn transit_key(input: &str, origin: &ValueOrigin) -> Result<ParsedValue<String>, String> {
    let parsed = text(input, origin)?;
    let name = parsed.value.replace("{algorithm}", "rs256");
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let ends = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.starts_with(ends) && name.ends_with(ends) && name.chars().all(fine) {
        Ok(parsed)
    } else {
        Err("not the name of a transit key: letters, digits, _, - or .".into())
    }
}
