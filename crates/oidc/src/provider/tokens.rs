//! `/token`: codes, refresh tokens and exchanged tokens.

use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{
    Caller, Gone, Inspector, Provider, access::NOT_ADMITTED, access_token::NewAccess, after,
    algorithm_of, clients::Fetching, rules_of, store_failed, written,
};
use crate::{
    OidcError, Params,
    capability::Rules,
    claims::{Granted, IdToken, LIFETIME, Style},
    client::ClientMetadata,
    device::{self, DEVICE_CODE_GRANT},
    grant::{AccessDetails, GrantDetails, REFRESH_LIFETIME},
    store::{AccessToken, Digest, Grant, Issue, Presented as InStore, RefreshToken},
    token::{self, ACCESS_TOKEN_TYPE, Exchange, Presented, TokenAnswer, TokenRequest},
};

/// How long the answer to a refresh may be asked for again, because it was lost.
const LOST_ANSWER: Duration = Duration::from_secs(60);

/// The longest chain of actors. Each exchange with another actor makes it longer.
const MAX_ACTORS: usize = 8;

/// Of a code or token that another client presents.
const OTHERS: &str = "it was given to another client";

/// A code that somebody presents.
struct Redeemed<'a> {
    code: Digest,
    came_from: CameFrom<'a>,
    resources: &'a [String],
}

/// How a code came to its client.
enum CameFrom<'a> {
    Browser {
        redirect_uri: Option<&'a str>,
        verifier: Option<&'a str>,
    },
    /// With the client, which has proven who it is: an assertion proves it once.
    Device {
        client_id: String,
        client: Box<ClientMetadata>,
    },
}

/// A grant that is about to give tokens.
struct Giving<'a> {
    client: &'a ClientMetadata,
    grant: &'a Grant,
    details: &'a GrantDetails,
    rules: &'a Rules,
    resources: Vec<String>,
    /// tsidp repeats it at a refresh; the standard leaves it out there.
    nonce: Option<&'a str>,
}

/// Tokens that are made, and not stored yet.
struct Made {
    id_token: String,
    access_token: Zeroizing<String>,
    stored: AccessToken,
}

impl Provider {
    pub async fn token(
        &self,
        form: &Params,
        authorization: Option<&str>,
        caller: &Caller,
        now: Timestamp,
    ) -> Result<TokenAnswer, OidcError> {
        match TokenRequest::read(form, self.settings.offers)? {
            TokenRequest::ClientCredentials => {
                self.for_program(form, authorization, caller, now).await
            }
            TokenRequest::Code {
                code,
                redirect_uri,
                verifier,
                resources,
            } => {
                let code = Redeemed {
                    code: Digest::of(code),
                    came_from: CameFrom::Browser {
                        redirect_uri,
                        verifier,
                    },
                    resources,
                };
                self.redeem(code, form, authorization, now).await
            }
            TokenRequest::Device {
                device_code,
                resources,
            } => {
                let client = self.client_for(DEVICE_CODE_GRANT, form, authorization, now);
                let (client_id, client) = client.await?;
                let polled = device::poll(&*self.store, device_code, now).await;
                let approved = polled.map_err(store_failed)?;
                let code = approved
                    .map_err(|not_yet| OidcError::bad(not_yet.code(), not_yet.to_string()))?;
                let code = Redeemed {
                    code,
                    came_from: CameFrom::Device {
                        client_id,
                        client: Box::new(client),
                    },
                    resources,
                };
                self.redeem(code, form, authorization, now).await
            }
            TokenRequest::Refresh { token, resources } => {
                let unknown = || OidcError::invalid_grant("invalid refresh token");
                let token = RefreshToken::parse(token).ok_or_else(unknown)?;
                let presented = self.store.present_refresh(&token, LOST_ANSWER, now).await;
                let InStore::Valid(grant) = presented.map_err(store_failed)? else {
                    return Err(unknown());
                };
                let presented = Presented::read(authorization, form)?;
                let client = self.client_of(&grant, presented.as_ref(), now).await?;
                self.refreshed(&token, &grant, &client, resources, now)
                    .await
            }
            TokenRequest::Exchange(exchange) => {
                let inspector = self.inspector(form, authorization, caller, now).await?;
                let refused = || {
                    let words = "invalid client credentials";
                    OidcError::new(StatusCode::UNAUTHORIZED, "invalid_client", words)
                };
                let inspector = inspector.ok_or_else(refused)?;
                self.exchanged(exchange, &inspector, now).await
            }
        }
    }

