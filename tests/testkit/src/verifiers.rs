//! Libraries that verify tokens and are not ours, each in a program below `tests/verifiers`. A
//! program reads the issuer's documents itself, and then says of each token what its library says.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    connect_proxy::ConnectProxy,
    files::{self, tree, venv},
    line_program::LineProgram,
};

/// What a verifier is told of the issuer.
pub struct TrustedIssuer<'a> {
    pub issuer: &'a str,
    /// Who signs the certificate of its web server.
    pub ca_file: &'a Path,
    /// Those that the verifier takes for its own.
    pub audiences: &'a [String],
    /// The way to the issuer.
    pub proxy: &'a ConnectProxy,
}

/// Whatever verifies tokens.
#[allow(async_fn_in_trait)] // Used by the tests of this workspace alone.
pub trait Verifier {
    /// What the verifier makes of the token, or why it refuses the token, in its own words.
    async fn verify(&mut self, token: &str) -> Result<Value, String>;
}

/// A running program.
pub struct VerifierProgram(LineProgram);

impl VerifierProgram {
    /// The authenticator of Kubernetes' API server, with this file as its
    /// `--authentication-config`.
    pub fn kubernetes(config: &Path, proxy: &ConnectProxy) -> Self {
        let arguments = [OsString::from("kubernetes"), config.into()];
        Self::start(go().args(arguments), proxy)
    }

    /// go-spiffe, which knows the tailnet's name as a trust domain.
    pub fn go_spiffe(trusted: &TrustedIssuer<'_>) -> Self {
        let mut command = go();
        command.arg("spiffe").args(arguments(trusted));
        Self::start(&mut command, trusted.proxy)
    }

    pub fn pyjwt(trusted: &TrustedIssuer<'_>) -> Self {
        let mut command = Command::new(venv("bin/python"));
        command
            .arg(tree("tests/verifiers/verify_pyjwt.py"))
            .args(arguments(trusted));
        Self::start(&mut command, trusted.proxy)
    }

    /// jose, of npm.
    pub fn jose(trusted: &TrustedIssuer<'_>) -> Self {
        let mut command = Command::new("node");
        command
            .arg(tree("tests/verifiers/verify_jose.mjs"))
            .arg(files::cache("npm/node_modules/jose/dist/webapi/index.js"))
            .args(arguments(trusted));
        Self::start(&mut command, trusted.proxy)
    }

    /// Nimbus JOSE + JWT, of Maven Central.
    pub fn nimbus(trusted: &TrustedIssuer<'_>) -> Self {
        let mut command = Command::new("java");
        command
            .arg("-cp")
            .arg(files::cache("bin/nimbus-jose-jwt.jar"))
            .arg("-Dhttps.proxyHost=127.0.0.1")
            .arg(format!("-Dhttps.proxyPort={}", trusted.proxy.addr.port()))
            .arg(tree("tests/verifiers/VerifyNimbus.java"))
            .args(arguments(trusted));
        Self::start(&mut command, trusted.proxy)
    }

    fn start(command: &mut Command, proxy: &ConnectProxy) -> Self {
        Self(LineProgram::start(command, proxy))
    }
}

impl Verifier for VerifierProgram {
    async fn verify(&mut self, token: &str) -> Result<Value, String> {
        self.0.say(token);
        let answer = self.0.answer();
        match answer.get("accepted") {
            Some(accepted) => Ok(accepted.clone()),
            None => Err(answer["refused"].as_str().unwrap().to_owned()),
        }
    }
}

/// What go-spiffe gets for the audience by the Workload API at this socket: the SVID's `id`, and
/// how `other`, for which it is not, is `refused`. An error has the library's own words.
pub fn workload_api(socket: &Path, audience: &str, other: &str) -> Result<Value, String> {
    let mut command = go();
    command.arg("workload-api").arg(socket);
    let output = command.args([audience, other]).output().unwrap();
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The Go program, which `scripts/setup` builds.
pub(crate) fn go() -> Command {
    Command::new(files::cache("bin/token-verifiers"))
}

fn arguments(trusted: &TrustedIssuer<'_>) -> Vec<OsString> {
    let ca_file: PathBuf = trusted.ca_file.to_owned();
    let audiences = trusted.audiences.iter().map(OsString::from);
    [trusted.issuer.into(), ca_file.into()]
        .into_iter()
        .chain(audiences)
        .collect()
}
