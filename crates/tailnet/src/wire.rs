//! Messages that Go sends on a descriptor: connections with their peers, and texts.
//!
//! Invariants
//! - One message is one `recvmsg`; a connection and the address of its peer come out of the same
//!   call. An accepted connection is a number (`shared_buffer.rs`), a dialled one a descriptor.
//! - Connections that were not taken are closed with their channel.
//! - A message that is cut short, too long, of another version or kind, or with the wrong number of
//!   descriptors is an error. Nothing is guessed, and descriptors that came along are closed.
//! - Interrupted calls are repeated here. The reactor does the waiting; no thread is blocked.
//!
//! The listener or dial that reads the messages decides what a failure means.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    Error, Peer, Via, ffi,
    shared_buffer::{self, AcceptedStream},
};

/// Length in bytes of the fixed part that begins each message.
const HEADER: usize = ffi::HEADER;
const VERSION: u8 = 1;
const ACCEPTED: u8 = 0;
const FUNNEL: u8 = 1;
const DIALLED: u8 = 2;
const FAILURE: u8 = 255;

/// Limit in bytes of the text of a failure.
const MAX_MESSAGE: usize = 4096;

/// Our end of a message socket.
#[derive(Debug)]
pub(super) struct Channel(AsyncFd<OwnedFd>);

/// A connection, or the reason why there is none.
#[derive(Debug)]
pub(super) enum ConnectionMessage {
    /// One end of a socket pair.
    Dialled {
        socket: OwnedFd,
    },
    /// `None`: the connection has ended already.
    Accepted {
        stream: Option<AcceptedStream>,
        peer: Peer,
    },
    Failure(Error),
}

/// The channel broke the contract of the C ABI.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChannelError {
    #[error("a message that is not ours: {0}")]
    Malformed(String),
    #[error("receiving from the node: {0}")]
    Io(#[from] io::Error),
    /// The kernel dropped the connection that the message carried.
    #[error("a connection was lost: this process has no free descriptor")]
    Lost,
}

impl From<ChannelError> for Error {
    fn from(broken: ChannelError) -> Self {
        match broken {
            ChannelError::Malformed(_) => Self::Internal(broken.to_string()),
            ChannelError::Io(_) | ChannelError::Lost => Self::Io(broken.to_string()),
        }
    }
}

impl Channel {
    pub(super) fn new(fd: OwnedFd) -> Result<Self, Error> {
        rustix::io::ioctl_fionbio(&fd, true).map_err(io::Error::from)?;
        Ok(Self(ffi::readable(fd)?))
    }

    /// The next connection; `None` when the other side has closed the channel.
    pub(super) async fn connection(&self) -> Result<Option<ConnectionMessage>, ChannelError> {
        self.0
            .async_io(Interest::READABLE, |fd| match receive_connection(fd) {
                // `async_io` waits for the next message only on an `io::Error`, so this one must
                // stay one.
                Err(ChannelError::Io(error)) => Err(error),
                other => Ok(other),
            })
            .await?
    }

    /// Shuts down our direction, on which nothing is ever sent. Go takes that for "accept no more".
    /// False if that failed.
    pub(super) fn refuse_new(&self) -> bool {
        rustix::net::shutdown(self.0.get_ref(), rustix::net::Shutdown::Write).is_ok()
    }

    /// Receives the next text and returns its length in `text`; `None` when the other side has
    /// closed the channel.
    pub(super) async fn text(&self, text: &mut [u8]) -> Result<Option<usize>, ChannelError> {
        let (length, flags) = self
            .0
            .async_io(Interest::READABLE, |fd| {
                let message = retry_interrupted(|| {
                    recvmsg(
                        fd,
                        &mut [IoSliceMut::new(text)],
                        &mut RecvAncillaryBuffer::default(),
                        RecvFlags::CMSG_CLOEXEC,
                    )
                })?;
                Ok((message.bytes, message.flags))
            })
            .await?;
        if flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(ChannelError::Malformed(format!(
                "longer than {} bytes, or not a text",
                text.len()
            )));
        }
        Ok((length > 0).then_some(length))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // Closes connections that arrived and were not taken. The kernel closes a descriptor
        // together with the socket it waits in, but a number must be given back. After the shutdown
        // no message arrives, so none is missed.
        let _ = rustix::net::shutdown(self.0.get_ref(), rustix::net::Shutdown::Read);
        while let Ok(Some(_)) = receive_connection(self.0.get_ref()) {}
    }
}

