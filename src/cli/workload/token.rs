//! `tailbone workload token`.

use std::io::Write;

use clap::Args;
use jiff::Timestamp;

use super::{Connection, Surroundings, WorkloadError};
use crate::{config::OutputFormat, workload::client::issuer::IssuedToken};

#[derive(Debug, Args)]
pub struct Token {
    #[command(flatten)]
    connection: Connection,
    /// Who shall accept the token, such as sts.amazonaws.com
    #[arg(long, value_name = "AUDIENCE")]
    audience: String,
    /// Print the token without a line end
    #[arg(long)]
    raw: bool,
}

impl Token {
    pub(super) async fn run<W: Write + ?Sized>(
        self,
        surroundings: &Surroundings<'_>,
        out: &mut W,
    ) -> Result<(), WorkloadError> {
        let issuer = self.connection.issuer(surroundings.variables)?;
        let token = issuer.token(&self.audience, Timestamp::now()).await?;
        let text = match (self.raw, surroundings.format) {
            (true, _) => token.token.reveal().to_owned(),
            (false, OutputFormat::Text) => format!("{}\n", token.token.reveal()),
            (false, OutputFormat::Json) => format!("{}\n", object(&token)),
            (false, OutputFormat::Yaml) => {
                yaml_serde::to_string(&object(&token)).map_err(std::io::Error::other)?
            }
        };
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }
}

fn object(token: &IssuedToken) -> serde_json::Value {
    serde_json::json!({
        "access_token": token.token.reveal(),
        "token_type": "Bearer",
        "expires_in": token.life.as_secs(),
        "expires_on": token.expires.as_second(),
    })
}
