//! gRPC: many calls on one connection.

use opentelemetry_proto::tonic::trace::v1::Span;

use reset_collector::model::{Connection, Reset};

use crate::{
    Said, check, on, resets_first,
    sdk::{Build, at_client, at_server, go_grpc_client, go_grpc_server, go_reset_text},
};

#[test]
fn grpc_servers_that_name_no_peer() {
    let reset = [at_server(40_001, 10_000)];
    check("cancelled", &[go_grpc_server(1, 0, 11, 1)], &reset, &on(1));
    check("an idle client's, while another's call runs", &[go_grpc_server(1, 0, 90, 0)], &reset, &[Said::Nothing]);
    let two = [go_grpc_server(1, 0, 11, 1), go_grpc_server(2, 0, 11, 1)];
    assert_eq!(resets_first(&two, &reset), (on(1), vec![(1, 1), (2, 1)]), "two streams of the connection");
    let connections = [at_server(40_001, 10_000), at_server(40_002, 10_100)];
    check("two connections", &two, &connections, &[Said::Ambiguous, Said::Ambiguous]);
    check("it goes on much longer", &[go_grpc_server(1, 0, 300, 1)], &reset, &[Said::Nothing]);
    let later =
        Reset { connection: Connection { duration_ns: Some(5_000_000), ..Connection::default() }, ..reset[0].clone() };
    check("the connection came later", &[go_grpc_server(1, 0, 11, 1)], &[later], &[Said::Ambiguous]);
}

#[test]
fn all_streams_of_a_dead_connection_are_marked() {
    let text = format!("rpc error: code = Unavailable desc = error reading from server: {}", go_reset_text(40_001));
    let spans: Vec<Span> = (1..4).map(|n| go_grpc_client(n, u64::from(n), 20).failed(&text)).collect();
    let (told, marked) = resets_first(&spans, &[at_client(40_001, 19_000)]);
    assert_eq!(marked, [(1, 1), (2, 1), (3, 1)]);
    assert_eq!(told, on(3));
    let caller = go_grpc_server(9, 0, 21, 14).failed(&text);
    let call = go_grpc_client(8, 1, 20).parent(9).failed(&text);
    check("the caller's own span tells of it too", &[caller, call], &[at_client(40_001, 19_000)], &on(8));
}
