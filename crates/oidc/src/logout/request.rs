//! The request to sign out (OpenID Connect RP-Initiated Logout 1.0): what it says, and where the
//! browser may go afterwards.
//!
//! Invariants
//! - The browser goes only to an address that the client has registered, compared byte by byte, and
//!   only if the request says which client sent it.
//! - An ID token is a hint for as long as its key is published, also after its end.

use serde_json::{Map, Value};

use crate::{
    OidcError, Params,
    client::{ClientMetadata, redirect},
};

/// The longest `state` that goes back to the client.
const MAX_STATE: usize = 2048;

/// What a request says, unchecked. `logout_hint` and `ui_locales` change nothing: a browser has one
/// session, and pages have one language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndSessionRequest<'a> {
    pub id_token_hint: Option<&'a str>,
    pub client_id: Option<&'a str>,
    pub post_logout_redirect_uri: Option<&'a str>,
    pub state: Option<&'a str>,
}

impl<'a> EndSessionRequest<'a> {
    pub fn read(params: &'a Params) -> Result<Self, OidcError> {
        params.check_duplicates()?;
        let state = params.get("state");
        if state.is_some_and(|state| state.len() > MAX_STATE) {
            return Err(OidcError::invalid_request("state is too long"));
        }
        Ok(Self {
            id_token_hint: params.get("id_token_hint"),
            client_id: params.get("client_id"),
            post_logout_redirect_uri: params.get("post_logout_redirect_uri"),
            state,
        })
    }

    /// Which client sent the request. A hint that is no ID token of ours proves nothing, and takes
    /// away what `client_id` says.
    pub fn client<'b>(&self, hint: Option<&'b IdTokenHint>) -> Result<Option<&'b str>, OidcError>
    where
        'a: 'b,
    {
        match (hint, self.client_id) {
            (Some(hint), Some(named)) if hint.client_id != named => {
                let sentence = "id_token_hint was given to another client than client_id";
                Err(OidcError::invalid_request(sentence))
            }
            (Some(hint), _) => Ok(Some(&hint.client_id)),
            (None, named) => Ok(named.filter(|_| self.id_token_hint.is_none())),
        }
    }

    /// Where the browser goes when the session has ended, if that is somewhere else.
    pub fn return_to(&self, client: &ClientMetadata) -> Result<Option<String>, OidcError> {
        let Some(uri) = self.post_logout_redirect_uri else {
            return Ok(None);
        };
        let mut registered = client.post_logout_redirect_uris.iter();
        if !registered.any(|one| one == uri) {
            let sentence = "post_logout_redirect_uri is none that the client has registered";
            return Err(OidcError::invalid_request(sentence));
        }
        let state = self.state.map(|state| ("state", state));
        Ok(Some(match state {
            Some(state) => redirect::with_params(uri, [state]),
            None => uri.to_owned(),
        }))
    }
}

/// What an ID token of ours says about the login that it came of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdTokenHint {
    pub client_id: String,
    pub subject: String,
    /// The browser session.
    pub session: Option<String>,
}

impl IdTokenHint {
    /// Of claims whose signature is good. `None` for those of another kind of token.
    pub fn of(claims: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| claims.get(name).and_then(Value::as_str).map(str::to_owned);
        // An ID token has both; signed UserInfo has neither.
        let _times = (claims.get("iat")?.as_i64()?, claims.get("exp")?.as_i64()?);
        if claims.contains_key("events") {
            return None;
        }
        let client_id = match (claims.get("aud")?, text("azp")) {
            (Value::String(one), None) => one.clone(),
            (_, authorized) => authorized?,
        };
        Some(Self {
            client_id,
            subject: text("sub")?,
            session: text("sid"),
        })
    }

