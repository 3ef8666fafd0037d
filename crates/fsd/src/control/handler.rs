//! What each endpoint does. Every endpoint of the table has its arm; a new one does not compile without.

use std::sync::Arc;

use hyper::body::Bytes;
use nydusbox_protocol::endpoint::{Route, route};
use nydusbox_protocol::{
    ConfigureCommand, DaemonInfo, DaemonState, Endpoint, ErrorCode, FsType, MountCommand, MountPoint,
};
use serde::Deserialize;

use super::{Answer, Context, metrics, query};
use crate::namespace::{MountError, Namespace};

pub(super) async fn answer(
    context: &Arc<Context>,
    method: &str,
    path: &str,
    query: &str,
    body: Bytes,
) -> Answer {
    let endpoint = match route(method, path) {
        Route::Found(endpoint) => endpoint,
        Route::WrongMethod => {
            return Answer::failed(ErrorCode::BadRequest, format!("{path} has no method {method}"));
        }
        Route::UnknownPath => return Answer::failed(ErrorCode::NoRoute, format!("there is no {path}")),
    };
    match endpoint {
        Endpoint::DaemonInfo => info(context, true),
        Endpoint::DaemonInfoV2 => info(context, false),
        Endpoint::Configure | Endpoint::ConfigureV2 => configure(context, &body),
        Endpoint::Start => Answer::failed(ErrorCode::WrongState, "the daemon is running already"),
        Endpoint::Exit => {
            context.exit.notify_one();
            Answer::Done
        }
        Endpoint::SendFd | Endpoint::Takeover => {
            unsupported("handing a FUSE session over exists for fusedev, not for virtiofs")
        }
        Endpoint::Events => metrics::events(),
        Endpoint::Backend => superblock(context, query),
        Endpoint::Mount => mount(context, query, &body, Namespace::mount).await,
        Endpoint::Remount => mount(context, query, &body, Namespace::remount).await,
        Endpoint::Umount => umount(context, query).await,
        Endpoint::Metrics => metrics::global(context, query),
        Endpoint::MetricsFiles => metrics::files(context, query),
        Endpoint::MetricsPattern => metrics::pattern(context, query),
        Endpoint::MetricsBackend => metrics::backend(context, query),
        Endpoint::MetricsBlobcache => metrics::blobcache(context, query),
        Endpoint::MetricsInflight => metrics::inflight(context),
        Endpoint::StartTrace => traced(context, query, Namespace::start_trace).await,
        Endpoint::Trace => trace(context, query).await,
        Endpoint::StopTrace => traced(context, query, Namespace::stop_trace).await,
        Endpoint::Prometheus => metrics::prometheus(context),
        Endpoint::PutBlob | Endpoint::GetBlob | Endpoint::DeleteBlob => {
            unsupported("blobs are managed by a singleton daemon, this one serves virtiofs")
        }
    }
}

fn unsupported(why: &str) -> Answer {
    Answer::failed(ErrorCode::Unsupported, why)
}

/// Serialises what cannot fail to be serialised; should it ever, the answer says so.
pub(super) fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_string(value) {
        Ok(text) => Answer::Json(text),
        Err(e) => Answer::failed(
            ErrorCode::Internal,
            format!("the answer could not be written as JSON: {e}"),
        ),
    }
}

fn info(context: &Context, with_mounts: bool) -> Answer {
    json(&DaemonInfo {
        version: context.version.clone(),
        id: context.id.clone(),
        supervisor: context.supervisor.clone(),
        state: DaemonState::Running,
        backend_collection: with_mounts.then(|| context.namespace.collection()),
        vmm_attached: Some(context.device.attached()),
    })
}

fn configure(context: &Context, body: &[u8]) -> Answer {
    match serde_json::from_slice::<ConfigureCommand>(body) {
        Ok(command) => {
            context.log.set(command.log_level);
            tracing::info!(level = %command.log_level, "log level changed");
            Answer::Done
        }
        Err(e) => bad_body("a log level", &e),
    }
}

