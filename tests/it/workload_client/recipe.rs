//! `tailbone workload recipe`.

use serde_json::{Map, Value, json};
use tailbone::workload::client::recipe::{
    self, AwsRecipe, AzureRecipe, AzureTarget, GcpRecipe, IssuerFacts, KubernetesRecipe,
    TailscaleRecipe, VaultRecipe,
};

use super::*;

const SUBJECT: &str = "nABC123CNTRL";

fn key(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// An issuer that everybody can trust.
fn facts() -> IssuerFacts {
    IssuerFacts {
        server: "https://tsiam.tail1234.ts.net".to_owned(),
        issuer: "https://id.example.com".to_owned(),
        algorithms: vec!["RS256".to_owned()],
        keys: vec![key(json!({
            "kty": "RSA", "alg": "RS256", "use": "sig", "kid": "k1", "n": "AQ", "e": "AQAB",
        }))],
    }
}

fn aws_recipe() -> AwsRecipe {
    AwsRecipe {
        audience: "sts.amazonaws.com".to_owned(),
        subject: SUBJECT.to_owned(),
        account: "123456789012".to_owned(),
        role: "web".to_owned(),
        policy_arn: Some("arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess".to_owned()),
        partition: "aws".to_owned(),
    }
}

fn gcp_recipe() -> GcpRecipe {
    GcpRecipe {
        audience: None,
        subject: SUBJECT.to_owned(),
        project: "acme".to_owned(),
        project_number: "123".to_owned(),
        pool: "tailnet".to_owned(),
        provider: "tailbone".to_owned(),
        service_account: Some("web@acme.iam.gserviceaccount.com".to_owned()),
        upload_keys: false,
    }
}

fn azure_recipe(subject: &str) -> AzureRecipe {
    AzureRecipe {
        audience: "api://AzureADTokenExchange".to_owned(),
        subject: subject.to_owned(),
        name: "web".to_owned(),
        target: AzureTarget::ManagedIdentity {
            name: "web-identity".to_owned(),
            resource_group: "acme".to_owned(),
        },
    }
}

#[test]
fn each_recipe_is_complete() {
    let facts = facts();
    let mut all = recipe::aws(&facts, &aws_recipe());
    all += &recipe::azure(&facts, &azure_recipe(SUBJECT));
    all += &recipe::gcp(&facts, &gcp_recipe());
    all += &recipe::vault(
        &facts,
        &VaultRecipe {
            audience: "vault".to_owned(),
            subject: SUBJECT.to_owned(),
            role: "web".to_owned(),
            policy: "web".to_owned(),
            mount: "jwt".to_owned(),
        },
    );
    all += &recipe::kubernetes(
        &facts,
        &KubernetesRecipe {
            audience: "kubernetes".to_owned(),
            subject: SUBJECT.to_owned(),
            cluster_role: "view".to_owned(),
        },
    );
    all += &recipe::tailscale(
        &facts,
        &TailscaleRecipe {
            client_id: "kXYZ".to_owned(),
            subject: SUBJECT.to_owned(),
            audience: None,
        },
    );
    insta::assert_snapshot!(all);
}

fn warnings(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("# Warning: "))
        .collect()
}

#[test]
fn limits_are_told() {
    let mut facts = facts();
    facts.issuer = "https://tsiam.tail1234.ts.net:8443".to_owned();
    facts.algorithms = vec!["EdDSA".to_owned(), "ES256".to_owned()];
    facts.keys[0].insert("key_ops".to_owned(), json!(["verify"]));
    let aws = recipe::aws(&facts, &aws_recipe());
    assert_eq!(
        warnings(&aws),
        [
            "AWS reads the issuer's documents from the internet: serve them through Funnel.",
            "AWS takes no issuer with a port.",
            "AWS accepts RS256, RS384, RS512, ES256, ES384, ES512 alone: let the issuer sign with \
             one of them for sts.amazonaws.com, and not with EdDSA.",
            "AWS refuses keys with key_ops.",
        ]
    );
    let azure = recipe::azure(&facts, &azure_recipe("web-*"));
    let azure = warnings(&azure);
    assert!(
        azure.contains(&"Entra accepts RS256, and the issuer signs with EdDSA, ES256 alone."),
        "{azure:?}"
    );
    assert!(
        azure.contains(&"Entra compares the subject as it is: it knows no wildcards."),
        "{azure:?}"
    );
    facts.algorithms = vec!["ES384".to_owned()];
    let mut recipe = gcp_recipe();
    recipe.upload_keys = true;
    recipe.subject = "s".repeat(128);
    let gcp = recipe::gcp(&facts, &recipe);
    let told = warnings(&gcp);
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[0].contains("upload the keys again"), "{told:?}");
    assert!(told[1].contains("RS256, ES256"), "{told:?}");
    assert!(told[2].contains("127 bytes"), "{told:?}");
    assert!(gcp.contains("--jwk-json-path=jwks.json"));
    assert!(!gcp.contains("key_ops"), "Google refuses other members");
}

#[test]
fn a_wildcard_becomes_the_condition_that_knows_it() {
    let mut recipe = aws_recipe();
    recipe.subject = "*.tail1234.ts.net".to_owned();
    let text = recipe::aws(&facts(), &recipe);
    assert!(text.contains("StringLike"), "{text}");
    assert!(text.contains("\"id.example.com:sub\": \"*.tail1234.ts.net\""));
}

/// A value from the command line is one word of the shell.
#[test]
fn the_scripts_are_shell_and_quote_what_they_are_given() {
    let mut recipe = aws_recipe();
    recipe.role = "o'brien $(touch /tmp/x)".to_owned();
    let text = recipe::aws(&facts(), &recipe);
    assert!(
        text.contains(r"--role-name 'o'\''brien $(touch /tmp/x)'"),
        "{text}"
    );
    let mut shell = std::process::Command::new("bash")
        .args(["-n"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut shell.stdin.take().unwrap(), text.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
}

#[tokio::test]
async fn the_command_reads_the_issuers_documents() {
    let issuer = FakeIssuer::start().await;
    let server = issuer.url.as_str();
    let line = [
        "recipe",
        "vault",
        "--server",
        server,
        "--subject",
        "s",
        "--role",
        "r",
    ];
    let text = run(&line).await.unwrap();
    assert!(text.starts_with(&format!("# Issuer: {server}\n")), "{text}");
    assert_eq!(
        warnings(&text),
        [format!(
            "Vault takes issuers with https alone, and this one is {server}."
        )]
    );
    *issuer.state.named.lock().unwrap() = "https://x\ntouch /tmp/x".to_owned();
    let error = words(&run(&line).await.unwrap_err());
    assert!(error.ends_with("contains odd characters"), "{error}");
    let line = ["recipe", "azure", "--server", server, "--subject", "s"];
    assert!(matches!(run(&line).await, Err(WorkloadError::Usage(_))));
}
