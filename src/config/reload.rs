//! What becomes of each setting when the settings are read again while the server runs: it is
//! applied, or its old value stays until a restart.
//!
//! Each section says so for its own fields, and takes its type apart without `..`, so that a field
//! that is forgotten is an error of the compiler.

use super::load::Settings;

/// What a reload did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Settings whose new value is in force.
    pub applied: Vec<&'static str>,
    /// Settings that changed and need a restart.
    pub needs_restart: Vec<&'static str>,
}

impl Reloaded {
    /// Puts the new value in place of the old one.
    pub(super) fn apply<T: Clone + PartialEq>(&mut self, name: &'static str, old: &mut T, new: &T) {
        if old != new {
            old.clone_from(new);
            self.applied.push(name);
        }
    }

    /// Leaves the old value in place. Several settings may share a name.
    pub(super) fn leave<T: PartialEq>(&mut self, name: &'static str, old: &T, new: &T) {
        if old != new && !self.needs_restart.contains(&name) {
            self.needs_restart.push(name);
        }
    }
}

impl Settings {
    /// Takes over what may change while the server runs.
    pub fn reload(&mut self, new: &Self) -> Reloaded {
        let Self {
            components,
            log,
            keys,
            server,
            admin,
            metrics,
            gate,
            sts,
            workload,
            oidc,
        } = new;
        let mut reloaded = Reloaded::default();
        reloaded.leave("components", &self.components, components);
        super::sections::log::reload(&mut self.log, log, &mut reloaded);
        self.keys.reload(keys, &mut reloaded);
        self.server.reload(server, &mut reloaded);
        reloaded.leave("admin", &self.admin, admin);
        reloaded.leave("metrics", &self.metrics, metrics);
        reloaded.leave("gate", &self.gate, gate);
        reloaded.leave("sts", &self.sts, sts);
        self.workload.reload(workload, &mut reloaded);
        self.oidc.reload(oidc, &mut reloaded);
        reloaded
    }
}
