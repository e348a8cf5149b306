//! Lists of cipher suites as BoringSSL reads them (ssl/ssl_cipher.cc): names, `[A|B]`, sets as `ECDHE+AESGCM`, and what takes
//! away or moves again, `!X`, `-X`, `+X`, `@STRENGTH`.

use std::cmp::Reverse;

use sixfold_core::error::ConfigError;
use sixfold_xds_api::values::Result;

/// One of BoringSSL's suites of TLS 1.2.
struct Suite {
    name: &'static str,
    /// IANA's name.
    iana: &'static str,
    /// The smallest sets that it is of: exchange of keys, signature, cipher, digest, lowest version.
    sets: &'static str,
    spoken: bool,
}

const fn suite(name: &'static str, iana: &'static str, sets: &'static str) -> Suite {
    Suite { name, iana, sets, spoken: true }
}

/// One that rustls does not have: exchange of keys by RSA or shared in advance, CBC, 3DES.
const fn unspoken(name: &'static str, iana: &'static str, sets: &'static str) -> Suite {
    Suite { name, iana, sets, spoken: false }
}

/// In the order of BoringSSL's own preference.
#[rustfmt::skip]
const ALL: [Suite; 21] = [
    suite("ECDHE-ECDSA-AES128-GCM-SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "kECDHE aECDSA AES128 AESGCM TLSv1.2"),
    suite("ECDHE-RSA-AES128-GCM-SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "kECDHE aRSA AES128 AESGCM TLSv1.2"),
    suite("ECDHE-ECDSA-AES256-GCM-SHA384", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "kECDHE aECDSA AES256 AESGCM TLSv1.2"),
    suite("ECDHE-RSA-AES256-GCM-SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "kECDHE aRSA AES256 AESGCM TLSv1.2"),
    suite("ECDHE-ECDSA-CHACHA20-POLY1305", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "kECDHE aECDSA CHACHA20 TLSv1.2"),
    suite("ECDHE-RSA-CHACHA20-POLY1305", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "kECDHE aRSA CHACHA20 TLSv1.2"),
    unspoken("ECDHE-PSK-CHACHA20-POLY1305", "TLS_ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256", "kECDHE aPSK CHACHA20 TLSv1.2"),
    unspoken("ECDHE-ECDSA-AES128-SHA", "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", "kECDHE aECDSA AES128 SHA1 SSLv3"),
    unspoken("ECDHE-RSA-AES128-SHA", "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", "kECDHE aRSA AES128 SHA1 SSLv3"),
    unspoken("ECDHE-PSK-AES128-CBC-SHA", "TLS_ECDHE_PSK_WITH_AES_128_CBC_SHA", "kECDHE aPSK AES128 SHA1 SSLv3"),
    unspoken("ECDHE-ECDSA-AES256-SHA", "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA", "kECDHE aECDSA AES256 SHA1 SSLv3"),
    unspoken("ECDHE-RSA-AES256-SHA", "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", "kECDHE aRSA AES256 SHA1 SSLv3"),
    unspoken("ECDHE-RSA-AES128-SHA256", "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256", "kECDHE aRSA AES128 TLSv1.2"),
    unspoken("ECDHE-PSK-AES256-CBC-SHA", "TLS_ECDHE_PSK_WITH_AES_256_CBC_SHA", "kECDHE aPSK AES256 SHA1 SSLv3"),
    unspoken("AES128-GCM-SHA256", "TLS_RSA_WITH_AES_128_GCM_SHA256", "kRSA aRSA AES128 AESGCM TLSv1.2"),
    unspoken("AES256-GCM-SHA384", "TLS_RSA_WITH_AES_256_GCM_SHA384", "kRSA aRSA AES256 AESGCM TLSv1.2"),
    unspoken("AES128-SHA", "TLS_RSA_WITH_AES_128_CBC_SHA", "kRSA aRSA AES128 SHA1 SSLv3"),
    unspoken("PSK-AES128-CBC-SHA", "TLS_PSK_WITH_AES_128_CBC_SHA", "kPSK aPSK AES128 SHA1 SSLv3"),
    unspoken("AES256-SHA", "TLS_RSA_WITH_AES_256_CBC_SHA", "kRSA aRSA AES256 SHA1 SSLv3"),
    unspoken("PSK-AES256-CBC-SHA", "TLS_PSK_WITH_AES_256_CBC_SHA", "kPSK aPSK AES256 SHA1 SSLv3"),
    unspoken("DES-CBC3-SHA", "TLS_RSA_WITH_3DES_EDE_CBC_SHA", "kRSA aRSA 3DES SHA1 SSLv3"),
];

/// Names that are known and choose nothing: suites of TLS 1.3 are always there.
const OF_TLS13: [&str; 3] =
    ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];

impl Suite {
    fn is_of(&self, set: &str) -> bool {
        self.sets.split(' ').any(|own| own == set)
    }

    /// Whether it is of a set that may be written in a list; `None` for no set.
    fn is_of_written(&self, set: &str) -> Option<bool> {
        Some(match set {
            "ALL" | "HIGH" | "FIPS" => true,
            "kECDHE" | "kEECDH" | "ECDHE" | "EECDH" | "ECDH" => self.is_of("kECDHE"),
            "aECDSA" | "ECDSA" => self.is_of("aECDSA"),
            "RSA" => self.is_of("kRSA"),
            "PSK" => self.is_of("kPSK"),
            "AES" => self.is_of("AES128") || self.is_of("AES256"),
            "SHA" => self.is_of("SHA1"),
            "TLSv1" => self.is_of("SSLv3"),
            "kRSA" | "kPSK" | "aRSA" | "aPSK" | "AES128" | "AES256" | "AESGCM" | "CHACHA20" | "3DES"
            | "SHA1" | "SSLv3" | "TLSv1.2" => self.is_of(set),
            _ => return None,
        })
    }

    fn bits(&self) -> u32 {
        match () {
            () if self.is_of("AES256") || self.is_of("CHACHA20") => 256,
            () if self.is_of("3DES") => 112,
            () => 128,
        }
    }
}

/// The names of suites that a name or sets (`ECDHE+AESGCM`) stand for.
fn named(rule: &str) -> Result<Vec<&'static str>> {
    let of_name = |suite: &&Suite| suite.name == rule || suite.iana == rule;
    let found = ALL.iter().find(of_name);
    if found.is_some() || OF_TLS13.contains(&rule) {
        return Ok(found.map(|suite| suite.name).into_iter().collect());
    }
    let is_set = |set: &&str| ALL.iter().any(|suite| suite.is_of_written(set).is_some());
    if let Some(unknown) = rule.split('+').find(|set| !is_set(set)) {
        let names: Vec<_> = ALL.iter().filter(|suite| suite.spoken).map(|suite| suite.name).collect();
        let reason = format!("cipher suite \"{unknown}\" is not supported; there are {}", names.join(", "));
        return Err(ConfigError::field("cipher_suites", reason));
    }
    let is_of_all = |suite: &&Suite| rule.split('+').all(|set| suite.is_of_written(set) == Some(true));
    Ok(ALL.iter().filter(is_of_all).map(|suite| suite.name).collect())
}

/// The suites of a list that are spoken here, by name in order of preference; all of the list if none is, so that it is an
/// error.
///
/// # Errors
/// What is neither a suite nor a set of some, and a list that leaves none.
pub(super) fn spoken(items: &[String]) -> Result<Vec<String>> {
    let (mut chosen, mut rest) = (Vec::new(), ALL.iter().collect::<Vec<_>>());
    // Envoy hands them on as one list.
    let rules = items.iter().flat_map(|item| item.split(':'));
    for (index, rule) in rules.enumerate() {
        let (operator, rule) = match rule.split_at_checked(1) {
            Some((operator @ ("!" | "-" | "+"), rule)) => (operator, rule),
            _ => ("", rule),
        };
        match rule {
            "" => continue,
            "@STRENGTH" => {
                chosen.sort_by_key(|suite: &&Suite| Reverse(suite.bits()));
                continue;
            }
            "DEFAULT" if index == 0 => {
                chosen.append(&mut rest);
                continue;
            }
            _ => {}
        }
        // Which of equals comes first is for the client to say, which nobody asks here.
        for rule in rule.trim_matches(['[', ']']).split('|') {
            let names = named(rule)?;
            let is_named = |suite: &mut &Suite| names.contains(&suite.name);
            match operator {
                "" => chosen.extend(rest.extract_if(.., is_named)),
                "+" => {
                    let moved: Vec<_> = chosen.extract_if(.., is_named).collect();
                    chosen.extend(moved);
                }
                "-" => drop(rest.splice(..0, chosen.extract_if(.., is_named))),
                _ => {
                    rest.retain(|suite| !names.contains(&suite.name));
                    chosen.retain(|suite| !names.contains(&suite.name));
                }
            }
        }
    }
    if !items.is_empty() && chosen.is_empty() {
        return Err(ConfigError::field("cipher_suites", "leaves no cipher suite"));
    }
    let names = |suites: &[&Suite]| suites.iter().map(|suite| suite.name.to_owned()).collect();
    let spoken: Vec<_> = chosen.iter().copied().filter(|suite| suite.spoken).collect();
    Ok(names(if spoken.is_empty() { &chosen } else { &spoken }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(list: &str) -> Result<Vec<String>> {
        spoken(&list.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    /// What Envoy 1.40 takes.
    #[test]
    fn lists_are_read_as_by_boringssl() {
        const AES128: [&str; 2] = ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256"];
        const AES256: [&str; 2] = ["ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384"];
        const CHACHA: [&str; 2] = ["ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305"];
        let (aesgcm, all) = ([AES128, AES256].concat(), [AES128, AES256, CHACHA].concat());
        for (list, suites) in [
            ("ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256", vec![AES256[1], AES128[1]]),
            ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", vec![AES128[1]]),
            ("ALL", all.clone()),
            ("DEFAULT !SHA1", all.clone()),
            ("HIGH:!3DES", all.clone()),
            ("ECDHE+AESGCM !SHA1", aesgcm.clone()),
            ("EECDH+aECDSA", vec![AES128[0], AES256[0], CHACHA[0]]),
            ("ECDHE+AESGCM:@STRENGTH", [AES256, AES128].concat()),
            ("ALL +AES128", [AES256, CHACHA, AES128].concat()),
            ("ALL -AES128 AES128+ECDSA", [&AES256[..], &CHACHA, &AES128[..1]].concat()),
            ("!AES128 ALL", [AES256, CHACHA].concat()),
            ("[ECDHE+CHACHA20|ECDHE+AESGCM]", [&CHACHA[..], &aesgcm].concat()),
            ("ECDHE-RSA-AES128-GCM-SHA256: TLS_AES_128_GCM_SHA256", vec![AES128[1]]),
        ] {
            assert_eq!(of(list).unwrap(), suites, "{list}");
        }
        assert!(spoken(&[]).unwrap().is_empty());
    }

    #[test]
    fn what_names_no_suite_is_refused() {
        for list in
            ["!ALL", "+ECDHE", "ECDHE+RSA", "TLS_AES_128_GCM_SHA256", "!ECDHE ECDHE-RSA-AES128-GCM-SHA256"]
        {
            assert_eq!(of(list).unwrap_err().to_string(), "cipher_suites: leaves no cipher suite", "{list}");
        }
        for (list, name) in [
            ("HIGH:!aNULL:!MD5", "aNULL"),
            ("ECDHE+SHA384", "SHA384"),
            ("ALL DEFAULT", "DEFAULT"),
            ("ecdhe-rsa-aes128-gcm-sha256", "ecdhe-rsa-aes128-gcm-sha256"),
        ] {
            let error = of(list).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("cipher_suites: cipher suite \"{name}\" is not supported; ")),
                "{error}"
            );
        }
    }
}
