use super::*;
use crate::{
    event::EventBuilder,
    model::{Reset, Trace, TraceMethod, sample},
};
use proptest::prelude::*;

fn line(console: &mut Console, reset: &Reset) -> String {
    let mut out = Vec::new();
    let mut builder = EventBuilder::new(true, 1);
    assert_eq!(console.push(&builder.build(reset), &mut out).unwrap(), Reader::There);
    assert_eq!(console.flush(&mut out).unwrap(), Reader::There);
    String::from_utf8(out).unwrap()
}

fn json() -> Console {
    Console::new(settings::Console::Json, false, false)
}

#[test]
fn the_mode_follows_setting_and_terminal() {
    use settings::Console::{Auto, Json, Off, Pretty};
    let table = [
        (Auto, true, true, Mode::Pretty { colour: true }),
        (Auto, true, false, Mode::Pretty { colour: false }),
        (Auto, false, true, Mode::Json),
        (Pretty, false, true, Mode::Pretty { colour: false }),
        (Json, true, true, Mode::Json),
        (Off, true, true, Mode::Off),
    ];
    for (setting, terminal, colour, mode) in table {
        assert_eq!(Console::new(setting, terminal, colour).mode, mode, "{setting:?} {terminal} {colour}");
    }
}

#[test]
fn a_pretty_line_has_the_sentence_first_and_its_columns_aligned() {
    let mut console = Console::new(settings::Console::Pretty, true, false);
    let text = line(&mut console, &sample::reset());
    assert_eq!(
        text,
        "20:59:39.123 WARN  nginx (pid 812) closed its connection to 10.0.0.7:51514 with 4,096 bytes unread: the peer's \
         data are lost 10.0.0.5:80 → 10.0.0.7:51514                  closed_with_unread_data established  \
         TCP_ABORT_ON_CLOSE        nginx[812]\n"
    );
    let refused = Reset {
        cause: crate::model::Cause::PortClosed,
        owner: None,
        reason: Some("NO_SOCKET"),
        state: None,
        ..sample::reset()
    };
    let stray = Reset { local: sample::endpoint("192.168.100.100", 8080), reason: None, ..refused.clone() };
    let (refused, stray) = (line(&mut console, &refused), line(&mut console, &stray));
    let column = |line: &str, word: &str| line[..line.find(word).unwrap()].chars().count();
    assert_eq!(column(&refused, "port_closed"), column(&stray, "port_closed"));
    assert_eq!(column(&refused, "10.0.0.5:80 →"), column(&stray, "192.168.100.100:8080 →"));
}

#[test]
fn a_pretty_line_names_the_applications_trace() {
    let trace = Trace {
        trace_id: [0xab; 16],
        span_id: None,
        method: TraceMethod::Header,
        on_application_span: false,
        incoming: false,
        candidates: Vec::new(),
    };
    let mut console = Console::new(settings::Console::Pretty, true, false);
    let text = line(&mut console, &Reset { trace: Some(trace), ..sample::reset() });
    assert!(text.ends_with(&format!("  trace {}\n", "ab".repeat(16))), "{text}");
    assert!(!line(&mut console, &sample::reset()).contains("trace"));
}

#[test]
fn colours_are_the_only_difference() {
    let reset = Reset { owner: Some(sample::owner("\x1b[31mevil", 1)), ..sample::reset() };
    let plain = line(&mut Console::new(settings::Console::Pretty, true, false), &reset);
    let coloured = line(&mut Console::new(settings::Console::Pretty, true, true), &reset);
    assert!(!plain.contains('\x1b') && coloured.contains(Paint::YELLOW));
    let mut stripped = coloured;
    for code in [Paint::DIM, Paint::GREEN, Paint::YELLOW, Paint::RED, Paint::BOLD, Paint::PLAIN] {
        stripped = stripped.replace(code, "");
    }
    assert_eq!(stripped, plain);
}