    /// The tokens of a code, for the client and the request that it was given for.
    async fn redeem(
        &self,
        redeemed: Redeemed<'_>,
        form: &Params,
        authorization: Option<&str>,
        now: Timestamp,
    ) -> Result<TokenAnswer, OidcError> {
        let code = redeemed.code;
        let unknown = || OidcError::invalid_grant("code not found");
        let presented = self.store.present_code(code, now).await;
        let InStore::Valid(grant) = presented.map_err(store_failed)? else {
            return Err(unknown());
        };
        let answered = async {
            let details = details_of(&grant)?;
            let client = match redeemed.came_from {
                CameFrom::Browser {
                    redirect_uri,
                    verifier,
                } => {
                    let presented = Presented::read(authorization, form)?;
                    let client = self.client_of(&grant, presented.as_ref(), now).await?;
                    token::check_redemption(&details, redirect_uri, verifier)?;
                    client
                }
                CameFrom::Device { client_id, .. } if client_id != grant.client_id => {
                    return Err(OidcError::invalid_grant(OTHERS));
                }
                // Only the code of a device has no redirect URI.
                CameFrom::Device { .. } if !details.redirect_uri.is_empty() => {
                    return Err(unknown());
                }
                CameFrom::Device { client, .. } => *client,
            };
            self.first_tokens(code, &grant, details, &client, redeemed.resources, now)
                .await
        };
        match answered.await {
            // Whoever has the code and not what goes with it has stolen it.
            Err(error) if error.status.is_client_error() => {
                let burnt = self.store.burn_code(code).await;
                burnt.map_err(store_failed)?;
                Err(error)
            }
            other => other,
        }
    }

    /// The client that sends the request, which must have registered this grant type.
    pub(super) async fn client_for(
        &self,
        grant_type: &str,
        form: &Params,
        authorization: Option<&str>,
        now: Timestamp,
    ) -> Result<(String, ClientMetadata), OidcError> {
        let refused = || OidcError::invalid_client(StatusCode::UNAUTHORIZED);
        let presented = Presented::read(authorization, form)?.ok_or_else(refused)?;
        let client = self.proven(&presented, now).await?.ok_or_else(refused)?;
        if !client.may_use(grant_type) {
            let words = "the client did not register this grant type";
            return Err(OidcError::bad("unauthorized_client", words));
        }
        Ok((presented.client_id, client))
    }

    /// The client of the grant, if the request proves that it is that client; in tsidp's words.
    async fn client_of(
        &self,
        grant: &Grant,
        presented: Option<&Presented>,
        now: Timestamp,
    ) -> Result<ClientMetadata, OidcError> {
        let refused = || OidcError::invalid_client(StatusCode::UNAUTHORIZED);
        let presented = presented.ok_or_else(refused)?;
        if presented.client_id != grant.client_id {
            // A client that is who it says it is presents what another one was given (RFC 6749,
            // section 5.2).
            if self.proven(presented, now).await?.is_some() {
                return Err(OidcError::invalid_grant(OTHERS));
            }
            return Err(OidcError::invalid_client(StatusCode::BAD_REQUEST));
        }
        let proven = self.proven_by(presented, Fetching::Allowed, now).await?;
        proven.ok_or_else(refused)
    }

    async fn first_tokens(
        &self,
        code: Digest,
        grant: &Grant,
        mut details: GrantDetails,
        client: &ClientMetadata,
        requested: &[String],
        now: Timestamp,
    ) -> Result<TokenAnswer, OidcError> {
        let rules = rules_of(&details.identity)?;
        let resources = token::resources(&details, &rules, requested, "invalid resource")?;
        if details.resources.is_empty() {
            details.resources.clone_from(&resources);
        }
        let giving = Giving {
            client,
            grant,
            details: &details,
            rules: &rules,
            resources,
            nonce: details.nonce.as_deref(),
        };
        let made = self.make(giving, now).await?;
        let issue = Issue {
            access: Some(made.stored.clone()),
            refresh_until: Some(after(now, REFRESH_LIFETIME)),
            details: Some(serde_json::to_string(&details).map_err(written)?),
        };
        let redeemed = self.store.redeem_code(code, &issue, now).await;
        let InStore::Valid(issued) = redeemed.map_err(store_failed)? else {
            return Err(OidcError::invalid_grant("code not found"));
        };
        Ok(answer(made, issued.refresh, &details))
    }

