//! Every file under `examples/` loads: configurations of ours by the program's own reader, YAML and JSON by theirs, and
//! what the files name in each other is there.

#![forbid(unsafe_code)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use reset_collector::{
    config,
    telemetry::{metrics::METRICS, prometheus},
};
use reset_collector_tests::crate_directory;
use serde_json::Value;

/// Files of other programs' configurations, which ours would refuse.
const FOREIGN: &[&str] = &[
    "compose.yaml",
    "dashboards.yaml",
    "datasources.yaml",
    "jaeger.yaml",
    "otelcol.yaml",
    "otelcol-core.yaml",
    "prometheus.yaml",
    "rules.yaml",
    "rules.test.yaml",
    "tempo.yaml",
];

/// Pages whose links are checked, beside the examples' own.
const PAGES: [&str; 13] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "examples/README.md",
    "tests/README.md",
    "docs/benchmarks.md",
    "docs/comparison.md",
    "docs/correlation.md",
    "docs/limitations.md",
    "docs/reliability.md",
    "docs/security.md",
    "docs/troubleshooting.md",
];

fn examples() -> PathBuf {
    crate_directory().join("../examples")
}

/// Every file under the examples.
fn files() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut ahead = vec![examples()];
    while let Some(directory) = ahead.pop() {
        for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() { ahead.push(path) } else { found.push(path) }
        }
    }
    ensure!(!found.is_empty(), "there are no examples");
    found.sort();
    Ok(found)
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn with_extension(extension: &str) -> Result<Vec<PathBuf>> {
    Ok(files()?.into_iter().filter(|path| path.extension().is_some_and(|own| own == extension)).collect())
}

fn directory_of(path: &Path) -> &str {
    path.parent().map(name).unwrap_or_default()
}

/// The documents of a YAML file.
fn documents(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path)?;
    let whole = format!("{text}\n");
    let parts = whole.split("\n---\n").map(serde_yaml::from_str::<Value>);
    parts.collect::<Result<_, _>>().with_context(|| path.display().to_string())
}

/// A configuration of ours. Without the environment, but for what only Kubernetes can tell: what has a default must stand.
fn load(text: &str, name: &str) -> Result<()> {
    let variable = |variable: &str| match variable {
        "HOST_IP" => Some("192.0.2.1".to_owned()),
        "NODE_NAME" | "K8S_POD_UID" | "TOKEN" => Some("x".to_owned()),
        _ => None,
    };
    match config::parse(text, name, &variable) {
        Ok(config) if config.warnings.is_empty() => Ok(()),
        Ok(config) => bail!("{name}: {}", config.warnings[0]),
        Err(errors) => bail!("{errors}"),
    }
}

#[test]
fn configurations_of_ours_are_taken_without_a_warning() -> Result<()> {
    let mut count = 0;
    for path in with_extension("yaml")? {
        if FOREIGN.contains(&name(&path)) || directory_of(&path) == "kubernetes" {
            continue;
        }
        load(&fs::read_to_string(&path)?, &path.display().to_string())?;
        count += 1;
    }
    for path in with_extension("yaml")?.iter().filter(|path| directory_of(path) == "kubernetes") {
        for document in documents(path)?.iter().filter(|document| document["kind"] == "ConfigMap") {
            let text = document["data"]["reset-collector.yaml"].as_str().context("a ConfigMap without the file")?;
            load(text, &path.display().to_string())?;
            count += 1;
        }
    }
    ensure!(count >= 8, "only {count} configurations were found");
    Ok(())
}

