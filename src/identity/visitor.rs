//! A caller together with the tailnet that they come from, which may be another than ours.

use jiff::Timestamp;

use super::{Caller, Refusal};
use crate::tailnet::WhoIs;

/// Whoever the network vouches for. Of another tailnet are those to whom our node was shared (sharees), and nodes that were
/// shared into ours. Most of the program must not see them: [`Visitor::caller`] refuses them, and only
/// [`Visitor::even_foreign`] hands them out.
#[derive(Debug, Clone, PartialEq)]
pub struct Visitor {
    caller: Caller,
    foreign: bool,
    tailnet: String,
    node_id: String,
    node_name: String,
    key_expiry: Option<Timestamp>,
    picture: String,
}

impl Visitor {
    /// Reads WhoIs' answer. `own_tailnet` is the MagicDNS suffix of ours. The tailnet of a caller is told by comparing, never by
    /// cutting at a name that the caller's own client made up; a sharee's is not known at all.
    pub fn from_whois(whois: WhoIs, own_tailnet: &str) -> Result<Self, Refusal> {
        let foreign = !whois.same_tailnet;
        let name = whois.node.name.trim_end_matches('.').to_owned();
        let tailnet = if foreign {
            name.split_once('.')
                .map(|(_, suffix)| suffix.to_owned())
                .unwrap_or_default()
        } else {
            own_tailnet.trim_matches('.').to_owned()
        };
        let node_id = whois.node.id.clone();
        let node_name = if name.is_empty() {
            whois.node.hostname.clone()
        } else {
            name
        };
        let key_expiry = whois.node.key_expiry;
        let picture = whois.user.picture.clone();
        Ok(Self {
            caller: Caller::of_any_tailnet(whois)?,
            foreign,
            tailnet,
            node_id,
            node_name,
            key_expiry,
            picture,
        })
    }

    /// `Err` from the moment on at which the node's key expires. The node marks a peer as expired some seconds late.
    pub fn at(&self, now: Timestamp) -> Result<(), Refusal> {
        match self.key_expiry {
            Some(expiry) if expiry <= now => Err(Refusal::NodeExpired {
                node: self.node_name.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// When the key of the caller's node expires, if ever.
    pub fn key_expiry(&self) -> Option<Timestamp> {
        self.key_expiry
    }

    /// The caller, if they are of our tailnet.
    pub fn caller(&self) -> Result<&Caller, Refusal> {
        if !self.foreign {
            return Ok(&self.caller);
        }
        let login = match &self.caller {
            Caller::User(user) => user.login.clone(),
            Caller::Machine(machine) => machine.login.clone(),
            Caller::Funnel(_) => String::new(),
        };
        Err(Refusal::ForeignTailnet { login })
    }

    /// The caller, of whatever tailnet: for those who have a rule about it.
    pub fn even_foreign(&self) -> &Caller {
        &self.caller
    }

    pub fn foreign(&self) -> bool {
        self.foreign
    }

    /// What sort of caller this is, for those who must not tell more.
    pub fn kind(&self) -> &'static str {
        match &self.caller {
            _ if self.foreign => "foreign",
            Caller::Funnel(_) => "funnel",
            Caller::Machine(_) => "machine",
            Caller::User(_) => "user",
        }
    }

    /// MagicDNS suffix of the caller's tailnet; empty where it is not known.
    pub fn tailnet(&self) -> &str {
        &self.tailnet
    }

    /// Stable id of the node that calls.
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// MagicDNS name of the node that calls, or its host name where the tailnet has no MagicDNS.
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// Address of the user's picture; empty for machines.
    pub fn picture(&self) -> &str {
        match self.caller {
            Caller::User(_) => &self.picture,
            _ => "",
        }
    }
}