#[test]
fn a_json_line_holds_every_attribute_and_the_resource() {
    let resource = crate::model::resource::Resource::new(vec![
        ("service.name".into(), ResourceValue::Text("check\"out\n".into())),
        ("process.pid".into(), ResourceValue::Integer(812)),
        ("process.command_args".into(), ResourceValue::List(vec!["a".into(), "\\".into()])),
    ]);
    let reset = Reset { resource, ..sample::reset() };
    let text = line(&mut json(), &reset);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["time"], "2026-11-24T20:59:39.123456789Z");
    assert_eq!(value["severity"], "WARN");
    assert_eq!(value["event_name"], "tcp.reset");
    assert_eq!(value["tcp.reset.cause"], "closed_with_unread_data");
    assert_eq!(value["network.peer.port"], 51514);
    assert_eq!(value["tcp.connection.smoothed_rtt"], 0.00025);
    assert_eq!(value["tcp.connection.duration"], 1.5);
    assert_eq!(value["resource"]["service.name"], "check\"out\n");
    assert_eq!(value["resource"]["process.pid"], 812);
    assert_eq!(value["resource"]["process.command_args"], serde_json::json!(["a", "\\"]));
    assert!(value.get("tcp.reset.adjusted_count").is_none() && value.get("tcp.reset.trace.method").is_none());
}

#[test]
fn a_reader_that_goes_away_ends_the_lines_in_order() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (mut console, mut builder, reset) = (json(), EventBuilder::new(true, 1), sample::reset());
    assert_eq!(console.push(&builder.build(&reset), &mut Closed).unwrap(), Reader::There, "lines gather first");
    assert_eq!(console.flush(&mut Full).unwrap_err().kind(), ErrorKind::StorageFull);
    assert!(console.is_on());
    assert_eq!(console.push(&builder.build(&reset), &mut Closed).unwrap(), Reader::There);
    assert_eq!(console.flush(&mut Closed).unwrap(), Reader::Gone);
    assert!(!console.is_on());
    let mut out = Vec::new();
    console.push(&builder.build(&reset), &mut out).unwrap();
    console.flush(&mut out).unwrap();
    assert!(out.is_empty());
}

#[test]
fn much_is_written_before_the_flush() {
    let (mut console, mut builder, mut out) = (json(), EventBuilder::new(true, 1), Vec::new());
    let reset = sample::reset();
    for _ in 0..1000 {
        console.push(&builder.build(&reset), &mut out).unwrap();
    }
    assert!(out.len() >= BUFFER_BYTES && console.buffer.len() < BUFFER_BYTES);
    console.flush(&mut out).unwrap();
    assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1000);
}

proptest! {
    #[test]
    fn any_text_reads_back(text: String) {
        let mut out = String::new();
        push_json_text(&mut out, &text);
        prop_assert!(!out.chars().any(char::is_control));
        prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
    }

    #[test]
    fn any_reset_is_one_json_line_with_its_attributes(reset in sample::any_reset()) {
        let text = line(&mut json(), &reset);
        prop_assert_eq!(text.matches('\n').count(), 1);
        let value: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        for attribute in Attribute::ALL {
            let written = value.get(attribute.name());
            match attribute.value(&reset) {
                None => prop_assert!(written.is_none()),
                Some(Value::Text(text)) => prop_assert_eq!(written.unwrap(), text),
                Some(Value::Address(address)) => prop_assert_eq!(written.unwrap(), &address.to_string()),
                Some(Value::Integer(number)) => prop_assert_eq!(written.unwrap(), number),
                Some(Value::Float(number)) => {
                    let read = written.unwrap().as_f64().unwrap();
                    prop_assert!((read - number).abs() <= number * 1e-15, "{} {}", read, number);
                }
            }
        }
    }

    #[test]
    fn any_reset_is_one_pretty_line(reset in sample::any_reset()) {
        let text = line(&mut Console::new(settings::Console::Pretty, true, false), &reset);
        prop_assert_eq!(text.chars().filter(|character| character.is_control()).count(), 1);
    }
}
