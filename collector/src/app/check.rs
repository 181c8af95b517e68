//! What `check` and `schema` say of a configuration.
//!
//! What this host lacks is found out in [`crate::host::report`].

use serde::Serialize;

use crate::{
    config::{self, Config, ConfigErrors, Diagnostic, settings::Settings},
    pushdown::Program,
};

/// The settings as a YAML file, every key; values of headers redacted.
pub fn effective(settings: &Settings) -> String {
    serde_yaml::to_string(&config::show(settings)).unwrap_or_else(|error| format!("# cannot be shown: {error}\n"))
}

/// The JSON Schema of the file, for editors.
pub fn schema() -> String {
    // Of a value with text keys, printing cannot fail.
    serde_json::to_string_pretty(&config::schema()).unwrap_or_default() + "\n"
}

/// For a person: warnings, the effective configuration, and which filter runs where.
pub fn text(config: &Config, program: &Program) -> String {
    let warnings: String = config.warnings.iter().map(|warning| format!("{warning}\n")).collect();
    format!("{warnings}{}\n{}", effective(&config.settings), program.report())
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
    use crate::pushdown::{Knowledge, compile};

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

    #[test]
    fn a_valid_file_says_which_filter_runs_where() {
        let config = parse("filters: [{ drop: { network.local.port: 22 } }, { drop: { service.name: a } }]").unwrap();
        let program = compile(&config.settings.capture, &config.settings.filters, &Knowledge::default());
        let text = text(&config, &program);
        assert!(text.contains("filters[0] in the kernel\n"), "{text}");
        assert!(text.contains("filters[1] in user space: it tests what the kernel does not know\n"), "{text}");
        let report: serde_json::Value =
            serde_json::from_str(&json(Ok((&config, &program)), &serde_json::Value::Null)).unwrap();
        assert_eq!((&report["valid"], &report["filters"][0]), (&true.into(), &"in the kernel".into()));
        assert_eq!(report["settings"]["filters"][0]["drop"]["network.local.port"], 22);
    }
}
