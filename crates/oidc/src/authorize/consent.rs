//! Whether a login goes on by itself, needs the person's confirmation, or is refused.
//!
//! Who the person is says the tailnet. Whether they meant to log in says their browser's session:
//! it begins when they confirm, or by itself where the client's logins are silent.
//!
//! Invariants
//! - `prompt=none` never shows a page, and has no effect without a session: signing out would mean
//!   nothing otherwise.
//! - `auth_time` moves only when the person confirms, or when a session begins.

use super::{ACR_CONFIRMED, ACR_NETWORK, AuthorizationRequest};
use crate::client::Login;

/// The session of the browser, if it is that of the person who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// When the person last confirmed, in seconds.
    pub auth_time: i64,
    /// Whether the person has confirmed a login of this client in it.
    pub knows_client: bool,
}

/// What becomes of a good request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// At once. The session, if there is none yet, begins now.
    Proceed { auth_time: i64 },
    /// After the person has confirmed.
    Ask(Asked),
    /// With this code, and this sentence.
    Refuse(&'static str, &'static str),
}

/// Why the person is asked, which says what the confirmation means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The person's confirmation is a new login.
    Login,
    /// The session stays as it is; only the client is new to it.
    Client,
}

/// `hinted`: the subject of the `id_token_hint`, if there was a good one.
pub fn decide(
    request: &AuthorizationRequest,
    login: Login,
    session: Option<Session>,
    subject: &str,
    hinted: Option<&str>,
    now: i64,
) -> Decision {
    let other_person = "the person who is logged in is another than the request names";
    if hinted.is_some_and(|hinted| hinted != subject) || !request.is_about(subject) {
        return Decision::Refuse("login_required", other_person);
    }
    let network = request.takes_acr(ACR_NETWORK);
    if !network && !request.takes_acr(ACR_CONFIRMED) {
        let sentence = "the request must have an acr that is not among acr_values_supported";
        return Decision::Refuse("unmet_authentication_requirements", sentence);
    }
    match by_session(request, login, session, now) {
        Decision::Proceed { .. } if !network && request.prompt.none => Decision::Refuse(
            "login_required",
            "the acr of the request needs a confirmation",
        ),
        Decision::Proceed { .. } if !network => Decision::Ask(Asked::Login),
        decision => decision,
    }
}

