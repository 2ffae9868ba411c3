//! A registry in this process, on loopback: the part of the OCI distribution specification that pushing and
//! fetching an image takes, with its refusals.
//!
//! Contents live in memory until it is dropped.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::layout::described;
use crate::digest::sha256;

type Answer = Response<Full<Bytes>>;

/// A running registry.
pub(super) struct Registry {
    address: SocketAddr,
    shelves: Arc<Mutex<Shelves>>,
    _stop: DropGuard,
}

/// What it keeps. Keys begin with the name of the repository.
#[derive(Default)]
struct Shelves {
    uploads: HashMap<String, Vec<u8>>,
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, (String, Vec<u8>)>,
    received: u64,
}

impl Registry {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shelves: Arc<Mutex<Shelves>> = Arc::default();
        let stop = CancellationToken::new();
        let (kept, stopped) = (Arc::clone(&shelves), stop.clone());
        tokio::spawn(async move {
            while let Some(Ok((stream, _))) = stopped.run_until_cancelled(listener.accept()).await {
                let shelves = Arc::clone(&kept);
                let service = service_fn(move |request| answer(Arc::clone(&shelves), request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Ok(Self {
            address,
            shelves,
            _stop: stop.drop_guard(),
        })
    }

    pub(super) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many contents were sent to it.
    pub(super) fn received(&self) -> u64 {
        self.shelves.lock().received
    }
}

async fn answer(shelves: Arc<Mutex<Shelves>>, request: Request<Incoming>) -> hyper::Result<Answer> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes().to_vec();
    let path = head.uri.path().strip_prefix("/v2/").unwrap_or_default();
    let mut shelves = shelves.lock();
    Ok(
        if let Some((name, upload)) = path.split_once("/blobs/uploads/") {
            shelves.upload(&head, name, upload, body)
        } else if let Some((name, digest)) = path.split_once("/blobs/") {
            match shelves.blobs.get(&format!("{name} {digest}")) {
                Some(content) => found("application/octet-stream", content.clone()),
                None => refused(StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            }
        } else if let Some((name, reference)) = path.split_once("/manifests/") {
            match head.method {
                Method::PUT => shelves.put_manifest(&head, name, reference, body),
                _ => match shelves.manifests.get(&format!("{name} {reference}")) {
                    Some((kind, content)) => found(kind, content.clone()),
                    None => refused(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
                },
            }
        } else {
            refused(StatusCode::NOT_FOUND, "NAME_UNKNOWN")
        },
    )
}

impl Shelves {
    fn upload(&mut self, head: &Parts, name: &str, id: &str, body: Vec<u8>) -> Answer {
        if head.method == Method::POST {
            let id = format!("{}", self.uploads.len());
            self.uploads.insert(id.clone(), Vec::new());
            return moved(
                StatusCode::ACCEPTED,
                &format!("/v2/{name}/blobs/uploads/{id}?state=begun"),
            );
        }
        let Some(content) = self.uploads.get_mut(id) else {
            return refused(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN");
        };
        let range = head.headers.get("content-range");
        let range = range.and_then(|it| it.to_str().ok()).unwrap_or_default();
        let start = content.len();
        content.extend(body);
        if head.method == Method::PATCH {
            if range != format!("{start}-{}", content.len().saturating_sub(1)) {
                return refused(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID");
            }
            let next = format!("/v2/{name}/blobs/uploads/{id}?state=sent");
            return moved(StatusCode::ACCEPTED, &next);
        }
        let query = head.uri.query().unwrap_or_default().replace("%3A", ":");
        let mut values = query.split('&').filter_map(|it| it.strip_prefix("digest="));
        let digest = values.next().unwrap_or_default().to_owned();
        if digest != format!("sha256:{}", sha256(content)) {
            return refused(StatusCode::BAD_REQUEST, "DIGEST_INVALID");
        }
        let content = std::mem::take(content);
        self.received += 1;
        self.blobs.insert(format!("{name} {digest}"), content);
        moved(StatusCode::CREATED, &format!("/v2/{name}/blobs/{digest}"))
    }

    fn put_manifest(&mut self, head: &Parts, name: &str, tag: &str, body: Vec<u8>) -> Answer {
        let Ok(manifest) = serde_json::from_slice(&body) else {
            return refused(StatusCode::BAD_REQUEST, "MANIFEST_INVALID");
        };
        for descriptor in described(&manifest) {
            let digest = descriptor["digest"].as_str().unwrap_or_default();
            let blob = self.blobs.get(&format!("{name} {digest}"));
            if blob.is_none_or(|blob| descriptor["size"] != blob.len()) {
                return refused(StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN");
            }
        }
        let kind = head.headers.get(CONTENT_TYPE);
        let kind = kind.and_then(|it| it.to_str().ok()).unwrap_or_default();
        let digest = format!("sha256:{}", sha256(&body));
        for reference in [tag, &digest] {
            let entry = (kind.to_owned(), body.clone());
            self.manifests.insert(format!("{name} {reference}"), entry);
        }
        moved(
            StatusCode::CREATED,
            &format!("/v2/{name}/manifests/{digest}"),
        )
    }
}

fn found(kind: &str, content: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(content)));
    let kind = HeaderValue::from_str(kind).unwrap();
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

fn moved(status: StatusCode, location: &str) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    let location = HeaderValue::from_str(location).unwrap();
    answer.headers_mut().insert(LOCATION, location);
    answer
}

fn refused(status: StatusCode, code: &str) -> Answer {
    let said = serde_json::json!({"errors": [{"code": code}]}).to_string();
    let mut answer = found("application/json", said.into_bytes());
    *answer.status_mut() = status;
    answer
}
