//! Where the certificates of listeners come from, what people and monitors want to know of them,
//! and those from files. That of the node itself is in [`super::node_certificate`].
//!
//! Invariant of those from files: certificate and key are read together and must match. When the
//! files change they are read again, and while their contents are broken the last good pair stays
//! in use.

use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use rustls::{
    AlertDescription,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use x509_cert::{
    Certificate,
    der::Decode as _,
    ext::pkix::{SubjectAltName, name::GeneralName},
    time::Time,
};

/// The certificate of one or more listeners with TLS.
pub trait CertificateSource: ResolvesServerCert {
    /// The alert with which a handshake for this name must end, if it must. A client that names no
    /// server, as one that knows only an address, has `None`.
    fn refusal(&self, _server_name: Option<&str>) -> Option<AlertDescription> {
        None
    }

    /// About the certificate that is shown now; `None` if there is none yet.
    fn facts(&self) -> Option<Arc<CertificateFacts>>;

    /// Why a person has to look after the certificate, if so.
    fn trouble(&self, now: Timestamp) -> Option<String>;

    /// Comes every few seconds.
    fn tick(&self) {}
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("{}: no certificate or key in PEM form", path.display())]
    Pem {
        path: PathBuf,
        #[source]
        cause: pem::Error,
    },
    #[error("{}: cannot be read", path.display())]
    File {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{}: no certificate", .0.display())]
    NoCertificate(PathBuf),
    #[error("certificate and key do not belong together, or are of a kind that is not supported")]
    Pair(#[source] rustls::Error),
    #[error("the certificate cannot be read")]
    Der(#[source] x509_cert::der::Error),
}

/// A certificate chain and its private key, from two PEM files.
#[derive(Debug)]
pub struct CertificateFiles {
    cert: PathBuf,
    key: PathBuf,
    loaded: ArcSwap<LoadedCertificate>,
    seen: ArcSwap<Option<[FileVersion; 2]>>,
}

/// A chain and its key, which belong together.
#[derive(Debug)]
pub(super) struct LoadedCertificate {
    pub(super) pair: Arc<CertifiedKey>,
    pub(super) facts: Arc<CertificateFacts>,
}

/// What people and monitors want to know of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The DNS names and addresses that it is for.
    pub names: Vec<String>,
    /// The distinguished name of its issuer (RFC 4514).
    pub issuer: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

/// Modification time and length: tells two versions of a file apart without reading it.
type FileVersion = (SystemTime, u64);

impl CertificateFiles {
    pub fn open(cert: PathBuf, key: PathBuf) -> Result<Self, CertificateError> {
        // Taken before reading, so that a change in between is noticed at the next check.
        let seen = file_versions(&cert, &key);
        let loaded = read(&cert, &key)?;
        Ok(Self {
            cert,
            key,
            loaded: ArcSwap::from_pointee(loaded),
            seen: ArcSwap::from_pointee(seen),
        })
    }

    /// Reads the files again if they have changed, and says whether it did. On an error the old
    /// pair stays and the files are read again at the next call: a renewal may have replaced only
    /// one of them so far.
    pub fn reload(&self) -> Result<bool, CertificateError> {
        let now = file_versions(&self.cert, &self.key);
        if now.is_some() && now == **self.seen.load() {
            return Ok(false);
        }
        self.loaded.store(Arc::new(read(&self.cert, &self.key)?));
        self.seen.store(Arc::new(now));
        Ok(true)
    }
}

impl CertificateSource for CertificateFiles {
    fn facts(&self) -> Option<Arc<CertificateFacts>> {
        Some(self.loaded.load().facts.clone())
    }

    fn trouble(&self, now: Timestamp) -> Option<String> {
        self.loaded.load().facts.trouble(now)
    }

    /// As [`Self::reload`], with the outcome in the log. Two small files are not worth a thread of
    /// their own.
    fn tick(&self) {
        match self.reload() {
            Ok(true) => {
                tracing::info!(target: "server", cert = %self.cert.display(), "certificate read again");
            }
            Ok(false) => {}
            Err(error) => {
                let error = tailbone_telemetry::error_chain(&error);
                tracing::error!(target: "server", error, "certificate not read again; the old one stays in use");
            }
        }
    }
}

impl CertificateFacts {
    fn read(der: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let read = || -> x509_cert::der::Result<Self> {
            let certificate = Certificate::from_der(der)?;
            let certificate = certificate.tbs_certificate();
            let alternatives = certificate.get_extension::<SubjectAltName>()?;
            let names = alternatives.map_or_else(Vec::new, |(_, alternatives)| {
                alternatives.0.iter().filter_map(name).collect()
            });
            let validity = certificate.validity();
            Ok(Self {
                names,
                issuer: certificate.issuer().to_string(),
                not_before: timestamp(validity.not_before),
                not_after: timestamp(validity.not_after),
            })
        };
        read().map_err(CertificateError::Der)
    }

    /// From when on the certificate should be renewed: when two thirds of its life are over.
    pub fn renew_at(&self) -> Timestamp {
        self.not_after
            .checked_sub(self.life() / 3)
            .unwrap_or(self.not_after)
    }

    /// For how long it is valid in all.
    pub fn life(&self) -> SignedDuration {
        self.not_after.duration_since(self.not_before)
    }

    /// Why a person has to look after this certificate, if so. Who renews in time has done so
    /// before a week, or a tenth of its life, is left.
    pub fn trouble(&self, now: Timestamp) -> Option<String> {
        let margin = (self.life() / 10).min(SignedDuration::from_hours(7 * 24));
        let names = self.names.join(", ");
        if self.not_after <= now {
            Some(format!(
                "the certificate for {names} ended at {}",
                self.not_after
            ))
        } else if self.not_after.duration_since(now) < margin {
            Some(format!(
                "the certificate for {names} ends at {} and has not been renewed",
                self.not_after
            ))
        } else if now < self.not_before {
            Some(format!(
                "the certificate for {names} begins at {}: is the clock right?",
                self.not_before
            ))
        } else {
            None
        }
    }
}

fn name(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        GeneralName::IpAddress(bytes) => match *bytes.as_bytes() {
            [a, b, c, d] => Some(Ipv4Addr::new(a, b, c, d).to_string()),
            ref bytes => <[u8; 16]>::try_from(bytes)
                .ok()
                .map(|bytes| Ipv6Addr::from(bytes).to_string()),
        },
        _ => None,
    }
}

fn timestamp(time: Time) -> Timestamp {
    let seconds = i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}

impl ResolvesServerCert for CertificateFiles {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.loaded.load().pair.clone())
    }
}

