//! What clients name and send: ids that are addresses, the documents there, pushed requests, user
//! codes, and the private hosts of the settings. Input: an address in the first line, a document in
//! the rest; the first line is also read as everything else.

use serde_json::Value;
use tailbone_oidc::{
    device,
    documents::{ClientDocument, ClientUrl, is_loopback_only},
    fetch::{Cached as _, FetchUrl, PrivateHost, PrivateHosts},
    par,
};
use url::{Url, form_urlencoded};

pub(super) fn run(data: &[u8]) {
    let Some(text) = super::text(data) else {
        return;
    };
    let (line, document) = text.split_once('\n').unwrap_or((text, ""));
    client_url(line);
    private_host(line);
    user_code(line);
    pushed(text);
    if let Ok(url) = FetchUrl::parse(line) {
        match ClientDocument::parse(&url, document.as_bytes()) {
            Ok(read) => describes(&read, &url, document),
            Err(error) => super::assert_one_line(&error.to_string()),
        }
    }
}

/// One client has one id, and nothing in it leads elsewhere than it seems to.
fn client_url(text: &str) {
    let client = match ClientUrl::parse(text) {
        Ok(client) => client,
        Err(error) => return super::assert_one_line(&error.to_string()),
    };
    let url = Url::parse(text).unwrap();
    assert_eq!((client.as_str(), url.as_str()), (text, text));
    assert!(ClientUrl::is_meant(text) && text.starts_with("https://"));
    assert!(url.username().is_empty() && url.password().is_none() && url.fragment().is_none());
    assert!(url.path().len() > 1);
    let mut segments = url.path_segments().unwrap();
    assert!(
        segments.all(|segment| segment != "." && segment != ".."),
        "{text}"
    );
    assert!(!text.contains(char::is_whitespace), "{text}");
}

fn describes(read: &ClientDocument, url: &FetchUrl, document: &str) {
    let whole: Value = serde_json::from_str(document).unwrap();
    assert_eq!(whole["client_id"], url.as_str());
    assert!(whole.get("client_secret").is_none());
    let method = &read.metadata["token_endpoint_auth_method"];
    assert!(["none", "private_key_jwt"].contains(&method.as_str().unwrap()));
    let uris = whole["redirect_uris"].as_array().unwrap();
    assert!(!uris.is_empty() && uris.len() == read.redirect_uris.len());
    if is_loopback_only(&read.redirect_uris) {
        for uri in &read.redirect_uris {
            let host = Url::parse(uri).unwrap();
            let host = host.host_str().unwrap();
            assert!(
                host == "localhost" || host == "[::1]" || host.starts_with("127."),
                "{uri}"
            );
        }
    }
}

/// What a setting permits, it permits under its own name too, and never a host it does not name.
fn private_host(text: &str) {
    let Ok(host) = text.parse::<PrivateHost>() else {
        return;
    };
    assert_eq!(host.to_string().parse::<PrivateHost>().as_ref(), Ok(&host));
    let none = PrivateHosts::default();
    let one = PrivateHosts(vec![host.clone()]);
    let loopback = std::net::IpAddr::from([127, 0, 0, 1]);
    assert!(!none.permit("other.invalid", loopback));
    if matches!(host, PrivateHost::Named(_)) && !text.to_ascii_lowercase().contains("invalid") {
        assert!(!one.permit("other.invalid", loopback), "{text}");
    }
}

fn user_code(text: &str) {
    if let Some(code) = device::typed_user_code(text) {
        let letters: String = text.chars().filter(char::is_ascii_alphabetic).collect();
        assert_eq!(letters.len(), device::USER_CODE_LETTERS);
        assert_eq!(device::typed_user_code(&letters.to_lowercase()), Some(code));
    }
}

/// What is kept of a pushed request has no secret, names its client, and stays as it is.
fn pushed(text: &str) {
    let kept = match par::parameters(text.as_bytes(), "app") {
        Ok(kept) => kept,
        Err(error) => return super::assert_one_line(&error.to_string()),
    };
    assert_eq!(par::parameters(kept.as_bytes(), "app").unwrap(), kept);
    let pairs: Vec<_> = form_urlencoded::parse(kept.as_bytes()).collect();
    for (name, value) in &pairs {
        assert!(!["client_secret", "client_assertion", "request_uri"].contains(&name.as_ref()));
        assert!(name != "client_id" || value == "app");
    }
    assert!(pairs.iter().any(|(name, _)| name == "client_id"));
}
