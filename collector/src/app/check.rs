//! The commands `check` and `schema`, and what `run` requires of a configuration on this host.
//!
//! What this host supports is reported by [`crate::host::report`].

use std::path::Path;

use serde::Serialize;

use crate::{
    config::{self, Config, ConfigErrors, Diagnostic, settings::Settings},
    otlp::client::{Client, ClientError},
    pushdown::Program,
};

/// The settings as a YAML file with every key; values of headers are redacted.
///
/// # Errors
/// Does not happen for settings that were read from a file.
pub fn effective(settings: &Settings) -> Result<String, serde_yaml::ser::Error> {
    serde_yaml::to_string(&config::show(settings))
}

/// Everything that `run` would refuse, beyond the file's own errors, as far as this build and the host's files decide it:
/// files of TLS, the directories of queues, features that this program was built without.
///
/// # Errors
/// What would be refused, each at its key.
pub fn preflight(config: &Config) -> Result<(), ConfigErrors> {
    let (settings, source) = (&config.settings, &config.source);
    let mut diagnostics = Vec::new();
    if settings.enrichment.kubernetes.is_some() && !cfg!(feature = "kubernetes") {
        let message = "this program was built without the Kubernetes API";
        let allowed = "a program built with `--features kubernetes`, or null";
        diagnostics.push(source.error(&["enrichment", "kubernetes"], message, allowed));
    }
    for (index, destination) in settings.export.otlp.iter().enumerate() {
        let item = format!("[{index}]");
        let mut base = vec!["export", "otlp"];
        base.extend((settings.export.otlp.len() > 1).then_some(&item[..]));
        let error =
            |keys: &[&str], message: String, allowed: &str| source.error(&[&base, keys].concat(), message, allowed);
        match Client::new(destination) {
            Ok(_) => {}
            Err(ClientError::Tls(refused)) => {
                diagnostics.push(error(&["tls"], refused.to_string(), "files of PEM that this user can read"));
            }
            Err(refused) => diagnostics.push(error(&["endpoint"], refused.to_string(), "http://HOST:PORT")),
        }
        if let Some(storage) = &destination.queue.storage
            && let Some(problem) = storage_problem(&storage.directory)
        {
            let keys = ["sending_queue", "storage", "directory"];
            diagnostics.push(error(&keys, problem, "a directory on a local disk, such as /var/lib/reset-collector"));
        }
    }
    if diagnostics.is_empty() { Ok(()) } else { Err(ConfigErrors { diagnostics, left_out: 0 }) }
}

/// Why a queue cannot be in this directory, for any user.
fn storage_problem(directory: &Path) -> Option<String> {
    /// File systems that store no data (include/uapi/linux/magic.h).
    const NO_DATA: &[(u64, &str)] = &[
        (0x9fa0, "procfs"),
        (0x6265_6572, "sysfs"),
        (0x0027_e0eb, "cgroup"),
        (0x6367_7270, "cgroup2"),
        (0x7472_6163, "tracefs"),
        (0x6462_6720, "debugfs"),
    ];
    let existing = directory.ancestors().find(|ancestor| ancestor.exists())?;
    if !existing.is_dir() {
        return Some(format!("`{}` is not a directory", existing.display()));
    }
    let kind = u64::try_from(rustix::fs::statfs(existing).ok()?.f_type).ok()?;
    let (_, name) = NO_DATA.iter().find(|(magic, _)| *magic == kind)?;
    Some(format!("`{}` is on {name}, which stores no data", existing.display()))
}

/// The JSON Schema of the file, for editors.
pub fn schema() -> String {
    // Of a value with text keys, printing cannot fail.
    serde_json::to_string_pretty(&config::schema()).unwrap_or_default() + "\n"
}

/// For a person: warnings, the effective configuration, and which filter runs where.
pub fn text(config: &Config, program: &Program) -> Result<String, serde_yaml::ser::Error> {
    let warnings: String = config.warnings.iter().map(|warning| format!("{warning}\n")).collect();
    Ok(format!("{warnings}{}\n{}", effective(&config.settings)?, program.report()))
}

