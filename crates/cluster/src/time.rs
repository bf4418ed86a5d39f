//! Time, as the driver of the cluster's state counts it.

use std::time::Duration;

/// Time since whatever start the driver chose. It never goes back.
pub type Time = Duration;
