//! What people see at a terminal: the results of commands, and a login with a QR code that a phone
//! could scan. The terminal is a pseudo-terminal of the kernel, and its screen is a terminal
//! emulator.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::Path,
    process::{Command, Stdio},
};

use rustix::{
    fs::{Mode, OFlags, open},
    pipe::{PipeFlags, pipe_with},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use tempfile::TempDir;
use testkit::{daemon::Daemon, eventually, tailnet::DevnetTailnet, written::Written};

use super::{alone, tailbone};

/// More rows than a test writes, so that nothing scrolls away, and wider than any line.
const ROWS: u16 = 300;
const COLUMNS: u16 = 500;

/// `tailbone server start` without a key, at a terminal.
struct Session {
    _daemon: Daemon,
    host: String,
    written: Written,
    _folder: TempDir,
}

impl Session {
    fn start(tailnet: &DevnetTailnet, more: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::over(terminal(COLUMNS), tailnet, more, variables)
    }

    /// Over another kind of stream: our end and the program's end.
    fn over(
        (ours, theirs): (OwnedFd, OwnedFd),
        tailnet: &DevnetTailnet,
        more: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        let folder = TempDir::new().unwrap();
        let host = tailnet.host("tailbone");
        let daemon = tailbone(&folder)
            .on(tailnet.devnet)
            .host(&host)
            .flags(&["--key-algorithm", "ES256"])
            .flags(more)
            .variables(variables)
            .output(theirs.try_clone().unwrap(), theirs)
            .start();
        let written = Written::default();
        let mut copy = written.clone();
        // The end of a terminal's other side is an error.
        std::thread::spawn(move || io::copy(&mut File::from(ours), &mut copy));
        Self {
            _daemon: daemon,
            host,
            written,
            _folder: folder,
        }
    }

    /// Everything that was written, including control sequences.
    fn raw(&self) -> String {
        self.written.text()
    }

    fn screen(&self) -> Screen {
        Screen::after(&self.raw())
    }

    async fn shows(&self, what: &str) -> Screen {
        eventually(what, async || {
            let screen = self.screen();
            let found = screen.0.iter().any(|row| row.contains(what));
            found.then_some(screen).ok_or_else(|| self.raw())
        })
        .await
    }
}

/// Our end and the program's end.
fn terminal(columns: u16) -> (OwnedFd, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs = open(name.as_c_str(), flags, Mode::empty()).unwrap();
    let size = Winsize {
        ws_row: ROWS,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&theirs, size).unwrap();
    (ours, theirs)
}

/// The rows of a screen.
#[derive(Debug)]
struct Screen(Vec<String>);

impl Screen {
    /// The screen of a terminal after this output.
    fn after(raw: &str) -> Self {
        // A pipe has no terminal driver that turns a newline into a line break.
        let written = raw.replace('\n', "\r\n");
        let mut parser =
            vt100::Parser::new(ROWS.try_into().unwrap(), COLUMNS.try_into().unwrap(), 0);
        parser.process(written.as_bytes());
        let rows = parser.screen().rows(0, COLUMNS);
        Self(rows.map(|row| row.trim_end().to_owned()).collect())
    }

    /// The URLs that are alone on a line.
    fn addresses(&self) -> Vec<&str> {
        let rows = self.0.iter().map(|row| row.trim());
        rows.filter(|row| row.starts_with("http") && !row.contains(' '))
            .collect()
    }

    /// The text in the QR code, which is drawn by its light modules.
    fn scanned(&self) -> Option<String> {
        let rows: Vec<Vec<char>> = self
            .0
            .iter()
            .filter(|row| row.contains('█') && row.chars().all(|c| " █▀▄".contains(c)))
            .map(|row| row.chars().collect())
            .collect();
        let (width, height) = (rows.iter().map(Vec::len).max()?, rows.len() * 2);
        let dark = |x: usize, y: usize| {
            let drawn = rows[y / 2].get(x).copied().unwrap_or(' ');
            let light = match drawn {
                '█' => true,
                '▀' => y.is_multiple_of(2),
                '▄' => !y.is_multiple_of(2),
                _ => false,
            };
            !light
        };
        // Readers need more than one pixel per module.
        const POINTS: usize = 4;
        let mut picture =
            rqrr::PreparedImage::prepare_from_bitmap(width * POINTS, height * POINTS, |x, y| {
                dark(x / POINTS, y / POINTS)
            });
        let grids = picture.detect_grids();
        Some(grids.first()?.decode().ok()?.1)
    }
}

/// The control sequences, by their final letters.
fn sequences(raw: &str) -> Vec<char> {
    raw.split('\x1b')
        .skip(1)
        .filter_map(|text| {
            text.strip_prefix('[')?
                .chars()
                .find(char::is_ascii_alphabetic)
        })
        .collect()
}

#[test]
fn a_person_at_a_terminal_gets_the_address_once_and_as_a_code() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let session = Session::start(&tailnet, &[], &[("TERM", "xterm")]);
        let screen = session.shows("waiting for the login").await;
        let addresses = screen.addresses();
        assert_eq!(addresses.len(), 1, "{}", session.raw());
        let address = addresses[0].to_owned();
        assert_eq!(screen.scanned(), Some(address.clone()), "{}", session.raw());

        tailnet
            .devnet
            .complete_login(&session.host, "alice@example.com")
            .await;
        session.shows("listening").await;
        assert_eq!(
            session.raw().matches(&address).count(),
            1,
            "{}",
            session.raw()
        );
        assert!(
            session.raw().contains("needs-login"),
            "the log tells the state too: {}",
            session.raw()
        );
    });
}

