//! The API's socket, for clients of every language.
//!
//! gRPC's C core, and so its clients for Python, C++, Ruby and PHP, names the socket's path as the
//! host of a request (`:authority: run%2Fspiffe%2Fapi.sock`). That is no host name, and HTTP/2 here
//! resets the stream (<https://github.com/hyperium/tonic/issues/742>). Programs can set another
//! (`grpc.default_authority`), but libraries of SPIFFE do not. So the percent signs of this one
//! text are replaced on their way in, which changes no length.
//!
//! Invariants: only fields of a request's head are looked at, no body; a byte changes only behind
//! the name `:authority`, the right length and the start of the socket's own path.

use std::{
    io,
    path::Path,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};

use crate::http::{
    serve::Accept,
    unix::{BindError, LocalPeer, UnixSocket},
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

/// A socket whose path may be the host of requests.
#[derive(Debug)]
pub struct ApiSocket {
    socket: UnixSocket,
    patterns: [Vec<u8>; 2],
}

impl ApiSocket {
    /// Listens at `path`. Needs a tokio runtime.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, BindError> {
        Ok(Self {
            socket: UnixSocket::bind(path, mode)?,
            patterns: patterns(path),
        })
    }
}

impl Accept for ApiSocket {
    type Io = ApiStream;
    type Addr = LocalPeer;

    async fn accept(&mut self) -> io::Result<(ApiStream, LocalPeer)> {
        let (inner, peer) = self.socket.accept().await?;
        let filter = Filter::new(&self.patterns);
        Ok((ApiStream { inner, filter }, peer))
    }
}

/// A connection of the socket.
#[derive(Debug)]
pub struct ApiStream {
    inner: UnixStream,
    filter: Filter,
}

impl AsyncRead for ApiStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.filter.pass(&mut buf.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ApiStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// The field as a request may write it (RFC 7541, 6.2): with its name, or with the name's number in
/// the static table.
fn patterns(path: &Path) -> [Vec<u8>; 2] {
    let path = path.to_string_lossy();
    let mut host = String::new();
    for byte in path.trim_start_matches('/').bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            host.push(char::from(byte));
        } else {
            host.push_str(&format!("%{byte:02X}"));
        }
    }
    let mut value = length(host.len());
    value.extend(host.bytes());
    [
        [b"\x0a:authority", value.as_slice()].concat(),
        [b"\x41", value.as_slice()].concat(),
    ]
}

/// The length of a text that is not compressed (RFC 7541, 5.1).
fn length(length: usize) -> Vec<u8> {
    const MOST: usize = 127;
    if length < MOST {
        return vec![low_byte(length)];
    }
    let (mut bytes, mut rest) = (vec![low_byte(MOST)], length - MOST);
    while rest >= 128 {
        bytes.push(low_byte(rest % 128 + 128));
        rest /= 128;
    }
    bytes.push(low_byte(rest));
    bytes
}

fn low_byte(number: usize) -> u8 {
    number.to_le_bytes()[0]
}

/// Where the bytes of a connection are, and how much of each pattern they have matched.
#[derive(Debug)]
struct Filter {
    state: State,
    matchers: [Matcher; 2],
}

#[derive(Debug, Clone, Copy)]
enum State {
    Preface(usize),
    Head([u8; FRAME_HEAD], usize),
    Payload {
        fields: bool,
        left: usize,
    },
    /// Not HTTP/2.
    Off,
}

impl Filter {
    fn new(patterns: &[Vec<u8>; 2]) -> Self {
        Self {
            state: State::Preface(0),
            matchers: patterns.clone().map(|pattern| Matcher {
                pattern,
                matched: 0,
            }),
        }
    }

