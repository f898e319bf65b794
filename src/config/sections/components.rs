//! `components`: which parts of the program run.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::config::{
    raw::suggestion,
    read::Reader,
    table::{Kind, Scope, row, rows},
};

rows! {
    COMPONENTS = row("components", Kind::Words(&["issuer", "admin", "gate", "sts", "metrics"]))
        .flag("components", Scope::Start)
        .default("issuer,admin")
        .help("Parts of the program to run, by commas or blanks");
}

/// A part of the program that can be switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Component {
    Admin,
    Gate,
    Issuer,
    Metrics,
    Sts,
}

impl Reader<'_> {
    pub(in crate::config) fn components(&mut self) -> Option<BTreeSet<Component>> {
        let words = self.words(&COMPONENTS, |word| {
            match word.to_ascii_lowercase().as_str() {
                "admin" => Ok("admin"),
                "gate" => Ok("gate"),
                "issuer" => Ok("issuer"),
                "metrics" => Ok("metrics"),
                "sts" => Ok("sts"),
                lower => Err(
                    match suggestion(lower, ["admin", "gate", "issuer", "metrics", "sts"].into_iter()) {
                        Some(meant) => format!("no component {lower}; did you mean {meant}?"),
                        None => {
                            format!("no component {lower}; there are issuer, admin, gate, sts and metrics")
                        }
                    },
                ),
            }
        })?;
        if words.is_empty() {
            self.mistake(
                &COMPONENTS,
                None,
                "no component, so nothing would run: name issuer, admin, gate, sts or metrics"
                    .into(),
            );
            return None;
        }
        Some(
            words
                .into_iter()
                .map(|word| match word {
                    "admin" => Component::Admin,
                    "metrics" => Component::Metrics,
                    "gate" => Component::Gate,
                    "sts" => Component::Sts,
                    _ => Component::Issuer,
                })
                .collect(),
        )
    }
}
