//! `tailbone oidc client …`: the applications that people log in to, at a running server.

use std::{
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Arg, ArgAction, ArgMatches, Command};
use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    STANDARD,
    call::{AdminCall, at_server, text},
};
use crate::{
    admin::oidc_proto::{
        AddClientSecretRequest, ChangedClient, Client, CreateClientRequest, GetClientRequest,
        ListClientsRequest, RemoveClientRequest, RemoveClientSecretRequest, Secret,
        UpdateClientRequest,
    },
    cli::{
        args,
        console::Console,
        exit::{self, Failure},
        keys::local_time,
        layout::{Layout, List, Mark},
        output::{Output, Table},
        prompt,
    },
    config::{Environment, table::FlagScope},
};

pub(super) fn command() -> Command {
    let id = || {
        Arg::new("client")
            .value_name("CLIENT")
            .required(true)
            .help("Id of the client, as listed")
    };
    at_server(
        Command::new("client")
            .visible_alias("clients")
            .about("List, show, make, change and remove the applications that people log in to"),
    )
    .subcommand(
        Command::new("list")
            .visible_alias("ls")
            .about("List the clients, in the order of their ids")
            .arg(option("search", "TEXT").help(
                "Only those whose id, name or redirect URI has this in it, whatever the case",
            ))
            .arg(
                option("origin", "WORD")
                    .value_parser(["admin", "file", "registered", "tsidp"])
                    .help("Only those that were made by hand, are in a file, registered themselves, or came from tsidp"),
            ),
    )
    .subcommand(Command::new("show").about("Show one client").arg(id()))
    .subcommand(
        described(Command::new("create").about("Make a client, and tell its secret once"))
            .arg(option("id", "ID").help("Id of the client [default: chosen by the server]"))
            .arg(lifetime()),
    )
    .subcommand(
        described(Command::new("update").about("Change what is known of a client")).arg(id()),
    )
    .subcommand(
        Command::new("remove")
            .about("Remove a client with all that it was given")
            .args(args::of(FlagScope::Remove))
            .arg(id()),
    )
    .subcommand(
        Command::new("secret")
            .about("Add and remove secrets, of which a client has several while one is replaced")
            .subcommand_required(true)
            .subcommand(
                Command::new("add")
                    .about("Make one more secret, and tell it once")
                    .arg(id())
                    .arg(lifetime()),
            )
            .subcommand(
                Command::new("remove")
                    .about("Remove a secret")
                    .args(args::of(FlagScope::Remove))
                    .arg(id())
                    .arg(
                        Arg::new("secret")
                            .value_name("SECRET")
                            .required(true)
                            .help("Id of the secret, as `tailbone oidc client show` tells it"),
                    )
                    .arg(
                        Arg::new("force")
                            .long("force")
                            .action(ArgAction::SetTrue)
                            .help("Also if the client has no other valid secret"),
                    ),
            ),
    )
}

fn option(name: &'static str, value: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value)
}

fn lifetime() -> Arg {
    option("secret-lifetime", "DURATION")
        .value_parser(args::duration)
        .help("When the secret ends, from now: 2160h [default: never]")
}

/// With the options that say something about a client.
fn described(command: Command) -> Command {
    command
        .arg(option("name", "NAME").help("Name for people"))
        .arg(
            option("redirect-uri", "URI")
                .action(ArgAction::Append)
                .help("Where the browser may go back to; give it once for each address"),
        )
        .arg(option("auth-method", "WORD").help(
            "How the client authenticates: client_secret_basic, client_secret_post, \
             private_key_jwt, or none for a public client",
        ))
        .arg(
            option("login", "WORD")
                .value_parser(["confirm", "silent"])
                .help("Whether a login shows the page that asks the person"),
        )
        .arg(
            option("metadata", "FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .value_hint(clap::ValueHint::FilePath)
                .help(
                    "JSON object with any members of a registration (RFC 7591), or - for \
                     standard input; null takes a member away",
                ),
        )
}

pub(super) fn run(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("list", matches)) => {
            let call = AdminCall::new(matches, environment, console)?;
            list(&call, matches, console)
        }
        Some(("show", matches)) => {
            let call = AdminCall::new(matches, environment, console)?;
            let client_id = text(matches, "client");
            let client =
                call.wait(async |mut api| api.get_client(GetClientRequest { client_id }).await)?;
            call.print(console, &Shown::of(client))
        }
        Some(("create", matches)) => {
            let call = AdminCall::new(matches, environment, console)?;
            let request = CreateClientRequest {
                client_id: text(matches, "id"),
                metadata_json: metadata(matches)?,
                secret_expires_at: end(matches),
            };
            let made = call.wait(async |mut api| api.create_client(request).await)?;
            call.print(console, &Changed::of("create", made))
        }
        Some(("update", matches)) => {
            let call = AdminCall::new(matches, environment, console)?;
            let metadata_json = metadata(matches)?;
            if metadata_json == "{}" {
                return Err(Failure::with_code(
                    exit::USAGE,
                    "nothing to change: say what, for example with --name",
                ));
            }
            let request = UpdateClientRequest {
                client_id: text(matches, "client"),
                metadata_json,
                version: None,
            };
            let changed = call.wait(async |mut api| api.update_client(request).await)?;
            call.print(console, &Changed::of("update", changed))
        }
        Some(("remove", matches)) => {
            let call = AdminCall::confirming(matches, environment, console)?;
            let client_id = text(matches, "client");
            let question = format!("Remove client {client_id} with all that it was given?");
            prompt::confirm(console, &question, call.settings.no_confirmation)?;
            let request = RemoveClientRequest {
                client_id: client_id.clone(),
            };
            call.wait(async |mut api| api.remove_client(request).await)?;
            call.print(console, &Removed { removed: client_id })
        }
        Some(("secret", matches)) => secret(matches, environment, console),
        _ => crate::cli::help(Some("oidc"), console),
    }
}

