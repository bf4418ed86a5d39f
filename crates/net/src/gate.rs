//! Which connections a port may have: so many in all, so many of one address, and a place for a newcomer
//! where others are idle.
//!
//! A port that is full cuts the connections that have been idle longest, not the newcomer: then no number of
//! silent clients keeps a good one out. A connection with a request under way, or one that has proven whose it
//! is, is never cut for another.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use crate::count::{Counts, Reason};

/// Locks of the tables, so that workers do not wait for each other.
const SHARDS: usize = 16;
/// Of a full port's places, this part is freed at once: looking for the oldest reads them all.
const FREED_AT_ONCE: usize = 64;
/// After a search for idle connections that found none, there is none for so long.
const SEARCH_AGAIN: Duration = Duration::from_millis(100);
/// How long accepting waits for connections that were cut to be gone. One whose thread does not come round may
/// not hold up the port.
const LONGEST_WAIT_FOR_CUT: Duration = Duration::from_millis(100);

/// How many connections a port may have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateLimits {
    /// Connections open at once, of all addresses together.
    pub most: usize,
    /// Of those, one public address's share, from 0 to 1. Loopback and private addresses have no such limit:
    /// behind a balancer on the same network all clients come from one.
    pub address_share: f64,
    /// Beyond `most`, for what must get through: see [`Place::is_reserve`].
    pub reserve: usize,
}

/// The places of one port.
pub struct Gate {
    limits: GateLimits,
    counts: Arc<Counts>,
    started: Instant,
    open: AtomicUsize,
    next: AtomicU64,
    addresses: [Mutex<HashMap<IpAddr, usize>>; SHARDS],
    members: [Mutex<HashMap<u64, Arc<Member>>>; SHARDS],
    /// When it is worth while to look for idle connections again, milliseconds after `started`.
    search_at: AtomicU64,
    /// Connections that were cut for another and whose tasks have not ended yet: they hold their places and
    /// descriptors until then.
    leaving: AtomicUsize,
    left: Notify,
}

/// What a connection is doing, as far as its deadlines and its place are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Accepted; its first request is awaited.
    New,
    /// Between two requests. It may be cut when the port is full, after those that never had one.
    Idle,
    /// The next request has begun: the rest of its head is awaited.
    Head,
    /// A request is being served, or the other end has proven that it is an agent or a node.
    Busy,
    /// It was cut, and is about to be gone.
    Cut,
}

/// One connection, as its gate sees it.
struct Member {
    id: u64,
    /// The [`Standing`] in the lowest three bits; above, since when: milliseconds after [`Gate::started`].
    standing: AtomicU64,
    task: OnceLock<AbortHandle>,
}

/// A connection's place, given back when dropped.
pub struct Place {
    gate: Arc<Gate>,
    member: Arc<Member>,
    /// The address whose share it counts to. `None` for those without a limit.
    address: Option<IpAddr>,
    reserve: bool,
}

impl Gate {
    /// A gate with all places free. What it lets in or cuts is counted in `counts`.
    pub fn new(limits: GateLimits, counts: Arc<Counts>) -> Arc<Gate> {
        Arc::new(Gate {
            limits,
            counts,
            started: Instant::now(),
            open: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            addresses: Default::default(),
            members: Default::default(),
            search_at: AtomicU64::new(0),
            leaving: AtomicUsize::new(0),
            left: Notify::new(),
        })
    }

    /// Connections open now, the reserve and those that are being cut included.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// How many were let in, and why others were not.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Waits until the connections that were cut for newcomers are gone, or few are left. Without it a quick
    /// flood is accepted faster than places come back: nothing is left to cut, and a good client in it is refused.
    pub(crate) async fn settle(&self) {
        if self.open.load(Relaxed) < self.limits.most {
            return;
        }
        let few_are_leaving = async {
            loop {
                // Registered before looking: one that leaves in between would go unnoticed, and this wait to its end.
                let left = self.left.notified();
                tokio::pin!(left);
                left.as_mut().enable();
                if self.leaving.load(Acquire) < self.freed_at_once() {
                    return;
                }
                left.await;
            }
        };
        let _ = timeout(LONGEST_WAIT_FOR_CUT, few_are_leaving).await;
    }

