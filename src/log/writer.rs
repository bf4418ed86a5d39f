//! Log lines leave for stderr on a thread of their own. Whoever reads them may stall (a full pipe, a slow disk): that
//! costs lines, which are counted, and no request waits for it.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use piko_bootstrap::log::count_lost;
use tracing::warn;

/// Lines that wait for the thread, bytes. Some 10,000 lines of an access log: a second of stalled writing on a busy node.
const ROOM: usize = 4 << 20;
/// What an empty buffer keeps of its memory.
const KEPT: usize = 256 << 10;
/// How long the end of the process waits for its last lines.
const AT_END: Duration = Duration::from_secs(1);

/// Of this process: it has one stderr.
static LINES: OnceLock<Arc<Lines>> = OnceLock::new();

/// Lines on their way.
struct Lines {
    waiting: Mutex<Waiting>,
    /// There is something to write.
    more: Condvar,
    /// All was written.
    done: Condvar,
}

#[derive(Default)]
struct Waiting {
    text: Vec<u8>,
    /// Lines that found no room since it was said last.
    lost: u64,
    /// The thread writes what it took.
    writing: bool,
}

/// The way of one line.
pub(super) struct Line(Arc<Lines>);

/// Waits for the last lines when it is dropped, for a second at most.
pub(crate) struct Flush;

/// The way of a line; starts the thread with the first one.
pub(super) fn start() -> Line {
    let lines = LINES.get_or_init(|| {
        let lines = Arc::new(Lines::new());
        let theirs = lines.clone();
        let write = move || theirs.write_all_to(&mut io::stderr());
        // Where the system gives no thread, lines fill their room and are lost: no reason to end the process.
        let _ = std::thread::Builder::new().name("log".into()).spawn(write);
        lines
    });
    Line(lines.clone())
}

impl Lines {
    fn new() -> Lines {
        Lines { waiting: Mutex::default(), more: Condvar::new(), done: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line, or counts it as lost.
    fn put(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.text.len() + line.len() > ROOM {
            waiting.lost += 1;
            drop(waiting);
            return count_lost();
        }
        let first = waiting.text.is_empty();
        waiting.text.extend_from_slice(line);
        drop(waiting);
        if first {
            self.more.notify_one();
        }
    }

    /// Writes lines for as long as the process lives.
    fn write_all_to(&self, to: &mut impl Write) {
        let mut text = Vec::new();
        loop {
            let lost = self.take(&mut text);
            // What cannot be written is lost: there is nowhere else to say so.
            let _ = to.write_all(&text);
            text.clear();
            text.shrink_to(KEPT);
            let mut waiting = self.lock();
            waiting.writing = false;
            drop(waiting);
            self.done.notify_all();
            if lost > 0 {
                warn!(lines = lost, "log lines were lost: stderr takes them more slowly than they come");
            }
        }
    }

    /// Waits for lines and moves them into `text`; how many were lost before.
    fn take(&self, text: &mut Vec<u8>) -> u64 {
        let mut waiting = self.lock();
        while waiting.text.is_empty() {
            waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut waiting.text, text);
        waiting.writing = true;
        std::mem::take(&mut waiting.lost)
    }

    /// Waits until all is written, or for `limit`.
    fn flush(&self, limit: Duration) {
        let open = |waiting: &mut Waiting| waiting.writing || !waiting.text.is_empty();
        let _ = self.done.wait_timeout_while(self.lock(), limit, open);
    }
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        if let Some(lines) = LINES.get() {
            lines.flush(AT_END);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes nothing before it is told to; says what it took.
    struct Stalled(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stalls_costs_lines_and_no_time() {
        let lines = Arc::new(Lines::new());
        let theirs = lines.clone();
        let (go, gate) = mpsc::channel();
        let (told, took) = mpsc::channel();
        // It ends with the process.
        std::thread::spawn(move || theirs.write_all_to(&mut Stalled(gate, told)));
        let line = vec![b'x'; ROOM / 4];
        let before = piko_bootstrap::log::lost();
        // Nobody reads: what the thread holds and what fits is kept, the rest is lost.
        for _ in 0..20 {
            lines.put(&line);
        }
        let lost = piko_bootstrap::log::lost() - before;
        assert!((12..=16).contains(&lost), "{lost} of 20 lines were lost");
        lines.flush(Duration::from_millis(1));
        drop(go);
        let bytes = |_| took.recv().unwrap().len();
        let mut written = 0;
        while written < (20 - lost as usize) * line.len() {
            written += bytes(());
        }
        lines.flush(Duration::from_secs(30));
        lines.put(b"last");
        assert_eq!(took.recv().unwrap(), b"last", "after a stall it goes on");
    }
}
