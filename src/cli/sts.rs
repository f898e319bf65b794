//! `tailbone sts …`: exchange a token, check and explain policies, issue tokens for a trial.
//!
//! The flags and variables of TailSTS's client and JWKS server keep working beside ours.
//!
//! Invariants: standard output carries the result and nothing else; a token from the command line
//! is never repeated.

use std::{
    ffi::OsString,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand};
use jiff::Timestamp;
use url::Url;

use super::{
    args, ask,
    console::Console,
    exit::{self, Failure},
    layout::{Layout, List, Mark, count},
};
use crate::{
    config::{Environment, Secret},
    http::{
        layers,
        serve::{Limits, serve},
        tcp::{PlainListener, Remote},
    },
    jwks::verify::{MalformedToken, ParsedToken, SignatureCheck},
    signals::{Signal, Signals},
    sts::{
        client::{self, ClientError, ExchangeRequest, ExchangeResponse, TokenSource},
        policy::{self, CheckedToken, PolicyLoadError},
        trial_issuer::{self, TrialError, TrialIssuer, TrialSettings},
    },
};

#[derive(Debug, Subcommand)]
pub enum Sts {
    /// Swap an OIDC token for an access token of Tailscale's API and print it
    Exchange(Exchange),
    /// Report every mistake in the policies of a directory
    Check(Check),
    /// Say which policy takes a token, or which would have to change; checks no signature
    Explain(Explain),
    /// Make a key, print a token, and publish the key, for trying out an exchange
    ServeTrialIssuer(Trial),
}

