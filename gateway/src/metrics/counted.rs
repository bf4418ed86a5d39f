//! What is counted for as long as it is there.

use prometheus::IntGauge;

/// One of what a gauge counts, for as long as it lives.
pub struct Counted(IntGauge);

impl Counted {
    pub(super) fn new(gauge: &IntGauge) -> Counted {
        gauge.inc();
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
