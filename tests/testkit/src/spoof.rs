//! What a client may try in order to be taken for somebody else by a proxy, a gate or the service
//! behind them.

use std::net::IpAddr;

use crate::backend::Answer;

/// Every header by which a service learns who the caller is.
const IDENTITY: [&str; 15] = [
    "Tailscale-User",
    "Tailscale-Login",
    "Tailscale-Name",
    "Tailscale-Profile-Picture",
    "Tailscale-Tailnet",
    "Tailscale-User-Login",
    "Tailscale-User-Name",
    "Tailscale-User-Profile-Pic",
    "Tailscale-Headers-Info",
    "Tailscale-App-Capabilities",
    "Tailscale-Funnel-Request",
    "Tailscale-Node-Id",
    "Tailscale-Node-Name",
    "Tailscale-Tags",
    "Tailbone-Token",
];

/// Part of every invented value.
const MARK: &str = "SPOOF";

/// Lists of headers, each of which is one attempt: claims about identity, and claims to call from
/// `addresses`, which belong to other callers.
pub fn tricks(addresses: &[IpAddr]) -> Vec<Vec<String>> {
    let mut tricks: Vec<Vec<String>> = Vec::new();
    for name in IDENTITY {
        let (lower, upper) = (name.to_ascii_lowercase(), name.to_ascii_uppercase());
        let plain = format!("{name}: {MARK}");
        // As it is; twice in two spellings; with underscores; as a hop-by-hop header, which a proxy
        // removes.
        tricks.push(vec![plain.clone()]);
        tricks.push(vec![format!("{lower}: {MARK}"), format!("{upper}: {MARK}")]);
        tricks.push(vec![format!("{}: {MARK}", name.replace('-', "_"))]);
        tricks.push(vec![plain, format!("Connection: close, {name}")]);
    }
    for address in addresses {
        for header in ["X-Forwarded-For", "Remote-Addr", "X-Real-IP", "Client-IP"] {
            let plain = format!("{header}: {address}");
            tricks.push(vec![plain.clone()]);
            tricks.push(vec![plain.clone(), plain.clone()]);
            tricks.push(vec![plain, format!("Connection: close, {header}")]);
        }
        let node = match address {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("\"[{v6}]\""),
        };
        tricks.push(vec![format!("X-Forwarded-For: {address}, {address}")]);
        tricks.push(vec![format!("X_Forwarded_For: {address}")]);
        tricks.push(vec![format!("Forwarded: for={node}")]);
        tricks.push(vec![format!(
            "Forwarded: for={node}, for={node};proto=https"
        )]);
        tricks.push(vec![
            format!("Forwarded: for=1.1.1.1;by={node}"),
            format!("fOrWaRdEd: for={node}"),
            format!("X-Forwarded-For: 1.1.1.1, {address}"),
        ]);
        tricks.push(vec![
            format!("Forwarded: for={node}"),
            "Connection: close, Forwarded".into(),
        ]);
    }
    tricks
}

/// What is wrong with what a service received, if anything: an invented value arrived, or it was
/// told another caller than `login` (no caller, if that is empty) or another address than `from`.
pub fn deception(answer: &Answer, login: &str, from: IpAddr) -> Option<String> {
    let seen = answer.all_received();
    let invented = seen.iter().any(|(_, value)| value.contains(MARK));
    let told = |name: &str| -> Vec<String> {
        let values = answer.received(name).into_iter();
        values.filter(|value| !value.is_empty()).collect()
    };
    let who: Vec<&str> = (!login.is_empty()).then_some(login).into_iter().collect();
    let somebody_else = ["tailscale-user", "tailscale-user-login"]
        .iter()
        .any(|name| told(name) != who);
    let from = from.to_string();
    let elsewhere = ["x-forwarded-for", "x-real-ip", "forwarded"]
        .iter()
        .any(|name| told(name).iter().any(|value| *value != from));
    let claims = |(name, value): &&(String, String)| {
        name.replace('_', "-").starts_with("tail") && !value.is_empty()
    };
    let anonymous_told = login.is_empty() && seen.iter().any(|pair| claims(&pair));
    (invented || somebody_else || elsewhere || anonymous_told).then(|| format!("{seen:?}"))
}
