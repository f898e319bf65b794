//! Errors of key operations as the caller sees them. The kind decides the status
//! (`crate::http::error`). The wording is that of the Go program where it had one, since scripts
//! look for it.
//!
//! Callers are trusted with the server, so messages may name files and places of publication.

use std::time::Duration;

use crate::{
    http::{Error, error::Kind},
    jwks::{PublishError, life::LifeError},
    keys::{StoreError, disk::DiskError, remote::Trouble},
};

/// The operation that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyOperation {
    Generate,
    List,
    Remove,
    Rotate,
}

/// When to try again after a temporary failure.
const RETRY_AFTER: Duration = Duration::from_secs(5);

pub(super) fn key_error(operation: KeyOperation, error: &LifeError) -> Error {
    let (kind, code) = kind(error);
    Error::new(kind, code, format!("{}{error}", prefix(operation, error)))
}

/// The published document could not be read for a list.
pub(super) fn list_error(error: PublishError) -> Error {
    key_error(KeyOperation::List, &LifeError::Publish(error))
}

fn kind(error: &LifeError) -> (Kind, &'static str) {
    let unavailable = Kind::Unavailable {
        retry_after: RETRY_AFTER,
    };
    match error {
        LifeError::NotFound(_) => (Kind::NotFound, "key_not_found"),
        LifeError::NotInSet { .. } => (Kind::BadRequest, "bad_key_spec"),
        LifeError::KidTaken(_) => (Kind::Conflict, "key_id_taken"),
        LifeError::Publish(PublishError::Conflict { .. }) => (Kind::Conflict, "jwks_conflict"),
        // It is our permission that is missing and not the caller's, so PermissionDenied would be
        // misleading.
        LifeError::Publish(PublishError::Denied { .. }) => (Kind::Precondition, "jwks_denied"),
        LifeError::Publish(PublishError::NotFound { .. }) => (Kind::Precondition, "jwks_no_place"),
        LifeError::Publish(PublishError::Unreadable { .. }) => {
            (Kind::Precondition, "jwks_unreadable")
        }
        LifeError::Publish(PublishError::Unavailable { .. }) => (unavailable, "jwks_unavailable"),
        LifeError::Remote(error) => match error.trouble {
            Trouble::Away | Trouble::Sealed | Trouble::Slow | Trouble::Throttled => {
                (unavailable, "signer_unavailable")
            }
            Trouble::Disabled | Trouble::Forbidden | Trouble::Mismatch | Trouble::Refused => {
                (Kind::Precondition, "signer_refused")
            }
        },
        LifeError::ReadOnly | LifeError::Store(StoreError::Disk(DiskError::ReadOnly { .. })) => {
            (Kind::Precondition, "keys_read_only")
        }
        LifeError::Store(StoreError::Disk(DiskError::Locked { .. })) => {
            (unavailable, "keys_locked")
        }
        LifeError::Store(StoreError::Disk(DiskError::NoSpace { .. })) => {
            (unavailable, "keys_no_space")
        }
        _ => (Kind::Internal, "internal"),
    }
}

fn prefix(operation: KeyOperation, error: &LifeError) -> &'static str {
    match (operation, error) {
        (KeyOperation::List, _) => "failed to download JWKS: ",
        (KeyOperation::Remove, LifeError::NotFound(_)) => "failed to remove key from JWKS: ",
        (KeyOperation::Remove, LifeError::Publish(_)) => "failed to upload updated JWKS: ",
        (KeyOperation::Remove, _) => "failed to remove key from local storage: ",
        (_, LifeError::Publish(error)) if in_s3(error) => "failed to upload key to S3: ",
        (_, LifeError::Publish(_)) => "failed to upload key: ",
        (KeyOperation::Generate | KeyOperation::Rotate, _) => "failed to save key: ",
    }
}

fn in_s3(error: &PublishError) -> bool {
    match error {
        PublishError::Conflict { place }
        | PublishError::Denied { place, .. }
        | PublishError::NotFound { place, .. }
        | PublishError::Unavailable { place, .. }
        | PublishError::Unreadable { place, .. } => place.starts_with("s3:"),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn status_of(operation: KeyOperation, error: &LifeError) -> (Code, String) {
        let status = key_error(operation, error).grpc();
        (status.code(), status.message().to_owned())
    }

    #[test]
    fn d26_codes_tell_not_found_from_an_outage_and_the_words_are_the_old_ones() {
        let place = || "s3://b/k".to_owned();
        let publish = |error| LifeError::Publish(error);
        let unavailable = || {
            publish(PublishError::Unavailable {
                place: place(),
                detail: "timed out".into(),
            })
        };
        assert_eq!(
            status_of(KeyOperation::Remove, &LifeError::NotFound("tb-1".into())),
            (
                Code::NotFound,
                "failed to remove key from JWKS: key tb-1 not found".into()
            )
        );
        assert_eq!(
            status_of(KeyOperation::Remove, &unavailable()),
            (
                Code::Unavailable,
                "failed to upload updated JWKS: s3://b/k: not reachable: timed out".into()
            )
        );
        assert_eq!(
            status_of(KeyOperation::Generate, &unavailable()),
            (
                Code::Unavailable,
                "failed to upload key to S3: s3://b/k: not reachable: timed out".into()
            )
        );
        assert_eq!(
            status_of(KeyOperation::List, &unavailable()),
            (
                Code::Unavailable,
                "failed to download JWKS: s3://b/k: not reachable: timed out".into()
            )
        );
        let code = |error: PublishError| status_of(KeyOperation::Generate, &publish(error)).0;
        assert_eq!(
            code(PublishError::Conflict { place: place() }),
            Code::Aborted
        );
        assert_eq!(
            code(PublishError::Denied {
                place: place(),
                hint: String::new()
            }),
            Code::FailedPrecondition
        );
        assert_eq!(
            code(PublishError::NotFound {
                place: place(),
                detail: String::new()
            }),
            Code::FailedPrecondition
        );
        assert_eq!(
            status_of(KeyOperation::Generate, &LifeError::ReadOnly).0,
            Code::FailedPrecondition
        );
        assert_eq!(
            status_of(KeyOperation::Rotate, &LifeError::Interrupted("x".into())).0,
            Code::Internal
        );
    }

    #[test]
    fn the_code_for_programs_travels_beside_the_words() {
        let status = key_error(KeyOperation::Remove, &LifeError::NotFound("tb-1".into())).grpc();
        assert_eq!(status.metadata().get("tb-error").unwrap(), "key_not_found");
    }
}
