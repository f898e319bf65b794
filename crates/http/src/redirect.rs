//! Sends callers that ask for `http` to `https` at the same host, or at the name for which there is
//! a certificate.

use axum::{
    Router,
    extract::Request,
    response::{IntoResponse as _, Response},
    routing::any,
};
use http::{HeaderValue, StatusCode, header};

use super::{
    Error,
    error::Kind,
    host::{self, NodeNames},
};

/// Redirects every request to `https` at this port, with its path and query. The method stays
/// (308, RFC 9110, section 15.4.9), so that a `POST` is not turned into a `GET`.
///
/// With `names`, callers that use another name or an address of this node are sent to its full
/// name: the certificate is for that one alone.
pub fn router(port: u16, names: Option<NodeNames>) -> Router {
    let answer =
        any(move |request: Request| std::future::ready(redirect(port, names.as_ref(), &request)));
    // Not the router's fallback: `layers` sets that.
    Router::new()
        .route("/", answer.clone())
        .route("/{*path}", answer)
}

fn redirect(port: u16, names: Option<&NodeNames>, request: &Request) -> Result<Response, Error> {
    let (host, _) = host::requested_host(request.version(), request.uri(), request.headers())?
        .ok_or_else(|| Error::from(host::UnclearHost::Ambiguous))?;
    let host = names.and_then(|names| names.full(&host)).unwrap_or(host);
    let port = match port {
        443 => String::new(),
        port => format!(":{port}"),
    };
    let rest = request
        .uri()
        .path_and_query()
        .map_or("/", |rest| rest.as_str());
    let location = HeaderValue::try_from(format!("https://{host}{port}{rest}")).map_err(|_| {
        Error::new(
            Kind::BadRequest,
            "bad_target",
            "the request's target cannot be repeated in a header",
        )
    })?;
    // Not to be kept: the next start may have other listeners.
    let headers = [
        (header::LOCATION, location),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((StatusCode::PERMANENT_REDIRECT, headers).into_response())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn location(port: u16, host: &str, target: &str) -> Result<String, &'static str> {
        let request = Request::post(target).header(header::HOST, host);
        match redirect(port, None, &request.body(Body::empty()).unwrap()) {
            Ok(response) => {
                assert_eq!(response.status(), StatusCode::PERMANENT_REDIRECT);
                let location = &response.headers()[header::LOCATION];
                Ok(location.to_str().unwrap().to_owned())
            }
            Err(error) => Err(error.code),
        }
    }

    #[test]
    fn host_path_and_query_stay_and_the_port_is_that_of_https() {
        let to = |port, host| location(port, host, "/issue?audience=a%20b").unwrap();
        assert_eq!(to(443, "tailbone"), "https://tailbone/issue?audience=a%20b");
        assert_eq!(
            to(8443, "tailbone.example.ts.net:80"),
            "https://tailbone.example.ts.net:8443/issue?audience=a%20b"
        );
        assert_eq!(
            to(443, "[fd7a::1]:80"),
            "https://[fd7a::1]/issue?audience=a%20b"
        );
    }

    #[test]
    fn where_a_certificate_is_for_the_full_name_callers_are_sent_there() {
        let names = NodeNames::default();
        let address = "100.64.0.1".parse().unwrap();
        names.set("tailbone.example.ts.net", "tailbone", &[address]);
        let to = |host: &str| {
            let request = Request::get("/").header(header::HOST, host);
            let request = request.body(Body::empty()).unwrap();
            let response = redirect(443, Some(&names), &request).unwrap();
            response.headers()[header::LOCATION]
                .to_str()
                .unwrap()
                .to_owned()
        };
        for own in [
            "tailbone",
            "TAILBONE:80",
            "100.64.0.1",
            "tailbone.example.ts.net.",
        ] {
            assert_eq!(to(own), "https://tailbone.example.ts.net/", "{own}");
        }
        assert_eq!(to("auth.example.com"), "https://auth.example.com/");
    }

    #[test]
    fn a_request_without_a_clear_host_is_not_redirected() {
        assert_eq!(location(443, "a b", "/"), Err("bad_host"));
        assert_eq!(location(443, "one", "http://other/"), Err("bad_host"));
    }
}
