//! The variables of tsidp, which count where the component `oidc` runs and our own settings say
//! nothing.
//!
//! | Variable | Becomes |
//! |---|---|
//! | `TS_HOSTNAME` | `server.tailscale.hostname` |
//! | `TS_STATE_DIR` | `server.tailscale.dir`, `oidc.takeOver`, and `oidc.dir` is `oidc` in it |
//! | `TS_ADVERTISE_TAGS` | `server.tailscale.tags` |
//! | `TSIDP_PORT`, `TSIDP_USE_FUNNEL`, `TSIDP_LOCAL_PORT` | `oidc.listen` |
//! | `TSIDP_ENABLE_STS` | `oidc.tokenExchange` |
//! | `TSIDP_LOG` | `log.level` |
//!
//! A variable that cannot have its effect here is warned about where tsidp would act on it.

use std::path::Path;

use super::{
    parse::boolean,
    raw::{Environment, GivenValue, RawSettings, RawValue},
    report::{Remark, ValueOrigin},
    sections::{components, components::Component, log, oidc, tailscale},
    table::Row,
};

/// tsidp's name on the tailnet. The issuer is made of it, so that a tailnet's applications know it.
const HOSTNAME: &str = "idp";

/// The variables that only a tsidp has in its environment.
const OWN: [&str; 6] = [
    "TS_STATE_DIR",
    "TSIDP_PORT",
    "TSIDP_USE_FUNNEL",
    "TSIDP_LOCAL_PORT",
    "TSIDP_ENABLE_STS",
    "TSIDP_LOG",
];

/// Switches of tsidp that have no setting here, and why.
const WITHOUT_EFFECT: [(&str, &str); 3] = [
    (
        "TSIDP_DEBUG_ALL_REQUESTS",
        "has no effect: no setting writes the secrets of requests into a log",
    ),
    (
        "TSIDP_DEBUG_TSNET",
        "has no effect: the node's own lines are in the log, at their levels (log.level)",
    ),
    (
        "TSIDP_USE_LOCAL_TAILSCALED",
        "has no effect: the node is always inside of this process, with a name and a state of its \
         own",
    ),
];

/// Names that tsidp has announced and does not read, and those which it reads.
const ANNOUNCED: [(&str, &str); 2] = [
    ("TSIDP_HOSTNAME", "TS_HOSTNAME"),
    ("TSIDP_STATE_DIR", "TS_STATE_DIR"),
];

impl RawSettings {
    /// What tsidp's variables alone say. `None`: there is none.
    pub(super) fn of_tsidp(environment: &Environment) -> Option<Self> {
        let mut raw = Self::default();
        raw.take_tsidp(environment);
        if raw.is_untouched() {
            return None;
        }
        raw.take_alias(&tailscale::AUTHKEY, environment);
        let name = Component::Oidc.name().to_owned();
        raw.take_as(&components::COMPONENTS, "what tsidp is", name);
        Some(raw)
    }

    pub(super) fn take_tsidp(&mut self, environment: &Environment) {
        self.take_alias(&oidc::TOKEN_EXCHANGE, environment);
        for (name, row) in [
            ("TS_HOSTNAME", &tailscale::HOSTNAME),
            ("TS_STATE_DIR", &tailscale::DIR),
            ("TS_ADVERTISE_TAGS", &tailscale::TAGS),
            ("TSIDP_LOG", &log::LEVEL),
        ] {
            if let Some(text) = environment.text(name) {
                self.take_as(row, name, text.to_owned());
            }
        }
        if let Some(dir) = environment.text("TS_STATE_DIR") {
            let own = Path::new(dir).join("oidc").display().to_string();
            self.take_as(&oidc::DIR, "TS_STATE_DIR", own);
            self.take_as(&oidc::TAKE_OVER, "TS_STATE_DIR", dir.to_owned());
        }
        self.keep_tsidp_hostname(environment);
        self.take_tsidp_listeners(environment);
        self.warn_of_tsidp(environment);
    }

    /// Where a tsidp was, the node goes on under its name, as long as nothing says another.
    fn keep_tsidp_hostname(&mut self, environment: &Environment) {
        let set = |name: &&&str| environment.text(name).is_some();
        if let Some(name) = OWN.iter().find(set)
            && self.given(&tailscale::HOSTNAME).is_none()
        {
            self.take_as(&tailscale::HOSTNAME, name, HOSTNAME.to_owned());
        }
    }

    fn take_tsidp_listeners(&mut self, environment: &Environment) {
        let names = ["TSIDP_PORT", "TSIDP_USE_FUNNEL", "TSIDP_LOCAL_PORT"];
        let Some(first) = names.iter().find(|name| environment.text(name).is_some()) else {
            return;
        };
        let port = self.tsidp_port(environment, "TSIDP_PORT").unwrap_or(443);
        let funnel = self.tsidp_switch(environment, "TSIDP_USE_FUNNEL");
        let mut listen = format!("tailnet+tls://:{port}");
        if funnel {
            listen.push_str(&format!(",funnel://:{port}"));
        }
        // tsidp's default of -1 is off.
        if environment.text("TSIDP_LOCAL_PORT") != Some("-1")
            && let Some(port) = self.tsidp_port(environment, "TSIDP_LOCAL_PORT")
        {
            listen.push_str(&format!(",http://127.0.0.1:{port}"));
        }
        self.take_as(&oidc::LISTEN, first, listen);
    }

    fn warn_of_tsidp(&mut self, environment: &Environment) {
        for (name, sentence) in WITHOUT_EFFECT {
            if self.tsidp_switch(environment, name) {
                self.warnings.push(Remark {
                    origin: ValueOrigin::Variable(name.to_owned()),
                    value: None,
                    sentence: sentence.to_owned(),
                });
            }
        }
        for (name, read) in ANNOUNCED {
            if environment.value(name).is_some() {
                self.warnings.push(Remark {
                    origin: ValueOrigin::Variable(name.to_owned()),
                    value: None,
                    sentence: format!("not read, neither by tsidp nor here; {read} is"),
                });
            }
        }
    }

    /// One that is neither true nor false is a mistake, as in tsidp.
    fn tsidp_switch(&mut self, environment: &Environment, name: &str) -> bool {
        let Some(word) = environment.text(name) else {
            return false;
        };
        let origin = ValueOrigin::Variable(name.to_owned());
        match boolean(word, &origin) {
            Ok(parsed) => parsed.value,
            Err(sentence) => {
                self.mistakes.push(Remark {
                    origin,
                    value: Some(word.to_owned()),
                    sentence,
                });
                false
            }
        }
    }

    fn tsidp_port(&mut self, environment: &Environment, name: &str) -> Option<u16> {
        let text = environment.text(name)?;
        match text.parse() {
            Ok(port) if port != 0 => Some(port),
            _ => {
                self.mistakes.push(Remark {
                    origin: ValueOrigin::Variable(name.to_owned()),
                    value: Some(text.to_owned()),
                    sentence: "the port is a number from 1 to 65535".into(),
                });
                None
            }
        }
    }

    fn take_as(&mut self, row: &'static Row, name: &str, text: String) {
        self.add_variable(
            row,
            GivenValue {
                value: RawValue::Text(text),
                origin: ValueOrigin::Variable(name.to_owned()),
            },
        );
    }
}
