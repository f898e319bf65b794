//! An accepted connection of the embedded node: two buffers in memory that Go and Rust share.
//! `docs/design/polling-in-place.md` explains it with pictures.
//!
//! Invariants
//! - Go moves bytes in turns ([`SharedBuffer::turn`]). A connection has one turn at a time, and the
//!   memory that Go lends is ours only during the turn.
//! - A state change outside a turn notifies Go (a kick, `kicks.rs`), at most once until the next
//!   turn.
//! - Both buffers are bounded. A full one makes its writer wait.
//! - Bytes that arrived before a reset can still be read; every read after them reports the reset.
//!
//! During a turn the future that serves the connection may be polled on Go's own thread
//! (`poll_in_place.rs`). An answer that is ready at once then leaves with the turn that brought its
//! request, and no other thread is woken.
//!
//! Nothing outside of this module knows of turns and kicks, except `ffi.rs`, through which Go
//! calls, and [`batch_wakeups`].

mod kicks;
mod poll_in_place;

use std::{
    collections::HashMap,
    fmt,
    io::{self, IoSlice},
    sync::{Arc, LazyLock, OnceLock},
    task::{Context, Poll, Waker},
};

use futures_util::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};
use tokio::io::ReadBuf;

use poll_in_place::{InPlaceTask, PolledInPlace};

pub(crate) use kicks::KICKS;
pub use kicks::batch_wakeups;

/// Limit of the bytes received and not yet read.
const MAX_INBOUND: usize = 64 << 10;
/// Limit of the bytes written and not yet sent. Go takes at most this many in a turn.
const MAX_OUTBOUND: usize = 64 << 10;

/// State of the direction from the peer, as Go reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InboundState {
    Open,
    Ended,
    Broken,
}

/// What a turn reports to Go.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TurnResult {
    /// Bytes written into Go's buffer.
    pub(crate) sent: usize,
    /// Bytes that the next turn may bring.
    pub(crate) room: usize,
    /// There are more bytes to send than fitted into Go's buffer.
    pub(crate) more: bool,
    /// We have ended our direction, after the bytes that are still to be sent.
    pub(crate) shutdown: bool,
    /// The stream was dropped: nothing that arrives is read any more.
    pub(crate) closed: bool,
}

/// The buffers and the state that Go and an [`AcceptedStream`] share.
pub(crate) struct SharedBuffer {
    id: u64,
    state: Mutex<State>,
    in_place: OnceLock<Arc<PolledInPlace>>,
}

#[derive(Default)]
struct State {
    inbound: Buffer,
    /// The peer has ended its direction.
    peer_ended: bool,
    /// The connection is reset: neither direction carries bytes any more.
    reset: bool,
    read_waker: Option<Waker>,
    /// The last turn reported no room, so Go waits for a kick before it reads on.
    room_awaited: bool,

    outbound: Buffer,
    /// We have ended our direction.
    write_ended: bool,
    /// The stream was dropped.
    closed: bool,
    write_waker: Option<Waker>,

    /// A turn is in progress. Changes made meanwhile need no kick: the turn reports them when it
    /// ends.
    in_turn: bool,
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

    fn push(&mut self, more: &[u8]) {
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

    fn consume(&mut self, n: usize) {
        self.start += n;
        if self.start >= self.bytes.len() {
            *self = Self::default();
        }
    }
}

impl SharedBuffer {
    /// One turn of Go: `input` was received, `output` is to be filled with bytes to send.
    pub(crate) fn turn(
        &self,
        input: &[u8],
        inbound: InboundState,
        output: &mut [u8],
    ) -> TurnResult {
        let (read_waker, write_waker) = {
            let mut state = self.state.lock();
            state.in_turn = true;
            state.kicked = false;
            if !state.closed {
                state.inbound.push(input);
            }
            state.peer_ended |= inbound == InboundState::Ended;
            state.reset |= inbound == InboundState::Broken;
            let news = !input.is_empty() || inbound != InboundState::Open;
            let read_waker = if news { state.read_waker.take() } else { None };
            let write_waker = if inbound == InboundState::Broken {
                state.write_waker.take()
            } else {
                None
            };
            (read_waker, write_waker)
        };
        // Only after `kicked` is cleared: a task that relied on this turn (`promise_turn`) has
        // marked its future as woken by then.
        let mut guard = self.in_place.get().and_then(|future| future.acquire());
        wake(read_waker);
        wake(write_waker);
        if let Some(guard) = &mut guard {
            guard.run();
        }
        let mut sent = 0;
        loop {
            let mut state = self.state.lock();
            let room = output.get_mut(sent..).unwrap_or_default();
            let bytes = state.outbound.front(room.len());
            let n = bytes.len();
            if let Some(room) = room.get_mut(..n) {
                room.copy_from_slice(bytes);
            }
            state.outbound.consume(n);
            sent += n;
            let write_waker = if n > 0 {
                state.write_waker.take()
            } else {
                None
            };
            if let Some(write_waker) = write_waker {
                drop(state);
                write_waker.wake();
                if let Some(guard) = &mut guard {
                    guard.run();
                }
                continue;
            }
            // Before `in_turn` is cleared: a task that sees no turn in progress must be able to
            // start polling.
            drop(guard);
            state.in_turn = false;
            let room = if state.closed {
                0
            } else {
                MAX_INBOUND.saturating_sub(state.inbound.len())
            };
            state.room_awaited = room == 0;
            return TurnResult {
                sent,
                room,
                more: state.outbound.len() > 0,
                shutdown: state.write_ended,
                closed: state.closed,
            };
        }
    }

