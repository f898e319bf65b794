//! The certificate of the node's own name, as all listeners of a server share it.
//!
//! Nothing here waits or asks anybody: whoever gets the certificate puts it in
//! ([`NodeCertificate::show`]) or says why there is no new one ([`NodeCertificate::set_trouble`]),
//! and handshakes take what is there.
//!
//! Invariants
//! - A certificate stays in use until another one replaces it, however old it is: a client that
//!   knows that it has ended decides for itself.
//! - A handshake without a certificate, or for another name, fails at once with an alert.

use std::{path::Path, sync::Arc};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use rustls::{
    AlertDescription,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::certificate::{
    CertificateError, CertificateFacts, CertificateSource, LoadedCertificate,
};

/// The node's certificate, if there is one yet, and what prevents a new one.
#[derive(Debug, Default)]
pub struct NodeCertificate {
    shown: ArcSwapOption<Shown>,
    trouble: ArcSwapOption<RenewalTrouble>,
}

#[derive(Debug)]
struct Shown {
    /// The full name of the node, without a final dot.
    name: String,
    certificate: LoadedCertificate,
}

/// Why there is no new certificate. Everybody may read this: it has no path and no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenewalTrouble {
    /// For which name.
    pub name: String,
    /// The reason, and what to do, without a final dot.
    pub why: String,
    /// When the next try is.
    pub next_try: Timestamp,
}

impl NodeCertificate {
    /// Uses this pair (PEM, the leaf first) from now on. A pair that cannot be used changes
    /// nothing.
    pub fn show(
        &self,
        name: &str,
        chain: &[u8],
        key: &[u8],
    ) -> Result<Arc<CertificateFacts>, CertificateError> {
        let files = [format!("{name}.crt"), format!("{name}.key")];
        let [cert_file, key_file] = files.each_ref().map(Path::new);
        let certificate = LoadedCertificate::parse((cert_file, chain), (key_file, key))?;
        let facts = certificate.facts.clone();
        let name = name.trim_end_matches('.').to_owned();
        self.shown
            .store(Some(Arc::new(Shown { name, certificate })));
        Ok(facts)
    }

    pub fn set_trouble(&self, trouble: Option<RenewalTrouble>) {
        self.trouble.store(trouble.map(Arc::new));
    }

    /// About the certificate in use, if it is for this name.
    pub fn facts_for(&self, name: &str) -> Option<Arc<CertificateFacts>> {
        let shown = self.shown.load();
        let shown = shown.as_ref().filter(|shown| shown.name == name)?;
        Some(shown.certificate.facts.clone())
    }
}

impl Shown {
    /// Whether a client may ask for this name: the full one, or its first label, which resolves on
    /// the tailnet.
    fn is_called(&self, server_name: &str) -> bool {
        let server_name = server_name.trim_end_matches('.');
        let label = self.name.split('.').next().unwrap_or_default();
        server_name.eq_ignore_ascii_case(&self.name) || server_name.eq_ignore_ascii_case(label)
    }
}

impl CertificateSource for NodeCertificate {
    fn refusal(&self, server_name: Option<&str>) -> Option<AlertDescription> {
        let shown = self.shown.load();
        match (shown.as_ref(), server_name) {
            (None, _) => Some(AlertDescription::InternalError),
            (Some(shown), Some(name)) if !shown.is_called(name) => {
                Some(AlertDescription::UnrecognisedName)
            }
            (Some(_), _) => None,
        }
    }

    fn facts(&self) -> Option<Arc<CertificateFacts>> {
        let shown = self.shown.load();
        shown.as_ref().map(|shown| shown.certificate.facts.clone())
    }

    fn trouble(&self, now: Timestamp) -> Option<String> {
        let trouble = self.trouble.load();
        match (self.facts(), trouble.as_ref()) {
            (None, None) => Some("the node has no certificate yet; it is being fetched".to_owned()),
            (None, Some(trouble)) => Some(format!(
                "there is no certificate for {}, so listeners with TLS refuse all callers: {}; the \
                 next try is at {}",
                trouble.name, trouble.why, trouble.next_try
            )),
            (Some(facts), None) => facts.trouble(now),
            (Some(facts), Some(trouble)) => {
                let names = facts.names.join(", ");
                let end = facts.not_after;
                let use_of_the_old_one = if end <= now {
                    format!("the certificate for {names} ended at {end}")
                } else {
                    format!("the certificate for {names} is used until it ends at {end}")
                };
                let new = if facts.names.contains(&trouble.name) {
                    "and could not be renewed".to_owned()
                } else {
                    format!("and there is none for {}", trouble.name)
                };
                Some(format!(
                    "{use_of_the_old_one}, {new}: {}; the next try is at {}",
                    trouble.why, trouble.next_try
                ))
            }
        }
    }
}

impl ResolvesServerCert for NodeCertificate {
    /// Whether the name is right has been checked before ([`CertificateSource::refusal`]).
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self.shown.load();
        shown.as_ref().map(|shown| shown.certificate.pair.clone())
    }
}