fn list(call: &AdminCall, matches: &ArgMatches, console: &mut Console<'_>) -> Result<(), Failure> {
    let mut clients = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListClientsRequest {
            search: text(matches, "search"),
            origin: text(matches, "origin"),
            page_size: 0,
            page_token,
        };
        let page = call.wait(async |mut api| api.list_clients(request).await)?;
        clients.extend(page.clients.into_iter().map(Shown::of));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if clients.is_empty() {
        console.say("No clients found");
    }
    call.print(console, &Clients(clients))
}

fn secret(
    matches: &ArgMatches,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("add", matches)) => {
            let call = AdminCall::new(matches, environment, console)?;
            let client_id = text(matches, "client");
            let request = AddClientSecretRequest {
                client_id: client_id.clone(),
                expires_at: end(matches),
            };
            let made = call.wait(async |mut api| api.add_client_secret(request).await)?;
            let secret = ShownSecret::of(&made.secret.unwrap_or_default());
            call.print(
                console,
                &NewSecret {
                    client_id,
                    client_secret: made.client_secret,
                    secret,
                },
            )
        }
        Some(("remove", matches)) => {
            let call = AdminCall::confirming(matches, environment, console)?;
            let (client_id, secret_id) = (text(matches, "client"), text(matches, "secret"));
            let question = format!("Remove secret {secret_id} of client {client_id}?");
            prompt::confirm(console, &question, call.settings.no_confirmation)?;
            let request = RemoveClientSecretRequest {
                client_id,
                secret_id,
                force: matches.get_flag("force"),
            };
            let left = call.wait(async |mut api| api.remove_client_secret(request).await)?;
            call.print(console, &Shown::of(left))
        }
        _ => crate::cli::help(Some("oidc"), console),
    }
}

/// When a secret ends, in Unix seconds; 0: never.
fn end(matches: &ArgMatches) -> i64 {
    let lifetime = matches.get_one::<Duration>("secret-lifetime");
    lifetime.map_or(0, |lifetime| {
        let seconds = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        Timestamp::now().as_second().saturating_add(seconds)
    })
}

/// The members of the file, and over them those of the options.
fn metadata(matches: &ArgMatches) -> Result<String, Failure> {
    let mut members = match matches.get_one::<PathBuf>("metadata") {
        Some(path) => read_members(path)?,
        None => Map::new(),
    };
    for (option, member) in [
        ("name", "client_name"),
        ("auth-method", "token_endpoint_auth_method"),
        ("login", "login"),
    ] {
        if let Some(value) = matches.get_one::<String>(option) {
            members.insert(member.to_owned(), value.as_str().into());
        }
    }
    if let Some(uris) = matches.get_many::<String>("redirect-uri") {
        let uris: Vec<&String> = uris.collect();
        members.insert("redirect_uris".to_owned(), serde_json::json!(uris));
    }
    Ok(Value::Object(members).to_string())
}

fn read_members(path: &Path) -> Result<Map<String, Value>, Failure> {
    let read = if path == Path::new(STANDARD) {
        let mut text = Vec::new();
        io::stdin().read_to_end(&mut text).map(|_| text)
    } else {
        fs::read(path)
    };
    let shown = path.display();
    let text = read.map_err(|error| Failure::failed(format!("{shown}: {error}")))?;
    serde_json::from_slice(&text)
        .map_err(|error| Failure::failed(format!("{shown} is no object of JSON: {error}")))
}

/// A client, in the words of a registration where that has some.
#[derive(Debug, Serialize)]
struct Shown {
    client_id: String,
    client_name: String,
    /// Who says what it is: `admin`, `file`, `registered` or `tsidp`.
    origin: String,
    token_endpoint_auth_method: String,
    login: String,
    redirect_uris: Vec<String>,
    /// Unix seconds, as all times here.
    created_at: i64,
    updated_at: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<i64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    owner: String,
    secrets: Vec<ShownSecret>,
    version: i64,
    /// All of it, where one client is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Value>,
}

#[derive(Debug, Serialize)]
struct ShownSecret {
    secret_id: String,
    created_at: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<i64>,
}

impl ShownSecret {
    fn of(secret: &Secret) -> Self {
        Self {
            secret_id: secret.secret_id.clone(),
            created_at: secret.created_at,
            expires_at: never(secret.expires_at),
        }
    }

