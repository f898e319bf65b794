//! An accepted connection of the embedded node: two buffers in memory, which Go fills and empties.
//!
//! Invariants
//! - Go moves bytes in turns ([`Conn::turn`]). A connection has one turn at a time, and the memory
//!   that Go lends is ours only during the turn.
//! - A state change outside a turn notifies Go (a kick), at most once until the next turn. A kick
//!   never blocks. All changes inside one [`together`] share one kick.
//! - Both buffers are bounded. A full one makes its writer wait.
//! - Bytes that arrived before a reset can still be read; every read after them reports the reset.
//!
//! During a turn the future that serves the connection may be polled on Go's own thread
//! (`inline.rs`). An answer that is ready at once then leaves with the turn that brought its
//! request, and no other thread is woken.

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt,
    io::{self, IoSlice},
    os::fd::OwnedFd,
    sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::io::ReadBuf;

use super::inline::Inline;

/// Limit of the bytes received and not yet read.
const INBOUND: usize = 64 << 10;
/// Limit of the bytes written and not yet sent. Go takes at most this many in a turn.
const OUTBOUND: usize = 64 << 10;

/// State of the direction from the peer, as Go reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Open,
    Ended,
    Broken,
}

/// What a turn reports to Go.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    /// Bytes written into Go's buffer.
    pub(super) out: usize,
    /// Bytes that the next turn may bring.
    pub(super) room: usize,
    /// There are more bytes to send than fitted into Go's buffer.
    pub(super) more: bool,
    /// We have ended our direction, after the bytes that are still to be sent.
    pub(super) shut: bool,
    /// The stream was dropped: nothing that arrives is read any more.
    pub(super) closed: bool,
}

/// The state that Go and a [`Direct`] share.
pub(super) struct Conn {
    id: u64,
    state: Mutex<State>,
    inline: OnceLock<Arc<Inline>>,
}

#[derive(Default)]
struct State {
    inbound: Buffer,
    /// The peer has ended its direction.
    ended: bool,
    /// The connection is reset: neither direction carries bytes any more.
    broken: bool,
    reader: Option<Waker>,
    /// The last turn reported no room, so Go waits for a kick before it reads on.
    full: bool,

    outbound: Buffer,
    /// We have ended our direction.
    shut: bool,
    /// The stream was dropped.
    closed: bool,
    writer: Option<Waker>,

    /// A turn is in progress. Changes made meanwhile need no kick: the turn reports them when it
    /// ends.
    turning: bool,
    /// Go was kicked and has not begun its turn yet.
    kicked: bool,
    /// Go has released the connection: no further turn comes.
    freed: bool,
}

/// A queue of bytes. An empty one holds no memory.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    fn put(&mut self, more: &[u8]) {
        if self.start > 0 && self.bytes.len() + more.len() > self.bytes.capacity() {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(more);
    }

    /// The first bytes, at most `most`.
    fn front(&self, most: usize) -> &[u8] {
        let rest = self.bytes.get(self.start..).unwrap_or_default();
        rest.get(..most).unwrap_or(rest)
    }

    fn took(&mut self, n: usize) {
        self.start += n;
        if self.start >= self.bytes.len() {
            *self = Self::default();
        }
    }
}

impl Conn {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No panic can occur between two changes that belong together, so a poisoned lock is
        // harmless.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One turn of Go's: `input` was received, `output` is to be filled with bytes to send.
    pub(super) fn turn(&self, input: &[u8], end: End, output: &mut [u8]) -> Told {
        let (reader, writer) = {
            let mut state = self.lock();
            state.turning = true;
            state.kicked = false;
            if !state.closed {
                state.inbound.put(input);
            }
            state.ended |= end == End::Ended;
            state.broken |= end == End::Broken;
            let news = !input.is_empty() || end != End::Open;
            let reader = if news { state.reader.take() } else { None };
            let writer = if end == End::Broken {
                state.writer.take()
            } else {
                None
            };
            (reader, writer)
        };
        // Only after `kicked` is cleared: a task that relied on this turn (`promise_turn`) has
        // marked its future as woken by then.
        let mut inline = self.inline.get().and_then(|inline| inline.begin());
        wake(reader);
        wake(writer);
        if let Some(inline) = &mut inline {
            inline.run();
        }
        let mut out = 0;
        loop {
            let mut state = self.lock();
            let room = output.get_mut(out..).unwrap_or_default();
            let bytes = state.outbound.front(room.len());
            let n = bytes.len();
            if let Some(room) = room.get_mut(..n) {
                room.copy_from_slice(bytes);
            }
            state.outbound.took(n);
            out += n;
            let writer = if n > 0 { state.writer.take() } else { None };
            if let Some(writer) = writer {
                drop(state);
                writer.wake();
                if let Some(inline) = &mut inline {
                    inline.run();
                }
                continue;
            }
            // Before `turning` is cleared: a task that sees no turn in progress must be able to
            // start polling.
            drop(inline);
            state.turning = false;
            let room = if state.closed {
                0
            } else {
                INBOUND.saturating_sub(state.inbound.len())
            };
            state.full = room == 0;
            return Told {
                out,
                room,
                more: state.outbound.len() > 0,
                shut: state.shut,
                closed: state.closed,
            };
        }
    }