#[test]
fn no_line_of_the_log_is_torn_by_the_spinner_and_nothing_of_it_is_left() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        // The node logs a lot here, some of it while the spinner turns.
        let session = Session::start(&tailnet, &["--log-level", "debug"], &[("TERM", "xterm")]);
        session.shows("waiting for the login").await;
        tailnet
            .devnet
            .complete_login(&session.host, "alice@example.com")
            .await;
        session.shows("listening").await;
        // Both show the same moment, since more lines may come.
        let raw = session.raw();
        let screen = Screen::after(&raw);
        let began = screen
            .0
            .iter()
            .position(|row| row.contains("starting tailbone server"))
            .unwrap();
        let (mut lines, mut code) = (0, 0);
        for row in screen.0.iter().skip(began).filter(|row| !row.is_empty()) {
            let time = row.split(' ').next().unwrap();
            if time.parse::<jiff::Timestamp>().is_ok() {
                let begins = ["Z DBG ", "Z INF ", "Z WRN "].map(|mark| row.matches(mark).count());
                assert_eq!(begins.iter().sum::<usize>(), 1, "two lines in one: {row}");
                lines += 1;
            } else if row.chars().all(|c| " █▀▄".contains(c)) {
                code += 1;
            } else {
                let told = ["To log this node in, open", "or scan"];
                let known = told.contains(&row.trim()) || screen.addresses().contains(&row.trim());
                assert!(known, "{row:?} is left on the screen");
            }
        }
        assert!(
            lines > 20 && code > 15,
            "{lines} lines, {code} rows of a code: {raw}"
        );
        assert_eq!(
            lines,
            raw.matches("Z \x1b[").count(),
            "a line was lost: {raw}"
        );
        let turning = &raw
            [raw.find("joining the tailnet").unwrap()..raw.rfind("joining the tailnet").unwrap()];
        assert!(
            turning.matches("DBG").count() > 3,
            "nothing was logged meanwhile: {raw}"
        );
    });
}

#[test]
fn without_colours_the_code_is_there_and_no_colour_is() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let session = Session::start(&tailnet, &[], &[("TERM", "xterm"), ("NO_COLOR", "1")]);
        let screen = session.shows("waiting for the login").await;
        assert_eq!(
            screen.scanned().as_deref(),
            Some(screen.addresses()[0]),
            "{}",
            session.raw()
        );
        let sequences = sequences(&session.raw());
        assert!(
            !sequences.is_empty() && !sequences.contains(&'m'),
            "{sequences:?}"
        );
    });
}

#[test]
fn a_dumb_terminal_gets_the_logs_line_alone() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        log_alone(
            &tailnet,
            &Session::start(&tailnet, &["--no-color"], &[("TERM", "dumb")]),
        )
        .await;
    });
}

#[test]
fn what_is_no_terminal_gets_the_logs_line_alone() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let pipe = pipe_with(PipeFlags::CLOEXEC).unwrap();
        log_alone(
            &tailnet,
            &Session::over(pipe, &tailnet, &[], &[("TERM", "xterm")]),
        )
        .await;
    });
}

async fn log_alone(tailnet: &DevnetTailnet, session: &Session) {
    session.shows("login URL: http").await;
    tailnet
        .devnet
        .complete_login(&session.host, "alice@example.com")
        .await;
    let screen = session.shows("listening").await;
    let raw = session.raw();
    assert!(
        !raw.contains('\x1b') && !raw.contains('█') && !raw.contains("joining the"),
        "{raw}"
    );
    assert_eq!(raw.matches("login URL: ").count(), 1, "{raw}");
    assert!(screen.addresses().is_empty(), "{raw}");
}

