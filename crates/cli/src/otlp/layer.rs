//! Spans of `tracing` as OTLP's: what is known when one opens is kept with it, and sent away when it closes.
//!
//! It never waits: a queue that is full loses spans. Events are not exported; they are in the log.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::time::{SystemTime, UNIX_EPOCH};

use nydusbox_fsd::without_userinfo;
use tracing::Subscriber;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::export::Queue;
use super::settings::Parent;
use super::wire::{KeyValue, Span, SpanKind, Status, StatusCode, Value};

/// A field of this name is why an operation failed.
const ERROR: &str = "error";

/// Collects spans.
#[derive(Debug)]
pub(super) struct SpanLayer {
    queue: Queue,
    /// Of spans that have none in this process.
    parent: Option<Parent>,
}

impl SpanLayer {
    pub(super) fn new(queue: Queue, parent: Option<Parent>) -> Self {
        Self { queue, parent }
    }
}

/// A span that is open.
struct Open(Span);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for SpanLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let above = span.parent().and_then(|above| {
            let extensions = above.extensions();
            let Open(above) = extensions.get::<Open>()?;
            Some((above.trace_id.clone(), above.span_id.clone()))
        });
        let outside = || {
            let Parent { trace_id, span_id } = self.parent?;
            Some((trace_id.to_be_bytes().to_vec(), span_id.to_be_bytes().to_vec()))
        };
        let (trace_id, parent_span_id) = above.or_else(outside).unwrap_or_else(|| {
            let trace_id = [random().to_be_bytes(), random().to_be_bytes()].concat();
            (trace_id, Vec::new())
        });
        let mut opened = Span {
            trace_id,
            span_id: random().to_be_bytes().to_vec(),
            parent_span_id,
            name: span.name().to_owned(),
            kind: SpanKind::Internal.into(),
            start_time_unix_nano: now(),
            ..Span::default()
        };
        attributes.record(&mut Fields(&mut opened));
        span.extensions_mut().replace(Open(opened));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(Open(open)) = span.extensions_mut().get_mut()
        {
            values.record(&mut Fields(open));
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let closed = context.span(&id).and_then(|span| span.extensions_mut().remove());
        if let Some(Open(mut span)) = closed {
            span.end_time_unix_nano = now();
            self.queue.push(span);
        }
    }
}

/// Enters fields in a span.
struct Fields<'a>(&'a mut Span);

impl Fields<'_> {
    fn enter(&mut self, field: &Field, value: Value) {
        self.0.attributes.push(KeyValue::new(field.name(), value));
    }

    fn enter_text(&mut self, field: &Field, text: &str) {
        let text = without_userinfo(text);
        match field.name() {
            ERROR => {
                self.0.status = Some(Status {
                    message: text,
                    code: StatusCode::Error.into(),
                });
            }
            _ => self.enter(field, Value::String(text)),
        }
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.enter_text(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.enter_text(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.enter(field, Value::Int(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        // OTLP has no unsigned integers.
        match i64::try_from(value) {
            Ok(value) => self.enter(field, Value::Int(value)),
            Err(_) => self.enter(field, Value::String(value.to_string())),
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.enter(field, Value::Double(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.enter(field, Value::Bool(value));
    }
}

/// What no other process and no other call has: the standard library keys each of its hashers anew, from the system's
/// randomness. Zero would be no id.
fn random() -> u64 {
    RandomState::new().build_hasher().finish().max(1)
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
