//! Files that a configuration names: are they there, and are certificates what they have to be?

use std::path::Path;

use piko_bootstrap::tls::{ClientTls, ClientTlsConfig, ServerTls, ServerTlsConfig};
use x509_parser::pem::Pem;
use x509_parser::time::ASN1Time;

use super::finding::Finding;

/// So many days before its end, a certificate ought to have been renewed: a third of what Let's Encrypt gives.
const SOON_DAYS: i64 = 14;

/// Can it be read by this user?
pub(super) fn readable(key: &str, path: &Path) -> Option<Finding> {
    let opened = match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::read_dir(path).map(drop),
        _ => std::fs::File::open(path).map(drop),
    };
    opened.err().map(|e| Finding::new(key, format!("cannot read {}: {e}", path.display())))
}

/// The certificate of a port.
pub(super) fn server(key: &str, tls: &ServerTlsConfig) -> Vec<Finding> {
    let files = [("cert", &tls.cert), ("key", &tls.key), ("client_cas", &tls.client_cas)];
    let mut all: Vec<_> = missing(key, &files);
    if all.is_empty()
        && let Err(e) = ServerTls::load(tls)
    {
        all.push(Finding::new(key, e.to_string()));
    }
    all.extend(tls.cert.iter().flat_map(|path| dates(&format!("{key}.cert"), path)));
    all.extend(tls.client_cas.iter().flat_map(|path| dates(&format!("{key}.client_cas"), path)));
    all
}

/// What somebody connects with.
pub(super) fn client(key: &str, tls: &ClientTlsConfig) -> Vec<Finding> {
    let files = [("root_cas", &tls.root_cas), ("cert", &tls.cert), ("key", &tls.key)];
    let mut all: Vec<_> = missing(key, &files);
    if all.is_empty()
        && files.iter().any(|(_, path)| path.is_some())
        && let Err(e) = ClientTls::load(tls)
    {
        all.push(Finding::new(key, e.to_string()));
    }
    all.extend(tls.cert.iter().flat_map(|path| dates(&format!("{key}.cert"), path)));
    all.extend(tls.root_cas.iter().flat_map(|path| dates(&format!("{key}.root_cas"), path)));
    all
}

fn missing(key: &str, files: &[(&str, &Option<std::path::PathBuf>)]) -> Vec<Finding> {
    let each = |(name, path): &(&str, &Option<std::path::PathBuf>)| {
        readable(&format!("{key}.{name}"), path.as_deref()?)
    };
    files.iter().filter_map(each).collect()
}

/// From when until when the certificates of a file are good. A file that is no PEM was told already.
fn dates(key: &str, path: &Path) -> Vec<Finding> {
    let Ok(text) = std::fs::read(path) else { return Vec::new() };
    let now = ASN1Time::now();
    let certificates =
        Pem::iter_from_buffer(&text).filter_map(Result::ok).filter(|pem| pem.label == "CERTIFICATE");
    let told = certificates.filter_map(|pem| {
        let certificate = pem.parse_x509().ok()?;
        let validity = certificate.validity();
        let (from, until) = (validity.not_before, validity.not_after);
        let name = format!("the certificate of {} in {}", certificate.subject(), path.display());
        let days = (until.timestamp() - now.timestamp()) / (24 * 3600);
        if now > until {
            Some(Finding::new(key, format!("{name} has expired on {until}: renew it")))
        } else if now < from {
            Some(Finding::new(key, format!("{name} is good from {from} on: is this machine's clock right?")))
        } else if days < SOON_DAYS {
            Some(Finding::new(key, format!("{name} expires on {until}, in {days} days: renew it")).harmless())
        } else {
            None
        }
    });
    told.collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::time::{Duration, SystemTime};

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn pair(dir: &Path, name: &str, days: (i64, i64)) -> ServerTlsConfig {
        let at = |days: i64| {
            let far = Duration::from_secs(days.unsigned_abs() * 24 * 3600);
            let now = SystemTime::now();
            (if days < 0 { now - far } else { now + far }).into()
        };
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (at(days.0), at(days.1));
        let key = KeyPair::generate().unwrap();
        let (cert, key_file) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        std::fs::write(&cert, params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        ServerTlsConfig { cert: Some(cert), key: Some(key_file), client_cas: None }
    }

    #[test]
    fn a_certificate_is_there_fits_its_key_and_is_good_now() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let good = pair(dir, "good", (-1, 90));
        assert_eq!(server("proxy.tls", &good), []);
        let told = |tls: &ServerTlsConfig| {
            let all = server("proxy.tls", tls);
            assert_eq!(all.len(), 1, "{all:?}");
            (all[0].key.clone(), all[0].message.clone(), all[0].harmless)
        };
        let (key, message, harmless) = told(&pair(dir, "old", (-90, -1)));
        assert!(key == "proxy.tls.cert" && message.contains("has expired") && !harmless, "{message}");
        let (_, message, harmless) = told(&pair(dir, "soon", (-90, 7)));
        assert!(
            message.contains("expires on") && message.contains(" days: renew it") && harmless,
            "{message}"
        );
        let (_, message, _) = told(&pair(dir, "early", (2, 90)));
        assert!(message.contains("clock"), "{message}");
        let other = ServerTlsConfig { key: pair(dir, "other", (-1, 90)).key, ..good.clone() };
        let (key, message, _) = told(&other);
        assert!(key == "proxy.tls" && message.contains("certificate and key"), "{message}");
        let gone = ServerTlsConfig { key: Some(dir.join("gone")), ..good };
        let (key, message, _) = told(&gone);
        assert!(key == "proxy.tls.key" && message.contains("No such file"), "{message}");
    }
}