fn file_versions(cert: &PathBuf, key: &PathBuf) -> Option<[FileVersion; 2]> {
    let stamp = |path: &PathBuf| {
        let meta = fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    };
    Some([stamp(cert)?, stamp(key)?])
}

fn read(cert: &Path, key: &Path) -> Result<LoadedCertificate, CertificateError> {
    let text = |path: &Path| {
        fs::read(path).map_err(|cause| CertificateError::File {
            path: path.to_owned(),
            cause,
        })
    };
    LoadedCertificate::parse((cert, &text(cert)?), (key, &text(key)?))
}

impl LoadedCertificate {
    /// From the contents (PEM) of two files, whose names are for errors.
    pub(super) fn parse(
        (cert, chain): (&Path, &[u8]),
        (key, private): (&Path, &[u8]),
    ) -> Result<Self, CertificateError> {
        let not_pem = |path: &Path, cause| CertificateError::Pem {
            path: path.to_owned(),
            cause,
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|cause| not_pem(cert, cause))?;
        let private =
            PrivateKeyDer::from_pem_slice(private).map_err(|cause| not_pem(key, cause))?;
        let first = chain
            .first()
            .ok_or_else(|| CertificateError::NoCertificate(cert.to_owned()))?;
        let facts = Arc::new(CertificateFacts::read(first)?);
        let pair = CertifiedKey::from_der(chain, private, &aws_lc_rs::default_provider())
            .map_err(CertificateError::Pair)?;
        Ok(Self {
            pair: Arc::new(pair),
            facts,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_certificate_is_told_in_time() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let facts = CertificateFacts {
            names: vec!["localhost".into()],
            issuer: "CN=test".into(),
            not_before: at("2026-01-01T00:00:00Z"),
            not_after: at("2026-04-01T00:00:00Z"),
        };
        assert_eq!(facts.trouble(at("2026-03-24T23:00:00Z")), None);
        let ending = facts.trouble(at("2026-03-25T01:00:00Z")).unwrap();
        assert!(ending.contains("localhost ends at 2026-04-01"), "{ending}");
        let ended = facts.trouble(at("2026-04-01T00:00:00Z")).unwrap();
        assert!(ended.contains("ended at 2026-04-01"), "{ended}");
        let early = facts.trouble(at("2025-12-31T00:00:00Z")).unwrap();
        assert!(early.contains("is the clock right"), "{early}");
        // One for six days is renewed later.
        let short = CertificateFacts {
            not_before: at("2026-03-26T00:00:00Z"),
            ..facts
        };
        assert_eq!(short.trouble(at("2026-03-31T00:00:00Z")), None);
        assert!(short.trouble(at("2026-03-31T12:00:00Z")).is_some());
    }
}
