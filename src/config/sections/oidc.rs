//! `oidc.*`: the OpenID provider.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tailbone_keys::{
    Algorithm, KeyPolicy, KeySpec, KeyStore,
    jwks::{FilePublisher, KeySet},
};
use tailbone_oidc::{
    authorize::UnknownScopes,
    capability,
    claims::{Mapping, Style},
    documents::{DocumentHost, DocumentHosts},
    fetch::{FetchSettings, PrivateHost, PrivateHosts},
};

use url::Url;

use super::{keys::KeySettings, sts::Credentials};
use crate::config::{
    RuleSource,
    duration::format,
    listen::Listen,
    parse::text,
    read::SettingsReader,
    reload::Reloaded,
    table::{DAY, FlagScope, HOUR, MINUTE, ValueKind, YEAR, duration_or_off, row, rows},
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
        .default("oidc")
        .help("Directory of the provider's state: clients, logins and keys");
    TAKE_OVER = row("oidc.takeOver", ValueKind::Text)
        .flag("oidc-take-over", FlagScope::Start)
        .default("")
        .example("/var/lib/tsidp")
        .help("tsidp's directory; its clients are copied once, keep their ids and secrets, and log in without a page");
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
        Self {
            // An ID token lives five minutes, and is a hint for some time after.
            token_life: HOUR,
            cache_time: keys.cache_time,
            skew: keys.skew,
            rotate_every: keys.rotate_every,
            withdrawn_grace: DAY,
        }
    }
}

impl OidcKeySettings {
    /// The keys at their place of publication. Reads nothing yet.
    pub fn set(&self) -> KeySet {
        KeySet::new(
            "oidc",
            KeyStore::new(&self.dir),
            Arc::new(FilePublisher::new(&self.document)),
            &self.into(),
            &self.prefix,
            self.default,
            &self.specs,
        )
        .in_real_time()
    }
}

impl OidcSettings {
    pub(in crate::config) fn reload(&mut self, new: &Self, reloaded: &mut Reloaded) {
        let Self {
            listen,
            issuer,
            dir,
            take_over,
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
        let keys = self.oidc_keys(issuer, dir.as_deref(), on);
        Some(OidcSettings {
            listen: listen?,
            issuer: name?,
            dir: dir?,
            take_over: take_over?,
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

    fn oidc_keys(
        &mut self,
        issuer: Option<&KeySettings>,
        dir: Option<&std::path::Path>,
        on: bool,
    ) -> Option<OidcKeySettings> {
        let algorithms = self.words(&KEYS_ALGORITHMS, |word| {
            word.parse::<Algorithm>().map_err(|error| error.to_string())
        });
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
        if !rotate_every.is_zero() && rotate_every <= issuer.cache_time {
            let sentence = format!(
                "a new key waits {} (keys.cacheTime) before it signs, so it would be replaced \
                 before it signs",
                format(issuer.cache_time)
            );
            self.mistake(&KEYS_ROTATE_EVERY, Some(format(rotate_every)), sentence);
        }
        let keys = dir.join("keys");
        if on && keys == issuer.dir {
            let sentence = "the keys of the issuer are there (keys.dir): each set needs its own";
            self.mistake(&DIR, Some(dir.display().to_string()), sentence.into());
        }
        Some(OidcKeySettings {
            document: keys.join("jwks.json"),
            dir: keys,
            default: KeySpec::new(Algorithm::Rs256, bits),
            specs: algorithms.into_iter().map(|one| KeySpec::new(one, bits)).collect(),
            prefix: issuer.prefix.clone(),
            rotate_every: Some(rotate_every).filter(|every| !every.is_zero()),
            cache_time: issuer.cache_time,
            skew: issuer.token.skew,
        })
    }
}
