//! tsiam's config file: where it is found, what it says in our settings, and what is refused.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde_json::{Value as Json, json};
use tailbone::{
    config::WorkloadKeyStorage,
    keys::{Algorithm, KeySpec, PrivateJwk, azure::AzureIdentity},
};
use tempfile::TempDir;

use super::{Ran, load, remarks, run, show};

/// Has every key of tsiam's table.
const WHOLE: &str = "\
tsnet:
  hostname: tokens
  authKey: tskey-auth-hush
  stateDir: /var/lib/tsiam/node
  ephemeral: true
  funnel: yes
logs:
  level: WARN
  omitHealthChecks: true
  json: true
tokens:
  lifetime: 1h0m0.5s
  allowedAudiences:
    - sts.amazonaws.com
    - ' https://a.example.com/* '
    - 'x, y'
    - 'a\\b'
  allowEmptyNodeCapability: true
signingKey:
  storage: File
  algorithm: EdDSA
  curve: Ed25519
  file:
    storagePath: /nowhere/tsiam/key.json
  azureKeyVaultKeys:
    vaultUrl: ''
    keyName: ''
    storagePath: ''
    tenantId: ''
    clientId: ''
    clientSecret: ''
  azureKeyVaultSecrets:
    vaultUrl: ''
    secretName: ''
    tenantId:
    clientId:
    clientSecret:
";

const SMALL: &str = "\
tokens: {allowedAudiences: [sts.amazonaws.com]}
signingKey: {file: {storagePath: /nowhere/tsiam/key.json}}
";

/// With a storage in Azure Key Vault, and every key of its group.
fn in_azure(storage: &str, group: &str, more: &str) -> String {
    format!(
        "tokens: {{allowedAudiences: [a]}}\nsigningKey:\n  storage: {storage}\n  {group}:\n    \
         vaultUrl: https://acme.vault.azure.net/\n    {more}\n    tenantId: t\n    clientId: c\n    \
         clientSecret: azure-hush\n"
    )
}

fn wrapped() -> String {
    let more = "keyName: wrapper\n    storagePath: /nowhere/tsiam/key.bin";
    in_azure("azurekeyvaultkeys", "azureKeyVaultKeys", more)
}

fn secrets() -> String {
    let more = "secretName: tsiam-key";
    in_azure("AzureKeyVaultSecrets", "azureKeyVaultSecrets", more)
}

/// tsiam's file in a directory of its own.
struct Tsiam {
    dir: TempDir,
    path: PathBuf,
}

impl Tsiam {
    fn new(text: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, text).unwrap();
        Self { dir, path }
    }

    fn at(&self) -> &str {
        self.path.to_str().unwrap()
    }

    fn variables(&self) -> [(&str, &str); 2] {
        [("TB_COMPONENTS", "workload"), ("TSIAM_CONFIG", self.at())]
    }

    fn show(&self) -> BTreeMap<String, (Json, String)> {
        self.show_with(&[])
    }

    fn show_with(&self, more: &[(&str, &str)]) -> BTreeMap<String, (Json, String)> {
        let variables: Vec<_> = self.variables().iter().chain(more).copied().collect();
        show(&[], &variables)
    }

    /// `config check`, with the directory's name taken out of the messages.
    fn check(&self) -> Ran {
        let mut ran = run(&["config", "check"], &self.variables());
        ran.err = ran.err.replace(self.dir.path().to_str().unwrap(), "DIR");
        ran
    }
}

/// What a file with `text` in the place of one of [`SMALL`]'s groups is refused with.
fn refusal(text: &str) -> String {
    let ran = Tsiam::new(text).check();
    assert_eq!(ran.code, 64, "{text}: {}", ran.err);
    ran.err
}

