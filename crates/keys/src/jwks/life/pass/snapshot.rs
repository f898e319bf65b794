//! What a pass leaves for the running server: the signer, and the keys as people see them.

use std::sync::Arc;

use jiff::Timestamp;

use super::{
    Mode, Report,
    inputs::{Inputs, record_is_ours},
};
use crate::{
    KeyId, KeyState, KeyView, NoSigner, PublicJwk, Signer, Snapshot, StoredKey,
    jwks::{
        Document,
        document::modulus_bits,
        life::{KeyLife, PassState},
    },
    rotation::{self, Record},
};

impl KeyLife {
    pub(super) async fn publish_snapshot(
        &self,
        pass_state: &mut PassState,
        inputs: Inputs,
        signer: Result<KeyId, NoSigner>,
        mode: Mode,
        report: &mut Report,
        now: Timestamp,
    ) {
        let mut signer = signer.and_then(|kid| {
            if let Some(same) = pass_state.signer.as_ref().filter(|same| *same.kid() == kid) {
                let public = inputs
                    .contents
                    .keys
                    .iter()
                    .find(|key| *key.kid() == kid)
                    .and_then(|key| key.public.as_ref());
                if public == Some(same.public()) {
                    return Ok(same.clone());
                }
            }
            inputs
                .contents
                .keys
                .iter()
                .find(|key| *key.kid() == kid)
                .and_then(|key| self.signer_of(key))
                .map(Arc::new)
                .ok_or(NoSigner::Unusable)
        });
        if let (Err(NoSigner::NoKeys), Some(reason)) = (&signer, &report.not_made) {
            signer = Err(reason.clone());
        }
        report.skipped.clone_from(&inputs.contents.skipped);
        for path in &inputs.contents.exposed {
            report.add_trouble(format!(
                "{} can be read by others than its owner: chmod 600 it",
                path.display()
            ));
        }
        self.tell_where_keys_are(
            &inputs,
            signer.as_ref().ok().map(|signer| signer.kid()),
            report,
        );
        report.keys = self.views(&inputs, signer.as_ref().ok().map(|signer| signer.kid()));
        report.no_signer = signer.as_ref().err().map(ToString::to_string);
        if mode == Mode::DryRun {
            return;
        }
        pass_state.signer = signer.as_ref().ok().cloned();
        pass_state.fingerprint = self.disk(|store| store.fingerprint()).await.ok();
        pass_state.next_read = Some(self.next_read(now));
        if let Some(versioned) = inputs.document {
            pass_state.document_read = Some(now);
            self.inner.shared.document.store(Some(Arc::new(versioned)));
        }
        if let Err(NoSigner::NoKeys) = signer
            && !report.skipped.is_empty()
        {
            signer = Err(NoSigner::Unusable);
        }
        let mut trouble = report.trouble.clone();
        trouble.extend(report.document_trouble.clone());
        self.inner.current_keys.replace(Snapshot {
            signer,
            keys: report.keys.clone(),
            trouble,
            skipped: report.skipped.clone(),
            document_read: pass_state.document_read,
        });
    }

    fn signer_of(&self, key: &StoredKey) -> Option<Signer> {
        if let Some(private) = &key.private {
            return Signer::new(private).ok();
        }
        let key = self.inner.remote.key(key.remote.as_ref()?)?;
        key.ok().map(Signer::remote)
    }

    fn tell_where_keys_are(&self, inputs: &Inputs, signing: Option<&KeyId>, report: &mut Report) {
        for key in &inputs.contents.keys {
            if let Some(reference) = &key.remote
                && !self.inner.remote.has(reference.location.service)
            {
                report.add_trouble(format!(
                    "key {} is kept by {}, which the settings do not name",
                    key.kid(),
                    reference.location.service
                ));
            }
            if let Some(service) = self.inner.remote.maker()
                && key.private.is_some()
                && signing == Some(key.kid())
            {
                report.add_trouble(format!(
                    "key {} signs and is in the key directory, not in {}; `tailbone keys rotate` \
                     moves on to a key that is",
                    key.kid(),
                    service
                ));
            }
        }
    }

    /// The document's keys in its order, then those of the directory that are not in it.
    fn views(&self, inputs: &Inputs, signing: Option<&KeyId>) -> Vec<KeyView> {
        let last = self.document();
        let document = inputs
            .document
            .as_ref()
            .or(last.as_deref())
            .map(|versioned| &versioned.document);
        let text = |value: &serde_json::Value, member: &str| {
            value
                .get(member)
                .and_then(serde_json::Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let ours = |kid: &str| {
            inputs
                .records
                .iter()
                .find(|record| record.kid.as_str() == kid && record_is_ours(record))
        };
        let view = |jwk: &serde_json::Value, kid, created, published| KeyView {
            kid,
            algorithm: text(jwk, "alg"),
            bits: modulus_bits(jwk),
            created,
            state: None,
            published,
            signing: false,
            signs_since: None,
            gone_from: None,
        };
        let mut views = Vec::new();
        for value in document.map(Document::keys).unwrap_or_default() {
            let kid = text(value, "kid");
            let created = kid.parse().ok().and_then(|id: KeyId| id.created());
            let view = view(value, kid, created, true);
            views.push(match ours(&view.kid) {
                Some(record) => self.with_facts(view, record, signing),
                None => view,
            });
        }
        for record in inputs
            .records
            .iter()
            .filter(|record| record_is_ours(record))
        {
            if views.iter().any(|view| view.kid == record.kid.as_str()) {
                continue;
            }
            let jwk = inputs
                .contents
                .keys
                .iter()
                .find(|key| *key.kid() == record.kid)
                .and_then(|key| key.public.as_ref())
                .map(PublicJwk::to_value)
                .unwrap_or_default();
            let created = Some(record.history.created);
            let view = view(&jwk, record.kid.to_string(), created, false);
            views.push(self.with_facts(view, record, signing));
        }
        views
    }

    fn with_facts(&self, view: KeyView, record: &Record, signing: Option<&KeyId>) -> KeyView {
        let state = rotation::state(record, self.place());
        let signs_since = match state {
            KeyState::Active => record.history.activated,
            KeyState::Published => {
                rotation::signs_from(&record.history, self.place(), &self.policy())
            }
            _ => record.history.activated,
        };
        KeyView {
            state: Some(state),
            signing: signing == Some(&record.kid),
            signs_since,
            gone_from: rotation::gone_from(&record.history, &self.policy()),
            ..view
        }
    }
}
