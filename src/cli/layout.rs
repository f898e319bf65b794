//! How text for people is laid out: on a terminal within its columns, elsewhere in whole lines.
//!
//! Invariants
//! - Colours, and marks such as ✓, appear on a terminal only.
//! - A command or an address that a person may copy is never broken: a terminal folds a long one,
//!   and copying gives all of it.
//! - Elsewhere data stays on one line for `grep`, and sentences are wrapped at `PIPE` columns,
//!   since a pipe often ends at a person (`docker exec`, a CI log).

use std::io::IsTerminal as _;

use crate::config::{Environment, printable};

/// The width of sentences that do not go to a terminal.
const PIPE: usize = 80;
/// The width of a terminal that does not tell its own.
const UNKNOWN: usize = 80;
/// A narrower terminal is treated as this wide.
const LEAST: usize = 20;

/// Where text is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The columns of the terminal; absent if it is none.
    columns: Option<usize>,
    colour: bool,
    marks: bool,
}

impl Layout {
    /// A pipe or a file.
    pub const PIPE: Self = Self {
        columns: None,
        colour: false,
        marks: false,
    };

    /// A terminal with marks and without colours.
    pub fn terminal(columns: usize) -> Self {
        Self {
            columns: Some(columns.max(LEAST)),
            colour: false,
            marks: true,
        }
    }

    /// The same with colours.
    #[must_use]
    pub fn coloured(self) -> Self {
        Self {
            colour: true,
            ..self
        }
    }

    /// The standard output of this process. `NO_COLOR` (no-color.org) takes the colours away,
    /// `TERM=dumb` and an unset `TERM` the marks as well.
    pub(super) fn of_stdout(environment: &Environment) -> Self {
        if !std::io::stdout().is_terminal() {
            return Self::PIPE;
        }
        let columns = rustix::termios::tcgetwinsize(std::io::stdout())
            .map(|size| usize::from(size.ws_col))
            .ok()
            .filter(|columns| *columns > 0)
            .unwrap_or(UNKNOWN);
        let able = environment.value("TERM").is_some_and(|term| term != "dumb");
        Self {
            colour: able && environment.value("NO_COLOR").is_none(),
            marks: able,
            ..Self::terminal(columns)
        }
    }

    pub(super) fn columns(self) -> Option<usize> {
        self.columns
    }

    /// A heading: bold where there are colours.
    pub(super) fn heading(self, words: &str) -> String {
        self.paint("1", words)
    }

    fn paint(self, code: &str, words: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{words}\x1b[0m")
        } else {
            words.to_owned()
        }
    }
}

/// How something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Bad,
    Good,
    /// Nothing to say.
    None,
    Warning,
}

impl Mark {
    fn sign(self) -> char {
        match self {
            Self::Bad => '✗',
            Self::Good => '✓',
            Self::None => '-',
            Self::Warning => '!',
        }
    }

    /// Red, green, dim, yellow.
    fn code(self) -> &'static str {
        match self {
            Self::Bad => "31",
            Self::Good => "32",
            Self::None => "2",
            Self::Warning => "33",
        }
    }

    /// The word that stands for the sign where there are no signs, in one width.
    fn word(self) -> &'static str {
        match self {
            Self::Bad => "fail ",
            Self::Good => "ok   ",
            Self::None => "skip ",
            Self::Warning => "warn ",
        }
    }
}

/// Text for people, from top to bottom.
#[derive(Debug)]
pub(super) struct List {
    layout: Layout,
    /// Of everything below a heading.
    indent: usize,
    /// The width of the mark before the last sentence or item.
    lead: usize,
    text: String,
}

impl List {
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            layout,
            indent: 0,
            lead: 0,
            text: String::new(),
        }
    }

    /// Begins a section: what follows is indented.
    pub(super) fn heading(&mut self, words: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.line(&self.layout.heading(words));
        self.indent = 2;
    }

    /// A sentence that says by itself how things stand. A terminal also shows the mark.
    pub(super) fn sentence(&mut self, mark: Mark, words: &str) {
        let lead = if self.layout.marks {
            format!("{} ", mark.sign())
        } else {
            String::new()
        };
        self.led(mark, &lead, words);
    }

    /// An entry whose mark matters: a word stands for it where there are no marks.
    pub(super) fn item(&mut self, mark: Mark, words: &str) {
        let lead = if self.layout.marks {
            format!("{} ", mark.sign())
        } else {
            mark.word().to_owned()
        };
        self.led(mark, &lead, words);
    }

    /// Words about the line above.
    pub(super) fn note(&mut self, words: &str) {
        let start = self.indent + self.lead + 2;
        let lines = self.wrap(words, start);
        self.lines(&" ".repeat(start), start, &lines);
    }

    /// Something to copy, in one piece.
    pub(super) fn verbatim(&mut self, text: &str) {
        let indent = " ".repeat(self.indent + self.lead + 4);
        self.line(&format!("{indent}{}", printable(text)));
    }

    /// Labels and values in two columns. Empty values are left out; without any label the values
    /// are lines.
    pub(super) fn facts<L: AsRef<str>>(&mut self, facts: &[(L, String)]) {
        let told = || {
            let facts = facts.iter().filter(|(_, value)| !value.is_empty());
            facts.map(|(label, value)| (printable(label.as_ref()), printable(value)))
        };
        let widest = told().map(|(label, _)| width(&label)).max().unwrap_or(0);
        let room = self.layout.columns.unwrap_or(usize::MAX);
        let column = self.indent + widest + 2;
        for (label, value) in told() {
            let indent = " ".repeat(self.indent);
            // A value that has no room beside its label goes below it.
            let word = value.split(' ').map(width).max().unwrap_or(0);
            let beside =
                column <= room / 2 && column + word <= room || column + width(&value) <= room;
            let (lead, start) = if widest == 0 {
                (indent, self.indent)
            } else if beside {
                let gap = " ".repeat(widest - width(&label) + 2);
                (format!("{indent}{label}{gap}"), column)
            } else {
                self.line(&format!("{indent}{label}"));
                (format!("{indent}  "), self.indent + 2)
            };
            let lines = match self.layout.columns {
                Some(columns) => wrap(&value, columns.saturating_sub(start)),
                None => vec![value],
            };
            self.lines(&lead, start, &lines);
        }
    }

    pub(super) fn finish(self) -> String {
        self.text
    }

    fn led(&mut self, mark: Mark, lead: &str, words: &str) {
        self.lead = width(lead);
        let start = self.indent + self.lead;
        let lines = self.wrap(words, start);
        let lead = format!(
            "{}{}",
            " ".repeat(self.indent),
            self.layout.paint(mark.code(), lead)
        );
        self.lines(&lead, start, &lines);
    }

    /// The first line after `lead`, the others from the column `start` on.
    fn lines(&mut self, lead: &str, start: usize, lines: &[String]) {
        let below = " ".repeat(start);
        for (at, line) in lines.iter().enumerate() {
            let before = if at == 0 { lead } else { &below };
            self.line(&format!("{before}{line}"));
        }
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    fn wrap(&self, words: &str, start: usize) -> Vec<String> {
        let columns = self.layout.columns.unwrap_or(PIPE);
        wrap(&printable(words), columns.saturating_sub(start))
    }
}

/// The text in lines of at most `room` characters. A word that is longer has a line of its own.
fn wrap(text: &str, room: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if !line.is_empty() && width(&line) + 1 + width(word) > room {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

pub(super) fn width(text: &str) -> usize {
    text.chars().count()
}

/// "1 key", "2 keys".
pub(super) fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// The text as one word of a shell's command line.
pub(super) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}
