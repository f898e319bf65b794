//! Recipes: the commands and policies with which a cloud, Vault, Kubernetes or Tailscale trusts
//! this issuer, and warnings where one of them would not.
//!
//! The limits are those that each of them documents, and for AWS those that were observed.

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tailbone_values::{Object, printable};

use super::issuer::{Issuer, TokenError};

const DISCOVERY: &str = ".well-known/openid-configuration";

/// What the issuer says of itself.
#[derive(Debug, Clone)]
pub struct IssuerFacts {
    /// The address that commands ask for tokens.
    pub server: String,
    /// The `iss` claim of its tokens.
    pub issuer: String,
    pub algorithms: Vec<String>,
    pub keys: Vec<Map<String, Value>>,
}

impl IssuerFacts {
    /// Reads the discovery document and the keys.
    pub async fn read(issuer: &Issuer) -> Result<Self, TokenError> {
        #[derive(Deserialize)]
        struct Discovery {
            issuer: String,
            #[serde(default)]
            id_token_signing_alg_values_supported: Vec<String>,
        }
        #[derive(Deserialize)]
        struct Jwks {
            keys: Vec<Map<String, Value>>,
        }
        let discovery = issuer.document(DISCOVERY).await?;
        let Object(discovery) = serde_json::from_str::<Object<Discovery>>(&discovery)
            .map_err(|_| issuer.invalid("it is no discovery document"))?;
        let jwks = issuer.document(".well-known/jwks.json").await?;
        let Object(jwks) = serde_json::from_str::<Object<Jwks>>(&jwks)
            .map_err(|_| issuer.invalid("it is no JWKS"))?;
        // Both become a part of scripts.
        let algorithms = discovery.id_token_signing_alg_values_supported;
        let safe = |text: &String| text.bytes().all(|byte| byte.is_ascii_graphic());
        if !safe(&discovery.issuer) || !algorithms.iter().all(safe) {
            return Err(issuer.invalid("its discovery document contains odd characters"));
        }
        Ok(Self {
            server: issuer.address().to_owned(),
            issuer: discovery.issuer,
            algorithms,
            keys: jwks.keys,
        })
    }

    /// The issuer as AWS names it in conditions.
    fn without_scheme(&self) -> &str {
        let rest = self.issuer.split_once("://");
        rest.map_or(self.issuer.as_str(), |(_, rest)| rest)
    }
}

#[derive(Debug, Clone)]
pub struct AwsRecipe {
    pub audience: String,
    pub subject: String,
    pub account: String,
    pub role: String,
    pub policy_arn: Option<String>,
    pub partition: String,
}

#[derive(Debug, Clone)]
pub struct AzureRecipe {
    pub audience: String,
    pub subject: String,
    pub name: String,
    pub target: AzureTarget,
}

/// What gets the credential.
#[derive(Debug, Clone)]
pub enum AzureTarget {
    Application {
        id: String,
    },
    ManagedIdentity {
        name: String,
        resource_group: String,
    },
}

#[derive(Debug, Clone)]
pub struct GcpRecipe {
    /// One that the provider allows in place of its own name.
    pub audience: Option<String>,
    pub subject: String,
    pub project: String,
    pub project_number: String,
    pub pool: String,
    pub provider: String,
    pub service_account: Option<String>,
    /// Upload the keys, so that Google need not reach the issuer.
    pub upload_keys: bool,
}

#[derive(Debug, Clone)]
pub struct VaultRecipe {
    pub audience: String,
    pub subject: String,
    pub role: String,
    pub policy: String,
    pub mount: String,
}

#[derive(Debug, Clone)]
pub struct KubernetesRecipe {
    pub audience: String,
    pub subject: String,
    pub cluster_role: String,
}

#[derive(Debug, Clone)]
pub struct TailscaleRecipe {
    pub client_id: String,
    pub subject: String,
    pub audience: Option<String>,
}

