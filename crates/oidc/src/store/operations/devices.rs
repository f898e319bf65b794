//! Devices that wait for their user.

use futures_util::FutureExt as _;
use jiff::{SignedDuration, Timestamp};

use super::{
    Link, Outcome,
    grants::{State, insert_grant},
};
use crate::store::{Code, DeviceDecision, DevicePoll, DeviceRequest, Digest, database::Failure};

/// A device that is too fast is made slower by this many seconds (RFC 8628, section 3.5).
const SLOWER: u32 = 5;
/// And never slower than this.
const SLOWEST: u32 = 600;

pub(crate) fn start_device<'c>(
    link: Link<'c>,
    (device, now): &'c (DeviceRequest, Timestamp),
) -> Outcome<'c, bool> {
    async move {
        // People type user codes, so they are short and come again.
        link.query(
            "DELETE FROM oidc_devices WHERE user_code = $1 AND expires_at <= $2",
            &[(&device.user_code).into(), (*now).into()],
        )
        .await?;
        let started = link
            .query(
                "INSERT INTO oidc_devices (device_code, user_code, client_id, details, \
                 created_at, expires_at, poll_interval) VALUES ($1, $2, $3, $4, $5, $6, $7) \
                 ON CONFLICT DO NOTHING RETURNING device_code",
                &[
                    (&device.device_code).into(),
                    (&device.user_code).into(),
                    (&device.client_id).into(),
                    (&device.details).into(),
                    device.created_at.into(),
                    device.expires_at.into(),
                    device.interval.into(),
                ],
            )
            .await?;
        Ok(!started.is_empty())
    }
    .boxed()
}

pub(crate) fn device<'c>(
    link: Link<'c>,
    (user_code, now): &'c (Digest, Timestamp),
) -> Outcome<'c, Option<DeviceRequest>> {
    async move {
        let found = link
            .query(
                "SELECT device_code, user_code, client_id, details, created_at, expires_at, \
                 poll_interval FROM oidc_devices \
                 WHERE user_code = $1 AND expires_at > $2 AND approved IS NULL",
                &[user_code.into(), (*now).into()],
            )
            .await?;
        let Some(mut row) = found.into_iter().next() else {
            return Ok(None);
        };
        Ok(Some(DeviceRequest {
            device_code: row.digest()?,
            user_code: row.digest()?,
            client_id: row.text()?,
            details: row.text()?,
            created_at: row.time()?,
            expires_at: row.time()?,
            interval: seconds(row.int()?),
        }))
    }
    .boxed()
}

fn seconds(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(SLOWEST)
}

pub(crate) fn decide_device<'c>(
    link: Link<'c>,
    (user_code, decision, now): &'c (Digest, DeviceDecision, Timestamp),
) -> Outcome<'c, bool> {
    async move {
        let approved = i64::from(matches!(decision, DeviceDecision::Approved(_)));
        let decided = link
            .query(
                "UPDATE oidc_devices SET approved = $3 \
                 WHERE user_code = $1 AND expires_at > $2 AND approved IS NULL \
                 RETURNING device_code, client_id, expires_at",
                &[user_code.into(), (*now).into(), approved.into()],
            )
            .await?;
        let Some(mut row) = decided.into_iter().next() else {
            return Ok(false);
        };
        let (digest, client_id, expires_at) = (row.digest()?, row.text()?, row.time()?);
        if let DeviceDecision::Approved(grant) = decision {
            if grant.client_id != client_id {
                return Err(Failure::Broken(
                    "a device is to be approved for another client".to_owned(),
                ));
            }
            let state = State {
                expires_at,
                code: Some(Code { digest, expires_at }),
                ..State::default()
            };
            insert_grant(link, grant, &state).await?;
        }
        Ok(true)
    }
    .boxed()
}

pub(crate) fn poll_device<'c>(
    link: Link<'c>,
    (device_code, now): &'c (Digest, Timestamp),
) -> Outcome<'c, DevicePoll> {
    async move {
        let found = link
            .query(
                "SELECT poll_interval, polled_at, approved FROM oidc_devices \
                 WHERE device_code = $1 AND expires_at > $2",
                &[device_code.into(), (*now).into()],
            )
            .await?;
        let Some(mut row) = found.into_iter().next() else {
            return Ok(DevicePoll::Unknown);
        };
        let (mut interval, polled_at) = (seconds(row.int()?), row.opt_time()?);
        match row.opt_int()? {
            Some(1) => return Ok(DevicePoll::Approved),
            Some(_) => return Ok(DevicePoll::Denied),
            None => {}
        }
        let early = polled_at.is_some_and(|polled_at| {
            now.duration_since(polled_at) < SignedDuration::from_secs(interval.into())
        });
        if early {
            interval = (interval + SLOWER).min(SLOWEST);
        }
        link.query(
            "UPDATE oidc_devices SET polled_at = $2, poll_interval = $3 WHERE device_code = $1",
            &[device_code.into(), (*now).into(), interval.into()],
        )
        .await?;
        Ok(if early {
            DevicePoll::SlowDown { interval }
        } else {
            DevicePoll::Pending
        })
    }
    .boxed()
}
