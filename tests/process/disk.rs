//! Disks that are full or read-only, at the start and while the server runs. Tokens need no disk,
//! changes of keys do, and the people concerned are told.
//!
//! The disks are small ones in memory, mounted only for the server. Where mounts are not allowed,
//! the tests say so and do nothing.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use tailbone::tailnet::Node;
use tempfile::TempDir;
use testkit::{
    daemon::Daemon,
    eventually,
    http::Connection,
    tailnet::{DevnetTailnet, Owner, Tailnet},
};

use super::{alone, status::settings, tailbone};

const UNSHARE: &[&str] = &["unshare", "--mount"];

/// Whether mounts are possible here; prints a line if not.
fn can_mount() -> bool {
    let tried = Command::new("unshare")
        .args(["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"])
        .stdin(Stdio::null())
        .output();
    let why = match tried {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    eprintln!("left out, disks cannot be mounted here: {why}");
    false
}

fn mount(place: &str, size: &str) -> String {
    format!("mkdir -p {place} && mount -t tmpfs -o mode=700,size={size} tmpfs {place}")
}

const FILL: &str = "dd if=/dev/zero bs=4k 2>/dev/null";

async fn issue(node: &dyn Node, host: &str) -> u16 {
    Connection::to(node, host, 80)
        .await
        .post("/issue")
        .await
        .status()
}

/// Fills the disk to its last byte.
fn fill(place: &Path) {
    use std::io::Write as _;
    let mut file = fs::File::create(place.join("filler")).unwrap();
    for size in [4096, 1] {
        while file.write_all(&vec![b'x'; size]).is_ok() {}
    }
}

fn empty(place: &Path) {
    fs::remove_file(place.join("filler")).unwrap();
}

fn remount(daemon: &Daemon, how: &str, place: &str) {
    let output = Command::new("nsenter")
        .args(["--mount", "--target", &daemon.child.id().to_string()])
        .args(["mount", "-o", &format!("remount,{how}")])
        .arg(daemon_path(daemon, place))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn daemon_path(daemon: &Daemon, place: &str) -> String {
    let seen = daemon.path(place);
    let root = format!("/proc/{}/root", daemon.child.id());
    seen.to_str()
        .unwrap()
        .strip_prefix(&root)
        .unwrap()
        .to_owned()
}

#[test]
fn a_state_directory_that_cannot_be_written_ends_the_start_with_its_code() {
    alone(async {
        if !can_mount() {
            return;
        }
        let tailnet = DevnetTailnet::new();
        for (what, change, code, words, advice) in [
            (
                "full",
                format!("{FILL} of=.tsnet/filler || true"),
                17,
                "no space left on device",
                "Check that the state directory can be written",
            ),
            (
                "read-only",
                "mount -o remount,ro .tsnet".to_owned(),
                19,
                "Read-only file system",
                "server.tailscale.waitForDir",
            ),
        ] {
            let folder = TempDir::new().unwrap();
            let text = settings(&tailnet.host(what), "20m") + "joinTimeout = \"2s\"\n";
            let before = format!("{}\n{change}", mount(".tsnet", "64k"));
            let mut daemon = tailbone(&folder)
                .joining(tailnet.devnet)
                .await
                .settings(&text)
                .under(UNSHARE)
                .after(&before)
                .started()
                .await;
            let status = eventually("the end", async || {
                daemon.child.try_wait().unwrap().ok_or_else(|| daemon.log())
            })
            .await;
            let said = daemon.log();
            assert_eq!(status.code(), Some(code), "{what}: {said}");
            let last = said.lines().last().unwrap();
            assert!(
                last.starts_with("Error: ") && last.contains(words),
                "{said}"
            );
            assert!(last.contains(advice), "{said}");
        }
    });
}

#[test]
fn a_full_or_read_only_disk_stops_key_changes_and_no_tokens() {
    alone(async {
        if !can_mount() {
            return;
        }
        let tailnet = DevnetTailnet::new();
        let folder = TempDir::new().unwrap();
        let host = tailnet.host("tailbone");
        let before = format!("{}\n{}", mount("keys", "128k"), mount(".tsnet", "512k"));
        let daemon = tailbone(&folder)
            .joining(tailnet.devnet)
            .await
            .settings(&settings(&host, "20m"))
            .under(UNSHARE)
            .after(&before)
            .started()
            .await;
        daemon.ready();
        let alice = tailnet
            .node("alice", Owner::User("alice@example.com"))
            .await;
        assert_eq!(issue(&*alice, &host).await, 200);
        let published = || fs::read_to_string(daemon.path("keys/jwks.json")).unwrap();
        let document = published();
        let (keys, state) = (daemon.path("keys"), daemon.path(".tsnet"));

        let refused = async |words: &str| {
            let rotated = daemon.run(&["keys", "rotate"]);
            let said = String::from_utf8_lossy(&rotated.stderr).into_owned();
            assert_eq!(rotated.status.code(), Some(1), "{rotated:?}");
            assert!(said.contains(words), "{said}");
            assert_eq!(issue(&*alice, &host).await, 200);
            assert!(
                daemon.run(&["status", "--check"]).status.success(),
                "{}",
                daemon.log()
            );
            assert_eq!(published(), document, "what verifiers read is whole");
        };
        fill(&keys);
        fill(&state);
        refused("no space left").await;
        // The network map changes while the node cannot store it.
        let bob = tailnet.node("bob", Owner::User("bob@example.com")).await;
        assert_eq!(issue(&*bob, &host).await, 200);
        empty(&keys);
        empty(&state);

        // The node's directory cannot become read-only, since the node holds a file in it open.
        remount(&daemon, "ro", "keys");
        refused("cannot be written").await;
        remount(&daemon, "rw", "keys");
        let rotated = daemon.run(&["keys", "rotate"]);
        assert!(rotated.status.success(), "{rotated:?}\n{}", daemon.log());
        assert_ne!(published(), document);
        assert_eq!(issue(&*alice, &host).await, 200);
    });
}

#[test]
fn a_start_on_a_full_key_directory_waits_for_room() {
    alone(async {
        if !can_mount() {
            return;
        }
        let tailnet = DevnetTailnet::new();
        let folder = TempDir::new().unwrap();
        let host = tailnet.host("tailbone");
        // A short cache time leads to frequent checks.
        let text = settings(&host, "20m").replace("[keys]", "[keys]\ncacheTime = \"4s\"");
        let before = format!("{}\n{FILL} of=keys/filler || true", mount("keys", "64k"));
        let mut daemon = tailbone(&folder)
            .joining(tailnet.devnet)
            .await
            .settings(&text)
            .under(UNSHARE)
            .after(&before)
            .started()
            .await;
        // The server listens without waiting for its keys, so the two lines come in any order.
        eventually("it listens, and says what is in the way", async || {
            let said = daemon.log();
            assert!(daemon.child.try_wait().unwrap().is_none(), "{said}");
            ["listening", "no space left"]
                .iter()
                .all(|words| said.contains(words))
                .then_some(())
                .ok_or(said)
        })
        .await;
        let alice = tailnet
            .node("alice", Owner::User("alice@example.com"))
            .await;
        assert_eq!(issue(&*alice, &host).await, 503);
        let check = daemon.run(&["status", "--check"]);
        assert!(
            String::from_utf8_lossy(&check.stderr).contains("key-signs"),
            "{check:?}"
        );
        empty(&daemon.path("keys"));
        daemon.ready();
        assert_eq!(issue(&*alice, &host).await, 200);
    });
}
