//! `server.limits.memory`: how much memory the Go node in this process may use.

use crate::config::{
    parse::ParsedValue,
    read::SettingsReader,
    table::{FlagScope, ValueKind, row, rows},
};

rows! {
    MEMORY = row("server.limits.memory", ValueKind::Memory { least: 32 << 20 })
        .flag("limit-memory", FlagScope::Start)
        .default("auto")
        .example("192MiB")
        .help(
            "Memory limit of the embedded node (Go), near which it collects garbage more often: \
             auto is GOMEMLIMIT, or else three quarters of the cgroup's limit",
        );
}

/// How much memory the Go node may use before it collects garbage rather than grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryLimit {
    /// What `GOMEMLIMIT` says, else a share of the cgroup's limit.
    Auto,
    Bytes(u64),
    Off,
}

impl SettingsReader<'_> {
    pub(in crate::config) fn memory(&mut self) -> Option<MemoryLimit> {
        self.read(&MEMORY, |input, _| memory(MEMORY.kind, input))
    }
}

/// Reads bytes as `GOMEMLIMIT` writes them, so that its value can be copied here.
fn memory(kind: ValueKind, input: &str) -> Result<ParsedValue<MemoryLimit>, String> {
    let ValueKind::Memory { least } = kind else {
        return Err("not an amount of memory".into());
    };
    let text = input.trim();
    if text.eq_ignore_ascii_case("auto") || text.is_empty() {
        return Ok(ParsedValue::new(MemoryLimit::Auto, "auto"));
    }
    if text.eq_ignore_ascii_case("off") {
        return Ok(ParsedValue::new(MemoryLimit::Off, "off"));
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
    Ok(ParsedValue::new(MemoryLimit::Bytes(bytes), text))
}
