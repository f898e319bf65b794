//! What a person at a terminal sees while the node joins: a spinner with the state, and the login
//! address, also as a QR code.
//!
//! It is written to standard error, beside the log. If that is not a terminal, or one that cannot
//! return to the start of a line (`TERM=dumb`), there is only the log.

use std::{
    io::{IsTerminal, Write as _},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use qrcode::{EcLevel, QrCode, render::unicode::Dense1x2};
use tokio::{task::JoinHandle, time::MissedTickBehavior};

use crate::{config::Log, tailnet::join::JoinState, telemetry::status_line};

/// A join that takes less time gets no spinner.
const SPINNER_DELAY: Duration = Duration::from_millis(200);
const FRAME_TIME: Duration = Duration::from_millis(100);
const FRAMES: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];

/// The width of a terminal that does not tell its own.
const DEFAULT_COLUMNS: usize = 80;

/// The terminal while the node joins. Dropping it removes the spinner.
#[derive(Debug)]
pub(super) struct JoinScreen {
    color: bool,
    /// Whether the log goes to a terminal too.
    log_on_terminal: bool,
    message: Arc<Mutex<&'static str>>,
    spinner: JoinHandle<()>,
}

impl JoinScreen {
    /// The terminal of this process, if it has one.
    pub(super) fn of_terminal(settings: &Log) -> Option<Self> {
        let capable =
            std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
        if !capable || !std::io::stderr().is_terminal() {
            return None;
        }
        let color = !settings.no_color;
        let message = Arc::new(Mutex::new(waiting_message(&JoinState::Starting)));
        Some(Self {
            color,
            log_on_terminal: std::io::stdout().is_terminal(),
            spinner: tokio::spawn(spin(message.clone(), color)),
            message,
        })
    }

    /// Whether the log may leave out the login address, since it would be on the screen twice.
    pub(super) fn shows_login_address(&self) -> bool {
        self.log_on_terminal
    }

    /// Shows the node's new state.
    pub(super) fn show_state(&self, state: &JoinState) {
        if let JoinState::NeedsLogin { url } = state {
            let block = login_block(url, columns(), self.color);
            status_line::print_above(|| {
                // If the terminal is gone, nobody can be told.
                let _ = std::io::stderr().lock().write_all(block.as_bytes());
            });
        }
        // After the address: who reads that a login is waited for finds it above.
        *self.message.lock() = waiting_message(state);
    }
}

impl Drop for JoinScreen {
    fn drop(&mut self) {
        self.spinner.abort();
        // The spinner draws under this lock and stops at empty words, so no frame follows.
        let mut message = self.message.lock();
        *message = "";
        status_line::clear();
    }
}

async fn spin(message: Arc<Mutex<&'static str>>, color: bool) {
    let started = Instant::now();
    tokio::time::sleep(SPINNER_DELAY).await;
    let mut ticks = tokio::time::interval(FRAME_TIME);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for frame in FRAMES.into_iter().cycle() {
        ticks.tick().await;
        let message = message.lock();
        if message.is_empty() {
            return;
        }
        let seconds = started.elapsed().as_secs();
        let text = format!("{frame} joining the tailnet: {message} ({seconds} s)");
        // One column stays free: some terminals wrap when the last one is written.
        let text: String = text.chars().take(columns().saturating_sub(1)).collect();
        match text.strip_prefix(frame) {
            Some(rest) if color => status_line::set(&format!("\x1b[36m{frame}\x1b[0m{rest}")),
            _ => status_line::set(&text),
        }
    }
}

/// In few words; the log has all of them.
fn waiting_message(state: &JoinState) -> &'static str {
    match state {
        JoinState::NeedsApproval => "waiting for an admin's approval",
        JoinState::NeedsLogin { .. } => "waiting for the login",
        JoinState::NoNetwork { .. } => "the control server cannot be reached, trying on",
        JoinState::Running => "joined",
        JoinState::Starting => "waiting for the control server",
        _ => "trying again",
    }
}

/// The address on a line of its own, to be copied, and a QR code if it fits.
fn login_block(url: &str, columns: usize, color: bool) -> String {
    let mut block = format!("\nTo log this node in, open\n\n    {url}\n\n");
    let code = qr_code(url).filter(|rows| rows.iter().all(|row| row.chars().count() < columns));
    if let Some(rows) = code {
        block.push_str("or scan\n\n");
        for row in rows {
            // Always white on black: scanners need to know which modules are dark.
            if color {
                block.push_str(&format!("\x1b[97;40m{row}\x1b[0m\n"));
            } else {
                block.push_str(&row);
                block.push('\n');
            }
        }
        block.push('\n');
    }
    block
}

/// Two modules per character, with the light ones drawn, since most terminals are dark.
fn qr_code(url: &str) -> Option<Vec<String>> {
    let code = QrCode::with_error_correction_level(url, EcLevel::L).ok()?;
    let image = code
        .render::<Dense1x2>()
        .dark_color(Dense1x2::Light)
        .light_color(Dense1x2::Dark)
        .build();
    Some(image.lines().map(str::to_owned).collect())
}

fn columns() -> usize {
    rustix::termios::tcgetwinsize(std::io::stderr())
        .map(|size| usize::from(size.ws_col))
        .ok()
        .filter(|columns| *columns > 0)
        .unwrap_or(DEFAULT_COLUMNS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_terminal_gets_the_address_alone() {
        let url = "https://login.example.com/a/1234567890ab";
        let wide = login_block(url, 80, false);
        assert!(wide.contains('█') && !wide.contains('\x1b'), "{wide}");
        let narrow = login_block(url, 30, true);
        assert!(narrow.contains(url) && !narrow.contains('█'), "{narrow}");
    }
}
