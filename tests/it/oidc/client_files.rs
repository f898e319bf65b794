//! Clients that files describe: `tailbone oidc apply`, and who may change them.

use std::{fs, path::Path};

use tailbone_oidc::store::{ApplyMode, ApplyOptions, WithoutFile};

use super::{
    clients::{admin, dcr},
    commands::{run, text},
    *,
};

const GRAFANA: &str = r#"client_name: Grafana
redirect_uris:
- https://grafana.example.com/login/generic_oauth
client_secret: file:grafana.secret
login: silent
"#;

/// A folder of clients, and the arguments that name it and a store.
struct Folder {
    dir: TempDir,
}

impl Folder {
    fn new() -> Self {
        let folder = Self {
            dir: TempDir::new().unwrap(),
        };
        fs::create_dir(folder.dir.path().join("clients")).unwrap();
        folder
    }

    fn write(&self, name: &str, contents: &str) {
        fs::write(self.dir.path().join("clients").join(name), contents).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.dir.path().join("clients").join(name)).unwrap();
    }

    fn state(&self) -> &Path {
        self.dir.path()
    }

    /// Exit code, standard output, standard error.
    fn apply(&self, more: &[&str]) -> (u8, String, String) {
        let folder = self.dir.path().join("clients");
        let mut arguments = vec!["apply", "--oidc-clients-dir", text(&folder)];
        arguments.extend(["--oidc-dir", text(self.state())]);
        arguments.extend(more);
        run(&arguments)
    }
}

#[test]
fn a_folder_is_applied_with_a_diff_and_again_without_one() {
    let folder = Folder::new();
    folder.write("grafana.secret", SECRET);
    folder.write("grafana.yaml", GRAFANA);
    folder.write(
        "cli.toml",
        "redirect_uris = ['http://127.0.0.1/cb']\ntoken_endpoint_auth_method = 'none'\n",
    );
    let (code, out, err) = folder.apply(&[]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    for line in [
        "+ cli\n",
        "+ grafana\n",
        "    client_secret: \"1 secret\"\n",
        "    login: \"silent\"\n",
        "2 clients: 2 added, 0 changed, 0 removed, 0 unchanged\n",
    ] {
        assert!(out.contains(line), "{line}{out}");
    }
    let (code, out, _) = folder.apply(&["--dry-run"]);
    let words = "2 clients: 0 added, 0 changed, 0 removed, 2 unchanged (dry run)\n";
    assert_eq!((code, out.as_str()), (0, words));

    folder.write("grafana.yaml", &GRAFANA.replace("Grafana", "Graphs"));
    folder.remove("cli.toml");
    // A server has the file: a dry run only reads it.
    let server = Sqlite::open(&folder.state().join("oidc.db")).unwrap();
    let (code, out, err) = folder.apply(&["--dry-run", "--prune"]);
    assert_eq!((code, err.as_str()), (3, ""), "{out}");
    let diff = "- cli\n~ grafana\n    client_name: \"Grafana\" -> \"Graphs\"\n\
                2 clients: 0 added, 1 changed, 1 removed, 0 unchanged (dry run)\n";
    assert_eq!(out, diff);
    let (code, _, err) = folder.apply(&[]);
    assert_eq!((code, err.contains("Stop the server")), (1, true), "{err}");
    drop(server);

    let (code, out, _) = folder.apply(&[]);
    assert_eq!(code, 0);
    assert!(
        out.starts_with("  cli: has no file any more and stays"),
        "{out}"
    );
    let (code, out, _) = folder.apply(&["--prune", "-o", "json"]);
    assert_eq!(code, 0);
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told["unchanged"], 1);
    assert_eq!(told["clients"][0]["client_id"], "cli");
    assert_eq!(told["clients"][0]["change"], "removed");
    assert!(!out.contains(SECRET));
}

