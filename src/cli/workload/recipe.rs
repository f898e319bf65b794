//! `tailbone workload recipe`.

use std::io::Write;

use clap::{Args, Subcommand};

use super::{Connection, Surroundings, WorkloadError, usage};
use crate::workload::client::{
    aws,
    recipe::{
        self, AwsRecipe, AzureRecipe, AzureTarget, GcpRecipe, IssuerFacts, KubernetesRecipe,
        TailscaleRecipe, VaultRecipe,
    },
};

#[derive(Debug, Args)]
pub struct Recipe {
    #[command(subcommand)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Target {
    /// An OIDC provider and a role of AWS
    Aws(Aws),
    /// A federated identity credential of Microsoft Entra
    Azure(Azure),
    /// A workload identity pool of Google Cloud
    Gcp(Gcp),
    /// Authentication configuration of Kubernetes' API server
    Kubernetes(Kubernetes),
    /// A federated identity of Tailscale, for its API
    Tailscale(Tailscale),
    /// The jwt auth method of Vault or OpenBao
    Vault(Vault),
}

/// What every recipe needs.
#[derive(Debug, Args)]
struct Common {
    #[command(flatten)]
    connection: Connection,
    /// The sub claim of the machine's tokens, as the issuer makes it
    #[arg(long, value_name = "SUBJECT")]
    subject: String,
}

#[derive(Debug, Args)]
struct Aws {
    #[command(flatten)]
    common: Common,
    /// Who shall accept the token
    #[arg(long, value_name = "AUDIENCE", default_value = aws::AUDIENCE)]
    audience: String,
    /// Number of the account
    #[arg(long, value_name = "NUMBER")]
    account: String,
    /// Name of the role
    #[arg(long, value_name = "NAME")]
    role: String,
    /// Policy that the role gets
    #[arg(long, value_name = "ARN")]
    policy_arn: Option<String>,
    /// Partition of the account
    #[arg(long, value_name = "NAME", default_value = "aws")]
    partition: String,
}

#[derive(Debug, Args)]
struct Azure {
    #[command(flatten)]
    common: Common,
    /// Who shall accept the token
    #[arg(
        long,
        value_name = "AUDIENCE",
        default_value = "api://AzureADTokenExchange"
    )]
    audience: String,
    /// Name of the credential
    #[arg(long, value_name = "NAME", default_value = "tailnet")]
    name: String,
    /// Application (client) that gets the credential
    #[arg(long, value_name = "ID", conflicts_with = "identity")]
    app_id: Option<String>,
    /// Managed identity that gets it instead
    #[arg(long, value_name = "NAME", requires = "resource_group")]
    identity: Option<String>,
    /// Resource group of the managed identity
    #[arg(long, value_name = "NAME")]
    resource_group: Option<String>,
}

#[derive(Debug, Args)]
struct Gcp {
    #[command(flatten)]
    common: Common,
    /// Audience that the provider shall allow [default: the provider's name]
    #[arg(long, value_name = "AUDIENCE")]
    audience: Option<String>,
    /// Name of the project
    #[arg(long, value_name = "NAME")]
    project: String,
    /// Number of the project
    #[arg(long, value_name = "NUMBER")]
    project_number: String,
    /// Name of the pool
    #[arg(long, value_name = "NAME", default_value = "tailnet")]
    pool: String,
    /// Name of the provider
    #[arg(long, value_name = "NAME", default_value = "tailbone")]
    provider: String,
    /// Service account that the machine acts as
    #[arg(long, value_name = "EMAIL")]
    service_account: Option<String>,
    /// Upload the issuer's keys, so that Google need not reach it
    #[arg(long)]
    upload_keys: bool,
}

#[derive(Debug, Args)]
struct Kubernetes {
    #[command(flatten)]
    common: Common,
    /// Who shall accept the token
    #[arg(long, value_name = "AUDIENCE", default_value = "kubernetes")]
    audience: String,
    /// What the machine may do
    #[arg(long, value_name = "NAME", default_value = "view")]
    cluster_role: String,
}

