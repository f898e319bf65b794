//! What becomes of each setting when the settings are read again while the server runs: it is
//! exchanged, or its old value stays until a restart.
//!
//! Each section says so for its own fields, and takes its type apart without `..`, so that a field
//! that is forgotten is an error of the compiler.

use super::load::Settings;

/// What a reload did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Exchanged {
    /// Settings whose new value is in force.
    pub done: Vec<&'static str>,
    /// Settings that changed and need a restart.
    pub left: Vec<&'static str>,
}

impl Exchanged {
    /// Puts the new value in place of the old one.
    pub(super) fn take<T: Clone + PartialEq>(&mut self, name: &'static str, old: &mut T, new: &T) {
        if old != new {
            old.clone_from(new);
            self.done.push(name);
        }
    }

    /// Leaves the old value in place. Several settings may share a name.
    pub(super) fn keep<T: PartialEq>(&mut self, name: &'static str, old: &T, new: &T) {
        if old != new && !self.left.contains(&name) {
            self.left.push(name);
        }
    }
}

impl Settings {
    /// Takes over what may change while the server runs.
    pub fn exchange(&mut self, new: &Self) -> Exchanged {
        let Self {
            components,
            log,
            keys,
            server,
            admin,
            metrics,
            gate,
            sts,
        } = new;
        let mut exchanged = Exchanged::default();
        exchanged.keep("components", &self.components, components);
        super::sections::log::exchange(&mut self.log, log, &mut exchanged);
        self.keys.exchange(keys, &mut exchanged);
        self.server.exchange(server, &mut exchanged);
        exchanged.keep("admin", &self.admin, admin);
        exchanged.keep("metrics", &self.metrics, metrics);
        exchanged.keep("gate", &self.gate, gate);
        exchanged.keep("sts", &self.sts, sts);
        exchanged
    }
}