/// Runs a command with its result at a terminal of this width, and returns exit code and result.
fn at_a_terminal(
    columns: u16,
    arguments: &[&str],
    folder: &Path,
    variables: &[(&str, &str)],
) -> (Option<i32>, String) {
    let (ours, theirs) = terminal(columns);
    let mut child = Command::new(env!("CARGO_BIN_EXE_tailbone"))
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(theirs)
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut raw = Vec::new();
    let mut terminal = File::from(ours);
    let mut piece = [0; 4096];
    // The end of the other side shows as an error.
    while let Ok(length) = terminal.read(&mut piece) {
        raw.extend(&piece[..length]);
    }
    let code = child.wait().unwrap().code();
    (code, String::from_utf8(raw).unwrap().replace("\r\n", "\n"))
}

/// The text without colours.
fn without_colours(raw: &str) -> String {
    let mut text = String::new();
    for (at, piece) in raw.split("\x1b[").enumerate() {
        let rest = piece.split_once('m').filter(|_| at > 0);
        text += rest.map_or(piece, |(_, rest)| rest);
    }
    text
}

/// Asserts that no line is longer than the terminal, except for something to be copied.
fn assert_fits(text: &str, columns: usize) {
    for line in text.lines() {
        let to_copy = ["export ", "curl ", "mv ", "sudo ", "tailbone "];
        let bare = line.trim();
        let whole = !bare.contains(' ') || to_copy.iter().any(|command| bare.starts_with(command));
        assert!(whole || line.chars().count() <= columns, "{line}\n{text}");
    }
}

#[test]
fn in_a_fresh_directory_the_doctor_finds_no_failure_and_its_list_fits() {
    alone(async {
        let tailnet = DevnetTailnet::new();
        let control = (
            "TB_SERVER_TAILSCALE_CONTROLURL",
            tailnet.devnet.ready.control_url.as_str(),
        );
        for columns in [80, 40] {
            let folder = TempDir::new().unwrap();
            let variables = [control, ("TERM", "xterm")];
            let (code, raw) = at_a_terminal(columns, &["doctor"], folder.path(), &variables);
            let text = without_colours(&raw);
            assert_eq!(code, Some(0), "{text}");
            assert_fits(&text, columns.into());
            assert!(text.contains("  ✓ State: "), "{text}");
            assert!(text.contains("  ✓ Signing keys: "), "{text}");
            assert!(text.contains("  ! Auth key: none is set"), "{text}");
            assert!(raw.contains("\x1b[32m✓"), "{raw}");
            let left = std::fs::read_dir(folder.path()).unwrap().count();
            assert_eq!(left, 0, "a check left something behind");

            let variables = [control, ("TERM", "xterm"), ("NO_COLOR", "1")];
            let (_, raw) = at_a_terminal(columns, &["doctor"], folder.path(), &variables);
            assert!(raw.contains('✓') && !raw.contains('\x1b'), "{raw}");
        }
        let folder = TempDir::new().unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_tailbone"))
            .arg("doctor")
            .current_dir(folder.path())
            .env_clear()
            .envs([control, ("TERM", "xterm")])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        assert!(text.contains("  ok   State: "), "{text}");
        assert!(!text.contains(['✓', '✗', '\x1b']), "{text}");
    });
}

#[test]
fn no_result_is_wider_than_its_terminal() {
    let folder = TempDir::new().unwrap();
    std::fs::write(
        folder.path().join("policy.toml"),
        "[[rule]]\nname = \"staff\"\ndecision = \"allow\"\nwho = [\"alice@example.com\"]\n",
    )
    .unwrap();
    let keys = ["keys", "generate", "--local", "--algorithm", "ES256"];
    let (code, said) = at_a_terminal(80, &keys, folder.path(), &[]);
    assert_eq!(code, Some(0), "{said}");
    let test = ["policy", "test", "--policy", "policy.toml", "--as"];
    for columns in [80, 40] {
        for (arguments, expected) in [
            (&["keys", "list", "--local"][..], Some(0)),
            (&["keys", "rotate", "--local"], Some(0)),
            (&["config", "show"], Some(0)),
            (&["config", "show", "--origin"], Some(0)),
            (
                &[
                    "server",
                    "housekeeping",
                    "--dry-run",
                    "--log-level",
                    "error",
                ],
                Some(0),
            ),
            (&[&test[..], &["alice@example.com"]].concat(), Some(0)),
            (&[&test[..], &["bob@example.com"]].concat(), Some(0)),
            (&["version"], Some(0)),
        ] {
            let variables = [("TB_KEYS_ALGORITHM", "ES256"), ("TERM", "xterm")];
            let (code, raw) = at_a_terminal(columns, arguments, folder.path(), &variables);
            let text = without_colours(&raw);
            assert_eq!(code, expected, "{arguments:?}: {text}");
            assert_fits(&text, columns.into());
            assert!(!text.trim().is_empty(), "{arguments:?}");
        }
    }
}
