//! A caller together with their tailnet, which may be another one than ours.

use std::net::IpAddr;

use jiff::Timestamp;

use super::{Caller, Refusal};
use tailbone_tailnet::WhoIs;

/// A caller that the network vouches for. It may be from another tailnet: a user with whom our node
/// was shared (a sharee), or a node that was shared into our tailnet. Most of the program must not
/// see those: [`Visitor::caller`] refuses them, and only [`Visitor::caller_any_tailnet`] returns
/// them.
#[derive(Debug, Clone, PartialEq)]
pub struct Visitor {
    caller: Caller,
    foreign: bool,
    tailnet: String,
    node_id: String,
    node_name: String,
    node_key: String,
    node_number: i64,
    display_name: String,
    addresses: Vec<IpAddr>,
    key_expiry: Option<Timestamp>,
    picture: String,
}

impl Visitor {
    /// Converts a WhoIs answer. `own_tailnet` is the MagicDNS suffix of our tailnet, which callers
    /// of ours get. For a node that was shared into our tailnet the suffix is the part of its
    /// MagicDNS name after the first label; a sharee has no such name, so its tailnet is unknown.
    /// Names that a client chose for itself are never used for this.
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
        let display_name = display_name(&node_name, &whois.node.hostname, foreign);
        let addresses = whois.node.addresses.clone();
        let node_key = whois.node.key.clone();
        let node_number = whois.node.numeric_id;
        let key_expiry = whois.node.key_expiry;
        let picture = whois.user.picture.clone();
        Ok(Self {
            caller: Caller::of_any_tailnet(whois)?,
            foreign,
            tailnet,
            node_id,
            node_name,
            node_key,
            node_number,
            display_name,
            addresses,
            key_expiry,
            picture,
        })
    }

    /// `Err` from the time on at which the node's key expires. The node itself marks a peer as
    /// expired only seconds later.
    pub fn check_expiry(&self, now: Timestamp) -> Result<(), Refusal> {
        match self.key_expiry {
            Some(expiry) if expiry <= now => Err(Refusal::NodeExpired {
                node: self.node_name.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// When the key of the caller's node expires, if it does.
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

    /// The caller, from any tailnet: for code that has its own rule about other tailnets.
    pub fn caller_any_tailnet(&self) -> &Caller {
        &self.caller
    }

    pub fn foreign(&self) -> bool {
        self.foreign
    }

    /// The type of caller, for places where nothing more may be revealed.
    pub fn kind(&self) -> &'static str {
        match &self.caller {
            _ if self.foreign => "foreign",
            Caller::Funnel(_) => "funnel",
            Caller::Machine(_) => "machine",
            Caller::User(_) => "user",
        }
    }

    /// MagicDNS suffix of the caller's tailnet; empty if unknown.
    pub fn tailnet(&self) -> &str {
        &self.tailnet
    }

    /// Stable id of the calling node.
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// MagicDNS name of the calling node, or its host name where the tailnet has no MagicDNS.
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// Public key of the calling node: `nodekey:` and 64 hexadecimal digits.
    pub fn node_key(&self) -> &str {
        &self.node_key
    }

    /// The calling node's number on the control server. Only what tsidp's tokens say needs it;
    /// everything else uses the stable id.
    pub fn node_number(&self) -> i64 {
        self.node_number
    }

    /// The calling node's name as Tailscale's own programs show it: `web`, or `web (web-7f9c)`
    /// where the machine calls itself otherwise; for a node of another tailnet its whole name.
    pub fn display_name(&self) -> &str {
        &self.display_name
    }

    /// The tailnet addresses of the calling node.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// URL of the user's picture; empty for machines.
    pub fn picture(&self) -> &str {
        match self.caller {
            Caller::User(_) => &self.picture,
            _ => "",
        }
    }
}

fn display_name(name: &str, hostname: &str, foreign: bool) -> String {
    if foreign {
        return name.to_owned();
    }
    let label = name.split('.').next().unwrap_or_default();
    if hostname.is_empty() || hostname.eq_ignore_ascii_case(label) {
        label.to_owned()
    } else {
        format!("{label} ({hostname})")
    }
}
