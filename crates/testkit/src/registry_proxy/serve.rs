//! How a request is answered: late, refused, redirected or passed on.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri, client, server};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use serde_json::json;
use tokio::net::TcpStream;

use super::body::{self, Content};
use super::{Asked, Fault, Origin, Part, Shared};

const DIGEST: &str = "docker-content-digest";

/// Serves whoever connects, for ever; connections end with the runtime.
pub(super) async fn accept(listener: TcpListener, origin: Origin, shared: &Arc<Shared>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            let serve = service_fn(|request| answer(request, origin, &shared));
            // A client that goes away in the middle is its own business, and a cut or a close is one's own doing.
            let _end = server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), serve)
                .await;
        });
    }
}

/// What a path asks for: the repository, and the digest of a blob.
struct Target {
    part: Part,
    repository: Option<String>,
    blob: Option<String>,
}

impl Target {
    fn of(method: &Method, path: &str) -> Self {
        let reads = method == Method::GET || method == Method::HEAD;
        let named = |part, repository: &str, blob: Option<&str>| Self {
            part,
            repository: Some(repository.to_owned()),
            blob: blob.map(str::to_owned),
        };
        let none = |part| Self {
            part,
            repository: None,
            blob: None,
        };
        let Some(rest) = path.strip_prefix("/v2/") else {
            return none(if path == "/token" {
                Part::Token
            } else {
                Part::Other
            });
        };
        if rest.is_empty() {
            none(Part::Ping)
        } else if let Some((repository, _)) = rest.split_once("/manifests/") {
            let part = if reads { Part::Manifest } else { Part::PutManifest };
            named(part, repository, None)
        } else if let Some((repository, _)) = rest.split_once("/blobs/uploads/") {
            let part = match *method {
                Method::POST => Part::BeginUpload,
                Method::PATCH => Part::UploadPiece,
                Method::PUT => Part::EndUpload,
                _ => Part::Upload,
            };
            named(part, repository, None)
        } else if let Some((repository, digest)) = rest.split_once("/blobs/") {
            named(Part::Blob, repository, Some(digest))
        } else if let Some((repository, _)) = rest.split_once("/tags/") {
            named(Part::Other, repository, None)
        } else {
            none(Part::Other)
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    origin: Origin,
    shared: &Arc<Shared>,
) -> Result<Response<Content>, Closed> {
    let header = |name: HeaderName| {
        let value = request.headers().get(name)?.to_str().ok()?;
        Some(value.to_owned())
    };
    let target = Target::of(request.method(), request.uri().path());
    let number = {
        let mut state = shared.state();
        state.asked.push(Asked {
            origin,
            part: target.part,
            method: request.method().to_string(),
            path: request.uri().to_string(),
            range: header(RANGE),
            authorization: header(AUTHORIZATION),
            status: None,
        });
        state.asked.len()
    };
    shared.changed.notify_all();
    let held = shared.state().held;
    if held == Some(number) {
        return std::future::pending().await;
    }
    let latency = shared.state().conditions.latency;
    tokio::time::sleep(latency).await;
    let response = decide(request, origin, target, shared).await?;
    // It may have been forgotten meanwhile.
    if let Some(asked) = shared.state().asked.get_mut(number - 1) {
        asked.status = Some(response.status().as_u16());
    }
    shared.changed.notify_all();
    Ok(response)
}

/// Instead of an answer.
#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed, as was asked for")
    }
}

impl std::error::Error for Closed {}

async fn decide(
    request: Request<Incoming>,
    origin: Origin,
    target: Target,
    shared: &Arc<Shared>,
) -> Result<Response<Content>, Closed> {
    let authorization = request.headers().get(AUTHORIZATION);
    let authorization = authorization
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let gets = *request.method() == Method::GET;
    let redirect =
        origin == Origin::Registry && gets && target.part == Part::Blob && shared.state().redirects;
    if origin == Origin::Registry && target.part != Part::Token {
        let refusal = refuse(request.method(), authorization.as_deref(), &target, shared);
        if let Some(refusal) = refusal {
            return Ok(refusal);
        }
    }
    if redirect {
        let to = format!("http://{}{}", shared.storage, request.uri());
        return Ok(respond(StatusCode::TEMPORARY_REDIRECT, &[(LOCATION, &to)], ""));
    }
    let is_head = *request.method() == Method::HEAD;
    let fault = shared.state().take_fault(target.part, is_head);
    match fault {
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Status {
            status,
            retry_after_seconds,
        }) => return Ok(injected(status, retry_after_seconds)),
        Some(Fault::CutRequest(bytes)) => {
            let _cut = forward(request.map(|content| body::cut(content, bytes)), shared).await;
            return Err(Closed);
        }
        Some(Fault::Unheard) => {
            let _unheard = forward(request, shared).await;
            return Err(Closed);
        }
        _ => {}
    }
    if target.part == Part::Token {
        // Without what OAuth2 wants in it, a POST gets no token anywhere.
        if !gets {
            return Ok(respond(StatusCode::METHOD_NOT_ALLOWED, &[], ""));
        }
        return Ok(give_token(request.uri(), authorization.as_deref(), shared));
    }
    Ok(match forward(request, shared).await {
        Ok(response) => spoil(response, fault, target.blob.filter(|_| gets), shared),
        Err(error) => respond(StatusCode::BAD_GATEWAY, &[], &error.to_string()),
    })
}

