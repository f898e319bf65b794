//! Log lines on standard output (or standard error where a result goes to standard output), in the
//! two formats of the Go program, each line with its time.
//!
//! - console: `2026-11-22T08:15:04.120Z INF issuer issued token kid=… user=…`
//! - json: one object per line with `time`, `level`, `component`, `message`, the fields, and
//!   `error`
//!
//! The component is the event's target: one of our own names (`target: "admin"`), or the name of
//! the module below the crate. Fields of the surrounding spans (the request's id) are part of the
//! line. Libraries' lines are only logged from `warn` on. A reader of the log that does not read
//! delays nobody (`writer.rs`).

use std::{
    borrow::Cow,
    collections::VecDeque,
    fmt::Write as _,
    io::IsTerminal,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::{Map, Value};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};
use tracing_subscriber::{
    Layer,
    filter::filter_fn,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use super::{
    audit::{self, Decision},
    otlp::Otlp,
    writer::{Kind, LostLines, Stream, Writer},
};

/// How log lines are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub level: LogLevel,
    pub format: LogFormat,
    pub no_color: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Console,
    Json,
}

/// Our own targets that are not module paths. Lines of other targets count as those of libraries.
pub const OWN_TARGETS: [&str; 12] = [
    "admin",
    "audit",
    "gate",
    "housekeeper",
    "jwks",
    "keys",
    "oidc",
    "server",
    "sts",
    "ts",
    "tsnet",
    "workload",
];

/// The number of lines that are kept for `recent`.
const MAX_RECENT: usize = 200;
/// Bytes of each kept line.
const RECENT_BYTES: usize = 1024;

/// Initial sizes that most lines fit into; larger lines cost a copy.
const LINE: usize = 320;
const FIELDS: usize = 12;

/// The lowest level that is logged, for the whole process like the subscriber.
static LEVEL: AtomicU8 = AtomicU8::new(LogLevel::Info as u8);
static WRITER: OnceLock<Arc<Writer>> = OnceLock::new();
static RECENT_LINES: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// Changes the log level of the running process.
pub fn set_level(to: LogLevel) {
    LEVEL.store(to as u8, Ordering::Relaxed);
    // tracing has cached for each place in the code whether it is enabled.
    tracing::callsite::rebuild_interest_cache();
}

/// The last lines, the oldest first.
pub fn recent() -> Vec<String> {
    let last = RECENT_LINES.lock();
    last.iter().cloned().collect()
}

fn remember(line: &str) {
    let end = line.floor_char_boundary(RECENT_BYTES);
    let kept = line.get(..end).unwrap_or_default();
    let mut last = RECENT_LINES.lock();
    let mut slot = match last.len() {
        MAX_RECENT.. => last.pop_front().unwrap_or_default(),
        _ => String::new(),
    };
    slot.clear();
    slot.push_str(kept);
    last.push_back(slot);
}

/// Starts logging for the whole process. A second call has no effect. Spans go to `otlp` if there
/// is one.
pub fn init(settings: &Log, otlp: Option<&Otlp>) {
    start(settings, Stream::Out, std::io::stdout().is_terminal(), otlp);
}

/// The same on standard error, for a command whose standard output is a result for programs.
pub fn init_beside_result(settings: &Log) {
    start(settings, Stream::Err, std::io::stderr().is_terminal(), None);
}

/// Writes waiting lines, as far as the reader takes them within `limit`. For the end of the
/// process.
pub fn flush(limit: Duration) {
    if let Some(writer) = WRITER.get() {
        writer.flush(limit);
    }
}

fn start(settings: &Log, stream: Stream, terminal: bool, otlp: Option<&Otlp>) {
    set_level(settings.level);
    let lost_line = match settings.format {
        LogFormat::Json => |lost| line_about_lost(lost).json() + "\n",
        LogFormat::Console => |lost| line_about_lost(lost).console(false) + "\n",
    };
    let lines = Lines {
        format: settings.format,
        color: !settings.no_color && terminal,
        writer: WRITER
            .get_or_init(|| Writer::new(stream, lost_line))
            .clone(),
    };
    // Only fails if a subscriber is already installed, which is then used.
    let _ = match otlp {
        None => tracing_subscriber::registry().with(lines).try_init(),
        // With separate filters: a span may be exported although it is not logged, and vice versa.
        Some(otlp) => tracing_subscriber::registry()
            .with(otlp.layer())
            .with(lines.with_filter(filter_fn(logged)))
            .try_init(),
    };
}

