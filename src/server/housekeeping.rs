//! `tailbone server housekeeping`: one pass over the keys, without a node.

use jiff::Timestamp;

use super::{ServerError, runtime};
use crate::{
    config::Settings,
    jwks::life::{Housekeeping, Report},
};

/// Runs the pass, or with `dry_run` reports what it would do. Changes are audited here; the caller
/// prints the report.
///
/// It never makes a first key: without one, no server has been started yet, and a cron job should
/// not create one.
pub fn housekeeping(settings: &Settings, dry_run: bool) -> Result<Report, ServerError> {
    runtime()?.block_on(async {
        let keys = settings.keys.life();
        let report = keys
            .housekeeping(
                Housekeeping {
                    dry_run,
                    first_key: false,
                },
                Timestamp::now(),
            )
            .await?;
        report.audit();
        let local = report.keys.iter().filter(|key| key.state.is_some()).count();
        let remote = report.keys.iter().filter(|key| key.published).count();
        tracing::info!(
            target: "housekeeper",
            place = report.place,
            local_jwks = local,
            remote_jwks = remote,
            changes = report.done.len(),
            "housekeeping done"
        );
        Ok(report)
    })
}

/// Whether the pass did everything that was due, on a document that it could read.
pub fn succeeded(report: &Report) -> bool {
    !report.failed() && report.document_trouble.is_none()
}