#[derive(Debug, Args)]
pub struct Exchange {
    /// Address of the exchange [TAILSTS_SERVER; default http://localhost:8080]
    #[arg(long, short, short_aliases = ['u', 'a'], aliases = ["s", "url", "u", "addr", "a"])]
    server: Option<String>,
    /// The OIDC token; safer in a variable or a file, as others may see command lines [OIDC_TOKEN]
    #[arg(long, short, alias = "t", hide_default_value = true)]
    token: Option<String>,
    /// File with the OIDC token; - is standard input
    #[arg(long, conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// Name of the variable with the OIDC token, as a GitLab job's id_tokens define it
    #[arg(long, conflicts_with_all = ["token", "token_file"])]
    token_variable: Option<String>,
    /// Scopes by commas or blanks; may be repeated [SCOPES; default acls]
    #[arg(long, alias = "scope")]
    scopes: Vec<String>,
    /// Tags by commas or blanks [default: all tags of the policy]
    #[arg(long)]
    tags: Vec<String>,
    /// Audience of the token from GitHub Actions [default: scheme and host of the server]
    #[arg(long)]
    audience: Option<String>,
    /// Print JSON with the token's life and scope
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Check {
    /// Directory of the policies [TB_STS_POLICIESDIR, POLICIES_DIR; default policies]
    #[arg(long)]
    policies_dir: Option<PathBuf>,
    /// Treat warnings as mistakes
    #[arg(long)]
    strict: bool,
}

#[derive(Debug, Args)]
pub struct Explain {
    /// Directory of the policies [TB_STS_POLICIESDIR, POLICIES_DIR; default policies]
    #[arg(long)]
    policies_dir: Option<PathBuf>,
    /// File with the token; - is standard input
    #[arg(long)]
    token_file: PathBuf,
    /// Scopes by commas or blanks; may be repeated
    #[arg(long, alias = "scope")]
    scopes: Vec<String>,
    /// Tags by commas or blanks
    #[arg(long)]
    tags: Vec<String>,
    /// How far the issuer's clock may be off
    #[arg(long, default_value = "0s", value_parser = args::duration)]
    leeway: Duration,
}

#[derive(Debug, Args)]
pub struct Trial {
    /// Port [PORT; default 8888]
    #[arg(long)]
    port: Option<u16>,
    /// Address to listen on; whoever reaches it can make tokens
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    listen: IpAddr,
    /// The iss claim [ISSUER; default the port on localhost]
    #[arg(long)]
    issuer: Option<String>,
    /// The sub claim [SUBJECT; default test]
    #[arg(long)]
    subject: Option<String>,
    /// The aud claim; none when empty
    #[arg(long, default_value = "")]
    audience: String,
    /// Name of the key [KID; default test]
    #[arg(long)]
    kid: Option<String>,
    /// Life of a token
    #[arg(long, default_value = "1h", value_parser = args::duration)]
    life: Duration,
}

/// Why a command failed. Only [`StsCommandError::Usage`] is a mistake in the command line.
#[derive(Debug, thiserror::Error)]
pub enum StsCommandError {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Policies(#[from] PolicyLoadError),
    #[error("the token file {0} holds no token")]
    Token(PathBuf, #[source] MalformedToken),
    #[error("the token file {0} cannot be read")]
    TokenFile(PathBuf, #[source] io::Error),
    #[error(transparent)]
    Trial(#[from] TrialError),
    #[error("there can be no listener at {0}")]
    Listen(SocketAddr, #[source] io::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("refused")]
    Refused,
}

pub(super) fn command() -> Command {
    let group = Command::new("sts").about("Swap OIDC tokens for access tokens of Tailscale's API");
    Sts::augment_subcommands(group).subcommand_required(false)
}

pub(super) fn run(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    if matches.subcommand().is_none() {
        return super::help(Some("sts"), console);
    }
    let command = Sts::from_arg_matches(matches)
        .map_err(|error| Failure::with_code(exit::USAGE, error.to_string()))?;
    let outcome = ask::runtime()?.block_on(async {
        // Signals end a command that would run for ever. Others do not poll this, so that a signal
        // kills them as it does any program.
        let stop = async {
            let Ok(mut signals) = Signals::install() else {
                return std::future::pending().await;
            };
            while let Ok(Signal::Hangup) = signals.next().await {}
        };
        command
            .run(environment, console.layout, &mut *console.out, stop)
            .await
    });
    outcome.map_err(|error| match error {
        StsCommandError::Usage(sentence) => Failure::with_code(exit::USAGE, sentence),
        StsCommandError::Io(error) => Failure::output(error),
        other => {
            let advice = advice(&other);
            Failure::failed(other).advise(advice)
        }
    })
}

fn advice(error: &StsCommandError) -> &'static str {
    match error {
        StsCommandError::Client(ClientError::Unreachable { .. }) => {
            "Name the exchange with --server or TAILSTS_SERVER"
        }
        StsCommandError::Listen(..) => "Choose another address with --listen and --port",
        StsCommandError::Policies(
            PolicyLoadError::Directory { .. } | PolicyLoadError::Empty(_),
        ) => "Name another directory with --policies-dir or TB_STS_POLICIESDIR",
        _ => "",
    }
}

impl Sts {
    /// Runs the command. `stop` ends one that would run for ever.
    pub async fn run<W: Write + ?Sized>(
        self,
        variables: &Environment,
        layout: Layout,
        out: &mut W,
        stop: impl Future<Output = ()>,
    ) -> Result<(), StsCommandError> {
        match self {
            Self::Exchange(exchange) => {
                let json = exchange.json;
                let answer = client::exchange(exchange.ask(variables)?).await?;
                Ok(print(&answer, json, out)?)
            }
            Self::Check(check) => check.run(variables, out),
            Self::Explain(explain) => explain.run(variables, Timestamp::now(), layout, out),
            Self::ServeTrialIssuer(trial) => trial.run(variables, out, stop).await,
        }
    }
}

impl Exchange {
    fn ask(self, variables: &Environment) -> Result<ExchangeRequest, StsCommandError> {
        let server = self
            .server
            .clone()
            .or_else(|| first(variables, &["TAILSTS_SERVER"]))
            .unwrap_or_else(|| "http://localhost:8080".to_owned());
        let server = args::server_url(&server).ok_or_else(|| {
            usage(format!(
                "--server {server}: not an address such as https://sts.example.com:8443"
            ))
        })?;
        let mut scopes = words(&self.scopes);
        if scopes.is_empty() {
            scopes = words(&Vec::from_iter(first(variables, &["SCOPES"])));
        }
        if scopes.is_empty() {
            scopes = vec!["acls".to_owned()];
        }
        Ok(ExchangeRequest {
            token: self.source(&server, variables)?,
            server,
            scopes,
            tags: words(&self.tags),
        })
    }

    /// Flags come first, then variables, then the CI system of the job.
    fn source(
        &self,
        server: &Url,
        variables: &Environment,
    ) -> Result<TokenSource, StsCommandError> {
        if let Some(token) = &self.token {
            return Ok(TokenSource::Text(Secret::new(token)));
        }
        if let Some(path) = &self.token_file {
            return Ok(TokenSource::File(path.clone()));
        }
        if let Some(name) = &self.token_variable {
            let token = first(variables, &[name]);
            let token =
                token.ok_or_else(|| usage(format!("--token-variable {name}: it is not set")))?;
            return Ok(TokenSource::Text(Secret::new(token)));
        }
        if let Some(token) = first(variables, &["OIDC_TOKEN", "TAILBONE_ID_TOKEN"]) {
            return Ok(TokenSource::Text(Secret::new(token)));
        }
        let url = first(variables, &["ACTIONS_ID_TOKEN_REQUEST_URL"]);
        let request_token = first(variables, &["ACTIONS_ID_TOKEN_REQUEST_TOKEN"]);
        if let (Some(url), Some(request_token)) = (url, request_token) {
            let audience = self.audience.clone();
            return Ok(TokenSource::GitHub {
                url,
                request_token: Secret::new(request_token),
                audience: audience.unwrap_or_else(|| server.origin().ascii_serialization()),
            });
        }
        let hint = if first(variables, &["GITHUB_ACTIONS"]).is_some() {
            "; in GitHub Actions the job needs `permissions: id-token: write`"
        } else if first(variables, &["GITLAB_CI"]).is_some() {
            "; in GitLab CI define TAILBONE_ID_TOKEN under id_tokens"
        } else {
            ""
        };
        Err(usage(format!(
            "no token: give --token-file, --token-variable or OIDC_TOKEN{hint}"
        )))
    }
}

fn print<W: Write + ?Sized>(answer: &ExchangeResponse, json: bool, out: &mut W) -> io::Result<()> {
    let token = answer.access_token.reveal();
    if !json {
        return writeln!(out, "{token}");
    }
    let mut object = serde_json::json!({"access_token": token, "token_type": "Bearer"});
    if let Some(expires_in) = answer.expires_in {
        object["expires_in"] = expires_in.into();
    }
    if let Some(scope) = &answer.scope {
        object["scope"] = scope.as_str().into();
    }
    writeln!(out, "{object}")
}

impl Check {
    fn run<W: Write + ?Sized>(
        self,
        variables: &Environment,
        out: &mut W,
    ) -> Result<(), StsCommandError> {
        let loaded = policy::load(&directory(self.policies_dir, variables), self.strict)?;
        for warning in &loaded.warnings {
            writeln!(out, "warning: {warning}")?;
        }
        let policies = count(loaded.policies.len(), "policy", "policies");
        Ok(writeln!(out, "{policies}, no mistakes")?)
    }
}

impl Explain {
    fn run<W: Write + ?Sized>(
        self,
        variables: &Environment,
        now: Timestamp,
        layout: Layout,
        out: &mut W,
    ) -> Result<(), StsCommandError> {
        let loaded = policy::load(&directory(self.policies_dir, variables), false)?;
        let text = if self.token_file.as_os_str() == "-" {
            io::read_to_string(io::stdin())
        } else {
            std::fs::read_to_string(&self.token_file)
        };
        let text =
            text.map_err(|error| StsCommandError::TokenFile(self.token_file.clone(), error))?;
        let token = ParsedToken::read(text.trim())
            .map_err(|error| StsCommandError::Token(self.token_file, error))?;
        let trusted =
            |policy: &policy::ExchangePolicy| (policy.source.clone(), SignatureCheck::Valid);
        let checked_token = CheckedToken {
            token: &token,
            signatures: loaded.policies.iter().map(trusted).collect(),
        };
        let (scopes, tags) = (words(&self.scopes), words(&self.tags));
        let request = policy::RequestedAccess {
            scopes: &scopes,
            tags: &tags,
        };
        let decision = policy::decide(&loaded.policies, &checked_token, request, now, self.leeway);
        write!(out, "{}", explained(&decision, &token, request, layout))?;
        match decision.outcome {
            policy::PolicyOutcome::Allowed(_) => Ok(()),
            policy::PolicyOutcome::Refused(..) => Err(StsCommandError::Refused),
        }
    }
}

/// Who gets what by which policy, or which policy would have to change; then every policy.
fn explained(
    decision: &policy::PolicyDecision<'_>,
    token: &ParsedToken,
    request: policy::RequestedAccess<'_>,
    layout: Layout,
) -> String {
    let claim = |name| token.claims.text(name).filter(|text| !text.is_empty());
    let subject = match claim("sub") {
        Some(subject) => format!("the subject {subject:?}"),
        None => "a token without subject".to_owned(),
    };
    let issuer = match claim("iss") {
        Some(issuer) => format!("the issuer {issuer}"),
        None => "no issuer".to_owned(),
    };
    let scopes = request.scopes.join(", ");
    let mut list = List::new(layout);
    match &decision.outcome {
        policy::PolicyOutcome::Allowed(policy) => {
            let name = &policy.name;
            let words = format!("allowed: {name} lets {subject} of {issuer} have {scopes}");
            list.sentence(Mark::Good, &words);
        }
        policy::PolicyOutcome::Refused(Some(policy), reason) => {
            let name = &policy.name;
            let words = format!(
                "refused: no policy lets {subject} of {issuer} have {scopes}; the nearest, {name}, \
                 would have to change: {reason}"
            );
            list.sentence(Mark::Bad, &words);
        }
        policy::PolicyOutcome::Refused(None, _) => {
            let words = format!("refused: no policy is about {issuer}, so one has to be added");
            list.sentence(Mark::Bad, &words);
        }
    }
    list.note("The signature was not checked.");
    if !decision.evaluated.is_empty() {
        list.heading("Policies for this issuer");
        let tried = decision.evaluated.iter().map(|(policy, verdict)| {
            let words = match verdict {
                Ok(()) => "allows".to_owned(),
                Err(reason) => format!("{reason} ({})", reason.code()),
            };
            (&policy.name, words)
        });
        list.facts(&tried.collect::<Vec<_>>());
    }
    list.finish()
}

impl Trial {
    async fn run<W: Write + ?Sized>(
        self,
        variables: &Environment,
        out: &mut W,
        stop: impl Future<Output = ()>,
    ) -> Result<(), StsCommandError> {
        let port = match (self.port, first(variables, &["PORT"])) {
            (Some(port), _) => port,
            (None, None) => 8888,
            (None, Some(text)) => text
                .parse()
                .map_err(|_| usage(format!("PORT={text}: not a port (0-65535)")))?,
        };
        let or = |flag: Option<String>, name, default: &str| {
            flag.or_else(|| first(variables, &[name]))
                .unwrap_or_else(|| default.to_owned())
        };
        let addr = SocketAddr::new(self.listen, port);
        let tcp = tokio::net::TcpListener::bind(addr)
            .await
            .map_err(|error| StsCommandError::Listen(addr, error))?;
        // Port 0 is known only now.
        let port = tcp.local_addr()?.port();
        let issuer = TrialIssuer::new(TrialSettings {
            issuer: or(self.issuer, "ISSUER", &format!("http://localhost:{port}")),
            subject: or(self.subject, "SUBJECT", "test"),
            audience: self.audience,
            kid: or(self.kid, "KID", "test"),
            life: self.life,
        })?;
        let token = issuer.token(Timestamp::now()).map_err(io::Error::other)?;
        let router = layers::wrap(trial_issuer::router(Arc::new(issuer)), "trial-issuer");
        let mut server = serve(
            "trial-issuer",
            PlainListener(tcp),
            router,
            Limits::default(),
            Remote::identify,
        );
        writeln!(out, "{token}")?;
        out.flush()?;
        tokio::select! {
            error = server.failed() => return Err(error.into()),
            () = stop => {}
        }
        server.stop(Duration::from_secs(1)).await;
        Ok(())
    }
}

fn directory(flag: Option<PathBuf>, variables: &Environment) -> PathBuf {
    flag.or_else(|| first(variables, &["TB_STS_POLICIESDIR", "POLICIES_DIR"]).map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from("policies"))
}

/// The first of these variables that is set. An empty one counts as unset.
fn first(variables: &Environment, names: &[&str]) -> Option<String> {
    let found = names.iter().find_map(|name| variables.text(name));
    found.map(str::to_owned)
}

fn words(texts: &[String]) -> Vec<String> {
    texts
        .iter()
        .flat_map(|text| text.split([',', ' ', '\t', '\n']))
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

fn usage(sentence: String) -> StsCommandError {
    StsCommandError::Usage(sentence)
}

/// TailSTS took long flags with one dash too (`-url …`). Adds the second dash to those of `sts
/// exchange`, so that its scripts keep working; every other command line stays as it is.
pub(super) fn with_two_dashes(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    const LONG: [&str; 6] = ["server", "url", "addr", "token", "scopes", "scope"];
    let mut arguments: Vec<_> = arguments.into_iter().collect();
    let ours = arguments
        .windows(2)
        .any(|pair| pair[0] == "sts" && pair[1] == "exchange");
    if !ours {
        return arguments;
    }
    for argument in &mut arguments {
        let Some(text) = argument.to_str() else {
            continue;
        };
        let name = text.split('=').next().unwrap_or_default();
        if name
            .strip_prefix('-')
            .is_some_and(|name| LONG.contains(&name))
        {
            *argument = format!("-{text}").into();
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        sts: Sts,
    }

    fn ask(line: &str, variables: &[(&str, &str)]) -> Result<ExchangeRequest, StsCommandError> {
        let words = ["tailbone"].into_iter().chain(line.split(' '));
        let arguments = with_two_dashes(words.map(OsString::from)).split_off(1);
        let Sts::Exchange(exchange) = Line::try_parse_from(arguments).unwrap().sts else {
            panic!("not exchange")
        };
        exchange.ask(&variables.iter().copied().collect())
    }

    #[test]
    fn the_originals_flags_and_variables_work() {
        for flag in [
            "--server", "-server", "--s", "-s", "--url", "-url", "--u", "-u", "--addr", "-addr",
            "--a", "-a",
        ] {
            let ask = ask(
                &format!("sts exchange {flag} https://x.example -t tok --scope a,b"),
                &[],
            )
            .unwrap();
            assert_eq!(ask.server.as_str(), "https://x.example/", "{flag}");
            assert_eq!(ask.scopes, ["a", "b"]);
            assert_eq!(ask.token, TokenSource::Text(Secret::new("tok")));
        }
        let variables = [
            ("TAILSTS_SERVER", "http://y:1"),
            ("OIDC_TOKEN", "v"),
            ("SCOPES", "c d"),
        ];
        let from_variables = ask("sts exchange", &variables).unwrap();
        assert_eq!(from_variables.server.as_str(), "http://y:1/");
        assert_eq!(from_variables.scopes, ["c", "d"]);
        assert_eq!(from_variables.token, TokenSource::Text(Secret::new("v")));
        let flags_win = ask("sts exchange --token=w --scopes=e", &variables).unwrap();
        assert_eq!(flags_win.scopes, ["e"]);
        assert_eq!(flags_win.token, TokenSource::Text(Secret::new("w")));
    }

    #[test]
    fn defaults_are_the_originals() {
        let ask = ask("sts exchange", &[("OIDC_TOKEN", "v")]).unwrap();
        assert_eq!(ask.server.as_str(), "http://localhost:8080/");
        assert_eq!(ask.scopes, ["acls"]);
    }

    #[test]
    fn github_and_gitlab_are_found() {
        let github = [
            ("ACTIONS_ID_TOKEN_REQUEST_URL", "https://gh.example/t?x=1"),
            ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "r"),
        ];
        let found = ask("sts exchange --server https://sts.example:8443/x", &github).unwrap();
        let TokenSource::GitHub { audience, .. } = found.token else {
            panic!("not GitHub")
        };
        assert_eq!(audience, "https://sts.example:8443");
        let gitlab = [("MY_TOKEN", "g")];
        let found = ask("sts exchange --token-variable MY_TOKEN", &gitlab).unwrap();
        assert_eq!(found.token, TokenSource::Text(Secret::new("g")));
        let none = ask("sts exchange", &[("GITHUB_ACTIONS", "true")]).unwrap_err();
        assert!(none.to_string().contains("id-token: write"), "{none}");
    }

    #[test]
    fn the_command_is_well_formed() {
        use clap::CommandFactory;
        Line::command().debug_assert();
        assert!(
            Line::from_arg_matches(&Line::command().get_matches_from(["sts", "check"])).is_ok()
        );
    }
}
