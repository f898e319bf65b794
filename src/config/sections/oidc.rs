//! `oidc.*`: the OpenID provider.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tailbone_keys::{
    Algorithm, KeyPolicy, KeySpec, KeyStore,
    jwks::{FilePublisher, KeySet},
    tsidp::TsidpKeyFile,
};
use tailbone_oidc::{
    authorize::UnknownScopes,
    capability,
    claims::{Mapping, Style},
    documents::{DocumentHost, DocumentHosts},
    fetch::{FetchSettings, PrivateHost, PrivateHosts},
};
use tailbone_values::Secret;
use url::Url;

use super::{
    keys::{KeyPace, KeySettings},
    sts::Credentials,
};
use crate::config::{
    RuleSource,
    client_files::ClientFolder,
    listen::Listen,
    parse::text,
    read::SettingsReader,
    reload::Reloaded,
    table::{FlagScope, HOUR, MINUTE, ValueKind, YEAR, count, duration_or_off, row, rows},
};

/// The algorithms whose hashes clients agree on. RS256 must be among them (OpenID Connect Core,
/// section 15.1).
const ALGORITHMS: &[&str] = &["RS256", "ES256", "ES384", "ES512"];

rows! {
    LISTEN = row("oidc.listen", ValueKind::Words(&[]))
        .flag("oidc-listen", FlagScope::Start)
        .default("tailnet+tls://:443")
        .example("tailnet+tls://:443,funnel://:443")
        .help(
            "Where people log in and applications redeem, separated by commas or blanks; \
             applications outside of the tailnet need Funnel; docs/reference/listeners.md lists \
             the forms",
        );
    ISSUER = row("oidc.issuer", ValueKind::Url)
        .flag("oidc-issuer", FlagScope::Start)
        .derived("https:// and the node's full name, which must then never change")
        .example("https://login.example.com")
        .help("The iss claim, at which applications find the provider");
    DIR = row("oidc.dir", ValueKind::Path)
        .flag("oidc-dir", FlagScope::Start)
        .flag("oidc-dir", FlagScope::Oidc)
        .default("oidc")
        .help("Directory of the provider's state: clients, logins and keys");
    TAKE_OVER = row("oidc.takeOver", ValueKind::Text)
        .flag("oidc-take-over", FlagScope::Start)
        .default("")
        .example("/var/lib/tsidp")
        .help("tsidp's directory; its clients and its signing key are copied once, keep their ids and secrets, and the clients log in without a page");
    STORE = row("oidc.store", ValueKind::Text)
        .flag("oidc-store", FlagScope::Start)
        .flag("oidc-store", FlagScope::Oidc)
        .default("sqlite")
        .example("postgres://tailbone@db.example.com/tailbone")
        .help(
            "Where the state is: in a file of SQLite below oidc.dir, or in the PostgreSQL \
             database at this address, which several servers may share",
        );
    STORE_PASSWORD = row("oidc.storePassword", ValueKind::Secret)
        .flag("oidc-store-password", FlagScope::Start)
        .flag("oidc-store-password", FlagScope::Oidc)
        .default("")
        .help("Password for PostgreSQL");
    STORE_CA_FILE = row("oidc.storeCaFile", ValueKind::Path)
        .flag("oidc-store-ca-file", FlagScope::Start)
        .flag("oidc-store-ca-file", FlagScope::Oidc)
        .default("")
        .example("/etc/tailbone/db-ca.pem")
        .help(
            "PEM file with the authorities that sign PostgreSQL's certificate; if empty, those of \
             the system",
        );
    STORE_CONNECTIONS = row("oidc.storeConnections", count(1, 1000))
        .flag("oidc-store-connections", FlagScope::Start)
        .flag("oidc-store-connections", FlagScope::Oidc)
        .default("8")
        .help("Connections to PostgreSQL at most");
    CLIENTS_DIR = row("oidc.clientsDir", ValueKind::Text)
        .flag("oidc-clients-dir", FlagScope::Start)
        .flag("oidc-clients-dir", FlagScope::Oidc)
        .default("")
        .example("/etc/tailbone/clients")
        .help(
            "Folder with a file (YAML, TOML or JSON) for each client, applied at the start and on \
             reload; docs/how-to/clients-as-code.md says what stands there",
        );
    CAPABILITY = row("oidc.capability", ValueKind::Text)
        .flag("oidc-capability", FlagScope::Start)
        .default(capability::CAPABILITY)
        .help("Capability whose grants say who administers, registers clients and may have which resources and claims");
    POLICY = row("oidc.policy", ValueKind::Text)
        .flag("oidc-policy", FlagScope::Start)
        .flag("oidc-policy", FlagScope::Policy)
        .default("")
        .example("/etc/tailbone/logins.toml")
        .help("File with rules about who may log in to which application; without it the tailnet's grants decide");
    POLICY_CAPABILITY = row("oidc.policyCapability", ValueKind::Text)
        .flag("oidc-policy-capability", FlagScope::Start)
        .flag("oidc-policy-capability", FlagScope::Policy)
        .default(tailbone_identity::policy::LOGIN_CAPABILITY)
        .help("Capability whose grants are evaluated before that file");
    REQUIRE_RULE = row("oidc.requireRule", ValueKind::Bool)
        .flag("oidc-require-rule", FlagScope::Start)
        .flag("oidc-require-rule", FlagScope::Policy)
        .default("false")
        .help(
            "Nobody logs in without a rule or a grant that allows it; with a file of rules that \
             is always so",
        );
    TOKEN_EXCHANGE = row("oidc.tokenExchange", ValueKind::Bool)
        .flag("oidc-token-exchange", FlagScope::Start)
        .default("false")
        .aliases(&["TSIDP_ENABLE_STS"])
        .help("Exchange access tokens for ones of other audiences (RFC 8693)");
    CLAIMS = row("oidc.claims", ValueKind::Word(&["tsidp", "standard"]))
        .flag("oidc-claims", FlagScope::Start)
        .default("tsidp")
        .help(
            "Which claims stand where: as in tsidp, where ID tokens tell the device, mail and \
             name, or as in OpenID Connect Core, where UserInfo does and asks for scopes",
        );
    USER_NAMES = row("oidc.userNames", ValueKind::Words(&[]))
        .flag("oidc-user-names", FlagScope::Start)
        .example("*@github={name}-gh,*={name}")
        .help(
            "How preferred_username is made of a login: rules PATTERN=TEMPLATE, of which the first \
             that matches counts; {login}, {name}, {domain} and {host} stand for parts; without a \
             rule it is what stands before the @",
        );
    MAIL = row("oidc.mail", ValueKind::Words(&[]))
        .flag("oidc-mail", FlagScope::Start)
        .example("*@*={login},*={name}@example.com")
        .help(
            "The same for email; without a rule it is the login, and for logins of GitHub and \
             passkeys one of this host, to which nobody can write",
        );
    VERIFIED_DOMAINS = row("oidc.verifiedMailDomains", ValueKind::Words(&[]))
        .flag("oidc-verified-mail-domains", FlagScope::Start)
        .example("example.com")
        .help("Domains whose addresses belong to the people who log in with them: email_verified is true");
    GROUPS_FILE = row("oidc.groups.file", ValueKind::Text)
        .flag("oidc-groups-file", FlagScope::Start)
        .default("")
        .example("/etc/tailbone/groups.toml")
        .help("File whose table [groups] says who is in which group, for the claim groups; may be that of oidc.policy");
    GROUPS_CLIENT_ID = row("oidc.groups.clientId", ValueKind::Text)
        .flag("oidc-groups-client-id", FlagScope::Start)
        .default("")
        .example("k123456CNTRL")
        .help(
            "OAuth client of Tailscale's API with the scope policy_file:read; the groups of the \
             tailnet's policy file are groups of the claim, too",
        );
    GROUPS_CLIENT_SECRET = row("oidc.groups.clientSecret", ValueKind::Secret)
        .flag("oidc-groups-client-secret", FlagScope::Start)
        .example("file:/run/secrets/groups")
        .help("Secret of that client");
    GROUPS_API = row("oidc.groups.api", ValueKind::Url)
        .flag("oidc-groups-api", FlagScope::Start)
        .default("https://api.tailscale.com")
        .help("Tailscale's API");
    UNKNOWN_SCOPES = row("oidc.unknownScopes", ValueKind::Word(&["ignore", "refuse"]))
        .flag("oidc-unknown-scopes", FlagScope::Start)
        .default("ignore")
        .help("What becomes of scopes that mean nothing here; tsidp refuses them");
    INTROSPECTION = row("oidc.introspection", ValueKind::Word(&["tailnet", "clients"]))
        .flag("oidc-introspection", FlagScope::Start)
        .default("tailnet")
        .help(
            "Who may introspect and exchange tokens: every node of the tailnet, as in tsidp, or \
             clients that show their secret",
        );
    ERRORS = row("oidc.errors", ValueKind::Word(&["json", "tsidp"]))
        .flag("oidc-errors", FlagScope::Start)
        .default("json")
        .help("How errors for programs are written; tsidp writes text unless Accept names JSON");
    DOCUMENT_HOSTS = row("oidc.clientDocuments", ValueKind::Words(&[]))
        .flag("oidc-client-documents", FlagScope::Start)
        .default("")
        .example("claude.ai,*.corp.example")
        .help(
            "Hosts whose documents describe clients, which then need no registration: their ids \
             are addresses there; * stands for all hosts, ! before one excepts it, and without \
             any there are no such clients",
        );
    PRIVATE_HOSTS = row("oidc.privateHosts", ValueKind::Words(&[]))
        .flag("oidc-private-hosts", FlagScope::Start)
        .default("")
        .example("sso.internal,*.corp.example,10.1.0.0/16")
        .help(
            "Hosts and networks at which what clients name (their keys, for example) is fetched \
             although the addresses are private; others are refused",
        );
    FETCH_CA_FILE = row("oidc.caFile", ValueKind::Path)
        .flag("oidc-ca-file", FlagScope::Start)
        .example("/etc/tailbone/ca.crt")
        .help("Certificates (PEM) to trust at those addresses, beside those of the system");
    KEYS_ALGORITHMS = row("oidc.algorithms", ValueKind::Words(ALGORITHMS))
        .flag("oidc-algorithms", FlagScope::Start)
        .default("RS256,ES256")
        .help("Algorithms for which there is a key; clients may choose one, and have RS256 otherwise");
    KEYS_ROTATE_EVERY = row("oidc.rotateEvery", duration_or_off(MINUTE, YEAR))
        .flag("oidc-rotate-every", FlagScope::Start)
        .default("off")
        .example("720h")
        .help("Age at which each of these keys gets a successor, or off");
}

