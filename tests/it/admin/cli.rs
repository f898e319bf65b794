//! `tailbone keys …` as people type it, run in this process: on the local socket, a host, and a
//! directory.

use std::{
    ffi::OsString,
    io::BufRead,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use tailbone::{
    cli::{self, console::Console, layout::Layout},
    config::Environment,
    tailnet::fake::Identity,
};
use tempfile::TempDir;
use testkit::soon;
use tokio::net::TcpListener;

use super::{ADMIN_CAPABILITY, AdminServer, generate, published};

/// The result of a command line; everything that differs between runs is masked.
struct Ran {
    code: u8,
    out: String,
    err: String,
}

/// The surroundings of a command line.
#[derive(Clone)]
pub(super) struct Shell {
    variables: Vec<(String, String)>,
    answer: Option<&'static str>,
}

impl Shell {
    fn at(socket: &Path) -> Self {
        Self::with(&[("TB_ADMIN_SOCKET", socket)])
    }

    pub(super) fn with(variables: &[(&str, &Path)]) -> Self {
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.to_str().unwrap().to_owned()));
        Self {
            variables: variables.collect(),
            answer: None,
        }
    }

    pub(super) fn and(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    fn answering(&self, answer: &'static str) -> Self {
        Self {
            answer: Some(answer),
            ..self.clone()
        }
    }

    async fn run(&self, arguments: &str) -> Ran {
        let (code, out, err) = self.raw(arguments).await;
        Ran { code, out, err }
    }

    pub(super) async fn raw(&self, arguments: &str) -> (u8, String, String) {
        let shell = self.clone();
        let arguments: Vec<OsString> = format!("tailbone {arguments}")
            .split(' ')
            .map(OsString::from)
            .collect();
        let done = tokio::task::spawn_blocking(move || {
            let environment: Environment = shell
                .variables
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect();
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let mut answer = shell.answer.map(str::as_bytes);
            let code = cli::execute(
                arguments,
                &environment,
                &mut Console {
                    out: &mut out,
                    err: &mut err,
                    person: answer.as_mut().map(|answer| answer as &mut dyn BufRead),
                    layout: Layout::PIPE,
                },
            );
            (
                code,
                String::from_utf8(out).unwrap(),
                String::from_utf8(err).unwrap(),
            )
        });
        soon("the command", done).await.unwrap()
    }

    /// The command line and its result as a paragraph for a snapshot.
    async fn show(&self, arguments: &str, masks: &[(&str, &str)]) -> String {
        let Ran { code, out, err } = self.run(arguments).await;
        let mask = |text: &str| {
            let mut text = text.to_owned();
            for (what, mask) in masks {
                text = text.replace(what, mask);
            }
            masked(&text)
        };
        format!(
            "$ tailbone {}{}{}{}(exit {code})\n\n",
            mask(arguments),
            mask(&out),
            if out.is_empty() || out.ends_with('\n') {
                ""
            } else {
                "~\n"
            },
            mask(&err),
        )
    }
}

/// Masks times and ages, and the widths of their columns.
fn masked(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let indent: String = line.chars().take_while(|c| *c == ' ').collect();
        let mut words: Vec<String> = Vec::new();
        for word in line.split_whitespace() {
            let bare = word.trim_end_matches(',');
            let tail = &word[bare.len()..];
            let digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
            const UNITS: [char; 4] = ['d', 'h', 'm', 's'];
            // `3s`, `2m30s`, `638d12h`: numbers with a unit each.
            let is_age = bare.ends_with(UNITS)
                && bare
                    .split_inclusive(UNITS)
                    .all(|part| digits(part.trim_end_matches(UNITS)));
            words.push(
                if bare.len() >= 20 && bare.as_bytes()[4] == b'-' && bare.as_bytes()[10] == b'T' {
                    format!("<time>{tail}")
                } else if bare.len() == 10 && digits(bare) {
                    format!("<seconds>{tail}")
                } else if is_age {
                    format!("<age>{tail}")
                } else {
                    word.to_owned()
                },
            );
        }
        format!("{indent}{}", words.join(" "))
    });
    let mut text: String = lines.collect::<Vec<_>>().join("\n");
    text.push('\n');
    if text == "\n" { String::new() } else { text }
}

