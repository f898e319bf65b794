//! Public keys and signatures in the forms in which services give them.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, VerificationAlgorithm,
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use rsa::{
    BoxedUint, PublicKey as RsaPublicKey, pkcs1::EncodeRsaPublicKey as _,
    pkcs8::DecodePublicKey as _, traits::PublicKeyParts as _,
};

use crate::{Curve, JwkError, PublicParts};

/// What comes before an uncompressed point in a SubjectPublicKeyInfo (RFC 5480).
const EC_SPKI: [(Curve, &[u8]); 3] = [
    (
        Curve::P256,
        &[
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
            0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ],
    ),
    (
        Curve::P384,
        &[
            0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
            0x05, 0x2b, 0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
        ],
    ),
    (
        Curve::P521,
        &[
            0x30, 0x81, 0x9b, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
            0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23, 0x03, 0x81, 0x86, 0x00,
        ],
    ),
];

/// A key of a SubjectPublicKeyInfo in PEM.
pub(super) fn from_pem(pem: &str) -> Option<PublicParts> {
    let body = pem
        .trim()
        .strip_prefix("-----BEGIN PUBLIC KEY-----")?
        .strip_suffix("-----END PUBLIC KEY-----")?;
    let body: String = body.split_ascii_whitespace().collect();
    from_spki(&STANDARD.decode(body).ok()?)
}

/// A key of a SubjectPublicKeyInfo in DER.
pub(super) fn from_spki(der: &[u8]) -> Option<PublicParts> {
    for (curve, prefix) in EC_SPKI {
        if let Some(point) = der.strip_prefix(prefix) {
            return from_point(curve, point);
        }
    }
    let key = RsaPublicKey::from_public_key_der(der).ok()?;
    let number = |number: &BoxedUint| {
        let bytes = number.to_be_bytes();
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        URL_SAFE_NO_PAD.encode(bytes.get(zeros..).unwrap_or_default())
    };
    Some(PublicParts::Rsa {
        e: number(key.e()),
        n: number(key.n().as_ref()),
    })
}

/// An uncompressed point: 04, x, y.
pub(super) fn from_point(curve: Curve, point: &[u8]) -> Option<PublicParts> {
    let coordinates = point.strip_prefix(&[4])?;
    if coordinates.len() != 2 * curve.length() {
        return None;
    }
    let (x, y) = coordinates.split_at_checked(curve.length())?;
    Some(PublicParts::Ec {
        curve,
        x: URL_SAFE_NO_PAD.encode(x),
        y: URL_SAFE_NO_PAD.encode(y),
    })
}

/// The R ‖ S of an ECDSA signature in DER (RFC 3279, section 2.2.3).
pub(super) fn fixed_signature(curve: Curve, der: &[u8]) -> Option<Vec<u8>> {
    const SEQUENCE: u8 = 0x30;
    const INTEGER: u8 = 0x02;
    /// The content of the element with this tag at the beginning, and what follows it.
    fn element(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
        match der {
            // A P-521 signature has 137 bytes and more.
            [first, 0x81, length, rest @ ..] if *first == tag => {
                rest.split_at_checked((*length).into())
            }
            [first, length @ 0..=0x7f, rest @ ..] if *first == tag => {
                rest.split_at_checked((*length).into())
            }
            _ => None,
        }
    }
    let (numbers, []) = element(SEQUENCE, der)? else {
        return None;
    };
    let (r, rest) = element(INTEGER, numbers)?;
    let (s, []) = element(INTEGER, rest)? else {
        return None;
    };
    let mut fixed = vec![0; 2 * curve.length()];
    for (number, place) in [r, s].into_iter().zip(fixed.chunks_mut(curve.length())) {
        let zeros = number.iter().take_while(|byte| **byte == 0).count();
        let digits = number.get(zeros..)?;
        let start = place.len().checked_sub(digits.len())?;
        place.get_mut(start..)?.copy_from_slice(digits);
    }
    Some(fixed)
}

/// A public key, ready to verify signatures.
pub(super) struct Verifier(ParsedPublicKey);