/// Whether events and spans with this metadata are logged.
fn logged(meta: &Metadata<'_>) -> bool {
    let level = level(LEVEL.load(Ordering::Relaxed));
    let most = if is_ours(meta) {
        level
    } else {
        level.min(Level::WARN)
    };
    *meta.level() <= most
}

/// Whether this comes from the program itself and not from a library.
pub(super) fn is_ours(meta: &Metadata<'_>) -> bool {
    component(meta.target()).is_some()
}

fn level(number: u8) -> Level {
    const NAMED: [(LogLevel, Level); 5] = [
        (LogLevel::Error, Level::ERROR),
        (LogLevel::Warn, Level::WARN),
        (LogLevel::Info, Level::INFO),
        (LogLevel::Debug, Level::DEBUG),
        (LogLevel::Trace, Level::TRACE),
    ];
    NAMED
        .into_iter()
        .find(|(named, _)| *named as u8 == number)
        .map_or(Level::INFO, |(_, level)| level)
}

struct Lines {
    format: LogFormat,
    color: bool,
    writer: Arc<Writer>,
}

/// The line that reports lost lines.
fn line_about_lost(lost: LostLines) -> Line<'static> {
    let fields = vec![
        ("message", "log lines were lost: nobody read them".into()),
        ("refusals", lost.refusals.into()),
        ("others", lost.others.into()),
        ("done", lost.done.into()),
    ];
    Line {
        time: jiff::Timestamp::now(),
        level: Level::WARN,
        component: "audit",
        fields: Fields(fields),
    }
}

impl<S> Layer<S> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn enabled(&self, meta: &Metadata<'_>, _: Context<'_, S>) -> bool {
        logged(meta)
    }

    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, ctx: Context<'_, S>) {
        if let Some(span) = ctx.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        let mut fields = Fields(Vec::with_capacity(FIELDS));
        event.record(&mut fields);
        for span in ctx.event_scope(event).into_iter().flatten() {
            if let Some(outer) = span.extensions().get::<Fields>() {
                fields.0.extend(outer.0.iter().cloned());
            }
        }
        let target = event.metadata().target();
        let kind = match target {
            audit::TARGET if fields.is("decision", Decision::Refused.as_str()) => Kind::Refusal,
            audit::TARGET => Kind::Done,
            _ => Kind::Other,
        };
        if kind == Kind::Refusal && !fields.bound_refusal(Instant::now()) {
            return;
        }
        let line = Line {
            time: jiff::Timestamp::now(),
            level: *event.metadata().level(),
            component: component(target).unwrap_or(target),
            fields,
        };
        let mut text = match self.format {
            LogFormat::Json => line.json(),
            LogFormat::Console => line.console(self.color),
        };
        remember(&text);
        text.push('\n');
        self.writer.line(text, kind);
    }
}

/// The component of a target, or `None` for a library.
fn component(target: &str) -> Option<&str> {
    if OWN_TARGETS.contains(&target) {
        return Some(target);
    }
    let below = target.strip_prefix("tailbone")?;
    let module = below.strip_prefix("::").unwrap_or("server");
    Some(module.split("::").next().unwrap_or(module))
}

struct Line<'a> {
    time: jiff::Timestamp,
    level: Level,
    component: &'a str,
    fields: Fields,
}