/// A body is not quoted in the answer: it may hold credentials.
fn bad_body(expected: &str, error: &serde_json::Error) -> Answer {
    let detail = match error.classify() {
        serde_json::error::Category::Data => error.to_string(),
        category => format!(
            "{category:?} error at line {}, column {}",
            error.line(),
            error.column()
        ),
    };
    Answer::failed(
        ErrorCode::BadRequest,
        format!("the body is not {expected}: {detail}"),
    )
}

fn mount_point(query: &str) -> Result<MountPoint, Answer> {
    let Some(text) = query::value(query, "mountpoint") else {
        return Err(Answer::failed(
            ErrorCode::BadRequest,
            "'mountpoint' should be specified in query string",
        ));
    };
    MountPoint::new(text).map_err(|e| Answer::failed(ErrorCode::BadRequest, e.to_string()))
}

async fn mount(
    context: &Arc<Context>,
    query: &str,
    body: &[u8],
    operation: fn(&Namespace, &MountPoint, &MountCommand) -> Result<(), MountError>,
) -> Answer {
    let at = match mount_point(query) {
        Ok(at) => at,
        Err(answer) => return answer,
    };
    let command: MountCommand = match serde_json::from_slice(body) {
        Ok(command) => command,
        Err(e) => return unknown_fs_type(body).unwrap_or_else(|| bad_body("a mount command", &e)),
    };
    let namespace = Arc::clone(&context.namespace);
    let answer = off_thread(move || operation(&namespace, &at, &command)).await;
    tidy_afterwards(context);
    answer
}

/// nydusd answers a type it does not know like a mount that failed, and so is it here.
fn unknown_fs_type(body: &[u8]) -> Option<Answer> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let given = value.get("fs_type")?;
    FsType::deserialize(given).err()?;
    let message = format!("file systems are of type rafs or passthrough_fs, not {given}");
    Some(Answer::failed(ErrorCode::BadFsType, message))
}

async fn umount(context: &Arc<Context>, query: &str) -> Answer {
    let at = match mount_point(query) {
        Ok(at) => at,
        Err(answer) => return answer,
    };
    let namespace = Arc::clone(&context.namespace);
    let answer = off_thread(move || namespace.umount(&at)).await;
    tidy_afterwards(context);
    answer
}

/// Has memory given back once the answer is out: waking the thread that does it would come before.
fn tidy_afterwards(context: &Arc<Context>) {
    let device = Arc::clone(&context.device);
    tokio::spawn(async move { device.pool().tidy() });
}

async fn off_thread(operation: impl FnOnce() -> Result<(), MountError> + Send + 'static) -> Answer {
    match tokio::task::spawn_blocking(operation).await {
        Ok(Ok(())) => Answer::Done,
        Ok(Err(e)) => mount_failed(&e),
        Err(e) => Answer::failed(
            ErrorCode::Internal,
            format!("the operation failed unexpectedly: {e}"),
        ),
    }
}

async fn traced(
    context: &Arc<Context>,
    query: &str,
    operation: fn(&Namespace, &MountPoint) -> Result<(), MountError>,
) -> Answer {
    let at = match mount_point(query) {
        Ok(at) => at,
        Err(answer) => return answer,
    };
    let namespace = Arc::clone(&context.namespace);
    off_thread(move || operation(&namespace, &at)).await
}

async fn trace(context: &Arc<Context>, query: &str) -> Answer {
    let at = match mount_point(query) {
        Ok(at) => at,
        Err(answer) => return answer,
    };
    let namespace = Arc::clone(&context.namespace);
    match tokio::task::spawn_blocking(move || namespace.trace(&at)).await {
        Ok(Ok(Some(trace))) => json(&trace),
        Ok(Ok(None)) => Answer::failed(ErrorCode::NoCounter, "nothing is recorded; begin with PUT"),
        Ok(Err(e)) => mount_failed(&e),
        Err(e) => Answer::failed(
            ErrorCode::Internal,
            format!("the operation failed unexpectedly: {e}"),
        ),
    }
}

fn mount_failed(error: &MountError) -> Answer {
    Answer::failed(error.code(), error.sentence())
}

fn superblock(context: &Context, query: &str) -> Answer {
    let at = match mount_point(query) {
        Ok(at) => at,
        Err(answer) => return answer,
    };
    match context.namespace.superblock(&at) {
        Ok(meta) => json(&meta),
        Err(e) => mount_failed(&e),
    }
}
