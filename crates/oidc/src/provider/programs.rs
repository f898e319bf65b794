//! The client credentials grant: tokens for a program that acts for itself (RFC 6749, section 4.4).
//! It is a client that shows its secret, or a tagged machine that the network knows.
//!
//! Invariants
//! - There is no person: no ID token, no refresh token, nothing at `/userinfo`. The subject is the
//!   client or the machine, and can never be the subject of a person.
//! - Audiences are those that the tailnet's policy gives the program by name: `client:` and its id,
//!   or a tag. The policy is that of the node which sends the request, so through Funnel there is
//!   none.

use http::StatusCode;
use jiff::Timestamp;

use super::{
    Caller, Provider, access_token::NewAccess, after, no_random, rules_of, store_failed, written,
};
use crate::{
    OidcError, Params,
    authorize::{self, Refused},
    claims::{Identity, LIFETIME},
    client::ClientMetadata,
    grant::{AccessDetails, GrantDetails},
    store::{Grant, GrantId, Issue},
    token::{CLIENT_CREDENTIALS, Presented, TokenAnswer},
};

/// Beginnings of subjects that no client may take for its own.
const OTHERS: [&str; 2] = ["node:", "userid:"];

/// Who asks for a token of their own.
struct Program {
    /// The client's id, or the machine's; the subject of the token.
    name: String,
    /// By which policy knows it.
    names: Vec<String>,
    /// `None`: a machine that is no client.
    client: Option<ClientMetadata>,
}

impl Provider {
    pub(super) async fn for_program(
        &self,
        form: &Params,
        authorization: Option<&str>,
        caller: &Caller,
        now: Timestamp,
    ) -> Result<TokenAnswer, OidcError> {
        let program = self.program(form, authorization, caller, now).await?;
        let refused = |refused: Refused| OidcError::bad(refused.code, refused.description);
        let asked = authorize::resources(form).map_err(refused)?;
        let scope = form.get("scope");
        // Those that are known are about people, so none is left.
        let unknown = self.settings.unknown_scopes;
        authorize::parse_scopes(scope.unwrap_or_default(), unknown).map_err(refused)?;
        if asked.is_empty() && program.client.is_none() {
            let words = "a machine must name the resource that its token is for";
            return Err(OidcError::bad("invalid_target", words));
        }
        let identity = Identity {
            grants: caller.grants().to_vec(),
            ..Identity::default()
        };
        let rules = rules_of(&identity)?;
        let mut details = GrantDetails {
            identity,
            program: program.names,
            ..GrantDetails::default()
        };
        details.resources = details.allowed(&rules, &asked);
        if details.resources.is_empty() && !asked.is_empty() {
            let words = "policy gives the program none of these resources";
            return Err(OidcError::bad("invalid_target", words));
        }
        let wanted = NewAccess {
            client: program.client.as_ref(),
            client_id: &program.name,
            subject: &program.name,
            auth_time: None,
            details: AccessDetails {
                resources: details.resources.clone(),
                exchanged: program.client.is_none(),
                ..AccessDetails::default()
            },
            expires_at: after(now, LIFETIME),
        };
        let (access_token, stored) = self.new_access(wanted, now).await?;
        let grant = Grant {
            id: GrantId::random().map_err(no_random)?,
            client_id: program.name.clone(),
            subject: None,
            session: None,
            created_at: now,
            details: serde_json::to_string(&details).map_err(written)?,
        };
        let issue = Issue {
            access: Some(stored),
            refresh_until: None,
            details: None,
        };
        let issued = self.store.issue(&grant, &issue, now).await;
        issued.map_err(store_failed)?;
        Ok(TokenAnswer {
            id_token: None,
            issued_token_type: None,
            token_type: "Bearer",
            access_token: access_token.to_string(),
            refresh_token: None,
            expires_in: LIFETIME,
            scope: scope.map(|_| String::new()),
        })
    }

    /// A client that shows its secret; without one, the machine that the network says it is.
    async fn program(
        &self,
        form: &Params,
        authorization: Option<&str>,
        caller: &Caller,
        now: Timestamp,
    ) -> Result<Program, OidcError> {
        if Presented::read(authorization, form)?.is_none()
            && let Caller::Machine { node, tags, .. } = caller
        {
            return Ok(Program {
                name: format!("node:{node}"),
                names: tags.clone(),
                client: None,
            });
        }
        let client = self.client_for(CLIENT_CREDENTIALS, form, authorization, now);
        let (id, metadata) = client.await?;
        let unfit = metadata.is_public() || OTHERS.iter().any(|other| id.starts_with(other));
        if unfit {
            let words = "the client does not authenticate, or has an id that others could have";
            return Err(OidcError::new(
                StatusCode::BAD_REQUEST,
                "unauthorized_client",
                words,
            ));
        }
        if let Some((client, _)) = self.client(&id, now).await? {
            self.note_use(&client, now).await?;
        }
        Ok(Program {
            names: vec![format!("client:{id}")],
            name: id,
            client: Some(metadata),
        })
    }
}