    async fn refreshed(
        &self,
        token: &RefreshToken,
        grant: &Grant,
        client: &ClientMetadata,
        requested: &[String],
        now: Timestamp,
    ) -> Result<TokenAnswer, OidcError> {
        let mut details = details_of(grant)?;
        details.identity = match self.network.again(&details.identity).await {
            Ok(identity) => identity,
            Err(gone @ Gone::Refused(_)) => {
                tracing::info!(target: "oidc", client_id = grant.client_id, login = details.identity.login, reason = %gone, "a grant was revoked");
                let revoked = self.store.revoke_grant(grant.id, now).await;
                revoked.map_err(store_failed)?;
                if let Some(session) = grant.session {
                    self.end_session(session, now).await?;
                }
                return Err(OidcError::invalid_grant(
                    "the person or the device is not allowed any more",
                ));
            }
            Err(gone @ Gone::Unavailable(_)) => {
                tracing::error!(target: "oidc", reason = %gone, "no refresh");
                return Err(OidcError::unavailable());
            }
        };
        let identity = &details.identity;
        if !self.admits(identity, &grant.client_id, now).await? {
            let revoked = self.store.revoke_grant(grant.id, now).await;
            revoked.map_err(store_failed)?;
            return Err(OidcError::invalid_grant(NOT_ADMITTED));
        }
        let rules = rules_of(&details.identity)?;
        let refused = "resource validation failed";
        let resources = token::resources(&details, &rules, requested, refused)?;
        if details.resources.is_empty() {
            details.resources.clone_from(&resources);
        }
        let nonce = details.nonce.as_deref();
        let giving = Giving {
            client,
            grant,
            details: &details,
            rules: &rules,
            resources,
            nonce: nonce.filter(|_| self.settings.style == Style::Tsidp),
        };
        let made = self.make(giving, now).await?;
        let issue = Issue {
            access: Some(made.stored.clone()),
            refresh_until: Some(after(now, REFRESH_LIFETIME)),
            details: Some(serde_json::to_string(&details).map_err(written)?),
        };
        let rotated = self
            .store
            .rotate_refresh(token, LOST_ANSWER, &issue, now)
            .await;
        let InStore::Valid(issued) = rotated.map_err(store_failed)? else {
            return Err(OidcError::invalid_grant("invalid refresh token"));
        };
        Ok(answer(made, issued.refresh, &details))
    }

    async fn make(&self, giving: Giving<'_>, now: Timestamp) -> Result<Made, OidcError> {
        let details = giving.details;
        let id = Uuid::new_v4().simple().to_string();
        let wanted = NewAccess {
            client: Some(giving.client),
            client_id: &giving.grant.client_id,
            subject: &details.identity.subject(),
            auth_time: details.auth_time,
            details: AccessDetails {
                scopes: details.scopes.clone(),
                resources: giving.resources.clone(),
                id: Some(id.clone()),
                ..AccessDetails::default()
            },
            expires_at: after(now, LIFETIME),
        };
        let (access_token, stored) = self.new_access(wanted, now).await?;
        let algorithm = algorithm_of(giving.client, &self.keys);
        let granted = Granted {
            client_id: &giving.grant.client_id,
            identity: &details.identity,
            scopes: &details.scopes,
            resources: &giving.resources,
            wishes: &details.claims,
        };
        if granted.lacks_groups() {
            tracing::error!(target: "oidc", login = details.identity.login, "no token: the person's groups are not known");
            return Err(OidcError::unavailable());
        }
        let session = giving.grant.session.map(|session| session.text());
        let token = IdToken {
            now: now.as_second(),
            id: &id,
            nonce: giving.nonce,
            auth_time: details.auth_time,
            acr: details.acr.as_deref(),
            session: session.as_deref(),
            access_token: Some((&access_token, algorithm.as_str())),
        };
        let claims = self.claims().id_token(granted, giving.rules, token);
        let claims = claims.map_err(|error| {
            tracing::warn!(target: "oidc", login = details.identity.login, error = %error, "no token");
            OidcError::invalid_request("failed to merge extra claims")
        })?;
        let id_token = self.sign(algorithm, &claims).await?;
        Ok(Made {
            id_token,
            stored,
            access_token,
        })
    }

