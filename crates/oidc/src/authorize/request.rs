//! Reading an authorization request.

use url::Url;

use super::{ACR_CONFIRMED, ACR_NETWORK, Challenge, ReplyTo, ResponseMode, SCOPES};
use crate::{
    OidcError, Params,
    claims::ClaimsRequest,
    client::{ClientMetadata, redirect},
    describable,
};

/// The most scopes and resources that a request may name.
const MAX_WORDS: usize = 50;

/// The longest value that is kept for later: a `nonce`, a `state`, a resource.
const MAX_TEXT: usize = 2048;

/// The longest login that is shown: a mail address has no more characters.
const MAX_LOGIN: usize = 254;

/// The client and the redirect URI that a request names, unchecked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination<'a> {
    pub client_id: &'a str,
    pub redirect_uri: &'a str,
}

/// Which client asks, and where its answer would go; in tsidp's words and order.
pub fn destination(params: &Params) -> Result<Destination<'_>, OidcError> {
    for name in ["redirect_uri", "client_id"] {
        if params.all(name).len() > 1 {
            let sentence = format!("{name} occurs twice");
            return Err(OidcError::invalid_request(sentence));
        }
    }
    let redirect_uri = params.get("redirect_uri");
    Ok(Destination {
        redirect_uri: redirect_uri.ok_or_else(|| missing("redirect_uri"))?,
        client_id: client_id(params)?,
    })
}

/// Which client asks, where the rest of its request stands elsewhere.
pub fn client_id(params: &Params) -> Result<&str, OidcError> {
    if params.all("client_id").len() > 1 {
        return Err(OidcError::invalid_request("client_id occurs twice"));
    }
    params.get("client_id").ok_or_else(|| missing("client_id"))
}

fn missing(name: &str) -> OidcError {
    OidcError::invalid_request(format!("must specify {name}"))
}

impl Destination<'_> {
    /// Where answers go, once the client is known.
    pub fn reply_to(&self, client: &ClientMetadata, params: &Params) -> Result<ReplyTo, OidcError> {
        if !redirect::is_registered(&client.redirect_uris, self.redirect_uri) {
            return Err(OidcError::invalid_request("redirect_uri mismatch"));
        }
        let mode = params.get("response_mode").and_then(ResponseMode::parse);
        Ok(ReplyTo {
            redirect_uri: self.redirect_uri.to_owned(),
            mode: mode.unwrap_or_default(),
            state: params.get("state").map(str::to_owned),
        })
    }
}

/// Why a request is refused: what the client is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {description}")]
pub struct Refused {
    pub code: &'static str,
    pub description: String,
}

impl Refused {
    pub fn new(code: &'static str, description: impl Into<String>) -> Self {
        Self {
            code,
            description: description.into(),
        }
    }

    fn invalid(description: impl Into<String>) -> Self {
        Self::new("invalid_request", description)
    }
}

/// What becomes of scopes that mean nothing here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownScopes {
    /// As OpenID Connect Core, section 3.1.2.1, wishes.
    #[default]
    Ignore,
    /// As in tsidp.
    Refuse,
}

/// What is asked of the person, or must not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prompt {
    pub none: bool,
    pub login: bool,
    pub consent: bool,
    pub select_account: bool,
}

/// How requests of a client are read.
#[derive(Debug, Clone, Copy)]
pub struct ReadRules {
    pub unknown_scopes: UnknownScopes,
}

/// A request that is good by itself. Whether this person may have it is for others to say.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthorizationRequest {
    pub scopes: Vec<String>,
    /// Some that were asked for are not among them.
    pub scopes_narrowed: bool,
    pub nonce: Option<String>,
    pub challenge: Option<Challenge>,
    pub prompt: Prompt,
    /// Seconds since the person last confirmed.
    pub max_age: Option<u64>,
    pub claims: ClaimsRequest,
    pub resources: Vec<String>,
    pub id_token_hint: Option<String>,
    /// Who the client expects, for the page.
    pub login_hint: Option<String>,
    /// The ID token tells how the person was authenticated.
    wants_acr: bool,
}

