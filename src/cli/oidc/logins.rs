//! `tailbone oidc session …` and `tailbone oidc grant …`: who is logged in where, at a running
//! server, and the end of it.

use clap::{Arg, ArgGroup, ArgMatches, Command};
use jiff::tz::TimeZone;
use serde::Serialize;

use super::call::{AdminCall, at_server, text};
use crate::{
    admin::oidc_proto::{
        EndSessionsRequest, Grant, ListGrantsRequest, ListSessionsRequest, RevokeGrantsRequest,
        Session,
    },
    cli::{
        args,
        console::Console,
        exit::Failure,
        keys::local_time,
        layout::{Layout, List, Mark, count},
        output::{Output, Table},
        prompt,
    },
    config::{Environment, table::FlagScope},
};

pub(super) fn session_command() -> Command {
    at_server(
        Command::new("session")
            .visible_alias("sessions")
            .about("List and end the sessions of browsers"),
    )
    .subcommand(
        Command::new("list")
            .visible_alias("ls")
            .about("List sessions, the newest first")
            .args([
                user(),
                client("Only those in which this client was granted something"),
            ])
            .group(ArgGroup::new("whose").args(["user", "client"])),
    )
    .subcommand(
        Command::new("end")
            .about("End sessions with all that was granted in them, and tell the applications")
            .args(args::of(FlagScope::Remove))
            .arg(
                Arg::new("session")
                    .value_name("SESSION")
                    .help("Id of a session, as listed"),
            )
            .args([
                user(),
                client("Those in which this client was granted something"),
            ])
            .group(
                ArgGroup::new("whose")
                    .args(["session", "user", "client"])
                    .required(true),
            ),
    )
}

pub(super) fn grant_command() -> Command {
    at_server(
        Command::new("grant")
            .visible_alias("grants")
            .about("List and revoke what people and programs granted to clients"),
    )
    .subcommand(
        Command::new("list")
            .visible_alias("ls")
            .about("List grants, the newest first")
            .args([user(), client("Those of this client")])
            .arg(
                Arg::new("session")
                    .long("session")
                    .value_name("SESSION")
                    .help("Those of this session"),
            )
            .group(
                ArgGroup::new("whose")
                    .args(["user", "client", "session"])
                    .required(true),
            ),
    )
    .subcommand(
        Command::new("revoke")
            .about("Revoke grants with all of their tokens")
            .args(args::of(FlagScope::Remove))
            .arg(
                Arg::new("grant")
                    .value_name("GRANT")
                    .help("Id of a grant, as listed"),
            )
            .args([user(), client("Those of this client")])
            .group(
                ArgGroup::new("whose")
                    .args(["grant", "user", "client"])
                    .required(true),
            ),
    )
}

fn user() -> Arg {
    Arg::new("user")
        .long("user")
        .value_name("USER")
        .help("Those of this person: userid:NUMBER, or the login of somebody who has a session")
}

fn client(help: &'static str) -> Arg {
    Arg::new("client")
        .long("client")
        .value_name("CLIENT")
        .help(help)
}

pub(super) fn run_session(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("list", matches)) => {
            let call = AdminCall::new(matches, environment, console)?;
            let request = ListSessionsRequest {
                user: text(matches, "user"),
                client_id: text(matches, "client"),
            };
            let found = call.wait(async |mut api| api.list_sessions(request).await)?;
            let sessions: Vec<_> = found.sessions.into_iter().map(ShownSession::of).collect();
            say_how_many(console, sessions.len(), found.more, "sessions");
            call.print(console, &Sessions(sessions))
        }
        Some(("end", matches)) => {
            let call = AdminCall::confirming(matches, environment, console)?;
            let (session_id, of) = whose(matches, "session");
            let question = format!("End {of}, with all that was granted in it?");
            prompt::confirm(console, &question, call.settings.no_confirmation)?;
            let request = EndSessionsRequest {
                session_id,
                user: text(matches, "user"),
                client_id: text(matches, "client"),
            };
            let done = call.wait(async |mut api| api.end_sessions(request).await)?;
            call.print(console, &Ended { ended: done.ended })
        }
        _ => crate::cli::help(Some("oidc"), console),
    }
}