    fn pass(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.state = match self.state {
                State::Off => return,
                State::Preface(seen) if PREFACE[seen] != *byte => State::Off,
                State::Preface(seen) if seen + 1 == PREFACE.len() => State::Head([0; 9], 0),
                State::Preface(seen) => State::Preface(seen + 1),
                State::Head(mut head, seen) => {
                    head[seen] = *byte;
                    if seen + 1 < FRAME_HEAD {
                        State::Head(head, seen + 1)
                    } else {
                        self.begin(head)
                    }
                }
                State::Payload { fields, left } => {
                    if fields
                        && self
                            .matchers
                            .each_mut()
                            .map(|one| one.take(*byte))
                            .contains(&true)
                    {
                        *byte = b'-';
                    }
                    after(fields, left - 1)
                }
            };
        }
    }

    fn begin(&mut self, head: [u8; FRAME_HEAD]) -> State {
        let left = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let kind = head[3];
        if kind != CONTINUATION {
            for matcher in &mut self.matchers {
                matcher.matched = 0;
            }
        }
        let fields = kind == HEADERS || kind == CONTINUATION;
        after(fields, usize::try_from(left).unwrap_or(usize::MAX))
    }
}

fn after(fields: bool, left: usize) -> State {
    if left == 0 {
        State::Head([0; FRAME_HEAD], 0)
    } else {
        State::Payload { fields, left }
    }
}

#[derive(Debug)]
struct Matcher {
    pattern: Vec<u8>,
    matched: usize,
}

impl Matcher {
    /// Whether the byte is a percent sign of the pattern. The first byte of a pattern comes in it
    /// once, so a match that fails can only begin again at this byte.
    fn take(&mut self, byte: u8) -> bool {
        if self.pattern[self.matched] != byte {
            self.matched = 0;
        }
        if self.pattern[self.matched] != byte {
            return false;
        }
        self.matched = (self.matched + 1) % self.pattern.len();
        byte == b'%'
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, 4, 0, 0, 0, 1]].concat();
        [head.as_slice(), payload].concat()
    }

    /// As gRPC for Python 1.85 sends it for `unix:/tmp/cl/au.sock`.
    const FIELDS: &[u8] = b"@\x05:path\x04/a/b@\x0a:authority\x12tmp%2Fcl%2Fau.sock\x83\x86";
    const CHANGED: &[u8] = b"@\x05:path\x04/a/b@\x0a:authority\x12tmp-2Fcl-2Fau.sock\x83\x86";

    fn pass(bytes: &[u8], step: usize) -> Vec<u8> {
        let mut filter = Filter::new(&patterns(Path::new("/tmp/cl/au.sock")));
        let mut bytes = bytes.to_vec();
        for part in bytes.chunks_mut(step) {
            filter.pass(part);
        }
        bytes
    }

    #[test]
    fn the_path_of_the_socket_becomes_a_host_name_in_heads_alone() {
        let settings = frame(4, &[0; 12]);
        let body = frame(0, FIELDS);
        let number = b"\x83\x41\x12tmp%2Fcl%2Fau.sock";
        let sent = [
            PREFACE,
            &settings,
            &frame(HEADERS, FIELDS),
            &body,
            &frame(HEADERS, number),
        ]
        .concat();
        let wanted = [
            PREFACE,
            &settings,
            &frame(HEADERS, CHANGED),
            &body,
            &frame(HEADERS, b"\x83\x41\x12tmp-2Fcl-2Fau.sock"),
        ]
        .concat();
        for step in [1, 2, 7, 1000] {
            assert_eq!(pass(&sent, step), wanted, "{step}");
        }
    }

    #[test]
    fn other_hosts_and_protocols_stay() {
        for other in [
            b"@\x0a:authority\x12tmp%2Fcl%2Fax.soc".as_slice(),
            b"@\x0a:authority\x13tmp%2Fcl%2Fau.sockx",
            b"@\x08x-custom\x12tmp%2Fcl%2Fau.sock",
        ] {
            let sent = [PREFACE, &frame(HEADERS, other)].concat();
            let passed = pass(&sent, 5);
            // What begins as our path may change, but only up to where it differs.
            let same = passed.iter().zip(&sent).filter(|(one, two)| one == two);
            assert!(same.count() >= sent.len() - 2, "{other:?}");
        }
        let http1 = b"GET /?@\x0a:authority\x12tmp%2Fcl%2Fau.sock HTTP/1.1\r\n";
        assert_eq!(pass(http1, 3), http1);
    }

    #[test]
    fn long_lengths_are_written_as_hpack_has_them() {
        assert_eq!(length(10), [10]);
        assert_eq!(length(127), [127, 0]);
        assert_eq!(length(1337 + 96), [127, 154, 10]);
    }
}