    /// Go has released the connection.
    pub(super) fn freed(&self) {
        opened().remove(&self.id);
        let mut state = self.lock();
        state.broken |= !(state.ended && state.shut);
        state.freed = true;
        let waiting = [state.reader.take(), state.writer.take()];
        drop(state);
        waiting.into_iter().for_each(wake);
        if let Some(inline) = self.inline.get() {
            inline.has_no_turns();
        }
    }

    /// Asks for a turn that will poll the future just woken. Returns true only inside [`together`],
    /// if this future is the one polled in turns, and if a turn that has not begun yet is certain
    /// to come. After false the caller wakes the task instead.
    pub(super) fn promise_turn(&self, inline: &Arc<Inline>) -> bool {
        let is_ours = |one| Arc::ptr_eq(one, inline);
        if !are_together() || !self.inline.get().is_some_and(is_ours) {
            return false;
        }
        let state = self.lock();
        if state.turning || state.freed {
            return false;
        }
        self.kick(state);
        true
    }

    /// Lets the turns of the connection poll this future.
    pub(super) fn serve_inline(&self, inline: Arc<Inline>) {
        // Only the first future of a connection is polled in turns; a second one is polled by tokio
        // alone.
        let _ = self.inline.set(inline);
    }

    #[cfg(test)]
    pub(super) fn inline(&self) -> Option<&Arc<Inline>> {
        self.inline.get()
    }

    fn kick(&self, mut state: MutexGuard<'_, State>) {
        if state.turning || state.kicked || state.freed {
            return;
        }
        state.kicked = true;
        drop(state);
        TOGETHER.with_borrow_mut(|together| match together {
            Some(ids) => ids.push(self.id),
            None => KICKS.push(&[self.id]),
        });
    }
}

thread_local! {
    /// Kicks held back until [`together`] ends; `None` outside of it.
    static TOGETHER: RefCell<Option<Vec<u64>>> = const { RefCell::new(None) };
}

/// Runs `work` and notifies Go once for all connections that it makes ready. Their futures are
/// polled in Go's turns, so their answers leave the machine together.
pub fn together<T>(work: impl FnOnce() -> T) -> T {
    /// Sends the kicks also if `work` panics.
    struct Go;

    impl Drop for Go {
        fn drop(&mut self) {
            if let Some(ids) = TOGETHER.take() {
                KICKS.push(&ids);
            }
        }
    }

    if are_together() {
        return work();
    }
    TOGETHER.set(Some(Vec::new()));
    let _go = Go;
    work()
}

/// True if this thread is inside [`together`].
fn are_together() -> bool {
    TOGETHER.with_borrow(Option::is_some)
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Our end of an accepted connection. Dropping it closes the connection.
pub(super) struct Direct(Arc<Conn>);

impl Direct {
    pub(super) fn conn(&self) -> &Arc<Conn> {
        &self.0
    }

    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        let bytes = state.inbound.front(buf.remaining());
        let n = bytes.len();
        if n > 0 || buf.remaining() == 0 {
            buf.put_slice(bytes);
            state.inbound.took(n);
            if state.full && state.inbound.len() <= INBOUND / 2 {
                state.full = false;
                self.0.kick(state);
            }
            return Poll::Ready(Ok(()));
        }
        if state.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if state.ended {
            return Poll::Ready(Ok(()));
        }
        remember(&mut state.reader, cx);
        Poll::Pending
    }

    pub(super) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        if state.broken || state.shut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut room = OUTBOUND.saturating_sub(state.outbound.len());
        let before = room;
        let mut asked = false;
        for buf in bufs {
            asked |= !buf.is_empty();
            let part = buf.get(..room).unwrap_or(buf);
            state.outbound.put(part);
            room -= part.len();
        }
        if asked && before == 0 {
            remember(&mut state.writer, cx);
            return Poll::Pending;
        }
        if before > room {
            self.0.kick(state);
        }
        Poll::Ready(Ok(before - room))
    }

    pub(super) fn shutdown(&self) {
        let mut state = self.0.lock();
        if !state.shut {
            state.shut = true;
            self.0.kick(state);
        }
    }
}

fn remember(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        state.shut = true;
        state.inbound = Buffer::default();
        let waiting = (state.reader.take(), state.writer.take());
        self.0.kick(state);
        drop(waiting);
    }
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Direct").field(&self.0.id).finish()
    }
}