#[test]
fn a_mistake_in_one_file_applies_no_other() {
    let folder = Folder::new();
    folder.write("grafana.secret", SECRET);
    folder.write("grafana.yaml", GRAFANA);
    folder.write(
        "wiki.yaml",
        "client_name: Wiki\nredirect_uri: https://wiki.example.com/cb\n",
    );
    let (code, out, err) = folder.apply(&[]);
    assert_eq!((code, out.as_str()), (64, ""));
    let words = "wiki.yaml, line 2: redirect_uri is not among the members of a client; did you \
                 mean redirect_uris?";
    assert!(err.contains(words), "{err}");
    assert!(!folder.state().join("oidc.db").exists());
    let (code, _, err) = run(&["apply", "--oidc-dir", text(folder.state())]);
    assert_eq!(
        (code, err.contains("oidc.clientsDir is missing")),
        (64, true),
        "{err}"
    );
}

#[test]
fn the_how_to_shows_what_the_command_prints() {
    let page = include_str!("../../../docs/how-to/clients-as-code.md");
    let block = |language: &str| {
        let (_, rest) = page.split_once(&format!("```{language}\n")).unwrap();
        rest.split_once("```").unwrap().0
    };
    let folder = Folder::new();
    drop(Sqlite::open(&folder.state().join("oidc.db")).unwrap());
    folder.write("grafana.secret", SECRET);
    let file = block("yaml").replace("/run/secrets/grafana", "grafana.secret");
    folder.write("grafana.yaml", &file);
    let (code, out, err) = folder.apply(&["--dry-run"]);
    assert_eq!((code, out.as_str(), err.as_str()), (3, block("text"), ""));
    assert!(page.contains("tailbone oidc apply --oidc-clients-dir clients --dry-run"));
}

/// Makes a client that is there the file's.
async fn take_over(server: &OidcServer, id: &str) {
    let now = Timestamp::now();
    let client = server.provider.store.client(id, now).await.unwrap();
    let client = Client {
        origin: ClientOrigin::File,
        owner: Some(format!("{id}.yaml")),
        ..client.unwrap()
    };
    let options = ApplyOptions {
        mode: ApplyMode::Write,
        without_file: WithoutFile::Keep,
    };
    let store = &server.provider.store;
    store.apply_clients(&[client], options, now).await.unwrap();
}

#[tokio::test]
async fn nobody_but_its_file_changes_a_client_of_a_file() {
    let server = OidcServer::open().await;
    let mut bob = server.person("bob", dcr).await;
    let body = json!({"redirect_uris": [APP]});
    let made = clients::register(&mut bob, body.clone()).await.json();
    let id = made["client_id"].as_str().unwrap();
    take_over(&server, id).await;
    let words = format!("this client is changed by its file alone: {id}.yaml");

    let token = format!(
        "Bearer {}",
        made["registration_access_token"].as_str().unwrap()
    );
    let mut managed = async |method: &str| {
        let body = json!({"client_id": id, "redirect_uris": [APP]}).to_string();
        let (mut parts, _) = request(method, &format!("/register/{id}")).into_parts();
        parts
            .headers
            .insert(header::AUTHORIZATION, token.parse().unwrap());
        bob.send(Request::from_parts(parts, Full::from(body))).await
    };
    assert_eq!(managed("GET").await.status(), 200);
    for method in ["PUT", "DELETE"] {
        let answer = managed(method).await;
        assert_eq!(
            refusal(&answer),
            is(403, "access_denied", &words),
            "{method}"
        );
    }

    let mut root = server.person("root", admin).await;
    let (parts, _) = request("DELETE", &format!("/clients/{id}")).into_parts();
    let answer = root.send(Request::from_parts(parts, Full::default())).await;
    assert_eq!(refusal(&answer), is(403, "access_denied", &words));
    let listed = root.get(&format!("/clients/{id}")).await.json();
    assert_eq!(listed["owner"], "file");
    let listed = root.get("/clients/silent").await.json();
    assert_eq!(listed["owner"], "manual");
}
