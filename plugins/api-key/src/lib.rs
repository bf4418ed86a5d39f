//! Lets in whoever has a key, to the endpoints of that key; tells the service which tenant asks.

use piko_plugin::{Plugin, Request, Verdict, config, metrics, plugin, respond, respond_with};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use wildmatch::WildMatch;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// The header that carries the key. `authorization` takes `Bearer KEY`.
    #[serde(default = "key_header")]
    header: String,
    /// What the service reads the tenant from. A client's own is replaced.
    #[serde(default = "tenant_header")]
    tenant_header: String,
    keys: Vec<KeyConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyConfig {
    /// The key itself, or:
    key: Option<String>,
    /// its SHA-256, in hexadecimal.
    sha256: Option<String>,
    tenant: String,
    /// Globs. Left out: every endpoint.
    #[serde(default = "everything")]
    endpoints: Vec<String>,
}

fn key_header() -> String {
    "x-api-key".into()
}

fn tenant_header() -> String {
    "x-tenant".into()
}

fn everything() -> Vec<String> {
    vec!["*".into()]
}

struct ApiKey {
    header: String,
    tenant_header: String,
    keys: Vec<Key>,
}

struct Key {
    digest: [u8; 32],
    tenant: String,
    endpoints: Vec<WildMatch>,
}

impl Key {
    fn new(at: usize, key: KeyConfig) -> Result<Key, String> {
        let wrong = |what: &str| format!("keys[{at}]: {what}");
        let digest = match (key.key, key.sha256) {
            (Some(key), None) if !key.is_empty() => Sha256::digest(key).into(),
            (None, Some(text)) => {
                let bytes = hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok());
                bytes.ok_or_else(|| wrong("sha256 has 64 hexadecimal digits"))?
            }
            _ => return Err(wrong("has either `key` or `sha256`")),
        };
        let endpoints = key.endpoints.iter().map(|glob| WildMatch::new(glob)).collect();
        Ok(Key { digest, tenant: key.tenant, endpoints })
    }
}

impl ApiKey {
    fn from_config(config: Config) -> Result<Self, String> {
        if config.keys.is_empty() {
            return Err("keys: has none, so nobody could pass".into());
        }
        let keys = config.keys.into_iter().enumerate().map(|(at, key)| Key::new(at, key));
        let keys = keys.collect::<Result<_, _>>()?;
        let lower = |name: String| name.to_ascii_lowercase();
        Ok(ApiKey { header: lower(config.header), tenant_header: lower(config.tenant_header), keys })
    }

    /// Compares with every key, each in constant time: how long it takes says nothing about any of them.
    fn find(&self, presented: &[u8]) -> Option<&Key> {
        let digest: [u8; 32] = Sha256::digest(presented).into();
        let mut found = None;
        for key in &self.keys {
            let differs = key.digest.iter().zip(&digest).fold(0, |all, (a, b)| all | (a ^ b));
            if differs == 0 {
                found = Some(key);
            }
        }
        found
    }
}

impl Plugin for ApiKey {
    fn new(text: &str) -> Result<Self, String> {
        ApiKey::from_config(config(text)?)
    }

    fn on_request(&self, request: &Request) -> Verdict {
        let Some(value) = request.header(&self.header) else {
            metrics::counter_add("missing", 1);
            let challenge = [("www-authenticate", "Bearer")];
            return respond_with(401, &challenge, format!("an API key is needed: {}\n", self.header));
        };
        let key = match self.header.as_str() {
            "authorization" => value.strip_prefix(b"Bearer ").unwrap_or_default(),
            _ => &value,
        };
        let Some(key) = self.find(key) else {
            metrics::counter_add("unknown", 1);
            return respond_with(401, &[("www-authenticate", "Bearer")], "unknown API key\n");
        };
        let endpoint = request.endpoint().unwrap_or_default();
        if !key.endpoints.iter().any(|glob| glob.matches(&endpoint)) {
            metrics::counter_add("not_permitted", 1);
            return respond(403, "this API key is not for this endpoint\n");
        }
        let edited = request
            .remove_header(&self.header)
            .and_then(|()| request.set_header(&self.tenant_header, key.tenant.as_bytes()));
        match edited {
            Ok(()) => Verdict::Next,
            Err(_) => respond(500, format!("api-key: the header {} cannot be set\n", self.tenant_header)),
        }
    }
}

plugin!(ApiKey);

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(text: &str) -> Result<ApiKey, String> {
        ApiKey::from_config(config(text)?)
    }

    #[test]
    fn keys_are_found_by_text_or_digest() {
        let digest = hex::encode(Sha256::digest("two"));
        let text =
            format!(r#"{{"keys":[{{"key":"one","tenant":"a"}},{{"sha256":"{digest}","tenant":"b"}}]}}"#);
        let plugin = plugin(&text).expect("fine");
        let tenant = |key: &[u8]| plugin.find(key).map(|key| key.tenant.as_str());
        assert_eq!(
            (tenant(b"one"), tenant(b"two"), tenant(b"three"), tenant(b"")),
            (Some("a"), Some("b"), None, None)
        );
    }

    #[test]
    fn a_wrong_config_says_where() {
        let says = |text, what: &str| {
            let error = plugin(text).err().expect("refused");
            assert!(error.contains(what), "{error}");
        };
        says("", "missing field `keys`");
        says(r#"{"keys":[]}"#, "has none");
        says(r#"{"keys":[{"tenant":"a"}]}"#, "keys[0]: has either");
        says(r#"{"keys":[{"sha256":"ab","tenant":"a"}]}"#, "64 hexadecimal digits");
        says(r#"{"keys":[{"key":"k","tenant":"a","endpoint":"x"}]}"#, "unknown field `endpoint`");
    }
}
