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

use std::path::Path;

use super::{
    parse::boolean,
    raw::{Environment, GivenValue, RawSettings, RawValue},
    report::{Remark, ValueOrigin},
    sections::{log, oidc, tailscale},
    table::Row,
};

impl RawSettings {
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
        self.take_tsidp_listeners(environment);
    }

    fn take_tsidp_listeners(&mut self, environment: &Environment) {
        let names = ["TSIDP_PORT", "TSIDP_USE_FUNNEL", "TSIDP_LOCAL_PORT"];
        let Some(first) = names.iter().find(|name| environment.text(name).is_some()) else {
            return;
        };
        let port = self.tsidp_port(environment, "TSIDP_PORT").unwrap_or(443);
        let funnel = environment.text("TSIDP_USE_FUNNEL").is_some_and(|word| {
            let origin = ValueOrigin::Variable("TSIDP_USE_FUNNEL".to_owned());
            boolean(word, &origin).map_or_else(
                |sentence| {
                    self.mistakes.push(Remark {
                        origin: origin.clone(),
                        value: Some(word.to_owned()),
                        sentence,
                    });
                    false
                },
                |parsed| parsed.value,
            )
        });
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
