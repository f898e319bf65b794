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
    future::Future,
    io::{self, IoSlice},
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::{
    direct::Direct,
    inline::{Home, Inline},
};
use futures_util::future::BoxFuture;
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Bytes to and from a peer.
pub struct Stream {
    kind: Kind,
    /// Keeps the node alive.
    _owner: Arc<dyn Any + Send + Sync>,
}

enum Kind {
    /// Accepted by the embedded node.
    Direct(Direct),
    /// Dialled by the embedded node: one end of a socket pair. Go copies between its other end and
    /// the tailnet.
    Pair {
        socket: UnixStream,
        /// We have ended our direction.
        shut: bool,
    },
    /// A connection of the fake node.
    Tcp(Box<Tcp>),
}

struct Tcp {
    socket: TcpStream,
    /// The kernel reports a reset only once, to whichever direction asks first. The other one must
    /// not take the silence that follows for an orderly end.
    broken: bool,
    /// The end of the node. Each direction has its own future, as a different task may poll it.
    reader_ended: Pin<Box<WaitForCancellationFutureOwned>>,
    writer_ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Stream {
    pub(super) fn pair(socket: OwnedFd, owner: Arc<dyn Any + Send + Sync>) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self {
            kind: Kind::Pair {
                socket: UnixStream::from_std(socket)?,
                shut: false,
            },
            _owner: owner,
        })
    }

    pub(super) fn direct(direct: Direct, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            kind: Kind::Direct(direct),
            _owner: owner,
        }
    }

    /// Wraps the future that serves this stream so that Go's turns may poll it too. `None` for a
    /// stream that has no turns.
    pub fn home(
        &self,
    ) -> Option<impl FnOnce(BoxFuture<'static, ()>) -> BoxFuture<'static, ()> + Send + use<>> {
        let Kind::Direct(direct) = &self.kind else {
            return None;
        };
        let conn = Arc::clone(direct.conn());
        Some(move |future| {
            let turns = Arc::downgrade(&conn);
            let promise = move |inline: &Arc<Inline>| {
                turns
                    .upgrade()
                    .is_some_and(|conn| conn.promise_turn(inline))
            };
            let home = Home::new(future, promise);
            conn.serve_inline(home.inline());
            Box::pin(home) as BoxFuture<'static, ()>
        })
    }

    pub(super) fn tcp(
        socket: TcpStream,
        ended: &CancellationToken,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        Ok(Self {
            kind: Kind::Tcp(Box::new(Tcp {
                socket,
                broken: false,
                reader_ended: Box::pin(ended.clone().cancelled_owned()),
                writer_ended: Box::pin(ended.clone().cancelled_owned()),
            })),
            _owner: owner,
        })
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Direct(direct) => direct.poll_read(cx, buf),
            Kind::Pair { socket, shut } => {
                let before = buf.filled().len();
                let room = buf.remaining() > 0;
                ready!(Pin::new(&mut *socket).poll_read(cx, buf))?;
                let end = room && buf.filled().len() == before;
                // An orderly end of the peer closes one direction, and ours is still open. Go
                // signals a broken connection by closing its end of the pair, so the socket is hung
                // up in both directions although we did not shut it down.
                if end && !*shut && hung_up(socket)? {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                Poll::Ready(Ok(()))
            }
            Kind::Tcp(tcp) => {
                if tcp.reader_ended.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                let before = buf.filled().len();
                let room = buf.remaining() > 0;
                let read = ready!(Pin::new(&mut tcp.socket).poll_read(cx, buf));
                tcp.broken |= read.is_err();
                let end = room && read.is_ok() && buf.filled().len() == before;
                if end && tcp.broken {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                Poll::Ready(read)
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Kind::Direct(direct) = &self.kind {
            return direct.poll_write(cx, &[IoSlice::new(buf)]);
        }
        let written = self.kind.writer(cx)?.poll_write(cx, buf);
        self.kind.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Kind::Direct(direct) = &self.kind {
            return direct.poll_write(cx, bufs);
        }
        let written = self.kind.writer(cx)?.poll_write_vectored(cx, bufs);
        self.kind.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // No kind of stream buffers bytes that would need a flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Direct(direct) => {
                direct.shutdown();
                return Poll::Ready(Ok(()));
            }
            Kind::Pair { shut, .. } => *shut = true,
            Kind::Tcp(_) => {}
        }
        let shutdown = ready!(self.kind.writer(cx)?.poll_shutdown(cx));
        // The peer has gone already, so it need not be told.
        Poll::Ready(match shutdown {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            other => other,
        })
    }
}

impl Kind {
    fn writer(&mut self, cx: &mut Context<'_>) -> io::Result<Pin<&mut (dyn AsyncWrite + Unpin)>> {
        match self {
            Self::Direct(_) => Err(io::ErrorKind::Unsupported.into()),
            Self::Pair { socket, .. } => Ok(Pin::new(socket)),
            Self::Tcp(tcp) => {
                if tcp.writer_ended.as_mut().poll(cx).is_ready() {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                Ok(Pin::new(&mut tcp.socket))
            }
        }
    }

    fn note(&mut self, written: &Poll<io::Result<usize>>) {
        if let (Self::Tcp(tcp), Poll::Ready(Err(_))) = (self, written) {
            tcp.broken = true;
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Direct(direct) => f.debug_tuple("Stream").field(direct).finish(),
            Kind::Pair { socket, .. } => f.debug_tuple("Stream").field(socket).finish(),
            Kind::Tcp(tcp) => f.debug_tuple("Stream").field(&tcp.socket).finish(),
        }
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
        (Stream::pair(ours.into(), Arc::new(())).unwrap(), theirs)
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
