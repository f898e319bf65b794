//! Assertions that were used.

use futures_util::FutureExt as _;
use jiff::Timestamp;

use super::{Link, Outcome};
use crate::store::Digest;

pub(crate) fn use_assertion<'c>(
    link: Link<'c>,
    (assertion, expires_at, now): &'c (Digest, Timestamp, Timestamp),
) -> Outcome<'c, bool> {
    async move {
        let first = link
            .query(
                "INSERT INTO oidc_assertions (digest, expires_at) VALUES ($1, $2) \
                 ON CONFLICT (digest) DO UPDATE SET expires_at = excluded.expires_at \
                 WHERE oidc_assertions.expires_at <= $3 RETURNING digest",
                &[assertion.into(), (*expires_at).into(), (*now).into()],
            )
            .await?;
        Ok(!first.is_empty())
    }
    .boxed()
}
