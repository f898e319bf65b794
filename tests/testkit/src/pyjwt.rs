//! PyJWT as an independent verifier of tokens.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use crate::files::venv;

/// What PyJWT says of a token of this issuer, for any audience, with the keys of the document
/// `jwks`. An error holds the library's own words.
pub fn verify(jwks: &Path, issuer: &str, token: &str) -> Result<String, String> {
    let mut python = Command::new(venv("bin/python"))
        .args(["tests/python/verify_jwt.py", jwks.to_str().unwrap(), issuer])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let input = serde_json::json!({ "token": token }).to_string();
    python
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = python.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}