/// The OpenID provider.
#[derive(Debug, Clone, PartialEq)]
pub struct OidcSettings {
    pub listen: Vec<Listen>,
    /// `None`: the node's name says it.
    pub issuer: Option<String>,
    pub dir: PathBuf,
    /// The directory of the tsidp that is replaced.
    pub take_over: Option<PathBuf>,
    pub store: OidcStore,
    /// The clients that files describe.
    pub clients: Option<ClientFolder>,
    pub capability: String,
    pub access: LoginSettings,
    pub token_exchange: bool,
    pub claims: Style,
    /// How names and mail are made of logins.
    pub mapping: Mapping,
    pub groups: GroupSettings,
    pub unknown_scopes: UnknownScopes,
    /// Nodes of the tailnet may introspect and exchange without a secret.
    pub nodes_may_inspect: bool,
    pub errors: OidcErrorFormat,
    /// Whose documents describe clients.
    pub document_hosts: Vec<DocumentHost>,
    /// How the addresses are reached that clients name.
    pub fetch: FetchSettings,
    pub keys: OidcKeySettings,
}

/// Where groups are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSettings {
    pub file: Option<PathBuf>,
    /// The groups of the tailnet's policy file.
    pub tailnet: Option<TailnetGroupSettings>,
}

/// How Tailscale's API is asked for the policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TailnetGroupSettings {
    pub api: Url,
    pub client: Credentials,
}