#[test]
fn every_key_is_a_setting_whose_origin_names_it() {
    let tsiam = Tsiam::new(WHOLE);
    let shown = tsiam.show();
    for (key, value, theirs) in [
        (
            "server.tailscale.hostname",
            json!("tokens"),
            "tsnet.hostname",
        ),
        (
            "server.tailscale.authkey",
            json!("(hidden)"),
            "tsnet.authKey",
        ),
        (
            "server.tailscale.dir",
            json!("/var/lib/tsiam/node"),
            "tsnet.stateDir",
        ),
        ("server.tailscale.ephemeral", json!(true), "tsnet.ephemeral"),
        (
            "workload.listen",
            json!(["tailnet+tls://:443", "funnel://:443"]),
            "tsnet.funnel",
        ),
        ("log.level", json!("warn"), "logs.level"),
        ("log.format", json!("json"), "logs.json"),
        ("workload.lifetime", json!("1h"), "tokens.lifetime"),
        (
            "workload.audiences",
            json!([
                "sts.amazonaws.com",
                "https://a.example.com/\\*",
                "x, y",
                "a\\\\b"
            ]),
            "tokens.allowedAudiences",
        ),
        (
            "workload.allowWithoutGrant",
            json!(true),
            "tokens.allowEmptyNodeCapability",
        ),
        ("workload.algorithm", json!("EdDSA"), "signingKey.algorithm"),
        (
            "workload.keys.algorithms",
            json!(["EdDSA"]),
            "signingKey.algorithm",
        ),
        (
            "workload.keys.dir",
            json!("/nowhere/tsiam/workload-keys"),
            "signingKey.file.storagePath",
        ),
        (
            "workload.keys.takeOver",
            json!("/nowhere/tsiam/key.json"),
            "signingKey.file.storagePath",
        ),
        (
            "workload.subject",
            json!("{name}"),
            "the sub claim of tsiam",
        ),
    ] {
        let origin = format!("file {}: {theirs}", tsiam.at());
        assert_eq!(shown[key], (value, origin), "{key}");
    }
    assert_eq!(
        tsiam.check().err,
        "Using config file: DIR/config.yaml\nThe settings are fine\n"
    );
}

#[test]
fn keys_in_azure_key_vault_are_found_where_tsiam_has_them() {
    for (text, group, name, value) in [
        (wrapped(), "azureKeyVaultKeys", "keyName", "wrapper"),
        (secrets(), "azureKeyVaultSecrets", "secretName", "tsiam-key"),
    ] {
        let tsiam = Tsiam::new(&text);
        let shown = tsiam.show();
        for (key, value, theirs) in [
            ("vault", "https://acme.vault.azure.net/", "vaultUrl"),
            ("name", value, name),
            ("tenantId", "t", "tenantId"),
            ("clientId", "c", "clientId"),
            ("clientSecret", "(hidden)", "clientSecret"),
        ] {
            let origin = format!("file {}: signingKey.{group}.{theirs}", tsiam.at());
            let key = format!("workload.keys.azure.{key}");
            assert_eq!(shown[&key], (json!(value), origin), "{key}");
        }
        assert_eq!(
            tsiam.check().err,
            "Using config file: DIR/config.yaml\nThe settings are fine\n"
        );
        let keys = load(&tsiam.variables()).unwrap().workload.keys;
        let (WorkloadKeyStorage::VaultKey(vault) | WorkloadKeyStorage::VaultSecrets(vault)) =
            &keys.storage
        else {
            panic!("{:?}", keys.storage);
        };
        assert_eq!(vault.name, value);
        let AzureIdentity::Secret { secret, .. } = &vault.identity else {
            panic!("{vault:?}");
        };
        assert_eq!(secret.reveal(), "azure-hush");
        assert!(!format!("{keys:?}").contains("hush"));
        keys.set().unwrap();
    }
    let shown = Tsiam::new(&wrapped()).show();
    assert_eq!(shown["workload.keys.storage"].0, "AzureKeyVaultKeys");
    assert_eq!(shown["workload.keys.takeOver"].0, "/nowhere/tsiam/key.bin");
    assert_eq!(shown["workload.keys.dir"].0, "/nowhere/tsiam/workload-keys");
    // tsiam keeps no file here, so the directory is in the node's.
    let tsiam = Tsiam::new(&format!("{}tsnet: {{stateDir: /var/lib/t}}\n", secrets()));
    let shown = tsiam.show();
    assert_eq!(shown["workload.keys.storage"].0, "AzureKeyVaultSecrets");
    assert_eq!(shown["workload.keys.takeOver"].0, "");
    assert_eq!(shown["workload.keys.dir"].0, "/var/lib/t/workload-keys");
}

