//! The sector identifier of a client (OpenID Connect Registration 1.0, section 5): a document that
//! lists the redirect URIs of all clients that see a user under the same name.

use super::{Content, FetchError, FetchUrl, Fetched, GuardedClient, Wanted};

/// A list of addresses.
const MAX_BYTES: usize = 64 << 10;

/// Why a client cannot have the sector that it names.
#[derive(Debug, thiserror::Error)]
pub enum SectorError {
    #[error("sector_identifier_uri cannot be fetched: {0}")]
    Fetch(#[from] FetchError),
    #[error("what is at sector_identifier_uri is not a JSON list of addresses")]
    Form,
    #[error("the list at sector_identifier_uri does not contain {0}")]
    NotListed(String),
}

/// Whether the document at `url` lists all of these redirect URIs.
pub async fn check_sector(
    client: &GuardedClient,
    url: &FetchUrl,
    redirect_uris: &[impl AsRef<str>],
) -> Result<(), SectorError> {
    let wanted = Wanted {
        url,
        content: Content::Json,
        max_bytes: MAX_BYTES,
        etag: None,
    };
    let Fetched::New { body, .. } = client.get(wanted).await? else {
        return Err(SectorError::Form);
    };
    let listed: Vec<String> = serde_json::from_slice(&body).map_err(|_| SectorError::Form)?;
    let missing = (redirect_uris.iter()).find(|uri| !listed.iter().any(|l| l == uri.as_ref()));
    match missing {
        None => Ok(()),
        Some(uri) => Err(SectorError::NotListed(uri.as_ref().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    #[tokio::test]
    async fn every_redirect_uri_must_be_in_the_list() {
        let server = HostileServer::start().await;
        server.answer(
            "/sector",
            json_answer(r#"["https://a.example/1","https://b.example/"]"#),
        );
        server.answer("/object", json_answer(r#"{"redirect_uris":[]}"#));
        let client = server.client();
        let url = server.url("/sector");
        let check = async |uris: &[&str]| check_sector(&client, &url, uris).await;
        check(&["https://b.example/", "https://a.example/1"])
            .await
            .unwrap();
        for other in [
            "https://c.example/",
            "https://a.example/1?x",
            "https://A.example/1",
        ] {
            let error = check(&["https://b.example/", other]).await.unwrap_err();
            assert!(
                matches!(&error, SectorError::NotListed(uri) if uri == other),
                "{error}"
            );
        }
        let object = check_sector(&client, &server.url("/object"), &["https://a.example/"]).await;
        assert!(matches!(object, Err(SectorError::Form)));
        let none = check_sector(&client, &server.url("/none"), &["https://a.example/"]).await;
        assert!(matches!(
            none,
            Err(SectorError::Fetch(FetchError::Status(_)))
        ));
    }
}