    /// A place for a client, or why there is none.
    pub(crate) fn enter(self: &Arc<Gate>, from: SocketAddr) -> Result<Place, Reason> {
        let address = shared_address(from.ip()).filter(|_| self.limits.address_share < 1.0);
        if let Some(address) = address
            && !self.take_share(address)
        {
            return Err(Reason::AddressShare);
        }
        // Counted before it is compared: two that come at once must not both take the last place.
        let taken = self.open.fetch_add(1, Relaxed);
        let mut reserve = false;
        if taken >= self.limits.most {
            // What is cut gives its place back a moment later: until then the newcomer is one too many, and
            // so are a few after it.
            let freed = self.evict() > 0 || taken < self.limits.most + self.freed_at_once();
            reserve = !freed;
            if reserve && taken >= self.limits.most + self.limits.reserve {
                self.open.fetch_sub(1, Relaxed);
                self.give_share_back(address);
                return Err(Reason::Full);
            }
        }
        let id = self.next.fetch_add(1, Relaxed);
        let standing = AtomicU64::new(self.pack(Standing::New));
        let member = Arc::new(Member { id, standing, task: OnceLock::new() });
        self.members[shard(id)].lock().insert(id, member.clone());
        self.counts.accept();
        Ok(Place { gate: self.clone(), member, address, reserve })
    }

    /// Cuts the connections that have been idle longest, those without a request so far first: a client that was
    /// served keeps its connection in a flood of silent ones. Returns how many.
    pub(crate) fn evict(&self) -> usize {
        let now = self.now();
        if now < self.search_at.load(Relaxed) {
            return 0;
        }
        let mut idle: Vec<((bool, u64), Arc<Member>)> = Vec::new();
        for members in &self.members {
            let members = members.lock();
            idle.extend(members.values().filter_map(|member| {
                let packed = member.standing.load(Relaxed);
                let standing = unpack(packed);
                let cuttable = matches!(standing, Standing::New | Standing::Idle | Standing::Head);
                let last = (standing == Standing::Idle, packed >> 3);
                // Without a task that is known, there is nothing to abort yet.
                (cuttable && member.task.get().is_some()).then(|| (last, member.clone()))
            }));
        }
        let wanted = self.freed_at_once().min(idle.len());
        if wanted == 0 {
            self.search_at.store(now + SEARCH_AGAIN.as_millis() as u64, Relaxed);
            return 0;
        }
        if wanted < idle.len() {
            // Which ones have been idle longest matters, not their order.
            idle.select_nth_unstable_by_key(wanted, |(last, _)| *last);
        }
        idle.truncate(wanted);
        for (_, member) in &idle {
            self.cut(member);
            self.counts.note(Reason::Evicted, &"idle for longest when the port was full");
        }
        wanted
    }

    /// Cuts every connection, whatever it does. Returns how many.
    pub(crate) fn cut_all(&self) -> usize {
        // Copied, so that no lock is held while tasks are aborted.
        let all: Vec<_> =
            self.members.iter().flat_map(|m| m.lock().values().cloned().collect::<Vec<_>>()).collect();
        all.iter().for_each(|member| self.cut(member));
        all.len()
    }

    fn cut(&self, member: &Member) {
        // Before the abort, so that the place finds `Cut` when it is dropped, and counts itself out of `leaving`.
        // If that happens before the next line, the count is wrong for a moment and right again after it.
        let old = member.standing.swap(self.pack(Standing::Cut), Release);
        if unpack(old) != Standing::Cut {
            self.leaving.fetch_add(1, Release);
        }
        if let Some(task) = member.task.get() {
            task.abort();
        }
    }

    fn freed_at_once(&self) -> usize {
        self.limits.most / FREED_AT_ONCE + 1
    }

    fn take_share(&self, address: IpAddr) -> bool {
        // However small the port, an address gets one connection.
        let share = ((self.limits.most as f64 * self.limits.address_share) as usize).max(1);
        let mut addresses = self.addresses[address_shard(address)].lock();
        let count = addresses.entry(address).or_default();
        let free = *count < share;
        *count += usize::from(free);
        free
    }

    fn give_share_back(&self, address: Option<IpAddr>) {
        let Some(address) = address else { return };
        let mut addresses = self.addresses[address_shard(address)].lock();
        if let Some(count) = addresses.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&address);
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX >> 3)
    }

    fn pack(&self, standing: Standing) -> u64 {
        self.now() << 3 | standing as u64
    }
}

impl Place {
    /// Is it one of the reserve, given out when the port was full and nobody idle? Only what must get
    /// through is to be served then.
    pub fn is_reserve(&self) -> bool {
        self.reserve
    }

