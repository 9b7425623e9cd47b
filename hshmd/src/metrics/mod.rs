//! What the daemon counts, for whoever watches it, in the OpenMetrics text format
//! (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).

mod collect;
mod serve;
#[cfg(test)]
mod tests;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use self::collect::Segments;
pub(crate) use self::serve::Endpoint;
use crate::daemon::Shared;

/// What is counted as it happens. The rest is looked up when somebody asks.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    requests: Family<RequestLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    request: &'static str,
    result: &'static str,
}

impl Counted {
    /// Notes that a request was answered.
    pub(crate) fn answered(&self, request: &'static str, result: &'static str) {
        self.requests.get_or_create(&RequestLabels { request, result }).inc();
    }
}

/// Everything there is to tell, as text. Walks all heaps: not for the daemon's main thread.
pub(crate) fn render(shared: &Shared) -> String {
    let mut registry = Registry::with_prefix("hshm");
    registry.register(
        "requests",
        "Requests of clients that were answered",
        shared.counted.requests.clone(),
    );
    registry.register_collector(Box::new(Segments::of(shared)));
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => text,
        // Writing to a string does not fail.
        Err(error) => format!("# {error}\n# EOF\n"),
    }
}