impl Line<'_> {
    fn json(mut self) -> String {
        let message = self.fields.take("message");
        let mut object = Map::new();
        object.insert("time".into(), format!("{:.3}", self.time).into());
        object.insert("level".into(), self.level.as_str().to_lowercase().into());
        object.insert("component".into(), self.component.into());
        for (name, value) in self.fields.0 {
            object.entry(name).or_insert(value);
        }
        object.insert("message".into(), message.unwrap_or_default());
        Value::Object(object).to_string()
    }

    fn console(mut self, color: bool) -> String {
        let message = self.fields.take("message").unwrap_or_default();
        let (word, code) = match self.level {
            Level::ERROR => ("ERR", 31),
            Level::WARN => ("WRN", 33),
            Level::INFO => ("INF", 32),
            Level::DEBUG => ("DBG", 36),
            Level::TRACE => ("TRC", 35),
        };
        let mut text = String::with_capacity(LINE);
        // Writing to a String cannot fail.
        let _ = write!(text, "{:.3} ", self.time);
        let _ = if color {
            write!(text, "\x1b[{code}m{word}\x1b[0m")
        } else {
            write!(text, "{word}")
        };
        let _ = write!(text, " {} ", self.component);
        // A message from the node may contain line breaks.
        text.extend(
            plain(&message)
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c }),
        );
        for (name, value) in &self.fields.0 {
            text.extend([" ", name, "="]);
            let value = plain(value);
            if is_safe(&value) {
                text.push_str(&value);
            } else {
                let _ = write!(text, "{value:?}");
            }
        }
        text
    }
}

fn plain(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => text.into(),
        other => other.to_string().into(),
    }
}

/// Whether the text is unambiguous without quotes, for parsers and terminals.
fn is_safe(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|c| c.is_ascii_graphic() && !matches!(c, b'"' | b'='))
}

/// Fields in the order in which they were recorded.
#[derive(Default)]
struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.0.iter().position(|(n, _)| *n == name)?;
        Some(self.0.remove(at).1)
    }

    fn text(&self, name: &str) -> Cow<'_, str> {
        let value = self.0.iter().find(|(n, _)| *n == name);
        value.map_or(Cow::Borrowed(""), |(_, value)| plain(value))
    }

    fn is(&self, name: &str, text: &str) -> bool {
        self.text(name) == text
    }

    /// Whether to write this refusal; if so, adds the number of similar ones that were not written.
    fn bound_refusal(&mut self, now: Instant) -> bool {
        if self.0.iter().any(|(name, _)| *name == audit::REPEATED) {
            return true; // this is such a count
        }
        let key = audit::RefusalKey::new(
            &self.text("message"),
            &self.text("caller"),
            &self.text("reason"),
        );
        match audit::REFUSALS.take(key, now) {
            None => false,
            Some(0) => true,
            Some(repeated) => {
                self.0.push((audit::REPEATED, repeated.into()));
                true
            }
        }
    }

    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.push((field.name(), value.into()));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, super::error_chain(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(fields: &[(&'static str, Value)]) -> Line<'static> {
        Line {
            time: "2026-11-22T08:15:04.1204Z".parse().unwrap(),
            level: Level::INFO,
            component: "issuer",
            fields: Fields(fields.iter().map(|(n, v)| (*n, v.clone())).collect()),
        }
    }

    #[test]
    fn json_has_time_and_the_originals_names() {
        let text = line(&[("message", "issued token".into()), ("kid", "tb-1".into())]).json();
        assert_eq!(
            serde_json::from_str::<Value>(&text).unwrap(),
            serde_json::json!({"time": "2026-11-22T08:15:04.120Z", "level": "info", "component": "issuer", "kid": "tb-1", "message": "issued token"})
        );
    }

    #[test]
    fn a_field_cannot_replace_level_or_time() {
        let text = line(&[("message", "x".into()), ("level", "forged".into())]).json();
        assert!(text.contains(r#""level":"info""#), "{text}");
    }

    #[test]
    fn console_quotes_what_could_forge_a_line() {
        let text = line(&[
            ("message", "m".into()),
            ("user", "a\nb c".into()),
            ("kid", "tb-1".into()),
        ])
        .console(false);
        assert_eq!(
            text,
            r#"2026-11-22T08:15:04.120Z INF issuer m user="a\nb c" kid=tb-1"#
        );
    }

    #[test]
    fn components_are_own_words_or_modules() {
        assert_eq!(component("admin"), Some("admin"));
        assert_eq!(component("tailbone::keys::store"), Some("keys"));
        assert_eq!(component("hyper::proto"), None);
    }
}
