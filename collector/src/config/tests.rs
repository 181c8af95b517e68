//! Broken files and what is said of them.

use super::*;

#[test]
fn smoke() {
    let text = "
capture: { sent: yes, recieved: true }
filters:
  - drop: { tcp.reset.cause: port_closed, network.local.port: [22, \"8000-8999\"] }
  - keep: { service.name: \"checkout*\", network.peer.address: [10.0.0.0/8, \"fd00::/8\"] }
  - drop: { not: { k8s.namespace.name: prod } }
  - drop: { tcp.reset.cause: port_closd }
export:
  otlp:
    timeout: 10
    headers: { authorization: \"Bearer abc\", b d: 1 }
";
    match parse(text, "x.yaml", &|_| None) {
        Ok(config) => println!("{}", serde_yaml::to_string(&show(&config.settings)).unwrap()),
        Err(errors) => println!("{errors}"),
    }
    println!("{}", serde_yaml::to_string(&show(&Settings::default())).unwrap());
}