    fn words(&self) -> String {
        let zone = TimeZone::system();
        let made = local_time(self.created_at, &zone);
        let ends = match self.expires_at {
            Some(end) => format!("ends {}", local_time(end, &zone)),
            None => "does not end".to_owned(),
        };
        format!("{}, made {made}, {ends}", self.secret_id)
    }
}

fn never(time: i64) -> Option<i64> {
    (time != 0).then_some(time)
}

impl Shown {
    fn of(client: Client) -> Self {
        Self {
            client_id: client.client_id,
            client_name: client.name,
            origin: client.origin,
            token_endpoint_auth_method: client.auth_method,
            login: client.login,
            redirect_uris: client.redirect_uris,
            created_at: client.created_at,
            updated_at: client.updated_at,
            expires_at: never(client.expires_at),
            owner: client.owner,
            secrets: client.secrets.iter().map(ShownSecret::of).collect(),
            version: client.version,
            metadata: serde_json::from_str(&client.metadata_json).ok(),
        }
    }

    fn list(&self, list: &mut List) {
        let zone = TimeZone::system();
        let mut facts = vec![
            ("Client id", self.client_id.clone()),
            ("Name", self.client_name.clone()),
            ("Origin", self.origin.clone()),
            ("Registered by", self.owner.clone()),
            ("Authenticates by", self.token_endpoint_auth_method.clone()),
            ("Login", self.login.clone()),
        ];
        let uris = self.redirect_uris.iter();
        facts.extend(uris.map(|uri| ("Redirect URI", uri.clone())));
        facts.push(("Made", local_time(self.created_at, &zone)));
        facts.push(("Changed", local_time(self.updated_at, &zone)));
        let end = self.expires_at.map(|end| local_time(end, &zone));
        facts.push(("Ends without a login", end.unwrap_or_default()));
        let secrets = self.secrets.iter();
        facts.extend(secrets.map(|secret| ("Secret", secret.words())));
        // What has no line of its own above.
        let told = [
            "client_name",
            "redirect_uris",
            "token_endpoint_auth_method",
            "login",
        ];
        let metadata = self.metadata.as_ref().and_then(Value::as_object);
        for (name, value) in metadata.into_iter().flatten() {
            if !told.contains(&name.as_str()) {
                let words = value.as_str().map(str::to_owned);
                facts.push((name, words.unwrap_or_else(|| value.to_string())));
            }
        }
        list.facts(&facts);
    }
}

impl Output for Shown {
    fn text(&self, layout: Layout) -> String {
        let mut list = List::new(layout);
        self.list(&mut list);
        list.finish()
    }
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Clients(Vec<Shown>);

impl Output for Clients {
    fn text(&self, layout: Layout) -> String {
        let mut table = Table::new(["Client id", "Name", "Origin", "Login", "Redirect URI"]);
        for client in &self.0 {
            let uri = client.redirect_uris.first().cloned();
            table.row([
                client.client_id.clone(),
                client.client_name.clone(),
                client.origin.clone(),
                client.login.clone(),
                uri.unwrap_or_default(),
            ]);
        }
        table.text(layout)
    }
}

/// A client after `create` or `update`.
#[derive(Debug, Serialize)]
struct Changed {
    #[serde(skip)]
    did: &'static str,
    #[serde(flatten)]
    client: Shown,
    /// If one was made.
    #[serde(skip_serializing_if = "String::is_empty")]
    client_secret: String,
}

impl Changed {
    fn of(did: &'static str, made: ChangedClient) -> Self {
        Self {
            did,
            client: Shown::of(made.client.unwrap_or_default()),
            client_secret: made.client_secret,
        }
    }
}

impl Output for Changed {
    fn text(&self, layout: Layout) -> String {
        let mut list = List::new(layout);
        let did = match self.did {
            "create" => "Made",
            _ => "Changed",
        };
        list.sentence(
            Mark::Good,
            &format!("{did} client {}", self.client.client_id),
        );
        self.client.list(&mut list);
        tell_secret(&mut list, &self.client_secret);
        list.finish()
    }
}

/// A secret that was made.
#[derive(Debug, Serialize)]
struct NewSecret {
    client_id: String,
    client_secret: String,
    #[serde(flatten)]
    secret: ShownSecret,
}

impl Output for NewSecret {
    fn text(&self, layout: Layout) -> String {
        let mut list = List::new(layout);
        let words = format!("Made a secret of client {}", self.client_id);
        list.sentence(Mark::Good, &words);
        list.facts(&[("Secret", self.secret.words())]);
        tell_secret(&mut list, &self.client_secret);
        list.finish()
    }
}

fn tell_secret(list: &mut List, secret: &str) {
    if !secret.is_empty() {
        list.sentence(Mark::Warning, "The secret, which is not shown again:");
        list.verbatim(secret);
    }
}

#[derive(Debug, Serialize)]
struct Removed {
    removed: String,
}

impl Output for Removed {
    fn text(&self, layout: Layout) -> String {
        let mut list = List::new(layout);
        list.sentence(Mark::Good, &format!("Removed client {}", self.removed));
        list.finish()
    }
}
