//! `log.*`: the log lines of a server.

use crate::config::{
    Log, LogFormat, LogLevel,
    read::{EffectiveValue, SettingsReader},
    reload::Reloaded,
    report::ValueOrigin,
    table::{FlagScope, ValueKind, row, rows},
};

rows! {
    LEVEL = row("log.level", ValueKind::Word(&["trace", "debug", "info", "warn", "error"]))
        .flag("log-level", FlagScope::Server)
        .default("info")
        .help("Lowest level that is logged");
    FORMAT = row("log.format", ValueKind::Word(&["console", "json"]))
        .flag("log-format", FlagScope::Server)
        .default("console")
        .help("Format of the log lines");
    NO_COLOR = row("log.no_color", ValueKind::Bool)
        .flag("no-color", FlagScope::Server)
        .default("false")
        .help("No colours in console log lines; a non-empty NO_COLOR does the same");
}

pub(in crate::config) fn reload(old: &mut Log, new: &Log, reloaded: &mut Reloaded) {
    let Log {
        level,
        format,
        no_color,
    } = new;
    reloaded.apply(LEVEL.key, &mut old.level, level);
    reloaded.leave(FORMAT.key, &old.format, format);
    reloaded.leave(FORMAT.key, &old.no_color, no_color);
}

impl SettingsReader<'_> {
    pub(in crate::config) fn log(&mut self) -> Option<Log> {
        let level = self.word_or(&LEVEL, "info");
        let format = self.word_or(&FORMAT, "console");
        let no_color = self.no_color();
        Some(Log {
            level: match level? {
                "trace" => LogLevel::Trace,
                "debug" => LogLevel::Debug,
                "warn" => LogLevel::Warn,
                "error" => LogLevel::Error,
                _ => LogLevel::Info,
            },
            format: match format? {
                "json" => LogFormat::Json,
                // TailSTS's variable applies if this setting is not set.
                _ if self.raw.json_logging && !self.is_set(&FORMAT) => LogFormat::Json,
                _ => LogFormat::Console,
            },
            no_color: no_color?,
        })
    }

    /// `NO_COLOR` (no-color.org) applies if the setting itself is not set.
    fn no_color(&mut self) -> Option<bool> {
        if self.raw.no_color && !self.is_set(&NO_COLOR) {
            self.entries.push(EffectiveValue {
                row: &NO_COLOR,
                value: true.into(),
                origin: ValueOrigin::Variable("NO_COLOR".into()),
            });
            return Some(true);
        }
        self.bool(&NO_COLOR)
    }
}
