//! Every metric a node exports, declared once: name, help, labels, buckets. Built on a registry of its
//! own, so that ten nodes fit in one test process.

mod counted;
mod endpoints;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::{Method, StatusCode};
use piko_bootstrap::metrics::{
    Descriptors, add, counter, counters, fractions, gauge, gauges, latencies, method_label, raise,
};
use piko_net::{Counts, Reason, files};
use prometheus::{
    Encoder as _, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Registry, TextEncoder,
};

pub use counted::Counted;
pub use endpoints::{EndpointMetrics, ToEndpoint};

/// All of a node's metrics.
pub struct Metrics {
    registry: Registry,
    /// The proxy port.
    pub proxy: ProxyMetrics,
    /// The same by endpoint.
    pub endpoints: EndpointMetrics,
    /// The upstream port.
    pub upstream: UpstreamMetrics,
    /// The gossip port.
    pub gossip: GossipMetrics,
    /// The connections of all ports.
    pub ports: PortCounts,
    /// Set when they are asked for.
    pub gauges: Gauges,
    /// `piko_log_lines_lost_total`: of the process, read when somebody asks.
    log_lost: IntCounter,
    descriptors: Descriptors,
}

/// The proxy port.
pub struct ProxyMetrics {
    /// `piko_proxy_requests_in_flight`
    requests_in_flight: IntGauge,
    requests: IntCounterVec,
    latency: HistogramVec,
    request_size: Histogram,
    response_size: Histogram,
    /// `piko_proxy_retries_total`
    pub retries: IntCounter,
    /// `piko_proxy_errors_total{code}`: requests that failed, by why, here or at an agent.
    pub errors: IntCounterVec,
    /// `piko_proxy_shed_total{limit, reason}`
    shed: IntCounterVec,
    /// `piko_upstreams_upstream_requests_total`
    pub upstream_requests: IntCounter,
    /// `piko_upstreams_detours_total`
    pub detours: IntCounter,
    /// `piko_upstreams_remote_requests_total{node_id}`
    pub remote_requests: IntCounterVec,
}

/// The upstream port.
pub struct UpstreamMetrics {
    tunnels: IntGauge,
    lanes: IntGauge,
    handshakes: IntCounterVec,
    /// `piko_upstreams_ejections_total{reason}`
    pub ejections: IntCounterVec,
    /// `piko_upstream_stalled_streams_total`: counted where tunnels and links are driven, read when somebody asks.
    pub stalled: Arc<AtomicU64>,
    stalled_streams: IntCounter,
}

/// The gossip port: what table replication sends and receives. memberlist's own probes and exchanges are
/// not in it.
#[derive(Clone)]
pub struct GossipMetrics {
    /// From other nodes.
    pub inbound: GossipDirection,
    /// To other nodes.
    pub outbound: GossipDirection,
    /// `piko_gossip_dropped_total{reason}`: what came and was not taken.
    pub dropped: IntCounterVec,
}

/// One direction of gossip.
#[derive(Clone)]
pub struct GossipDirection {
    connections: IntCounter,
    stream_bytes: IntCounter,
    packet_bytes: IntCounter,
    delta_entries: IntCounter,
}

/// The connections of each TCP port. Counted where they are accepted; read when somebody asks.
pub struct PortCounts {
    /// Of clients.
    pub proxy: Arc<Counts>,
    /// Of agents.
    pub upstream: Arc<Counts>,
    /// Of people and probes.
    pub admin: Arc<Counts>,
    /// Of other nodes.
    pub peer: Arc<Counts>,
    open: IntGaugeVec,
    accepted: IntCounterVec,
    ended: IntCounterVec,
}

/// Values that are read off the node when they are asked for.
pub struct Gauges {
    /// `piko_upstreams_connected_upstreams`
    pub upstreams: IntGauge,
    /// `piko_upstreams_set_aside`
    pub aside: IntGauge,
    /// `piko_upstreams_registered_endpoints`
    pub endpoints: IntGauge,
    /// `piko_cluster_nodes{status}`
    pub nodes: IntGaugeVec,
    /// `piko_cluster_links{node_id}`
    pub links: IntGaugeVec,
    /// `piko_cluster_link_rtt_seconds{node_id}`
    pub link_rtt: GaugeVec,
    /// `piko_upstream_tunnel_rtt_seconds{quantile}`
    pub tunnel_rtt: GaugeVec,
    /// `piko_gossip_entries{node_id}`
    pub entries: IntGaugeVec,
    /// `piko_tls_certificate_expiry_timestamp_seconds{port}`
    pub certificates: IntGaugeVec,
}

/// Bytes: 256 · 4^k.
const SIZES: &[f64] = &[256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0];

/// An empty registry, for what runs outside a node.
pub fn registry() -> Registry {
    Registry::new()
}