/// Connections that Go has announced and that nobody has taken yet.
static OPENED: LazyLock<Mutex<HashMap<u64, Arc<Conn>>>> = LazyLock::new(Mutex::default);

fn opened() -> MutexGuard<'static, HashMap<u64, Arc<Conn>>> {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Go announces a connection.
pub(super) fn open(id: u64) -> Arc<Conn> {
    let conn = Arc::new(Conn {
        id,
        state: Mutex::default(),
        inline: OnceLock::new(),
    });
    opened().insert(id, Arc::clone(&conn));
    conn
}

/// Takes a connection that was announced, unless it has ended.
pub(super) fn take(id: u64) -> Option<Direct> {
    opened().remove(&id).map(Direct)
}

/// Connections that want a turn, and how Go is woken for them.
pub(super) static KICKS: Kicks = Kicks {
    ids: Mutex::new(Vec::new()),
    wake: OnceLock::new(),
};

pub(super) struct Kicks {
    ids: Mutex<Vec<u64>>,
    wake: OnceLock<OwnedFd>,
}

impl Kicks {
    /// Wakes Go by this descriptor from here on.
    pub(super) fn by(&self, wake: OwnedFd) {
        let _ = self.wake.set(wake);
    }

    fn push(&self, more: &[u64]) {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        // Go takes all: only the first have to wake it.
        let first = ids.is_empty() && !more.is_empty();
        ids.extend_from_slice(more);
        drop(ids);
        if let (true, Some(wake)) = (first, self.wake.get()) {
            // A full pipe is readable, which is all that is wanted.
            let _ = rustix::io::write(wake, &[1]);
        }
    }

    /// Fills `out` with the numbers that wait longest.
    pub(super) fn take(&self, out: &mut [u64]) -> usize {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        let n = ids.len().min(out.len());
        for (out, id) in out.iter_mut().zip(ids.drain(..n)) {
            *out = id;
        }
        n
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        pin::pin,
        sync::atomic::{AtomicU64, AtomicUsize, Ordering},
        task::Wake,
    };

    use tokio::io::AsyncReadExt;

    use super::{super::Stream, *};

    /// A connection as Go announces it, and our end of it.
    pub(in super::super) fn connection() -> (Arc<Conn>, Stream) {
        static IDS: AtomicU64 = AtomicU64::new(1 << 61);
        let conn = open(IDS.fetch_add(1, Ordering::Relaxed));
        let direct = take(conn.id).unwrap();
        (conn, Stream::direct(direct, Arc::new(())))
    }

    /// How often the connection has kicked since it was last asked.
    pub(in super::super) fn kicks(conn: &Conn) -> usize {
        let mut ids = KICKS.ids.lock().unwrap();
        let before = ids.len();
        ids.retain(|id| *id != conn.id);
        before - ids.len()
    }

    fn nothing(conn: &Conn) -> Told {
        conn.turn(b"", End::Open, &mut [])
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn what_comes_in_is_read_and_its_room_is_told() {
        let (conn, mut stream) = connection();
        let told = conn.turn(b"hello", End::Open, &mut []);
        assert_eq!(told.room, INBOUND - 5);
        let mut two = [0; 2];
        stream.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"he");
        // Nobody waits for the room: no kick.
        assert_eq!(kicks(&conn), 0);
        let told = conn.turn(b" again", End::Open, &mut []);
        assert_eq!(told.room, INBOUND - 9);
        let mut rest = [0; 9];
        stream.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"llo again");
        assert_eq!(nothing(&conn).room, INBOUND);