    /// The port's counts, for what happens to the connection later.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.gate.counts
    }

    /// Tells the gate of the task that serves the connection, by which it can be cut.
    pub(crate) fn served_by(&self) -> impl FnOnce(AbortHandle) + use<> {
        let member = self.member.clone();
        move |task| {
            let _ = member.task.set(task.clone());
            // It was cut before its task was known here, so nothing has aborted it.
            if unpack(member.standing.load(Acquire)) == Standing::Cut {
                task.abort();
            }
        }
    }

    /// A second hold on the standing, for the code that sees requests begin and end.
    pub fn watch(&self) -> Watch {
        Watch { gate: self.gate.clone(), member: self.member.clone() }
    }

    /// Says what the connection does from now on, like [`Watch::set`].
    pub fn set(&self, standing: Standing) {
        set(&self.gate, &self.member, standing);
    }

    /// What the connection is doing, and since when.
    pub fn standing(&self) -> (Standing, Instant) {
        let packed = self.member.standing.load(Relaxed);
        (unpack(packed), self.gate.started + Duration::from_millis(packed >> 3))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.members[shard(self.member.id)].lock().remove(&self.member.id);
        self.gate.give_share_back(self.address);
        self.gate.open.fetch_sub(1, Relaxed);
        // Swapped, so that a cut at this very moment is not counted for ever.
        let standing = self.member.standing.swap(self.gate.pack(Standing::Cut), AcqRel);
        if unpack(standing) == Standing::Cut {
            self.gate.leaving.fetch_sub(1, Release);
            self.gate.left.notify_waiters();
        }
        self.gate.counts.leave();
    }
}

/// A hold on a connection's standing.
#[derive(Clone)]
pub struct Watch {
    gate: Arc<Gate>,
    member: Arc<Member>,
}

impl Watch {
    /// Says what the connection does from now on. One that was cut stays cut.
    pub fn set(&self, standing: Standing) {
        set(&self.gate, &self.member, standing);
    }
}

fn set(gate: &Gate, member: &Member, standing: Standing) {
    let packed = gate.pack(standing);
    let old = member.standing.load(Relaxed);
    if unpack(old) != Standing::Cut {
        // A cut between these two lines stays: it fails the exchange.
        let _ = member.standing.compare_exchange(old, packed, Release, Relaxed);
    }
}

fn unpack(packed: u64) -> Standing {
    match packed & 7 {
        0 => Standing::New,
        1 => Standing::Idle,
        2 => Standing::Head,
        3 => Standing::Busy,
        _ => Standing::Cut,
    }
}

fn shard(id: u64) -> usize {
    (id % SHARDS as u64) as usize
}

fn address_shard(address: IpAddr) -> usize {
    let last = match address {
        IpAddr::V4(v4) => v4.octets()[3],
        // The last byte of the /64: behind it, shares have zeros.
        IpAddr::V6(v6) => v6.octets()[7],
    };
    usize::from(last) % SHARDS
}