#[test]
fn without_an_application_the_environment_says_who_the_server_is_to_azure() {
    let all = secrets();
    let environment = |text: &str| {
        let tsiam = Tsiam::new(text);
        let keys = load(&tsiam.variables()).unwrap().workload.keys;
        let WorkloadKeyStorage::VaultSecrets(vault) = keys.storage else {
            panic!("{:?}", keys.storage);
        };
        assert_eq!(vault.identity, AzureIdentity::Environment);
        tsiam.check().err
    };
    let none = all.replace("tenantId: t", "tenantId: ''");
    let none = none.replace("clientId: c", "clientId:");
    let none = none.replace("clientSecret: azure-hush", "clientSecret: ''");
    assert!(!environment(&none).contains("Warning"));
    // tsiam says nothing here.
    let told = environment(&all.replace("tenantId: t", "tenantId: ''"));
    for key in ["clientId", "clientSecret"] {
        let words = format!("signingKey.azureKeyVaultSecrets.{key}: has no effect without");
        assert!(told.contains(&words), "{told}");
    }
}

#[test]
fn what_a_vault_needs_is_asked_for() {
    let variables = [
        ("TB_COMPONENTS", "workload"),
        ("TB_WORKLOAD_KEYS_STORAGE", "AzureKeyVaultSecrets"),
    ];
    let with = |more: &[(&'static str, &'static str)]| {
        let variables: Vec<_> = variables.iter().chain(more).copied().collect();
        remarks(&variables).1
    };
    let needs = "TB_WORKLOAD_KEYS_STORAGE: AzureKeyVaultSecrets needs workload.keys.azure";
    assert_eq!(
        with(&[]),
        [format!("{needs}.vault too"), format!("{needs}.name too")]
    );
    let vault = ("TB_WORKLOAD_KEYS_AZURE_VAULT", "https://a.vault.azure.net");
    let name = ("TB_WORKLOAD_KEYS_AZURE_NAME", "tsiam-key");
    assert_eq!(with(&[vault, name]), [""; 0]);
    for (more, words) in [
        (
            [vault, ("TB_WORKLOAD_KEYS_AZURE_NAME", "a_b")],
            "TB_WORKLOAD_KEYS_AZURE_NAME=a_b: not a name of a vault",
        ),
        (
            [("TB_WORKLOAD_KEYS_AZURE_VAULT", "http://a.example"), name],
            "TB_WORKLOAD_KEYS_AZURE_VAULT=http://a.example: a vault is asked over https alone",
        ),
    ] {
        let told = with(&more);
        assert!(told.len() == 1 && told[0].starts_with(words), "{told:?}");
    }
    let told = with(&[vault, name, ("TB_WORKLOAD_KEYS_TAKEOVER", "key.json")]);
    let words = "TB_WORKLOAD_KEYS_TAKEOVER: with the storage AzureKeyVaultSecrets";
    assert!(told.len() == 1 && told[0].starts_with(words), "{told:?}");
    // What a component that is off would need is not.
    assert_eq!(remarks(&variables[1..]).1, [""; 0]);
}

#[test]
fn the_defaults_are_those_of_tsiam() {
    let tsiam = Tsiam::new(SMALL);
    let shown = tsiam.show();
    let state = tsiam.dir.path().join("tsnet");
    for (key, value, theirs) in [
        ("server.tailscale.hostname", "tsiam", "tsnet.hostname"),
        (
            "server.tailscale.dir",
            state.to_str().unwrap(),
            "tsnet.stateDir",
        ),
        ("workload.lifetime", "5m", "tokens.lifetime"),
        ("workload.algorithm", "ES256", "signingKey.algorithm"),
    ] {
        let origin = format!("file {}: {theirs} (tsiam's default)", tsiam.at());
        assert_eq!(shown[key], (json!(value), origin), "{key}");
    }
    for (key, value) in [
        ("server.tailscale.ephemeral", json!(false)),
        ("workload.allowWithoutGrant", json!(false)),
        ("workload.listen", json!(["tailnet+tls://:443"])),
        ("workload.capMap", json!(false)),
        ("log.level", json!("info")),
        ("log.format", json!("console")),
    ] {
        assert_eq!(shown[key], (value, "default".into()), "{key}");
    }
}

