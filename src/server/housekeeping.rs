//! The keys without a server: which there are by the settings, and `tailbone server housekeeping`,
//! one pass over them without a node.

use jiff::Timestamp;
use serde::Serialize;

use super::{ServerError, parts, runtime};
use crate::{
    config::Settings,
    jwks::{
        KeySet,
        life::{Housekeeping, KeyLife, Report},
    },
    keys::{Algorithm, azure::InvalidVault},
};

/// All keys that the settings name. Nothing was read of them.
#[derive(Debug)]
pub struct LocalKeys {
    /// Those of issuer and gate; absent if other components alone are switched on.
    pub issuer: Option<KeyLife>,
    /// Those that belong to one component each.
    pub sets: Vec<KeySet>,
}

impl LocalKeys {
    pub fn new(settings: &Settings) -> Result<Self, InvalidVault> {
        let sets = parts::key_sets(settings)?;
        let alone = sets.is_empty() || parts::needs_keys(settings);
        Ok(Self {
            issuer: alone.then(|| settings.keys.life()),
            sets,
        })
    }
}

/// What a pass did, or would do.
#[derive(Debug, Serialize)]
pub struct Housekept {
    #[serde(flatten)]
    pub issuer: Option<Report>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<KeptSet>,
}

/// The same for one algorithm of a set.
#[derive(Debug, Serialize)]
pub struct KeptSet {
    pub set: String,
    pub algorithm: Algorithm,
    #[serde(flatten)]
    pub report: Report,
}

impl Housekept {
    pub fn reports(&self) -> impl Iterator<Item = &Report> {
        let sets = self.sets.iter().map(|set| &set.report);
        self.issuer.iter().chain(sets)
    }

    /// Whether the pass did everything that was due, on documents that it could read.
    pub fn succeeded(&self) -> bool {
        let fine = |report: &Report| !report.failed() && report.document_trouble.is_none();
        self.reports().all(fine)
    }
}

/// Runs the pass, or with `dry_run` reports what it would do. Changes are audited here; the caller
/// prints the report.
///
/// It never makes a first key: without one, no server has been started yet, and a cron job should
/// not create one.
pub fn housekeeping(settings: &Settings, dry_run: bool) -> Result<Housekept, ServerError> {
    let options = Housekeeping {
        dry_run,
        first_key: false,
    };
    let keys = LocalKeys::new(settings)?;
    runtime()?.block_on(async {
        let issuer = match &keys.issuer {
            Some(life) => Some(life.housekeeping(options, Timestamp::now()).await?),
            None => None,
        };
        let mut sets = Vec::new();
        for set in &keys.sets {
            let reports = set.housekeeping(options, Timestamp::now()).await?;
            sets.extend(reports.into_iter().map(|(algorithm, report)| KeptSet {
                set: set.name().to_owned(),
                algorithm,
                report,
            }));
        }
        let done = Housekept { issuer, sets };
        for report in done.reports() {
            tell(report);
        }
        Ok(done)
    })
}

fn tell(report: &Report) {
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
}
