//! What a request for a new key names: the set, the algorithm and the size.

use crate::{
    config::{KeySpec, RSA_SIZES},
    http::{Error, error::Kind},
    jwks::{KeySet, life::KeyLife},
};

/// The set of that name; `None` for the keys of issuer and gate.
pub fn named_set<'a>(sets: &'a [KeySet], name: &str) -> Result<Option<&'a KeySet>, Error> {
    if name.is_empty() {
        return Ok(None);
    }
    match sets.iter().find(|set| set.name() == name) {
        Some(set) => Ok(Some(set)),
        None => {
            let names: Vec<_> = sets.iter().map(KeySet::name).collect();
            let message = match names.as_slice() {
                [] => "no component of this server has keys of its own".to_owned(),
                names => format!("no such key set; there is {}", names.join(", ")),
            };
            Err(Error::new(Kind::BadRequest, "unknown_key_set", message))
        }
    }
}

/// The key that a request asks for; `None` leaves it to the setting.
pub(super) fn requested_spec(
    size: i32,
    algorithm: &str,
    setting: KeySpec,
) -> Result<Option<KeySpec>, Error> {
    let refused = |message: String| Err(Error::new(Kind::BadRequest, "bad_key_spec", message));
    let bits = match u32::try_from(size) {
        Ok(0) => None,
        Ok(bits) if RSA_SIZES.contains(&bits) => Some(bits),
        _ => {
            return refused(format!(
                "there are no keys of {size} bits; RS256 keys have 2048, 3072 or 4096"
            ));
        }
    };
    let setting_bits = match setting {
        KeySpec::Rs256 { bits } => Some(bits),
        KeySpec::EdDsa | KeySpec::Es256 | KeySpec::Es384 | KeySpec::Es512 => None,
    };
    let other = match algorithm {
        "" if bits.is_none() => return Ok(None),
        "" if setting_bits.is_none() => {
            return refused("only RS256 keys have a size, and this server makes keys of another algorithm: name RS256 too".to_owned());
        }
        "" | "RS256" => {
            let bits = bits.or(setting_bits).unwrap_or(RSA_SIZES[0]);
            return Ok(Some(KeySpec::Rs256 { bits }));
        }
        "ES256" => KeySpec::Es256,
        "ES384" => KeySpec::Es384,
        "ES512" => KeySpec::Es512,
        "EdDSA" => KeySpec::EdDsa,
        _ => {
            return refused(
                "unknown algorithm; choose RS256, ES256, ES384, ES512 or EdDSA".to_owned(),
            );
        }
    };
    match bits {
        None => Ok(Some(other)),
        Some(_) => refused(format!("only RS256 keys have a size, not {algorithm} keys")),
    }
}

/// The key of a set that a request asks for.
pub fn requested_spec_in(size: i32, algorithm: &str, set: &KeySet) -> Result<KeySpec, Error> {
    let own = |algorithm| set.life(algorithm).map(KeyLife::spec);
    let Some(default) = own(set.default_algorithm()) else {
        return Err(Error::new(
            Kind::Internal,
            "internal",
            "a set without keys of its own algorithm",
        ));
    };
    let spec = requested_spec(size, algorithm, default)?.unwrap_or(default);
    // Without a size, the set's setting for this algorithm decides.
    Ok(own(spec.algorithm()).filter(|_| size == 0).unwrap_or(spec))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn d09_size_and_algorithm_are_the_requests_within_bounds() {
        let rs256 = KeySpec::Rs256 { bits: 3072 };
        let of = |size, algorithm, setting| {
            requested_spec(size, algorithm, setting).map_err(|error| error.grpc().code())
        };
        assert_eq!(of(0, "", rs256), Ok(None));
        assert_eq!(of(4096, "", rs256), Ok(Some(KeySpec::Rs256 { bits: 4096 })));
        assert_eq!(of(0, "RS256", rs256), Ok(Some(rs256)));
        assert_eq!(
            of(0, "RS256", KeySpec::EdDsa),
            Ok(Some(KeySpec::Rs256 { bits: 2048 }))
        );
        assert_eq!(
            of(2048, "RS256", KeySpec::Es256),
            Ok(Some(KeySpec::Rs256 { bits: 2048 }))
        );
        assert_eq!(of(0, "ES256", rs256), Ok(Some(KeySpec::Es256)));
        assert_eq!(of(0, "ES384", rs256), Ok(Some(KeySpec::Es384)));
        assert_eq!(of(0, "ES512", rs256), Ok(Some(KeySpec::Es512)));
        assert_eq!(of(0, "EdDSA", rs256), Ok(Some(KeySpec::EdDsa)));
        for (size, algorithm, setting) in [
            (1024, "", rs256),
            (2047, "RS256", rs256),
            (16384, "", rs256),
            (-2048, "", rs256),
            (i32::MIN, "", rs256),
            (2048, "", KeySpec::Es256),
            (2048, "ES256", rs256),
            (2048, "", KeySpec::Es512),
            (521, "ES512", rs256),
            (256, "EdDSA", rs256),
            (0, "HS256", rs256),
            (0, "rs256", rs256),
            (0, "none", rs256),
        ] {
            assert_eq!(
                of(size, algorithm, setting),
                Err(Code::InvalidArgument),
                "{size} {algorithm:?} {setting:?}"
            );
        }
    }
}