#[test]
fn flags_and_variables_win_over_the_file() {
    let tsiam = Tsiam::new(WHOLE);
    let shown = tsiam.show_with(&[
        ("TB_WORKLOAD_SUBJECT", "{id}"),
        ("TS_AUTHKEY", "tskey-other"),
    ]);
    assert_eq!(
        shown["workload.subject"],
        (json!("{id}"), "variable TB_WORKLOAD_SUBJECT".into())
    );
    assert!(
        shown["server.tailscale.authkey"]
            .1
            .ends_with("tsnet.authKey")
    );
    // tsnet reads its own variable where the file has no key.
    let shown = Tsiam::new(SMALL).show_with(&[("TS_AUTH_KEY", "tskey-other")]);
    assert_eq!(shown["server.tailscale.authkey"].1, "variable TS_AUTH_KEY");
}

#[test]
fn the_file_is_found_in_the_home_directory_too() {
    let home = TempDir::new().unwrap();
    let at = home.path().to_str().unwrap();
    std::fs::create_dir(home.path().join(".tsiam")).unwrap();
    let path = home.path().join(".tsiam/config.yml");
    std::fs::write(&path, SMALL).unwrap();
    let variables = [("TB_COMPONENTS", "workload"), ("HOME", at)];
    let shown = show(&[], &variables);
    assert_eq!(shown["server.tailscale.hostname"].0, "tsiam");
    // An empty variable counts as unset, as in tsiam.
    let unset = [variables[0], variables[1], ("TSIAM_CONFIG", "")];
    assert_eq!(show(&[], &unset), shown);
    // Without the component nothing of tsiam is read.
    for components in ["issuer,admin", "gate"] {
        let shown = show(
            &[],
            &[
                ("TB_COMPONENTS", components),
                ("HOME", at),
                ("TSIAM_CONFIG", "/nowhere"),
            ],
        );
        assert_eq!(shown["server.tailscale.hostname"].0, "tailbone");
    }
}

#[test]
fn a_variable_that_names_no_file_is_a_mistake() {
    for path in ["/nowhere/config.yaml", "/tmp"] {
        let ran = run(
            &["config", "check"],
            &[("TB_COMPONENTS", "workload"), ("TSIAM_CONFIG", path)],
        );
        assert_eq!(ran.code, 64);
        let start = format!("Error: TSIAM_CONFIG={path}: no such file; ");
        assert!(ran.err.starts_with(&start), "{}", ran.err);
    }
}

#[test]
fn a_file_of_ours_comes_first() {
    let tsiam = Tsiam::new(SMALL);
    let home = TempDir::new().unwrap();
    let ours = home.path().join(".tailbone.toml");
    std::fs::write(&ours, "components = 'workload'\n").unwrap();
    let variables = [
        ("HOME", home.path().to_str().unwrap()),
        ("TSIAM_CONFIG", tsiam.at()),
    ];
    let ran = run(&["config", "show"], &variables);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let told = format!(
        "Warning: TSIAM_CONFIG: not read, since the settings are in {}\n",
        ours.display()
    );
    assert!(ran.err.contains(&told), "{}", ran.err);
    assert!(!ran.out.contains("tsiam"), "{}", ran.out);
}

#[test]
fn a_file_that_is_named_is_known_by_its_keys() {
    let tsiam = Tsiam::new(SMALL);
    // It says which component is meant.
    let shown = show(&["--config", tsiam.at()], &[]);
    assert_eq!(shown["components"].0, json!(["workload"]));
    assert_eq!(shown["server.tailscale.hostname"].0, "tsiam");
    let other = run(
        &[
            "config",
            "check",
            "--config",
            tsiam.at(),
            "--components",
            "issuer",
        ],
        &[],
    );
    assert_eq!(other.code, 64);
    assert!(
        other.err.contains("add workload to the components"),
        "{}",
        other.err
    );

    let both = refusal("tokens: {lifetime: 5m}\nkeys: {dir: x}\n");
    assert!(
        both.contains("DIR/config.yaml: has keys of tsiam (tokens) and of tailbone (keys)"),
        "{both}"
    );
    let ours = refusal("keys: {dir: x}\n");
    assert!(
        ours.contains("has settings of tailbone, not of tsiam: name it with --config"),
        "{ours}"
    );
}

