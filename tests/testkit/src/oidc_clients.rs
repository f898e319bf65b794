//! Web applications that log people in with libraries which are not ours, each a program below
//! `tests/verifiers`. The test is the browser: it gets the address to which the application sends
//! it, and says at which one it comes back.

use std::{ffi::OsString, path::Path, process::Command};

use serde_json::Value;

use crate::{
    connect_proxy::ConnectProxy,
    files::{self, tree, venv},
    line_program::LineProgram,
    verifiers::go,
};

/// The provider as an application knows it, and the application as the provider knows it.
pub struct Registration<'a> {
    pub issuer: &'a str,
    /// Who signs the certificate of the provider's web server.
    pub ca_file: &'a Path,
    pub client_id: &'a str,
    pub secret: &'a str,
    pub redirect_uri: &'a str,
    /// The way to the provider.
    pub proxy: &'a ConnectProxy,
}

impl Registration<'_> {
    fn arguments(&self) -> [OsString; 5] {
        [
            self.issuer.into(),
            self.ca_file.into(),
            self.client_id.into(),
            self.secret.into(),
            self.redirect_uri.into(),
        ]
    }

    /// Authlib, in a web application made with Flask.
    pub fn authlib(&self) -> Application {
        let mut command = Command::new(venv("bin/python"));
        command.arg(tree("tests/verifiers/login_authlib.py"));
        self.start(command)
    }

    /// coreos/go-oidc.
    pub fn go_oidc(&self) -> Application {
        let mut command = go();
        command.arg("login");
        self.start(command)
    }

    /// openid-client, of npm.
    pub fn openid_client(&self) -> Application {
        let mut command = Command::new("node");
        command
            .arg(tree("tests/verifiers/login_openid_client.mjs"))
            .arg(files::cache(
                "npm/node_modules/openid-client/build/index.js",
            ));
        self.start(command)
    }

    fn start(&self, mut command: Command) -> Application {
        command.args(self.arguments());
        Application(LineProgram::start(&mut command, self.proxy))
    }
}

/// An MCP server made with the package mcp of PyPI, which asks the provider about each token. It
/// ends when dropped.
pub struct McpServer<'a> {
    pub url: String,
    ca_file: &'a Path,
    proxy: &'a ConnectProxy,
    _program: LineProgram,
}

impl<'a> McpServer<'a> {
    pub fn start(issuer: &str, ca_file: &'a Path, proxy: &'a ConnectProxy) -> Self {
        let mut command = Command::new(venv("bin/python"));
        command
            .arg(tree("tests/verifiers/mcp_server.py"))
            .arg(issuer)
            .arg(ca_file);
        let program = LineProgram::start(&mut command, proxy);
        Self {
            url: program.answer()["server"].as_str().unwrap().to_owned(),
            ca_file,
            proxy,
            _program: program,
        }
    }

    /// A client of the same package. The provider finds what it is at this address; without one it
    /// registers itself.
    pub fn python_client(&self, document: Option<&str>) -> Application {
        let mut command = Command::new(venv("bin/python"));
        command.arg(tree("tests/verifiers/login_mcp.py"));
        self.client(command, document)
    }

    /// A client made with @modelcontextprotocol/sdk of npm.
    pub fn javascript_client(&self, document: Option<&str>) -> Application {
        let mut command = Command::new("node");
        command
            .arg(tree("tests/verifiers/login_mcp.mjs"))
            .arg(files::cache("npm/node_modules/@modelcontextprotocol/sdk"));
        self.client(command, document)
    }

    fn client(&self, mut command: Command, document: Option<&str>) -> Application {
        command.arg(&self.url).arg(self.ca_file).args(document);
        Application(LineProgram::start(&mut command, self.proxy))
    }
}

/// An application that waits for a person to log in.
pub struct Application(LineProgram);

impl Application {
    /// Where it sends the browser.
    pub fn authorize(&self) -> String {
        let said = self.0.answer();
        said["authorize"].as_str().unwrap().to_owned()
    }

    /// What it learned once the browser came back at this address. A web application tells the
    /// `claims` of the ID token, those of `userinfo`, and those of a second ID token, after the
    /// first was `refreshed`.
    pub fn learned(mut self, back: &str) -> Value {
        self.0.say(back);
        self.0.answer()
    }
}
