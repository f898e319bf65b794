//! A real browser, Chromium driven by Playwright, in which several people act: each has a profile
//! of their own, and reaches the tailnet by the proxy of a peer.
//!
//! The certificates of a devnet are nobody's, so the browser does not check any. Each call blocks
//! its thread, while the tasks of the runtime's other threads carry what the browser asks for.

use std::{cell::RefCell, process::Command};

use serde_json::{Value, json};

use crate::{
    devnet::Devnet,
    files::{tree, venv},
    line_program::LineProgram,
};

/// A running browser. It ends when dropped.
pub struct Browser(RefCell<LineProgram>);

/// One person at the browser.
#[derive(Clone, Copy)]
pub struct Person<'a> {
    name: &'a str,
    browser: &'a Browser,
}

/// What the person sees.
#[derive(Debug)]
pub struct Seen {
    pub url: String,
    pub status: u64,
    pub title: String,
    pub text: String,
}

impl Browser {
    /// For these peers of a devnet.
    pub fn start(devnet: &Devnet, people: &[&str]) -> Self {
        // The browser asks a SOCKS proxy for names, not for addresses, and calls that socks5.
        let proxy = |name: &&str| {
            devnet.ready.peers[*name]
                .proxy
                .replace("socks5h:", "socks5:")
        };
        let people: serde_json::Map<_, _> = people
            .iter()
            .map(|name| ((*name).to_owned(), json!(proxy(name))))
            .collect();
        let mut command = Command::new(venv("bin/python"));
        command
            .arg(tree("tests/verifiers/browser.py"))
            .arg(Value::Object(people).to_string());
        Self(RefCell::new(LineProgram::run(&mut command)))
    }

    pub fn person<'a>(&'a self, name: &'a str) -> Person<'a> {
        Person {
            name,
            browser: self,
        }
    }
}

impl Person<'_> {
    /// Goes to an address, and from there wherever the answers lead.
    pub fn open(&self, url: &str) -> Seen {
        self.act(&json!({"as": self.name, "open": url}))
    }

    /// Presses a button, or follows a link, by what stands on it.
    pub fn press(&self, label: &str) -> Seen {
        self.act(&json!({"as": self.name, "press": label}))
    }

    fn act(&self, action: &Value) -> Seen {
        let mut program = self.browser.0.borrow_mut();
        program.say(&action.to_string());
        let seen = program.answer();
        let text = |name: &str| {
            let text = seen[name].as_str();
            text.unwrap_or_else(|| panic!("{action}: {seen}"))
                .to_owned()
        };
        Seen {
            url: text("url"),
            status: seen["status"].as_u64().unwrap_or_default(),
            title: text("title"),
            text: text("text"),
        }
    }
}
