//! Certificates, their keys, and for how long they are good.

use super::{Report, machine};
use sixfold_core::tls::{Identity, Pem, describe};

/// Days before its end from which on a certificate is warned of.
const SOON: i64 = 30;

const DAY: i64 = 86_400;

/// A certificate that is shown to others, with its key.
pub(super) fn identity(report: &mut Report, about: &str, identity: &Identity) {
    if let Err(error) = identity.check() {
        let field = error.field.map_or_else(String::new, |field| format!("{field}: "));
        let advice = "name a certificate and the key that belongs to it, as files that this user may read";
        return report.fault("certificate", about, format!("{field}{}", error.reason), advice);
    }
    let Ok(chain) = identity.chain.certificates() else { return };
    let chain: Vec<_> = chain.iter().filter_map(|der| describe(der)).collect();
    for (at, pair) in chain.windows(2).enumerate() {
        if let [lower, upper] = pair
            && lower.issuer != upper.subject
        {
            report.fault(
                "certificate",
                about,
                format!(
                    "certificate {} of the chain is not of the issuer of the one before, \"{}\"",
                    at + 2,
                    lower.issuer
                ),
                "put the certificate first, then that of its issuer, and so on",
            );
        }
    }
    let Some(leaf) = chain.first() else { return };
    let ends = chain.iter().map(|certificate| certificate.not_after).min().unwrap_or(leaf.not_after);
    let begins = chain.iter().map(|certificate| certificate.not_before).max().unwrap_or(leaf.not_before);
    validity(report, about, &format!("\"{}\" ", leaf.subject), begins, ends);
}

/// Authorities that others are verified by.
pub(super) fn authorities(report: &mut Report, about: &str, pem: &Pem) {
    let authorities = match pem.certificates() {
        Ok(authorities) => authorities,
        Err(reason) => {
            return report.fault("certificate", about, reason, "name a file of PEM that this user may read");
        }
    };
    let described: Vec<_> = authorities.iter().filter_map(|der| describe(der)).collect();
    let good =
        described.iter().filter(|one| one.not_before <= machine::now() && machine::now() < one.not_after);
    match (good.count(), described.len()) {
        // What is left of one is told as of a certificate.
        (_, 1) => {
            for one in described {
                validity(report, about, &format!("\"{}\" ", one.subject), one.not_before, one.not_after);
            }
        }
        (0, all) => report.fault(
            "certificate",
            about,
            format!("none of {all} authorities is valid now"),
            "renew them",
        ),
        (good, all) if good == all => report.ok("certificate", about, format!("{all} authorities")),
        (good, all) => {
            let reason = format!("{good} of {all} authorities are valid now");
            report.warning("certificate", about, reason, "take out those that are over");
        }
    }
}

fn validity(report: &mut Report, about: &str, whose: &str, begins: i64, ends: i64) {
    let now = machine::now();
    let days = |seconds: i64| seconds / DAY;
    if now < begins {
        let reason = format!("{whose}is valid only in {} days", days(begins - now) + 1);
        return report.fault("certificate", about, reason, "set the clock of this machine, or wait");
    }
    if now >= ends {
        let reason = format!("{whose}has expired {} days ago", days(now - ends));
        return report.fault("certificate", about, reason, "renew it, or set the clock of this machine");
    }
    let reason = format!("{whose}expires in {} days", days(ends - now));
    match days(ends - now) < SOON {
        true => report.warning("certificate", about, reason, "renew it"),
        false => report.ok("certificate", about, reason),
    }
}