/// AWS: an OIDC provider and a role.
pub fn aws(facts: &IssuerFacts, recipe: &AwsRecipe) -> String {
    let AwsRecipe {
        audience,
        subject,
        account,
        role,
        policy_arn,
        partition,
    } = recipe;
    let mut script = Script::new(facts);
    script.check_public("AWS");
    script.check_plain_address("AWS");
    script.check_algorithms(
        "AWS",
        &["RS256", "RS384", "RS512", "ES256", "ES384", "ES512"],
        audience,
    );
    script.check_keys_for_aws();
    if audience.len() > 255 {
        script.warn("AWS takes audiences of at most 255 characters");
    }
    let host = facts.without_scheme();
    let arn = format!("arn:{partition}:iam::{account}:role/{role}");
    let like = subject.contains(['*', '?']);
    let condition = |name: &str, value: &str| json!({format!("{host}:{name}"): value});
    let mut conditions = json!({"StringEquals": condition("aud", audience)});
    if like {
        conditions["StringLike"] = condition("sub", subject);
    } else {
        conditions["StringEquals"][format!("{host}:sub")] = subject.as_str().into();
    }
    let policy = json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Effect": "Allow",
            "Principal": {
                "Federated": format!("arn:{partition}:iam::{account}:oidc-provider/{host}"),
            },
            "Action": "sts:AssumeRoleWithWebIdentity",
            "Condition": conditions,
        }],
    });
    script.step("The issuer, as an identity provider of the account");
    script.command(&[
        "aws iam create-open-id-connect-provider",
        &format!("--url {}", quote(&facts.issuer)),
        &format!("--client-id-list {}", quote(audience)),
    ]);
    script.step("The role that the machine takes on");
    script.file("trust-policy.json", &policy);
    script.command(&[
        "aws iam create-role",
        &format!("--role-name {}", quote(role)),
        "--assume-role-policy-document file://trust-policy.json",
    ]);
    if let Some(policy) = policy_arn {
        script.command(&[
            "aws iam attach-role-policy",
            &format!("--role-name {}", quote(role)),
            &format!("--policy-arn {}", quote(policy)),
        ]);
    }
    script.step("On the machine: either a file that an agent keeps fresh");
    script.line(&format!("export AWS_ROLE_ARN={}", quote(&arn)));
    script.line("export AWS_WEB_IDENTITY_TOKEN_FILE=/run/tokens/aws");
    script.agent(audience, "/run/tokens/aws");
    script.step("or a credential_process in ~/.aws/config");
    let command = format!(
        "tailbone workload aws-credentials --server {} --role-arn {} --audience {}",
        quote(&facts.server),
        quote(&arn),
        quote(audience)
    );
    script.line(&format!("# credential_process = {}", printable(&command)));
    script.finish()
}

/// Microsoft Entra: a federated identity credential.
pub fn azure(facts: &IssuerFacts, recipe: &AzureRecipe) -> String {
    let AzureRecipe {
        audience,
        subject,
        name,
        target,
    } = recipe;
    let mut script = Script::new(facts);
    script.check_public("Entra");
    // Others may work, but only this one is documented.
    script.check_algorithms("Entra", &["RS256"], audience);
    if facts.issuer.len() > 600 || subject.len() > 600 {
        script.warn("Entra takes issuers and subjects of at most 600 characters");
    }
    if subject.contains(['*', '?']) {
        script.warn("Entra compares the subject as it is: it knows no wildcards");
    }
    if audience != "api://AzureADTokenExchange" {
        script
            .warn("outside of national clouds Entra wants the audience api://AzureADTokenExchange");
    }
    script.step("The credential; an identity has at most 20, and a new one works after minutes");
    match target {
        AzureTarget::Application { id } => {
            let parameters = json!({
                "name": name, "issuer": facts.issuer, "subject": subject, "audiences": [audience],
            });
            script.file("credential.json", &parameters);
            script.command(&[
                "az ad app federated-credential create",
                &format!("--id {}", quote(id)),
                "--parameters credential.json",
            ]);
        }
        AzureTarget::ManagedIdentity {
            name: identity,
            resource_group,
        } => script.command(&[
            "az identity federated-credential create",
            &format!("--name {}", quote(name)),
            &format!("--identity-name {}", quote(identity)),
            &format!("--resource-group {}", quote(resource_group)),
            &format!("--issuer {}", quote(&facts.issuer)),
            &format!("--subject {}", quote(subject)),
            &format!("--audiences {}", quote(audience)),
        ]),
    }
    script.step("On the machine");
    match target {
        AzureTarget::Application { id } => {
            script.line(&format!("export AZURE_CLIENT_ID={}", quote(id)));
        }
        AzureTarget::ManagedIdentity { .. } => {
            script.line("export AZURE_CLIENT_ID=…   # of the managed identity");
        }
    }
    script.line("export AZURE_TENANT_ID=…");
    script.line("export AZURE_FEDERATED_TOKEN_FILE=/run/tokens/azure");
    script.agent(audience, "/run/tokens/azure");
    script.finish()
}

