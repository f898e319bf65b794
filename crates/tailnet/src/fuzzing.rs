//! The parsers of what crosses the fence, for tests/fuzz. Not part of the crate's interface.

use std::os::fd::OwnedFd;

use super::{
    Error, Peer,
    wire::{self, ConnectionMessage},
};

/// The content of a message from a listener or a dial.
#[derive(Debug)]
pub enum Message {
    /// The peer, and whether the connection was known (it is then taken).
    Accepted(Peer, bool),
    Dialled,
    Failure(Error),
}

/// Parses one message, with the descriptor that came along.
pub fn message(bytes: &[u8], descriptor: Option<OwnedFd>) -> Option<Message> {
    Some(match wire::parse(bytes, descriptor).ok()? {
        ConnectionMessage::Accepted { stream, peer } => Message::Accepted(peer, stream.is_some()),
        ConnectionMessage::Dialled { .. } => Message::Dialled,
        ConnectionMessage::Failure(error) => Message::Failure(error),
    })
}
