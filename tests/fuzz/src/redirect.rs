//! The page to which the gate sends a browser without identity. Input: the setting
//! `gate.auth.redirect` in the first line, then the lines of a request (`request.rs`) as a proxy
//! sends it to `/auth/forwarded`.

use tailbone::{gate::fuzzing, policy::Host};
use url::Url;

pub(super) fn run(data: &[u8]) {
    let Some((setting, lines)) = super::text(data).and_then(|text| text.split_once('\n')) else {
        return;
    };
    // The settings refuse an address that cannot be opened.
    let Ok(page) = Url::parse(setting) else {
        return;
    };
    let Some(parts) = super::request::read("/auth/forwarded", lines.split('\n')) else {
        return;
    };
    let Some(asked) = fuzzing::forwarded_request(&parts, None, Some(setting)) else {
        return;
    };
    let Some(location) = asked.redirect else {
        return;
    };
    // It leads to the page of the setting and nowhere else, with one more parameter.
    let Ok(location) = location.to_str() else {
        assert!(!setting.is_ascii(), "only the setting's own letters");
        return;
    };
    let (start, fragment) = setting.split_at(setting.find('#').unwrap_or(setting.len()));
    let added = location.strip_prefix(start).expect("the setting's page");
    let back = added
        .strip_suffix(fragment)
        .and_then(|added| added.strip_prefix(['?', '&']))
        .and_then(|added| added.strip_prefix("rd="))
        .expect("one parameter");
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._~%".contains(&b);
    assert!(back.bytes().all(fits), "{back}");
    let there = Url::parse(location).unwrap();
    assert_eq!(page.origin(), there.origin());
    assert!(matches!(there.scheme(), "http" | "https"));
    let told = there.query_pairs().filter(|(name, _)| name == "rd").last();
    let (_, back) = told.expect("a page that is told where to come back to");

    // It leads back to the host that the browser requested, once.
    let (proto, host, target) = asked.url.unwrap();
    assert!(
        back.starts_with(&format!("{proto}://{host}{target}")),
        "{back}"
    );
    assert!(target.starts_with('/') && matches!(proto.as_str(), "http" | "https"));
    if let Ok(url) = Url::parse(&back)
        && let Some(url::Host::Domain(name)) = url.host()
    {
        assert_eq!(Host::parse(name).ok(), asked.target.host, "{back}");
        assert!(url.username().is_empty() && url.password().is_none());
    }
    let mut again = parts.clone();
    let target = back
        .strip_prefix(&format!("{proto}://{host}"))
        .unwrap()
        .parse()
        .unwrap();
    again.headers.insert("x-forwarded-uri", target);
    let again = fuzzing::forwarded_request(&again, None, Some(setting));
    let again = again.and_then(|asked| asked.redirect);
    assert_eq!(again, None, "sent away twice");
}
