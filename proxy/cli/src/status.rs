//! `sixfold status`: whether a running gateway serves, for health checks and scripts.

use crate::Failure;
use crate::arguments::{OutputForm, StatusOptions};
use crate::fetch;
use sixfold_apisix::config::EnvVars;
use std::io::Write;
use std::path::Path;

/// Where APISIX's status server is unless config.yaml says otherwise.
const DEFAULT: &str = "127.0.0.1:7085";

/// What is asked of whom.
struct Question {
    address: String,
    target: &'static str,
}

/// Asks, tells, and fails unless the answer is 200.
pub(crate) fn run(options: &StatusOptions) -> Result<(), Failure> {
    let question = question(options)?;
    let answer = ask(&question);
    if options.output == OutputForm::Json {
        let (ok, reason) = (answer.is_ok(), answer.as_ref().err());
        let told = serde_json::json!({"address": question.address, "ok": ok, "reason": reason});
        writeln!(std::io::stdout(), "{told}")?;
        return answer.map_err(|_| Failure::default());
    }
    match answer {
        Ok(()) => Ok(writeln!(std::io::stdout(), "ok")?),
        Err(reason) => Err(Failure::new(format!("{}: {reason}", question.address))),
    }
}

fn question(options: &StatusOptions) -> Result<Question, Failure> {
    if let Some(address) = &options.admin {
        let target = if options.live { "/server_info" } else { "/ready" };
        return Ok(Question { address: address.clone(), target });
    }
    let target = if options.live { "/status" } else { "/status/ready" };
    let address = match (&options.address, &options.config) {
        (Some(address), _) => address.clone(),
        (None, Some(config)) => configured(config)?,
        (None, None) => DEFAULT.to_owned(),
    };
    Ok(Question { address, target })
}

/// The address of the status server of a config.yaml.
fn configured(path: &Path) -> Result<String, Failure> {
    let config = sixfold_apisix::load_config(path, &EnvVars::Process)?;
    let none = || Failure::new(format!("{}: apisix.status is off: there is nobody to ask", path.display()));
    let address = config.status.ok_or_else(none)?;
    Ok(fetch::reachable(address).to_string())
}

/// # Errors
/// Why it does not serve: what it says itself, or why it says nothing.
fn ask(question: &Question) -> Result<(), String> {
    let answer = fetch::get(&question.address, question.target, &[])?;
    if answer.status == 200 {
        return Ok(());
    }
    let said = serde_json::from_str(&answer.body).unwrap_or(serde_json::Value::Null);
    let said = said.get("error").and_then(|error| error.as_str()).unwrap_or(answer.body.trim());
    Err(format!("{} answers {} {said}", question.target, answer.status))
}
