//! The server's own readiness latches: the node is on the tailnet, a key can sign, the published
//! document was read, the listeners are open, their certificates are good.
//!
//! If the document can no longer be read, the server is degraded but ready: verifiers know the
//! keys, so tokens remain valid, and all replicas read the same place, so holding the latch would
//! take all of them out of service at once. A document that was never read since the start holds
//! the latch: settings or credentials may be wrong, and a rollout must stop there.

use jiff::{SignedDuration, Timestamp};

use super::parts::OwnKeys;
use crate::{
    http::serve::Listeners,
    jwks::{KeySet, life::KeyLife},
    part::ServerState,
    tailnet::join::JoinState,
    telemetry::readiness::{LatchState, Switch},
};

/// The document is read at least twice a minute. A server that could not read it for this long is
/// cut off from the place that verifiers read.
const STALE_AFTER: SignedDuration = SignedDuration::from_mins(15);

/// Adds all latches; those of `keys` only if something signs with them. Returns the switch of
/// `listeners-up`, for the caller to release.
pub(super) fn register(state: &ServerState, keys: Option<&KeyLife>) -> Switch {
    let readiness = &state.readiness;
    // Not a clone of `state`: it owns the latches, so it would keep itself alive.
    let membership = state.membership.clone();
    readiness.latch("node-running", move |now| {
        node_running(&membership.state(now))
    });
    let listeners = readiness.switch(
        "listeners-up",
        "the server does not listen yet, or no longer",
    );
    if let Some(keys) = keys {
        let current_keys = keys.current_keys().clone();
        readiness.latch("key-signs", move |_| match current_keys.signer() {
            Ok(signer) => signer.trouble().map_or(Ok(()), Err),
            Err(reason) => Err(reason.to_string()),
        });
        let current_keys = keys.current_keys().clone();
        readiness.latch("jwks-read", move |now| {
            document_freshness(current_keys.snapshot().document_read, now)
        });
    }
    listeners
}

/// Adds the latch of the certificates, for a server that has a listener with TLS.
pub(super) fn register_certificates(state: &ServerState) {
    let open = state.listeners.clone();
    let check = move |now| certificates(&open, now);
    state.readiness.latch("certificates", check);
}

/// Adds the latches of a component's own keys.
pub(super) fn register_key_set(state: &ServerState, set: &KeySet, own: &OwnKeys) {
    let (keys, document) = (set.clone(), set.clone());
    let readiness = &state.readiness;
    readiness.latch(own.key_signs, move |_| keys_sign(&keys));
    readiness.latch(own.jwks_read, move |now| {
        document_freshness(document.document_read(), now)
    });
}

/// Held while no key signs. While some algorithms have none, as one that was added to the set,
/// callers of the others are served.
fn keys_sign(set: &KeySet) -> LatchState {
    let without_key: Vec<String> = set
        .algorithms()
        .filter_map(|algorithm| {
            let reason = match set.signer(algorithm) {
                Ok(signer) => signer.trouble()?,
                Err(reason) => reason.to_string(),
            };
            Some(format!("{algorithm}: {reason}"))
        })
        .collect();
    if without_key.is_empty() {
        LatchState::Released
    } else if without_key.len() < set.algorithms().count() {
        LatchState::Degraded(without_key.join("; "))
    } else {
        LatchState::Held(without_key.join("; "))
    }
}

fn node_running(state: &JoinState) -> Result<(), String> {
    match state {
        JoinState::Running => Ok(()),
        // Whoever opens the URL owns the node, so only the log and the local socket show it.
        JoinState::NeedsLogin { .. } => {
            Err("a person has to log the node in; `tailbone status` shows where".to_owned())
        }
        other => Err(other.to_string()),
    }
}

/// Neither a missing nor an ended certificate holds the latch: callers without TLS are still
/// served, and another replica has the same one.
fn certificates(listeners: &Listeners, now: Timestamp) -> LatchState {
    let listening = listeners.all();
    let certificates = listening.iter().filter_map(|one| one.certificate.as_ref());
    let mut troubles: Vec<String> = Vec::new();
    for trouble in certificates.filter_map(|certificate| certificate.trouble(now)) {
        // Listeners may share one.
        if !troubles.contains(&trouble) {
            troubles.push(trouble);
        }
    }
    if troubles.is_empty() {
        LatchState::Released
    } else {
        LatchState::Degraded(troubles.join("; "))
    }
}

fn document_freshness(read: Option<Timestamp>, now: Timestamp) -> LatchState {
    match read {
        None => LatchState::Held("the published document was never read".to_owned()),
        Some(read) if now.duration_since(read) > STALE_AFTER => LatchState::Degraded(format!(
            "the published document was last read {} minutes ago; tokens go on under the keys that were published then, and no key \
             is rotated",
            now.duration_since(read).as_mins()
        )),
        Some(_) => LatchState::Released,
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{
        jwks::FilePublisher,
        keys::{KeyPolicy, KeySpec, KeyStore},
    };

    #[test]
    fn a_document_that_was_never_read_holds_and_one_not_read_for_long_degrades() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(matches!(
            document_freshness(None, at(0)),
            LatchState::Held(_)
        ));
        assert_eq!(
            document_freshness(Some(at(1000)), at(1000 + 15 * 60)),
            LatchState::Released
        );
        let LatchState::Degraded(reason) = document_freshness(Some(at(1000)), at(1000 + 16 * 60))
        else {
            panic!("not degraded");
        };
        assert!(reason.contains("last read 16 minutes ago"), "{reason}");
        // A clock set back makes nothing older.
        assert_eq!(
            document_freshness(Some(at(100_000)), at(1000)),
            LatchState::Released
        );
    }

    #[tokio::test]
    async fn a_set_is_ready_while_one_algorithm_signs() {
        let folder = tempfile::tempdir().unwrap();
        let publisher = || Arc::new(FilePublisher::new(folder.path().join("jwks.json")));
        let store = || KeyStore::new(folder.path().join("keys"));
        let policy = KeyPolicy {
            token_life: Duration::from_secs(60),
            cache_time: Duration::from_secs(300),
            skew: Duration::ZERO,
            rotate_every: None,
            withdrawn_grace: Duration::ZERO,
        };
        let open = |others: &[KeySpec]| {
            let (es256, policy) = (KeySpec::Es256, &policy);
            KeySet::new("x", store(), publisher(), policy, "tb", es256, others)
        };
        let now = Timestamp::now();
        let first = open(&[]);
        assert!(matches!(keys_sign(&first), LatchState::Held(_)));
        first.start(now).await.unwrap();
        assert_eq!(keys_sign(&first), LatchState::Released);
        let more = open(&[KeySpec::EdDsa]);
        more.start(now).await.unwrap();
        let state = keys_sign(&more);
        assert!(
            matches!(&state, LatchState::Degraded(reason) if reason.starts_with("EdDSA: ")),
            "{state:?}"
        );
    }

    #[test]
    fn the_login_address_is_not_for_everybody() {
        let state = JoinState::NeedsLogin {
            url: "https://login.example/secret".into(),
        };
        assert!(!node_running(&state).unwrap_err().contains("secret"));
    }
}
