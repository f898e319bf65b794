//! The timeouts of a connection: one whose peer does not send its request, stays silent between two
//! requests, or does not read its answer is closed.
//!
//! Invariants
//! - While a request is being handled there is no timeout for reading: how long a request may take
//!   is decided in `layers.rs`.
//! - A request's head has one timeout from its first byte on, however slowly the rest arrives. For
//!   the first head it starts with the connection. The silence before a later head has another
//!   timeout.
//! - HTTP/2 connections, and connections that were upgraded to something else, have no read
//!   timeouts here: hyper pings the peers of the former, and the latter belong to whoever took them
//!   over.
//! - An HTTP/2 peer may read from its connection and yet never open the flow-control window of one
//!   answer. A piece of an answer that waits for it has the same timeout as a write
//!   ([`ConnectionRequests::answer_unread`]).

use std::{
    collections::HashMap,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::{Instant, Sleep, sleep, sleep_until},
};

/// The first bytes of an HTTP/2 connection (RFC 9113, section 3.4). hyper pings a peer only after
/// all of them have arrived, so an incomplete preface counts as a head that is arriving.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The timeouts of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    pub(super) header: Duration,
    pub(super) idle: Duration,
    pub(super) write: Duration,
}

/// The requests of one connection, as far as its stream must know about them.
#[derive(Debug)]
pub(super) struct ConnectionRequests {
    /// When the connection began.
    start: Instant,
    started: AtomicU64,
    open: AtomicUsize,
    /// When the last request ended, in milliseconds since `start`.
    ended: AtomicU64,
    upgraded: AtomicBool,
    first: Notify,
    /// The answers over HTTP/2 of which a piece waits for the flow-control window, and since when.
    blocked: Mutex<HashMap<u64, Instant>>,
    answer_blocked: Notify,
}

impl ConnectionRequests {
    pub(super) fn new(start: Instant) -> Arc<Self> {
        Arc::new(Self {
            start,
            started: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            ended: AtomicU64::new(0),
            upgraded: AtomicBool::new(false),
            first: Notify::new(),
            blocked: Mutex::default(),
            answer_blocked: Notify::new(),
        })
    }

    /// Counts one more request, which is open until the body of its answer has ended.
    pub(super) fn begin(self: &Arc<Self>) -> OpenRequest {
        self.open.fetch_add(1, Ordering::AcqRel);
        let number = self.started.fetch_add(1, Ordering::AcqRel);
        if number == 0 {
            self.first.notify_one();
        }
        OpenRequest {
            requests: self.clone(),
            number,
        }
    }

    /// Waits until a piece of an answer has waited for this long to be read.
    pub(super) async fn answer_unread(&self, longest: Duration) {
        loop {
            let oldest = self.blocked.lock().values().min().copied();
            match oldest {
                None => self.answer_blocked.notified().await,
                Some(since) if Instant::now() >= since + longest => return,
                Some(since) => sleep_until(since + longest).await,
            }
        }
    }

    fn end(&self, now: Instant) {
        let ended = now.saturating_duration_since(self.start).as_millis();
        let ended = u64::try_from(ended).unwrap_or(u64::MAX);
        self.ended.store(ended, Ordering::Release);
        self.open.fetch_sub(1, Ordering::AcqRel);
    }

    fn ended(&self) -> Instant {
        self.start + Duration::from_millis(self.ended.load(Ordering::Acquire))
    }

    /// Waits for the first request.
    pub(super) async fn first_request(&self) {
        if self.started.load(Ordering::Acquire) == 0 {
            self.first.notified().await;
        }
    }

    /// The connection was upgraded to another protocol.
    pub(super) fn mark_upgraded(&self) {
        self.upgraded.store(true, Ordering::Release);
    }
}

/// An open request, until dropped.
#[derive(Debug)]
pub(super) struct OpenRequest {
    requests: Arc<ConnectionRequests>,
    number: u64,
}

impl OpenRequest {
    /// A piece of the answer is handed to the connection, which asks for the next one when the
    /// peer's window has had room for this one.
    fn mark_blocked(&self, now: Instant) {
        let mut blocked = self.requests.blocked.lock();
        if blocked.is_empty() {
            self.requests.answer_blocked.notify_one();
        }
        blocked.insert(self.number, now);
    }

