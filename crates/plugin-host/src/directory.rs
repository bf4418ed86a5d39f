//! What the host has to be told of the cluster it runs in.

/// What a plugin can ask about the cluster.
pub trait Directory: Send + Sync + 'static {
    /// Endpoints with an upstream whose name starts with `prefix`, in order, at most `limit`.
    fn endpoints(&self, prefix: &str, limit: usize) -> Vec<String>;
    /// How many upstreams an endpoint has, on all nodes together.
    fn upstreams(&self, endpoint: &str) -> u32;
    /// Is this a well-formed endpoint name?
    fn is_endpoint(&self, name: &str) -> bool;
}
