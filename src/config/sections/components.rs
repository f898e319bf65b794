//! `components`: which parts of the program run.

use std::{collections::BTreeSet, fmt};

use crate::config::{
    raw::suggestion,
    read::SettingsReader,
    table::{FlagScope, ValueKind, row, rows},
};

rows! {
    COMPONENTS = row("components", ValueKind::Words(Component::NAMES))
        .flag("components", FlagScope::Start)
        .default("issuer,admin")
        .help("Components to run, separated by commas or blanks");
}

/// Makes the type with the lists of all its values.
macro_rules! components {
    ($($component:ident = $name:literal,)*) => {
        /// A part of the program that can be switched on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Component {
            $($component,)*
        }

        impl Component {
            /// All components, in the order in which people read about them.
            pub const ALL: &[Self] = &[$(Self::$component,)*];

            /// Their names, in the same order.
            pub const NAMES: &[&str] = &[$($name,)*];

            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$component => $name,)*
                }
            }
        }
    };
}

components! {
    Issuer = "issuer",
    Admin = "admin",
    Gate = "gate",
    Sts = "sts",
    Workload = "workload",
    Oidc = "oidc",
    Metrics = "metrics",
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl SettingsReader<'_> {
    pub(in crate::config) fn components(&mut self) -> Option<BTreeSet<Component>> {
        let components = self.words(&COMPONENTS, component)?;
        if components.is_empty() {
            self.mistake(
                &COMPONENTS,
                None,
                format!("no component, so nothing would run: name {}", names("or")),
            );
            return None;
        }
        Some(components.into_iter().collect())
    }
}

fn component(word: &str) -> Result<Component, String> {
    let lower = word.to_ascii_lowercase();
    let named = |component: &&Component| component.name() == lower;
    if let Some(component) = Component::ALL.iter().find(named) {
        return Ok(*component);
    }
    Err(match suggestion(&lower, Component::NAMES.iter().copied()) {
        Some(meant) => format!("no component {lower}; did you mean {meant}?"),
        None => format!("no component {lower}; there are {}", names("and")),
    })
}

/// The names of all components in a sentence: `issuer, admin and gate`.
fn names(before_last: &str) -> String {
    match Component::NAMES {
        [first @ .., last] => format!("{} {before_last} {last}", first.join(", ")),
        [] => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_component_is_found_by_its_name() {
        for known in Component::ALL {
            assert_eq!(component(&known.name().to_ascii_uppercase()), Ok(*known));
        }
    }

    #[test]
    fn the_others_are_named_in_a_sentence() {
        assert_eq!(
            component("xylophone"),
            Err("no component xylophone; there are issuer, admin, gate, sts, workload, oidc and metrics".into())
        );
        assert_eq!(names("or"), "issuer, admin, gate, sts, workload, oidc or metrics");
    }
}