    /// No piece of this answer waits to be read.
    fn mark_unblocked(&self) {
        self.requests.blocked.lock().remove(&self.number);
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.mark_unblocked();
        self.requests.end(Instant::now());
    }
}

/// Bytes of an answer that are handed to an HTTP/2 connection at a time. The peer must read this
/// many within the write timeout.
const CHUNK: usize = 16 << 10;

/// The body of an answer; its request stays open until the body ends.
///
/// An HTTP/2 connection takes a piece as soon as the window has room for one byte of it, and asks
/// for the next one when all of it is sent. So over HTTP/2 pieces are small, and the last byte of
/// each frame of the body is a piece of its own. Then a piece after which the connection asks for
/// no other is never larger than the window.
#[derive(Debug)]
pub(super) struct AnswerBody {
    body: Body,
    open: OpenRequest,
    http2: bool,
    rest: Bytes,
}

impl AnswerBody {
    pub(super) fn new(body: Body, open: OpenRequest, http2: bool) -> Self {
        Self {
            body,
            open,
            http2,
            rest: Bytes::new(),
        }
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if this.rest.is_empty() {
            let frame = Pin::new(&mut this.body).poll_frame(cx);
            if !this.http2 {
                return frame;
            }
            match frame {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => this.rest = data,
                    Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Err(frame) => {
                        this.open.mark_unblocked();
                        return Poll::Ready(Some(Ok(frame)));
                    }
                },
                other => {
                    this.open.mark_unblocked();
                    return other;
                }
            }
        }
        let length = match this.rest.len() {
            1 => 1,
            left => (left - 1).min(CHUNK),
        };
        this.open.mark_blocked(Instant::now());
        Poll::Ready(Some(Ok(Frame::data(this.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[derive(Debug)]
pub(super) struct TimedStream<I> {
    io: I,
    timeouts: Timeouts,
    requests: Arc<ConnectionRequests>,
    read_state: ReadState,
    /// Runs while a write or a flush is blocked.
    blocked: Option<Pin<Box<Sleep>>>,
    /// Whether it is a write that is blocked. Then only the progress of a write stops the timer: a
    /// flush of earlier data may succeed meanwhile.
    write_blocked: bool,
}

/// The state of the reading side.
#[derive(Debug)]
struct ReadState {
    protocol: Protocol,
    /// The number of requests that had begun when this wait began.
    started: u64,
    /// True while a head is arriving, or on a new connection; false in the silence between two
    /// requests.
    head: bool,
    deadline: Instant,
    /// Set to the deadline of this wait or of an earlier one: most waits end long before their
    /// deadline, and moving a timer has a cost.
    timer: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadWait {
    Forever,
    /// A request is being handled; check again later.
    RequestOpen,
    Until(Instant),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// The number of preface bytes that have arrived.
    Unknown(usize),
    Http1,
    Http2,
}

impl Protocol {
    fn after(self, bytes: &[u8]) -> Self {
        let Self::Unknown(seen) = self else {
            return self;
        };
        let open = &HTTP2_PREFACE[seen..];
        let length = open.len().min(bytes.len());
        if open[..length] != bytes[..length] {
            Self::Http1
        } else if length == open.len() {
            Self::Http2
        } else {
            Self::Unknown(seen + length)
        }
    }
}

impl ReadState {
    fn new(timeouts: &Timeouts, now: Instant) -> Self {
        Self {
            protocol: Protocol::Unknown(0),
            started: 0,
            head: true,
            deadline: now + timeouts.header,
            timer: None,
        }
    }

    fn received(
        &mut self,
        bytes: &[u8],
        timeouts: &Timeouts,
        requests: &ConnectionRequests,
        now: Instant,
    ) {
        self.protocol = self.protocol.after(bytes);
        let waited = !self.head && requests.started.load(Ordering::Acquire) == self.started;
        if waited && !bytes.is_empty() {
            self.head = true;
            self.deadline = now + timeouts.header;
        }
    }

    /// How long to wait for the peer in the present state.
    fn wait(&mut self, timeouts: &Timeouts, requests: &ConnectionRequests) -> ReadWait {
        if self.protocol == Protocol::Http2 || requests.upgraded.load(Ordering::Acquire) {
            return ReadWait::Forever;
        }
        if requests.open.load(Ordering::Acquire) > 0 {
            return ReadWait::RequestOpen;
        }
        let started = requests.started.load(Ordering::Acquire);
        if started != self.started {
            self.started = started;
            self.head = false;
            self.deadline = requests.ended() + timeouts.idle;
        }
        ReadWait::Until(self.deadline)
    }

    /// Ready when the deadline for reading has passed.
    fn poll_deadline(
        &mut self,
        cx: &mut Context<'_>,
        timeouts: &Timeouts,
        requests: &ConnectionRequests,
    ) -> Poll<io::Error> {
        let deadline = match self.wait(timeouts, requests) {
            ReadWait::Forever => return Poll::Pending,
            // Nothing wakes this task when the request has been answered, since hyper has polled
            // for the next head already. So check again after the idle timeout.
            ReadWait::RequestOpen => Instant::now() + timeouts.idle,
            ReadWait::Until(deadline) => deadline,
        };
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        ready!(timer.as_mut().poll(cx));
        while Instant::now() < deadline {
            timer.as_mut().reset(deadline);
            ready!(timer.as_mut().poll(cx));
        }
        let words = if self.head {
            "the head of a request took too long"
        } else {
            "no further request came"
        };
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, words))
    }
}

impl<I> TimedStream<I> {
    pub(super) fn new(io: I, timeouts: Timeouts, requests: Arc<ConnectionRequests>) -> Self {
        let read_state = ReadState::new(&timeouts, requests.start);
        Self {
            io,
            timeouts,
            requests,
            read_state,
            blocked: None,
            write_blocked: false,
        }
    }

    /// Passes the outcome of a write or flush on, or an error if it has been blocked for too long.
    fn check_blocked<T>(
        &mut self,
        outcome: Poll<io::Result<T>>,
        write: bool,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            if write || !self.write_blocked {
                self.blocked = None;
                self.write_blocked = false;
            }
            return outcome;
        }
        self.write_blocked |= write;
        let time = self.timeouts.write;
        let blocked = self.blocked.get_or_insert_with(|| Box::pin(sleep(time)));
        ready!(blocked.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the peer does not read its answer",
        )))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for TimedStream<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let this = &mut *self;
        match Pin::new(&mut this.io).poll_read(cx, buf) {
            Poll::Pending => this
                .read_state
                .poll_deadline(cx, &this.timeouts, &this.requests)
                .map(Err),
            outcome => {
                let received = buf.filled().get(before..).unwrap_or_default();
                this.read_state
                    .received(received, &this.timeouts, &this.requests, Instant::now());
                outcome
            }
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for TimedStream<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(cx, buf);
        self.check_blocked(outcome, true, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.check_blocked(outcome, true, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_flush(cx);
        self.check_blocked(outcome, false, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_shutdown(cx);
        self.check_blocked(outcome, false, cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const TIMES: Timeouts = Timeouts {
        header: Duration::from_secs(1),
        idle: Duration::from_secs(5),
        write: Duration::from_millis(200),
    };

    #[test]
    fn silence_and_a_slow_head_have_bounds_of_their_own() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let requests = ConnectionRequests::new(start);
        let mut read_state = ReadState::new(&TIMES, start);
        // The first head has one timeout from the start of the connection; further bytes do not
        // extend it.
        for second in 0..3 {
            assert_eq!(read_state.wait(&TIMES, &requests), ReadWait::Until(at(1)));
            read_state.received(b"x", &TIMES, &requests, at(second));
        }
        // No deadline while a request is open; afterwards the idle timeout.
        let open = requests.begin();
        assert_eq!(read_state.wait(&TIMES, &requests), ReadWait::RequestOpen);
        std::mem::forget(open);
        requests.end(at(100));
        for second in 101..103 {
            assert_eq!(read_state.wait(&TIMES, &requests), ReadWait::Until(at(105)));
            // The end of the stream does not begin a head.
            read_state.received(b"", &TIMES, &requests, at(second));
        }
        // The next head has its timeout from its first byte on.
        for second in 104..107 {
            read_state.received(b"G", &TIMES, &requests, at(second));
            assert_eq!(read_state.wait(&TIMES, &requests), ReadWait::Until(at(105)));
        }
        // A request that begins and ends between two checks is followed by the idle timeout too.
        std::mem::forget(requests.begin());
        requests.end(at(200));
        assert_eq!(read_state.wait(&TIMES, &requests), ReadWait::Until(at(205)));
    }

    #[test]
    fn http2_and_upgraded_connections_have_no_read_deadline() {
        let now = Instant::now();
        let requests = ConnectionRequests::new(now);
        let mut read_state = ReadState::new(&TIMES, now);
        read_state.received(b"PR", &TIMES, &requests, now);
        assert!(matches!(
            read_state.wait(&TIMES, &requests),
            ReadWait::Until(_)
        ));
        read_state.received(b"I * HTTP/2.0\r\n\r\nSM\r\n\r\n", &TIMES, &requests, now);
        assert_eq!(read_state.wait(&TIMES, &requests), ReadWait::Forever);

        let mut read_state = ReadState::new(&TIMES, now);
        drop(requests.begin());
        assert!(matches!(
            read_state.wait(&TIMES, &requests),
            ReadWait::Until(_)
        ));
        requests.mark_upgraded();
        assert_eq!(read_state.wait(&TIMES, &requests), ReadWait::Forever);
    }

    #[test]
    fn a_part_of_the_http2_preface_extends_no_deadline() {
        let start = Instant::now();
        for length in 0..HTTP2_PREFACE.len() {
            let requests = ConnectionRequests::new(start);
            let mut read_state = ReadState::new(&TIMES, start);
            for byte in HTTP2_PREFACE[..length].chunks(1) {
                read_state.received(byte, &TIMES, &requests, start + TIMES.header / 2);
            }
            assert_eq!(
                read_state.wait(&TIMES, &requests),
                ReadWait::Until(start + TIMES.header),
                "{length} bytes"
            );
        }
    }

    #[tokio::test]
    async fn a_wait_ends_at_its_deadline_though_an_older_timer_runs() {
        let timeouts = Timeouts {
            header: Duration::from_secs(1),
            idle: Duration::from_millis(50),
            ..TIMES
        };
        let (ours, mut theirs) = tokio::io::duplex(100);
        let requests = ConnectionRequests::new(Instant::now());
        let mut stream = TimedStream::new(ours, timeouts, requests.clone());
        let mut piece = [0; 1];
        let first = tokio::time::timeout(Duration::from_millis(5), stream.read(&mut piece)).await;
        assert!(first.is_err(), "{first:?}");
        drop(requests.begin());
        let began = Instant::now();
        let error = stream.read(&mut piece).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() < timeouts.header, "{:?}", began.elapsed());
        // A deadline later than the timer's is respected as well.
        theirs.write_all(b"G").await.unwrap();
        assert_eq!(stream.read(&mut piece).await.unwrap(), 1);
        let began = Instant::now();
        stream.read(&mut piece).await.unwrap_err();
        assert!(
            began.elapsed() >= timeouts.header - Duration::from_millis(100),
            "{:?}",
            began.elapsed()
        );
    }

    #[test]
    fn the_preface_is_recognized_in_pieces_and_only_when_complete() {
        let unknown = Protocol::Unknown(0);
        let most = &HTTP2_PREFACE[3..HTTP2_PREFACE.len() - 1];
        assert_eq!(
            unknown.after(b"P").after(b"RI").after(most).after(b"\n"),
            Protocol::Http2
        );
        assert_eq!(unknown.after(b"PRI * HTTP/1.1\r\n"), Protocol::Http1);
        assert_eq!(unknown.after(b"POST / HTTP/1.1"), Protocol::Http1);
        assert_eq!(unknown.after(b"PRI").after(b"NT /"), Protocol::Http1);
        assert_eq!(unknown.after(b""), unknown);
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_disconnected_and_a_slow_one_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut stream = TimedStream::new(ours, TIMES, ConnectionRequests::new(Instant::now()));
        let reader = tokio::spawn(async move {
            let mut piece = [0; 16];
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_millis(20)).await;
                theirs.read_exact(&mut piece).await.unwrap();
            }
            theirs
        });
        stream.write_all(&[0; 64]).await.unwrap();
        let _theirs = reader.await.unwrap();
        let stuck = tokio::time::timeout(Duration::from_secs(20), stream.write_all(&[0; 64]));
        let error = stuck.await.expect("let go in time").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
