//! Foreign programs that talk by lines: each line of standard input is asked, each line of standard
//! output is an answer.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
};

use serde_json::Value;

use crate::{connect_proxy::ConnectProxy, patience};

/// A running program. It ends when dropped.
pub struct LineProgram {
    child: Child,
    /// `None` once the program has to end.
    input: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl LineProgram {
    /// The program finds its way to the server by this proxy.
    pub fn start(command: &mut Command, proxy: &ConnectProxy) -> Self {
        Self::run(command.env("HTTPS_PROXY", proxy.url()))
    }

    /// A program that finds its way by itself.
    pub fn run(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}; run scripts/setup --tests"));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            input: child.stdin.take(),
            child,
            answers,
        }
    }

    pub fn say(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").expect("it runs");
    }

    /// The next answer, which is JSON. Blocks its thread, while the tasks of the runtime's other
    /// threads carry what the program asks for.
    pub fn answer(&self) -> Value {
        let line = self.answers.recv_timeout(patience()).expect("an answer");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }
}

impl Drop for LineProgram {
    fn drop(&mut self) {
        // Each program ends at the end of its input.
        drop(self.input.take());
        let _ = self.child.wait();
    }
}
