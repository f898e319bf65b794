//! Authorization requests that wait for their page.

use futures_util::FutureExt as _;
use jiff::Timestamp;

use super::{Link, Outcome};
use crate::store::{
    Digest, PushedRequest,
    database::{Failure, Row},
};

fn read_pushed_request(mut row: Row) -> Result<PushedRequest, Failure> {
    Ok(PushedRequest {
        reference: row.digest()?,
        client_id: row.text()?,
        parameters: row.text()?,
        expires_at: row.time()?,
    })
}

pub(crate) fn push_request<'c>(link: Link<'c>, request: &'c PushedRequest) -> Outcome<'c, ()> {
    async move {
        link.query(
            "INSERT INTO oidc_pushed_requests (reference, client_id, parameters, expires_at) \
             VALUES ($1, $2, $3, $4)",
            &[
                (&request.reference).into(),
                (&request.client_id).into(),
                (&request.parameters).into(),
                request.expires_at.into(),
            ],
        )
        .await?;
        Ok(())
    }
    .boxed()
}

pub(crate) fn pushed_request<'c>(
    link: Link<'c>,
    (reference, now): &'c (Digest, Timestamp),
) -> Outcome<'c, Option<PushedRequest>> {
    async move {
        let found = link
            .query(
                "SELECT reference, client_id, parameters, expires_at FROM oidc_pushed_requests \
                 WHERE reference = $1 AND expires_at > $2",
                &[reference.into(), (*now).into()],
            )
            .await?;
        found
            .into_iter()
            .next()
            .map(read_pushed_request)
            .transpose()
    }
    .boxed()
}

pub(crate) fn take_pushed_request<'c>(
    link: Link<'c>,
    (reference, now): &'c (Digest, Timestamp),
) -> Outcome<'c, Option<PushedRequest>> {
    async move {
        let taken = link
            .query(
                "DELETE FROM oidc_pushed_requests WHERE reference = $1 AND expires_at > $2 \
                 RETURNING reference, client_id, parameters, expires_at",
                &[reference.into(), (*now).into()],
            )
            .await?;
        taken
            .into_iter()
            .next()
            .map(read_pushed_request)
            .transpose()
    }
    .boxed()
}
