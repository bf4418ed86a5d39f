//! Keys and tokens are in memory: what other programs of this user can make of that.

use piko_config::DUMPABLE;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tracing::warn;

/// No core dump is written of this process from now on, and only root can attach to it, or read its memory and its
/// environment (`PR_SET_DUMPABLE`, prctl(2)). A limit on core files would not do: a system that hands core dumps
/// to a program (`core_pattern`) does so whatever the limit is.
///
/// What is given up: a core dump after a crash, and `gdb` or `strace` as the same user. A panic still says in the
/// log where it was.
pub(crate) fn keep_private() {
    if std::env::var(DUMPABLE).is_ok_and(|value| value == "true") {
        return warn!("{DUMPABLE} is set: core dumps and debuggers get the keys and tokens in memory");
    }
    if let Err(e) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        warn!(error = %e, "core dumps of this process cannot be forbidden");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_core_dump_has_our_keys() {
        keep_private();
        assert!(matches!(rustix::process::dumpable_behavior(), Ok(DumpableBehavior::NotDumpable)));
    }
}
