//! Proof Key for Code Exchange (RFC 7636), with S256 alone.

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, digest},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// A `code_challenge`: the SHA-256 of a verifier, in base64url.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge(String);

impl Challenge {
    /// `None` if the text cannot be such a hash.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        (bytes.len() == 32).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether this is the verifier of the challenge. One of another form than RFC 7636, section 4.1,
/// demands is never.
pub fn verify(challenge: &str, verifier: &str) -> bool {
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    if !(43..=128).contains(&verifier.len()) || !verifier.bytes().all(unreserved) {
        return false;
    }
    let hash = URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()));
    verify_slices_are_equal(hash.as_bytes(), challenge.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 7636, appendix B.
    const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

    #[test]
    fn the_verifier_of_the_standard_fits_and_no_other() {
        assert!(verify(CHALLENGE, VERIFIER));
        assert!(!verify(CHALLENGE, &VERIFIER.replace('d', "e")));
        let long = "a".repeat(129);
        for odd in ["", "short", &long, &VERIFIER.replace('-', "!"), CHALLENGE] {
            assert!(!verify(CHALLENGE, odd), "{odd}");
            // Also not for the challenge that would be theirs.
            let own = URL_SAFE_NO_PAD.encode(digest(&SHA256, odd.as_bytes()));
            assert!(odd == CHALLENGE || !verify(&own, odd), "{odd}");
        }
    }

    #[test]
    fn a_challenge_is_a_hash() {
        assert!(Challenge::parse(CHALLENGE).is_some());
        for bad in ["", VERIFIER, "a", &CHALLENGE[1..], &format!("{CHALLENGE}=")] {
            let is_hash = bad == VERIFIER;
            assert_eq!(Challenge::parse(bad).is_some(), is_hash, "{bad}");
        }
    }
}