#[test]
fn yaml_and_json_can_be_read() -> Result<()> {
    for path in with_extension("yaml")? {
        for document in documents(&path)? {
            ensure!(document.is_object(), "{}: a document is no mapping", path.display());
        }
    }
    for path in with_extension("json")? {
        serde_json::from_str::<Value>(&fs::read_to_string(&path)?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

#[test]
fn rules_of_prometheus_name_metrics_that_there_are() -> Result<()> {
    let metrics = metrics_of_the_admin_endpoint();
    for document in documents(&examples().join("prometheus/rules.yaml"))? {
        let groups = document["groups"].as_array().context("no groups")?;
        let rules: Vec<&Value> = groups.iter().filter_map(|group| group["rules"].as_array()).flatten().collect();
        ensure!(rules.len() >= 10, "{} rules", rules.len());
        for rule in rules {
            let expression = rule["expr"].as_str().context("a rule without expr")?;
            ensure!(rule["alert"].is_string() && rule["annotations"]["summary"].is_string(), "{rule}");
            for word in
                words(expression).filter(|word| word.starts_with("tcp_resets") || word.starts_with("reset_collector_"))
            {
                ensure!(metrics.contains(word), "{}: there is no metric {word}", rule["alert"]);
            }
            for cause in causes_in(expression) {
                ensure!(probes::Cause::from_word(cause).is_some(), "{}: there is no cause {cause}", rule["alert"]);
            }
        }
    }
    Ok(())
}

/// Names of the families on `/metrics`.
fn metrics_of_the_admin_endpoint() -> BTreeSet<String> {
    METRICS.iter().map(prometheus::name).collect()
}

fn words(expression: &str) -> impl Iterator<Item = &str> {
    expression.split(|character: char| !character.is_ascii_alphanumeric() && character != '_')
}

/// The causes that selectors ask for: `cause="a"`, `cause=~"a|b"`, `cause!~"a|b"`.
fn causes_in(expression: &str) -> Vec<&str> {
    let after = expression.split("cause").skip(1);
    let quoted = after.filter(|rest| rest.starts_with(['=', '!'])).filter_map(|rest| rest.split('"').nth(1));
    quoted.flat_map(|causes| causes.split('|')).collect()
}

#[test]
fn the_dashboard_asks_for_attributes_and_metrics_that_there_are() -> Result<()> {
    let text = fs::read_to_string(examples().join("tempo-grafana-loki/dashboard.json"))?;
    let dashboard: Value = serde_json::from_str(&text)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let known: BTreeSet<String> = reset_collector::model::attribute::Attribute::ALL
        .iter()
        .map(|attribute| attribute.name().replace('.', "_"))
        .collect();
    let metrics = metrics_of_the_admin_endpoint();
    let sources = fs::read_to_string(examples().join("tempo-grafana-loki/datasources.yaml"))?;
    for panel in panels {
        let source = panel["datasource"]["uid"].as_str().context("a panel without a data source")?;
        ensure!(sources.contains(&format!("uid: {source}\n")), "no data source {source}");
        for target in panel["targets"].as_array().context("a panel without targets")? {
            let expression = target["expr"].as_str().context("a target without expr")?;
            let asked = words(expression).filter(|word| word.starts_with("tcp_reset_") || word.starts_with("network_"));
            for word in asked {
                ensure!(known.contains(word), "{}: a reset has no attribute {word}", panel["title"]);
            }
            // By OTLP or scraped, the metrics go by the same names in Prometheus.
            let is_metric = |word: &&str| word.starts_with("tcp_resets") || word.starts_with("reset_collector_");
            for word in words(expression).filter(is_metric) {
                ensure!(metrics.contains(word), "{}: there is no metric {word}", panel["title"]);
            }
        }
    }
    Ok(())
}

#[test]
fn kubernetes_gives_the_capabilities_that_the_program_needs_and_no_more() -> Result<()> {
    const NEEDED: [&str; 4] = ["BPF", "PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH"];
    let mut containers = Vec::new();
    for file in ["daemonset.yaml", "sidecar.yaml"] {
        for document in documents(&examples().join("kubernetes").join(file))? {
            let spec = document["spec"]["template"]["spec"].clone();
            let lists = [&spec["containers"], &spec["initContainers"]];
            let all = lists.into_iter().filter_map(Value::as_array).flatten();
            containers.extend(all.filter(|container| container["name"] == "reset-collector").cloned());
        }
    }
    ensure!(containers.len() == 2, "{} containers", containers.len());
    for container in &containers {
        let security = &container["securityContext"];
        ensure!(security["privileged"] == false && security["capabilities"]["drop"][0] == "ALL", "{security}");
        ensure!(security["capabilities"]["add"] == Value::from(NEEDED.to_vec()), "{security}");
    }
    let unit = fs::read_to_string(examples().join("systemd/reset-collector.service"))?;
    let named = NEEDED.map(|capability| format!("CAP_{capability}")).join(" ");
    for key in ["AmbientCapabilities", "CapabilityBoundingSet"] {
        ensure!(unit.lines().any(|line| line == format!("{key}={named}")), "{key} is not {named}");
    }
    Ok(())
}

#[test]
fn every_example_has_a_page_of_one_screen_whose_files_are_there() -> Result<()> {
    for entry in fs::read_dir(examples())? {
        let directory = entry?.path();
        if !directory.is_dir() {
            continue;
        }
        let page = fs::read_to_string(directory.join("README.md")).with_context(|| directory.display().to_string())?;
        ensure!(page.lines().count() <= 60, "{}: {} lines", directory.display(), page.lines().count());
        check_links(&directory, &page)?;
    }
    let root = crate_directory().join("..");
    for page in PAGES {
        let path = root.join(page);
        let text = fs::read_to_string(&path).with_context(|| page.to_owned())?;
        check_links(path.parent().unwrap_or(&root), &text)?;
    }
    Ok(())
}

#[test]
fn the_readme_shows_a_valid_configuration_and_every_cause() -> Result<()> {
    let readme = fs::read_to_string(crate_directory().join("../README.md"))?;
    let blocks: Vec<&str> = readme.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    ensure!(!blocks.is_empty(), "the README shows no configuration");
    blocks.iter().try_for_each(|block| load(block, "README.md"))?;
    for cause in probes::Cause::ALL {
        ensure!(readme.contains(&format!("`{}`", cause.word())), "the README has no {}", cause.word());
    }
    Ok(())
}

/// Every relative link leads to a file or directory.
fn check_links(directory: &Path, page: &str) -> Result<()> {
    let targets = page.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    for target in targets.filter(|target| !target.is_empty() && !target.contains("://")) {
        ensure!(directory.join(target).exists(), "{}: the link to {target} leads nowhere", directory.display());
    }
    Ok(())
}
