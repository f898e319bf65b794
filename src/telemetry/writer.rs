//! The stream that log lines go to, which may be a pipe that nobody reads.
//!
//! Invariants
//! - Writing a line never waits for the reader. A line is written at once, by whoever has it, where
//!   the stream takes it; else it waits in memory and a thread writes it when there is room. Lines
//!   keep their order.
//! - What waits is bounded by bytes. When that is full, lines of refusals go first, then those of
//!   all else, and audit lines of what was done last. Each line that is lost is counted, and how
//!   many were is the next line once the reader has caught up.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, fstat},
};

use super::foot;

/// What a pipe that is ready takes without waiting (PIPE_BUF of pipe(7)).
const AT_ONCE: usize = 4096;

/// What a line is about, the dearest last. Each kind may fill the memory for waiting lines up to a
/// bound of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An audit line of somebody refused.
    Refusal,
    Other,
    /// An audit line of what was done.
    Done,
}

impl Kind {
    fn most(self) -> usize {
        match self {
            Self::Refusal => 1 << 20,
            Self::Other => 2 << 20,
            Self::Done => 4 << 20,
        }
    }
}

/// Lines that were lost.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lost {
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
    fn put(&self, bytes: &[u8]) -> io::Result<()> {
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
    fn ready(&self, within: Option<&Timespec>) -> bool {
        let mut fds = [PollFd::new(self, PollFlags::OUT)];
        loop {
            match poll(&mut fds, within) {
                Err(rustix::io::Errno::INTR) => {}
                // What cannot be polled is written to; that tells what is wrong with it.
                Err(_) => return true,
                Ok(ready) => return ready > 0,
            }
        }
    }
}

pub(super) struct Writer {
    stream: Stream,
    /// A file takes everything; its kernel never waits for a reader.
    file: bool,
    /// The line that tells what was lost.
    told: fn(Lost) -> String,
    state: Mutex<State>,
    caught_up: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<String>,
    bytes: usize,
    lost: Lost,
    /// Lines wait, and a thread writes them.
    behind: bool,
}

impl State {
    fn keep(&mut self, line: String, kind: Kind) {
        if self.bytes + line.len() > kind.most() {
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
    pub(super) fn new(stream: Stream, told: fn(Lost) -> String) -> Arc<Self> {
        let file = fstat(&stream)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        Arc::new(Self {
            stream,
            file,
            told,
            state: Mutex::default(),
            caught_up: Condvar::new(),
        })
    }

    /// Writes a whole line, its end included.
    pub(super) fn line(self: &Arc<Self>, line: String, kind: Kind) {
        let mut state = self.state();
        if !state.behind {
            let now = Timespec::default();
            if self.file || line.len() <= AT_ONCE && self.stream.ready(Some(&now)) {
                self.put(line.as_bytes());
                return;
            }
            let writer = self.clone();
            let thread = thread::Builder::new().name("tb-log".into());
            if thread.spawn(move || writer.catch_up()).is_err() {
                // There is nobody to wait for the reader.
                state.lost.others += 1;
                return;
            }
            state.behind = true;
        }
        state.keep(line, kind);
    }

    /// Waits until nothing waits any more, for so long at most.
    pub(super) fn flush(&self, limit: Duration) {
        let state = self.state();
        let _ = self
            .caught_up
            .wait_timeout_while(state, limit, |state| state.behind);
    }

    fn catch_up(&self) {
        while let Some(line) = self.next() {
            for piece in line.as_bytes().chunks(AT_ONCE) {
                // Without any lock: this may take for ever.
                self.stream.ready(None);
                self.put(piece);
            }
        }
        self.caught_up.notify_all();
    }

    fn next(&self) -> Option<String> {
        let mut state = self.state();
        if let Some(line) = state.lines.pop_front() {
            state.bytes -= line.len();
            return Some(line);
        }
        let lost = std::mem::take(&mut state.lost);
        if lost != Lost::default() {
            return Some((self.told)(lost));
        }
        state.behind = false;
        None
    }

    fn put(&self, bytes: &[u8]) {
        // There is nowhere left to say that the stream is gone.
        let _ = foot::above(|| self.stream.put(bytes));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        time::Instant,
    };

    use super::*;

    fn told(lost: Lost) -> String {
        format!("{} {} {} lost\n", lost.refusals, lost.others, lost.done)
    }

    /// A writer and its reader.
    fn pipe() -> (Arc<Writer>, BufReader<File>) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        (
            Writer::new(Stream::File(writer.into()), told),
            BufReader::new(reader.into()),
        )
    }

    #[test]
    fn a_line_is_there_when_the_call_returns() {
        let (writer, mut reader) = pipe();
        writer.line("first\n".into(), Kind::Other);
        assert!(!writer.state().behind);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, "first\n");
    }

    #[test]
    fn a_reader_that_stalls_holds_up_nobody_and_what_was_done_is_kept_longest() {
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
        // Far less than anybody would wait for the reader, who has not begun.
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{:?}",
            began.elapsed()
        );
        let waiting = writer.state().bytes;
        assert!(waiting <= Kind::Done.most(), "{waiting} bytes");

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
        assert!(!writer.state().behind);
        // All that did not come is counted, and what was done came whole.
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
        assert!(writer.state().behind);
        assert!(began.elapsed() >= Duration::from_millis(50));
    }

    #[test]
    fn a_reader_that_is_gone_is_no_trouble() {
        let (writer, reader) = pipe();
        writer.line("x".repeat(200_000), Kind::Other);
        drop(reader);
        writer.flush(Duration::from_secs(10));
        assert!(!writer.state().behind);
        writer.line("x\n".into(), Kind::Done);
    }
}
