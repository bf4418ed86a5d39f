//! How many log lines a plugin gets: clients decide how often it is called, so they would decide how much is
//! written.

use std::time::Duration;

use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::time::Instant;
use tracing::warn;

/// Longest log message, bytes. The rest of a longer one is cut off.
const MAX_MESSAGE: usize = 4 << 10;
/// Lines within [`WINDOW`]: enough to follow a plugin that is tried out, and at 4 KiB a line no more than
/// 400 KiB a second.
const MOST: u32 = 100;
/// The time over which lines are counted.
const WINDOW: Duration = Duration::from_secs(1);

/// The log lines of one plugin, by its name: a new version gets no new share.
pub(crate) struct Lines {
    window: Mutex<Window>,
    dropped: IntCounter,
}

struct Window {
    began: Instant,
    lines: u32,
}

/// Whether a line is written, and whether its loss is worth a line.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Written,
    /// Dropped, as the first of its window: worth a line of ours.
    FirstDropped,
    Dropped,
}

impl Lines {
    pub(crate) fn new(dropped: IntCounter) -> Self {
        Lines { window: Mutex::new(Window { began: Instant::now(), lines: 0 }), dropped }
    }

    /// How many lines were dropped since the node started.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// May a line be written? Says so in the log where this is the first that may not.
    pub(crate) fn may_log(&self, plugin: &str) -> bool {
        match self.count() {
            Line::Written => return true,
            Line::FirstDropped => {
                let dropped = self.dropped();
                warn!(plugin, dropped, "more than {MOST} log lines in a second: the rest of them is dropped");
            }
            Line::Dropped => {}
        }
        false
    }

    fn count(&self) -> Line {
        let mut window = self.window.lock();
        if window.began.elapsed() >= WINDOW {
            *window = Window { began: Instant::now(), lines: 0 };
        }
        window.lines = window.lines.saturating_add(1);
        if window.lines <= MOST {
            return Line::Written;
        }
        self.dropped.inc();
        if window.lines == MOST + 1 { Line::FirstDropped } else { Line::Dropped }
    }
}

/// The part of a plugin's text that the log takes.
pub(crate) fn cut(message: &str) -> &str {
    &message[..message.floor_char_boundary(MAX_MESSAGE)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_plugin_gets_a_hundred_lines_a_second_and_the_others_are_counted() {
        let lines = Lines::new(IntCounter::new("dropped", "lines").expect("a metric"));
        let burst = |n: u32| (0..n).map(|_| lines.count()).collect::<Vec<_>>();
        let first = burst(1000);
        assert!(first[..100].iter().all(|line| *line == Line::Written));
        assert_eq!(first[100], Line::FirstDropped, "the log says once that lines are missing");
        assert!(first[101..].iter().all(|line| *line == Line::Dropped));
        assert_eq!(lines.dropped(), 900);
        tokio::time::advance(WINDOW).await;
        assert!(burst(100).iter().all(|line| *line == Line::Written), "a new second, a new hundred");
        assert_eq!(lines.dropped(), 900);
    }
}
