//! `tailbone workload aws-credentials`.

use std::io::Write;

use clap::Args;
use jiff::Timestamp;

use super::{Connection, Surroundings, WorkloadError, usage};
use crate::{
    http::client::{self, Reach},
    workload::client::aws::{self, RoleRequest},
};

#[derive(Debug, Args)]
pub struct AwsCredentials {
    #[command(flatten)]
    connection: Connection,
    /// The role to take on [AWS_ROLE_ARN]
    #[arg(long, value_name = "ARN")]
    role_arn: Option<String>,
    /// Name of the session in AWS's log [AWS_ROLE_SESSION_NAME; default: the token's subject]
    #[arg(long, value_name = "NAME")]
    role_session_name: Option<String>,
    /// Life of the credentials [default: what AWS gives, an hour]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(900..=43_200))]
    duration_seconds: Option<u32>,
    /// Who shall accept the token
    #[arg(long, value_name = "AUDIENCE", default_value = aws::AUDIENCE)]
    audience: String,
    /// Region whose token service is asked [AWS_REGION, AWS_DEFAULT_REGION; default: the global
    /// one]
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// Address of the token service [AWS_ENDPOINT_URL_STS, AWS_ENDPOINT_URL; default: by region]
    #[arg(long, value_name = "URL")]
    endpoint_url: Option<String>,
}

impl AwsCredentials {
    pub(super) async fn run<W: Write + ?Sized>(
        self,
        surroundings: &Surroundings<'_>,
        out: &mut W,
    ) -> Result<(), WorkloadError> {
        let variables = surroundings.variables;
        let or =
            |flag: Option<String>, name| flag.or_else(|| variables.text(name).map(str::to_owned));
        let role_arn = or(self.role_arn, "AWS_ROLE_ARN")
            .ok_or_else(|| usage("no role: name it with --role-arn or AWS_ROLE_ARN".to_owned()))?;
        if !role_arn.starts_with("arn:") {
            let example = "arn:aws:iam::123456789012:role/web";
            return Err(usage(format!("{role_arn}: not a role such as {example}")));
        }
        let role = RoleRequest {
            role_arn,
            session_name: or(self.role_session_name, "AWS_ROLE_SESSION_NAME"),
            duration_seconds: self.duration_seconds,
        };
        let endpoint = aws::endpoint(
            self.region.as_deref(),
            self.endpoint_url.as_deref(),
            variables,
        )
        .map_err(usage)?;
        let issuer = self.connection.issuer(variables)?;
        let token = issuer.token(&self.audience, Timestamp::now()).await?;
        // The proxy and the certificates that were named are for the issuer alone.
        let http = client::build(self.connection.timeout, &Reach::default())?;
        let credentials = aws::assume_role(&http, &endpoint, &role, &token.token).await?;
        let text = serde_json::to_string(&credentials).map_err(std::io::Error::other)?;
        writeln!(out, "{text}")?;
        Ok(out.flush()?)
    }
}