#[derive(Debug, Args)]
struct Tailscale {
    #[command(flatten)]
    common: Common,
    /// Client ID of the credential, which the admin console shows
    #[arg(long, value_name = "ID")]
    client_id: String,
    /// Who shall accept the token [default: api.tailscale.com/ and the client ID]
    #[arg(long, value_name = "AUDIENCE")]
    audience: Option<String>,
}

#[derive(Debug, Args)]
struct Vault {
    #[command(flatten)]
    common: Common,
    /// Who shall accept the token
    #[arg(long, value_name = "AUDIENCE", default_value = "vault")]
    audience: String,
    /// Name of the role
    #[arg(long, value_name = "NAME")]
    role: String,
    /// Policy that the machine gets
    #[arg(long, value_name = "NAME", default_value = "default")]
    policy: String,
    /// Path of the auth method
    #[arg(long, value_name = "PATH", default_value = "jwt")]
    mount: String,
}

impl Recipe {
    pub(super) async fn run<W: Write + ?Sized>(
        self,
        surroundings: &Surroundings<'_>,
        out: &mut W,
    ) -> Result<(), WorkloadError> {
        let common = match &self.target {
            Target::Aws(Aws { common, .. })
            | Target::Azure(Azure { common, .. })
            | Target::Gcp(Gcp { common, .. })
            | Target::Kubernetes(Kubernetes { common, .. })
            | Target::Tailscale(Tailscale { common, .. })
            | Target::Vault(Vault { common, .. }) => common,
        };
        let azure_target = match &self.target {
            Target::Azure(azure) => Some(azure.target()?),
            _ => None,
        };
        let issuer = common.connection.issuer(surroundings.variables)?;
        let facts = IssuerFacts::read(&issuer).await?;
        let text = self.target.text(&facts, azure_target);
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }
}

impl Azure {
    fn target(&self) -> Result<AzureTarget, WorkloadError> {
        match (&self.app_id, &self.identity, &self.resource_group) {
            (Some(id), ..) => Ok(AzureTarget::Application { id: id.clone() }),
            (None, Some(name), Some(resource_group)) => Ok(AzureTarget::ManagedIdentity {
                name: name.clone(),
                resource_group: resource_group.clone(),
            }),
            _ => Err(usage(
                "name what gets the credential: --app-id, or --identity and --resource-group"
                    .to_owned(),
            )),
        }
    }
}

impl Target {
    fn text(self, facts: &IssuerFacts, azure_target: Option<AzureTarget>) -> String {
        match self {
            Self::Aws(aws) => {
                let recipe = AwsRecipe {
                    audience: aws.audience,
                    subject: aws.common.subject,
                    account: aws.account,
                    role: aws.role,
                    policy_arn: aws.policy_arn,
                    partition: aws.partition,
                };
                recipe::aws(facts, &recipe)
            }
            Self::Azure(azure) => azure_target.map_or_else(String::new, |target| {
                let recipe = AzureRecipe {
                    audience: azure.audience,
                    subject: azure.common.subject,
                    name: azure.name,
                    target,
                };
                recipe::azure(facts, &recipe)
            }),
            Self::Gcp(gcp) => {
                let recipe = GcpRecipe {
                    audience: gcp.audience,
                    subject: gcp.common.subject,
                    project: gcp.project,
                    project_number: gcp.project_number,
                    pool: gcp.pool,
                    provider: gcp.provider,
                    service_account: gcp.service_account,
                    upload_keys: gcp.upload_keys,
                };
                recipe::gcp(facts, &recipe)
            }
            Self::Kubernetes(kubernetes) => {
                let recipe = KubernetesRecipe {
                    audience: kubernetes.audience,
                    subject: kubernetes.common.subject,
                    cluster_role: kubernetes.cluster_role,
                };
                recipe::kubernetes(facts, &recipe)
            }
            Self::Tailscale(tailscale) => {
                let recipe = TailscaleRecipe {
                    client_id: tailscale.client_id,
                    subject: tailscale.common.subject,
                    audience: tailscale.audience,
                };
                recipe::tailscale(facts, &recipe)
            }
            Self::Vault(vault) => {
                let recipe = VaultRecipe {
                    audience: vault.audience,
                    subject: vault.common.subject,
                    role: vault.role,
                    policy: vault.policy,
                    mount: vault.mount,
                };
                recipe::vault(facts, &recipe)
            }
        }
    }
}