    /// RFC 8693. The new token is for other audiences, and lives no longer than the subject token.
    async fn exchanged(
        &self,
        exchange: Exchange<'_>,
        inspector: &Inspector,
        now: Timestamp,
    ) -> Result<TokenAnswer, OidcError> {
        let subject = self.access_token(exchange.subject_token, now).await?;
        let (token, grant) = subject.ok_or_else(|| {
            let words = "invalid subject token";
            OidcError::new(StatusCode::UNAUTHORIZED, "invalid_grant", words)
        })?;
        let held: AccessDetails = serde_json::from_str(&token.details).map_err(written)?;
        let details = details_of(&grant)?;
        let denied =
            |words: &'static str| OidcError::new(StatusCode::FORBIDDEN, "access_denied", words);
        // A program that acts for itself logs in nowhere.
        let mut clients = Vec::new();
        if grant.subject.is_some() {
            clients.push(grant.client_id.as_str());
            if let Inspector::Client(exchanging) = inspector
                && *exchanging != grant.client_id
            {
                clients.push(exchanging);
            }
        }
        for client_id in clients {
            if !self.admits(&details.identity, client_id, now).await? {
                return Err(denied(NOT_ADMITTED));
            }
        }
        let rules = rules_of(&details.identity)
            .map_err(|_| denied("failed to unmarshal STS capability"))?;
        let audiences = details.allowed(&rules, exchange.audiences);
        if audiences.is_empty() {
            return Err(denied("access denied for requested audience"));
        }
        let scopes = token::narrowed(&held.scopes, exchange.scope)?;
        let act = match exchange.actor_token {
            None => held.act.clone(),
            Some(actor) => {
                let found = self.access_token(actor, now).await?;
                let (token, grant) = found
                    .ok_or_else(|| OidcError::invalid_request("invalid or expired actor_token"))?;
                let act = actor_of(&token, &grant, held.act.as_ref())?;
                if token::actors(&act) > MAX_ACTORS {
                    let words = "more have acted for each other than may";
                    return Err(OidcError::invalid_request(words));
                }
                Some(act)
            }
        };
        let until = token.expires_at.min(after(now, LIFETIME));
        let exchanger = match inspector {
            Inspector::Client(id) => self.client(id, now).await?.map(|(_, client)| client),
            Inspector::Node(_) => None,
        };
        let wanted = NewAccess {
            client: exchanger.as_ref(),
            client_id: &inspector.name(),
            subject: grant.subject.as_deref().unwrap_or(&grant.client_id),
            auth_time: details.auth_time,
            details: AccessDetails {
                scopes: scopes.clone(),
                resources: audiences,
                exchanged: true,
                act,
                ..AccessDetails::default()
            },
            expires_at: until,
        };
        let (access_token, stored) = self.new_access(wanted, now).await?;
        let added = self.store.add_access_token(grant.id, &stored, now).await;
        if !added.map_err(store_failed)? {
            let words = "invalid subject token";
            return Err(OidcError::new(
                StatusCode::UNAUTHORIZED,
                "invalid_grant",
                words,
            ));
        }
        let scope = scopes.join(" ");
        Ok(TokenAnswer {
            id_token: None,
            issued_token_type: Some(ACCESS_TOKEN_TYPE),
            token_type: "Bearer",
            access_token: access_token.to_string(),
            refresh_token: None,
            expires_in: until.as_second() - now.as_second(),
            scope: exchange
                .scope
                .is_some_and(|asked| asked != scope)
                .then_some(scope),
        })
    }

    /// A living access token and its grant.
    pub(super) async fn access_token(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<Option<(AccessToken, Grant)>, OidcError> {
        let found = self.store.access_token(Digest::of(token), now).await;
        found.map_err(store_failed)
    }
}

/// The actor of a delegation (RFC 8693, section 4.1), with those who acted for the subject before.
/// Where nobody did, those who acted for the actor are told, as in tsidp.
fn actor_of(
    token: &AccessToken,
    grant: &Grant,
    before: Option<&Value>,
) -> Result<Value, OidcError> {
    let held: AccessDetails = serde_json::from_str(&token.details).map_err(written)?;
    let subject = grant.subject.as_ref().unwrap_or(&grant.client_id);
    let mut act = json!({"sub": subject, "client_id": token.client_id});
    if let Some(before) = before.or(held.act.as_ref()) {
        act["act"] = before.clone();
    }
    Ok(act)
}

pub(super) fn details_of(grant: &Grant) -> Result<GrantDetails, OidcError> {
    serde_json::from_str(&grant.details).map_err(written)
}

fn answer(made: Made, refresh: Option<RefreshToken>, details: &GrantDetails) -> TokenAnswer {
    TokenAnswer {
        id_token: Some(made.id_token),
        issued_token_type: None,
        token_type: "Bearer",
        access_token: made.access_token.to_string(),
        refresh_token: refresh.map(|token| token.reveal().to_string()),
        expires_in: LIFETIME,
        scope: details.scopes_narrowed.then(|| details.scopes.join(" ")),
    }
}