/// A name for each of a server's keys, in their order.
fn names(ids: &[String]) -> Vec<(&str, &'static str)> {
    ids.iter()
        .map(String::as_str)
        .zip(["<first>", "<second>", "<third>", "<fourth>", "<fifth>"])
        .collect()
}

const FORMATS: [&str; 3] = ["text", "json", "yaml"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_of_every_command() {
    let server = AdminServer::new().await;
    let shell = Shell::at(&server.socket());
    let mut text = String::new();
    let mut seen = server.published();
    for (format, flags) in FORMATS
        .into_iter()
        .zip(["", " --size 3072 --algorithm RS256", ""])
    {
        let (code, out, _) = shell
            .raw(&format!("keys generate{flags} -o {format}"))
            .await;
        assert_eq!(code, 0);
        seen = server.published();
        let command = format!("$ tailbone keys generate{flags} -o {format}\n");
        let mut out = masked(&out);
        for (id, name) in names(&seen) {
            out = out.replace(id, name);
        }
        text += &format!("{command}{out}(exit 0)\n\n");
    }
    for format in FORMATS {
        text += &shell
            .show(&format!("keys list -o {format}"), &names(&seen))
            .await;
    }
    text += &shell.show("key ls", &names(&seen)).await;
    for (format, kid) in FORMATS.into_iter().zip(seen.iter().rev()) {
        let command = format!("keys remove {kid} --yes -o {format}");
        text += &shell.show(&command, &names(&seen)).await;
    }
    let mut told = "";
    for format in FORMATS {
        let (code, out, err) = shell.raw(&format!("keys rotate -o {format}")).await;
        assert_eq!((code, &*err), (0, told));
        told = "A successor is waiting already; no other is made\n";
        let successor = server.published().pop().unwrap();
        text += &format!(
            "$ tailbone keys rotate -o {format}\n{}(exit 0)\n\n",
            masked(&out.replace(&successor, "<successor>"))
        );
    }
    insta::assert_snapshot!(text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_says_what_it_breaks_and_asks() {
    let server = AdminServer::new().await;
    let other = generate(&mut server.local().await).await.key_id;
    let ids = server.published();
    let (signing, names) = (&ids[0], names(&ids));
    let shell = Shell::at(&server.socket());
    let mut text = String::new();
    text += &shell.show(&format!("keys remove {signing}"), &names).await;
    text += &shell
        .answering("n\n")
        .show(&format!("keys remove {signing}"), &names)
        .await;
    text += &shell
        .answering("")
        .show(&format!("keys remove {other}"), &names)
        .await;
    assert_eq!(server.published(), ids, "nothing was removed so far");
    text += &shell
        .answering("y\n")
        .show(&format!("keys remove {other}"), &names)
        .await;
    text += &shell
        .answering("y\n")
        .show(&format!("keys remove {signing} -o json"), &names)
        .await;
    insta::assert_snapshot!(text);
    assert_eq!(server.published(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmation_in_the_environment_skips_the_question() {
    let server = AdminServer::new().await;
    let shell = Shell::at(&server.socket()).and("TB_NO_CONFIRMATION", "true");
    let kid = server.published().remove(0);
    let (code, _, err) = shell.raw(&format!("keys remove {kid}")).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(server.published(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_is_told_with_code_and_words() {
    let server = AdminServer::new().await;
    let shell = Shell::at(&server.socket());
    let nobody = TempDir::new().unwrap();
    let stale = nobody.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let long = nobody.path().join("x".repeat(120));
    let absent = nobody.path().join("admin.sock");
    let masks = [(nobody.path().to_str().unwrap(), "<dir>")];
    let mut text = String::new();
    text += &shell.show("keys remove tb-1 --yes", &masks).await;
    text += &shell.show("keys generate --size 1024", &masks).await;
    text += &shell
        .show("keys generate --size 2048 --algorithm ES256", &masks)
        .await;
    text += &shell.show("keys generate --algorithm HS256", &masks).await;
    text += &shell.show("keys remove", &masks).await;
    for command in ["generate", "list", "rotate", "remove tb-1 --yes"] {
        text += &Shell::at(&absent)
            .show(&format!("keys {command}"), &masks)
            .await;
    }
    text += &Shell::at(&stale).show("keys list", &masks).await;
    let shell_at_length = Shell::with(&[("TB_SERVER_TAILSCALE_DIR", &long)]);
    let (code, _, err) = shell_at_length.raw("keys list").await;
    assert!(
        code == 1 && err.contains("the system takes 107: set admin.socket"),
        "{err}"
    );

    // Nothing listens on a port that has just been released.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let masks = [(port.as_str(), "<port>")];
    text += &shell
        .show(&format!("keys list --host 127.0.0.1 --port {port}"), &masks)
        .await;
    // With or without IPv6 on this machine.
    let command = format!("keys generate --host ::1 --port {port}");
    let (code, _, err) = shell.raw(&command).await;
    assert!(
        code == 1 && err.contains(&format!("desc = [::1]:{port} cannot be reached")),
        "{err}"
    );

    std::fs::write(server.keys_dir().join("jwks.json"), "{}").unwrap();
    let place = server.keys_dir();
    let masks = [(place.to_str().unwrap(), "<keys>")];
    for command in ["list", "generate", "rotate"] {
        text += &shell.show(&format!("keys {command}"), &masks).await;
    }
    insta::assert_snapshot!(text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_list_of_keys_is_no_failure() {
    let server = AdminServer::new().await;
    let shell = Shell::at(&server.socket());
    let kid = server.published().remove(0);
    let (code, out, _) = shell.raw(&format!("keys remove {kid} -y -o json")).await;
    assert_eq!((code, &*out), (0, "null"));
    let (code, out, err) = shell.raw("keys list").await;
    assert_eq!((code, &*out, &*err), (0, "", "No keys found\n"));
}

/// A port on this host that leads to the admin API in the name of a tailnet node.
async fn forward_from(server: &AdminServer, identity: Identity) -> SocketAddr {
    let node = server.world.tailnet.join("desk", identity);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        use tailbone::tailnet::Node as _;
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = node
                .dial("tailbone:50051", Duration::from_secs(5))
                .await
                .unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_named_wins_over_the_socket() {
    let server = AdminServer::new().await;
    let shell = Shell::at(&server.socket());
    let list = serde_json::json!({"methods": ["list"]});
    let bob = Identity::user("bob@example.com").cap(ADMIN_CAPABILITY, list);
    let addr = forward_from(&server, bob).await;
    let host = format!("--host {} --port {}", addr.ip(), addr.port());
    let (code, out, err) = shell.raw(&format!("keys list {host}")).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains(&server.published()[0]));
    let (code, _, err) = shell.raw(&format!("keys generate {host}")).await;
    assert_eq!(code, 1);
    assert_eq!(
        err,
        "Error: failed to generate keys: rpc error: code = PermissionDenied desc = user:bob@example.com lacks the grant \
         \"tailbone.dev/cap/admin\" with {\"methods\":[\"generate\"]} towards this server, and is not the owner of the server's node\n"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d12_without_host_and_socket_the_error_names_both_ways() {
    let empty = TempDir::new().unwrap();
    let shell = Shell::with(&[("TB_SERVER_TAILSCALE_DIR", empty.path())]);
    let (code, out, err) = shell.raw("keys generate").await;
    assert_eq!((code, &*out), (1, ""));
    for words in [
        "code = Unavailable",
        "admin.sock",
        "tailbone server start",
        "--host",
        "TB_ADMIN_CLIENT_HOST",
        "--local",
    ] {
        assert!(err.contains(words), "{words}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d12_the_local_socket_is_the_default_target() {
    let server = AdminServer::new().await;
    let shell = Shell::with(&[("TB_SERVER_TAILSCALE_DIR", server.dir.path())]);
    let (code, _, err) = shell.raw("keys generate").await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(server.published().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d26_a_server_that_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let shell = Shell::with(&[]);
    for command in ["list", "generate", "rotate", "remove tb-1 --yes"] {
        let began = Instant::now();
        let (code, _, err) = shell
            .raw(&format!(
                "keys {command} --host 127.0.0.1 --port {port} --timeout 300ms"
            ))
            .await;
        assert_eq!(code, 1);
        assert!(
            err.contains("code = DeadlineExceeded desc = no answer from"),
            "{err}"
        );
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d26_an_unanswered_question_is_exit_code_2() {
    let server = AdminServer::new().await;
    let shell = Shell::at(&server.socket());
    let kid = generate(&mut server.local().await).await.key_id;
    for shell in [shell.clone(), shell.answering("n\n"), shell.answering("")] {
        let (code, out, err) = shell.raw(&format!("keys remove {kid}")).await;
        assert_eq!((code, &*out), (2, ""));
        assert!(
            err.ends_with("nothing was changed\n") || err.ends_with("Nothing was changed\n"),
            "{err}"
        );
    }
    assert_eq!(server.published().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_size_of_a_local_key_is_in_the_json() {
    let dir = TempDir::new().unwrap();
    let shell = Shell::with(&[("TB_KEYS_DIR", &dir.path().join("keys"))]);
    for command in ["keys generate --local --size 3072", "keys list --local"] {
        let (code, out, err) = shell.raw(&format!("{command} -o json")).await;
        assert_eq!(code, 0, "{err}");
        assert!(out.contains(r#""size": 3072"#), "{command}: {out}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_works_on_the_directory_without_a_server() {
    let dir = TempDir::new().unwrap();
    let keys = dir.path().join("keys");
    let shell = Shell::with(&[("TB_KEYS_DIR", &keys)]).and("TB_KEYS_ALGORITHM", "ES256");
    let masks = [(keys.to_str().unwrap(), "<keys>")];
    let mut text = shell.show("keys list --local", &masks).await;
    let (code, _, err) = shell.raw("keys generate --local").await;
    assert_eq!(code, 0, "{err}");
    grow_older(&keys);
    let (code, _, err) = shell.raw("keys rotate --local").await;
    assert_eq!(code, 0, "{err}");
    let ids = published(&keys);
    assert_eq!(ids.len(), 2);
    let mut masks = names(&ids);
    masks.push((keys.to_str().unwrap(), "<keys>"));
    text += &shell.show("keys list --local", &masks).await;
    text += &shell
        .show(
            &format!("keys list --local --dir {} -o json", keys.display()),
            &masks,
        )
        .await;
    text += &shell
        .show(&format!("keys remove --local {}", ids[0]), &masks)
        .await;
    text += &shell
        .answering("y\n")
        .show(&format!("keys remove --local {}", ids[0]), &masks)
        .await;
    text += &shell.show("keys remove --local tb-1 --yes", &masks).await;
    std::fs::write(keys.join("jwks.json"), "<html>").unwrap();
    text += &shell.show("keys list --local", &masks).await;
    text += &shell.show("keys generate --local", &masks).await;
    insta::assert_snapshot!(text);
    assert_eq!(std::fs::read(keys.join("jwks.json")).unwrap(), b"<html>");
}

/// Gives the only key of a directory an old id. Ids contain the time of creation, for the Go
/// program and for us.
pub(super) fn grow_older(keys: &Path) {
    let old = published(keys).remove(0);
    for entry in std::fs::read_dir(keys).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.contains(&old) && name.ends_with(".jwk") {
            let text = std::fs::read_to_string(entry.path()).unwrap();
            let path = keys.join(name.replace(&old, OLD));
            std::fs::write(&path, text.replace(&old, OLD)).unwrap();
            let mode = std::fs::metadata(entry.path()).unwrap().permissions();
            std::fs::set_permissions(&path, mode).unwrap();
        }
        if name.contains(&old) {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    let document = keys.join("jwks.json");
    let text = std::fs::read_to_string(&document).unwrap();
    std::fs::write(&document, text.replace(&old, OLD)).unwrap();
}

/// An id in the format of the Go program.
pub(super) const OLD: &str = "tb-1740172800";