/// Who may log in to which application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginSettings {
    pub rules: RuleSource,
    /// Nobody logs in without a rule or a grant; always so where there is a file.
    pub require_rule: bool,
}

/// What the commands `oidc …` need to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcPlace {
    /// Where the file of SQLite is.
    pub dir: PathBuf,
    pub store: OidcStore,
    pub clients: Option<ClientFolder>,
}

/// Where clients, grants and sessions are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OidcStore {
    /// A file in [`OidcSettings::dir`].
    Sqlite,
    Postgres(OidcPostgres),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcPostgres {
    pub url: Secret,
    pub password: Option<Secret>,
    /// `None`: the authorities of the system.
    pub ca_file: Option<PathBuf>,
    pub connections: usize,
}

/// How errors for programs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OidcErrorFormat {
    /// As RFC 6749 says.
    #[default]
    Json,
    /// As tsidp: text, unless `Accept` names JSON.
    Tsidp,
}

/// The provider's own keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcKeySettings {
    pub dir: PathBuf,
    /// The directory of the tsidp whose key is taken over.
    pub take_over: Option<PathBuf>,
    /// Where the document is written.
    pub document: PathBuf,
    /// One key for each; that of RS256 is the default.
    pub specs: Vec<KeySpec>,
    pub default: KeySpec,
    pub prefix: String,
    pub rotate_every: Option<Duration>,
    /// As for the keys of the issuer.
    pub cache_time: Duration,
    pub skew: Duration,
}