pub(super) fn run_grant(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("list", matches)) => {
            let call = AdminCall::new(matches, environment, console)?;
            let request = ListGrantsRequest {
                user: text(matches, "user"),
                client_id: text(matches, "client"),
                session_id: text(matches, "session"),
            };
            let found = call.wait(async |mut api| api.list_grants(request).await)?;
            let grants: Vec<_> = found.grants.into_iter().map(ShownGrant::of).collect();
            say_how_many(console, grants.len(), found.more, "grants");
            call.print(console, &Grants(grants))
        }
        Some(("revoke", matches)) => {
            let call = AdminCall::confirming(matches, environment, console)?;
            let (grant_id, of) = whose(matches, "grant");
            let question = format!("Revoke {of}, with all tokens?");
            prompt::confirm(console, &question, call.settings.no_confirmation)?;
            let request = RevokeGrantsRequest {
                grant_id,
                user: text(matches, "user"),
                client_id: text(matches, "client"),
            };
            let done = call.wait(async |mut api| api.revoke_grants(request).await)?;
            let revoked = done.revoked;
            call.print(console, &Revoked { revoked })
        }
        _ => crate::cli::help(Some("oidc"), console),
    }
}

/// The one that was named, and words for whatever was.
fn whose(matches: &ArgMatches, noun: &str) -> (String, String) {
    let (one, user) = (text(matches, noun), text(matches, "user"));
    let words = if !one.is_empty() {
        format!("{noun} {one}")
    } else if !user.is_empty() {
        format!("every {noun} of {user}")
    } else {
        format!("every {noun} of client {}", text(matches, "client"))
    };
    (one, words)
}

/// What a list does not say by itself.
fn say_how_many(console: &mut Console<'_>, found: usize, more: bool, nouns: &str) {
    if found == 0 {
        console.say(&format!("No {nouns} found"));
    } else if more {
        console.say(&format!(
            "There are more; these are the newest {found} {nouns}"
        ));
    }
}

#[derive(Debug, Serialize)]
struct ShownSession {
    session_id: String,
    subject: String,
    login: String,
    /// Unix seconds, as all times here.
    created_at: i64,
    authenticated_at: i64,
    expires_at: i64,
}

impl ShownSession {
    fn of(session: Session) -> Self {
        Self {
            session_id: session.session_id,
            subject: session.subject,
            login: session.login,
            created_at: session.created_at,
            authenticated_at: session.authenticated_at,
            expires_at: session.expires_at,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Sessions(Vec<ShownSession>);

impl Output for Sessions {
    fn text(&self, layout: Layout) -> String {
        let zone = TimeZone::system();
        let mut table = Table::new(["Session", "User", "Login", "Authenticated", "Ends"]);
        for session in &self.0 {
            table.row([
                session.session_id.clone(),
                session.subject.clone(),
                session.login.clone(),
                local_time(session.authenticated_at, &zone),
                local_time(session.expires_at, &zone),
            ]);
        }
        table.text(layout)
    }
}

#[derive(Debug, Serialize)]
struct ShownGrant {
    grant_id: String,
    client_id: String,
    /// Empty if a program acts for itself.
    subject: String,
    login: String,
    session_id: String,
    scopes: Vec<String>,
    resources: Vec<String>,
    created_at: i64,
}

impl ShownGrant {
    fn of(grant: Grant) -> Self {
        Self {
            grant_id: grant.grant_id,
            client_id: grant.client_id,
            subject: grant.subject,
            login: grant.login,
            session_id: grant.session_id,
            scopes: grant.scopes,
            resources: grant.resources,
            created_at: grant.created_at,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Grants(Vec<ShownGrant>);

impl Output for Grants {
    fn text(&self, layout: Layout) -> String {
        let zone = TimeZone::system();
        let mut table = Table::new(["Grant", "Client id", "User", "Login", "Scopes", "Made"]);
        for grant in &self.0 {
            table.row([
                grant.grant_id.clone(),
                grant.client_id.clone(),
                grant.subject.clone(),
                grant.login.clone(),
                grant.scopes.join(" "),
                local_time(grant.created_at, &zone),
            ]);
        }
        table.text(layout)
    }
}

#[derive(Debug, Serialize)]
struct Ended {
    ended: u64,
}

impl Output for Ended {
    fn text(&self, layout: Layout) -> String {
        let words = format!("Ended {}", counted(self.ended, "session", "sessions"));
        sentence(layout, &words)
    }
}

#[derive(Debug, Serialize)]
struct Revoked {
    revoked: u64,
}

impl Output for Revoked {
    fn text(&self, layout: Layout) -> String {
        let words = format!("Revoked {}", counted(self.revoked, "grant", "grants"));
        sentence(layout, &words)
    }
}

fn counted(number: u64, one: &str, many: &str) -> String {
    count(usize::try_from(number).unwrap_or(usize::MAX), one, many)
}

fn sentence(layout: Layout, words: &str) -> String {
    let mut list = List::new(layout);
    list.sentence(Mark::Good, words);
    list.finish()
}
