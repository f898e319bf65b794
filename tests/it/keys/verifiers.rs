//! Tokens of every algorithm, verified by a program that shares no code with this one.

use tailbone::{
    config::KeySpec,
    keys::{Algorithm, PrivateJwk, Signer},
};
use testkit::pyjwt;

use super::at;

#[test]
fn pyjwt_verifies_a_token_of_every_algorithm() {
    let folder = tempfile::tempdir().unwrap();
    let jwks = folder.path().join("jwks.json");
    let claims = |sub: &str| {
        serde_json::json!({"iss": "tailbone", "sub": sub, "iat": 1, "exp": at(0).as_second() * 2})
            .to_string()
    };
    let mut document = tailbone::jwks::Document::default();
    let mut signers = Vec::new();
    for algorithm in Algorithm::ALL {
        let kid = format!("tb-1-{algorithm}").parse().unwrap();
        let key = PrivateJwk::generate(kid, KeySpec::new(algorithm, 2048)).unwrap();
        document.add(key.public()).unwrap();
        signers.push(Signer::new(&key).unwrap());
    }
    std::fs::write(&jwks, document.to_bytes()).unwrap();
    for signer in &signers {
        let token = signer.sign(claims("web").as_bytes()).unwrap();
        let told = pyjwt::verify(&jwks, "tailbone", &token).unwrap();
        assert!(told.contains("\"sub\": \"web\""), "{told}");
        assert!(told.contains(signer.algorithm().as_str()), "{told}");
        // The same signature under other claims.
        let other = signer.sign(claims("db").as_bytes()).unwrap();
        let (message, _) = other.rsplit_once('.').unwrap();
        let (_, signature) = token.rsplit_once('.').unwrap();
        let forged = pyjwt::verify(&jwks, "tailbone", &format!("{message}.{signature}"));
        let refused = forged.unwrap_err();
        assert!(refused.contains("InvalidSignature"), "{refused}");
    }
}
