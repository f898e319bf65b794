//! What the tailnet says about a caller, in the words of the provider.

use std::{net::IpAddr, sync::Arc, time::Instant};

use ::http::Extensions;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tailbone_oidc::{
    claims::{self, Device},
    provider::{Admission, Caller, Denial, Gone, Network},
};

use super::{
    access::{LoginAccess, LoginTarget},
    groups::Groups,
};
use crate::{
    identity::{self, Connection, Directory, Refusal, Visitor},
    policy::Effect,
    telemetry::error_chain,
};

/// The sender of a request, and what the tailnet's policy grants it.
#[derive(Debug)]
pub(super) struct KnownCaller {
    pub(super) caller: Caller,
    /// The values of the capability.
    pub(super) grants: Vec<Value>,
}

/// Who sends a request; [`Caller::Unknown`] if that cannot be said, with the reason in the log.
/// Counts the request.
pub(super) async fn known_caller(
    extensions: &Extensions,
    capability: &str,
    groups: &Groups,
) -> Result<KnownCaller, crate::http::Error> {
    let unknown = || KnownCaller {
        caller: Caller::Unknown,
        grants: Vec::new(),
    };
    // A listener of the machine, where nobody has an identity.
    let Ok(connection) = Connection::of(extensions) else {
        return Ok(unknown());
    };
    match connection.visitor().await {
        Ok(visitor) => {
            connection.count_request()?;
            let caller = visitor.caller_any_tailnet();
            Ok(KnownCaller {
                grants: caller.grants(capability).to_vec(),
                caller: caller_of(&visitor, capability, groups),
            })
        }
        Err(Refusal::Funnel) => Ok(unknown()),
        Err(refusal) => {
            let cause = error_chain(&refusal);
            tracing::warn!(target: "oidc", reason = refusal.code(), cause, "a caller could not be identified");
            Ok(unknown())
        }
    }
}

fn caller_of(visitor: &Visitor, capability: &str, groups: &Groups) -> Caller {
    match identity_of(visitor, capability, groups) {
        Some(identity) => Caller::Person(Box::new(identity)),
        None => Caller::Machine {
            node: visitor.node_id().to_owned(),
            tags: match visitor.caller() {
                Ok(identity::Caller::Machine(machine)) => machine.tags.clone(),
                // Tags of another tailnet are not those that our policy means.
                _ => Vec::new(),
            },
            grants: visitor.caller_any_tailnet().grants(capability).to_vec(),
        },
    }
}

/// The person, as tsidp knows them too: also one of another tailnet with whom this node was shared.
fn identity_of(visitor: &Visitor, capability: &str, groups: &Groups) -> Option<claims::Identity> {
    let caller = visitor.caller_any_tailnet();
    let identity::Caller::User(user) = caller else {
        return None;
    };
    Some(claims::Identity {
        user_id: user.id,
        login: user.login.clone(),
        name: user.display_name.clone(),
        picture: visitor.picture().to_owned(),
        device: Device {
            id: visitor.node_id().to_owned(),
            name: visitor.node_name().to_owned(),
            number: visitor.node_number(),
            key: visitor.node_key().to_owned(),
            addresses: visitor.addresses().to_vec(),
        },
        grants: caller.grants(capability).to_vec(),
        groups: groups.of(visitor, Instant::now()),
    })
}

/// The tailnet, asked again about people who logged in before.
#[derive(Debug)]
pub struct TailnetPeople {
    pub directory: Directory,
    pub capability: Arc<str>,
    pub access: Arc<LoginAccess>,
    pub groups: Arc<Groups>,
}

impl TailnetPeople {
    /// Who has this person's device now.
    async fn visitor(&self, identity: &claims::Identity) -> Result<Arc<Visitor>, Gone> {
        let refused = |why: &str| Gone::Refused(why.to_owned());
        let address: Option<&IpAddr> = identity.device.addresses.first();
        let address = *address.ok_or_else(|| refused("the device has no address"))?;
        let visitor = self.directory.visitor(address).await;
        let visitor = visitor.map_err(|refusal| match refusal {
            Refusal::NotRunning { .. } | Refusal::WhoIsFailed(_) => {
                Gone::Unavailable(error_chain(&refusal))
            }
            other => Gone::Refused(other.to_string()),
        })?;
        if visitor.node_id() != identity.device.id {
            return Err(refused("the address is that of another device"));
        }
        Ok(visitor)
    }
}

impl Network for TailnetPeople {
    fn again<'a>(
        &'a self,
        identity: &'a claims::Identity,
    ) -> BoxFuture<'a, Result<claims::Identity, Gone>> {
        Box::pin(async move {
            let visitor = self.visitor(identity).await?;
            let refused = |why: &str| Gone::Refused(why.to_owned());
            match identity_of(&visitor, &self.capability, &self.groups) {
                Some(now) if now.user_id == identity.user_id => Ok(now),
                Some(_) => Err(refused("the device belongs to somebody else")),
                None => Err(refused("the device has tags")),
            }
        })
    }

    fn admits<'a>(
        &'a self,
        identity: &'a claims::Identity,
        client_id: &'a str,
        registered: bool,
        access: &'a [String],
    ) -> BoxFuture<'a, Result<Admission, Gone>> {
        Box::pin(async move {
            let visitor = self.visitor(identity).await?;
            let login = LoginTarget {
                client_id: client_id.to_owned(),
                registered,
            };
            let verdict = self.access.decide_with(&visitor, &login, access);
            if verdict.effect == Effect::Allow {
                return Ok(Admission::Allowed);
            }
            Ok(Admission::Denied(Denial {
                rule: verdict.rule.to_string(),
                contact: self.access.contact(),
            }))
        })
    }
}