impl AuthorizationRequest {
    pub fn read(
        params: &Params,
        client: &ClientMetadata,
        rules: ReadRules,
    ) -> Result<Self, Refused> {
        if params.duplicate().is_some() {
            return Err(Refused::invalid("a parameter occurs twice"));
        }
        if params
            .get("response_mode")
            .is_some_and(|mode| ResponseMode::parse(mode).is_none())
        {
            let modes = ResponseMode::NAMES.join(" or ");
            return Err(Refused::invalid(format!("response_mode is {modes}")));
        }
        if params.get("registration").is_some() {
            let sentence = "registration is not supported";
            return Err(Refused::new("registration_not_supported", sentence));
        }
        match params.get("response_type") {
            Some("code") => {}
            None => return Err(Refused::invalid("must specify response_type")),
            Some(_) => {
                let sentence = "response_type is code";
                return Err(Refused::new("unsupported_response_type", sentence));
            }
        }
        let (scopes, scopes_narrowed) = parse_scopes(
            params.get("scope").unwrap_or_default(),
            rules.unknown_scopes,
        )?;
        let challenge = challenge(params, client)?;
        let claims = match params.get("claims") {
            None => ClaimsRequest::default(),
            Some(text) => {
                ClaimsRequest::parse(text).map_err(|bad| Refused::invalid(bad.to_string()))?
            }
        };
        let nonce = params.get("nonce");
        if nonce.is_some_and(|nonce| nonce.len() > MAX_TEXT) {
            return Err(Refused::invalid("nonce is too long"));
        }
        Ok(Self {
            scopes,
            scopes_narrowed,
            nonce: nonce.map(str::to_owned),
            challenge,
            prompt: prompt(params.get("prompt").unwrap_or_default())?,
            max_age: max_age(params, client)?,
            claims,
            resources: resources(params)?,
            id_token_hint: params.get("id_token_hint").map(str::to_owned),
            login_hint: login_hint(params),
            wants_acr: params.get("acr_values").is_some(),
        })
    }

    /// Whether the ID token must tell when the person confirmed.
    pub fn wants_auth_time(&self, client: &ClientMetadata) -> bool {
        self.max_age.is_some()
            || client.require_auth_time == Some(true)
            || self.claims.wants_auth_time()
    }

    /// What the ID token says about the authentication, if the request asks. `confirmed`: the
    /// person has confirmed this very request.
    pub fn acr(&self, confirmed: bool) -> Option<&'static str> {
        let asked = self.wants_acr || self.claims.id_token.contains_key("acr");
        asked.then_some(if confirmed && self.takes_acr(ACR_CONFIRMED) {
            ACR_CONFIRMED
        } else {
            ACR_NETWORK
        })
    }

    /// Whether the request can do with this `acr`. One that merely wishes for another can (OpenID
    /// Connect Core, section 5.5.1.1).
    pub fn takes_acr(&self, acr: &str) -> bool {
        let wish = self.claims.id_token.get("acr");
        wish.is_none_or(|wish| {
            let mut values = wish.values.iter();
            !wish.essential || wish.values.is_empty() || values.any(|value| value == acr)
        })
    }

    /// Whether the request is about a person of this subject, as far as it names one.
    pub fn is_about(&self, subject: &str) -> bool {
        let mut named = self.claims.subjects().peekable();
        named.peek().is_none() || named.any(|one| one.as_str() == Some(subject))
    }
}

/// The scopes that count, and whether others were asked for. Without any it is `openid`, as in
/// tsidp; duplicates and order stay.
pub fn parse_scopes(text: &str, unknown: UnknownScopes) -> Result<(Vec<String>, bool), Refused> {
    let mut scopes = Vec::new();
    let mut narrowed = false;
    for word in text.split_whitespace() {
        if SCOPES.contains(&word) {
            scopes.push(word.to_owned());
        } else if unknown == UnknownScopes::Ignore {
            narrowed = true;
        } else {
            let word = describable(word);
            let sentence = format!("invalid scope: unsupported scope: {word:?}");
            return Err(Refused::new("invalid_scope", sentence));
        }
        if scopes.len() > MAX_WORDS {
            return Err(Refused::new("invalid_scope", "too many scopes"));
        }
    }
    if scopes.is_empty() {
        scopes.push("openid".to_owned());
    }
    Ok((scopes, narrowed))
}

fn challenge(params: &Params, client: &ClientMetadata) -> Result<Option<Challenge>, Refused> {
    let method = params.get("code_challenge_method");
    let Some(challenge) = params.get("code_challenge") else {
        if method.is_some() {
            return Err(Refused::invalid("must specify code_challenge"));
        }
        if client.is_public() {
            return Err(Refused::invalid(
                "must specify code_challenge: the client has no secret",
            ));
        }
        return Ok(None);
    };
    // Without a method it would be plain, which protects nothing (RFC 9700, section 2.1.1).
    if method != Some("S256") {
        return Err(Refused::invalid("unsupported code_challenge_method"));
    }
    match Challenge::parse(challenge) {
        Some(challenge) => Ok(Some(challenge)),
        None => Err(Refused::invalid(
            "code_challenge is no SHA-256 in base64url",
        )),
    }
}

