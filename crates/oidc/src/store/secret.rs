//! What a client presents to prove something, and what of it is stored.
//!
//! Invariants
//! - The store has only the [`Digest`] of a code, token, cookie or client secret. A copy of the
//!   database gives nobody access.
//! - The successor of a refresh token follows from that token and from a random value in the
//!   database, never from one of them alone. So a lost answer can be given again, to the holder of
//!   the token that was presented, and to nobody else.

use std::fmt;

use aws_lc_rs::{constant_time, digest, hmac, rand};
use zeroize::Zeroizing;

/// Random bytes of an id and of each half of a refresh token: 128 bits cannot be guessed.
const RANDOM: usize = 16;

/// The operating system gave no random bytes. Nothing may be made without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gives no random numbers")]
pub struct NoRandom;

/// `N` random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], NoRandom> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| NoRandom)?;
    Ok(bytes)
}

/// 32 lowercase hexadecimal digits, the form of tsidp's codes, tokens and client ids: 128 random
/// bits.
pub fn random_token() -> Result<Zeroizing<String>, NoRandom> {
    Ok(Zeroizing::new(hex(&*Zeroizing::new(random::<RANDOM>()?))))
}

/// The SHA-256 of a secret. The secret itself must have 128 random bits or more: a digest protects
/// nothing that can be guessed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of the text of a code, token, cookie or client secret.
    pub fn of(secret: &str) -> Self {
        Self::of_bytes(secret.as_bytes())
    }

    pub fn of_bytes(secret: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, secret).as_ref());
        Self(bytes)
    }

    /// Whether it is that of `secret`, in a time that does not tell where they differ.
    pub fn matches(&self, secret: &str) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &Self::of(secret).0).is_ok()
    }

    /// 64 lowercase hexadecimal digits.
    pub fn text(&self) -> String {
        hex(&self.0)
    }

    /// Reads what [`Self::text`] gave.
    pub fn parse(text: &str) -> Option<Self> {
        unhex(text).map(Self)
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Part of it, by which lines of a log can be compared.
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({}…)", hex(&self.0[..4]))
    }
}

/// Declares an id of 128 random bits.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; RANDOM]);

        impl $name {
            pub fn random() -> Result<Self, NoRandom> {
                random().map(Self)
            }

            /// Reads what [`Self::text`] gave.
            pub fn parse(text: &str) -> Option<Self> {
                unhex(text).map(Self)
            }

            /// 32 lowercase hexadecimal digits.
            pub fn text(&self) -> String {
                hex(&self.0)
            }

            pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            pub(crate) fn as_bytes(&self) -> &[u8] {
                &self.0
            }
        }
    };
}

id! {
    /// Names a grant. It is the first half of the grant's refresh tokens, so logs show only a part
    /// of its digest.
    GrantId
}

id! {
    /// Names a session to clients (`sid` of OpenID Connect). It is not what the browser presents.
    SessionId
}

/// Names a grant to administrators: the first half of its id. Who knows the name alone can present
/// nothing in the place of the grant's refresh token, which would end the grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantName([u8; RANDOM / 2]);

impl GrantName {
    /// Reads what [`Self::text`] gave.
    pub fn parse(text: &str) -> Option<Self> {
        unhex(text).map(Self)
    }

    /// 16 lowercase hexadecimal digits.
    pub fn text(&self) -> String {
        hex(&self.0)
    }

    /// The first and the last id that begin with it.
    pub(crate) fn ids(&self) -> (GrantId, GrantId) {
        let with = |rest: u8| {
            let mut id = [rest; RANDOM];
            id[..RANDOM / 2].copy_from_slice(&self.0);
            GrantId(id)
        };
        (with(0), with(u8::MAX))
    }
}

impl GrantId {
    pub fn name(&self) -> GrantName {
        let mut name = [0; RANDOM / 2];
        name.copy_from_slice(&self.0[..RANDOM / 2]);
        GrantName(name)
    }
}

impl fmt::Debug for GrantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Digest(digest) = Digest::of_bytes(&self.0);
        write!(f, "GrantId({}…)", hex(&digest[..4]))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({})", self.text())
    }
}

/// The half of a refresh token that proves that its holder was given it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proof(Zeroizing<[u8; RANDOM]>);

impl Proof {
    pub(crate) fn random() -> Result<Self, NoRandom> {
        Ok(Self(Zeroizing::new(random()?)))
    }

    /// What replaces it, if it is replaced with this salt.
    pub(crate) fn successor(&self, salt: &[u8]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &*self.0);
        let mut proof = Zeroizing::new([0; RANDOM]);
        proof.copy_from_slice(&hmac::sign(&key, salt).as_ref()[..RANDOM]);
        Self(proof)
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of_bytes(&*self.0)
    }
}

/// A refresh token: the grant that it belongs to, and its proof.
///
/// With the grant in the token, reuse is noticed however old the token is, and nothing of an old
/// token has to be remembered.
#[derive(Clone, PartialEq, Eq)]
pub struct RefreshToken {
    grant: GrantId,
    proof: Proof,
}

impl RefreshToken {
    pub(crate) fn new(grant: GrantId, proof: Proof) -> Self {
        Self { grant, proof }
    }

    /// Reads what a client presents; `None` for what can be no refresh token of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let (grant, proof) = text.split_at_checked(2 * RANDOM)?;
        Some(Self {
            grant: GrantId::parse(grant)?,
            proof: Proof(Zeroizing::new(unhex(proof)?)),
        })
    }

    /// 64 lowercase hexadecimal digits, for the client alone.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(self.grant.text() + &*Zeroizing::new(hex(&*self.proof.0)))
    }

    pub fn grant(&self) -> GrantId {
        self.grant
    }

    pub(crate) fn proof(&self) -> &Proof {
        &self.proof
    }
}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RefreshToken({:?})", self.grant)
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

/// Lowercase alone, so that a text has one spelling.
fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    unhex_any(text)?.try_into().ok()
}

/// The same for any number of bytes.
pub(crate) fn unhex_any(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> RefreshToken {
        RefreshToken::new(GrantId::random().unwrap(), Proof::random().unwrap())
    }

    #[test]
    fn a_refresh_token_has_one_spelling() {
        let token = token();
        let text = token.reveal();
        assert_eq!(text.len(), 64);
        assert_eq!(RefreshToken::parse(&text), Some(token));
        for wrong in [
            text.replace(|c: char| c.is_ascii_digit(), "F"),
            format!("{} ", *text),
            text[1..].to_owned(),
            format!("{}ä{}", &text[..31], &text[33..]),
            String::new(),
        ] {
            assert_eq!(RefreshToken::parse(&wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_successor_depends_on_the_token_and_on_the_salt() {
        let (one, two) = (Proof::random().unwrap(), Proof::random().unwrap());
        assert!(one.successor(b"salt") == one.successor(b"salt"));
        assert!(one.successor(b"salt") != one.successor(b"other"));
        assert!(one.successor(b"salt") != two.successor(b"salt"));
    }

    #[test]
    fn nothing_that_is_printed_for_a_log_is_a_secret() {
        let token = token();
        let printed = format!("{token:?} {:?}", token.grant());
        let text = token.reveal();
        assert!(!printed.contains(&text[..8]), "{printed}");
        assert!(!printed.contains(&text[32..40]), "{printed}");
    }

    #[test]
    fn a_digest_matches_its_secret_alone() {
        let digest = Digest::of("abc");
        assert_eq!(hex(&digest.0[..4]), "ba7816bf", "FIPS 180-2, appendix B.1");
        assert!(digest.matches("abc") && !digest.matches("abd") && !digest.matches(""));
    }
}