impl From<&OidcKeySettings> for KeyPolicy {
    fn from(keys: &OidcKeySettings) -> Self {
        let pace = KeyPace {
            cache_time: keys.cache_time,
            skew: keys.skew,
            rotate_every: keys.rotate_every,
        };
        // An ID token lives five minutes, and is a hint for some time after.
        pace.policy(HOUR)
    }
}

impl OidcKeySettings {
    /// The keys at their place of publication. Reads nothing yet.
    pub fn set(&self) -> KeySet {
        let set = KeySet::new(
            "oidc",
            KeyStore::new(&self.dir),
            Arc::new(FilePublisher::new(&self.document)),
            &self.into(),
            &self.prefix,
            self.default,
            &self.specs,
        );
        match &self.take_over {
            Some(dir) => set.taking_over(Arc::new(TsidpKeyFile::in_directory(dir))),
            None => set,
        }
    }
}

impl OidcSettings {
    pub(in crate::config) fn reload(&mut self, new: &Self, reloaded: &mut Reloaded) {
        let Self {
            listen,
            issuer,
            dir,
            take_over,
            store,
            clients,
            capability,
            access,
            token_exchange,
            claims,
            mapping,
            groups,
            unknown_scopes,
            nodes_may_inspect,
            errors,
            document_hosts,
            fetch,
            keys,
        } = new;
        reloaded.leave(LISTEN.key, &self.listen, listen);
        reloaded.leave(ISSUER.key, &self.issuer, issuer);
        reloaded.leave(DIR.key, &self.dir, dir);
        reloaded.leave(TAKE_OVER.key, &self.take_over, take_over);
        let rows = "oidc.store, oidc.storePassword, oidc.storeCaFile or oidc.storeConnections";
        reloaded.leave(rows, &self.store, store);
        reloaded.leave(CLIENTS_DIR.key, &self.clients, clients);
        reloaded.leave(CAPABILITY.key, &self.capability, capability);
        let rows = "oidc.policy, oidc.policyCapability or oidc.requireRule";
        reloaded.leave(rows, &self.access, access);
        let exchange = &self.token_exchange;
        reloaded.leave(TOKEN_EXCHANGE.key, exchange, token_exchange);
        reloaded.leave(CLAIMS.key, &self.claims, claims);
        let rows = "oidc.userNames, oidc.mail or oidc.verifiedMailDomains";
        reloaded.leave(rows, &self.mapping, mapping);
        reloaded.leave("oidc.groups", &self.groups, groups);
        let scopes = &self.unknown_scopes;
        reloaded.leave(UNKNOWN_SCOPES.key, scopes, unknown_scopes);
        let inspect = &self.nodes_may_inspect;
        reloaded.leave(INTROSPECTION.key, inspect, nodes_may_inspect);
        reloaded.leave(ERRORS.key, &self.errors, errors);
        let hosts = &self.document_hosts;
        reloaded.leave(DOCUMENT_HOSTS.key, hosts, document_hosts);
        let rows = "oidc.privateHosts or oidc.caFile";
        reloaded.leave(rows, &self.fetch, fetch);
        let rows = "oidc.algorithms or oidc.rotateEvery";
        reloaded.leave(rows, &self.keys, keys);
    }
}

