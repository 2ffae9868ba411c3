//! A client of a registry, as the OCI distribution specification has it: what is needed to push an image
//! and to read one.
//!
//! Without authentication: it is for registries of tests, on loopback.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, LOCATION};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};

use super::layout::{Layout, MANIFEST, described, text};
use crate::digest::sha256;

/// No answer of a registry takes longer.
const DEADLINE: Duration = Duration::from_secs(60);

/// A repository of a registry.
pub(super) struct Repository {
    client: Client,
    base: Url,
}

impl Repository {
    /// The repository of this name at `http://host:port`.
    pub(super) fn new(origin: &str, name: &str) -> anyhow::Result<Self> {
        let client = Client::builder().no_proxy().timeout(DEADLINE);
        Ok(Self {
            client: client.build()?,
            base: format!("{origin}/v2/{name}/").parse()?,
        })
    }

    /// Pushes every image of a layout under its tag.
    pub(super) async fn push(&self, layout: &Layout) -> anyhow::Result<()> {
        for (tag, digest) in layout.tags() {
            let manifest = layout.blob(digest)?;
            for descriptor in described(&serde_json::from_slice(manifest)?) {
                let digest = text(&descriptor, "/digest")?;
                self.push_blob(digest, layout.blob(digest)?).await?;
            }
            let request = self.request(Method::PUT, &format!("manifests/{tag}"))?;
            let request = request.header(CONTENT_TYPE, MANIFEST);
            let answer = request.body(manifest.to_vec()).send().await?;
            expect(answer, StatusCode::CREATED, "a manifest").await?;
        }
        Ok(())
    }

    /// Pushes a content in three steps, unless it is there: begin, send, name.
    async fn push_blob(&self, digest: &str, content: &[u8]) -> anyhow::Result<()> {
        let request = self.request(Method::HEAD, &format!("blobs/{digest}"))?;
        if request.send().await?.status() == StatusCode::OK {
            return Ok(());
        }
        let request = self.request(Method::POST, "blobs/uploads/")?;
        let begun = expect(request.send().await?, StatusCode::ACCEPTED, "an upload").await?;
        let end = content.len().saturating_sub(1);
        let request = self.client.patch(self.location(&begun)?);
        let request = request
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_RANGE, format!("0-{end}"));
        let sent = request.body(content.to_vec()).send().await?;
        let sent = expect(sent, StatusCode::ACCEPTED, "a content").await?;
        let mut whole = self.location(&sent)?;
        whole.query_pairs_mut().append_pair("digest", digest);
        let named = self.client.put(whole).send().await?;
        expect(named, StatusCode::CREATED, "the end of an upload").await?;
        Ok(())
    }

    /// A manifest by tag or digest: its media type and its bytes.
    ///
    /// # Errors
    /// There is none, or it is not that of the digest.
    pub(super) async fn manifest(&self, reference: &str) -> anyhow::Result<(String, Vec<u8>)> {
        const KNOWN: &str = "application/vnd.docker.distribution.manifest.v2+json, \
            application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
            application/vnd.docker.distribution.manifest.list.v2+json";
        let request = self.request(Method::GET, &format!("manifests/{reference}"))?;
        let answer = request.header("accept", KNOWN).send().await?;
        let answer = expect(answer, StatusCode::OK, reference).await?;
        let kind = answer.headers().get(CONTENT_TYPE);
        let kind = kind.and_then(|it| it.to_str().ok()).unwrap_or_default();
        let kind = kind.to_owned();
        let content = answer.bytes().await?.to_vec();
        if let Some(sum) = reference.strip_prefix("sha256:") {
            ensure!(sha256(&content) == sum, "{reference} is another manifest");
        }
        Ok((kind, content))
    }

    /// A content by its digest.
    ///
    /// # Errors
    /// There is none, or it is another.
    pub(super) async fn blob(&self, digest: &str) -> anyhow::Result<Vec<u8>> {
        let request = self.request(Method::GET, &format!("blobs/{digest}"))?;
        let answer = expect(request.send().await?, StatusCode::OK, digest).await?;
        let content = answer.bytes().await?.to_vec();
        ensure!(
            format!("sha256:{}", sha256(&content)) == digest,
            "{digest} is another content"
        );
        Ok(content)
    }

    fn request(&self, method: Method, path: &str) -> anyhow::Result<RequestBuilder> {
        // Joined as a path: `sha256:` is no scheme.
        Ok(self
            .client
            .request(method, self.base.join(&format!("./{path}"))?))
    }

    /// Where the next step goes: an absolute or a relative address.
    fn location(&self, answer: &Response) -> anyhow::Result<Url> {
        let location = answer.headers().get(LOCATION).context("no location")?;
        Ok(self.base.join(location.to_str()?)?)
    }
}

async fn expect(answer: Response, status: StatusCode, what: &str) -> anyhow::Result<Response> {
    if answer.status() == status {
        return Ok(answer);
    }
    let found = answer.status();
    let said = answer.text().await.unwrap_or_default();
    anyhow::bail!("{what}: {found}, not {status}: {said}")
}
