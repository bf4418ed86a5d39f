//! Lets in whoever has a signed link that has not expired.
//!
//! `/file?x=1&expires=1767225600&signature=HEX`, the signature being HMAC-SHA256 of all before `&signature=`.

use hmac::{Hmac, Mac as _};
use piko_plugin::{Plugin, Request, Verdict, clock, config, plugin, respond};
use serde::Deserialize;
use sha2::Sha256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignedUrl {
    /// At least 16 characters. More than one, so that it can be replaced: any of them is good.
    secrets: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Unsigned,
    Forged,
    Expired,
}

impl SignedUrl {
    fn check(self) -> Result<Self, String> {
        match self.secrets.iter().position(|secret| secret.len() < 16) {
            Some(at) => Err(format!("secrets[{at}]: has fewer than 16 characters")),
            None if self.secrets.is_empty() => Err("secrets: has none, so nobody could pass".into()),
            None => Ok(self),
        }
    }

    fn verify(&self, target: &str, now_s: u64) -> Result<(), Refusal> {
        let (signed, signature) = target.rsplit_once("&signature=").ok_or(Refusal::Unsigned)?;
        let (_, query) = signed.split_once('?').ok_or(Refusal::Unsigned)?;
        let (_, expires) = query.rsplit_once("expires=").ok_or(Refusal::Unsigned)?;
        let signature = hex::decode(signature).map_err(|_| Refusal::Forged)?;
        let good = self.secrets.iter().any(|secret| {
            // A key of any length is good for HMAC (RFC 2104); the comparison takes constant time.
            Hmac::<Sha256>::new_from_slice(secret.as_bytes())
                .is_ok_and(|mac| mac.chain_update(signed).verify_slice(&signature).is_ok())
        });
        if !good {
            return Err(Refusal::Forged);
        }
        // `expires` has to be the last of what is signed: another one before it means nothing.
        let expires: u64 = expires.parse().map_err(|_| Refusal::Forged)?;
        if now_s < expires { Ok(()) } else { Err(Refusal::Expired) }
    }
}

impl Plugin for SignedUrl {
    fn new(text: &str) -> Result<Self, String> {
        config::<SignedUrl>(text)?.check()
    }

    fn on_request(&self, request: &Request) -> Verdict {
        match self.verify(&request.path_with_query(), clock::wall_ms() / 1000) {
            Ok(()) => Verdict::Next,
            Err(Refusal::Unsigned) => respond(403, "this link is not signed\n"),
            Err(Refusal::Forged) => respond(403, "the signature of this link is wrong\n"),
            Err(Refusal::Expired) => respond(403, "this link has expired\n"),
        }
    }
}

plugin!(SignedUrl);

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef";

    fn sign(target: &str) -> String {
        let mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length");
        format!("{target}&signature={}", hex::encode(mac.chain_update(target).finalize().into_bytes()))
    }

    #[test]
    fn only_what_was_signed_passes_and_only_in_time() {
        let config = format!(r#"{{"secrets":["another-secret-x","{SECRET}"]}}"#);
        let plugin = config_of(&config).expect("fine");
        let good = sign("/f?x=1&expires=100");
        assert_eq!(plugin.verify(&good, 99), Ok(()));
        assert_eq!(plugin.verify(&good, 100), Err(Refusal::Expired));
        assert_eq!(plugin.verify(&good.replace("x=1", "x=2"), 99), Err(Refusal::Forged));
        assert_eq!(plugin.verify(&good.replace("/f", "/g"), 99), Err(Refusal::Forged));
        assert_eq!(plugin.verify("/f", 99), Err(Refusal::Unsigned));
        assert_eq!(plugin.verify("/f?expires=100&signature=zz", 99), Err(Refusal::Forged));
        assert_eq!(plugin.verify(&sign("/f?expires=soon"), 99), Err(Refusal::Forged));
        assert_eq!(plugin.verify(&format!("{good}0"), 99), Err(Refusal::Forged));
    }

    fn config_of(text: &str) -> Result<SignedUrl, String> {
        config::<SignedUrl>(text)?.check()
    }

    #[test]
    fn weak_secrets_are_refused() {
        assert!(config_of(r#"{"secrets":["short"]}"#).is_err());
        assert!(config_of(r#"{"secrets":[]}"#).is_err());
    }
}
