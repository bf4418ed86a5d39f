//! Names that a look-up by text does not find: those with capitals, which hosts ask for without, and wildcards.
//!
//! Ordinary names, in lower case and for one endpoint, are not in here: where there are no others, as usual, a request
//! costs nothing more. Fed by the table with what this node and the others register.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::RwLock;
use piko_wire::{EndpointId, EndpointKey, TenantId};

/// Such names at most, of all tenants and nodes together. More are found by exact name only.
const MAX_NAMES: usize = 100_000;
/// Names that differ in case only, at most: a host that could be any of them looks at each.
const MAX_ALIKE: usize = 8;

/// An index of such names.
#[derive(Debug, Default)]
pub struct Names {
    inner: RwLock<Inner>,
    total: AtomicUsize,
    wildcards: AtomicUsize,
}

#[derive(Debug, Default)]
struct Inner {
    /// By tenant and by name in lower case.
    tenants: HashMap<Option<TenantId>, HashMap<String, Vec<Name>>>,
    total: usize,
    /// Of those, without a listener. They stay for a while: a listener that comes back is waited for.
    gone: usize,
    wildcards: usize,
}

#[derive(Debug)]
struct Name {
    id: EndpointId,
    /// Tables, and protocols, in which it is.
    listeners: usize,
}

impl Names {
    /// A table has the name now.
    pub fn learn(&self, key: &EndpointKey) {
        if !is_special(&key.endpoint) {
            return;
        }
        let inner = &mut *self.inner.write();
        // A sweep looks at every name, so it has to be worth it.
        if inner.total >= MAX_NAMES && inner.gone >= MAX_NAMES / 2 {
            inner.sweep();
        }
        let full = inner.total >= MAX_NAMES;
        let tenant = inner.tenants.entry(key.tenant.clone()).or_default();
        let alike = tenant.entry(key.endpoint.as_str().to_ascii_lowercase()).or_default();
        if let Some(name) = alike.iter_mut().find(|name| name.id == key.endpoint) {
            inner.gone -= usize::from(name.listeners == 0);
            name.listeners += 1;
        } else if !full && alike.len() < MAX_ALIKE {
            alike.push(Name { id: key.endpoint.clone(), listeners: 1 });
            inner.total += 1;
            inner.wildcards += usize::from(key.endpoint.is_wildcard());
        }
        self.count(inner);
    }

    /// A table has it no longer.
    pub fn forget(&self, key: &EndpointKey) {
        if !is_special(&key.endpoint) {
            return;
        }
        let inner = &mut *self.inner.write();
        let tenant = inner.tenants.get_mut(&key.tenant);
        let alike = tenant.and_then(|names| names.get_mut(&key.endpoint.as_str().to_ascii_lowercase()));
        let name = alike.and_then(|alike| alike.iter_mut().find(|name| name.id == key.endpoint));
        if let Some(name) = name.filter(|name| name.listeners > 0) {
            name.listeners -= 1;
            inner.gone += usize::from(name.listeners == 0);
        }
    }

    /// Is there no such name? Then a look-up by text finds all there are.
    pub fn is_empty(&self) -> bool {
        self.total.load(Relaxed) == 0
    }

    /// Is any of them a wildcard?
    pub fn has_wildcards(&self) -> bool {
        self.wildcards.load(Relaxed) > 0
    }

    /// Those that are `lower` but for their case.
    pub fn alike(&self, tenant: &Option<TenantId>, lower: &str) -> Vec<EndpointId> {
        let inner = self.inner.read();
        let alike = inner.tenants.get(tenant).and_then(|names| names.get(lower));
        alike.into_iter().flatten().map(|name| name.id.clone()).collect()
    }

    fn count(&self, inner: &Inner) {
        self.total.store(inner.total, Relaxed);
        self.wildcards.store(inner.wildcards, Relaxed);
    }
}

impl Inner {
    /// Drops those without a listener.
    fn sweep(&mut self) {
        for names in self.tenants.values_mut() {
            names.retain(|_, alike| {
                alike.retain(|name| name.listeners > 0);
                !alike.is_empty()
            });
        }
        self.tenants.retain(|_, names| !names.is_empty());
        let left = || self.tenants.values().flat_map(HashMap::values).flatten();
        (self.total, self.gone) = (left().count(), 0);
        self.wildcards = left().filter(|name| name.id.is_wildcard()).count();
    }
}

fn is_special(id: &EndpointId) -> bool {
    id.is_wildcard() || id.as_str().bytes().any(|byte| byte.is_ascii_uppercase())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn key(text: &str) -> EndpointKey {
        text.parse().unwrap()
    }

    fn alike(names: &Names, tenant: &str, lower: &str) -> Vec<String> {
        let tenant = (!tenant.is_empty()).then(|| tenant.parse().unwrap());
        names.alike(&tenant, lower).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_what_a_plain_look_up_misses_is_kept() {
        let names = Names::default();
        names.learn(&key("plain.name-1"));
        assert!(names.is_empty());
        for name in ["Shop", "acme/SHOP", "*.s3"] {
            names.learn(&key(name));
        }
        assert_eq!(alike(&names, "", "shop"), ["Shop"]);
        assert_eq!(alike(&names, "acme", "shop"), ["SHOP"]);
        assert_eq!(alike(&names, "", "*.s3"), ["*.s3"]);
        assert!(names.has_wildcards());
        names.forget(&key("Shop"));
        assert_eq!(alike(&names, "", "shop"), ["Shop"], "its listener may come back");
    }

    #[test]
    fn names_are_bounded() {
        let names = Names::default();
        for n in 0..40u32 {
            let cased = |(i, c): (usize, char)| if n >> i & 1 == 0 { c } else { c.to_ascii_uppercase() };
            names.learn(&key(&"abcdef".chars().enumerate().map(cased).collect::<String>()));
        }
        assert_eq!(alike(&names, "", "abcdef").len(), MAX_ALIKE);
        for n in 0..MAX_NAMES + 10 {
            names.learn(&key(&format!("N{n}")));
            names.forget(&key(&format!("N{n}")));
        }
        assert!(names.total.load(Relaxed) <= MAX_NAMES);
        assert_eq!(
            alike(&names, "", &format!("n{}", MAX_NAMES + 9)).len(),
            1,
            "those that are gone made room"
        );
        assert_eq!(alike(&names, "", "abcdef").len(), MAX_ALIKE, "those that are not stayed");
    }
}
