//! Who may log in at which client: the network's rules are asked at each step that gives a client
//! something about a person.

use jiff::Timestamp;

use super::{Gone, Provider};
use crate::{
    OidcError,
    claims::Identity,
    client::ClientMetadata,
    store::{Client, ClientOrigin},
};

/// What the application hears. Which rule it was is for the person and for the log.
pub(super) const NOT_ADMITTED: &str = "the person may not log in to this application";

/// The word of the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    Allowed,
    Denied(Denial),
}

/// Why somebody may not log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The rule that decided, as logs and `policy test` name it.
    pub rule: String,
    /// Whom to ask.
    pub contact: Option<String>,
}

/// What the entry of the client says of who may log in. A document that describes a client has no
/// entry, and no say.
fn access_of(client: &Client) -> Result<Vec<String>, OidcError> {
    if client.metadata.is_empty() {
        return Ok(Vec::new());
    }
    let read = ClientMetadata::from_stored(&client.metadata);
    read.map(|metadata| metadata.access).map_err(|error| {
        tracing::error!(target: "oidc", client_id = client.id, error = %error, "the entry of the client cannot be read");
        OidcError::unavailable()
    })
}

impl Provider {
    /// Asked at the login, at each refresh and at an exchange, since rules and people change in
    /// between.
    pub async fn admission(
        &self,
        identity: &Identity,
        client: &Client,
    ) -> Result<Admission, OidcError> {
        let registered = match client.origin {
            ClientOrigin::Registered => true,
            ClientOrigin::Admin | ClientOrigin::File | ClientOrigin::Tsidp => false,
        };
        let access = access_of(client)?;
        let asked = self
            .network
            .admits(identity, &client.id, registered, &access)
            .await;
        let admission = match asked {
            Ok(admission) => admission,
            Err(gone @ Gone::Unavailable(_)) => {
                tracing::error!(target: "oidc", reason = %gone, "who may log in cannot be said");
                return Err(OidcError::unavailable());
            }
            Err(Gone::Refused(reason)) => Admission::Denied(Denial {
                rule: reason,
                contact: None,
            }),
        };
        if let Admission::Denied(denial) = &admission {
            tracing::info!(target: "oidc", client_id = client.id, login = identity.login, rule = denial.rule, "a person may not log in");
        }
        Ok(admission)
    }

    /// Whether the person may log in at the client of this id.
    pub async fn admits(
        &self,
        identity: &Identity,
        client_id: &str,
        now: Timestamp,
    ) -> Result<bool, OidcError> {
        let Some((client, _)) = self.client(client_id, now).await? else {
            return Ok(false);
        };
        Ok(self.admission(identity, &client).await? == Admission::Allowed)
    }
}
