//! Puts names, pod and container ids on the span of the call. The server's stack opens it, with these fields still empty,
//! before the request is decoded.

use tracing::Span;

/// The call is to make this: what there is to say before it has an id.
pub(crate) fn name(parts: &[&str]) {
    Span::current().record("name", parts.join("/"));
}

/// The call is about this pod.
pub(crate) fn pod(id: &str) {
    Span::current().record("pod", id);
}

/// The call is about this container.
pub(crate) fn container(id: &str) {
    Span::current().record("container", id);
}