#[test]
fn the_reader_is_as_strict_as_tsiam() {
    for (text, expected) in [
        ("", "DIR/config.yaml: is empty"),
        ("[1]", "DIR/config.yaml: contains no settings"),
        ("tsnet: [\n", "DIR/config.yaml: is not YAML"),
        (
            "tsnet: {hostname: a, hostname: b}",
            "DIR/config.yaml: is not YAML, or has a key twice",
        ),
        (
            "tsnet: {authkey: tskey-hush}",
            "tsnet.authkey: tsiam has no such setting; did you mean tsnet.authKey?",
        ),
        ("tsnet: {}\ntags: [a]", "tags: tsiam has no such setting"),
        (
            "tsnet.hostname: a\ntsnet: {}",
            "tsnet.hostname: tsiam has no such setting",
        ),
        ("tsnet: tskey-hush", "tsnet: is a group of settings"),
        (
            "tsnet: {authKey: [tskey-hush]}",
            "tsnet.authKey: one value is expected",
        ),
        ("tsnet: {funnel: maybe}", "tsnet.funnel: not true or false"),
        (
            "tsnet: {ephemeral: 1}",
            "tsnet.ephemeral: not true or false",
        ),
        (
            "logs: {level: loud}",
            "logs.level=loud: not one of debug, info, warn, error",
        ),
        (
            "tokens: {lifetime: 300}",
            "tokens.lifetime: a number without a unit",
        ),
        (
            "tokens: {lifetime: 0}",
            "tokens.lifetime: a number without a unit",
        ),
        (
            "tokens: {lifetime: soon}",
            "tokens.lifetime=soon: not a duration",
        ),
        (
            "tokens: {lifetime: 59.9s}",
            "tokens.lifetime=59.9s: must be at least 1 minute",
        ),
        (
            "tokens: {lifetime: -5m}",
            "tokens.lifetime=-5m: must be at least 1 minute",
        ),
        (
            "tokens: {lifetime: 1h1s}",
            "tokens.lifetime=1h1s: must not be more than 60 minutes",
        ),
        (
            "tokens: {}",
            "tokens.allowedAudiences: must contain at least one audience",
        ),
        (
            "tokens: {allowedAudiences: []}",
            "must contain at least one audience",
        ),
        (
            "tokens: {allowedAudiences: a}",
            "tokens.allowedAudiences: not a list",
        ),
        (
            "tokens: {allowedAudiences: [[a]]}",
            "tokens.allowedAudiences: a list of texts",
        ),
        (
            "tokens: {allowedAudiences: [a, ' ']}",
            "contains an empty audience",
        ),
        (
            "signingKey: {storage: disk}",
            "signingKey.storage=disk: not one of file, memory, AzureKeyVaultKeys, AzureKeyVaultSecrets",
        ),
        (
            "signingKey: {storage: AzureKeyVaultSecrets}",
            "signingKey.azureKeyVaultSecrets.secretName: must be set when signingKey.storage is AzureKeyVaultSecrets",
        ),
        (
            "signingKey: {storage: azurekeyvaultsecrets, azureKeyVaultSecrets: {secretName: a}}",
            "signingKey.azureKeyVaultSecrets.vaultUrl: must be set when signingKey.storage is AzureKeyVaultSecrets",
        ),
        (
            "signingKey: {storage: AzureKeyVaultKeys, azureKeyVaultKeys: {vaultUrl: 'https://a', keyName: b}}",
            "signingKey.azureKeyVaultKeys.storagePath: must be set when signingKey.storage is AzureKeyVaultKeys",
        ),
        (
            "signingKey: {storage: AzureKeyVaultKeys, azureKeyVaultKeys: {vaultUrl: 'https://a', storagePath: b}}",
            "signingKey.azureKeyVaultKeys.keyName: must be set when signingKey.storage is AzureKeyVaultKeys",
        ),
        (
            "signingKey: {}",
            "signingKey.file.storagePath: must be set when signingKey.storage is file",
        ),
        (
            "signingKey: {algorithm: es256}",
            "signingKey.algorithm=es256: not one of RS256, ES256",
        ),
        (
            "signingKey: {curve: Ed25519}",
            "signingKey.curve=Ed25519: may only be set when signingKey.algorithm is EdDSA",
        ),
        (
            "signingKey: {algorithm: EdDSA, curve: ed25519}",
            "signingKey.curve=ed25519: there is only Ed25519",
        ),
    ] {
        let told = refusal(text);
        assert!(told.contains(expected), "{text}: {told}");
        assert!(!told.contains("hush"), "{told}");
    }
    let long = format!("tokens: {{allowedAudiences: [{}]}}", "a".repeat(513));
    assert!(refusal(&long).contains("an audience of more than 512 bytes"));
    let fits = SMALL.replace("sts.amazonaws.com", &"a".repeat(512));
    assert_eq!(Tsiam::new(&fits).check().code, 0);
}