    /// Whether it came of this session: of its id, where the token has one.
    pub fn is_of(&self, session: &str, subject: &str) -> bool {
        match &self.session {
            Some(own) => own == session && self.subject == subject,
            None => self.subject == subject,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn client() -> ClientMetadata {
        ClientMetadata {
            post_logout_redirect_uris: vec!["https://a/out?x=1".into(), "http://127.0.0.1/".into()],
            ..ClientMetadata::default()
        }
    }

    fn returned(query: &str) -> Result<Option<String>, String> {
        let params = Params::parse(query.as_bytes());
        EndSessionRequest::read(&params)
            .and_then(|request| request.return_to(&client()))
            .map_err(|error| error.description.into_owned())
    }

    #[test]
    fn the_browser_goes_to_a_registered_address_and_to_no_other() {
        assert_eq!(returned("state=s"), Ok(None));
        let registered = "post_logout_redirect_uri=https://a/out?x%3D1";
        assert_eq!(returned(registered), Ok(Some("https://a/out?x=1".into())));
        assert_eq!(
            returned(&format!("{registered}&state=a%26b")),
            Ok(Some("https://a/out?x=1&state=a%26b".into()))
        );
        for other in [
            "https://a/out",
            "https://a/out?x%3D1%26y%3D2",
            "https://a/out?x%3D1%23f",
            "HTTPS://a/out?x%3D1",
            "https://a:443/out?x%3D1",
            "https://evil.example/out?x%3D1",
            // Unlike a redirect of a login, which a native application waits for at any port.
            "http://127.0.0.1:8080/",
        ] {
            let refused = returned(&format!("post_logout_redirect_uri={other}")).unwrap_err();
            assert!(refused.contains("registered"), "{other}: {refused}");
        }
        assert!(returned(&format!("{registered}&{registered}")).is_err());
        assert!(returned(&format!("state={}", "s".repeat(2049))).is_err());
    }

    #[test]
    fn the_client_is_the_one_of_the_hint_or_the_one_that_is_named() {
        let hint = IdTokenHint {
            client_id: "app".into(),
            subject: "userid:1".into(),
            session: None,
        };
        let client = |query: &str, hint| {
            let params = Params::parse(query.as_bytes());
            let request = EndSessionRequest::read(&params).unwrap();
            let client = request.client(hint).map(|one| one.map(str::to_owned));
            client.map_err(|error| error.code)
        };
        let app = Some("app".to_owned());
        assert_eq!(client("", None), Ok(None));
        assert_eq!(client("client_id=app", None), Ok(app.clone()));
        assert_eq!(client("id_token_hint=h", Some(&hint)), Ok(app.clone()));
        assert_eq!(
            client("id_token_hint=h&client_id=app", Some(&hint)),
            Ok(app)
        );
        let other = client("id_token_hint=h&client_id=other", Some(&hint));
        assert_eq!(other, Err("invalid_request"));
        // The hint is no ID token of ours.
        assert_eq!(client("id_token_hint=h&client_id=app", None), Ok(None));
    }

    #[test]
    fn only_an_id_token_is_a_hint() {
        let of = |claims: Value| IdTokenHint::of(claims.as_object().unwrap());
        let token = json!({"aud": "app", "sub": "userid:1", "iat": 1, "exp": 2, "sid": "s"});
        let hint = of(token.clone()).unwrap();
        assert_eq!(
            (hint.client_id.as_str(), hint.subject.as_str()),
            ("app", "userid:1")
        );
        assert!(hint.is_of("s", "userid:1"));
        assert!(!hint.is_of("t", "userid:1") && !hint.is_of("s", "userid:2"));
        let mut several = token.clone();
        several["aud"] = json!(["app", "https://mcp"]);
        assert_eq!(of(several.clone()), None);
        several["azp"] = "app".into();
        assert_eq!(of(several).unwrap().client_id, "app");
        let mut older = token.clone();
        older.as_object_mut().unwrap().remove("sid");
        let older = of(older).unwrap();
        assert!(older.is_of("any", "userid:1") && !older.is_of("any", "userid:2"));
        for member in ["aud", "sub", "iat", "exp"] {
            let mut without = token.clone();
            without.as_object_mut().unwrap().remove(member);
            assert_eq!(of(without), None, "{member}");
        }
        let mut logout = token;
        logout["events"] = json!({});
        assert_eq!(of(logout), None);
    }
}