    /// Go has released the connection.
    pub(crate) fn freed(&self) {
        ANNOUNCED.lock().remove(&self.id);
        let mut state = self.state.lock();
        state.reset |= !(state.peer_ended && state.write_ended);
        state.freed = true;
        let waiting = [state.read_waker.take(), state.write_waker.take()];
        drop(state);
        waiting.into_iter().for_each(wake);
        if let Some(in_place) = self.in_place.get() {
            in_place.no_more_turns();
        }
    }

    /// Asks for a turn that will poll the future just woken. Returns true only inside
    /// [`batch_wakeups`], if this future is the one polled in turns, and if a turn that has not
    /// begun yet is certain to come. After false the caller wakes the task instead.
    fn promise_turn(&self, in_place: &Arc<PolledInPlace>) -> bool {
        let is_ours = |one| Arc::ptr_eq(one, in_place);
        if !kicks::in_batch() || !self.in_place.get().is_some_and(is_ours) {
            return false;
        }
        let state = self.state.lock();
        if state.in_turn || state.freed {
            return false;
        }
        self.kick(state);
        true
    }

    /// Lets the turns of the connection poll this future.
    fn poll_in_turns(&self, in_place: Arc<PolledInPlace>) {
        // Only the first future of a connection is polled in turns; a second one is polled by tokio
        // alone.
        let _ = self.in_place.set(in_place);
    }

    #[cfg(test)]
    fn in_place(&self) -> Option<&Arc<PolledInPlace>> {
        self.in_place.get()
    }

    fn kick(&self, mut state: MutexGuard<'_, State>) {
        if state.in_turn || state.kicked || state.freed {
            return;
        }
        state.kicked = true;
        drop(state);
        kicks::kick(self.id);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Our end of an accepted connection. Dropping it closes the connection.
pub(crate) struct AcceptedStream(Arc<SharedBuffer>);

impl AcceptedStream {
    /// Wraps the future that serves this stream so that turns may poll it too.
    pub(crate) fn poll_in_place(
        &self,
    ) -> impl FnOnce(BoxFuture<'static, ()>) -> BoxFuture<'static, ()> + Send + use<> {
        let shared = Arc::clone(&self.0);
        move |future| {
            let turns = Arc::downgrade(&shared);
            let promise_turn = move |future: &Arc<PolledInPlace>| {
                turns
                    .upgrade()
                    .is_some_and(|shared| shared.promise_turn(future))
            };
            let task = InPlaceTask::new(future, promise_turn);
            shared.poll_in_turns(task.future());
            Box::pin(task)
        }
    }

    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.0.state.lock();
        let bytes = state.inbound.front(buf.remaining());
        let n = bytes.len();
        if n > 0 || buf.remaining() == 0 {
            buf.put_slice(bytes);
            state.inbound.consume(n);
            if state.room_awaited && state.inbound.len() <= MAX_INBOUND / 2 {
                state.room_awaited = false;
                self.0.kick(state);
            }
            return Poll::Ready(Ok(()));
        }
        if state.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if state.peer_ended {
            return Poll::Ready(Ok(()));
        }
        store_waker(&mut state.read_waker, cx);
        Poll::Pending
    }

    pub(crate) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.state.lock();
        if state.reset || state.write_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut room = MAX_OUTBOUND.saturating_sub(state.outbound.len());
        let before = room;
        let mut asked = false;
        for buf in bufs {
            asked |= !buf.is_empty();
            let part = buf.get(..room).unwrap_or(buf);
            state.outbound.push(part);
            room -= part.len();
        }
        if asked && before == 0 {
            store_waker(&mut state.write_waker, cx);
            return Poll::Pending;
        }
        if before > room {
            self.0.kick(state);
        }
        Poll::Ready(Ok(before - room))
    }

    pub(crate) fn shutdown(&self) {
        let mut state = self.0.state.lock();
        if !state.write_ended {
            state.write_ended = true;
            self.0.kick(state);
        }
    }
}

fn store_waker(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

impl Drop for AcceptedStream {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.closed = true;
        state.write_ended = true;
        state.inbound = Buffer::default();
        let waiting = (state.read_waker.take(), state.write_waker.take());
        self.0.kick(state);
        drop(waiting);
    }
}

impl fmt::Debug for AcceptedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Direct").field(&self.0.id).finish()
    }
}

