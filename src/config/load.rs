//! What each command loads, and how the sections make up the whole of the settings.

use std::{collections::BTreeSet, path::PathBuf};

use tailbone_identity::AudiencePattern;

use super::{
    Log,
    raw::RawSettings,
    read::{LoadResult, SettingsReader},
    sections::{
        admin::AdminSettings,
        client::ClientSettings,
        components::Component,
        gate::GateSettings,
        keys::KeySettings,
        metrics::MetricsSettings,
        oidc::{LoginSettings, OidcPlace, OidcSettings},
        output::OutputFormat,
        server::ServerSettings,
        sts::StsSettings,
        workload::WorkloadSettings,
    },
};

/// What the settings are loaded for. It decides which of them are not needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// One pass over the keys: there is no node, so its secrets are not read.
    Housekeeping,
    Start,
}

/// Everything that `tailbone server …` needs to know: checked, typed values with every default
/// filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub components: BTreeSet<Component>,
    pub log: Log,
    pub keys: KeySettings,
    pub server: ServerSettings,
    pub admin: AdminSettings,
    pub metrics: MetricsSettings,
    pub gate: GateSettings,
    pub sts: StsSettings,
    pub workload: WorkloadSettings,
    pub oidc: OidcSettings,
}

/// Loads the settings of `tailbone server …`.
pub fn load(raw: &RawSettings, purpose: Purpose) -> LoadResult<Settings> {
    let mut reader = SettingsReader::new(raw);
    let settings = reader.settings(purpose);
    reader.done(settings)
}

/// Loads the settings of `tailbone keys …`. Mistakes in settings that only a server reads do not
/// stop it.
pub fn load_client(raw: &RawSettings) -> LoadResult<ClientSettings> {
    let mut reader = SettingsReader::new(raw);
    let settings = reader.client();
    reader.done(settings)
}

/// What `tailbone policy …` reads.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicySettings {
    pub gate: RuleSource,
    pub workload: RuleSource,
    /// `workload.audiences`
    pub audiences: Vec<AudiencePattern>,
    /// `workload.allowWithoutGrant`
    pub allow_without_grant: bool,
    /// Who may log in to which application.
    pub logins: LoginSettings,
    /// How results are printed.
    pub format: OutputFormat,
}

/// Where the rules of a component are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSource {
    /// Without one, grants decide alone.
    pub file: Option<PathBuf>,
    /// Whose grants are rules too; if empty, grants are not consulted.
    pub capability: String,
}

/// Loads what `tailbone policy …` reads.
pub fn load_policy(raw: &RawSettings) -> LoadResult<PolicySettings> {
    let mut reader = SettingsReader::new(raw);
    let settings = reader.policy();
    reader.done(settings)
}

/// Loads everything, for `tailbone config …`.
pub fn load_all(raw: &RawSettings) -> LoadResult<(Settings, ClientSettings)> {
    let mut reader = SettingsReader::new(raw);
    let server = reader.settings(Purpose::Start);
    let client = reader.client();
    reader.done(server.zip(client))
}

/// Loads the settings of a `tailbone server …` command that prints a result.
pub fn load_with_output(
    raw: &RawSettings,
    purpose: Purpose,
) -> LoadResult<(Settings, OutputFormat)> {
    let mut reader = SettingsReader::new(raw);
    let settings = reader.settings(purpose);
    let format = reader.output();
    reader.done(settings.zip(format))
}

/// Loads how results are printed, for a command that needs no other setting.
pub fn load_output(raw: &RawSettings) -> LoadResult<OutputFormat> {
    let mut reader = SettingsReader::new(raw);
    let format = reader.output();
    reader.done(format)
}

/// Loads where the OpenID provider's state is, for `tailbone oidc …`.
pub fn load_oidc_place(raw: &RawSettings) -> LoadResult<(OidcPlace, OutputFormat)> {
    let mut reader = SettingsReader::new(raw);
    let place = reader.oidc_place();
    let format = reader.output();
    reader.done(place.zip(format))
}

impl SettingsReader<'_> {
    fn policy(&mut self) -> Option<PolicySettings> {
        let gate = self.gate_rules();
        let workload = self.workload_rules();
        let audiences = self.workload_audiences();
        let allow_without_grant = self.workload_allow_without_grant();
        let logins = self.login_access();
        let format = self.output();
        Some(PolicySettings {
            gate: gate?,
            workload: workload?,
            audiences: audiences?,
            allow_without_grant: allow_without_grant?,
            logins: logins?,
            format: format?,
        })
    }

    fn settings(&mut self, purpose: Purpose) -> Option<Settings> {
        let components = self.components();
        let log = self.log();
        let keys = self.keys();
        let server = self.server(purpose);
        let state_dir = server.as_ref().map(|server| server.tailscale.dir.as_path());
        let admin = self.admin(state_dir);
        let metrics = self.metrics();
        let gate = self.gate(keys.as_ref().map(|keys| keys.token.issuer.as_str()));
        let on = |component| {
            let components: Option<&BTreeSet<Component>> = components.as_ref();
            components.is_some_and(|components| components.contains(&component))
        };
        let sts = self.sts(on(Component::Sts));
        let workload = self.workload(keys.as_ref(), on(Component::Workload));
        let oidc = self.oidc(keys.as_ref(), on(Component::Oidc));
        let settings = Settings {
            components: components?,
            log: log?,
            keys: keys?,
            server: server?,
            admin: admin?,
            metrics: metrics?,
            gate: gate?,
            sts: sts?,
            workload: workload?,
            oidc: oidc?,
        };
        self.report_collisions(&settings);
        self.report_funnel(&settings);
        Some(settings)
    }
}