/// Words that mean nothing here are ignored.
fn prompt(text: &str) -> Result<Prompt, Refused> {
    let mut prompt = Prompt::default();
    let mut words = 0;
    for word in text.split_whitespace() {
        words += 1;
        match word {
            "none" => prompt.none = true,
            "login" => prompt.login = true,
            "consent" => prompt.consent = true,
            "select_account" => prompt.select_account = true,
            _ => {}
        }
    }
    if prompt.none && words > 1 {
        return Err(Refused::invalid("prompt=none excludes every other prompt"));
    }
    Ok(prompt)
}

/// What could be a login. Everything else is not shown: whoever sends a person here must not be
/// able to write a sentence on our page.
fn login_hint(params: &Params) -> Option<String> {
    let hint = params.get("login_hint")?;
    let shown = hint.len() <= MAX_LOGIN && hint.chars().all(|c| c.is_ascii_graphic());
    shown.then(|| hint.to_owned())
}

fn max_age(params: &Params, client: &ClientMetadata) -> Result<Option<u64>, Refused> {
    match params.get("max_age") {
        None => Ok(client.default_max_age),
        Some(text) => match text.parse() {
            Ok(seconds) => Ok(Some(seconds)),
            Err(_) => Err(Refused::invalid("max_age is not a number of seconds")),
        },
    }
}