        // A full side is told as such, and kicks when half of it is free.
        assert_eq!(conn.turn(&vec![7; INBOUND], End::Open, &mut []).room, 0);
        let mut most = vec![0; INBOUND / 2 - 1];
        stream.read_exact(&mut most).await.unwrap();
        assert_eq!(kicks(&conn), 0);
        stream.read_exact(&mut two).await.unwrap();
        stream.read_exact(&mut two).await.unwrap();
        assert_eq!(kicks(&conn), 1);
    }

    #[tokio::test]
    async fn what_goes_out_is_bounded_and_one_kick_tells_of_it() {
        let (conn, stream) = connection();
        let mut stream = pin!(stream);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let mut write = |bytes: &[u8]| {
            tokio::io::AsyncWrite::poll_write(stream.as_mut(), &mut cx, bytes).map(Result::unwrap)
        };
        assert_eq!(write(b"abc"), Poll::Ready(3));
        assert_eq!(write(&vec![b'x'; OUTBOUND]), Poll::Ready(OUTBOUND - 3));
        assert_eq!(write(b"more"), Poll::Pending);
        assert_eq!(write(b""), Poll::Ready(0));
        assert_eq!(kicks(&conn), 1);

        // Go may take little at a time, or nothing.
        assert!(nothing(&conn).more);
        assert_eq!(woken.0.load(Ordering::SeqCst), 0);
        let mut two = [0; 2];
        let told = conn.turn(b"", End::Open, &mut two);
        assert_eq!((told.out, told.more, &two), (2, true, b"ab"));
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert_eq!(write(b"more"), Poll::Ready(2));
        let mut all = vec![0; 2 * OUTBOUND];
        let told = conn.turn(b"", End::Open, &mut all);
        assert_eq!((told.out, told.more), (OUTBOUND, false));
        assert_eq!(all.get(OUTBOUND - 2..OUTBOUND), Some(&b"mo"[..]));
        assert_eq!(write(b"next"), Poll::Ready(4));
        assert_eq!(kicks(&conn), 2);
    }

    #[tokio::test]
    async fn an_end_is_an_end_and_a_reset_is_a_reset() {
        let (conn, mut stream) = connection();
        conn.turn(b"question", End::Ended, &mut []);
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"question");
        // Ours is still open.
        assert!(!nothing(&conn).shut);

        let (conn, mut stream) = connection();
        conn.turn(b"last words", End::Open, &mut []);
        conn.turn(b"", End::Broken, &mut []);
        let mut words = [0; 10];
        stream.read_exact(&mut words).await.unwrap();
        assert_eq!(&words, b"last words");
        for _ in 0..2 {
            let error = stream.read(&mut words).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        assert_eq!(stream.read(&mut []).await.unwrap(), 0);
        let error = tokio::io::AsyncWriteExt::write(&mut stream, b"x").await;
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::BrokenPipe);

        // A connection that Go frees before both directions have ended is broken, even if one of
        // them has ended; after both it is over.
        for (shut, end) in [(false, true), (true, false), (true, true)] {
            let (conn, mut stream) = connection();
            if shut {
                tokio::io::AsyncWriteExt::shutdown(&mut stream)
                    .await
                    .unwrap();
            }
            conn.turn(b"", if end { End::Ended } else { End::Open }, &mut []);
            conn.freed();
            let read = stream.read(&mut words).await;
            assert_eq!(read.is_ok(), shut && end, "{shut} {end} {read:?}");
        }
    }

    #[tokio::test]
    async fn a_waiting_reader_and_writer_learn_of_the_reset() {
        let (conn, stream) = connection();
        let (mut from, mut to) = tokio::io::split(stream);
        let reading = tokio::spawn(async move { from.read(&mut [0; 1]).await });
        let writing = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut to, &[0; 2 * OUTBOUND]).await
        });
        while conn.lock().reader.is_none() || conn.lock().writer.is_none() {
            tokio::task::yield_now().await;
        }
        conn.turn(b"", End::Broken, &mut []);
        assert!(reading.await.unwrap().is_err());
        assert!(writing.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_dropped_stream_is_closed_after_its_last_words() {
        let (conn, mut stream) = connection();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"bye")
            .await
            .unwrap();
        conn.turn(b"never read", End::Open, &mut []);
        kicks(&conn);
        drop(stream);
        assert_eq!(kicks(&conn), 1);
        let told = nothing(&conn);
        assert!(told.more && told.closed && told.room == 0);
        let mut out = [0; 8];
        let told = conn.turn(b"", End::Open, &mut out);
        assert_eq!((told.out, &out[..3]), (3, &b"bye"[..]));
        assert!(!told.more && told.shut && told.closed);
        // What comes all the same is not kept.
        conn.turn(b"more", End::Open, &mut []);
        assert_eq!(conn.lock().inbound.len(), 0);
        assert_eq!(Arc::strong_count(&conn), 1);
    }

    #[tokio::test]
    async fn what_is_said_together_kicks_together() {
        let ((one, mut ours), (two, mut others)) = (connection(), connection());
        let held = together(|| {
            say(&mut ours);
            say(&mut others);
            // One in another is no end of it.
            together(|| ());
            (kicks(&one), kicks(&two))
        });
        assert_eq!(held, (0, 0));
        assert_eq!((kicks(&one), kicks(&two)), (1, 1));
        // Also where it panics; and afterwards all is as before.
        nothing(&one);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            together(|| {
                say(&mut ours);
                panic!("on purpose");
            });
        }));
        assert!(panicked.is_err());
        assert_eq!(kicks(&one), 1);
        nothing(&one);
        say(&mut ours);
        assert_eq!(kicks(&one), 1);
    }

    fn say(stream: &mut Stream) {
        let writing = tokio::io::AsyncWriteExt::write_all(stream, b"x");
        futures_util::FutureExt::now_or_never(writing)
            .unwrap()
            .unwrap();
    }

    #[test]
    fn what_is_opened_and_freed_leaves_nothing() {
        let conn = open(1 << 59);
        conn.freed();
        assert!(take(1 << 59).is_none());
        assert_eq!(Arc::strong_count(&conn), 1);
    }
}
