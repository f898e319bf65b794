//! Chooses the upstream for a request: the most specific host, and among those the longest path.

use ::http::{Uri, uri::Authority};

use super::{GateError, error::MalformedRequest};
use crate::{
    config::{self, UpstreamScheme},
    policy::{Host, HostPattern, Path, PathPrefix},
};

/// A server behind the gate.
#[derive(Debug, Clone)]
pub(super) struct Upstream {
    host: Option<HostPattern>,
    prefix: PathPrefix,
    authority: Authority,
    pub(super) scheme: UpstreamScheme,
}

impl Upstream {
    /// For our log and errors; never shown to a caller.
    pub(super) fn address(&self) -> &str {
        self.authority.as_str()
    }

    /// The same target on the upstream.
    pub(super) fn uri(&self, uri: &Uri) -> Result<Uri, ::http::Error> {
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        Uri::builder()
            .scheme(if self.scheme.tls() { "https" } else { "http" })
            .authority(self.authority.clone())
            .path_and_query(target)
            .build()
    }
}

#[derive(Debug)]
pub(super) struct UpstreamTable(Vec<Upstream>);

impl UpstreamTable {
    pub(super) fn new(settings: &[config::UpstreamSettings]) -> Result<Self, GateError> {
        let mut upstreams: Vec<Upstream> = Vec::new();
        for config::UpstreamSettings {
            host,
            path,
            address,
            scheme,
        } in settings
        {
            let host = match host.as_str() {
                "" => None,
                host => Some(HostPattern::parse(host).map_err(GateError::Upstream)?),
            };
            let path = if path.is_empty() { "/" } else { path };
            let upstream = Upstream {
                host,
                prefix: PathPrefix::parse(path).map_err(GateError::Upstream)?,
                authority: address
                    .parse()
                    .map_err(|_| GateError::Upstream(format!("{address:?} is no host:port")))?,
                scheme: *scheme,
            };
            let same_target =
                |other: &&Upstream| other.host == upstream.host && other.prefix == upstream.prefix;
            if upstreams.iter().find(same_target).is_some() {
                return Err(GateError::DuplicateUpstream(upstream.authority.to_string()));
            }
            upstreams.push(upstream);
        }
        upstreams.sort_by_key(|upstream| {
            let host = match &upstream.host {
                Some(HostPattern::Exactly(_)) => (0, 0),
                Some(HostPattern::Below(suffix)) => (1, usize::MAX - suffix.len()),
                None => (2, 0),
            };
            (host, usize::MAX - upstream.prefix.len())
        });
        Ok(Self(upstreams))
    }

    /// Whether an upstream names this host or its domain.
    pub(super) fn names_host(&self, host: &Host) -> bool {
        let named = |upstream: &Upstream| {
            upstream
                .host
                .as_ref()
                .is_some_and(|name| name.matches(host))
        };
        self.0.iter().any(named)
    }

    /// The upstreams that serve every host.
    pub(super) fn without_host(&self) -> impl Iterator<Item = &Upstream> {
        self.0.iter().filter(|upstream| upstream.host.is_none())
    }

    /// A path that two upstreams could claim goes to neither.
    pub(super) fn choose(
        &self,
        host: &Host,
        path: &Path,
    ) -> Result<Option<&Upstream>, MalformedRequest> {
        let for_host = |upstream: &&Upstream| match &upstream.host {
            Some(pattern) => pattern.matches(host),
            None => true,
        };
        let chosen = path.choose(|holds| {
            self.0
                .iter()
                .filter(for_host)
                .find(|upstream| holds(&upstream.prefix))
        })?;
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(list: &[(&str, &str, &str)]) -> UpstreamTable {
        let settings: Vec<_> = list
            .iter()
            .map(|(host, path, address)| config::UpstreamSettings {
                host: (*host).into(),
                path: (*path).into(),
                address: (*address).into(),
                scheme: UpstreamScheme::Http,
            })
            .collect();
        UpstreamTable::new(&settings).unwrap()
    }

    #[test]
    fn the_nearest_host_and_the_longest_path_win() {
        let table = table(&[
            ("", "", "default:1"),
            ("", "/api", "api:1"),
            ("", "/api/v2", "v2:1"),
            ("*.example.com", "", "below:1"),
            ("wiki.example.com", "/", "wiki:1"),
            ("wiki.example.com", "/api", "wikiapi:1"),
        ]);
        let chosen = |host, path| {
            table
                .choose(&Host::parse(host).unwrap(), &Path::parse(path).unwrap())
                .map(|upstream| upstream.map(|u| u.address().to_owned()).unwrap_or_default())
        };
        assert_eq!(chosen("x", "/").as_deref(), Ok("default:1"));
        assert_eq!(chosen("x", "/api/v2/y").as_deref(), Ok("v2:1"));
        assert_eq!(chosen("x", "/apiv2").as_deref(), Ok("default:1"));
        assert_eq!(chosen("a.example.com", "/api").as_deref(), Ok("below:1"));
        assert_eq!(
            chosen("wiki.example.com", "/api/x").as_deref(),
            Ok("wikiapi:1")
        );
        assert_eq!(chosen("x", "/api%20x").as_deref(), Ok("default:1"));
        assert!(
            chosen("x", "/api/../y").is_err(),
            "two upstreams could be meant"
        );
    }

    #[test]
    fn two_for_the_same_are_a_mistake() {
        let twice = config::UpstreamSettings {
            host: String::new(),
            path: "/a/".into(),
            address: "x:1".into(),
            scheme: UpstreamScheme::Http,
        };
        let other = config::UpstreamSettings {
            path: "/a".into(),
            ..twice.clone()
        };
        assert!(matches!(
            UpstreamTable::new(&[twice, other]),
            Err(GateError::DuplicateUpstream(_))
        ));
    }
}