/// For a program (`--format json`): one object, whether the file is valid or not.
pub fn json(checked: Result<(&Config, &Program), &ConfigErrors>, host: &serde_json::Value) -> String {
    let report = match checked {
        Ok((config, program)) => Report {
            valid: true,
            diagnostics: &config.warnings,
            settings: Some(config::show(&config.settings)),
            filters: program.places().iter().map(ToString::to_string).collect(),
            host,
        },
        Err(errors) => {
            Report { valid: false, diagnostics: &errors.diagnostics, settings: None, filters: Vec::new(), host }
        }
    };
    serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"
}

#[derive(Serialize)]
struct Report<'a, S: Serialize> {
    /// Whether the file can be used.
    valid: bool,
    /// Errors, or of a valid file warnings.
    diagnostics: &'a [Diagnostic],
    /// The effective configuration of a valid file.
    #[serde(skip_serializing_if = "Option::is_none")]
    settings: Option<S>,
    /// Where each filter runs, in their order.
    filters: Vec<String>,
    /// What this host offers.
    host: &'a serde_json::Value,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pushdown::{KernelFacts, compile};

    fn parse(text: &str) -> Result<Config, ConfigErrors> {
        config::parse(text, "f.yaml", &|_| None)
    }

    #[test]
    fn json_of_a_broken_file_names_the_place() {
        let errors = parse("capture: { sent: 1 }").unwrap_err();
        let report: serde_json::Value = serde_json::from_str(&json(Err(&errors), &serde_json::Value::Null)).unwrap();
        assert_eq!(report["valid"], false);
        let diagnostic = &report["diagnostics"][0];
        assert_eq!((&diagnostic["line"], &diagnostic["column"]), (&1.into(), &18.into()));
        assert_eq!((&diagnostic["path"], &diagnostic["severity"]), (&"capture.sent".into(), &"error".into()));
    }

    /// What `preflight` refuses in a file, as it is shown.
    fn refused(text: &str) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _inside = runtime.enter();
        preflight(&parse(text).unwrap()).map_or_else(|errors| errors.to_string(), |()| String::new())
    }

    #[test]
    fn what_run_would_refuse_is_refused_at_its_key() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let (file, free) = (file.display(), directory.path().join("queue"));
        let cases = [
            (
                "export: { otlp: { endpoint: 'https://h:1', tls: { ca_file: /nonexistent/ca.pem } } }".to_owned(),
                "f.yaml:1:",
            ),
            (
                format!("export: {{ otlp: {{ endpoint: 'https://h:1', tls: {{ ca_file: {file} }} }} }}"),
                "export.otlp.tls: tls.ca_file",
            ),
            (
                "export: { otlp: { sending_queue: { storage: { directory: /proc/queue } } } }".into(),
                "`/proc` is on procfs",
            ),
            (
                format!("export: {{ otlp: [{{}}, {{ sending_queue: {{ storage: {{ directory: {file}/q }} }} }}] }}"),
                "export.otlp[1].sending_queue.storage.directory: ",
            ),
        ];
        for (text, expected) in cases {
            let refused = refused(&text);
            assert!(refused.contains(expected), "{text}: {refused}");
        }
        let storage =
            format!("export: {{ otlp: {{ sending_queue: {{ storage: {{ directory: {} }} }} }} }}", free.display());
        assert_eq!(refused(&storage), "");
        assert!(!free.exists(), "check makes nothing");
        let kubernetes = refused("enrichment: { kubernetes: { node_name: n } }");
        assert_eq!(kubernetes.is_empty(), cfg!(feature = "kubernetes"), "{kubernetes}");
    }

    #[test]
    fn a_valid_file_says_which_filter_runs_where() {
        let config = parse("filters: [{ drop: { network.local.port: 22 } }, { drop: { service.name: a } }]").unwrap();
        let program = compile(&config.settings.capture, &config.settings.filters, &KernelFacts::default());
        let text = text(&config, &program).unwrap();
        assert!(text.contains("filters[0] in the kernel\n"), "{text}");
        assert!(text.contains("filters[1] in user space: it tests what the kernel does not know\n"), "{text}");
        let report: serde_json::Value =
            serde_json::from_str(&json(Ok((&config, &program)), &serde_json::Value::Null)).unwrap();
        assert_eq!((&report["valid"], &report["filters"][0]), (&true.into(), &"in the kernel".into()));
        assert_eq!(report["settings"]["filters"][0]["drop"]["network.local.port"], 22);
    }
}