#[test]
fn all_mistakes_are_told_at_once() {
    let told = refusal(
        "tsnet: {funel: true}\nlogs: {level: loud}\ntokens: {lifetime: 1s}\nsigningKey: {}\n",
    );
    assert!(
        told.starts_with("Error: 5 mistakes in the settings\n"),
        "{told}"
    );
}

#[tokio::test]
async fn tsiams_key_signs_at_once_under_its_id_and_its_file_stays() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("key.json");
    let kid = "AAECAwQFBgcICQoLDA0ODw";
    let key = PrivateJwk::generate(kid.parse().unwrap(), KeySpec::EdDsa).unwrap();
    std::fs::write(&file, &*key.to_compact()).unwrap();
    let path = file.display();
    // The default algorithm is another one.
    let tsiam = Tsiam::new(&format!(
        "tokens: {{allowedAudiences: [a]}}\nsigningKey: {{file: {{storagePath: {path}}}}}\n"
    ));
    let settings = load(&tsiam.variables()).unwrap().workload;
    assert_eq!(settings.algorithm, Algorithm::EdDsa);
    let set = settings.keys.set().unwrap();
    set.start(Timestamp::now()).await.unwrap();
    assert_eq!(set.signer(Algorithm::EdDsa).unwrap().kid().as_str(), kid);
    assert_eq!(std::fs::read(&file).unwrap(), *key.to_compact());
    assert!(dir.path().join("workload-keys/jwks.json").is_file());
}

#[tokio::test]
async fn keys_in_memory_leave_no_file_behind() {
    let tsiam = Tsiam::new("tokens: {allowedAudiences: [a]}\nsigningKey: {storage: MEMORY}\n");
    let dir = tsiam.dir.path().join("keys");
    let dir = ("TB_WORKLOAD_KEYS_DIR", dir.to_str().unwrap());
    let variables: Vec<_> = tsiam.variables().into_iter().chain([dir]).collect();
    let settings = load(&variables).unwrap().workload;
    let set = settings.keys.set().unwrap();
    set.start(Timestamp::now()).await.unwrap();
    assert_eq!(set.algorithms().collect::<Vec<_>>(), [Algorithm::Es256]);
    set.signer(Algorithm::Es256).unwrap();
    assert!(!Path::new(dir.1).exists());
}

#[test]
fn what_keys_in_memory_cannot_have_is_refused() {
    for (name, value) in [
        ("TB_WORKLOAD_KEYS_BUCKET", "acme"),
        ("TB_WORKLOAD_KEYS_JWKSFILE", "a.json"),
        ("TB_WORKLOAD_KEYS_TAKEOVER", "key.json"),
    ] {
        let variables = [
            ("TB_COMPONENTS", "workload"),
            ("TB_WORKLOAD_KEYS_STORAGE", "memory"),
        ];
        let variables: Vec<_> = variables.into_iter().chain([(name, value)]).collect();
        let (_, mistakes) = remarks(&variables);
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        let start = format!("{name}: has no effect on keys in memory");
        assert!(mistakes[0].starts_with(&start), "{mistakes:?}");
    }
}

