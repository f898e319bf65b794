//! `server.limits.memory`: how much memory the Go node in this process may use.

use crate::config::{
    meaning::Reading,
    read::Reader,
    table::{Kind, Scope, row, rows},
};

rows! {
    MEMORY = row("server.limits.memory", Kind::Memory { least: 32 << 20 })
        .flag("limit-memory", Scope::Start)
        .default("auto")
        .example("192MiB")
        .help(
            "Memory limit of the embedded node (Go), near which it collects garbage more often: \
             auto is GOMEMLIMIT, or else three quarters of the cgroup's limit",
        );
}

/// How much memory the Go node may use before it collects garbage rather than grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// What `GOMEMLIMIT` says, else a share of the cgroup's limit.
    Auto,
    Bytes(u64),
    Off,
}

impl Reader<'_> {
    pub(in crate::config) fn memory(&mut self) -> Option<Memory> {
        self.read(&MEMORY, |typed, _| memory(MEMORY.kind, typed))
    }
}

/// Reads bytes as `GOMEMLIMIT` writes them, so that its value can be copied here.
fn memory(kind: Kind, typed: &str) -> Result<Reading<Memory>, String> {
    let Kind::Memory { least } = kind else {
        return Err("not an amount of memory".into());
    };
    let text = typed.trim();
    if text.eq_ignore_ascii_case("auto") || text.is_empty() {
        return Ok(Reading::new(Memory::Auto, "auto"));
    }
    if text.eq_ignore_ascii_case("off") {
        return Ok(Reading::new(Memory::Off, "off"));
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..) {
        Some("" | "B") => 0,
        Some("KiB") => 10,
        Some("MiB") => 20,
        Some("GiB") => 30,
        Some("TiB") => 40,
        _ => return Err("not auto, off, or a whole number with B, KiB, MiB, GiB or TiB".into()),
    };
    let bytes = digits
        .parse()
        .ok()
        .and_then(|number: u64| number.checked_mul(1 << shift))
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or("not auto, off, or a whole number with B, KiB, MiB, GiB or TiB")?;
    if bytes < least {
        return Err(format!(
            "too little for a node, which needs {} MiB",
            least >> 20
        ));
    }
    Ok(Reading::new(Memory::Bytes(bytes), text))
}
