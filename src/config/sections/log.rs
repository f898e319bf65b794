//! `log.*`: the log lines of a server.

use crate::config::{
    Log, LogFormat, LogLevel,
    read::{Entry, Reader},
    reload::Reloaded,
    report::Origin,
    table::{Kind, Scope, row, rows},
};

rows! {
    LEVEL = row("log.level", Kind::Word(&["trace", "debug", "info", "warn", "error"]))
        .flag("log-level", Scope::Server)
        .default("info")
        .help("Lowest level that is logged");
    FORMAT = row("log.format", Kind::Word(&["console", "json"]))
        .flag("log-format", Scope::Server)
        .default("console")
        .help("Format of the log lines");
    NO_COLOR = row("log.no_color", Kind::Bool)
        .flag("no-color", Scope::Server)
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

impl Reader<'_> {
    pub(in crate::config) fn log(&mut self) -> Option<Log> {
        let level = self.lenient_word(&LEVEL, "info");
        let format = self.lenient_word(&FORMAT, "console");
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
                // TailSTS's variable applies if this setting is not typed.
                _ if self.raw.json_logging && !self.is_typed(&FORMAT) => LogFormat::Json,
                _ => LogFormat::Console,
            },
            no_color: no_color?,
        })
    }

    /// `NO_COLOR` (no-color.org) applies if the setting itself is not typed.
    fn no_color(&mut self) -> Option<bool> {
        if self.raw.no_color && !self.is_typed(&NO_COLOR) {
            self.entries.push(Entry {
                row: &NO_COLOR,
                value: true.into(),
                origin: Origin::Variable("NO_COLOR".into()),
            });
            return Some(true);
        }
        self.bool(&NO_COLOR)
    }
}
