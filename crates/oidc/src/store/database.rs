//! What the store needs of a database. Both databases run the same operations with the same
//! statements; they differ in how a transaction is made durable, and when it is tried again.

use std::{fmt, path::Path};

use futures_util::future::BoxFuture;
use jiff::Timestamp;

use super::{Answer, Digest, GrantId, NoRandom, SessionId, StoreError};

/// A database with our tables.
pub trait Database: fmt::Debug + Send + Sync + 'static {
    fn place(&self) -> &str;

    /// Runs an operation. The database may run it several times; all but the last one are undone.
    fn run<P, T>(&self, kind: Kind, parameters: P, operation: Operation<P, T>) -> Answer<'_, T>
    where
        P: Send + Sync + 'static,
        T: Send + 'static;

    fn back_up<'a>(&'a self, to: &'a Path) -> Answer<'a, ()>;
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Statements that have an effect together, or none, however long they take.
    Bulk,
    /// Statements that change nothing, each for itself.
    Read,
    /// Statements that see the database as of one instant, however long they take.
    Snapshot,
    /// One statement, which changes something.
    Statement,
    /// Statements that have an effect together, or none.
    Transaction,
}

pub(crate) type Operation<P, T> =
    for<'c> fn(&'c mut dyn Connection, &'c P) -> BoxFuture<'c, Result<T, Failure>>;

/// A connection, within a transaction if its operation needs one.
pub trait Connection: Send {
    /// Runs one statement. Its parameters are called `$1`, `$2` and so on.
    fn query<'c>(
        &'c mut self,
        statement: &'c str,
        parameters: &'c [Value<'c>],
    ) -> BoxFuture<'c, Result<Vec<Row>, Failure>>;

    /// Runs several statements without parameters.
    fn batch<'c>(&'c mut self, statements: &'c str) -> BoxFuture<'c, Result<(), Failure>>;
}

/// Why an operation came to no end.
#[derive(Debug)]
pub enum Failure {
    /// Nothing took effect, and another attempt may succeed.
    Again(String),
    Broken(String),
    Dump(String),
    Full,
    NoRandom(NoRandom),
    Refused(&'static str),
    Unavailable(String),
}

impl From<NoRandom> for Failure {
    fn from(error: NoRandom) -> Self {
        Self::NoRandom(error)
    }
}

impl Failure {
    pub(crate) fn at(self, place: &str) -> StoreError {
        let place = place.to_owned();
        match self {
            Self::Again(detail) | Self::Unavailable(detail) => {
                StoreError::Unavailable { place, detail }
            }
            Self::Broken(detail) => StoreError::Broken { place, detail },
            Self::Full => StoreError::Full { place },
            Self::NoRandom(error) => error.into(),
            Self::Dump(detail) => StoreError::Dump { detail },
            Self::Refused(why) => StoreError::Unsupported(why),
        }
    }
}

/// A parameter. A database wants to know the type of an absent one, too.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    Bytes(Option<&'a [u8]>),
    Int(Option<i64>),
    Text(Option<&'a str>),
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Some(text))
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(Some(text))
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(text: Option<&'a str>) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Int(Some(number))
    }
}

impl From<u32> for Value<'_> {
    fn from(number: u32) -> Self {
        Self::Int(Some(number.into()))
    }
}

impl From<Timestamp> for Value<'_> {
    fn from(time: Timestamp) -> Self {
        Self::Int(Some(time.as_millisecond()))
    }
}

impl From<Option<Timestamp>> for Value<'_> {
    fn from(time: Option<Timestamp>) -> Self {
        Self::Int(time.map(Timestamp::as_millisecond))
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(Some(bytes))
    }
}

/// Values that are bytes in the database.
macro_rules! bytes {
    ($($type:ty),*) => {$(
        impl<'a> From<&'a $type> for Value<'a> {
            fn from(value: &'a $type) -> Self {
                Self::Bytes(Some(value.as_bytes()))
            }
        }

        impl<'a> From<&'a Option<$type>> for Value<'a> {
            fn from(value: &'a Option<$type>) -> Self {
                Self::Bytes(value.as_ref().map(<$type>::as_bytes))
            }
        }
    )*};
}

bytes!(Digest, GrantId, SessionId);

/// What a row has in a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cell {
    Bytes(Vec<u8>),
    Int(i64),
    Null,
    Text(String),
}

/// A row whose columns are read from left to right.
#[derive(Debug)]
pub struct Row {
    cells: std::vec::IntoIter<Cell>,
}

impl From<Vec<Cell>> for Row {
    fn from(cells: Vec<Cell>) -> Self {
        Self {
            cells: cells.into_iter(),
        }
    }
}

impl Row {
    pub(crate) fn cell(&mut self) -> Result<Cell, Failure> {
        self.cells
            .next()
            .ok_or_else(|| Failure::Broken("a row has too few columns".to_owned()))
    }

    pub(crate) fn text(&mut self) -> Result<String, Failure> {
        self.opt_text()?.ok_or_else(unexpected)
    }

    pub(crate) fn opt_text(&mut self) -> Result<Option<String>, Failure> {
        match self.cell()? {
            Cell::Text(text) => Ok(Some(text)),
            Cell::Null => Ok(None),
            _ => Err(unexpected()),
        }
    }

    pub(crate) fn int(&mut self) -> Result<i64, Failure> {
        self.opt_int()?.ok_or_else(unexpected)
    }

    pub(crate) fn opt_int(&mut self) -> Result<Option<i64>, Failure> {
        match self.cell()? {
            Cell::Int(number) => Ok(Some(number)),
            Cell::Null => Ok(None),
            _ => Err(unexpected()),
        }
    }

    pub(crate) fn time(&mut self) -> Result<Timestamp, Failure> {
        self.opt_time()?.ok_or_else(unexpected)
    }

    pub(crate) fn opt_time(&mut self) -> Result<Option<Timestamp>, Failure> {
        self.opt_int()?
            .map(|ms| Timestamp::from_millisecond(ms).map_err(|_| unexpected()))
            .transpose()
    }

    pub(crate) fn digest(&mut self) -> Result<Digest, Failure> {
        self.opt_digest()?.ok_or_else(unexpected)
    }

    pub(crate) fn opt_digest(&mut self) -> Result<Option<Digest>, Failure> {
        self.opt_bytes()?
            .map(|bytes| Digest::from_bytes(&bytes).ok_or_else(unexpected))
            .transpose()
    }

    pub(crate) fn grant_id(&mut self) -> Result<GrantId, Failure> {
        let bytes = self.opt_bytes()?.ok_or_else(unexpected)?;
        GrantId::from_bytes(&bytes).ok_or_else(unexpected)
    }

    pub(crate) fn session_id(&mut self) -> Result<SessionId, Failure> {
        self.opt_session_id()?.ok_or_else(unexpected)
    }

    pub(crate) fn opt_session_id(&mut self) -> Result<Option<SessionId>, Failure> {
        self.opt_bytes()?
            .map(|bytes| SessionId::from_bytes(&bytes).ok_or_else(unexpected))
            .transpose()
    }

    pub(crate) fn opt_bytes(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        match self.cell()? {
            Cell::Bytes(bytes) => Ok(Some(bytes)),
            Cell::Null => Ok(None),
            _ => Err(unexpected()),
        }
    }
}

fn unexpected() -> Failure {
    Failure::Broken("a column has a value of an unexpected kind".to_owned())
}