/// Google Cloud: a workload identity pool with an OIDC provider.
pub fn gcp(facts: &IssuerFacts, recipe: &GcpRecipe) -> String {
    let GcpRecipe {
        audience,
        subject,
        project,
        project_number,
        pool,
        provider,
        service_account,
        upload_keys,
    } = recipe;
    let pool_name =
        format!("projects/{project_number}/locations/global/workloadIdentityPools/{pool}");
    let provider_name = format!("//iam.googleapis.com/{pool_name}/providers/{provider}");
    let token_audience = audience.as_deref().unwrap_or(&provider_name);
    let mut script = Script::new(facts);
    if *upload_keys {
        script.check_https("Google");
        script.warn(
            "Google learns of a new key only from you: upload the keys again after each rotation, \
             before the new key signs",
        );
    } else {
        script.check_public("Google");
    }
    script.check_algorithms("Google", &["RS256", "ES256"], token_audience);
    if subject.len() > 127 {
        script.warn("Google takes subjects (google.subject) of at most 127 bytes");
    }
    if subject.contains('*') {
        script.warn("the binding names one subject: it knows no wildcards");
    }
    if audience
        .as_ref()
        .is_some_and(|audience| audience.len() > 256)
    {
        script.warn("Google takes audiences of at most 256 characters");
    }
    let place = format!("--project={} --location=global", quote(project));
    script.step("The pool, and the issuer as its provider");
    script.command(&[
        &format!("gcloud iam workload-identity-pools create {}", quote(pool)),
        &place,
    ]);
    if *upload_keys {
        script.file("jwks.json", &uploadable(&facts.keys));
    }
    let allowed = audience
        .as_ref()
        .map(|audience| format!("--allowed-audiences={}", quote(audience)));
    let mut parts = vec![
        format!(
            "gcloud iam workload-identity-pools providers create-oidc {}",
            quote(provider)
        ),
        place.clone(),
        format!("--workload-identity-pool={}", quote(pool)),
        format!("--issuer-uri={}", quote(&facts.issuer)),
        "--attribute-mapping='google.subject=assertion.sub'".to_owned(),
    ];
    parts.extend(allowed);
    parts.extend(upload_keys.then(|| "--jwk-json-path=jwks.json".to_owned()));
    script.command(&parts.iter().map(String::as_str).collect::<Vec<_>>());
    let mut configuration = json!({
        "type": "external_account",
        "audience": provider_name,
        "subject_token_type": super::google::JWT_TYPE,
        "token_url": "https://sts.googleapis.com/v1/token",
        "credential_source": {"file": "/run/tokens/google"},
    });
    if let Some(email) = service_account {
        script.step("The service account that the machine may act as");
        script.command(&[
            &format!(
                "gcloud iam service-accounts add-iam-policy-binding {}",
                quote(email)
            ),
            &format!("--project={}", quote(project)),
            "--role=roles/iam.workloadIdentityUser",
            &format!(
                "--member={}",
                quote(&format!(
                    "principal://iam.googleapis.com/{pool_name}/subject/{subject}"
                ))
            ),
        ]);
        configuration["service_account_impersonation_url"] = format!(
            "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{email}:\
             generateAccessToken"
        )
        .into();
    }
    script.step("On the machine");
    script.file("google.json", &configuration);
    script.line("export GOOGLE_APPLICATION_CREDENTIALS=$PWD/google.json");
    script.agent(token_audience, "/run/tokens/google");
    script.finish()
}

/// Vault or OpenBao: an auth method with a role.
pub fn vault(facts: &IssuerFacts, recipe: &VaultRecipe) -> String {
    let VaultRecipe {
        audience,
        subject,
        role,
        policy,
        mount,
    } = recipe;
    let mut script = Script::new(facts);
    script.check_https("Vault");
    script.step("The auth method; with OpenBao the command is bao");
    script.line(&format!("vault auth enable -path={} jwt", quote(mount)));
    script.command(&[
        &format!("vault write {}", quote(&format!("auth/{mount}/config"))),
        &format!("oidc_discovery_url={}", quote(&facts.issuer)),
        // Without it, tokens of another issuer are accepted that are signed with these keys.
        &format!("bound_issuer={}", quote(&facts.issuer)),
    ]);
    script.line("# with a certificate of your own also: oidc_discovery_ca_pem=@ca.pem");
    let wildcard = subject.contains('*');
    let mut body = json!({
        "role_type": "jwt",
        "user_claim": "sub",
        "bound_audiences": [audience],
        "token_policies": [policy],
    });
    if wildcard {
        body["bound_claims_type"] = "glob".into();
        body["bound_claims"] = json!({"sub": subject});
    } else {
        body["bound_subject"] = subject.as_str().into();
    }
    script.step("The role");
    script.file("role.json", &body);
    script.line(&format!(
        "vault write {} @role.json",
        quote(&format!("auth/{mount}/role/{role}"))
    ));
    script.step("On the machine");
    let login = format!("auth/{mount}/login");
    script.command(&[
        &format!("vault write {}", quote(&login)),
        &format!("role={}", quote(role)),
        &format!("jwt=\"{}\"", token_command(facts, audience)),
    ]);
    script.finish()
}