impl SettingsReader<'_> {
    /// `issuer` has what the key sets have in common; `on`: the component is switched on.
    pub(in crate::config) fn oidc(
        &mut self,
        issuer: Option<&KeySettings>,
        on: bool,
    ) -> Option<OidcSettings> {
        let listen = self.words(&LISTEN, Listen::parse);
        let name = self.issuer_url(&ISSUER);
        let dir = self.path(&DIR);
        let take_over = self.optional_path(&TAKE_OVER);
        let store = self.oidc_store();
        let clients_dir = self.optional_path(&CLIENTS_DIR);
        let capability = self.read(&CAPABILITY, text);
        let access = self.login_access();
        let token_exchange = self.bool(&TOKEN_EXCHANGE);
        let claims = self.word(&CLAIMS).map(|word| match word {
            "standard" => Style::Standard,
            _ => Style::Tsidp,
        });
        let mapping = self.mapping();
        let groups = self.groups(on);
        let unknown_scopes = self.word(&UNKNOWN_SCOPES).map(|word| match word {
            "refuse" => UnknownScopes::Refuse,
            _ => UnknownScopes::Ignore,
        });
        let nodes_may_inspect = self.word(&INTROSPECTION).map(|word| word == "tailnet");
        let errors = self.word(&ERRORS).map(|word| match word {
            "tsidp" => OidcErrorFormat::Tsidp,
            _ => OidcErrorFormat::Json,
        });
        let document_hosts = self.words(&DOCUMENT_HOSTS, str::parse::<DocumentHost>);
        if let Some(hosts) = &document_hosts
            && !hosts.is_empty()
            && DocumentHosts::of(hosts).is_none()
        {
            let sentence = "it only excepts hosts: add * to allow all others";
            self.mistake(&DOCUMENT_HOSTS, None, sentence.into());
        }
        let private_hosts = self.words(&PRIVATE_HOSTS, |word| {
            word.parse::<PrivateHost>().map_err(|bad| bad.to_string())
        });
        let ca_file = self.optional_path(&FETCH_CA_FILE);
        let keys = self.oidc_keys(issuer, dir.as_deref(), take_over.clone().flatten(), on);
        let algorithms = keys.iter().flat_map(|keys| &keys.specs);
        let clients = clients_dir.map(|dir| {
            dir.map(|dir| ClientFolder {
                dir,
                algorithms: algorithms.map(|spec| spec.algorithm()).collect(),
                token_exchange: token_exchange.unwrap_or_default(),
            })
        });
        Some(OidcSettings {
            listen: listen?,
            issuer: name?,
            dir: dir?,
            take_over: take_over?,
            store: store?,
            clients: clients?,
            capability: capability?,
            access: access?,
            token_exchange: token_exchange?,
            claims: claims?,
            mapping: mapping?,
            groups: groups?,
            unknown_scopes: unknown_scopes?,
            nodes_may_inspect: nodes_may_inspect?,
            errors: errors?,
            document_hosts: document_hosts?,
            fetch: FetchSettings {
                private_hosts: PrivateHosts(private_hosts?),
                ca_file: ca_file?,
                ..FetchSettings::default()
            },
            keys: keys?,
        })
    }

    pub(in crate::config) fn login_access(&mut self) -> Option<LoginSettings> {
        let file = self.optional_path(&POLICY);
        let capability = self.read(&POLICY_CAPABILITY, text);
        let require_rule = self.bool(&REQUIRE_RULE);
        let (file, capability) = (file?, capability?);
        Some(LoginSettings {
            require_rule: require_rule? || file.is_some(),
            rules: RuleSource { file, capability },
        })
    }

    fn mapping(&mut self) -> Option<Mapping> {
        let user_names = self.whole_words(&USER_NAMES, str::parse);
        let mail = self.whole_words(&MAIL, str::parse);
        let verified_domains = self.words(&VERIFIED_DOMAINS, str::parse);
        Some(Mapping {
            user_names: user_names?,
            mail: mail?,
            verified_domains: verified_domains?,
        })
    }

    fn groups(&mut self, on: bool) -> Option<GroupSettings> {
        let file = self.optional_path(&GROUPS_FILE);
        let id = self.read(&GROUPS_CLIENT_ID, text);
        let secret = self.secret(&GROUPS_CLIENT_SECRET);
        let api = self.url(&GROUPS_API);
        let (file, id, secret, api) = (file?, id?, secret?, api?.unwrap_or_default());
        let (row, missing) = match (id.is_empty(), secret) {
            (true, None) => {
                let tailnet = None;
                return Some(GroupSettings { file, tailnet });
            }
            (false, Some(secret)) => {
                let own = |url: &Url| match url.host_str() {
                    Some(host) => ["127.0.0.1", "[::1]", "localhost"].contains(&host),
                    None => false,
                };
                let url = Url::parse(&api).ok();
                if let Some(api) = url.filter(|url| url.scheme() == "https" || own(url)) {
                    let client = Credentials { id, secret };
                    let tailnet = Some(TailnetGroupSettings { api, client });
                    return Some(GroupSettings { file, tailnet });
                }
                let sentence = "not an https address: the client's secret goes there";
                self.mistake(&GROUPS_API, Some(api), sentence.into());
                return None;
            }
            (false, None) => (&GROUPS_CLIENT_ID, "oidc.groups.clientSecret"),
            (true, Some(_)) => (&GROUPS_CLIENT_SECRET, "oidc.groups.clientId"),
        };
        if !on {
            let tailnet = None;
            return Some(GroupSettings { file, tailnet });
        }
        let sentence = format!("{missing} is missing: an OAuth client is both");
        self.mistake(row, None, sentence);
        None
    }

    pub(in crate::config) fn oidc_place(&mut self) -> Option<OidcPlace> {
        let dir = self.path(&DIR);
        let store = self.oidc_store();
        let clients_dir = self.optional_path(&CLIENTS_DIR);
        let algorithms = self.oidc_algorithms();
        let token_exchange = self.bool(&TOKEN_EXCHANGE);
        let (algorithms, token_exchange) = (algorithms?, token_exchange?);
        Some(OidcPlace {
            dir: dir?,
            store: store?,
            clients: clients_dir?.map(|dir| ClientFolder {
                dir,
                algorithms,
                token_exchange,
            }),
        })
    }

    fn oidc_store(&mut self) -> Option<OidcStore> {
        let place = self.read(&STORE, text);
        let password = self.secret(&STORE_PASSWORD);
        let ca_file = self.optional_path(&STORE_CA_FILE);
        let connections = self.count(&STORE_CONNECTIONS);
        let (place, password, ca_file) = (place?, password?, ca_file?);
        if place.is_empty() || place == "sqlite" {
            return Some(OidcStore::Sqlite);
        }
        // Not shown: what is wrong with it may be where its password stands.
        let mut wrong = |sentence: &str| {
            self.mistake(&STORE, None, sentence.into());
            None
        };
        let url = match Url::parse(&place) {
            Ok(url) if matches!(url.scheme(), "postgres" | "postgresql") => url,
            _ => return wrong("neither sqlite nor an address postgres://USER@HOST/DATABASE"),
        };
        if url.password().is_some() || url.query_pairs().any(|(name, _)| name == "password") {
            return wrong(
                "a password does not belong here, where everybody sees it: write it into a file, \
                 and file:PATH of that into oidc.storePassword",
            );
        }
        Some(OidcStore::Postgres(OidcPostgres {
            url: Secret::new(place),
            password,
            ca_file,
            connections: usize::try_from(connections?).unwrap_or(usize::MAX),
        }))
    }

    fn oidc_algorithms(&mut self) -> Option<Vec<Algorithm>> {
        self.words(&KEYS_ALGORITHMS, |word| {
            word.parse::<Algorithm>().map_err(|error| error.to_string())
        })
    }

    fn oidc_keys(
        &mut self,
        issuer: Option<&KeySettings>,
        dir: Option<&Path>,
        take_over: Option<PathBuf>,
        on: bool,
    ) -> Option<OidcKeySettings> {
        let algorithms = self.oidc_algorithms();
        let rotate_every = self.duration(&KEYS_ROTATE_EVERY);
        let bits = self.key_size();
        let (mut algorithms, rotate_every, bits) = (algorithms?, rotate_every?, bits?);
        let (issuer, dir) = (issuer?, dir?);
        algorithms.sort_unstable();
        algorithms.dedup();
        if on && !algorithms.contains(&Algorithm::Rs256) {
            let sentence = "RS256 is missing, which every client must be able to count on";
            self.mistake(&KEYS_ALGORITHMS, None, sentence.into());
        }
        self.refuse_early_rotation(&KEYS_ROTATE_EVERY, rotate_every, issuer.cache_time);
        let keys = dir.join("keys");
        if on && keys == issuer.dir {
            let sentence = "the keys of the issuer are there (keys.dir): each set needs its own";
            self.mistake(&DIR, Some(dir.display().to_string()), sentence.into());
        }
        Some(OidcKeySettings {
            document: keys.join("jwks.json"),
            dir: keys,
            take_over,
            default: KeySpec::new(Algorithm::Rs256, bits),
            specs: algorithms.into_iter().map(|one| KeySpec::new(one, bits)).collect(),
            prefix: issuer.prefix.clone(),
            rotate_every: Some(rotate_every).filter(|every| !every.is_zero()),
            cache_time: issuer.cache_time,
            skew: issuer.token.skew,
        })
    }
}
