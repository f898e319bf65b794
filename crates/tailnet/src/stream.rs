//! One connection over the tailnet.
//!
//! Invariants
//! - Half close works both ways: `shutdown` ends our direction only, and reading goes on until the
//!   peer ends its own.
//! - A reset by the peer is an error ([`io::ErrorKind::ConnectionReset`]), never mistaken for an
//!   orderly end.
//! - The node lives at least as long as its streams, unless it is closed: then they end.

use std::{
    any::Any,
    fmt,
    io::{self, IoSlice},
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::future::BoxFuture;
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};

#[cfg(any(test, feature = "test-util"))]
use super::fake::FakeStream;
use super::shared_buffer::AcceptedStream;

/// Bytes to and from a peer.
pub struct Stream {
    kind: Kind,
    /// Keeps the node alive.
    _owner: Arc<dyn Any + Send + Sync>,
}

#[derive(Debug)]
enum Kind {
    /// Accepted by the embedded node.
    Accepted(AcceptedStream),
    /// Dialled by the embedded node.
    Dialled(DialledStream),
    #[cfg(any(test, feature = "test-util"))]
    Fake(Box<FakeStream>),
}

/// One end of a socket pair. Go copies between its other end and the tailnet.
#[derive(Debug)]
struct DialledStream {
    socket: UnixStream,
    /// We have ended our direction.
    write_ended: bool,
}

impl Stream {
    pub(super) fn accepted(stream: AcceptedStream, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            kind: Kind::Accepted(stream),
            _owner: owner,
        }
    }

    pub(super) fn dialled(socket: OwnedFd, owner: Arc<dyn Any + Send + Sync>) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self {
            kind: Kind::Dialled(DialledStream {
                socket: UnixStream::from_std(socket)?,
                write_ended: false,
            }),
            _owner: owner,
        })
    }

    #[cfg(any(test, feature = "test-util"))]
    pub(super) fn fake(stream: FakeStream, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            kind: Kind::Fake(Box::new(stream)),
            _owner: owner,
        }
    }

    /// Wraps the future that serves this stream so that Go's thread may poll it too. `None` for a
    /// stream whose bytes do not come in Go's turns.
    pub fn poll_in_place(
        &self,
    ) -> Option<impl FnOnce(BoxFuture<'static, ()>) -> BoxFuture<'static, ()> + Send + use<>> {
        match &self.kind {
            Kind::Accepted(stream) => Some(stream.poll_in_place()),
            _ => None,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Accepted(stream) => stream.poll_read(cx, buf),
            Kind::Dialled(stream) => stream.poll_read(cx, buf),
            #[cfg(any(test, feature = "test-util"))]
            Kind::Fake(stream) => Pin::new(&mut **stream).poll_read(cx, buf),
        }
    }
}

impl DialledStream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let room = buf.remaining() > 0;
        ready!(Pin::new(&mut self.socket).poll_read(cx, buf))?;
        let end = room && buf.filled().len() == before;
        // An orderly end of the peer closes one direction, and ours is still open. Go signals a
        // broken connection by closing its end of the pair, so the socket is hung up in both
        // directions although we did not shut it down.
        if end && !self.write_ended && hung_up(&self.socket)? {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.kind {
            Kind::Accepted(stream) => stream.poll_write(cx, &[IoSlice::new(buf)]),
            Kind::Dialled(stream) => Pin::new(&mut stream.socket).poll_write(cx, buf),
            #[cfg(any(test, feature = "test-util"))]
            Kind::Fake(stream) => Pin::new(&mut **stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.kind {
            Kind::Accepted(stream) => stream.poll_write(cx, bufs),
            Kind::Dialled(stream) => Pin::new(&mut stream.socket).poll_write_vectored(cx, bufs),
            #[cfg(any(test, feature = "test-util"))]
            Kind::Fake(stream) => Pin::new(&mut **stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // No kind of stream buffers bytes that would need a flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shutdown = match &mut self.kind {
            Kind::Accepted(stream) => {
                stream.shutdown();
                return Poll::Ready(Ok(()));
            }
            Kind::Dialled(stream) => {
                stream.write_ended = true;
                Pin::new(&mut stream.socket).poll_shutdown(cx)
            }
            #[cfg(any(test, feature = "test-util"))]
            Kind::Fake(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
        };
        // The peer has gone already, so it need not be told.
        Poll::Ready(match ready!(shutdown) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            other => other,
        })
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stream").field(&self.kind).finish()
    }
}

/// Whether both directions of the socket are closed.
fn hung_up(socket: impl AsFd) -> io::Result<bool> {
    let at_once = Timespec::default();
    let mut fds = [PollFd::new(&socket, PollFlags::empty())];
    loop {
        match rustix::event::poll(&mut fds, Some(&at_once)) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let [fd] = fds;
    Ok(fd.revents().contains(PollFlags::HUP))
}

#[cfg(test)]
mod tests {
    use std::{net::Shutdown, os::unix::net::UnixStream as Other};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (Stream, Other) {
        let (ours, theirs) = Other::pair().unwrap();
        (Stream::dialled(ours.into(), Arc::new(())).unwrap(), theirs)
    }

    #[tokio::test]
    async fn a_peer_that_ends_its_direction_is_a_clean_end() {
        let (mut stream, theirs) = pair();
        theirs.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        // Our direction still works.
        stream.write_all(b"still here").await.unwrap();
        stream.shutdown().await.unwrap();
        let told = std::io::read_to_string(&theirs).unwrap();
        assert_eq!(told, "still here");
    }

    #[tokio::test]
    async fn a_socket_that_closes_both_ways_is_a_reset() {
        let (mut stream, mut theirs) = pair();
        std::io::Write::write_all(&mut theirs, b"last words").unwrap();
        drop(theirs);
        let mut told = [0; 10];
        stream.read_exact(&mut told).await.unwrap();
        assert_eq!(&told, b"last words");
        for _ in 0..2 {
            let error = stream.read(&mut told).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        // A read of zero bytes does not report the end.
        assert_eq!(stream.read(&mut []).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn after_our_own_end_a_closed_socket_is_a_clean_end() {
        let (mut stream, theirs) = pair();
        stream.shutdown().await.unwrap();
        drop(theirs);
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        stream.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn writing_to_a_closed_socket_is_an_error() {
        let (mut stream, theirs) = pair();
        drop(theirs);
        let error = stream.write(b"x").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