/// Kubernetes: structured authentication configuration of the API server.
pub fn kubernetes(facts: &IssuerFacts, recipe: &KubernetesRecipe) -> String {
    let KubernetesRecipe {
        audience,
        subject,
        cluster_role,
    } = recipe;
    let mut script = Script::new(facts);
    script.check_https("the API server");
    script.check_algorithms(
        "the API server",
        &[
            "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512",
        ],
        audience,
    );
    if subject.contains('*') {
        script.warn("a binding names one user: it knows no wildcards");
    }
    script.step("A file that the API server reads as --authentication-config");
    // YAML contains JSON, which needs no rules for quoting.
    let configuration = json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AuthenticationConfiguration",
        "jwt": [{
            "issuer": {"url": facts.issuer, "audiences": [audience]},
            "claimMappings": {"username": {"claim": "sub", "prefix": "tailnet:"}},
        }],
    });
    script.file("authentication.yaml", &configuration);
    script.line("# with a certificate of your own also: issuer.certificateAuthority, as PEM");
    script.step("What the machine may do");
    script.command(&[
        "kubectl create clusterrolebinding tailnet-workload",
        &format!("--clusterrole={}", quote(cluster_role)),
        &format!("--user={}", quote(&format!("tailnet:{subject}"))),
    ]);
    script.step("On the machine");
    script.line(&format!(
        "kubectl --token=\"{}\" get pods",
        token_command(facts, audience)
    ));
    script.finish()
}

/// Tailscale: a federated identity, for an access token of its API.
pub fn tailscale(facts: &IssuerFacts, recipe: &TailscaleRecipe) -> String {
    let TailscaleRecipe {
        client_id,
        subject,
        audience,
    } = recipe;
    let derived = format!("api.tailscale.com/{client_id}");
    let audience = audience.as_deref().unwrap_or(&derived);
    let mut script = Script::new(facts);
    script.check_public("Tailscale");
    script.check_plain_address("Tailscale");
    script.step(
        "In the admin console, at Trust credentials, a credential of the kind OpenID Connect",
    );
    script.line(&format!("#   Issuer   {}", facts.issuer));
    script.line(&format!("#   Subject  {}", printable(subject)));
    script.line(&format!("#   Audience {}", printable(audience)));
    script.step("On the machine");
    script.command(&[
        "curl --silent https://api.tailscale.com/api/v2/oauth/token-exchange",
        &format!("--data-urlencode client_id={}", quote(client_id)),
        &format!(
            "--data-urlencode jwt=\"{}\"",
            token_command(facts, audience)
        ),
    ]);
    script.finish()
}

/// The keys in the form that Google takes: these members and no others.
fn uploadable(keys: &[Map<String, Value>]) -> Value {
    const MEMBERS: [&str; 7] = ["kty", "alg", "kid", "n", "e", "crv", "x"];
    let keys: Vec<_> = keys
        .iter()
        .filter(|key| {
            key.get("kty")
                .is_some_and(|kty| kty == "RSA" || kty == "EC")
        })
        .map(|key| {
            let members = MEMBERS.into_iter().chain(["y"]);
            let mut kept: Map<_, _> = members
                .filter_map(|name| Some((name.to_owned(), key.get(name)?.clone())))
                .collect();
            kept.insert("use".to_owned(), "sig".into());
            kept
        })
        .collect();
    json!({ "keys": keys })
}

fn token_command(facts: &IssuerFacts, audience: &str) -> String {
    format!(
        "$(tailbone workload token --server {} --audience {})",
        quote(&facts.server),
        quote(audience)
    )
}

