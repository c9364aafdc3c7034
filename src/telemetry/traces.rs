//! Traces: where the environment names an OpenTelemetry collector, calls and their stages are sent there as OTLP over gRPC,
//! and a trace that the caller has begun (the kubelet's) is continued.
//!
//! The variables are those of the OpenTelemetry specification (OTLP exporter, general SDK): `OTEL_EXPORTER_OTLP_ENDPOINT`
//! turns it on. Nothing of it costs anything where it is off.

use std::env;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{Span as _, Status, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig, Identity};
use opentelemetry_otlp::{SpanExporter, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tonic::Code;
use tracing::{Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::registry::LookupSpan;

/// Who the spans are from, where `OTEL_SERVICE_NAME` does not say.
const SERVICE: &str = "berthd";
/// How long the daemon's end waits for the collector to take the last spans.
const LAST_SPANS: Duration = Duration::from_secs(2);

static ON: AtomicBool = AtomicBool::new(false);
/// For spans of what was timed elsewhere.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Why no traces can be sent although the environment asks for them.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A variable asks for what is not built in.
    #[error("{variable}={value}: berthd sends traces as {built_in} only")]
    Unsupported {
        /// The variable.
        variable: String,
        /// What it says.
        value: String,
        /// What it could say.
        built_in: &'static str,
    },
    /// A certificate or key can't be read.
    #[error("{variable}: reading {path}: {source}")]
    File {
        /// The variable that names it.
        variable: String,
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The exporter refuses what the variables say.
    #[error("OTEL_EXPORTER_OTLP_ENDPOINT: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Sends spans until it is told to end.
#[derive(Clone, Debug)]
pub(super) struct Traces(SdkTracerProvider);

impl Traces {
    /// As the environment asks; `None` where it names no collector, or says that there be no traces. To be called where a
    /// tokio runtime is entered.
    pub(super) fn from_environment() -> Result<Option<Self>, Error> {
        let Some(endpoint) = variable("ENDPOINT").map(|(_, value)| value) else { return Ok(None) };
        let off = |name: &str, value: &str| env::var(name).is_ok_and(|text| text.eq_ignore_ascii_case(value));
        if off("OTEL_SDK_DISABLED", "true") || off("OTEL_TRACES_EXPORTER", "none") {
            return Ok(None);
        }
        only("OTEL_TRACES_EXPORTER".to_owned(), env::var("OTEL_TRACES_EXPORTER").ok(), "otlp")?;
        if let Some((name, value)) = variable("PROTOCOL") {
            only(name, Some(value), "grpc")?;
        }
        let mut exporter = SpanExporter::builder().with_tonic();
        if endpoint.starts_with("https:") {
            exporter = exporter.with_tls_config(tls()?);
        }
        let mut resource =
            Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        if env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(SERVICE);
        }
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_batch_exporter(exporter.build()?)
            .build();
        // This is called once in a process.
        let _ = TRACER.set(provider.tracer(SERVICE));
        ON.store(true, Ordering::Relaxed);
        Ok(Some(Self(provider)))
    }

    /// What turns spans of the `tracing` crate into spans of the trace. Only spans: lines of the log stay in the log.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let ours = |metadata: &Metadata<'_>| metadata.is_span() && metadata.target().starts_with("berth");
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer(SERVICE))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(ours).with_max_level_hint(LevelFilter::DEBUG))
    }

    /// Sends what is left.
    pub(super) fn end(&self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST_SPANS) {
            tracing::warn!(%error, "the last spans could not be sent");
        }
    }
}

/// `OTEL_EXPORTER_OTLP_TRACES_NAME`, or `OTEL_EXPORTER_OTLP_NAME`, if it says anything: which, and what.
fn variable(name: &str) -> Option<(String, String)> {
    ["TRACES_", ""].into_iter().find_map(|signal| {
        let variable = format!("OTEL_EXPORTER_OTLP_{signal}{name}");
        env::var(&variable).ok().filter(|value| !value.is_empty()).map(|value| (variable, value))
    })
}

