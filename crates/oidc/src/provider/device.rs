//! Logins of devices (RFC 8628): their beginning at `/device_authorization`, and what a person
//! decides on the page `/device`.
//!
//! Invariants
//! - Only a client that registered the grant type begins one.
//! - A code that a person typed is looked up once they have tries left, and each wrong one counts.
//! - What the device gets is what the person may have at the time of the decision.

use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Admission, Caller, Confirmation, Denial, Provider, no_random, rules_of, store_failed, written,
};
use crate::{
    OidcError, Params,
    authorize::{self, Refused},
    claims::{ClaimsRequest, Granted, Identity},
    client::ClientMetadata,
    device::{self, DEVICE_CODE_GRANT, DeviceAnswer},
    discovery::{DEVICE_PATH, url_of},
    grant::GrantDetails,
    store::{DeviceDecision, DeviceRequest, Grant, GrantId},
};

/// What a device asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct DeviceDetails {
    scopes: Vec<String>,
    #[serde(default)]
    scopes_narrowed: bool,
    #[serde(default)]
    resources: Vec<String>,
}

/// What the page asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceQuestion {
    pub client_id: String,
    pub client: ClientMetadata,
    /// As the device shows it.
    pub user_code: String,
    /// What the client will be told about the person.
    pub told: Map<String, Value>,
    /// What the device wants tokens for.
    pub resources: Vec<String>,
}

/// What came of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decided {
    Approved {
        client_id: String,
    },
    Cancelled {
        client_id: String,
    },
    /// The person may not log in to this application. The device hears that it is refused.
    Denied {
        client_id: String,
        denial: Denial,
    },
    /// The device asks for resources of which the person may have none. It hears that it is
    /// refused.
    NotAllowed {
        client_id: String,
    },
    /// Nobody waits for this code, or somebody else has decided.
    Unknown,
}

impl Provider {
    /// Begins a login of a device.
    pub async fn start_device(
        &self,
        form: &Params,
        authorization: Option<&str>,
        caller: &Caller,
        now: Timestamp,
    ) -> Result<DeviceAnswer, OidcError> {
        form.check_duplicates()?;
        let client = self.client_for(DEVICE_CODE_GRANT, form, authorization, now);
        let (client_id, _) = client.await?;
        let refused = |refused: Refused| OidcError::bad(refused.code, refused.description);
        let scope = form.get("scope").unwrap_or_default();
        let scopes = authorize::parse_scopes(scope, self.settings.unknown_scopes);
        let (scopes, scopes_narrowed) = scopes.map_err(refused)?;
        let details = DeviceDetails {
            scopes,
            scopes_narrowed,
            resources: authorize::resources(form).map_err(refused)?,
        };
        let details = serde_json::to_string(&details).map_err(written)?;
        let who = caller.owner().unwrap_or_else(|| client_id.clone());
        if !self.new_devices.take(&who, now) {
            return Err(too_many("more devices wait for a person than may"));
        }
        let page = url_of(&self.settings.issuer, DEVICE_PATH);
        let started = device::start(&*self.store, &client_id, &details, &page, now).await;
        started.map_err(store_failed)
    }

    /// The device that waits for this code, if there is one.
    pub async fn device_question(
        &self,
        user_code: &str,
        person: &Identity,
        now: Timestamp,
    ) -> Result<Option<DeviceQuestion>, OidcError> {
        let Some((device, client)) = self.waiting_device(user_code, person, now).await? else {
            return Ok(None);
        };
        let details: DeviceDetails = serde_json::from_str(&device.details).map_err(written)?;
        let told = self.told(Granted {
            client_id: &device.client_id,
            identity: person,
            scopes: &details.scopes,
            resources: &details.resources,
            wishes: &ClaimsRequest::default(),
        });
        Ok(Some(DeviceQuestion {
            told,
            client_id: device.client_id,
            client,
            user_code: device::tidied_user_code(user_code).unwrap_or_default(),
            resources: details.resources,
        }))
    }

    /// Takes the person's decision.
    pub async fn decide_device(
        &self,
        user_code: &str,
        person: &Identity,
        confirmation: Confirmation,
        now: Timestamp,
    ) -> Result<Decided, OidcError> {
        let Some((device, _)) = self.waiting_device(user_code, person, now).await? else {
            return Ok(Decided::Unknown);
        };
        let client_id = device.client_id.clone();
        let admission = match self.client(&client_id, now).await? {
            Some((client, _)) => self.admission(person, &client).await?,
            None => return Ok(Decided::Unknown),
        };
        let (decision, decided) = match (confirmation, admission) {
            (Confirmation::Cancelled, _) => {
                (DeviceDecision::Denied, Decided::Cancelled { client_id })
            }
            (Confirmation::Confirmed, Admission::Denied(denial)) => (
                DeviceDecision::Denied,
                Decided::Denied { client_id, denial },
            ),
            (Confirmation::Confirmed, Admission::Allowed) => {
                match self.device_grant(&device, person, now)? {
                    Some(grant) => (
                        DeviceDecision::Approved(grant),
                        Decided::Approved { client_id },
                    ),
                    None => (DeviceDecision::Denied, Decided::NotAllowed { client_id }),
                }
            }
        };
        if let Decided::Approved { client_id } = &decided
            && let Some((client, _)) = self.client(client_id, now).await?
        {
            self.note_use(&client, now).await?;
        }
        let done = self
            .store
            .decide_device(device.user_code, &decision, now)
            .await;
        Ok(if done.map_err(store_failed)? {
            decided
        } else {
            Decided::Unknown
        })
    }

    async fn waiting_device(
        &self,
        user_code: &str,
        person: &Identity,
        now: Timestamp,
    ) -> Result<Option<(DeviceRequest, ClientMetadata)>, OidcError> {
        let Some(user_code) = device::typed_user_code(user_code) else {
            return Ok(None);
        };
        let who = person.subject();
        if !self.user_codes.take(&who, now) {
            return Err(too_many("too many wrong codes: try again in 15 minutes"));
        }
        let Some(device) = self
            .store
            .device(user_code, now)
            .await
            .map_err(store_failed)?
        else {
            return Ok(None);
        };
        self.user_codes.give_back(&who);
        let client = self.client(&device.client_id, now).await?;
        Ok(client.map(|(_, client)| (device, client)))
    }

    /// `None`: the person may have none of the resources.
    fn device_grant(
        &self,
        device: &DeviceRequest,
        person: &Identity,
        now: Timestamp,
    ) -> Result<Option<Grant>, OidcError> {
        let asked: DeviceDetails = serde_json::from_str(&device.details).map_err(written)?;
        let resources = rules_of(person)?.allowed(&person.login, &asked.resources);
        if resources.is_empty() && !asked.resources.is_empty() {
            return Ok(None);
        }
        let details = GrantDetails {
            identity: person.clone(),
            scopes: asked.scopes,
            scopes_narrowed: asked.scopes_narrowed,
            resources,
            auth_time: Some(now.as_second()),
            ..GrantDetails::default()
        };
        Ok(Some(Grant {
            id: GrantId::random().map_err(no_random)?,
            client_id: device.client_id.clone(),
            subject: Some(person.subject()),
            // The device stays logged in when the browser that approved it is not any more.
            session: None,
            created_at: now,
            details: serde_json::to_string(&details).map_err(written)?,
        }))
    }
}

pub(super) fn too_many(words: &'static str) -> OidcError {
    OidcError::new(StatusCode::TOO_MANY_REQUESTS, "invalid_request", words)
}
