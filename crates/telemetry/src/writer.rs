//! Writes log lines to a stream, which may be a pipe that nobody reads.
//!
//! Invariants
//! - Writing a line never waits for the reader. If the stream has room, the calling thread writes
//!   the line at once. Otherwise the line is kept in memory, and a thread writes it when there is
//!   room. Lines keep their order.
//! - The memory for waiting lines is bounded. When it is full, refusals are dropped first, then all
//!   other lines, and audit lines of actions that were carried out last. Dropped lines are counted,
//!   and the count is written when the reader has caught up.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, fstat},
};

use super::status_line;

/// What a writable pipe takes without blocking (PIPE_BUF in pipe(7)).
const PIPE_BUF: usize = 4096;

/// The kind of a line, in ascending order of importance. Each kind may fill the memory up to a
/// bound of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An audit line about a refusal.
    Refusal,
    Other,
    /// An audit line about an action that was carried out.
    Done,
}

impl Kind {
    fn max_bytes(self) -> usize {
        match self {
            Self::Refusal => 1 << 20,
            Self::Other => 2 << 20,
            Self::Done => 4 << 20,
        }
    }
}

/// The numbers of dropped lines.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct LostLines {
    pub(super) refusals: u64,
    pub(super) others: u64,
    pub(super) done: u64,
}

#[derive(Debug)]
pub(super) enum Stream {
    Err,
    Out,
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for tests, which need a reader of their own")
    )]
    File(File),
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Err => rustix::stdio::stderr(),
            Self::Out => rustix::stdio::stdout(),
            Self::File(file) => file.as_fd(),
        }
    }
}

impl Stream {
    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Err => io::stderr().lock().write_all(bytes),
            Self::Out => {
                let mut out = io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            Self::File(file) => (&*file).write_all(bytes),
        }
    }

    /// Waits until there is room, or the reader is gone.
    fn is_writable(&self, within: Option<&Timespec>) -> bool {
        let mut fds = [PollFd::new(self, PollFlags::OUT)];
        loop {
            match poll(&mut fds, within) {
                Err(rustix::io::Errno::INTR) => {}
                // If a stream cannot be polled, write to it: that shows what is wrong.
                Err(_) => return true,
                Ok(ready) => return ready > 0,
            }
        }
    }
}

pub(super) struct Writer {
    stream: Stream,
    /// Whether the stream is a regular file, for which no write waits for a reader.
    file: bool,
    /// Makes the line that reports dropped lines.
    lost_line: fn(LostLines) -> String,
    state: Mutex<State>,
    caught_up: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<String>,
    bytes: usize,
    lost: LostLines,
    /// Whether lines are waiting, which a thread writes.
    behind: bool,
}

impl State {
    fn enqueue(&mut self, line: String, kind: Kind) {
        if self.bytes + line.len() > kind.max_bytes() {
            let lost = match kind {
                Kind::Refusal => &mut self.lost.refusals,
                Kind::Other => &mut self.lost.others,
                Kind::Done => &mut self.lost.done,
            };
            *lost += 1;
            return;
        }
        self.bytes += line.len();
        self.lines.push_back(line);
    }
}

impl Writer {
    pub(super) fn new(stream: Stream, lost_line: fn(LostLines) -> String) -> Arc<Self> {
        let file = fstat(&stream)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        Arc::new(Self {
            stream,
            file,
            lost_line,
            state: Mutex::default(),
            caught_up: Condvar::new(),
        })
    }

    /// Writes a complete line, including its line break.
    pub(super) fn line(self: &Arc<Self>, line: String, kind: Kind) {
        let mut state = self.state.lock();
        if !state.behind {
            let now = Timespec::default();
            if self.file || line.len() <= PIPE_BUF && self.stream.is_writable(Some(&now)) {
                self.write(line.as_bytes());
                return;
            }
            let writer = self.clone();
            let thread = thread::Builder::new().name("tb-log".into());
            if thread.spawn(move || writer.catch_up()).is_err() {
                // Without a thread nobody can wait for the reader.
                state.lost.others += 1;
                return;
            }
            state.behind = true;
        }
        state.enqueue(line, kind);
    }

    /// Waits at most `limit` until no line is waiting.
    pub(super) fn flush(&self, limit: Duration) {
        let mut state = self.state.lock();
        self.caught_up
            .wait_while_for(&mut state, |state| state.behind, limit);
    }

