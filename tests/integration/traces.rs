//! What a collector of traces gets: each call once, in the caller's trace, with its stages below it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_cri::v1::{CreateContainerRequest, RunPodSandboxRequest, StartContainerRequest};
use libtest_mimic::Trial;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::support::{World, container, within};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![calls_and_their_stages, a_runtime_program, a_collector_that_is_not_there, what_is_not_built_in]
}

/// Keeps what it is sent.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<parking_lot::Mutex<Vec<Span>>>,
    services: Arc<parking_lot::Mutex<Vec<String>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            for attribute in resource.resource.into_iter().flat_map(|resource| resource.attributes) {
                if let ("service.name", Some(Value::StringValue(name))) =
                    (attribute.key.as_str(), attribute.value.and_then(|value| value.value))
                {
                    self.services.lock().push(name);
                }
            }
            self.spans.lock().extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens on a socket of the world's and has the daemon started again with its address.
    async fn of(world: &mut World) -> Self {
        let (collector, path) = (Self::default(), world.run.join("otlp.sock"));
        let listener = UnixListener::bind(&path).unwrap();
        let service = TraceServiceServer::new(collector.clone());
        let serving = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(serving.serve_with_incoming(UnixListenerStream::new(listener)));
        world
            .restart_with(&[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("unix://{}", path.display())),
                ("OTEL_BSP_SCHEDULE_DELAY", "50"),
            ])
            .await;
        collector
    }

    /// What `find` finds in the spans, once it finds something.
    async fn until<T>(&self, what: &str, find: impl Fn(&[Span]) -> Option<T>) -> T {
        let deadline = within(30);
        loop {
            let spans = self.spans.lock().clone();
            if let Some(found) = find(&spans) {
                return found;
            }
            let names: Vec<_> = spans.iter().map(|span| &span.name).collect();
            assert!(Instant::now() < deadline, "no {what} in {names:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The spans of a trace by name, once all of `wanted` are among them.
    async fn trace(&self, id: &[u8], wanted: &[&str]) -> BTreeMap<String, Span> {
        self.until(&format!("{wanted:?}"), |spans| {
            let trace = spans.iter().filter(|span| span.trace_id == id && well(span)).cloned();
            let trace: BTreeMap<_, _> = trace.map(|span| (span.name.clone(), span)).collect();
            wanted.iter().all(|name| trace.contains_key(*name)).then_some(trace)
        })
        .await
    }
}

/// Whether it says nothing of an error.
fn well(span: &Span) -> bool {
    span.status.as_ref().is_none_or(|status| status.message.is_empty())
}

impl World {
    async fn restart_with(&mut self, environment: &[(&str, &str)]) {
        self.daemon.environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.restart().await;
    }
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A request that the kubelet would send in a trace of its own.
fn traced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{CALLER}-01").parse().unwrap());
    request
}

fn attribute(span: &Span, key: &str) -> Option<Value> {
    span.attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value
}

async fn calls_and_their_stages(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let collector = Collector::of(world).await;
    let image = world.image("busybox").await;
    let (pod, config) = (world.pod("traced"), container("main", &image, &["sleep", "1000"]));
    let run = RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: String::new() };
    let pod_id = world.runtime().run_pod_sandbox(traced(run)).await.unwrap().into_inner().pod_sandbox_id;
    let create = CreateContainerRequest {
        pod_sandbox_id: pod_id.clone(),
        config: Some(config),
        sandbox_config: Some(pod),
    };
    let id = world.runtime().create_container(traced(create)).await.unwrap().into_inner().container_id;
    let start = StartContainerRequest { container_id: id.clone() };
    world.runtime().start_container(traced(start)).await.unwrap();
    let missing = StartContainerRequest { container_id: "absent".into() };
    world.runtime().start_container(traced(missing)).await.unwrap_err();

    let trace_id = hex::decode(TRACE).unwrap();
    let calls = ["run_pod_sandbox", "create_container", "start_container"];
    let stages = [
        ("sandbox_create", "run_pod_sandbox"),
        ("sandbox_create_namespaces", "sandbox_create"),
        ("sandbox_create_network", "sandbox_create"),
        ("container_create_rootfs", "create_container"),
        ("container_create_shim", "create_container"),
        ("container_runtime_create", "create_container"),
        ("shim Create", "container_runtime_create"),
        ("shim_fork", "shim Create"),
        ("shim_rootfs", "shim Create"),
        ("shim_specification", "shim Create"),
        ("shim_namespaces", "shim Create"),
        ("shim_mounts", "shim Create"),
        ("shim_cgroup", "shim Create"),
        ("container_start", "start_container"),
        ("shim Start", "container_start"),
        ("shim_start", "shim Start"),
    ];
    let wanted: Vec<&str> = calls.into_iter().chain(stages.map(|(stage, _)| stage)).collect();
    let trace = collector.trace(&trace_id, &wanted).await;
    for call in calls {
        assert_eq!(trace[call].kind(), SpanKind::Server, "{call}");
        assert_eq!(hex::encode(&trace[call].parent_span_id), CALLER, "{call}");
        assert_eq!(attribute(&trace[call], "rpc.system"), Some(Value::StringValue("grpc".into())));
    }
    for (stage, above) in stages {
        assert_eq!(trace[stage].parent_span_id, trace[above].span_id, "{stage} is not below {above}");
        assert!(trace[stage].end_time_unix_nano >= trace[stage].start_time_unix_nano);
    }
    // What the shim did lies within the call, one part after the other.
    let parts =
        ["shim_fork", "shim_rootfs", "shim_specification", "shim_namespaces", "shim_mounts", "shim_cgroup"];
    let times = parts.map(|part| (trace[part].start_time_unix_nano, trace[part].end_time_unix_nano));
    assert!(times.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{times:?}");
    let call = &trace["shim Create"];
    assert!(
        call.start_time_unix_nano <= times[0].0 && times[5].1 <= call.end_time_unix_nano,
        "{times:?} in {call:?}"
    );
    assert_eq!(attribute(&trace["run_pod_sandbox"], "pod"), Some(Value::StringValue(pod_id.clone())));
    let refused = Some(Value::IntValue(i64::from(i32::from(tonic::Code::NotFound))));
    let failed = collector
        .until("refused call", |spans| {
            let refusal = |span: &&Span| attribute(span, "rpc.grpc.status_code") == refused;
            spans.iter().find(refusal).and_then(|span| span.status.clone())
        })
        .await;
    assert!(failed.message.contains("absent"), "{failed:?}");
    assert!(collector.services.lock().iter().all(|name| name == "berthd"));

    // What is left is sent at the end.
    let before = collector.spans.lock().len();
    world.stop_pod(&pod_id).await.unwrap();
    world.remove_pod(&pod_id).await.unwrap();
    world.restart_with(&[]).await;
    let spans = collector.spans.lock().clone();
    assert!(spans.len() > before);
    assert!(spans.iter().any(|span| span.name == "remove_pod_sandbox"), "the last spans were lost");
}

/// The shim's work where runc does the most of it.
async fn a_runtime_program(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let collector = Collector::of(world).await;
    let image = world.image("busybox").await;
    let (pod, config) = (world.pod("traced"), container("main", &image, &["sleep", "1000"]));
    let pod_id = world.run_pod_with(&pod, "runc").await.unwrap();
    let create = CreateContainerRequest {
        pod_sandbox_id: pod_id.clone(),
        config: Some(config),
        sandbox_config: Some(pod),
    };
    let id = world.runtime().create_container(traced(create)).await.unwrap().into_inner().container_id;
    world.runtime().start_container(traced(StartContainerRequest { container_id: id })).await.unwrap();
    let parts = ["shim_fork", "shim_rootfs", "shim_specification", "shim_cgroup"];
    let trace = collector
        .trace(&hex::decode(TRACE).unwrap(), &[&parts[..], &["shim Create", "shim Start"]].concat())
        .await;
    for part in parts {
        assert_eq!(trace[part].parent_span_id, trace["shim Create"].span_id, "{part}");
    }
    for call in ["shim Create", "shim Start"] {
        let parent = &trace[call].span_id;
        let of_runc = |span: &&Span| span.name == "shim_runtime" && span.parent_span_id == *parent;
        collector.until("run of runc", |spans| spans.iter().find(of_runc).map(drop)).await;
    }
    world.stop_pod(&pod_id).await.unwrap();
    world.remove_pod(&pod_id).await.unwrap();
    world.restart_with(&[]).await;
}

async fn a_collector_that_is_not_there(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let endpoint = format!("unix://{}", world.run.join("nobody.sock").display());
    world
        .restart_with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "50")])
        .await;
    let (_, id) = world.pod_with_sleeper("alone").await;
    assert_eq!(world.sh(&id, "echo well").await, "well");
    world.restart_with(&[]).await;
}

async fn what_is_not_built_in(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    // Traces are worth less than pods: it is said, and the daemon runs.
    world
        .restart_with(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ])
        .await;
    let log = world.daemon.log();
    assert!(log.contains("OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"), "{log}");
    world.restart_with(&[]).await;
}