fn by_session(
    request: &AuthorizationRequest,
    login: Login,
    session: Option<Session>,
    now: i64,
) -> Decision {
    let prompt = request.prompt;
    let Some(session) = session else {
        if prompt.none {
            return Decision::Refuse("login_required", "nobody is logged in in this browser");
        }
        let asked = prompt.login || prompt.consent || prompt.select_account;
        return match login {
            Login::Silent if !asked => Decision::Proceed { auth_time: now },
            _ => Decision::Ask(Asked::Login),
        };
    };
    let too_old = request.max_age.is_some_and(|most| {
        let age = u64::try_from(now.saturating_sub(session.auth_time)).unwrap_or(0);
        most == 0 || age > most
    });
    if too_old || prompt.login || prompt.select_account {
        if prompt.none {
            return Decision::Refuse("login_required", "the last login is older than max_age");
        }
        return match login {
            Login::Silent if !prompt.login && !prompt.select_account => {
                Decision::Proceed { auth_time: now }
            }
            _ => Decision::Ask(Asked::Login),
        };
    }
    let known = session.knows_client || login == Login::Silent;
    match (known, prompt.none, prompt.consent) {
        (_, _, true) | (false, false, _) => Decision::Ask(Asked::Client),
        (false, true, false) => Decision::Refuse(
            "interaction_required",
            "the person has not confirmed this client",
        ),
        (true, _, false) => Decision::Proceed {
            auth_time: session.auth_time,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Params,
        authorize::{ReadRules, UnknownScopes},
        client::ClientMetadata,
    };

    const NOW: i64 = 10_000;

    fn decided(query: &str, login: Login, session: Option<(i64, bool)>) -> Decision {
        hinted(query, login, session, None)
    }

    fn hinted(
        query: &str,
        login: Login,
        session: Option<(i64, bool)>,
        hint: Option<&str>,
    ) -> Decision {
        let params = Params::parse(format!("response_type=code&{query}").as_bytes());
        let rules = ReadRules {
            unknown_scopes: UnknownScopes::Ignore,
        };
        let request = AuthorizationRequest::read(&params, &ClientMetadata::default(), rules);
        let session = session.map(|(auth_time, knows_client)| Session {
            auth_time,
            knows_client,
        });
        decide(&request.unwrap(), login, session, "userid:1", hint, NOW)
    }

    fn refused(decision: Decision) -> &'static str {
        match decision {
            Decision::Refuse(code, _) => code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_first_login_is_confirmed_unless_the_client_is_silent() {
        let now = Decision::Proceed { auth_time: NOW };
        let ask = Decision::Ask(Asked::Login);
        assert_eq!(decided("", Login::Confirm, None), ask);
        assert_eq!(decided("", Login::Silent, None), now);
        assert_eq!(decided("max_age=5", Login::Silent, None), now);
        for prompt in ["login", "consent", "select_account"] {
            let decided = decided(&format!("prompt={prompt}"), Login::Silent, None);
            assert_eq!(decided, ask, "{prompt}");
        }
        for login in [Login::Confirm, Login::Silent] {
            assert_eq!(
                refused(decided("prompt=none", login, None)),
                "login_required"
            );
        }
    }

    #[test]
    fn a_session_that_knows_the_client_asks_no_more() {
        let then = Decision::Proceed { auth_time: 9_000 };
        for query in [
            "",
            "prompt=none",
            "max_age=1000",
            "max_age=10000&prompt=none",
        ] {
            assert_eq!(
                decided(query, Login::Confirm, Some((9_000, true))),
                then,
                "{query}"
            );
            assert_eq!(
                decided(query, Login::Silent, Some((9_000, false))),
                then,
                "{query}"
            );
        }
        let other = Some((9_000, false));
        assert_eq!(
            decided("", Login::Confirm, other),
            Decision::Ask(Asked::Client)
        );
        let none = decided("prompt=none", Login::Confirm, other);
        assert_eq!(refused(none), "interaction_required");
        let consent = decided("prompt=consent", Login::Silent, other);
        assert_eq!(consent, Decision::Ask(Asked::Client));
    }

    #[test]
    fn a_login_that_is_too_old_or_asked_for_again_is_made_anew() {
        let known = Some((9_000, true));
        for query in [
            "max_age=999",
            "max_age=0",
            "prompt=login",
            "prompt=select_account",
        ] {
            assert_eq!(
                decided(query, Login::Confirm, known),
                Decision::Ask(Asked::Login),
                "{query}"
            );
        }
        // Where nobody is asked, the network's word is a login of now.
        let now = Decision::Proceed { auth_time: NOW };
        assert_eq!(decided("max_age=999", Login::Silent, known), now);
        let ask = Decision::Ask(Asked::Login);
        assert_eq!(decided("prompt=login", Login::Silent, known), ask);
        let none = decided("max_age=999&prompt=none", Login::Silent, known);
        assert_eq!(refused(none), "login_required");
    }

    #[test]
    fn an_acr_that_must_be_is_there_or_the_login_fails() {
        let wish = |acr: &str| {
            let claims =
                format!("{{\"id_token\":{{\"acr\":{{\"essential\":true,\"value\":\"{acr}\"}}}}}}");
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.append_pair("claims", &claims);
            query.finish()
        };
        let known = Some((9_000, true));
        let then = Decision::Proceed { auth_time: 9_000 };
        assert_eq!(decided(&wish("0"), Login::Confirm, known), then);
        let ask = Decision::Ask(Asked::Login);
        for login in [Login::Confirm, Login::Silent] {
            assert_eq!(decided(&wish("1"), login, known), ask);
            let none = decided(&format!("{}&prompt=none", wish("1")), login, known);
            assert_eq!(refused(none), "login_required");
            let unmet = decided(&wish("2"), login, known);
            assert_eq!(refused(unmet), "unmet_authentication_requirements");
        }
        // A mere wish changes nothing.
        assert_eq!(decided("acr_values=1", Login::Confirm, known), then);
    }

    #[test]
    fn a_request_about_somebody_else_is_refused() {
        let session = Some((9_000, true));
        let mine = hinted("prompt=none", Login::Confirm, session, Some("userid:1"));
        assert_eq!(mine, Decision::Proceed { auth_time: 9_000 });
        let others = hinted("", Login::Silent, session, Some("userid:2"));
        assert_eq!(refused(others), "login_required");
    }
}