/// A key as tsiam stores it; only the name of the algorithm matters here.
#[test]
fn a_stored_key_decides_on_the_algorithm() {
    let dir = TempDir::new().unwrap();
    let key = dir.path().join("key.json");
    std::fs::write(&key, r#"{"alg":"RS256","kid":"k","kty":"RSA"}"#).unwrap();
    let file = |more: &str| {
        let path = key.display();
        format!(
            "tokens: {{allowedAudiences: [a]}}\nsigningKey: {{{more}file: {{storagePath: {path}}}}}\n"
        )
    };
    let silent = Tsiam::new(&file(""));
    let shown = silent.show();
    assert_eq!(shown["workload.algorithm"].0, "RS256");
    assert_eq!(shown["workload.keys.algorithms"].0, json!(["RS256"]));
    assert!(
        !silent.check().err.contains("signed with"),
        "{}",
        silent.check().err
    );

    let told = Tsiam::new(&file("algorithm: ES384, ")).check();
    assert_eq!(told.code, 0);
    let words = "signed with RS256 as tsiam does, and not with ES384 (signingKey.algorithm)";
    assert!(told.err.contains(words), "{}", told.err);
}

#[test]
fn what_has_no_effect_is_told() {
    let told = Tsiam::new(&format!("logs: {{omitHealthChecks: false}}\n{SMALL}")).check();
    assert_eq!(told.code, 0, "{}", told.err);
    assert!(
        told.err.contains("logs.omitHealthChecks: has no effect"),
        "{}",
        told.err
    );
}

/// `config show` of the file that `config migrate` made, without what names the file.
fn settings_of(config: &Path) -> Json {
    let ran = run(
        &[
            "config",
            "show",
            "-o",
            "json",
            "--config",
            config.to_str().unwrap(),
        ],
        &[],
    );
    assert_eq!(ran.code, 0, "{}", ran.err);
    serde_json::from_str(&ran.out).unwrap()
}

#[test]
fn a_migrated_file_means_the_same() {
    for text in [WHOLE, SMALL, &wrapped(), &secrets()] {
        let tsiam = Tsiam::new(text);
        let found = run(&["config", "migrate"], &[("TSIAM_CONFIG", tsiam.at())]);
        assert_eq!(found.code, 0, "{}", found.err);
        let named = run(&["config", "migrate", "--config", tsiam.at()], &[]);
        assert_eq!(named.out, found.out);
        assert!(!found.out.contains("hush"), "{}", found.out);

        for secret in ["authkey", "azure-client-secret"] {
            std::fs::write(tsiam.dir.path().join(secret), "hush\n").unwrap();
        }
        let migrated = tsiam.dir.path().join("tailbone.toml");
        std::fs::write(&migrated, &found.out).unwrap();
        assert_eq!(
            settings_of(&migrated),
            settings_of(&tsiam.path),
            "{}",
            found.out
        );
    }
}

#[test]
fn a_migrated_file_has_comments_for_what_has_no_setting() {
    let tsiam = Tsiam::new(&WHOLE.replace("omitHealthChecks: true", "omitHealthChecks: false"));
    let ran = run(&["config", "migrate", "--config", tsiam.at()], &[]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    insta::assert_snapshot!(
        "tsiam_migrated",
        ran.out.replace(tsiam.dir.path().to_str().unwrap(), "DIR")
    );
}

#[test]
fn a_file_that_cannot_be_migrated_is_told() {
    let nothing = run(&["config", "migrate"], &[]);
    assert_eq!(nothing.code, 64);
    assert!(
        nothing.err.contains("names no config file of tsiam"),
        "{}",
        nothing.err
    );
    let broken = Tsiam::new("tokens: {lifetime: 5}\n");
    let ours = Tsiam::new("keys: {dir: x}\n");
    for (file, words) in [
        (&broken, "without a unit"),
        (&ours, "has settings of tailbone"),
    ] {
        let ran = run(&["config", "migrate", "--config", file.at()], &[]);
        assert_eq!((ran.code, ran.out.as_str()), (64, ""));
        assert!(ran.err.contains(words), "{}", ran.err);
    }
}