fn receive_connection(fd: &OwnedFd) -> Result<Option<ConnectionMessage>, ChannelError> {
    let mut bytes = [0; HEADER + MAX_MESSAGE];
    // Room for more descriptors than the one expected, so that a second one is noticed. The kernel
    // would drop it silently.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = retry_interrupted(|| {
        recvmsg(
            fd,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let mut sockets: Vec<OwnedFd> = control
        .drain()
        .filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();

    if message.flags.contains(ReturnFlags::CTRUNC) && sockets.is_empty() {
        return Err(ChannelError::Lost);
    }
    if message
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(ChannelError::Malformed(format!(
            "cut after {} bytes",
            message.bytes
        )));
    }
    let Some(message) = bytes.get(..message.bytes) else {
        return Err(ChannelError::Malformed("longer than its buffer".into()));
    };
    if message.is_empty() {
        return Ok(None);
    }
    let socket = match (sockets.len(), sockets.pop()) {
        (1, socket) => socket,
        (0, _) => None,
        (more, _) => return Err(ChannelError::Malformed(format!("{more} descriptors"))),
    };
    parse(message, socket).map(Some)
}

/// Parses a whole message.
pub(super) fn parse(
    message: &[u8],
    socket: Option<OwnedFd>,
) -> Result<ConnectionMessage, ChannelError> {
    let Some((header, rest)) = message.split_first_chunk::<HEADER>() else {
        return Err(ChannelError::Malformed(format!(
            "{} bytes are no head",
            message.len()
        )));
    };
    let [
        version,
        kind,
        code0,
        code1,
        peer0,
        peer1,
        local0,
        local1,
        addrs @ ..,
    ] = *header;
    if version != VERSION {
        return Err(ChannelError::Malformed(format!("version {version}")));
    }
    let via = match kind {
        DIALLED => {
            return match (socket, rest.is_empty()) {
                (Some(socket), true) => Ok(ConnectionMessage::Dialled { socket }),
                _ => Err(ChannelError::Malformed(format!(
                    "a connection of {} bytes, or without its descriptor",
                    message.len()
                ))),
            };
        }
        ACCEPTED => Via::Tailnet,
        FUNNEL => Via::Funnel,
        FAILURE => {
            let code = u16::from_ne_bytes([code0, code1]);
            return match socket {
                Some(_) => Err(ChannelError::Malformed(
                    "a failure with a descriptor".into(),
                )),
                None => Ok(ConnectionMessage::Failure(ffi::error(code.into(), rest))),
            };
        }
        other => return Err(ChannelError::Malformed(format!("kind {other}"))),
    };
    let (None, Ok(id)) = (socket, rest.try_into()) else {
        return Err(ChannelError::Malformed(format!(
            "a connection of {} bytes, or with a descriptor",
            message.len()
        )));
    };
    let (peer, local) = addrs.split_at(16);
    Ok(ConnectionMessage::Accepted {
        stream: shared_buffer::take(u64::from_ne_bytes(id)),
        peer: Peer {
            addr: address(peer, [peer0, peer1])?,
            local: address(local, [local0, local1])?,
            via,
        },
    })
}

/// The address is IPv6, or IPv4 as `::ffff:a.b.c.d`; the port is in host byte order.
fn address(ip: &[u8], port: [u8; 2]) -> Result<SocketAddr, ChannelError> {
    let ip: [u8; 16] = ip
        .try_into()
        .map_err(|_| ChannelError::Malformed("an address of another length".into()))?;
    Ok(SocketAddr::new(
        IpAddr::V6(Ipv6Addr::from(ip)).to_canonical(),
        u16::from_ne_bytes(port),
    ))
}