/// The address that a connection is counted for: a public IPv4 address, or the /64 of a public IPv6 address, which
/// is what one customer has at least. Returns `None` for loopback, private, link-local and carrier addresses.
fn shared_address(address: IpAddr) -> Option<IpAddr> {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let carrier = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64; // RFC 6598
            let own = v4.is_loopback() || v4.is_private() || v4.is_link_local() || carrier;
            (!own).then_some(IpAddr::V4(v4))
        }
        IpAddr::V6(v6) => {
            let own = v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local();
            let [a, b, c, d, ..] = v6.segments();
            (!own).then_some(IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn gate(most: usize, reserve: usize) -> Arc<Gate> {
        let limits = GateLimits { most, address_share: 0.25, reserve };
        Gate::new(limits, Arc::new(Counts::new("test")))
    }

    fn from(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), 4000)
    }

    /// A place whose connection never ends by itself; its task drops the place when it is cut.
    fn served(gate: &Arc<Gate>, standing: Standing) -> tokio::task::JoinHandle<()> {
        let place = gate.enter(from("127.0.0.1")).unwrap();
        place.set(standing);
        let tell = place.served_by();
        let task = tokio::spawn(async move {
            let _place = place;
            std::future::pending::<()>().await;
        });
        tell(task.abort_handle());
        task
    }

    async fn was_cut(task: tokio::task::JoinHandle<()>) -> bool {
        let ended = tokio::time::timeout(Duration::from_secs(60), task).await;
        ended.is_ok_and(|ended| ended.is_err_and(|e| e.is_cancelled()))
    }

    #[test]
    fn one_public_address_has_a_share_and_a_private_one_has_all() {
        let gate = gate(40, 0);
        let of_one: Vec<_> = (0..40).map_while(|_| gate.enter(from("198.51.100.7")).ok()).collect();
        assert_eq!(of_one.len(), 10, "a quarter");
        assert_eq!(gate.enter(from("::ffff:198.51.100.7")).err(), Some(Reason::AddressShare));
        let other = gate.enter(from("198.51.100.8")).unwrap();
        let private: Vec<_> = (0..40).map_while(|_| gate.enter(from("10.1.2.3")).ok()).collect();
        assert!(private.len() >= 29, "the rest of the port");
        drop((of_one, other, private));
        assert_eq!(gate.open(), 0);
        assert!(gate.addresses.iter().all(|shard| shard.lock().is_empty()), "nothing is kept of who left");
    }

    #[test]
    fn ipv6_neighbours_share_and_the_next_network_does_not() {
        let own = |text: &str| shared_address(text.parse().unwrap());
        assert_eq!(own("2001:db8:1:2::1"), own("2001:db8:1:2:ffff::9"));
        assert_ne!(own("2001:db8:1:2::1"), own("2001:db8:1:3::1"));
        for private in ["::1", "fd00::1", "fe80::1", "127.0.0.1", "192.168.1.1", "100.64.0.1", "169.254.1.1"]
        {
            assert_eq!(own(private), None, "{private}");
        }
        assert_eq!(own("100.128.0.1"), Some("100.128.0.1".parse().unwrap()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_port_cuts_who_was_idle_longest_for_a_newcomer() {
        let gate = gate(3, 0);
        let busy = served(&gate, Standing::Busy);
        tokio::time::advance(Duration::from_secs(1)).await;
        let oldest = served(&gate, Standing::New);
        tokio::time::advance(Duration::from_secs(1)).await;
        let younger = served(&gate, Standing::Idle);
        tokio::time::advance(Duration::from_secs(1)).await;
        let newcomer = served(&gate, Standing::New);
        assert!(was_cut(oldest).await);
        assert!(!busy.is_finished() && !younger.is_finished() && !newcomer.is_finished());
        assert_eq!((gate.open(), gate.counts().of(Reason::Evicted)), (3, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_served_before_is_cut_after_who_said_nothing() {
        let gate = gate(2, 0);
        let served_before = served(&gate, Standing::Idle);
        tokio::time::advance(Duration::from_secs(9)).await;
        let silent = served(&gate, Standing::New);
        let newcomer = served(&gate, Standing::New);
        assert!(was_cut(silent).await);
        assert!(!served_before.is_finished() && !newcomer.is_finished());
    }

    /// Accepting once ran ahead of the cuts: then a flood found nothing left to cut, and a good client in it
    /// was refused for 100 ms.
    #[tokio::test]
    async fn a_quick_flood_waits_for_what_was_cut_and_is_never_refused() {
        let gate = gate(64, 0);
        let mut flood = Vec::new();
        for _ in 0..400 {
            gate.settle().await;
            flood.push(served(&gate, Standing::New));
            assert!(gate.open() <= 64 + gate.freed_at_once(), "{} are open", gate.open());
        }
        assert_eq!(gate.counts().of(Reason::Full), 0);
        flood.iter().for_each(tokio::task::JoinHandle::abort);
        for task in flood {
            let _ = task.await;
        }
        assert_eq!(
            (gate.open(), gate.leaving.load(Relaxed)),
            (0, 0),
            "all are gone, and none is counted as going"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn where_nobody_is_idle_only_the_reserve_is_left() {
        let gate = gate(2, 3);
        let _busy =
            [served(&gate, Standing::Busy), served(&gate, Standing::Busy), served(&gate, Standing::Busy)];
        let reserve: Vec<_> = (0..9).map_while(|_| gate.enter(from("127.0.0.1")).ok()).collect();
        assert_eq!(reserve.len(), 2);
        assert!(reserve.iter().all(Place::is_reserve));
        assert_eq!(gate.enter(from("127.0.0.1")).err(), Some(Reason::Full));
    }

    #[tokio::test]
    async fn what_is_cut_before_its_task_is_known_is_aborted_then() {
        let gate = gate(2, 0);
        let place = gate.enter(from("127.0.0.1")).unwrap();
        assert_eq!(gate.cut_all(), 1);
        place.set(Standing::Busy);
        let tell = place.served_by();
        let task = tokio::spawn(std::future::pending::<()>());
        tell(task.abort_handle());
        assert!(task.await.unwrap_err().is_cancelled());
    }
}