impl Verifier {
    pub(super) fn new(parts: &PublicParts) -> Result<Self, JwkError> {
        let bytes = |text: &str, member| {
            URL_SAFE_NO_PAD
                .decode(text)
                .map_err(|_| JwkError::Encoding(member))
        };
        let invalid = "one of them is not valid";
        let (algorithm, key): (&'static dyn VerificationAlgorithm, _) = match parts {
            PublicParts::Ec { curve, x, y } => {
                let point = [&[4][..], &bytes(x, "x")?, &bytes(y, "y")?].concat();
                let algorithm = match curve {
                    Curve::P256 => &ECDSA_P256_SHA256_FIXED,
                    Curve::P384 => &ECDSA_P384_SHA384_FIXED,
                    Curve::P521 => &ECDSA_P521_SHA512_FIXED,
                };
                (algorithm, point)
            }
            PublicParts::Ed25519 { x } => (&ED25519, bytes(x, "x")?),
            PublicParts::Rsa { e, n } => {
                let integer = |text: &str, member| {
                    bytes(text, member).map(|bytes| BoxedUint::from_be_slice_vartime(&bytes))
                };
                let key = RsaPublicKey::new(integer(n, "n")?, integer(e, "e")?)
                    .map_err(|_| JwkError::Inconsistent(invalid))?;
                let der = key
                    .to_pkcs1_der()
                    .map_err(|_| JwkError::Inconsistent(invalid))?;
                (&RSA_PKCS1_2048_8192_SHA256, der.as_bytes().to_vec())
            }
        };
        ParsedPublicKey::new(algorithm, key)
            .map(Self)
            .map_err(|_| JwkError::Inconsistent(invalid))
    }

    pub(super) fn accepts(&self, message: &[u8], signature: &[u8]) -> bool {
        self.0.verify_sig(message, signature).is_ok()
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_signature_have_the_full_length() {
        let fixed = |der: &[u8]| fixed_signature(Curve::P256, der);
        // R with the zero of a positive number, S short.
        let mut der = vec![0x30, 0x27, 0x02, 0x21, 0x00, 0xff];
        der.extend([0x11; 31]);
        der.extend([0x02, 0x02, 0x01, 0x02]);
        let raw = fixed(&der).unwrap();
        assert_eq!(raw.len(), 64);
        assert_eq!(raw[0], 0xff);
        assert_eq!(raw[1..32], [0x11; 31]);
        assert_eq!(raw[32..62], [0; 30]);
        assert_eq!(raw[62..], [1, 2]);
        // Nothing else passes.
        assert_eq!(fixed(&der[..der.len() - 1]), None);
        assert_eq!(fixed(&[&der[..], &[0]].concat()), None);
        assert_eq!(fixed(&[]), None);
        assert_eq!(fixed(&[0x30, 0x03, 0x02, 0x01, 0x01]), None);
        let long = [&[0x30, 0x26, 0x02, 0x21][..], &[0x11; 33], &[2, 1, 1]].concat();
        assert_eq!(fixed(&long), None, "a number longer than the field");
    }
    use crate::{Algorithm, KeySpec, PrivateJwk, Signer};

    #[test]
    fn a_verifier_accepts_what_its_key_signed_and_nothing_else() {
        for algorithm in Algorithm::ALL {
            let spec = KeySpec::new(algorithm, 2048);
            let key = PrivateJwk::generate("tb-1".parse().unwrap(), spec).unwrap();
            let other = PrivateJwk::generate("tb-1".parse().unwrap(), spec).unwrap();
            let token = Signer::new(&key).unwrap().sign(b"{}").unwrap();
            let (message, signature) = token.rsplit_once('.').unwrap();
            let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
            let accepts = |key: &PrivateJwk, message: &str| {
                Verifier::new(&key.public().parts)
                    .unwrap()
                    .accepts(message.as_bytes(), &signature)
            };
            assert!(accepts(&key, message), "{spec:?}");
            assert!(!accepts(&key, "something else"), "{spec:?}");
            assert!(!accepts(&other, message), "{spec:?}");
        }
    }
}