/// Connections that Go has announced and that nobody has taken yet.
static ANNOUNCED: LazyLock<Mutex<HashMap<u64, Arc<SharedBuffer>>>> = LazyLock::new(Mutex::default);

/// Go announces a connection.
pub(crate) fn open(id: u64) -> Arc<SharedBuffer> {
    let shared = Arc::new(SharedBuffer {
        id,
        state: Mutex::default(),
        in_place: OnceLock::new(),
    });
    ANNOUNCED.lock().insert(id, Arc::clone(&shared));
    shared
}

/// Takes a connection that was announced, unless it has ended.
pub(crate) fn take(id: u64) -> Option<AcceptedStream> {
    ANNOUNCED.lock().remove(&id).map(AcceptedStream)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        pin::pin,
        sync::atomic::{AtomicU64, AtomicUsize, Ordering},
        task::Wake,
    };

    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::Stream;

    /// A connection as Go announces it, and our end of it.
    pub(in super::super) fn connection() -> (Arc<SharedBuffer>, Stream) {
        static IDS: AtomicU64 = AtomicU64::new(1 << 61);
        let shared = open(IDS.fetch_add(1, Ordering::Relaxed));
        let stream = take(shared.id).unwrap();
        (shared, Stream::accepted(stream, Arc::new(())))
    }

    /// How often the connection has kicked since it was last asked.
    pub(in super::super) fn kicks(shared: &SharedBuffer) -> usize {
        let mut ids = KICKS.ids.lock();
        let before = ids.len();
        ids.retain(|id| *id != shared.id);
        before - ids.len()
    }

    fn nothing(shared: &SharedBuffer) -> TurnResult {
        shared.turn(b"", InboundState::Open, &mut [])
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn inbound_data_is_read_and_the_freed_room_reported() {
        let (shared, mut stream) = connection();
        let result = shared.turn(b"hello", InboundState::Open, &mut []);
        assert_eq!(result.room, MAX_INBOUND - 5);
        let mut two = [0; 2];
        stream.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"he");
        // Nobody waits for the room: no kick.
        assert_eq!(kicks(&shared), 0);
        let result = shared.turn(b" again", InboundState::Open, &mut []);
        assert_eq!(result.room, MAX_INBOUND - 9);
        let mut rest = [0; 9];
        stream.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"llo again");
        assert_eq!(nothing(&shared).room, MAX_INBOUND);

        // A full side is result as such, and kicks when half of it is free.
        assert_eq!(
            shared
                .turn(&vec![7; MAX_INBOUND], InboundState::Open, &mut [])
                .room,
            0
        );
        let mut most = vec![0; MAX_INBOUND / 2 - 1];
        stream.read_exact(&mut most).await.unwrap();
        assert_eq!(kicks(&shared), 0);
        stream.read_exact(&mut two).await.unwrap();
        stream.read_exact(&mut two).await.unwrap();
        assert_eq!(kicks(&shared), 1);
    }

    #[tokio::test]
    async fn outbound_data_is_bounded_and_announced_by_one_kick() {
        let (shared, stream) = connection();
        let mut stream = pin!(stream);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let mut write = |bytes: &[u8]| {
            tokio::io::AsyncWrite::poll_write(stream.as_mut(), &mut cx, bytes).map(Result::unwrap)
        };
        assert_eq!(write(b"abc"), Poll::Ready(3));
        assert_eq!(
            write(&vec![b'x'; MAX_OUTBOUND]),
            Poll::Ready(MAX_OUTBOUND - 3)
        );
        assert_eq!(write(b"more"), Poll::Pending);
        assert_eq!(write(b""), Poll::Ready(0));
        assert_eq!(kicks(&shared), 1);

        // Go may take little at a time, or nothing.
        assert!(nothing(&shared).more);
        assert_eq!(woken.0.load(Ordering::SeqCst), 0);
        let mut two = [0; 2];
        let result = shared.turn(b"", InboundState::Open, &mut two);
        assert_eq!((result.sent, result.more, &two), (2, true, b"ab"));
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert_eq!(write(b"more"), Poll::Ready(2));
        let mut all = vec![0; 2 * MAX_OUTBOUND];
        let result = shared.turn(b"", InboundState::Open, &mut all);
        assert_eq!((result.sent, result.more), (MAX_OUTBOUND, false));
        assert_eq!(all.get(MAX_OUTBOUND - 2..MAX_OUTBOUND), Some(&b"mo"[..]));
        assert_eq!(write(b"next"), Poll::Ready(4));
        assert_eq!(kicks(&shared), 2);
    }

    #[tokio::test]
    async fn an_end_is_an_end_and_a_reset_is_a_reset() {
        let (shared, mut stream) = connection();
        shared.turn(b"question", InboundState::Ended, &mut []);
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"question");
        // Ours is still open.
        assert!(!nothing(&shared).shutdown);

        let (shared, mut stream) = connection();
        shared.turn(b"last words", InboundState::Open, &mut []);
        shared.turn(b"", InboundState::Broken, &mut []);
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
            let (shared, mut stream) = connection();
            if shut {
                tokio::io::AsyncWriteExt::shutdown(&mut stream)
                    .await
                    .unwrap();
            }
            shared.turn(
                b"",
                if end {
                    InboundState::Ended
                } else {
                    InboundState::Open
                },
                &mut [],
            );
            shared.freed();
            let read = stream.read(&mut words).await;
            assert_eq!(read.is_ok(), shut && end, "{shut} {end} {read:?}");
        }
    }

    #[tokio::test]
    async fn a_waiting_reader_and_writer_learn_of_the_reset() {
        let (shared, stream) = connection();
        let (mut from, mut to) = tokio::io::split(stream);
        let reading = tokio::spawn(async move { from.read(&mut [0; 1]).await });
        let writing = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut to, &[0; 2 * MAX_OUTBOUND]).await
        });
        while shared.state.lock().read_waker.is_none() || shared.state.lock().write_waker.is_none()
        {
            tokio::task::yield_now().await;
        }
        shared.turn(b"", InboundState::Broken, &mut []);
        assert!(reading.await.unwrap().is_err());
        assert!(writing.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_dropped_stream_is_closed_after_its_outbound_data() {
        let (shared, mut stream) = connection();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"bye")
            .await
            .unwrap();
        shared.turn(b"never read", InboundState::Open, &mut []);
        kicks(&shared);
        drop(stream);
        assert_eq!(kicks(&shared), 1);
        let result = nothing(&shared);
        assert!(result.more && result.closed && result.room == 0);
        let mut out = [0; 8];
        let result = shared.turn(b"", InboundState::Open, &mut out);
        assert_eq!((result.sent, &out[..3]), (3, &b"bye"[..]));
        assert!(!result.more && result.shutdown && result.closed);
        // What comes all the same is not kept.
        shared.turn(b"more", InboundState::Open, &mut []);
        assert_eq!(shared.state.lock().inbound.len(), 0);
        assert_eq!(Arc::strong_count(&shared), 1);
    }

    #[tokio::test]
    async fn writes_in_a_batch_kick_at_its_end() {
        let ((one, mut ours), (two, mut others)) = (connection(), connection());
        let held = batch_wakeups(|| {
            say(&mut ours);
            say(&mut others);
            // One in another is no end of it.
            batch_wakeups(|| ());
            (kicks(&one), kicks(&two))
        });
        assert_eq!(held, (0, 0));
        assert_eq!((kicks(&one), kicks(&two)), (1, 1));
        // Also where it panics; and afterwards all is as before.
        nothing(&one);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            batch_wakeups(|| {
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
    fn an_opened_and_freed_buffer_leaves_nothing() {
        let shared = open(1 << 59);
        shared.freed();
        assert!(take(1 << 59).is_none());
        assert_eq!(Arc::strong_count(&shared), 1);
    }
}