/// The answer to who comes without a good token, where one is demanded.
fn refuse(
    method: &Method,
    authorization: Option<&str>,
    target: &Target,
    shared: &Shared,
) -> Option<Response<Content>> {
    let reads = method == Method::GET || method == Method::HEAD;
    let (action, actions) = if reads {
        ("pull", "pull")
    } else {
        ("push", "pull,push")
    };
    let repository = target.repository.as_deref();
    let refusal = shared
        .state()
        .tokens
        .as_mut()?
        .spend(authorization, repository, action)
        .err()?;
    let scope = repository.map_or_else(String::new, |repository| {
        format!(",scope=\"repository:{repository}:{actions}\"")
    });
    // Who came without one has done nothing wrong.
    let error = authorization.map_or_else(String::new, |_| format!(",error=\"{}\"", refusal.code()));
    let challenge = format!(
        "Bearer realm=\"http://{}/token\",service=\"tests\"{scope}{error}",
        shared.registry
    );
    Some(respond(
        StatusCode::UNAUTHORIZED,
        &[(WWW_AUTHENTICATE, &challenge)],
        &errors("UNAUTHORIZED", "authentication required"),
    ))
}

fn give_token(uri: &Uri, authorization: Option<&str>, shared: &Shared) -> Response<Content> {
    let query = uri.query().unwrap_or_default();
    let scopes = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("scope="))
        .flat_map(|value| {
            let value = value.replace('+', " ");
            let scopes = percent_decode_str(&value).decode_utf8_lossy().into_owned();
            scopes.split(' ').map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    let mut state = shared.state();
    let Some(tokens) = state.tokens.as_mut() else {
        return respond(StatusCode::NOT_FOUND, &[], "");
    };
    match tokens.give(authorization, scopes) {
        Some(token) => respond(
            StatusCode::OK,
            &[],
            &json!({"token": token, "expires_in": 300}).to_string(),
        ),
        None => respond(
            StatusCode::UNAUTHORIZED,
            &[],
            &errors("UNAUTHORIZED", "wrong user or password"),
        ),
    }
}

/// Asks the registry behind. It sees the name by which its client calls us, and tells it where to go on by that.
async fn forward<B>(request: Request<B>, shared: &Shared) -> io::Result<Response<Incoming>>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let stream = TcpStream::connect(shared.upstream).await?;
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(io::Error::other)
}

fn spoil(
    response: Response<Incoming>,
    fault: Option<Fault>,
    blob: Option<String>,
    shared: &Arc<Shared>,
) -> Response<Content> {
    let (mut parts, content) = response.into_parts();
    match fault {
        Some(Fault::WrongDigest) => {
            if let Ok(other) = HeaderValue::from_str(&format!("sha256:{}", "0".repeat(64))) {
                parts.headers.insert(DIGEST, other);
            }
        }
        Some(Fault::TooShort) => change_length(&mut parts.headers, |length| length.saturating_sub(1)),
        Some(Fault::TooLong) => change_length(&mut parts.headers, |length| length + 1),
        _ => {}
    }
    if let Some(blob) = &blob {
        shared.state().blobs.entry(blob.clone()).or_default().gets += 1;
    }
    Response::from_parts(parts, body::pass_on(content, fault, blob, shared))
}

fn change_length(headers: &mut HeaderMap, change: impl Fn(u64) -> u64) {
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, change(length).into());
    }
}

fn injected(status: u16, retry_after_seconds: Option<u64>) -> Response<Content> {
    let after = retry_after_seconds.map(|seconds| seconds.to_string());
    let headers: Vec<_> = after.iter().map(|after| (RETRY_AFTER, after.as_str())).collect();
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    respond(status, &headers, &errors("UNKNOWN", "as was asked for"))
}

/// A registry's error.
fn errors(code: &str, message: &str) -> String {
    json!({"errors": [{"code": code, "message": message}]}).to_string()
}

fn respond(status: StatusCode, headers: &[(HeaderName, &str)], content: &str) -> Response<Content> {
    let mut response = Response::new(body::whole(content.to_owned()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_LENGTH, content.len().into());
    for (name, value) in headers {
        // Ours have nothing in them that a header could not have.
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