/// One word of a shell.
fn quote(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@=+,".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A shell script with warnings at its top.
struct Script<'a> {
    facts: &'a IssuerFacts,
    warnings: Vec<String>,
    text: String,
    steps: usize,
}

impl<'a> Script<'a> {
    fn new(facts: &'a IssuerFacts) -> Self {
        let mut script = Self {
            facts,
            warnings: Vec::new(),
            text: String::new(),
            steps: 0,
        };
        let nameless = facts.keys.iter().any(|key| !key.contains_key("kid"));
        if nameless {
            script.warn("a key of the issuer has no kid, without which tokens are refused");
        }
        if facts.keys.is_empty() {
            script.warn("the issuer publishes no keys");
        }
        script
    }

    fn warn(&mut self, words: impl Into<String>) {
        self.warnings.push(words.into());
    }

    fn check_https(&mut self, who: &str) {
        let issuer = &self.facts.issuer;
        if !issuer.starts_with("https://") {
            let words = format!("{who} takes issuers with https alone, and this one is {issuer}");
            self.warn(words);
        }
    }

    /// Who reads the keys from the internet.
    fn check_public(&mut self, who: &str) {
        self.check_https(who);
        if self.facts.without_scheme().contains(".ts.net") {
            let words = format!(
                "{who} reads the issuer's documents from the internet: serve them through Funnel"
            );
            self.warn(words);
        }
    }

    fn check_plain_address(&mut self, who: &str) {
        let Ok(url) = url::Url::parse(&self.facts.issuer) else {
            self.warn("the issuer's name is no address");
            return;
        };
        if url.port().is_some() {
            self.warn(format!("{who} takes no issuer with a port"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            self.warn(format!("{who} takes no issuer with a query or a fragment"));
        }
    }

    fn check_algorithms(&mut self, who: &str, accepted: &[&str], audience: &str) {
        let known = &self.facts.algorithms;
        let refused: Vec<_> = known
            .iter()
            .filter(|one| !accepted.contains(&one.as_str()))
            .map(String::as_str)
            .collect();
        let words = accepted.join(", ");
        if known.is_empty() {
            self.warn(format!(
                "{who} accepts {words}, and the issuer does not say what it has"
            ));
        } else if refused.len() == known.len() {
            self.warn(format!(
                "{who} accepts {words}, and the issuer signs with {} alone",
                refused.join(", ")
            ));
        } else if !refused.is_empty() {
            self.warn(format!(
                "{who} accepts {words} alone: let the issuer sign with one of them for {audience}, \
                 and not with {}",
                refused.join(", ")
            ));
        }
    }

    /// Observed limits of its token service.
    fn check_keys_for_aws(&mut self) {
        let keys = &self.facts.keys;
        let count = |kty: &str| {
            keys.iter()
                .filter(|key| key.get("kty").is_some_and(|value| value == kty))
                .count()
        };
        if keys.iter().any(|key| key.contains_key("key_ops")) {
            self.warn("AWS refuses keys with key_ops");
        }
        let other_use = |key: &Map<String, Value>| key.get("use").is_some_and(|use_| use_ != "sig");
        if keys.iter().any(other_use) {
            self.warn("AWS refuses keys whose use is not sig");
        }
        if count("RSA") > 100 || count("EC") > 100 {
            self.warn("AWS takes at most 100 RSA and 100 EC keys");
        }
    }

    fn step(&mut self, words: &str) {
        self.steps += 1;
        let _ = writeln!(self.text, "\n# {}. {words}", self.steps);
    }

    fn line(&mut self, line: &str) {
        let _ = writeln!(self.text, "{line}");
    }

    /// A command, a part on each line.
    fn command(&mut self, parts: &[&str]) {
        let command = parts.join(" \\\n    ");
        self.line(&command);
    }

    fn file(&mut self, name: &str, content: &Value) {
        let _ = writeln!(self.text, "cat >{name} <<'EOF'\n{content:#}\nEOF");
    }

    fn agent(&mut self, audience: &str, path: &str) {
        let server = format!("--server {}", quote(&self.facts.server));
        let write = format!("--write {}", quote(&format!("{audience}={path}")));
        self.command(&["tailbone workload agent", &server, &write]);
    }

    fn finish(self) -> String {
        let mut whole = format!("# Issuer: {}\n", self.facts.issuer);
        for warning in &self.warnings {
            let _ = writeln!(whole, "# Warning: {warning}.");
        }
        whole + &self.text
    }
}