/// RFC 8707, section 2: absolute, without a fragment.
pub fn resources(params: &Params) -> Result<Vec<String>, Refused> {
    let named = params.all("resource");
    let bad = |sentence| Err(Refused::new("invalid_target", sentence));
    if named.len() > MAX_WORDS {
        return bad("too many resources");
    }
    for resource in named {
        let fits = resource.len() <= MAX_TEXT && !resource.contains('#');
        if !fits || Url::parse(resource).is_err() {
            return bad("resource is no absolute URI without fragment");
        }
    }
    Ok(named.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

    fn client() -> ClientMetadata {
        ClientMetadata {
            redirect_uris: vec!["https://other/cb".into(), "https://a/cb".into()],
            ..ClientMetadata::default()
        }
    }

    fn public() -> ClientMetadata {
        ClientMetadata {
            token_endpoint_auth_method: crate::client::AuthMethod::None,
            ..client()
        }
    }

    fn read_as(
        query: &str,
        client: &ClientMetadata,
        unknown_scopes: UnknownScopes,
    ) -> Result<AuthorizationRequest, (&'static str, String)> {
        let params = Params::parse(format!("response_type=code&{query}").as_bytes());
        AuthorizationRequest::read(&params, client, ReadRules { unknown_scopes })
            .map_err(|refused| (refused.code, refused.description))
    }

    fn read(query: &str) -> Result<AuthorizationRequest, (&'static str, String)> {
        read_as(query, &client(), UnknownScopes::Ignore)
    }

    fn code(query: &str) -> &'static str {
        read(query).map(|_| ()).unwrap_err().0
    }

    #[test]
    fn the_destination_in_tsidps_words_and_order() {
        let of = |query: &str| {
            let params = Params::parse(query.as_bytes());
            destination(&params)
                .and_then(|to| to.reply_to(&client(), &params).map(|to| to.redirect_uri))
                .map_err(|error| error.description.into_owned())
        };
        assert_eq!(of(""), Err("must specify redirect_uri".into()));
        assert_eq!(of("client_id=c"), Err("must specify redirect_uri".into()));
        assert_eq!(of("redirect_uri=x"), Err("must specify client_id".into()));
        let mismatch = of("client_id=c&redirect_uri=https://a/cb/");
        assert_eq!(mismatch, Err("redirect_uri mismatch".into()));
        let twice = of("client_id=c&redirect_uri=https://a/cb&redirect_uri=https://b");
        assert_eq!(twice, Err("redirect_uri occurs twice".into()));
        assert_eq!(
            of("client_id=c&redirect_uri=https://a/cb"),
            Ok("https://a/cb".into())
        );
    }

    #[test]
    fn scopes_keep_their_order_and_unknown_ones_go_or_fail() {
        let scopes =
            |query: &str| read(query).map(|one| (one.scopes.join(" "), one.scopes_narrowed));
        assert_eq!(scopes(""), Ok(("openid".into(), false)));
        assert_eq!(
            scopes("scope=profile++openid+openid"),
            Ok(("profile openid openid".into(), false))
        );
        assert_eq!(
            scopes("scope=openid+offline_access+email"),
            Ok(("openid email".into(), true))
        );
        assert_eq!(
            read_as("scope=openid+address", &client(), UnknownScopes::Refuse),
            Err((
                "invalid_scope",
                "invalid scope: unsupported scope: \"address\"".into()
            ))
        );
    }

    #[test]
    fn pkce_is_s256_or_nothing_and_a_public_client_needs_it() {
        assert_eq!(read("").unwrap().challenge, None);
        let good = format!("code_challenge={CHALLENGE}&code_challenge_method=S256");
        assert!(read(&good).unwrap().challenge.is_some());
        for bad in [
            format!("code_challenge={CHALLENGE}"),
            format!("code_challenge={CHALLENGE}&code_challenge_method=plain"),
            "code_challenge=short&code_challenge_method=S256".into(),
            "code_challenge_method=S256".into(),
        ] {
            assert_eq!(code(&bad), "invalid_request", "{bad}");
        }
        let unknown = UnknownScopes::Ignore;
        assert!(read_as("", &public(), unknown).is_err());
        assert!(read_as(&good, &public(), unknown).is_ok());
    }

    #[test]
    fn what_is_not_supported_is_refused_and_not_ignored() {
        assert_eq!(code("registration=x"), "registration_not_supported");
        assert_eq!(code("response_mode=fragment"), "invalid_request");
        assert_eq!(code("state=1&state=2"), "invalid_request");
        assert_eq!(code("max_age=-1"), "invalid_request");
        assert_eq!(code("claims=x"), "invalid_request");
        assert_eq!(code("prompt=none+login"), "invalid_request");
        assert_eq!(code("resource=/relative"), "invalid_target");
        assert_eq!(code("resource=https://a/%23f"), "invalid_target");
        let rules = ReadRules {
            unknown_scopes: UnknownScopes::Ignore,
        };
        for (query, code) in [
            ("", "invalid_request"),
            ("response_type=token", "unsupported_response_type"),
            ("response_type=code+id_token", "unsupported_response_type"),
        ] {
            let params = Params::parse(query.as_bytes());
            let refused = AuthorizationRequest::read(&params, &client(), rules).unwrap_err();
            assert_eq!(refused.code, code, "{query}");
        }
    }

    #[test]
    fn what_standards_say_must_not_be_an_error() {
        let query = "extra=foobar&display=popup&ui_locales=se&claims_locales=se&acr_values=1+2\
                     &login_hint=bob&prompt=create&resource=https://a&resource=urn:b";
        let request = read(query).unwrap();
        assert_eq!(request.resources, ["https://a", "urn:b"]);
        assert_eq!(request.prompt, Prompt::default());
    }

    #[test]
    fn how_the_person_was_authenticated_is_told_to_those_who_ask() {
        let acr = |query: &str| {
            let request = read(query).unwrap();
            [request.acr(false), request.acr(true)]
        };
        let essential = |values: &str| {
            let claims = format!("{{\"id_token\":{{\"acr\":{{\"essential\":true,{values}}}}}}}");
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.append_pair("claims", &claims);
            read(&query.finish()).unwrap()
        };
        assert_eq!(acr(""), [None, None]);
        assert_eq!(acr("acr_values=1+2"), [Some("0"), Some("1")]);
        assert_eq!(
            acr("claims=%7B%22id_token%22:%7B%22acr%22:null%7D%7D"),
            [Some("0"), Some("1")]
        );
        let confirmed = essential("\"values\":[\"1\",\"2\"]");
        assert!(confirmed.takes_acr("1") && !confirmed.takes_acr("0"));
        let network = essential("\"value\":\"0\"");
        assert_eq!(
            network.acr(true),
            Some("0"),
            "a confirmation is more than was asked for"
        );
        let neither = essential("\"value\":\"urn:mace:incommon:iap:silver\"");
        assert!(!neither.takes_acr("0") && !neither.takes_acr("1"));
    }

    #[test]
    fn only_a_login_is_a_login_hint() {
        let hint = |query: &str| read(query).unwrap().login_hint;
        assert_eq!(hint("login_hint=bob@a").as_deref(), Some("bob@a"));
        for other in ["call+1-800", "b%0Aob", "%E2%80%AEbob", &"b".repeat(255)] {
            assert_eq!(hint(&format!("login_hint={other}")), None, "{other}");
        }
    }

    #[test]
    fn the_age_of_a_login_and_its_person() {
        let mut by_default = client();
        by_default.default_max_age = Some(10);
        let read = |query| read_as(query, &by_default, UnknownScopes::Ignore).unwrap();
        assert_eq!(read("").max_age, Some(10));
        assert_eq!(read("max_age=0").max_age, Some(0));
        assert!(read("").wants_auth_time(&by_default));
        let request =
            read("claims=%7B%22id_token%22:%7B%22sub%22:%7B%22value%22:%22userid:1%22%7D%7D%7D");
        assert!(request.is_about("userid:1") && !request.is_about("userid:2"));
        assert!(read("").is_about("userid:2"));
    }
}