impl Metrics {
    /// All metrics, at zero; those by endpoint for so many of them.
    pub fn new(max_endpoints: usize) -> Self {
        let registry = Registry::new();
        let r = &registry;
        let proxy = ProxyMetrics {
            requests_in_flight: gauge(r, "piko_proxy_requests_in_flight", "Requests being served"),
            requests: counters(r, "piko_proxy_requests_total", "Requests served", &["status", "method"]),
            latency: latencies(
                r,
                "piko_proxy_request_latency_seconds",
                "Time from request to end of response",
                &["status", "method"],
            ),
            request_size: add(r, sizes("piko_proxy_request_size_bytes", "Path and headers of requests")),
            response_size: add(r, sizes("piko_proxy_response_size_bytes", "Bodies of responses")),
            retries: counter(
                r,
                "piko_proxy_retries_total",
                "Requests sent to another upstream after a failure",
            ),
            errors: counters(r, "piko_proxy_errors_total", "Requests that failed, by why", &["code"]),
            shed: counters(
                r,
                "piko_proxy_shed_total",
                "Requests refused as too many were at work, by the limit and by why they got no place",
                &["limit", "reason"],
            ),
            upstream_requests: counter(
                r,
                "piko_upstreams_upstream_requests_total",
                "Requests sent to an agent of this node",
            ),
            detours: counter(
                r,
                "piko_upstreams_detours_total",
                "Requests sent to another node by way of a third, as the link to it is down",
            ),
            remote_requests: counters(
                r,
                "piko_upstreams_remote_requests_total",
                "Requests sent to another node",
                &["node_id"],
            ),
        };
        let upstream = UpstreamMetrics {
            tunnels: gauge(r, "piko_upstream_tunnels", "Agents connected to this node"),
            lanes: gauge(r, "piko_upstream_lanes", "Lanes of busy agents, beyond their first tunnels"),
            handshakes: counters(
                r,
                "piko_upstream_handshakes_total",
                "Agents that asked for a tunnel, by what became of it",
                &["result"],
            ),
            ejections: counters(
                r,
                "piko_upstreams_ejections_total",
                "Upstreams set aside for what their services did, by why",
                &["reason"],
            ),
            stalled: Arc::default(),
            stalled_streams: counter(
                r,
                "piko_upstream_stalled_streams_total",
                "Streams of tunnels and links cut off, as they held bytes that nobody read",
            ),
        };
        let gauge_values = Gauges {
            upstreams: gauge(r, "piko_upstreams_connected_upstreams", "Upstreams connected to this node"),
            aside: gauge(
                r,
                "piko_upstreams_set_aside",
                "Upstreams of this node that are set aside for what their services did",
            ),
            endpoints: gauge(
                r,
                "piko_upstreams_registered_endpoints",
                "Endpoints with an upstream on this node",
            ),
            nodes: gauges(r, "piko_cluster_nodes", "Known nodes, this one included", &["status"]),
            links: gauges(
                r,
                "piko_cluster_links",
                "The link to each active node: 1 while it is up and answers, else 0",
                &["node_id"],
            ),
            link_rtt: fractions(
                r,
                "piko_cluster_link_rtt_seconds",
                "How long the other node took to answer the last PING on the link to it",
                &["node_id"],
            ),
            tunnel_rtt: fractions(
                r,
                "piko_upstream_tunnel_rtt_seconds",
                "How long agents took to answer the last PING, by share of the tunnels",
                &["quantile"],
            ),
            entries: gauges(
                r,
                "piko_gossip_entries",
                "Entries known of a node: its addresses and its endpoints",
                &["node_id", "deleted", "internal"],
            ),
            certificates: gauges(
                r,
                "piko_tls_certificate_expiry_timestamp_seconds",
                "When the first certificate of a port's chain is no longer good",
                &["port"],
            ),
        };
        let endpoints = EndpointMetrics::new(r, max_endpoints);
        let build = gauges(r, "piko_build_info", "Always 1; the version is a label", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let gossip = GossipMetrics {
            inbound: GossipDirection::new(r, "inbound"),
            outbound: GossipDirection::new(r, "outbound"),
            dropped: counters(
                r,
                "piko_gossip_dropped_total",
                "Gossip that came and was not taken",
                &["reason"],
            ),
        };
        let ports = PortCounts::new(r);
        let descriptors = Descriptors::new(r);
        let log_lost =
            counter(r, "piko_log_lines_lost_total", "Log lines lost, as stderr took them too slowly");
        Metrics {
            registry,
            proxy,
            endpoints,
            upstream,
            gossip,
            ports,
            gauges: gauge_values,
            log_lost,
            descriptors,
        }
    }

    /// Where plugins register theirs.
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// The Prometheus text format, version 0.0.4.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        self.ports.read();
        self.descriptors.set(files::open(), files::limit());
        raise(&self.upstream.stalled_streams, self.upstream.stalled.load(Relaxed));
        raise(&self.log_lost, piko_bootstrap::log::lost());
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

impl ProxyMetrics {
    /// Counts a request in flight until the guard drops.
    pub fn enter(&self) -> Counted {
        Counted::new(&self.requests_in_flight)
    }

    /// Counts one request that got no place.
    pub fn shed(&self, shed: Shed) {
        self.shed.with_label_values(&shed.labels()).inc();
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> i64 {
        self.requests_in_flight.get()
    }

    /// Counts one finished request. Sizes in bytes; status 0 where the client left without one.
    pub fn observe(
        &self,
        method: &Method,
        status: u16,
        elapsed: Duration,
        request_size: usize,
        response_size: usize,
    ) {
        let code = StatusCode::from_u16(status).ok();
        let labels = [code.as_ref().map_or("0", StatusCode::as_str), method_label(method)];
        self.requests.with_label_values(&labels).inc();
        self.latency.with_label_values(&labels).observe(elapsed.as_secs_f64());
        self.request_size.observe(request_size as f64);
        self.response_size.observe(response_size as f64);
    }
}

/// Why a request got no place, and at which limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    /// As many waited at the node's limit as may.
    NodeQueueFull,
    /// None became free there in time.
    NodeQueueTimeout,
    /// As many waited at the listener's limit as may.
    EndpointQueueFull,
    /// None became free there in time.
    EndpointQueueTimeout,
    /// The tunnels of all upstreams have as many requests as they may.
    TunnelsFull,
}

impl Shed {
    fn labels(self) -> [&'static str; 2] {
        match self {
            Shed::NodeQueueFull => ["node", "queue_full"],
            Shed::NodeQueueTimeout => ["node", "queue_timeout"],
            Shed::EndpointQueueFull => ["endpoint", "queue_full"],
            Shed::EndpointQueueTimeout => ["endpoint", "queue_timeout"],
            Shed::TunnelsFull => ["tunnel", "full"],
        }
    }
}

impl UpstreamMetrics {
    /// A tunnel was set up.
    pub fn handshake_accepted(&self) {
        self.handshakes.with_label_values(&["accepted"]).inc();
    }

    /// None was; `code` says why.
    pub fn handshake_refused(&self, code: &'static str) {
        self.handshakes.with_label_values(&[code]).inc();
    }

    /// Counts one more lane of a tunnel until the guard drops.
    pub fn lane_opened(&self) -> Counted {
        Counted::new(&self.lanes)
    }

    /// Counts an open tunnel until the guard drops.
    pub fn tunnel_opened(&self) -> Counted {
        Counted::new(&self.tunnels)
    }
}

impl PortCounts {
    fn new(r: &Registry) -> PortCounts {
        let counts = |port| Arc::new(Counts::new(port));
        PortCounts {
            proxy: counts("proxy"),
            upstream: counts("upstream"),
            admin: counts("admin"),
            peer: counts("peer"),
            open: gauges(r, "piko_port_connections", "Connections open", &["port"]),
            accepted: counters(r, "piko_port_accepted_total", "Connections that got a place", &["port"]),
            ended: counters(
                r,
                "piko_port_cut_total",
                "Connections refused, or ended by the node, by why",
                &["port", "reason"],
            ),
        }
    }

    fn read(&self) {
        for counts in [&self.proxy, &self.upstream, &self.admin, &self.peer] {
            let port = counts.port();
            self.open.with_label_values(&[port]).set(counts.open() as i64);
            raise(&self.accepted.with_label_values(&[port]), counts.accepted());
            for reason in Reason::ALL {
                raise(&self.ended.with_label_values(&[port, reason.as_str()]), counts.of(reason));
            }
        }
    }
}

impl GossipDirection {
    fn new(r: &Registry, direction: &str) -> Self {
        let counter =
            |what: &str, help: &str| counter(r, &format!("piko_gossip_{what}_{direction}_total"), help);
        GossipDirection {
            connections: counter("connections", "Connections of table replication"),
            stream_bytes: counter("stream_bytes", "Bytes of messages on connections"),
            packet_bytes: counter("packet_bytes", "Bytes of messages in packets"),
            delta_entries: counter("delta_entries", "Changes of endpoints"),
        }
    }

    /// Counts one message.
    pub fn count(&self, in_packet: bool, bytes: usize, entries: usize) {
        if in_packet {
            self.packet_bytes.inc_by(bytes as u64);
        } else {
            self.connections.inc();
            self.stream_bytes.inc_by(bytes as u64);
        }
        self.delta_entries.inc_by(entries as u64);
    }
}

fn sizes(name: &str, help: &str) -> prometheus::Result<Histogram> {
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(SIZES.to_vec()))
}
