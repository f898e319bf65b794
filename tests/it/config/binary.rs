//! The real program's exit codes and streams.

use std::{
    io::{Read, Write},
    process::{Command, Stdio},
};

fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailbone"));
    command.env_clear().stdin(Stdio::null());
    command
}

#[test]
fn the_binary_prints_an_error_once_and_ends_with_its_code() {
    let output = binary()
        .args(["config", "check"])
        .env("TB_SERVER_PORT", "abc")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "Error: TB_SERVER_PORT=abc: not a port (1-65535)\n"
    );
}

#[test]
fn a_reader_that_closes_the_pipe_is_no_error() {
    for arguments in [&["completion", "zsh"][..], &["--help"], &["config", "show"]] {
        let mut child = binary()
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert_eq!(
            (child.wait().unwrap().code(), said.as_str()),
            (Some(0), ""),
            "{arguments:?}"
        );
    }
}

#[test]
fn an_answer_through_a_pipe_confirms_nothing() {
    let mut child = binary()
        .args(["keys", "remove", "tb-1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The child may end before it reads.
    let _ = child.stdin.take().unwrap().write_all(b"y\n");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--yes"));
}
