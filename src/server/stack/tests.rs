#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::convert::Infallible;
use std::sync::Arc;

use prometheus::Registry;
use tokio::sync::Notify;
use tower::{ServiceExt, service_fn};

use super::*;

const BOUNDS: Bounds = Bounds { deadline: Duration::from_secs(1), changes: 1, reads: 1 };

fn request(method: &str) -> Request<Body> {
    Request::builder().uri(format!("/runtime.v1.RuntimeService/{method}")).body(Body::empty()).unwrap()
}

/// Makes one call whose handler is `handler`, and brings its code and the metrics as text.
async fn call<F>(bounds: Bounds, request: Request<Body>, handler: fn() -> F) -> (Status, String)
where
    F: Future<Output = Status> + Send + 'static,
{
    let registry = Registry::new();
    let service = service_fn(move |_: Request<Body>| async move {
        Ok::<_, Infallible>(handler().await.into_http::<Body>())
    });
    let layer = layers(bounds, Metrics::new(&registry).unwrap());
    let response = layer.layer(service).oneshot(request).await.unwrap();
    let status = Status::from_header_map(response.headers()).unwrap();
    (status, prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap())
}

#[tokio::test]
async fn errors_are_counted_by_code() {
    let (status, metrics) = call(BOUNDS, request("StopContainer"), || async { Status::not_found("x") }).await;
    assert_eq!(status.code(), Code::NotFound);
    assert!(metrics.contains("berth_cri_operations_total{operation=\"stop_container\"} 1"), "{metrics}");
    let errors = "berth_cri_operations_errors_total{code=\"NotFound\",operation=\"stop_container\"} 1";
    assert!(metrics.contains(errors), "{metrics}");
    assert!(metrics.contains("berth_cri_operations_latency_seconds_count{operation=\"stop_container\"} 1"));
    assert!(metrics.contains("berth_cri_operations_in_flight{operation=\"stop_container\"} 0"));
}

#[tokio::test]
async fn panics_become_internal() {
    let (status, _) = call(BOUNDS, request("Status"), || async { panic!("out of cheese") }).await;
    assert_eq!(status.code(), Code::Internal);
    assert_eq!(status.message(), "status panicked: out of cheese");
}

#[tokio::test]
async fn the_cap_ends_calls_but_not_pulls() {
    let bounds = Bounds { deadline: Duration::from_millis(50), ..BOUNDS };
    async fn slow() -> Status {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Status::ok("")
    }
    assert_eq!(call(bounds, request("RunPodSandbox"), slow).await.0.code(), Code::DeadlineExceeded);
    assert_eq!(call(bounds, request("PullImage"), slow).await.0.code(), Code::Ok);
    let mut asked = request("StopContainer");
    asked.headers_mut().insert("grpc-timeout", "50m".parse().unwrap());
    assert_eq!(call(bounds, asked, slow).await.0.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn reads_find_a_place_when_changes_are_full() {
    let release = Arc::new(Notify::new());
    let held = release.clone();
    let service = service_fn(move |request: Request<Body>| {
        let held = held.clone();
        async move {
            if request.uri().path().ends_with("RunPodSandbox") {
                held.notified().await;
            }
            Ok::<_, Infallible>(Status::ok("").into_http::<Body>())
        }
    });
    let service = layers(BOUNDS, Metrics::new(&Registry::new()).unwrap()).layer(service);
    let first = tokio::spawn(service.clone().oneshot(request("RunPodSandbox")));
    tokio::task::yield_now().await;
    let code_of = async |method: &str| {
        let response = service.clone().oneshot(request(method)).await.unwrap();
        Status::from_header_map(response.headers()).unwrap().code()
    };
    assert_eq!(code_of("RemovePodSandbox").await, Code::ResourceExhausted);
    assert_eq!(code_of("ListPodSandbox").await, Code::Ok);
    assert_eq!(code_of("ExecSync").await, Code::Ok);
    release.notify_one();
    first.await.unwrap().unwrap();
    assert_eq!(code_of("RemovePodSandbox").await, Code::Ok);
}

#[tokio::test]
async fn a_client_that_goes_away_is_counted() {
    let registry = Registry::new();
    let service = service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Body>, Infallible>>());
    let service = layers(BOUNDS, Metrics::new(&registry).unwrap()).layer(service);
    let gone =
        tokio::time::timeout(Duration::from_millis(10), service.oneshot(request("StopContainer"))).await;
    assert!(gone.is_err());
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    assert!(text.contains("errors_total{code=\"Cancelled\",operation=\"stop_container\"} 1"), "{text}");
}