    fn catch_up(&self) {
        while let Some(line) = self.next_line() {
            for piece in line.as_bytes().chunks(PIPE_BUF) {
                // Without holding a lock: this may take forever.
                self.stream.is_writable(None);
                self.write(piece);
            }
        }
        self.caught_up.notify_all();
    }

    fn next_line(&self) -> Option<String> {
        let mut state = self.state.lock();
        if let Some(line) = state.lines.pop_front() {
            state.bytes -= line.len();
            return Some(line);
        }
        let lost = std::mem::take(&mut state.lost);
        if lost != LostLines::default() {
            return Some((self.lost_line)(lost));
        }
        state.behind = false;
        None
    }

    fn write(&self, bytes: &[u8]) {
        // If the stream is gone, there is nowhere to report it.
        let _ = status_line::print_above(|| self.stream.write(bytes));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        time::Instant,
    };

    use super::*;

    fn lost_line(lost: LostLines) -> String {
        format!("{} {} {} lost\n", lost.refusals, lost.others, lost.done)
    }

    /// A writer, and the reader of its pipe.
    fn pipe() -> (Arc<Writer>, BufReader<File>) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        (
            Writer::new(Stream::File(writer.into()), lost_line),
            BufReader::new(reader.into()),
        )
    }

    #[test]
    fn a_line_is_there_when_the_call_returns() {
        let (writer, mut reader) = pipe();
        writer.line("first\n".into(), Kind::Other);
        assert!(!writer.state.lock().behind);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, "first\n");
    }

    #[test]
    fn a_stalled_reader_blocks_no_writer_and_lines_about_actions_are_kept_longest() {
        let (writer, reader) = pipe();
        let began = Instant::now();
        let kinds = [Kind::Refusal, Kind::Other, Kind::Done];
        let names = ["refusal", "other", "done"];
        let each = 10_000;
        for number in 0..each {
            for (kind, name) in kinds.into_iter().zip(names) {
                writer.line(format!("{name} {number} {}\n", "x".repeat(80)), kind);
            }
        }
        // Much less than the time that a wait for the reader, which has not begun, would take.
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{:?}",
            began.elapsed()
        );
        let waiting = writer.state.lock().bytes;
        assert!(waiting <= Kind::Done.max_bytes(), "{waiting} bytes");

        let mut next = [0; 3];
        let mut said = None;
        let mut read = 0;
        for line in reader.lines() {
            let line = line.unwrap();
            read += 1;
            let mut words = line.split(' ');
            let name = words.next().unwrap();
            match names.iter().position(|n| *n == name) {
                Some(which) => {
                    let number: u32 = words.next().unwrap().parse().unwrap();
                    assert!(number >= next[which], "{line}: in order");
                    next[which] = number + 1;
                }
                None => {
                    said = Some(line);
                    break;
                }
            }
        }
        writer.flush(Duration::from_secs(10));
        assert!(!writer.state.lock().behind);
        // Every missing line is counted, and all lines about completed actions arrived.
        let said = said.unwrap();
        let counts: Vec<u32> = said
            .split(' ')
            .take(3)
            .map(|word| word.parse().unwrap())
            .collect();
        assert_eq!(counts.iter().sum::<u32>() + read - 1, 3 * each, "{said}");
        assert!(
            counts[0] > counts[1] && counts[1] > 0 && counts[2] == 0,
            "{said}"
        );
        assert_eq!(next[2], each);
    }

    #[test]
    fn a_long_line_comes_whole_and_before_the_next() {
        let (writer, mut reader) = pipe();
        let long = format!("{}\n", "x".repeat(200_000));
        writer.line(long.clone(), Kind::Other);
        writer.line("next\n".into(), Kind::Other);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, long);
        line.clear();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, "next\n");
    }

    #[test]
    fn a_flush_does_not_wait_for_ever() {
        let (writer, _reader) = pipe();
        writer.line("x".repeat(200_000), Kind::Other);
        let began = Instant::now();
        writer.flush(Duration::from_millis(50));
        assert!(writer.state.lock().behind);
        assert!(began.elapsed() >= Duration::from_millis(50));
    }

    #[test]
    fn a_reader_that_is_gone_is_no_trouble() {
        let (writer, reader) = pipe();
        writer.line("x".repeat(200_000), Kind::Other);
        drop(reader);
        writer.flush(Duration::from_secs(10));
        assert!(!writer.state.lock().behind);
        writer.line("x\n".into(), Kind::Done);
    }
}
