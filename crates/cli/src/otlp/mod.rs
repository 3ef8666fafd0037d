//! Exports the spans of a supervisor by OTLP, if the environment names a collector. `settings.rs` has the variables,
//! `layer.rs` collects spans, `export.rs` sends them, `wire.rs` is how they look. `absent.rs` is this module where the
//! feature is off.
//!
//! A collector that is slow, broken or gone delays nothing and fails nothing.

mod export;
mod layer;
mod settings;
mod wire;

use std::env;
use std::time::Duration;

use nydusbox_protocol::SandboxId;
use tracing::level_filters::LevelFilter;
use tracing::{Span, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use export::Queue;
use layer::SpanLayer;
use settings::Settings;

/// The span of a sandbox's life, which all others are in. A target of its own keeps it out of the log's lines.
pub(crate) const LIFE: &str = "nydusbox::life";
/// How long the last spans may take, when there is nothing else left to do.
const LAST_SPANS: Duration = Duration::from_secs(1);

/// The export of a supervisor's spans.
#[derive(Debug)]
pub(crate) struct Traces {
    queue: Option<Queue>,
    /// Why there is none although one was asked for.
    problem: Option<String>,
}

/// Begins to export the spans of a sandbox, if the environment says where to.
pub(crate) fn begin<S>(sandbox: &SandboxId) -> (Option<impl Layer<S> + use<S>>, Traces)
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let mut traces = Traces {
        queue: None,
        problem: None,
    };
    let settings = match Settings::find(|name| env::var(name).ok()) {
        Ok(Some(settings)) => settings,
        Ok(None) => return (None, traces),
        Err(error) => {
            traces.problem = Some(error.to_string());
            return (None, traces);
        }
    };
    let parent = settings.parent;
    let settings = settings.with_resource("service.instance.id", sandbox.as_str());
    match export::start(settings) {
        Ok(queue) => {
            let targets = Targets::new().with_target("nydusbox", LevelFilter::INFO);
            traces.queue = Some(queue.clone());
            (Some(SpanLayer::new(queue, parent).with_filter(targets)), traces)
        }
        Err(error) => {
            traces.problem = Some(format!("start a thread: {error}"));
            (None, traces)
        }
    }
}

impl Traces {
    /// Says in the log why nothing is exported, if something was to be.
    pub(crate) fn complain(&self) {
        if let Some(problem) = &self.problem {
            tracing::warn!(error = problem, "spans are not exported");
        }
    }

    /// Whether anything is, and may be left to be sent.
    pub(crate) fn are_exported(&self) -> bool {
        self.queue.is_some()
    }

    /// Sends what is left, for a second at the most.
    pub(crate) fn flush(&self) {
        if let Some(queue) = &self.queue {
            queue.flush(LAST_SPANS);
        }
    }
}

/// What everything done for a sandbox is part of.
pub(crate) fn life(sandbox: &SandboxId) -> Span {
    tracing::info_span!(target: LIFE, "sandbox", %sandbox)
}