fn only(variable: String, value: Option<String>, built_in: &'static str) -> Result<(), Error> {
    match value {
        Some(value) if !value.is_empty() && value != built_in => {
            Err(Error::Unsupported { variable, value, built_in })
        }
        _ => Ok(()),
    }
}

/// The system's authorities or the one that the environment names, and a certificate of our own if it names one.
fn tls() -> Result<ClientTlsConfig, Error> {
    let read = |name| {
        variable(name)
            .map(|(variable, path)| {
                std::fs::read(&path).map_err(|source| Error::File { variable, path, source })
            })
            .transpose()
    };
    let mut config = ClientTlsConfig::new();
    config = match read("CERTIFICATE")? {
        Some(authority) => config.ca_certificate(Certificate::from_pem(authority)),
        None => config.with_native_roots(),
    };
    if let (Some(certificate), Some(key)) = (read("CLIENT_CERTIFICATE")?, read("CLIENT_KEY")?) {
        config = config.identity(Identity::from_pem(certificate, key));
    }
    Ok(config)
}

// === calls ===

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// Makes `span`, of a call that came with `headers`, part of the caller's trace (W3C Trace Context).
pub(crate) fn called(span: &Span, name: &'static str, headers: &HeaderMap) {
    if !ON.load(Ordering::Relaxed) {
        return;
    }
    span.record("otel.name", name);
    span.record("otel.kind", "server");
    let caller = TraceContextPropagator::new().extract(&Headers(headers));
    // Refused only for a span that began already or is not recorded.
    let _ = span.set_parent(caller);
    span.set_attribute("rpc.system", "grpc");
}

/// Notes how a call ended.
pub(crate) fn answered(span: &Span, code: Code, message: impl FnOnce() -> String) {
    if !ON.load(Ordering::Relaxed) {
        return;
    }
    span.set_attribute("rpc.grpc.status_code", i64::from(i32::from(code)));
    if code != Code::Ok {
        span.set_status(Status::error(message()));
    }
}

/// A place in a trace, for work that outlives the call it belongs to: its spans are shown below the call's, which ends
/// when the call does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place(Option<Context>);

impl Place {
    /// Where the caller is.
    pub(crate) fn here() -> Self {
        Self(ON.load(Ordering::Relaxed).then(|| Span::current().context()))
    }

    /// Whether anything that is put there goes anywhere.
    pub(crate) fn is_recorded(&self) -> bool {
        self.0.as_ref().is_some_and(|context| context.span().span_context().is_sampled())
    }

    /// Puts something there that was timed elsewhere, and is over.
    pub(crate) fn record(&self, name: String, start: SystemTime, end: SystemTime) {
        let (Some(context), Some(tracer)) = (&self.0, TRACER.get()) else { return };
        let builder = tracer.span_builder(name).with_start_time(start);
        builder.start_with_context(tracer, context).end_with_timestamp(end);
    }

    /// Puts a span without parent there.
    pub(crate) fn hold(&self, span: &Span) {
        if let Some(context) = &self.0 {
            let _ = span.set_parent(context.clone());
        }
    }
}

struct Header(Option<String>);

impl Injector for Header {
    fn set(&mut self, key: &str, value: String) {
        if key == TRACEPARENT {
            self.0 = Some(value);
        }
    }
}

/// The header that carries a trace on (W3C Trace Context, section 3.2).
pub(crate) const TRACEPARENT: &str = "traceparent";

/// The value of [`TRACEPARENT`] for a call made from here.
pub(crate) fn traceparent() -> Option<String> {
    if !ON.load(Ordering::Relaxed) {
        return None;
    }
    let mut header = Header(None);
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut header);
    header.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_built_in_is_said() {
        let refused = only("OTEL_EXPORTER_OTLP_PROTOCOL".into(), Some("http/json".into()), "grpc");
        let message = refused.map_err(|error| error.to_string());
        assert_eq!(
            message,
            Err("OTEL_EXPORTER_OTLP_PROTOCOL=http/json: berthd sends traces as grpc only".to_owned())
        );
        assert!(only(String::new(), None, "grpc").is_ok());
        assert!(only(String::new(), Some(String::new()), "grpc").is_ok());
    }
}