/// Repeats a call that a signal interrupted.
fn retry_interrupted<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::IoSlice, os::fd::AsFd};

    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
        SocketType, sendmsg, socketpair,
    };

    use super::*;

    fn pair() -> (Channel, OwnedFd) {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        (Channel::new(ours).unwrap(), theirs)
    }

    fn send(to: &OwnedFd, bytes: &[u8], fds: &[&OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        sendmsg(to, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    }

    fn header(kind: u8) -> Vec<u8> {
        let mut header = vec![VERSION, kind];
        for short in [6u16, 1234, 80] {
            header.extend(short.to_ne_bytes());
        }
        for ip in ["::ffff:100.64.0.7", "fd7a:115c:a1e0::9"] {
            header.extend(ip.parse::<Ipv6Addr>().unwrap().octets());
        }
        assert_eq!(header.len(), HEADER);
        header
    }

    fn any_fd() -> OwnedFd {
        rustix::pipe::pipe().unwrap().0
    }

    /// A number that Go does not announce in these tests.
    const ID: u64 = 1 << 60;

    fn accepted(kind: u8, id: u64) -> Vec<u8> {
        [header(kind), id.to_ne_bytes().to_vec()].concat()
    }

    #[tokio::test]
    async fn a_connection_comes_with_its_peer() {
        let (channel, theirs) = pair();
        let _conns = [shared_buffer::open(ID), shared_buffer::open(ID + 1)];
        send(&theirs, &accepted(ACCEPTED, ID), &[]);
        send(&theirs, &accepted(FUNNEL, ID + 1), &[]);
        let Some(ConnectionMessage::Accepted { stream, peer }) =
            channel.connection().await.unwrap()
        else {
            panic!()
        };
        assert!(stream.is_some());
        assert_eq!(peer.addr, "100.64.0.7:1234".parse().unwrap());
        assert_eq!(peer.local, "[fd7a:115c:a1e0::9]:80".parse().unwrap());
        assert_eq!(peer.via, Via::Tailnet);
        let Some(ConnectionMessage::Accepted { stream, peer }) =
            channel.connection().await.unwrap()
        else {
            panic!()
        };
        assert!(stream.is_some());
        assert_eq!(peer.via, Via::Funnel);
        // A connection that was taken already, or has ended meanwhile.
        send(&theirs, &accepted(ACCEPTED, ID), &[]);
        let Some(ConnectionMessage::Accepted { stream, .. }) = channel.connection().await.unwrap()
        else {
            panic!()
        };
        assert!(stream.is_none());
        drop(theirs);
        assert!(channel.connection().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_dialled_connection_is_a_descriptor_that_no_child_gets() {
        let (channel, theirs) = pair();
        send(&theirs, &header(DIALLED), &[&any_fd()]);
        let Some(ConnectionMessage::Dialled { socket }) = channel.connection().await.unwrap()
        else {
            panic!()
        };
        let flags = rustix::io::fcntl_getfd(&socket).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[tokio::test]
    async fn connections_left_in_a_channel_are_closed_with_it() {
        let (channel, theirs) = pair();
        let conns = [shared_buffer::open(ID + 2), shared_buffer::open(ID + 3)];
        send(&theirs, &accepted(ACCEPTED, ID + 2), &[]);
        send(&theirs, &accepted(ACCEPTED, ID + 3), &[]);
        drop(channel);
        for conn in conns {
            assert!(
                conn.turn(b"", shared_buffer::InboundState::Open, &mut [])
                    .closed
            );
        }
    }

    #[tokio::test]
    async fn a_failure_comes_with_its_words() {
        let (channel, theirs) = pair();
        let mut message = header(FAILURE);
        message[2..4].copy_from_slice(&8u16.to_ne_bytes());
        message.extend(b"nobody listens there");
        send(&theirs, &message, &[]);
        let Some(ConnectionMessage::Failure(Error::Refused(rest))) =
            channel.connection().await.unwrap()
        else {
            panic!()
        };
        assert_eq!(rest, "nobody listens there");
    }

    #[tokio::test]
    async fn malformed_messages_are_errors_and_leak_no_descriptor() {
        let other_version = {
            let mut header = header(ACCEPTED);
            header[0] = 2;
            header
        };
        let too_long = [accepted(ACCEPTED, ID), vec![0]].concat();
        let way_too_long = [header(FAILURE), vec![0; MAX_MESSAGE + 1]].concat();
        let (fd, gone) = rustix::pipe::pipe().unwrap();
        let cases: Vec<(&str, Vec<u8>, Vec<&OwnedFd>)> = vec![
            ("short", header(DIALLED)[..39].to_vec(), vec![&fd]),
            ("version", other_version, vec![&fd]),
            ("kind", header(77), vec![&fd]),
            ("no descriptor", header(DIALLED), vec![]),
            ("two descriptors", header(DIALLED), vec![&fd, &fd]),
            ("six descriptors", header(DIALLED), vec![&fd; 6]),
            ("no number", header(ACCEPTED), vec![]),
            (
                "accepted with descriptor",
                accepted(ACCEPTED, ID),
                vec![&fd],
            ),
            ("trailing byte", too_long, vec![]),
            ("failure with descriptor", header(FAILURE), vec![&fd]),
            ("cut", way_too_long, vec![]),
        ];
        for (name, bytes, fds) in cases {
            let (channel, theirs) = pair();
            send(&theirs, &bytes, &fds);
            let outcome = channel.connection().await;
            assert!(
                matches!(outcome, Err(ChannelError::Malformed(_))),
                "{name}: {outcome:?}"
            );
        }
        // `fd` is the only reading end if nothing above leaked one. Dropping it must then close the
        // pipe.
        drop(fd);
        let written = rustix::io::write(&gone, b"x");
        assert_eq!(written, Err(rustix::io::Errno::PIPE));
    }

    #[tokio::test]
    async fn a_text_is_whole_or_an_error() {
        let (channel, theirs) = pair();
        let mut text = [0; 8];
        send(&theirs, b"12345678", &[]);
        assert_eq!(channel.text(&mut text).await.unwrap(), Some(8));
        send(&theirs, b"123456789", &[]);
        assert!(matches!(
            channel.text(&mut text).await,
            Err(ChannelError::Malformed(_))
        ));
        send(&theirs, b"1", &[&any_fd()]);
        assert!(matches!(
            channel.text(&mut text).await,
            Err(ChannelError::Malformed(_))
        ));
        drop(theirs);
        assert_eq!(channel.text(&mut text).await.unwrap(), None);
    }

    proptest::proptest! {
        #[test]
        fn the_parser_never_panics(bytes: Vec<u8>, with_fd: bool) {
            let outcome = parse(&bytes, with_fd.then(any_fd));
            if bytes.len() < HEADER {
                proptest::prop_assert!(outcome.is_err());
            }
        }
    }
}
